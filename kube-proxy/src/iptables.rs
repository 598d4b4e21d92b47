//! Rules for iptables, as upstream's chains (KUBE-SERVICES, KUBE-NODEPORTS, KUBE-SVC-*, KUBE-SEP-*),
//! for nodes whose other software expects them. One `iptables-restore --noflush` for a change.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use crate::names::short_hash;
use crate::nftables::{MASQUERADE_MARK, Node};
use crate::table::{Backend, ServicePort, Table, Targets};

/// Chains of ours in table `nat`, with the built-in chains that jump to them.
const NAT_JUMPS: [(&str, &str); 3] = [
    ("PREROUTING", "KUBE-SERVICES"),
    ("OUTPUT", "KUBE-SERVICES"),
    ("POSTROUTING", "KUBE-POSTROUTING"),
];
const FILTER_JUMPS: [(&str, &str); 3] =
    [("INPUT", "KUBE-REFUSE"), ("FORWARD", "KUBE-REFUSE"), ("OUTPUT", "KUBE-REFUSE")];

/// The rules of one family: chains of each table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub nat: BTreeMap<String, Vec<String>>,
    pub filter: BTreeMap<String, Vec<String>>,
}

/// Renders the rules of one family.
pub fn render(table: &Table, node: &Node, ipv6: bool) -> Ruleset {
    let mut rules = Ruleset::default();
    let nat = &mut rules.nat;
    nat.insert("KUBE-SERVICES".into(), Vec::new());
    nat.insert("KUBE-NODEPORTS".into(), Vec::new());
    nat.insert("KUBE-MARK-MASQ".into(), vec![format!("-j MARK --or-mark {MASQUERADE_MARK}")]);
    nat.insert(
        "KUBE-POSTROUTING".into(),
        vec![
            format!("-m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN"),
            format!("-j MARK --xor-mark {MASQUERADE_MARK}"),
            "-j MASQUERADE --random-fully".into(),
        ],
    );
    rules.filter.insert("KUBE-REFUSE".into(), Vec::new());
    for row in table.values() {
        Service { row, node, ipv6 }.render(&mut rules);
    }
    let addresses = node.addresses.iter().filter(|a| a.is_ipv6() == ipv6);
    let last = addresses.map(|a| format!("-d {a} -j KUBE-NODEPORTS"));
    rules.nat.entry("KUBE-SERVICES".into()).or_default().extend(last);
    rules
}

struct Service<'a> {
    row: &'a ServicePort,
    node: &'a Node,
    ipv6: bool,
}

