//! Pods, pod templates and bindings.

mod app_armor;
mod columns;
mod containers;
pub mod defaults;
mod overlaps;
mod placement;
mod probes;
mod security;
pub mod spec;
mod update;
pub mod volumes;
mod warnings;

use std::borrow::Cow;

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};
use apimachinery::qos::qos_class;
use serde_json::{Map, json};

pub use columns::first_ip;
pub use placement::{effect as taint_effect, node_selector, tolerations};
pub use warnings::{
    cidr as cidr_warning, fractional as fractional_warning, ip as ip_warning,
    pod_names as pod_names_warning,
};

use super::check::At;
use super::row::Rows;
use super::{Deps, STATUS, checked, count_up, each, keep, selectable, subdomain_name};
use crate::registry::{Connect, Context, PostHandler, SelectableField, Strategy};
use spec::Options;

/// On the API's image of a static pod: the hash of what the kubelet runs.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where a kubelet found a pod: `file`, `http` or `api`.
const SOURCE: &str = "kubernetes.io/config.source";

/// Whether the kubelet runs this pod without the API's doing.
pub fn is_static(pod: &Value) -> bool {
    object::annotation(pod, SOURCE).is_some_and(|source| source != "api")
}

/// Whether the pod only shows a static pod.
pub fn is_mirror(pod: &Value) -> bool {
    object::annotation(pod, MIRROR).is_some()
}

pub fn rows(rows: &mut Rows<'_>, deps: &Deps) {
    let options = Options { is_pod: true, allow_privileged: deps.allow_privileged };
    let pods = Pods { options };
    rows.add(("", "v1"), ("Pod", "pods"), |row| {
        row.short(&["po"])
            .in_all()
            .columns(columns::columns())
            .fields(fields())
            .part("status", PodStatus(pods.clone()), STATUS_RESETS)
            .part("ephemeralcontainers", EphemeralContainers(pods.clone()), NO_RESETS)
            .part("resize", Resize(pods.clone()), NO_RESETS)
            .post("binding", ("", "v1", "Binding"), PostHandler::Binding)
            .post("eviction", ("policy", "v1", "Eviction"), PostHandler::Eviction)
            .connect("log", Connect::Log)
            .connect("exec", Connect::Exec)
            .connect("attach", Connect::Attach)
            .connect("portforward", Connect::PortForward)
            .connect("proxy", Connect::Proxy)
            .strategy(pods)
    });
    rows.add(("", "v1"), ("Binding", "bindings"), |row| row.create_only().strategy(Bindings));
    let options = Options { is_pod: false, allow_privileged: deps.allow_privileged };
    rows.add(("", "v1"), ("PodTemplate", "podtemplates"), |row| {
        row.strategy(PodTemplates { options }).columns(template_columns())
    });
}

const STATUS_RESETS: &[&[&str]] =
    &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]];

/// What is applied to these subresources is owned whole, though they store a part of it only:
/// upstream's strategies name that part (`GetResetFieldsFilter`), but its storages of the
/// subresources do not pass it on, so that no answer ever shows it.
const NO_RESETS: &[&[&str]] = &[];

fn fields() -> Vec<SelectableField> {
    let mut list = selectable! {
        "spec.nodeName" => ["spec", "nodeName"],
        "spec.restartPolicy" => ["spec", "restartPolicy"],
        "spec.schedulerName" => ["spec", "schedulerName"],
        "spec.serviceAccountName" => ["spec", "serviceAccountName"],
        "status.phase" => ["status", "phase"],
        "status.nominatedNodeName" => ["status", "nominatedNodeName"],
    };
    list.push(SelectableField {
        label: "spec.hostNetwork",
        get: |p| match object::bool_at(p, &["spec", "hostNetwork"]) {
            true => Cow::Borrowed("true"),
            false => Cow::Borrowed("false"),
        },
    });
    list.push(SelectableField { label: "status.podIP", get: |p| first_ip(p).into() });
    list.push(SelectableField { label: "status.podIPs", get: |p| first_ip(p).into() });
    list.push(SelectableField {
        // The name of `spec.nodeName` in the oldest clients.
        label: "spec.host",
        get: |p| object::str_at(p, &["spec", "nodeName"]).into(),
    });
    list
}

fn template_columns() -> Vec<crate::registry::Column> {
    use super::cells::{column, containers, labels, named};
    named([
        column("Containers", "string", "Names of the template's containers.", |o, _| {
            containers(&o["template"]["spec"]).0.into()
        }),
        column("Images", "string", "Images of the template's containers.", |o, _| {
            containers(&o["template"]["spec"]).1.into()
        }),
        column("Pod Labels", "string", "Labels of the pods.", |o, _| {
            labels(object::get(o, &["template", "metadata", "labels"])).into()
        }),
    ])
}

/// The main resource.
#[derive(Clone)]
struct Pods {
    options: Options,
}

