//! The functions, by name. The kinds of the arguments choose among forms of the same name.

pub mod authz;
mod convert;
pub(super) mod formats;
mod lists;
mod net;
mod operators;
pub(super) mod semver;
mod strings;
mod times;
pub(super) mod urls;

use std::sync::Arc;

use apimachinery::quantity::Quantity;
use regex::Regex;

use super::error::EvalError;
use super::eval::Activation;
use super::value::{Opaque, Val};

pub(super) type Result<T> = std::result::Result<T, EvalError>;

/// Calls a function. `member`: on its first argument.
pub(super) fn call<'a>(
    name: &str,
    member: bool,
    args: &[Val<'a>],
    activation: &Activation<'a>,
) -> Result<Val<'a>> {
    if name.starts_with('_') || matches!(name, "!_" | "-_" | "@in") {
        return operators::call(name, args);
    }
    if let [Val::Opaque(opaque), rest @ ..] = args
        && let Some(value) = of_opaque(name, opaque, rest, activation)
    {
        return value;
    }
    if let Some(value) = convert::call(name, args) {
        return value;
    }
    let found = match args {
        [first, ..] if first.is_list() => lists::call(name, args),
        [Val::Str(_), ..] => match member {
            true => strings::call(name, args),
            false => of_text(name, args).or_else(|| strings::call(name, args)),
        },
        [Val::Timestamp(_) | Val::Duration(_), ..] => times::call(name, args),
        [Val::Optional(inner)] => match (name, inner) {
            ("hasValue", inner) => Some(Ok(Val::Bool(inner.is_some()))),
            ("value", Some(inner)) => Some(Ok((**inner).clone())),
            ("value", None) => Some(Err(EvalError::new("optional.none() dereference"))),
            _ => None,
        },
        _ => None,
    };
    if let Some(value) = found {
        return value;
    }
    match (name, args) {
        ("size", [value]) => {
            let length = value.len().ok_or_else(EvalError::no_overload)?;
            Ok(Val::Int(length as i64))
        }
        ("type", [value]) => Ok(Val::Type(value.type_name().into())),
        ("dyn", [value]) => Ok(value.clone()),
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.of", [value]) => Ok(Val::some(value.clone())),
        ("optional.ofNonZeroValue", [value]) => Ok(match operators::is_zero(value) {
            true => Val::Optional(None),
            false => Val::some(value.clone()),
        }),
        ("lists.range", [Val::Int(n)]) => lists::range(*n),
        (name, []) => match name.strip_prefix("format.").and_then(formats::Format::named) {
            Some(format) => Ok(Val::Opaque(Opaque::Format(format))),
            None => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }
}

/// Functions of a text that give a library's value.
fn of_text<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let [Val::Str(text), rest @ ..] = args else { return None };
    let text = text.as_str();
    Some(match (name, rest) {
        ("quantity", []) => match text.parse::<Quantity>() {
            Ok(quantity) => Ok(Val::Opaque(Opaque::Quantity(quantity))),
            Err(error) => Err(EvalError::new(error.to_string())),
        },
        ("isQuantity", []) => Ok(Val::Bool(text.parse::<Quantity>().is_ok())),
        ("url", []) => urls::parse(text)
            .map(|url| Val::Opaque(Opaque::Url(Arc::new(url))))
            .map_err(EvalError::new),
        ("isURL", []) => Ok(Val::Bool(urls::parse(text).is_ok())),
        ("semver", rest) | ("isSemver", rest) => {
            let lenient = match rest {
                [] => false,
                [Val::Bool(lenient)] => *lenient,
                _ => return Some(Err(EvalError::no_overload())),
            };
            let parsed = semver::Semver::parse(text, lenient);
            match (name, parsed) {
                ("isSemver", parsed) => Ok(Val::Bool(parsed.is_ok())),
                (_, Ok(version)) => Ok(Val::Opaque(Opaque::Semver(Arc::new(version)))),
                (_, Err(text)) => Err(EvalError::new(text)),
            }
        }
        ("format.named", []) => Ok(match formats::Format::named(text) {
            Some(format) => Val::some(Val::Opaque(Opaque::Format(format))),
            None => Val::Optional(None),
        }),
        (name, []) => return net::of_text(name, text),
        _ => return None,
    })
}

fn of_opaque<'a>(
    name: &str,
    opaque: &Opaque,
    rest: &[Val<'a>],
    activation: &Activation<'a>,
) -> Option<Result<Val<'a>>> {
    match opaque {
        Opaque::Quantity(quantity) => of_quantity(name, quantity, rest),
        Opaque::Url(url) => urls::call(name, url),
        Opaque::Ip(ip) => net::of_ip(name, ip),
        Opaque::Cidr(ip, bits) => net::of_cidr(name, (*ip, *bits), rest),
        Opaque::Format(format) => match (name, rest) {
            ("validate", [Val::Str(text)]) => {
                let errors = format.validate(text.as_str());
                Some(Ok(match errors.is_empty() {
                    true => Val::Optional(None),
                    false => Val::some(Val::strings(errors)),
                }))
            }
            _ => None,
        },
        Opaque::Semver(version) => semver::call(name, version, rest),
        other => authz::call(name, other, rest, activation),
    }
}

