//! The rules against a model of the kernel, and against the kernel itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::state::{Rules, base_owner};
use super::{
    Chain, Change, Declaration, Fragment, Key, Local, Node, Rule, Step, Test, Value, Verdict,
    render, socket,
};
use crate::netlink::tests::alone;
use crate::table::tests::{here, service, slice};
use crate::table::{PortName, Protocol, ServicePort, Table, Targets, build};

pub fn node() -> Node {
    Node {
        addresses: vec![IpAddr::from([192, 0, 2, 1])],
        any_address: false,
        local: Local::Addresses("10.244.0.0/16".parse().expect("a net")),
        masquerade_all: false,
        mark: 0x4000,
    }
}

fn table(spec: serde_json::Value, endpoints: &[&str]) -> Table {
    build(&here(), false, [&service(spec)], [&slice(endpoints)])
}

fn web() -> serde_json::Value {
    json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]})
}

fn plain() -> serde_json::Value {
    json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]})
}

/// What leads from one table to another.
fn lines(old: &Table, new: &Table) -> Vec<String> {
    let (mut rules, _) = Rules::whole(render::all(old, &node(), false));
    set_all(&mut rules, new);
    rules.take().iter().map(ToString::to_string).collect()
}

fn set_all(rules: &mut Rules, table: &Table) {
    let wanted = render::all(table, &node(), false);
    for gone in rules.without(&wanted.keys().collect()) {
        rules.set(&gone, Fragment::default());
    }
    for (name, fragment) in wanted {
        rules.set(&name, fragment);
    }
}

fn chains(table: &Table, prefix: &str) -> BTreeMap<String, Vec<String>> {
    let fragments = render::all(table, &node(), false).into_values();
    let chains = fragments.flat_map(|fragment| fragment.chains);
    let chains = chains.filter(|(name, _)| name.starts_with(prefix));
    let show = |rule: &Rule| rule.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    chains.map(|(name, chain)| (name, chain.rules.iter().map(show).collect())).collect()
}

fn elements(table: &Table, set: &str) -> Vec<String> {
    let fragments = render::all(table, &node(), false).into_values();
    let elements = fragments.flat_map(|fragment| fragment.elements);
    let of = elements.filter(|((name, _), _)| *name == set);
    let show = |key: &Key| key.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ");
    of.map(|((_, key), value)| format!("{} : {value}", show(&key))).collect()
}

#[test]
fn a_change_of_a_service_is_a_change_of_elements() {
    let (one, two) = (table(plain(), &["10.0.0.1"]), table(plain(), &["10.0.0.1", "10.0.0.2@n2"]));
    assert_eq!(lines(&one, &one), [""; 0]);
    assert_eq!(
        lines(&one, &two),
        [
            "delete element service-ips { 10.96.0.7 . tcp . 80 }",
            "add element backends { 10.96.0.7 . tcp . 80 . 1 : 10.0.0.2 . 8080 }",
            "add element service-ips { 10.96.0.7 . tcp . 80 : goto balance-2 }",
        ]
    );
}

#[test]
fn a_service_that_loses_its_backends_is_refused() {
    let script = lines(&table(web(), &["10.0.0.1"]), &table(web(), &[]));
    let at = |wanted: &str| {
        let found = script.iter().position(|line| line.starts_with(wanted));
        found.unwrap_or_else(|| panic!("{wanted} is not in {script:#?}"))
    };
    at("add element no-endpoint-services { 10.96.0.7 . tcp . 80 : goto refuse }");
    at("add element no-endpoint-nodeports { tcp . 30080 : goto refuse }");
    at("delete element service-ips { 10.96.0.7 . tcp . 80 }");
    assert!(at("delete element service-nodeports { tcp . 30080 }") < at("delete chain external-"));
}

