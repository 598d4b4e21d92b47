//! What a pod needs next: pure, from the pod, the runtime's view and the probes' results.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::objects::{
    ephemeral_containers, host_network, init_containers, is_sidecar, restart_policy,
    restarts_after, spec,
};
use crate::runtime::labels::container_hash;
use crate::runtime::{ContainerView, PodView, State};

/// What probes have found so far; `None` before the first verdict.
pub trait Verdicts {
    fn liveness(&self, container_id: &str) -> Option<bool>;
    fn startup(&self, container_id: &str) -> Option<bool>;
}

/// Why a container is killed, apart from the pod's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    LivenessProbe,
    StartupProbe,
    Unknown,
    Changed,
}

/// A container to be killed while its pod goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

/// What to do, in this order: kill the pod or single containers, create the sandbox, start
/// ephemeral, init and regular containers. Indexes point into the pod's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub kill_pod: bool,
    pub create_sandbox: bool,
    pub sandbox: String,
    pub attempt: u32,
    pub kill: Vec<Kill>,
    pub ephemeral: Vec<usize>,
    pub init: Vec<usize>,
    pub start: Vec<usize>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        !self.kill_pod
            && !self.create_sandbox
            && self.kill.is_empty()
            && self.ephemeral.is_empty()
            && self.init.is_empty()
            && self.start.is_empty()
    }
}

/// Decides what a pod that is to run needs next.
pub fn plan(pod: &Pod, view: &PodView, verdicts: &dyn Verdicts) -> Plan {
    let need = view.sandbox_needed(host_network(pod));
    let mut plan = Plan {
        kill_pod: need.create,
        create_sandbox: need.create,
        sandbox: need.id,
        attempt: need.attempt,
        ..Plan::default()
    };
    if need.create {
        afresh(pod, view, &mut plan);
        return plan;
    }
    for (index, container) in ephemeral_containers(pod).iter().enumerate() {
        // They are never restarted.
        if view.container(&container.name).is_none() {
            plan.ephemeral.push(index);
        }
    }
    let initialized = init(pod, view, verdicts, &mut plan);
    if plan.kill_pod || !initialized {
        return plan;
    }
    regular(pod, view, verdicts, &mut plan);
    plan
}

/// The first things to do in a new sandbox, or none if the pod is over.
fn afresh(pod: &Pod, view: &PodView, plan: &mut Plan) {
    if restart_policy(pod) == "Never" && plan.attempt != 0 && !view.containers.is_empty() {
        plan.create_sandbox = false;
        return;
    }
    let succeeded = |c: &Container| {
        view.container(&c.name).is_some_and(|s| s.state == State::Exited && s.exit_code == 0)
    };
    let run_once = |c: &Container| {
        c.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod)) == "OnFailure"
    };
    let containers = &spec(pod).containers;
    let start: Vec<usize> = containers
        .iter()
        .enumerate()
        .filter(|(_, c)| !(run_once(c) && succeeded(c)))
        .map(|(index, _)| index)
        .collect();
    let any_created = containers.iter().any(|c| view.container(&c.name).is_some());
    if start.is_empty() && any_created {
        plan.create_sandbox = false;
    } else if init_containers(pod).is_empty() {
        plan.start = start;
    } else {
        plan.init = vec![0];
    }
}

/// Plans the init containers; whether they are through, so that the others may run.
///
/// They are looked at from the last to the first: those that are done may have been removed, and
/// one that has begun shows that all before it were done.
fn init(pod: &Pod, view: &PodView, verdicts: &dyn Verdicts, plan: &mut Plan) -> bool {
    let containers = init_containers(pod);
    if containers.is_empty() {
        return true;
    }
    let mut through = spec(pod).containers.iter().any(|c| {
        let state = view.container(&c.name).map(|s| s.state);
        matches!(state, Some(State::Created | State::Running))
    });
    let mut previously = through;
    let last = containers.len() - 1;
    for (index, container) in containers.iter().enumerate().rev() {
        let sidecar = is_sidecar(container);
        let Some(status) = view.container(&container.name) else {
            if previously && sidecar {
                plan.init.push(index);
            }
            continue;
        };
        if previously && !sidecar {
            continue;
        }
        let mut done = |plan: &mut Plan| {
            if index == last {
                through = true;
            } else if !previously {
                plan.init.push(index + 1);
            }
        };
        match status.state {
            State::Created => plan.init.push(index),
            State::Running if sidecar => {
                if sidecar_ready_for_next(container, status, verdicts, index, plan) {
                    done(plan);
                    judge_sidecar(container, status, verdicts, index, plan);
                }
            }
            State::Running => {}
            State::Exited if sidecar => plan.init.push(index),
            State::Exited if status.exit_code != 0 || status.reason == "OOMKilled" => {
                if !restarts_after(container, pod, status.exit_code) {
                    plan.kill_pod = true;
                    plan.init.clear();
                    return false;
                }
                plan.init.push(index);
            }
            State::Exited => done(plan),
            State::Unknown => {
                let policy =
                    container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod));
                if !sidecar && policy == "Never" {
                    plan.kill_pod = true;
                    plan.init.clear();
                    return false;
                }
                let message =
                    "Init container is in \"unknown\" state, try killing it before restart";
                plan.kill.push(kill(status, message.to_owned(), KillReason::Unknown));
                plan.init.push(index);
            }
        }
        if !previously {
            // The one before this has been initialized.
            previously = true;
        }
    }
    if !previously {
        // None has begun.
        plan.init.push(0);
    }
    // They were found from the last to the first, and are started in order.
    plan.init.sort_unstable();
    plan.init.dedup();
    through
}

