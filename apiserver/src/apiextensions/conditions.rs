//! What the server says of definitions: whose names are taken, what is established, and what
//! their schemas and groups lack (upstream: `pkg/controller/{status,establish,
//! nonstructuralschema,apiapproval}`). Pure: objects in, conditions out.

use std::collections::BTreeSet;

use apimachinery::field::{self, FieldError, Path};
use apimachinery::object::{self, bool_at, get, list_at, str_at};
use apimachinery::{Map, Value};
use serde_json::json;

use super::definition::Names;
use super::schema::Schema;
use super::structural;

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

fn condition(
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: impl Into<String>,
) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
pub const APPROVAL: &str = "api-approved.kubernetes.io";

/// A condition of a definition.
pub fn find<'a>(crd: &'a Value, kind: &str) -> Option<&'a Value> {
    list_at(crd, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == kind)
}

pub fn is_true(crd: &Value, kind: &str) -> bool {
    find(crd, kind).is_some_and(|c| str_at(c, &["status"]) == "True")
}

/// Sets a condition; its time changes with its status.
pub fn set(crd: &mut Value, wanted: &Condition, now: &str) {
    let mut all = list_at(crd, &["status", "conditions"]).to_vec();
    let index = all.iter().position(|c| str_at(c, &["type"]) == wanted.kind);
    let since = index
        .and_then(|i| all.get(i))
        .filter(|c| str_at(c, &["status"]) == wanted.status)
        .map(|c| str_at(c, &["lastTransitionTime"]).to_owned())
        .filter(|t| !t.is_empty());
    let made = json!({
        "type": wanted.kind, "status": wanted.status, "reason": wanted.reason,
        "message": wanted.message, "lastTransitionTime": since.unwrap_or_else(|| now.to_owned()),
    });
    match index.and_then(|i| all.get_mut(i)) {
        Some(found) => *found = made,
        None => all.push(made),
    }
    object::set(crd, &["status", "conditions"], all);
}

fn has(crd: &Value, wanted: &Condition) -> bool {
    find(crd, wanted.kind).is_some_and(|c| {
        str_at(c, &["status"]) == wanted.status
            && str_at(c, &["reason"]) == wanted.reason
            && str_at(c, &["message"]) == wanted.message
    })
}

/// The names that other definitions of the group have.
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

fn taken(crd: &Value, all: &[&Value]) -> Taken {
    let group = str_at(crd, &["spec", "group"]);
    let mut taken = Taken { resources: BTreeSet::new(), kinds: BTreeSet::new() };
    for other in all.iter().filter(|o| str_at(o, &["spec", "group"]) == group) {
        let names = accepted(other);
        taken.resources.insert(names.plural);
        taken.resources.insert(names.singular);
        taken.resources.extend(names.short);
        taken.kinds.insert(names.kind);
        taken.kinds.insert(names.list_kind);
    }
    taken
}

fn accepted(crd: &Value) -> Names {
    Names::read(get(crd, &["status", "acceptedNames"]).unwrap_or(&Value::Null))
}

fn as_value(names: &Names) -> Value {
    let mut value = Map::new();
    for (key, text) in [
        ("plural", &names.plural),
        ("singular", &names.singular),
        ("kind", &names.kind),
        ("listKind", &names.list_kind),
    ] {
        if !text.is_empty() || matches!(key, "plural" | "kind") {
            value.insert(key.to_owned(), text.as_str().into());
        }
    }
    for (key, texts) in [("shortNames", &names.short), ("categories", &names.categories)] {
        if !texts.is_empty() {
            value.insert(key.to_owned(), json!(texts));
        }
    }
    Value::Object(value)
}

