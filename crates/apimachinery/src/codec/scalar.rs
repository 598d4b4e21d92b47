//! What the codecs share about single values: Go's zero values, and the canonical text of the
//! types that have an encoding of their own.

use std::borrow::Cow;

use crate::quantity::Quantity;
use crate::schema::{Field, MessageId, Registry, SchemaOr, Type};
use crate::{Map, Value};

/// What Go encodes for a value that was never set.
pub(crate) fn zero(registry: &Registry, ty: &Type, pointer: bool) -> Value {
    if pointer {
        return Value::Null;
    }
    match ty {
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => 0.into(),
        Type::String => "".into(),
        Type::Quantity => "0".into(),
        Type::Duration => "0s".into(),
        Type::SchemaOr(SchemaOr::Bool, _) => false.into(),
        Type::Message(id) => {
            let mut map = Map::new();
            fill(registry, *id, &mut map);
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// Adds the fields that Go always writes and that the object lacks.
pub(crate) fn fill(registry: &Registry, id: MessageId, map: &mut Map) {
    let shape = registry.shape(id);
    for &i in &*shape.always {
        let field = shape.slots[i as usize].field(registry);
        if !map.contains_key(&field.json) {
            map.insert(field.json.clone(), zero(registry, &field.ty, field.pointer));
        }
    }
    for &i in &*shape.shows {
        let field = shape.slots[i as usize].field(registry);
        let Some((version, kind)) = &field.shows else { continue };
        let items = map.get_mut(&field.json).and_then(Value::as_array_mut);
        for item in items.into_iter().flatten().filter_map(Value::as_object_mut) {
            item.insert("kind".to_owned(), (**kind).into());
            item.insert("apiVersion".to_owned(), (**version).into());
        }
    }
}

/// Whether Go writes a field that has this value.
pub(crate) fn shown(field: &Field, value: &Value) -> bool {
    if !field.omitempty {
        return true;
    }
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty() || !matches!(field.ty, Type::List(_)),
        Value::Object(map) => !map.is_empty() || !matches!(field.ty, Type::Map(_)),
        Value::String(s) => !s.is_empty() || field.pointer && field.ty != Type::Bytes,
        Value::Bool(b) => *b || field.pointer,
        Value::Number(n) => field.pointer || n.as_f64() != Some(0.0),
    }
}

/// A float as Go writes it: without a fraction if it has none.
pub(crate) fn double(x: f64) -> Value {
    // Integers up to 2^53 are exact; beyond, both ways of writing are the same number.
    if x.fract() == 0.0 && x.abs() < 9_007_199_254_740_992.0 && !(x == 0.0 && x.is_sign_negative())
    {
        return (x as i64).into();
    }
    x.into()
}

/// A quantity's canonical text.
pub(crate) fn quantity(text: &str) -> Result<Cow<'_, str>, String> {
    if canonical_quantity(text) {
        return Ok(Cow::Borrowed(text));
    }
    match text.trim().parse::<Quantity>() {
        Ok(q) => Ok(Cow::Owned(q.to_string())),
        Err(e) => Err(e.to_string()),
    }
}

/// Whether text is plainly canonical, as nearly all quantities are: a short whole number that
/// does not reach the next suffix.
fn canonical_quantity(text: &str) -> bool {
    let n = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, suffix) = text.split_at(n);
    if text == "0" {
        return true;
    }
    if n == 0 || n > 6 || digits.starts_with('0') {
        return false;
    }
    let Ok(value) = digits.parse::<u32>() else { return false };
    match suffix {
        "" | "m" | "k" | "M" | "G" => value % 1000 != 0,
        "Ki" | "Mi" | "Gi" => value % 1024 != 0,
        _ => false,
    }
}

/// Decodes base64 as Go does; the error is Go's.
pub(crate) fn base64_decode(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine;
    use base64::engine::general_purpose::GeneralPurpose;
    use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
    );
    let packed: Cow<'_, str> = if text.contains(['\r', '\n']) {
        Cow::Owned(text.replace(['\r', '\n'], ""))
    } else {
        Cow::Borrowed(text)
    };
    LENIENT.decode(packed.as_bytes()).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _)
            | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            _ => packed.len(),
        };
        format!("illegal base64 data at input byte {at}")
    })
}

pub(crate) fn base64_encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
