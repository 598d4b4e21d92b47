//! JSON patch, RFC 6902 (`application/json-patch+json`).
//!
//! Where upstream's library departs from the RFC, so does this: array indices may be negative,
//! `replace` may add a field to a map, and a missing value is null.

use super::PatchError;
use crate::{Map, Value};

/// Upstream's limit on the operations of one patch.
pub const MAX_OPERATIONS: usize = 10_000;
/// Upstream's limit on the bytes of JSON that the `copy` operations of one patch may add.
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Applies the patch in place; on error the object is in no defined state.
pub fn apply(object: &mut Value, patch: &[u8]) -> Result<(), PatchError> {
    let operations = parse(patch)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    operations
        .iter()
        .try_for_each(|op| step(object, op, &mut copied))
        .map_err(PatchError::Unprocessable)
}

fn parse(patch: &[u8]) -> Result<Vec<Map>, PatchError> {
    let malformed = |text: String| PatchError::Malformed(format!("error decoding patch: {text}"));
    let patch: Value = serde_json::from_slice(patch).map_err(|e| malformed(e.to_string()))?;
    let wrong = |v: &Value, want: &str| {
        let got = super::merge::go_kind(v);
        malformed(format!("json: cannot unmarshal {got} into Go value of type {want}"))
    };
    match patch {
        Value::Null => Ok(Vec::new()),
        Value::Array(operations) => operations
            .into_iter()
            .map(|op| match op {
                Value::Object(op) => Ok(op),
                Value::Null => Ok(Map::new()),
                other => Err(wrong(&other, "handlers.jsonPatchOp")),
            })
            .collect(),
        other => Err(wrong(&other, "[]handlers.jsonPatchOp")),
    }
}

