//! The desired state: each service port with the backends that traffic to it may go to.
//!
//! Pure: services, slices and what is known of this node go in, a sorted table comes out. Backends
//! (nftables, iptables) render it; they decide nothing about policies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A service's port: what rules are named after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    pub namespace: String,
    pub service: String,
    pub port: String,
}

/// `namespace/service:port`, without the colon for an unnamed port.
impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        match self.port.as_str() {
            "" => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// As nft, iptables and conntrack name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where a packet may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
}

/// The backends for one kind of traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub backends: Vec<Backend>,
    /// Traffic without a backend here is dropped, not refused: other nodes have some
    /// (policy `Local`).
    pub elsewhere: bool,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: PortName,
    pub protocol: Protocol,
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// Empty: from anywhere.
    pub source_ranges: Vec<IpNet>,
    /// Seconds that a client stays with its backend.
    pub affinity: Option<u32>,
    /// From inside the cluster, by internalTrafficPolicy.
    pub internal: Targets,
    /// From outside, by externalTrafficPolicy.
    pub external: Targets,
    /// externalTrafficPolicy is Local: clients' addresses are kept.
    pub external_local: bool,
    /// Of all nodes, whatever the policies: for outside addresses reached from this cluster.
    pub cluster: Targets,
    /// Of UDP, where flows that go on may lead, in order: to all endpoints that serve, whatever the
    /// policies.
    pub serving: Vec<SocketAddr>,
    pub health_check_node_port: Option<u16>,
    /// Ready endpoints of the service on this node.
    pub local_ready: usize,
}

/// What is known of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    pub node: String,
    pub zone: Option<String>,
    /// Label `service.kubernetes.io/exclude-proxies`... and whether the node is being deleted.
    pub leaving: bool,
}

/// An address family, as slices name it.
pub fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

/// The table, sorted by name.
pub type Table = BTreeMap<PortName, ServicePort>;

/// Makes the table of one address family.
pub fn build<'a>(
    here: &Here,
    ipv6: bool,
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Table {
    let family = family(ipv6);
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.into_iter().filter(|s| s.address_type == family) {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|l| l.get("kubernetes.io/service-name"));
        if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
            by_service.entry((namespace, service)).or_default().push(slice);
        }
    }
    let mut table = Table::new();
    for service in services {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name)
        else {
            continue;
        };
        let slices = by_service.get(&(namespace.as_str(), name.as_str()));
        for row in rows(here, ipv6, service, slices.map(Vec::as_slice).unwrap_or_default()) {
            table.insert(row.name.clone(), row);
        }
    }
    table
}

/// A row before and after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub old: Option<ServicePort>,
    pub new: Option<ServicePort>,
}

/// Rows that are not the same in two tables, by name.
pub type Changes = BTreeMap<PortName, Changed>;

/// Puts a service's rows, as they are now, into the table. Returns those that are other than before.
pub fn update(
    table: &mut Table,
    namespace: &str,
    service: &str,
    rows: Vec<ServicePort>,
) -> Changes {
    let first = PortName {
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        port: String::new(),
    };
    let mut rows: BTreeMap<PortName, ServicePort> =
        rows.into_iter().map(|row| (row.name.clone(), row)).collect();
    let had = table.range(first..).map(|(name, _)| name);
    let had = had.take_while(|n| n.namespace == namespace && n.service == service).cloned();
    let names: BTreeSet<PortName> = had.chain(rows.keys().cloned()).collect();
    let mut changes = Changes::new();
    for name in names {
        let new = rows.remove(&name);
        if table.get(&name) == new.as_ref() {
            continue;
        }
        let old = match &new {
            Some(row) => table.insert(name.clone(), row.clone()),
            None => table.remove(&name),
        };
        changes.insert(name, Changed { old, new });
    }
    changes
}

/// Services with this label are somebody else's to proxy.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Services of headless endpoints have no address to translate.
const HEADLESS: &str = "None";

