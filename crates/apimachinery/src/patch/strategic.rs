//! Strategic merge patch (`application/strategic-merge-patch+json`).

use super::PatchError;
use crate::codec::Schema;
use crate::schema::{Field, MessageId, Registry, Type};
use crate::{Map, Value, object};

const DIRECTIVE: &str = "$patch";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const ORDER: &str = "$setElementOrder";
const RETAIN_KEYS: &str = "$retainKeys";

type Result<T> = std::result::Result<T, PatchError>;

fn malformed<T>(text: &str) -> Result<T> {
    Err(PatchError::Malformed(text.to_owned()))
}

fn internal<T>(text: impl Into<String>) -> Result<T> {
    Err(PatchError::Internal(text.into()))
}

/// Merges the patch into the object by the schema's merge keys and strategies, honouring the
/// `$patch`, `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys` directives.
/// On error the object is in no defined state.
pub fn apply(schema: Schema<'_>, object: &mut Value, patch: &Value) -> Result<()> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            super::merge::go_kind(patch)
        )));
    };
    let level = Level::Message(schema.registry, schema.message);
    let original = match object.take() {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    *object = merge_map(original, patch.clone(), level)?.into();
    Ok(())
}

/// The type of a JSON object or of the elements of a list.
#[derive(Clone, Copy)]
enum Level<'a> {
    Message(&'a Registry, MessageId),
    /// No message; Go's name for what it is.
    Other(&'static str),
}

/// What the schema says of the field of a JSON object.
struct Meta<'a> {
    level: Level<'a>,
    strategy: &'a str,
    merge_key: &'a str,
}

impl<'a> Level<'a> {
    fn of(registry: &'a Registry, ty: &'a Type) -> Self {
        match ty {
            Type::Message(id) => Self::Message(registry, *id),
            Type::Map(_) => Self::Other("map"),
            Type::List(_) | Type::Bytes => Self::Other("slice"),
            Type::Bool => Self::Other("bool"),
            Type::Int32 => Self::Other("int32"),
            Type::Int64 => Self::Other("int64"),
            Type::Double => Self::Other("float64"),
            Type::String => Self::Other("string"),
            _ => Self::Other("struct"),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Message(..) => "struct",
            Self::Other(kind) => kind,
        }
    }

    fn field(self, key: &str) -> Result<(&'a Registry, &'a Field)> {
        match self {
            Self::Message(registry, id) => match registry.json_field(id, key) {
                Some(field) => Ok((registry, field)),
                None => {
                    let name = registry.message(id).short_name();
                    internal(format!(
                        "unable to find api field in struct {name} for the json field \"{key}\""
                    ))
                }
            },
            Self::Other("struct") => internal(format!(
                "unable to find api field in struct RawExtension for the json field \"{key}\""
            )),
            Self::Other(kind) => internal(format!(
                "merging an object in json but data type is not struct, instead is: {kind}"
            )),
        }
    }

    fn map_field(self, key: &str) -> Result<Meta<'a>> {
        let (registry, field) = self.field(key)?;
        meta(field, Level::of(registry, &field.ty))
    }

    fn list_field(self, key: &str) -> Result<Meta<'a>> {
        let (registry, field) = self.field(key)?;
        match &field.ty {
            Type::List(inner) if matches!(**inner, Type::List(_)) => {
                internal("unexpected slice of slice")
            }
            Type::List(inner) => meta(field, Level::of(registry, inner)),
            _ => internal(format!("expected slice or array type, but got: {}", self.kind())),
        }
    }
}

fn meta<'a>(field: &'a Field, level: Level<'a>) -> Result<Meta<'a>> {
    let mut strategies = field.patch_strategy.iter().filter(|s| *s != "retainKeys");
    let strategy = strategies.next().map_or("", String::as_str);
    if strategies.next().is_some() || field.patch_strategy.len() > 2 {
        return internal(format!(
            "unexpected patch strategy: [{}]",
            field.patch_strategy.join(" ")
        ));
    }
    Ok(Meta { level, strategy, merge_key: field.merge_key.as_deref().unwrap_or("") })
}

