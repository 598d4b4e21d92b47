//! The actor that drives one pod, from its first sight to its removal.
//!
//! Each turn it reads what the runtime has, decides, acts, reports, and waits: for the pod to
//! change, for the runtime to, or for a time that the decision named. A turn may be cut off when
//! the pod's end becomes more urgent; the next one sees what it has left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::DropGuard;

use super::plan::{Plan, plan};
use super::report::{self, Sent};
use super::start::{self, Round};
use super::status::{self, Facts, Waiting};
use super::stop::{self, Manner, Running};
use super::{resize, resources, sandbox};
use crate::allocation;
use crate::eviction::Eviction;
use crate::kubelet::Kubelet;
use crate::objects::{
    self, ephemeral_containers, host_network, init_containers, is_sidecar, is_static,
    is_terminal_phase, reference, spec, uid,
};
use crate::runtime::PodView;
use crate::volumes::{files, pod_directory, setup};

/// After a turn that failed.
const RETRY: Duration = Duration::from_secs(2);
/// After the runtime did not answer, or volumes could not be set up.
const SLOW_RETRY: Duration = Duration::from_secs(5);
/// Volumes with content that may change are looked at this often.
const REFRESH: Duration = Duration::from_secs(20);

/// What a worker is to bring about.
#[derive(Clone, Default)]
pub struct Desired {
    /// The pod, as last seen.
    pub pod: Option<Arc<Pod>>,
    /// Its mirror in the API, for a static pod.
    pub mirror: Option<Arc<Pod>>,
    /// It has gone from where it came from.
    pub gone: bool,
}

impl Desired {
    /// Seconds in which the pod has to end; `None` while it may go on.
    fn ends_in(&self) -> Option<i64> {
        let pod = self.pod.as_ref();
        let deleted = pod.is_some_and(|p| p.metadata.deletion_timestamp.is_some());
        (self.gone || deleted).then(|| pod.map_or(2, |p| stop::grace(p, None, None)))
    }
}

/// What a turn came to.
enum Turn {
    /// Look again after this time at the latest.
    Wait(Duration),
    /// Nothing of the pod is left.
    Done,
}

/// One pod's actor.
pub struct Worker {
    k: Arc<Kubelet>,
    uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    waiting: HashMap<String, Waiting>,
    reported: Option<PodStatus>,
    busy: start::Busy,
    /// The limits that the pod's cgroup has.
    limits: Mutex<Option<resources::PodLimits>>,
    failed: Option<Waiting>,
    /// Seconds that the pod has to end, at most, since it has to go.
    grace_limit: Option<i64>,
    /// For those who wait for its end.
    ending: Option<DropGuard>,
    admitted: bool,
    rejected: bool,
    /// Everything has been stopped and given back.
    ended: bool,
    deleted_from_api: bool,
}

