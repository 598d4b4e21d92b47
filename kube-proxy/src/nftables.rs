//! Rules for nf_tables: rendered from the table, brought into the kernel by the smallest change.
//!
//! One map leads from address, protocol and port to the chain of a service, and one rule in that
//! chain to a backend: the cost of a packet does not grow with the number of services. What is in
//! the kernel is remembered as rendered, so that a change is one transaction of the differences.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use crate::names::short_hash;
use crate::table::{Backend, ServicePort, Table, Targets};

/// Our table, in each family.
pub const TABLE: &str = "kube-proxy";
/// Marks packets to be masqueraded (upstream's default bit, `iptables.masqueradeBit` 14).
pub const MASQUERADE_MARK: &str = "0x4000";

/// What of a node goes into the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Addresses that node ports answer on.
    pub addresses: Vec<IpAddr>,
    /// Pods' own addresses: they reach services unmasqueraded.
    pub pods: Option<ipnet::IpNet>,
    pub masquerade_all: bool,
}

/// The rules of one family: named objects, each with its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chain → its rules, the hook first.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Set or map → its declaration and its elements (key → value, empty for sets).
    pub sets: BTreeMap<String, Set>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// `set` or `map`.
    pub kind: &'static str,
    pub declaration: String,
    pub elements: BTreeMap<String, String>,
    /// Packets add elements of their own: those are left alone.
    pub dynamic: bool,
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "ip6" } else { "ip" }
}

/// Renders the rules of one family.
pub fn render(table: &Table, node: &Node, ipv6: bool) -> Ruleset {
    let mut rules = Ruleset::default();
    let (ip, address) = (family(ipv6), if ipv6 { "ipv6_addr" } else { "ipv4_addr" });
    rules.declare_maps(address);
    rules.base_chains(ip, node, ipv6);
    for row in table.values() {
        Service { row, ip, node }.render(&mut rules, address);
    }
    for node_address in node.addresses.iter().filter(|a| a.is_ipv6() == ipv6) {
        rules.element("nodeport-ips", &node_address.to_string(), "");
    }
    rules
}

impl Ruleset {
    fn declare(&mut self, name: &str, kind: &'static str, declaration: String) {
        self.sets.insert(name.into(), Set { kind, declaration, ..Set::default() });
    }

    fn declare_maps(&mut self, address: &str) {
        let service = format!("type {address} . inet_proto . inet_service");
        self.declare("service-ips", "map", format!("{service} : verdict ;"));
        self.declare("no-endpoint-services", "map", format!("{service} : verdict ;"));
        self.declare(
            "service-nodeports",
            "map",
            "type inet_proto . inet_service : verdict ;".into(),
        );
        self.declare(
            "no-endpoint-nodeports",
            "map",
            "type inet_proto . inet_service : verdict ;".into(),
        );
        self.declare("nodeport-ips", "set", format!("type {address} ;"));
        self.declare("hairpin", "set", format!("type {address} . {address} ;"));
    }

    fn chain(&mut self, name: &str, rules: impl IntoIterator<Item = String>) {
        self.chains.insert(name.into(), rules.into_iter().collect());
    }

    fn element(&mut self, set: &str, key: &str, value: &str) {
        if let Some(set) = self.sets.get_mut(set) {
            set.elements.insert(key.into(), value.into());
        }
    }

