//! What the types of fields mean to server-side apply: which values are owned as a whole, which
//! lists have keys, and which set of fields an object holds. The model is that of
//! structured-merge-diff.

use super::fieldset::{PathElement, Set, show};
use crate::Value;
use crate::codec::Schema;
use crate::schema::{Field, ListType, MessageId, Registry, Type};

const ATOMIC_LIST: &ListType = &ListType::Atomic;

/// A reference to a type.
#[derive(Clone, Copy, Debug)]
pub enum TypeRef<'a> {
    Message {
        registry: &'a Registry,
        id: MessageId,
        atomic: bool,
    },
    Of {
        registry: &'a Registry,
        ty: &'a Type,
        list: &'a ListType,
        atomic: bool,
    },
    /// No schema: maps are granular, lists atomic.
    Deduced,
    /// What stands in a list of no schema.
    UntypedAtomic,
}

impl<'a> From<Schema<'a>> for TypeRef<'a> {
    fn from(schema: Schema<'a>) -> Self {
        Self::whole(schema.registry, schema.message)
    }
}

/// Which scalars a field takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    Numeric,
    String,
    Boolean,
    Any,
}

/// How the elements of a list relate.
#[derive(Clone, Copy, Debug)]
pub enum Relation<'a> {
    Atomic,
    Set,
    Keyed(&'a [String]),
}

#[derive(Clone, Copy, Debug)]
pub struct ListAtom<'a> {
    pub element: TypeRef<'a>,
    pub relation: Relation<'a>,
}

#[derive(Clone, Copy, Debug)]
pub struct MapAtom<'a> {
    message: Option<(&'a Registry, MessageId)>,
    /// Type of the fields that the message does not declare, if it may have such.
    element: Option<TypeRef<'a>>,
    pub atomic: bool,
}

/// The kinds of value that a type takes; more than one where the schema is silent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Atom<'a> {
    pub scalar: Option<Scalar>,
    pub list: Option<ListAtom<'a>>,
    pub map: Option<MapAtom<'a>>,
}

/// The one kind of value that is to be handled.
pub enum Kind<'a> {
    Map(MapAtom<'a>),
    Scalar(Scalar),
    List(ListAtom<'a>),
}

impl<'a> TypeRef<'a> {
    /// A message as its own declaration has it.
    fn whole(registry: &'a Registry, id: MessageId) -> Self {
        Self::Message { registry, id, atomic: registry.message(id).atomic }
    }

    /// A field says itself whether it is atomic, whatever its type says.
    fn of_field(registry: &'a Registry, field: &'a Field) -> Self {
        Self::Of { registry, ty: &field.ty, list: &field.list, atomic: field.atomic }
    }

    pub fn resolve(self) -> Atom<'a> {
        match self {
            Self::Deduced => untyped(Self::Deduced, false),
            Self::UntypedAtomic => untyped(Self::UntypedAtomic, true),
            Self::Message { registry, id, atomic } => {
                let message = registry.message(id);
                let open = message.open || message.fields.is_empty();
                let element = open.then_some(Self::Deduced);
                let map = MapAtom { message: Some((registry, id)), element, atomic };
                Atom { map: Some(map), ..Atom::default() }
            }
            Self::Of { registry, ty, list, atomic } => {
                let inner = |ty: &'a Type| match ty {
                    Type::Message(id) => Self::whole(registry, *id),
                    ty => Self::Of { registry, ty, list: ATOMIC_LIST, atomic: false },
                };
                let scalar = |s| Atom { scalar: Some(s), ..Atom::default() };
                match ty {
                    Type::Bool => scalar(Scalar::Boolean),
                    Type::Int32 | Type::Int64 | Type::Double => scalar(Scalar::Numeric),
                    Type::String | Type::Bytes | Type::Duration => scalar(Scalar::String),
                    Type::Quantity | Type::IntOrString | Type::Time | Type::MicroTime => {
                        scalar(Scalar::Any)
                    }
                    Type::Message(id) => Self::Message { registry, id: *id, atomic }.resolve(),
                    Type::List(element) => {
                        let relation = match list {
                            ListType::Atomic => Relation::Atomic,
                            ListType::Set => Relation::Set,
                            ListType::Map(keys) => Relation::Keyed(keys),
                        };
                        let list = ListAtom { element: inner(element), relation };
                        Atom { list: Some(list), ..Atom::default() }
                    }
                    Type::Map(element) => {
                        let element = Some(inner(element));
                        Atom {
                            map: Some(MapAtom { message: None, element, atomic }),
                            ..Atom::default()
                        }
                    }
                    // What they hold has no owners of its own.
                    Type::FieldsV1 | Type::RawExtension => {
                        let element = Some(Self::Deduced);
                        Atom {
                            map: Some(MapAtom { message: None, element, atomic: true }),
                            ..Atom::default()
                        }
                    }
                    _ => untyped(Self::Deduced, false),
                }
            }
        }
    }
}

