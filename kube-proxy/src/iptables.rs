//! Rules for iptables, as upstream's chains (KUBE-SERVICES, KUBE-NODEPORTS, KUBE-SVC-*, KUBE-SEP-*),
//! for nodes whose other software expects them. One `iptables-restore --noflush` for a change, of the
//! chains that are other than before: in one transaction, or in several where these are many.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use crate::names::short_hash;
use crate::nftables::state::base_owner;
use crate::nftables::{Local, Node};
use crate::table::{Backend, Changes, PortName, ServicePort, Table, Targets};

/// Chains of ours in table `nat`, with the built-in chains that jump to them.
const NAT_JUMPS: [(&str, &str); 3] = [
    ("PREROUTING", "KUBE-SERVICES"),
    ("OUTPUT", "KUBE-SERVICES"),
    ("POSTROUTING", "KUBE-POSTROUTING"),
];
const FILTER_JUMPS: [(&str, &str); 3] =
    [("INPUT", "KUBE-REFUSE"), ("FORWARD", "KUBE-REFUSE"), ("OUTPUT", "KUBE-REFUSE")];

/// After how many lines iptables of nf_tables gets a new transaction. It looks up the name of each
/// rule's chain, and that of the chain which the rule leads to, by comparing it with all names of the
/// transaction that come before it in the alphabet: a transaction takes a time that grows with the
/// square of its size. And for each the kernel follows all rules that packets can reach. With 60,000
/// chains both together take least time at about this size. The old kind of iptables writes the
/// whole table for each transaction: it gets one.
pub const TRANSACTION: usize = 4000;

/// What one owner wants: a service's port, or (before all others) the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Chains of table `nat` that are the owner's alone.
    chains: BTreeMap<String, Vec<String>>,
    /// Rules in KUBE-SERVICES.
    services: Vec<String>,
    /// Rules in KUBE-NODEPORTS.
    node_ports: Vec<String>,
    /// Rules in KUBE-REFUSE, of table `filter`.
    refuse: Vec<String>,
}

/// What there is without any service.
fn base(node: &Node) -> Fragment {
    let mark = node.mark;
    let mut base = Fragment::default();
    base.chains.insert("KUBE-MARK-MASQ".into(), vec![format!("-j MARK --or-mark {mark:#x}")]);
    base.chains.insert(
        "KUBE-POSTROUTING".into(),
        vec![
            format!("-m mark ! --mark {mark:#x}/{mark:#x} -j RETURN"),
            format!("-j MARK --xor-mark {mark:#x}"),
            "-j MASQUERADE --random-fully".into(),
        ],
    );
    base
}

/// What matches packets of this cluster's pods, or all others, if they can be told.
fn from_pods(node: &Node, ipv6: bool, inside: bool) -> Option<String> {
    let not = if inside { "" } else { "! " };
    match &node.local {
        Local::Addresses(net) if net.addr().is_ipv6() == ipv6 => Some(format!("{not}-s {net}")),
        Local::Bridge(name) => Some(format!("{not}-i {name}")),
        Local::Prefix(prefix) => Some(format!("{not}-i {prefix}+")),
        Local::Addresses(_) | Local::Unknown => None,
    }
}

/// What one row needs.
fn fragment(row: &ServicePort, node: &Node, ipv6: bool) -> Fragment {
    let mut fragment = Fragment::default();
    Service { row, node, ipv6 }.render(&mut fragment);
    fragment
}

/// The rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Lines of a transaction.
    transaction: usize,
    fragments: BTreeMap<PortName, Fragment>,
    /// Rules at the end of KUBE-SERVICES: to the node's own addresses.
    last: Vec<String>,
}

/// What is other than before.
#[derive(Debug, Default)]
struct Touched {
    /// Chains of table `nat`, without rules when they are gone.
    chains: BTreeMap<String, Option<Vec<String>>>,
    services: bool,
    node_ports: bool,
    refuse: bool,
}

impl Rules {
    /// None are there yet. A transaction has about so many lines.
    pub fn new(transaction: usize) -> Self {
        Self { transaction, fragments: BTreeMap::new(), last: Vec::new() }
    }

