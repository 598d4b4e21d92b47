//! CronJobs: a job at each time of a schedule.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use client::{Cache, Key, Queue};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;

use self::schedule::Schedule;
use crate::action::{Action, Plan, Propagation, Target};
use crate::owners::{controller_key, controller_of, controller_reference};
use crate::runner::{Context, Controller};

/// The time that a job stands for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Finished jobs kept when the CronJob does not say.
const KEPT: (i32, i32) = (3, 1);

pub struct CronJobs {
    cronjobs: Cache<CronJob>,
    jobs: Cache<Job>,
}

impl CronJobs {
    pub fn new(context: &Context) -> Self {
        Self { cronjobs: context.caches.of(), jobs: context.caches.of() }
    }
}

impl Controller for CronJobs {
    fn name(&self) -> &'static str {
        "cronjob"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.cronjobs.feed(queue);
        let q = queue.clone();
        self.jobs.on_change(move |change| {
            for job in change.old.into_iter().chain(change.new) {
                if let Some(owner) = controller_key::<CronJob>(&job.metadata) {
                    q.add(owner);
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        match self.cronjobs.get(key) {
            Some(cronjob) => {
                plan(&cronjob, &self.jobs.list_in(&key.namespace), &TimeZone::system(), now)
            }
            None => Plan::default(),
        }
    }

    fn not_created(&self, key: &Key, why: &str) -> Vec<Action> {
        let Some(cronjob) = self.cronjobs.get(key) else { return Vec::new() };
        let message = format!("Error creating job: {why}");
        vec![Action::event(&*cronjob, EventType::Warning, "FailedCreate", message)]
    }
}

/// How a job ended.
fn end(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ends = |t: &str| matches!(t, "Complete" | "Failed");
    conditions.iter().find(|c| c.status == "True" && ends(&c.type_)).map(|c| c.type_.as_str())
}

fn scheduled(job: &Job) -> Option<Timestamp> {
    job.annotations().get(SCHEDULED)?.parse().ok()
}

/// Decides about a CronJob and the jobs of its namespace. `zone` counts when it names none.
pub fn plan(cronjob: &CronJob, all: &[Arc<Job>], zone: &TimeZone, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &cronjob.spec else { return plan };
    let uid = cronjob.metadata.uid.as_ref();
    let mine: Vec<&Arc<Job>> =
        all.iter().filter(|j| controller_of(&j.metadata).map(|r| &r.uid) == uid).collect();
    let mut status = cronjob.status.clone().unwrap_or_default();
    observe(cronjob, &mine, &mut status, &mut plan);
    prune(cronjob, spec, &mine, &mut plan);
    if cronjob.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        let zone = match &spec.time_zone {
            None => Ok(zone.clone()),
            Some(name) => TimeZone::get(name)
                .map_err(|e| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: {e}"))),
        };
        let parsed = Schedule::parse(&spec.schedule).map_err(|e| {
            let text = format!("unparseable schedule: {:?} : {e}", spec.schedule);
            ("UnparseableSchedule", text)
        });
        match zone.and_then(|zone| Ok((zone, parsed?))) {
            Ok((zone, schedule)) => {
                start(cronjob, spec, &mine, &status, (&schedule, &zone), now, &mut plan);
                if let Some(next) = schedule.next(now, &zone) {
                    let wait = Duration::try_from(next.duration_since(now)).unwrap_or_default();
                    // Surely after it, by the watch of whoever reads the status.
                    plan.again(wait + Duration::from_millis(100));
                }
            }
            Err((reason, message)) => {
                plan.push(Action::event(cronjob, EventType::Warning, reason, message));
            }
        }
    }
    if cronjob.status.as_ref().unwrap_or(&CronJobStatus::default()) != &status {
        let changed = CronJob { status: Some(status), ..cronjob.clone() };
        plan.push(Action::update_status(&changed));
    }
    plan
}

/// Brings the status up to what the jobs are.
fn observe(cronjob: &CronJob, mine: &[&Arc<Job>], status: &mut CronJobStatus, plan: &mut Plan) {
    let mut active = status.active.take().unwrap_or_default();
    let event =
        |reason, message: String| Action::event(cronjob, EventType::Normal, reason, message);
    active.retain(|reference| {
        let there = mine.iter().any(|j| j.metadata.uid == reference.uid);
        if !there {
            let name = reference.name.as_deref().unwrap_or_default();
            plan.push(event("MissingJob", format!("Active job went missing: {name}")));
        }
        there
    });
    for job in mine {
        let known = active.iter().any(|r| r.uid == job.metadata.uid);
        match end(job) {
            None if !known => {
                let mut reference = client::events::reference(&***job);
                reference.resource_version = job.resource_version();
                active.push(reference);
                let message = format!("Created job {}", job.name_any());
                plan.push(event("SuccessfulCreate", message));
            }
            Some(condition) if known => {
                active.retain(|r| r.uid != job.metadata.uid);
                let message =
                    format!("Saw completed job: {}, condition: {condition}", job.name_any());
                plan.push(event("SawCompletedJob", message));
            }
            _ => {}
        }
        let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
        if end(job) == Some("Complete") && completed > status.last_successful_time {
            status.last_successful_time = completed;
        }
        let at = scheduled(job).map(Time);
        if at > status.last_schedule_time {
            status.last_schedule_time = at;
        }
    }
    status.active = Some(active).filter(|a| !a.is_empty());
}

/// Deletes the oldest finished jobs.
fn prune(cronjob: &CronJob, spec: &CronJobSpec, mine: &[&Arc<Job>], plan: &mut Plan) {
    let limits = [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(KEPT.0)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(KEPT.1)),
    ];
    for (condition, limit) in limits {
        let mut ended: Vec<&&Arc<Job>> =
            mine.iter().filter(|j| end(j) == Some(condition)).collect();
        ended.sort_by_key(|j| (j.status.as_ref().and_then(|s| s.start_time.clone()), j.name_any()));
        let keep = usize::try_from(limit).unwrap_or(0);
        for job in ended.iter().take(ended.len().saturating_sub(keep)) {
            delete(cronjob, job, plan);
        }
    }
}

fn delete(cronjob: &CronJob, job: &Job, plan: &mut Plan) {
    if job.metadata.deletion_timestamp.is_some() {
        return;
    }
    let target = Target::of::<Job>(&Key::of(job));
    plan.push(Action::Delete(target, job.uid().unwrap_or_default(), Propagation::Background));
    let message = format!("Deleted job {}", job.name_any());
    plan.push(Action::event(cronjob, EventType::Normal, "SuccessfulDelete", message));
}

/// Starts the job of the last time that has come, unless it has been.
fn start(
    cronjob: &CronJob,
    spec: &CronJobSpec,
    mine: &[&Arc<Job>],
    status: &CronJobStatus,
    (schedule, zone): (&Schedule, &TimeZone),
    now: Timestamp,
    plan: &mut Plan,
) {
    let made = cronjob.metadata.creation_timestamp.as_ref();
    let last = status.last_schedule_time.as_ref().or(made).map_or(now, |t| t.0);
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let earliest = deadline.and_then(|d| now.checked_sub(d).ok()).map_or(last, |e| e.max(last));
    let (at, many) = schedule.latest(earliest, now, zone);
    let Some(at) = at else { return };
    if many {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds \
                       or check clock skew";
        plan.push(Action::event(cronjob, EventType::Warning, "TooManyMissedTimes", message));
    }
    let name = format!("{}-{}", cronjob.name_any(), at.as_second().div_euclid(60));
    if mine.iter().any(|j| j.name_any() == name) {
        return;
    }
    let running = status.active.as_deref().unwrap_or_default();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency \
                           policy is Forbid";
            plan.push(Action::event(cronjob, EventType::Normal, "JobAlreadyActive", message));
            return;
        }
        Some("Replace") => {
            let of = |j: &&&Arc<Job>| running.iter().any(|r| r.uid == j.metadata.uid);
            mine.iter().filter(of).for_each(|j| delete(cronjob, j, plan));
        }
        _ => {}
    }
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let text = at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations.insert(SCHEDULED.into(), text.replace("+00:00", "Z"));
    plan.push(Action::create(&Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cronjob.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cronjob)]),
            creation_timestamp: None,
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const MINUTE: i64 = 29_453_840; // 2026-01-01T01:20Z

    fn cronjob(spec: Value, status: Value) -> CronJob {
        let mut cronjob = json!({
            "metadata": {"namespace": "ns", "name": "c", "uid": "u",
                "creationTimestamp": "2026-01-01T01:00:00Z"},
            "spec": {"schedule": "*/10 * * * *",
                "jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}},
            "status": status,
        });
        for (key, value) in spec.as_object().expect("a map") {
            cronjob["spec"][key] = value.clone();
        }
        serde_json::from_value(cronjob).expect("a CronJob")
    }

    fn job(name: &str, condition: &str, start: &str) -> Arc<Job> {
        let conditions = match condition {
            "" => json!([]),
            c => json!([{"type": c, "status": "True"}]),
        };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": name, "uid": name,
                    "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob",
                        "name": "c", "uid": "u", "controller": true}]},
                "status": {"conditions": conditions,
                    "startTime": Some(start).filter(|s| !s.is_empty())},
            }))
            .expect("a job"),
        )
    }

    fn told(plan: &Plan) -> String {
        let texts = plan.actions.iter().filter_map(|a| match a {
            Action::Create(t, _) => Some(format!("+{}", t.key.name)),
            Action::Delete(t, ..) => Some(format!("-{}", t.key.name)),
            Action::Event(_, _, reason, _) => Some((*reason).to_owned()),
            Action::UpdatePart(_, "status", o) => {
                let active = o["status"]["active"].as_array().map_or(0, Vec::len);
                Some(format!("[{active}]"))
            }
            _ => None,
        });
        texts.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(cronjob: &CronJob, jobs: &[Arc<Job>], wanted: &str) -> Plan {
        let now = "2026-01-01T01:25:00Z".parse().expect("a time");
        let plan = plan(cronjob, jobs, &TimeZone::UTC, now);
        assert_eq!(told(&plan), wanted);
        plan
    }

    #[test]
    fn the_last_time_that_came_is_met_once() {
        let name = format!("c-{MINUTE}");
        let plan = check(&cronjob(json!({}), json!({})), &[], &format!("+{name}"));
        assert_eq!(plan.again, Some(Duration::from_millis(300_100)));
        let done = json!({"lastScheduleTime": "2026-01-01T01:20:00Z"});
        check(&cronjob(json!({}), done), &[], "");
        check(&cronjob(json!({}), json!({})), &[job(&name, "", "")], "SuccessfulCreate [1]");
        check(&cronjob(json!({"suspend": true}), json!({})), &[], "");
        check(&cronjob(json!({"startingDeadlineSeconds": 200}), json!({})), &[], "");
        check(&cronjob(json!({"schedule": "x"}), json!({})), &[], "UnparseableSchedule");
        check(&cronjob(json!({"timeZone": "Mars/Base"}), json!({})), &[], "UnknownTimeZone");
    }

    #[test]
    fn a_job_that_still_runs_is_left_replaced_or_waited_for() {
        let active = json!({"lastScheduleTime": "2026-01-01T01:10:00Z",
            "active": [{"name": "old", "uid": "old"}]});
        let old = [job("old", "", "")];
        let of = |policy: &str| cronjob(json!({"concurrencyPolicy": policy}), active.clone());
        check(&of("Allow"), &old, &format!("+c-{MINUTE}"));
        check(&of("Forbid"), &old, "JobAlreadyActive");
        check(&of("Replace"), &old, &format!("-old SuccessfulDelete +c-{MINUTE}"));
        check(&of("Forbid"), &[], &format!("MissingJob +c-{MINUTE} [0]"));
    }

    #[test]
    fn finished_jobs_are_kept_up_to_the_limits() {
        let done = json!({"lastScheduleTime": "2026-01-01T01:20:00Z"});
        let jobs = [
            job("a", "Complete", "2026-01-01T01:02:00Z"),
            job("b", "Complete", "2026-01-01T01:01:00Z"),
            job("x", "Failed", "2026-01-01T01:01:00Z"),
        ];
        let limits = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1});
        check(&cronjob(limits, done), &jobs, "-b SuccessfulDelete");
    }
}
