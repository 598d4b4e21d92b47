//! Functions of strings: the standard ones, cel-go's extension, and Kubernetes' of regular
//! expressions. Positions count characters.

use super::{Result, regex};
use crate::cel::error::EvalError;
use crate::cel::value::{Val, show_duration};

/// What `split` and the like may make, at most.
const MAX_PARTS: usize = 100_000;
/// The most characters that a result may have.
const MAX_LENGTH: usize = 10 << 20;

/// `None`: no such function.
pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let [Val::Str(text), rest @ ..] = args else { return None };
    let text = text.as_str();
    Some(match (name, rest) {
        ("contains", [Val::Str(part)]) => Ok(Val::Bool(text.contains(part.as_str()))),
        ("startsWith", [Val::Str(part)]) => Ok(Val::Bool(text.starts_with(part.as_str()))),
        ("endsWith", [Val::Str(part)]) => Ok(Val::Bool(text.ends_with(part.as_str()))),
        ("matches", [Val::Str(pattern)]) => {
            regex(pattern.as_str()).map(|regex| Val::Bool(regex.is_match(text)))
        }
        ("find", [Val::Str(pattern)]) => regex(pattern.as_str())
            .map(|regex| Val::str(regex.find(text).map_or("", |found| found.as_str()))),
        ("findAll", [Val::Str(pattern)]) => find_all(text, pattern.as_str(), -1),
        ("findAll", [Val::Str(pattern), Val::Int(limit)]) => {
            find_all(text, pattern.as_str(), *limit)
        }
        ("charAt", [Val::Int(at)]) => char_at(text, *at),
        ("indexOf", [Val::Str(part)]) => index_of(text, part.as_str(), 0),
        ("indexOf", [Val::Str(part), Val::Int(from)]) => index_of(text, part.as_str(), *from),
        ("lastIndexOf", [Val::Str(part)]) => last_index_of(text, part.as_str(), None),
        ("lastIndexOf", [Val::Str(part), Val::Int(from)]) => {
            last_index_of(text, part.as_str(), Some(*from))
        }
        ("lowerAscii", []) => Ok(Val::str(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Val::str(text.to_ascii_uppercase())),
        ("trim", []) => Ok(Val::str(text.trim())),
        ("replace", [Val::Str(old), Val::Str(new)]) => {
            replace(text, old.as_str(), new.as_str(), -1)
        }
        ("replace", [Val::Str(old), Val::Str(new), Val::Int(n)]) => {
            replace(text, old.as_str(), new.as_str(), *n)
        }
        ("split", [Val::Str(separator)]) => split(text, separator.as_str(), -1),
        ("split", [Val::Str(separator), Val::Int(n)]) => split(text, separator.as_str(), *n),
        ("substring", [Val::Int(from)]) => substring(text, *from, None),
        ("substring", [Val::Int(from), Val::Int(to)]) => substring(text, *from, Some(*to)),
        ("strings.quote", []) => Ok(Val::str(quote(text))),
        ("format", [list]) if list.is_list() => format(text, list),
        _ => return None,
    })
}

fn bounds<'a>(at: i64) -> Result<Val<'a>> {
    Err(EvalError::new(format!("index out of range: {at}")))
}

fn find_all<'a>(text: &str, pattern: &str, limit: i64) -> Result<Val<'a>> {
    let regex = regex(pattern)?;
    let limit = usize::try_from(limit).unwrap_or(MAX_PARTS).min(MAX_PARTS);
    Ok(Val::strings(regex.find_iter(text).take(limit).map(|found| found.as_str().to_owned())))
}

fn char_at<'a>(text: &str, at: i64) -> Result<Val<'a>> {
    let length = text.chars().count();
    match usize::try_from(at) {
        Ok(at) if at == length => Ok(Val::str("")),
        Ok(at) => match text.chars().nth(at) {
            Some(c) => Ok(Val::str(c.to_string())),
            None => bounds(at as i64),
        },
        Err(_) => bounds(at),
    }
}

/// The byte at which a character begins.
fn byte_of(text: &str, at: usize) -> Option<usize> {
    let ends = std::iter::once(text.len());
    text.char_indices().map(|(i, _)| i).chain(ends).nth(at)
}

fn chars_before(text: &str, byte: usize) -> i64 {
    text.get(..byte).map_or(0, |before| before.chars().count()) as i64
}

fn index_of<'a>(text: &str, part: &str, from: i64) -> Result<Val<'a>> {
    if part.is_empty() {
        return Ok(Val::Int(from));
    }
    let start = usize::try_from(from).ok().and_then(|from| byte_of(text, from));
    let Some(start) = start else { return bounds(from) };
    let found = text.get(start..).and_then(|rest| rest.find(part));
    Ok(Val::Int(found.map_or(-1, |at| chars_before(text, start + at))))
}

fn last_index_of<'a>(text: &str, part: &str, from: Option<i64>) -> Result<Val<'a>> {
    let length = text.chars().count() as i64;
    if part.is_empty() {
        return Ok(Val::Int(from.unwrap_or(length)));
    }
    let from = from.unwrap_or(length);
    if from < 0 || from > length {
        return bounds(from);
    }
    let last = text.char_indices().map(|(i, _)| i).take(from as usize + 1).collect::<Vec<_>>();
    let found = last.iter().rev().find(|at| text.get(**at..).is_some_and(|t| t.starts_with(part)));
    Ok(Val::Int(found.map_or(-1, |at| chars_before(text, *at))))
}

fn replace<'a>(text: &str, old: &str, new: &str, limit: i64) -> Result<Val<'a>> {
    let count = match usize::try_from(limit) {
        Ok(limit) => limit.min(text.matches(old).count()),
        Err(_) => text.matches(old).count(),
    };
    if text.len() + count * new.len() > MAX_LENGTH {
        return Err(EvalError::new("the result is too long"));
    }
    Ok(Val::str(text.replacen(old, new, count)))
}

