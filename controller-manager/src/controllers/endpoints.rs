//! EndpointSlices, and the Endpoints of old, from services and their pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::lean::Pod;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, Node, ObjectReference,
    Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::action::{Action, Plan};
use crate::owners::controller_reference;
use crate::pods;
use crate::runner::{Context, Controller};

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const OBJECT_MANAGER: &str = "endpoints.kubernetes.io/managed-by";
const OBJECT_MANAGED: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
pub(super) const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in a slice (upstream's --max-endpoints-per-slice) and in an Endpoints object.
const PER_SLICE: usize = 100;
const PER_OBJECT: usize = 1000;

/// What both are made from.
struct Inputs {
    services: Cache<Service>,
    pods: Cache<Pod>,
}

impl Inputs {
    fn new(context: &Context) -> Self {
        Self { services: context.caches.of(), pods: context.caches.of() }
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.services.feed(queue);
        let (q, services) = (queue.clone(), self.services.clone());
        self.pods.on_change(move |change| {
            for service in services.list_in(&change.key.namespace) {
                let mut pods = change.old.into_iter().chain(change.new);
                if pods.any(|p| selected(&service, p)) {
                    q.add(Key::of(&*service));
                }
            }
        });
    }

    /// A service that selects pods, and these.
    fn look(&self, key: &Key) -> Option<(Arc<Service>, Vec<Arc<Pod>>)> {
        let service = self.services.get(key)?;
        if service.metadata.deletion_timestamp.is_some() || selector(&service).is_none() {
            return None;
        }
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|p| selected(&service, p));
        Some((service, pods))
    }
}

/// Keeps EndpointSlices.
pub struct Slices {
    inputs: Inputs,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
}

/// Keeps Endpoints objects.
pub struct Objects {
    inputs: Inputs,
    endpoints: Cache<Endpoints>,
}

impl Slices {
    pub fn new(context: &Context) -> Self {
        let caches = &context.caches;
        Self { inputs: Inputs::new(context), nodes: caches.of(), slices: caches.of() }
    }
}

impl Objects {
    pub fn new(context: &Context) -> Self {
        Self { inputs: Inputs::new(context), endpoints: context.caches.of() }
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|s| !s.is_empty())
}

fn selected(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector(service)
        .is_some_and(|s| s.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)))
}

impl Controller for Slices {
    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.inputs.wire(queue);
        let q = queue.clone();
        self.slices.on_change(move |change| {
            for slice in change.old.into_iter().chain(change.new) {
                if let Some(service) = label(&slice.metadata, SERVICE_NAME) {
                    q.add(Key::new(&change.key.namespace, service));
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        // Slices of a service that is gone are garbage: they have an owner.
        let Some((service, pods)) = self.inputs.look(key) else { return plan };
        let mut slices = self.slices.list_in(&key.namespace);
        slices.retain(|s| {
            label(&s.metadata, SERVICE_NAME) == Some(&key.name)
                && label(&s.metadata, MANAGED_BY) == Some(MANAGER)
        });
        let zone = |node: &str| {
            let node = self.nodes.get(&Key::new("", node))?;
            node.metadata.labels.as_ref()?.get(ZONE).cloned()
        };
        slices_plan(&service, &pods, &slices, &zone, now, &mut plan);
        plan
    }
}

impl Controller for Objects {
    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.inputs.wire(queue);
        self.endpoints.feed(queue);
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let have = self.endpoints.get(key);
        match self.inputs.look(key) {
            Some((service, pods)) => endpoints_plan(&service, &pods, have.as_deref(), &mut plan),
            None => {
                // Made by us for a service that is gone.
                let ours =
                    have.filter(|e| label(&e.metadata, OBJECT_MANAGER) == Some(OBJECT_MANAGED));
                if let (None, Some(old)) = (self.inputs.services.get(key), ours) {
                    plan.push(Action::delete(&*old));
                }
            }
        }
        plan
    }
}

pub(super) fn label<'m>(meta: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The families that a service has: those of its addresses, or those it asks for.
fn families(service: &Service) -> Vec<&'static str> {
    let named = service.spec.as_ref().and_then(|s| s.ip_families.as_ref());
    let of = |f: &String| if f == "IPv6" { "IPv6" } else { "IPv4" };
    match named.map(Vec::as_slice) {
        None | Some([]) => vec!["IPv4"],
        Some(families) => families.iter().map(of).collect(),
    }
}

/// A pod's address of a family.
fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|i| &i.ip).chain(&status.pod_ip);
    all.filter(|ip| !ip.is_empty()).find(|ip| ip.contains(':') == (family == "IPv6")).cloned()
}

