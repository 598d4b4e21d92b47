//! From a [`Value`] to the bytes that upstream's generated code writes: fields by number, zero
//! values that are not pointers included, maps by key.

use super::super::{DecodeError, gojson, scalar, time};
use super::wire::{malformed, put_bytes, put_int, put_message, put_tag};
use crate::schema::{Field, MessageId, Registry, SchemaOr, Type};
use crate::{Map, Value};

type Done = Result<(), DecodeError>;

/// Writes a message's fields. An inlined message's fields stand in the same object.
pub(super) fn message(
    registry: &Registry,
    id: MessageId,
    object: Option<&Map>,
    out: &mut Vec<u8>,
) -> Done {
    let fields = &registry.message(id).fields;
    for &i in &*registry.shape(id).numbers {
        let field = &fields[i as usize];
        if let (true, Type::Message(inner)) = (field.inline, &field.ty) {
            put_message(out, field.number, |out| message(registry, *inner, object, out))?;
            continue;
        }
        let value = object.and_then(|map| map.get(&field.json)).filter(|v| !v.is_null());
        whole_field(registry, field, value, out)?;
    }
    Ok(())
}

fn whole_field(
    registry: &Registry,
    field: &Field,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Done {
    match (&field.ty, value) {
        (Type::List(_) | Type::Map(_) | Type::Bytes, None) => Ok(()),
        (_, None) if field.pointer => Ok(()),
        (Type::List(elem), Some(Value::Array(items))) if field.wrapped => {
            put_message(out, field.number, |out| wrapped(registry, field, elem, items, out))
        }
        (Type::List(elem), Some(Value::Array(items))) => items
            .iter()
            .try_for_each(|item| one(registry, field, elem, field.number, Some(item), out)),
        (Type::Map(elem), Some(Value::Object(map))) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            entries.into_iter().try_for_each(|(key, value)| {
                put_message(out, field.number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    match (&**elem, value) {
                        (Type::List(item), Value::Array(items)) => {
                            put_message(out, 2, |out| wrapped(registry, field, item, items, out))
                        }
                        (Type::List(_), Value::Null) => put_message(out, 2, |_| Ok(())),
                        (Type::Bytes, Value::Null) => Ok(()),
                        (elem, value) => one(registry, field, elem, 2, Some(value), out),
                    }
                })
            })
        }
        (Type::List(_) | Type::Map(_), Some(_)) => mistyped(field),
        (ty, value) => one(registry, field, ty, field.number, value, out),
    }
}

fn wrapped(
    registry: &Registry,
    field: &Field,
    elem: &Type,
    items: &[Value],
    out: &mut Vec<u8>,
) -> Done {
    items.iter().try_for_each(|item| one(registry, field, elem, 1, Some(item), out))
}

fn mistyped<T>(field: &Field) -> Result<T, DecodeError> {
    malformed(format!("proto: value of field {} is not of its type", field.json))
}

