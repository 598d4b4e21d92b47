//! Rules of a job's spec.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object;
use apimachinery::selector::LabelSelector;
use apimachinery::{Value, names};

use super::{CONTROLLER_UID, JOB_NAME, indexes};
use crate::registry::kinds::check::{
    At, Seen, domain_prefixed_path, immutable, label_selector, nonnegative, same, supported,
};
use crate::registry::kinds::keep;
use crate::registry::kinds::pods::spec::{self as pod, Options};

const MAX_INDEXED: i64 = 100_000;
/// Above this many completions, less may run and fail at a time.
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_OF_MANY: i64 = 10_000;
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_PATTERNS: usize = 20;
const MAX_MANAGED_BY: usize = 63;
const MAX_INDEXES_TEXT: usize = 64 << 10;

/// A whole job. `prefixed`: the template must have the newer labels, too.
pub fn job(errors: &mut ErrorList, root: &At<'_>, options: &Options, prefixed: bool) {
    let spec = root.at("spec");
    generated_selector(errors, root, prefixed);
    whole_spec(errors, &spec, options);
    let completions = spec.at("completions").int();
    if spec.at("completionMode").str() == "Indexed" && completions > 0 {
        let name = root.down(&["metadata", "name"]);
        let host = format!("{}-{}", name.str(), completions - 1);
        if !names::dns1123_label(&host).is_empty() {
            errors.push(
                name.invalid(format!("will not able to create pod with invalid DNS label: {host}")),
            );
        }
    }
}

/// Labels and selector that the server makes are as it makes them.
fn generated_selector(errors: &mut ErrorList, root: &At<'_>, prefixed: bool) {
    let spec = root.at("spec");
    let selector = spec.at("selector");
    if spec.at("manualSelector").bool() || !selector.is_set() {
        return;
    }
    let metadata = root.at("metadata");
    let (uid, name) = (metadata.at("uid"), metadata.at("name").str());
    if uid.is_empty() {
        errors.push(uid.required(""));
    }
    let mut expected = vec![(CONTROLLER_UID[0], uid.str()), (JOB_NAME[0], name)];
    if prefixed {
        expected.extend([(CONTROLLER_UID[1], uid.str()), (JOB_NAME[1], name)]);
    }
    let template = spec.down(&["template", "metadata"]);
    for (key, wanted) in &expected {
        has_label(errors, &template, key, wanted);
    }
    let value = |key: &str| expected.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
    if let Ok(Some(parsed)) = LabelSelector::from_json(Some(selector.value()))
        && !parsed.matches(value)
    {
        errors.push(selector.invalid("`selector` not auto-generated"));
    }
}

fn has_label(errors: &mut ErrorList, metadata: &At<'_>, key: &str, wanted: &str) {
    let labels = metadata.at("labels");
    match labels.value().get(key).and_then(Value::as_str) {
        None => errors
            .push(FieldError::required(&labels.path().key(key), format!("must be '{wanted}'"))),
        Some(found) if found != wanted => errors.push(FieldError::invalid(
            &labels.path().key(key),
            labels.value().clone(),
            format!("must be '{wanted}'"),
        )),
        Some(_) => {}
    }
}

/// A spec with its selector.
fn whole_spec(errors: &mut ErrorList, at: &At<'_>, options: &Options) {
    spec(errors, at, options);
    let selector = at.at("selector");
    if selector.is_set() {
        label_selector(errors, &selector);
    } else {
        errors.push(selector.required(""));
    }
    let labels = at.down(&["template", "metadata", "labels"]);
    if let Ok(parsed) = LabelSelector::from_json(Some(selector.value())) {
        let get = |key: &str| labels.value().get(key).and_then(Value::as_str);
        if !parsed.is_some_and(|s| s.matches(get)) {
            errors.push(labels.invalid("`selector` does not match template `labels`"));
        }
    }
}

/// A spec whose selector will be made.
pub fn spec(errors: &mut ErrorList, at: &At<'_>, options: &Options) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        nonnegative(errors, &at.at(field));
    }
    let per_index = at.at("backoffLimitPerIndex");
    if at.at("maxFailedIndexes").is_set() && !per_index.is_set() {
        errors.push(per_index.required("when maxFailedIndexes is specified"));
    }
    managed_by(errors, &at.at("managedBy"));
    completion_mode(errors, at);
    if at.at("podFailurePolicy").is_set() {
        failure_policy(errors, at);
    }
    let success = at.at("successPolicy");
    if success.is_set() {
        if at.at("completionMode").str() == "Indexed" {
            success_policy(errors, at, &success);
        } else {
            let error = success.invalid("requires indexed completion mode");
            errors.push(error.of_type("io.k8s.api.batch.v1.SuccessPolicy"));
        }
    }
    replacement_policy(errors, at);
    let template = at.at("template");
    pod::template(errors, &template, options);
    restart_policy(errors, at, &template.down(&["spec", "restartPolicy"]));
}

