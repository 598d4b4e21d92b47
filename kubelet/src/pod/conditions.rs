//! The conditions of a pod's status that the kubelet sets.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::status::Waiting;
use crate::allocation::Standing;
use crate::eviction::Cause;
use crate::objects::{init_containers, is_sidecar, spec};
use crate::runtime::PodView;

/// The conditions that are the kubelet's to set.
pub const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "DisruptionTarget",
    RESIZE_PENDING,
    RESIZE_IN_PROGRESS,
];
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
/// Conditions that are only there while they hold.
pub const PASSING: [&str; 2] = [RESIZE_PENDING, RESIZE_IN_PROGRESS];

/// Status, reason and message of a condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { status: true, ..Self::default() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { status: false, reason, message }
    }
}

/// Go's `%s` of a list of strings.
fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn find<'a>(statuses: &'a [ContainerStatus], c: &Container) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == c.name)
}

/// `Initialized`.
pub fn initialized(pod: &Pod, statuses: &[ContainerStatus], phase: &str) -> Verdict {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in init_containers(pod) {
        match find(statuses, container) {
            None => unknown.push(container.name.as_str()),
            Some(status) => {
                let done = match is_sidecar(container) {
                    true => status.started == Some(true),
                    false => status.ready,
                };
                if !done {
                    incomplete.push(container.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict { status: true, reason: "PodCompleted", message: String::new() };
    }
    let started = spec(pod).containers.iter().any(|c| {
        find(statuses, c).is_some_and(|s| {
            s.started == Some(true) || s.state.as_ref().is_some_and(|s| s.terminated.is_some())
        })
    });
    let message = unready_message(&unknown, &incomplete, "incomplete");
    if started || message.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotInitialized", message)
}

fn unready_message(unknown: &[&str], other: &[&str], word: &str) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", list(unknown)));
    }
    if !other.is_empty() {
        parts.push(format!("containers with {word} status: {}", list(other)));
    }
    parts.join(", ")
}

/// `ContainersReady`.
pub fn containers_ready(pod: &Pod, statuses: &[ContainerStatus], phase: &str) -> Verdict {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let sidecars = init_containers(pod).iter().filter(|c| is_sidecar(c));
    for container in sidecars.chain(&spec(pod).containers) {
        match find(statuses, container) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict::no("PodCompleted", String::new());
    }
    if phase == "Failed" {
        return Verdict::no("PodFailed", String::new());
    }
    match unready_message(&unknown, &unready, "unready") {
        message if message.is_empty() => Verdict::yes(),
        message => Verdict::no("ContainersNotReady", message),
    }
}

/// `Ready`: containers are, and the readiness gates hold.
pub fn ready(pod: &Pod, containers: &Verdict, conditions: &[PodCondition]) -> Verdict {
    if !containers.status {
        return containers.clone();
    }
    let mut messages = Vec::new();
    for gate in spec(pod).readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match conditions.iter().find(|c| c.type_ == *name) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {name:?} does not exist."
            )),
            Some(c) if c.status != "True" => messages.push(format!(
                "the status of pod readiness gate {name:?} is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    match messages.is_empty() {
        true => Verdict::yes(),
        false => Verdict::no("ReadinessGatesNotReady", messages.join(", ")),
    }
}

/// All of a pod's conditions: those of others as they are in `others`, then the kubelet's.
pub fn all(
    pod: &Pod,
    view: &PodView,
    old: &[PodCondition],
    statuses: &[ContainerStatus],
    phase: &str,
    now: &Time,
) -> Vec<PodCondition> {
    let api = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut conditions: Vec<PodCondition> =
        api.iter().filter(|c| !OWNED.contains(&c.type_.as_str())).cloned().collect();
    if let Some(disruption) = old.iter().find(|c| c.type_ == "DisruptionTarget") {
        conditions.push(disruption.clone());
    }
    let sandbox = !view.sandbox_needed(crate::objects::host_network(pod)).create;
    let containers = containers_ready(pod, statuses, phase);
    let ready = ready(pod, &containers, &conditions);
    for (kind, verdict) in [
        ("PodReadyToStartContainers", Verdict { status: sandbox, ..Verdict::default() }),
        ("Initialized", initialized(pod, statuses, phase)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", Verdict::yes()),
    ] {
        conditions.push(condition(pod, kind, verdict, old, now));
    }
    conditions
}

/// `DisruptionTarget`, once the kubelet has decided that a pod must go.
pub fn disruption(
    pod: &Pod,
    failed: Option<&Waiting>,
    old: &[PodCondition],
    now: &Time,
) -> Option<PodCondition> {
    let must_go = |why: &&Waiting| Cause::ALL.iter().any(|cause| cause.reason() == why.reason);
    let evicted = failed.filter(must_go)?;
    if old.iter().any(|c| c.type_ == "DisruptionTarget") {
        return None;
    }
    let message = evicted.message.clone();
    let verdict = Verdict { status: true, reason: "TerminationByKubelet", message };
    Some(condition(pod, "DisruptionTarget", verdict, old, now))
}

/// The conditions of a resize: that it waits, and that it goes on.
pub fn resize(
    pod: &Pod,
    standing: Option<&Standing>,
    old: &[PodCondition],
    now: &Time,
) -> Vec<PodCondition> {
    let Some(standing) = standing else { return Vec::new() };
    let mut conditions = Vec::new();
    if let Some(pending) = &standing.pending {
        let verdict =
            Verdict { status: true, reason: pending.reason, message: pending.message.clone() };
        conditions.push(condition(pod, RESIZE_PENDING, verdict, old, now));
    }
    if let Some(error) = &standing.in_progress {
        let verdict = Verdict {
            status: true,
            reason: if error.is_some() { "Error" } else { "" },
            message: error.clone().unwrap_or_default(),
        };
        conditions.push(condition(pod, RESIZE_IN_PROGRESS, verdict, old, now));
    }
    conditions
}

fn condition(
    pod: &Pod,
    kind: &str,
    verdict: Verdict,
    old: &[PodCondition],
    now: &Time,
) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let before = old.iter().find(|c| c.type_ == kind);
    let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        observed_generation: pod.metadata.generation.filter(|g| *g != 0),
        last_transition_time: since.or_else(|| Some(now.clone())),
        last_probe_time: None,
        reason: Some(verdict.reason.to_owned()).filter(|r| !r.is_empty()),
        message: Some(verdict.message).filter(|m| !m.is_empty()),
    }
}
