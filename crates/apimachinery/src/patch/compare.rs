//! Comparing, merging and pruning of typed values, the work below server-side apply.

use std::collections::BTreeMap;

use super::fieldset::{PathElement, Set, equal_values};
use super::typed::{Kind, ListAtom, MapAtom, Problems, Relation, Scalar, TypeRef};
use crate::{Map, Value};

/// How one value differs from another; no path is in two of the sets.
#[derive(Debug, Default)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    /// Forgets what lies at or below some fields.
    pub fn without(self, fields: &Set) -> Self {
        Self {
            removed: self.removed.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            added: self.added.recursive_difference(fields),
        }
    }
}

fn is_hollow_map(v: Option<&Value>) -> bool {
    v.and_then(Value::as_object).is_none_or(Map::is_empty)
}

fn is_hollow_list(v: Option<&Value>) -> bool {
    v.and_then(Value::as_array).is_none_or(Vec::is_empty)
}

/// The kinds as which a pair of values is to be handled; the last one decides.
fn kinds<'a>(t: TypeRef<'a>, old: Option<&Value>, new: Option<&Value>) -> Vec<Kind<'a>> {
    let atom = t.resolve();
    let (old_atom, new_atom) = (atom.deduce(old), atom.deduce(new));
    match (old, new) {
        (_, None) => vec![old_atom.kind()],
        (None, _) => vec![new_atom.kind()],
        _ if old_atom.same(&new_atom) => vec![new_atom.kind()],
        _ => vec![old_atom.kind(), new_atom.kind()],
    }
}

fn scalar_problems(scalar: Scalar, old: Option<&Value>, new: Option<&Value>) -> Option<String> {
    let problem = |v: Option<&Value>| v.and_then(|v| scalar.fits(v).err());
    match (problem(old), problem(new)) {
        (Some(a), Some(b)) => Some(format!("lhs: {a}, rhs: {b}")),
        _ => None,
    }
}

/// What changes from `old` to `new`.
pub fn compare(t: TypeRef<'_>, old: &Value, new: &Value) -> Result<Comparison, Problems> {
    let mut walk = Compare { out: Comparison::default(), path: Vec::new(), problems: Vec::new() };
    walk.pair(t, Some(old), Some(new));
    if walk.problems.is_empty() { Ok(walk.out) } else { Err(walk.problems) }
}

struct Compare {
    out: Comparison,
    path: Vec<PathElement>,
    problems: Problems,
}

impl Compare {
    fn pair(&mut self, t: TypeRef<'_>, old: Option<&Value>, new: Option<&Value>) {
        let mut leaf = false;
        for kind in kinds(t, old, new) {
            leaf = match kind {
                Kind::Scalar(scalar) => match scalar_problems(scalar, old, new) {
                    Some(problem) => {
                        self.problems.push(problem);
                        false
                    }
                    None => self.leaf(old, new),
                },
                Kind::Map(map) if map.atomic || is_hollow_map(old) && is_hollow_map(new) => {
                    self.leaf(old, new)
                }
                Kind::Map(map) => {
                    self.fields(map, old, new);
                    false
                }
                Kind::List(list)
                    if matches!(list.relation, Relation::Atomic)
                        || is_hollow_list(old) && is_hollow_list(new) =>
                {
                    self.leaf(old, new)
                }
                Kind::List(list) => {
                    self.items(list, old, new);
                    false
                }
            };
        }
        if leaf {
            return;
        }
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            _ => {}
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) -> bool {
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            (Some(old), Some(new)) if !equal_values(old, new) => {
                self.out.modified.insert(&self.path);
            }
            _ => {}
        }
        true
    }

    fn fields(&mut self, map: MapAtom<'_>, old: Option<&Value>, new: Option<&Value>) {
        let old = old.and_then(Value::as_object);
        let new = new.and_then(Value::as_object);
        let added = new
            .into_iter()
            .flat_map(Map::keys)
            .filter(|k| !old.is_some_and(|o| o.contains_key(*k)));
        for name in old.into_iter().flat_map(Map::keys).chain(added) {
            let Some(t) = map.field(name) else {
                self.problems.push(format!(".{name}: field not declared in schema"));
                continue;
            };
            self.path.push(PathElement::Field(name.clone()));
            self.pair(t, old.and_then(|o| o.get(name)), new.and_then(|n| n.get(name)));
            self.path.pop();
        }
    }

    fn items(&mut self, list: ListAtom<'_>, old: Option<&Value>, new: Option<&Value>) {
        let mut pairs: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for (side, items) in [old, new].into_iter().enumerate() {
            for (i, item) in items.and_then(Value::as_array).into_iter().flatten().enumerate() {
                match list.path_element(item) {
                    Ok(pe) => {
                        let pair = pairs.entry(pe).or_default();
                        if side == 0 { pair.0.push(item) } else { pair.1.push(item) }
                    }
                    Err(text) => self.problems.push(format!("element {i}: {text}")),
                }
            }
        }
        for (pe, (old, new)) in pairs {
            self.path.push(pe);
            match (old.as_slice(), new.as_slice()) {
                ([], [new]) => self.pair(list.element, None, Some(new)),
                ([old], []) => self.pair(list.element, Some(old), None),
                ([old], [new]) => self.pair(list.element, Some(old), Some(new)),
                // Duplicates are compared as a whole.
                ([_, _, ..], [_, _, ..]) => {
                    let same = old.len() == new.len()
                        && old.iter().zip(&new).all(|(a, b)| equal_values(a, b));
                    if !same {
                        self.out.modified.insert(&self.path);
                    }
                }
                ([_, _, ..], new) => {
                    if let [new] = new {
                        self.pair(list.element, None, Some(new));
                    }
                    self.out.removed.insert(&self.path);
                }
                (old, [_, _, ..]) => {
                    if let [old] = old {
                        self.pair(list.element, Some(old), None);
                    }
                    self.out.added.insert(&self.path);
                }
                ([], []) => {}
            }
            self.path.pop();
        }
    }
}