/// Writes a single value with its tag; nothing or null is the zero value.
fn one(
    registry: &Registry,
    field: &Field,
    ty: &Type,
    number: u32,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Done {
    let value = value.filter(|v| !v.is_null());
    match (ty, value) {
        (Type::Message(id), None | Some(Value::Object(_))) => put_message(out, number, |out| {
            message(registry, *id, value.and_then(Value::as_object), out)
        }),
        (Type::SchemaOr(or, id), v) => {
            put_message(out, number, |out| schema_or(registry, field, *or, *id, v, out))
        }
        (ty, v) => leaf(field, ty, number, v, out),
    }
}

/// Writes a value that holds no messages of the schema, apart from [`one`] so that nesting takes
/// little of the stack.
fn leaf(field: &Field, ty: &Type, number: u32, value: Option<&Value>, out: &mut Vec<u8>) -> Done {
    match (ty, value) {
        (Type::Bool, v) => match v.map_or(Some(false), Value::as_bool) {
            Some(b) => put_int(out, number, i64::from(b)),
            None => return mistyped(field),
        },
        (Type::Int32 | Type::Int64, v) => match v.map_or(Some(0), Value::as_i64) {
            Some(n) => put_int(out, number, n),
            None => return mistyped(field),
        },
        (Type::Double, v) => match v.map_or(Some(0.0), Value::as_f64) {
            Some(x) => {
                put_tag(out, number, 1);
                out.extend_from_slice(&x.to_le_bytes());
            }
            None => return mistyped(field),
        },
        (Type::String, v) => put_bytes(out, number, string(field, v)?.as_bytes()),
        (Type::Bytes, v) => {
            let bytes = scalar::base64_decode(string(field, v)?).map_err(DecodeError::Malformed)?;
            put_bytes(out, number, &bytes);
        }
        (Type::Quantity, v) => {
            let text = v.map_or(Ok("0"), |v| string(field, Some(v)))?;
            let text = scalar::quantity(text).map_err(DecodeError::Malformed)?;
            return put_message(out, number, |out| {
                put_bytes(out, 1, text.as_bytes());
                Ok(())
            });
        }
        (Type::IntOrString, v) => return int_or_string(field, number, v, out),
        (Type::Time | Type::MicroTime, v) => {
            return instant(field, *ty == Type::MicroTime, number, v, out);
        }
        (Type::Duration, v) => {
            let text = v.map_or(Ok("0s"), |v| string(field, Some(v)))?;
            let nanos = time::parse_duration(text).map_err(DecodeError::Malformed)?;
            return put_message(out, number, |out| {
                put_int(out, 1, nanos);
                Ok(())
            });
        }
        (Type::FieldsV1 | Type::RawExtension | Type::Json, v) => {
            return put_message(out, number, |out| match v {
                None => Ok(()),
                Some(v) => {
                    let mut text = Vec::new();
                    gojson::value(v, &mut text)?;
                    put_bytes(out, 1, &text);
                    Ok(())
                }
            });
        }
        (Type::Message(_) | Type::List(_) | Type::Map(_) | Type::SchemaOr(..), _) => {
            return mistyped(field);
        }
    }
    Ok(())
}

fn string<'v>(field: &Field, value: Option<&'v Value>) -> Result<&'v str, DecodeError> {
    match value {
        None => Ok(""),
        Some(Value::String(s)) => Ok(s),
        Some(_) => mistyped(field),
    }
}

fn int_or_string(field: &Field, number: u32, value: Option<&Value>, out: &mut Vec<u8>) -> Done {
    let (is_string, int, text) = match value {
        None => (0, 0, ""),
        Some(Value::String(s)) => (1, 0, s.as_str()),
        Some(v) => match v.as_i64() {
            Some(n) => (0, n, ""),
            None => return mistyped(field),
        },
    };
    put_message(out, number, |out| {
        put_int(out, 1, is_string);
        put_int(out, 2, int);
        put_bytes(out, 3, text.as_bytes());
        Ok(())
    })
}

fn instant(
    field: &Field,
    micros: bool,
    number: u32,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Done {
    let instant = match value {
        None => None,
        Some(v) => {
            let text = string(field, Some(v))?;
            Some(time::parse(text, micros).map_err(DecodeError::Malformed)?)
        }
    };
    put_message(out, number, |out| {
        if let Some(t) = instant.filter(|t| !t.is_zero()) {
            put_int(out, 1, t.seconds);
            put_int(out, 2, if micros { i64::from(t.nanos / 1000 * 1000) } else { 0 });
        }
        Ok(())
    })
}

fn schema_or(
    registry: &Registry,
    field: &Field,
    or: SchemaOr,
    id: MessageId,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Done {
    let schema_number = match or {
        SchemaOr::Bool => {
            put_int(out, 1, i64::from(value.is_some_and(|v| *v != Value::Bool(false))));
            2
        }
        SchemaOr::Array | SchemaOr::Strings => 1,
    };
    match (value, or) {
        (None, _) | (Some(Value::Bool(_)), SchemaOr::Bool) => Ok(()),
        (Some(v @ Value::Object(_)), _) => {
            one(registry, field, &Type::Message(id), schema_number, Some(v), out)
        }
        (Some(Value::Array(items)), SchemaOr::Array) => {
            items.iter().try_for_each(|v| one(registry, field, &Type::Message(id), 2, Some(v), out))
        }
        (Some(Value::Array(items)), SchemaOr::Strings) => {
            items.iter().try_for_each(|v| one(registry, field, &Type::String, 2, Some(v), out))
        }
        _ => mistyped(field),
    }
}
