//! What the rules say: a fragment for the node, and one for each row of the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{
    Chain, Declaration, Field, Fragment, Hook, Key, Kind, Local, Node, Part, Point, Rule, SETS,
    Step, Test, Value, Verdict,
};
use crate::names::short_hash;
use crate::table::{Backend, ServicePort, Targets};

/// Services with at most this many backends share a chain with others that have as many: the kernel
/// takes time for chains that look something up which grows with the number of these.
const SHARED: usize = 256;

/// Where in `backends` those of each kind of traffic begin.
const INTERNAL: u32 = 0;
const CLUSTER: u32 = 1 << 30;
const EXTERNAL: u32 = 1 << 31;

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.to_owned())
}

fn to_service() -> Vec<Field> {
    vec![Field::Destination, Field::Protocol, Field::DestinationPort]
}

impl Fragment {
    fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), Chain { hook: None, rules });
    }

    fn hook(&mut self, name: &str, hook: (&'static str, Point, i32), rules: Vec<Rule>) {
        let (kind, point, priority) = hook;
        let hook = Some(Hook { kind, point, priority });
        self.chains.insert(name.to_owned(), Chain { hook, rules });
    }

    fn element(&mut self, set: &'static str, key: impl IntoIterator<Item = Part>, value: Value) {
        self.elements.insert((set, key.into_iter().collect::<Key>()), value);
    }
}

/// What is there without any service: the sets, the chains that hooks call, and those that services
/// share. What is addressed to a service still after translation has no backend.
pub fn base(node: &Node, ipv6: bool) -> Fragment {
    let mut out = Fragment {
        sets: SETS.iter().map(|(name, set)| ((*name).to_owned(), set.clone())).collect(),
        ..Fragment::default()
    };
    let to_port = || vec![Field::Protocol, Field::DestinationPort];
    let node_port = || Step::If(Test::In(vec![Field::Destination], "nodeport-ips".into()));
    let nat = || {
        vec![
            vec![Step::Map(to_service(), "service-ips".into())],
            vec![node_port(), Step::Map(to_port(), "service-nodeports".into())],
        ]
    };
    let refuse = || {
        let new = || Step::If(Test::NewFlow);
        vec![
            vec![new(), Step::Map(to_service(), "no-endpoint-services".into())],
            vec![new(), node_port(), Step::Map(to_port(), "no-endpoint-nodeports".into())],
        ]
    };
    out.hook("nat-prerouting", ("nat", Point::Prerouting, -100), nat());
    out.hook("nat-output", ("nat", Point::Output, -100), nat());
    out.hook("filter-forward", ("filter", Point::Forward, -90), refuse());
    out.hook("filter-input", ("filter", Point::Input, -90), refuse());
    out.hook("filter-output", ("filter", Point::Output, -90), refuse());
    let to_itself = Test::In(vec![Field::Source, Field::Destination], "hairpin".into());
    out.hook(
        "nat-postrouting",
        ("nat", Point::Postrouting, 100),
        vec![
            vec![Step::If(Test::Marked(node.mark)), Step::Unmark(node.mark), Step::Masquerade],
            vec![Step::If(Test::Translated), Step::If(to_itself), Step::Masquerade],
        ],
    );
    out.chain("refuse", vec![vec![Step::Refuse]]);
    out.chain("from-outside", from_outside(node, ipv6).into_iter().collect());
    for count in 1..=SHARED {
        let mut key = to_service();
        key.push(random(count, INTERNAL));
        out.chain(
            &format!("balance-{count}"),
            vec![
                vec![Step::Verdict(Verdict::Jump("from-outside".into()))],
                vec![Step::Translate(key, "backends".into())],
            ],
        );
    }
    for address in node.addresses.iter().filter(|a| a.is_ipv6() == ipv6) {
        out.element("nodeport-ips", [Part::Address(*address)], Value::Present);
    }
    out
}

fn random(count: usize, first: u32) -> Field {
    Field::Random { count: u32::try_from(count).unwrap_or(u32::MAX), first }
}

/// Marks what does not come from this cluster's pods.
fn from_outside(node: &Node, ipv6: bool) -> Option<Rule> {
    let mark = Step::Mark(node.mark);
    match node.masquerade_all {
        true => Some(vec![mark]),
        false => Some(vec![Step::If(from_pods(node, ipv6, false)?), mark]),
    }
}