    /// Input of `iptables-restore --noflush` for these changes; empty when nothing changed.
    pub fn change(&mut self, changes: &Changes, node: &Node, ipv6: bool) -> String {
        let mut touched = Touched::default();
        for (name, change) in changes {
            let new = change.new.as_ref().map(|row| fragment(row, node, ipv6));
            self.set(name, new, &mut touched);
        }
        self.script(touched)
    }

    /// The same for a whole table.
    pub fn replace(&mut self, table: &Table, node: &Node, ipv6: bool) -> String {
        let mut touched = Touched::default();
        if self.fragments.is_empty() {
            // These are there also without any service.
            (touched.services, touched.node_ports, touched.refuse) = (true, true, true);
        }
        let base_name = base_owner();
        let gone = self.fragments.keys().filter(|n| !table.contains_key(*n) && **n != base_name);
        for name in gone.cloned().collect::<Vec<_>>() {
            self.set(&name, None, &mut touched);
        }
        self.set(&base_name, Some(base(node)), &mut touched);
        for (name, row) in table {
            self.set(name, Some(fragment(row, node, ipv6)), &mut touched);
        }
        let addresses = node.addresses.iter().filter(|a| a.is_ipv6() == ipv6);
        let mut last: Vec<String> =
            addresses.map(|a| format!("-d {a} -j KUBE-NODEPORTS")).collect();
        if node.any_address {
            let loopback = if ipv6 { "::1/128" } else { "127.0.0.0/8" };
            last = vec![format!("! -d {loopback} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")];
        }
        touched.services |= last != self.last;
        self.last = last;
        self.script(touched)
    }

    fn set(&mut self, name: &PortName, new: Option<Fragment>, touched: &mut Touched) {
        let old = self.fragments.remove(name).unwrap_or_default();
        let fresh = new.unwrap_or_default();
        for chain in old.chains.keys().filter(|chain| !fresh.chains.contains_key(*chain)) {
            touched.chains.insert(chain.clone(), None);
        }
        for (chain, rules) in &fresh.chains {
            if old.chains.get(chain) != Some(rules) {
                touched.chains.insert(chain.clone(), Some(rules.clone()));
            }
        }
        touched.services |= old.services != fresh.services;
        touched.node_ports |= old.node_ports != fresh.node_ports;
        touched.refuse |= old.refuse != fresh.refuse;
        if fresh != Fragment::default() {
            self.fragments.insert(name.clone(), fresh);
        }
    }

    fn script(&self, touched: Touched) -> String {
        let collect = |of: fn(&Fragment) -> &Vec<String>| -> Vec<&String> {
            self.fragments.values().flat_map(of).collect()
        };
        let mut nat: BTreeMap<&str, Option<Vec<&String>>> = BTreeMap::new();
        for (chain, rules) in &touched.chains {
            nat.insert(chain, rules.as_ref().map(|rules| rules.iter().collect()));
        }
        if touched.services {
            let mut rules = by_target(collect(|f| &f.services));
            rules.extend(&self.last);
            nat.insert("KUBE-SERVICES", Some(rules));
        }
        if touched.node_ports {
            nat.insert("KUBE-NODEPORTS", Some(by_target(collect(|f| &f.node_ports))));
        }
        let mut filter = BTreeMap::new();
        if touched.refuse {
            filter.insert("KUBE-REFUSE", Some(collect(|f| &f.refuse)));
        }
        let mut script = String::new();
        write_table(&mut script, "nat", &nat, self.transaction);
        write_table(&mut script, "filter", &filter, self.transaction);
        script
    }

    /// Input of `iptables-restore --noflush` that deletes chains which services had once: what
    /// `iptables-save -t nat` printed may have some of an earlier proxy.
    pub fn sweep(&self, saved: &str) -> String {
        let ours: BTreeSet<&str> =
            self.fragments.values().flat_map(|f| f.chains.keys()).map(String::as_str).collect();
        let chains = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        let of_services = |chain: &&str| {
            let prefixes = ["SVC", "SVL", "ALL", "EXT", "FW", "SEP"];
            let kind = chain.strip_prefix("KUBE-").and_then(|c| c.split('-').next());
            kind.is_some_and(|kind| prefixes.contains(&kind)) && !ours.contains(chain)
        };
        let mut script = String::new();
        let stale = chains.filter(of_services).map(|chain| (chain, None)).collect();
        write_table(&mut script, "nat", &stale, self.transaction);
        script
    }
}

