//! The loop: caches feed snapshot and queue; each pod in turn is given a node, and bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use client::election::{self, Candidate, Timing, Watchdog};
use client::error::line;
use client::events::{EventType, Recorder, reference};
use client::lease::LeaseLock;
use client::{Cache, Caches, Change, Key, secure};
use component::leader::Leader;
use component::metrics::{Kind, Page};
use component::serving::text;
use component::shutdown::Scope;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Options};
use crate::cycle::{self, Unschedulable};
use crate::framework::{ClusterEvent, Plugin};
use crate::plugins::{self, Weighted};
use crate::preemption::{self, Preemption};
use crate::queue::Queue;
use crate::snapshot::{PodInfo, Snapshot};

/// Snapshot and queue: changed together, by the caches' handlers and the loop.
#[derive(Default)]
struct State {
    snapshot: Snapshot,
    queue: Queue,
}

struct Scheduler {
    state: Mutex<State>,
    wake: Notify,
    plugins: Vec<Weighted>,
    schedulers: Vec<String>,
    percentage: usize,
    client: kube::Client,
    recorder: Recorder,
    metrics: Metrics,
    /// Bindings and reports under way.
    tasks: TaskTracker,
}

#[derive(Default)]
struct Metrics {
    scheduled: AtomicU64,
    unschedulable: AtomicU64,
    errors: AtomicU64,
}

/// What a preemption costs.
struct Sacrifice {
    preemption: Preemption,
    /// Pods of lower priority that the same node was kept for.
    lower: Vec<Arc<PodInfo>>,
}

/// Runs until shutdown. All that it started has ended when it returns.
///
/// # Errors
/// A flag, the config file or the kubeconfig is wrong, a port is taken, or another leads now.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = options.settle()?;
    let client = client::connect_to(&config.kubeconfig, config.master.as_deref(), NAME).await?;
    let recorder = Recorder::start(client.clone(), DEFAULT_COMPONENT, "", shutdown.child_token());
    let candidate = match &config.leader {
        Some(leader) => Some(candidate(leader, &client, &recorder)?),
        None => None,
    };
    let watchdog = candidate.as_ref().map(|c| c.watchdog.clone()).unwrap_or_default();
    let mut scope = Scope::new(&shutdown);
    let scheduler = Arc::new(Scheduler {
        state: Mutex::default(),
        wake: Notify::new(),
        plugins: plugins::defaults(),
        schedulers: config.schedulers.clone(),
        percentage: config.percentage,
        client: client.clone(),
        recorder,
        metrics: Metrics::default(),
        tasks: TaskTracker::new(),
    });
    let mut ended = serve(&config, &scheduler, watchdog, &mut scope).await;
    // Candidates keep their caches warm. They wait for the API server by themselves.
    let caches = Caches::new(client, scope.token().clone());
    scheduler.follow(&caches);
    let mut office = None;
    if let (Ok(()), Some(candidate)) = (&ended, candidate) {
        office = election::acquire(candidate, scope.token()).await;
    }
    if ended.is_ok() && !shutdown.is_cancelled() {
        let (me, token) = (Arc::clone(&scheduler), scope.token().clone());
        scope.spawn("scheduling", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = Arc::clone(&me).schedule(&caches) => {}
            }
            // Bindings that have begun are finished, so that their pods are not placed twice.
            me.tasks.close();
            me.tasks.wait().await;
        });
        ended = tokio::select! {
            biased;
            () = election::lost(&office) => Err(anyhow!("leaderelection lost")),
            ended = scope.until_shutdown() => ended,
        };
    }
    match office {
        // Another may schedule already.
        Some(office) if office.is_lost() => scope.abort().await,
        Some(office) => {
            scope.end().await;
            office.release().await;
        }
        None => scope.end().await,
    }
    ended
}

fn candidate(
    leader: &Leader,
    client: &kube::Client,
    recorder: &Recorder,
) -> anyhow::Result<Candidate<LeaseLock>> {
    let timing = Timing { lease: leader.lease, deadline: leader.deadline, retry: leader.retry };
    let place = (leader.namespace.as_str(), leader.name.as_str());
    Candidate::new(client, place, timing, recorder.clone())
}

const NAME: &str = "kube-scheduler";
/// Source of the events.
const DEFAULT_COMPONENT: &str = "default-scheduler";