/// Whether a packet comes from pods, if that can be told.
fn from_pods(node: &Node, ipv6: bool, inside: bool) -> Option<Test> {
    let interface =
        |name: &str, prefix| Some(Test::Interface { name: name.to_owned(), prefix, same: inside });
    match &node.local {
        Local::Addresses(net) if net.addr().is_ipv6() == ipv6 => {
            Some(Test::Source { net: *net, inside })
        }
        Local::Bridge(name) => interface(name, false),
        Local::Prefix(prefix) => interface(prefix, true),
        Local::Addresses(_) | Local::Unknown => None,
    }
}

/// What one row needs.
pub fn fragment(row: &ServicePort, node: &Node) -> Fragment {
    let mut service = Service { row, node, out: Fragment::default() };
    service.render();
    service.out
}

struct Service<'a> {
    row: &'a ServicePort,
    node: &'a Node,
    out: Fragment,
}

impl Service<'_> {
    fn id(&self) -> String {
        let row = self.row;
        let name = format!("{}/{}", row.name, row.protocol.name());
        format!("{}-{}", short_hash(&name), printable(&row.name.service))
    }

    fn key(&self, ip: IpAddr) -> [Part; 3] {
        [Part::Address(ip), Part::Protocol(self.row.protocol), Part::Port(self.row.port)]
    }

    fn render(&mut self) {
        let row = self.row;
        self.internal();
        let outside = row.external_ips.iter().chain(&row.load_balancer_ips).next();
        if row.node_port.is_none() && outside.is_none() {
            return;
        }
        let external = self.external();
        for ip in &row.external_ips {
            self.lead_external("services", &self.key(*ip), external.as_deref());
        }
        for ip in &row.load_balancer_ips {
            let chain = external.as_deref().map(|chain| self.firewall(*ip, chain));
            self.lead_external("services", &self.key(*ip), chain.as_deref());
        }
        if let Some(port) = row.node_port {
            let key = [Part::Protocol(row.protocol), Part::Port(port)];
            self.lead_external("nodeports", &key, external.as_deref());
        }
    }

    /// What is addressed to the cluster's address.
    fn internal(&mut self) {
        let targets = &self.row.internal;
        let count = targets.backends.len();
        let key = self.key(self.row.cluster_ip);
        if count == 0 {
            let verdict = if targets.elsewhere { Verdict::Drop } else { goto("refuse") };
            return self.out.element("no-endpoint-services", key, Value::Verdict(verdict));
        }
        let chain = if count <= SHARED && self.row.affinity.is_none() {
            self.backends(targets, INTERNAL);
            format!("balance-{count}")
        } else {
            let translate = self.translate(targets);
            let name = format!("service-{}", self.id());
            let outside = vec![Step::Verdict(Verdict::Jump("from-outside".into()))];
            self.out.chain(&name, vec![outside, translate]);
            name
        };
        self.out.element("service-ips", key, Value::Verdict(goto(&chain)));
    }

    /// The chain for what comes from outside, if there is a backend for any of it.
    fn external(&mut self) -> Option<String> {
        let row = self.row;
        let mut rules = Vec::new();
        if !row.external_local {
            let mut rule = vec![Step::Mark(self.node.mark)];
            if !row.external.backends.is_empty() {
                rule.extend(self.translate(&row.external));
                rules.push(rule);
            }
        } else {
            // Pods and the node itself are inside wherever they knock: all backends, not only this
            // node's.
            if !row.cluster.backends.is_empty() {
                let ipv6 = row.cluster_ip.is_ipv6();
                if let Some(test) = from_pods(self.node, ipv6, true) {
                    let translate = self.translate(&row.cluster);
                    rules.push([vec![Step::If(test)], translate].concat());
                }
                let here = vec![Step::If(Test::FromHere), Step::Mark(self.node.mark)];
                rules.push([here, self.translate(&row.cluster)].concat());
            }
            if !row.external.backends.is_empty() {
                rules.push(self.translate(&row.external));
            }
        }
        if rules.is_empty() {
            return None;
        }
        let name = format!("external-{}", self.id());
        self.out.chain(&name, rules);
        Some(name)
    }

    /// From outside to a chain, if there is one. What it leaves alone, because its node has no
    /// backend, is dropped or refused.
    fn lead_external(&mut self, what: &str, key: &[Part], chain: Option<&str>) {
        let (lead, refuse) = match what {
            "services" => ("service-ips", "no-endpoint-services"),
            _ => ("service-nodeports", "no-endpoint-nodeports"),
        };
        if let Some(chain) = chain {
            self.out.element(lead, key.iter().copied(), Value::Verdict(goto(chain)));
        }
        let targets = &self.row.external;
        if targets.backends.is_empty() {
            let verdict = if targets.elsewhere { Verdict::Drop } else { goto("refuse") };
            self.out.element(refuse, key.iter().copied(), Value::Verdict(verdict));
        }
    }

    /// A load balancer's chain: its source ranges, if it has some, are checked first.
    fn firewall(&mut self, ip: IpAddr, external: &str) -> String {
        let ranges = &self.row.source_ranges;
        if ranges.is_empty() {
            return external.to_owned();
        }
        let allow = |net: ipnet::IpNet| {
            let test = Test::Source { net, inside: true };
            vec![Step::If(test), Step::Verdict(goto(external))]
        };
        let mut rules: Vec<Rule> = ranges.iter().copied().map(allow).collect();
        // Where the address is one of the node's own (as some balancers have it), what the node
        // sends to it comes from it.
        if self.node.addresses.iter().any(|a| ranges.iter().any(|r| r.contains(a))) {
            rules.push(allow(ip.into()));
        }
        rules.push(vec![Step::Verdict(Verdict::Drop)]);
        let name = format!("firewall-{}-{}", self.id(), short_hash(&ip.to_string()));
        self.out.chain(&name, rules);
        name
    }

    /// Where the backends of some traffic are numbered from: the same backends once.
    fn first(&self, targets: &Targets) -> u32 {
        let same = |other: &Targets| other.backends == targets.backends;
        match () {
            () if same(&self.row.internal) => INTERNAL,
            () if same(&self.row.cluster) => CLUSTER,
            () => EXTERNAL,
        }
    }

    /// Numbers the backends.
    fn backends(&mut self, targets: &Targets, first: u32) {
        let key = self.key(self.row.cluster_ip);
        for (backend, index) in targets.backends.iter().zip(first..) {
            let key = key.iter().copied().chain([Part::Index(index)]);
            self.out.element("backends", key, Value::Backend(backend.address, backend.port));
            self.hairpin(backend);
        }
    }

    /// A pod that reaches itself through a service must not see its own address.
    fn hairpin(&mut self, backend: &Backend) {
        if backend.local {
            let address = Part::Address(backend.address);
            self.out.element("hairpin", [address, address], Value::Present);
        }
    }

    /// The steps that send to one of the backends.
    fn translate(&mut self, targets: &Targets) -> Rule {
        let first = self.first(targets);
        if self.row.affinity.is_some() {
            return vec![Step::Verdict(goto(&self.sticky(targets, first)))];
        }
        self.backends(targets, first);
        vec![Step::Translate(self.choice(targets, first), "backends".into())]
    }

    fn choice(&self, targets: &Targets, first: u32) -> Vec<Field> {
        let key = self.key(self.row.cluster_ip).map(Field::Value);
        key.into_iter().chain([random(targets.backends.len(), first)]).collect()
    }

    /// The chain in which a client that was sent to a backend lately goes there again.
    fn sticky(&mut self, targets: &Targets, first: u32) -> String {
        const SOURCE: &[Kind] = &[Kind::Address];
        let seconds = self.row.affinity.unwrap_or_default();
        let mut rules = Vec::new();
        let service = self.key(self.row.cluster_ip);
        for (backend, index) in targets.backends.iter().zip(first..) {
            let (ip, port) = (backend.address, backend.port);
            let id = short_hash(&format!("{}/{ip} {port} {seconds}", self.id()));
            let (chain, set) = (format!("endpoint-{id}"), format!("affinity-{id}"));
            let known = Test::In(vec![Field::Source], set.clone());
            rules.push(vec![Step::If(known), Step::Verdict(goto(&chain))]);
            let key = service.iter().copied().chain([Part::Index(index)]);
            self.out.element("sticky-backends", key, Value::Verdict(goto(&chain)));
            let rule = vec![Step::Remember(set.clone()), Step::TranslateTo(ip, port)];
            self.out.chain(&chain, vec![rule]);
            let declaration =
                Declaration { key: SOURCE, data: super::Data::Nothing, timeout: seconds };
            self.out.sets.insert(set, declaration);
            self.hairpin(backend);
        }
        rules.push(vec![Step::Map(self.choice(targets, first), "sticky-backends".into())]);
        let kind = match first {
            INTERNAL => "sticky",
            CLUSTER => "cluster",
            _ => "local",
        };
        let name = format!("{kind}-{}", self.id());
        self.out.chain(&name, rules);
        name
    }
}

/// The part of a name that may stand in the name of a chain.
fn printable(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect()
}

/// All fragments of a table: what [`super::state::Rules`] comes to step by step.
pub fn all(
    table: &crate::table::Table,
    node: &Node,
    ipv6: bool,
) -> BTreeMap<crate::table::PortName, Fragment> {
    let rows = table.values().map(|row| (row.name.clone(), fragment(row, node)));
    rows.chain([(super::state::base_owner(), base(node, ipv6))]).collect()
}
