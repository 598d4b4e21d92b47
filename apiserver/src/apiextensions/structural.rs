//! What makes a schema structural: types are said once and outside of logic, so that pruning and
//! defaulting know what a value is without trying alternatives (upstream:
//! `pkg/apiserver/schema/validation.go`, `complete.go`).

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};

use super::schema::Schema;
use super::{coerce, lists, rules, validate};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// All that keeps a schema from being structural, in the order of its text.
pub fn check(path: &Path, schema: &Schema) -> ErrorList {
    let mut errors = ErrorList::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn nested<'a>(schema: &'a Schema) -> Option<&'a Schema> {
    schema.additional.as_ref().and_then(|a| a.schema.as_deref())
}

fn invariants(schema: &Schema, level: Level, path: &Path, errors: &mut ErrorList) {
    if schema.ty == "array" && schema.items.is_none() {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = schema.items.as_deref() {
        invariants(items, Level::Item, &path.child("items"), errors);
    }
    for (name, property) in &schema.properties {
        invariants(property, Level::Field, &path.child("properties").key(name), errors);
    }
    if schema.additional.is_some() {
        let at = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(&at, "must not be used at the root"));
        }
        if let Some(values) = nested(schema) {
            invariants(values, Level::Field, &at, errors);
        }
    }
    if schema.int_or_string && schema.preserve {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        let text = "must be false if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(&at, true, text));
    }
    if schema.int_or_string && schema.embedded {
        let at = path.child("x-kubernetes-embedded-resource");
        let text = "must be false if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(&at, true, text));
    }
    let skip_any = is_int_or_string(&schema.any_of);
    let skip_first = schema.all_of.first().is_some_and(|first| is_int_or_string(&first.any_of));
    values(schema, skip_any, skip_first, level, path, errors);
    types(schema, level, path, errors);
    metadata(schema, level, path, errors);
}

fn types(schema: &Schema, level: Level, path: &Path, errors: &mut ErrorList) {
    let at = path.child("type");
    if schema.embedded && schema.ty != "object" {
        let text = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match schema.ty.as_str() {
            "" => FieldError::required(&at, text),
            ty => FieldError::invalid(&at, ty, text),
        });
    } else if schema.ty.is_empty() && !schema.int_or_string && !schema.preserve {
        let text = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&at, text));
    }
    if schema.embedded && schema.additional.is_some() {
        let text = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(&path.child("additionalProperties"), text));
    }
    if level == Level::Root && !schema.ty.is_empty() && schema.ty != "object" {
        errors.push(FieldError::invalid(&at, schema.ty.as_str(), "must be object at the root"));
    }
}

fn metadata(schema: &Schema, level: Level, path: &Path, errors: &mut ErrorList) {
    let resource = level == Level::Root || schema.embedded;
    let properties = path.child("properties");
    for name in ["kind", "apiVersion"] {
        if let Some(property) = schema.properties.get(name).filter(|p| resource && p.ty != "string")
        {
            let at = properties.key(name).child("type");
            errors.push(FieldError::invalid(&at, property.ty.as_str(), "must be string"));
        }
    }
    if let Some(metadata) = schema.properties.get("metadata") {
        let at = properties.key("metadata");
        if resource && metadata.ty != "object" {
            let text = "must be object";
            errors.push(FieldError::invalid(&at.child("type"), metadata.ty.as_str(), text));
        }
        if level == Level::Root && !is_plain_metadata(metadata) {
            let text = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(&at, text));
        }
    }
    if schema.embedded && !schema.preserve && schema.properties.is_empty() {
        let text = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(&properties, text));
    }
}

/// Nothing is said of metadata but of its names.
fn is_plain_metadata(metadata: &Schema) -> bool {
    let only_names = metadata.properties.keys().all(|k| k == "name" || k == "generateName");
    only_names
        && metadata.description.is_empty()
        && metadata.title.is_empty()
        && !metadata.nullable
        && !metadata.preserve
        && !metadata.embedded
        && !metadata.int_or_string
        && metadata.additional.is_none()
        && metadata.items.is_none()
        && metadata.list_type.is_none()
        && metadata.map_type.is_none()
        && metadata.list_keys.is_empty()
        && metadata.rules.is_empty()
        && has_no_values(metadata)
}

fn has_no_values(schema: &Schema) -> bool {
    schema.format.is_empty()
        && schema.maximum.is_none()
        && schema.minimum.is_none()
        && schema.multiple_of.is_none()
        && schema.max_length.is_none()
        && schema.min_length.is_none()
        && schema.pattern.is_none()
        && schema.max_items.is_none()
        && schema.min_items.is_none()
        && !schema.unique_items
        && schema.max_properties.is_none()
        && schema.min_properties.is_none()
        && schema.required.is_empty()
        && schema.one_of_values.is_none()
        && schema.all_of.is_empty()
        && schema.any_of.is_empty()
        && schema.one_of.is_empty()
        && schema.not.is_none()
}