    /// The chains that hooks call. What is addressed to a service still after translation has no
    /// backend.
    fn base_chains(&mut self, ip: &str, node: &Node, ipv6: bool) {
        let to_service = format!("{ip} daddr . meta l4proto . th dport vmap");
        let to_node = format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap");
        let nat = |hook: &str| {
            vec![
                format!("type nat hook {hook} priority -100 ;"),
                format!("{to_service} @service-ips"),
                format!("{to_node} @service-nodeports"),
            ]
        };
        let refuse = |hook: &str| {
            vec![
                format!("type filter hook {hook} priority -90 ;"),
                format!("ct state new {to_service} @no-endpoint-services"),
                format!("ct state new {to_node} @no-endpoint-nodeports"),
            ]
        };
        for hook in ["forward", "input", "output"] {
            self.chain(&format!("filter-{hook}"), refuse(hook));
        }
        self.chain("nat-prerouting", nat("prerouting"));
        self.chain("nat-output", nat("output"));
        let answer = match ipv6 {
            true => "reject with icmpv6 type port-unreachable",
            false => "reject with icmp type port-unreachable",
        };
        self.chain("refuse", [answer.to_owned()]);
        self.chain(
            "nat-postrouting",
            [
                "type nat hook postrouting priority 100 ;".to_owned(),
                format!(
                    "meta mark & {MASQUERADE_MARK} == {MASQUERADE_MARK} \
                 meta mark set meta mark & 0xffffbfff masquerade fully-random"
                ),
                format!("ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade fully-random"),
            ],
        );
        let mark = format!("meta mark set meta mark | {MASQUERADE_MARK}");
        self.chain("mark-for-masquerade", [mark.clone()]);
        let outside = match (&node.pods, node.masquerade_all) {
            (_, true) => Some(mark),
            (Some(pods), false) if pods.addr().is_ipv6() == ipv6 => {
                Some(format!("{ip} saddr != {pods} {mark}"))
            }
            _ => None,
        };
        self.chain("from-outside", outside);
    }
}

/// One row being rendered.
struct Service<'a> {
    row: &'a ServicePort,
    ip: &'static str,
    node: &'a Node,
}

