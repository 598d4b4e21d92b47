//! Answers about services and pods, as the Kubernetes DNS specification 1.1.0 says
//! (kubernetes/dns `docs/specification.md`). Pure: a question and the cluster's objects go in,
//! records come out.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Version of the specification, told by `dns-version.<zone>`.
const SPECIFICATION: &str = "1.1.0";
/// Seconds that answers may be kept: short, since pods come and go (CoreDNS has 5 too).
pub const TTL: u32 = 5;

/// What answers are made from.
pub trait View {
    fn namespace(&self, name: &str) -> bool;
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// The service that has this cluster address.
    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>>;
    /// The slices with an endpoint of this address.
    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
}

/// One record's data. Names are absolute, with the final dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    Address(IpAddr),
    Srv { port: u16, target: String },
    Ptr(String),
    Cname(String),
    Txt(String),
    Ns(String),
    Soa,
}

/// The type that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    A,
    Aaaa,
    Srv,
    Ptr,
    Cname,
    Txt,
    Ns,
    Soa,
    Any,
    Other,
}

/// What is known of a name in the zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The name exists, if only with records of other kinds.
    pub exists: bool,
    pub records: Vec<Data>,
    /// Addresses of the targets in `records`, with their names.
    pub additional: Vec<(String, IpAddr)>,
}

impl Answer {
    fn existing(records: Vec<Data>) -> Self {
        Self { exists: true, records, additional: Vec::new() }
    }
}

/// Answers a question about a name in `zone` (`cluster.local.`); `None` when it is not in it.
/// `dns` is the address of this server's service.
pub fn answer(view: &dyn View, zone: &str, dns: IpAddr, name: &str, kind: Kind) -> Option<Answer> {
    let name = name.to_ascii_lowercase();
    if let Some(ip) = reverse(&name) {
        return pointer(view, zone, ip);
    }
    let rest = match name.strip_suffix(zone)? {
        "" => "",
        rest => rest.strip_suffix('.')?,
    };
    let labels: Vec<&str> = rest.split('.').filter(|l| !l.is_empty()).rev().collect();
    let mut found = match labels.as_slice() {
        [] => Answer::existing(vec![Data::Soa, Data::Ns(format!("ns.dns.{zone}"))]),
        ["dns-version"] => Answer::existing(vec![Data::Txt(SPECIFICATION.into())]),
        ["dns"] => Answer::existing(Vec::new()),
        ["dns", "ns"] => Answer::existing(vec![Data::Address(dns)]),
        ["svc" | "pod"] => Answer::existing(Vec::new()),
        ["svc", namespace] => Answer { exists: view.namespace(namespace), ..Answer::default() },
        ["svc", namespace, service, more @ ..] => services(view, zone, namespace, service, more),
        ["pod", namespace] => Answer { exists: view.namespace(namespace), ..Answer::default() },
        ["pod", namespace, pod] => pod_address(view, namespace, pod),
        _ => Answer::default(),
    };
    found.records.retain(|data| fits(data, kind));
    Some(found)
}

fn fits(data: &Data, kind: Kind) -> bool {
    match data {
        Data::Address(ip) => match kind {
            Kind::A => ip.is_ipv4(),
            Kind::Aaaa => ip.is_ipv6(),
            kind => kind == Kind::Any,
        },
        // An alias answers every question about its name.
        Data::Cname(_) => true,
        Data::Srv { .. } => matches!(kind, Kind::Srv | Kind::Any),
        Data::Ptr(_) => matches!(kind, Kind::Ptr | Kind::Any),
        Data::Txt(_) => matches!(kind, Kind::Txt | Kind::Any),
        Data::Ns(_) => matches!(kind, Kind::Ns | Kind::Any),
        Data::Soa => matches!(kind, Kind::Soa | Kind::Any),
    }
}

/// An endpoint of a headless service.
struct Member {
    /// Its host name, or its address with dashes.
    label: String,
    address: IpAddr,
    ports: Vec<(String, String, u16)>,
}

fn members(view: &dyn View, namespace: &str, service: &str) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for slice in view.slices(namespace, service) {
        let ports: Vec<(String, String, u16)> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                let protocol = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                Some((p.name.clone().unwrap_or_default(), protocol, u16::try_from(p.port?).ok()?))
            })
            .collect();
        // Slices of addresses that are names (FQDN) have none to answer with.
        for endpoint in slice
            .endpoints
            .iter()
            .filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
        {
            for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let label = match endpoint.hostname.as_deref() {
                    None | Some("") => dashed(address),
                    Some(hostname) => hostname.to_ascii_lowercase(),
                };
                members.push(Member { label, address, ports: ports.clone() });
            }
        }
    }
    members
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut texts: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
    if texts.is_empty() {
        texts.extend(&spec.cluster_ip);
    }
    texts.into_iter().filter_map(|t| t.parse().ok()).collect()
}