async fn serve(
    config: &Config,
    scheduler: &Arc<Scheduler>,
    watchdog: Watchdog,
    scope: &mut Scope,
) -> anyhow::Result<()> {
    let scheduler = Arc::clone(scheduler);
    let routes = move |path: &str| match path {
        "/healthz" | "/readyz" => match watchdog.check() {
            Ok(()) => text(200, "ok"),
            Err(why) => text(500, format!("leaderElection: {why}\nhealthz check failed\n")),
        },
        "/livez" => text(200, "ok"),
        "/metrics" => text(200, scheduler.metrics()),
        _ => text(404, "404 page not found\n"),
    };
    secure::serve(&config.secure, config.port, NAME, routes, scope).await
}

impl Scheduler {
    fn all(&self) -> Vec<&dyn Plugin> {
        self.plugins.iter().map(|w| &*w.plugin).collect()
    }

    fn metrics(&self) -> String {
        let mut page = Page::default();
        page.process();
        let name = "scheduler_schedule_attempts_total";
        page.family(name, Kind::Counter, "Number of attempts to schedule pods, by the result.");
        for (result, count) in [
            ("error", &self.metrics.errors),
            ("scheduled", &self.metrics.scheduled),
            ("unschedulable", &self.metrics.unschedulable),
        ] {
            page.sample(name, &[("result", result)], count.load(Ordering::Relaxed) as f64);
        }
        let help = "Number of pending pods.";
        let pending = self.state.lock().queue.len() as f64;
        page.single("scheduler_pending_pods", Kind::Gauge, help, pending);
        page.text()
    }

    /// Lets the caches feed snapshot and queue.
    fn follow(self: &Arc<Self>, caches: &Caches) {
        let me = Arc::clone(self);
        caches.of::<Node>().on_change(move |change| me.node(change));
        let me = Arc::clone(self);
        caches.of::<Namespace>().on_change(move |change| me.namespace(change));
        let me = Arc::clone(self);
        caches.of::<Pod>().on_change(move |change| me.pod(change));
        caches.of::<PodDisruptionBudget>();
    }

    /// Schedules without end.
    async fn schedule(self: Arc<Self>, caches: &Caches) {
        let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
        let (namespaces, budgets) = (caches.of::<Namespace>(), caches.of::<PodDisruptionBudget>());
        // Before all pods are known, nodes would look empty.
        tokio::join!(nodes.synced(), namespaces.synced(), pods.synced());
        let mut start = 0;
        loop {
            let woken = self.wake.notified();
            let (key, due) = {
                let mut state = self.state.lock();
                (state.queue.pop(Timestamp::now()), state.queue.next_due())
            };
            let Some(key) = key else {
                let pause = due.map_or(Duration::from_secs(60), |at| {
                    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
                });
                tokio::select! {
                    () = woken => {}
                    () = tokio::time::sleep(pause) => {}
                }
                continue;
            };
            match pods.get(&key) {
                Some(pod) if self.is_mine(&pod) => {
                    self.one(key, pod, start, &budgets);
                    start += 1;
                    // Other tasks of this thread get their turn.
                    tokio::task::yield_now().await;
                }
                _ => self.state.lock().queue.remove(&key),
            }
        }
    }

    /// A pod that waits for us: not placed, not ending.
    fn is_mine(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let name = spec.scheduler_name.as_deref().unwrap_or_default();
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && pod.metadata.deletion_timestamp.is_none()
            && self.schedulers.iter().any(|s| s == name)
    }

    fn one(
        self: &Arc<Self>,
        key: Key,
        pod: Arc<Pod>,
        start: usize,
        budgets: &Cache<PodDisruptionBudget>,
    ) {
        let info = Arc::new(PodInfo::new(Arc::clone(&pod)));
        let mut state = self.state.lock();
        if state.snapshot.is_assumed(&info.uid) {
            state.queue.remove(&key);
            return;
        }
        let random = |n: usize| rand::random_range(0..n);
        let why = match cycle::schedule_share(
            &self.plugins,
            &state.snapshot,
            &info,
            (start, self.percentage),
            random,
        ) {
            Ok(node) => {
                state.snapshot.assume(&info, &node);
                drop(state);
                let me = Arc::clone(self);
                self.tasks.spawn(async move { me.bind(key, info, node).await });
                return;
            }
            Err(why) => why,
        };
        let (why, sacrifice) = self.preempt(&mut state, &info, why, &budgets.list(), start);
        state.queue.refused(&key, &why.plugins, &self.all(), Timestamp::now());
        let nominated = state.snapshot.nominated(&info.uid).map(str::to_owned);
        drop(state);
        self.metrics.unschedulable.fetch_add(1, Ordering::Relaxed);
        let me = Arc::clone(self);
        self.tasks.spawn(async move {
            me.tell(&pod, &why, nominated).await;
            if let Some(sacrifice) = sacrifice {
                me.sacrifice(&pod, sacrifice).await;
            }
        });
    }

