//! The kernel's rules: what is in them is remembered, so that only changes are written.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::config::Mode;
use crate::nftables::socket::{self, Identity};
use crate::nftables::{Node, render, state};
use crate::table::{Changes, PortName, Table};
use crate::{families, iptables};

/// The rules of one address family.
pub struct Kernel {
    ipv6: bool,
    have: Have,
    /// What the rules were made for, beside the table.
    node: Option<Node>,
}

/// What is in the kernel; `None`: not known.
enum Have {
    Nftables(Option<(state::Rules, Option<Identity>)>),
    Iptables(Option<iptables::Rules>),
}

impl Kernel {
    pub fn new(mode: Mode, ipv6: bool) -> Self {
        let have = match mode {
            Mode::Nftables => Have::Nftables(None),
            Mode::Iptables => Have::Iptables(None),
        };
        Self { ipv6, have, node: None }
    }

    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Everything is written anew next time.
    pub fn distrust(&mut self) {
        match &mut self.have {
            Have::Nftables(have) => *have = None,
            Have::Iptables(have) => *have = None,
        }
    }

    /// Looks whether our rules are still there: if not, they are written anew next time.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let there = match &self.have {
            Have::Nftables(Some((_, had))) => socket::identity(self.ipv6)? == *had,
            Have::Iptables(Some(_)) => iptables_there(self.ipv6),
            Have::Nftables(None) | Have::Iptables(None) => true,
        };
        if !there {
            tracing::warn!(ipv6 = self.ipv6, "somebody else has removed rules: written anew");
            self.distrust();
        }
        Ok(())
    }

    /// Brings the kernel to the table, in which `changes` were made since the last time. Returns the
    /// bytes of rules written.
    ///
    /// # Errors
    /// What the kernel or the tool said; the kernel is as it was, and everything is written anew
    /// next time.
    pub fn sync(&mut self, table: &Table, changes: &Changes, node: &Node) -> anyhow::Result<usize> {
        let same = self.node.as_ref() == Some(node);
        let result = match &mut self.have {
            Have::Nftables(have) => sync_nftables(self.ipv6, have, same, table, changes, node),
            Have::Iptables(have) => sync_iptables(self.ipv6, have, same, table, changes, node),
        };
        self.node = Some(node.clone());
        if result.is_err() {
            self.distrust();
        }
        result
    }
}

fn sync_nftables(
    ipv6: bool,
    have: &mut Option<(state::Rules, Option<Identity>)>,
    same: bool,
    table: &Table,
    changes: &Changes,
    node: &Node,
) -> anyhow::Result<usize> {
    let Some((rules, identity)) = have else {
        let (rules, changes) = state::Rules::whole(render::all(table, node, ipv6));
        let size = socket::commit(ipv6, &changes)?;
        *have = Some((rules, socket::identity(ipv6)?));
        return Ok(size);
    };
    if same {
        for (name, change) in changes {
            let new = change.new.as_ref().map(|row| render::fragment(row, node));
            rules.set(name, new.unwrap_or_default());
        }
    } else {
        let base = state::base_owner();
        let stay: BTreeSet<&PortName> = table.keys().chain([&base]).collect();
        for gone in rules.without(&stay) {
            rules.set(&gone, crate::nftables::Fragment::default());
        }
        for (name, fragment) in render::all(table, node, ipv6) {
            rules.set(&name, fragment);
        }
    }
    let changes = rules.take();
    if changes.is_empty() {
        return Ok(0);
    }
    let size = socket::commit(ipv6, &changes)?;
    *identity = socket::identity(ipv6)?;
    Ok(size)
}

