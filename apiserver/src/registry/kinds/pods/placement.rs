//! Validation of what decides where a pod runs: affinity, tolerations, spreading, gates.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::names;

use super::super::check::{
    At, Seen, invalid_each, label_key, label_selector, positive, supported, supported_if_set,
};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// The effect of a taint or toleration, which is there.
pub fn effect(errors: &mut ErrorList, at: &At<'_>) {
    supported(errors, at, &EFFECTS);
}

/// `tolerations`
pub fn tolerations(errors: &mut ErrorList, at: &At<'_>) {
    for toleration in at.items() {
        let [key, operator, value, effect] =
            ["key", "operator", "value", "effect"].map(|f| toleration.at(f));
        if !key.is_empty() {
            label_key(errors, &key);
        } else if operator.str() != "Exists" {
            errors.push(operator.invalid_as(
                operator.str(),
                "operator must be Exists when `key` is empty, which means \"match all values and \
                 all keys\"",
            ));
        }
        if toleration.at("tolerationSeconds").is_set() && effect.str() != "NoExecute" {
            errors.push(effect.invalid_as(
                effect.str(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator.str() {
            "Equal" | "" => {
                let messages = names::label_value(value.str());
                if !messages.is_empty() {
                    errors.push(operator.invalid_as(value.str(), messages.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.push(operator.invalid_as(
                        value.str(),
                        "value must be empty when `operator` is 'Exists'",
                    ));
                }
            }
            "Lt" | "Gt" => errors.push(operator.not_supported(&["Equal", "Exists", "Lt", "Gt"])),
            _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            self::effect(errors, &effect);
        }
    }
}

/// `affinity`
pub fn affinity(errors: &mut ErrorList, at: &At<'_>) {
    let node = at.at("nodeAffinity");
    let required = node.at("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        node_selector(errors, &required);
    }
    for term in node.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(errors, &term);
        node_selector_term(errors, &term.at("preference"), false);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at.at(kind);
        for term in pods.at("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_affinity_term(errors, &term);
        }
        for term in pods.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(errors, &term);
            pod_affinity_term(errors, &term.at("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut ErrorList, term: &At<'_>) {
    let weight = term.at("weight");
    if !(1..=100).contains(&weight.int()) {
        errors.push(weight.invalid_as(weight.int(), "must be in the range 1-100"));
    }
}

/// A `NodeSelector`, as node affinity and persistent volumes have it.
pub fn node_selector(errors: &mut ErrorList, at: &At<'_>) {
    let terms = at.at("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(terms.required("must have at least one node selector term"));
    }
    for term in terms.items() {
        node_selector_term(errors, &term, true);
    }
}

fn node_selector_term(errors: &mut ErrorList, at: &At<'_>, check_values: bool) {
    for requirement in at.at("matchExpressions").items() {
        node_requirement(errors, &requirement, check_values);
    }
    for requirement in at.at("matchFields").items() {
        let (values, operator) = (requirement.at("values"), requirement.at("operator"));
        if !matches!(operator.str(), "In" | "NotIn") {
            errors.push(operator.invalid_as(operator.str(), "not a valid selector operator"));
        } else if values.len() != 1 {
            errors.push(values.required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        let key = requirement.at("key");
        if key.str() != "metadata.name" {
            errors.push(key.invalid_as(key.str(), "not a valid field selector key"));
            continue;
        }
        for value in values.items() {
            invalid_each(errors, &value, names::dns1123_subdomain(value.str()));
        }
    }
}

fn node_requirement(errors: &mut ErrorList, at: &At<'_>, check_values: bool) {
    let (values, operator) = (at.at("values"), at.at("operator"));
    match operator.str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"))
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(
            values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        ),
        "Gt" | "Lt" if values.len() != 1 => errors.push(
            values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"),
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(operator.invalid_as(other, "not a valid selector operator")),
    }
    label_key(errors, &at.at("key"));
    if check_values {
        for value in values.items() {
            invalid_each(errors, &value, names::label_value(value.str()));
        }
    }
}

fn pod_affinity_term(errors: &mut ErrorList, at: &At<'_>) {
    label_selector(errors, &at.at("labelSelector"));
    label_selector(errors, &at.at("namespaceSelector"));
    for name in at.at("namespaces").strings() {
        let here = at.at("namespace");
        errors.extend(names::dns1123_label(name).into_iter().map(|m| here.invalid_as(name, m)));
    }
    match_label_keys(errors, at);
    let key = at.at("topologyKey");
    if key.is_empty() {
        errors.push(key.required("can not be empty"));
    }
    label_key(errors, &key);
}

/// `matchLabelKeys` and `mismatchLabelKeys`: of the selector, and of one list only.
fn match_label_keys(errors: &mut ErrorList, at: &At<'_>) {
    let selector = at.at("labelSelector");
    let (same, differ) = (at.at("matchLabelKeys"), at.at("mismatchLabelKeys"));
    for list in [&same, &differ] {
        if list.is_empty() {
            continue;
        }
        if !selector.is_set() {
            errors.push(list.forbidden("must not be specified when labelSelector is not set"));
            continue;
        }
        list.items().for_each(|key| label_key(errors, &key));
    }
    let mut selected = Seen::default();
    for (key, _) in selector.at("matchLabels").entries() {
        selected.insert(key);
    }
    for expression in selector.at("matchExpressions").items() {
        let key = expression.at("key").str();
        if let Some(i) = same.strings().position(|k| k == key)
            && selected.has(key)
        {
            errors.push(FieldError::invalid(
                &at.path().index(i),
                key,
                "exists in both matchLabelKeys and labelSelector",
            ));
        }
        selected.insert(key);
    }
    for key in same.items().filter(|k| differ.strings().any(|d| d == k.str())) {
        errors.push(key.invalid("exists in both matchLabelKeys and mismatchLabelKeys"));
    }
}

/// `topologySpreadConstraints`
pub fn spread(errors: &mut ErrorList, at: &At<'_>) {
    let list: Vec<At<'_>> = at.items().collect();
    for (i, constraint) in list.iter().enumerate() {
        positive(errors, &constraint.at("maxSkew"));
        let key = constraint.at("topologyKey");
        if key.is_empty() {
            errors.push(key.required("can not be empty"));
        }
        let action = constraint.at("whenUnsatisfiable");
        supported(errors, &action, &["DoNotSchedule", "ScheduleAnyway"]);
        let repeats = list[i + 1..].iter().any(|other| {
            other.at("topologyKey").str() == key.str()
                && other.at("whenUnsatisfiable").str() == action.str()
        });
        if repeats {
            errors.push(FieldError::duplicate(
                &constraint.path().child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {}}}", key.str(), action.str()),
            ));
        }
        let domains = constraint.at("minDomains");
        if domains.is_set() {
            positive(errors, &domains);
            if action.str() != "DoNotSchedule" {
                errors.push(domains.invalid(format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    action.str()
                )));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            supported_if_set(errors, &constraint.at(policy), &["Honor", "Ignore"]);
        }
        match_label_keys(errors, constraint);
        label_selector(errors, &constraint.at("labelSelector"));
    }
}

/// `schedulingGates`
pub fn gates(errors: &mut ErrorList, at: &At<'_>) {
    let mut seen = Seen::default();
    for gate in at.items() {
        let name = gate.at("name").str();
        let messages = names::qualified_name(name);
        errors.extend(messages.into_iter().map(|m| gate.invalid_as(name, m)));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(gate.path(), name));
        }
    }
}
