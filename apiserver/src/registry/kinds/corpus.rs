//! Holds the rows to upstream's answers: `testdata/create.json` has objects, and what upstream
//! v1.35 says of their creation: the errors, or the object with its defaults. `update.json` has
//! stored objects, changes of them, and the same of those. `*_more.json` has more of both.

use apimachinery::codec::{self, FieldValidation, Schema, json};
use apimachinery::field::{FieldError, Path};
use apimachinery::gvk::{GroupResource, GroupVersionKind};
use apimachinery::status::ApiError;
use apimachinery::{Value, object, schema};

use std::sync::Arc;

use super::check::same;
use super::{Deps, all};
use crate::reader::{Object, Reader};
use crate::registry::allocate::tests::MemoryLedger;
use crate::registry::allocate::{AddressRange, PortRange, ServiceAllocator};
use crate::registry::{Action, Context, Resource, Subresource};

/// The uid of all objects.
const UID: &str = "UID";

/// A cache with nothing in it.
pub(crate) struct Nothing;

impl Reader for Nothing {
    fn get(&self, _: &GroupResource, _: &str, _: &str) -> Option<Object> {
        None
    }

    fn list(&self, _: &GroupResource, _: &str) -> Vec<Object> {
        Vec::new()
    }

    fn version(&self, _: &GroupResource) -> u64 {
        0
    }
}

pub(crate) fn context() -> Context<'static> {
    Context { now: jiff::Timestamp::UNIX_EPOCH, reader: &Nothing }
}

fn row<'a>(rows: &'a [Resource], object: &Value) -> Option<&'a Resource> {
    let gvk = GroupVersionKind::from_api_version(
        object::str_at(object, &["apiVersion"]),
        object::str_at(object, &["kind"]),
    );
    rows.iter().find(|r| r.group == gvk.group && r.version == gvk.version && r.kind == gvk.kind)
}

/// Creates as the pipeline does; gives the errors, or the object.
fn create(row: &Resource, sent: &Value) -> Result<Value, Vec<String>> {
    let schemas = schema::Registry::builtin();
    let schema = Schema { registry: schemas, message: row.message };
    let bytes = serde_json::to_vec(sent).unwrap();
    let mut object = json::decode(schema, &bytes, FieldValidation::Ignore).unwrap().object;
    codec::apply_defaults(schema, &mut object);
    row.strategy.default(&mut object);
    if row.verbs == crate::registry::Verbs::All {
        object::set_uid(&mut object, UID);
    }
    if let Some(allocator) = row.strategy.allocator() {
        let context = context();
        match futures::executor::block_on(allocator.create(&context, &mut object, true)) {
            Ok(reservation) => futures::executor::block_on(reservation.abandon()),
            Err(ApiError::Invalid { errors, .. }) => return Err(texts(&errors)),
            Err(other) => return Err(vec![other.to_string()]),
        }
    }
    row.strategy.prepare_for_create(&context(), &mut object);
    codec::canonicalize(schema, &mut object).unwrap();
    let path = Path::new("metadata").child("name");
    let name = object::name(&object).to_owned();
    let mut errors: Vec<FieldError> = Vec::new();
    if row.verbs == crate::registry::Verbs::All {
        let messages = row.strategy.validate_name(&name, false);
        errors.extend(messages.into_iter().map(|m| FieldError::invalid(&path, name.as_str(), m)));
    }
    errors.extend(row.strategy.validate(&context(), &object));
    if errors.is_empty() {
        return Ok(read_back(row, object));
    }
    Err(texts(&errors))
}

/// Errors as causes of a Status show them. Values that are objects are left out: upstream shows
/// those with the names of its Go fields.
fn texts(errors: &[FieldError]) -> Vec<String> {
    let mut texts: Vec<String> =
        errors.iter().map(|e| without_object(&format!("{}: {}", e.path, e.body()))).collect();
    texts.sort();
    texts
}

fn without_object(text: &str) -> String {
    match (text.find(": {"), text.rfind('}')) {
        (Some(from), Some(to)) if from < to && text[..from].contains(" value") => {
            format!("{}{}", &text[..from], &text[to + 1..])
        }
        _ => text.to_owned(),
    }
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Updates as the pipeline does; gives the errors, or the object.
fn update(row: &Resource, case: &Value) -> Result<Value, Vec<String>> {
    let schemas = schema::Registry::builtin();
    let schema = Schema { registry: schemas, message: row.message };
    let of_part = object::str_at(case, &["subresource"]);
    let strategy = match row.subresources.iter().find(|s| s.name == of_part) {
        Some(Subresource { action: Action::Part { strategy, .. }, .. }) => strategy,
        _ => &row.strategy,
    };
    let decode = |value: &Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let mut object = json::decode(schema, &bytes, FieldValidation::Ignore).unwrap().object;
        codec::apply_defaults(schema, &mut object);
        strategy.default(&mut object);
        object
    };
    let old = decode(&case["old"]);
    let mut sent = case["old"].clone();
    merge(&mut sent, &case["change"]);
    let mut object = decode(&sent);
    let context = context();
    if let Some(allocator) = strategy.allocator() {
        match futures::executor::block_on(allocator.update(&context, &mut object, &old, true)) {
            Ok(reservation) => futures::executor::block_on(reservation.abandon()),
            Err(ApiError::Invalid { errors, .. }) => return Err(texts(&errors)),
            Err(other) => return Err(vec![other.to_string()]),
        }
    }
    strategy.prepare_for_update(&context, &mut object, &old);
    codec::canonicalize(schema, &mut object).unwrap();
    match strategy.validate_update(&context, &object, &old) {
        errors if errors.is_empty() => Ok(read_back(row, object)),
        errors => Err(texts(&errors)),
    }
}

