//! A pod's status, from the pod, the runtime's view and what the kubelet knows beside: pure.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP,
    PodStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions;
use super::phase::phase;
use super::plan::should_be_restarted;
use super::resources::qos_class;
use crate::allocation::Standing;
use crate::objects::{self, ephemeral_containers, host_network, init_containers, is_sidecar, spec};
use crate::runtime::{ContainerView, PodView, State};
use crate::volumes::mounts::recursive_read_only;

/// Why a container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What probes say of a container, for its status.
pub trait Health {
    /// Whether a running container has started in the sense of its startup probe.
    fn started(&self, container: &Container, id: &str) -> bool;
    /// Whether a started container is ready in the sense of its readiness probe.
    fn ready(&self, container: &Container, id: &str) -> bool;
}

/// What a status is made from.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub view: &'a PodView,
    /// The status reported last.
    pub old: &'a PodStatus,
    pub health: &'a dyn Health,
    /// Why containers could not be started, by name.
    pub waiting: &'a HashMap<String, Waiting>,
    /// Nothing of the pod will be started again.
    pub terminal: bool,
    /// A decision of the kubelet's that ends the pod: reason and message.
    pub failed: Option<&'a Waiting>,
    pub host_ips: &'a [String],
    /// How a change of the pod's resources stands.
    pub resize: &'a Standing,
    /// The runtime can make mounts read-only with all that is mounted below them.
    pub recursive: bool,
    pub now: Time,
}

/// Makes the status.
pub fn status(facts: &Facts<'_>) -> PodStatus {
    let (pod, view, old) = (facts.pod, facts.view, facts.old);
    let inits = init_containers(pod);
    let mut init_statuses =
        statuses(facts, inits, old.init_container_statuses.as_deref(), Sort::Init);
    let mut regular =
        statuses(facts, &spec(pod).containers, old.container_statuses.as_deref(), Sort::Regular);
    let ephemerals = ephemeral_containers(pod);
    let ephemeral =
        statuses(facts, &ephemerals, old.ephemeral_container_statuses.as_deref(), Sort::Ephemeral);
    let has_initialized = spec(pod).containers.iter().any(|c| {
        let state = view.container(&c.name).map(|s| s.state);
        matches!(state, Some(State::Running | State::Exited))
    });
    set_health(facts, inits, &mut init_statuses, true);
    set_health(facts, &spec(pod).containers, &mut regular, false);
    let both: Vec<&ContainerStatus> = regular.iter().chain(&init_statuses).collect();
    let mut new_phase = phase(pod, &both, facts.terminal, has_initialized).to_owned();
    let (mut reason, mut message) = (None, None);
    for before in [old.phase.as_deref(), pod.status.as_ref().and_then(|s| s.phase.as_deref())] {
        if objects::is_terminal_phase(before) {
            new_phase = before.unwrap_or_default().to_owned();
        }
    }
    if old.phase.as_deref() == Some(&new_phase) {
        reason.clone_from(&old.reason);
        message.clone_from(&old.message);
    }
    if let Some(failed) = facts.failed {
        new_phase = "Failed".to_owned();
        reason = Some(failed.reason.clone());
        message = Some(failed.message.clone());
    }
    let all: Vec<ContainerStatus> = init_statuses.iter().chain(&regular).cloned().collect();
    let old_conditions = old.conditions.as_deref().unwrap_or_default();
    let resize = (!objects::is_terminal_phase(Some(&new_phase))).then_some(facts.resize);
    let mut conditions = conditions::all(pod, view, old_conditions, &all, &new_phase, &facts.now);
    conditions.extend(conditions::disruption(pod, facts.failed, old_conditions, &facts.now));
    conditions.extend(conditions::resize(pod, resize, old_conditions, &facts.now));
    let (pod_ips, host_ips) = addresses(facts);
    PodStatus {
        phase: Some(new_phase),
        conditions: Some(conditions),
        message,
        reason,
        nominated_node_name: pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()),
        host_ip: host_ips.first().map(|ip| ip.ip.clone()),
        host_ips: Some(host_ips).filter(|ips| !ips.is_empty()),
        pod_ip: pod_ips.first().map(|ip| ip.ip.clone()),
        pod_ips: Some(pod_ips).filter(|ips| !ips.is_empty()),
        start_time: old.start_time.clone().or_else(|| Some(facts.now.clone())),
        init_container_statuses: Some(init_statuses).filter(|s| !s.is_empty()),
        container_statuses: Some(regular),
        ephemeral_container_statuses: Some(ephemeral).filter(|s| !s.is_empty()),
        qos_class: Some(qos_class(pod).to_owned()),
        observed_generation: pod.metadata.generation.filter(|g| *g != 0),
        resource_claim_statuses: pod
            .status
            .as_ref()
            .and_then(|s| s.resource_claim_statuses.clone()),
        ..PodStatus::default()
    }
}

