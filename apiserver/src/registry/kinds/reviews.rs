//! Kinds that ask a question of the server and are never stored: who am I, may I.

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object;

use super::check::{At, is_zero};
use super::row::Rows;
use super::{Plain, checked, default_absent};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    const AUTHN: (&str, &str) = ("authentication.k8s.io", "v1");
    const AUTHZ: (&str, &str) = ("authorization.k8s.io", "v1");
    for (group, kind, plural) in [
        (AUTHN, "TokenReview", "tokenreviews"),
        (AUTHN, "SelfSubjectReview", "selfsubjectreviews"),
        (AUTHZ, "SelfSubjectRulesReview", "selfsubjectrulesreviews"),
    ] {
        rows.add(group, (kind, plural), |row| row.cluster().create_only().strategy(Plain));
    }
    for (kind, plural, about) in [
        ("SubjectAccessReview", "subjectaccessreviews", About::Anyone),
        ("SelfSubjectAccessReview", "selfsubjectaccessreviews", About::Sender),
        ("LocalSubjectAccessReview", "localsubjectaccessreviews", About::AnyoneHere),
    ] {
        rows.add(AUTHZ, (kind, plural), |row| {
            let row = if about == About::AnyoneHere { row } else { row.cluster() };
            row.create_only().strategy(AccessReviews { about })
        });
    }
}

/// Whose access is asked about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Anyone,
    /// Anyone's, in one namespace.
    AnyoneHere,
    Sender,
}

struct AccessReviews {
    about: About,
}

impl Strategy for AccessReviews {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            attributes(errors, &root.at("spec"), self.about);
            metadata(errors, root, self.about);
            let spec = root.at("spec");
            if self.about == About::AnyoneHere {
                local(errors, root, &spec);
            }
        })
    }
}

fn attributes(errors: &mut ErrorList, spec: &At<'_>, about: About) {
    let (resource, other) = (spec.at("resourceAttributes"), spec.at("nonResourceAttributes"));
    if resource.is_set() && other.is_set() {
        errors.push(other.invalid("cannot be specified in combination with resourceAttributes"));
    }
    if !resource.is_set() && !other.is_set() {
        errors.push(resource.invalid(
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if about != About::Sender && spec.at("user").is_empty() && spec.at("groups").is_empty() {
        errors.push(
            spec.at("user").invalid_as("", "at least one of user or group must be specified"),
        );
    }
    for field in ["fieldSelector", "labelSelector"].map(|f| resource.at(f)) {
        let (raw, requirements) = (field.at("rawSelector"), field.at("requirements"));
        if !field.is_set() {
            continue;
        }
        if !raw.is_empty() && !requirements.is_empty() {
            errors.push(raw.invalid("may not specified at the same time as requirements"));
        }
        if raw.is_empty() && requirements.is_empty() {
            errors.push(requirements.required(&format!(
                "when {} is specified, requirements or rawSelector is required",
                field.path()
            )));
        }
        requirements.items().for_each(|r| requirement(errors, &r));
    }
}

fn requirement(errors: &mut ErrorList, at: &At<'_>) {
    let (key, values) = (at.at("key"), at.at("values"));
    if key.is_empty() {
        errors.push(key.required("must be specified"));
    }
    match at.at("operator").str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"))
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(
            values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        ),
        _ => {}
    }
}

/// Reviews have no metadata of their own.
fn metadata(errors: &mut ErrorList, root: &At<'_>, about: About) {
    let at = root.at("metadata");
    let local = about == About::AnyoneHere;
    let named = at.entries().any(|(field, value)| {
        let ignored = field == "managedFields"
            || field == "creationTimestamp"
            || (local && field == "namespace");
        !ignored && !is_zero(value.value())
    });
    if named {
        let text = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(at.invalid(text));
    }
}

fn local(errors: &mut ErrorList, root: &At<'_>, spec: &At<'_>) {
    let here = root.down(&["metadata", "namespace"]).str();
    let resource = spec.at("resourceAttributes");
    if resource.is_set() && resource.at("namespace").str() != here {
        let at = resource.at("namespace");
        errors.push(at.invalid_as(at.str(), "must match metadata.namespace"));
    }
    let other = spec.at("nonResourceAttributes");
    if other.is_set() {
        errors.push(other.invalid("disallowed on this kind of request"));
    }
}

/// Defaults of a TokenRequest: an hour.
pub fn default_token_request(request: &mut Value) {
    default_absent(super::child(request, "spec"), "expirationSeconds", 3600);
}

/// Rules of a TokenRequest (`serviceaccounts/token`).
pub fn validate_token_request(request: &Value) -> ErrorList {
    let seconds = object::int_at(request, &["spec", "expirationSeconds"]).unwrap_or(0);
    let path = Path::new("spec").child("expirationSeconds");
    let mut errors = ErrorList::new();
    if seconds < 600 {
        let text = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid(&path, seconds, text));
    }
    if seconds > 1 << 32 {
        let text = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid(&path, seconds, text));
    }
    errors
}
