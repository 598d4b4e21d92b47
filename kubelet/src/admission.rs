//! Whether a pod that was bound to this node can run here. What does not fit is failed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use apimachinery::amounts::{Amounts, Combine};
use apimachinery::quantity::Quantity;
use client::matching::{any_term_matches, tolerates};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::kubelet::Kubelet;
use crate::node::status::is_extended;
use crate::objects::{is_static, is_terminal_phase, namespace, spec, status, uid};
use crate::pod::resources::pod_total;
use crate::pod::status::Waiting;
use crate::pressure;
use crate::quantity::{List, amount};
use crate::sysctl;

/// The pods that have been let in; one at a time is judged.
#[derive(Default)]
pub struct Admission {
    admitted: Mutex<HashSet<String>>,
}

impl Admission {
    /// Judges a pod against those let in before.
    ///
    /// # Errors
    /// Reason and message that the pod fails with.
    pub fn admit(&self, k: &Kubelet, pod: &Pod) -> Result<(), Waiting> {
        let mut admitted = self.admitted.lock();
        let pods = k.pods.read();
        admitted.retain(|uid| pods.contains_key(uid));
        if admitted.contains(uid(pod)) {
            return Ok(());
        }
        // A pod that runs already was let in before this kubelet started.
        let runs = status(pod).phase.as_deref() == Some("Running");
        if !runs {
            let others: Vec<Arc<Pod>> = pods
                .values()
                .filter(|p| {
                    uid(p) != uid(pod)
                        && !is_terminal_phase(status(p).phase.as_deref())
                        && (admitted.contains(uid(p))
                            || status(p).phase.as_deref() == Some("Running"))
                })
                .map(|p| k.allocations.effective(&k.root, p))
                .collect();
            let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
            pressure::admits(&k.pressure.borrow(), pod)?;
            fits_system(pod, &k.node_labels(), k.runtime.lock().supplemental_groups)?;
            sysctl::check(pod, &k.config.allowed_unsafe_sysctls, &k.machine.kernel)?;
            fits(pod, &others, &k.admissible())?;
            if !is_static(pod) && k.node.is_some() {
                matches_node(pod, &k.node_name, &k.node_labels())?;
            }
            has_ports(pod, &others)?;
            stands_taints(k, pod)?;
            k.node_shutdown.admits()?;
        }
        admitted.insert(uid(pod).to_owned());
        Ok(())
    }
}

fn refuse(reason: impl Into<String>, message: impl Into<String>) -> Waiting {
    Waiting { reason: reason.into(), message: message.into() }
}

