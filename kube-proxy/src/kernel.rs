//! The kernel's rules: what is in them is remembered, so that only changes are written.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::config::Mode;
use crate::nftables::Node;
use crate::table::Table;
use crate::{iptables, nftables};

/// The rules of one address family.
pub enum Kernel {
    Nftables { ipv6: bool, have: Option<nftables::Ruleset> },
    Iptables { ipv6: bool, have: Option<iptables::Ruleset> },
}

impl Kernel {
    pub fn new(mode: Mode, ipv6: bool) -> Self {
        match mode {
            Mode::Nftables => Self::Nftables { ipv6, have: None },
            Mode::Iptables => Self::Iptables { ipv6, have: None },
        }
    }

    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Nftables { ipv6, .. } | Self::Iptables { ipv6, .. } => *ipv6,
        }
    }

    /// Everything is written anew next time.
    pub fn distrust(&mut self) {
        match self {
            Self::Nftables { have, .. } => *have = None,
            Self::Iptables { have, .. } => *have = None,
        }
    }

    /// Brings the kernel to the table. Returns the bytes of rules written.
    ///
    /// # Errors
    /// What the tool printed; the kernel is as it was, and everything is written anew next time.
    pub fn sync(&mut self, table: &Table, node: &Node) -> anyhow::Result<usize> {
        let result = match self {
            Self::Nftables { ipv6, have } => sync_nftables(*ipv6, have, table, node),
            Self::Iptables { ipv6, have } => sync_iptables(*ipv6, have, table, node),
        };
        if result.is_err() {
            self.distrust();
        }
        result
    }
}

fn sync_nftables(
    ipv6: bool,
    have: &mut Option<nftables::Ruleset>,
    table: &Table,
    node: &Node,
) -> anyhow::Result<usize> {
    let new = nftables::render(table, node, ipv6);
    let script = match have.as_ref().filter(|old| nftables::can_change(old, &new)) {
        Some(old) => nftables::change(old, &new, ipv6),
        None => nftables::full(&new, ipv6),
    };
    if !script.is_empty() {
        pipe("nft", &["-f", "-"], &script)?;
    }
    *have = Some(new);
    Ok(script.len())
}

fn sync_iptables(
    ipv6: bool,
    have: &mut Option<iptables::Ruleset>,
    table: &Table,
    node: &Node,
) -> anyhow::Result<usize> {
    let new = iptables::render(table, node, ipv6);
    let restore = if ipv6 { "ip6tables-restore" } else { "iptables-restore" };
    let script = iptables::change(&have.clone().unwrap_or_default(), &new);
    if !script.is_empty() {
        pipe(restore, &["--noflush", "-w", "5"], &script)?;
    }
    if have.is_none() {
        jumps(ipv6)?;
    }
    *have = Some(new);
    Ok(script.len())
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

/// Removes all rules of both modes and families.
///
/// # Errors
/// What the tools printed.
pub fn cleanup() -> anyhow::Result<()> {
    for ipv6 in [false, true] {
        pipe("nft", &["-f", "-"], &nftables::remove(ipv6))?;
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
