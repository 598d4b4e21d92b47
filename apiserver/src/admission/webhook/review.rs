//! AdmissionReviews: what webhooks are asked, and what they answer.

use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use base64::Engine as _;
use serde_json::json;

/// The first version of a webhook's that this server speaks.
pub(super) fn version(accepted: &[Value]) -> Option<&'static str> {
    accepted.iter().filter_map(Value::as_str).find_map(|version| match version {
        "v1" => Some("v1"),
        "v1beta1" => Some("v1beta1"),
        _ => None,
    })
}

/// A review that asks.
pub(super) fn review(version: &str, uid: &str, mut request: Value) -> Value {
    request["uid"] = uid.into();
    json!({
        "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"),
        "request": request,
    })
}

/// What a webhook said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// It refuses.
    pub denied: Option<ApiError>,
    /// A JSON patch that changes something.
    pub patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
}

/// Reads a webhook's answer. Its audit annotations have nowhere to go, as requests are not
/// audited.
///
/// # Errors
/// What is wrong with it.
pub(super) fn verdict(
    version: &str,
    uid: &str,
    mutating: bool,
    name: &str,
    answer: &Value,
) -> Result<Verdict, String> {
    let Some(response) = answer.get("response").filter(|r| r.is_object()) else {
        return Err("webhook response was absent".to_owned());
    };
    let text = |field| object::str_at(response, &[field]);
    let raw = text("patch");
    if version == "v1" {
        let found = text("uid");
        if found != uid {
            return Err(format!("expected response.uid={uid:?}, got {found:?}"));
        }
        let (api_version, kind) =
            (object::str_at(answer, &["apiVersion"]), object::str_at(answer, &["kind"]));
        if (api_version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
            ));
        }
        let patch_type = response.get("patchType").filter(|t| !t.is_null());
        match (mutating, raw, patch_type.map(|t| t.as_str().unwrap_or(""))) {
            (_, "", None) => {}
            (true, "", Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".to_owned());
            }
            (true, _, None) => {
                return Err("webhook returned response.patch but not response.patchType".to_owned());
            }
            (true, _, Some("")) => {
                return Err("webhook returned invalid response.patchType of \"\"".to_owned());
            }
            (true, _, Some("JSONPatch")) => {}
            (true, _, Some(other)) => return Err(format!("unsupported patch type {other:?}")),
            (false, "", Some(_)) => {
                return Err("validating webhook may not return response.patchType".to_owned());
            }
            (false, ..) => {
                return Err("validating webhook may not return response.patch".to_owned());
            }
        }
    }
    let warnings = object::list_at(response, &["warnings"]);
    let warnings = warnings.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if !object::bool_at(response, &["allowed"]) {
        let status = response.get("status").unwrap_or(&Value::Null);
        return Ok(Verdict { denied: Some(denial(name, status)), patch: None, warnings });
    }
    let patch = match mutating && !raw.is_empty() {
        false => None,
        true => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(raw);
            let bytes = decoded
                .map_err(|e| format!("received undecodable patch in webhook response: {e}"))?;
            let parsed: Result<Vec<Value>, _> = serde_json::from_slice(&bytes);
            let parsed = parsed
                .map_err(|e| format!("received undecodable patch in webhook response: {e}"))?;
            (!parsed.is_empty()).then_some(bytes)
        }
    };
    Ok(Verdict { denied: None, patch, warnings })
}

/// A refusal, with the code and reason that the webhook gave.
fn denial(name: &str, status: &Value) -> ApiError {
    let by = format!("admission webhook {name:?} denied the request");
    let text = |field| object::str_at(status, &[field]);
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = object::int_at(status, &["code"]).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..1000).contains(code)).unwrap_or(400);
    ApiError::Other { code, reason: text("reason").to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    fn read(mutating: bool, response: Value) -> Result<Verdict, String> {
        verdict("v1", "u", mutating, "a.example.com", &answer(response))
    }

    #[test]
    fn answers_must_make_sense() {
        for (mutating, response, want) in [
            (true, json!({"uid": "x"}), "expected response.uid=\"u\", got \"x\""),
            (
                true,
                json!({"uid": "u", "allowed": true, "patch": "W10="}),
                "webhook returned response.patch but not response.patchType",
            ),
            (
                false,
                json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}),
                "validating webhook may not return response.patch",
            ),
            (
                true,
                json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "Merge"}),
                "unsupported patch type \"Merge\"",
            ),
        ] {
            assert_eq!(read(mutating, response), Err(want.to_owned()));
        }
        assert!(verdict("v1", "u", true, "a", &json!({})).is_err());
        // An empty patch is none.
        let nothing =
            json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"});
        assert_eq!(read(true, nothing), Ok(Verdict::default()));
    }

    #[test]
    fn refusals_have_upstreams_words() {
        for (status, want) in [
            (
                json!({}),
                (400, "admission webhook \"a.example.com\" denied the request without explanation"),
            ),
            (
                json!({"message": "no", "code": 403}),
                (403, "admission webhook \"a.example.com\" denied the request: no"),
            ),
            (
                json!({"reason": "Nope", "code": 200}),
                (400, "admission webhook \"a.example.com\" denied the request: Nope"),
            ),
        ] {
            let read = read(false, json!({"uid": "u", "allowed": false, "status": status}));
            let denied = read.expect("an answer").denied.expect("a refusal");
            assert_eq!((denied.code(), denied.message().as_str()), want);
        }
    }
}
