//! EndpointSlices of Endpoints objects that somebody else keeps, for services without a selector.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use client::events::EventType;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Action, Plan};
use crate::controllers::endpoints::{MANAGED_BY, SERVICE_NAME, TRIGGER, label};
use crate::owners::controller_reference;
use crate::runner::{Context, Controller};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Mirrors Endpoints objects (KEP-0752).
pub struct Mirror {
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
    /// Addresses that are mirrored of each subset.
    max: usize,
}

impl Mirror {
    pub fn new(context: &Context, max: usize) -> Self {
        let caches = &context.caches;
        Self { services: caches.of(), endpoints: caches.of(), slices: caches.of(), max }
    }

    /// The object to mirror: there, meant for it, and of a service that selects nothing.
    fn look(&self, key: &Key) -> Option<Arc<Endpoints>> {
        let endpoints = self.endpoints.get(key)?;
        let service = self.services.get(key)?;
        let selects = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        let led =
            endpoints.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
        (label(&endpoints.metadata, SKIP) != Some("true")
            && !led
            && selects.is_none_or(BTreeMap::is_empty))
        .then_some(endpoints)
    }
}

impl Controller for Mirror {
    fn name(&self) -> &'static str {
        "endpointslicemirroring"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.services.feed(queue);
        self.endpoints.feed(queue);
        let q = queue.clone();
        self.slices.on_change(move |change| {
            for slice in change.old.into_iter().chain(change.new) {
                let ours = label(&slice.metadata, MANAGED_BY) == Some(MANAGER);
                if let (true, Some(name)) = (ours, label(&slice.metadata, SERVICE_NAME)) {
                    q.add(Key::new(&change.key.namespace, name));
                }
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let mut have = self.slices.list_in(&key.namespace);
        have.retain(|s| {
            label(&s.metadata, SERVICE_NAME) == Some(&key.name)
                && label(&s.metadata, MANAGED_BY) == Some(MANAGER)
        });
        let mut plan = Plan::default();
        match self.look(key) {
            Some(endpoints) => mirror(&endpoints, &have, self.max, &mut plan),
            None => have.iter().for_each(|slice| plan.push(Action::delete(&**slice))),
        }
        plan
    }
}

/// What one slice holds: addresses of a family that have the same ports.
type Group = ((&'static str, Vec<EndpointPort>), Vec<Endpoint>);

fn mirror(endpoints: &Endpoints, have: &[Arc<EndpointSlice>], max: usize, plan: &mut Plan) {
    let Wanted { groups, invalid, skipped } = wanted(endpoints, max);
    if invalid > 0 {
        let text =
            format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        plan.push(Action::event(endpoints, EventType::Warning, "InvalidIPAddress", text));
    }
    if skipped > 0 {
        let text = format!(
            "A max of {max} addresses can be mirrored to EndpointSlices per Endpoints subset. {} \
             addresses were skipped",
            skipped + invalid
        );
        plan.push(Action::event(endpoints, EventType::Warning, "TooManyAddressesToMirror", text));
    }
    let mut left = have.to_vec();
    let mut missing = Vec::new();
    for ((family, ports), addresses) in groups {
        let fits = |s: &Arc<EndpointSlice>| {
            s.address_type == family && s.ports.as_deref().unwrap_or_default() == ports
        };
        match left.iter().position(fits) {
            Some(at) => update(endpoints, &left.remove(at), ports, addresses, plan),
            None => missing.push(((family, ports), addresses)),
        }
    }
    for ((family, ports), addresses) in missing {
        // One that would go takes what is new.
        match left.iter().position(|s| s.address_type == family) {
            Some(at) => update(endpoints, &left.remove(at), ports, addresses, plan),
            None if endpoints.metadata.deletion_timestamp.is_some() => {}
            None => {
                let metadata = ObjectMeta {
                    generate_name: endpoints.metadata.name.as_ref().map(|name| format!("{name}-")),
                    namespace: endpoints.metadata.namespace.clone(),
                    owner_references: Some(vec![controller_reference(endpoints)]),
                    ..ObjectMeta::default()
                };
                plan.push(Action::create(&slice(endpoints, metadata, family, ports, addresses)));
            }
        }
    }
    left.iter().for_each(|slice| plan.push(Action::delete(&**slice)));
}

fn update(
    endpoints: &Endpoints,
    have: &EndpointSlice,
    ports: Vec<EndpointPort>,
    addresses: Vec<Endpoint>,
    plan: &mut Plan,
) {
    let family = &have.address_type;
    let wanted = slice(endpoints, have.metadata.clone(), family, ports, addresses);
    if wanted != *have {
        plan.push(Action::update(&wanted));
    }
}

fn slice(
    endpoints: &Endpoints,
    mut metadata: ObjectMeta,
    family: &str,
    ports: Vec<EndpointPort>,
    endpoints_of_slice: Vec<Endpoint>,
) -> EndpointSlice {
    let source = &endpoints.metadata;
    let mut labels = source.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), source.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = source.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| name != TRIGGER && name != LAST_APPLIED);
    metadata.labels = Some(labels);
    metadata.annotations = Some(annotations).filter(|all| !all.is_empty());
    EndpointSlice {
        metadata,
        address_type: family.into(),
        endpoints: endpoints_of_slice,
        ports: Some(ports).filter(|p| !p.is_empty()),
    }
}

#[derive(Default)]
struct Wanted {
    groups: Vec<Group>,
    /// Addresses that are none.
    invalid: usize,
    /// Addresses left out because there are too many.
    skipped: usize,
}

fn wanted(endpoints: &Endpoints, max: usize) -> Wanted {
    let mut wanted = Wanted::default();
    for (ports, addresses) in by_ports(endpoints.subsets.as_deref().unwrap_or_default()) {
        let mut taken = 0;
        for (address, ready) in addresses {
            let Some(ip) = sloppy(&address.ip) else {
                wanted.invalid += 1;
                continue;
            };
            if taken == max {
                wanted.skipped += 1;
                continue;
            }
            taken += 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let endpoint = endpoint(address, ip, ready);
            let key = (family, ports.clone());
            match wanted.groups.iter_mut().find(|(k, _)| *k == key) {
                Some((_, group)) => group.push(endpoint),
                None => wanted.groups.push((key, vec![endpoint])),
            }
        }
    }
    for (_, group) in &mut wanted.groups {
        group.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    }
    wanted
}

/// Addresses by their ports, each once: ready if it is so in one of the subsets.
fn by_ports(subsets: &[EndpointSubset]) -> Vec<(Vec<EndpointPort>, Vec<(&EndpointAddress, bool)>)> {
    let mut found: Vec<(Vec<EndpointPort>, Vec<(&EndpointAddress, bool)>)> = Vec::new();
    for subset in subsets {
        let mut ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
        ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
        let at = found.iter().position(|(p, _)| *p == ports).unwrap_or_else(|| {
            found.push((ports, Vec::new()));
            found.len() - 1
        });
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready) {
            let known = &mut found[at].1;
            let same = |(a, _): &&mut (&EndpointAddress, bool)| {
                a.ip == address.ip && a.target_ref == address.target_ref
            };
            match known.iter_mut().find(same) {
                Some((_, was)) => *was |= ready,
                None => known.push((address, ready)),
            }
        }
    }
    found
}

fn port(old: &OldPort) -> EndpointPort {
    EndpointPort {
        name: Some(old.name.clone().unwrap_or_default()),
        port: Some(old.port),
        protocol: Some(old.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: old.app_protocol.clone(),
    }
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        ..Endpoint::default()
    }
}

/// An address as Endpoints may hold it: leading zeros are allowed.
fn sloppy(text: &str) -> Option<IpAddr> {
    let parsed = text.parse().or_else(|_| {
        let octets: Vec<&str> = text.split('.').collect();
        let bare = |octet: &&str| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0".to_owned(),
            bare => bare.to_owned(),
        };
        octets.iter().map(bare).collect::<Vec<_>>().join(".").parse::<IpAddr>()
    });
    parsed.ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoints(subsets: serde_json::Value) -> Endpoints {
        let object = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "1", "labels": {"l": "1"},
                "annotations": {"a": "1", LAST_APPLIED: "{}", TRIGGER: "now"}},
            "subsets": subsets,
        });
        serde_json::from_value(object).expect("endpoints")
    }

    fn planned(subsets: serde_json::Value, have: &[Arc<EndpointSlice>], max: usize) -> Plan {
        let mut plan = Plan::default();
        mirror(&endpoints(subsets), have, max, &mut plan);
        plan
    }

    fn stored(action: &Action, name: &str) -> Arc<EndpointSlice> {
        let (Action::Create(_, object) | Action::Update(_, object)) = action else {
            panic!("{action:?}")
        };
        let mut slice: EndpointSlice = serde_json::from_value(object.clone()).expect("a slice");
        slice.metadata.name = Some(name.to_owned());
        Arc::new(slice)
    }

    #[test]
    fn each_family_and_set_of_ports_has_a_slice() {
        let subsets = json!([
            {"addresses": [{"ip": "10.1.2.3"}, {"ip": "fd00::1"}], "ports": [{"port": 80}]},
            {"notReadyAddresses": [{"ip": "010.1.2.4"}], "ports": [{"port": 80}]},
            {"addresses": [{"ip": "10.1.2.5", "hostname": "h"}], "ports": [{"port": 81}]},
        ]);
        let plan = planned(subsets.clone(), &[], 1000);
        let made: Vec<_> = plan.actions.iter().map(|a| stored(a, "s")).collect();
        let addresses = |s: &EndpointSlice| -> Vec<(String, bool)> {
            let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready) == Some(true);
            s.endpoints.iter().map(|e| (e.addresses[0].clone(), ready(e))).collect()
        };
        assert_eq!(made.len(), 3);
        let first = [("10.1.2.3".to_owned(), true), ("10.1.2.4".to_owned(), false)];
        assert_eq!(addresses(&made[0]), first);
        assert_eq!(
            (made[1].address_type.as_str(), made[2].endpoints[0].hostname.as_deref()),
            ("IPv6", Some("h"))
        );
        let meta = &made[0].metadata;
        assert_eq!(meta.annotations, Some([("a".into(), "1".into())].into()));
        assert_eq!((label(meta, "l"), label(meta, SERVICE_NAME)), (Some("1"), Some("a")));
        // What is there stays as it is.
        assert_eq!(planned(subsets, &made, 1000), Plan::default());
    }

    #[test]
    fn slices_are_used_again_and_the_rest_goes() {
        let of =
            |port: i32| json!([{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": port}]}]);
        let have = vec![stored(&planned(of(80), &[], 9).actions[0], "one")];
        let plan = planned(of(81), &have, 9);
        assert_eq!(plan.actions.len(), 1);
        assert!(matches!(&plan.actions[0], Action::Update(target, _) if target.key.name == "one"));
        let plan = planned(json!([]), &have, 9);
        assert!(matches!(&plan.actions[..], [Action::Delete(..)]), "{plan:?}");
    }

    #[test]
    fn what_is_no_address_or_too_much_is_told() {
        let subsets = json!([{"addresses": [{"ip": "x"}, {"ip": "10.1.2.3"}, {"ip": "10.1.2.4"}]}]);
        let plan = planned(subsets, &[], 1);
        let told = |action: &Action| match action {
            Action::Event(_, _, reason, text) => Some((*reason, text.clone())),
            _ => None,
        };
        let told: Vec<_> = plan.actions.iter().filter_map(told).collect();
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].0, "InvalidIPAddress");
        assert!(told[1].1.ends_with("2 addresses were skipped"), "{told:?}");
        assert_eq!(stored(plan.actions.last().expect("a slice"), "s").endpoints.len(), 1);
    }
}
