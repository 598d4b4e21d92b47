//! Rules of a job's status: whoever manages a job keeps to the same transitions. A rule is held to
//! only where what it is about has changed.

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object;

use super::{condition, has_condition, indexes};
use crate::registry::kinds::check::{At, Seen, nonnegative, same};

fn finished(job: &Value) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

/// Which parts of the status differ.
struct Changed<'a> {
    new: &'a Value,
    old: &'a Value,
}

impl Changed<'_> {
    fn field(&self, name: &str) -> bool {
        let of = |o: &Value| object::get(o, &["status", name]).cloned().unwrap_or_default();
        !same(&of(self.new), &of(self.old))
    }

    fn condition(&self, kind: &str) -> bool {
        has_condition(self.new, kind) != has_condition(self.old, kind)
    }

    fn finished(&self) -> bool {
        finished(self.new) != finished(self.old)
    }
}

pub fn update(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let changed = Changed { new: root.value(), old };
    let status = root.at("status");
    numbers(errors, &status);
    uncounted(errors, &status.at("uncountedTerminatedPods"));
    conditions(errors, root, &changed);
    ended(errors, root, &changed);
    listed(errors, root, &changed);
    if (changed.finished() || changed.field("terminating"))
        && status.at("terminating").int() > 0
        && finished(root.value())
    {
        errors.push(status.at("terminating").invalid("terminating>0 is invalid for finished job"));
    }
    let ready = status.at("ready");
    if (changed.field("ready") || changed.field("active"))
        && ready.int() > status.at("active").int()
    {
        errors.push(ready.invalid("cannot set more ready pods than active"));
    }
    success(errors, root);
    transitions(errors, root, old);
}

fn numbers(errors: &mut ErrorList, status: &At<'_>) {
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        nonnegative(errors, &status.at(field));
    }
}

fn uncounted(errors: &mut ErrorList, at: &At<'_>) {
    let mut seen = Seen::default();
    for uid in ["succeeded", "failed"].iter().flat_map(|f| at.at(f).items()) {
        if uid.is_empty() {
            errors.push(uid.invalid("must not be empty"));
        } else if !seen.insert(uid.str()) {
            errors.push(uid.duplicate());
        }
    }
}

fn conditions(errors: &mut ErrorList, root: &At<'_>, changed: &Changed<'_>) {
    let job = root.value();
    let status = root.at("status");
    let at = status.at("conditions");
    let complete = has_condition(job, "Complete");
    let failed = has_condition(job, "Failed");
    let complete_changed = changed.condition("Complete");
    if (complete_changed || changed.condition("Failed")) && complete && failed {
        errors.push(at.invalid_bare("cannot set Complete=True and Failed=true conditions"));
    }
    if (complete_changed || changed.condition("FailureTarget"))
        && complete
        && has_condition(job, "FailureTarget")
    {
        errors.push(at.invalid_bare("cannot set Complete=True and FailureTarget=true conditions"));
    }
    let (start, end) = (status.at("startTime"), status.at("completionTime"));
    if complete_changed || changed.field("completionTime") {
        if end.is_set() && !complete {
            errors.push(
                end.invalid("cannot set completionTime when there is no Complete=True condition"),
            );
        }
        if !end.is_set() && complete {
            errors.push(end.required("completionTime is required for Complete jobs"));
        }
    }
    let time = |at: &At<'_>| at.str().parse::<jiff::Timestamp>().ok();
    if (changed.field("startTime") || changed.field("completionTime"))
        && let (Some(began), Some(done)) = (time(&start), time(&end))
        && done < began
    {
        errors.push(end.invalid("must be equal to or after `startTime`"));
    }
    if (changed.condition("Failed") || changed.field("failedIndexes"))
        && failed
        && !has_condition(job, "FailureTarget")
    {
        errors.push(at.invalid_bare(
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ));
    }
    if (complete_changed || changed.condition("SuccessCriteriaMet"))
        && complete
        && !has_condition(job, "SuccessCriteriaMet")
    {
        errors.push(at.invalid_bare(
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ));
    }
}

/// What a finished job may not have any more, and must have had.
fn ended(errors: &mut ErrorList, root: &At<'_>, changed: &Changed<'_>) {
    let job = root.value();
    if !finished(job) {
        return;
    }
    let status = root.at("status");
    let active = status.at("active");
    if (changed.finished() || changed.field("active")) && active.int() > 0 {
        errors.push(active.invalid("active>0 is invalid for finished job"));
    }
    let nothing_to_do = object::bool_at(job, &["spec", "suspend"])
        && object::int_at(job, &["spec", "completions"]) == Some(0);
    let start = status.at("startTime");
    if (changed.finished() || changed.field("startTime")) && !nothing_to_do && !start.is_set() {
        errors.push(start.required("startTime is required for finished job"));
    }
    let uncounted = status.at("uncountedTerminatedPods");
    let some = ["failed", "succeeded"].iter().any(|f| !uncounted.at(f).is_empty());
    if (changed.finished() || changed.field("uncountedTerminatedPods")) && some {
        errors.push(uncounted.invalid("must be empty for finished job"));
    }
}

