//! The loop: caches feed snapshot and queue; each pod in turn is given a node, and bound.

mod binding;
mod storage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use client::election::{self, Candidate, Timing, Watchdog};
use client::error::line;
use client::events::{EventType, Recorder, reference};
use client::lean::Pod;
use client::lease::LeaseLock;
use client::{Cache, Caches, Change, Key, secure};
use component::leader::Leader;
use component::metrics::{Kind, Page};
use component::serving::text;
use component::shutdown::Scope;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Options};
use crate::cycle::{self, Unschedulable};
use crate::framework::{ClusterEvent, Refused, Waiter};
use crate::owners::OwnerKind;
use crate::preemption::Preemption;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::resources::of_pod;
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
    profiles: Vec<Profile>,
    client: kube::Client,
    /// For each profile, as whose events are its scheduler's.
    recorders: Vec<Recorder>,
    metrics: Metrics,
    /// Bindings and reports under way.
    tasks: TaskTracker,
    /// Claims or volumes have changed, or a pod has gone.
    storage: Notify,
    stopping: CancellationToken,
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
    let mut config = options.settle()?;
    let client = client::connect_to(&config.kubeconfig, config.master.as_deref(), NAME).await?;
    let recorder = |of: &str| Recorder::start(client.clone(), of, "", shutdown.child_token());
    let recorders: Vec<Recorder> = config.profiles.iter().map(|p| recorder(&p.scheduler)).collect();
    let candidate = match &config.leader {
        Some(leader) => Some(candidate(leader, &client, recorder(DEFAULT_COMPONENT))?),
        None => None,
    };
    let watchdog = candidate.as_ref().map(|c| c.watchdog.clone()).unwrap_or_default();
    let mut scope = Scope::new(&shutdown);
    let scheduler = Arc::new(Scheduler {
        state: Mutex::new(State { queue: Queue::new(config.pauses), ..State::default() }),
        wake: Notify::new(),
        profiles: std::mem::take(&mut config.profiles),
        client: client.clone(),
        recorders,
        metrics: Metrics::default(),
        tasks: TaskTracker::new(),
        storage: Notify::new(),
        stopping: scope.token().clone(),
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
    recorder: Recorder,
) -> anyhow::Result<Candidate<LeaseLock>> {
    let timing = Timing { lease: leader.lease, deadline: leader.deadline, retry: leader.retry };
    let place = (leader.namespace.as_str(), leader.name.as_str());
    Candidate::new(client, place, timing, recorder)
}

const NAME: &str = "kube-scheduler";
/// Source of the events of elections.
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
    /// The profile for a pod: what its scheduler name asks for.
    fn profile(&self, pod: &Pod) -> Option<&Profile> {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or_default();
        self.profiles.iter().find(|p| p.scheduler == name)
    }

    /// Reports something to do with a pod, as its scheduler.
    fn report(&self, of: &Pod, about: &Pod, type_: EventType, reason: &str, message: String) {
        let name = of.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or_default();
        let own = self.profiles.iter().position(|p| p.scheduler == name);
        if let Some(recorder) = own.and_then(|i| self.recorders.get(i)) {
            recorder.event(reference(about), type_, reason, message);
        }
    }

    /// Whether an event may help a pod that these plugins refused, of any profile.
    fn helps(&self, plugins: &[&'static str], event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
        self.profiles.iter().any(|p| p.helps(plugins, event, pod))
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
        let me = Arc::clone(self);
        caches.of::<Service>().on_change(move |change| {
            let selector = change.new.and_then(|s| s.spec.as_ref()?.selector.as_ref());
            let owners = &mut me.state.lock().snapshot.owners;
            owners.set_service(&change.key.namespace, &change.key.name, selector);
        });
        let me = Arc::clone(self);
        caches.of::<ReplicationController>().on_change(move |change| {
            let labels = change.new.and_then(|rc| rc.spec.as_ref()?.selector.clone());
            let selector = labels.map(|labels| LabelSelector {
                match_labels: Some(labels),
                match_expressions: None,
            });
            me.owner(OwnerKind::ReplicationController, change.key, selector);
        });
        let me = Arc::clone(self);
        caches.of::<ReplicaSet>().on_change(move |change| {
            let selector = change.new.and_then(|rs| Some(rs.spec.as_ref()?.selector.clone()));
            me.owner(OwnerKind::ReplicaSet, change.key, selector);
        });
        let me = Arc::clone(self);
        caches.of::<StatefulSet>().on_change(move |change| {
            let selector = change.new.and_then(|set| Some(set.spec.as_ref()?.selector.clone()));
            me.owner(OwnerKind::StatefulSet, change.key, selector);
        });
        self.follow_storage(caches);
        caches.of::<PodDisruptionBudget>();
    }

    fn owner(&self, kind: OwnerKind, key: &Key, selector: Option<LabelSelector>) {
        self.state.lock().snapshot.owners.set_controller(kind, key, selector);
    }

    /// Schedules without end.
    async fn schedule(self: Arc<Self>, caches: &Caches) {
        let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
        let (namespaces, budgets) = (caches.of::<Namespace>(), caches.of::<PodDisruptionBudget>());
        // Before all pods are known, nodes would look empty.
        tokio::join!(nodes.synced(), namespaces.synced(), pods.synced());
        let (services, sets) = (caches.of::<Service>(), caches.of::<StatefulSet>());
        let (rcs, rss) = (caches.of::<ReplicationController>(), caches.of::<ReplicaSet>());
        tokio::join!(services.synced(), rcs.synced(), rss.synced(), sets.synced());
        Self::storage_synced(caches).await;
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
                    start += self.one(key, pod, start, &budgets);
                    // Other tasks of this thread get their turn.
                    tokio::task::yield_now().await;
                }
                _ => self.state.lock().queue.remove(&key),
            }
        }
    }

    /// A pod that waits for us: not placed, not ending.
    fn is_mine(&self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        node.unwrap_or_default().is_empty()
            && pod.metadata.deletion_timestamp.is_none()
            && self.profile(pod).is_some()
    }

    /// Schedules one pod; how many nodes were looked at.
    fn one(
        self: &Arc<Self>,
        key: Key,
        pod: Arc<Pod>,
        start: usize,
        budgets: &Cache<PodDisruptionBudget>,
    ) -> usize {
        let info = Arc::new(PodInfo::new(Arc::clone(&pod)));
        let mut state = self.state.lock();
        let profile = match self.profile(&pod) {
            Some(profile) if !state.snapshot.is_assumed(&info.uid) => profile,
            _ => {
                state.queue.remove(&key);
                return 0;
            }
        };
        let random = |n: usize| rand::random_range(0..n);
        let (found, seen) = cycle::look(profile, &state.snapshot, &info, start, random);
        let why = match found {
            Ok(node) => {
                state.snapshot.assume(&info, &node);
                let mut reserving = profile.reserve.iter().filter_map(|p| p.reserve());
                let reserved =
                    reserving.try_for_each(|p| p.reserve(&info, &node, &mut state.snapshot));
                drop(state);
                let me = Arc::clone(self);
                self.tasks.spawn(async move { me.bind(key, info, node, reserved).await });
                return seen;
            }
            Err(why) => *why,
        };
        let budgets = budgets.list();
        let (why, sacrifice) = self.preempt(&mut state, profile, &info, why, (&budgets, start));
        state.queue.refused(&info, &why.plugins, Timestamp::now());
        let nominated = state.snapshot.nominated(&info.uid).map(str::to_owned);
        drop(state);
        self.metrics.unschedulable.fetch_add(1, Ordering::Relaxed);
        let me = Arc::clone(self);
        self.tasks.spawn(async move {
            me.tell(&pod, "Unschedulable", why.message(), nominated).await;
            if let Some(sacrifice) = sacrifice {
                me.sacrifice(&pod, sacrifice).await;
            }
        });
        seen
    }

    /// Looks for a node that others can be sent away from, and keeps it for the pod.
    fn preempt(
        &self,
        state: &mut State,
        profile: &Profile,
        info: &Arc<PodInfo>,
        mut why: Unschedulable,
        (budgets, start): (&[Arc<PodDisruptionBudget>], usize),
    ) -> (Unschedulable, Option<Sacrifice>) {
        let plugin = profile.post_filter.iter().find_map(|p| p.post_filter());
        let Some(plugin) = plugin.filter(|_| why.nodes > 0) else { return (why, None) };
        let snapshot = &state.snapshot;
        let refused = Refused { profile, snapshot, pod: info, why: &why, budgets, start };
        match plugin.make_room(&refused) {
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
            self.report(pod, &victim.pod, EventType::Normal, "Preempted", message);
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

    /// Tells a pod's owner why it waits: an event, and the condition PodScheduled.
    async fn tell(&self, pod: &Pod, reason: &str, message: String, nominated: Option<String>) {
        self.report(pod, pod, EventType::Warning, "FailedScheduling", message.clone());
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
        let have = conditions.unwrap_or_default().iter().find(|c| c.type_ == "PodScheduled");
        let same = have.is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some(reason)
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
            "type": "PodScheduled", "status": "False", "reason": reason,
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

    fn event(&self, state: &mut State, event: &ClusterEvent<'_>) {
        let helps = |plugins: &[&'static str], pod: &Waiter<'_>| self.helps(plugins, event, pod);
        state.queue.event(helps, Timestamp::now());
        self.wake.notify_one();
    }

    fn node(&self, change: &Change<'_, Node>) {
        let mut state = self.state.lock();
        state.snapshot.set_node(&change.key.name, change.new.cloned());
        match (change.old, change.new) {
            (None, Some(_)) => self.event(&mut state, &ClusterEvent::NodeAdded),
            (Some(old), Some(new)) if matters(old, new) => {
                self.event(&mut state, &ClusterEvent::NodeChanged);
            }
            // One domain less may be one less to spread over.
            (Some(_), None) => self.event(&mut state, &ClusterEvent::NodeChanged),
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

    /// A pod is there no more.
    fn gone(&self, state: &mut State, key: &Key, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let had_a_node = state.snapshot.holds(uid);
        state.snapshot.remove_pod(uid);
        state.queue.remove(key);
        self.storage.notify_waiters();
        if had_a_node {
            self.event(state, &ClusterEvent::PodGone(pod));
        }
    }

    fn pod(&self, change: &Change<'_, Pod>) {
        let mut state = self.state.lock();
        let is_another =
            |old: &Arc<Pod>| change.new.is_none_or(|pod| old.metadata.uid != pod.metadata.uid);
        let (old, gone) = match change.old {
            Some(other) if is_another(other) => (None, Some(other)),
            same => (same, None),
        };
        if let Some(gone) = gone {
            self.gone(&mut state, change.key, gone);
        }
        let Some(pod) = change.new else { return };
        let nomination =
            |p: &Pod| p.status.as_ref()?.nominated_node_name.clone().filter(|n| !n.is_empty());
        if old.is_some_and(|old| nomination(old).is_some()) && nomination(pod).is_none() {
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
            let gated = self.profile(pod).is_some_and(|p| p.enqueue(&info).is_err());
            match gated {
                true => state.queue.remove(change.key),
                // Only what the pod wants can matter, not what is reported of it.
                false
                    if old.is_none_or(|old| {
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
        let was_placed = old.is_some_and(placed);
        let resized = |old: &Arc<Pod>| of_pod(old) != info.requests;
        // What others' constraints can tell it by.
        let looks_other = |old: &Arc<Pod>| {
            let (old, new) = (&old.metadata, &pod.metadata);
            old.labels != new.labels
                || old.deletion_timestamp.is_some() != new.deletion_timestamp.is_some()
        };
        if old.is_some_and(|old| !finished(old)) && finished(pod) {
            self.event(&mut state, &ClusterEvent::PodGone(pod));
        } else if was_placed && old.is_some_and(resized) {
            self.event(&mut state, &ClusterEvent::PodResized);
        } else if placed(pod) && (!was_placed || old.is_some_and(looks_other)) {
            self.event(&mut state, &ClusterEvent::PodPlaced);
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