impl Service<'_> {
    fn chain(&self, prefix: &str) -> String {
        let row = self.row;
        format!("KUBE-{prefix}-{}", short_hash(&format!("{}{}", row.name, row.protocol.name())))
    }

    fn matching(&self, address: &IpAddr) -> String {
        let (protocol, port) = (self.row.protocol.name(), self.row.port);
        let bits = if self.ipv6 { 128 } else { 32 };
        format!("-d {address}/{bits} -p {protocol} -m {protocol} --dport {port}")
    }

    fn render(&self, rules: &mut Ruleset) {
        let row = self.row;
        let (svc, ext) = (self.chain("SVC"), self.chain("EXT"));
        self.targets(rules, &row.internal, &svc, true);
        self.lead(rules, &self.matching(&row.cluster_ip), &row.internal, &svc);
        let outside: Vec<&IpAddr> = row.external_ips.iter().chain(&row.load_balancer_ips).collect();
        if row.node_port.is_none() && outside.is_empty() {
            return;
        }
        // Masquerading comes before: with the same backends, the chain for inside does.
        let inner = match !row.external_local && row.external.backends == row.internal.backends {
            true => svc.clone(),
            false => {
                let svl = self.chain("SVL");
                self.targets(rules, &row.external, &svl, false);
                svl
            }
        };
        let mut chain = Vec::new();
        if !row.external_local {
            chain.push("-j KUBE-MARK-MASQ".to_owned());
        } else if rules.nat.contains_key(&svc) {
            // Pods and the node itself are inside wherever they knock.
            if let Some(pods) = &self.node.pods {
                chain.push(format!("-s {pods} -j {svc}"));
            }
            chain.push("-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ".to_owned());
            chain.push(format!("-m addrtype --src-type LOCAL -j {svc}"));
        }
        if rules.nat.contains_key(&inner) {
            chain.push(format!("-j {inner}"));
        }
        let leads = rules.nat.contains_key(&inner) || row.external_local && !chain.is_empty();
        if leads {
            rules.nat.insert(ext.clone(), chain);
        }
        let ext = leads.then_some(&*ext);
        for address in &row.external_ips {
            self.lead_external(rules, &self.matching(address), ext);
        }
        for address in &row.load_balancer_ips {
            self.lead_load_balancer(rules, &self.matching(address), ext);
        }
        if let Some(port) = row.node_port {
            let protocol = row.protocol.name();
            let matching = format!("-p {protocol} -m {protocol} --dport {port}");
            if let Some(ext) = ext {
                let lead = format!("{matching} -j {ext}");
                rules.nat.entry("KUBE-NODEPORTS".into()).or_default().push(lead);
            }
            if row.external.backends.is_empty() {
                let verdict = verdict(&row.external);
                let local = format!(
                    "-m addrtype --dst-type LOCAL {matching} -m conntrack --ctstate NEW {verdict}"
                );
                rules.filter.entry("KUBE-REFUSE".into()).or_default().push(local);
            }
        }
    }

    /// From outside to a chain, if there is one. What it leaves alone, because its node has no
    /// backend, is dropped or refused.
    fn lead_external(&self, rules: &mut Ruleset, matching: &str, chain: Option<&str>) {
        if let Some(chain) = chain {
            let rule = format!("{matching} -j {chain}");
            rules.nat.entry("KUBE-SERVICES".into()).or_default().push(rule);
        }
        if self.row.external.backends.is_empty() {
            let verdict = verdict(&self.row.external);
            let rule = format!("{matching} -m conntrack --ctstate NEW {verdict}");
            rules.filter.entry("KUBE-REFUSE".into()).or_default().push(rule);
        }
    }

    fn lead_load_balancer(&self, rules: &mut Ruleset, matching: &str, ext: Option<&str>) {
        let row = self.row;
        let Some(ext) = ext.filter(|_| !row.source_ranges.is_empty()) else {
            return self.lead_external(rules, matching, ext);
        };
        let fw = self.chain("FW");
        let allow = row.source_ranges.iter().map(|range| format!("-s {range} -j {ext}"));
        rules.nat.insert(fw.clone(), allow.collect());
        self.lead_external(rules, matching, Some(&fw));
        // What no range let through is still addressed to the balancer: table nat cannot drop.
        let refused = format!("{matching} -m conntrack --ctstate NEW -j DROP");
        rules.filter.entry("KUBE-REFUSE".into()).or_default().push(refused);
    }

    fn lead(&self, rules: &mut Ruleset, matching: &str, targets: &Targets, chain: &str) {
        if targets.backends.is_empty() {
            let rule = format!("{matching} -m conntrack --ctstate NEW {}", verdict(targets));
            rules.filter.entry("KUBE-REFUSE".into()).or_default().push(rule);
        } else {
            let rule = format!("{matching} -j {chain}");
            rules.nat.entry("KUBE-SERVICES".into()).or_default().push(rule);
        }
    }

    fn targets(&self, rules: &mut Ruleset, targets: &Targets, chain: &str, inside: bool) {
        let backends = &targets.backends;
        if backends.is_empty() {
            return;
        }
        let mut out = Vec::new();
        if inside {
            match (&self.node.pods, self.node.masquerade_all) {
                (_, true) => out.push("-j KUBE-MARK-MASQ".to_owned()),
                (Some(pods), false) if pods.addr().is_ipv6() == self.ipv6 => {
                    // Only what is addressed to the service: node ports are marked already.
                    let matching = self.matching(&self.row.cluster_ip);
                    out.push(format!("! -s {pods} {matching} -j KUBE-MARK-MASQ"));
                }
                _ => {}
            }
        }
        let seps: Vec<String> = backends.iter().map(|b| self.backend(rules, b)).collect();
        if let Some(seconds) = self.row.affinity {
            out.extend(seps.iter().map(|sep| {
                format!("-m recent --name {sep} --rcheck --seconds {seconds} --reap -j {sep}")
            }));
        }
        for (i, sep) in seps.iter().enumerate() {
            let left = seps.len() - i;
            #[expect(clippy::cast_precision_loss, reason = "a probability")]
            let share = 1.0 / left as f64;
            out.push(match left {
                1 => format!("-j {sep}"),
                _ => format!("-m statistic --mode random --probability {share:.10} -j {sep}"),
            });
        }
        rules.nat.insert(chain.into(), out);
    }

    fn backend(&self, rules: &mut Ruleset, backend: &Backend) -> String {
        let protocol = self.row.protocol.name();
        let (address, bits) = match backend.address {
            IpAddr::V4(a) => (a.to_string(), 32),
            IpAddr::V6(a) => (format!("[{a}]"), 128),
        };
        let to = format!("{address}:{}", backend.port);
        let name = format!("{}{protocol}{to}", self.row.name);
        let sep = format!("KUBE-SEP-{}", short_hash(&name));
        let remember = match self.row.affinity {
            Some(_) => format!("-m recent --name {sep} --set "),
            None => String::new(),
        };
        // A pod that reaches itself through the service must not see its own address.
        rules.nat.insert(
            sep.clone(),
            vec![
                format!("-s {}/{bits} -j KUBE-MARK-MASQ", backend.address),
                format!("-p {protocol} {remember}-m {protocol} -j DNAT --to-destination {to}"),
            ],
        );
        sep
    }
}