/// The names that a definition may have, and whether these are all it asks for.
fn naming(crd: &Value, all: &[&Value]) -> (Names, Condition) {
    let taken = taken(crd, all);
    let wanted = Names::read(get(crd, &["spec", "names"]).unwrap_or(&Value::Null));
    let mut names = accepted(crd);
    let mut conflict: Option<(&'static str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    let mut one = |asked: &str, had: &mut String, used: &BTreeSet<String>, reason| {
        if asked == had.as_str() || !used.contains(asked) {
            *had = asked.to_owned();
        } else {
            conflict = Some((reason, in_use(asked)));
        }
    };
    one(&wanted.plural, &mut names.plural, &taken.resources, "PluralConflict");
    one(&wanted.singular, &mut names.singular, &taken.resources, "SingularConflict");
    let used: Vec<String> = wanted
        .short
        .iter()
        .filter(|name| !names.short.contains(name) && taken.resources.contains(*name))
        .map(|name| in_use(name))
        .collect();
    match used.as_slice() {
        [] => names.short = wanted.short.clone(),
        [text] => conflict = Some(("ShortNamesConflict", text.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    let mut one = |asked: &str, had: &mut String, reason| {
        if asked == had.as_str() || !taken.kinds.contains(asked) {
            *had = asked.to_owned();
        } else {
            conflict = Some((reason, in_use(asked)));
        }
    };
    one(&wanted.kind, &mut names.kind, "KindConflict");
    one(&wanted.list_kind, &mut names.list_kind, "ListKindConflict");
    names.categories = wanted.categories;
    let condition = match conflict {
        Some((reason, message)) => condition("NamesAccepted", "False", reason, message),
        None => condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
    };
    (names, condition)
}

/// What a schema lacks to be structural, over all versions.
fn non_structural(crd: &Value) -> Option<Condition> {
    const KIND: &str = "NonStructuralSchema";
    let mut errors: Vec<FieldError> = Vec::new();
    if bool_at(crd, &["spec", "preserveUnknownFields"]) {
        let path = Path::new("spec").child("preserveUnknownFields");
        errors.push(FieldError::invalid(&path, true, "must be false"));
    }
    for (i, version) in list_at(crd, &["spec", "versions"]).iter().enumerate() {
        let Some(props) = get(version, &["schema", "openAPIV3Schema"]) else { continue };
        let path = Path::new("spec").child("versions").index(i).child("schema");
        match Schema::read(props) {
            Ok(schema) => {
                errors.extend(structural::check(&path.child("openAPIV3Schema"), &schema));
            }
            Err(error) => {
                let name = str_at(version, &["name"]);
                let text = format!("failed to check validation schema for version {name}: {error}");
                return Some(condition(KIND, "Unknown", "StructuralError", text));
            }
        }
    }
    (!errors.is_empty()).then(|| condition(KIND, "True", "Violations", field::aggregate(&errors)))
}

/// Whether a group is upstream's own.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group == *own || group.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')))
}

/// What an annotation says of a group's approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Invalid,
    Approved,
    Bypassed,
    Missing,
}

/// The approval of a definition, and why it is so.
pub fn approval(crd: &Value) -> (Approval, String) {
    let text = object::annotation(crd, APPROVAL).unwrap_or("");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    if text.is_empty() {
        let why = format!("protected groups must have approval annotation {APPROVAL:?}, {see}");
        return (Approval::Missing, why);
    }
    if text.starts_with("unapproved") {
        return (Approval::Bypassed, format!("not approved: {text:?}"));
    }
    let has_host = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && !rest.starts_with('/')
            && !rest.is_empty()
            && !rest.contains(char::is_whitespace)
    });
    if has_host {
        return (Approval::Approved, format!("approved in {text}"));
    }
    let why = format!(
        "protected groups must have approval annotation {APPROVAL:?} with either a URL or a reason starting with \"unapproved\", {see}"
    );
    (Approval::Invalid, why)
}