fn is_type(service: &Service, wanted: &str) -> bool {
    service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some(wanted)
}

/// Names below `service.namespace.svc`; `more` are the labels before the service, the nearest first.
fn services(view: &dyn View, zone: &str, namespace: &str, name: &str, more: &[&str]) -> Answer {
    let Some(service) = view.service(namespace, name) else { return Answer::default() };
    let base = format!("{name}.{namespace}.svc.{zone}");
    if is_type(&service, "ExternalName") {
        let target = service.spec.as_ref().and_then(|s| s.external_name.as_deref());
        return match (target, more) {
            (Some(target), []) => {
                let target = target.trim_end_matches('.');
                Answer::existing(vec![Data::Cname(format!("{target}."))])
            }
            _ => Answer::default(),
        };
    }
    let ips = addresses(&service);
    let members = || members(view, namespace, name);
    match (more, ips.is_empty()) {
        ([], false) => {
            Answer { records: with_srv(&service, &ips, &base), ..Answer::existing(Vec::new()) }
        }
        ([], true) => headless(&members(), &base, None),
        ([protocol, port], false) => cluster_srv(&service, &ips, &base, port, protocol),
        ([protocol, port], true) => headless(&members(), &base, Some((port, protocol))),
        ([label], true) => {
            let of = members().into_iter().filter(|m| m.label == *label);
            let records: Vec<Data> = of.map(|m| Data::Address(m.address)).collect();
            Answer { exists: !records.is_empty(), records, ..Answer::default() }
        }
        ([label], false) => {
            // `_tcp.service` exists when a port below it does.
            let ports = ports(&service);
            let exists = ports.iter().any(|p| format!("_{}", protocol(p)) == *label);
            Answer { exists, ..Answer::default() }
        }
        _ => Answer::default(),
    }
}

fn ports(service: &Service) -> Vec<ServicePort> {
    service.spec.as_ref().and_then(|s| s.ports.clone()).unwrap_or_default()
}

fn protocol(port: &ServicePort) -> String {
    port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase()
}

fn with_srv(service: &Service, ips: &[IpAddr], base: &str) -> Vec<Data> {
    let mut records: Vec<Data> = ips.iter().map(|ip| Data::Address(*ip)).collect();
    // A question for SRV of the service itself tells all its ports, as CoreDNS answers it.
    let numbers = ports(service).into_iter().filter_map(|p| u16::try_from(p.port).ok());
    records.extend(numbers.map(|port| Data::Srv { port, target: base.to_owned() }));
    records
}

fn cluster_srv(service: &Service, ips: &[IpAddr], base: &str, port: &str, proto: &str) -> Answer {
    let fits = |p: &ServicePort| {
        p.name.as_deref().is_some_and(|n| format!("_{n}") == port)
            && format!("_{}", protocol(p)) == proto
    };
    let found = ports(service).into_iter().find(fits).and_then(|p| u16::try_from(p.port).ok());
    let Some(port) = found else { return Answer::default() };
    Answer {
        exists: true,
        records: vec![Data::Srv { port, target: base.to_owned() }],
        additional: ips.iter().map(|ip| (base.to_owned(), *ip)).collect(),
    }
}

/// All members of a headless service; those with a port, when one is asked for.
fn headless(members: &[Member], base: &str, port: Option<(&str, &str)>) -> Answer {
    let mut answer = Answer { exists: true, ..Answer::default() };
    for member in members {
        let target = format!("{}.{base}", member.label);
        if port.is_none() {
            answer.records.push(Data::Address(member.address));
        }
        for (name, protocol, number) in &member.ports {
            let wanted = port.is_none_or(|(n, p)| {
                !name.is_empty() && format!("_{name}") == n && format!("_{protocol}") == p
            });
            if wanted {
                answer.records.push(Data::Srv { port: *number, target: target.clone() });
                answer.additional.push((target.clone(), member.address));
            }
        }
    }
    answer.exists = port.is_none() || !answer.records.is_empty();
    answer.records.sort();
    answer.records.dedup();
    answer.additional.sort();
    answer.additional.dedup();
    answer
}