fn untyped(element: TypeRef<'_>, atomic: bool) -> Atom<'_> {
    let list = ListAtom { element: TypeRef::UntypedAtomic, relation: Relation::Atomic };
    Atom {
        scalar: Some(Scalar::Any),
        list: Some(list),
        map: Some(MapAtom { message: None, element: Some(element), atomic }),
    }
}

impl<'a> Atom<'a> {
    /// Only the kind that a value is of, where the type takes it.
    pub fn deduce(self, v: Option<&Value>) -> Self {
        let none = Self::default();
        match v {
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) if self.scalar.is_some() => {
                Self { scalar: self.scalar, ..none }
            }
            Some(Value::Array(_)) if self.list.is_some() => Self { list: self.list, ..none },
            Some(Value::Object(_)) if self.map.is_some() => Self { map: self.map, ..none },
            _ => self,
        }
    }

    /// Whether two atoms deduced from one take the same kinds.
    pub fn same(&self, other: &Self) -> bool {
        let kinds = |a: &Self| (a.scalar.is_some(), a.list.is_some(), a.map.is_some());
        kinds(self) == kinds(other)
    }

    /// The kind to handle: a type takes at least one.
    pub fn kind(self) -> Kind<'a> {
        match (self.map, self.scalar, self.list) {
            (Some(map), _, _) => Kind::Map(map),
            (_, Some(scalar), _) => Kind::Scalar(scalar),
            (_, _, Some(list)) => Kind::List(list),
            _ => Kind::Scalar(Scalar::Any),
        }
    }
}

impl Scalar {
    /// Whether a value fits; null fits all.
    pub fn fits(self, v: &Value) -> Result<(), String> {
        let wrong = match (self, v) {
            (_, Value::Null)
            | (Self::Numeric, Value::Number(_))
            | (Self::String, Value::String(_))
            | (Self::Boolean, Value::Bool(_))
            | (Self::Any, Value::Number(_) | Value::String(_) | Value::Bool(_)) => return Ok(()),
            (Self::Numeric, v) => {
                let kind = match v {
                    Value::String(_) => "string",
                    Value::Bool(_) => "bool",
                    Value::Array(_) => "[]interface {}",
                    _ => "map[string]interface {}",
                };
                format!("expected numeric (int or float), got {kind}")
            }
            (Self::String, v) => {
                format!("expected string, got &value.valueUnstructured{{Value:{v}}}")
            }
            (Self::Boolean, v) => format!("expected boolean, got &{{{}}}", plain(v)),
            (Self::Any, v) => format!("expected any scalar, got &{{{}}}", plain(v)),
        };
        Err(wrong)
    }
}

fn plain(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

impl<'a> MapAtom<'a> {
    /// The type of a field, if the schema has one for it.
    pub fn field(&self, name: &str) -> Option<TypeRef<'a>> {
        self.declared(name).or(self.element)
    }

    /// The type of a field that a message declares.
    pub fn declared(&self, name: &str) -> Option<TypeRef<'a>> {
        let (registry, id) = self.message?;
        registry.json_field(id, name).map(|f| TypeRef::of_field(registry, f))
    }

    fn default_of(&self, name: &str) -> Option<Value> {
        let (registry, id) = self.message?;
        let field = registry.json_field(id, name)?;
        if field.default.is_some() {
            return field.default.clone();
        }
        // What JSON always shows has its zero value as its default in the API's description.
        let always = !field.omitempty && !field.pointer;
        match field.ty {
            Type::String if always => Some("".into()),
            Type::Int32 | Type::Int64 | Type::Double if always => Some(0.into()),
            Type::Bool if always => Some(false.into()),
            _ => None,
        }
    }
}