/// `anyOf: [{type: integer}, {type: string}]`, which what is int or string may have.
fn is_int_or_string(any_of: &[Schema]) -> bool {
    let is = |schema: &Schema, ty: &str| {
        schema.ty == ty
            && has_no_values(schema)
            && schema.properties.is_empty()
            && schema.items.is_none()
            && schema.default.is_none()
    };
    matches!(any_of, [a, b] if is(a, "integer") && is(b, "string"))
}

/// Logic within a schema.
fn values(
    schema: &Schema,
    skip_any: bool,
    skip_first: bool,
    level: Level,
    path: &Path,
    errors: &mut ErrorList,
) {
    if !skip_any {
        for (i, inner) in schema.any_of.iter().enumerate() {
            logical(inner, false, level, &path.child("anyOf").index(i), errors);
        }
    }
    for (i, inner) in schema.all_of.iter().enumerate() {
        let skip = skip_first && i == 0;
        logical(inner, skip, level, &path.child("allOf").index(i), errors);
    }
    for (i, inner) in schema.one_of.iter().enumerate() {
        logical(inner, false, level, &path.child("oneOf").index(i), errors);
    }
    if let Some(inner) = schema.not.as_deref() {
        logical(inner, false, level, &path.child("not"), errors);
    }
    if let Some(pattern) = &schema.pattern
        && let Err(error) = &pattern.regex
    {
        let text = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(&path.child("pattern"), pattern.text.as_str(), text));
    }
}