#[test]
fn local_traffic_keeps_its_address() {
    let mut local = web();
    local["externalTrafficPolicy"] = "Local".into();
    local["internalTrafficPolicy"] = "Local".into();
    let rules = |endpoints: &[&str]| {
        let all = chains(&table(local.clone(), endpoints), "external-");
        all.into_values().next().unwrap_or_default()
    };
    let key = "10.96.0.7 . tcp . 80 .";
    assert_eq!(
        rules(&["10.0.0.1", "10.0.0.2@n2"]),
        [
            format!("saddr 10.244.0.0/16 dnat to {key} random 2 from 0x40000000 map @backends"),
            format!(
                "fib saddr type local set mark 0x4000 dnat to {key} random 2 from 0x40000000 map \
                 @backends"
            ),
            format!("dnat to {key} random 1 map @backends"),
        ]
    );
    let elsewhere = table(local.clone(), &["10.0.0.2@n2"]);
    let rules = rules(&["10.0.0.2@n2"]);
    assert_eq!(rules.len(), 2, "pods and the node still get there: {rules:?}");
    assert_eq!(elements(&elsewhere, "no-endpoint-nodeports"), ["tcp . 30080 : drop"]);
    assert_eq!(elements(&elsewhere, "no-endpoint-services"), ["10.96.0.7 . tcp . 80 : drop"]);
}

#[test]
fn source_ranges_come_before_backends() {
    let spec = json!({"clusterIP": "10.96.0.7", "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["198.51.100.0/24", "192.0.2.0/24"], "ports": [{"port": 80}]});
    let mut lb = service(spec);
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}]}});
    lb.status = serde_json::from_value(status).expect("a status");
    let table = build(&here(), false, [&lb], [&slice(&["10.0.0.1"])]);
    let firewall: Vec<Vec<String>> = chains(&table, "firewall-").into_values().collect();
    let [rules] = firewall.as_slice() else { panic!("{firewall:?}") };
    let from: Vec<&str> = rules.iter().map(|r| r.split(" goto").next().unwrap_or(r)).collect();
    assert_eq!(
        from,
        // The node is in a range, so what it sends to the balancer's address is let through too.
        ["saddr 198.51.100.0/24", "saddr 192.0.2.0/24", "saddr 203.0.113.1/32", "drop"]
    );
    let leads = elements(&table, "service-ips");
    assert!(!leads.iter().any(|l| l.contains("203.0.113.2")), "a proxy's own: {leads:?}");
}

#[test]
fn clients_stay_with_their_backends() {
    let mut spec = plain();
    spec["sessionAffinity"] = "ClientIP".into();
    let table = table(spec, &["10.0.0.1", "10.0.0.2@n2"]);
    let fragments = render::all(&table, &node(), false);
    let sets: Vec<u32> =
        fragments.values().flat_map(|f| f.sets.values()).map(|s| s.timeout).collect();
    assert_eq!(sets.iter().filter(|t| **t == 10_800).count(), 2);
    let sticky = chains(&table, "sticky-").into_values().next().expect("a chain");
    assert_eq!(sticky.len(), 3);
    assert!(sticky[0].starts_with("saddr @affinity-"), "{sticky:?}");
    assert!(sticky[2].ends_with("random 2 vmap @sticky-backends"), "{sticky:?}");
}

#[test]
fn what_two_owners_want_is_the_first_ones() {
    let name = |service: &str| PortName {
        namespace: "ns".into(),
        service: service.into(),
        port: String::new(),
    };
    let key: Key = [super::Part::Port(1)].into_iter().collect();
    let fragment = |port| Fragment {
        elements: [(("x", key.clone()), Value::Backend(IpAddr::from([10, 0, 0, 1]), port))].into(),
        ..Fragment::default()
    };
    let mut rules = Rules::default();
    let take = |rules: &mut Rules| -> Vec<String> {
        rules.take().iter().map(ToString::to_string).collect()
    };
    rules.set(&name("b"), fragment(2));
    assert_eq!(take(&mut rules), ["add element x { 1 : 10.0.0.1 . 2 }"]);
    rules.set(&name("c"), fragment(3));
    assert_eq!(take(&mut rules), [""; 0]);
    rules.set(&name("a"), fragment(1));
    assert_eq!(take(&mut rules), ["delete element x { 1 }", "add element x { 1 : 10.0.0.1 . 1 }"]);
    rules.set(&name("a"), Fragment::default());
    rules.set(&name("b"), Fragment::default());
    assert_eq!(take(&mut rules), ["delete element x { 1 }", "add element x { 1 : 10.0.0.1 . 3 }"]);
    rules.set(&name("c"), Fragment::default());
    assert_eq!(take(&mut rules), ["delete element x { 1 }"]);
}