impl Service<'_> {
    fn id(&self) -> String {
        let row = self.row;
        let name = format!("{}/{}", row.name, row.protocol.name());
        format!("{}-{}", short_hash(&name), printable(&row.name.service))
    }

    fn render(&self, rules: &mut Ruleset, address: &str) {
        let (row, id) = (self.row, self.id());
        let key = |ip: &IpAddr| format!("{ip} . {} . {}", row.protocol.name(), row.port);
        let internal = format!("service-{id}");
        self.targets(rules, &row.internal, &internal, address, true);
        self.lead(rules, &key(&row.cluster_ip), &row.internal, &internal);
        if row.node_port.is_none()
            && row.external_ips.is_empty()
            && row.load_balancer_ips.is_empty()
        {
            return;
        }
        let external = format!("external-{id}");
        // Masquerading comes before: with the same backends, the chain for inside does.
        let inner = match !row.external_local && row.external.backends == row.internal.backends {
            true => internal.clone(),
            false => {
                let name = format!("local-{id}");
                self.targets(rules, &row.external, &name, address, false);
                name
            }
        };
        let mut chain = Vec::new();
        if !row.external_local {
            chain.push("jump mark-for-masquerade".to_owned());
        } else if rules.chains.contains_key(&internal) {
            // Pods and the node itself are inside wherever they knock: all backends, not only this
            // node's.
            if let Some(pods) = &self.node.pods {
                chain.push(format!("{} saddr {pods} goto {internal}", self.ip));
            }
            chain.push("fib saddr type local jump mark-for-masquerade".to_owned());
            chain.push(format!("fib saddr type local goto {internal}"));
        }
        let leads = rules.chains.contains_key(&inner);
        if leads {
            chain.push(format!("goto {inner}"));
        }
        let leads = leads || row.external_local && !chain.is_empty();
        if leads {
            rules.chain(&external, chain);
        }
        for ip in &row.external_ips {
            self.lead_external(rules, "services", &key(ip), leads.then_some(&external));
        }
        for ip in &row.load_balancer_ips {
            self.lead_load_balancer(rules, &key(ip), leads.then_some(&external));
        }
        if let Some(port) = row.node_port {
            let key = format!("{} . {port}", row.protocol.name());
            self.lead_external(rules, "nodeports", &key, leads.then_some(&external));
        }
    }

    /// From outside to a chain, if there is one. What it leaves alone, because its node has no
    /// backend, is dropped or refused.
    fn lead_external(&self, rules: &mut Ruleset, what: &str, key: &str, chain: Option<&String>) {
        let targets = &self.row.external;
        if let Some(chain) = chain {
            let map = if what == "services" { "service-ips" } else { "service-nodeports" };
            rules.element(map, key, &format!("goto {chain}"));
        }
        if targets.backends.is_empty() {
            let verdict = if targets.elsewhere { "drop" } else { "goto refuse" };
            rules.element(&format!("no-endpoint-{what}"), key, verdict);
        }
    }

    fn lead(&self, rules: &mut Ruleset, key: &str, targets: &Targets, chain: &str) {
        let (map, verdict) = match (targets.backends.is_empty(), targets.elsewhere) {
            (false, _) => ("service-ips", format!("goto {chain}")),
            (true, true) => ("no-endpoint-services", "drop".to_owned()),
            (true, false) => ("no-endpoint-services", "goto refuse".to_owned()),
        };
        rules.element(map, key, &verdict);
    }

    /// A load balancer's address, with its source ranges checked first.
    fn lead_load_balancer(&self, rules: &mut Ruleset, key: &str, external: Option<&String>) {
        let row = self.row;
        let Some(external) = external.filter(|_| !row.source_ranges.is_empty()) else {
            return self.lead_external(rules, "services", key, external);
        };
        let firewall = format!("firewall-{}", self.id());
        let ranges: Vec<String> = row.source_ranges.iter().map(ToString::to_string).collect();
        let allow = format!("{} saddr {{ {} }} goto {external}", self.ip, ranges.join(", "));
        rules.chain(&firewall, [allow, "drop".to_owned()]);
        self.lead_external(rules, "services", key, Some(&firewall));
    }

    /// The chain that sends to one of the backends.
    fn targets(
        &self,
        rules: &mut Ruleset,
        targets: &Targets,
        chain: &str,
        address: &str,
        inside: bool,
    ) {
        let backends = &targets.backends;
        if backends.is_empty() {
            return;
        }
        for backend in backends.iter().filter(|b| b.local) {
            rules.element("hairpin", &format!("{0} . {0}", backend.address), "");
        }
        let mut out = Vec::new();
        if inside {
            out.push("jump from-outside".to_owned());
        }
        match self.row.affinity {
            None => out.push(self.balance(backends)),
            Some(seconds) => self.sticky(rules, backends, chain, address, seconds, &mut out),
        }
        rules.chain(chain, out);
    }

    fn dnat(&self, backend: &Backend) -> String {
        let protocol = self.row.protocol.name();
        let address = match backend.address {
            IpAddr::V4(a) => a.to_string(),
            IpAddr::V6(a) => format!("[{a}]"),
        };
        format!("meta l4proto {protocol} dnat to {address}:{}", backend.port)
    }

    fn balance(&self, backends: &[Backend]) -> String {
        if let [one] = backends {
            return self.dnat(one);
        }
        let mut map = String::new();
        for (i, backend) in backends.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(map, "{comma}{i} : {} . {}", backend.address, backend.port);
        }
        format!(
            "meta l4proto {} dnat {} addr . port to numgen random mod {} map {{ {map} }}",
            self.row.protocol.name(),
            self.ip,
            backends.len()
        )
    }

    /// A client that was sent to a backend lately goes there again.
    fn sticky(
        &self,
        rules: &mut Ruleset,
        backends: &[Backend],
        chain: &str,
        address: &str,
        seconds: u32,
        out: &mut Vec<String>,
    ) {
        let mut choices = Vec::new();
        for (i, backend) in backends.iter().enumerate() {
            let name = format!("{}:{}/{chain}", backend.address, backend.port);
            let to = format!("endpoint-{}", short_hash(&name));
            let set = format!("affinity-{}", short_hash(&name));
            let declaration =
                format!("type {address} ; flags dynamic,timeout ; timeout {seconds}s ;");
            rules.sets.insert(
                set.clone(),
                Set { kind: "set", declaration, dynamic: true, ..Set::default() },
            );
            out.push(format!("{} saddr @{set} goto {to}", self.ip));
            choices.push(format!("{i} : goto {to}"));
            let remember = format!("update @{set} {{ {} saddr }}", self.ip);
            rules.chain(&to, [remember, self.dnat(backend)]);
        }
        out.push(format!("numgen random mod {} vmap {{ {} }}", backends.len(), choices.join(", ")));
    }
}

