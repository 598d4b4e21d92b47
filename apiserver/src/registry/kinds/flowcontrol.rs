//! FlowSchemas and PriorityLevelConfigurations. They are kept and checked; requests are not queued
//! by them yet.

use std::sync::LazyLock;

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::{self, set};
use apimachinery::{Value, names};

use super::cells::{age_column, column, named};
use super::check::{At, Seen, invalid_each, same, supported};
use super::row::Rows;
use super::{
    META_AND_SPEC, STATUS, begin, carry_on, checked, child, default_absent, default_to, keep,
};
use crate::registry::{Column, Context, Strategy};

const GROUP: (&str, &str) = ("flowcontrol.apiserver.k8s.io", "v1");
const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
const MAX_HASH_BITS: f64 = 60.0;
/// Those that are always as they are, of both kinds.
pub const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Objects that every cluster starts with, `levels` and `schemas`: names and specs.
static INITIAL: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("flowcontrol.json")).unwrap_or_default());

/// The PriorityLevelConfigurations that every cluster starts with: names and specs.
pub fn initial_levels() -> &'static [Value] {
    object::list_at(&INITIAL, &["levels"])
}

/// The FlowSchemas that every cluster starts with: names and specs.
pub fn initial_schemas() -> &'static [Value] {
    object::list_at(&INITIAL, &["schemas"])
}

fn mandatory<'a>(initial: &'a [Value], name: &str) -> Option<&'a Value> {
    let found = initial.iter().find(|o| o["name"] == name)?;
    found.get("spec").filter(|_| MANDATORY.contains(&name))
}

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(GROUP, ("FlowSchema", "flowschemas"), |row| {
        row.cluster()
            .strategy(Schemas)
            .part("status", Status, META_AND_SPEC)
            .columns(schema_columns())
    });
    let names = ("PriorityLevelConfiguration", "prioritylevelconfigurations");
    rows.add(GROUP, names, |row| {
        row.cluster()
            .strategy(Levels)
            .part("status", Status, META_AND_SPEC)
            .columns(level_columns())
    });
}

struct Schemas;

impl Strategy for Schemas {
    fn default(&self, object: &mut Value) {
        default_to(child(object, "spec"), "matchingPrecedence", 1000);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let name = object::name(object);
            schema(errors, name, &spec);
            if mandatory(initial_schemas(), name).is_some_and(|s| !same(s, spec.value())) {
                errors.push(spec.invalid(format!("spec of '{name}' must equal the fixed value")));
            }
            conditions(errors, root);
        })
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn schema(errors: &mut ErrorList, name: &str, spec: &At<'_>) {
    let precedence = spec.at("matchingPrecedence");
    let number = precedence.int();
    if number <= 0 {
        errors.push(precedence.invalid_as(number, "must be a positive value"));
    }
    if number > MAX_PRECEDENCE {
        errors.push(precedence.invalid(format!("must not be greater than {MAX_PRECEDENCE}")));
    }
    if number == 1 && name != "exempt" {
        errors.push(
            precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1"),
        );
    }
    let method = spec.at("distinguisherMethod");
    let known = ["ByNamespace", "ByUser"];
    if method.is_set() && !known.contains(&method.at("type").str()) {
        let path = method.path().child("type");
        let error = FieldError::not_supported(&path, method.value().clone(), &known);
        errors.push(error.of_type("io.k8s.api.flowcontrol.v1.FlowDistinguisherMethod"));
    }
    let level = spec.down(&["priorityLevelConfiguration", "name"]);
    match level.str() {
        "" => errors.push(level.required("must reference a priority level")),
        text => invalid_each(errors, &level, names::dns1123_subdomain(text)),
    }
    spec.at("rules").items().for_each(|rule| schema_rule(errors, &rule));
}

fn schema_rule(errors: &mut ErrorList, rule: &At<'_>) {
    let [subjects, resources, urls] =
        ["subjects", "resourceRules", "nonResourceRules"].map(|f| rule.at(f));
    if subjects.is_empty() {
        errors.push(subjects.required("subjects must contain at least one value"));
    }
    subjects.items().for_each(|s| subject(errors, &s));
    if resources.is_empty() && urls.is_empty() {
        let text = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(rule.required(text));
    }
    resources.items().for_each(|r| resource_rule(errors, &r));
    urls.items().for_each(|r| url_rule(errors, &r));
}