fn merge_map(mut original: Map, mut patch: Map, level: Level<'_>) -> Result<Map> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                return Ok(patch);
            }
            Some("delete") => return Ok(Map::new()),
            _ => return bad_directive(directive, &patch),
        }
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, level)?;
    for (key, change) in patch {
        let deletion = key.starts_with(DELETE_FROM);
        let key = if deletion { field_of(&key, DELETE_FROM)? } else { key };
        if change.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), change) {
            (Some(Value::Object(from)), Value::Object(change)) => {
                let meta = level.map_field(&key)?;
                let merged = match meta.strategy {
                    "replace" => change,
                    _ => merge_map(from, change, meta.level)?,
                };
                Some(merged.into())
            }
            (Some(Value::Array(from)), Value::Array(change)) => {
                let meta = level.list_field(&key)?;
                Some(merge_list(from, change, &meta, deletion)?.into())
            }
            (from, _) if deletion => from,
            (_, change) => without_directives(without_nulls(change)),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

fn bad_directive<T>(directive: &Value, map: &Map) -> Result<T> {
    let map = Value::Object(map.clone());
    internal(format!("unknown patch type: {} in map: {}", shown(directive), shown(&map)))
}

/// The field of `$directive/field`.
fn field_of(key: &str, directive: &str) -> Result<String> {
    match key.split_once('/') {
        Some((d, field)) if d == directive => Ok(field.to_owned()),
        _ if directive == ORDER => malformed("invalid patch format of setElementOrder list"),
        _ => malformed("invalid patch format of primitive list"),
    }
}

/// Clears the fields that `$retainKeys` does not name; all that the patch sets must be named.
fn retain_keys(original: &mut Map, patch: &mut Map) -> Result<()> {
    let wrong = || malformed("invalid patch format of retainKeys");
    let keys = match patch.remove(RETAIN_KEYS) {
        None => return Ok(()),
        Some(Value::Array(keys)) => keys,
        Some(_) => return wrong(),
    };
    let named = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    let directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(ORDER);
    if patch.iter().any(|(k, v)| !v.is_null() && !directive(k) && !named(k)) {
        return wrong();
    }
    original.retain(|k, _| named(k));
    Ok(())
}

/// Merges the lists that come with a `$setElementOrder`, and takes them out of the patch.
fn merge_ordered_lists(original: &mut Map, patch: &mut Map, level: Level<'_>) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER)).cloned().collect();
    for directive in directives {
        let Some(order) = patch.remove(&directive) else { continue };
        let order = list_of(order)?;
        let key = field_of(&directive, ORDER)?;
        let from = original.get(&key).cloned().map(list_of).transpose()?;
        let change = patch.get(&key).cloned().map(list_of).transpose()?;
        let meta = level.list_field(&key)?;
        check_order(change.as_deref().unwrap_or(&[]), &order, meta.merge_key)?;
        let kind =
            element_kind(&[from.as_deref().unwrap_or(&[]), change.as_deref().unwrap_or(&[])]);
        let server_order = match (&from, &change) {
            (Some(from), Some(change)) => order_after_edits(from, change, &meta),
            _ => from.clone().unwrap_or_default(),
        };
        let merged = match (from, change) {
            (None, None) => continue,
            (Some(from), None) => from,
            (None, Some(change)) => change.into_iter().filter_map(without_directives).collect(),
            (Some(from), Some(change)) => merge_list(from, change, &meta, false)?,
        };
        kind?;
        let (named, rest) = partition(merged, &order, meta.merge_key)?;
        let ordered = in_order(named, rest, &order, &server_order, meta.merge_key)?;
        original.insert(key.clone(), ordered.into());
        patch.remove(&key);
    }
    Ok(())
}

/// The order of the server's list as upstream sees it after the merge. Upstream deletes and
/// appends in the memory of that very list, and so shifts what follows a deleted element and
/// finds new elements in the places that became free.
fn order_after_edits(from: &[Value], change: &[Value], meta: &Meta<'_>) -> Vec<Value> {
    let mut order = from.to_vec();
    if meta.merge_key.is_empty() || meta.strategy != "merge" {
        return order;
    }
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    let mut length = order.len();
    for gone in change.iter().filter(|item| directive(item).as_deref() == Some("delete")) {
        let id = gone.get(meta.merge_key);
        while let Some(i) = order[..length].iter().position(|o| o.get(meta.merge_key) == id) {
            // The last place keeps what stood there.
            for j in i + 1..length {
                order[j - 1] = order[j].clone();
            }
            length -= 1;
        }
    }
    if change.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        return order;
    }
    for item in change.iter().filter(|item| directive(item).is_none()) {
        let id = item.get(meta.merge_key);
        let known = order[..length].iter().any(|o| o.get(meta.merge_key) == id);
        if !known && length < order.len() {
            order[length] = item.clone();
            length += 1;
        }
    }
    order
}

