//! Sets of fields, as `managedFields` hold them in the format `FieldsV1`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::field::quote;
use crate::{Map, Value};

/// One step of a path into an object.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of a map or message: `f:name`.
    Field(String),
    /// The element of a keyed list that has these values of the key fields, sorted by name:
    /// `k:{"name":"x"}`.
    Key(Vec<(String, Value)>),
    /// An element of a set: `v:"x"`.
    Value(Value),
    /// An element by its place: `i:3`.
    Index(i64),
}

impl PathElement {
    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }

    /// Reads the form in which elements are keys of `FieldsV1`; `Ok(None)` for a kind of
    /// element that is not known.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (kind, rest) = match text.as_bytes() {
            [kind, b':', ..] => (*kind, &text[2..]),
            [_, _, ..] => return Err(format!("missing colon: {text}")),
            _ => return Err("key must be 2 characters long:".to_owned()),
        };
        let json = || serde_json::from_str::<Value>(rest).map_err(|e| e.to_string());
        Ok(Some(match kind {
            b'f' => Self::Field(rest.to_owned()),
            b'v' => Self::Value(json()?),
            b'k' => match json()? {
                Value::Object(fields) => {
                    let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
                    fields.sort_by(|a, b| a.0.cmp(&b.0));
                    Self::Key(fields)
                }
                _ => return Err(format!("key is no object: {text}")),
            },
            b'i' => Self::Index(rest.parse().map_err(|_| format!("no index: {text}"))?),
            _ => return Ok(None),
        }))
    }

    /// The inverse of [`PathElement::parse`].
    pub fn serialize(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let fields: Map = fields.iter().cloned().collect();
                format!("k:{}", Value::Object(fields))
            }
            Self::Value(v) => format!("v:{v}"),
            Self::Index(i) => format!("i:{i}"),
        }
    }
}

/// As paths stand in messages: `.name`, `[key="x"]`, `[="x"]`, `[3]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |v: &Value| match v {
            Value::String(s) => quote(s),
            other => other.to_string(),
        };
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(k, v)| format!("{k}={}", show(v))).collect();
                write!(f, "[{}]", fields.join(","))
            }
            Self::Value(v) => write!(f, "[={}]", show(v)),
            Self::Index(i) => write!(f, "[{i}]"),
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_fields(a, b),
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

fn compare_fields<'a>(
    a: impl IntoIterator<Item = &'a (String, Value)>,
    b: impl IntoIterator<Item = &'a (String, Value)>,
) -> Ordering {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(a), Some(b)) => {
                let order = a.0.cmp(&b.0).then_with(|| compare_values(&a.1, &b.1));
                if order != Ordering::Equal {
                    return order;
                }
            }
        }
    }
}

/// A total order of JSON values: numbers, strings, bools, lists, maps, null. Whole and other
/// numbers compare by what they are worth.
pub fn compare_values(a: &Value, b: &Value) -> Ordering {
    let rank = |v: &Value| match v {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => match (a.as_u64(), b.as_u64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
            },
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let unequal = a.iter().zip(b).map(|(a, b)| compare_values(a, b));
            unequal
                .into_iter()
                .find(|o| *o != Ordering::Equal)
                .unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let sorted = |m: &Map| {
                let mut fields: Vec<(String, Value)> =
                    m.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                fields
            };
            compare_fields(&sorted(a), &sorted(b))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Whether two values are the same; `1` and `1.0` are.
pub fn equal_values(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => compare_values(a, b) == Ordering::Equal,
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_values(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal_values(v, w)))
        }
        _ => a == b,
    }
}

/// A set of paths. A path in the set does not put its parents or children into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub members: BTreeSet<PathElement>,
    pub children: BTreeMap<PathElement, Set>,
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    /// Adds a path. The empty path is the whole object, which is not tracked.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => drop(self.members.insert(last.clone())),
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// A set of one path of field names.
    pub fn insert_fields(&mut self, names: &[&str]) {
        let path: Vec<PathElement> =
            names.iter().map(|n| PathElement::Field((*n).to_owned())).collect();
        self.insert(&path);
    }

    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|c| c.has(rest)),
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (pe, theirs) in &other.children {
            let ours = out.children.entry(pe.clone()).or_default();
            *ours = ours.union(theirs);
        }
        out
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(pe, ours)| {
            let both = ours.intersection(other.children.get(pe)?);
            (!both.is_empty()).then(|| (pe.clone(), both))
        });
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// Paths of this set that are not in the other; a parent in the other takes nothing away.
    pub fn difference(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(pe, ours)| {
            let left = match other.children.get(pe) {
                Some(theirs) => ours.difference(theirs),
                None => ours.clone(),
            };
            (!left.is_empty()).then(|| (pe.clone(), left))
        });
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// Paths of this set that neither are in the other nor lie below one that is.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        let children =
            self.children.iter().filter(|(pe, _)| !other.members.contains(pe)).filter_map(
                |(pe, ours)| {
                    let left = match other.children.get(pe) {
                        Some(theirs) => ours.recursive_difference(theirs),
                        None => ours.clone(),
                    };
                    (!left.is_empty()).then(|| (pe.clone(), left))
                },
            );
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// All paths, members before what lies below.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.walk(&mut Vec::new(), &mut out);
        out
    }

    fn walk(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for pe in &self.members {
            let mut path = prefix.clone();
            path.push(pe.clone());
            out.push(path);
        }
        for (pe, child) in &self.children {
            prefix.push(pe.clone());
            child.walk(prefix, out);
            prefix.pop();
        }
    }

    /// Reads `FieldsV1`.
    pub fn parse(fields: &Value) -> Result<Self, String> {
        match fields {
            Value::Null => Ok(Self::default()),
            Value::Object(map) => read(map).map(|(set, _)| set),
            other => Err(format!("no map of fields: {other}")),
        }
    }

    /// Writes `FieldsV1`.
    pub fn serialize(&self) -> Value {
        self.write(false).into()
    }

    fn write(&self, is_member: bool) -> Map {
        let empty = || Value::Object(Map::new());
        let mut out = Map::new();
        if is_member && !(self.members.is_empty() && self.children.is_empty()) {
            out.insert(".".to_owned(), empty());
        }
        for pe in self.members.iter().filter(|pe| !self.children.contains_key(pe)) {
            out.insert(pe.serialize(), empty());
        }
        for (pe, child) in &self.children {
            out.insert(pe.serialize(), child.write(self.members.contains(pe)).into());
        }
        out
    }
}

/// The set below an element, and whether the element is itself a member: it says so by `.`, or
/// by having nothing below.
fn read(map: &Map) -> Result<(Set, bool), String> {
    let mut set = Set::default();
    let (mut is_member, mut any) = (false, false);
    for (key, below) in map {
        if key == "." {
            is_member = true;
            continue;
        }
        let Some(pe) = PathElement::parse(key)? else { continue };
        let empty = Map::new();
        let (child, child_is_member) = match below {
            Value::Object(below) => read(below)?,
            Value::Null => read(&empty)?,
            other => return Err(format!("no map of fields: {other}")),
        };
        any = true;
        if child_is_member {
            set.members.insert(pe.clone());
        }
        if !child.is_empty() {
            set.children.insert(pe, child);
        }
    }
    Ok((set, is_member || !any))
}

/// A path as messages show it.
pub fn show(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}
