//! Writing YAML: keys sorted, two spaces, lists at the level of their key, and quotes where a
//! plain text would be read as something else.

use std::cmp::Ordering;
use std::fmt::Write;

use crate::Value;

/// Writes a whole document.
pub(super) fn document(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => object(map, 0, false, out),
        Value::Array(items) if !items.is_empty() => array(items, 0, false, out),
        other => {
            scalar(other, 0, out);
            out.push('\n');
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// Writes a mapping; with `begun`, its first line stands behind a list's dash already.
fn object(map: &crate::Map, indent: usize, mut begun: bool, out: &mut String) {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_by(|a, b| natural(a, b));
    for key in keys {
        if !std::mem::take(&mut begun) {
            pad(indent, out);
        }
        text(key, indent, true, out);
        out.push(':');
        match &map[key.as_str()] {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                object(inner, indent + 2, false, out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                array(items, indent, false, out);
            }
            other => {
                out.push(' ');
                scalar(other, indent + 2, out);
                out.push('\n');
            }
        }
    }
}

fn array(items: &[Value], indent: usize, mut begun: bool, out: &mut String) {
    for item in items {
        if !std::mem::take(&mut begun) {
            pad(indent, out);
        }
        out.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => object(inner, indent + 2, true, out),
            Value::Array(inner) if !inner.is_empty() => array(inner, indent + 2, true, out),
            other => {
                scalar(other, indent + 2, out);
                out.push('\n');
            }
        }
    }
}

fn scalar(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => drop(write!(out, "{b}")),
        Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
            // Go writes an exponent from 1e21 on, with its sign.
            Some(x) if x != 0.0 && !(1e-4..1e21).contains(&x.abs()) => {
                let exponent = format!("{x:e}");
                let (mantissa, power) = exponent.split_once('e').unwrap_or((&exponent, "0"));
                let sign = if power.starts_with('-') { '-' } else { '+' };
                let _ = write!(out, "{mantissa}e{sign}{:0>2}", power.trim_start_matches('-'));
            }
            Some(x) => drop(write!(out, "{x}")),
            None => drop(write!(out, "{n}")),
        },
        Value::String(s) => text(s, indent, false, out),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

fn text(s: &str, indent: usize, key: bool, out: &mut String) {
    let lines = s.contains('\n');
    let quoted = s.is_empty() || resolves(s) || s.chars().any(special);
    if quoted || lines && (key || !literal_fits(s)) {
        double_quoted(s, out);
    } else if lines {
        literal(s, indent, out);
    } else if plain_fits(s) {
        out.push_str(s);
    } else {
        let _ = write!(out, "'{}'", s.replace('\'', "''"));
    }
}

/// A character that only double quotes can carry.
fn special(c: char) -> bool {
    let printable = matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        || c >= '\u{10000}';
    !printable || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}')
}

/// Whether a plain text would be read as something other than a string, by YAML 1.1's rules.
fn resolves(s: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "yes", "true", "on", "n", "no", "false", "off", "null"];
    const FLOATS: [&str; 5] = ["~", "<<", ".nan", ".NaN", ".NAN"];
    let word = |w: &&str| {
        s == *w
            || s == w.to_ascii_uppercase()
            || s.strip_prefix(w[..1].to_ascii_uppercase().as_str()) == Some(&w[1..])
    };
    let unsigned = s.strip_prefix(['+', '-']).unwrap_or(s);
    if WORDS.iter().any(word) || FLOATS.contains(&s) || matches!(unsigned, ".inf" | ".Inf" | ".INF")
    {
        return true;
    }
    let digits = unsigned.replace('_', "");
    let Some(first) = digits.bytes().next() else { return false };
    if !first.is_ascii_digit() && first != b'.' {
        return false;
    }
    let based = ["0x", "0X", "0o", "0O", "0b", "0B"]
        .iter()
        .any(|p| digits.strip_prefix(p).is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit())));
    // Numbers of base 60, times and dates, too.
    let sexagesimal = digits.contains(':')
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.');
    let date = s.len() >= 8
        && s.as_bytes().get(4) == Some(&b'-')
        && s.bytes().take(4).all(|b| b.is_ascii_digit())
        && s.bytes().skip(5).take(1).all(|b| b.is_ascii_digit());
    based || sexagesimal || date || digits.parse::<f64>().is_ok()
}

/// Whether a text without line feeds can stand without quotes.
fn plain_fits(s: &str) -> bool {
    let first = s.as_bytes()[0];
    let second = s.as_bytes().get(1);
    let indicator = match first {
        b'-' | b'?' | b':' => second.is_none_or(|b| *b == b' '),
        b',' | b'[' | b']' | b'{' | b'}' | b'#' | b'&' | b'*' | b'!' | b'|' | b'>' | b'\''
        | b'"' | b'%' | b'@' | b'`' => true,
        _ => false,
    };
    !(indicator
        || s.starts_with("---")
        || s.starts_with("...")
        || s.starts_with(' ')
        || s.ends_with(' ')
        || s.ends_with(':')
        || s.contains(": ")
        || s.contains(" #"))
}

/// Whether a text of several lines can stand as a literal block: each line as it is.
fn literal_fits(s: &str) -> bool {
    !s.lines().any(|line| line.ends_with(' ')) && !s.starts_with('\n') && !s.contains('\r')
}

fn literal(s: &str, indent: usize, out: &mut String) {
    out.push('|');
    if s.starts_with(' ') {
        out.push('2');
    }
    let body = s.strip_suffix('\n');
    match body {
        None => out.push('-'),
        Some(body) if body.ends_with('\n') || body.is_empty() => out.push('+'),
        Some(_) => {}
    }
    // At the top level a block still stands two spaces in.
    let indent = indent.max(2);
    for line in body.unwrap_or(s).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent, out);
            out.push_str(line);
        }
    }
}

fn double_quoted(s: &str, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0' => out.push_str("\\0"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            '\x1b' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            c if !special(c) => out.push(c),
            c if (c as u32) < 0x100 => drop(write!(out, "\\x{:02X}", c as u32)),
            c if (c as u32) < 0x10000 => drop(write!(out, "\\u{:04X}", c as u32)),
            c => drop(write!(out, "\\U{:08X}", c as u32)),
        }
    }
    out.push('"');
}

/// The order of upstream's keys: letters after what is no letter, numbers in them by value.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(i) = a.iter().zip(&b).position(|(x, y)| x != y) else {
        return a.len().cmp(&b.len());
    };
    let (x, y) = (a[i], b[i]);
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => return x.cmp(&y),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    // A zero within a number is a digit like others; leading ones are not.
    let before = a[..i].iter().rev().take_while(|c| c.is_numeric());
    let within = (x == '0' || y == '0') && before.into_iter().any(|c| *c != '0');
    let number = |chars: &[char]| {
        let digits = chars[i..].iter().map_while(|c| c.to_digit(10));
        digits.fold((u64::from(within), 0), |(n, len), d| {
            (n.wrapping_mul(10).wrapping_add(u64::from(d)), len + 1)
        })
    };
    number(&a).cmp(&number(&b)).then(x.cmp(&y))
}
