//! Changes of encoded protobuf objects, without decoding them.

use apimachinery::codec::DecodeError;

/// The metadata of any object is its message's first field.
const METADATA: u64 = 1;
/// `ObjectMeta.resourceVersion`.
const RESOURCE_VERSION: u64 = 6;

fn malformed<T>() -> Result<T, DecodeError> {
    Err(DecodeError::Malformed("proto: illegal wire format of an object".to_owned()))
}

fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some(&byte) = bytes.get(*at) else { return malformed() };
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    malformed()
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(number << 3 | 2, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// One field: its number, where it ends, and its bytes if it has a length.
struct Field<'a> {
    number: u64,
    end: usize,
    bytes: Option<&'a [u8]>,
}

fn field(message: &[u8], start: usize) -> Result<Field<'_>, DecodeError> {
    let mut at = start;
    let tag = varint(message, &mut at)?;
    let mut bytes = None;
    match tag & 7 {
        0 => {
            varint(message, &mut at)?;
        }
        1 => at += 8,
        2 => {
            let length = usize::try_from(varint(message, &mut at)?).or_else(|_| malformed())?;
            let Some(end) = at.checked_add(length) else { return malformed() };
            let Some(found) = message.get(at..end) else { return malformed() };
            bytes = Some(found);
            at = end;
        }
        5 => at += 4,
        _ => return malformed(),
    }
    if at > message.len() {
        return malformed();
    }
    Ok(Field { number: tag >> 3, end: at, bytes })
}

/// The encoded metadata of an object; empty when it has none.
///
/// # Errors
/// The bytes are no protobuf.
pub fn metadata(raw: &[u8]) -> Result<&[u8], DecodeError> {
    let mut at = 0;
    while at < raw.len() {
        let field = field(raw, at)?;
        if let (METADATA, Some(bytes)) = (field.number, field.bytes) {
            return Ok(bytes);
        }
        at = field.end;
    }
    Ok(&[])
}

/// A bare message with another resourceVersion. All else stays byte for byte.
///
/// # Errors
/// The bytes are no protobuf.
pub fn revise(raw: &[u8], revision: &str) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(raw.len() + revision.len() + 8);
    let (mut at, mut done) = (0, false);
    while at < raw.len() {
        let field = field(raw, at)?;
        match (field.number, field.bytes) {
            (METADATA, Some(meta)) if !done => {
                put_bytes(METADATA, &revise_metadata(meta, revision)?, &mut out);
                done = true;
            }
            _ => out.extend_from_slice(&raw[at..field.end]),
        }
        at = field.end;
    }
    if !done {
        let mut first = Vec::with_capacity(out.len() + 16);
        put_bytes(METADATA, &revise_metadata(&[], revision)?, &mut first);
        first.extend_from_slice(&out);
        return Ok(first);
    }
    Ok(out)
}

fn revise_metadata(meta: &[u8], revision: &str) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(meta.len() + revision.len() + 2);
    let (mut at, mut done) = (0, false);
    while at < meta.len() {
        let field = field(meta, at)?;
        if field.number >= RESOURCE_VERSION && !done {
            put_bytes(RESOURCE_VERSION, revision.as_bytes(), &mut out);
            done = true;
        }
        if field.number != RESOURCE_VERSION {
            out.extend_from_slice(&meta[at..field.end]);
        }
        at = field.end;
    }
    if !done {
        put_bytes(RESOURCE_VERSION, revision.as_bytes(), &mut out);
    }
    Ok(out)
}

/// A `PartialObjectMetadata` made of an object: its metadata and nothing else.
///
/// # Errors
/// The bytes are no protobuf.
pub fn partial(raw: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let meta = metadata(raw)?;
    let mut out = Vec::with_capacity(meta.len() + 6);
    put_bytes(METADATA, meta, &mut out);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use apimachinery::codec::{Schema, proto};
    use apimachinery::gvk::GroupVersionKind;
    use apimachinery::schema::Registry;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revision_is_put_in_as_encoding_would() {
        let registry = Registry::builtin();
        let message =
            registry.kind(&GroupVersionKind::new("", "v1", "ConfigMap")).expect("a known kind");
        let schema = Schema { registry, message };
        for meta in [
            json!({}),
            json!({"name": "a", "namespace": "b", "uid": "u", "generation": 3}),
            json!({"name": "a", "resourceVersion": "12", "labels": {"a": "b"}}),
        ] {
            let object = json!({"metadata": meta, "data": {"k": "v"}});
            let raw = proto::encode(schema, &object).expect("protobuf");
            let mut wanted = object.clone();
            wanted["metadata"]["resourceVersion"] = "987654".into();
            let wanted = proto::encode(schema, &wanted).expect("protobuf");
            assert_eq!(revise(&raw, "987654"), Ok(wanted.clone()));
            assert_eq!(
                metadata(&wanted).map(<[u8]>::len),
                metadata(&partial(&wanted).expect("partial")).map(<[u8]>::len)
            );
        }
        assert!(revise(&[0x0a, 0x05, 1], "1").is_err());
        assert!(revise(&[0xff; 11], "1").is_err());
    }
}
