//! Jobs and CronJobs.

mod indexes;
mod job;
mod schedule;
mod status;

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};

use super::cells::{self, Cell, age_column, column, named, wide};
use super::check::{At, invalid_each, nonnegative, one_of, same};
use super::pods::spec::Options;
use super::pods::{self, defaults};
use super::row::Rows;
use super::{
    Deps, STATUS, begin, carry_on, checked, child, default_absent, default_to, each, keep,
};
use crate::registry::{Column, Context, SelectableField, Strategy};

const GROUP: (&str, &str) = ("batch", "v1");
/// Labels of a job's pods, the older name of each first.
const JOB_NAME: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const CONTROLLER_UID: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
/// Names of CronJobs leave room for what their jobs' names end in.
const MAX_CRON_JOB_NAME: usize = 52;
/// Where a CronJob has the spec of its jobs' pods.
const JOB_TEMPLATE: &str = "/spec/jobTemplate/spec/template/spec";

pub fn rows(rows: &mut Rows<'_>, deps: &Deps) {
    let options = Options { is_pod: false, allow_privileged: deps.allow_privileged };
    rows.add(GROUP, ("Job", "jobs"), |row| {
        row.in_all()
            .strategy(Jobs(options.clone()))
            .status(JobStatus)
            .fields(vec![SelectableField {
                label: "status.successful",
                get: |o| {
                    object::int_at(o, &["status", "succeeded"]).unwrap_or(0).to_string().into()
                },
            }])
            .columns(job_columns())
    });
    rows.add(GROUP, ("CronJob", "cronjobs"), |row| {
        row.in_all()
            .short(&["cj"])
            .strategy(CronJobs(options))
            .status(CronJobStatus)
            .columns(cron_job_columns())
    });
}

