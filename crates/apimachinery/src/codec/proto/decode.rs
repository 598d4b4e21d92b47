//! From bytes to a [`Value`] in the canonical form.

use super::super::{DecodeError, json, scalar, time};
use super::scan::{self, Fields};
use super::wire::Wire;
use crate::schema::{Field, MessageId, Registry, SchemaOr, Type};
use crate::{Map, Value};

/// Decodes a message into its JSON object.
pub(super) fn object(
    registry: &Registry,
    id: MessageId,
    raw: &[u8],
    depth: usize,
) -> Result<Value, DecodeError> {
    let mut map = Map::new();
    members(registry, id, raw, scan::deeper(depth)?, &mut map)?;
    scalar::fill(registry, id, &mut map);
    Ok(Value::Object(map))
}

fn members(
    registry: &Registry,
    id: MessageId,
    raw: &[u8],
    depth: usize,
    map: &mut Map,
) -> Result<(), DecodeError> {
    let found: Fields<'_> = scan::fields(registry, id, raw)?;
    let mut rest = &found[..];
    while let Some(&(index, _)) = rest.first() {
        let group = scan::group(&mut rest, index);
        let field = &registry.message(id).fields[index as usize];
        if let (true, Type::Message(inner)) = (field.inline, &field.ty) {
            members(registry, *inner, &scan::joined(group, field)?, scan::deeper(depth)?, map)?;
            continue;
        }
        let value = whole_field(registry, field, group, depth)?;
        if scalar::shown(field, &value) {
            map.insert(field.json.clone(), value);
        }
    }
    Ok(())
}

fn whole_field(
    registry: &Registry,
    field: &Field,
    group: &[(u16, Wire<'_>)],
    depth: usize,
) -> Result<Value, DecodeError> {
    match &field.ty {
        Type::List(elem) if field.wrapped => {
            let raw = scan::joined(group, field)?;
            list(registry, field, elem, &scan::wrapped(&raw)?, depth)
        }
        Type::List(elem) => {
            let numbers = matches!(**elem, Type::Int32 | Type::Int64 | Type::Bool);
            list(registry, field, elem, &scan::unpacked(group, numbers)?, depth)
        }
        Type::Map(elem) => {
            let mut map = Map::new();
            for (key, wire) in scan::entries(group, field)? {
                let value = match (&**elem, wire) {
                    (Type::List(item), Some(wire)) => {
                        let raw = scan::bytes(wire, field)?;
                        list(registry, field, item, &scan::wrapped(raw)?, depth)?
                    }
                    (elem, Some(wire)) => one(registry, field, elem, wire, depth)?,
                    (Type::Bytes, None) => "".into(),
                    (elem, None) => scalar::zero(registry, elem, false),
                };
                map.insert(key.into_owned(), value);
            }
            Ok(Value::Object(map))
        }
        Type::Message(_) if group.len() > 1 => {
            let raw = scan::joined(group, field)?;
            one(registry, field, &field.ty, Wire::Bytes(&raw), depth)
        }
        ty => match group.last() {
            Some((_, wire)) => one(registry, field, ty, *wire, depth),
            None => Ok(scalar::zero(registry, ty, field.pointer)),
        },
    }
}

fn list(
    registry: &Registry,
    field: &Field,
    elem: &Type,
    wires: &[Wire<'_>],
    depth: usize,
) -> Result<Value, DecodeError> {
    let items = wires.iter().map(|wire| one(registry, field, elem, *wire, depth));
    items.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn one(
    registry: &Registry,
    field: &Field,
    ty: &Type,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Value, DecodeError> {
    match ty {
        Type::Message(id) => object(registry, *id, scan::bytes(wire, field)?, depth),
        Type::SchemaOr(or, id) => {
            schema_or(registry, field, *or, *id, scan::bytes(wire, field)?, depth)
        }
        ty => leaf(field, ty, wire),
    }
}

/// A value that holds no messages of the schema, apart from [`one`] so that nesting takes little
/// of the stack.
fn leaf(field: &Field, ty: &Type, wire: Wire<'_>) -> Result<Value, DecodeError> {
    let bytes = || scan::bytes(wire, field);
    Ok(match ty {
        Type::Bool => (scan::varint(wire, field)? != 0).into(),
        Type::Int32 => (scan::varint(wire, field)? as i32).into(),
        Type::Int64 => (scan::varint(wire, field)? as i64).into(),
        Type::Double => scalar::double(scan::double(wire, field)?),
        Type::String => scan::text(wire, field)?.into_owned().into(),
        Type::Bytes => scalar::base64_encode(bytes()?).into(),
        Type::Quantity => match scan::only(bytes()?, 1)? {
            Some(wire) => {
                let text = scan::text(wire, field)?;
                scalar::quantity(&text).map_err(DecodeError::Malformed)?.into()
            }
            None => "0".into(),
        },
        Type::IntOrString => int_or_string(bytes()?, field)?,
        Type::Time | Type::MicroTime => {
            let micros = *ty == Type::MicroTime;
            match scan::instant(bytes()?, micros, field)? {
                Some(t) => time::format(t, micros).into(),
                None => Value::Null,
            }
        }
        Type::Duration => match scan::only(bytes()?, 1)? {
            Some(wire) => time::format_duration(scan::varint(wire, field)? as i64).into(),
            None => "0s".into(),
        },
        Type::FieldsV1 | Type::RawExtension | Type::Json => match scan::only(bytes()?, 1)? {
            Some(wire) => match scan::bytes(wire, field)? {
                [] => Value::Null,
                raw => json::parse(raw).map_err(DecodeError::Malformed)?,
            },
            None => Value::Null,
        },
        // Not leaves: `whole_field` and `one` take them apart.
        Type::List(_) | Type::Map(_) | Type::Message(_) | Type::SchemaOr(..) => Value::Null,
    })
}

fn int_or_string(raw: &[u8], field: &Field) -> Result<Value, DecodeError> {
    let is_string = match scan::only(raw, 1)? {
        Some(wire) => scan::varint(wire, field)? == 1,
        None => false,
    };
    Ok(match (is_string, scan::only(raw, if is_string { 3 } else { 2 })?) {
        (true, Some(wire)) => scan::text(wire, field)?.into_owned().into(),
        (true, None) => "".into(),
        (false, Some(wire)) => (scan::varint(wire, field)? as i32).into(),
        (false, None) => 0.into(),
    })
}

fn schema_or(
    registry: &Registry,
    field: &Field,
    or: SchemaOr,
    id: MessageId,
    raw: &[u8],
    depth: usize,
) -> Result<Value, DecodeError> {
    let depth = scan::deeper(depth)?;
    let schema = |wire| object(registry, id, scan::bytes(wire, field)?, depth);
    if or == SchemaOr::Bool {
        return match (scan::only(raw, 1)?, scan::only(raw, 2)?) {
            (_, Some(wire)) => schema(wire),
            (Some(wire), None) => Ok((scan::varint(wire, field)? != 0).into()),
            (None, None) => Ok(false.into()),
        };
    }
    let mut items = Vec::new();
    let mut only = None;
    let mut reader = super::wire::Reader::new(raw);
    while let Some((number, wire)) = reader.field()? {
        match (number, or) {
            (1, _) => only = Some(schema(wire)?),
            (2, SchemaOr::Strings) => items.push(scan::text(wire, field)?.into_owned().into()),
            (2, _) => items.push(schema(wire)?),
            _ => {}
        }
    }
    Ok(if items.is_empty() { only.unwrap_or(Value::Null) } else { Value::Array(items) })
}
