//! Operators.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::Result;
use crate::cel::error::EvalError;
use crate::cel::value::Val;

fn overflow(what: &str) -> EvalError {
    EvalError::new(format!("{what} overflow"))
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Result<Val<'a>> {
    match (name, args) {
        ("!_", [Val::Bool(b)]) => Ok(Val::Bool(!b)),
        ("-_", [Val::Int(n)]) => n.checked_neg().map(Val::Int).ok_or_else(|| overflow("integer")),
        ("-_", [Val::Double(n)]) => Ok(Val::Double(-n)),
        ("_==_", [a, b]) => Ok(Val::Bool(a.equal(b))),
        ("_!=_", [a, b]) => Ok(Val::Bool(!a.equal(b))),
        ("@in", [a, b]) => contains(b, a),
        ("_[_]", [of, index]) => index_of(of, index),
        ("_[?_]", [of, index]) => Ok(match of {
            Val::Optional(None) => Val::Optional(None),
            Val::Optional(Some(of)) => optional_index(of, index),
            of => optional_index(of, index),
        }),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            // No number, no order: neither is more than the other.
            let nan = |v: &Val<'_>| matches!(v, Val::Double(n) if n.is_nan());
            let order = match a.compare(b) {
                Some(order) => order,
                None if nan(a) || nan(b) => return Ok(Val::Bool(false)),
                None => return Err(EvalError::no_overload()),
            };
            Ok(Val::Bool(match name {
                "_<_" => order == Ordering::Less,
                "_<=_" => order != Ordering::Greater,
                "_>_" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }))
        }
        (op, [a, b]) => arithmetic(op, a, b),
        _ => Err(EvalError::no_overload()),
    }
}

/// Arithmetic of whole numbers, with or without sign: in more bits than they have.
fn whole<N: TryFrom<i128>>(op: &str, a: i128, b: i128, what: &str) -> Result<N> {
    let made = match (op, b) {
        ("_+_", _) => a.checked_add(b),
        ("_-_", _) => a.checked_sub(b),
        ("_*_", _) => a.checked_mul(b),
        ("_/_", 0) => return Err(EvalError::new("division by zero")),
        ("_%_", 0) => return Err(EvalError::new("modulus by zero")),
        ("_/_", _) => a.checked_div(b),
        // What cannot be divided has no rest either.
        ("_%_", _) => N::try_from(a / b).ok().map(|_| a % b),
        _ => return Err(EvalError::no_overload()),
    };
    made.and_then(|n| N::try_from(n).ok()).ok_or_else(|| overflow(what))
}

fn arithmetic<'a>(op: &str, a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => {
            whole(op, i128::from(*a), i128::from(*b), "integer").map(Val::Int)
        }
        (Val::Uint(a), Val::Uint(b)) => {
            whole(op, i128::from(*a), i128::from(*b), "unsigned integer").map(Val::Uint)
        }
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(match op {
            "_+_" => a + b,
            "_-_" => a - b,
            "_*_" => a * b,
            "_/_" => a / b,
            _ => return Err(EvalError::no_overload()),
        })),
        (Val::Str(a), Val::Str(b)) if op == "_+_" => {
            Ok(Val::str([a.as_str(), b.as_str()].concat()))
        }
        (Val::Bytes(a), Val::Bytes(b)) if op == "_+_" => {
            Ok(Val::Bytes([&**a, &**b].concat().into()))
        }
        (a, b) if op == "_+_" && a.is_list() && b.is_list() => {
            Ok(Val::list(a.elements().chain(b.elements()).collect()))
        }
        (a, b) => times(op, a, b),
    }
}

fn times<'a>(op: &str, a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>> {
    let at = |time: std::result::Result<Timestamp, jiff::Error>| {
        time.map(Val::Timestamp).map_err(|_| overflow("timestamp"))
    };
    match (op, a, b) {
        ("_+_", Val::Timestamp(t), Val::Duration(d))
        | ("_+_", Val::Duration(d), Val::Timestamp(t)) => at(t.checked_add(*d)),
        ("_-_", Val::Timestamp(t), Val::Duration(d)) => at(t.checked_sub(*d)),
        ("_-_", Val::Timestamp(a), Val::Timestamp(b)) => Ok(Val::Duration(a.duration_since(*b))),
        ("_+_", Val::Duration(a), Val::Duration(b)) => {
            a.checked_add(*b).map(Val::Duration).ok_or_else(|| overflow("duration"))
        }
        ("_-_", Val::Duration(a), Val::Duration(b)) => {
            a.checked_sub(*b).map(Val::Duration).ok_or_else(|| overflow("duration"))
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn contains<'a>(within: &Val<'a>, value: &Val<'a>) -> Result<Val<'a>> {
    if within.is_list() {
        return Ok(Val::Bool(within.elements().any(|v| v.equal(value))));
    }
    if within.is_map() {
        return Ok(Val::Bool(within.entry(value).is_some()));
    }
    Err(EvalError::no_overload())
}

fn position(index: &Val<'_>) -> Option<i64> {
    match index {
        Val::Int(n) => Some(*n),
        Val::Uint(n) => i64::try_from(*n).ok(),
        Val::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Some(*n as i64),
        _ => None,
    }
}

fn index_of<'a>(of: &Val<'a>, index: &Val<'a>) -> Result<Val<'a>> {
    if let Val::Optional(inner) = of {
        return Ok(match inner {
            Some(inner) => optional_index(inner, index),
            None => Val::Optional(None),
        });
    }
    if of.is_list() {
        let at = position(index).ok_or_else(EvalError::no_overload)?;
        let found = usize::try_from(at).ok().and_then(|at| of.element(at));
        return found.ok_or_else(|| EvalError::new(format!("index out of bounds: {at}")));
    }
    if of.is_map() {
        return of.entry(index).ok_or_else(|| {
            EvalError::new(format!("no such key: {}", super::strings::shown(index)))
        });
    }
    Err(EvalError::no_overload())
}

fn optional_index<'a>(of: &Val<'a>, index: &Val<'a>) -> Val<'a> {
    match index_of(of, index) {
        Ok(value) => Val::some(value),
        Err(_) => Val::Optional(None),
    }
}

/// Whether a value is the zero of its type.
pub(super) fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null | Val::Optional(None) => true,
        Val::Bool(b) => !b,
        Val::Int(n) => *n == 0,
        Val::Uint(n) => *n == 0,
        Val::Double(n) => *n == 0.0,
        Val::Duration(d) => d.is_zero(),
        Val::Timestamp(_) | Val::Opaque(_) | Val::Type(_) | Val::Fields(_) => false,
        other => other.len() == Some(0),
    }
}