fn list_of(v: Value) -> Result<Vec<Value>> {
    match v {
        Value::Array(items) => Ok(items),
        other => {
            internal(format!("expected a []interface {{}}, but received a {}", go_type(&other)))
        }
    }
}

/// The items of the patch must stand in the order list, in the same order.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut left = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let found = 'search: {
            for ordered in left.by_ref() {
                if identity(item, merge_key)? == identity(ordered, merge_key)? {
                    break 'search true;
                }
            }
            false
        };
        if !found {
            return internal(format!(
                "The order in patch list:\n{}\n doesn't match {ORDER} list:\n{}\n",
                shown(&patch.to_vec().into()),
                shown(&order.to_vec().into())
            ));
        }
    }
    Ok(())
}

/// What identifies an element: itself, or the value of its merge key.
fn identity<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value> {
    if merge_key.is_empty() {
        return Ok(item);
    }
    match item {
        Value::Object(fields) => match fields.get(merge_key) {
            Some(v) => Ok(v),
            None => internal(format!(
                "map: {} does not contain declared merge key: {merge_key}",
                shown(item)
            )),
        },
        other => internal(format!(
            "expected a map[string]interface {{}}, but received a {}",
            go_type(other)
        )),
    }
}

#[derive(PartialEq)]
enum Elements {
    Maps,
    Scalars,
}

/// All elements must be alike, and none a list.
fn element_kind(lists: &[&[Value]]) -> Result<Elements> {
    let mut items = lists.iter().copied().flatten();
    let Some(first) = items.next() else {
        return internal("no elements in any of the given slices");
    };
    if first.is_array() {
        return Err(PatchError::Unprocessable("lists of lists are not supported".to_owned()));
    }
    if items.any(|item| go_type(item) != go_type(first)) {
        let lists: Vec<Value> = lists.iter().map(|l| l.to_vec().into()).collect();
        let lists = shown(&lists.into());
        return internal(format!("list element types are not identical: {lists}"));
    }
    Ok(if first.is_object() { Elements::Maps } else { Elements::Scalars })
}