fn subject(errors: &mut ErrorList, at: &At<'_>) {
    const KINDS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = at.at("kind").str();
    let Some((_, own)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        supported(errors, &at.at("kind"), &["Group", "ServiceAccount", "User"]);
        return;
    };
    let field = at.at(own);
    let (name, namespace) = (field.at("name"), field.at("namespace"));
    if !field.is_set() {
        errors.push(field.required(&format!("{own} is required when subject kind is '{kind}'")));
    } else {
        match name.str() {
            "" => errors.push(name.required("")),
            text if kind == "ServiceAccount" && text != "*" => {
                invalid_each(errors, &name, names::dns1123_subdomain(text));
            }
            _ => {}
        }
        if kind == "ServiceAccount" {
            match namespace.str() {
                "" => {
                    errors.push(namespace.required("must specify namespace for service account"));
                }
                text => invalid_each(errors, &namespace, names::dns1123_label(text)),
            }
        }
    }
    for (other, field) in KINDS.iter().filter(|(k, _)| *k != kind) {
        if at.at(field).is_set() {
            let text = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.push(at.at(field).forbidden(text));
        }
    }
}

fn verbs(errors: &mut ErrorList, at: &At<'_>) {
    const KNOWN: [&str; 9] = [
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "proxy",
        "update",
        "watch",
    ];
    if at.is_empty() {
        errors.push(at.required("verbs must contain at least one value"));
    } else if at.strings().any(|v| v == "*") {
        if at.len() > 1 {
            errors.push(at.invalid("if '*' is present, must not specify other verbs"));
        }
    } else if !at.strings().all(|v| KNOWN.contains(&v)) {
        errors.push(at.not_supported(&KNOWN));
    }
}

fn resource_rule(errors: &mut ErrorList, rule: &At<'_>) {
    verbs(errors, &rule.at("verbs"));
    for (field, one, many) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let at = rule.at(field);
        if at.is_empty() {
            errors.push(at.required(&format!("resource rules must supply at least one {one}")));
        } else if at.len() > 1 && at.strings().any(|v| v == "*") {
            errors.push(at.invalid(format!("if '*' is present, must not specify other {many}")));
        }
    }
    let namespaces = rule.at("namespaces");
    if namespaces.is_empty() && !rule.at("clusterScope").bool() {
        errors.push(namespaces.required(
            "resource rules that are not cluster scoped must supply at least one namespace",
        ));
    } else if namespaces.strings().any(|v| v == "*") {
        if namespaces.len() > 1 {
            let text = "if '*' is present, must not specify other namespaces";
            errors.push(namespaces.invalid(text));
        }
    } else {
        for namespace in namespaces.items() {
            for message in names::dns1123_label(namespace.str()) {
                errors.push(namespace.invalid(format!(
                    "each member of this list must be '*' or a DNS-1123 label; {message}"
                )));
            }
        }
    }
}

fn url_rule(errors: &mut ErrorList, rule: &At<'_>) {
    verbs(errors, &rule.at("verbs"));
    let urls = rule.at("nonResourceURLs");
    if urls.is_empty() {
        errors.push(urls.required("nonResourceURLs must contain at least one value"));
    } else if urls.strings().any(|u| u == "*") {
        if urls.len() > 1 {
            let text = "if '*' is present, must not specify other non-resource URLs";
            errors.push(urls.invalid(text));
        }
    } else {
        for url in urls.items() {
            if let Some(problem) = url_problem(url.str()) {
                errors.push(url.invalid_as(url.str(), problem));
            }
        }
    }
}