/// Whether a running sidecar has started in the sense of its startup probe.
fn sidecar_ready_for_next(
    container: &Container,
    status: &ContainerView,
    verdicts: &dyn Verdicts,
    index: usize,
    plan: &mut Plan,
) -> bool {
    if container.startup_probe.is_none() {
        return true;
    }
    match verdicts.startup(&status.id) {
        Some(true) => true,
        Some(false) => {
            let message = format!("Init container {} failed startup probe", container.name);
            plan.kill.push(kill(status, message, KillReason::StartupProbe));
            plan.init.push(index);
            false
        }
        None => false,
    }
}

fn judge_sidecar(
    container: &Container,
    status: &ContainerView,
    verdicts: &dyn Verdicts,
    index: usize,
    plan: &mut Plan,
) {
    let (message, reason) = if status.hash != container_hash(container) {
        (format!("Init container {} definition changed", container.name), KillReason::Changed)
    } else if container.liveness_probe.is_some() && verdicts.liveness(&status.id) == Some(false) {
        (
            format!("Init container {} failed liveness probe", container.name),
            KillReason::LivenessProbe,
        )
    } else {
        return;
    };
    plan.kill.push(kill(status, message, reason));
    plan.init.push(index);
}

fn kill(status: &ContainerView, message: String, reason: KillReason) -> Kill {
    Kill { id: status.id.clone(), name: status.name.clone(), message, reason }
}

fn regular(pod: &Pod, view: &PodView, verdicts: &dyn Verdicts, plan: &mut Plan) {
    let mut kept = 0;
    for (index, container) in spec(pod).containers.iter().enumerate() {
        let Some(status) = view.container(&container.name).filter(|s| s.state == State::Running)
        else {
            let status = view.container(&container.name);
            if should_be_restarted(container, pod, status) {
                plan.start.push(index);
                if let Some(status) = status.filter(|s| s.state == State::Unknown) {
                    // It may run: make sure that there are not two of it.
                    let message =
                        "Container is in \"unknown\" state, try killing it before restart";
                    plan.kill.push(kill(status, message.to_owned(), KillReason::Unknown));
                }
            }
            continue;
        };
        let policy = container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod));
        let (mut message, reason, restart) = if status.hash != container_hash(container) {
            let message = format!("Container {} definition changed", container.name);
            (message, KillReason::Changed, true)
        } else if verdicts.liveness(&status.id) == Some(false) {
            let message = format!("Container {} failed liveness probe", container.name);
            (message, KillReason::LivenessProbe, policy != "Never")
        } else if verdicts.startup(&status.id) == Some(false) {
            let message = format!("Container {} failed startup probe", container.name);
            (message, KillReason::StartupProbe, policy != "Never")
        } else {
            kept += 1;
            continue;
        };
        if restart {
            message.push_str(", will be restarted");
            plan.start.push(index);
        }
        plan.kill.push(kill(status, message, reason));
    }
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        // Sidecars must not keep the pod alive.
        plan.init.clear();
    }
}

/// Whether a container that does not run is to be started.
pub fn should_be_restarted(
    container: &Container,
    pod: &Pod,
    status: Option<&ContainerView>,
) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match status.map(|s| (s.state, s.exit_code)) {
        None | Some((State::Unknown | State::Created, _)) => true,
        Some((State::Running, _)) => false,
        Some((State::Exited, code)) => restarts_after(container, pod, code),
    }
}