fn verdict(targets: &Targets) -> &'static str {
    if targets.elsewhere { "-j DROP" } else { "-j REJECT" }
}

/// Input of `iptables-restore --noflush` that leads from `old` to `new`: changed chains are
/// written whole, those that are gone are deleted. Empty when nothing changed.
pub fn change(old: &Ruleset, new: &Ruleset) -> String {
    let mut script = String::new();
    for (table, old, new) in [("nat", &old.nat, &new.nat), ("filter", &old.filter, &new.filter)] {
        let changed: Vec<_> =
            new.iter().filter(|(name, rules)| old.get(*name) != Some(rules)).collect();
        let gone: Vec<_> = old.keys().filter(|name| !new.contains_key(*name)).collect();
        if changed.is_empty() && gone.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(script, "*{table}");
        for name in changed.iter().map(|(name, _)| *name).chain(gone.iter().copied()) {
            let _ = writeln!(script, ":{name} - [0:0]");
        }
        for (name, rules) in &changed {
            for rule in *rules {
                let _ = writeln!(script, "-A {name} {rule}");
            }
        }
        for name in &gone {
            let _ = writeln!(script, "-X {name}");
        }
        let _ = writeln!(script, "COMMIT");
    }
    script
}

/// The jumps from built-in chains: (table, chain, target).
pub fn jumps() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let nat = NAT_JUMPS.into_iter().map(|(from, to)| ("nat", from, to));
    nat.chain(FILTER_JUMPS.into_iter().map(|(from, to)| ("filter", from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::build;
    use crate::table::tests::{here, service, slice};
    use serde_json::json;

    fn rules(spec: serde_json::Value, endpoints: &[&str]) -> Ruleset {
        let node = Node {
            addresses: vec![IpAddr::from([192, 0, 2, 1])],
            pods: "10.244.0.0/16".parse().ok(),
            masquerade_all: false,
        };
        render(&build(&here(), false, [&service(spec)], [&slice(endpoints)]), &node, false)
    }

    fn web() -> serde_json::Value {
        json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080}]})
    }

    #[test]
    fn probabilities_share_evenly() {
        let rules = rules(web(), &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let chain =
            rules.nat.iter().find(|(name, _)| name.starts_with("KUBE-SVC-")).expect("a chain");
        let shares: Vec<&str> = chain
            .1
            .iter()
            .filter_map(|r| r.split("--probability ").nth(1)?.split(' ').next())
            .collect();
        assert_eq!(shares, ["0.3333333333", "0.5000000000"]);
    }

    #[test]
    fn only_changed_chains_are_written() {
        let (one, two) = (rules(web(), &["10.0.0.1"]), rules(web(), &["10.0.0.2"]));
        assert_eq!(change(&one, &one), "");
        let script = change(&one, &two);
        assert!(!script.contains("KUBE-POSTROUTING"), "{script}");
        assert_eq!(script.matches("-X KUBE-SEP-").count(), 1, "{script}");
    }

    /// iptables' own parser judges what we render, in a namespace of its own.
    #[test]
    fn iptables_takes_every_script() {
        let states = [
            Ruleset::default(),
            rules(web(), &["10.0.0.1", "10.0.0.2@n2"]),
            rules(web(), &[]),
            Ruleset::default(),
        ];
        let dir = tempfile::tempdir().expect("a folder");
        let mut all = String::new();
        for (i, pair) in states.windows(2).enumerate() {
            let file = dir.path().join(i.to_string());
            std::fs::write(&file, change(&pair[0], &pair[1])).expect("written");
            let _ = write!(all, "iptables-restore --noflush {} && ", file.display());
        }
        let output = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", &format!("{all} true")])
            .output()
            .expect("unshare is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
