//! JSON.

use super::{DecodeError, Decoded, FieldValidation, Schema};

/// Decodes one JSON object to its canonical form.
pub fn decode(
    _schema: Schema<'_>,
    _bytes: &[u8],
    _validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    todo!()
}
