//! Short ways to what is read of pods everywhere.

use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, ObjectReference, Pod, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Where a static pod came from; on the mirror pod in the API as well.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
static NO_STATUS: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The specification; the API server gives every pod one.
pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&NO_SPEC)
}

pub fn status(pod: &Pod) -> &PodStatus {
    pod.status.as_ref().unwrap_or(&NO_STATUS)
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn describe(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// Whether the pod came from elsewhere than the API server.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api") && !is_mirror(pod)
}

pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Whether the phase says that the pod has run its course.
pub fn is_terminal_phase(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// An ephemeral container as a container like the others.
pub fn ephemeral_as_container(container: &EphemeralContainer) -> Container {
    let c = container.clone();
    Container {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        lifecycle: c.lifecycle,
        liveness_probe: c.liveness_probe,
        name: c.name,
        ports: c.ports,
        readiness_probe: c.readiness_probe,
        resize_policy: c.resize_policy,
        resources: c.resources,
        restart_policy: c.restart_policy,
        restart_policy_rules: c.restart_policy_rules,
        security_context: c.security_context,
        startup_probe: c.startup_probe,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_devices: c.volume_devices,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
    }
}

pub fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    spec(pod).ephemeral_containers.iter().flatten().map(ephemeral_as_container).collect()
}

/// The container of a name, of whichever sort.
pub fn find_container(pod: &Pod, name: &str) -> Option<Container> {
    let regular = spec(pod).containers.iter().chain(init_containers(pod)).find(|c| c.name == name);
    regular.cloned().or_else(|| ephemeral_containers(pod).into_iter().find(|c| c.name == name))
}

/// A reference to a pod for events.
pub fn reference(pod: &Pod) -> ObjectReference {
    let mut reference = client::events::reference(pod);
    // Events about a static pod belong to its mirror, which upstream names by the config hash.
    if is_static(pod)
        && let Some(hash) = annotation(pod, CONFIG_HASH)
    {
        reference.uid = Some(hash.to_owned());
    }
    reference
}

/// A reference to a pod's container for events.
pub fn container_reference(pod: &Pod, container: &str) -> ObjectReference {
    let field = if init_containers(pod).iter().any(|c| c.name == container) {
        "initContainers"
    } else if spec(pod).containers.iter().any(|c| c.name == container) {
        "containers"
    } else {
        "ephemeralContainers"
    };
    ObjectReference { field_path: Some(format!("spec.{field}{{{container}}}")), ..reference(pod) }
}

/// Whether a container that ended with `code` is to be started again, by its rules, its own
/// policy, or the pod's.
pub fn restarts_after(container: &Container, pod: &Pod, code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        if let Some(codes) = &rule.exit_codes {
            let listed = codes.values.as_ref().is_some_and(|values| values.contains(&code));
            if listed == (codes.operator == "In") {
                return rule.action == "Restart";
            }
        }
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// An API time of whole seconds.
pub fn time(nanos: i64) -> Option<Time> {
    match nanos {
        0 => None,
        nanos => Timestamp::from_second(nanos.div_euclid(1_000_000_000)).ok().map(Time),
    }
}

/// An API time; what never happened is 1970, as upstream has it for containers that ended.
pub fn time_or_epoch(nanos: i64) -> Option<Time> {
    time(nanos).or(Some(Time(Timestamp::UNIX_EPOCH)))
}

/// The present, in whole seconds.
pub fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}