fn listed(errors: &mut ErrorList, root: &At<'_>, changed: &Changed<'_>) {
    let (spec, status) = (root.at("spec"), root.at("status"));
    let (completed, failed) = (status.at("completedIndexes"), status.at("failedIndexes"));
    let completed_changed = changed.field("completedIndexes");
    let failed_changed = changed.field("failedIndexes");
    let per_index = spec.at("backoffLimitPerIndex").is_set();
    let completions = spec.at("completions").opt_int();
    for (at, name, checked) in [
        (&completed, "completedIndexes", completed_changed),
        (&failed, "failedIndexes", failed_changed && per_index),
    ] {
        if let (true, Some(completions)) = (checked, completions)
            && let Err(problem) = indexes::count(at.str(), completions)
        {
            errors.push(at.invalid(format!("error parsing {name}: {problem}")));
        }
    }
    let indexed = spec.at("completionMode").str() == "Indexed";
    if completed_changed && !completed.is_empty() && !indexed {
        errors.push(
            completed
                .invalid("cannot set non-empty completedIndexes when non-indexed completion mode"),
        );
    }
    if failed_changed && !per_index && failed.is_set() {
        errors.push(
            failed.invalid("cannot set non-null failedIndexes when backoffLimitPerIndex is null"),
        );
    }
    if (completed_changed || failed_changed)
        && failed.is_set()
        && let Some(completions) = completions
        && let Some(index) = indexes::overlap(completed.str(), failed.str(), completions)
    {
        errors.push(
            failed.invalid(format!("failedIndexes and completedIndexes overlap at index: {index}")),
        );
    }
}

fn success(errors: &mut ErrorList, root: &At<'_>) {
    let job = root.value();
    let at = root.down(&["status", "conditions"]);
    let met = has_condition(job, "SuccessCriteriaMet");
    if met && has_condition(job, "Failed") {
        errors
            .push(at.invalid_bare("cannot set SuccessCriteriaMet=True and Failed=true conditions"));
    }
    if met && has_condition(job, "FailureTarget") {
        errors.push(
            at.invalid_bare("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
        );
    }
    if root.down(&["spec", "successPolicy"]).is_set() && !met && has_condition(job, "Complete") {
        errors.push(at.invalid_bare(
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        ));
    }
}

fn transitions(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let job = root.value();
    let status = root.at("status");
    let at = status.at("conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if has_condition(old, kind) && !has_condition(job, kind) {
            let text = format!("cannot disable the terminal {kind}=True condition");
            errors.push(at.invalid_bare(text));
        }
    }
    let spec = root.at("spec");
    // Such a job can be made smaller.
    let elastic = spec.at("completionMode").str() == "Indexed"
        && same(spec.at("completions").value(), spec.at("parallelism").value());
    for (field, may_fall) in [("failed", false), ("succeeded", elastic)] {
        let (new, was) = (status.at(field), object::int_at(old, &["status", field]).unwrap_or(0));
        if !may_fall && new.int() < was {
            errors.push(new.invalid_as(new.int(), format!("cannot decrease the {field} counter")));
        }
    }
    let was = |field: &str| object::get(old, &["status", field]).filter(|v| !v.is_null());
    let end = status.at("completionTime");
    if end.is_set() && was("completionTime").is_some_and(|was| was != end.value()) {
        errors.push(end.invalid("field is immutable"));
    }
    let start = status.at("startTime");
    let resumes = condition(old, "Suspended", "True") && condition(job, "Suspended", "False");
    if was("startTime").is_some_and(|was| was != start.value())
        && !resumes
        && !spec.at("suspend").bool()
    {
        errors.push(FieldError::required(
            start.path(),
            "startTime cannot be removed for unsuspended job",
        ));
    }
    let (met, met_before) =
        (has_condition(job, "SuccessCriteriaMet"), has_condition(old, "SuccessCriteriaMet"));
    if met_before && !met {
        errors.push(at.invalid_bare("cannot disable the SuccessCriteriaMet=True condition"));
    }
    if has_condition(old, "Complete") && !met_before && met {
        errors.push(at.invalid_bare(
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        ));
    }
}
