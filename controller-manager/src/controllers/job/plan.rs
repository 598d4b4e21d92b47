//! What a job needs next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use client::lean::Pod;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::{self as core, EnvVar, EnvVarSource, ObjectFieldSelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::policy::{self, Failure};
use super::{FINALIZER, has_finalizer, indexes, unhold};
use crate::action::{Action, Plan, Target};
use crate::owners::{claim, controller_of, controller_reference};
use crate::pods::{self, is_active, is_finished, is_ready, phase};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// Pods made or deleted by one plan, and pods counted at a time, at most.
const BURST: usize = 500;
/// Pauses after failures: ten seconds, doubling up to ten minutes.
const FIRST_PAUSE: i64 = 10;
const LONGEST_PAUSE: i64 = 600;
const BACKOFF_LIMIT: i32 = 6;

/// Decides about a job and the pods of its namespace. Unless `current`, the caches are known to
/// be behind: pods are neither made nor the job declared finished.
pub fn plan(job: &Job, all: Vec<Arc<Pod>>, current: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let (Some(spec), conditions) = (&job.spec, conditions(job)) else { return plan };
    let controlled: BTreeSet<Option<String>> = all
        .iter()
        .filter(|p| controller_of(&p.metadata).map(|r| &r.uid) == job.metadata.uid.as_ref())
        .map(|p| p.metadata.uid.clone())
        .collect();
    let Some(selector) = &spec.selector else { return plan };
    let (mine, claims) = claim(job, selector, all.clone(), |p: &Pod| !is_finished(p));
    plan.actions.extend(claims);
    let kept: BTreeSet<Option<String>> = mine.iter().map(|p| p.metadata.uid.clone()).collect();
    for pod in &all {
        let uid = &pod.metadata.uid;
        if kept.contains(uid) && !controlled.contains(uid) && !has_finalizer(pod) {
            // Adopted: it is to be counted too.
            let patch = json!({"metadata": {"uid": uid, "finalizers": [FINALIZER]}});
            plan.push(Action::Patch(Target::of::<Pod>(&client::Key::of(&**pod)), "", patch));
        } else if controlled.contains(uid) && !kept.contains(uid) && has_finalizer(pod) {
            plan.push(unhold(pod));
        }
    }
    if conditions
        .iter()
        .any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
    {
        mine.iter().filter(|p| has_finalizer(p)).for_each(|p| plan.push(unhold(p)));
        return plan;
    }
    let mut work = Work::new(job, spec, mine, now);
    work.decide(&mut plan);
    if current || work.verdict().is_some() {
        work.manage(current, &mut plan);
    }
    work.finish(current, &mut plan);
    plan
}

fn conditions(job: &Job) -> Vec<JobCondition> {
    job.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default()
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(annotation)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// When a pod ended.
fn ended(pod: &Pod, now: Timestamp) -> Timestamp {
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    let times = containers
        .into_iter()
        .flatten()
        .filter_map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    times.max().or(deleted).unwrap_or(now).min(now)
}

struct Work<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: Vec<Arc<Pod>>,
    now: Timestamp,
    status: JobStatus,
    indexed: bool,
    limit: i32,
    succeeded: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// Counted, being counted, and to be counted.
    successes: i32,
    failures: i32,
    active: Vec<Arc<Pod>>,
    terminating: usize,
    deleted: usize,
}

