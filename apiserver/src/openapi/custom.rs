//! Schemas of custom resources as they are published (upstream: apiextensions-apiserver
//! `pkg/controller/openapi`).

use apimachinery::Value;
use apimachinery::field::Path;
use apimachinery::object::{get, list_at, str_at};
use serde_json::{Map, json};

use super::schemas::{Edition, Schemas, gvk};
use crate::apiextensions::structural;
use crate::registry::catalog::Served;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// What of a schema is shown as it is.
const SHOWN: [&str; 20] = [
    "default",
    "description",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "pattern",
    "required",
    "title",
    "type",
    "uniqueItems",
];
const EXTENSIONS: [&str; 7] = [
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// `com.example.stable.v1.CronTab`
pub(super) fn model_name(served: &Served, kind: &str) -> String {
    let mut parts: Vec<&str> = served.row.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{kind}", parts.join("."), served.row.version)
}

/// Puts the schemas of a custom resource and of its list among the others.
pub(super) fn put(served: &Served, schemas: &mut Schemas<'_>) {
    let name = model_name(served, &served.row.kind);
    let mut own = resource(served, schemas);
    let mut list = list(served, &name, schemas);
    own["x-kubernetes-group-version-kind"] = json!([gvk(&served.gvk)]);
    list["x-kubernetes-group-version-kind"] = json!([{"group": served.gvk.group,
        "version": served.gvk.version, "kind": served.list_kind}]);
    let fields = selectable(served);
    if !fields.is_empty() {
        own["x-kubernetes-selectable-fields"] = fields.clone().into();
        list["x-kubernetes-selectable-fields"] = fields.into();
    }
    schemas.put(name, own);
    schemas.put(model_name(served, &served.list_kind), list);
}

fn selectable(served: &Served) -> Vec<Value> {
    let version = served.row.custom.as_ref().and_then(|custom| custom.version());
    let fields = version.map(|v| v.selectable.as_slice()).unwrap_or_default();
    fields.iter().map(|path| json!({"fieldPath": path})).collect()
}

fn list(served: &Served, name: &str, schemas: &mut Schemas<'_>) -> Value {
    let row = &served.row;
    let text = format!(
        "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
        row.plural
    );
    let item = schemas.reference_inside(name);
    let metadata = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
    json!({
        "type": "object", "required": ["items"],
        "description": format!("{} is a list of {}", served.list_kind, row.kind),
        "properties": {
            "apiVersion": type_meta(schemas, "apiVersion"),
            "kind": type_meta(schemas, "kind"),
            "metadata": described(schemas.of_type(&format!("{META}.ListMeta")), metadata),
            "items": {"type": "array", "items": item, "description": text},
        },
    })
}

fn described(mut schema: Value, text: &str) -> Value {
    schema["description"] = text.into();
    schema
}

/// `apiVersion` or `kind`
fn type_meta(schemas: &Schemas<'_>, field: &str) -> Value {
    // All lists and objects have the same words for them.
    let text = schemas.words(&format!("{META}.Status"), field);
    described(json!({"type": "string"}), text)
}

fn object_meta(schemas: &mut Schemas<'_>) -> Value {
    let text = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
    described(schemas.of_type(&format!("{META}.ObjectMeta")), text)
}

fn is_set(schema: &Value, name: &str) -> bool {
    get(schema, &[name]).is_some_and(|v| *v == Value::Bool(true))
}

fn resource(served: &Served, schemas: &mut Schemas<'_>) -> Value {
    let anything = json!({"type": "object"});
    let Some(custom) = &served.row.custom else { return anything };
    let source = &custom.definition.source;
    let versions = list_at(source, &["spec", "versions"]);
    let props = versions
        .get(custom.version)
        .and_then(|version| get(version, &["schema", "openAPIV3Schema"]))
        .filter(|props| has_types(props));
    let schema = custom.version().and_then(|version| version.schema.as_ref());
    let (Some(props), Some(schema)) = (props, schema) else { return anything };
    if !structural::check(&Path::new(""), schema).is_empty() {
        return anything;
    }
    let open = schema.preserve
        || is_set(get(source, &["spec"]).unwrap_or(source), "preserveUnknownFields");
    // Clients of the second edition refuse what is not named as soon as anything is.
    if schemas.edition() == Edition::V2 && open {
        return anything;
    }
    let mut made = shown(props, schemas.edition());
    embedded(&mut made, schemas);
    let metadata = object_meta(schemas);
    let (version, kind) = (type_meta(schemas, "apiVersion"), type_meta(schemas, "kind"));
    let added = [("apiVersion", version), ("kind", kind), ("metadata", metadata)];
    add_properties(&mut made, added);
    made
}

/// Puts properties into a schema.
fn add_properties(schema: &mut Value, added: [(&str, Value); 3]) {
    let mut all = match schema.get_mut("properties") {
        Some(Value::Object(map)) => std::mem::take(map),
        _ => Map::new(),
    };
    all.extend(added.map(|(name, value)| (name.to_owned(), value)));
    schema["properties"] = all.into();
}

/// Types are those that schemas may name.
fn has_types(props: &Value) -> bool {
    match props {
        Value::Object(map) => {
            let ty = map.get("type").and_then(Value::as_str).unwrap_or("");
            let inner = map
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "default" | "enum" | "example"))
                .all(|(name, inner)| match name.as_str() {
                    "properties" => {
                        inner.as_object().into_iter().flatten().all(|(_, s)| has_types(s))
                    }
                    _ => has_types(inner),
                });
            (ty.is_empty() || TYPES.contains(&ty)) && inner
        }
        Value::Array(items) => items.iter().all(has_types),
        _ => true,
    }
}