/// The status of a pod that was not let in.
pub fn rejected(pod: &Pod, why: &Waiting, now: Time) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(why.reason.clone()),
        message: Some(why.message.clone()),
        qos_class: Some(qos_class(pod).to_owned()),
        start_time: objects::status(pod).start_time.clone().or(Some(now)),
        conditions: objects::status(pod).conditions.clone(),
        observed_generation: pod.metadata.generation.filter(|g| *g != 0),
        ..PodStatus::default()
    }
}

fn addresses(facts: &Facts<'_>) -> (Vec<PodIP>, Vec<HostIP>) {
    let hosts = facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
    let ips: &[String] = match host_network(facts.pod) {
        true => facts.host_ips,
        false => facts.view.ips(),
    };
    let mut pods: Vec<PodIP> = ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect();
    if pods.is_empty() {
        // A pod that has ended keeps the addresses it had.
        pods = facts.old.pod_ips.clone().unwrap_or_default();
    }
    (pods, hosts)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Init,
    Regular,
    Ephemeral,
}

fn statuses(
    facts: &Facts<'_>,
    containers: &[Container],
    old: Option<&[ContainerStatus]>,
    sort: Sort,
) -> Vec<ContainerStatus> {
    let mut all: Vec<ContainerStatus> = containers
        .iter()
        .map(|container| {
            let before = old.unwrap_or_default().iter().find(|s| s.name == container.name);
            one(facts, container, before, sort)
        })
        .collect();
    if sort != Sort::Init {
        all.sort_by(|a, b| a.name.cmp(&b.name));
    }
    all
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let text = |t: &str| Some(t.to_owned()).filter(|t| !t.is_empty());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: text(reason), message: text(message) }),
        ..ContainerState::default()
    }
}

fn one(
    facts: &Facts<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
    sort: Sort,
) -> ContainerStatus {
    let seen: Vec<&ContainerView> =
        facts.view.containers.iter().filter(|c| c.name == container.name).take(2).collect();
    let mut status = match seen.first() {
        Some(newest) => from_view(container, newest, old, facts.recursive),
        None => unseen(facts, container, old, sort),
    };
    if let Some(previous) = seen.get(1) {
        status.last_state = from_view(container, previous, None, facts.recursive).state;
    } else if seen.len() == 1
        && let Some(old) = old.filter(|o| o.restart_count == status.restart_count)
    {
        // The one before has been removed meanwhile.
        status.last_state.clone_from(&old.last_state);
    }
    let newest = seen.first().copied();
    let done =
        sort == Sort::Init && newest.is_some_and(|s| s.state == State::Exited && s.exit_code == 0);
    let restarts = sort != Sort::Ephemeral || newest.is_none();
    if !done
        && restarts
        && should_be_restarted(container, facts.pod, newest)
        && let Some(why) = facts.waiting.get(&container.name)
    {
        if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            status.last_state = status.state.take();
        }
        status.state = Some(waiting_state(&why.reason, &why.message));
    }
    // What a running container has is what it was told last, which may be less than it is to have.
    if let Some(newest) = newest
        && let Some(told) = facts.resize.actuated.get(&container.name)
        && told.id == newest.id
    {
        status.resources = Some(told.resources.clone());
    }
    if facts.terminal {
        close(facts, &mut status, old);
    }
    status
}