/// Ports of a service on one pod: named target ports differ from pod to pod.
fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let mut found = Vec::new();
    for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let number = match &port.target_port {
            None | Some(IntOrString::Int(0)) => Some(port.port),
            Some(IntOrString::Int(n)) => Some(*n),
            Some(IntOrString::String(name)) => {
                let spec = pod.spec.as_ref();
                let sidecars = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
                let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
                let all = spec.into_iter().flat_map(|s| &s.containers).chain(sidecars);
                let mut all = all.flat_map(|c| c.ports.iter().flatten());
                all.find(|p| {
                    p.name.as_ref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
            }
        };
        if let Some(number) = number {
            found.push(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number),
                protocol: Some(protocol),
                app_protocol: port.app_protocol.clone(),
            });
        }
    }
    found
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The host name that a headless service publishes for a pod.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let subdomain = spec.subdomain.as_ref()?;
    (Some(subdomain) == service.metadata.name.as_ref()).then(|| spec.hostname.clone()).flatten()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    family: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    let address = address(pod, family)?;
    let node = pods::node_name(pod);
    let ending = pod.metadata.deletion_timestamp.is_some();
    let serving = pods::is_ready(pod);
    let ready = publishes_not_ready(service) || serving && !ending;
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(ending),
        }),
        hostname: hostname(service, pod),
        node_name: Some(node.to_owned()).filter(|n| !n.is_empty()),
        target_ref: Some(reference(pod)),
        zone: zone(node),
        ..Endpoint::default()
    })
}

fn slices_plan(
    service: &Service,
    pods: &[Arc<Pod>],
    have: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let mut left: Vec<Arc<EndpointSlice>> = have.to_vec();
    for family in families(service) {
        // Pods that have the same ports share slices.
        let mut groups: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
        for pod in pods.iter().filter(|p| !pods::is_finished(p)) {
            let Some(endpoint) = endpoint(service, pod, family, zone) else { continue };
            let ports = ports(service, pod);
            match groups.iter_mut().find(|(p, _)| *p == ports) {
                Some((_, endpoints)) => endpoints.push(endpoint),
                None => groups.push((ports, vec![endpoint])),
            }
        }
        if groups.is_empty() {
            // A service without endpoints has one slice that says so.
            groups.push((Vec::new(), Vec::new()));
        }
        for (ports, endpoints) in groups {
            group_plan(service, family, &ports, endpoints, &mut left, now, plan);
        }
    }
    for slice in left {
        plan.push(Action::delete(&*slice));
    }
}

