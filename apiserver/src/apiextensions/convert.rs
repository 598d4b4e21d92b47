//! Objects from one version of a CustomResourceDefinition to another, by its webhook (upstream:
//! `pkg/apiserver/conversion`).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::field::{self, ErrorList, Path};
use apimachinery::{Map, Value, meta, object};
use async_trait::async_trait;
use serde_json::json;

use crate::webhook;

/// A conversion may take so long (upstream's bound of calls to webhooks).
const TIMEOUT: Duration = Duration::from_secs(30);

/// Who is asked to convert.
#[async_trait]
pub trait Converter: Send + Sync + 'static {
    /// Posts a ConversionReview to where a client configuration points, and gives the answer.
    async fn review(&self, client_config: &Value, review: &Value) -> Result<Value, String>;
}

/// Webhooks over the network.
pub struct Webhooks(pub Arc<webhook::Client>);

#[async_trait]
impl Converter for Webhooks {
    async fn review(&self, client_config: &Value, review: &Value) -> Result<Value, String> {
        self.0.call(client_config, review, TIMEOUT).await.map_err(|e| e.to_string())
    }
}

/// `spec.conversion`
#[derive(Clone)]
pub enum Conversion {
    /// Only apiVersion changes.
    None,
    Webhook(Arc<Hook>),
}

/// A conversion webhook.
pub struct Hook {
    pub converter: Arc<dyn Converter>,
    pub client_config: Value,
    pub review_versions: Vec<String>,
}

impl Hook {
    /// Objects in another version, in the order given. `kind` and `from` are for messages.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn convert(
        &self,
        objects: &[Value],
        api_version: &str,
        uid: &str,
    ) -> Result<Vec<Value>, String> {
        let Some(first) = objects.first() else { return Ok(Vec::new()) };
        let shown = shown_kind(first);
        let wrong = |text: String| format!("conversion webhook for {shown} failed: {text}");
        let known = |v: &&String| matches!(v.as_str(), "v1" | "v1beta1");
        let Some(version) = self.review_versions.iter().find(known) else {
            return Err("no supported conversion review versions".to_owned());
        };
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
        });
        let answer = self.converter.review(&self.client_config, &review).await.map_err(wrong)?;
        let converted = read_answer(&answer, version, uid).map_err(wrong)?;
        if converted.len() != objects.len() {
            return Err(format!(
                "conversion webhook for {shown} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            ));
        }
        objects
            .iter()
            .zip(converted)
            .enumerate()
            .map(|(i, (from, to))| finished(from, to, api_version, i, objects.len() > 1))
            .collect()
    }
}

/// As Go prints a GroupVersionKind.
fn shown_kind(object: &Value) -> String {
    let api_version = object::str_at(object, &["apiVersion"]);
    format!("{api_version}, Kind={}", object::str_at(object, &["kind"]))
}

fn read_answer(answer: &Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let text = |path: &[&str]| object::str_at(answer, path).to_owned();
    let expected = format!("apiextensions.k8s.io/{version}");
    if version == "v1"
        && (text(&["apiVersion"]) != expected || text(&["kind"]) != "ConversionReview")
    {
        return Err(format!(
            "expected webhook response of {expected}, Kind=ConversionReview, got {}",
            shown_kind(answer)
        ));
    }
    if object::get(answer, &["response"]).is_none() {
        return Err("no response provided".to_owned());
    }
    let found = text(&["response", "uid"]);
    if version == "v1" && found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let status = text(&["response", "result", "status"]);
    if status != "Success" {
        return Err(match text(&["response", "result", "message"]) {
            message if message.is_empty() => {
                format!("response.result.status was '{status}', not 'Success'")
            }
            message => message,
        });
    }
    Ok(object::list_at(answer, &["response", "convertedObjects"]).to_vec())
}

/// A converted object, when it is one, with the metadata that conversion may not change.
fn finished(
    from: &Value,
    mut to: Value,
    api_version: &str,
    at: usize,
    of_list: bool,
) -> Result<Value, String> {
    let shown = shown_kind(from);
    let text = |value: &Value, name: &str| object::str_at(value, &[name]).to_owned();
    let what = if of_list { "converted object" } else { "object" };
    let found = text(&to, "apiVersion");
    if found != api_version {
        return Err(format!(
            "conversion webhook for {shown} returned invalid {what} at index {at}: invalid groupVersion (expected {api_version}, received {found})"
        ));
    }
    let (kind, found) = (text(from, "kind"), text(&to, "kind"));
    if kind != found {
        return Err(format!(
            "conversion webhook for {shown} returned invalid {what} at index {at}: invalid kind (expected {kind}, received {found})"
        ));
    }
    let place = if of_list { format!(" at index {at}") } else { String::new() };
    for (name, path) in [
        ("name", ["metadata", "name"]),
        ("namespace", ["metadata", "namespace"]),
        ("UID", ["metadata", "uid"]),
    ] {
        let (before, after) = (object::str_at(from, &path), object::str_at(&to, &path));
        if before != after {
            return Err(format!(
                "conversion webhook for {shown} returned invalid {what}{place}: must have the same {name}: {before} != {after}"
            ));
        }
    }
    restore_metadata(from, &mut to).map_err(|text| {
        let of = if of_list { format!(" in object at index {at}") } else { String::new() };
        format!("conversion webhook for {shown} returned invalid metadata{of}: {text}")
    })?;
    Ok(to)
}

