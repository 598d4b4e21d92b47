//! Conversions between types, which are functions by the types' names.

use jiff::{SignedDuration, Timestamp};

use super::Result;
use crate::cel::error::EvalError;
use crate::cel::value::{Opaque, Val, go_duration, show_duration, timestamp};

/// `None`: no conversion.
pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let [value] = args else { return None };
    let convert = match name {
        "bool" => to_bool,
        "bytes" => to_bytes,
        "double" => to_double,
        "int" => to_int,
        "uint" => to_uint,
        "string" => to_string,
        "duration" => to_duration,
        "timestamp" => to_timestamp,
        _ => return None,
    };
    Some(convert(value).unwrap_or_else(|| Err(EvalError::no_overload())))
}

fn fails<'a>(value: &Val<'_>, to: &str) -> Result<Val<'a>> {
    let from = value.type_name();
    Err(EvalError::new(format!("type conversion error from '{from}' to '{to}'")))
}

fn range<'a>(what: &str) -> Result<Val<'a>> {
    Err(EvalError::new(format!("{what} overflow")))
}

fn to_bool<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    Some(match value {
        Val::Bool(_) => Ok(value.clone()),
        Val::Str(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
            _ => fails(value, "bool"),
        },
        _ => return None,
    })
}

fn to_bytes<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    match value {
        Val::Bytes(_) => Some(Ok(value.clone())),
        Val::Str(text) => Some(Ok(Val::Bytes(text.as_str().as_bytes().into()))),
        _ => None,
    }
}

fn to_double<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    Some(match value {
        Val::Double(_) => Ok(value.clone()),
        Val::Int(n) => Ok(Val::Double(*n as f64)),
        Val::Uint(n) => Ok(Val::Double(*n as f64)),
        Val::Str(text) => match text.as_str().parse() {
            Ok(number) => Ok(Val::Double(number)),
            Err(_) => fails(value, "double"),
        },
        _ => return None,
    })
}

fn to_int<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    Some(match value {
        Val::Int(_) => Ok(value.clone()),
        Val::Uint(n) => i64::try_from(*n).map_or_else(|_| range("integer"), |n| Ok(Val::Int(n))),
        Val::Double(n) if n.is_nan() || n.abs() >= i64::MAX as f64 => range("integer"),
        Val::Double(n) => Ok(Val::Int(*n as i64)),
        Val::Str(text) => match text.as_str().parse() {
            Ok(number) => Ok(Val::Int(number)),
            Err(_) => fails(value, "int"),
        },
        Val::Timestamp(time) => Ok(Val::Int(time.as_second())),
        Val::Duration(duration) => Ok(Val::Int(duration.as_secs())),
        _ => return None,
    })
}

fn to_uint<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    const WHAT: &str = "unsigned integer";
    Some(match value {
        Val::Uint(_) => Ok(value.clone()),
        Val::Int(n) => u64::try_from(*n).map_or_else(|_| range(WHAT), |n| Ok(Val::Uint(n))),
        Val::Double(n) if n.is_nan() || *n < 0.0 || *n >= u64::MAX as f64 => range(WHAT),
        Val::Double(n) => Ok(Val::Uint(*n as u64)),
        Val::Str(text) => match text.as_str().parse() {
            Ok(number) => Ok(Val::Uint(number)),
            Err(_) => fails(value, "uint"),
        },
        _ => return None,
    })
}

fn to_string<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    Some(match value {
        Val::Str(_) => Ok(value.clone()),
        Val::Bool(b) => Ok(Val::str(b.to_string())),
        Val::Int(n) => Ok(Val::str(n.to_string())),
        Val::Uint(n) => Ok(Val::str(n.to_string())),
        Val::Double(n) => Ok(Val::str(n.to_string())),
        Val::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Val::str(text)),
            Err(_) => Err(EvalError::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        Val::Timestamp(time) => Ok(Val::str(time.to_string())),
        Val::Duration(duration) => Ok(Val::str(show_duration(duration))),
        Val::Opaque(Opaque::Ip(ip)) => Ok(Val::str(ip.to_string())),
        Val::Opaque(Opaque::Cidr(ip, bits)) => Ok(Val::str(format!("{ip}/{bits}"))),
        Val::Opaque(Opaque::Quantity(quantity)) => Ok(Val::str(quantity.to_string())),
        Val::Opaque(Opaque::Semver(version)) => Ok(Val::str(version.to_string())),
        _ => return None,
    })
}

fn to_duration<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    Some(match value {
        Val::Duration(_) => Ok(value.clone()),
        Val::Int(n) => Ok(Val::Duration(SignedDuration::from_nanos(*n))),
        Val::Str(text) => match go_duration(text.as_str()) {
            Some(duration) => Ok(Val::Duration(duration)),
            None => fails(value, "google.protobuf.Duration"),
        },
        _ => return None,
    })
}

fn to_timestamp<'a>(value: &Val<'a>) -> Option<Result<Val<'a>>> {
    Some(match value {
        Val::Timestamp(_) => Ok(value.clone()),
        Val::Int(n) => match Timestamp::from_second(*n) {
            Ok(time) => Ok(Val::Timestamp(time)),
            Err(_) => range("timestamp"),
        },
        Val::Str(text) => match timestamp(text.as_str()) {
            Some(time) => Ok(Val::Timestamp(time)),
            None => fails(value, "google.protobuf.Timestamp"),
        },
        _ => return None,
    })
}
