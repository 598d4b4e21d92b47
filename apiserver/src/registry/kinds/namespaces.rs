//! Namespaces.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::At;
use super::row::Rows;
use super::{STATUS, checked, default_to, keep, label_name, selectable};
use crate::registry::{Context, SelectableField, Strategy};

/// What holds a namespace until all that is in it has gone.
const FINALIZER: &str = "kubernetes";

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("", "v1"), ("Namespace", "namespaces"), |row| {
        let mut fields = selectable! { "status.phase" => ["status", "phase"] };
        // Old clients select by a bare name.
        fields.push(SelectableField { label: "name", get: |n| object::name(n).into() });
        row.cluster()
            .no_delete_collection()
            .short(&["ns"])
            .strategy(Namespaces)
            .status(Status)
            .replaced_part("finalize", Finalize, STATUS)
            .fields(fields)
            .columns(named([
                column("Status", "string", "Phase of the namespace.", |n, _| {
                    object::str_at(n, &["status", "phase"]).into()
                }),
                age_column(),
            ]))
    });
}

struct Namespaces;

fn default(object: &mut Value) {
    let name = object::name(object).to_owned();
    if !name.is_empty() {
        set(object, &["metadata", "labels", "kubernetes.io/metadata.name"], name);
    }
    default_to(super::child(object, "status"), "phase", "Active");
}

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({"phase": "Active"}));
        let mut finalizers = object::list_at(object, &["spec", "finalizers"]).to_vec();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        set(object, &["spec", "finalizers"], finalizers);
        // The name may have been generated since the defaults.
        default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec", "finalizers"]);
        keep(object, old, &["status"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let finalizers = root.down(&["spec", "finalizers"]);
            for finalizer in finalizers.items() {
                finalizer_name(errors, &At::new(finalizer.value(), finalizers.path().clone()));
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, _: &Value, _: &Value) -> ErrorList {
        ErrorList::new()
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        label_name(name, prefix)
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }

    fn is_held(&self, object: &Value) -> bool {
        !object::list_at(object, &["spec", "finalizers"]).is_empty()
    }

    fn begin_deletion(&self, object: &mut Value) {
        // Namespaces have no grace, and end in a phase of their own.
        object::remove(object, &["metadata", "deletionGracePeriodSeconds"]);
        set(object, &["status", "phase"], "Terminating");
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

/// Finalizers of namespaces: qualified names, or Kubernetes' own.
fn finalizer_name(errors: &mut Vec<FieldError>, at: &At<'_>) {
    super::check::invalid_each(errors, at, names::qualified_name(at.str()));
    let known = matches!(at.str(), FINALIZER | "orphan" | "foregroundDeletion");
    if !at.str().contains('/') && !known {
        errors.push(
            at.invalid("name is neither a standard finalizer name nor is it fully qualified"),
        );
    }
}

struct Status;

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let status = root.at("status");
            let phase = At::new(status.at("phase").value(), status.at("Phase").path().clone());
            let deleting = !object::deletion_timestamp(object).is_empty();
            if !deleting && phase.str() != "Active" {
                errors.push(phase.invalid_as(
                    phase.str(),
                    "may only be 'Active' if `deletionTimestamp` is empty",
                ));
            }
            if deleting && phase.str() != "Terminating" {
                errors.push(phase.invalid_as(
                    phase.str(),
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                ));
            }
        })
    }
}

struct Finalize;

impl Strategy for Finalize {
    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            for finalizer in root.down(&["spec", "finalizers"]).items() {
                finalizer_name(errors, &finalizer);
            }
        })
    }
}