/// A kernel that refuses what the real one refuses.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, Declaration>,
    elements: BTreeMap<(&'static str, Key), Value>,
}

impl Model {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            self.change(change);
        }
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::AddTable => {}
            Change::DeleteTable => *self = Self::default(),
            Change::AddSet(name, set) => {
                assert_eq!(self.sets.insert(name.clone(), set.clone()), None, "{change}");
            }
            Change::DeleteSet(name) => {
                assert!(!self.used().1.contains(name), "in use: {change}");
                assert!(self.sets.remove(name).is_some(), "{change}");
            }
            Change::AddChain(name, hook) => {
                let chain = Chain { hook: *hook, rules: Vec::new() };
                assert_eq!(self.chains.insert(name.clone(), chain), None, "{change}");
            }
            Change::FlushChain(name) => self.chain(name).rules.clear(),
            Change::DeleteChain(name) => {
                assert!(!self.used().0.contains(name), "in use: {change}");
                let gone = self.chains.remove(name).expect("a chain");
                assert!(gone.rules.is_empty(), "{change}");
            }
            Change::AddRule(chain, rule) => {
                self.chain(chain).rules.push(rule.clone());
                self.complete(change);
            }
            Change::AddElements(set, elements) => {
                assert!(self.sets.contains_key(*set), "{change}");
                for (key, value) in elements {
                    let had = self.elements.insert((set, key.clone()), value.clone());
                    assert_eq!(had, None, "{change}");
                }
                self.complete(change);
            }
            Change::DeleteElements(set, keys) => {
                for key in keys {
                    assert!(self.elements.remove(&(*set, key.clone())).is_some(), "{change}");
                }
            }
        }
    }

    fn chain(&mut self, name: &str) -> &mut Chain {
        self.chains.get_mut(name).unwrap_or_else(|| panic!("no chain {name}"))
    }

    /// Chains and sets that something leads to.
    fn used(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut chains, mut sets) = (BTreeSet::new(), BTreeSet::new());
        let mut verdict = |verdict: &Verdict| match verdict {
            Verdict::Drop => {}
            Verdict::Goto(chain) | Verdict::Jump(chain) => drop(chains.insert(chain.clone())),
        };
        for step in self.chains.values().flat_map(|c| c.rules.iter().flatten()) {
            match step {
                Step::Verdict(v) => verdict(v),
                Step::If(Test::In(_, set))
                | Step::Map(_, set)
                | Step::Translate(_, set)
                | Step::Remember(set) => drop(sets.insert(set.clone())),
                _ => {}
            }
        }
        for value in self.elements.values() {
            if let Value::Verdict(v) = value {
                verdict(v);
            }
        }
        (chains, sets)
    }

    /// Whatever is led to must be there.
    fn complete(&self, change: &Change) {
        let (chains, sets) = self.used();
        let missing: Vec<&String> =
            chains.iter().filter(|c| !self.chains.contains_key(*c)).collect();
        assert!(missing.is_empty(), "{change}: no {missing:?}");
        let missing: Vec<&String> = sets.iter().filter(|s| !self.sets.contains_key(*s)).collect();
        assert!(missing.is_empty(), "{change}: no {missing:?}");
    }
}

fn targets() -> impl Strategy<Value = Targets> {
    let backend = (1u8..24, any::<bool>());
    (proptest::collection::btree_map(1u8..24, any::<bool>(), 0..20), backend).prop_map(
        |(backends, (_, elsewhere))| {
            let backends = backends.into_iter().map(|(n, local)| crate::table::Backend {
                address: IpAddr::from([10, 0, 0, n]),
                port: 8080,
                local,
            });
            Targets { backends: backends.collect(), elsewhere }
        },
    )
}

