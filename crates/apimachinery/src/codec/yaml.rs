//! YAML, by way of JSON, as upstream does it.

use super::{DecodeError, Decoded, FieldValidation, Schema};

/// Decodes one YAML document to the object's canonical form.
pub fn decode(
    _schema: Schema<'_>,
    _bytes: &[u8],
    _validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    todo!()
}

/// Encodes as YAML.
pub fn encode(_object: &crate::Value) -> Vec<u8> {
    todo!()
}