/// What is read of an object that was stored in another version.
fn read_back(row: &Resource, mut object: Value) -> Value {
    let (group, version) = &row.storage.version;
    if (group, version) != (&row.group, &row.version) {
        row.strategy.to_storage(&mut object);
        row.strategy.to_served(&mut object);
        let schema = Schema { registry: schema::Registry::builtin(), message: row.message };
        codec::canonicalize(schema, &mut object).unwrap();
    }
    object
}

/// A JSON merge patch.
fn merge(into: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) else {
        *into = patch.clone();
        return;
    };
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.remove(key)),
            value => merge(into.entry(key.as_str()).or_insert(Value::Null), value),
        }
    }
}

/// First lines: what follows shows a difference in the words of Go's types.
fn heads(list: &[String]) -> Vec<String> {
    let mut heads: Vec<String> =
        list.iter().map(|t| without_object(t.lines().next().unwrap_or(""))).collect();
    heads.sort();
    heads.dedup();
    heads
}

fn update_difference(row: &Resource, case: &Value) -> Option<String> {
    match (update(row, case), case.get("errors")) {
        (Err(ours), Some(theirs)) => {
            let (ours, theirs) = (heads(&ours), heads(&strings(theirs)));
            (ours != theirs).then(|| format!("  ours {ours:#?}\n  theirs {theirs:#?}"))
        }
        (Ok(_), Some(theirs)) => Some(format!("  accepted, should be {theirs:#}")),
        (Err(ours), None) => Some(format!("  refused: {ours:#?}")),
        (Ok(mut ours), None) => {
            let mut theirs = case["result"].clone();
            for object in [&mut ours, &mut theirs] {
                object::remove(object, &["metadata", "resourceVersion"]);
            }
            (!same(&ours, &theirs)).then(|| super::difference::difference(&theirs, &ours))
        }
    }
}

#[test]
fn updates_are_answered_as_upstream_answers() {
    for text in [include_str!("testdata/update.json"), include_str!("testdata/update_more.json")] {
        let cases: Vec<Value> = serde_json::from_str(text).unwrap();
        check(&cases, "old", update_difference);
    }
}

/// What differs between our answer and upstream's, as text.
fn difference(row: &Resource, case: &Value) -> Option<String> {
    let ours = create(row, &case["object"]);
    match (ours, case.get("errors")) {
        (Err(ours), Some(theirs)) => {
            let theirs: Vec<String> = strings(theirs).iter().map(|t| without_object(t)).collect();
            let extra: Vec<_> = ours.iter().filter(|e| !theirs.contains(e)).collect();
            let missing: Vec<_> = theirs.iter().filter(|e| !ours.contains(e)).collect();
            (!extra.is_empty() || !missing.is_empty())
                .then(|| format!("  extra {extra:#?}\n  missing {missing:#?}"))
        }
        (Ok(_), Some(theirs)) => Some(format!("  accepted, should be {theirs:#}")),
        (Err(ours), None) => Some(format!("  refused: {ours:#?}")),
        (Ok(mut ours), None) => {
            let own = row.strategy.warnings(&ours, None);
            let theirs = &case["result"];
            for field in ["name", "namespace", "creationTimestamp", "uid"] {
                object::remove(&mut ours, &["metadata", field]);
            }
            let said = strings(&case["warnings"]);
            if own != said {
                return Some(format!("  warns {own:#?}, should warn {said:#?}"));
            }
            let mut theirs = theirs.clone();
            for object in [&mut ours, &mut theirs] {
                if let Some(condition) = object.pointer_mut("/status/conditions/0") {
                    object::remove(condition, &["lastTransitionTime"]);
                }
            }
            (!same(&ours, &theirs)).then(|| super::difference::difference(&theirs, &ours))
        }
    }
}

#[test]
fn creation_is_answered_as_upstream_answers() {
    for text in [include_str!("testdata/create.json"), include_str!("testdata/create_more.json")] {
        let cases: Vec<Value> = serde_json::from_str(text).unwrap();
        check(&cases, "object", difference);
    }
}

fn check(cases: &[Value], of: &str, difference: fn(&Resource, &Value) -> Option<String>) {
    let services = Arc::new(ServiceAllocator::new(
        Arc::new(MemoryLedger::default()),
        vec![AddressRange::new("10.96.0.0/16".parse().unwrap())],
        PortRange::default(),
        |_| 0,
    ));
    let deps = Deps { services: Some(services), ..Deps::default() };
    let rows = all(schema::Registry::builtin(), &deps);
    let mut failures = String::new();
    let mut failed = 0;
    for case in cases {
        let name = object::str_at(case, &["name"]);
        let row = row(&rows, &case[of]).unwrap_or_else(|| panic!("{name}: no row"));
        if let Some(text) = difference(row, case) {
            failed += 1;
            failures.push_str(&format!("{name}\n{text}\n"));
        }
    }
    assert!(failed == 0, "{failed} of {} differ\n{failures}", cases.len());
}

#[test]
fn every_row_has_a_valid_sample() {
    let rows = all(schema::Registry::builtin(), &Deps::default());
    let samples = super::samples::samples();
    for row in &rows {
        let of_row = samples
            .iter()
            .find(|(g, v, k, _)| row.group == *g && row.version == *v && row.kind == *k);
        let Some((_, _, kind, sample)) = of_row else { panic!("no sample of {}", row.kind) };
        let mut sample = sample.clone();
        if row.namespaced && object::namespace(&sample).is_empty() {
            object::set_namespace(&mut sample, "default");
        }
        if let Err(errors) = create(row, &sample) {
            panic!("{kind}: {errors:#?}");
        }
    }
    assert_eq!(rows.len(), samples.len());
}