fn sync_iptables(
    ipv6: bool,
    have: &mut Option<iptables::Rules>,
    same: bool,
    table: &Table,
    changes: &Changes,
    node: &Node,
) -> anyhow::Result<usize> {
    let restore = if ipv6 { "ip6tables-restore" } else { "iptables-restore" };
    let script = match have {
        Some(rules) if same => rules.change(changes, node, ipv6),
        Some(rules) => rules.replace(table, node, ipv6),
        None => {
            let mut rules = iptables::Rules::new(transaction(restore)?);
            let script = rules.replace(table, node, ipv6);
            pipe(restore, &["--noflush", "-w", "5"], &script)?;
            jumps(ipv6)?;
            let save = if ipv6 { "ip6tables-save" } else { "iptables-save" };
            let stale = rules.sweep(&run(save, &["-t", "nat"])?);
            if !stale.is_empty() {
                pipe(restore, &["--noflush", "-w", "5"], &stale)?;
            }
            *have = Some(rules);
            return Ok(script.len());
        }
    };
    if !script.is_empty() {
        pipe(restore, &["--noflush", "-w", "5"], &script)?;
    }
    Ok(script.len())
}

/// How many lines a transaction may have.
fn transaction(restore: &str) -> anyhow::Result<usize> {
    // The old kind has not always said what it is.
    let new = run(restore, &["--version"])?.contains("nf_tables");
    Ok(if new { iptables::TRANSACTION } else { usize::MAX })
}

/// Whether the jumps from built-in chains, and so the chains behind them, are there.
fn iptables_there(ipv6: bool) -> bool {
    let program = if ipv6 { "ip6tables" } else { "iptables" };
    // The first of each table: who removes rules does so with whole tables.
    iptables::jumps().step_by(3).all(|(table, from, to)| {
        run(program, &["-w", "5", "-t", table, "-C", from, "-j", to]).is_ok()
    })
}

/// Makes the built-in chains jump to ours, first of all.
fn jumps(ipv6: bool) -> anyhow::Result<()> {
    let program = if ipv6 { "ip6tables" } else { "iptables" };
    for (table, from, to) in iptables::jumps() {
        let rule = ["-w", "5", "-t", table];
        let check = [&rule[..], &["-C", from, "-j", to]].concat();
        if run(program, &check).is_err() {
            run(program, &[&rule[..], &["-I", from, "-j", to]].concat())?;
        }
    }
    Ok(())
}
fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().with_context(command)?;
    if !output.status.success() {
        bail!("{}: {}", command(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn pipe(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be started"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context(program.to_owned())?;
    }
    let output = child.wait_with_output().context(program.to_owned())?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Whether iptables works for a family.
///
/// # Errors
/// Why not: there is no such program, or the kernel lacks what it needs.
pub fn has_iptables(ipv6: bool) -> anyhow::Result<()> {
    let program = if ipv6 { "ip6tables" } else { "iptables" };
    run(program, &["-w", "5", "-t", "nat", "-S", "POSTROUTING"]).map(drop)
}

/// Removes all rules of both modes and families.
///
/// # Errors
/// What the tools printed.
pub fn cleanup() -> anyhow::Result<()> {
    for ipv6 in [false, true] {
        if ipv6 && !families::kernel_has_ipv6() {
            continue;
        }
        socket::remove(ipv6)?;
        let (program, save) =
            if ipv6 { ("ip6tables", "ip6tables-save") } else { ("iptables", "iptables-save") };
        for table in ["nat", "filter"] {
            let rules = run(save, &["-t", table])?;
            let ours: Vec<&str> = rules
                .lines()
                .filter_map(|l| l.strip_prefix(":KUBE-"))
                .filter_map(|l| l.split(' ').next())
                .collect();
            if ours.is_empty() {
                continue;
            }
            for (_, from, to) in iptables::jumps().filter(|(t, ..)| *t == table) {
                // It may not be there.
                let _ = run(program, &["-w", "5", "-t", table, "-D", from, "-j", to]);
            }
            let mut script = format!("*{table}\n");
            for chain in &ours {
                script.push_str(&format!(":KUBE-{chain} - [0:0]\n"));
            }
            for chain in &ours {
                script.push_str(&format!("-X KUBE-{chain}\n"));
            }
            script.push_str("COMMIT\n");
            pipe(&format!("{program}-restore"), &["--noflush", "-w", "5"], &script)?;
        }
    }
    Ok(())
}
