//! Protobuf, and the envelope that upstream puts around it (`k8s\0` and `runtime.Unknown`),
//! in storage and on the wire (`application/vnd.kubernetes.protobuf`).

mod decode;
mod encode;
mod scan;
mod transcode;
pub(crate) mod wire;

use super::{DecodeError, Schema, gojson};
use crate::Value;
use crate::object;
use wire::{Reader, Wire, malformed, put_bytes, put_message};

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
pub fn encode(schema: Schema<'_>, object: &Value) -> Result<Vec<u8>, DecodeError> {
    let Value::Object(map) = object else { return malformed("proto: not an object") };
    let mut out = Vec::with_capacity(512);
    encode::message(schema.registry, schema.message, Some(map), &mut out)?;
    Ok(out)
}

/// Encodes with envelope; `apiVersion` and `kind` are read from the object.
pub fn encode_enveloped(schema: Schema<'_>, object: &Value) -> Result<Vec<u8>, DecodeError> {
    let raw = encode(schema, object)?;
    let (api_version, kind) =
        (object::str_at(object, &["apiVersion"]), object::str_at(object, &["kind"]));
    Ok(seal(api_version, kind, &raw))
}

/// Decodes a bare message to the canonical form, without `apiVersion` and `kind`.
pub fn decode(schema: Schema<'_>, raw: &[u8]) -> Result<Value, DecodeError> {
    decode::object(schema.registry, schema.message, raw, 0)
}

/// Reads the envelope; `None` when the bytes do not begin with [`MAGIC`].
pub fn open(bytes: &[u8]) -> Result<Option<Envelope<'_>>, DecodeError> {
    let Some(unknown) = bytes.strip_prefix(MAGIC) else { return Ok(None) };
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(unknown);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => {
                let mut reader = Reader::new(envelope_bytes(wire)?);
                while let Some((number, wire)) = reader.field()? {
                    match number {
                        1 => envelope.api_version = envelope_text(wire)?,
                        2 => envelope.kind = envelope_text(wire)?,
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = envelope_bytes(wire)?,
            3 => envelope.content_encoding = envelope_text(wire)?,
            4 => envelope.content_type = envelope_text(wire)?,
            _ => {}
        }
    }
    Ok(Some(envelope))
}

fn envelope_bytes(wire: Wire<'_>) -> Result<&[u8], DecodeError> {
    match wire {
        Wire::Bytes(b) => Ok(b),
        other => wire::wrong_type(other, "Unknown"),
    }
}

fn envelope_text(wire: Wire<'_>) -> Result<&str, DecodeError> {
    std::str::from_utf8(envelope_bytes(wire)?)
        .or_else(|_| malformed("proto: Unknown: text is not UTF-8"))
}

/// Writes an envelope around a message.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + api_version.len() + kind.len() + 32);
    out.extend_from_slice(MAGIC);
    put_type_meta(&mut out, api_version, kind);
    put_bytes(&mut out, 2, raw);
    put_trailer(&mut out);
    out
}

/// The part of an envelope before the message's own field.
pub(crate) fn put_type_meta(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    let written: Result<(), std::convert::Infallible> = put_message(out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
        Ok(())
    });
    match written {
        Ok(()) => {}
    }
}

/// The part of an envelope after the message: no content encoding, no content type.
pub(crate) fn put_trailer(out: &mut Vec<u8>) {
    put_bytes(out, 3, &[]);
    put_bytes(out, 4, &[]);
}

/// The type and the enveloped object of a bare `WatchEvent`.
pub(crate) fn watch_event(raw: &[u8]) -> Result<(&str, &[u8]), DecodeError> {
    let (mut event_type, mut object): (&str, &[u8]) = ("", &[]);
    let mut reader = Reader::new(raw);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => event_type = envelope_text(wire)?,
            2 => {
                let extension = envelope_bytes(wire)?;
                if let Some(wire) = scan::only(extension, 1)? {
                    object = envelope_bytes(wire)?;
                }
            }
            _ => {}
        }
    }
    Ok((event_type, object))
}

/// Transcodes a bare message to JSON without building a [`Value`]: appends
/// `{"kind":...,"apiVersion":...,<fields>}` to `out`, in the canonical form, byte for byte as Go
/// writes it. On an error, what was appended is of no use.
pub fn to_json(
    schema: Schema<'_>,
    api_version: &str,
    kind: &str,
    raw: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    out.push(b'{');
    let mut first = true;
    for (name, text) in [("kind", kind), ("apiVersion", api_version)] {
        if !text.is_empty() {
            if !std::mem::replace(&mut first, false) {
                out.push(b',');
            }
            gojson::string(name, out);
            out.push(b':');
            gojson::string(text, out);
        }
    }
    transcode::members(schema.registry, schema.message, raw, 0, &mut first, out)?;
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests;