/// A row of one of six services, of which two may have the same addresses outside.
fn row() -> impl Strategy<Value = ServicePort> {
    let outside = (any::<[bool; 4]>(), proptest::option::of(5u32..7));
    let kind = (0u8..6, 0u8..2, prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]);
    (kind, targets(), targets(), targets(), outside).prop_map(
        |((n, other, protocol), internal, external, cluster, (flags, affinity))| {
            let [node_port, balanced, ranges, external_local] = flags;
            ServicePort {
                name: PortName {
                    namespace: "ns".into(),
                    service: format!("s{n}"),
                    port: String::new(),
                },
                protocol,
                cluster_ip: IpAddr::from([10, 96, 0, n]),
                port: 80,
                node_port: node_port.then_some(30_000 + u16::from(n)),
                external_ips: vec![IpAddr::from([198, 51, 100, other])],
                load_balancer_ips: balanced
                    .then_some(IpAddr::from([203, 0, 113, n]))
                    .into_iter()
                    .collect(),
                source_ranges: match ranges {
                    true => vec!["192.0.2.0/24".parse().expect("a net")],
                    false => Vec::new(),
                },
                affinity,
                internal,
                external: if external_local { external } else { cluster.clone() },
                external_local,
                cluster,
                serving: Vec::new(),
                health_check_node_port: None,
                local_ready: 0,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Step by step is the same as all at once, and the kernel has never a reason to refuse.
    #[test]
    fn differences_lead_to_what_a_fresh_build_makes(
        steps in proptest::collection::vec((row(), any::<bool>(), any::<bool>()), 1..16),
    ) {
        let (mut rules, changes) = Rules::whole(render::all(&Table::new(), &node(), false));
        let (mut model, mut table) = (Model::default(), Table::new());
        model.apply(&changes);
        for (row, gone, commits) in steps {
            let name = row.name.clone();
            if gone {
                table.remove(&name);
                rules.set(&name, Fragment::default());
            } else {
                rules.set(&name, render::fragment(&row, &node()));
                table.insert(name, row);
            }
            if commits {
                model.apply(&rules.take());
            }
        }
        model.apply(&rules.take());
        let (_, changes) = Rules::whole(render::all(&table, &node(), false));
        let mut fresh = Model::default();
        fresh.apply(&changes);
        prop_assert_eq!(model, fresh);
    }
}

/// The kernel judges what we send, in a namespace of its own, and nft can show it.
#[test]
fn the_kernel_takes_every_change() {
    let mut sticky = web();
    sticky["sessionAffinity"] = "ClientIP".into();
    sticky["externalTrafficPolicy"] = "Local".into();
    sticky["type"] = "LoadBalancer".into();
    sticky["loadBalancerSourceRanges"] = json!(["192.0.2.0/24"]);
    let mut lb = service(sticky);
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    lb.status = serde_json::from_value(status).ok();
    // Too many to share a chain.
    let many: Vec<String> = (0..300).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let states = [
        table(web(), &["10.0.0.1"]),
        table(plain(), &["10.0.0.1", "10.0.0.2@n2"]),
        build(&here(), false, [&lb], [&slice(&["10.0.0.1", "10.0.0.2@n2"])]),
        table(web(), &many),
        table(web(), &[]),
        Table::new(),
    ];
    let listed = alone(move || {
        let mut listed = Vec::new();
        let (mut rules, first) = Rules::whole(render::all(&Table::new(), &node(), false));
        socket::commit(false, &first).expect("all anew");
        let before = socket::identity(false).expect("an answer");
        assert!(before.is_some());
        for state in &states {
            set_all(&mut rules, state);
            socket::commit(false, &rules.take()).expect("a change");
            let nft = std::process::Command::new("nft").args(["list", "ruleset"]).output();
            let nft = nft.expect("nft is installed");
            assert!(nft.status.success(), "{nft:?}");
            listed.push(String::from_utf8_lossy(&nft.stdout).into_owned());
        }
        assert_eq!(socket::identity(false).expect("an answer"), before);
        socket::commit(false, &first).expect("all anew, over what is there");
        assert_ne!(socket::identity(false).expect("an answer"), before, "another table");
        socket::remove(false).expect("removed");
        assert_eq!(socket::identity(false).expect("an answer"), None);
        let error = socket::commit(false, &[Change::DeleteChain("none".into())]);
        let error = format!("{:#}", error.expect_err("no such chain"));
        assert!(error.contains("No such file") && error.contains("delete chain none"), "{error}");
        listed
    });
    assert!(listed[1].contains("10.96.0.7 . tcp . 80 : goto balance-2"), "{}", listed[1]);
    assert!(listed[2].contains("ip saddr 192.0.2.0/24 goto external-"), "{}", listed[2]);
    assert!(listed[5].contains("type nat hook prerouting priority dstnat"), "{}", listed[5]);
}

/// Whatever the number of a service's backends.
#[test]
fn the_kernel_takes_a_thousand_backends() {
    let all: Vec<String> = (0..1100).map(|n| format!("10.0.{}.{}@n2", n / 250, n % 250)).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let sticky = json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "nodePort": 30080}]});
    for (spec, elements) in [(web(), "backends"), (sticky, "sticky-backends")] {
        let counts = [1000, 1100, 3, 256, 257, 1000];
        let states = counts.map(|count| table(spec.clone(), &all[..count]));
        let found = alone(move || {
            let (mut rules, first) = Rules::whole(render::all(&Table::new(), &node(), false));
            socket::commit(false, &first).expect("all anew");
            states.map(|state| {
                set_all(&mut rules, &state);
                socket::commit(false, &rules.take()).expect("a change");
                let map = ["list", "map", "ip", "kube-proxy", elements];
                let nft = std::process::Command::new("nft").args(map).output();
                let nft = nft.expect("nft is installed").stdout;
                String::from_utf8_lossy(&nft).matches("10.96.0.7 . tcp . 80 . 0x").count()
            })
        });
        assert_eq!(found, counts, "{elements}");
    }
}