impl Strategy for Pods {
    fn returns_deleted(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
        drop_disabled(object, None);
        set(object, &["status"], json!({"phase": "Pending", "qosClass": qos_class(object)}));
        if !object::list_at(object, &["spec", "schedulingGates"]).is_empty() {
            set(
                object,
                &["status", "conditions"],
                json!([{
                    "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                    "lastProbeTime": null,
                    "lastTransitionTime": context.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }]),
            );
        }
        merge_label_keys(object);
        app_armor::fill(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
        drop_disabled(object, Some(old));
        count_up(object, old, &["spec"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            spec::pod_with_metadata(errors, root, &self.options);
            let spec = root.at("spec");
            if !spec.at("ephemeralContainers").is_empty() {
                errors.push(spec.at("ephemeralContainers").forbidden("cannot be set on create"));
            }
            if !spec.at("nodeName").is_empty() && !spec.at("schedulingGates").is_empty() {
                errors.push(
                    spec.at("nodeName")
                        .forbidden("cannot be set until all schedulingGates have been cleared"),
                );
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| update::main(errors, root, old, &self.options))
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        subdomain_name(name, prefix)
    }

    fn early_warnings(&self, object: &Value) -> Vec<String> {
        app_armor::warnings(object)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            None => warnings::pod(object),
            Some(_) => Vec::new(),
        }
    }

    fn grace_period(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        let own = object::int_at(object, &["spec", "terminationGracePeriodSeconds"]);
        let done = matches!(object::str_at(object, &["status", "phase"]), "Failed" | "Succeeded");
        let unbound = object::str_at(object, &["spec", "nodeName"]).is_empty();
        Some(match asked.or(own).unwrap_or(0) {
            _ if done || unbound => 0,
            negative if negative < 0 => 1,
            seconds => seconds,
        })
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

/// Where most objects that make pods have the spec of those.
pub(super) const TEMPLATE: &str = "/spec/template/spec";

/// Drops fields of features that are off by default, unless the stored object has them.
pub(super) fn drop_disabled(object: &mut Value, old: Option<&Value>) {
    drop_disabled_at(object, "/spec", old);
}

/// The same where the spec of the pods that an object makes is at `path`.
pub(super) fn drop_disabled_at(object: &mut Value, path: &str, old: Option<&Value>) {
    if let Some(spec) = object.pointer_mut(path) {
        drop_disabled_spec(spec, old.and_then(|old| old.pointer(path)));
    }
}

/// The same of a PodSpec.
fn drop_disabled_spec(spec: &mut Value, old: Option<&Value>) {
    let in_use = |field: &str| old.is_some_and(|o| o.get(field).is_some_and(|v| !v.is_null()));
    if !in_use("workloadRef")
        && let Some(map) = spec.as_object_mut()
    {
        map.remove("workloadRef");
    }
    let signals = old.is_some_and(|o| {
        defaults::CONTAINERS
            .iter()
            .flat_map(|f| object::list_at(o, &[f]))
            .any(|c| object::get(c, &["lifecycle", "stopSignal"]).is_some())
    });
    for field in defaults::CONTAINERS {
        for container in each(spec, field).filter(|_| !signals) {
            object::remove(container, &["lifecycle", "stopSignal"]);
        }
    }
    let projects = |o: &Value, source: &str| {
        object::list_at(o, &["volumes"])
            .iter()
            .flat_map(|v| object::list_at(v, &["projected", "sources"]))
            .any(|s| s.get(source).is_some())
    };
    for source in ["clusterTrustBundle", "podCertificate"] {
        if old.is_some_and(|o| projects(o, source)) {
            continue;
        }
        for volume in each(spec, "volumes") {
            if let Some(projected) = volume.get_mut("projected") {
                for entry in each(projected, "sources") {
                    object::remove(entry, &[source]);
                }
            }
        }
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements with the pod's own values.
fn merge_label_keys(pod: &mut Value) {
    let labels = object::map_at(pod, &["metadata", "labels"]).cloned().unwrap_or_default();
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in each(spec, "topologySpreadConstraints") {
        add_requirements(constraint, &labels);
    }
    let Some(affinity) = spec.get_mut("affinity") else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get_mut(kind) else { continue };
        for term in each(pods, "requiredDuringSchedulingIgnoredDuringExecution") {
            add_requirements(term, &labels);
        }
        for weighted in each(pods, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                add_requirements(term, &labels);
            }
        }
    }
}

fn add_requirements(term: &mut Value, labels: &Map<String, Value>) {
    if !term.get("labelSelector").is_some_and(Value::is_object) {
        return;
    }
    let mut added = Vec::new();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in object::list_at(term, &[field]).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if added.is_empty() {
        return;
    }
    let selector = object::map_mut(term, &["labelSelector"]);
    match selector.entry("matchExpressions").or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(added),
        other => *other = Value::Array(added),
    }
}

/// `pods/status`
struct PodStatus(Pods);

impl Strategy for PodStatus {
    fn default(&self, object: &mut Value) {
        self.0.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        object::remove(object, &["metadata", "deletionTimestamp"]);
        keep(object, old, &["metadata", "ownerReferences"]);
        keep(object, old, &["metadata", "generation"]);
        if object::str_at(object, &["status", "qosClass"]).is_empty() {
            keep(object, old, &["status", "qosClass"]);
        }
        keep_observed(object, old);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| update::status(errors, root, old))
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut list = Vec::new();
        if old.is_some() {
            for field in ["podIPs", "hostIPs"] {
                for entry in At::root(object).down(&["status", field]).items() {
                    warnings::ip(&mut list, &entry.at("ip"));
                }
            }
        }
        list
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS_RESETS
    }
}

/// Clients that do not know of `observedGeneration` do not reset it.
fn keep_observed(object: &mut Value, old: &Value) {
    let path = ["status", "observedGeneration"];
    if object::int_at(object, &path).unwrap_or(0) == 0 {
        keep(object, old, &path);
    }
    let mut olds: Vec<&Value> = object::list_at(old, &["status", "conditions"]).iter().collect();
    let Some(status) = object.get_mut("status") else { return };
    for condition in each(status, "conditions") {
        let kind = object::str_at(condition, &["type"]);
        let Some(i) = olds.iter().position(|o| object::str_at(o, &["type"]) == kind) else {
            continue;
        };
        let was = olds.remove(i);
        if object::int_at(condition, &["observedGeneration"]).unwrap_or(0) == 0 {
            keep(condition, was, &["observedGeneration"]);
        }
    }
}

/// Metadata that a subresource does not change.
fn keep_metadata(object: &mut Value, old: &Value) {
    for field in [
        "deletionTimestamp",
        "generation",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
    ] {
        keep(object, old, &["metadata", field]);
    }
}

/// `pods/ephemeralcontainers`
struct EphemeralContainers(Pods);

impl Strategy for EphemeralContainers {
    fn default(&self, object: &mut Value) {
        self.0.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let added = object::get(object, &["spec", "ephemeralContainers"]).cloned();
        keep(object, old, &["spec"]);
        keep(object, old, &["status"]);
        keep_metadata(object, old);
        match added {
            Some(list) => set(object, &["spec", "ephemeralContainers"], list),
            None => {
                object::remove(object, &["spec", "ephemeralContainers"]);
            }
        }
        drop_disabled(object, Some(old));
        count_up(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| update::ephemeral(errors, root, old, &self.0.options))
    }
}

/// `pods/resize`
struct Resize(Pods);

impl Strategy for Resize {
    fn default(&self, object: &mut Value) {
        self.0.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let lists = ["containers", "initContainers"];
        let of = |o: &Value, f: &str| object::list_at(o, &["spec", f]).to_vec();
        let same_length = lists.iter().all(|f| of(object, f).len() == of(old, f).len());
        // Otherwise validation shall see what the client sent.
        if same_length {
            let resized = lists.map(|f| resized(&of(object, f), &of(old, f)));
            keep(object, old, &["spec"]);
            keep(object, old, &["status"]);
            keep_metadata(object, old);
            for (field, list) in lists.iter().zip(resized) {
                if !list.is_empty() {
                    set(object, &["spec", field], list);
                }
            }
        }
        drop_disabled(object, Some(old));
        count_up(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| update::resize(errors, root, old, &self.0.options))
    }
}

/// The old containers with the new resources; the new ones as they are when names differ.
fn resized(news: &[Value], old: &[Value]) -> Vec<Value> {
    let mut merged = old.to_vec();
    for (merged, new) in merged.iter_mut().zip(news) {
        if object::str_at(merged, &["name"]) != object::str_at(new, &["name"]) {
            return news.to_vec();
        }
        keep(merged, new, &["resources"]);
        keep(merged, new, &["resizePolicy"]);
    }
    merged
}

/// Objects of kind Binding, which bind a pod to a node when they are created.
struct Bindings;

impl Strategy for Bindings {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        validate_binding(object)
    }
}

/// Rules of a Binding.
pub fn validate_binding(binding: &Value) -> ErrorList {
    checked(binding, |root, errors| {
        let (kind, name) = (root.down(&["target", "kind"]), root.down(&["target", "name"]));
        if !kind.is_empty() && kind.str() != "Node" {
            errors.push(kind.not_supported(&["Node", "<empty>"]));
        }
        if name.is_empty() {
            errors.push(name.required(""));
        }
    })
}

/// PodTemplates.
struct PodTemplates {
    options: Options,
}

impl Strategy for PodTemplates {
    fn returns_deleted(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        defaults::template(super::child(object, "template"));
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        count_up(object, old, &["template"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            spec::template(errors, &root.at("template"), &self.options);
        })
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if object::generation(object) == object::generation(old) => Vec::new(),
            _ => template_warnings(&At::root(object).at("template")),
        }
    }
}

/// Warnings about the addresses of a load balancer in an object's status.
pub fn load_balancer_warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for entry in At::root(object).down(&["status", "loadBalancer", "ingress"]).items() {
        // Upstream names the entry, not its field.
        let ip = At::new(entry.at("ip").value(), entry.path().clone());
        warnings::ip(&mut warnings, &ip);
    }
    warnings
}

/// Warnings about the template of a workload.
pub fn template_warnings(at: &At<'_>) -> Vec<String> {
    let mut list = Vec::new();
    warnings::template(&mut list, at);
    list
}
