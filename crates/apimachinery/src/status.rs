//! Errors of the API as values, and the one function that makes a `Status` of them
//! (wording: k8s.io/apimachinery `api/errors`).

use serde_json::json;

use crate::Value;
use crate::field::{self, ErrorList};
use crate::gvk::GroupResource;

/// What a request failed of. HTTP code, reason, message and details follow from it alone.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", self.message())]
pub enum ApiError {
    BadRequest(String),
    Unauthorized,
    /// `resource` and `name` are of the object that was asked for.
    Forbidden {
        resource: GroupResource,
        name: String,
        reason: String,
    },
    NotFound {
        resource: GroupResource,
        name: String,
    },
    /// A path that nothing serves.
    NoSuchPath,
    MethodNotAllowed {
        resource: GroupResource,
        verb: String,
    },
    NotAcceptable {
        accepted: Vec<String>,
    },
    AlreadyExists {
        resource: GroupResource,
        name: String,
    },
    /// Optimistic locking or preconditions failed.
    Conflict {
        resource: GroupResource,
        name: String,
        reason: String,
    },
    /// Server-side apply met fields of other managers: (manager, field path) pairs with a
    /// text for each.
    ApplyConflict {
        causes: Vec<(String, String)>,
    },
    /// The resourceVersion or continue token is too old. `token`: one that continues
    /// inconsistently.
    Expired {
        message: String,
        token: Option<String>,
    },
    Invalid {
        group: String,
        kind: String,
        name: String,
        errors: ErrorList,
    },
    UnsupportedMediaType {
        accepted: Vec<String>,
    },
    TooLarge(String),
    TooManyRequests {
        message: String,
        retry_after_seconds: u32,
    },
    /// The cache has not reached the resourceVersion asked for.
    TooLargeResourceVersion {
        asked: u64,
        current: u64,
    },
    Timeout {
        message: String,
        retry_after_seconds: u32,
    },
    ServiceUnavailable(String),
    /// An admission plugin or a verb refuses with a code and reason of its own.
    Other {
        code: u16,
        reason: String,
        message: String,
    },
    Internal(String),
}