fn managed_by(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        return;
    }
    domain_prefixed_path(errors, at);
    if at.len() > MAX_MANAGED_BY {
        errors.push(at.too_long(MAX_MANAGED_BY));
    }
}

fn completion_mode(errors: &mut ErrorList, at: &At<'_>) {
    let mode = at.at("completionMode");
    if mode.is_set() {
        supported(errors, &mode, &["NonIndexed", "Indexed"]);
    }
    let [per_index, max_failed] = ["backoffLimitPerIndex", "maxFailedIndexes"].map(|f| at.at(f));
    if mode.str() == "Indexed" {
        indexed(errors, at);
    } else if !mode.is_set() || mode.str() == "NonIndexed" {
        for field in [per_index, max_failed].iter().filter(|f| f.is_set()) {
            errors.push(field.invalid("requires indexed completion mode"));
        }
    }
}

fn indexed(errors: &mut ErrorList, at: &At<'_>) {
    let [completions, parallelism, max_failed] =
        ["completions", "parallelism", "maxFailedIndexes"].map(|f| at.at(f));
    if !completions.is_set() {
        errors.push(completions.required("when completion mode is Indexed"));
    }
    if parallelism.int() > MAX_INDEXED {
        errors.push(parallelism.invalid(format!(
            "must be less than or equal to {MAX_INDEXED} when completion mode is Indexed"
        )));
    }
    if completions.is_set() && max_failed.int() > completions.int() {
        errors.push(max_failed.invalid("must be less than or equal to completions"));
    }
    if max_failed.int() > MAX_INDEXED {
        errors.push(max_failed.invalid(format!("must be less than or equal to {MAX_INDEXED}")));
    }
    if completions.int() > MANY_COMPLETIONS && at.at("backoffLimitPerIndex").is_set() {
        if !max_failed.is_set() {
            errors.push(max_failed.required(&format!(
                "must be specified when completions is above {MANY_COMPLETIONS}"
            )));
        }
        for field in [parallelism, max_failed].iter().filter(|f| f.int() > MAX_OF_MANY) {
            errors.push(field.invalid(format!(
                "must be less than or equal to {MAX_OF_MANY} when completions are above \
                 {MANY_COMPLETIONS} and used with backoff limit per index"
            )));
        }
    }
}

fn failure_policy(errors: &mut ErrorList, at: &At<'_>) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = at.at("podFailurePolicy").at("rules");
    if rules.len() > MAX_RULES {
        errors.push(FieldError::too_many(rules.path(), rules.len(), MAX_RULES));
    }
    let template = at.down(&["template", "spec"]);
    let mut containers = Seen::default();
    for container in ["containers", "initContainers"].iter().flat_map(|f| template.at(f).items()) {
        containers.insert(container.at("name").str());
    }
    for rule in rules.items() {
        let action = rule.at("action");
        match action.str() {
            "" => errors.push(action.required(&format!("valid values: {}", quoted(&ACTIONS)))),
            "FailIndex" if !at.at("backoffLimitPerIndex").is_set() => {
                errors.push(action.invalid("requires the backoffLimitPerIndex to be set"));
            }
            _ => supported(errors, &action, &ACTIONS),
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.at("onPodConditions"));
        if codes.is_set() {
            exit_codes(errors, &codes, &containers);
        }
        pod_conditions(errors, &conditions);
        if codes.is_set() && !conditions.is_empty() {
            let text = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.push(rule.invalid_bare(text));
        }
        if !codes.is_set() && conditions.is_empty() {
            let text = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(rule.invalid_bare(text));
        }
    }
}