/// A schema that stands in logic: it may only say what values are, not of which type.
fn logical(schema: &Schema, skip_any: bool, level: Level, path: &Path, errors: &mut ErrorList) {
    values(schema, skip_any, false, level, path, errors);
    if let Some(items) = schema.items.as_deref() {
        logical(items, false, level, &path.child("items"), errors);
    }
    for (name, property) in &schema.properties {
        logical(property, false, Level::Field, &path.child("properties").key(name), errors);
    }
    let forbidden = [
        (!schema.ty.is_empty(), "type", "must be empty to be structural"),
        (
            schema.additional.as_ref().is_some_and(|a| a.allowed),
            "additionalProperties",
            "must be undefined to be structural",
        ),
        (schema.default.is_some(), "default", "must be undefined to be structural"),
        (!schema.title.is_empty(), "title", "must be empty to be structural"),
        (!schema.description.is_empty(), "description", "must be empty to be structural"),
        (schema.nullable, "nullable", "must be false to be structural"),
        (schema.preserve, "x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        (schema.embedded, "x-kubernetes-embedded-resource", "must be false to be structural"),
        (schema.int_or_string, "x-kubernetes-int-or-string", "must be false to be structural"),
        (
            !schema.list_keys.is_empty(),
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            schema.list_type.is_some(),
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (schema.map_type.is_some(), "x-kubernetes-map-type", "must be undefined to be structural"),
        (!schema.rules.is_empty(), "x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (_, name, text) in forbidden.into_iter().filter(|(is, ..)| *is) {
        errors.push(FieldError::forbidden(&path.child(name), text));
    }
    if schema.properties.contains_key("metadata") {
        let at = path.child("properties").key("metadata");
        errors.push(FieldError::forbidden(&at, "must not be specified in a nested context"));
    }
}

/// What logic speaks of must be there outside of it.
fn complete(
    logic: &Schema,
    schema: Option<&Schema>,
    path: &Path,
    logic_path: &Path,
    errors: &mut ErrorList,
) {
    let inner = [("allOf", &logic.all_of), ("anyOf", &logic.any_of), ("oneOf", &logic.one_of)];
    if let Some(not) = logic.not.as_deref() {
        part(not, schema, path, &logic_path.child("not"), errors);
    }
    for (name, schemas) in inner {
        for (i, logic) in schemas.iter().enumerate() {
            part(logic, schema, path, &logic_path.child(name).index(i), errors);
        }
    }
}

fn part(
    logic: &Schema,
    schema: Option<&Schema>,
    path: &Path,
    logic_path: &Path,
    errors: &mut ErrorList,
) {
    let Some(schema) = schema else {
        let text = format!("because it is defined in {logic_path}");
        return errors.push(FieldError::required(path, text));
    };
    complete(logic, Some(schema), path, logic_path, errors);
    if let Some(items) = logic.items.as_deref() {
        let (path, logic_path) = (path.child("items"), logic_path.child("items"));
        part(items, schema.items.as_deref(), &path, &logic_path, errors);
    }
    for (name, property) in &logic.properties {
        let path = path.child("properties").key(name);
        let logic_path = logic_path.child("properties").key(name);
        part(property, schema.properties.get(name), &path, &logic_path, errors);
    }
}

/// What is wrong with the defaults of a schema (upstream: `defaulting/validation.go`). Those of
/// metadata are not looked at: they are refused elsewhere, or not there.
pub fn defaults(path: &Path, schema: &Schema, root: bool, errors: &mut ErrorList) {
    if let Some(default) = &schema.default {
        one_default(&path.child("default"), schema, default, errors);
    }
    if let Some(items) = schema.items.as_deref() {
        defaults(&path.child("items"), items, false, errors);
    }
    for (name, property) in &schema.properties {
        let meta = matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        if !(meta && (root || schema.embedded)) {
            defaults(&path.child("properties").key(name), property, false, errors);
        }
    }
}

fn one_default(path: &Path, schema: &Schema, default: &Value, errors: &mut ErrorList) {
    if !coerce::is_pruned(default, schema, schema.embedded) {
        errors.push(FieldError::invalid(path, default.clone(), "must not have unknown fields"));
    }
    let mut coerced = default.clone();
    let (malformed, mut unknown) = (coerce::Malformed::Refuse, Vec::new());
    if let Err(error) = coerce::embedded(&mut coerced, schema, path, malformed, &mut unknown) {
        return errors.push(error);
    }
    let mut found = ErrorList::new();
    lists::embedded(default, schema, path, &mut found);
    if found.is_empty() {
        found = validate::validate(path, schema, default, None);
    }
    if found.is_empty()
        && let Some(rules) = rules::Rules::of_part(schema)
    {
        found = rules.check(path, default, None);
    }
    errors.extend(found);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn errors(props: Value) -> Vec<String> {
        let schema = Schema::read(&props).expect("a schema");
        check(&Path::new("s"), &schema).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn structural_schemas_say_types_once() {
        let none: [&str; 0] = [];
        let object = |properties: Value| json!({"type": "object", "properties": properties});
        assert_eq!(errors(object(json!({"a": {"type": "string"}}))), none);
        assert_eq!(errors(json!({})), ["s.type: Required value: must not be empty at the root"]);
        assert_eq!(
            errors(json!({"type": "array", "items": {"type": "string"}})),
            [r#"s.type: Invalid value: "array": must be object at the root"#]
        );
        assert_eq!(
            errors(object(json!({"a": {}}))),
            ["s.properties[a].type: Required value: must not be empty for specified object fields"]
        );
        assert_eq!(
            errors(object(json!({"a": {"type": "array"}}))),
            ["s.properties[a].items: Required value: must be specified"]
        );
        assert_eq!(
            errors(object(json!({"a": {"x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}]}}))),
            none
        );
        assert_eq!(
            errors(object(json!({"a": {"type": "string", "anyOf": [{"type": "string"}]}}))),
            ["s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural"]
        );
        assert_eq!(
            errors(json!({"type": "object", "allOf": [{"properties": {"b": {"minLength": 1}}}]})),
            ["s.properties[b]: Required value: because it is defined in s.allOf[0].properties[b]"]
        );
        assert_eq!(
            errors(object(json!({"metadata": {"type": "object", "properties": {
            "name": {"type": "string", "pattern": "^a"}}}}))),
            none
        );
        assert_eq!(
            errors(object(json!({"metadata": {"type": "object", "properties": {
            "labels": {"type": "object"}}}})))
            .len(),
            1
        );
        assert_eq!(errors(object(json!({"a": {"type": "string", "pattern": "("}}))).len(), 1);
    }

    #[test]
    fn defaults_fit_their_schema() {
        let check = |props: Value| {
            let schema = Schema::read(&json!({"type": "object", "properties": {"a": props}}));
            let mut errors = ErrorList::new();
            defaults(&Path::new("s"), &schema.expect("a schema"), true, &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(check(json!({"type": "integer", "default": 1})), none);
        assert_eq!(check(json!({"type": "integer", "default": "x"})),
            [r#"s.properties[a].default: Invalid value: "string": s.properties[a].default in body must be of type integer: "string""#]
                .map(|s| s.replace("s.properties[a].default in body", " in body")));
        assert_eq!(
            check(json!({"type": "object", "default": {"b": 1}})),
            [r#"s.properties[a].default: Invalid value: {"b":1}: must not have unknown fields"#]
        );
    }
}