fn step(doc: &mut Value, op: &Map, copied: &mut usize) -> Result<(), String> {
    let kind = op.get("op").and_then(Value::as_str).unwrap_or("unknown");
    let text = |name: &str| {
        let found = op.get(name).and_then(Value::as_str);
        found.ok_or_else(|| format!("{kind} operation failed to decode {name}: missing value"))
    };
    let value = || op.get("value").cloned().unwrap_or_default();
    match kind {
        "add" => Target::find(doc, text("path")?)?.add(value()),
        "remove" => Target::find(doc, text("path")?)?.remove().map(drop),
        "replace" if text("path")?.is_empty() => {
            let value = value();
            if !(value.is_object() || value.is_array()) {
                return Err("replace operation value must be object or array".to_owned());
            }
            *doc = value;
            Ok(())
        }
        "replace" => Target::find(doc, text("path")?)?.replace(value()),
        "move" => {
            let moved = Target::find(doc, text("from")?)?.remove()?;
            Target::find(doc, text("path")?)?.add(moved)
        }
        "copy" => {
            let copy = Target::find(doc, text("from")?)?.get()?.clone();
            *copied += copy.to_string().len();
            if *copied > MAX_COPIED_BYTES {
                return Err(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is \
                     {copied}, exceeding the limit {MAX_COPIED_BYTES}"
                ));
            }
            Target::find(doc, text("path")?)?.add(copy)
        }
        "test" => {
            let path = text("path")?;
            let matches = match path {
                "" => *doc == value(),
                _ => *Target::find(doc, path)?.get()? == value(),
            };
            if matches { Ok(()) } else { Err(format!("testing value {path} failed: test failed")) }
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

/// The place that a pointer names: a key, which need not exist, of a container, which must.
struct Target<'a> {
    container: Container<'a>,
    key: String,
    path: &'a str,
}

enum Container<'a> {
    Map(&'a mut Map),
    List(&'a mut Vec<Value>),
}

impl<'a> Target<'a> {
    fn find(doc: &'a mut Value, path: &'a str) -> Result<Self, String> {
        let missing = || format!("doc is missing path: \"{path}\": missing value");
        let mut segments: Vec<String> =
            path.split('/').skip(1).map(|s| s.replace("~1", "/").replace("~0", "~")).collect();
        let key = segments.pop().ok_or_else(missing)?;
        let mut here = doc;
        for segment in segments {
            here = match here {
                Value::Object(map) => map.get_mut(&segment),
                Value::Array(list) => {
                    index(&segment, list.len()).ok().and_then(|i| list.get_mut(i))
                }
                _ => None,
            }
            .ok_or_else(missing)?;
        }
        let container = match here {
            Value::Object(map) => Container::Map(map),
            Value::Array(list) => Container::List(list),
            _ => return Err(missing()),
        };
        Ok(Self { container, key, path })
    }

    fn get(&self) -> Result<&Value, String> {
        match &self.container {
            Container::Map(map) => Ok(map.get(&self.key).unwrap_or(&Value::Null)),
            Container::List(list) => {
                let i = index(&self.key, list.len())?;
                list.get(i).ok_or_else(|| out_of_range(&self.key))
            }
        }
    }

    fn add(self, value: Value) -> Result<(), String> {
        match self.container {
            Container::Map(map) => {
                map.insert(self.key, value);
            }
            Container::List(list) if self.key == "-" => list.push(value),
            Container::List(list) => {
                // One past the end is a place to add at.
                let i = index(&self.key, list.len() + 1)?;
                list.insert(i, value);
            }
        }
        Ok(())
    }

    fn replace(self, value: Value) -> Result<(), String> {
        match self.container {
            Container::Map(map) => {
                map.insert(self.key, value);
            }
            Container::List(list) => {
                let i = index(&self.key, list.len())?;
                list[i] = value;
            }
        }
        Ok(())
    }

    fn remove(self) -> Result<Value, String> {
        match self.container {
            Container::Map(map) => map.remove(&self.key).ok_or_else(|| {
                format!(
                    "error in remove for path: '{}': Unable to remove nonexistent key: {}",
                    self.path, self.key
                )
            }),
            Container::List(list) => {
                let i = index(&self.key, list.len())?;
                Ok(list.remove(i))
            }
        }
    }
}

fn out_of_range(key: &str) -> String {
    format!("Unable to access invalid index: {key}: invalid index referenced")
}

/// An index below `length`; a negative one counts from the end.
fn index(key: &str, length: usize) -> Result<usize, String> {
    let i: i64 = key.parse().map_err(|_| format!("value was not a proper array index: '{key}'"))?;
    let i = if i < 0 { i.checked_add_unsigned(length as u64) } else { Some(i) };
    i.and_then(|i| usize::try_from(i).ok()).filter(|i| *i < length).ok_or_else(|| out_of_range(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(mut doc: Value, patch: &Value) -> Result<Value, PatchError> {
        apply(&mut doc, patch.to_string().as_bytes()).map(|()| doc)
    }

    #[test]
    fn operations() {
        let doc = json!({"a": {"b": [1, 2]}, "n": null, "x/y": 1, "m~n": 2});
        let with = |changes: &[(&str, Option<Value>)]| {
            let mut doc = doc.clone();
            for (k, v) in changes {
                match v {
                    Some(v) => doc[*k] = v.clone(),
                    None => drop(doc.as_object_mut().and_then(|d| d.remove(*k))),
                }
            }
            Some(doc)
        };
        let list = |v: Value| with(&[("a", Some(json!({"b": v})))]);
        for (op, want) in [
            (json!({"op": "add", "path": "/c", "value": 3}), with(&[("c", Some(json!(3)))])),
            (json!({"op": "add", "path": "/c"}), with(&[("c", Some(Value::Null))])),
            (json!({"op": "add", "path": "/a/b/1", "value": 3}), list(json!([1, 3, 2]))),
            (json!({"op": "add", "path": "/a/b/-", "value": 3}), list(json!([1, 2, 3]))),
            (json!({"op": "add", "path": "/a/b/-1", "value": 3}), list(json!([1, 2, 3]))),
            (json!({"op": "add", "path": "/a/b/2", "value": 3}), list(json!([1, 2, 3]))),
            (json!({"op": "add", "path": "/a/b/3", "value": 3}), None),
            (json!({"op": "add", "path": "/z/b", "value": 3}), None),
            (json!({"op": "add", "path": "", "value": 3}), None),
            (json!({"op": "remove", "path": "/a/b/-1"}), list(json!([1]))),
            (json!({"op": "remove", "path": "/x~1y"}), with(&[("x/y", None)])),
            (json!({"op": "remove", "path": "/m~0n"}), with(&[("m~n", None)])),
            (json!({"op": "remove", "path": "/z"}), None),
            (json!({"op": "replace", "path": "/z", "value": 1}), with(&[("z", Some(json!(1)))])),
            (json!({"op": "replace", "path": "/a/b/5", "value": 1}), None),
            (json!({"op": "replace", "path": "", "value": {"k": 1}}), Some(json!({"k": 1}))),
            (json!({"op": "replace", "path": "", "value": 1}), None),
            (
                json!({"op": "move", "from": "/x~1y", "path": "/c"}),
                with(&[("x/y", None), ("c", Some(json!(1)))]),
            ),
            (json!({"op": "copy", "from": "/a/b/0", "path": "/a/b/-"}), list(json!([1, 2, 1]))),
            (json!({"op": "test", "path": "/a/b/0", "value": 1}), with(&[])),
            (json!({"op": "test", "path": "/a/b/0", "value": 1.0}), None),
            (json!({"op": "test", "path": "/z", "value": null}), with(&[])),
            (json!({"op": "test", "path": "/z", "value": 1}), None),
            (json!({"op": "test", "path": "/n/z", "value": null}), None),
            (json!({"op": "what", "path": "/z"}), None),
            (json!({"path": "/z"}), None),
        ] {
            let got = patched(doc.clone(), &json!([op]));
            match want {
                Some(want) => assert_eq!(got, Ok(want), "{op}"),
                None => assert!(matches!(got, Err(PatchError::Unprocessable(_))), "{op}: {got:?}"),
            }
        }
    }

    #[test]
    fn refused_patches() {
        for (patch, want) in [
            (
                json!({}),
                "error decoding patch: json: cannot unmarshal object into Go value of type \
                 []handlers.jsonPatchOp",
            ),
            (
                json!(["a"]),
                "error decoding patch: json: cannot unmarshal string into Go value of type \
                 handlers.jsonPatchOp",
            ),
        ] {
            let got = patched(json!({}), &patch);
            assert_eq!(got, Err(PatchError::Malformed(want.to_owned())));
        }
        let many = vec![json!({"op": "test", "path": "/a"}); MAX_OPERATIONS + 1];
        assert_eq!(
            patched(json!({}), &many.into()),
            Err(PatchError::TooLarge(
                "The allowed maximum operations in a JSON patch is 10000, got 10001".to_owned()
            ))
        );
    }

    #[test]
    fn copies_are_bounded() {
        let mut ops = vec![json!({"op": "add", "path": "/a", "value": ["x".repeat(1000)]})];
        ops.extend(vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 40]);
        let got = patched(json!({}), &ops.into());
        assert!(matches!(got, Err(PatchError::Unprocessable(_))));
    }

    proptest! {
        #[test]
        fn never_panics(
            op in "add|remove|replace|move|copy|test",
            path in "(/(a|b|0|1|-1|-|9999999999999999999|-9223372036854775808)){0,3}",
            from in "(/(a|b|0|-1)){0,3}",
        ) {
            let op = json!([{"op": op, "path": path, "from": from, "value": {"a": [1]}}]);
            let _ = patched(json!({"a": [1, {"b": null}], "b": {"a": {}}}), &op);
        }
    }
}