/// Puts endpoints into the slices there are, each where it stands already if it can.
fn group_plan(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    mut wanted: Vec<Endpoint>,
    left: &mut Vec<Arc<EndpointSlice>>,
    now: Timestamp,
    plan: &mut Plan,
) {
    wanted.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    // Without endpoints, ports do not matter: any slice will do to say so.
    let nothing = wanted.is_empty() && ports.is_empty();
    let same = |s: &EndpointSlice| {
        s.address_type == family
            && (s.ports.as_deref().unwrap_or_default() == ports
                || s.endpoints.is_empty()
                || nothing)
    };
    let mine: Vec<Arc<EndpointSlice>> = left.iter().filter(|s| same(s)).cloned().collect();
    let mut chunks: Vec<Vec<Endpoint>> = Vec::new();
    for slice in &mine {
        let stands = |e: &Endpoint| {
            slice.endpoints.iter().any(|h| h.addresses == e.addresses && uid(h) == uid(e))
        };
        let (here, rest): (Vec<_>, Vec<_>) = wanted.into_iter().partition(stands);
        chunks.push(here);
        wanted = rest;
    }
    for chunk in &mut chunks {
        let room = PER_SLICE.saturating_sub(chunk.len()).min(wanted.len());
        chunk.extend(wanted.drain(..room));
    }
    while !wanted.is_empty() {
        chunks.push(wanted.drain(..wanted.len().min(PER_SLICE)).collect());
    }
    // With no endpoints at all, one slice stays.
    let keep_empty = chunks.iter().all(Vec::is_empty);
    if chunks.is_empty() {
        chunks.push(Vec::new());
    }
    let mut kept_empty = false;
    for (i, endpoints) in chunks.into_iter().enumerate() {
        let existing = mine.get(i);
        if endpoints.is_empty() && (kept_empty || !keep_empty) {
            continue;
        }
        kept_empty |= endpoints.is_empty();
        if let Some(existing) = existing {
            left.retain(|s| s.metadata.uid != existing.metadata.uid);
        }
        let wanted = slice(service, family, ports, endpoints, existing.map(AsRef::as_ref), now);
        match existing {
            None => plan.push(Action::create(&wanted)),
            Some(existing) if differs(existing, &wanted) => plan.push(Action::update(&wanted)),
            Some(_) => {}
        }
    }
}

fn uid(endpoint: &Endpoint) -> Option<&String> {
    endpoint.target_ref.as_ref()?.uid.as_ref()
}

fn differs(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let sorted = |s: &EndpointSlice| {
        let mut endpoints = s.endpoints.clone();
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        endpoints
    };
    sorted(have) != sorted(wanted)
        || have.ports.as_deref().unwrap_or_default() != wanted.ports.as_deref().unwrap_or_default()
        || have.metadata.labels != wanted.metadata.labels
}

fn slice(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    existing: Option<&EndpointSlice>,
    now: Timestamp,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut metadata = match existing {
        Some(slice) => slice.metadata.clone(),
        None => ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
    };
    metadata.labels = Some(labels);
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    metadata.annotations.get_or_insert_default().insert(TRIGGER.into(), time);
    EndpointSlice {
        metadata,
        address_type: family.into(),
        endpoints,
        ports: Some(ports.to_vec()).filter(|p| !p.is_empty()),
    }
}