struct Jobs(Options);

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        default_job(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        if !object::bool_at(object, &["spec", "manualSelector"]) {
            generate_selector(object);
        }
        begin(object);
        pods::drop_disabled_at(object, pods::TEMPLATE, None);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        pods::drop_disabled_at(object, pods::TEMPLATE, Some(old));
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| job::job(errors, root, &self.0, true))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let labels = &old["spec"]["template"]["metadata"]["labels"];
            let prefixed = [JOB_NAME, CONTROLLER_UID].iter().all(|n| labels.get(n[1]).is_some());
            job::job(errors, root, &self.0, prefixed);
            job::update(errors, root, old, &self.0);
        })
    }

    fn deletion_warning(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set \
             propagationPolicy=Background to remove them or set propagationPolicy=Orphan to \
             suppress this warning",
        )
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings(object, old, &["spec"])
    }

    /// In v1 the pods stay, as they always did.
    fn orphans_by_default(&self) -> bool {
        true
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn default_job(object: &mut Value) {
    let template_labels = object.pointer("/spec/template/metadata/labels").cloned();
    if let Some(labels) = template_labels
        && object::map_at(object, &["metadata", "labels"]).is_none_or(|m| m.is_empty())
    {
        set(object, &["metadata", "labels"], labels);
    }
    let spec = child(object, "spec");
    defaults::template(child(spec, "template"));
    default_conditions(spec);
    let set_already = |spec: &Value, field: &str| spec.get(field).is_some_and(|v| !v.is_null());
    if !set_already(spec, "completions") && !set_already(spec, "parallelism") {
        default_absent(spec, "completions", 1);
    }
    default_absent(spec, "parallelism", 1);
    let retries = if set_already(spec, "backoffLimitPerIndex") { i32::MAX } else { 6 };
    default_absent(spec, "backoffLimit", retries);
    default_absent(spec, "completionMode", "NonIndexed");
    default_absent(spec, "suspend", false);
    let policy = set_already(spec, "podFailurePolicy");
    let replaced = if policy { "Failed" } else { "TerminatingOrFailed" };
    default_absent(spec, "podReplacementPolicy", replaced);
    default_absent(spec, "manualSelector", false);
}

/// Conditions of pods that a failure policy names are meant to be true.
fn default_conditions(job_spec: &mut Value) {
    let Some(policy) = job_spec.get_mut("podFailurePolicy") else { return };
    for rule in each(policy, "rules") {
        for pattern in each(rule, "onPodConditions") {
            default_to(pattern, "status", "True");
        }
    }
}

/// Labels that only the job's own pods have, and the selector of them.
fn generate_selector(job: &mut Value) {
    let (name, uid) = (object::name(job).to_owned(), object::uid(job).to_owned());
    const LABELS: [&str; 4] = ["spec", "template", "metadata", "labels"];
    let of = |path: &[&str]| object::get(job, path).cloned().unwrap_or_default();
    let shared = same(&of(&["metadata", "labels"]), &of(&LABELS));
    let labels = object::map_mut(job, &LABELS);
    for (keys, value) in [(JOB_NAME, &name), (CONTROLLER_UID, &uid)] {
        for key in keys {
            labels.entry(key).or_insert_with(|| value.as_str().into());
        }
    }
    // Labels that the job has from its template go on being the template's.
    if shared {
        let labels = Value::Object(labels.clone());
        set(job, &["metadata", "labels"], labels);
    }
    let wanted = object::map_mut(job, &["spec", "selector", "matchLabels"]);
    wanted.entry(CONTROLLER_UID[1]).or_insert_with(|| uid.into());
}

/// What to say of a job's spec at a path, and of the object's name.
fn warnings(object: &Value, old: Option<&Value>, path: &[&str]) -> Vec<String> {
    if old.is_some_and(|old| object::generation(object) == object::generation(old)) {
        return Vec::new();
    }
    let mut list = Vec::new();
    if old.is_none() {
        pods::pod_names_warning(&mut list, object::name(object));
    }
    let spec = At::root(object).down(path);
    let large = |field: &str, limit: i64| spec.at(field).int() > limit;
    if spec.at("completionMode").str() == "Indexed"
        && large("completions", 100_000)
        && large("parallelism", 10_000)
    {
        list.push(format!(
            "{}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism \
             higher than 10^4, Kubernetes might not be able to track completedIndexes when a big \
             number of indexes fail",
            spec.path()
        ));
    }
    list.extend(pods::template_warnings(&spec.at("template")));
    list
}

struct JobStatus;

impl Strategy for JobStatus {
    fn default(&self, object: &mut Value) {
        default_job(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep(object, old, &["metadata", "generation"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| status::update(errors, root, old))
    }
}

struct CronJobs(Options);

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        default_cron_job(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
        pods::drop_disabled_at(object, JOB_TEMPLATE, None);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        pods::drop_disabled_at(object, JOB_TEMPLATE, Some(old));
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            self.spec(errors, &root.at("spec"), None);
            let name = root.down(&["metadata", "name"]);
            if name.len() > MAX_CRON_JOB_NAME {
                errors.push(
                    name.invalid(format!("must be no more than {MAX_CRON_JOB_NAME} characters")),
                );
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| self.spec(errors, &root.at("spec"), Some(&old["spec"])))
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut list = warnings(object, old, &["spec", "jobTemplate", "spec"]);
        if old.is_some() && object::str_at(object, &["spec", "schedule"]).contains("TZ") {
            list.push(
                "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more \
                 details"
                    .to_owned(),
            );
        }
        list
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn default_cron_job(object: &mut Value) {
    let spec = child(object, "spec");
    default_to(spec, "concurrencyPolicy", "Allow");
    default_absent(spec, "suspend", false);
    default_absent(spec, "successfulJobsHistoryLimit", 3);
    default_absent(spec, "failedJobsHistoryLimit", 1);
    let job = child(child(spec, "jobTemplate"), "spec");
    defaults::template(child(job, "template"));
    default_conditions(job);
}

impl CronJobs {
    fn spec(&self, errors: &mut ErrorList, spec: &At<'_>, old: Option<&Value>) {
        let (when, zone) = (spec.at("schedule"), spec.at("timeZone"));
        if when.is_empty() {
            errors.push(when.required(""));
        } else {
            let was = old.map_or("", |o| object::str_at(o, &["schedule"]));
            cron_schedule(errors, &when, was.contains("TZ"), zone.is_set());
        }
        nonnegative(errors, &spec.at("startingDeadlineSeconds"));
        let zone_changed =
            old.is_none_or(|o| !same(o.get("timeZone").unwrap_or(&Value::Null), zone.value()));
        if zone_changed && zone.is_set() {
            time_zone(errors, &zone);
        }
        one_of(errors, &spec.at("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
        let template = spec.down(&["jobTemplate", "spec"]);
        job::spec(errors, &template, &self.0);
        let selector = template.at("selector");
        if selector.is_set() {
            errors.push(selector.invalid("`selector` will be auto-generated"));
        }
        let manual = template.at("manualSelector");
        if manual.bool() {
            errors.push(manual.not_supported(&["nil", "false"]));
        }
        nonnegative(errors, &spec.at("successfulJobsHistoryLimit"));
        nonnegative(errors, &spec.at("failedJobsHistoryLimit"));
    }
}

fn cron_schedule(errors: &mut ErrorList, at: &At<'_>, zone_allowed: bool, zone_given: bool) {
    if let Err(problem) = schedule::check(at.str()) {
        errors.push(at.invalid(problem));
    }
    if !at.str().contains("TZ") {
        return;
    }
    if !zone_allowed {
        errors.push(at.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
    } else if zone_given {
        errors.push(at.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule"));
    }
}

fn time_zone(errors: &mut ErrorList, at: &At<'_>) {
    let zone = at.str();
    if zone.is_empty() {
        errors.push(at.invalid("timeZone must be nil or non-empty string"));
        return;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    let named = |part: &str| {
        (1..=14).contains(&part.len())
            && part.bytes().all(plain)
            && !part.starts_with('-')
            && !matches!(part, "." | "..")
    };
    if !zone.split('/').all(named) {
        errors.push(at.invalid(format!("unknown time zone {zone}")));
        return;
    }
    if zone.eq_ignore_ascii_case("Local") {
        errors.push(at.invalid(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    }
    if zone != "Local" && !schedule::zone_exists(zone) {
        invalid_each(errors, at, vec![format!("unknown time zone {zone}")]);
    }
}

struct CronJobStatus;

impl Strategy for CronJobStatus {
    fn default(&self, object: &mut Value) {
        default_cron_job(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep(object, old, &["metadata", "generation"]);
    }
}

/// Whether a job has a condition, with status `True`.
fn has_condition(job: &Value, kind: &str) -> bool {
    condition(job, kind, "True")
}

fn condition(job: &Value, kind: &str, status: &str) -> bool {
    object::list_at(job, &["status", "conditions"])
        .iter()
        .any(|c| c["type"] == kind && c["status"] == status)
}

fn job_state(job: &Value) -> &'static str {
    for (condition, text) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if has_condition(job, condition) {
            return text;
        }
    }
    if !object::deletion_timestamp(job).is_empty() {
        return "Terminating";
    }
    ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find(|condition| has_condition(job, condition))
        .unwrap_or("Running")
}

fn completions(job: &Value) -> String {
    let done = object::int_at(job, &["status", "succeeded"]).unwrap_or(0);
    let parallelism = object::int_at(job, &["spec", "parallelism"]).unwrap_or(0);
    match object::int_at(job, &["spec", "completions"]) {
        Some(wanted) => format!("{done}/{wanted}"),
        None if parallelism > 1 => format!("{done}/1 of {parallelism}"),
        None => format!("{done}/1"),
    }
}

fn job_duration(job: &Value, now: jiff::Timestamp) -> String {
    let time = |field| object::str_at(job, &["status", field]);
    if time("startTime").is_empty() {
        return String::new();
    }
    let end = time("completionTime").parse().unwrap_or(now);
    cells::since(time("startTime"), end)
}

/// The columns of `-o wide` that show a pod template, and the selector.
fn template_columns(cells: [Cell; 3]) -> [Column; 3] {
    let [names, images, selector] = cells;
    [
        wide("Containers", "string", "Names of the template's containers.", names),
        wide("Images", "string", "Images of the template's containers.", images),
        wide("Selector", "string", "Labels of its pods.", selector),
    ]
}

fn job_columns() -> Vec<Column> {
    let columns = [
        column("Status", "string", "How far the job is.", |o, _| job_state(o).into()),
        column("Completions", "string", "Pods that succeeded, of those wanted.", |o, _| {
            completions(o).into()
        }),
        column("Duration", "string", "Time that the job took, or takes.", |o, now| {
            job_duration(o, now).into()
        }),
        age_column(),
    ];
    named(columns.into_iter().chain(template_columns([
        |o, _| cells::containers(&o["spec"]["template"]["spec"]).0.into(),
        |o, _| cells::containers(&o["spec"]["template"]["spec"]).1.into(),
        |o, _| cells::selector(object::get(o, &["spec", "selector"])).into(),
    ])))
}

fn cron_job_columns() -> Vec<Column> {
    fn pod(o: &Value) -> &Value {
        o.pointer("/spec/jobTemplate/spec/template/spec").unwrap_or(&Value::Null)
    }
    let columns =
        [
            column("Schedule", "string", "When jobs begin, as cron writes it.", |o, _| {
                object::str_at(o, &["spec", "schedule"]).into()
            }),
            column("Timezone", "string", "Time zone of the schedule.", |o, _| {
                match object::get(o, &["spec", "timeZone"]) {
                    Some(zone) => zone.clone(),
                    None => "<none>".into(),
                }
            }),
            column("Suspend", "boolean", "No job begins.", |o, _| {
                match object::get(o, &["spec", "suspend"]).and_then(Value::as_bool) {
                    Some(true) => "True".into(),
                    Some(false) => "False".into(),
                    None => "<unset>".into(),
                }
            }),
            column("Active", "integer", "Jobs that run.", |o, _| {
                object::list_at(o, &["status", "active"]).len().into()
            }),
            column("Last Schedule", "string", "Time since a job began.", |o, now| {
                match object::str_at(o, &["status", "lastScheduleTime"]) {
                    "" => "<none>".into(),
                    time => cells::since(time, now).into(),
                }
            }),
            age_column(),
        ];
    named(columns.into_iter().chain(template_columns([
        |o, _| cells::containers(pod(o)).0.into(),
        |o, _| cells::containers(pod(o)).1.into(),
        |o, _| cells::selector(object::get(o, &["spec", "jobTemplate", "spec", "selector"])).into(),
    ])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_of_jobs_read_as_upstreams() {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let condition = |kind: &str| json!([{"type": kind, "status": "True"}]);
        let start = "2026-01-01T00:00:00Z";
        let cases = [
            (json!({"spec": {"completions": 3}, "status": {"succeeded": 1}}), "Running", "1/3", ""),
            (json!({"spec": {"parallelism": 4}}), "Running", "0/1 of 4", ""),
            (
                json!({"spec": {"completions": 1}, "status": {"succeeded": 1, "startTime": start,
                    "completionTime": "2026-01-01T00:01:05Z", "conditions": condition("Complete")}}),
                "Complete",
                "1/1",
                "65s",
            ),
            (
                json!({"status": {"startTime": start, "conditions": condition("Suspended")}}),
                "Suspended",
                "0/1",
                "60m",
            ),
        ];
        for (job, state, done, took) in cases {
            let got = (job_state(&job), completions(&job), job_duration(&job, now));
            assert_eq!(got, (state, done.to_owned(), took.to_owned()), "{job}");
        }
    }
}
