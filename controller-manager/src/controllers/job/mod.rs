//! Jobs: pods that run until enough of them have succeeded.
//!
//! A finished pod is counted exactly once: it has a finalizer, its uid is written into the status
//! as not yet counted, then the finalizer goes, then the count is raised (KEP-2307). So status
//! comes before finalizers in each plan, and the next plan does the rest.

mod indexes;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use client::events::EventType;
use client::lean::Pod;
use client::matching::selects;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use serde_json::json;

pub use self::plan::plan;
use crate::action::{Action, Plan, Target};
use crate::expectations::Expectations;
use crate::owners::{controller_key, controller_of};
use crate::runner::{Context, Controller};

/// Keeps a pod until it is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

pub struct Jobs {
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    expectations: Arc<Expectations>,
}

impl Jobs {
    pub fn new(context: &Context) -> Self {
        Self { jobs: context.caches.of(), pods: context.caches.of(), expectations: Arc::default() }
    }
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

/// Lets a pod go.
fn unhold(pod: &Pod) -> Action {
    let patch = json!({"metadata": {
        "uid": pod.metadata.uid,
        "$deleteFromPrimitiveList/finalizers": [FINALIZER],
    }});
    Action::Patch(Target::of::<Pod>(&Key::of(pod)), "", patch)
}

impl Controller for Jobs {
    fn name(&self) -> &'static str {
        "job"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.jobs.feed(queue);
        let (q, jobs) = (queue.clone(), self.jobs.clone());
        let expectations = Arc::clone(&self.expectations);
        self.pods.on_change(move |change| {
            for pod in change.old.into_iter().chain(change.new) {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if let Some(owner) = controller_key::<Job>(&pod.metadata) {
                    if change.new.is_none() || pod.metadata.deletion_timestamp.is_some() {
                        expectations.saw_end(&owner, uid);
                    } else {
                        expectations.saw(&owner, uid);
                    }
                    q.add(owner);
                } else if controller_of(&pod.metadata).is_none() {
                    for job in jobs.list_in(&change.key.namespace) {
                        let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
                        if selector.is_some_and(|s| selects(s, pod.metadata.labels.as_ref())) {
                            q.add(Key::of(&*job));
                        }
                    }
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let all = self.pods.list_in(&key.namespace);
        let job = self.jobs.get(key);
        let uid = job.as_ref().and_then(|j| j.metadata.uid.clone());
        // Pods of a job that is gone are held by nobody.
        let orphaned = |p: &&Arc<Pod>| {
            has_finalizer(p)
                && controller_key::<Job>(&p.metadata).as_ref() == Some(key)
                && controller_of(&p.metadata).map(|r| r.uid.clone()) != uid
        };
        let mut actions: Vec<Action> = all.iter().filter(orphaned).map(|p| unhold(p)).collect();
        let Some(job) = job else {
            self.expectations.forget(key);
            return Plan { actions, ..Plan::default() };
        };
        let plan = plan(&job, all, self.expectations.satisfied(key, now), now);
        for action in &plan.actions {
            if let Action::Delete(_, uid, _) = action {
                self.expectations.deleting(key, uid, now);
            }
        }
        actions.extend(plan.actions);
        Plan { actions, again: plan.again, ..Plan::default() }
    }

    fn created(&self, key: &Key, uid: &str) {
        let of = |pod: &Arc<Pod>| pod.metadata.uid.as_deref() == Some(uid);
        let seen = || self.pods.list_in(&key.namespace).iter().any(of);
        self.expectations.created(key, uid, Timestamp::now(), seen);
    }

    fn announce(&self, key: &Key, pod: &str) -> Option<Action> {
        let job = self.jobs.get(key)?;
        let message = format!("Created pod: {pod}");
        Some(Action::event(&*job, EventType::Normal, "SuccessfulCreate", message))
    }

    fn not_created(&self, key: &Key, why: &str) -> Vec<Action> {
        let Some(job) = self.jobs.get(key) else { return Vec::new() };
        let message = format!("Error creating: {why}");
        vec![Action::event(&*job, EventType::Warning, "FailedCreate", message)]
    }
}