/// `["a" "b"]`, as Go prints lists.
fn quoted(list: &[&str]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| format!("{s:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

fn pod_conditions(errors: &mut ErrorList, at: &At<'_>) {
    const STATUS: [&str; 3] = ["False", "True", "Unknown"];
    if at.len() > MAX_PATTERNS {
        errors.push(FieldError::too_many(at.path(), at.len(), MAX_PATTERNS));
    }
    for pattern in at.items() {
        let (kind, status) = (pattern.at("type"), pattern.at("status"));
        let messages = names::qualified_name(kind.str());
        errors.extend(messages.into_iter().map(|m| kind.invalid_as(kind.str(), m)));
        match status.str() {
            "" => errors.push(status.required(&format!("valid values: {}", quoted(&STATUS)))),
            _ => supported(errors, &status, &STATUS),
        }
    }
}

fn exit_codes(errors: &mut ErrorList, at: &At<'_>, containers: &Seen) {
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let operator = at.at("operator");
    match operator.str() {
        "" => errors.push(operator.required(&format!("valid values: {}", quoted(&OPERATORS)))),
        _ => supported(errors, &operator, &OPERATORS),
    }
    let container = at.at("containerName");
    if container.is_set() && !containers.has(container.str()) {
        let text = "must be one of the container or initContainer names in the pod template";
        errors.push(container.invalid(text));
    }
    let values = at.at("values");
    if values.is_empty() {
        errors.push(values.invalid("at least one value is required"));
    } else if values.len() > MAX_EXIT_CODES {
        errors.push(FieldError::too_many(values.path(), values.len(), MAX_EXIT_CODES));
    }
    let mut seen = Seen::default();
    let mut before = i64::MIN;
    let mut ordered = true;
    for value in values.items() {
        let code = value.int();
        if operator.str() == "In" && code == 0 {
            errors.push(value.invalid_as(code, "must not be 0 for the In operator"));
        }
        if !seen.insert(code.to_string()) {
            errors.push(value.duplicate());
        }
        ordered &= before <= code;
        before = code;
    }
    if !ordered {
        errors.push(values.invalid("must be ordered"));
    }
}

fn success_policy(errors: &mut ErrorList, spec: &At<'_>, at: &At<'_>) {
    let rules = at.at("rules");
    if rules.is_empty() {
        let text = "at least one rules must be specified when the successPolicy is specified";
        errors.push(rules.required(text));
    }
    if rules.len() > MAX_RULES {
        errors.push(FieldError::too_many(rules.path(), rules.len(), MAX_RULES));
    }
    let completions = spec.at("completions").int();
    for rule in rules.items() {
        let (count, listed) = (rule.at("succeededCount"), rule.at("succeededIndexes"));
        if !count.is_set() && !listed.is_set() {
            errors.push(
                rule.required(
                    "at least one of succeededCount or succeededIndexes must be specified",
                ),
            );
        }
        let mut total = 0;
        if listed.is_set() {
            if listed.len() > MAX_INDEXES_TEXT {
                errors.push(listed.too_long(MAX_INDEXES_TEXT));
            }
            match indexes::count(listed.str(), completions) {
                Ok(n) => total = n,
                Err(e) => {
                    errors.push(listed.invalid(format!("error parsing succeededIndexes: {e}")));
                }
            }
        }
        if count.is_set() {
            nonnegative(errors, &count);
            if count.int() > completions {
                errors.push(count.invalid(format!(
                    "must be less than or equal to {completions} (the number of specified \
                     completions)"
                )));
            }
            if listed.is_set() && count.int() > total {
                errors.push(count.invalid(format!(
                    "must be less than or equal to {total} (the number of indexes in the specified \
                     succeededIndexes field)"
                )));
            }
        }
    }
}

fn replacement_policy(errors: &mut ErrorList, at: &At<'_>) {
    let policy = at.at("podReplacementPolicy");
    if policy.is_set() {
        let valid: &[&str] = match at.at("podFailurePolicy").is_set() {
            true => &["Failed"],
            false => &["Failed", "TerminatingOrFailed"],
        };
        supported(errors, &policy, valid);
    }
}

fn restart_policy(errors: &mut ErrorList, spec: &At<'_>, policy: &At<'_>) {
    match policy.str() {
        "" | "Always" => {
            errors.push(policy.required("valid values: \"OnFailure\", \"Never\""));
        }
        "OnFailure" | "Never" => {
            if spec.at("podFailurePolicy").is_set() && policy.str() != "Never" {
                let text = "only \"Never\" is supported when podFailurePolicy is specified";
                errors.push(policy.invalid(text));
            }
        }
        _ => errors.push(policy.not_supported(&["OnFailure", "Never"])),
    }
}

/// What may change of a job.
pub fn update(errors: &mut ErrorList, root: &At<'_>, old: &Value, options: &Options) {
    let spec = root.at("spec");
    let before = &old["spec"];
    let was = |field: &str| before.get(field).unwrap_or(&Value::Null);
    whole_spec(errors, &spec, options);
    completions(errors, &spec, before);
    immutable(errors, &spec.at("selector"), was("selector"));
    template_update(errors, &spec, old);
    for field in
        ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        immutable(errors, &spec.at(field), was(field));
    }
}

fn completions(errors: &mut ErrorList, spec: &At<'_>, old: &Value) {
    let at = spec.at("completions");
    let was = old.get("completions").unwrap_or(&Value::Null);
    if spec.at("completionMode").str() != "Indexed" {
        immutable(errors, &at, was);
    } else if at.is_set() && !same(at.value(), was) && at.int() != spec.at("parallelism").int() {
        // Upstream names the field from the path's root.
        errors.push(at.invalid("can only be modified in tandem with spec.parallelism"));
    }
}

/// A suspended job that has never begun may still have its pods placed otherwise.
fn template_update(errors: &mut ErrorList, spec: &At<'_>, old: &Value) {
    let template = spec.at("template");
    let mut before = old["spec"]["template"].clone();
    let begun = !object::str_at(old, &["status", "startTime"]).is_empty();
    if object::bool_at(old, &["spec", "suspend"]) && !begun {
        for path in [
            &["spec", "nodeSelector"][..],
            &["spec", "tolerations"],
            &["metadata", "annotations"],
            &["metadata", "labels"],
            &["spec", "schedulingGates"],
            &["spec", "affinity", "nodeAffinity"],
        ] {
            keep(&mut before, template.value(), path);
        }
    }
    immutable(errors, &template, &before);
}
