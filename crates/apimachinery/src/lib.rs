//! What the Kubernetes API is made of, without any I/O: schemas, codecs, patches, selectors,
//! quantities, names and status errors. This crate knows nobody.
//!
//! An object in memory is a [`Value`]: JSON, kept in the canonical form that [`codec`] gives it
//! by its [`schema`] (what upstream's typed structs would encode). [`object`] reads and writes
//! its metadata.

pub mod amounts;
pub mod codec;
pub mod field;
pub mod gvk;
pub mod legacy_tokens;
pub mod meta;
pub mod names;
pub mod object;
pub mod patch;
pub mod pods;
pub mod qos;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;

/// A decoded API object, or a part of one.
pub use serde_json::Value;
/// The fields of an object.
pub type Map = serde_json::Map<String, Value>;