/// Whether a field says nothing.
fn is_void(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A schema of a definition as it is published.
fn shown(props: &Value, edition: Edition) -> Value {
    let second = edition == Edition::V2;
    let (nullable, preserve) =
        (is_set(props, "nullable"), is_set(props, "x-kubernetes-preserve-unknown-fields"));
    let mut made = Map::new();
    for name in SHOWN.iter().chain(&EXTENSIONS) {
        if let Some(value) = props.get(*name).filter(|v| *name == "default" || !is_void(v)) {
            made.insert((*name).to_owned(), value.clone());
        }
    }
    // What clients of the second edition could not cope with is left out there.
    if !(second && (nullable || preserve)) {
        if let Some(items) = get(props, &["items"]) {
            made.insert("items".to_owned(), shown(items, edition));
        }
        if let Some(Value::Object(all)) = get(props, &["properties"]) {
            let all: Map<String, Value> =
                all.iter().map(|(name, inner)| (name.clone(), shown(inner, edition))).collect();
            if !all.is_empty() {
                made.insert("properties".to_owned(), all.into());
            }
        }
    }
    match get(props, &["additionalProperties"]) {
        Some(inner @ Value::Object(_)) => {
            made.insert("additionalProperties".to_owned(), shown(inner, edition));
        }
        Some(allowed) => {
            made.insert("additionalProperties".to_owned(), allowed.clone());
        }
        None => {}
    }
    if second {
        without_types(props, nullable, preserve, &mut made);
    } else {
        if nullable {
            made.insert("nullable".to_owned(), true.into());
        }
        logic(props, &mut made);
    }
    Value::Object(made)
}

/// Of the second edition: types that its clients would take too strictly go.
fn without_types(props: &Value, nullable: bool, preserve: bool, made: &mut Map<String, Value>) {
    let ty = str_at(props, &["type"]);
    let loose_list = ty == "array" && !made.contains_key("items");
    if nullable || loose_list || preserve && ty == "object" {
        made.remove("type");
    }
    let nullable_field = |name: &Value| {
        let name = name.as_str().unwrap_or("");
        get(props, &["properties", name]).is_some_and(|p| is_set(p, "nullable"))
    };
    let nullable_values =
        get(props, &["additionalProperties"]).is_some_and(|p| is_set(p, "nullable"));
    let required = list_at(props, &["required"]).iter();
    let required: Vec<Value> =
        required.filter(|n| nullable || preserve || !nullable_field(n)).cloned().collect();
    if required.is_empty() || nullable_values {
        made.remove("required");
    } else {
        made.insert("required".to_owned(), required.into());
    }
}

/// Alternatives of the third edition; int-or-string is said as one.
fn logic(props: &Value, made: &mut Map<String, Value>) {
    for name in ["allOf", "anyOf", "oneOf"] {
        let all = list_at(props, &[name]);
        if !all.is_empty() {
            made.insert(name.to_owned(), all.iter().map(|p| shown(p, Edition::V3)).collect());
        }
    }
    if let Some(not) = get(props, &["not"]) {
        made.insert("not".to_owned(), shown(not, Edition::V3));
    }
    if !is_set(props, "x-kubernetes-int-or-string") {
        return;
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    let has = |schema: &Value| schema.get("anyOf") == Some(&either);
    if has(props) || list_at(props, &["allOf"]).first().is_some_and(has) {
        return;
    }
    if made.contains_key("anyOf") {
        let mut all = vec![json!({"anyOf": either})];
        all.extend(made.get("allOf").and_then(Value::as_array).cloned().unwrap_or_default());
        made.insert("allOf".to_owned(), all.into());
    } else {
        made.insert("anyOf".to_owned(), either);
    }
}

/// Resources within resources get the fields of resources.
fn embedded(schema: &mut Value, schemas: &mut Schemas<'_>) {
    if let Some(Value::Object(all)) = schema.get_mut("properties") {
        all.iter_mut().for_each(|(_, inner)| embedded(inner, schemas));
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(name).filter(|s| s.is_object()) {
            embedded(inner, schemas);
        }
    }
    let open = is_set(schema, "x-kubernetes-preserve-unknown-fields");
    if !is_set(schema, "x-kubernetes-embedded-resource") || open && schemas.edition() == Edition::V2
    {
        return;
    }
    let version = "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
    let kind = "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
    let metadata = object_meta(schemas);
    let text = |words: &str| described(json!({"type": "string"}), words);
    let added = [("apiVersion", text(version)), ("kind", text(kind)), ("metadata", metadata)];
    add_properties(schema, added);
    let mut required = list_at(schema, &["required"]).to_vec();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|r| r == name) {
            required.push(name.into());
        }
    }
    schema["required"] = required.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editions_show_what_their_clients_understand() {
        let props = json!({"type": "object", "description": "d", "required": ["a", "n"],
            "nullable": false, "properties": {
            "a": {"type": "string", "enum": ["x"], "default": ""},
            "n": {"type": "object", "nullable": true, "properties": {"b": {"type": "string"}}},
            "i": {"x-kubernetes-int-or-string": true},
            "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"b": {"type": "string"}}},
            "o": {"type": "integer", "oneOf": [{"minimum": 1}, {"maximum": -1}]},
        }});
        assert_eq!(
            shown(&props, Edition::V2),
            json!({"type": "object", "description": "d", "required": ["a"], "properties": {
                "a": {"type": "string", "enum": ["x"], "default": ""},
                "n": {},
                "i": {"x-kubernetes-int-or-string": true},
                "p": {"x-kubernetes-preserve-unknown-fields": true},
                "o": {"type": "integer"},
            }})
        );
        let mut third = props.clone();
        if let Some(map) = third.as_object_mut() {
            map.remove("nullable");
        }
        third["properties"]["i"]["anyOf"] = json!([{"type": "integer"}, {"type": "string"}]);
        assert_eq!(shown(&props, Edition::V3), third);
    }
}
