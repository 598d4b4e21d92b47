//! Stops containers: asks them through their hooks and signals, in order, and kills what does not
//! end in time.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::plan::KillReason;
use crate::hooks;
use crate::kubelet::Kubelet;
use crate::objects::{self, container_reference, init_containers, is_sidecar, spec};
use crate::runtime::{ContainerView, PodView, RuntimeError, State};

/// What a container gets at least after its preStop hook, in seconds.
const MINIMUM_GRACE: i64 = 2;

/// How a container is to be stopped.
pub struct Manner<'a> {
    pub message: String,
    pub grace: i64,
    /// Containers whose preStop hook has run already.
    pub hooked: &'a Mutex<HashSet<String>>,
}

/// The seconds that a pod's containers have to end.
pub fn grace(pod: &Pod, container: Option<&Container>, reason: Option<KillReason>) -> i64 {
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        return seconds;
    }
    let probe = match reason {
        Some(KillReason::LivenessProbe) => container.and_then(|c| c.liveness_probe.as_ref()),
        Some(KillReason::StartupProbe) => container.and_then(|c| c.startup_probe.as_ref()),
        _ => None,
    };
    probe
        .and_then(|p| p.termination_grace_period_seconds)
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
}

/// Stops one container.
///
/// # Errors
/// The runtime's.
pub async fn container(
    k: &Kubelet,
    pod: Option<&Pod>,
    view: &ContainerView,
    ips: &[String],
    manner: &Manner<'_>,
) -> Result<(), RuntimeError> {
    let mut grace = manner.grace;
    if let Some(pod) = pod {
        k.event(container_reference(pod, &view.name), false, "Killing", manner.message.clone());
        let known = objects::find_container(pod, &view.name);
        let hook = known.as_ref().and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref());
        let begun = Instant::now();
        if let (Some(hook), Some(known)) = (hook, &known)
            && grace > 0
            && manner.hooked.lock().insert(view.id.clone())
        {
            let limit = Duration::from_secs(grace.unsigned_abs());
            let ip = ips.first().map(String::as_str).unwrap_or_default();
            let run = hooks::run(k, hook, known, &view.id, ip);
            match tokio::time::timeout(limit, run).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(container = view.name, error, "preStop failed");
                    let about = container_reference(pod, &view.name);
                    k.event(about, true, "FailedPreStopHook", "PreStopHook failed");
                }
                Err(_) => tracing::debug!(container = view.name, "preStop did not end in time"),
            }
            let spent = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
            grace = (grace - spent).max(MINIMUM_GRACE);
        }
    }
    k.cri.stop_container(&view.id, grace).await
}

/// Stops all of a pod: the containers, sidecars after those they serve and in reverse order,
/// then the sandboxes. Without the pod (it is gone from everywhere) nothing is asked first.
///
/// # Errors
/// The runtime's first; the rest is tried all the same.
pub async fn pod(
    k: &Kubelet,
    pod: Option<&Pod>,
    view: &PodView,
    grace_seconds: i64,
    hooked: &Mutex<HashSet<String>>,
) -> Result<(), RuntimeError> {
    let running: Vec<&ContainerView> = view
        .containers
        .iter()
        .filter(|c| matches!(c.state, State::Running | State::Unknown))
        .collect();
    let sidecars: Vec<&str> = pod
        .map(|p| {
            init_containers(p).iter().filter(|c| is_sidecar(c)).map(|c| c.name.as_str()).collect()
        })
        .unwrap_or_default();
    let begun = Instant::now();
    let manner = |name: &str, grace: i64| Manner {
        message: format!("Stopping container {name}"),
        grace,
        hooked,
    };
    let (last, first): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|c| sidecars.contains(&c.name.as_str()));
    let stops = first.into_iter().map(|c| async move {
        container(k, pod, c, view.ips(), &manner(&c.name, grace_seconds)).await
    });
    let mut result: Result<(), RuntimeError> = join_all(stops).await.into_iter().collect();
    for name in sidecars.iter().rev() {
        for sidecar in last.iter().filter(|c| c.name == *name) {
            let spent = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
            let left = match grace_seconds {
                0 => 0,
                grace => (grace - spent).max(MINIMUM_GRACE),
            };
            let stopped = container(k, pod, sidecar, view.ips(), &manner(name, left)).await;
            result = result.and(stopped);
        }
    }
    result?;
    sandboxes(k, view).await
}

/// Stops a pod's sandboxes.
///
/// # Errors
/// The runtime's.
pub async fn sandboxes(k: &Kubelet, view: &PodView) -> Result<(), RuntimeError> {
    for sandbox in view.sandboxes.iter().filter(|s| s.ready || !s.ips.is_empty()) {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        match k.cri.stop_pod_sandbox(request).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes all that the runtime has of a pod that has been stopped.
///
/// # Errors
/// The runtime's.
pub async fn remove(k: &Kubelet, view: &PodView) -> Result<(), RuntimeError> {
    for container in &view.containers {
        let request = cri::RemoveContainerRequest { container_id: container.id.clone() };
        match k.cri.remove_container(request).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    for sandbox in &view.sandboxes {
        // Stopping one that has stopped is allowed, and gives its network back if that failed.
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        match k.cri.stop_pod_sandbox(request).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        match k.cri.remove_pod_sandbox(request).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
