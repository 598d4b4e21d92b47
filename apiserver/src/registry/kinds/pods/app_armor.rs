//! AppArmor profiles in annotations, as they were given before there were fields for them.

use apimachinery::Value;
use apimachinery::field::{ErrorList, Path};
use apimachinery::object::{self, set};
use serde_json::json;

use super::super::check::At;
use super::super::each;
use super::security;
use super::warnings::CONTAINERS;

const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";

fn key(container: &Value) -> String {
    format!("{PREFIX}{}", object::str_at(container, &["name"]))
}

fn warning(metadata: &Path, key: &str) -> String {
    let at = metadata.child("annotations").key(key);
    format!("{at}: deprecated since v1.30; use the \"appArmorProfile\" field instead")
}

/// The field's value for an annotation's.
fn profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        text => match text.strip_prefix("localhost/") {
            None | Some("") => None,
            Some(name) => Some(json!({"type": "Localhost", "localhostProfile": name})),
        },
    }
}

/// The profile of a container's annotation, if it has one, and no field. The inner one is none
/// where no valid field can be made of it.
fn annotated(pod: &Value, container: &Value) -> Option<Option<Value>> {
    let annotation = object::annotation(pod, &key(container))?;
    if object::get(container, &["securityContext", "appArmorProfile"]).is_some() {
        return None;
    }
    Some(profile(annotation).filter(|profile| {
        let mut errors = ErrorList::new();
        security::app_armor(&mut errors, &At::root(profile));
        errors.is_empty()
    }))
}

fn of_pod(pod: &Value) -> Option<&Value> {
    object::get(pod, &["spec", "securityContext", "appArmorProfile"])
}

fn is_of_windows(pod: &Value) -> bool {
    object::str_at(pod, &["spec", "os", "name"]) == "windows"
}

/// Annotations of a new pod become fields where they say more than the pod's own field.
pub(super) fn fill(pod: &mut Value) {
    if is_of_windows(pod) || object::map_at(pod, &["metadata", "annotations"]).is_none() {
        return;
    }
    for field in CONTAINERS {
        let profiles: Vec<Option<Value>> = object::list_at(pod, &["spec", field])
            .iter()
            .map(|c| annotated(pod, c).flatten().filter(|p| of_pod(pod) != Some(p)))
            .collect();
        let Some(spec) = pod.get_mut("spec") else { return };
        for (container, profile) in each(spec, field).zip(profiles) {
            if let Some(profile) = profile {
                set(container, &["securityContext", "appArmorProfile"], profile);
            }
        }
    }
}

/// Warnings of a new pod, before its annotations became fields.
pub(super) fn warnings(pod: &Value) -> Vec<String> {
    if is_of_windows(pod) {
        return Vec::new();
    }
    let metadata = Path::new("metadata");
    CONTAINERS
        .iter()
        .flat_map(|field| object::list_at(pod, &["spec", field]))
        .filter(|c| match annotated(pod, c) {
            Some(Some(profile)) => of_pod(pod) != Some(&profile),
            Some(None) => true,
            None => false,
        })
        .map(|c| warning(&metadata, &key(c)))
        .collect()
}

/// Warns of a container's annotation in a template.
pub(super) fn warn_template(warnings: &mut Vec<String>, template: &At<'_>, container: &At<'_>) {
    let annotation = object::annotation(template.value(), &key(container.value()));
    let Some(annotation) = annotation else { return };
    if container.down(&["securityContext", "appArmorProfile"]).is_set() {
        return;
    }
    let own = profile(annotation);
    if own.is_none() || own.as_ref() != of_pod(template.value()) {
        let metadata = template.path().child("metadata");
        warnings.push(warning(&metadata, &key(container.value())));
    }
}
