//! Stops containers: asks them through their hooks and signals, in order, and kills what does not
//! end in time.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    /// What ends before it. The hook does not wait for that.
    pub before: Vec<CancellationToken>,
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
    let begun = Instant::now();
    let limit = Duration::from_secs(manner.grace.max(0).unsigned_abs());
    let mut waited = false;
    if let Some(pod) = pod {
        k.event(container_reference(pod, &view.name), false, "Killing", manner.message.clone());
        let known = objects::find_container(pod, &view.name);
        let hook = known.as_ref().and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref());
        if let (Some(hook), Some(known)) = (hook, &known)
            && !limit.is_zero()
            && manner.hooked.lock().insert(view.id.clone())
        {
            waited = true;
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
        }
    }
    let turn = join_all(manner.before.iter().map(CancellationToken::cancelled));
    if !manner.before.is_empty() && !limit.is_zero() {
        waited = true;
        // Then all have had their time.
        let _ = tokio::time::timeout_at(begun + limit, turn).await;
    }
    let spent = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
    let grace = match waited {
        true => (manner.grace - spent).max(MINIMUM_GRACE),
        false => manner.grace,
    };
    k.cri.stop_container(&view.id, grace).await
}

/// For each container to be stopped, by name, which of them end before it: before a sidecar all
/// that are none, and the sidecars after it (KEP-753).
fn turns(sidecars: &[&str], stopping: &[&str]) -> Vec<Vec<usize>> {
    let place = |name: &str| sidecars.iter().position(|sidecar| *sidecar == name);
    let before = |name: &&str| {
        let Some(own) = place(name) else { return Vec::new() };
        let earlier = |(_, other): &(usize, &&str)| place(other).is_none_or(|other| other > own);
        stopping.iter().enumerate().filter(earlier).map(|(index, _)| index).collect()
    };
    stopping.iter().map(before).collect()
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
    grace: i64,
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
    let names: Vec<&str> = running.iter().map(|c| c.name.as_str()).collect();
    let ended: Vec<CancellationToken> = names.iter().map(|_| CancellationToken::new()).collect();
    let stops = running.iter().zip(&ended).zip(turns(&sidecars, &names));
    let stops = stops.map(|((own, has_ended), before)| {
        let manner = Manner {
            message: format!("Stopping container {}", own.name),
            grace,
            hooked,
            before: before.iter().filter_map(|index| ended.get(*index).cloned()).collect(),
        };
        async move {
            let stopped = container(k, pod, own, view.ips(), &manner).await;
            has_ended.cancel();
            stopped
        }
    });
    join_all(stops).await.into_iter().collect::<Result<(), _>>()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_end_after_those_they_serve_and_in_reverse_order() {
        let sidecars = ["first", "second"];
        for (stopping, want) in [
            (&["a", "b"][..], vec![vec![], vec![]]),
            (&["second", "a", "first", "b"], vec![vec![1, 3], vec![], vec![0, 1, 3], vec![]]),
            // Those that do not run any more are not waited for.
            (&["first"], vec![vec![]]),
            (&["first", "second"], vec![vec![1], vec![]]),
        ] {
            assert_eq!(turns(&sidecars, stopping), want, "{stopping:?}");
        }
    }
}