impl Worker {
    pub fn new(
        k: Arc<Kubelet>,
        uid: String,
        desired: watch::Receiver<Desired>,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            k,
            uid,
            desired,
            wake,
            waiting: HashMap::new(),
            reported: None,
            busy: start::Busy::default(),
            limits: Mutex::default(),
            failed: None,
            grace_limit: None,
            ending: None,
            admitted: false,
            rejected: false,
            ended: false,
            deleted_from_api: false,
        }
    }

    /// Works until the pod is gone without a trace, or the kubelet shuts down (pods go on).
    pub async fn run(mut self) {
        let shutdown = self.k.shutdown.clone();
        let mut changes = self.desired.clone();
        let wake = Arc::clone(&self.wake);
        let (k, uid) = (Arc::clone(&self.k), self.uid.clone());
        loop {
            let desired = changes.borrow_and_update().clone();
            self.heed(&desired);
            let mut watcher = changes.clone();
            let before = desired.ends_in();
            let ends_in = [before, self.grace_limit].into_iter().flatten().min();
            let more_urgent = watcher.wait_for(move |d| match (before, d.ends_in()) {
                (None, Some(_)) => true,
                (Some(before), Some(now)) => now < before,
                _ => false,
            });
            let turn = tokio::select! {
                turn = self.turn(&desired) => turn,
                Ok(_) = more_urgent => continue,
                () = k.evictions.sooner(&uid, ends_in) => continue,
                () = shutdown.cancelled() => return,
            };
            if self.ended {
                self.ending = None;
            }
            let pause = match turn {
                Turn::Done => return,
                Turn::Wait(pause) => pause,
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Takes note that the pod has to go, if it has.
    fn heed(&mut self, desired: &Desired) {
        let Some(Eviction { cause, message, grace, ended }) = self.k.evictions.take(&self.uid)
        else {
            return;
        };
        self.grace_limit = Some(self.grace_limit.map_or(grace, |limit| limit.min(grace)));
        self.ending = ended;
        let Some(pod) = &desired.pod else { return };
        let ends_anyway = desired.ends_in().is_some()
            || self.failed.is_some()
            || self.over()
            || is_terminal_phase(objects::status(pod).phase.as_deref());
        if ends_anyway {
            return;
        }
        if cause.has_event() {
            self.k.event(reference(pod), true, cause.reason(), message.clone());
        }
        self.failed = Some(Waiting { reason: cause.reason().to_owned(), message });
    }

    async fn turn(&mut self, desired: &Desired) -> Turn {
        // A turn before this one may have been cut off while the runtime started something.
        drop(self.busy.lock().await);
        let view = match self.k.views.pod(&self.uid).await {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(uid = self.uid, %error, "the runtime does not answer");
                return Turn::Wait(SLOW_RETRY);
            }
        };
        let Some(pod) = &desired.pod else { return self.sweep(None, &view).await };
        // All that follows is about the pod with the resources that it has been given.
        let pod = &self.k.allocations.effective(&self.k.root, pod);
        self.k.prober.sync(&self.k, pod, &view);
        if desired.gone {
            return self.sweep(Some(pod), &view).await;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return self.terminate(desired, pod, &view).await;
        }
        let api_phase = objects::status(pod).phase.as_deref();
        if is_terminal_phase(api_phase) || self.failed.is_some() || self.over() {
            return self.finish(desired, pod, &view).await;
        }
        self.sync(desired, pod, view).await
    }

    fn over(&self) -> bool {
        self.reported.as_ref().is_some_and(|s| is_terminal_phase(s.phase.as_deref()))
    }

    /// The status of the pod as it is now.
    fn status(&self, pod: &Pod, view: &PodView, terminal: bool) -> PodStatus {
        let host_ips = self.k.host_ips();
        let resize = self.k.allocations.standing(pod, view);
        let old = self.reported.clone().unwrap_or_else(|| objects::status(pod).clone());
        let recursive = self.k.runtime.lock().recursive_read_only(pod);
        status::status(&Facts {
            pod,
            view,
            old: &old,
            health: &self.k.prober,
            waiting: &self.waiting,
            terminal,
            failed: self.failed.as_ref(),
            host_ips: &host_ips,
            resize: &resize,
            recursive,
            now: objects::now(),
        })
    }

    /// Reports a status. Whether it has arrived, or there is nowhere to report it to.
    async fn report(&mut self, desired: &Desired, new: PodStatus) -> bool {
        let pod = match &desired.pod {
            Some(pod) if is_static(pod) => match &desired.mirror {
                Some(mirror) => mirror,
                None => {
                    self.reported = Some(new);
                    return true;
                }
            },
            Some(pod) => pod,
            None => return true,
        };
        // What was sent last may not have come back yet.
        let known = self.reported.clone().unwrap_or_else(|| objects::status(pod).clone());
        let api = objects::status(pod);
        let base = if report::patch("", &known, &new).is_none() { api } else { &known };
        match report::send(&self.k, pod, base, &new).await {
            Ok(Sent::Gone) => {
                self.reported = Some(new);
                true
            }
            Ok(_) => {
                self.reported = Some(new);
                true
            }
            Err(error) => {
                tracing::warn!(pod = objects::describe(pod), %error, "status not written");
                false
            }
        }
    }

    /// One turn of a pod that is to run.
    async fn sync(&mut self, desired: &Desired, pod: &Arc<Pod>, view: PodView) -> Turn {
        if !self.admitted
            && let Err(rejected) = self.k.admission.admit(&self.k, pod)
        {
            self.k.event(reference(pod), true, &rejected.reason, rejected.message.clone());
            self.failed = Some(rejected);
            self.rejected = true;
            return self.finish(desired, pod, &view).await;
        }
        let pod = &match (self.admitted, &desired.pod) {
            (true, Some(asking)) => self.k.allocations.review(&self.k, asking),
            _ => Arc::clone(pod),
        };
        self.admitted = true;
        if self.deadline_left(pod) == Some(Duration::ZERO) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.failed =
                Some(Waiting { reason: "DeadlineExceeded".into(), message: message.into() });
            self.k.event(reference(pod), false, "DeadlineExceeded", message);
            return self.finish(desired, pod, &view).await;
        }
        let now = self.status(pod, &view, false);
        let over = is_terminal_phase(now.phase.as_deref());
        if over {
            return self.finish(desired, pod, &view).await;
        }
        self.k.references.register(pod);
        let reported = self.report(desired, now).await;
        let next = self.act(pod, &view).await;
        let idle = match next {
            Ok(after) if reported => after,
            Ok(after) => after.min(RETRY),
            Err(after) => after,
        };
        // What was just done shows at once, not when the relisting finds it.
        match self.k.views.pod(&self.uid).await {
            Ok(after) => {
                self.k.prober.sync(&self.k, pod, &after);
                let status = self.status(pod, &after, false);
                if is_terminal_phase(status.phase.as_deref()) {
                    return Turn::Wait(Duration::ZERO);
                }
                self.report(desired, status).await;
            }
            Err(error) => tracing::warn!(%error, "the runtime does not answer"),
        }
        let deadline = self.deadline_left(pod).unwrap_or(Duration::MAX);
        Turn::Wait(idle.min(deadline).max(Duration::from_millis(50)))
    }

    fn deadline_left(&self, pod: &Pod) -> Option<Duration> {
        let limit = spec(pod).active_deadline_seconds?;
        let status = self.reported.as_ref().unwrap_or_else(|| objects::status(pod));
        let start = status.start_time.as_ref()?;
        let spent = jiff::Timestamp::now().duration_since(start.0).as_secs();
        Some(Duration::from_secs(u64::try_from(limit - spent).unwrap_or(0)))
    }

    /// Brings the pod nearer to what it should be. `Ok` and `Err` hold when to look again.
    async fn act(&mut self, pod: &Arc<Pod>, view: &PodView) -> Result<Duration, Duration> {
        let k = Arc::clone(&self.k);
        let health = k.health.borrow().clone();
        if let Some(why) = health.network.filter(|_| !host_network(pod)) {
            let message = format!("network is not ready: {why}");
            k.event(reference(pod), true, "NetworkNotReady", message);
            return Err(RETRY);
        }
        let class = resources::qos_class(pod);
        let limits = resources::pod_limits(pod, k.limiting());
        if let Err(error) = k.cgroups.ensure_pod(class, uid(pod), &limits) {
            let message = format!("unable to ensure pod container exists: {error:#}");
            k.event(reference(pod), true, "FailedCreatePodContainer", message);
            return Err(SLOW_RETRY);
        }
        let own = pod_directory(&k.root, uid(pod));
        let made = files::directory(&own, 0o750)
            .and_then(|()| files::directory(&own.join("volumes"), 0o750))
            .and_then(|()| files::directory(&own.join("plugins"), 0o750));
        if let Err(error) = made {
            let message = format!("error making pod data directories: {error}");
            k.event(reference(pod), true, "Failed", message);
            return Err(SLOW_RETRY);
        }
        let places = match setup::prepare(&k, pod, view.containers.is_empty()).await {
            Ok(places) => places,
            Err(message) => {
                k.event(reference(pod), true, "FailedMount", message);
                return Err(RETRY);
            }
        };
        let mut todo = plan(pod, view, &k.prober);
        let told = k.allocations.standing(pod, view).actuated;
        let updates = resize::plan(pod, view, &told, &mut todo);
        tracing::debug!(pod = objects::describe(pod), ?todo, ?updates, "planned");
        self.resize(pod, view, &updates, !todo.kill.is_empty()).await?;
        self.carry_out(pod, view, &todo, &places).await?;
        let usual = k.config.sync_frequency.0.mul_f64(0.75 + rand::random::<f64>() / 2.0);
        let refresh = setup::refreshes(pod);
        Ok(if refresh { usual.min(REFRESH) } else { usual })
    }

    /// Changes the limits of the pod and of containers that run. `Err` holds when to try again.
    async fn resize(
        &self,
        pod: &Arc<Pod>,
        view: &PodView,
        updates: &[resize::Update],
        restarts: bool,
    ) -> Result<(), Duration> {
        let k = &self.k;
        let limits = resources::pod_limits(pod, k.limiting());
        let before = *self.limits.lock();
        let mut result = Ok(limits);
        if !updates.is_empty() || before != Some(limits) {
            // A kubelet that comes back finds what containers were told last.
            let old = before.unwrap_or_else(|| {
                let told = k.allocations.standing(pod, view).actuated;
                let told = told.into_iter().map(|(name, told)| (name, told.resources)).collect();
                resources::pod_limits(&resize::with(pod, &told), k.limiting())
            });
            result = start::resize(k, pod, view, updates, old, limits).await;
        }
        match result {
            Ok(has) => {
                *self.limits.lock() = Some(has);
                if !restarts && k.allocations.tried(pod, None) {
                    let message = allocation::message("completed", pod, None);
                    k.event(reference(pod), false, "ResizeCompleted", message);
                }
                Ok(())
            }
            Err(error) => {
                let message = allocation::message("error", pod, Some(&error));
                k.event(reference(pod), true, "ResizeError", message);
                k.allocations.tried(pod, Some(error));
                Err(SLOW_RETRY)
            }
        }
    }

    async fn carry_out(
        &mut self,
        pod: &Arc<Pod>,
        view: &PodView,
        todo: &Plan,
        places: &setup::Places,
    ) -> Result<(), Duration> {
        let k = Arc::clone(&self.k);
        if todo.is_idle() {
            return Ok(());
        }
        if todo.kill_pod {
            self.kill_for_restart(pod, view, todo).await?;
            if !todo.create_sandbox {
                return Ok(());
            }
        }
        for kill in &todo.kill {
            let Some(found) = view.containers.iter().find(|c| c.id == kill.id) else { continue };
            let container = objects::find_container(pod, &kill.name);
            let manner = Manner {
                message: kill.message.clone(),
                grace: stop::grace(pod, container.as_ref(), Some(kill.reason)),
                before: Vec::new(),
            };
            let running = Running::of(found, view.ips());
            if let Err(error) = stop::container(&k, Some(pod), &running, manner).await {
                tracing::warn!(container = kill.name, %error, "cannot stop");
                return Err(RETRY);
            }
        }
        // Start from what is after the kills: attempts and back-off count from there.
        let after_kills;
        let view = match todo.kill.is_empty() && !todo.kill_pod {
            true => view,
            false => {
                after_kills = k.views.pod(&self.uid).await.map_err(|_| RETRY)?;
                &after_kills
            }
        };
        let config = start::sandbox_config(&k, pod, todo.attempt).map_err(|error| {
            k.event(
                reference(pod),
                true,
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {error}"),
            );
            SLOW_RETRY
        })?;
        let (sandbox, ips) = match todo.create_sandbox {
            false => (todo.sandbox.clone(), view.ips().to_vec()),
            true => start::create_sandbox(&k, pod, &config, &self.busy).await.map_err(|error| {
                let message = format!("Failed to create pod sandbox: {error}");
                k.event(reference(pod), true, "FailedCreatePodSandBox", message);
                RETRY
            })?,
        };
        let ips = if host_network(pod) { k.host_ips() } else { ips };
        let busy = Arc::clone(&self.busy);
        let round = Round {
            pod,
            view,
            sandbox: &sandbox,
            config: &config,
            places,
            pod_ips: &ips,
            busy: &busy,
        };
        self.start_all(&round, todo).await
    }

    async fn kill_for_restart(
        &mut self,
        pod: &Arc<Pod>,
        view: &PodView,
        todo: &Plan,
    ) -> Result<(), Duration> {
        let k = Arc::clone(&self.k);
        if todo.create_sandbox && !view.sandboxes.is_empty() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            k.event(reference(pod), false, "SandboxChanged", message);
        }
        let grace = stop::grace(pod, None, None);
        stop::pod(&k, Some(pod), view, grace).await.map_err(|error| {
            k.event(reference(pod), true, "FailedKillPod", format!("error killing pod: {error}"));
            RETRY
        })?;
        if todo.create_sandbox {
            // Init containers begin again in the new sandbox.
            for container in &view.containers {
                if init_containers(pod).iter().any(|c| c.name == container.name) {
                    let request =
                        k8s_cri::v1::RemoveContainerRequest { container_id: container.id.clone() };
                    if let Err(error) = k.cri.remove_container(request).await {
                        tracing::warn!(%error, "cannot remove init container");
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts what the plan says, in order. The pause until the next try, if any has to wait.
    async fn start_all(&mut self, round: &Round<'_>, todo: &Plan) -> Result<(), Duration> {
        let k = Arc::clone(&self.k);
        let pod = round.pod;
        let mut pause: Option<Duration> = None;
        let ephemeral = ephemeral_containers(pod);
        let ephemeral = todo.ephemeral.iter().filter_map(|index| ephemeral.get(*index));
        let init = todo.init.iter().filter_map(|index| init_containers(pod).get(*index));
        let regular = todo.start.iter().filter_map(|index| spec(pod).containers.get(*index));
        let mut first_init_failed = false;
        let all = ephemeral
            .map(|c| (c, false))
            .chain(init.map(|c| (c, true)))
            .chain(regular.map(|c| (c, false)));
        for (container, is_init) in all {
            if first_init_failed {
                break;
            }
            match start::start(&k, round, container).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                }
                Err(not_started) => {
                    let after = not_started.after.unwrap_or_else(|| retry_after(&not_started.why));
                    pause = Some(pause.map_or(after, |p| p.min(after)));
                    self.waiting.insert(container.name.clone(), not_started.why);
                    first_init_failed = is_init && !is_sidecar(container);
                }
            }
        }
        pause.map_or(Ok(()), Err)
    }

    /// A pod that is over, or must be: stops what is left, then reports the end.
    async fn finish(&mut self, desired: &Desired, pod: &Arc<Pod>, view: &PodView) -> Turn {
        if !self.ended {
            match self.end(pod, view).await {
                Ok(()) => self.ended = true,
                Err(pause) => return Turn::Wait(pause),
            }
        }
        let view = match self.k.views.pod(&self.uid).await {
            Ok(view) => view,
            Err(_) => return Turn::Wait(RETRY),
        };
        let status = match &self.failed {
            Some(why) if self.rejected => status::rejected(pod, why, objects::now()),
            _ => self.status(pod, &view, true),
        };
        match self.report(desired, status).await {
            true => Turn::Wait(self.k.config.sync_frequency.0),
            false => Turn::Wait(RETRY),
        }
    }

    /// Stops the pod and gives back what it held.
    async fn end(&mut self, pod: &Pod, view: &PodView) -> Result<(), Duration> {
        let grace = stop::last_grace(pod, self.grace_limit);
        if view.is_alive()
            && let Err(error) = stop::pod(&self.k, Some(pod), view, grace).await
        {
            let message = format!("error killing pod: {error}");
            self.k.event(reference(pod), true, "FailedKillPod", message);
            return Err(RETRY);
        }
        self.give_back()
    }

    fn give_back(&self) -> Result<(), Duration> {
        self.k.prober.forget(&self.uid);
        self.k.tokens.forget(&self.uid);
        self.k.references.forget(&self.uid);
        // There may be room now for those that want more.
        for uid in self.k.allocations.waiting() {
            self.k.wake(&uid);
        }
        if let Err(error) = files::remove(&pod_directory(&self.k.root, &self.uid).join("volumes"))
            .and_then(|()| files::remove(&pod_directory(&self.k.root, &self.uid)))
        {
            tracing::warn!(uid = self.uid, %error, "volumes not removed");
            return Err(RETRY);
        }
        if let Err(error) = self.k.cgroups.remove_pod(&self.uid) {
            tracing::debug!(uid = self.uid, error = format!("{error:#}"), "cgroup not removed yet");
            return Err(RETRY);
        }
        Ok(())
    }

    /// A pod that was deleted: stop, report, delete from the API.
    async fn terminate(&mut self, desired: &Desired, pod: &Arc<Pod>, view: &PodView) -> Turn {
        if !self.ended {
            let now = self.status(pod, view, false);
            if !is_terminal_phase(now.phase.as_deref()) {
                self.report(desired, now).await;
            }
        }
        let turn = self.finish(desired, pod, view).await;
        if !self.ended || self.reported.is_none() {
            return turn;
        }
        if !self.deleted_from_api {
            match report::delete(&self.k, pod).await {
                Ok(()) => self.deleted_from_api = true,
                Err(error) => {
                    tracing::warn!(pod = objects::describe(pod), %error, "not deleted");
                    return Turn::Wait(RETRY);
                }
            }
        }
        turn
    }

    /// A pod that is nowhere to be found any more: removes all traces.
    async fn sweep(&mut self, pod: Option<&Arc<Pod>>, view: &PodView) -> Turn {
        if view.is_alive() {
            let grace = pod.map_or(1, |p| stop::last_grace(p, self.grace_limit));
            if let Err(error) = stop::pod(&self.k, pod.map(|p| &**p), view, grace).await {
                tracing::warn!(uid = self.uid, %error, "cannot stop");
                return Turn::Wait(RETRY);
            }
        }
        let view = match self.k.views.pod(&self.uid).await {
            Ok(view) => view,
            Err(_) => return Turn::Wait(RETRY),
        };
        if let Err(error) = stop::remove(&self.k, &view).await {
            tracing::warn!(uid = self.uid, %error, "cannot remove");
            return Turn::Wait(RETRY);
        }
        if let Err(pause) = self.give_back() {
            return Turn::Wait(pause);
        }
        let logs = match pod {
            Some(pod) => sandbox::log_directory(&self.k.logs, pod),
            None => self.k.logs.join(format!("{}_{}_{}", view.namespace, view.name, self.uid)),
        };
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, logs = %logs.display(), "logs not removed");
        }
        self.k.allocations.forget(&self.uid);
        Turn::Done
    }
}

/// When to try again after a start that failed.
fn retry_after(why: &Waiting) -> Duration {
    match why.reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => Duration::from_secs(5),
        "InvalidImageName" | "ErrImageNeverPull" => Duration::from_secs(10),
        _ => RETRY,
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
