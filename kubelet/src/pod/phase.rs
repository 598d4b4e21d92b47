//! A pod's phase, from its containers' statuses.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use crate::objects::{init_containers, is_sidecar, is_static, restarts_after, spec};

#[derive(Default)]
struct Count {
    pending_init: usize,
    pending_sidecars: usize,
    failed_for_good: usize,
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
}

/// The phase. `terminal`: no container will be started again, whatever the policy;
/// `has_initialized`: a regular container has run.
pub fn phase(
    pod: &Pod,
    statuses: &[&ContainerStatus],
    terminal: bool,
    has_initialized: bool,
) -> &'static str {
    let find = |c: &Container| statuses.iter().find(|s| s.name == c.name).copied();
    let mut n = Count::default();
    for container in init_containers(pod) {
        match is_sidecar(container) {
            true => count_sidecar(find(container), &mut n),
            false => count_init(container, pod, find(container), &mut n),
        }
    }
    for container in &spec(pod).containers {
        count_regular(container, pod, find(container), &mut n);
    }
    if n.failed_for_good > 0 {
        return "Failed";
    }
    if n.pending_init > 0 || (n.pending_sidecars > 0 && !has_initialized) || n.waiting > 0 {
        return "Pending";
    }
    if n.running > 0 && n.unknown == 0 {
        return "Running";
    }
    if n.running == 0 && n.stopped > 0 && n.unknown == 0 {
        let all_well = n.stopped == n.succeeded;
        if terminal && !is_static(pod) {
            return if all_well { "Succeeded" } else { "Failed" };
        }
        if n.stopped != n.stopped_for_good {
            return "Running";
        }
        return if all_well { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

fn exit_code(state: Option<&k8s_openapi::api::core::v1::ContainerState>) -> Option<i32> {
    state?.terminated.as_ref().map(|t| t.exit_code)
}

fn count_init(container: &Container, pod: &Pod, status: Option<&ContainerStatus>, n: &mut Count) {
    let state = status.and_then(|s| s.state.as_ref());
    let waiting = state.is_some_and(|s| s.waiting.is_some());
    let code = match exit_code(state) {
        Some(code) => Some(code),
        None if waiting => exit_code(status.and_then(|s| s.last_state.as_ref())),
        None => None,
    };
    match code {
        None => n.pending_init += 1,
        Some(0) => {}
        Some(code) if !restarts_after(container, pod, code) => n.failed_for_good += 1,
        // It failed and will be tried again.
        Some(_) => n.pending_init += 1,
    }
}

fn count_sidecar(status: Option<&ContainerStatus>, n: &mut Count) {
    let Some(status) = status else {
        n.unknown += 1;
        return;
    };
    let state = status.state.clone().unwrap_or_default();
    if state.running.is_some() {
        if status.started != Some(true) {
            n.pending_sidecars += 1;
        }
        n.running += 1;
    } else if state.terminated.is_some() {
        // One that has ended does not count.
    } else if state.waiting.is_some() {
        if exit_code(status.last_state.as_ref()).is_none() {
            n.pending_sidecars += 1;
            n.waiting += 1;
        }
    } else {
        n.pending_sidecars += 1;
        n.unknown += 1;
    }
}

fn count_regular(
    container: &Container,
    pod: &Pod,
    status: Option<&ContainerStatus>,
    n: &mut Count,
) {
    let Some(state) = status.and_then(|s| s.state.as_ref()) else {
        n.unknown += 1;
        return;
    };
    let stopped = |code: i32, n: &mut Count| {
        n.stopped += 1;
        if !restarts_after(container, pod, code) {
            n.stopped_for_good += 1;
        }
    };
    if state.running.is_some() {
        n.running += 1;
    } else if let Some(code) = exit_code(Some(state)) {
        stopped(code, n);
        if code == 0 {
            n.succeeded += 1;
        }
    } else if state.waiting.is_some() {
        match exit_code(status.and_then(|s| s.last_state.as_ref())) {
            Some(code) => stopped(code, n),
            None => n.waiting += 1,
        }
    } else {
        n.unknown += 1;
    }
}