fn endpoints_plan(service: &Service, pods: &[Arc<Pod>], have: Option<&Endpoints>, plan: &mut Plan) {
    let family = families(service)[0];
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().collect();
    sorted.sort_by_key(|p| address(p, family));
    let mut count = 0;
    for pod in sorted {
        let Some(ip) = address(pod, family) else { continue };
        let ending = pod.metadata.deletion_timestamp.is_some();
        if pods::is_finished(pod) || ending && !publishes_not_ready(service) {
            continue;
        }
        count += 1;
        if count > PER_OBJECT {
            break;
        }
        let address = EndpointAddress {
            ip,
            hostname: hostname(service, pod),
            node_name: Some(pods::node_name(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(reference(pod)),
        };
        let ports: Vec<OldPort> = ports(service, pod)
            .into_iter()
            .map(|p| OldPort {
                name: p.name.filter(|n| !n.is_empty()),
                port: p.port.unwrap_or(0),
                protocol: p.protocol,
                app_protocol: p.app_protocol,
            })
            .collect();
        let ports = Some(ports).filter(|p| !p.is_empty());
        let at = match subsets.iter().position(|s| s.ports == ports) {
            Some(at) => at,
            None => {
                subsets.push(EndpointSubset { ports, ..EndpointSubset::default() });
                subsets.len() - 1
            }
        };
        let ready = publishes_not_ready(service) || pods::is_ready(pod);
        let list = match ready {
            true => &mut subsets[at].addresses,
            false => &mut subsets[at].not_ready_addresses,
        };
        list.get_or_insert_default().push(address);
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(OBJECT_MANAGER.into(), OBJECT_MANAGED.into());
    let subsets = Some(subsets).filter(|s| !s.is_empty());
    let mut metadata = have.map(|e| e.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(labels);
    if count > PER_OBJECT {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    let wanted = Endpoints { metadata, subsets };
    match have {
        None => plan.push(Action::create(&wanted)),
        Some(have) if *have != wanted => plan.push(Action::update(&wanted)),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"clusterIP": "10.96.0.7", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
        for (k, v) in extra.as_object().expect("a map") {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "s"}, "spec": spec,
        }))
        .expect("a service")
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
        .expect("a pod"))
    }

    fn show(plan: &Plan) -> Vec<String> {
        let addresses = |list: &serde_json::Value| -> String {
            let list = list.as_array().cloned().unwrap_or_default();
            list.iter()
                .map(|e| {
                    format!(
                        "{}{}",
                        e["addresses"][0].as_str().unwrap_or(""),
                        if e["conditions"]["ready"] == true { "" } else { "!" }
                    )
                })
                .collect::<Vec<_>>()
                .join(" ")
        };
        plan.actions
            .iter()
            .filter_map(|a| match a {
                Action::Create(t, o) if t.resource.kind == "EndpointSlice" => {
                    Some(format!("create {} {}", o["ports"][0]["port"], addresses(&o["endpoints"])))
                }
                Action::Update(t, o) if t.resource.kind == "EndpointSlice" => {
                    Some(format!("update {} {}", o["ports"][0]["port"], addresses(&o["endpoints"])))
                }
                Action::Delete(t, ..) => Some(format!("delete {}", t.key.name)),
                _ => None,
            })
            .collect()
    }

    fn run(service: &Service, pods: &[Arc<Pod>], have: &[Arc<EndpointSlice>]) -> Plan {
        let mut plan = Plan::default();
        slices_plan(service, pods, have, &|_| None, Timestamp::UNIX_EPOCH, &mut plan);
        plan
    }

    fn made(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let slices = plan.actions.iter().filter_map(|a| match a {
            Action::Create(_, o) | Action::Update(_, o) => {
                serde_json::from_value::<EndpointSlice>(o.clone()).ok()
            }
            _ => None,
        });
        slices
            .enumerate()
            .map(|(i, mut s)| {
                s.metadata.name = Some(format!("web-{i}"));
                s.metadata.uid = Some(format!("u{i}"));
                Arc::new(s)
            })
            .collect()
    }

    #[test]
    fn slices_follow_the_pods() {
        let web = service(json!({}));
        let pods = [pod("a", "10.0.0.1", true, 8080), pod("b", "10.0.0.2", false, 8080)];
        let first = run(&web, &pods, &[]);
        assert_eq!(show(&first), ["create 8080 10.0.0.1 10.0.0.2!"]);
        let have = made(&first);
        assert!(run(&web, &pods, &have).actions.is_empty(), "nothing to do twice");
        let other = [pod("a", "10.0.0.1", true, 8080), pod("c", "10.0.0.3", true, 9090)];
        assert_eq!(
            show(&run(&web, &other, &have)),
            ["update 8080 10.0.0.1", "create 9090 10.0.0.3"]
        );
        assert_eq!(show(&run(&web, &[], &have)), ["update null "], "one empty slice stays");
        let lenient = service(json!({"publishNotReadyAddresses": true}));
        assert_eq!(show(&run(&lenient, &pods, &[])), ["create 8080 10.0.0.1 10.0.0.2"]);
    }

    #[test]
    fn a_slice_has_a_hundred_endpoints_at_most() {
        let pods: Vec<_> = (0..250)
            .map(|i| pod(&format!("p{i}"), &format!("10.0.{}.{}", i / 200, i % 200 + 1), true, 80))
            .collect();
        let plan = run(&service(json!({})), &pods, &[]);
        let sizes: Vec<usize> = made(&plan).iter().map(|s| s.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
