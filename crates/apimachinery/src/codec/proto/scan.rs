//! A message's bytes, sorted into the fields of its schema. Decoding and transcoding both start
//! from it.

use std::borrow::Cow;

use super::super::{
    DecodeError,
    syntax::{MAX_DEPTH, lossy},
    time,
};
use super::wire::{Reader, Wire, malformed, wrong_type};
use crate::schema::{Field, MessageId, Registry};

/// The values of a message's fields: index of the field and value, by index, values of one field
/// in the order of the bytes. Unknown fields are left out.
/// On the heap, since messages nest and every one of them has its own.
pub(super) type Fields<'a> = Vec<(u16, Wire<'a>)>;

pub(super) fn fields<'a>(
    registry: &Registry,
    id: MessageId,
    raw: &'a [u8],
) -> Result<Fields<'a>, DecodeError> {
    let shape = registry.shape(id);
    let declared = &registry.message(id).fields;
    let mut found = Fields::with_capacity(16);
    let mut reader = Reader::new(raw);
    let mut sorted = true;
    while let Some((number, wire)) = reader.field()? {
        if let Some(index) = shape.numbered(declared, number) {
            let index = index as u16;
            sorted &= found.last().is_none_or(|(last, _)| *last <= index);
            found.push((index, wire));
        }
    }
    if !sorted {
        found.sort_by_key(|(index, _)| *index);
    }
    Ok(found)
}

/// Takes the values of one field off the front.
pub(super) fn group<'f, 'a>(rest: &mut &'f [(u16, Wire<'a>)], index: u16) -> &'f [(u16, Wire<'a>)] {
    let n = rest.iter().take_while(|(i, _)| *i == index).count();
    let (group, after) = rest.split_at(n);
    *rest = after;
    group
}

/// The bytes of a message, which may come in parts: they mean the parts one after the other.
pub(super) fn joined<'a>(
    group: &[(u16, Wire<'a>)],
    field: &Field,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    match group {
        [] => Ok(Cow::Borrowed(&[])),
        [(_, wire)] => bytes(*wire, field).map(Cow::Borrowed),
        many => {
            let mut all = Vec::new();
            for (_, wire) in many {
                all.extend_from_slice(bytes(*wire, field)?);
            }
            Ok(Cow::Owned(all))
        }
    }
}

pub(super) fn bytes<'a>(wire: Wire<'a>, field: &Field) -> Result<&'a [u8], DecodeError> {
    match wire {
        Wire::Bytes(b) => Ok(b),
        other => wrong_type(other, &field.json),
    }
}

pub(super) fn varint(wire: Wire<'_>, field: &Field) -> Result<u64, DecodeError> {
    match wire {
        Wire::Varint(v) => Ok(v),
        other => wrong_type(other, &field.json),
    }
}

pub(super) fn double(wire: Wire<'_>, field: &Field) -> Result<f64, DecodeError> {
    match wire {
        Wire::Fixed64(v) => Ok(f64::from_bits(v)),
        other => wrong_type(other, &field.json),
    }
}

/// Go keeps strings that are not UTF-8; JSON shows U+FFFD in them.
pub(super) fn text<'a>(wire: Wire<'a>, field: &Field) -> Result<Cow<'a, str>, DecodeError> {
    bytes(wire, field).map(lossy)
}

/// The elements of a list: a packed list of numbers is one value on the wire.
pub(super) fn unpacked<'a>(
    group: &[(u16, Wire<'a>)],
    numbers: bool,
) -> Result<Vec<Wire<'a>>, DecodeError> {
    let mut all = Vec::new();
    for (_, wire) in group {
        match wire {
            Wire::Bytes(packed) if numbers => {
                let mut reader = Reader::new(packed);
                while let Some(n) = reader.packed()? {
                    all.push(Wire::Varint(n));
                }
            }
            wire => all.push(*wire),
        }
    }
    Ok(all)
}

/// The strings of a wrapped list: `{1: repeated}`.
pub(super) fn wrapped<'a>(raw: &'a [u8]) -> Result<Vec<Wire<'a>>, DecodeError> {
    let mut all = Vec::new();
    let mut reader = Reader::new(raw);
    while let Some((number, wire)) = reader.field()? {
        if number == 1 {
            all.push(wire);
        }
    }
    Ok(all)
}

/// A key and its value, if that was written.
pub(super) type Entry<'a> = (Cow<'a, str>, Option<Wire<'a>>);

/// A map's entries by key; of entries with the same key the last.
pub(super) fn entries<'a>(
    group: &[(u16, Wire<'a>)],
    field: &Field,
) -> Result<Vec<Entry<'a>>, DecodeError> {
    let mut all = Vec::with_capacity(group.len());
    for (_, wire) in group {
        let mut reader = Reader::new(bytes(*wire, field)?);
        let (mut key, mut value) = (Cow::Borrowed(""), None);
        while let Some((number, wire)) = reader.field()? {
            match number {
                1 => key = text(wire, field)?,
                2 => value = Some(wire),
                _ => {}
            }
        }
        all.push((key, value));
    }
    if !all.is_sorted_by(|a, b| a.0 < b.0) {
        all.reverse();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by(|later, kept| later.0 == kept.0);
    }
    Ok(all)
}

/// The last value of a field with this number, for the small messages without a schema.
pub(super) fn only<'a>(raw: &'a [u8], wanted: u32) -> Result<Option<Wire<'a>>, DecodeError> {
    let mut found = None;
    let mut reader = Reader::new(raw);
    while let Some((number, wire)) = reader.field()? {
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// The time in a `Timestamp`; none when it is Go's zero time.
pub(super) fn instant(
    raw: &[u8],
    micros: bool,
    field: &Field,
) -> Result<Option<time::Instant>, DecodeError> {
    if raw.is_empty() {
        return Ok(None);
    }
    let number = |n| match only(raw, n)? {
        Some(wire) => varint(wire, field),
        None => Ok(0),
    };
    let nanos = if micros { number(2)? as i32 / 1000 * 1000 } else { 0 };
    let seconds = (number(1)? as i64).saturating_add(i64::from(nanos.div_euclid(1_000_000_000)));
    let nanos = nanos.rem_euclid(1_000_000_000) as u32;
    Ok(Some(time::Instant { seconds, nanos }).filter(|t| !t.is_zero()))
}

/// Guards recursion.
pub(super) fn deeper(depth: usize) -> Result<usize, DecodeError> {
    if depth >= MAX_DEPTH { malformed("exceeded max depth") } else { Ok(depth + 1) }
}