/// Rules in the order in which a transaction is fast: in the alphabet, what a rule leads to is before
/// what those above it lead to (see [`TRANSACTION`]).
fn by_target(mut rules: Vec<&String>) -> Vec<&String> {
    let target = |rule: &str| rule.rsplit_once(" -j ").map(|(_, target)| target.to_owned());
    rules.sort_by_cached_key(|rule| std::cmp::Reverse(target(rule)));
    rules
}

/// Chains lead only to chains of a lower rank.
fn rank(chain: &str) -> u8 {
    match chain.strip_prefix("KUBE-").and_then(|chain| chain.split('-').next()) {
        Some("SEP") => 1,
        Some("SVC" | "SVL" | "ALL") => 2,
        Some("EXT") => 3,
        Some("FW") => 4,
        Some("NODEPORTS") => 5,
        Some("SERVICES") => 6,
        _ => 0,
    }
}

/// Lines that are carried out all or not at all.
#[derive(Default)]
struct Transaction<'a> {
    chains: Vec<&'a str>,
    rules: Vec<(&'a str, &'a str)>,
    gone: Vec<&'a str>,
}

impl Transaction<'_> {
    fn lines(&self) -> usize {
        self.chains.len() + self.rules.len() + self.gone.len()
    }

    /// Writes it down, and begins another.
    fn end(&mut self, script: &mut String, table: &str) {
        let Self { chains, rules, gone } = std::mem::take(self);
        // Writing to a String cannot fail.
        let _ = writeln!(script, "*{table}");
        for chain in chains {
            let _ = writeln!(script, ":{chain} - [0:0]");
        }
        for (chain, rule) in rules {
            let _ = writeln!(script, "-A {chain} {rule}");
        }
        for chain in gone {
            let _ = writeln!(script, "-X {chain}");
        }
        let _ = writeln!(script, "COMMIT");
    }
}