/// The part of a name that may stand in the name of a chain.
fn printable(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect()
}

/// The script that makes everything anew.
pub fn full(new: &Ruleset, ipv6: bool) -> String {
    let f = family(ipv6);
    let mut script =
        format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\nadd table {f} {TABLE}\n");
    script.push_str(&change(&Ruleset::default(), new, ipv6));
    script
}

/// The script that removes everything.
pub fn remove(ipv6: bool) -> String {
    let f = family(ipv6);
    format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n")
}

/// The script that leads from one ruleset to another, in an order in which nothing is used before
/// it is there or removed while it is used. Empty when they are the same.
pub fn change(old: &Ruleset, new: &Ruleset, ipv6: bool) -> String {
    let f = family(ipv6);
    let mut s = String::new();
    macro_rules! line { ($($arg:tt)*) => {{ let _ = writeln!(s, $($arg)*); }} }
    let redeclared = |name: &String, set: &Set| {
        old.sets.get(name).is_some_and(|o| o.declaration != set.declaration)
    };
    // Elements that lead to chains that will go must go before these.
    for (name, set) in &old.sets {
        let stay = new.sets.get(name);
        for (key, value) in &set.elements {
            if stay.and_then(|n| n.elements.get(key)) != Some(value) && stay.is_some() {
                line!("delete element {f} {TABLE} {name} {{ {key} }}");
            }
        }
    }
    for (name, set) in &new.sets {
        if !old.sets.contains_key(name) {
            line!("add {} {f} {TABLE} {name} {{ {} }}", set.kind, set.declaration);
        }
    }
    for (name, rules) in &new.chains {
        match (old.chains.get(name), rules.first().filter(|r| r.starts_with("type "))) {
            (Some(_), _) => {}
            (None, Some(hook)) => line!("add chain {f} {TABLE} {name} {{ {hook} }}"),
            (None, None) => line!("add chain {f} {TABLE} {name}"),
        }
    }
    for (name, rules) in &new.chains {
        let have = old.chains.get(name);
        if have == Some(rules) {
            continue;
        }
        if have.is_some() {
            line!("flush chain {f} {TABLE} {name}");
        }
        for rule in rules.iter().filter(|r| !r.starts_with("type ")) {
            line!("add rule {f} {TABLE} {name} {rule}");
        }
    }
    for (name, set) in &new.sets {
        let have = old.sets.get(name).filter(|_| !redeclared(name, set));
        for (key, value) in &set.elements {
            if have.and_then(|h| h.elements.get(key)) == Some(value) {
                continue;
            }
            match value.as_str() {
                "" => line!("add element {f} {TABLE} {name} {{ {key} }}"),
                verdict => line!("add element {f} {TABLE} {name} {{ {key} : {verdict} }}"),
            }
        }
    }
    let gone = |name: &&String| !new.chains.contains_key(*name);
    for name in old.chains.keys().filter(gone) {
        line!("flush chain {f} {TABLE} {name}");
    }
    for (name, set) in old.sets.iter().filter(|(name, _)| !new.sets.contains_key(*name)) {
        line!("delete {} {f} {TABLE} {name}", set.kind);
    }
    for name in old.chains.keys().filter(gone) {
        line!("delete chain {f} {TABLE} {name}");
    }
    s
}

