//! JSON merge patch, RFC 7386 (`application/merge-patch+json`).

use crate::Value;

/// Merges the patch into the object.
pub fn apply(_object: &mut Value, _patch: &Value) {
    todo!()
}
