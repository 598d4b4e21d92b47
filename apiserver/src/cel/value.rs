//! Values. JSON is looked at where it stands; only what expressions make is owned.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::quantity::Quantity;
use apimachinery::{Map, Value};
use base64::Engine as _;
use indexmap::IndexMap;
use jiff::{SignedDuration, Timestamp};

use super::error::EvalError;
use super::eval::{Activation, Budget, Decided};
use super::functions::authz;
use super::functions::formats::Format;
use super::functions::semver::Semver;
use super::functions::urls::Url;
use super::types::Type;

/// A string of the input, or one that was made.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Text<'_> {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// Key of a map that an expression made. Numbers are alike whatever their type.
#[derive(Clone, Debug)]
pub(in crate::cel) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Str(Arc<str>),
}

impl Key {
    fn number(&self) -> Option<i128> {
        match self {
            Self::Int(n) => Some(i128::from(*n)),
            Self::Uint(n) => Some(i128::from(*n)),
            _ => None,
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => a == b,
            (a, b) => a.number().is_some() && a.number() == b.number(),
        }
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Bool(b) => b.hash(state),
            Self::Str(text) => text.hash(state),
            number => number.number().hash(state),
        }
    }
}

/// A value.
#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    /// A list of the input, with the type of its elements.
    JsonList(&'a [Value], Arc<Type>),
    List(Arc<Vec<Val<'a>>>),
    /// An object of the input, with its type.
    JsonMap(&'a Map, Type),
    #[allow(private_interfaces, reason = "made by expressions only")]
    Map(Arc<IndexMap<Key, Val<'a>>>),
    /// Fields that are not JSON (variables of policies).
    Fields(Arc<dyn Fields<'a> + 'a>),
    Optional(Option<Box<Val<'a>>>),
    Type(Arc<str>),
    #[allow(private_interfaces, reason = "made by functions only")]
    Opaque(Opaque),
}

/// Named values that are made when they are asked for.
pub trait Fields<'a>: std::fmt::Debug + Send + Sync {
    /// A field's value, or why it could not be made; `None`: there is no such field.
    fn get(
        &self,
        name: &str,
        activation: &Activation<'a>,
        budget: &mut Budget,
    ) -> Option<Result<Val<'a>, EvalError>>;
}

/// Values of libraries.
#[derive(Clone, Debug)]
pub(in crate::cel) enum Opaque {
    Quantity(Quantity),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Format(Format),
    Semver(Arc<Semver>),
    Authorizer(Arc<authz::Asker>),
    PathCheck(Arc<authz::PathCheck>),
    GroupCheck(Arc<authz::GroupCheck>),
    ResourceCheck(Arc<authz::ResourceCheck>),
    Decision(Arc<Decided>),
}

impl<'a> Val<'a> {
    /// A value of the input of no declared type.
    pub fn json(value: &'a Value) -> Self {
        Self::typed(value, &Type::Dyn)
    }

    /// A value of the input: what it is depends on its declared type where JSON does not tell.
    pub fn typed(value: &'a Value, ty: &Type) -> Self {
        match (value, ty) {
            (Value::Null, _) => Self::Null,
            (Value::Bool(b), _) => Self::Bool(*b),
            (Value::Number(n), Type::Double) => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Value::Number(n), _) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
                (Some(int), ..) => Self::Int(int),
                (_, Some(uint), _) if matches!(ty, Type::Uint) => Self::Uint(uint),
                (.., Some(float)) => Self::Double(float),
                _ => Self::Null,
            },
            (Value::String(text), Type::Timestamp) => {
                timestamp(text).map_or(Self::Str(Text::Borrowed(text)), Self::Timestamp)
            }
            (Value::String(text), Type::Duration) => {
                go_duration(text).map_or(Self::Str(Text::Borrowed(text)), Self::Duration)
            }
            (Value::String(text), Type::Bytes) => {
                match base64::engine::general_purpose::STANDARD.decode(text) {
                    Ok(bytes) => Self::Bytes(bytes.into()),
                    Err(_) => Self::Str(Text::Borrowed(text)),
                }
            }
            (Value::String(text), _) => Self::Str(Text::Borrowed(text)),
            (Value::Array(list), Type::List(of)) => Self::JsonList(list, of.clone()),
            (Value::Array(list), _) => Self::JsonList(list, Arc::new(Type::Dyn)),
            (Value::Object(map), ty) => Self::JsonMap(map, ty.clone()),
        }
    }

    pub fn str(text: impl Into<Arc<str>>) -> Self {
        Self::Str(Text::Shared(text.into()))
    }

    pub(super) fn list(values: Vec<Val<'a>>) -> Self {
        Self::List(Arc::new(values))
    }

    pub(super) fn strings(values: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        Self::list(values.into_iter().map(Self::str).collect())
    }

    pub(super) fn some(value: Val<'a>) -> Self {
        Self::Optional(Some(Box::new(value)))
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text.as_str()),
            _ => None,
        }
    }

    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// Elements of a list, one after the other.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::JsonList(list, _) => list.len(),
            Self::List(list) => list.len(),
            Self::JsonMap(map, _) => map.len(),
            Self::Map(map) => map.len(),
            Self::Str(text) => text.as_str().chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            _ => return None,
        })
    }

    /// An element of a list.
    pub(super) fn element(&self, at: usize) -> Option<Val<'a>> {
        match self {
            Self::JsonList(list, of) => list.get(at).map(|v| Val::typed(v, of)),
            Self::List(list) => list.get(at).cloned(),
            _ => None,
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::JsonList(..) | Self::List(_))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self, Self::JsonMap(..) | Self::Map(_))
    }

    pub(super) fn elements(&self) -> impl Iterator<Item = Val<'a>> + '_ {
        let length = if self.is_list() { self.len().unwrap_or(0) } else { 0 };
        (0..length).filter_map(|i| self.element(i))
    }

    /// Keys and values of a map.
    pub(super) fn entries(&self) -> Vec<(Val<'a>, Val<'a>)> {
        match self {
            Self::JsonMap(map, ty) => map
                .iter()
                .map(|(k, v)| (Val::Str(Text::Borrowed(k)), Val::typed(v, &property(ty, k))))
                .collect(),
            Self::Map(map) => map.iter().map(|(k, v)| (from_key(k), v.clone())).collect(),
            _ => Vec::new(),
        }
    }

    /// A field, or a map's value, by its name. Null properties are no properties, but of maps.
    pub(super) fn field(&self, name: &str) -> Option<Val<'a>> {
        match self {
            Self::JsonMap(map, ty) => {
                let value = map.get(name)?;
                if value.is_null() && matches!(ty, Type::Object(_)) {
                    return None;
                }
                Some(Val::typed(value, &property(ty, name)))
            }
            Self::Map(map) => map.get(&Key::Str(name.into())).cloned(),
            _ => None,
        }
    }

    /// A map's value by any key.
    pub(super) fn entry(&self, key: &Val<'_>) -> Option<Val<'a>> {
        match (self, key) {
            (_, Val::Str(name)) => self.field(name.as_str()),
            (Self::Map(map), key) => to_key(key).and_then(|key| map.get(&key).cloned()),
            _ => None,
        }
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> String {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Str(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::JsonList(..) | Self::List(_) => "list",
            Self::JsonMap(_, Type::Object(of)) => of.name(),
            Self::JsonMap(..) | Self::Map(_) => "map",
            Self::Fields(_) => "kubernetes.variables",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Opaque(opaque) => match opaque {
                Opaque::Quantity(_) => "kubernetes.Quantity",
                Opaque::Url(_) => "kubernetes.URL",
                Opaque::Ip(_) => "net.IP",
                Opaque::Cidr(..) => "net.CIDR",
                Opaque::Format(_) => "kubernetes.NamedFormat",
                Opaque::Semver(_) => "kubernetes.Semver",
                Opaque::Authorizer(_) => "kubernetes.authorization.Authorizer",
                Opaque::PathCheck(_) => "kubernetes.authorization.PathCheck",
                Opaque::GroupCheck(_) => "kubernetes.authorization.GroupCheck",
                Opaque::ResourceCheck(_) => "kubernetes.authorization.ResourceCheck",
                Opaque::Decision(_) => "kubernetes.authorization.Decision",
            },
        }
        .to_owned()
    }

    /// Size for costs: elements, characters; 1 for all else.
    pub(super) fn size(&self) -> u64 {
        match self {
            // Bytes are close enough, and need no walk.
            Self::Str(text) => text.as_str().len() as u64,
            Self::Optional(Some(inner)) => inner.size(),
            other => other.len().map_or(1, |n| n as u64),
        }
    }

    fn number(&self) -> Option<Number> {
        Some(match self {
            Self::Int(n) => Number::Whole(i128::from(*n)),
            Self::Uint(n) => Number::Whole(i128::from(*n)),
            Self::Double(n) => Number::Float(*n),
            _ => return None,
        })
    }

    /// Equality: numbers compare by amount, and values of different types are different.
    pub fn equal(&self, other: &Val<'_>) -> bool {
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return a.compare(&b) == Some(Ordering::Equal);
        }
        match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::Str(a), Val::Str(b)) => a.as_str() == b.as_str(),
            (Val::Bytes(a), Val::Bytes(b)) => a == b,
            (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
            (Val::Duration(a), Val::Duration(b)) => a == b,
            (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equal(b),
                (None, None) => true,
                _ => false,
            },
            (a, b) if a.is_list() && b.is_list() => {
                a.len() == b.len() && a.elements().zip(b.elements()).all(|(a, b)| a.equal(&b))
            }
            (a, b) if a.is_map() && b.is_map() => {
                a.len() == b.len()
                    && a.entries().iter().all(|(k, v)| b.entry(k).is_some_and(|o| v.equal(&o)))
            }
            (Val::Opaque(a), Val::Opaque(b)) => a.equal(b),
            _ => false,
        }
    }

    /// Order, of values that have one.
    pub(super) fn compare(&self, other: &Val<'_>) -> Option<Ordering> {
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return a.compare(&b);
        }
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Str(a), Val::Str(b)) => Some(a.as_str().cmp(b.as_str())),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// The value as JSON, for what is shown of it.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null | Self::Optional(None) => Value::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            Self::Str(text) => text.as_str().into(),
            Self::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            Self::Timestamp(time) => time.to_string().into(),
            Self::Duration(duration) => show_duration(duration).into(),
            Self::JsonMap(map, _) => Value::Object((*map).clone()),
            Self::JsonList(list, _) => Value::Array(list.to_vec()),
            Self::List(_) => self.elements().map(|v| v.to_json()).collect(),
            Self::Map(map) => {
                Value::Object(map.iter().map(|(k, v)| (functions_key(k), v.to_json())).collect())
            }
            Self::Optional(Some(inner)) => inner.to_json(),
            Self::Type(name) => name.as_ref().into(),
            Self::Fields(_) | Self::Opaque(_) => Value::Null,
        }
    }
}

