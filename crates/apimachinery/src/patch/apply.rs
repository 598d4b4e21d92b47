//! Server-side apply and the bookkeeping of `metadata.managedFields` (KEP-555).

use super::PatchError;
use crate::Value;
use crate::codec::Schema;

/// Who writes, for `managedFields`.
#[derive(Clone, Debug)]
pub struct Manager<'a> {
    /// `fieldManager`, at most 128 printable bytes.
    pub name: &'a str,
    /// `status` and so on; empty for the main resource.
    pub subresource: &'a str,
    /// `apiVersion` that the request used.
    pub api_version: &'a str,
    /// RFC 3339 time of this write.
    pub now: &'a str,
}

/// What applying came to.
#[derive(Clone, Debug, PartialEq)]
pub enum ApplyError {
    Patch(PatchError),
    /// (message, field path) of each field that another manager owns; upstream's wording:
    /// `conflict with "manager" using apps/v1`, `.spec.replicas`.
    Conflicts(Vec<(String, String)>),
}

/// Field paths that a resource strips from ownership (`ResetFields`): lists of field names,
/// `["status"]`.
pub type ResetFields<'a> = &'a [&'a [&'a str]];

/// Applies `config` to `live` (`None`: the object does not exist) and returns the merged object
/// with its managedFields brought up to date.
pub fn apply(
    _schema: Schema<'_>,
    _live: Option<&Value>,
    _config: &Value,
    _manager: &Manager<'_>,
    _force: bool,
    _reset: ResetFields<'_>,
) -> Result<Value, ApplyError> {
    todo!()
}

/// Brings `new`'s managedFields up to date after an update by `manager` (create, update, or any
/// other patch): what differs from `live` now belongs to it.
pub fn track_update(
    _schema: Schema<'_>,
    _live: Option<&Value>,
    _new: &mut Value,
    _manager: &Manager<'_>,
    _reset: ResetFields<'_>,
) {
    todo!()
}
