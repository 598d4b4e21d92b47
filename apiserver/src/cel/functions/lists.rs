//! Functions of lists.

use std::cmp::Ordering;

use jiff::SignedDuration;

use super::Result;
use crate::cel::error::EvalError;
use crate::cel::value::Val;

/// Longer lists are not made of nothing.
const MAX_RANGE: i64 = 1_000_000;

/// `None`: no such function.
pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let [list, rest @ ..] = args else { return None };
    Some(match (name, rest) {
        ("isSorted", []) => {
            let all: Vec<Val<'a>> = list.elements().collect();
            let sorted = all.windows(2).map(|pair| match pair {
                [a, b] => a.compare(b).map(|order| order != Ordering::Greater),
                _ => Some(true),
            });
            let sorted: Option<Vec<bool>> = sorted.collect();
            match sorted {
                Some(pairs) => Ok(Val::Bool(pairs.into_iter().all(|ok| ok))),
                None => Err(EvalError::no_overload()),
            }
        }
        ("sum", []) => sum(list),
        ("min", []) => extreme(list, Ordering::Less, "min"),
        ("max", []) => extreme(list, Ordering::Greater, "max"),
        ("indexOf", [value]) => {
            let at = list.elements().position(|v| v.equal(value));
            Ok(Val::Int(at.map_or(-1, |at| at as i64)))
        }
        ("lastIndexOf", [value]) => {
            let all: Vec<Val<'a>> = list.elements().collect();
            let at = all.iter().rposition(|v| v.equal(value));
            Ok(Val::Int(at.map_or(-1, |at| at as i64)))
        }
        ("slice", [Val::Int(from), Val::Int(to)]) => slice(list, *from, *to),
        ("flatten", []) => flatten(list, 1),
        ("flatten", [Val::Int(depth)]) if *depth < 0 => {
            Err(EvalError::new("level must be non-negative"))
        }
        ("flatten", [Val::Int(depth)]) => flatten(list, *depth),
        ("sort", []) => {
            let mut all: Vec<Val<'a>> = list.elements().collect();
            let first = all.first().cloned();
            let fits = all.iter().all(|v| first.as_ref().is_none_or(|f| f.compare(v).is_some()));
            if !fits {
                return Some(Err(EvalError::new("list elements must be comparable")));
            }
            all.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
            Ok(Val::list(all))
        }
        ("reverse", []) => {
            let mut all: Vec<Val<'a>> = list.elements().collect();
            all.reverse();
            Ok(Val::list(all))
        }
        ("distinct", []) => {
            let mut kept: Vec<Val<'a>> = Vec::new();
            for value in list.elements() {
                if !kept.iter().any(|k| k.equal(&value)) {
                    kept.push(value);
                }
            }
            Ok(Val::list(kept))
        }
        ("join", []) => join(list, ""),
        ("join", [Val::Str(separator)]) => join(list, separator.as_str()),
        ("sets.contains", [other]) if other.is_list() => Ok(Val::Bool(contains(list, other))),
        ("sets.equivalent", [other]) if other.is_list() => {
            Ok(Val::Bool(contains(list, other) && contains(other, list)))
        }
        ("sets.intersects", [other]) if other.is_list() => {
            Ok(Val::Bool(list.elements().any(|v| other.elements().any(|o| o.equal(&v)))))
        }
        _ => return None,
    })
}

fn contains(list: &Val<'_>, other: &Val<'_>) -> bool {
    other.elements().all(|o| list.elements().any(|v| v.equal(&o)))
}

fn sum<'a>(list: &Val<'a>) -> Result<Val<'a>> {
    let mut total: Option<Val<'a>> = None;
    for value in list.elements() {
        total = Some(match total {
            None => value,
            Some(total) => super::operators::call("_+_", &[total, value])?,
        });
    }
    // The type of nothing is not known here; zero compares with any number.
    match total {
        Some(Val::Str(_)) => Err(EvalError::no_overload()),
        Some(total) => Ok(total),
        None => match list {
            Val::JsonList(_, of) if **of == crate::cel::Type::Duration => {
                Ok(Val::Duration(SignedDuration::ZERO))
            }
            _ => Ok(Val::Int(0)),
        },
    }
}

fn extreme<'a>(list: &Val<'a>, wanted: Ordering, name: &str) -> Result<Val<'a>> {
    let mut found: Option<Val<'a>> = None;
    for value in list.elements() {
        let better = match &found {
            None => true,
            Some(found) => value.compare(found).ok_or_else(EvalError::no_overload)? == wanted,
        };
        if better {
            found = Some(value);
        }
    }
    found.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

fn slice<'a>(list: &Val<'a>, from: i64, to: i64) -> Result<Val<'a>> {
    let length = list.len().unwrap_or(0) as i64;
    if from < 0 || to < 0 {
        let text = format!("cannot slice({from}, {to}), negative indexes not supported");
        return Err(EvalError::new(text));
    }
    if from > to {
        let text = format!(
            "cannot slice({from}, {to}), start index must be less than or equal to end index"
        );
        return Err(EvalError::new(text));
    }
    if to > length {
        return Err(EvalError::new(format!("cannot slice({from}, {to}), list is length {length}")));
    }
    let count = usize::try_from(to - from).unwrap_or(0);
    Ok(Val::list(list.elements().skip(from as usize).take(count).collect()))
}

fn flatten<'a>(list: &Val<'a>, depth: i64) -> Result<Val<'a>> {
    fn add<'a>(list: &Val<'a>, depth: i64, out: &mut Vec<Val<'a>>) {
        for value in list.elements() {
            if depth > 0 && value.is_list() {
                add(&value, depth - 1, out);
            } else {
                out.push(value);
            }
        }
    }
    let mut out = Vec::new();
    // JSON is nested no deeper than its parser lets it be.
    add(list, depth.min(128), &mut out);
    Ok(Val::list(out))
}

fn join<'a>(list: &Val<'a>, separator: &str) -> Result<Val<'a>> {
    let mut out = String::new();
    for (i, value) in list.elements().enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(value.as_str().ok_or_else(EvalError::no_overload)?);
    }
    Ok(Val::str(out))
}

/// The numbers below one.
pub(super) fn range<'a>(n: i64) -> Result<Val<'a>> {
    if n > MAX_RANGE {
        return Err(EvalError::new("range is too large"));
    }
    Ok(Val::list((0..n).map(Val::Int).collect()))
}
