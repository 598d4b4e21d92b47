//! Protobuf, and the envelope that upstream puts around it (`k8s\0` and `runtime.Unknown`),
//! in storage and on the wire (`application/vnd.kubernetes.protobuf`).

use super::{DecodeError, Schema};
use crate::Value;

/// Prefix of an enveloped message.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// `runtime.Unknown`: what the envelope says of the message in it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_encoding: &'a str,
    pub content_type: &'a str,
}

/// Encodes an object's fields; `apiVersion` and `kind` belong to the envelope.
pub fn encode(_schema: Schema<'_>, _object: &Value) -> Result<Vec<u8>, DecodeError> {
    todo!()
}

/// Encodes with envelope; `apiVersion` and `kind` are read from the object.
pub fn encode_enveloped(_schema: Schema<'_>, _object: &Value) -> Result<Vec<u8>, DecodeError> {
    todo!()
}

/// Decodes a bare message to the canonical form, without `apiVersion` and `kind`.
pub fn decode(_schema: Schema<'_>, _raw: &[u8]) -> Result<Value, DecodeError> {
    todo!()
}

/// Reads the envelope; `None` when the bytes do not begin with [`MAGIC`].
pub fn open(_bytes: &[u8]) -> Result<Option<Envelope<'_>>, DecodeError> {
    todo!()
}

/// Writes an envelope around a message.
pub fn seal(_api_version: &str, _kind: &str, _raw: &[u8]) -> Vec<u8> {
    todo!()
}

/// Transcodes a bare message to JSON without building a [`Value`]: appends
/// `{"kind":...,"apiVersion":...,<fields>}` to `out`, in the canonical form.
pub fn to_json(
    _schema: Schema<'_>,
    _api_version: &str,
    _kind: &str,
    _raw: &[u8],
    _out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    todo!()
}