/// The rows of one service. Slices of the other address family are left aside.
pub fn rows(
    here: &Here,
    ipv6: bool,
    service: &Service,
    slices: &[&EndpointSlice],
) -> Vec<ServicePort> {
    let meta = &service.metadata;
    let (Some(spec), Some(namespace), Some(name)) = (&service.spec, &meta.namespace, &meta.name)
    else {
        return Vec::new();
    };
    let family = family(ipv6);
    let slices: Vec<&EndpointSlice> =
        slices.iter().filter(|s| s.address_type == family).copied().collect();
    let labels = service.metadata.labels.as_ref();
    let other = labels.is_some_and(|l| l.contains_key(OTHER_PROXY));
    if other || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let Some(cluster_ip) = ips
        .filter(|ip| *ip != HEADLESS)
        .filter_map(|ip| ip.parse::<IpAddr>().ok())
        .find(|ip| ip.is_ipv6() == ipv6)
    else {
        return Vec::new();
    };
    let parse = |texts: &mut dyn Iterator<Item = &String>| -> Vec<IpAddr> {
        texts.filter_map(|t| t.parse().ok()).filter(|ip: &IpAddr| ip.is_ipv6() == ipv6).collect()
    };
    let ingress = service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten())
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref());
    let load_balancer_ips = parse(&mut ingress.into_iter());
    let external_ips = parse(&mut spec.external_ips.iter().flatten());
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let source_ranges = ranges.filter_map(|r| r.trim().parse().ok()).collect::<Vec<IpNet>>();
    let port_of = |n: Option<i32>| n.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let (mut rows, mut ready_here) = (Vec::new(), BTreeSet::new());
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Some(number)) =
            (Protocol::parse(port.protocol.as_deref()), port_of(Some(port.port)))
        else {
            continue;
        };
        let port_name = port.name.clone().unwrap_or_default();
        let endpoints = endpoints(here, &port_name, &slices);
        let (internal, external) = (policy(spec, true), policy(spec, false));
        let ready = endpoints.iter().filter(|e| e.ready && e.backend.local);
        ready_here.extend(ready.map(|e| e.backend.address));
        rows.push(ServicePort {
            name: PortName { namespace: namespace.clone(), service: name.clone(), port: port_name },
            protocol,
            cluster_ip,
            port: number,
            node_port: port_of(port.node_port),
            external_ips: external_ips.clone(),
            load_balancer_ips: load_balancer_ips.clone(),
            source_ranges: source_ranges
                .iter()
                .filter(|r| r.addr().is_ipv6() == ipv6)
                .copied()
                .collect(),
            affinity: affinity(spec),
            internal: choose(here, &endpoints, internal),
            external: choose(here, &endpoints, external),
            external_local: external,
            cluster: choose(here, &endpoints, false),
            serving: match protocol {
                Protocol::Udp => serving(&endpoints),
                Protocol::Tcp | Protocol::Sctp => Vec::new(),
            },
            local_ready: 0,
            health_check_node_port: port_of(spec.health_check_node_port).filter(|_| external),
        });
    }
    for row in &mut rows {
        row.local_ready = ready_here.len();
    }
    rows
}

/// Whether the policy for this traffic is `Local`.
fn policy(spec: &ServiceSpec, internal: bool) -> bool {
    let policy = match internal {
        true => &spec.internal_traffic_policy,
        false => &spec.external_traffic_policy,
    };
    policy.as_deref() == Some("Local")
}

/// Seconds of `sessionAffinity: ClientIP`; three hours unless said.
fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok());
    Some(seconds.unwrap_or(10_800))
}

/// An endpoint with what policies ask of it.
#[derive(Clone, Debug)]
struct Candidate<'a> {
    backend: Backend,
    ready: bool,
    serving: bool,
    /// Serving, though about to end.
    ending: bool,
    endpoint: &'a Endpoint,
}

