//! From bytes to JSON text, in the order and with the escapes of Go's encoder.

use std::io::Write;

use super::super::{DecodeError, gojson, scalar, time};
use super::scan;
use super::wire::{Reader, Wire};
use crate::schema::{Field, MessageId, Registry, SchemaOr, Type};

type Done = Result<(), DecodeError>;

/// Writes a message's fields; `first` says that no field stands before them in the object.
pub(super) fn members(
    registry: &Registry,
    id: MessageId,
    raw: &[u8],
    depth: usize,
    first: &mut bool,
    out: &mut Vec<u8>,
) -> Done {
    let found = scan::fields(registry, id, raw)?;
    let mut rest = &found[..];
    for (index, field) in registry.message(id).fields.iter().enumerate() {
        let group = scan::group(&mut rest, index as u16);
        if let (true, Type::Message(inner)) = (field.inline, &field.ty) {
            let raw = scan::joined(group, field)?;
            members(registry, *inner, &raw, scan::deeper(depth)?, first, out)?;
            continue;
        }
        if !shown(field, group)? {
            continue;
        }
        if !std::mem::replace(first, false) {
            out.push(b',');
        }
        gojson::string(&field.json, out);
        out.push(b':');
        whole_field(registry, field, group, depth, out)?;
    }
    Ok(())
}

