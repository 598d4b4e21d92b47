//! Reading and writing the metadata of an object held as a [`Value`].
//!
//! Absent and empty are the same to a reader, as they are to Go's zero values.

use crate::{Map, Value};

/// What Go calls the type that JSON is decoded to, for messages that name it.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The value at a path of field names, if every step exists.
pub fn get<'a>(obj: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(obj, |v, name| v.get(name)).filter(|v| !v.is_null())
}

/// The string at a path, or `""`.
pub fn str_at<'a>(obj: &'a Value, path: &[&str]) -> &'a str {
    get(obj, path).and_then(Value::as_str).unwrap_or("")
}

/// The integer at a path, if there is one.
pub fn int_at(obj: &Value, path: &[&str]) -> Option<i64> {
    get(obj, path).and_then(Value::as_i64)
}

/// The bool at a path, or false.
pub fn bool_at(obj: &Value, path: &[&str]) -> bool {
    get(obj, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The list at a path, or an empty one.
pub fn list_at<'a>(obj: &'a Value, path: &[&str]) -> &'a [Value] {
    get(obj, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[])
}

/// The map at a path, if there is one.
pub fn map_at<'a>(obj: &'a Value, path: &[&str]) -> Option<&'a Map> {
    get(obj, path).and_then(Value::as_object)
}

/// The map at a path, made (with the maps on the way) where it is absent.
/// A value that is not a map on the way is replaced by one.
pub fn map_mut<'a>(obj: &'a mut Value, path: &[&str]) -> &'a mut Map {
    let mut here = as_map(obj);
    for name in path {
        here = as_map(here.entry(*name).or_insert(Value::Null));
    }
    here
}

fn as_map(v: &mut Value) -> &mut Map {
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    match v {
        Value::Object(map) => map,
        _ => unreachable!("made a map above"),
    }
}

/// Sets the value at a path, making the maps on the way.
pub fn set(obj: &mut Value, path: &[&str], value: impl Into<Value>) {
    if let Some((last, parents)) = path.split_last() {
        map_mut(obj, parents).insert((*last).to_owned(), value.into());
    }
}

/// Removes and returns the value at a path.
pub fn remove(obj: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    parents.iter().try_fold(obj, |v, name| v.get_mut(*name))?.as_object_mut()?.remove(*last)
}

macro_rules! metadata_strings {
    ($($(#[$doc:meta])* $name:ident $set:ident $field:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(obj: &Value) -> &str {
            str_at(obj, &["metadata", $field])
        }
        $(#[$doc])*
        pub fn $set(obj: &mut Value, value: &str) {
            set(obj, &["metadata", $field], value);
        }
    )*};
}

metadata_strings! {
    /// `metadata.name`
    name set_name "name";
    /// `metadata.namespace`
    namespace set_namespace "namespace";
    /// `metadata.generateName`
    generate_name set_generate_name "generateName";
    /// `metadata.uid`
    uid set_uid "uid";
    /// `metadata.resourceVersion`
    resource_version set_resource_version "resourceVersion";
    /// `metadata.deletionTimestamp`, RFC 3339
    deletion_timestamp set_deletion_timestamp "deletionTimestamp";
    /// `metadata.creationTimestamp`, RFC 3339
    creation_timestamp set_creation_timestamp "creationTimestamp";
}

/// `metadata.generation`, 0 when absent.
pub fn generation(obj: &Value) -> i64 {
    int_at(obj, &["metadata", "generation"]).unwrap_or(0)
}

/// `metadata.finalizers`
pub fn finalizers(obj: &Value) -> impl Iterator<Item = &str> {
    list_at(obj, &["metadata", "finalizers"]).iter().filter_map(Value::as_str)
}

/// A label's value.
pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    map_at(obj, &["metadata", "labels"])?.get(key)?.as_str()
}

/// An annotation's value.
pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    map_at(obj, &["metadata", "annotations"])?.get(key)?.as_str()
}