/// `172-17-0-3.namespace.pod`: the address in the name, if the namespace exists.
fn pod_address(view: &dyn View, namespace: &str, label: &str) -> Answer {
    let address = label
        .replace('-', ".")
        .parse::<IpAddr>()
        .or_else(|_| label.replace('-', ":").parse::<IpAddr>());
    match address {
        Ok(address) if view.namespace(namespace) => Answer::existing(vec![Data::Address(address)]),
        _ => Answer::default(),
    }
}

/// The address that a reverse name stands for.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(text) = name.strip_suffix(".in-addr.arpa.") {
        // Turned round it is an address as it is written, without anything more.
        let octets: Vec<&str> = text.split('.').rev().collect();
        return octets.join(".").parse::<std::net::Ipv4Addr>().ok().map(IpAddr::from);
    }
    let text = name.strip_suffix(".ip6.arpa.")?;
    let nibble = |text: &str| match text.as_bytes() {
        [digit] => char::from(*digit).to_digit(16).and_then(|n| u8::try_from(n).ok()),
        _ => None,
    };
    let nibbles: Vec<u8> = text.split('.').rev().map(nibble).collect::<Option<_>>()?;
    if nibbles.len() != 32 {
        return None;
    }
    let bytes: Vec<u8> = nibbles.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// The names of a service's or a headless endpoint's address; `None` for addresses that are not
