//! Events, in the two groups that serve them. They are stored as core v1.

use std::borrow::Cow;

use apimachinery::field::ErrorList;
use apimachinery::object;
use apimachinery::{Value, names};

use super::cells::{Cell, column, since, wide};
use super::check::{At, immutable};
use super::row::Rows;
use super::{Deps, checked};
use crate::registry::{Column, Context, SelectableField, Strategy};

pub fn rows(rows: &mut Rows<'_>, deps: &Deps) {
    rows.add(("", "v1"), ("Event", "events"), |row| {
        row.short(&["ev"])
            .ttl(deps.event_ttl)
            .strategy(Events { new_group: false })
            .columns(columns())
            .fields(fields("involvedObject"))
    });
    rows.add(("events.k8s.io", "v1"), ("Event", "events"), |row| {
        row.short(&["ev"])
            .ttl(deps.event_ttl)
            .stored_as("", "v1")
            .strategy(Events { new_group: true })
            .columns(columns())
            .fields(fields("regarding"))
    });
}

/// Names of fields: in core v1, and in events.k8s.io/v1.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// An Event of events.k8s.io/v1 in the shape of core v1.
pub fn to_core(event: &mut Value) {
    rename(event, "v1", |(core, new)| (new, core));
}

/// An Event of core v1 in the shape of events.k8s.io/v1.
pub fn from_core(event: &mut Value) {
    rename(event, "events.k8s.io/v1", |names| names);
}

fn rename<'a>(
    event: &mut Value,
    api_version: &str,
    order: impl Fn((&'a str, &'a str)) -> (&'a str, &'a str),
) {
    let Some(map) = event.as_object_mut() else { return };
    for (from, to) in RENAMED.into_iter().map(order) {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
}

fn in_core_shape(event: &Value) -> Cow<'_, Value> {
    if object::str_at(event, &["apiVersion"]) == "events.k8s.io/v1" {
        let mut event = event.clone();
        to_core(&mut event);
        Cow::Owned(event)
    } else {
        Cow::Borrowed(event)
    }
}

struct Events {
    /// events.k8s.io, which has stricter rules.
    new_group: bool,
}

impl Strategy for Events {
    fn to_storage(&self, object: &mut Value) {
        if self.new_group {
            to_core(object);
        }
    }

