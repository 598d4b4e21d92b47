//! CustomResourceDefinitions (upstream: apiextensions-apiserver `pkg/apis/apiextensions`,
//! `pkg/registry/customresourcedefinition`).

mod schemas;
mod spec;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object::{self, bool_at, get, list_at, set, str_at};
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{column, named};
use super::keep;
use super::row::Rows;
use crate::apiextensions::conditions::{self, Approval};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    let (version, kind) = (("apiextensions.k8s.io", "v1"), "CustomResourceDefinition");
    rows.add(version, (kind, "customresourcedefinitions"), |row| {
        row.cluster()
            .json()
            .prefix("apiextensions.k8s.io/customresourcedefinitions")
            .short(&["crd", "crds"])
            .category("api-extensions")
            .strategy(Definitions)
            .part("status", Status, super::META_AND_SPEC)
            .columns(named([column(
                "Created At",
                "date",
                "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
                |o, _| object::creation_timestamp(o).into(),
            )]))
    });
}

struct Definitions;
struct Status;

/// The storage version is one that objects are stored in.
fn note_stored(crd: &mut Value) {
    let storage = list_at(crd, &["spec", "versions"]).iter().find(|v| bool_at(v, &["storage"]));
    let Some(name) = storage.map(|v| str_at(v, &["name"]).to_owned()) else { return };
    let mut stored = list_at(crd, &["status", "storedVersions"]).to_vec();
    if !stored.iter().any(|v| v == name.as_str()) {
        stored.push(name.into());
        set(crd, &["status", "storedVersions"], stored);
    }
}

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        let kind = str_at(object, &["spec", "names", "kind"]).to_owned();
        if str_at(object, &["spec", "names", "singular"]).is_empty() {
            let singular = kind.to_lowercase();
            if !singular.is_empty() {
                set(object, &["spec", "names", "singular"], singular);
            }
        }
        if str_at(object, &["spec", "names", "listKind"]).is_empty() && !kind.is_empty() {
            set(object, &["spec", "names", "listKind"], format!("{kind}List"));
        }
        if get(object, &["spec", "conversion"]).is_none() {
            set(object, &["spec", "conversion"], json!({"strategy": "None"}));
        }
        let service = ["spec", "conversion", "webhook", "clientConfig", "service"];
        if let Some(found) = get(object, &service)
            && found.get("port").is_none_or(Value::is_null)
        {
            set(object, &[&service[..], &["port"]].concat(), 443);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        let empty = json!({"conditions": null, "storedVersions": null,
            "acceptedNames": {"plural": "", "kind": ""}});
        set(object, &["status"], empty);
        set(object, &["metadata", "generation"], 1);
        note_stored(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        super::carry_on(object, old);
        note_stored(object);
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::name_is_subdomain(name, prefix)
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let required = format!(
            "{}.{}",
            str_at(object, &["spec", "names", "plural"]),
            str_at(object, &["spec", "group"])
        );
        let name = object::name(object);
        if name != required {
            let at = Path::new("metadata").child("name");
            errors.push(FieldError::invalid(
                &at,
                name,
                "must be spec.names.plural+\".\"+spec.group",
            ));
        }
        let options = spec::Options { ca_bundles: false, ..spec::Options::default() };
        whole(object, None, &options, &mut errors);
        errors
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let options = spec::Options::of(object, old);
        whole(object, Some(old), &options, &mut errors);
        if conditions::is_true(old, "Established") {
            for path in [&["spec", "scope"][..], &["spec", "names", "kind"]] {
                immutable(object, old, path, &mut errors);
            }
        }
        for path in [&["spec", "group"][..], &["spec", "names", "plural"]] {
            immutable(object, old, path, &mut errors);
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let before = old.map(schemas::unknown_formats).unwrap_or_default();
        schemas::unknown_formats(object)
            .into_iter()
            .filter(|format| !before.contains(format))
            .map(|format| format!("unrecognized format {format:?}"))
            .collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        super::STATUS
    }

    fn hold(&self, object: &mut Value) {
        let mut finalizers = list_at(object, &["metadata", "finalizers"]).to_vec();
        if !finalizers.iter().any(|f| f == conditions::CLEANUP) {
            finalizers.push(conditions::CLEANUP.into());
            set(object, &["metadata", "finalizers"], finalizers);
        }
    }

    fn begin_deletion(&self, object: &mut Value) {
        // They have no grace, and their end is no change of what is asked of them.
        object::remove(object, &["metadata", "deletionGracePeriodSeconds"]);
        let generation = object::generation(object);
        if generation > 1 {
            set(object, &["metadata", "generation"], generation - 1);
        }
        let text =
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        let pending = conditions::terminating("True", "InstanceDeletionPending", text.to_owned());
        let now = object::deletion_timestamp(object).to_owned();
        conditions::set(object, &pending, &now);
    }
}

fn immutable(new: &Value, old: &Value, path: &[&str], errors: &mut ErrorList) {
    let (new, old) = (str_at(new, path), str_at(old, path));
    if new != old {
        let at = Path::new(&path.join("."));
        errors.push(FieldError::invalid(&at, new, "field is immutable"));
    }
}

/// The rules of a new definition and of a changed one.
fn whole(object: &Value, old: Option<&Value>, options: &spec::Options, errors: &mut ErrorList) {
    spec::check(object, options, errors);
    status(object, errors);
    stored_versions(object, errors);
    approval(object, old, errors);
    let keeps = |o: &Value| bool_at(o, &["spec", "preserveUnknownFields"]);
    if keeps(object) && !old.is_some_and(keeps) {
        let at = Path::new("spec").child("preserveUnknownFields");
        let text = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(&at, true, text));
    }
}

fn status(object: &Value, errors: &mut ErrorList) {
    let names = get(object, &["status", "acceptedNames"]).unwrap_or(&Value::Null);
    spec::names(names, &Path::new("status").child("acceptedNames"), errors);
}

fn stored_versions(object: &Value, errors: &mut ErrorList) {
    let at = Path::new("status").child("storedVersions");
    let stored = list_at(object, &["status", "storedVersions"]);
    if stored.is_empty() {
        let shown = get(object, &["status", "storedVersions"]).cloned().unwrap_or_default();
        errors.push(FieldError::invalid(&at, shown, "must have at least one stored version"));
        return;
    }
    let versions = list_at(object, &["spec", "versions"]);
    for version in versions.iter().filter(|v| bool_at(v, &["storage"])) {
        let name = str_at(version, &["name"]);
        if !stored.iter().any(|s| s == name) {
            let text = format!("must have the storage version {name}");
            errors.push(FieldError::invalid(&at, stored.to_vec(), text));
        }
    }
    for (i, name) in stored.iter().enumerate() {
        let name = name.as_str().unwrap_or("");
        if !versions.iter().any(|v| str_at(v, &["name"]) == name) {
            let text = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(&at.index(i), name, text));
        }
    }
}

fn approval(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    if !conditions::is_protected(str_at(object, &["spec", "group"])) {
        return;
    }
    let (state, why) = conditions::approval(object);
    if old.is_some_and(|old| conditions::approval(old).0 == state) {
        return;
    }
    let at = Path::new("metadata").child("annotations").key(conditions::APPROVAL);
    let text = object::annotation(object, conditions::APPROVAL).unwrap_or("");
    match state {
        Approval::Invalid => errors.push(FieldError::invalid(&at, text, why)),
        Approval::Missing => errors.push(FieldError::required(&at, why)),
        Approval::Approved | Approval::Bypassed => {}
    }
}

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        Definitions.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        status(object, &mut errors);
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
