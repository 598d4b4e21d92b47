//! One row for each kind, with the strategy that holds what is particular to it: defaults,
//! what a write may change, validation, warnings, and the cells of tables.
//!
//! Rules and messages are those of k8s.io/kubernetes `pkg/apis/*` (defaults, validation),
//! `pkg/registry/*` (strategies) and `pkg/printers` (tables).

mod admission_policies;
pub mod admissionregistration;
pub mod apiregistration;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod cells;
pub mod certificates;
pub mod check;
pub mod config;
pub mod coordination;
pub mod custom_resource_definitions;
pub mod devices;
mod difference;
pub mod endpoints;
pub mod events;
pub mod flowcontrol;
pub mod ingress;
mod key_pairs;
pub mod limits;
pub mod namespaces;
pub mod networking;
mod node_labels;
pub mod nodes;
pub mod pods;
pub mod policy;
pub mod rbac;
pub mod replication;
pub mod resources;
pub mod reviews;
pub mod row;
pub mod scheduling;
pub mod services;
pub mod storage;
pub mod volumes;

#[cfg(test)]
mod corpus;
#[cfg(test)]
pub(crate) use corpus::context as corpus_context;
pub mod samples;
#[cfg(test)]
mod warnings_tests;

use std::sync::Arc;

use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};
use apimachinery::{Value, names, schema};
use serde_json::json;

use super::allocate::Allocator;
use super::{Resource, Strategy};
use row::Rows;

/// What strategies need of the process they run in.
#[derive(Clone)]
pub struct Deps {
    /// Grants ClusterIPs and node ports; without one (in tests of other parts) services keep
    /// what they ask for.
    pub services: Option<Arc<dyn Allocator>>,
    /// `--allow-privileged`
    pub allow_privileged: bool,
    /// Family of the first service range: 4 or 6.
    pub service_family: u8,
    /// How long events are kept (`--event-ttl`).
    pub event_ttl: std::time::Duration,
}

impl Default for Deps {
    fn default() -> Self {
        Self {
            services: None,
            allow_privileged: true,
            service_family: 4,
            event_ttl: std::time::Duration::from_secs(3600),
        }
    }
}

/// All built-in rows, of the kinds that `schemas` knows.
pub fn all(schemas: &schema::Registry, deps: &Deps) -> Vec<Resource> {
    let mut rows = Rows { schemas, rows: Vec::new() };
    namespaces::rows(&mut rows);
    nodes::rows(&mut rows);
    pods::rows(&mut rows, deps);
    services::rows(&mut rows, deps);
    endpoints::rows(&mut rows);
    config::rows(&mut rows);
    limits::rows(&mut rows);
    volumes::rows(&mut rows);
    events::rows(&mut rows, deps);
    coordination::rows(&mut rows);
    apps::rows(&mut rows, deps);
    replication::rows(&mut rows, deps);
    batch::rows(&mut rows, deps);
    rbac::rows(&mut rows);
    scheduling::rows(&mut rows);
    networking::rows(&mut rows);
    ingress::rows(&mut rows);
    storage::rows(&mut rows);
    autoscaling::rows(&mut rows);
    certificates::rows(&mut rows);
    flowcontrol::rows(&mut rows);
    devices::rows(&mut rows);
    policy::rows(&mut rows);
    admissionregistration::rows(&mut rows);
    apiregistration::rows(&mut rows);
    reviews::rows(&mut rows);
    custom_resource_definitions::rows(&mut rows);
    rows.rows
}

/// Paths that server-side apply of a main resource with `status` owns nothing of.
pub(crate) const STATUS: &[&[&str]] = &[&["status"]];
/// The same of the `status` subresource.
pub(crate) const SPEC: &[&[&str]] = &[&["spec"]];
/// The same for statuses that are written without anything else.
pub(crate) const META_AND_SPEC: &[&[&str]] = &[&["metadata"], &["spec"]];

/// The strategy of a kind with nothing particular.
pub struct Plain;

impl Strategy for Plain {}

/// A field that selectors may name, at a path of names.
macro_rules! selectable {
    ($($label:literal => $path:expr),* $(,)?) => {
        vec![$($crate::registry::SelectableField {
            label: $label,
            get: |o| std::borrow::Cow::Borrowed(apimachinery::object::str_at(o, &$path)),
        }),*]
    };
}
pub(crate) use selectable;

/// Status that a client sent is dropped; the object begins with generation 1.
pub(crate) fn begin(object: &mut Value) {
    set(object, &["status"], json!({}));
    set(object, &["metadata", "generation"], 1);
}

/// A write of the main resource keeps the stored status; a change of `spec` counts up.
pub(crate) fn carry_on(object: &mut Value, old: &Value) {
    keep(object, old, &["status"]);
    count_up(object, old, &["spec"]);
}

/// Puts the stored value of a field back.
pub(crate) fn keep(object: &mut Value, old: &Value, path: &[&str]) {
    match object::get(old, path) {
        Some(value) => set(object, path, value.clone()),
        None => {
            object::remove(object, path);
        }
    }
}

/// `metadata.generation` grows by one when the field changed, and stays otherwise.
pub(crate) fn count_up(object: &mut Value, old: &Value, path: &[&str]) {
    let of = |o: &Value| object::get(o, path).cloned().unwrap_or(Value::Null);
    let changed = !check::same(&of(object), &of(old));
    let generation = object::generation(old) + i64::from(changed);
    if generation != 0 {
        set(object, &["metadata", "generation"], generation);
    }
}

/// Sets a field that is absent (or holds its zero, where Go does not tell the two apart).
pub(crate) fn default_to(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(check::is_zero)
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// As [`default_to`], for pointers: only an absent field is set.
pub(crate) fn default_absent(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// The map at a field, for changing it; made when absent.
pub(crate) fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = json!({});
    }
    let child = &mut object[field];
    if child.is_null() {
        *child = json!({});
    }
    child
}

/// The elements of a list, for changing them.
pub(crate) fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Names that are RFC 1123 labels; a trailing dash of a generateName does not count.
pub(crate) fn label_name(name: &str, prefix: bool) -> Vec<String> {
    names::dns1123_label(masked(name, prefix))
}

/// Names that are RFC 1123 subdomains.
pub(crate) fn subdomain_name(name: &str, prefix: bool) -> Vec<String> {
    names::dns1123_subdomain(masked(name, prefix))
}

/// Names that are RFC 1035 labels.
pub(crate) fn label_1035_name(name: &str, prefix: bool) -> Vec<String> {
    names::dns1035_label(masked(name, prefix))
}

/// A generateName may end in a dash, since more follows.
fn masked(name: &str, prefix: bool) -> &str {
    match name.strip_suffix('-') {
        Some(rest) if prefix && !rest.is_empty() => rest,
        _ => name,
    }
}

/// Rules that hold for any create and update alike need a root to begin from.
pub(crate) fn checked(object: &Value, f: impl FnOnce(&check::At<'_>, &mut ErrorList)) -> ErrorList {
    let mut errors = ErrorList::new();
    f(&check::At::root(object), &mut errors);
    errors
}