    fn to_served(&self, object: &mut Value) {
        if self.new_group {
            from_core(object);
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(&in_core_shape(object), |root, errors| {
            old_rules(errors, root, self.new_group);
            if self.new_group {
                series(errors, root);
                new_rules(errors, root);
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let old = in_core_shape(old);
        checked(&in_core_shape(object), |root, errors| {
            old_rules(errors, root, self.new_group);
            if self.new_group {
                if !super::check::same(root.at("series").value(), &old["series"]) {
                    series(errors, root);
                }
                unchanged(errors, root, &old);
            }
        })
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// Rules of both groups.
fn old_rules(errors: &mut ErrorList, root: &At<'_>, new_group: bool) {
    let namespace = root.down(&["metadata", "namespace"]).str();
    let about = root.down(&["involvedObject", "namespace"]);
    let foreign = if root.at("eventTime").is_empty() {
        match about.str() {
            "" => !matches!(namespace, "" | "default"),
            own => own != namespace,
        }
    } else {
        about.is_empty() && !matches!(namespace, "default" | "kube-system")
    };
    if foreign {
        errors.push(about.invalid_as(about.str(), "does not match event.namespace"));
    }
    if !root.at("eventTime").is_empty() {
        reporter(errors, root, new_group);
    }
    let here =
        At::new(root.down(&["metadata", "namespace"]).value(), root.at("namespace").path().clone());
    errors.extend(
        names::dns1123_subdomain(namespace).into_iter().map(|m| here.invalid_as(namespace, m)),
    );
}

fn reporter(errors: &mut ErrorList, root: &At<'_>, new_group: bool) {
    let value = root.at("reportingComponent");
    let shown = if new_group { "reportingController" } else { "reportingComponent" };
    let controller = At::new(value.value(), root.at(shown).path().clone());
    if controller.is_empty() {
        errors.push(controller.required(""));
    }
    let messages = names::qualified_name(controller.str());
    errors.extend(messages.into_iter().map(|m| controller.invalid_as(controller.str(), m)));
    for field in ["reportingInstance", "action", "reason"] {
        let at = root.at(field);
        if at.is_empty() {
            errors.push(at.required(""));
        }
        if at.len() > 128 {
            errors.push(at.invalid_as("", "can have at most 128 characters"));
        }
    }
    if root.at("message").len() > 1024 {
        errors.push(root.at("message").invalid_as("", "can have at most 1024 characters"));
    }
}

fn series(errors: &mut ErrorList, root: &At<'_>) {
    let series = root.at("series");
    if series.is_set() {
        if series.at("count").int() < 2 {
            errors.push(root.at("series.count").invalid_as("", "should be at least 2"));
        }
        if series.at("lastObservedTime").is_empty() {
            errors.push(root.at("series.lastObservedTime").required(""));
        }
    }
}

fn new_rules(errors: &mut ErrorList, root: &At<'_>) {
    if root.at("eventTime").is_empty() {
        errors.push(root.at("eventTime").required(""));
    }
    let kind = root.at("type");
    if !matches!(kind.str(), "Normal" | "Warning") {
        errors.push(kind.invalid_as("", format!("has invalid value: {}", kind.str())));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if !root.at(field).is_zero() {
            errors.push(root.at(field).invalid_as("", "needs to be unset"));
        }
    }
}

fn unchanged(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    for field in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        let shown = if field == "reportingComponent" { "reportingController" } else { field };
        let at = At::new(root.at(field).value(), root.at(shown).path().clone());
        immutable(errors, &at, old.get(field).unwrap_or(&Value::Null));
    }
}

/// A field of what the event is about, in either shape.
fn about<'a>(event: &'a Value, field: &str) -> &'a str {
    match object::str_at(event, &["involvedObject", field]) {
        "" => object::str_at(event, &["regarding", field]),
        value => value,
    }
}

fn reporting(event: &Value) -> &str {
    match object::str_at(event, &["reportingComponent"]) {
        "" => object::str_at(event, &["reportingController"]),
        value => value,
    }
}

fn fields(about_field: &str) -> Vec<SelectableField> {
    macro_rules! about_fields {
        ($($name:literal),*) => {
            match about_field {
                "regarding" => vec![$(SelectableField {
                    label: concat!("regarding.", $name),
                    get: |e| about(e, $name).into(),
                }),*],
                _ => vec![$(SelectableField {
                    label: concat!("involvedObject.", $name),
                    get: |e| about(e, $name).into(),
                }),*],
            }
        };
    }
    let mut list = about_fields!(
        "kind",
        "namespace",
        "name",
        "uid",
        "apiVersion",
        "resourceVersion",
        "fieldPath"
    );
    list.extend(super::selectable! { "reason" => ["reason"], "type" => ["type"] });
    list.push(SelectableField {
        label: if about_field == "regarding" {
            "reportingController"
        } else {
            "reportingComponent"
        },
        get: |e| reporting(e).into(),
    });
    list.push(SelectableField {
        label: "source",
        get: |e| match object::str_at(e, &["source", "component"]) {
            "" => reporting(e).into(),
            component => component.into(),
        },
    });
    list
}

/// Times that the table shows: first and last.
fn times(event: &Value, now: jiff::Timestamp) -> (String, String) {
    let age = |path: &[&str]| match object::str_at(event, path) {
        "" => None,
        time => Some(since(time, now)),
    };
    let first = age(&["firstTimestamp"])
        .or_else(|| age(&["eventTime"]))
        .unwrap_or_else(|| "<unknown>".to_owned());
    let last = match event.get("series").filter(|s| !s.is_null()) {
        Some(_) => age(&["series", "lastObservedTime"]).unwrap_or_else(|| "<unknown>".to_owned()),
        None => age(&["lastTimestamp"]).unwrap_or_else(|| first.clone()),
    };
    (first, last)
}

fn columns() -> Vec<Column> {
    fn of(event: &Value, cell: impl Fn(&Value) -> Value) -> Value {
        cell(&in_core_shape(event))
    }
    let last_seen: Cell = |e, now| times(&in_core_shape(e), now).1.into();
    let first_seen: Cell = |e, now| times(&in_core_shape(e), now).0.into();
    vec![
        column("Last Seen", "string", "When it happened last.", last_seen),
        column("Type", "string", "Normal or Warning.", |e, _| object::str_at(e, &["type"]).into()),
        column("Reason", "string", "A word for machines.", |e, _| {
            object::str_at(e, &["reason"]).into()
        }),
        column("Object", "string", "What it is about.", |e, _| {
            let kind = about(e, "kind").to_lowercase();
            match about(e, "name") {
                "" => kind.into(),
                name => format!("{kind}/{name}").into(),
            }
        }),
        wide("Subobject", "string", "The part of the object.", |e, _| about(e, "fieldPath").into()),
        wide("Source", "string", "Who reports.", |e, _| of(e, |e| source(e).into())),
        column("Message", "string", "A sentence for people.", |e, _| {
            of(e, |e| object::str_at(e, &["message"]).trim().into())
        }),
        wide("First Seen", "string", "When it happened first.", first_seen),
        wide("Count", "string", "How often it happened.", |e, _| of(e, count)),
        Column { priority: 1, ..super::cells::name_column() },
    ]
}

fn count(event: &Value) -> Value {
    let series = object::int_at(event, &["series", "count"]);
    series.or(object::int_at(event, &["count"]).filter(|c| *c != 0)).unwrap_or(1).into()
}

fn source(event: &Value) -> String {
    let pair = |component: &str, instance: &str| match instance {
        "" => component.to_owned(),
        instance => format!("{component}, {instance}"),
    };
    let at = |path: &[&str]| object::str_at(event, path).to_owned();
    let first = |a: String, b: String| if a.is_empty() { b } else { a };
    pair(
        &first(at(&["source", "component"]), at(&["reportingComponent"])),
        &first(at(&["source", "host"]), at(&["reportingInstance"])),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shapes_convert_there_and_back() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m", "reason": "R",
            "count": 3, "source": {"component": "c"}, "reportingComponent": "rc",
        });
        let mut event = core.clone();
        from_core(&mut event);
        assert_eq!(event["regarding"]["name"], "p");
        assert_eq!(event["note"], "m");
        assert_eq!(event["reportingController"], "rc");
        assert_eq!(event["deprecatedCount"], 3);
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        to_core(&mut event);
        assert_eq!(event, core);
    }
}
