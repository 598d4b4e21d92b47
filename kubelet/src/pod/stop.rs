//! Stops containers: asks them through their hooks and signals, in order, and kills what does not
//! end in time.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::plan::KillReason;
use crate::hooks::{self, Hooked};
use crate::kubelet::Kubelet;
use crate::objects::{
    self, container_reference, describe, init_containers, is_sidecar, reference, spec,
};
use crate::runtime::{ContainerView, PodView, RuntimeError, State};

/// What a container gets at least between being asked to end and being killed, in seconds.
const MINIMUM_GRACE: i64 = 2;

/// A container that runs.
pub struct Running<'a> {
    pub id: &'a str,
    pub name: &'a str,
    /// The pod's address.
    pub ip: &'a str,
}

impl<'a> Running<'a> {
    pub fn of(container: &'a ContainerView, ips: &'a [String]) -> Self {
        let ip = ips.first().map(String::as_str).unwrap_or_default();
        Self { id: &container.id, name: &container.name, ip }
    }
}

/// How a container is to be stopped.
pub struct Manner {
    pub message: String,
    pub grace: i64,
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

/// The seconds that a pod has to end which is not to go on, `limit` at most: never none, so that
/// hooks begin.
pub fn last_grace(pod: &Pod, limit: Option<i64>) -> i64 {
    let own = grace(pod, None, None);
    limit.map_or(own, |limit| own.min(limit)).max(1)
}

/// Stops one container.
///
/// # Errors
/// The runtime's.
pub async fn container(
    k: &Arc<Kubelet>,
    pod: Option<&Pod>,
    running: &Running<'_>,
    manner: Manner,
) -> Result<(), RuntimeError> {
    let mut hook = None;
    if let Some(pod) = pod {
        k.event(container_reference(pod, running.name), false, "Killing", manner.message);
        hook = pre_stop(k, pod, running);
    }
    let stop = |grace| k.cri.stop_container(running.id, grace);
    within(manner.grace, hook, &manner.before, stop).await
}

/// The container's preStop hook, to be run.
fn pre_stop(
    k: &Arc<Kubelet>,
    pod: &Pod,
    running: &Running<'_>,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    let container = objects::find_container(pod, running.name)?;
    let hook = container.lifecycle.as_ref()?.pre_stop.clone()?;
    let (k, about) = (Arc::clone(k), container_reference(pod, running.name));
    let hooked = Hooked {
        container,
        pod: describe(pod),
        about: reference(pod),
        id: running.id.to_owned(),
        ip: running.ip.to_owned(),
    };
    Some(async move {
        let ran = k.shutdown.run_until_cancelled(hooks::run(&k, &hook, &hooked)).await;
        if let Some(Err(error)) = ran {
            tracing::debug!(container = hooked.container.name, error, "preStop failed");
            // What it said may be secret.
            k.event(about, true, "FailedPreStopHook", "PreStopHook failed");
        }
    })
}

/// Runs the hook and waits for those that end before, then stops with what is left of the grace.
/// Without any, neither is done. A hook that takes longer is left to itself: the container ends
/// meanwhile, and its commands with it.
async fn within<H, S>(
    grace: i64,
    hook: Option<H>,
    before: &[CancellationToken],
    stop: impl FnOnce(i64) -> S,
) -> S::Output
where
    H: Future<Output = ()> + Send + 'static,
    S: Future,
{
    let end = Instant::now() + Duration::from_secs(grace.max(0).unsigned_abs());
    if grace > 0 {
        if let Some(hook) = hook {
            // Cut off with the turn, as long as it is waited for.
            let mut hook = AbortOnDropHandle::new(tokio::spawn(hook));
            if tokio::time::timeout_at(end, &mut hook).await.is_err() {
                tracing::debug!("preStop did not end in time");
                drop(hook.detach());
            }
        }
        let turn = join_all(before.iter().map(CancellationToken::cancelled));
        // Else all have had their time.
        let _ = tokio::time::timeout_at(end, turn).await;
    }
    // A second that has begun counts as left, as upstream counts.
    let left = end.saturating_duration_since(Instant::now()).as_millis().div_ceil(1000);
    stop(i64::try_from(left).unwrap_or(i64::MAX).max(MINIMUM_GRACE)).await
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
    k: &Arc<Kubelet>,
    pod: Option<&Pod>,
    view: &PodView,
    grace: i64,
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
            before: before.iter().filter_map(|index| ended.get(*index).cloned()).collect(),
        };
        async move {
            let stopped = container(k, pod, &Running::of(own, view.ips()), manner).await;
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
    use serde_json::json;
    use tokio::sync::oneshot;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_grace_is_the_deletions_the_probes_or_the_pods() {
        let containers = json!([{"name": "main",
            "livenessProbe": {"terminationGracePeriodSeconds": 7}, "startupProbe": {}}]);
        let spec = json!({"terminationGracePeriodSeconds": 20, "containers": containers});
        let (liveness, startup) = (Some(KillReason::LivenessProbe), Some(KillReason::StartupProbe));
        let deleted = json!({"deletionGracePeriodSeconds": 4});
        for (metadata, reason, want) in [
            (json!({}), None, 20),
            (json!({}), Some(KillReason::Changed), 20),
            (json!({}), liveness, 7),
            (json!({}), startup, 20),
            (deleted.clone(), None, 4),
            (deleted, liveness, 4),
        ] {
            let pod = pod(json!({"metadata": metadata, "spec": spec}));
            let container = objects::find_container(&pod, "main");
            assert_eq!(grace(&pod, container.as_ref(), reason), want, "{metadata} {reason:?}");
        }
    }

    #[test]
    fn a_pod_that_ends_has_some_grace() {
        for (seconds, limit, want) in
            [(30, None, 30), (30, Some(5), 5), (30, Some(0), 1), (0, None, 1), (5, Some(9), 5)]
        {
            let spec = json!({"terminationGracePeriodSeconds": seconds, "containers": []});
            let pod = pod(json!({"metadata": {}, "spec": spec}));
            assert_eq!(last_grace(&pod, limit), want, "{seconds} {limit:?}");
        }
    }

    /// Of the grace, how much is left to a container after its hook and those that end before it.
    #[tokio::test(start_paused = true)]
    async fn what_comes_first_counts_against_the_grace() {
        for (grace, hook, before, want) in [
            (30, None, None, 30),
            (30, Some(3_700), None, 27),
            (30, Some(3_000), Some(8_000), 22),
            (30, Some(40_000), None, 2),
            (30, None, Some(40_000), 2),
            (3, Some(2_500), None, 2),
            (1, Some(500), None, 2),
            // What is killed at once is not asked first.
            (0, Some(0), Some(40_000), 2),
            (0, None, None, 2),
        ] {
            let after = |millis| tokio::time::sleep(Duration::from_millis(millis));
            let (told, ran) = oneshot::channel();
            let hook = hook.map(|millis| async move {
                after(millis).await;
                told.send(()).ok();
            });
            let hooked = hook.is_some() && grace > 0;
            let other = CancellationToken::new();
            let (ends, waits) = (other.clone(), before.is_some());
            let others = tokio::spawn(async move {
                after(before.unwrap_or(0)).await;
                ends.cancel();
            });
            let before = waits.then_some(other);
            let stop = |left| std::future::ready(left);
            let left = within(grace, hook, before.as_slice(), stop).await;
            assert_eq!(left, want, "{grace} {hooked} {waits}");
            // A hook that takes longer goes on, while the container ends.
            assert_eq!(ran.await.is_ok(), hooked, "{grace} {hooked} {waits}");
            others.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_is_cut_off_with_those_who_wait_for_it() {
        let (told, ran) = oneshot::channel::<()>();
        let hook = async move {
            std::future::pending::<()>().await;
            drop(told);
        };
        let stopping = within(30, Some(hook), &[], std::future::ready);
        assert!(tokio::time::timeout(Duration::from_secs(1), stopping).await.is_err());
        assert!(ran.await.is_err());
    }

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