/// Whether [`change`] can lead from one to the other: a set cannot be declared anew in place.
pub fn can_change(old: &Ruleset, new: &Ruleset) -> bool {
    new.sets
        .iter()
        .all(|(name, set)| old.sets.get(name).is_none_or(|o| o.declaration == set.declaration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::build;
    use crate::table::tests::{here, service, slice};
    use serde_json::json;

    fn node() -> Node {
        Node {
            addresses: vec![IpAddr::from([192, 0, 2, 1])],
            pods: "10.244.0.0/16".parse().ok(),
            masquerade_all: false,
        }
    }

    fn rules(spec: serde_json::Value, endpoints: &[&str]) -> Ruleset {
        let table = build(&here(), false, [&service(spec)], [&slice(endpoints)]);
        render(&table, &node(), false)
    }

    fn web() -> serde_json::Value {
        json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]})
    }

    #[test]
    fn a_change_is_only_the_difference() {
        let (one, two) = (rules(web(), &["10.0.0.1"]), rules(web(), &["10.0.0.1", "10.0.0.2@n2"]));
        assert_eq!(change(&one, &one, false), "");
        let script = change(&one, &two, false);
        let chain = two.chains.keys().find(|c| c.starts_with("service-")).expect("a chain");
        assert_eq!(
            script.lines().collect::<Vec<_>>(),
            [
                &format!("flush chain ip kube-proxy {chain}"),
                &format!("add rule ip kube-proxy {chain} jump from-outside"),
                &format!(
                    "add rule ip kube-proxy {chain} meta l4proto tcp dnat ip addr . port to \
                     numgen random mod 2 map {{ 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8080 }}"
                ),
            ]
        );
    }

    #[test]
    fn a_service_that_loses_its_backends_is_refused() {
        let (with, without) = (rules(web(), &["10.0.0.1"]), rules(web(), &[]));
        let script = change(&with, &without, false);
        for wanted in [
            "delete element ip kube-proxy service-ips { 10.96.0.7 . tcp . 80 }",
            "delete element ip kube-proxy service-nodeports { tcp . 30080 }",
            "add element ip kube-proxy no-endpoint-services { 10.96.0.7 . tcp . 80 : goto refuse }",
            "add element ip kube-proxy no-endpoint-nodeports { tcp . 30080 : goto refuse }",
        ] {
            assert!(script.contains(wanted), "{wanted} is not in\n{script}");
        }
        let gone = script.find("delete chain").expect("chains go");
        assert!(script.find("delete element").is_some_and(|at| at < gone), "{script}");
    }

    #[test]
    fn local_traffic_keeps_its_address() {
        let mut local = web();
        local["externalTrafficPolicy"] = "Local".into();
        local["type"] = "NodePort".into();
        let external = |rules: &Ruleset| -> Vec<String> {
            let chain = rules.chains.iter().find(|(name, _)| name.starts_with("external-"));
            chain.map(|(_, rules)| rules.clone()).unwrap_or_default()
        };
        // One backend, and it is here: still not the chain that masquerades.
        let here = rules(local.clone(), &["10.0.0.1"]);
        let chain = external(&here);
        assert!(chain.last().is_some_and(|rule| rule.starts_with("goto local-")), "{chain:?}");
        // None is here: who is inside is led all the same, others are dropped.
        let elsewhere = rules(local, &["10.0.0.2@n2"]);
        let chain = external(&elsewhere);
        assert!(chain.iter().all(|rule| !rule.starts_with("goto")), "{chain:?}");
        assert!(chain.iter().any(|rule| rule.starts_with("fib saddr type local goto service-")));
        let dropped = &elsewhere.sets["no-endpoint-nodeports"].elements;
        assert_eq!(dropped.values().collect::<Vec<_>>(), ["drop"]);
    }

    /// The kernel's own parser judges what we render, in a namespace of its own.
    #[test]
    fn nft_takes_every_script() {
        let sticky = json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP",
            "externalTrafficPolicy": "Local", "type": "LoadBalancer",
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "ports": [{"port": 80, "nodePort": 30080}]});
        let mut lb = service(sticky);
        lb.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}))
                .ok();
        let lb = render(
            &build(&here(), false, [&lb], [&slice(&["10.0.0.1", "10.0.0.2@n2"])]),
            &node(),
            false,
        );
        let states = [
            rules(web(), &["10.0.0.1"]),
            rules(web(), &["10.0.0.1", "10.0.0.2@n2"]),
            lb,
            rules(web(), &[]),
            Ruleset::default(),
        ];
        let mut script = full(&states[0], false);
        for pair in states.windows(2) {
            script.push_str(&change(&pair[0], &pair[1], false));
        }
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("rules");
        std::fs::write(&file, &script).expect("written");
        let output = std::process::Command::new("unshare")
            .args(["--net", "nft", "-f"])
            .arg(&file)
            .output()
            .expect("unshare and nft are installed");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{script}");
    }
}