/// `old` with all of `new` in it. Leaves that both have are `new`'s; lists are ordered like
/// `old` where `new` does not say otherwise.
pub fn merge(t: TypeRef<'_>, old: &Value, new: &Value) -> Result<Value, Problems> {
    let mut problems = Problems::new();
    let merged = merge_pair(t, Some(old), Some(new), &mut problems);
    if problems.is_empty() { Ok(merged.unwrap_or_default()) } else { Err(problems) }
}

fn merge_pair(
    t: TypeRef<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    problems: &mut Problems,
) -> Option<Value> {
    let kept = || new.or(old).cloned();
    let mut out = None;
    for kind in kinds(t, old, new) {
        out = match kind {
            Kind::Scalar(scalar) => match scalar_problems(scalar, old, new) {
                Some(problem) => {
                    problems.push(problem);
                    None
                }
                None => kept(),
            },
            Kind::Map(map) if map.atomic || is_hollow_map(old) && is_hollow_map(new) => kept(),
            Kind::Map(map) => merge_fields(map, old, new, problems),
            Kind::List(list)
                if matches!(list.relation, Relation::Atomic)
                    || is_hollow_list(old) && is_hollow_list(new) =>
            {
                kept()
            }
            Kind::List(list) => merge_items(list, old, new, problems),
        };
    }
    out
}

fn merge_fields(
    map: MapAtom<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    problems: &mut Problems,
) -> Option<Value> {
    let old = old.and_then(Value::as_object);
    let new = new.and_then(Value::as_object);
    let mut out = Map::new();
    let added =
        new.into_iter().flat_map(Map::keys).filter(|k| !old.is_some_and(|o| o.contains_key(*k)));
    for name in old.into_iter().flat_map(Map::keys).chain(added) {
        let Some(t) = map.field(name) else {
            problems.push(format!(".{name}: field not declared in schema"));
            continue;
        };
        let (old, new) = (old.and_then(|o| o.get(name)), new.and_then(|n| n.get(name)));
        if let Some(merged) = merge_pair(t, old, new, problems) {
            out.insert(name.clone(), merged);
        }
    }
    (!out.is_empty()).then(|| out.into())
}

/// A list's elements by what identifies them, in their order.
fn indexed<'v>(
    list: ListAtom<'_>,
    v: Option<&'v Value>,
    problems: &mut Problems,
) -> Vec<(PathElement, &'v Value)> {
    let mut out = Vec::new();
    for (i, item) in v.and_then(Value::as_array).into_iter().flatten().enumerate() {
        match list.path_element(item) {
            Ok(pe) => out.push((pe, item)),
            Err(text) => problems.push(format!("element {i}: {text}")),
        }
    }
    out
}