/// of the cluster.
fn pointer(view: &dyn View, zone: &str, ip: IpAddr) -> Option<Answer> {
    if let Some(service) = view.service_by_ip(ip) {
        let (namespace, name) =
            (service.metadata.namespace.as_ref()?, service.metadata.name.as_ref()?);
        let name = format!("{name}.{namespace}.svc.{zone}");
        return Some(Answer::existing(vec![Data::Ptr(name)]));
    }
    let mut names = Vec::new();
    for slice in view.slices_by_ip(ip) {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|l| l.get("kubernetes.io/service-name"));
        let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) else {
            continue;
        };
        let headless = view.service(namespace, service).is_some_and(|s| addresses(&s).is_empty());
        let member = members(view, namespace, service).into_iter().find(|m| m.address == ip);
        if let (true, Some(member)) = (headless, member) {
            names.push(Data::Ptr(format!("{}.{service}.{namespace}.svc.{zone}", member.label)));
        }
    }
    names.sort();
    names.dedup();
    (!names.is_empty()).then(|| Answer::existing(names))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub struct Cluster {
        services: Vec<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
    }

    impl View for Cluster {
        fn namespace(&self, name: &str) -> bool {
            name == "ns"
        }
        fn service(&self, _: &str, name: &str) -> Option<Arc<Service>> {
            self.services.iter().find(|s| s.metadata.name.as_deref() == Some(name)).cloned()
        }
        fn slices(&self, _: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
            let of = |s: &&Arc<EndpointSlice>| {
                s.metadata
                    .labels
                    .as_ref()
                    .is_some_and(|l| l["kubernetes.io/service-name"] == service)
            };
            self.slices.iter().filter(of).cloned().collect()
        }
        fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
            self.services.iter().find(|s| addresses(s).contains(&ip)).cloned()
        }
        fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
            let has = |s: &&Arc<EndpointSlice>| {
                s.endpoints.iter().any(|e| e.addresses.contains(&ip.to_string()))
            };
            self.slices.iter().filter(has).cloned().collect()
        }
    }

    pub fn cluster() -> Cluster {
        let service = |name: &str, spec: serde_json::Value| {
            let object = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
            Arc::new(serde_json::from_value(object).expect("a service"))
        };
        let slice = json!({
            "metadata": {"namespace": "ns", "name": "db-x", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.7"], "conditions": {"ready": false}},
            ],
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
        });
        let alias = |name: &str, target: &str| {
            service(name, json!({"type": "ExternalName", "externalName": target}))
        };
        let inside = |name: &str| format!("{name}.ns.svc.cluster.local");
        let mut aliases = vec![
            alias("far", "example.com"),
            alias("far-lost", "lost.example"),
            alias("refused", "refused.example"),
            alias("near", &inside("web")),
            alias("lost", &inside("none")),
            alias("to-lost", &inside("lost")),
            alias("round", &inside("and-round")),
            alias("and-round", &inside("round")),
            alias("link-9", &inside("web")),
        ];
        let link = |i: u8| format!("link-{i}");
        aliases.extend((1..9).map(|i| alias(&link(i), &inside(&link(i + 1)))));
        let services = vec![
            service(
                "web",
                json!({"clusterIP": "10.96.0.7",
                    "ports": [{"name": "http", "port": 80}]}),
            ),
            service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        ];
        Cluster {
            services: services.into_iter().chain(aliases).collect(),
            slices: vec![Arc::new(serde_json::from_value(slice).expect("a slice"))],
        }
    }

    fn show(answer: Option<Answer>) -> String {
        let Some(answer) = answer else { return "not here".into() };
        if !answer.exists {
            return "no such name".into();
        }
        let records: Vec<String> = answer
            .records
            .iter()
            .map(|data| match data {
                Data::Address(ip) => ip.to_string(),
                Data::Srv { port, target } => format!("{port} {target}"),
                Data::Ptr(name) | Data::Cname(name) | Data::Ns(name) => name.clone(),
                Data::Txt(text) => format!("{text:?}"),
                Data::Soa => "soa".into(),
            })
            .collect();
        records.join(", ")
    }

    #[test]
    fn names_are_answered_as_the_specification_says() {
        let cluster = cluster();
        let dns = IpAddr::from([10, 96, 0, 10]);
        for (name, kind, wanted) in [
            ("web.ns.svc.cluster.local.", Kind::A, "10.96.0.7"),
            ("WEB.ns.svc.Cluster.Local.", Kind::A, "10.96.0.7"),
            ("web.ns.svc.cluster.local.", Kind::Aaaa, ""),
            ("web.ns.svc.cluster.local.", Kind::Srv, "80 web.ns.svc.cluster.local."),
            ("_http._tcp.web.ns.svc.cluster.local.", Kind::Srv, "80 web.ns.svc.cluster.local."),
            ("_http._udp.web.ns.svc.cluster.local.", Kind::Srv, "no such name"),
            ("none.ns.svc.cluster.local.", Kind::A, "no such name"),
            ("x.web.ns.svc.cluster.local.", Kind::A, "no such name"),
            ("db.ns.svc.cluster.local.", Kind::A, "10.244.0.5, 10.244.0.6"),
            ("db-0.db.ns.svc.cluster.local.", Kind::A, "10.244.0.5"),
            ("10-244-0-6.db.ns.svc.cluster.local.", Kind::A, "10.244.0.6"),
            ("db-9.db.ns.svc.cluster.local.", Kind::A, "no such name"),
            (
                "_sql._tcp.db.ns.svc.cluster.local.",
                Kind::Srv,
                "5432 10-244-0-6.db.ns.svc.cluster.local., 5432 db-0.db.ns.svc.cluster.local.",
            ),
            ("far.ns.svc.cluster.local.", Kind::A, "example.com."),
            ("ns.svc.cluster.local.", Kind::A, ""),
            ("other.svc.cluster.local.", Kind::A, "no such name"),
            ("10-244-0-9.ns.pod.cluster.local.", Kind::A, "10.244.0.9"),
            ("10-244-0-9.other.pod.cluster.local.", Kind::A, "no such name"),
            ("dns-version.cluster.local.", Kind::Txt, "\"1.1.0\""),
            ("ns.dns.cluster.local.", Kind::A, "10.96.0.10"),
            ("cluster.local.", Kind::Soa, "soa"),
            ("cluster.local.", Kind::Ns, "ns.dns.cluster.local."),
            ("7.0.96.10.in-addr.arpa.", Kind::Ptr, "web.ns.svc.cluster.local."),
            ("5.0.244.10.in-addr.arpa.", Kind::Ptr, "db-0.db.ns.svc.cluster.local."),
            ("9.9.9.9.in-addr.arpa.", Kind::Ptr, "not here"),
            ("x.7.0.96.10.in-addr.arpa.", Kind::Ptr, "not here"),
            ("07.0.96.10.in-addr.arpa.", Kind::Ptr, "not here"),
            ("_tcp.web.ns.svc.cluster.local.", Kind::A, ""),
            ("_sctp.web.ns.svc.cluster.local.", Kind::A, "no such name"),
            ("x.far.ns.svc.cluster.local.", Kind::A, "no such name"),
            ("svc.cluster.local.", Kind::A, ""),
            ("x.cluster.local.", Kind::A, "no such name"),
            ("ns.pod.cluster.local.", Kind::A, ""),
            ("x.ns.pod.cluster.local.", Kind::A, "no such name"),
            ("fd00--9.ns.pod.cluster.local.", Kind::Aaaa, "fd00::9"),
            ("10-244-0-7.db.ns.svc.cluster.local.", Kind::A, "no such name"),
            ("db.ns.svc.cluster.local.", Kind::Other, ""),
            ("example.com.", Kind::A, "not here"),
            ("notcluster.local.", Kind::A, "not here"),
        ] {
            let found = answer(&cluster, "cluster.local.", dns, name, kind);
            assert_eq!(show(found), wanted, "{name} {kind:?}");
        }
    }
}
