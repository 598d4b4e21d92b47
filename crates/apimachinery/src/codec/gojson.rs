//! JSON text as Go's encoder writes it.

use std::io::Write;

use super::DecodeError;
use super::syntax::{self, Cursor};
use crate::Value;

/// Writes a string. Go escapes what HTML or JavaScript could misread.
pub(crate) fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let escape: &[u8] = match b {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            0x08 => b"\\b",
            0x0c => b"\\f",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f | b'<' | b'>' | b'&' => b"",
            // U+2028 and U+2029 are E2 80 A8 and E2 80 A9.
            0xe2 if bytes.get(i + 1) == Some(&0x80)
                && matches!(bytes.get(i + 2), Some(0xa8 | 0xa9)) =>
            {
                out.extend_from_slice(&bytes[from..i]);
                let _ = write!(out, "\\u202{:x}", bytes[i + 2] & 0xf);
                from = i + 3;
                continue;
            }
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..i]);
        if escape.is_empty() {
            let _ = write!(out, "\\u{b:04x}");
        } else {
            out.extend_from_slice(escape);
        }
        from = i + 1;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

/// Writes a float. JSON has no infinities.
pub(crate) fn double(x: f64, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    if !x.is_finite() {
        return Err(DecodeError::Malformed(format!("json: unsupported value: {x}")));
    }
    let size = x.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{x:e}");
        // Go always writes the exponent's sign.
        let text = if text.contains("e-") { text } else { text.replace('e', "e+") };
        out.extend_from_slice(text.as_bytes());
    } else {
        let _ = write!(out, "{x}");
    }
    Ok(())
}

/// Writes any value, members by name as Go writes maps: JSON that Go wrote comes out as it was.
pub(crate) fn value(value: &Value, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(b) => drop(write!(out, "{b}")),
        Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
            Some(x) => double(x, out)?,
            None => drop(write!(out, "{n}")),
        },
        Value::String(s) => string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                self::value(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let mut members: Vec<(&String, &Value)> = map.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (i, (name, member)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                string(name, out);
                out.push(b':');
                self::value(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// Writes JSON text without white space, escaped as [`string`] escapes.
pub(crate) fn compact(raw: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    // Upstream would pass on what is not UTF-8; our readers may rely on text.
    let text = syntax::lossy(raw);
    let raw = text.as_bytes();
    let mut cursor = Cursor::new(raw);
    let valid = cursor.skip(0).is_ok() && cursor.peek() == 0 && cursor.pos == raw.len();
    if !valid {
        let why = syntax::check(raw).err().unwrap_or_else(|| "invalid JSON".into());
        return Err(DecodeError::Malformed(format!("json: error calling MarshalJSON: {why}")));
    }
    let (mut quoted, mut escaped) = (false, false);
    for (i, &b) in raw.iter().enumerate() {
        match b {
            b' ' | b'\n' | b'\t' | b'\r' if !quoted => continue,
            b'<' | b'>' | b'&' => {
                let _ = write!(out, "\\u{b:04x}");
            }
            0xe2 if matches!(raw.get(i + 1..i + 3), Some([0x80, 0xa8 | 0xa9])) => {
                let _ = write!(out, "\\u202{:x}", raw[i + 2] & 0xf);
            }
            0x80 if i >= 1 && raw[i - 1] == 0xe2 && matches!(raw.get(i + 1), Some(0xa8 | 0xa9)) => {
            }
            0xa8 | 0xa9 if i >= 2 && raw[i - 2..i] == [0xe2, 0x80] => {}
            _ => out.push(b),
        }
        quoted ^= b == b'"' && !escaped;
        escaped = quoted && b == b'\\' && !escaped;
    }
    Ok(())
}