fn endpoints<'a>(here: &Here, port: &str, slices: &[&'a EndpointSlice]) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<Backend, Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let matching = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| p.name.as_deref().unwrap_or_default() == port)
            .filter_map(|p| u16::try_from(p.port?).ok());
        for number in matching {
            for endpoint in &slice.endpoints {
                // Only the first address counts (discovery.k8s.io/v1).
                let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else {
                    continue;
                };
                let local = endpoint.node_name.as_deref() == Some(here.node.as_str());
                let backend = Backend { address, port: number, local };
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
                let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
                let ending = serving && terminating;
                let candidate = Candidate { backend, ready, serving, ending, endpoint };
                // The same address in two slices: ready wins.
                match found.get(&backend) {
                    Some(have) if have.ready => {}
                    _ => {
                        found.insert(backend, candidate);
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

fn serving(candidates: &[Candidate<'_>]) -> Vec<SocketAddr> {
    let all = candidates.iter().filter(|c| c.serving);
    let all: BTreeSet<_> = all.map(|c| (c.backend.address, c.backend.port).into()).collect();
    all.into_iter().collect()
}

/// Ready endpoints, or, when there are none, those that still serve while they end (KEP-1669);
/// of this node under policy `Local`; otherwise near ones where hints allow it (KEP-2433).
fn choose(here: &Here, candidates: &[Candidate<'_>], local: bool) -> Targets {
    let usable = |only_local: bool| -> Vec<&Candidate<'_>> {
        let fits = |c: &&Candidate<'_>| !only_local || c.backend.local;
        let ready: Vec<_> = candidates.iter().filter(fits).filter(|c| c.ready).collect();
        match (ready.is_empty(), only_local) {
            (true, _) => candidates.iter().filter(fits).filter(|c| c.ending).collect(),
            (false, true) => ready,
            // Hints are for ready ones.
            (false, false) => near(here, ready),
        }
    };
    let all = usable(false);
    let chosen = if local { usable(true) } else { all.clone() };
    Targets {
        elsewhere: local && chosen.is_empty() && !all.is_empty(),
        backends: chosen.into_iter().map(|c| c.backend).collect(),
    }
}

/// Endpoints that are hinted for this node, or else for this zone; all, unless every endpoint
/// has such a hint and some are for here.
fn near<'a, 'b>(here: &Here, all: Vec<&'b Candidate<'a>>) -> Vec<&'b Candidate<'a>> {
    let nodes = |c: &Candidate<'a>| -> BTreeSet<String> {
        let hints = c.endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_ref());
        hints.into_iter().flatten().map(|n| n.name.clone()).collect()
    };
    let zones = |c: &Candidate<'a>| -> BTreeSet<String> {
        let hints = c.endpoint.hints.as_ref().and_then(|h| h.for_zones.as_ref());
        hints.into_iter().flatten().map(|z| z.name.clone()).collect()
    };
    let pick = |hints: &dyn Fn(&Candidate<'a>) -> BTreeSet<String>, here: &str| {
        let hinted = all.iter().all(|c| !hints(c).is_empty());
        let near: Vec<_> = all.iter().filter(|c| hints(c).contains(here)).copied().collect();
        (hinted && !near.is_empty()).then_some(near)
    };
    if let Some(chosen) = pick(&nodes, &here.node) {
        return chosen;
    }
    if let Some(chosen) = here.zone.as_ref().and_then(|zone| pick(&zones, zone)) {
        return chosen;
    }
    all
}

/// The number in a port that may be a name.
pub fn number(port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(_) => None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub fn here() -> Here {
        Here { node: "n1".into(), zone: Some("z1".into()), leaving: false }
    }

    pub fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web"}, "spec": spec,
        }))
        .expect("a service")
    }

    /// Each endpoint is `address@node`, with `!` not ready, `~` ending, `z=`/`h=` hints behind it.
    pub fn slice(endpoints: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|text| {
                let mut words = text.split(' ');
                let head = words.next().unwrap_or_default();
                let (address, node) = head.split_once('@').unwrap_or((head, "n1"));
                let node = node.trim_end_matches(['!', '~']);
                let ending = head.ends_with('~');
                let ready = !head.ends_with('!') && !ending;
                let mut e = json!({
                    "addresses": [address], "nodeName": node,
                    "conditions": {"ready": ready, "serving": ready || ending, "terminating": ending},
                });
                for word in words {
                    let hint = json!([{"name": &word[2..]}]);
                    let field = if word.starts_with("z=") { "forZones" } else { "forNodes" };
                    e["hints"][field] = hint;
                }
                e
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web-x",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }))
        .expect("a slice")
    }

    #[track_caller]
    fn check(spec: serde_json::Value, endpoints: &[&str], internal: &str, external: &str) {
        let mut base =
            json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]});
        for (k, v) in spec.as_object().expect("a map") {
            base[k] = v.clone();
        }
        let table = build(&here(), false, [&service(base)], [&slice(endpoints)]);
        let row = table.values().next().expect("a row");
        let show = |t: &Targets| {
            let mut text: Vec<String> = t.backends.iter().map(|b| b.address.to_string()).collect();
            if t.elsewhere {
                text.push("elsewhere".into());
            }
            text.join(" ")
        };
        assert_eq!(
            (show(&row.internal).as_str(), show(&row.external).as_str()),
            (internal, external)
        );
    }

    #[test]
    fn traffic_goes_to_ready_endpoints_by_policy() {
        let local = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
        let cluster = json!({});
        check(
            cluster.clone(),
            &["10.0.0.1@n1", "10.0.0.2@n2"],
            "10.0.0.1 10.0.0.2",
            "10.0.0.1 10.0.0.2",
        );
        check(cluster.clone(), &["10.0.0.1@n1!", "10.0.0.2@n2"], "10.0.0.2", "10.0.0.2");
        check(cluster.clone(), &["10.0.0.1@n1!", "10.0.0.2@n2~"], "10.0.0.2", "10.0.0.2");
        check(cluster.clone(), &["10.0.0.1@n1", "10.0.0.2@n2~"], "10.0.0.1", "10.0.0.1");
        check(cluster, &["10.0.0.1@n1!"], "", "");
        check(local.clone(), &["10.0.0.1@n1", "10.0.0.2@n2"], "10.0.0.1", "10.0.0.1");
        check(local.clone(), &["10.0.0.2@n2"], "elsewhere", "elsewhere");
        check(local, &["10.0.0.1@n1~", "10.0.0.2@n2"], "10.0.0.1", "10.0.0.1");
    }

    #[test]
    fn flows_of_udp_may_go_on_to_all_that_serves() {
        let serving = |protocol: &str, endpoints: &[&str]| {
            let spec = json!({"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local", "ports": [{"port": 53, "protocol": protocol}]});
            let table = build(&here(), false, [&service(spec)], [&slice(endpoints)]);
            let rows = table.into_values().flat_map(|row| row.serving);
            rows.map(|to| to.to_string()).collect::<Vec<_>>()
        };
        let endpoints = ["10.0.0.3@n2 z=z2", "10.0.0.1 z=z1", "10.0.0.2@n1~", "10.0.0.4@n1!"];
        let wanted = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"];
        assert_eq!(serving("UDP", &endpoints), wanted);
        assert_eq!(serving("TCP", &endpoints), [""; 0]);
    }

    #[test]
    fn hints_count_only_when_all_endpoints_have_them() {
        let spec = json!({});
        check(spec.clone(), &["10.0.0.1@n2 z=z1", "10.0.0.2@n3 z=z2"], "10.0.0.1", "10.0.0.1");
        check(
            spec.clone(),
            &["10.0.0.1@n2 z=z1", "10.0.0.2@n3"],
            "10.0.0.1 10.0.0.2",
            "10.0.0.1 10.0.0.2",
        );
        check(
            spec.clone(),
            &["10.0.0.1@n2 z=z2", "10.0.0.2@n3 z=z2"],
            "10.0.0.1 10.0.0.2",
            "10.0.0.1 10.0.0.2",
        );
        check(spec, &["10.0.0.1@n1 z=z1 h=n1", "10.0.0.2@n3 z=z1 h=n3"], "10.0.0.1", "10.0.0.1");
    }

    #[test]
    fn services_without_an_address_have_no_rows() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
            json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]}),
            json!({"ports": [{"port": 80}]}),
        ] {
            assert!(build(&here(), false, [&service(spec.clone())], []).is_empty(), "{spec}");
        }
    }

    #[test]
    fn affinity_lasts_three_hours_unless_said() {
        let spec = |v| serde_json::from_value::<ServiceSpec>(v).expect("a spec");
        assert_eq!(affinity(&spec(json!({}))), None);
        assert_eq!(affinity(&spec(json!({"sessionAffinity": "ClientIP"}))), Some(10_800));
        let config = json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}});
        assert_eq!(affinity(&spec(config)), Some(5));
    }
}