fn split<'a>(text: &str, separator: &str, limit: i64) -> Result<Val<'a>> {
    let limit = match limit {
        0 => return Ok(Val::list(Vec::new())),
        n => usize::try_from(n).unwrap_or(MAX_PARTS).min(MAX_PARTS),
    };
    if separator.is_empty() {
        // Each character is a part.
        let mut chars = text.chars();
        let mut parts: Vec<String> = Vec::new();
        while parts.len() + 1 < limit
            && let Some(c) = chars.next()
        {
            parts.push(c.to_string());
        }
        let rest: String = chars.collect();
        if !rest.is_empty() {
            parts.push(rest);
        }
        return Ok(Val::strings(parts));
    }
    Ok(Val::strings(text.splitn(limit, separator).map(str::to_owned)))
}

fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Result<Val<'a>> {
    let start = usize::try_from(from).ok().and_then(|at| byte_of(text, at));
    let Some(start) = start else { return bounds(from) };
    let end = match to {
        None => text.len(),
        Some(to) => match usize::try_from(to).ok().and_then(|at| byte_of(text, at)) {
            Some(end) => end,
            None => return bounds(to),
        },
    };
    match text.get(start..end) {
        Some(part) => Ok(Val::str(part)),
        None => {
            let to = to.unwrap_or(0);
            Err(EvalError::new(format!("invalid substring range. start: {from}, end: {to}")))
        }
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as text, for messages and `%s`.
pub(super) fn shown(value: &Val<'_>) -> String {
    match value {
        Val::Str(text) => text.as_str().to_owned(),
        Val::Null => "null".to_owned(),
        Val::Bool(b) => b.to_string(),
        Val::Int(n) => n.to_string(),
        Val::Uint(n) => n.to_string(),
        Val::Double(n) => n.to_string(),
        Val::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Val::Timestamp(time) => time.to_string(),
        Val::Duration(duration) => show_duration(duration),
        Val::Type(name) => name.to_string(),
        list if list.is_list() => {
            let all: Vec<String> = list.elements().map(|v| shown(&v)).collect();
            format!("[{}]", all.join(", "))
        }
        map if map.is_map() => {
            let mut all: Vec<String> =
                map.entries().iter().map(|(k, v)| format!("{}: {}", shown(k), shown(v))).collect();
            all.sort();
            format!("{{{}}}", all.join(", "))
        }
        other => other.type_name(),
    }
}

/// `'%s is %d'.format([a, b])`
fn format<'a>(text: &str, list: &Val<'a>) -> Result<Val<'a>> {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if out.len() > MAX_LENGTH {
            return Err(EvalError::new("the result is too long"));
        }
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision: Option<usize> = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            // More digits than a float has say nothing.
            precision = digits.parse().ok().map(|n: usize| n.min(100));
        }
        let verb = chars.next().ok_or_else(|| EvalError::new("unexpected end of format string"))?;
        let Some(value) = list.element(next) else {
            return Err(EvalError::new(format!("index {next} out of range")));
        };
        next += 1;
        out.push_str(&formatted(verb, precision, &value)?);
    }
    Ok(Val::str(out))
}

fn formatted(verb: char, precision: Option<usize>, value: &Val<'_>) -> Result<String> {
    let wrong = |wanted: &str| {
        EvalError::new(format!(
            "error during formatting: {wanted} clause can not be used on {}",
            value.type_name()
        ))
    };
    let whole = || match value {
        Val::Int(n) => Some(i128::from(*n)),
        Val::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    let signed = |n: i128, digits: String| if n < 0 { format!("-{digits}") } else { digits };
    let float = || match value {
        Val::Double(n) => Some(*n),
        _ => whole().map(|n| n as f64),
    };
    Ok(match verb {
        's' => shown(value),
        'd' => match whole() {
            Some(n) => n.to_string(),
            None => match value {
                Val::Double(n) if !n.is_finite() => n.to_string(),
                _ => return Err(wrong("decimal")),
            },
        },
        'f' => {
            format!("{:.*}", precision.unwrap_or(6), float().ok_or_else(|| wrong("fixed-point"))?)
        }
        'e' => {
            let n = float().ok_or_else(|| wrong("scientific notation"))?;
            let text = format!("{:.*e}", precision.unwrap_or(6), n);
            // At least two digits of exponent, with a sign.
            match text.split_once('e') {
                Some((mantissa, exponent)) => {
                    let (sign, digits) = match exponent.strip_prefix('-') {
                        Some(digits) => ('-', digits),
                        None => ('+', exponent),
                    };
                    format!("{mantissa}e{sign}{digits:0>2}")
                }
                None => text,
            }
        }
        'b' => match (value, whole()) {
            (Val::Bool(b), _) => u8::from(*b).to_string(),
            (_, Some(n)) => signed(n, format!("{:b}", n.unsigned_abs())),
            _ => return Err(wrong("binary")),
        },
        'o' => {
            let n = whole().ok_or_else(|| wrong("octal"))?;
            signed(n, format!("{:o}", n.unsigned_abs()))
        }
        'x' | 'X' => {
            let text = match (value, whole()) {
                (_, Some(n)) => signed(n, format!("{:x}", n.unsigned_abs())),
                (Val::Str(text), _) => crate::discovery::hex(text.as_str().as_bytes()),
                (Val::Bytes(bytes), _) => crate::discovery::hex(bytes),
                _ => return Err(wrong("hexadecimal")),
            };
            if verb == 'X' { text.to_uppercase() } else { text }
        }
        other => {
            return Err(EvalError::new(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{other}\""
            )));
        }
    })
}
