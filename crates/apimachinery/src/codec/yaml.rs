//! YAML, by way of JSON, as upstream does it: YAML 1.1's words for booleans (`yes`, `on`), merge
//! keys, and only the first document of several.

mod emit;

use std::cell::RefCell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::{DecodeError, Decoded, FieldValidation, Schema, gojson, json, quote, scalar};
use crate::{Map, Value};

/// How deep a document may nest. Each level costs more of the stack than one of JSON does.
const MAX_DEPTH: usize = 200;

/// How much aliases may repeat, in parser events over a whole document.
const MAX_REPLAYED: usize = 200_000;

/// Decodes one YAML document to the object's canonical form.
pub fn decode(
    schema: Schema<'_>,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let document = document(bytes)?;
    let text = serde_json::to_vec(&document.value)
        .map_err(|e| DecodeError::Malformed(format!("json: {e}")))?;
    with_duplicates(document.duplicates, validation, json::decode(schema, &text, validation))
}

/// Decodes one YAML document without a schema, as upstream decodes a custom resource.
pub fn decode_untyped(bytes: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let document = document(bytes)?;
    let mut text = Vec::new();
    gojson::value(&document.value, &mut text)?;
    with_duplicates(document.duplicates, validation, json::decode_untyped(&text, validation))
}

/// Encodes as YAML.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = String::new();
    emit::document(object, &mut out);
    out.into_bytes()
}

struct Document {
    value: Value,
    /// Keys that a mapping has twice: the line and the key.
    duplicates: Vec<(u64, String)>,
}

/// Puts the duplicate keys, which JSON no longer shows, before what JSON reports.
fn with_duplicates(
    duplicates: Vec<(u64, String)>,
    validation: FieldValidation,
    result: Result<Decoded, DecodeError>,
) -> Result<Decoded, DecodeError> {
    if duplicates.is_empty() || validation == FieldValidation::Ignore {
        return result;
    }
    let mut found = "yaml: unmarshal errors:".to_owned();
    for (line, key) in duplicates {
        found.push_str(&format!("\n  line {line}: key {} already set in map", quote(&key)));
    }
    match result {
        Ok(_) if validation == FieldValidation::Strict => Err(DecodeError::Strict(vec![found])),
        Ok(mut decoded) => {
            decoded.warnings.insert(0, found);
            Ok(decoded)
        }
        Err(DecodeError::Strict(mut all)) => {
            all.insert(0, found);
            Err(DecodeError::Strict(all))
        }
        malformed => malformed,
    }
}

thread_local! {
    /// Duplicates found by the document being read on this thread: serde's `Deserialize`, which
    /// the parser asks for, carries no state.
    static DUPLICATES: RefCell<Vec<(u64, String)>> = const { RefCell::new(Vec::new()) };
}

fn document(bytes: &[u8]) -> Result<Document, DecodeError> {
    DUPLICATES.take();
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
        },
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_reader_input_bytes: Some(bytes.len().saturating_add(16)),
        },
    };
    let mut reader = bytes;
    let first = serde_saphyr::read_with_options::<_, Any>(&mut reader, options).next();
    let duplicates = DUPLICATES.take();
    match first {
        None => Ok(Document { value: Value::Null, duplicates }),
        Some(Ok(any)) => Ok(Document { value: any.0, duplicates }),
        Some(Err(e)) => {
            let text = e.to_string();
            Err(DecodeError::Unread(match e.location() {
                Some(at) if at.line() > 0 => format!("yaml: line {}: {text}", at.line()),
                _ => format!("yaml: {text}"),
            }))
        }
    }
}

/// Any value, with keys made strings as sigs.k8s.io/yaml makes them.
struct Any(Value);

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor).map(Any)
    }
}

struct AnyVisitor;