impl<'a> Work<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, pods: Vec<Arc<Pod>>, now: Timestamp) -> Self {
        let mut status = job.status.clone().unwrap_or_default();
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        let limit = spec.completions.unwrap_or(0);
        let held: BTreeSet<String> =
            pods.iter().filter(|p| has_finalizer(p)).map(|p| uid(p)).collect();
        // Those whose finalizer is gone are counted now.
        let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
        let settle = |list: &mut Option<Vec<String>>| {
            let all = list.take().unwrap_or_default();
            let (stay, done): (Vec<_>, Vec<_>) = all.into_iter().partition(|u| held.contains(u));
            *list = Some(stay).filter(|l| !l.is_empty());
            count(done.len())
        };
        let (more, worse) = (settle(&mut uncounted.succeeded), settle(&mut uncounted.failed));
        status.succeeded = Some(status.succeeded.unwrap_or(0) + more);
        status.failed = Some(status.failed.unwrap_or(0) + worse);
        status.uncounted_terminated_pods = Some(uncounted);
        let completed = status.completed_indexes.as_deref().unwrap_or_default();
        let failed = status.failed_indexes.as_deref().unwrap_or_default();
        let active: Vec<_> = pods.iter().filter(|p| is_active(p)).cloned().collect();
        let ending = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && !is_finished(p);
        let mut work = Self {
            succeeded: indexes::parse(completed, limit),
            failed_indexes: indexes::parse(failed, limit),
            terminating: pods.iter().filter(ending).count(),
            job,
            spec,
            pods,
            now,
            status,
            indexed,
            limit,
            successes: 0,
            failures: 0,
            active,
            deleted: 0,
        };
        work.count_indexes();
        work.count();
        work
    }

    fn uncounted(&self) -> UncountedTerminatedPods {
        self.status.uncounted_terminated_pods.clone().unwrap_or_default()
    }

    fn only_failed_are_replaced(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    fn has_failed(&self, pod: &Pod) -> bool {
        phase(pod) == "Failed"
            || !self.only_failed_are_replaced()
                && pod.metadata.deletion_timestamp.is_some()
                && phase(pod) != "Succeeded"
    }

    fn valid_index(&self, pod: &Pod) -> Option<i32> {
        index_of(pod).filter(|i| *i < self.limit)
    }

    fn count_indexes(&mut self) {
        if !self.indexed {
            return;
        }
        for pod in self.pods.iter().filter(|p| has_finalizer(p)) {
            if phase(pod) == "Succeeded"
                && let Some(index) = index_of(pod).filter(|i| *i < self.limit)
            {
                self.succeeded.insert(index);
            }
        }
        let Some(limit) = self.spec.backoff_limit_per_index else { return };
        let failed: Vec<i32> = self
            .pods
            .iter()
            .filter(|p| self.has_failed(p))
            .filter(|p| {
                policy::judge(self.spec, p) == Failure::FailsIndex
                    || policy::judge(self.spec, p) == Failure::Counts
                        && number(p, INDEX_FAILURES) >= limit
            })
            .filter_map(|p| self.valid_index(p))
            .collect();
        self.failed_indexes.extend(failed);
        self.failed_indexes = &self.failed_indexes - &self.succeeded;
    }

    fn count(&mut self) {
        let uncounted = self.uncounted();
        let known: BTreeSet<String> =
            uncounted.succeeded.iter().chain(&uncounted.failed).flatten().cloned().collect();
        let fresh: Vec<&Arc<Pod>> =
            self.pods.iter().filter(|p| has_finalizer(p) && !known.contains(&uid(p))).collect();
        let succeeded = fresh.iter().filter(|p| phase(p) == "Succeeded").count();
        let failed = fresh
            .iter()
            .filter(|p| self.has_failed(p) && policy::judge(self.spec, p) != Failure::Ignored)
            .count();
        let waiting = |l: &Option<Vec<String>>| l.as_ref().map_or(0, Vec::len);
        let of = |n: Option<i32>| n.unwrap_or(0);
        self.failures = of(self.status.failed) + count(failed + waiting(&uncounted.failed));
        self.successes = match self.indexed {
            true => count(self.succeeded.len()),
            false => of(self.status.succeeded) + count(succeeded + waiting(&uncounted.succeeded)),
        };
    }

    fn suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn set(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let conditions = self.status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != type_);
        conditions.push(JobCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        });
    }

    fn condition(&self, type_: &str) -> Option<&JobCondition> {
        let conditions = self.status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|c| c.type_ == type_ && c.status == "True")
    }

    /// The end that is decided, though pods may be left.
    fn verdict(&self) -> Option<&JobCondition> {
        self.condition("SuccessCriteriaMet").or_else(|| self.condition("FailureTarget"))
    }

    /// Decides whether the job has failed, or has enough successes.
    fn decide(&mut self, plan: &mut Plan) {
        if self.status.start_time.is_none() && !self.suspended() {
            self.status.start_time = Some(Time(self.now));
        }
        if self.verdict().is_some() {
            return;
        }
        let failing = self.pods.iter().filter(|p| self.has_failed(p));
        let message = failing.into_iter().find_map(|p| match policy::judge(self.spec, p) {
            Failure::FailsJob(message) => Some(message),
            _ => None,
        });
        let limit = self.spec.backoff_limit.unwrap_or(BACKOFF_LIMIT);
        let total = self.failed_indexes.len();
        let too_many = self.spec.max_failed_indexes.is_some_and(|max| count(total) > max);
        let all_done = total > 0 && count(total + self.succeeded.len()) >= self.limit;
        let left = self.until_deadline();
        let failure = match message {
            Some(message) => Some(("PodFailurePolicy", message)),
            None if self.failures > limit || self.restarted_too_often(limit) => {
                Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()))
            }
            None if left == Some(Duration::ZERO) => Some((
                "DeadlineExceeded",
                "Job was active longer than specified deadline".to_owned(),
            )),
            None if too_many => Some((
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes".to_owned(),
            )),
            None if all_done => Some(("FailedIndexes", "Job has failed indexes".to_owned())),
            None => None,
        };
        if let Some((reason, message)) = failure {
            self.set("FailureTarget", "True", reason, &message);
        } else if let Some(message) =
            self.indexed.then(|| policy::enough(self.spec, &self.succeeded)).flatten()
        {
            self.set("SuccessCriteriaMet", "True", "SuccessPolicy", &message);
        } else if let Some(left) = left {
            plan.again(left);
        }
    }

    fn until_deadline(&self) -> Option<Duration> {
        let limit = self.spec.active_deadline_seconds.filter(|_| !self.suspended())?;
        let start = self.status.start_time.as_ref()?.0;
        let left = SignedDuration::from_secs(limit) - self.now.duration_since(start);
        Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
    }

    /// Containers that restart in place count as failures too.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|p| matches!(phase(p), "Running" | "Pending"));
        let restarts: i32 = running
            .filter_map(|p| p.status.as_ref())
            .flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten())
            .map(|c| c.restart_count)
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn delete(&mut self, pods: &[Arc<Pod>], plan: &mut Plan) {
        let gone: BTreeSet<String> = pods.iter().map(|p| uid(p)).collect();
        for pod in pods {
            plan.push(Action::delete(&**pod));
            let message =
                format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
            plan.push(Action::event(self.job, EventType::Normal, "SuccessfulDelete", message));
        }
        self.active.retain(|p| !gone.contains(&uid(p)));
        self.deleted += pods.len();
    }

    /// Makes and deletes pods.
    fn manage(&mut self, current: bool, plan: &mut Plan) {
        if self.verdict().is_some() || self.suspended() {
            let active = self.active.clone();
            self.delete(&active[..active.len().min(BURST)], plan);
            return;
        }
        if !current || self.job.metadata.deletion_timestamp.is_some() {
            return;
        }
        if self.indexed {
            self.drop_duplicates(plan);
        }
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            None if self.successes > 0 => count(self.active.len()).min(parallelism),
            None => parallelism,
            Some(completions) => {
                let open = completions - self.successes - count(self.failed_indexes.len());
                open.min(parallelism).max(0)
            }
        };
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if self.active.len() > wanted {
            let mut ranked = self.active.clone();
            // Those that have not come far go first.
            ranked.sort_by_key(|p| (phase(p) != "Pending", is_ready(p)));
            ranked.truncate((self.active.len() - wanted).min(BURST));
            self.delete(&ranked, plan);
            return;
        }
        let ending = if self.only_failed_are_replaced() { self.terminating } else { 0 };
        let missing = wanted.saturating_sub(self.active.len() + ending).min(BURST);
        match self.indexed {
            true => self.make_indexed(missing, plan),
            false => self.make(missing, plan),
        }
    }

    /// How long to wait after these pods' failures.
    fn pause(&self, pods: &[&Arc<Pod>]) -> Duration {
        let failed = pods.iter().filter(|p| self.has_failed(p));
        let last_success =
            pods.iter().filter(|p| phase(p) == "Succeeded").map(|p| ended(p, self.now)).max();
        let times: Vec<Timestamp> = failed
            .map(|p| ended(p, self.now))
            .filter(|at| last_success.is_none_or(|success| *at > success))
            .collect();
        let Some(last) = times.iter().max() else { return Duration::ZERO };
        let doublings = u32::try_from(times.len() - 1).unwrap_or(u32::MAX).min(10);
        let pause = (FIRST_PAUSE << doublings).min(LONGEST_PAUSE);
        let left = SignedDuration::from_secs(pause) - self.now.duration_since(*last);
        Duration::try_from(left).unwrap_or(Duration::ZERO)
    }

    fn make(&mut self, missing: usize, plan: &mut Plan) {
        if missing == 0 {
            return;
        }
        let pause = self.pause(&self.pods.iter().collect::<Vec<_>>());
        if !pause.is_zero() {
            return plan.again(pause);
        }
        (0..missing).for_each(|_| plan.push(Action::create(&self.pod())));
    }

    /// Pods of no index, or of one that another has.
    fn drop_duplicates(&mut self, plan: &mut Plan) {
        let mut seen = BTreeSet::new();
        let surplus: Vec<Arc<Pod>> = self
            .active
            .iter()
            .filter(|p| {
                let index = self.valid_index(p);
                !index.is_some_and(|i| !self.succeeded.contains(&i) && seen.insert(i))
            })
            .cloned()
            .collect();
        self.delete(&surplus, plan);
    }

    fn make_indexed(&mut self, missing: usize, plan: &mut Plan) {
        let mut by_index: BTreeMap<i32, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in &self.pods {
            if let Some(index) = self.valid_index(pod) {
                by_index.entry(index).or_default().push(pod);
            }
        }
        let busy: BTreeSet<i32> = self
            .pods
            .iter()
            .filter(|p| {
                is_active(p)
                    || self.only_failed_are_replaced()
                        && p.metadata.deletion_timestamp.is_some()
                        && !is_finished(p)
            })
            .filter_map(|p| self.valid_index(p))
            .collect();
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let common = match per_index {
            true => Duration::ZERO,
            false => self.pause(&self.pods.iter().collect::<Vec<_>>()),
        };
        if missing > 0 && !common.is_zero() {
            return plan.again(common);
        }
        let open = (0..self.limit).filter(|i| {
            !busy.contains(i) && !self.succeeded.contains(i) && !self.failed_indexes.contains(i)
        });
        let mut made = 0;
        for index in open {
            if made == missing {
                break;
            }
            let before = by_index.get(&index).map(Vec::as_slice).unwrap_or_default();
            if per_index {
                let pause = self.pause(before);
                if !pause.is_zero() {
                    plan.again(pause);
                    continue;
                }
            }
            plan.push(Action::create(&self.pod_of(index, before)));
            made += 1;
        }
    }

    fn pod(&self) -> core::Pod {
        let meta = &self.job.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let owner = controller_reference(self.job);
        let mut pod = pods::from_template(
            &self.spec.template,
            namespace.unwrap_or_default(),
            name.unwrap_or_default(),
            owner,
        );
        pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
        pod
    }

    fn pod_of(&self, index: i32, before: &[&Arc<Pod>]) -> core::Pod {
        let mut pod = self.pod();
        let name = self.job.metadata.name.as_deref().unwrap_or_default();
        let text = index.to_string();
        // The API adds five random characters; a host's name has 63.
        let head: String = format!("{name}-{index}-").chars().take(57).collect();
        pod.metadata.generate_name = Some(head);
        pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), text.clone());
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(INDEX.into(), text);
        if self.spec.backoff_limit_per_index.is_some() {
            let failed = before.iter().filter(|p| self.has_failed(p));
            let last = failed.max_by_key(|p| number(p, INDEX_FAILURES) + number(p, INDEX_IGNORED));
            let (mut counted, mut ignored) =
                last.map_or((0, 0), |p| (number(p, INDEX_FAILURES), number(p, INDEX_IGNORED)));
            match last.map(|p| policy::judge(self.spec, p)) {
                Some(Failure::Ignored) => ignored += 1,
                Some(_) => counted += 1,
                None => {}
            }
            annotations.insert(INDEX_FAILURES.into(), counted.to_string());
            if ignored > 0 {
                annotations.insert(INDEX_IGNORED.into(), ignored.to_string());
            }
        }
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(format!("{name}-{index}"));
        let env = EnvVar {
            name: INDEX_ENV.into(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: format!("metadata.labels['{INDEX}']"),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        };
        let first = spec.init_containers.iter_mut().flatten();
        for container in first.chain(spec.containers.iter_mut()) {
            let all = container.env.get_or_insert_default();
            if all.iter().all(|e| e.name != INDEX_ENV) {
                all.push(env.clone());
            }
        }
        pod
    }

    /// Pods that are to be counted and let go.
    fn hand_over(&mut self) -> Vec<Arc<Pod>> {
        let failing = self.condition("FailureTarget").is_some();
        let leaving = self.job.metadata.deletion_timestamp.is_some();
        let mut uncounted = self.uncounted();
        let mut gone = Vec::new();
        for pod in self.pods.iter().filter(|p| has_finalizer(p)) {
            let ending = pod.metadata.deletion_timestamp.is_some();
            let failed = self.has_failed(pod) || failing && ending;
            if !(failed || phase(pod) == "Succeeded" || leaving && ending) {
                continue;
            }
            let known = |l: &Option<Vec<String>>| l.iter().flatten().any(|u| *u == uid(pod));
            let indexed = !self.indexed || self.valid_index(pod).is_some();
            if phase(pod) == "Succeeded" {
                if !self.indexed && !known(&uncounted.succeeded) && !known(&uncounted.failed) {
                    uncounted.succeeded.get_or_insert_default().push(uid(pod));
                }
            } else if !known(&uncounted.failed)
                && indexed
                && policy::judge(self.spec, pod) != Failure::Ignored
            {
                uncounted.failed.get_or_insert_default().push(uid(pod));
            }
            gone.push(Arc::clone(pod));
            if gone.len() >= BURST {
                break;
            }
        }
        self.status.uncounted_terminated_pods = Some(uncounted);
        gone
    }

    /// Writes the status, lets counted pods go, and ends the job when nothing is left of it.
    fn finish(&mut self, current: bool, plan: &mut Plan) {
        let enough = match self.spec.completions {
            None => self.successes > 0,
            Some(completions) => self.successes >= completions,
        };
        if self.verdict().is_none() && enough && self.active.is_empty() && self.deleted == 0 {
            let message = "Reached expected number of succeeded pods";
            self.set("SuccessCriteriaMet", "True", "CompletionsReached", message);
        }
        self.suspension(plan);
        let gone = self.hand_over();
        self.status.active = Some(count(self.active.len())).filter(|n| *n > 0);
        let ready = self.active.iter().filter(|p| is_ready(p)).count();
        self.status.ready = Some(count(ready));
        self.status.terminating = Some(count(self.terminating + self.deleted));
        if self.indexed {
            self.status.succeeded = Some(count(self.succeeded.len()));
            let text = indexes::format(&self.succeeded);
            self.status.completed_indexes = Some(text).filter(|t| !t.is_empty());
            if self.spec.backoff_limit_per_index.is_some() {
                self.status.failed_indexes = Some(indexes::format(&self.failed_indexes));
            }
        }
        let uncounted = self.uncounted();
        let settled = uncounted.succeeded.is_none() && uncounted.failed.is_none();
        let nothing_left = settled && gone.is_empty() && self.active.is_empty();
        if current && nothing_left && self.terminating + self.deleted == 0 {
            self.conclude(plan);
        }
        let non_zero = |n: &mut Option<i32>| *n = n.filter(|n| *n != 0);
        non_zero(&mut self.status.succeeded);
        non_zero(&mut self.status.failed);
        if self.job.status.as_ref() != Some(&self.status) {
            let changed = Job { status: Some(self.status.clone()), ..self.job.clone() };
            plan.push(Action::update_status(&changed));
        }
        // After the status: what is not written down must not be lost.
        gone.iter().for_each(|p| plan.push(unhold(p)));
    }

    fn suspension(&mut self, plan: &mut Plan) {
        if self.verdict().is_some() {
            return;
        }
        let known = self.status.conditions.iter().flatten().find(|c| c.type_ == "Suspended");
        let before = known.map(|c| c.status == "True");
        match (self.suspended(), before) {
            (true, None | Some(false)) => {
                self.set("Suspended", "True", "JobSuspended", "Job suspended");
                let event =
                    Action::event(self.job, EventType::Normal, "Suspended", "Job suspended");
                plan.push(event);
            }
            (false, Some(true)) => {
                self.set("Suspended", "False", "JobResumed", "Job resumed");
                self.status.start_time = Some(Time(self.now));
                plan.push(Action::event(self.job, EventType::Normal, "Resumed", "Job resumed"));
            }
            _ => {}
        }
    }

    /// The last condition.
    fn conclude(&mut self, plan: &mut Plan) {
        let Some(verdict) = self.verdict().cloned() else { return };
        let (reason, message) =
            (verdict.reason.unwrap_or_default(), verdict.message.unwrap_or_default());
        if verdict.type_ == "SuccessCriteriaMet" {
            self.set("Complete", "True", &reason, &message);
            self.status.completion_time = Some(Time(self.now));
            plan.push(Action::event(self.job, EventType::Normal, "Completed", "Job completed"));
        } else {
            self.set("Failed", "True", &reason, &message);
            let reason = match reason.as_str() {
                "PodFailurePolicy" => "PodFailurePolicy",
                "DeadlineExceeded" => "DeadlineExceeded",
                "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
                "FailedIndexes" => "FailedIndexes",
                _ => "BackoffLimitExceeded",
            };
            plan.push(Action::event(self.job, EventType::Warning, reason, message));
        }
    }
}