/// Of metadata, only labels and annotations are the webhook's.
fn restore_metadata(from: &Value, to: &mut Value) -> Result<(), String> {
    let given = match to.get("metadata") {
        None => return Err("missing metadata in converted object".to_owned()),
        Some(Value::Object(map)) => map.clone(),
        Some(other) => {
            return Err(format!(
                "invalid metadata of type {} in converted object",
                object::go_type(other)
            ));
        }
    };
    let mut kept = object::map_at(from, &["metadata"]).cloned().unwrap_or_else(Map::new);
    for name in ["labels", "annotations"] {
        let before = kept.remove(name).unwrap_or_default();
        let after = match given.get(name) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(map)) => map,
            Some(other) => {
                return Err(format!(
                    "invalid metadata.{name} of type {} in converted object",
                    object::go_type(other)
                ));
            }
        };
        if let Some((key, value)) = after.iter().find(|(_, v)| !v.is_string()) {
            return Err(format!(
                "metadata.{name}[{key}] must be a string, but is {} in converted object",
                object::go_type(value)
            ));
        }
        let after = Value::Object(after.clone());
        if after != before {
            let errors: ErrorList = match name {
                "labels" => {
                    meta::validate_labels(Some(&after), &Path::new("metadata").child("labels"))
                }
                _ => meta::validate_annotations(
                    Some(&after),
                    &Path::new("metadata").child("annotation"),
                ),
            };
            if !errors.is_empty() {
                return Err(field::aggregate(&errors));
            }
        }
        kept.insert(name.to_owned(), after);
    }
    object::set(to, &["metadata"], Value::Object(kept));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Value);

    #[async_trait]
    impl Converter for Fake {
        async fn review(&self, _: &Value, review: &Value) -> Result<Value, String> {
            let mut answer = self.0.clone();
            if answer["response"].is_object() && answer["response"].get("uid").is_none() {
                answer["response"]["uid"] = review["request"]["uid"].clone();
            }
            Ok(answer)
        }
    }

    #[tokio::test]
    async fn answers_are_checked() {
        let object = json!({"apiVersion": "g/v1", "kind": "K",
            "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}}, "spec": {"a": 1}});
        let good = json!({"apiVersion": "g/v2", "kind": "K",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "9"}, "spec": {"b": 1}});
        let answer = |response: Value| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
                "response": response})
        };
        let with = |change: &dyn Fn(&mut Value)| {
            let mut object = good.clone();
            change(&mut object);
            answer(json!({"result": {"status": "Success"}, "convertedObjects": [object]}))
        };
        let cases: Vec<(Value, Result<(), &str>)> = vec![
            (with(&|_| {}), Ok(())),
            (
                answer(json!({"result": {"status": "Failure", "message": "no way"}})),
                Err("conversion webhook for g/v1, Kind=K failed: no way"),
            ),
            (
                answer(json!({"result": {"status": "Failure"}})),
                Err(
                    "conversion webhook for g/v1, Kind=K failed: response.result.status was 'Failure', not 'Success'",
                ),
            ),
            (
                answer(json!({"uid": "other"})),
                Err(
                    "conversion webhook for g/v1, Kind=K failed: expected response.uid=\"r\", got \"other\"",
                ),
            ),
            (
                answer(json!({"result": {"status": "Success"}})),
                Err("conversion webhook for g/v1, Kind=K returned 0 objects, expected 1"),
            ),
            (
                with(&|o| o["apiVersion"] = "g/v3".into()),
                Err(
                    "conversion webhook for g/v1, Kind=K returned invalid object at index 0: invalid groupVersion (expected g/v2, received g/v3)",
                ),
            ),
            (
                with(&|o| o["metadata"]["name"] = "b".into()),
                Err(
                    "conversion webhook for g/v1, Kind=K returned invalid object: must have the same name: a != b",
                ),
            ),
            (
                with(&|o| o["metadata"]["labels"] = json!({"a": 1})),
                Err(
                    "conversion webhook for g/v1, Kind=K returned invalid metadata: metadata.labels[a] must be a string, but is int64 in converted object",
                ),
            ),
        ];
        for (response, want) in cases {
            let hook = Hook {
                converter: Arc::new(Fake(response)),
                client_config: json!({}),
                review_versions: vec!["v1".to_owned()],
            };
            let got = hook.convert(std::slice::from_ref(&object), "g/v2", "r").await;
            match want {
                Err(text) => assert_eq!(got, Err(text.to_owned())),
                Ok(()) => {
                    let mut want = good.clone();
                    want["metadata"] = json!({"name": "a", "uid": "u"});
                    assert_eq!(got, Ok(vec![want]));
                }
            }
        }
    }
}