fn url_problem(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || stars == 1 && !path.ends_with("/*") => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

fn conditions(errors: &mut ErrorList, root: &At<'_>) {
    let mut seen = Seen::default();
    for kind in root.down(&["status", "conditions"]).items().map(|c| c.at("type")) {
        if !seen.insert(kind.str()) {
            errors.push(FieldError::duplicate(kind.path(), kind.str()));
        }
        if kind.is_empty() {
            errors.push(kind.required(""));
        }
    }
}

fn schema_columns() -> Vec<Column> {
    named([
        column("PriorityLevel", "string", "Level of its requests.", |o, _| {
            object::str_at(o, &["spec", "priorityLevelConfiguration", "name"]).into()
        }),
        column("MatchingPrecedence", "integer", "Lower is asked first.", |o, _| {
            object::int_at(o, &["spec", "matchingPrecedence"]).unwrap_or(0).into()
        }),
        column("DistinguisherMethod", "string", "What tells flows apart.", |o, _| {
            super::cells::or_none(object::str_at(o, &["spec", "distinguisherMethod", "type"]))
        }),
        age_column(),
        column("MissingPL", "string", "Whether its level is missing.", |o, _| {
            let all = object::list_at(o, &["status", "conditions"]);
            match all.iter().find(|c| c["type"] == "Dangling") {
                Some(condition) => object::str_at(condition, &["status"]).into(),
                None => "?".into(),
            }
        }),
    ])
}

struct Levels;

impl Strategy for Levels {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        let set_in = |spec: &Value, field: &str| spec.get(field).is_some_and(Value::is_object);
        if set_in(spec, "limited") {
            let limited = &mut spec["limited"];
            default_absent(limited, "nominalConcurrencyShares", 30);
            default_absent(limited, "lendablePercent", 0);
            if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing")
                && queuing.is_object()
            {
                default_to(queuing, "handSize", 8);
                default_to(queuing, "queues", 64);
                default_to(queuing, "queueLengthLimit", 50);
            }
        }
        if set_in(spec, "exempt") {
            let exempt = &mut spec["exempt"];
            default_absent(exempt, "nominalConcurrencyShares", 0);
            default_absent(exempt, "lendablePercent", 0);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let name = object::name(object);
            level(errors, name, &spec);
            fixed_level(errors, name, &spec);
            conditions(errors, root);
        })
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn fixed_level(errors: &mut ErrorList, name: &str, spec: &At<'_>) {
    let Some(fixed) = mandatory(initial_levels(), name) else { return };
    let mut have = spec.value().clone();
    let mut except = "";
    if name == "exempt" {
        keep(&mut have, fixed, &["exempt"]);
        except = " except the 'spec.exempt' field";
    }
    if !same(&have, fixed) {
        errors.push(spec.invalid(format!("spec of '{name}'{except} must equal the fixed value")));
    }
}

fn level(errors: &mut ErrorList, name: &str, spec: &At<'_>) {
    let kind = spec.at("type");
    let (limited, exempt) = (spec.at("limited"), spec.at("exempt"));
    if (name == "exempt") != (kind.str() == "Exempt") {
        let text = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.push(kind.invalid_as(kind.str(), text));
    }
    match kind.str() {
        "Exempt" => {
            if limited.is_set() {
                errors.push(limited.forbidden("must be nil if the type is not Limited"));
            }
            shares(errors, &exempt);
        }
        "Limited" => {
            if exempt.is_set() {
                errors.push(exempt.forbidden("must be nil if the type is Limited"));
            }
            if limited.is_set() {
                shares(errors, &limited);
                limit_response(errors, &limited.at("limitResponse"));
                let borrows = limited.at("borrowingLimitPercent");
                if borrows.int() < 0 {
                    let text = "if specified, must be a non-negative integer";
                    errors.push(borrows.invalid(text));
                }
            } else {
                errors.push(limited.required("must not be empty when type is Limited"));
            }
        }
        _ => supported(errors, &kind, &["Exempt", "Limited"]),
    }
}

fn shares(errors: &mut ErrorList, at: &At<'_>) {
    let (shares, lends) = (at.at("nominalConcurrencyShares"), at.at("lendablePercent"));
    if shares.int() < 0 {
        errors.push(shares.invalid("must be a non-negative integer"));
    }
    if !(0..=100).contains(&lends.int()) {
        errors.push(lends.invalid("must be between 0 and 100, inclusive"));
    }
}

fn limit_response(errors: &mut ErrorList, at: &At<'_>) {
    let (kind, queuing) = (at.at("type"), at.at("queuing"));
    match kind.str() {
        "Reject" if queuing.is_set() => errors
            .push(queuing.forbidden("must be nil if limited.limitResponse.type is not Limited")),
        "Reject" => {}
        "Queue" if !queuing.is_set() => errors
            .push(queuing.required("must not be empty if limited.limitResponse.type is Limited")),
        "Queue" => queues(errors, &queuing),
        _ => supported(errors, &kind, &["Queue", "Reject"]),
    }
}

fn queues(errors: &mut ErrorList, at: &At<'_>) {
    let [length, queues, hand] =
        ["queueLengthLimit", "queues", "handSize"].map(|field| at.at(field));
    if length.int() <= 0 {
        errors.push(length.invalid_as(length.int(), "must be positive"));
    }
    let (deck, size) = (queues.int(), hand.int());
    if deck <= 0 {
        errors.push(queues.invalid_as(deck, "must be positive"));
    } else if deck > MAX_QUEUES {
        errors.push(queues.invalid(format!("must not be greater than {MAX_QUEUES}")));
    }
    // Upstream's estimate of the bits that dealing a hand of queues takes.
    #[allow(clippy::cast_precision_loss)]
    let bits = ((deck.max(1) as f64).log2() * size as f64).ceil();
    if size <= 0 {
        errors.push(hand.invalid_as(size, "must be positive"));
    } else if size > deck {
        errors.push(hand.invalid(format!("should not be greater than queues ({deck})")));
    } else if bits > MAX_HASH_BITS {
        errors.push(hand.invalid(format!(
            "required entropy bits of deckSize {deck} and handSize {size} should not be greater \
             than {MAX_HASH_BITS}"
        )));
    }
}

fn level_columns() -> Vec<Column> {
    fn cell(object: &Value, path: &[&str]) -> Value {
        object::get(object, path).cloned().unwrap_or_else(|| "<none>".into())
    }
    named([
        column("Type", "string", "Whether its requests are limited.", |o, _| {
            object::str_at(o, &["spec", "type"]).into()
        }),
        column("NominalConcurrencyShares", "string", "Its part of all places.", |o, _| {
            cell(o, &["spec", "limited", "nominalConcurrencyShares"])
        }),
        column("Queues", "string", "Number of queues.", |o, _| {
            cell(o, &["spec", "limited", "limitResponse", "queuing", "queues"])
        }),
        column("HandSize", "string", "Queues that a flow may use.", |o, _| {
            cell(o, &["spec", "limited", "limitResponse", "queuing", "handSize"])
        }),
        column("QueueLengthLimit", "string", "Requests that a queue takes.", |o, _| {
            cell(o, &["spec", "limited", "limitResponse", "queuing", "queueLengthLimit"])
        }),
        age_column(),
    ])
}

struct Status;

impl Strategy for Status {
    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let managers = object::get(object, &["metadata", "managedFields"]).cloned();
        let version = object::resource_version(object).to_owned();
        for field in ["spec", "metadata"] {
            keep(object, old, &[field]);
        }
        object::set_resource_version(object, &version);
        match managers {
            Some(managers) => set(object, &["metadata", "managedFields"], managers),
            None => drop(object::remove(object, &["metadata", "managedFields"])),
        }
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| conditions(errors, root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_starts_with_is_complete() {
        let names = |list: &[Value]| {
            list.iter().map(|o| o["name"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>()
        };
        for list in [initial_levels(), initial_schemas()] {
            assert!(MANDATORY.iter().all(|m| names(list).contains(&(*m).to_owned())));
        }
        let levels = names(initial_levels());
        for schema in initial_schemas() {
            let level = object::str_at(schema, &["spec", "priorityLevelConfiguration", "name"]);
            assert!(levels.contains(&level.to_owned()), "{level}");
        }
    }
}
