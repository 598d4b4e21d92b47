//! The node's status.

use std::collections::{BTreeMap, BTreeSet};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::machine::Machine;
use crate::config::KubeletConfiguration;
use crate::kubelet::{Kubelet, RuntimeFeatures, RuntimeHealth};
use crate::pressure::{Condition, Signal, Threshold, kept};
use crate::quantity::{List, amount, binary, decimal, milli};
use crate::shutdown;

/// Names that are listed of each image.
const MAX_NAMES: usize = 5;

/// What the machine has.
pub fn capacity(config: &KubeletConfiguration, machine: &Machine) -> List {
    BTreeMap::from([
        ("cpu".to_owned(), decimal(machine.cpus)),
        ("memory".to_owned(), binary(machine.memory / 1024 * 1024)),
        ("ephemeral-storage".to_owned(), binary(machine.disk / 1024 * 1024)),
        ("pods".to_owned(), decimal(max_pods(config, machine))),
        ("hugepages-1Gi".to_owned(), decimal(0)),
        ("hugepages-2Mi".to_owned(), decimal(0)),
    ])
}

/// Whether a resource is nobody's here: of somebody else's domain, and counted by whole ones.
pub fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native && !name.starts_with("requests.")
}

/// The list with the extended resources that somebody gave the node.
pub fn with_extended(mut list: List, given: Option<&List>) -> List {
    let extended = given.into_iter().flatten().filter(|(name, _)| is_extended(name));
    list.extend(extended.map(|(name, amount)| (name.clone(), amount.clone())));
    list
}

fn max_pods(config: &KubeletConfiguration, machine: &Machine) -> i64 {
    match i64::from(config.pods_per_core) {
        0 => i64::from(config.max_pods),
        per_core => (per_core * machine.cpus).min(i64::from(config.max_pods)),
    }
}

/// What pods may use of it: less what is reserved and what must stay free.
pub fn allocatable(
    config: &KubeletConfiguration,
    machine: &Machine,
    thresholds: &[Threshold],
) -> List {
    let free = |signal, capacity: i64| {
        let kept = kept(thresholds, signal, u64::try_from(capacity).unwrap_or(0));
        i64::try_from(kept).unwrap_or(i64::MAX)
    };
    let reserved = |name: &str| -> i64 {
        [&config.kube_reserved, &config.system_reserved]
            .into_iter()
            .filter_map(|list| list.get(name)?.parse::<apimachinery::quantity::Quantity>().ok())
            .map(|q| q.milli_value())
            .sum()
    };
    let mut list = capacity(config, machine);
    for (name, quantity) in &mut list {
        let left = amount(quantity).milli_value() - reserved(name);
        *quantity = match name.as_str() {
            "cpu" => milli(left.max(0)),
            "memory" => {
                let kept = free(Signal::MemoryAvailable, machine.memory);
                binary((left / 1000 - kept).max(0) / 1024 * 1024)
            }
            "ephemeral-storage" => {
                let kept = free(Signal::NodefsAvailable, machine.disk);
                decimal((left / 1000 - kept).max(0))
            }
            _ => decimal((left / 1000).max(0)),
        };
    }
    list
}

/// The conditions, with the times of those that have not changed kept.
pub fn conditions(
    health: &RuntimeHealth,
    pressure: &BTreeSet<Condition>,
    shuts_down: bool,
    old: &[NodeCondition],
    now: &Time,
) -> Vec<NodeCondition> {
    let pressures = [
        (
            "MemoryPressure",
            pressure.contains(&Condition::Memory),
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            pressure.contains(&Condition::Disk),
            "KubeletHasDiskPressure",
            "kubelet has disk pressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            pressure.contains(&Condition::Pid),
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
    ];
    let mut found: Vec<(&str, bool, &str, String)> = pressures
        .into_iter()
        .map(|(name, bad, bad_reason, bad_text, reason, text)| match bad {
            true => (name, true, bad_reason, bad_text.to_owned()),
            false => (name, false, reason, text.to_owned()),
        })
        .collect();
    let shutdown = shuts_down.then_some(shutdown::MESSAGE);
    let problems = [health.runtime.as_deref(), health.network.as_deref(), shutdown];
    let problems: Vec<&str> = problems.into_iter().flatten().collect();
    found.push(match problems.is_empty() {
        true => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        false if problems.len() == 1 => ("Ready", false, "KubeletNotReady", problems[0].to_owned()),
        false => ("Ready", false, "KubeletNotReady", format!("[{}]", problems.join(", "))),
    });
    let make = |(name, status, reason, message): (&str, bool, &str, String)| {
        let status = if status { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == name && c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone());
        NodeCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: since.or_else(|| Some(now.clone())),
        }
    };
    let own: Vec<NodeCondition> = found.into_iter().map(make).collect();
    let others = old.iter().filter(|c| !own.iter().any(|o| o.type_ == c.type_));
    others.cloned().chain(own.iter().cloned()).collect()
}