/// Whether the node's system and runtime are what the pod was made for. `labels` are the node's,
/// empty where they are not known; `groups`: the runtime knows `supplementalGroupsPolicy`.
///
/// # Errors
/// `PodOSSelectorNodeLabelDoesNotMatch`, `PodOSNotSupported`,
/// `SupplementalGroupsPolicyNotSupported`.
pub fn fits_system(
    pod: &Pod,
    labels: &BTreeMap<String, String>,
    groups: bool,
) -> Result<(), Waiting> {
    let os_label = "kubernetes.io/os";
    let selected = spec(pod).node_selector.as_ref().and_then(|s| s.get(os_label));
    if let (Some(wanted), Some(own)) = (selected, labels.get(os_label))
        && wanted != own
    {
        return Err(refuse(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if spec(pod).os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(refuse(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    let policy = spec(pod).security_context.as_ref();
    let policy = policy.and_then(|s| s.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && !groups {
        return Err(refuse(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    Ok(())
}

/// Whether the pod's requests fit beside the others'.
///
/// # Errors
/// `OutOfpods`, `OutOfcpu` and the like.
pub fn fits(pod: &Pod, others: &[&Pod], allocatable: &List) -> Result<(), Waiting> {
    let capacity = |name: &str| allocatable.get(name).map(amount).unwrap_or_default();
    let pods = capacity("pods").value();
    if others.len() as i64 + 1 > pods {
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {pods}",
            others.len()
        );
        return Err(refuse("OutOfpods", message));
    }
    let mut used = Amounts::new();
    for other in others {
        used.add(&pod_total(other, |r| r.requests.as_ref()));
    }
    for (name, wanted) in pod_total(pod, |r| r.requests.as_ref()) {
        if is_extended(&name) && !allocatable.contains_key(&name) {
            // What this node knows nothing of is for others to count.
            continue;
        }
        let taken = used.get(&name).copied().unwrap_or_default();
        if wanted.sign() > 0 && taken + wanted > capacity(&name) {
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                counted(&name, wanted),
                counted(&name, taken),
                counted(&name, capacity(&name))
            );
            return Err(refuse(format!("OutOf{name}"), message));
        }
    }
    Ok(())
}

/// An amount as messages tell it: CPU in thousandths, the rest in units.
pub fn counted(name: &str, amount: Quantity) -> i64 {
    if name == "cpu" { amount.milli_value() } else { amount.value() }
}

/// Whether the ports of the node that the pod takes are free.
///
/// # Errors
/// `NodePorts`.
fn has_ports(pod: &Pod, others: &[&Pod]) -> Result<(), Waiting> {
    let wanted = host_ports(pod);
    let clash = |(protocol, port, ip): &HostPort<'_>| {
        wanted
            .iter()
            .any(|(p, n, i)| p == protocol && n == port && (i == ip || *i == ANY || *ip == ANY))
    };
    match others.iter().any(|other| host_ports(other).iter().any(clash)) {
        false => Ok(()),
        true => Err(refuse(
            "NodePorts",
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        )),
    }
}

/// Every address of the node.
const ANY: &str = "0.0.0.0";

/// Protocol, port and address.
type HostPort<'p> = (&'p str, i32, &'p str);

/// The ports of the node that a pod takes, by its containers and sidecars.
fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let sidecars = spec(pod).init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec(pod).containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let taken = ports.filter_map(|p| {
        let port = p.host_port.filter(|port| *port > 0)?;
        let ip = p.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or(ANY);
        Some((p.protocol.as_deref().unwrap_or("TCP"), port, ip))
    });
    taken.collect()
}

/// Whether the node is one that the pod asks for.
///
/// # Errors
/// `NodeAffinity`.
pub fn matches_node(
    pod: &Pod,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), Waiting> {
    let selector = spec(pod).node_selector.iter().flatten();
    let selected = selector.into_iter().all(|(key, value)| labels.get(key) == Some(value));
    let terms = spec(pod)
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let matched = terms.is_none_or(|terms| any_term_matches(terms, Some(labels), Some(name)));
    match selected && matched {
        true => Ok(()),
        false => Err(refuse(
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        )),
    }
}

/// Taints with effect NoExecute are held against pods here; the others are the scheduler's.
fn stands_taints(k: &Kubelet, pod: &Pod) -> Result<(), Waiting> {
    if is_static(pod) || namespace(pod).is_empty() {
        return Ok(());
    }
    let nodes = k.node.as_ref().map(client::Cache::list).unwrap_or_default();
    let taints = nodes.first().and_then(|n| n.spec.as_ref()?.taints.clone()).unwrap_or_default();
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let tolerated = spec(pod).tolerations.iter().flatten().any(|t| tolerates(t, taint));
        if !tolerated {
            return Err(refuse(
                "TaintToleration",
                format!(
                    "Pod was rejected: Predicate TaintToleration failed: node(s) had untolerated taint(s): {{{}: {}}}",
                    taint.key,
                    taint.value.as_deref().unwrap_or_default()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::status::with_extended;
    use serde_json::json;

    fn pod(requests: serde_json::Value, more: serde_json::Value) -> Pod {
        let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let allocatable: List =
            serde_json::from_value(json!({"cpu": "1", "memory": "1Gi", "pods": "2"})).unwrap();
        let half = pod(json!({"cpu": "600m"}), json!({}));
        let small = pod(json!({"memory": "1Mi"}), json!({}));
        assert!(fits(&half, &[&small], &allocatable).is_ok());
        let refused = fits(&half, &[&half], &allocatable).unwrap_err();
        assert_eq!(refused.reason, "OutOfcpu");
        assert_eq!(
            refused.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 600, capacity: 1000"
        );
        assert_eq!(fits(&small, &[&small, &small], &allocatable).unwrap_err().reason, "OutOfpods");
        let odd = pod(json!({"example.org/x": "1"}), json!({}));
        // Nobody told this node of such a thing; once told, it counts.
        assert!(fits(&odd, &[], &allocatable).is_ok());
        let given: List = serde_json::from_value(json!({"example.org/x": "1"})).unwrap();
        let allocatable = with_extended(allocatable, Some(&given));
        assert!(fits(&odd, &[], &allocatable).is_ok());
        let refused = fits(&odd, &[&odd], &allocatable).unwrap_err();
        assert_eq!(refused.reason, "OutOfexample.org/x");
    }

    #[test]
    fn ports_of_the_node_are_taken_once() {
        let on = |port: serde_json::Value| {
            let containers = json!([{"name": "c", "ports": [port]}]);
            pod(json!({}), json!({ "containers": containers }))
        };
        let first = on(json!({"containerPort": 1, "hostPort": 80, "protocol": "TCP"}));
        for (port, free) in [
            (json!({"containerPort": 1}), true),
            (json!({"containerPort": 1, "hostPort": 81}), true),
            (json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"}), true),
            (json!({"containerPort": 2, "hostPort": 80}), false),
            (json!({"containerPort": 2, "hostPort": 80, "hostIP": "127.0.0.1"}), false),
        ] {
            assert_eq!(has_ports(&on(port.clone()), &[&first]).is_ok(), free, "{port}");
        }
        let here = |ip: &str| on(json!({"containerPort": 2, "hostPort": 80, "hostIP": ip}));
        assert!(has_ports(&here("127.0.0.1"), &[&here("127.0.0.2")]).is_ok());
        assert!(has_ports(&here("127.0.0.1"), &[&here("127.0.0.1")]).is_err());
    }

    #[test]
    fn systems_are_told_apart() {
        let labels = BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())]);
        let strict = json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}});
        for (more, groups, want) in [
            (json!({"os": {"name": "linux"}}), false, None),
            (json!({"os": {"name": "windows"}}), true, Some("PodOSNotSupported")),
            (
                json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
                true,
                Some("PodOSSelectorNodeLabelDoesNotMatch"),
            ),
            (strict.clone(), false, Some("SupplementalGroupsPolicyNotSupported")),
            (strict, true, None),
        ] {
            let judged = fits_system(&pod(json!({}), more.clone()), &labels, groups);
            assert_eq!(judged.err().map(|why| why.reason).as_deref(), want, "{more}");
        }
    }

    #[test]
    fn nodes_are_chosen_by_label_and_name() {
        let labels = BTreeMap::from([("a".to_owned(), "5".to_owned())]);
        let affinity = |term: serde_json::Value| {
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
        };
        for (more, want) in [
            (json!({}), true),
            (json!({"nodeSelector": {"a": "5"}}), true),
            (json!({"nodeSelector": {"a": "6"}}), false),
            (
                affinity(
                    json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["4"]}]}),
                ),
                true,
            ),
            (
                affinity(
                    json!({"matchExpressions": [{"key": "a", "operator": "Lt", "values": ["5"]}]}),
                ),
                false,
            ),
            (
                affinity(
                    json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}),
                ),
                true,
            ),
            (affinity(json!({})), false),
        ] {
            let pod = pod(json!({}), more.clone());
            assert_eq!(matches_node(&pod, "n", &labels).is_ok(), want, "{more}");
        }
    }
}
