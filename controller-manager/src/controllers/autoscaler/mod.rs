//! HorizontalPodAutoscalers: replicas follow what metrics say (autoscaling/v2).
//!
//! What is measured is asked for by [`measure`], what follows from it is decided in [`decide`], with
//! [`count`] for a metric and [`limits`] for how fast it may go.

mod count;
mod decide;
mod limits;
mod measure;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::selector::LabelSelector as Selector;
use client::lean::Pod;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use parking_lot::Mutex;

use crate::action::{Action, is_conflict};
use crate::runner::Context;
use decide::{Decision, Target, decide, needs_metrics};
use limits::History;
use measure::Meter;

/// What flags say.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often each autoscaler is looked at.
    pub period: Duration,
    /// How long high recommendations hold, where an autoscaler does not say.
    pub downscale_window: Duration,
    /// How far from 1 the ratio of usage to target may be, where an autoscaler does not say.
    pub tolerance: f64,
    /// So long after its start a pod's CPU counts only while it is ready, and measured since.
    pub initialization: Duration,
    /// A pod that last changed its readiness so soon after its start has never been ready.
    pub readiness_delay: Duration,
}

/// What is remembered of an autoscaler.
#[derive(Default)]
struct Known {
    history: History,
    /// Which pods its target selects.
    selector: Option<Selector>,
}

struct Autoscalers {
    autoscalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    meter: Meter,
    settings: Settings,
    known: Mutex<HashMap<Key, Known>>,
}

/// Runs until shutdown. What targets are and what metrics say is asked of the API each time, so this
/// one is no plan over caches.
pub async fn run(context: Context, settings: Settings) {
    let queue: Queue<Key> = context.queue("horizontalpodautoscaler");
    let autoscalers: Cache<HorizontalPodAutoscaler> = context.caches.of();
    let me = Arc::new(Autoscalers {
        autoscalers: autoscalers.clone(),
        pods: context.caches.of(),
        meter: Meter::new(context.client().clone()),
        settings,
        known: Mutex::default(),
    });
    let q = queue.clone();
    autoscalers.on_change(move |change| {
        // Its status changes by what is done here, and it has no generation.
        let (old, new) = (change.old.map(|o| &o.spec), change.new.map(|o| &o.spec));
        if new.is_none() || old != new {
            q.add(change.key.clone());
        }
    });
    tokio::select! {
        () = context.caches.synced() => {}
        () = context.shutdown.cancelled() => return,
    }
    let again = queue.clone();
    let work = move |key: Key| {
        let (me, context, again) = (Arc::clone(&me), context.clone(), again.clone());
        async move {
            let Some(hpa) = me.autoscalers.get(&key) else {
                me.known.lock().remove(&key);
                return Ok(());
            };
            let done = me.look_at(&key, &hpa, &context).await;
            again.add_after(key.clone(), me.settings.period);
            match done {
                Err(error) if is_conflict(&error) => Ok(()),
                Err(error) => {
                    let error = client::brief(&error);
                    tracing::warn!(controller = "horizontal-pod-autoscaler", %key, error);
                    Ok(())
                }
                Ok(()) => Ok(()),
            }
        }
    };
    queue.run("horizontalpodautoscaler", 5, work).await;
}

impl Autoscalers {
    async fn look_at(
        &self,
        key: &Key,
        hpa: &HorizontalPodAutoscaler,
        context: &Context,
    ) -> anyhow::Result<()> {
        let Some(spec) = &hpa.spec else { return Ok(()) };
        let target = self.observe(key, spec).await;
        let now = Timestamp::now();
        let mut decision = {
            let mut known = self.known.lock();
            let history = &mut known.entry(key.clone()).or_default().history;
            decide(hpa, target.as_ref().map_err(String::as_str), history, &self.settings, now)
        };
        if let (Some((replicas, _)), Ok(target)) = (&decision.rescale, &target) {
            let (mut scale, from, to) = (target.scale.clone(), target.current(), *replicas);
            scale.spec.get_or_insert_default().replicas = Some(to);
            let done = self.meter.rescale(&key.namespace, &spec.scale_target_ref, &scale).await;
            if done.is_ok() {
                let mut known = self.known.lock();
                let history = &mut known.entry(key.clone()).or_default().history;
                history.scaled(spec.behavior.as_ref(), (from, to), now);
            }
            decision.rescaled(done, now);
        }
        self.report(hpa, decision, context).await
    }

    async fn report(
        &self,
        hpa: &HorizontalPodAutoscaler,
        decision: Decision,
        context: &Context,
    ) -> anyhow::Result<()> {
        if let Some(why) = &decision.error {
            tracing::debug!(autoscaler = %Key::of(hpa), why);
        }
        for (ty, reason, message) in decision.events {
            context.executor.carry_out(Action::event(hpa, ty, reason, message)).await?;
        }
        if hpa.status.as_ref() != Some(&decision.status) {
            let status = Some(decision.status);
            let changed = HorizontalPodAutoscaler { status, ..hpa.clone() };
            context.executor.carry_out(Action::update_status(&changed)).await?;
        }
        Ok(())
    }

    /// What the target is, and what its metrics say where they decide.
    async fn observe(
        &self,
        key: &Key,
        spec: &HorizontalPodAutoscalerSpec,
    ) -> Result<Target, String> {
        let scale = self.meter.scale(&key.namespace, &spec.scale_target_ref).await?;
        let text = scale.status.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        let mut target = Target { scale, pods: Vec::new(), unsound: None, measured: Vec::new() };
        if !needs_metrics(spec, target.current()) {
            return Ok(target);
        }
        match Selector::parse(&text) {
            _ if text.is_empty() => {
                let message = "the HPA target's scale is missing a selector".to_owned();
                let told = "selector is required".to_owned();
                target.unsound = Some(("SelectorRequired", "InvalidSelector", told, message));
                return Ok(target);
            }
            Err(error) => {
                let told = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                target.unsound = Some(("InvalidSelector", "InvalidSelector", told.clone(), told));
                return Ok(target);
            }
            Ok(selector) => {
                target.pods = self.pods.list_in(&key.namespace);
                target.pods.retain(|pod| selects(&selector, pod));
                self.known.lock().entry(key.clone()).or_default().selector = Some(selector);
            }
        }
        let rivals = self.rivals(key, &target.pods);
        if !rivals.is_empty() {
            let names: Vec<String> = std::iter::once(key)
                .chain(&rivals)
                .map(|key| format!("{{{} {}}}", key.name, key.namespace))
                .collect();
            let told = format!(
                "pods by selector {text} are controlled by multiple HPAs: [{}]",
                names.join(" ")
            );
            target.unsound = Some(("AmbiguousSelector", "AmbiguousSelector", told.clone(), told));
            return Ok(target);
        }
        for metric in spec.metrics.iter().flatten() {
            target.measured.push(self.meter.measure(&key.namespace, metric, &text).await);
        }
        Ok(target)
    }

    /// Other autoscalers of some of these pods.
    fn rivals(&self, key: &Key, pods: &[Arc<Pod>]) -> Vec<Key> {
        let known = self.known.lock();
        let others =
            known.iter().filter(|(other, _)| *other != key && other.namespace == key.namespace);
        let shares = |selector: &Selector| pods.iter().any(|pod| selects(selector, pod));
        let mut rivals: Vec<Key> = others
            .filter(|(_, known)| known.selector.as_ref().is_some_and(shares))
            .map(|(other, _)| other.clone())
            .collect();
        rivals.sort();
        rivals
    }
}

fn selects(selector: &Selector, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.matches(|key| labels?.get(key).map(String::as_str))
}
