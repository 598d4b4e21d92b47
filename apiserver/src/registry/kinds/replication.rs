//! ReplicationControllers: what ReplicaSets were before selectors had expressions.

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::object;

use super::apps::{always_restarts, replica_counts, replica_sets, replicas_field};
use super::check::{At, nonnegative};
use super::pods::spec::{self, Options};
use super::pods::{self, defaults};
use super::row::Rows;
use super::{Deps, STATUS, begin, carry_on, checked, child, default_absent, keep};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>, deps: &Deps) {
    let strategy = Controllers(Options { is_pod: false, allow_privileged: deps.allow_privileged });
    rows.add(("", "v1"), ("ReplicationController", "replicationcontrollers"), |row| {
        row.in_all()
            .short(&["rc"])
            .prefix("controllers")
            .strategy(strategy.clone())
            .status(Status(strategy))
            .scale("spec.selector")
            .fields(replicas_field())
            .columns(replica_sets())
    });
}

#[derive(Clone)]
struct Controllers(Options);

impl Strategy for Controllers {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_absent(spec, "replicas", 1);
        if !spec.get("template").is_some_and(Value::is_object) {
            return;
        }
        defaults::template(child(spec, "template"));
        // What is not said follows from the template's labels.
        let labels = spec["template"]["metadata"]["labels"].clone();
        let empty = |value: Option<&Value>| {
            value.and_then(Value::as_object).is_none_or(serde_json::Map::is_empty)
        };
        if empty(Some(&labels)) {
            return;
        }
        if empty(spec.get("selector")) {
            object::set(spec, &["selector"], labels.clone());
        }
        if empty(object::get(object, &["metadata", "labels"])) {
            object::set(object, &["metadata", "labels"], labels);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
        pods::drop_disabled_at(object, pods::TEMPLATE, None);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        pods::drop_disabled_at(object, pods::TEMPLATE, Some(old));
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| self.spec(errors, &root.at("spec")))
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut list = Vec::new();
        let path = ["spec", "template"];
        match old {
            None => {
                pods::pod_names_warning(&mut list, object::name(object));
                list.extend(pods::template_warnings(&At::root(object).down(&path)));
            }
            // Upstream speaks of the old template here, not of the new one.
            Some(old) if object::generation(object) != object::generation(old) => {
                list.extend(pods::template_warnings(&At::root(old).down(&path)));
            }
            Some(_) => {}
        }
        list
    }

    /// In v1 the pods stay, as they always did.
    fn orphans_by_default(&self) -> bool {
        true
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

impl Controllers {
    fn spec(&self, errors: &mut ErrorList, spec: &At<'_>) {
        nonnegative(errors, &spec.at("minReadySeconds"));
        let selector = spec.at("selector");
        if selector.is_empty() {
            errors.push(selector.required(""));
        }
        nonnegative(errors, &spec.at("replicas"));
        let template = spec.at("template");
        if !template.is_set() {
            errors.push(template.required(""));
            return;
        }
        let labels = template.down(&["metadata", "labels"]);
        let matches = selector
            .entries()
            .all(|(key, wanted)| labels.value().get(key).is_some_and(|l| l == wanted.value()));
        if !selector.is_empty() && !matches {
            errors.push(labels.invalid("`selector` does not match template `labels`"));
        }
        spec::template(errors, &template, &self.0);
        always_restarts(errors, &template, "ReplicationController");
    }
}

struct Status(Controllers);

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        self.0.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep(object, old, &["metadata", "generation"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| replica_counts(errors, &root.at("status")))
    }
}
