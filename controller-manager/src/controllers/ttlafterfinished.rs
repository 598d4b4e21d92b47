//! Finished jobs with a time to live are deleted when it has passed (KEP-592).

use std::time::Duration;

use client::{Cache, Key, Queue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;

use crate::action::{Action, Plan, Propagation, Target};
use crate::runner::{Context, Controller};

pub struct TtlAfterFinished {
    jobs: Cache<Job>,
}

impl TtlAfterFinished {
    pub fn new(context: &Context) -> Self {
        Self { jobs: context.caches.of() }
    }
}

impl Controller for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.jobs.feed(queue);
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        self.jobs.get(key).map(|job| plan(&job, now)).unwrap_or_default()
    }
}

/// Decides about a job.
pub fn plan(job: &Job, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(ttl) = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished) else {
        return plan;
    };
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
    let finished = conditions
        .into_iter()
        .flatten()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    let Some(at) = finished.and_then(|c| c.last_transition_time.as_ref()) else { return plan };
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let left = SignedDuration::from_secs(i64::from(ttl)) - now.duration_since(at.0);
    match Duration::try_from(left).ok().filter(|l| !l.is_zero()) {
        Some(left) => plan.again(left),
        None => {
            let target = Target::of::<Job>(&Key::of(job));
            // Its pods go before it, as upstream has it.
            let uid = job.uid().unwrap_or_default();
            plan.push(Action::Delete(target, uid, Propagation::Foreground));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_job_goes_when_its_time_has_passed() {
        let job = |ttl: Option<i32>, condition: &str| -> Job {
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": "j", "uid": "u"},
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": condition, "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .expect("a job")
        };
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        for (ttl, condition, deletes, again) in [
            (Some(60), "Complete", true, None),
            (Some(90), "Failed", false, Some(30)),
            (Some(0), "Suspended", false, None),
            (None, "Complete", false, None),
        ] {
            let plan = plan(&job(ttl, condition), now);
            assert_eq!(!plan.actions.is_empty(), deletes, "{ttl:?} {condition}");
            assert_eq!(plan.again, again.map(Duration::from_secs), "{ttl:?} {condition}");
        }
    }
}
