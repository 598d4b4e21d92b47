//! Errors of the API as values, and the one function that makes a `Status` of them
//! (wording: k8s.io/apimachinery `api/errors`).

use serde_json::json;

use crate::Value;
use crate::field::{self, ErrorList, quote};
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
    /// A create in a namespace that is being deleted.
    NamespaceTerminating {
        resource: GroupResource,
        name: String,
        namespace: String,
    },
    NotFound {
        resource: GroupResource,
        name: String,
    },
    /// A path that nothing serves.
    NoSuchPath,
    /// Without a resource: a path that does not take the HTTP method.
    MethodNotAllowed {
        resource: GroupResource,
        verb: String,
    },
    NotAcceptable {
        accepted: Vec<String>,
    },
    /// The object cannot be shown as `target` (a table, say) in the media types asked for.
    NotConvertible {
        target: String,
        accepted: Vec<String>,
    },
    /// The client accepts none of a route's media types.
    NoRepresentation {
        available: Vec<String>,
    },
    AlreadyExists {
        resource: GroupResource,
        name: String,
    },
    /// No free name was found for a `generateName`.
    GenerateNameConflict {
        resource: GroupResource,
        name: String,
        retry_after_seconds: u32,
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
    /// What was there is no longer.
    Gone(String),
    /// A patch that does not fit its object; the reason is not shown.
    Unprocessable,
    Invalid {
        group: String,
        kind: String,
        name: String,
        errors: ErrorList,
    },
    UnsupportedMediaType {
        accepted: Vec<String>,
    },
    /// No route takes bodies of the request's media type.
    UnroutedMediaType,
    /// What the limit is: `limit is 3145728`.
    TooLarge(String),
    TooManyRequests {
        message: String,
        retry_after_seconds: u32,
        /// Why, as a reason and a message, where there is more to say.
        cause: Option<(&'static str, String)>,
    },
    /// The cache has not reached the resourceVersion asked for.
    TooLargeResourceVersion {
        asked: u64,
        current: u64,
    },
    /// The server could not finish in time and asks to be asked again.
    ServerTimeout {
        resource: GroupResource,
        operation: String,
        retry_after_seconds: u32,
    },
    /// The message comes without its `Timeout: `.
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
            Self::Forbidden { .. } | Self::NamespaceTerminating { .. } => 403,
            Self::NotFound { .. } | Self::NoSuchPath => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::NotAcceptable { .. }
            | Self::NotConvertible { .. }
            | Self::NoRepresentation { .. } => 406,
            Self::AlreadyExists { .. }
            | Self::GenerateNameConflict { .. }
            | Self::Conflict { .. }
            | Self::ApplyConflict { .. } => 409,
            Self::Expired { .. } | Self::Gone(_) => 410,
            Self::TooLarge(_) => 413,
            Self::UnsupportedMediaType { .. } | Self::UnroutedMediaType => 415,
            Self::Invalid { .. } | Self::Unprocessable => 422,
            Self::TooManyRequests { .. } => 429,
            Self::Internal(_) | Self::ServerTimeout { .. } => 500,
            Self::ServiceUnavailable(_) => 503,
            Self::Timeout { .. } | Self::TooLargeResourceVersion { .. } => 504,
            Self::Other { code, .. } => *code,
        }
    }

    pub fn reason(&self) -> &str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } | Self::NamespaceTerminating { .. } => "Forbidden",
            Self::NotFound { .. } | Self::NoSuchPath => "NotFound",
            Self::MethodNotAllowed { .. } => "MethodNotAllowed",
            Self::NotAcceptable { .. }
            | Self::NotConvertible { .. }
            | Self::NoRepresentation { .. } => "NotAcceptable",
            Self::AlreadyExists { .. } | Self::GenerateNameConflict { .. } => "AlreadyExists",
            Self::Conflict { .. } | Self::ApplyConflict { .. } => "Conflict",
            Self::Expired { .. } => "Expired",
            Self::Gone(_) => "Gone",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::UnsupportedMediaType { .. } | Self::UnroutedMediaType => "UnsupportedMediaType",
            Self::Invalid { .. } | Self::Unprocessable => "Invalid",
            Self::TooManyRequests { .. } => "TooManyRequests",
            Self::Internal(_) => "InternalError",
            Self::ServiceUnavailable(_) => "ServiceUnavailable",
            Self::ServerTimeout { .. } => "ServerTimeout",
            Self::Timeout { .. } | Self::TooLargeResourceVersion { .. } => "Timeout",
            Self::Other { reason, .. } => reason,
        }
    }

    pub fn message(&self) -> String {
        match self {
            Self::BadRequest(m)
            | Self::Gone(m)
            | Self::ServiceUnavailable(m)
            | Self::Expired { message: m, .. }
            | Self::TooManyRequests { message: m, .. }
            | Self::Other { message: m, .. } => m.clone(),
            Self::Unauthorized => "Unauthorized".to_owned(),
            Self::Forbidden { resource, name, reason } => {
                match (resource.resource.as_str(), name.as_str()) {
                    ("", _) => format!("forbidden: {reason}"),
                    (_, "") => format!("{resource} is forbidden: {reason}"),
                    (_, name) => format!("{resource} {} is forbidden: {reason}", quote(name)),
                }
            }
            Self::NamespaceTerminating { resource, name, namespace } => format!(
                "{resource} {} is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
                quote(name)
            ),
            Self::NotFound { resource, name } => format!("{resource} {} not found", quote(name)),
            Self::NoSuchPath => "the server could not find the requested resource".to_owned(),
            Self::MethodNotAllowed { resource, .. } if resource.resource.is_empty() => {
                "the server does not allow this method on the requested resource".to_owned()
            }
            Self::MethodNotAllowed { resource, verb } => {
                format!("{verb} is not supported on resources of kind \"{resource}\"")
            }
            Self::NotAcceptable { accepted } => {
                format!("only the following media types are accepted: {}", accepted.join(", "))
            }
            Self::NotConvertible { target, accepted } => format!(
                "only the following media types are accepted when converting to {target}: {}",
                accepted.join(", ")
            ),
            Self::NoRepresentation { available } => format!(
                "406: Not Acceptable\n\nAvailable representations: {}",
                available.join(", ")
            ),
            Self::UnroutedMediaType => "415: Unsupported Media Type".to_owned(),
            Self::AlreadyExists { resource, name } => {
                format!("{resource} {} already exists", quote(name))
            }
            Self::GenerateNameConflict { resource, name, .. } => format!(
                "{resource} {} already exists, the server was not able to generate a unique name \
                 for the object",
                quote(name)
            ),
            Self::Conflict { resource, name, reason } => {
                format!("Operation cannot be fulfilled on {resource} {}: {reason}", quote(name))
            }
            Self::ApplyConflict { causes } => apply_conflict_message(causes),
            Self::Invalid { group, kind, name, errors } => {
                let kind = GroupResource::new(group, kind);
                match errors.as_slice() {
                    [] => format!("{kind} {} is invalid", quote(name)),
                    _ => {
                        format!("{kind} {} is invalid: {}", quote(name), field::aggregate(errors))
                    }
                }
            }
            Self::Unprocessable => {
                "the server rejected our request due to an error in our request".to_owned()
            }
            Self::TooLarge(m) => format!("Request entity too large: {m}"),
            Self::ServerTimeout { resource, operation, .. } => format!(
                "The {operation} operation against {resource} could not be completed at this \
                 time, please try again."
            ),
            Self::UnsupportedMediaType { accepted } => format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
            Self::TooLargeResourceVersion { asked, current } => {
                format!("Timeout: Too large resource version: {asked}, current: {current}")
            }
            Self::Timeout { message, .. } => format!("Timeout: {message}"),
            Self::Internal(m) => format!("Internal error occurred: {m}"),
        }
    }

    fn details(&self) -> Option<Value> {
        Some(match self {
            Self::Forbidden { resource, name, .. }
            | Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. } => about(resource, name, 0),
            Self::NamespaceTerminating { resource, name, namespace } => {
                let mut d = about(resource, name, 0);
                d["causes"] = json!([{
                    "reason": "NamespaceTerminating", "field": "metadata.namespace",
                    "message": format!("namespace {namespace} is being terminated"),
                }]);
                d
            }
            Self::GenerateNameConflict { resource, name, retry_after_seconds } => {
                about(resource, name, *retry_after_seconds)
            }
            Self::ServerTimeout { resource, operation, retry_after_seconds } => {
                about(resource, operation, *retry_after_seconds)
            }
            Self::NoSuchPath
            | Self::Unprocessable
            | Self::NoRepresentation { .. }
            | Self::UnroutedMediaType => json!({}),
            Self::MethodNotAllowed { resource, .. } => about(resource, "", 0),
            Self::Invalid { group, kind, name, errors } => {
                let mut d = about(&GroupResource::new(group, kind), name, 0);
                if !errors.is_empty() {
                    d["causes"] = errors.iter().map(cause).collect();
                }
                d
            }
            Self::ApplyConflict { causes } => json!({
                "causes": causes.iter().map(|(message, field)| json!({
                    "reason": "FieldManagerConflict", "message": message, "field": field,
                })).collect::<Vec<_>>()
            }),
            Self::TooManyRequests { retry_after_seconds, cause, .. } => {
                let mut d = about(&GroupResource::new("", ""), "", *retry_after_seconds);
                if let Some((reason, message)) = cause {
                    d["causes"] = json!([{"reason": reason, "message": message}]);
                }
                d
            }
            Self::Timeout { retry_after_seconds, .. } => {
                about(&GroupResource::new("", ""), "", *retry_after_seconds)
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
            "code": self.code(),
        });
        for (name, text) in [("message", self.message().as_str()), ("reason", self.reason())] {
            if !text.is_empty() {
                status[name] = text.into();
            }
        }
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }
}

/// Details that name an object; what is empty is left out.
fn about(resource: &GroupResource, name: &str, retry_after_seconds: u32) -> Value {
    let mut details = json!({});
    for (key, v) in [("name", name), ("group", &resource.group), ("kind", &resource.resource)] {
        if !v.is_empty() {
            details[key] = v.into();
        }
    }
    if retry_after_seconds > 0 {
        details["retryAfterSeconds"] = retry_after_seconds.into();
    }
    details
}

fn cause(e: &field::FieldError) -> Value {
    json!({"reason": e.kind.reason(), "message": e.body(), "field": e.path})
}

/// One conflict on one line; several grouped by their manager, in the order of the causes.
fn apply_conflict_message(causes: &[(String, String)]) -> String {
    if let [(message, field)] = causes {
        return format!("Apply failed with 1 conflict: {message}: {field}");
    }
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (message, field) in causes {
        match groups.iter_mut().find(|(m, _)| m == message) {
            Some((_, fields)) => fields.push(field),
            None => groups.push((message, vec![field])),
        }
    }
    let mut lines = Vec::new();
    for (message, fields) in groups {
        let manager = message.strip_prefix("conflict with ").unwrap_or(message);
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(fields.into_iter().map(|f| format!("- {f}")));
    }
    format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
