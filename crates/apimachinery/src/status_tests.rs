use super::*;
use crate::field::{FieldError, Path};

fn pods() -> GroupResource {
    GroupResource::new("", "pods")
}

/// The status of an error without the parts that all have.
fn of(e: ApiError) -> Value {
    let mut s = e.status();
    if let Some(map) = s.as_object_mut() {
        for (key, want) in [("kind", "Status"), ("apiVersion", "v1"), ("status", "Failure")] {
            assert_eq!(map.remove(key), Some(want.into()));
        }
        if map.get("metadata") == Some(&json!({})) {
            map.remove("metadata");
        }
    }
    s
}

#[test]
fn statuses_of_objects() {
    let deployments = || GroupResource::new("apps", "deployments");
    let (name, reason) = ("a".to_owned(), "why".to_owned());
    let invalid = ApiError::Invalid {
        group: "apps".into(),
        kind: "Deployment".into(),
        name: name.clone(),
        errors: vec![FieldError::required(&Path::new("spec"), "")],
    };
    let nothing = ApiError::Forbidden {
        resource: GroupResource::new("", ""),
        name: String::new(),
        reason: reason.clone(),
    };
    let timeout = ApiError::ServerTimeout {
        resource: pods(),
        operation: "get".into(),
        retry_after_seconds: 2,
    };
    for (error, want) in [
        (
            ApiError::NotFound { resource: deployments(), name: name.clone() },
            json!({"message": "deployments.apps \"a\" not found", "reason": "NotFound", "code": 404,
                "details": {"name": "a", "group": "apps", "kind": "deployments"}}),
        ),
        (
            ApiError::AlreadyExists { resource: pods(), name: name.clone() },
            json!({"message": "pods \"a\" already exists", "reason": "AlreadyExists", "code": 409,
                "details": {"name": "a", "kind": "pods"}}),
        ),
        (
            ApiError::Forbidden { resource: pods(), name: String::new(), reason: reason.clone() },
            json!({"message": "pods is forbidden: why", "reason": "Forbidden", "code": 403,
                "details": {"kind": "pods"}}),
        ),
        (
            nothing,
            json!({"message": "forbidden: why", "reason": "Forbidden", "code": 403, "details": {}}),
        ),
        (
            ApiError::Conflict { resource: pods(), name, reason },
            json!({"message": "Operation cannot be fulfilled on pods \"a\": why",
                "reason": "Conflict", "code": 409, "details": {"name": "a", "kind": "pods"}}),
        ),
        (
            invalid,
            json!({"message": "Deployment.apps \"a\" is invalid: spec: Required value",
                "reason": "Invalid", "code": 422,
                "details": {"name": "a", "group": "apps", "kind": "Deployment", "causes": [
                    {"reason": "FieldValueRequired", "message": "Required value", "field": "spec"}]}}),
        ),
        (
            ApiError::MethodNotAllowed { resource: pods(), verb: "patch".into() },
            json!({"message": "patch is not supported on resources of kind \"pods\"",
                "reason": "MethodNotAllowed", "code": 405, "details": {"kind": "pods"}}),
        ),
        (
            timeout,
            json!({"message": "The get operation against pods could not be completed at this time, please try again.",
                "reason": "ServerTimeout", "code": 500,
                "details": {"name": "get", "kind": "pods", "retryAfterSeconds": 2}}),
        ),
    ] {
        assert_eq!(of(error), want);
    }
}

#[test]
fn statuses_of_requests() {
    for (error, want) in [
        (
            ApiError::Unauthorized,
            json!({"message": "Unauthorized", "reason": "Unauthorized", "code": 401}),
        ),
        (
            ApiError::NoSuchPath,
            json!({"message": "the server could not find the requested resource",
                "reason": "NotFound", "code": 404, "details": {}}),
        ),
        (
            ApiError::Expired { message: "too old".into(), token: Some("t".into()) },
            json!({"message": "too old", "reason": "Expired", "code": 410, "metadata": {"continue": "t"}}),
        ),
        (
            ApiError::TooLarge("limit is 3".into()),
            json!({"message": "Request entity too large: limit is 3",
                "reason": "RequestEntityTooLarge", "code": 413}),
        ),
        (
            ApiError::Unprocessable,
            json!({"message": "the server rejected our request due to an error in our request",
                "reason": "Invalid", "code": 422, "details": {}}),
        ),
        (
            ApiError::TooLargeResourceVersion { asked: 5, current: 3 },
            json!({"message": "Timeout: Too large resource version: 5, current: 3",
                "reason": "Timeout", "code": 504, "details": {"retryAfterSeconds": 1, "causes": [
                    {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}}),
        ),
        (
            ApiError::Timeout { message: "late".into(), retry_after_seconds: 0 },
            json!({"message": "Timeout: late", "reason": "Timeout", "code": 504, "details": {}}),
        ),
        (
            ApiError::Internal("oops".into()),
            json!({"message": "Internal error occurred: oops", "reason": "InternalError",
                "code": 500, "details": {"causes": [{"message": "oops"}]}}),
        ),
        (
            ApiError::UnsupportedMediaType { accepted: vec!["a/b".into(), "c/d".into()] },
            json!({"message": "the body of the request was in an unknown format - accepted media types include: a/b, c/d",
                "reason": "UnsupportedMediaType", "code": 415}),
        ),
    ] {
        assert_eq!(of(error), want);
    }
}

#[test]
fn conflicts_are_grouped() {
    let cause = |m: &str, f: &str| (format!("conflict with {m}"), f.to_owned());
    let one = vec![cause("\"a\" using v1", ".spec.x")];
    assert_eq!(
        ApiError::ApplyConflict { causes: one }.message(),
        "Apply failed with 1 conflict: conflict with \"a\" using v1: .spec.x"
    );
    let three = vec![cause("\"a\"", ".x"), cause("\"a\"", ".y"), cause("\"b\"", ".z")];
    assert_eq!(
        ApiError::ApplyConflict { causes: three }.message(),
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .x\n- .y\nconflicts with \"b\":\n- .z"
    );
}
