//! Encodings of objects: JSON, YAML and protobuf, all by schema.
//!
//! Decoding gives the canonical form: what upstream's typed structs would encode again. So
//! zero values with `omitempty` are absent, fields without it are present, unknown fields are
//! dropped (and reported, as field validation asks), times and quantities are normalized.

pub mod json;
pub mod proto;
pub mod yaml;

use crate::schema::{MessageId, Registry};

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

/// The canonical form of an object that was built or changed in memory as JSON.
pub fn canonicalize(_schema: Schema<'_>, _object: &mut crate::Value) -> Result<(), DecodeError> {
    todo!()
}

/// Applies the declared defaults (`+default=`) of the schema, recursively.
pub fn apply_defaults(_schema: Schema<'_>, _object: &mut crate::Value) {
    todo!()
}