impl<'de> DeserializeSeed<'de> for AnyVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(scalar::double(v as f64))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
        Ok(scalar::double(v as f64))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(scalar::double(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(AnyVisitor)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<Spanned<Any>>()? {
            let line = key.referenced.line();
            let key = match key.value.0 {
                Value::String(s) => s,
                Value::Null => {
                    return Err(serde::de::Error::custom("unsupported map key of type: nil"));
                }
                Value::Array(_) | Value::Object(_) => {
                    return Err(serde::de::Error::custom("invalid map key"));
                }
                plain => plain.to_string(),
            };
            let value = access.next_value_seed(AnyVisitor)?;
            if map.contains_key(&key) {
                DUPLICATES.with_borrow_mut(|all| all.push((line, key.clone())));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gvk::GroupVersionKind;
    use crate::schema::Registry;

    fn any(text: &str) -> Value {
        decode_untyped(text.as_bytes(), FieldValidation::Ignore).expect(text).object
    }

    #[test]
    fn scalars_are_yaml_1_1() {
        for (text, json) in [
            ("a: yes", r#"{"a":true}"#),
            ("a: off", r#"{"a":false}"#),
            ("a: 'yes'", r#"{"a":"yes"}"#),
            ("a: ~", r#"{"a":null}"#),
            ("a:", r#"{"a":null}"#),
            ("a: 0755", r#"{"a":493}"#),
            ("a: 0x1f", r#"{"a":31}"#),
            ("a: 1_000", r#"{"a":1000}"#),
            ("a: 1e3", r#"{"a":1000}"#),
            ("a: 1.5", r#"{"a":1.5}"#),
            ("a: 2024-01-01", r#"{"a":"2024-01-01"}"#),
            ("a: 1.2.3", r#"{"a":"1.2.3"}"#),
            ("1: a", r#"{"1":"a"}"#),
            ("a: |\n  x\n  y\n", r#"{"a":"x\ny\n"}"#),
            ("a: &x {b: 1}\nc: *x", r#"{"a":{"b":1},"c":{"b":1}}"#),
            ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 2", r#"{"a":{"b":1},"c":{"b":1,"d":2}}"#),
            ("a: 1\n---\nb: 2", r#"{"a":1}"#),
            ("a: 18446744073709551615", r#"{"a":18446744073709551615.0}"#),
            ("a: 1.0", r#"{"a":1}"#),
            ("a: 1e17", r#"{"a":100000000000000000}"#),
        ] {
            let expected: Value = serde_json::from_str(json).expect("JSON");
            assert_eq!(any(text), expected, "{text}");
        }
    }

    #[test]
    fn duplicates_are_reported() {
        let gvk = GroupVersionKind::new("", "v1", "Secret");
        let registry = Registry::builtin();
        let schema = Schema { registry, message: registry.kind(&gvk).expect("a kind") };
        let text = "type: a\ntype: b\nfoo: 1\n";
        let decoded = decode(schema, text.as_bytes(), FieldValidation::Ignore).expect("a secret");
        assert_eq!(decoded.object["type"], "b");
        assert_eq!(
            decode(schema, text.as_bytes(), FieldValidation::Strict).expect_err("strict"),
            DecodeError::Strict(vec![
                "yaml: unmarshal errors:\n  line 2: key \"type\" already set in map".into(),
                "unknown field \"foo\"".into(),
            ])
        );
    }

    #[test]
    fn bombs_and_nonsense_are_errors() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let deep = "[".repeat(100_000);
        for text in [bomb.as_str(), &deep, "a: [", "a: b: c", "\"", "? [a]\n: b", "a: .nan"] {
            let result = decode_untyped(text.as_bytes(), FieldValidation::Ignore);
            match result {
                Err(DecodeError::Unread(e)) => assert!(e.starts_with("yaml: "), "{e}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let value = serde_json::json!({
            "b": {"list": [1, {"x": null, "y": [[], {}]}, [true, "yes"]], "empty": ""},
            "a": "x: y", "n": "123", "t": "2024-01-01T00:00:00Z", "m": "l1\nl2\n", "k": "l1\n\n",
            "s": " pad ", "q": "it's", "d": "tab\there \"x\" \u{1}", "dash": "- a", "hash": "a #b",
            "f": 1.5, "big": 1e300, "i": -5, "u": "\u{e9}\u{4e16}", "tilde": "~", "star": "*a",
            "long": "word ".repeat(60), "trail": "x\n  indented\n", "lead": "  two\nthree",
        });
        let text = String::from_utf8(encode(&value)).expect("UTF-8");
        assert_eq!(any(&text), value, "{text}");
    }

    #[test]
    fn looks_like_upstream() {
        let value = serde_json::json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "labels": {"app": "true", "v10": "1.0", "v9": "", "v": "b"}, "x": {}},
            "spec": {"containers": [{"name": "c", "args": ["a", "-b", "x\ny"], "env": []}]},
        });
        assert_eq!(
            String::from_utf8(encode(&value)).expect("UTF-8"),
            "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    app: \"true\"\n    v: b\n    v9: \"\"\n    v10: \"1.0\"\n  \
             name: a\n  x: {}\nspec:\n  containers:\n  - args:\n    - a\n    - -b\n    - |-\n      x\n      y\n    \
             env: []\n    name: c\n"
        );
    }
}