/// The status of a container that the runtime does not have.
fn unseen(
    facts: &Facts<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
    sort: Sort,
) -> ContainerStatus {
    let default = match init_containers(facts.pod).is_empty() || sort == Sort::Ephemeral {
        true => "ContainerCreating",
        false => "PodInitializing",
    };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting_state(default, "")),
        volume_mounts: volume_mounts(container, facts.recursive),
        ..ContainerStatus::default()
    };
    let Some(old) = old else { return status };
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        return old.clone();
    }
    status.restart_count = old.restart_count;
    status.last_state.clone_from(&old.last_state);
    let had_end = old.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    if old_state.running.is_some() && !had_end {
        // It ran, and is gone without a trace.
        status.last_state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some(
                    "The container could not be located when the pod was deleted.  The container used to be Running"
                        .to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
        if facts.pod.metadata.deletion_timestamp.is_none() {
            status.restart_count += 1;
        }
    }
    status
}

fn volume_mounts(container: &Container, recursive: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let mode = |m: &VolumeMount| match recursive_read_only(m, recursive) {
        Ok(true) => "Enabled".to_owned(),
        // Where it cannot be the container does not start.
        Ok(false) | Err(_) => "Disabled".to_owned(),
    };
    let status = |m: &VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only.filter(|r| *r),
        recursive_read_only: (m.read_only == Some(true)).then(|| mode(m)),
    };
    Some(mounts.iter().map(status).collect())
}

fn from_view(
    container: &Container,
    view: &ContainerView,
    old: Option<&ContainerStatus>,
    recursive: bool,
) -> ContainerStatus {
    let id = format!("containerd://{}", view.id);
    let state = match view.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: objects::time(view.started_at) }),
            ..ContainerState::default()
        },
        State::Exited => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: view.exit_code,
                reason: Some(view.reason.clone()).filter(|r| !r.is_empty()),
                message: Some(view.message.clone()).filter(|m| !m.is_empty()),
                started_at: objects::time_or_epoch(view.started_at),
                finished_at: objects::time_or_epoch(view.finished_at),
                container_id: Some(id.clone()),
                signal: None,
            }),
            ..ContainerState::default()
        },
        State::Unknown
            if old.and_then(|o| o.state.as_ref()).is_some_and(|s| s.running.is_some()) =>
        {
            lost()
        }
        State::Created | State::Unknown => waiting_state("", ""),
    };
    let requests = container.resources.as_ref().and_then(|r| r.requests.clone());
    ContainerStatus {
        name: view.name.clone(),
        restart_count: i32::try_from(view.restart_count).unwrap_or(i32::MAX),
        image: view.image.clone(),
        image_id: view.image_ref.clone(),
        container_id: Some(id),
        state: Some(state),
        volume_mounts: volume_mounts(container, recursive),
        allocated_resources: requests,
        resources: Some(container.resources.clone().unwrap_or_default()),
        user: view.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone())
                    .filter(|g| !g.is_empty()),
            }),
        }),
        ..ContainerStatus::default()
    }
}

fn lost() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some(
                "The container could not be located when the pod was terminated".to_owned(),
            ),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

/// At a pod's end every container that has run must be shown as ended.
fn close(facts: &Facts<'_>, status: &mut ContainerStatus, old: Option<&ContainerStatus>) {
    let state = status.state.clone().unwrap_or_default();
    let pending = old.and_then(|o| o.state.as_ref()).is_none_or(|s| s.waiting.is_some())
        && status.last_state.as_ref().is_none_or(|s| s.terminated.is_none());
    if state.terminated.is_some() || pending && facts.old.phase.as_deref() != Some("Running") {
        return;
    }
    status.state = Some(match status.last_state.take() {
        Some(last) if last.terminated.is_some() && state.running.is_none() => last,
        _ => lost(),
    });
}

fn set_health(
    facts: &Facts<'_>,
    containers: &[Container],
    statuses: &mut [ContainerStatus],
    init: bool,
) {
    for status in statuses {
        let Some(container) = containers.iter().find(|c| c.name == status.name) else { continue };
        let id = status.container_id.as_deref().unwrap_or_default();
        let id = id.strip_prefix("containerd://").unwrap_or(id);
        let state = status.state.clone().unwrap_or_default();
        let started = state.running.is_some() && facts.health.started(container, id);
        status.started = Some(started);
        status.ready = if init && !is_sidecar(container) {
            state.terminated.is_some_and(|t| t.exit_code == 0)
        } else {
            started && facts.health.ready(container, id)
        };
    }
}