fn merge_list(
    mut original: Vec<Value>,
    mut patch: Vec<Value>,
    meta: &Meta<'_>,
    deletion: bool,
) -> Result<Vec<Value>> {
    if !deletion && meta.strategy != "merge" {
        return Ok(patch);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let kind = element_kind(&[&original, &patch])?;
    let merged = if kind == Elements::Scalars {
        if deletion {
            original.retain(|item| !patch.contains(item));
            return Ok(original);
        }
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        merged
    } else {
        if meta.merge_key.is_empty() {
            return internal(format!(
                "cannot merge lists without merge key for {}",
                meta.level.kind()
            ));
        }
        (original, patch) = obey_directives(original, patch, meta.merge_key)?;
        merge_elements(original.clone(), patch.clone(), meta)?
    };
    let (named, rest) = partition(merged, &patch, meta.merge_key)?;
    in_order(named, rest, &patch, &original, meta.merge_key)
}

/// Carries out the `$patch` directives among the elements of a patch, and drops them.
fn obey_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(Value::String(d)) if d == "delete" => {
                let gone = identity(&item, merge_key)?;
                original.retain(|o| o.get(merge_key) != Some(gone));
            }
            Some(Value::String(d)) if d == "replace" => replace = true,
            Some(Value::String(d)) if d == "merge" => {
                return internal("merging lists cannot yet be specified in the patch");
            }
            Some(other) => {
                return bad_directive(other, item.as_object().unwrap_or(&Map::new()));
            }
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

fn merge_elements(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    meta: &Meta<'_>,
) -> Result<Vec<Value>> {
    for item in patch {
        let key = identity(&item, meta.merge_key)?.clone();
        match original.iter_mut().find(|o| o.get(meta.merge_key) == Some(&key)) {
            Some(found) => {
                if let (Value::Object(from), Value::Object(change)) = (found.take(), item) {
                    *found = merge_map(from, change, meta.level)?.into();
                }
            }
            None => original.push(item),
        }
    }
    Ok(original)
}

/// The items that stand in a list, by their identity, and the others.
fn partition(items: Vec<Value>, by: &[Value], merge_key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut named = Vec::with_capacity(items.len());
    let mut rest = Vec::new();
    for item in items {
        let id = identity(&item, merge_key)?;
        let listed = match merge_key {
            "" => by.contains(id),
            key => by.iter().any(|b| b.get(key) == Some(id)),
        };
        if listed { named.push(item) } else { rest.push(item) }
    }
    Ok((named, rest))
}

/// Orders what the patch names as the patch does and the rest as the server does, then puts
/// each of the rest before the first named item that follows it on the server.
fn in_order(
    mut named: Vec<Value>,
    mut rest: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>> {
    for item in patch_order.iter().chain(server_order) {
        identity(item, merge_key)?;
    }
    let place = |item: &Value, order: &[Value]| {
        let id = identity(item, merge_key).ok();
        order.iter().position(|o| identity(o, merge_key).ok() == id)
    };
    named.sort_by_key(|item| place(item, patch_order));
    rest.sort_by_key(|item| place(item, server_order));
    let mut merged = Vec::with_capacity(named.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for item in named {
        let here = place(&item, server_order);
        while let Some(next) = rest.next_if(
            |r| matches!((place(r, server_order), here), (Some(r), Some(here)) if r < here),
        ) {
            merged.push(next);
        }
        merged.push(item);
    }
    merged.extend(rest);
    Ok(merged)
}

/// Nulls of maps are left out of what is new, at any depth.
fn without_nulls(v: Value) -> Value {
    match v {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k, without_nulls(v)))
            .collect::<Map>()
            .into(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// What is new keeps no map with a `$patch` directive.
fn without_directives(v: Value) -> Option<Value> {
    Some(match v {
        Value::Object(fields) if fields.contains_key(DIRECTIVE) => return None,
        Value::Object(fields) => fields
            .into_iter()
            .filter_map(|(k, v)| Some((k, without_directives(v)?)))
            .collect::<Map>()
            .into(),
        Value::Array(items) => items.into_iter().filter_map(without_directives).collect(),
        other => other,
    })
}

/// The type's name, as Go's `%s` prints it.
fn go_type(v: &Value) -> &'static str {
    if v.is_null() { "%!s(<nil>)" } else { object::go_type(v) }
}

/// A value as Go's `%v` prints it.
fn shown(v: &Value) -> String {
    match v {
        Value::Null => "<nil>".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