fn merge_items(
    list: ListAtom<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    problems: &mut Problems,
) -> Option<Value> {
    let before = problems.len();
    let old_items = indexed(list, old, problems);
    let new_items = indexed(list, new, problems);
    // An old element that is there twice merges with nothing.
    const TWICE: &Value = &Value::Null;
    let mut old_by: BTreeMap<&PathElement, &Value> = BTreeMap::new();
    for (pe, item) in &old_items {
        old_by.entry(pe).and_modify(|v| *v = TWICE).or_insert(item);
    }
    let mut new_by: BTreeMap<&PathElement, &Value> = BTreeMap::new();
    for (pe, item) in &new_items {
        if new_by.insert(pe, item).is_some() {
            problems.push(format!("duplicate entries for key {pe}"));
        }
    }
    if problems.len() > before {
        return None;
    }
    // Elements of both, in the order of the new list, which must be kept.
    let mut shared = new_items.iter().map(|(pe, _)| pe).filter(|pe| old_by.contains_key(pe));
    let mut next_shared = shared.next();
    let mut merged = std::collections::BTreeSet::new();
    let mut out = Vec::with_capacity(old_items.len().max(new_items.len()));
    let mut emit = |old: Option<&Value>, new: Option<&Value>, problems: &mut Problems| {
        out.extend(merge_pair(list.element, old, new, problems));
    };
    let (mut o, mut n) = (0, 0);
    while o < old_items.len() || n < new_items.len() {
        if let (Some((old_pe, _)), Some((new_pe, item))) = (old_items.get(o), new_items.get(n)) {
            if old_pe == new_pe {
                merged.insert(new_pe);
                emit(old_by.get(new_pe).copied(), Some(item), problems);
                (o, n) = (o + 1, n + 1);
                next_shared = shared.next();
                continue;
            }
            if new_by.contains_key(old_pe) && next_shared.is_some_and(|s| s != old_pe) {
                // In both lists, but its turn comes later.
                o += 1;
                continue;
            }
        }
        if let Some((pe, item)) = old_items.get(o) {
            if !new_by.contains_key(pe) {
                emit(Some(item), None, problems);
                o += 1;
                continue;
            }
            if merged.contains(pe) {
                o += 1;
            }
        }
        if let Some((pe, item)) = new_items.get(n) {
            merged.insert(pe);
            emit(old_by.get(pe).copied(), Some(item), problems);
            n += 1;
            if next_shared == Some(pe) {
                next_shared = shared.next();
            }
        }
    }
    (!out.is_empty()).then(|| out.into())
}

/// The value without the fields and elements of a set. What is emptied becomes null.
pub fn remove(t: TypeRef<'_>, v: &Value, items: &Set) -> Value {
    match t.resolve().deduce(Some(v)).kind() {
        Kind::Scalar(_) => v.clone(),
        Kind::Map(map) => match v {
            Value::Object(fields) if !map.atomic && !fields.is_empty() => {
                let mut out = Map::new();
                for (name, value) in fields {
                    let pe = PathElement::Field(name.clone());
                    if items.members.contains(&pe) {
                        continue;
                    }
                    let left = match (items.children.get(&pe), map.field(name)) {
                        (Some(below), Some(t)) if !below.is_empty() => remove(t, value, below),
                        _ => value.clone(),
                    };
                    out.insert(name.clone(), left);
                }
                if out.is_empty() { Value::Null } else { out.into() }
            }
            _ => Value::Null,
        },
        Kind::List(list) => match v {
            Value::Array(elements) if !matches!(list.relation, Relation::Atomic) => {
                let mut out = Vec::with_capacity(elements.len());
                for item in elements {
                    let pe = list.path_element(item).ok();
                    if pe.as_ref().is_some_and(|pe| items.members.contains(pe)) {
                        continue;
                    }
                    out.push(match pe.and_then(|pe| items.children.get(&pe)) {
                        Some(below) if !below.is_empty() => remove(list.element, item, below),
                        _ => item.clone(),
                    });
                }
                if out.is_empty() { Value::Null } else { out.into() }
            }
            _ => Value::Null,
        },
    }
}