impl ApiError {
    pub fn code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Unauthorized => 401,
            Self::Forbidden { .. } => 403,
            Self::NotFound { .. } | Self::NoSuchPath => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::NotAcceptable { .. } => 406,
            Self::AlreadyExists { .. } | Self::Conflict { .. } | Self::ApplyConflict { .. } => 409,
            Self::Expired { .. } => 410,
            Self::TooLarge(_) => 413,
            Self::UnsupportedMediaType { .. } => 415,
            Self::Invalid { .. } => 422,
            Self::TooManyRequests { .. } => 429,
            Self::Internal(_) => 500,
            Self::ServiceUnavailable(_) => 503,
            Self::Timeout { .. } | Self::TooLargeResourceVersion { .. } => 504,
            Self::Other { code, .. } => *code,
        }
    }

    pub fn reason(&self) -> &str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NotFound { .. } | Self::NoSuchPath => "NotFound",
            Self::MethodNotAllowed { .. } => "MethodNotAllowed",
            Self::NotAcceptable { .. } => "NotAcceptable",
            Self::AlreadyExists { .. } => "AlreadyExists",
            Self::Conflict { .. } | Self::ApplyConflict { .. } => "Conflict",
            Self::Expired { .. } => "Expired",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::UnsupportedMediaType { .. } => "UnsupportedMediaType",
            Self::Invalid { .. } => "Invalid",
            Self::TooManyRequests { .. } => "TooManyRequests",
            Self::Internal(_) => "InternalError",
            Self::ServiceUnavailable(_) => "ServiceUnavailable",
            Self::Timeout { .. } | Self::TooLargeResourceVersion { .. } => "Timeout",
            Self::Other { reason, .. } => reason,
        }
    }

    pub fn message(&self) -> String {
        match self {
            Self::BadRequest(m)
            | Self::TooLarge(m)
            | Self::ServiceUnavailable(m)
            | Self::Expired { message: m, .. }
            | Self::TooManyRequests { message: m, .. }
            | Self::Other { message: m, .. } => m.clone(),
            Self::Unauthorized => "Unauthorized".to_owned(),
            Self::Forbidden { resource, name, reason } => {
                match (resource.resource.as_str(), name.as_str()) {
                    ("", _) => format!("forbidden: {reason}"),
                    (_, "") => format!("{resource} is forbidden: {reason}"),
                    (_, name) => format!("{resource} \"{name}\" is forbidden: {reason}"),
                }
            }
            Self::NotFound { resource, name } => format!("{resource} \"{name}\" not found"),
            Self::NoSuchPath => "the server could not find the requested resource".to_owned(),
            Self::MethodNotAllowed { .. } => {
                "the server does not allow this method on the requested resource".to_owned()
            }
            Self::NotAcceptable { accepted } => {
                format!("only the following media types are accepted: {}", accepted.join(", "))
            }
            Self::AlreadyExists { resource, name } => {
                format!("{resource} \"{name}\" already exists")
            }
            Self::Conflict { resource, name, reason } => {
                format!("Operation cannot be fulfilled on {resource} \"{name}\": {reason}")
            }
            Self::ApplyConflict { causes } => apply_conflict_message(causes),
            Self::Invalid { group, kind, name, errors } => {
                let kind = GroupResource::new(group, kind);
                format!("{kind} \"{name}\" is invalid: {}", field::aggregate(errors))
            }
            Self::UnsupportedMediaType { accepted } => format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
            Self::TooLargeResourceVersion { asked, current } => {
                format!("Too large resource version: {asked}, current: {current}")
            }
            Self::Timeout { message, .. } => format!("Timeout: {message}"),
            Self::Internal(m) => format!("Internal error occurred: {m}"),
        }
    }

    fn details(&self) -> Option<Value> {
        let of = |r: &GroupResource, name: &str| {
            let mut d = json!({});
            for (k, v) in [("name", name), ("group", &r.group), ("kind", &r.resource)] {
                if !v.is_empty() {
                    d[k] = v.into();
                }
            }
            d
        };
        Some(match self {
            Self::Forbidden { resource, name, .. }
            | Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. } => of(resource, name),
            Self::NoSuchPath => json!({}),
            Self::MethodNotAllowed { resource, .. } => of(resource, ""),
            Self::Invalid { group, kind, name, errors } => {
                let mut d = of(&GroupResource::new(group, kind), name);
                d["causes"] = errors
                    .iter()
                    .map(|e| {
                        json!({"reason": e.kind.reason(), "message": e.body(), "field": e.path})
                    })
                    .collect();
                d
            }
            Self::ApplyConflict { causes } => json!({
                "causes": causes.iter().map(|(message, field)| json!({
                    "reason": "FieldManagerConflict", "message": message, "field": field,
                })).collect::<Vec<_>>()
            }),
            Self::TooManyRequests { retry_after_seconds, .. }
            | Self::Timeout { retry_after_seconds, .. } => {
                json!({"retryAfterSeconds": retry_after_seconds})
            }
            Self::TooLargeResourceVersion { .. } => json!({
                "retryAfterSeconds": 1,
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            }),
            Self::Internal(m) => json!({"causes": [{"message": m}]}),
            _ => return None,
        })
    }

    /// The `Status` object that a client receives.
    pub fn status(&self) -> Value {
        let mut metadata = json!({});
        if let Self::Expired { token: Some(token), .. } = self {
            metadata["continue"] = token.as_str().into();
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message(), "reason": self.reason(), "code": self.code(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }
}

fn apply_conflict_message(causes: &[(String, String)]) -> String {
    let noun = if causes.len() == 1 { "conflict" } else { "conflicts" };
    match causes {
        [(message, field)] => format!("Apply failed with 1 {noun}: {message}: {field}"),
        _ => {
            let mut text = format!("Apply failed with {} {noun}: ", causes.len());
            let lines: Vec<String> =
                causes.iter().map(|(message, field)| format!("{message}:\n- {field}")).collect();
            text.push_str(&lines.join("\n"));
            text
        }
    }
}