impl ListAtom<'_> {
    /// What identifies an element of a list that is not atomic.
    pub fn path_element(&self, item: &Value) -> Result<PathElement, String> {
        let keys = match self.relation {
            Relation::Atomic => return Err("invalid indexing of non-associative list".to_owned()),
            Relation::Keyed(keys) => keys,
            Relation::Set => {
                return match item {
                    Value::Object(_) => {
                        Err("associative list without keys has an element that's a map type"
                            .to_owned())
                    }
                    Value::Array(_) => {
                        Err("not supported: associative list with lists as elements".to_owned())
                    }
                    Value::Null => {
                        Err("associative list without keys has an element that's an explicit null"
                            .to_owned())
                    }
                    scalar => Ok(PathElement::Value(scalar.clone())),
                };
            }
        };
        let fields = match item {
            Value::Object(fields) => fields,
            Value::Null => {
                return Err("associative list with keys may not have a null element".to_owned());
            }
            _ => {
                return Err("associative list with keys may not have non-map elements".to_owned());
            }
        };
        let element = self.element.resolve().map;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let value =
                fields.get(key).cloned().or_else(|| element.and_then(|e| e.default_of(key)));
            found.extend(value.map(|v| (key.clone(), v)));
        }
        if found.is_empty() && !keys.is_empty() {
            let keys: Vec<String> = keys.iter().map(|k| crate::field::quote(k)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and \
                 doesn't have default values for any key fields)",
                keys.join(" ")
            ));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(PathElement::Key(found))
    }
}

/// A place and what is wrong there.
pub type Problems = Vec<String>;

/// Several problems as one text.
pub fn problems_text(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

fn problem(path: &[PathElement], text: &str) -> String {
    if path.is_empty() { text.to_owned() } else { format!("{}: {text}", show(path)) }
}

/// Checks a value against a type: unknown fields, wrong kinds, bad keys, and duplicates too.
pub fn validate(t: TypeRef<'_>, v: &Value) -> Result<(), Problems> {
    let mut problems = Problems::new();
    check(t, v, &mut Vec::new(), &mut problems);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn check(t: TypeRef<'_>, v: &Value, path: &mut Vec<PathElement>, problems: &mut Problems) {
    match t.resolve().deduce(Some(v)).kind() {
        Kind::Scalar(scalar) => {
            if let Err(text) = scalar.fits(v) {
                problems.push(problem(path, &text));
            }
        }
        Kind::Map(map) => match v {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, value) in fields {
                    path.push(PathElement::Field(name.clone()));
                    match map.field(name) {
                        Some(t) => check(t, value, path, problems),
                        None => {
                            // Upstream leaves the rest of the map at the first such field.
                            problems.push(problem(path, "field not declared in schema"));
                            path.pop();
                            return;
                        }
                    }
                    path.pop();
                }
            }
            other => {
                problems.push(problem(path, &format!("expected map, got &{{{}}}", plain(other))))
            }
        },
        Kind::List(list) => match v {
            Value::Null => {}
            Value::Array(items) => check_items(list, items, path, problems),
            other => {
                problems.push(problem(path, &format!("expected list, got &{{{}}}", plain(other))));
            }
        },
    }
}

fn check_items(
    list: ListAtom<'_>,
    items: &[Value],
    path: &mut Vec<PathElement>,
    problems: &mut Problems,
) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        let pe = match list.relation {
            Relation::Atomic => PathElement::Index(i as i64),
            _ => match list.path_element(item) {
                Ok(pe) => {
                    if !seen.insert(pe.clone()) {
                        let text = format!("duplicate entries for key {pe}");
                        problems.push(problem(path, &text));
                    }
                    pe
                }
                Err(text) => {
                    problems.push(problem(path, &format!("element {i}: {text}")));
                    return;
                }
            },
        };
        path.push(pe);
        check(list.element, item, path, problems);
        path.pop();
    }
}

/// The fields that a value holds: leaves, and the elements of lists and of maps.
pub fn field_set(t: TypeRef<'_>, v: &Value) -> Set {
    let mut set = Set::default();
    collect(t, v, &mut Vec::new(), &mut set);
    set
}

