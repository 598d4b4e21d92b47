//! JSON patch, RFC 6902 (`application/json-patch+json`).

use super::PatchError;
use crate::Value;

/// Upstream's limit on the operations of one patch.
pub const MAX_OPERATIONS: usize = 10_000;

/// Applies the patch in place; on error the object is in no defined state.
pub fn apply(_object: &mut Value, _patch: &[u8]) -> Result<(), PatchError> {
    todo!()
}