/// Changed chains are written whole, those that are gone are deleted. A chain is written before those
/// that lead to it, and deleted after them: there may be a transaction's end between any two.
fn write_table(
    script: &mut String,
    table: &str,
    chains: &BTreeMap<&str, Option<Vec<&String>>>,
    lines: usize,
) {
    let mut written: Vec<_> =
        chains.iter().filter_map(|(chain, rules)| Some((*chain, rules.as_ref()?))).collect();
    // Not in the alphabet's order: iptables-save takes square time to sort what is sorted.
    let ends = |chain: &str| chain.bytes().rev().collect::<Vec<_>>();
    written.sort_by_cached_key(|(chain, _)| (rank(chain), ends(chain)));
    let mut gone: Vec<&str> =
        chains.iter().filter(|(_, rules)| rules.is_none()).map(|(chain, _)| *chain).collect();
    gone.sort_by_key(|chain| std::cmp::Reverse(rank(chain)));
    let mut transaction = Transaction::default();
    for (chain, rules) in written {
        if transaction.lines() >= lines {
            transaction.end(script, table);
        }
        transaction.chains.push(chain);
        transaction.rules.extend(rules.iter().map(|rule| (chain, rule.as_str())));
    }
    for chain in gone {
        if transaction.lines() >= lines {
            transaction.end(script, table);
        }
        // Its rules go first.
        transaction.chains.push(chain);
        transaction.gone.push(chain);
    }
    if transaction.lines() > 0 {
        transaction.end(script, table);
    }
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

    fn render(&self, rules: &mut Fragment) {
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
        } else if !row.cluster.backends.is_empty() {
            // Pods and the node itself are inside wherever they knock: all backends, not only this
            // node's.
            let cluster = match row.cluster.backends == row.internal.backends {
                true => svc.clone(),
                false => {
                    let all = self.chain("ALL");
                    self.targets(rules, &row.cluster, &all, false);
                    all
                }
            };
            if let Some(pods) = from_pods(self.node, self.ipv6, true) {
                chain.push(format!("{pods} -j {cluster}"));
            }
            chain.push("-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ".to_owned());
            chain.push(format!("-m addrtype --src-type LOCAL -j {cluster}"));
        }
        if rules.chains.contains_key(&inner) {
            chain.push(format!("-j {inner}"));
        }
        let leads = rules.chains.contains_key(&inner) || row.external_local && !chain.is_empty();
        if leads {
            rules.chains.insert(ext.clone(), chain);
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
                rules.node_ports.push(lead);
            }
            if row.external.backends.is_empty() {
                let verdict = verdict(&row.external);
                let local = format!(
                    "-m addrtype --dst-type LOCAL {matching} -m conntrack --ctstate NEW {verdict}"
                );
                rules.refuse.push(local);
            }
        }
    }

    /// From outside to a chain, if there is one. What it leaves alone, because its node has no
    /// backend, is dropped or refused.
    fn lead_external(&self, rules: &mut Fragment, matching: &str, chain: Option<&str>) {
        if let Some(chain) = chain {
            let rule = format!("{matching} -j {chain}");
            rules.services.push(rule);
        }
        if self.row.external.backends.is_empty() {
            let verdict = verdict(&self.row.external);
            let rule = format!("{matching} -m conntrack --ctstate NEW {verdict}");
            rules.refuse.push(rule);
        }
    }

    fn lead_load_balancer(&self, rules: &mut Fragment, matching: &str, ext: Option<&str>) {
        let row = self.row;
        let Some(ext) = ext.filter(|_| !row.source_ranges.is_empty()) else {
            return self.lead_external(rules, matching, ext);
        };
        let fw = self.chain("FW");
        let allow = |from: String| format!("-s {from} -j {ext}");
        let mut chain: Vec<String> =
            row.source_ranges.iter().map(|range| allow(range.to_string())).collect();
        // Where an address is one of the node's own (as some balancers have it), what the node sends
        // to it comes from it.
        if self.node.addresses.iter().any(|a| row.source_ranges.iter().any(|r| r.contains(a))) {
            chain.extend(row.load_balancer_ips.iter().map(|ip| allow(ip.to_string())));
        }
        rules.chains.insert(fw.clone(), chain);
        self.lead_external(rules, matching, Some(&fw));
        // What no range let through is still addressed to the balancer: table nat cannot drop.
        let refused = format!("{matching} -m conntrack --ctstate NEW -j DROP");
        rules.refuse.push(refused);
    }

    fn lead(&self, rules: &mut Fragment, matching: &str, targets: &Targets, chain: &str) {
        if targets.backends.is_empty() {
            let rule = format!("{matching} -m conntrack --ctstate NEW {}", verdict(targets));
            rules.refuse.push(rule);
        } else {
            let rule = format!("{matching} -j {chain}");
            rules.services.push(rule);
        }
    }

    fn targets(&self, rules: &mut Fragment, targets: &Targets, chain: &str, inside: bool) {
        let backends = &targets.backends;
        if backends.is_empty() {
            return;
        }
        let mut out = Vec::new();
        if inside {
            // Only what is addressed to the service: node ports are marked already.
            let matching = self.matching(&self.row.cluster_ip);
            match (from_pods(self.node, self.ipv6, false), self.node.masquerade_all) {
                (_, true) => out.push(format!("{matching} -j KUBE-MARK-MASQ")),
                (Some(others), false) => {
                    out.push(format!("{others} {matching} -j KUBE-MARK-MASQ"));
                }
                (None, false) => {}
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
        rules.chains.insert(chain.into(), out);
    }

    fn backend(&self, rules: &mut Fragment, backend: &Backend) -> String {
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
        rules.chains.insert(
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

/// The jumps from built-in chains: (table, chain, target).
pub fn jumps() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let nat = NAT_JUMPS.into_iter().map(|(from, to)| ("nat", from, to));
    nat.chain(FILTER_JUMPS.into_iter().map(|(from, to)| ("filter", from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::tests::node;
    use crate::table::tests::{here, service, slice};
    use crate::table::{Changed, build};
    use serde_json::json;

    fn table(spec: serde_json::Value, endpoints: &[&str]) -> Table {
        build(&here(), false, [&service(spec)], [&slice(endpoints)])
    }

    fn rules(spec: serde_json::Value, endpoints: &[&str]) -> Rules {
        let mut rules = Rules::new(TRANSACTION);
        rules.replace(&table(spec, endpoints), &node(), false);
        rules
    }

    fn web() -> serde_json::Value {
        json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080}]})
    }

    #[test]
    fn probabilities_share_evenly() {
        let rules = rules(web(), &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let mut chains = rules.fragments.values().flat_map(|f| &f.chains);
        let chain = chains.find(|(name, _)| name.starts_with("KUBE-SVC-")).expect("a chain");
        let shares: Vec<&str> = chain
            .1
            .iter()
            .filter_map(|r| r.split("--probability ").nth(1)?.split(' ').next())
            .collect();
        assert_eq!(shares, ["0.3333333333", "0.5000000000"]);
    }

    #[test]
    fn only_changed_chains_are_written() {
        let mut rules = rules(web(), &["10.0.0.1"]);
        assert_eq!(rules.replace(&table(web(), &["10.0.0.1"]), &node(), false), "");
        let (old, new) = (table(web(), &["10.0.0.1"]), table(web(), &["10.0.0.2"]));
        let changed = |(name, old): (&PortName, &ServicePort)| {
            let change = Changed { old: Some(old.clone()), new: new.get(name).cloned() };
            (name.clone(), change)
        };
        let script = rules.change(&old.iter().map(changed).collect(), &node(), false);
        assert!(!script.contains("KUBE-POSTROUTING"), "{script}");
        assert!(!script.contains("KUBE-SERVICES"), "{script}");
        assert_eq!(script.matches("-X KUBE-SEP-").count(), 1, "{script}");
        let mut fresh = Rules::new(TRANSACTION);
        fresh.replace(&new, &node(), false);
        assert_eq!(rules, fresh);
    }

    #[test]
    fn chains_of_an_earlier_proxy_are_swept() {
        let rules = rules(web(), &["10.0.0.1"]);
        let mut chains = rules.fragments.values().flat_map(|f| f.chains.keys());
        let own = chains.find(|c| c.starts_with("KUBE-SEP-")).expect("a chain");
        let saved = format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:{own} - [0:0]\n:KUBE-SEP-OLD - [0:0]\n:X - [0:0]\n"
        );
        assert_eq!(rules.sweep(&saved), "*nat\n:KUBE-SEP-OLD - [0:0]\n-X KUBE-SEP-OLD\nCOMMIT\n");
    }

    /// Tables of a service, one after the other.
    fn states() -> [Table; 4] {
        let mut balanced = web();
        balanced["loadBalancerSourceRanges"] = json!(["192.0.2.0/24"]);
        balanced["externalIPs"] = json!(["198.51.100.1"]);
        balanced["externalTrafficPolicy"] = json!("Local");
        balanced["internalTrafficPolicy"] = json!("Local");
        let mut balanced = service(balanced);
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        balanced.status = serde_json::from_value(status).ok();
        [
            table(web(), &["10.0.0.1", "10.0.0.2@n2"]),
            table(web(), &[]),
            build(&here(), false, [&balanced], [&slice(&["10.0.0.1", "10.0.0.2@n2"])]),
            Table::new(),
        ]
    }

    /// Chains of table `nat`, which refuse what iptables refuses.
    #[derive(Default)]
    struct Model {
        chains: BTreeMap<String, Vec<String>>,
        transactions: usize,
    }

    impl Model {
        fn apply(&mut self, script: &str) {
            let nat = script.split("COMMIT\n").filter_map(|t| t.strip_prefix("*nat\n"));
            for transaction in nat {
                self.transactions += 1;
                transaction.lines().for_each(|line| self.line(line));
            }
        }

        fn line(&mut self, line: &str) {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().expect("a name");
                self.chains.insert(chain.to_owned(), Vec::new());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').expect("a rule");
                if let Some(target) = target(rule) {
                    assert!(self.chains.contains_key(target), "{line}: leads nowhere");
                }
                self.chains.get_mut(chain).expect("a chain").push(rule.to_owned());
            } else if let Some(gone) = line.strip_prefix("-X ") {
                let mut rules = self.chains.values().flatten();
                assert!(rules.all(|rule| target(rule) != Some(gone)), "{line}: in use");
                assert_eq!(self.chains.remove(gone), Some(Vec::new()), "{line}: not empty");
            } else {
                panic!("{line}");
            }
        }
    }

    fn target(rule: &str) -> Option<&str> {
        let words: Vec<&str> = rule.split(' ').collect();
        let at = words.iter().position(|word| *word == "-j")?;
        words.get(at + 1).copied().filter(|target| target.starts_with("KUBE-"))
    }

    #[test]
    fn many_transactions_lead_where_one_does() {
        let run = |lines: usize| {
            let (mut rules, mut model) = (Rules::new(lines), Model::default());
            let mut seen = Vec::new();
            for state in states() {
                model.apply(&rules.replace(&state, &node(), false));
                seen.push(model.chains.clone());
            }
            // What an earlier proxy had, all at once.
            let stale = Rules::new(lines);
            let mut before = Rules::new(usize::MAX);
            model.apply(&before.replace(&states()[2], &node(), false));
            let saved: String = model.chains.keys().map(|c| format!(":{c} - [0:0]\n")).collect();
            // Nothing that stays leads to it.
            model.line(":KUBE-SERVICES - [0:0]");
            model.line(":KUBE-NODEPORTS - [0:0]");
            model.apply(&stale.sweep(&saved));
            seen.push(model.chains);
            (seen, model.transactions)
        };
        let (wanted, transactions) = run(usize::MAX);
        assert_eq!(transactions, 6, "one for each");
        assert!(wanted[2].len() > 6 && wanted[4].len() == 4, "{wanted:?}");
        for (lines, least) in [(1, 30), (5, 8), (TRANSACTION, 6)] {
            let (seen, transactions) = run(lines);
            assert_eq!(seen, wanted, "of {lines} lines");
            assert!(transactions >= least, "of {lines} lines: {transactions}");
        }
    }

    #[test]
    fn services_are_led_to_in_the_order_in_which_a_transaction_is_fast() {
        let services: Vec<_> = (1..20)
            .map(|n| {
                let spec = json!({"clusterIP": format!("10.96.0.{n}"),
                    "ports": [{"port": 80, "nodePort": 30_000 + n}]});
                let (mut service, mut slice) = (service(spec), slice(&["10.0.0.1"]));
                let name = format!("web-{n}");
                slice.metadata.labels =
                    Some([("kubernetes.io/service-name".to_owned(), name.clone())].into());
                service.metadata.name = Some(name);
                (service, slice)
            })
            .collect();
        let table = build(
            &here(),
            false,
            services.iter().map(|(service, _)| service),
            services.iter().map(|(_, slice)| slice),
        );
        let mut model = Model::default();
        model.apply(&Rules::new(TRANSACTION).replace(&table, &node(), false));
        for (chain, last) in [("KUBE-SERVICES", 1), ("KUBE-NODEPORTS", 0)] {
            let rules = &model.chains[chain];
            let targets: Vec<_> = rules.iter().filter_map(|rule| target(rule)).collect();
            let (of_services, rest) = targets.split_at(targets.len() - last);
            assert_eq!(of_services.len(), 19, "{chain}");
            assert!(of_services.is_sorted_by(|one, next| one >= next), "{of_services:?}");
            assert!(rest.iter().all(|target| *target == "KUBE-NODEPORTS"), "{rest:?}");
        }
    }

    /// iptables' own parser judges what we write, in a namespace of its own.
    #[test]
    fn iptables_takes_every_script() {
        for lines in [1, TRANSACTION] {
            iptables_takes(lines);
        }
    }

    fn iptables_takes(lines: usize) {
        let locals = [
            node().local,
            Local::Bridge("br0".into()),
            Local::Prefix("veth".into()),
            Local::Unknown,
        ];
        let dir = tempfile::tempdir().expect("a folder");
        let (mut all, mut rules) = (String::new(), Rules::new(lines));
        for (i, (state, local)) in states().iter().zip(locals).enumerate() {
            let file = dir.path().join(i.to_string());
            let script = rules.replace(state, &Node { local, ..node() }, false);
            std::fs::write(&file, script).expect("written");
            let _ = write!(all, "iptables-restore --noflush {} && ", file.display());
        }
        let output = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", &format!("{all} true")])
            .output()
            .expect("unshare is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