fn collect(t: TypeRef<'_>, v: &Value, path: &mut Vec<PathElement>, set: &mut Set) {
    match t.resolve().deduce(Some(v)).kind() {
        Kind::Scalar(_) => set.insert(path),
        Kind::Map(map) if map.atomic => set.insert(path),
        Kind::Map(map) => {
            for (name, value) in v.as_object().into_iter().flatten() {
                path.push(PathElement::Field(name.clone()));
                if let Some(t) = map.field(name) {
                    collect(t, value, path, set);
                }
                let hollow = value.is_null() || value.as_object().is_some_and(|m| m.is_empty());
                if hollow || map.declared(name).is_none() {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Kind::List(list) if matches!(list.relation, Relation::Atomic) => set.insert(path),
        Kind::List(list) => {
            let items: Vec<(PathElement, &Value)> = v
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|item| Some((list.path_element(item).ok()?, item)))
                .collect();
            let mut count = std::collections::BTreeMap::new();
            for (pe, _) in &items {
                *count.entry(pe.clone()).or_insert(0) += 1;
            }
            for (pe, item) in items {
                let single = count.get(&pe) == Some(&1);
                path.push(pe);
                // Of duplicates only the element itself is owned, not what is in it.
                if single {
                    collect(list.element, item, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// The set with the declared fields that have something below them in it: whoever owns
/// `a.b` holds the struct `a` in being.
pub fn with_named_fields(set: &Set, t: Option<TypeRef<'_>>) -> Set {
    let atom = t.map(TypeRef::resolve).unwrap_or_default();
    let mut out = Set { members: set.members.clone(), ..Set::default() };
    for (pe, child) in &set.children {
        let mut below = None;
        match (pe, atom.map, atom.list) {
            (PathElement::Field(name), Some(map), _) => {
                if map.declared(name).is_some() {
                    out.members.insert(pe.clone());
                }
                below = map.field(name);
            }
            (PathElement::Key(_), _, Some(list)) => below = Some(list.element),
            _ => {}
        }
        out.children.insert(pe.clone(), with_named_fields(child, below));
    }
    out
}

/// Fits a set that was written under another schema to this one: what is atomic by now is owned
/// as a whole by whoever owned a part of it.
pub fn reconcile(set: &Set, t: TypeRef<'_>) -> Set {
    let (mut remove, mut add) = (Set::default(), Set::default());
    find_atomic(Some(set), t, false, &mut Vec::new(), &mut remove, &mut add);
    if add.is_empty() { set.clone() } else { set.recursive_difference(&remove).union(&add) }
}

fn find_atomic(
    set: Option<&Set>,
    t: TypeRef<'_>,
    owned_whole: bool,
    path: &mut Vec<PathElement>,
    remove: &mut Set,
    add: &mut Set,
) {
    let kind = t.resolve().kind();
    let atomic = match &kind {
        Kind::Scalar(_) => return,
        // Without a schema there is nothing that could have changed.
        Kind::Map(map) if map.message.is_none() && is_untyped(map.element) => return,
        Kind::Map(map) => map.atomic,
        Kind::List(list) => matches!(list.relation, Relation::Atomic),
    };
    let Some(set) = set else { return };
    if atomic && !owned_whole {
        if !set.is_empty() {
            remove.insert(path);
            add.insert(path);
        }
        return;
    }
    let children = set.children.keys().filter(|pe| !set.members.contains(pe));
    for pe in children.chain(&set.members) {
        let below = match (&kind, pe) {
            (Kind::Map(map), PathElement::Field(name)) => map.field(name),
            (Kind::Map(map), _) => map.element,
            (Kind::List(list), _) => Some(list.element),
            (Kind::Scalar(_), _) => None,
        };
        let Some(t) = below else { continue };
        let child = set.children.get(pe);
        let whole = set.members.contains(pe) && child.is_none();
        path.push(pe.clone());
        find_atomic(child, t, whole, path, remove, add);
        path.pop();
    }
}

fn is_untyped(element: Option<TypeRef<'_>>) -> bool {
    matches!(element, Some(TypeRef::Deduced | TypeRef::UntypedAtomic))
}
