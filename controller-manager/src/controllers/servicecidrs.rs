//! Ranges of service addresses (KEP-1880): those that there are may be used, and one that is to go
//! stays until no address needs it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Key, Queue};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";
/// An API server may still give addresses of a range until it has seen that it goes.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

pub struct ServiceCidrs {
    ranges: Cache<ServiceCIDR>,
    addresses: Cache<IPAddress>,
}

impl ServiceCidrs {
    pub fn new(context: &Context) -> Self {
        Self { ranges: context.caches.of(), addresses: context.caches.of() }
    }
}

impl Controller for ServiceCidrs {
    fn name(&self) -> &'static str {
        "servicecidrs"
    }

    fn wire(&self, queue: &Queue<Key>) {
        // One that comes may take over the addresses of one that goes.
        let going = |queue: &Queue<Key>, ranges: &Cache<ServiceCIDR>| {
            let (queue, ranges) = (queue.clone(), ranges.clone());
            move || {
                let all = ranges.list();
                let going = all.iter().filter(|r| r.metadata.deletion_timestamp.is_some());
                going.for_each(|range| queue.add(Key::of(&**range)));
            }
        };
        let (q, others) = (queue.clone(), going(queue, &self.ranges));
        self.ranges.on_change(move |change| {
            q.add(change.key.clone());
            others();
        });
        let others = going(queue, &self.ranges);
        self.addresses.on_change(move |change| {
            if change.new.is_none() {
                others();
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(range) = self.ranges.get(key) else { return Plan::default() };
        let addresses = || {
            let all = self.addresses.list();
            all.iter().filter_map(|address| address.name_any().parse().ok()).collect()
        };
        plan(&range, &self.ranges.list(), addresses, now)
    }

    fn workers(&self) -> usize {
        1
    }
}

fn nets(range: &ServiceCIDR) -> Vec<IpNet> {
    let texts = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// Decides about a range, among all; `addresses`: those that services have.
fn plan(
    range: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    addresses: impl FnOnce() -> Vec<IpAddr>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut finalizers = range.metadata.finalizers.clone().unwrap_or_default();
    let kept = finalizers.iter().any(|f| f == FINALIZER);
    let keep = |finalizers: Vec<String>| {
        let mut changed = range.clone();
        changed.metadata.finalizers = Some(finalizers);
        Action::update(&changed)
    };
    let Some(deleted) = &range.metadata.deletion_timestamp else {
        if !kept {
            // The next look sees to the rest.
            finalizers.push(FINALIZER.to_owned());
            plan.push(keep(finalizers));
        } else if let Some(told) = told(range, true, "", "Kubernetes Service CIDR is ready", now) {
            plan.push(told);
        }
        return plan;
    };
    if !kept {
        return plan;
    }
    if is_needed(range, all, addresses) {
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        plan.actions.extend(told(range, false, "Terminating", message, now));
        return plan;
    }
    let left = GRACE - now.duration_since(deleted.0);
    match Duration::try_from(left).ok().filter(|left| !left.is_zero()) {
        Some(left) => plan.again(left),
        None => {
            finalizers.retain(|f| f != FINALIZER);
            plan.push(keep(finalizers));
        }
    }
    plan
}

/// Whether an address would be in no range, were it not for this one.
fn is_needed(
    range: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    addresses: impl FnOnce() -> Vec<IpAddr>,
) -> bool {
    let stays = |other: &&Arc<ServiceCIDR>| {
        other.metadata.deletion_timestamp.is_none() && other.metadata.name != range.metadata.name
    };
    let others: Vec<IpNet> = all.iter().filter(stays).flat_map(|other| nets(other)).collect();
    let own = nets(range);
    if own.iter().all(|net| others.iter().any(|other| other.contains(net))) {
        return false;
    }
    addresses().iter().any(|address| {
        own.iter().any(|net| net.contains(address))
            && !others.iter().any(|net| net.contains(address))
    })
}

/// Says whether the range is ready, unless it says so already.
fn told(
    range: &ServiceCIDR,
    ready: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<Action> {
    let status = if ready { "True" } else { "False" };
    let mut conditions = range.status.clone().unwrap_or_default().conditions.unwrap_or_default();
    let old = conditions.iter().find(|c| c.type_ == READY);
    if old.is_some_and(|c| c.status == status && (ready || c.reason == reason)) {
        return None;
    }
    conditions.retain(|c| c.type_ != READY);
    conditions.push(Condition {
        type_: READY.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    });
    let status = Some(ServiceCIDRStatus { conditions: Some(conditions) });
    Some(Action::update_status(&ServiceCIDR { status, ..range.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn range(
        name: &str,
        cidr: &str,
        finalizer: bool,
        deleted: Option<&str>,
        ready: Option<&str>,
    ) -> ServiceCIDR {
        let finalizers = if finalizer { vec![FINALIZER] } else { Vec::new() };
        let deleted = deleted.map(|at| format!("2026-01-01T{at}Z"));
        let conditions = ready.into_iter().map(|status| {
            let reason = if status == "True" { "" } else { "Terminating" };
            json!({"type": READY, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        serde_json::from_value(json!({
            "metadata": {"name": name, "finalizers": finalizers, "deletionTimestamp": deleted},
            "spec": {"cidrs": [cidr]}, "status": {"conditions": conditions.collect::<Vec<Value>>()},
        }))
        .expect("a range")
    }

    #[test]
    fn a_range_is_kept_while_it_is_needed() {
        let (old, new) = (Some("00:00:00"), Some("00:00:55"));
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (own, other, address, want, again) in [
            // It comes: first the finalizer, then the condition.
            (range("a", "10.0.0.0/24", false, None, None), "", "", "finalizers 1", None),
            (range("a", "10.0.0.0/24", true, None, None), "", "", "True", None),
            (range("a", "10.0.0.0/24", true, None, Some("True")), "", "", "", None),
            // It goes.
            (range("a", "10.0.0.0/24", true, old, Some("True")), "", "10.0.0.7", "False", None),
            (range("a", "10.0.0.0/24", true, old, Some("False")), "", "10.0.0.7", "", None),
            (range("a", "10.0.0.0/24", true, old, None), "", "10.0.1.7", "finalizers 0", None),
            (range("a", "10.0.0.0/24", true, new, None), "", "", "", Some(5)),
            (range("a", "10.0.0.0/24", false, old, None), "", "10.0.0.7", "", None),
            // Another has its addresses.
            (
                range("a", "10.0.0.0/24", true, old, None),
                "10.0.0.0/16",
                "10.0.0.7",
                "finalizers 0",
                None,
            ),
            (
                range("a", "10.0.0.0/16", true, old, None),
                "10.0.0.0/24",
                "10.0.0.7",
                "finalizers 0",
                None,
            ),
            (range("a", "10.0.0.0/16", true, old, None), "10.0.0.0/24", "10.0.9.7", "False", None),
        ] {
            let mut all = vec![Arc::new(own.clone())];
            if !other.is_empty() {
                all.push(Arc::new(range("b", other, true, None, Some("True"))));
            }
            let addresses =
                || Some(address).filter(|a| !a.is_empty()).map(at).into_iter().collect();
            let now = "2026-01-01T00:01:00Z".parse().expect("a time");
            let made = plan(&own, &all, addresses, now);
            let got: Vec<String> = made
                .actions
                .iter()
                .map(|action| match action {
                    Action::Update(_, o) => {
                        format!(
                            "finalizers {}",
                            o["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
                        )
                    }
                    Action::UpdatePart(_, "status", o) => {
                        o["status"]["conditions"][0]["status"].as_str().unwrap_or("?").to_owned()
                    }
                    other => format!("{other:?}"),
                })
                .collect();
            assert_eq!(got.join(" "), want, "{own:?} {other} {address}");
            assert_eq!(made.again, again.map(Duration::from_secs), "{own:?}");
        }
    }
}