    /// Looks for a node that others can be sent away from, and keeps it for the pod.
    fn preempt(
        &self,
        state: &mut State,
        info: &Arc<PodInfo>,
        mut why: Unschedulable,
        budgets: &[Arc<PodDisruptionBudget>],
        start: usize,
    ) -> (Unschedulable, Option<Sacrifice>) {
        if why.nodes == 0 {
            return (why, None);
        }
        match preemption::preempt(&self.plugins, &state.snapshot, info, &why, budgets, start) {
            Ok(preemption) => {
                // Lower ones that waited for the same room look elsewhere.
                let lower = state.snapshot.nominated_below(&preemption.node, info.priority());
                lower.iter().for_each(|p| state.snapshot.withdraw(&p.uid));
                state.snapshot.nominate(info, &preemption.node);
                (why, Some(Sacrifice { preemption, lower }))
            }
            Err(text) => {
                if !text.starts_with("not eligible") {
                    state.snapshot.withdraw(&info.uid);
                }
                why.preemption = text;
                (why, None)
            }
        }
    }

    /// Sends the victims away.
    async fn sacrifice(&self, pod: &Pod, sacrifice: Sacrifice) {
        let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        let text = "preempting to accommodate a higher priority pod";
        let message = format!("{}: {text}", scheduler.unwrap_or_default());
        let node = &sacrifice.preemption.node;
        let leaving = |p: &PodInfo| p.pod.metadata.deletion_timestamp.is_some();
        for victim in sacrifice.preemption.victims.iter().filter(|p| !leaving(p)) {
            if let Err(error) = self.evict(victim, &message).await {
                let error = client::brief(&error);
                tracing::warn!(pod = %Key::of(pod), victim = %victim.key, error, "preemption");
                continue;
            }
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let message = format!("Preempted by pod {uid} on node {node}");
            let about = reference(&*victim.pod);
            self.recorder.event(about, EventType::Normal, "Preempted", message);
        }
        for pod in sacrifice.lower {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), pod.namespace());
            let patch =
                json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": null}});
            let (name, params) = (&pod.key.name, PatchParams::default());
            if let Err(error) = api.patch_status(name, &params, &Patch::Strategic(patch)).await {
                tracing::debug!(pod = %pod.key, error = line(&error), "nomination not withdrawn");
            }
        }
    }

    async fn evict(&self, victim: &PodInfo, message: &str) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), victim.namespace());
        let mut condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": message,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        if let Some(generation) = victim.pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
        let gone = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.code == 404);
        let (name, params) = (&victim.key.name, PatchParams::default());
        match api.patch_status(name, &params, &Patch::Strategic(patch)).await {
            Err(error) if gone(&error) => return Ok(()),
            done => done.context("condition")?,
        };
        let preconditions = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(name, &params).await {
            Err(error) if gone(&error) => Ok(()),
            done => done.map(drop).context("delete"),
        }
    }

    async fn bind(&self, key: Key, info: Arc<PodInfo>, node: String) {
        let result = self.post_binding(&key, &info, &node).await;
        let mut state = self.state.lock();
        match result {
            Ok(()) => {
                state.queue.remove(&key);
                drop(state);
                self.metrics.scheduled.fetch_add(1, Ordering::Relaxed);
                let message = format!("Successfully assigned {key} to {node}");
                self.recorder.event(reference(&*info.pod), EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                state.snapshot.forget(&info.uid);
                state.queue.failed(&key, Timestamp::now());
                drop(state);
                self.metrics.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(pod = %key, node, error = client::brief(&error), "binding");
                self.wake.notify_one();
            }
        }
    }

    async fn post_binding(&self, key: &Key, info: &PodInfo, node: &str) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let _: serde_json::Value = pods
            .create_subresource("binding", &key.name, &PostParams::default(), &binding)
            .await
            .context("binding rejected")?;
        Ok(())
    }

    /// Tells a pod's owner why it waits: an event, and the condition PodScheduled.
    async fn tell(&self, pod: &Pod, why: &Unschedulable, nominated: Option<String>) {
        let message = why.message();
        let about = reference(pod);
        self.recorder.event(about, EventType::Warning, "FailedScheduling", message.clone());
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
        let have = conditions.unwrap_or_default().iter().find(|c| c.type_ == "PodScheduled");
        let same = have.is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some("Unschedulable")
                && c.message.as_deref() == Some(message.as_str())
        });
        let kept = pod.status.as_ref().and_then(|s| s.nominated_node_name.clone());
        if same && kept.filter(|n| !n.is_empty()) == nominated {
            return;
        }
        let key = Key::of(pod);
        let since = match have.filter(|c| c.status == "False") {
            Some(c) => json!(c.last_transition_time),
            None => json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        };
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message, "lastTransitionTime": since,
        });
        if let Some(generation) = pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [condition], "nominatedNodeName": nominated},
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let patched =
            pods.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = patched {
            tracing::debug!(pod = %key, error = line(&error), "condition not written");
        }
    }

    fn event(&self, state: &mut State, event: ClusterEvent) {
        state.queue.event(event, &self.all(), Timestamp::now());
        self.wake.notify_one();
    }

    fn node(&self, change: &Change<'_, Node>) {
        let mut state = self.state.lock();
        state.snapshot.set_node(&change.key.name, change.new.cloned());
        match (change.old, change.new) {
            (None, Some(_)) => self.event(&mut state, ClusterEvent::NodeAdded),
            (Some(old), Some(new)) if matters(old, new) => {
                self.event(&mut state, ClusterEvent::NodeChanged);
            }
            _ => {}
        }
    }

    fn namespace(&self, change: &Change<'_, Namespace>) {
        let mut state = self.state.lock();
        let name = change.key.name.clone();
        match change.new {
            Some(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                state.snapshot.namespaces.insert(name, labels);
            }
            None => {
                state.snapshot.namespaces.remove(&name);
            }
        }
    }

    fn pod(&self, change: &Change<'_, Pod>) {
        let mut state = self.state.lock();
        let Some(pod) = change.new else {
            let old = change.old.and_then(|p| p.metadata.uid.as_deref());
            state.snapshot.remove_pod(old.unwrap_or_default());
            state.queue.remove(change.key);
            return self.event(&mut state, ClusterEvent::PodGone);
        };
        if let Some(old) = change.old.filter(|old| old.metadata.uid != pod.metadata.uid) {
            state.snapshot.remove_pod(old.metadata.uid.as_deref().unwrap_or_default());
            state.queue.remove(change.key);
        }
        let nomination =
            |p: &Pod| p.status.as_ref()?.nominated_node_name.clone().filter(|n| !n.is_empty());
        if change.old.is_some_and(|old| nomination(old).is_some()) && nomination(pod).is_none() {
            state.snapshot.withdraw(pod.metadata.uid.as_deref().unwrap_or_default());
        }
        let info = Arc::new(PodInfo::new(Arc::clone(pod)));
        let finished = |p: &Pod| {
            let phase = p.status.as_ref().and_then(|s| s.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        state.snapshot.set_pod(&info);
        if self.is_mine(pod) && !finished(pod) {
            if state.snapshot.is_assumed(&info.uid) {
                return;
            }
            let gated = self.plugins.iter().any(|w| w.plugin.enqueue(&info).is_err());
            match gated {
                true => state.queue.remove(change.key),
                // Only what the pod wants can matter, not what is reported of it.
                false
                    if change.old.is_none_or(|old| {
                        old.spec != pod.spec || old.metadata.labels != pod.metadata.labels
                    }) =>
                {
                    state.queue.add(change.key, info.priority(), Timestamp::now());
                }
                false => {}
            }
            self.wake.notify_one();
            return;
        }
        state.queue.remove(change.key);
        let placed = |p: &Arc<Pod>| p.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        let was_placed = change.old.is_some_and(placed);
        if change.old.is_some_and(|old| !finished(old)) && finished(pod) {
            self.event(&mut state, ClusterEvent::PodGone);
        } else if placed(pod) && !was_placed {
            self.event(&mut state, ClusterEvent::PodPlaced);
        }
    }
}

/// Whether a change of a node can make a difference; heartbeats do not.
fn matters(old: &Node, new: &Node) -> bool {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || allocatable(old) != allocatable(new)
}