fn approved(crd: &Value) -> Option<Condition> {
    if !is_protected(str_at(crd, &["spec", "group"])) {
        return None;
    }
    let (approval, why) = approval(crd);
    let (status, reason) = match approval {
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Approved => ("True", "ApprovedAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
    };
    Some(condition("KubernetesAPIApprovalPolicyConformant", status, reason, why))
}

/// What the status of a definition should become; `None`: it is right. `all` are the present
/// definitions, this one among them.
pub fn plan(crd: &Value, all: &[&Value], now: &str) -> Option<Value> {
    let mut next = crd.clone();
    let wanted = Names::read(get(crd, &["spec", "names"]).unwrap_or(&Value::Null));
    let mut changed = false;
    if wanted != accepted(crd) {
        let (names, condition) = naming(crd, all);
        if names != accepted(crd) || !has(crd, &condition) {
            object::set(&mut next, &["status", "acceptedNames"], as_value(&names));
            set(&mut next, &condition, now);
            changed = true;
        }
        if !is_true(crd, "Established") && condition.status != "True" {
            let text = "not all names are accepted";
            let condition = self::condition("Established", "False", "NotAccepted", text);
            changed |= !has(crd, &condition);
            set(&mut next, &condition, now);
        }
    }
    if is_true(&next, "NamesAccepted") && !is_true(&next, "Established") {
        // The resources are in service before this is written.
        let text = "the initial names have been accepted";
        set(&mut next, &condition("Established", "True", "InitialNamesAccepted", text), now);
        changed = true;
    }
    match non_structural(crd) {
        Some(condition) if !has(crd, &condition) => {
            set(&mut next, &condition, now);
            changed = true;
        }
        None if find(crd, "NonStructuralSchema").is_some() => {
            let kept: Vec<Value> = list_at(&next, &["status", "conditions"])
                .iter()
                .filter(|c| str_at(c, &["type"]) != "NonStructuralSchema")
                .cloned()
                .collect();
            object::set(&mut next, &["status", "conditions"], kept);
            changed = true;
        }
        _ => {}
    }
    if let Some(condition) = approved(crd).filter(|c| !has(crd, c)) {
        set(&mut next, &condition, now);
        changed = true;
    }
    changed.then_some(next)
}

/// What is said of a definition whose objects are being deleted, or are gone.
pub fn terminating(status: &'static str, reason: &'static str, message: String) -> Condition {
    condition("Terminating", status, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(name: &str, names: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"group": "g.example", "names": names,
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object"}}}]}})
    }

    fn names(plural: &str, kind: &str) -> Value {
        json!({"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind,
            "listKind": format!("{kind}List")})
    }

    const NOW: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn names_are_accepted_once() {
        let first = crd("as.g.example", names("as", "A"));
        let done = plan(&first, &[&first], NOW).expect("a status");
        assert!(is_true(&done, "NamesAccepted") && is_true(&done, "Established"));
        assert_eq!(done["status"]["acceptedNames"], names("as", "A"));
        assert_eq!(plan(&done, &[&done], NOW), None);

        let second = crd("bs.g.example", names("bs", "A"));
        let refused = plan(&second, &[&done, &second], NOW).expect("a status");
        assert!(!is_true(&refused, "Established"));
        let why = find(&refused, "NamesAccepted").expect("a condition");
        assert_eq!(why["reason"], "ListKindConflict");
        assert_eq!(why["message"], "\"AList\" is already in use");
        assert_eq!(find(&refused, "Established").expect("a condition")["reason"], "NotAccepted");
        assert_eq!(plan(&refused, &[&done, &refused], NOW), None);
        // The names become free.
        let freed = plan(&refused, &[&refused], NOW).expect("a status");
        assert!(is_true(&freed, "Established"));
    }

    #[test]
    fn upstream_s_groups_need_approval() {
        for (text, status, reason) in [
            (None, "False", "MissingAnnotation"),
            (Some("unapproved, testing"), "False", "UnapprovedAnnotation"),
            (Some("https://github.com/x"), "True", "ApprovedAnnotation"),
            (Some("what"), "False", "InvalidAnnotation"),
        ] {
            let mut crd = crd("as.x.k8s.io", names("as", "A"));
            crd["spec"]["group"] = "x.k8s.io".into();
            if let Some(text) = text {
                crd["metadata"]["annotations"] = json!({APPROVAL: text});
            }
            let done = plan(&crd, &[&crd], NOW).expect("a status");
            let said = find(&done, "KubernetesAPIApprovalPolicyConformant").expect("a condition");
            assert_eq!(
                (said["status"].as_str(), said["reason"].as_str()),
                (Some(status), Some(reason))
            );
        }
        assert!(
            is_protected("k8s.io") && is_protected("a.kubernetes.io") && !is_protected("ak8s.io")
        );
    }
}