/// The largest `most` images, the largest first; all if that is negative.
pub fn images(list: &[cri::Image], most: i32) -> Vec<ContainerImage> {
    let mut images: Vec<&cri::Image> = list.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(usize::try_from(most).unwrap_or(usize::MAX))
        .map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .iter()
                    .chain(&image.repo_tags)
                    .take(MAX_NAMES)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

/// The whole status, as it is now.
pub async fn current(k: &Kubelet, node: &Node, now: &Time) -> NodeStatus {
    let old = node.status.clone().unwrap_or_default();
    let version = k.cri.version(cri::VersionRequest::default()).await.unwrap_or_default();
    let health = k.health.borrow().clone();
    let list =
        k.cri.list_images(cri::ListImagesRequest::default()).await.unwrap_or_default().images;
    let mut addresses: Vec<NodeAddress> = k
        .host_ips()
        .into_iter()
        .map(|address| NodeAddress { type_: "InternalIP".to_owned(), address })
        .collect();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: k.node_name.clone() });
    let m = &k.machine;
    let runtime = k.runtime.lock().clone();
    let pressure = k.pressure.borrow().clone();
    let shuts_down = *k.node_shutdown.now.borrow();
    NodeStatus {
        // All that there is of an extended resource may be used.
        allocatable: Some(with_extended(k.allocatable(), old.capacity.as_ref())),
        capacity: Some(with_extended(capacity(&k.config, m), old.capacity.as_ref())),
        conditions: Some(conditions(
            &health,
            &pressure,
            shuts_down,
            old.conditions.as_deref().unwrap_or_default(),
            now,
        )),
        addresses: Some(addresses),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(k.config.port) }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: m.architecture.clone(),
            boot_id: m.boot_id.clone(),
            container_runtime_version: format!(
                "{}://{}",
                version.runtime_name, version.runtime_version
            ),
            kernel_version: m.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: crate::VERSION.to_owned(),
            machine_id: m.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: m.os_image.clone(),
            system_uuid: m.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        images: Some(images(&list, k.config.node_status_max_images)),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(runtime.supplemental_groups),
        }),
        runtime_handlers: Some(handlers(&runtime)),
        ..old
    }
}

/// The runtime's handlers; one that tells of none has its default.
fn handlers(runtime: &RuntimeFeatures) -> Vec<NodeRuntimeHandler> {
    if runtime.handlers.is_empty() {
        return vec![NodeRuntimeHandler { name: Some(String::new()), features: None }];
    }
    let each = runtime.handlers.iter().map(|(name, recursive)| NodeRuntimeHandler {
        name: Some(name.clone()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(*recursive),
            user_namespaces: None,
        }),
    });
    each.collect()
}

/// Whether two statuses differ in more than the times of the heartbeat.
pub fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    plain(old) != plain(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_leaves_room() {
        let machine = Machine { cpus: 4, memory: 8 << 30, disk: 100 << 30, ..Machine::default() };
        let mut config = KubeletConfiguration::default();
        config.kube_reserved.insert("cpu".into(), "500m".into());
        let list = allocatable(&config, &machine, &config.thresholds().unwrap());
        assert_eq!(list["cpu"].0, "3500m");
        assert_eq!(list["memory"].0, "8092Mi");
        assert_eq!(list["pods"].0, "110");
        assert_eq!(capacity(&config, &machine)["memory"].0, "8Gi");
    }

    #[test]
    fn readiness_names_every_problem_and_keeps_times() {
        let at = |s| Time(jiff::Timestamp::from_second(s).unwrap());
        let none = BTreeSet::new();
        let well = conditions(&RuntimeHealth::default(), &none, false, &[], &at(1));
        let later = conditions(&RuntimeHealth::default(), &none, false, &well, &at(9));
        let ready = later.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!((ready.status.as_str(), &ready.last_transition_time), ("True", &Some(at(1))));
        let ill = RuntimeHealth { runtime: Some("a".into()), network: Some("b".into()) };
        let made = conditions(&ill, &none, false, &later, &at(20));
        let ready = made.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.message.as_deref(), Some("[a, b]"));
        assert_eq!(ready.last_transition_time, Some(at(20)));
        for (health, message) in [
            (RuntimeHealth::default(), "node is shutting down"),
            (ill, "[a, b, node is shutting down]"),
        ] {
            let made = conditions(&health, &none, true, &later, &at(20));
            let ready = made.iter().find(|c| c.type_ == "Ready").unwrap();
            let told = (ready.status.as_str(), ready.reason.as_deref(), ready.message.as_deref());
            assert_eq!(told, ("False", Some("KubeletNotReady"), Some(message)));
        }
    }
}