/// Whether Go writes the field, as [`scalar::shown`] says it of values.
fn shown(field: &Field, group: &[(u16, Wire<'_>)]) -> Result<bool, DecodeError> {
    let Some((_, wire)) = group.last() else { return Ok(!field.omitempty) };
    if !field.omitempty {
        return Ok(true);
    }
    Ok(match &field.ty {
        Type::List(_) if field.wrapped => !scan::wrapped(&scan::joined(group, field)?)?.is_empty(),
        Type::Bytes => !scan::bytes(*wire, field)?.is_empty(),
        // A pointer to what shows as null is left out: upstream shows the null, which it never
        // reads back as a pointer.
        Type::Time | Type::MicroTime => {
            let micros = field.ty == Type::MicroTime;
            scan::instant(scan::bytes(*wire, field)?, micros, field)?.is_some()
        }
        Type::FieldsV1 | Type::RawExtension | Type::Json => {
            match scan::only(scan::bytes(*wire, field)?, 1)? {
                Some(wire) => !matches!(scan::bytes(wire, field)?, b"" | b"null"),
                None => false,
            }
        }
        Type::SchemaOr(SchemaOr::Array | SchemaOr::Strings, _) => {
            let raw = scan::bytes(*wire, field)?;
            scan::only(raw, 1)?.is_some() || scan::only(raw, 2)?.is_some()
        }
        _ if field.pointer => true,
        Type::Bool | Type::Int32 | Type::Int64 => scan::varint(*wire, field)? != 0,
        Type::Double => scan::double(*wire, field)? != 0.0,
        Type::String => !scan::bytes(*wire, field)?.is_empty(),
        _ => true,
    })
}

fn object(registry: &Registry, id: MessageId, raw: &[u8], depth: usize, out: &mut Vec<u8>) -> Done {
    out.push(b'{');
    members(registry, id, raw, scan::deeper(depth)?, &mut true, out)?;
    out.push(b'}');
    Ok(())
}

fn whole_field(
    registry: &Registry,
    field: &Field,
    group: &[(u16, Wire<'_>)],
    depth: usize,
    out: &mut Vec<u8>,
) -> Done {
    match &field.ty {
        Type::List(_) | Type::Map(_) if group.is_empty() => out.extend_from_slice(b"null"),
        Type::List(elem) if field.wrapped => {
            let raw = scan::joined(group, field)?;
            return list(registry, field, elem, &scan::wrapped(&raw)?, depth, out);
        }
        Type::List(elem) => {
            let numbers = matches!(**elem, Type::Int32 | Type::Int64 | Type::Bool);
            return list(registry, field, elem, &scan::unpacked(group, numbers)?, depth, out);
        }
        Type::Map(elem) => {
            out.push(b'{');
            for (i, (key, wire)) in scan::entries(group, field)?.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                gojson::string(&key, out);
                out.push(b':');
                match (&**elem, wire) {
                    (Type::List(item), Some(wire)) => {
                        let raw = scan::bytes(wire, field)?;
                        list(registry, field, item, &scan::wrapped(raw)?, depth, out)?;
                    }
                    (elem, Some(wire)) => one(registry, field, elem, wire, depth, out)?,
                    (Type::Bytes, None) => out.extend_from_slice(b"\"\""),
                    (elem, None) => zero(registry, elem, false, depth, out)?,
                }
            }
            out.push(b'}');
        }
        Type::Message(id) if group.len() > 1 => {
            return object(registry, *id, &scan::joined(group, field)?, depth, out);
        }
        ty => match group.last() {
            Some((_, wire)) => return one(registry, field, ty, *wire, depth, out),
            None => return zero(registry, ty, field.pointer, depth, out),
        },
    }
    Ok(())
}

fn zero(registry: &Registry, ty: &Type, pointer: bool, depth: usize, out: &mut Vec<u8>) -> Done {
    match ty {
        Type::Message(id) if !pointer => object(registry, *id, &[], depth, out),
        ty => {
            let _ = write!(out, "{}", scalar::zero(registry, ty, pointer));
            Ok(())
        }
    }
}

fn list(
    registry: &Registry,
    field: &Field,
    elem: &Type,
    wires: &[Wire<'_>],
    depth: usize,
    out: &mut Vec<u8>,
) -> Done {
    out.push(b'[');
    for (i, wire) in wires.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match (&field.shows, elem) {
            (Some((version, kind)), Type::Message(id)) => {
                out.extend_from_slice(b"{\"kind\":");
                gojson::string(kind, out);
                out.extend_from_slice(b",\"apiVersion\":");
                gojson::string(version, out);
                let raw = scan::bytes(*wire, field)?;
                members(registry, *id, raw, scan::deeper(depth)?, &mut false, out)?;
                out.push(b'}');
            }
            _ => one(registry, field, elem, *wire, depth, out)?,
        }
    }
    out.push(b']');
    Ok(())
}

fn one(
    registry: &Registry,
    field: &Field,
    ty: &Type,
    wire: Wire<'_>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Done {
    match ty {
        Type::Message(id) => object(registry, *id, scan::bytes(wire, field)?, depth, out),
        Type::SchemaOr(or, id) => {
            schema_or(registry, field, *or, *id, scan::bytes(wire, field)?, depth, out)
        }
        ty => leaf(field, ty, wire, out),
    }
}

/// A value that holds no messages of the schema, apart from [`one`] so that nesting takes little
/// of the stack.
fn leaf(field: &Field, ty: &Type, wire: Wire<'_>, out: &mut Vec<u8>) -> Done {
    let bytes = || scan::bytes(wire, field);
    match ty {
        Type::Bool => {
            let text: &[u8] = if scan::varint(wire, field)? != 0 { b"true" } else { b"false" };
            out.extend_from_slice(text);
        }
        Type::Int32 => drop(write!(out, "{}", scan::varint(wire, field)? as i32)),
        Type::Int64 => drop(write!(out, "{}", scan::varint(wire, field)? as i64)),
        Type::Double => gojson::double(scan::double(wire, field)?, out)?,
        Type::String => gojson::string(&scan::text(wire, field)?, out),
        Type::Bytes => {
            out.push(b'"');
            out.extend_from_slice(scalar::base64_encode(bytes()?).as_bytes());
            out.push(b'"');
        }
        Type::Quantity => match scan::only(bytes()?, 1)? {
            Some(wire) => {
                let text = scan::text(wire, field)?;
                let text = scalar::quantity(&text).map_err(DecodeError::Malformed)?;
                gojson::string(&text, out);
            }
            None => out.extend_from_slice(b"\"0\""),
        },
        Type::IntOrString => int_or_string(bytes()?, field, out)?,
        Type::Time | Type::MicroTime => {
            let micros = *ty == Type::MicroTime;
            match scan::instant(bytes()?, micros, field)? {
                Some(t) => gojson::string(&time::format(t, micros), out),
                None => out.extend_from_slice(b"null"),
            }
        }
        Type::Duration => {
            let nanos = match scan::only(bytes()?, 1)? {
                Some(wire) => scan::varint(wire, field)? as i64,
                None => 0,
            };
            gojson::string(&time::format_duration(nanos), out);
        }
        Type::FieldsV1 | Type::RawExtension | Type::Json => match scan::only(bytes()?, 1)? {
            Some(wire) => match scan::bytes(wire, field)? {
                [] => out.extend_from_slice(b"null"),
                raw => gojson::compact(raw, out)?,
            },
            None => out.extend_from_slice(b"null"),
        },
        // Not leaves: `whole_field` and `one` take them apart.
        Type::List(_) | Type::Map(_) | Type::Message(_) | Type::SchemaOr(..) => {
            out.extend_from_slice(b"null")
        }
    }
    Ok(())
}

fn int_or_string(raw: &[u8], field: &Field, out: &mut Vec<u8>) -> Done {
    let is_string = match scan::only(raw, 1)? {
        Some(wire) => scan::varint(wire, field)? == 1,
        None => false,
    };
    match (is_string, scan::only(raw, if is_string { 3 } else { 2 })?) {
        (true, Some(wire)) => gojson::string(&scan::text(wire, field)?, out),
        (true, None) => out.extend_from_slice(b"\"\""),
        (false, Some(wire)) => drop(write!(out, "{}", scan::varint(wire, field)? as i32)),
        (false, None) => out.push(b'0'),
    }
    Ok(())
}

fn schema_or(
    registry: &Registry,
    field: &Field,
    or: SchemaOr,
    id: MessageId,
    raw: &[u8],
    depth: usize,
    out: &mut Vec<u8>,
) -> Done {
    let depth = scan::deeper(depth)?;
    if or == SchemaOr::Bool {
        return match (scan::only(raw, 1)?, scan::only(raw, 2)?) {
            (_, Some(wire)) => object(registry, id, scan::bytes(wire, field)?, depth, out),
            (Some(wire), None) => one(registry, field, &Type::Bool, wire, depth, out),
            (None, None) => zero(registry, &Type::Bool, false, depth, out),
        };
    }
    let (mut schema, mut items) = (None, Vec::new());
    let mut reader = Reader::new(raw);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => schema = Some(wire),
            2 => items.push(wire),
            _ => {}
        }
    }
    match (schema, items.as_slice()) {
        (None, []) => {
            out.extend_from_slice(b"null");
            Ok(())
        }
        (Some(wire), []) => object(registry, id, scan::bytes(wire, field)?, depth, out),
        (_, items) if or == SchemaOr::Strings => {
            list(registry, field, &Type::String, items, depth, out)
        }
        (_, items) => list(registry, field, &registry.shape(id).ty, items, depth, out),
    }
}
