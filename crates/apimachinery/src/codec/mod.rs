//! Encodings of objects: JSON, YAML and protobuf, all by schema.
//!
//! Decoding gives the canonical form: what upstream's typed structs would encode again. So
//! zero values with `omitempty` are absent, fields without it are present, unknown fields are
//! dropped (and reported, as field validation asks), times and quantities are normalized.

mod gojson;
#[cfg(test)]
mod golden;
pub mod json;
pub mod list;
pub mod proto;
mod scalar;
mod syntax;
mod time;
pub mod yaml;

use crate::schema::{MessageId, Registry, Type};

/// `fieldValidation`: what to do with unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Why bytes are not an object of the type asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, YAML or protobuf at all, or a value of the wrong type. Worded as upstream
    /// words what Go's decoder finds.
    #[error("{0}")]
    Malformed(String),
    /// It cannot even be told which version and kind they are of.
    #[error("{0}")]
    Unread(String),
    /// Unknown or duplicate fields under strict validation.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// A decoded object and the warnings for its client.
#[derive(Debug)]
pub struct Decoded {
    pub object: crate::Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`.
    pub warnings: Vec<String>,
}

/// Which schema a codec follows.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    pub registry: &'a Registry,
    pub message: MessageId,
}

/// The canonical form of an object that was built or changed in memory as JSON. Unknown fields
/// are dropped.
pub fn canonicalize(schema: Schema<'_>, object: &mut crate::Value) -> Result<(), DecodeError> {
    let text =
        serde_json::to_vec(object).map_err(|e| DecodeError::Malformed(format!("json: {e}")))?;
    *object = json::decode(schema, &text, FieldValidation::Ignore)?.object;
    Ok(())
}

/// Applies the declared defaults (`+default=`) of the schema, recursively: to fields that are
/// absent or have the zero value, in the parts of the object that are there.
pub fn apply_defaults(schema: Schema<'_>, object: &mut crate::Value) {
    if let crate::Value::Object(map) = object {
        default_message(schema.registry, schema.message, map);
    }
}

fn default_message(registry: &Registry, id: MessageId, map: &mut crate::Map) {
    for field in registry.json_fields(id) {
        if let Some(value) = map.get_mut(&field.json) {
            default_value(registry, &field.ty, value);
        }
        let Some(default) = &field.default else { continue };
        // What a pointer leads to was set, whatever it is.
        let set = map.get(&field.json).is_some_and(|v| {
            !v.is_null() && (field.pointer || *v != scalar::zero(registry, &field.ty, false))
        });
        if !set && (field.pointer || *default != scalar::zero(registry, &field.ty, false)) {
            map.insert(field.json.clone(), default.clone());
        }
    }
}

fn default_value(registry: &Registry, ty: &Type, value: &mut crate::Value) {
    use crate::Value;
    match (ty, value) {
        (Type::Message(id), Value::Object(map)) => default_message(registry, *id, map),
        (Type::List(elem), Value::Array(items)) => {
            items.iter_mut().for_each(|item| default_value(registry, elem, item));
        }
        (Type::Map(elem), Value::Object(map)) => {
            map.values_mut().for_each(|item| default_value(registry, elem, item));
        }
        _ => {}
    }
}

/// Quotes as Go's `strconv.Quote`.
pub(crate) fn quote(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            ' ' => out.push(' '),
            c if !printable(c) && (c as u32) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c if !printable(c) => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Nearly Go's `strconv.IsPrint`: no controls, no spaces but ASCII's, no marks of formatting, no
/// private use. Code points that Unicode has not assigned are taken for printable.
fn printable(c: char) -> bool {
    !(c.is_control()
        || c.is_whitespace()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}' | '\u{200b}'..='\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff0}'..='\u{fffb}')
        || matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e007f}' | '\u{f0000}'..))
}

#[cfg(test)]
mod tests;