/// The same for the other address family, and for each way to tell pods from others.
#[test]
fn the_kernel_takes_both_families() {
    let spec = json!({"clusterIP": "fd00::7", "sessionAffinity": "ClientIP",
        "externalTrafficPolicy": "Local", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053},
            {"name": "s", "port": 54, "protocol": "SCTP"}]});
    let mut six = slice(&["fd00:1::1", "fd00:1::2@n2"]);
    six.address_type = "IPv6".into();
    let table = build(&here(), true, [&service(spec)], [&six]);
    assert_eq!(table.len(), 2);
    for local in [
        Local::Unknown,
        Local::Addresses("fd00:1::/64".parse().expect("a net")),
        Local::Bridge("br0".into()),
        Local::Prefix("veth".into()),
    ] {
        let node = Node {
            addresses: vec!["2001:db8::1".parse().expect("an address")],
            local: local.clone(),
            ..node()
        };
        let (_, changes) = Rules::whole(render::all(&table, &node, true));
        let shown = alone(move || {
            socket::commit(true, &changes).expect("all anew");
            let nft = std::process::Command::new("nft").args(["list", "ruleset"]).output();
            String::from_utf8_lossy(&nft.expect("nft is installed").stdout).into_owned()
        });
        let wanted = match local {
            Local::Unknown => "table ip6 kube-proxy",
            Local::Addresses(_) => "ip6 saddr != fd00:1::/64 meta mark set",
            Local::Bridge(_) => "iifname != \"br0\" meta mark set",
            Local::Prefix(_) => "iifname != \"veth*\" meta mark set",
        };
        assert!(shown.contains(wanted), "{wanted} is not in\n{shown}");
    }
    assert_eq!(base_owner().to_string(), "/");
}
