//! The four patch types. All work on canonical objects; the caller canonicalizes the result.

pub mod apply;
pub mod compare;
pub mod fieldset;
pub mod json;
pub mod managers;
pub mod merge;
pub mod strategic;
pub mod typed;

use crate::status::ApiError;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is wrong (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object (422).
    #[error("{0}")]
    Unprocessable(String),
    /// The patch does too much (413).
    #[error("{0}")]
    TooLarge(String),
    /// Upstream has no better answer than 500 for this one.
    #[error("{0}")]
    Internal(String),
}

impl From<PatchError> for ApiError {
    fn from(e: PatchError) -> Self {
        match e {
            PatchError::Malformed(text) => Self::BadRequest(text),
            PatchError::Unprocessable(_) => Self::Unprocessable,
            PatchError::TooLarge(text) => Self::TooLarge(text),
            // Upstream hands such an error on as it is, and so without a prefix.
            PatchError::Internal(text) => {
                Self::Other { code: 500, reason: String::new(), message: text }
            }
        }
    }
}