fn of_quantity<'a>(name: &str, quantity: &Quantity, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    use std::cmp::Ordering;
    let made = |quantity| Ok(Val::Opaque(Opaque::Quantity(quantity)));
    Some(match (name, rest) {
        ("sign", []) => Ok(Val::Int(i64::from(quantity.sign()))),
        ("asInteger", []) => match quantity.as_units() {
            Some(units) => Ok(Val::Int(units)),
            None => Err(EvalError::new("cannot convert value to integer")),
        },
        ("isInteger", []) => Ok(Val::Bool(quantity.as_units().is_some())),
        ("asApproximateFloat", []) => Ok(Val::Double(quantity.approximate())),
        ("isGreaterThan", [Val::Opaque(Opaque::Quantity(other))]) => {
            Ok(Val::Bool(quantity.cmp(other) == Ordering::Greater))
        }
        ("isLessThan", [Val::Opaque(Opaque::Quantity(other))]) => {
            Ok(Val::Bool(quantity.cmp(other) == Ordering::Less))
        }
        ("compareTo", [Val::Opaque(Opaque::Quantity(other))]) => {
            Ok(Val::Int(quantity.cmp(other) as i64))
        }
        ("add", [Val::Opaque(Opaque::Quantity(other))]) => made(*quantity + *other),
        ("sub", [Val::Opaque(Opaque::Quantity(other))]) => made(*quantity - *other),
        ("add", [Val::Int(n)]) => made(*quantity + Quantity::from_units(*n, quantity.format())),
        ("sub", [Val::Int(n)]) => made(*quantity - Quantity::from_units(*n, quantity.format())),
        _ => return None,
    })
}

/// A regular expression; how large it may become is bounded.
pub(super) fn regex(pattern: &str) -> Result<Regex> {
    const LIMIT: usize = 1 << 20;
    let built = regex::RegexBuilder::new(pattern).size_limit(LIMIT).build();
    built.map_err(|e| EvalError::new(format!("error parsing regexp: {e}")))
}

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

/// What a call costs, by the size of its arguments (cel-go's and Kubernetes' factors).
pub(super) fn cost(name: &str, args: &[Val<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(1, Val::size);
    let regex = |pattern: u64| pattern.div_ceil(4);
    match name {
        "check" => 350_000,
        "fieldSelector" | "labelSelector" => 10 + tenth(size(1)) + size(1) * 25,
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "sort" | "reverse"
        | "distinct" | "flatten" | "slice" => match args.first() {
            Some(Val::Str(_)) => tenth(size(0)),
            _ => 1 + size(0),
        },
        "lists.range" => args.first().and_then(Val::as_int).map_or(1, |n| n.max(1) as u64),
        "url" | "isURL" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "quantity"
        | "isQuantity" | "semver" | "isSemver" | "ip" | "cidr" | "isIP" | "isCIDR"
        | "startsWith" | "endsWith" | "strings.quote" | "format" => tenth(size(0)).max(1),
        "replace" | "split" | "ip.isCanonical" => tenth(size(0) * 2).max(1),
        "matches" | "find" | "findAll" => tenth(1 + size(0)) * regex(size(1)),
        "contains" => tenth(size(0)).max(1) * tenth(size(1)).max(1),
        "validate" => tenth(1 + size(1)) * regex(64),
        "containsIP" | "containsCIDR" => 2 + tenth(size(1)),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => 1 + size(0) * size(1),
        "@in" => match args.get(1) {
            Some(list) if list.is_list() => size(1).max(1),
            _ => 1,
        },
        "_+_" => match args.first() {
            Some(Val::Str(_) | Val::Bytes(_)) => tenth(size(0) + size(1)).max(1),
            _ => 1,
        },
        "_==_" | "_!=_" => match args.first() {
            Some(Val::Str(_) | Val::Bytes(_)) => tenth(size(0).min(size(1))).max(1),
            Some(first) if first.is_list() || first.is_map() => size(0).min(size(1)).max(1),
            _ => 1,
        },
        "_<_" | "_<=_" | "_>_" | "_>=_" => match args.first() {
            Some(Val::Str(_) | Val::Bytes(_)) => tenth(size(0).min(size(1))).max(1),
            _ => 1,
        },
        _ => 1,
    }
}

/// What a call's result costs beside.
pub(super) fn cost_after(name: &str, result: &Val<'_>) -> Option<u64> {
    matches!(name, "join" | "format").then(|| tenth(result.size() * 2))
}
