//! Strategic merge patch (`application/strategic-merge-patch+json`).

use super::PatchError;
use crate::Value;
use crate::codec::Schema;

/// Merges the patch into the object by the schema's merge keys and strategies, honouring the
/// `$patch`, `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys` directives.
pub fn apply(_schema: Schema<'_>, _object: &mut Value, _patch: &Value) -> Result<(), PatchError> {
    todo!()
}