fn functions_key(key: &Key) -> String {
    match key {
        Key::Bool(b) => b.to_string(),
        Key::Int(n) => n.to_string(),
        Key::Uint(n) => n.to_string(),
        Key::Str(text) => text.to_string(),
    }
}

/// The type of a property of an object.
fn property(ty: &Type, name: &str) -> Type {
    match ty {
        Type::Object(structure) => structure.field(name).unwrap_or(Type::Dyn),
        Type::Map(_, value) => (**value).clone(),
        _ => Type::Dyn,
    }
}

pub(super) fn to_key(value: &Val<'_>) -> Option<Key> {
    Some(match value {
        Val::Bool(b) => Key::Bool(*b),
        Val::Int(n) => Key::Int(*n),
        Val::Uint(n) => Key::Uint(*n),
        // A whole number, whatever its type.
        Val::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Key::Int(*n as i64),
        Val::Str(Text::Shared(text)) => Key::Str(text.clone()),
        Val::Str(text) => Key::Str(text.as_str().into()),
        _ => return None,
    })
}

pub(super) fn from_key<'a>(key: &Key) -> Val<'a> {
    match key {
        Key::Bool(b) => Val::Bool(*b),
        Key::Int(n) => Val::Int(*n),
        Key::Uint(n) => Val::Uint(*n),
        Key::Str(text) => Val::str(text.clone()),
    }
}

enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(b)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Whole(a), Self::Float(b)) => (*a as f64).partial_cmp(b),
            (Self::Float(a), Self::Whole(b)) => a.partial_cmp(&(*b as f64)),
        }
    }
}

impl Opaque {
    fn equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a, n), Self::Cidr(b, m)) => a == b && n == m,
            (Self::Format(a), Self::Format(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => a.compare(b) == Ordering::Equal,
            _ => false,
        }
    }
}

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// RFC 3339.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// `1h30m`, `-1.5s`, as Go writes durations.
pub(super) fn go_duration(text: &str) -> Option<SignedDuration> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut rest = rest;
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let nanos: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(nanos)?)?;
        let mut scale = nanos;
        for digit in fraction.chars().take(18) {
            scale /= 10;
            total += scale * i128::from(digit.to_digit(10)?);
        }
        rest = after;
    }
    let total = if negative { -total } else { total };
    let nanos = i64::try_from(total).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// A duration as CEL writes it: `1.5s`.
pub(super) fn show_duration(duration: &SignedDuration) -> String {
    let seconds = duration.as_nanos() as f64 / 1e9;
    format!("{seconds}s")
}
