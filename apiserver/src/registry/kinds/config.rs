//! ConfigMaps, Secrets and ServiceAccounts.

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::names;
use apimachinery::object::{self, set};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::cells::{age_column, column, count, named};
use super::check::{At, immutable, same};
use super::row::Rows;
use super::{checked, default_to, key_pairs, selectable};
use crate::registry::{Context, PostHandler, Strategy};

/// Bytes that the values of a ConfigMap or Secret may have together.
const MAX_SIZE: usize = 1 << 20;

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("", "v1"), ("ConfigMap", "configmaps"), |row| {
        row.short(&["cm"]).strategy(ConfigMaps).columns(named([
            column("Data", "string", "Number of entries.", |o, _| {
                (count(o.get("data")) + count(o.get("binaryData"))).into()
            }),
            age_column(),
        ]))
    });
    rows.add(("", "v1"), ("Secret", "secrets"), |row| {
        row.strategy(Secrets).fields(selectable! { "type" => ["type"] }).columns(named([
            column("Type", "string", "What the secret is for.", |o, _| {
                object::str_at(o, &["type"]).into()
            }),
            column("Data", "string", "Number of entries.", |o, _| count(o.get("data")).into()),
            age_column(),
        ]))
    });
    rows.add(("", "v1"), ("ServiceAccount", "serviceaccounts"), |row| {
        row.short(&["sa"]).strategy(ServiceAccounts).columns(named([age_column()])).post(
            "token",
            ("authentication.k8s.io", "v1", "TokenRequest"),
            PostHandler::Token,
        )
    });
}

/// Size of a value in base64, decoded.
fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// Once `immutable` is set, it and these fields stay.
fn frozen(errors: &mut ErrorList, root: &At<'_>, old: &Value, fields: &[&str]) {
    const TEXT: &str = "field is immutable when `immutable` is set";
    if !object::bool_at(old, &["immutable"]) {
        return;
    }
    if !root.at("immutable").bool() {
        errors.push(root.at("immutable").forbidden(TEXT));
    }
    for field in fields.iter().map(|f| (root.at(f), old.get(*f).unwrap_or(&Value::Null))) {
        if !same(field.0.value(), field.1) {
            errors.push(field.0.forbidden(TEXT));
        }
    }
}

struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let binary = root.at("binaryData");
            let mut total = 0;
            for (key, value) in root.at("data").entries() {
                let messages = names::config_map_key(key);
                errors.extend(messages.into_iter().map(|m| value.invalid_as(key, m)));
                if binary.value().get(key).is_some() {
                    let text = "duplicate of key present in binaryData";
                    errors.push(value.invalid_as(key, text));
                }
                total += value.str().len();
            }
            for (key, value) in binary.entries() {
                let messages = names::config_map_key(key);
                errors.extend(messages.into_iter().map(|m| value.invalid_as(key, m)));
                total += decoded_len(value.str());
            }
            if total > MAX_SIZE {
                errors.push(root.too_long(MAX_SIZE));
            }
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors =
            checked(object, |root, errors| frozen(errors, root, old, &["data", "binaryData"]));
        errors.extend(self.validate(context, object));
        errors
    }
}

/// The type of a secret that holds a certificate and its key.
const TLS: &str = "kubernetes.io/tls";

struct Secrets;

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        default_to(object, "type", "Opaque");
        // Only for writing: its entries go to `data`.
        if let Some(Value::Object(plain)) = object::remove(object, &["stringData"]) {
            for (key, value) in plain {
                let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
                set(object, &["data", key.as_str()], encoded);
            }
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let data = root.at("data");
            let mut total = 0;
            for (key, value) in data.entries() {
                let messages = names::config_map_key(key);
                errors.extend(messages.into_iter().map(|m| value.invalid_as(key, m)));
                total += decoded_len(value.str());
            }
            if total > MAX_SIZE {
                errors.push(data.too_long(MAX_SIZE));
            }
            required_keys(errors, root, &data);
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = checked(object, |root, errors| {
            immutable(errors, &root.at("type"), old.get("type").unwrap_or(&Value::Null));
            frozen(errors, root, old, &["data"]);
        });
        errors.extend(self.validate(context, object));
        errors
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        if object::str_at(object, &["type"]) != TLS {
            return Vec::new();
        }
        let entry =
            |key: &str| STANDARD.decode(object::str_at(object, &["data", key])).unwrap_or_default();
        key_pairs::problem(&entry("tls.crt"), &entry("tls.key")).into_iter().collect()
    }
}

/// What secrets of a known type must hold.
fn required_keys(errors: &mut ErrorList, root: &At<'_>, data: &At<'_>) {
    let entry =
        |key: &str| At::new(data.value().get(key).unwrap_or(&Value::Null), data.path().key(key));
    match root.at("type").str() {
        "kubernetes.io/service-account-token" => {
            let annotations = root.down(&["metadata", "annotations"]);
            const KEY: &str = "kubernetes.io/service-account.name";
            let name = annotations.value().get(KEY).and_then(Value::as_str).unwrap_or("");
            if name.is_empty() {
                errors.push(At::new(&Value::Null, annotations.path().key(KEY)).required(""));
            }
        }
        "kubernetes.io/dockercfg" => json_map(errors, &entry(".dockercfg")),
        "kubernetes.io/dockerconfigjson" => json_map(errors, &entry(".dockerconfigjson")),
        "kubernetes.io/basic-auth" => {
            let both = [entry("username"), entry("password")];
            if both.iter().all(|e| !e.is_set()) {
                errors.extend(both.iter().map(|e| e.required("")));
            }
        }
        "kubernetes.io/ssh-auth" if entry("ssh-privatekey").is_empty() => {
            errors.push(entry("ssh-privatekey").required(""));
        }
        TLS => {
            for key in ["tls.crt", "tls.key"].map(entry).iter().filter(|e| !e.is_set()) {
                errors.push(key.required(""));
            }
        }
        _ => {}
    }
}

fn json_map(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        errors.push(at.required(""));
        return;
    }
    let bytes = STANDARD.decode(at.str()).unwrap_or_default();
    if let Err(problem) = serde_json::from_slice::<Option<serde_json::Map<String, Value>>>(&bytes) {
        let text = match bytes.as_slice() {
            [] => "unexpected end of JSON input".to_owned(),
            [first, ..] if problem.is_syntax() && problem.column() <= 1 => {
                format!("invalid character '{}' looking for beginning of value", char::from(*first))
            }
            _ => problem.to_string(),
        };
        errors.push(at.invalid_as("<secret contents redacted>", text));
    }
}

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn returns_deleted(&self) -> bool {
        true
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        names_only(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, _: &Value) {
        names_only(object);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
        let has = |o: &Value| object::annotation(o, KEY).is_some();
        if !has(object) || old.is_some_and(has) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{KEY}]: deprecated in v1.32+; prefer separate namespaces to \
             isolate access to mounted secrets"
        )]
    }
}

/// References to secrets keep their names alone.
fn names_only(object: &mut Value) {
    for secret in super::each(object, "secrets") {
        *secret = json!({"name": object::str_at(secret, &["name"])});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_base64_are_of_what_it_encodes() {
        for text in ["", "a", "ab", "abc", "abcd"] {
            assert_eq!(decoded_len(&STANDARD.encode(text)), text.len());
        }
    }
}
