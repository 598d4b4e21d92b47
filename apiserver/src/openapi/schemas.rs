//! JSON schemas of messages.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::Value;
use apimachinery::schema::{Field, ListType, MessageId, Registry, Type};
use serde_json::{Map, json};

use super::descriptions::Descriptions;

/// Which OpenAPI is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn prefix(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }

    /// A reference to a message by name.
    pub fn reference(self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.prefix())})
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

/// The schemas of a document: those added and all that they refer to.
pub struct Schemas<'a> {
    registry: &'a Registry,
    dialect: Dialect,
    wanted: BTreeSet<u32>,
    scalars: BTreeSet<&'static str>,
    kinds: BTreeMap<u32, Vec<Value>>,
}

impl<'a> Schemas<'a> {
    pub fn new(registry: &'a Registry, dialect: Dialect) -> Self {
        let mut kinds: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (gvk, id) in &registry.kinds {
            kinds.entry(id.0).or_default().push(gvk);
        }
        let kinds = kinds
            .into_iter()
            .map(|(id, mut gvks)| {
                gvks.sort();
                let entry = |g: &&apimachinery::gvk::GroupVersionKind| {
                    json!({"group": g.group, "version": g.version, "kind": g.kind})
                };
                (id, gvks.iter().map(entry).collect())
            })
            .collect();
        Self { registry, dialect, wanted: BTreeSet::new(), scalars: BTreeSet::new(), kinds }
    }

    /// Adds a message and what it refers to.
    pub fn add(&mut self, root: MessageId) {
        let mut todo = vec![root];
        while let Some(id) = todo.pop() {
            if !self.wanted.insert(id.0) {
                continue;
            }
            let registry = self.registry;
            for field in registry.json_fields(id) {
                self.note(&field.ty, &mut todo);
            }
        }
    }

    fn note(&mut self, ty: &Type, todo: &mut Vec<MessageId>) {
        match ty {
            Type::Message(id) | Type::SchemaOr(_, id) => todo.push(*id),
            Type::List(item) | Type::Map(item) => self.note(item, todo),
            scalar => self.scalars.extend(scalar_name(scalar)),
        }
    }

    /// The schemas by name.
    pub fn finish(self) -> Map<String, Value> {
        let descriptions = Descriptions::load();
        let mut out = Map::new();
        for id in &self.wanted {
            let message = self.registry.message(MessageId(*id));
            out.insert(message.name.clone(), self.message(MessageId(*id), &descriptions));
        }
        for name in &self.scalars {
            out.insert((*name).to_owned(), scalar_schema(name, self.dialect));
        }
        out
    }

    fn message(&self, id: MessageId, descriptions: &Descriptions) -> Value {
        let message = self.registry.message(id);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in self.registry.json_fields(id) {
            let mut property = self.property(field);
            if let Some(text) = descriptions.field(&message.name, &field.json) {
                property["description"] = json!(text);
            }
            properties.insert(field.json.clone(), property);
            if field.required {
                required.push(field.json.as_str());
            }
        }
        let mut schema = json!({"type": "object"});
        if let Some(text) = descriptions.message(&message.name) {
            schema["description"] = json!(text);
        }
        if !properties.is_empty() {
            schema["properties"] = Value::Object(properties);
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if message.atomic {
            schema["x-kubernetes-map-type"] = json!("atomic");
        }
        if let Some(kinds) = self.kinds.get(&id.0) {
            schema["x-kubernetes-group-version-kind"] = json!(kinds);
        }
        schema
    }

    fn property(&self, field: &Field) -> Value {
        let mut schema = self.of_type(&field.ty);
        let is_reference = schema.get("$ref").is_some();
        // Beside a `$ref` nothing counts in OpenAPI 3.0: it is wrapped.
        if is_reference && self.dialect == Dialect::V3 {
            schema = json!({"allOf": [schema]});
        }
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        } else if matches!(field.ty, Type::Message(_)) && !field.pointer {
            schema["default"] = json!({});
        }
        match (&field.ty, &field.list) {
            (Type::List(_), ListType::Set) => schema["x-kubernetes-list-type"] = json!("set"),
            (Type::List(_), ListType::Map(keys)) => {
                schema["x-kubernetes-list-type"] = json!("map");
                schema["x-kubernetes-list-map-keys"] = json!(keys);
            }
            (Type::List(_), ListType::Atomic) => {
                schema["x-kubernetes-list-type"] = json!("atomic");
            }
            _ if field.atomic => schema["x-kubernetes-map-type"] = json!("atomic"),
            _ => {}
        }
        if let Some(key) = &field.merge_key {
            schema["x-kubernetes-patch-merge-key"] = json!(key);
        }
        if !field.patch_strategy.is_empty() {
            schema["x-kubernetes-patch-strategy"] = json!(field.patch_strategy.join(","));
        }
        schema
    }

    fn of_type(&self, ty: &Type) -> Value {
        match ty {
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Message(id) | Type::SchemaOr(_, id) => {
                self.dialect.reference(&self.registry.message(*id).name)
            }
            Type::List(item) => json!({"type": "array", "items": self.of_type(item)}),
            Type::Map(item) => {
                json!({"type": "object", "additionalProperties": self.of_type(item)})
            }
            scalar => match scalar_name(scalar) {
                Some(name) => self.dialect.reference(name),
                None => json!({}),
            },
        }
    }
}

/// Types that are more than JSON's have schemas of their own.
fn scalar_name(ty: &Type) -> Option<&'static str> {
    Some(match ty {
        Type::Quantity => QUANTITY,
        Type::IntOrString => INT_OR_STRING,
        Type::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        Type::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        Type::Duration => "io.k8s.apimachinery.pkg.apis.meta.v1.Duration",
        Type::FieldsV1 => "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
        Type::RawExtension => RAW_EXTENSION,
        Type::Json => JSON,
        _ => return None,
    })
}

fn scalar_schema(name: &str, dialect: Dialect) -> Value {
    match (name, dialect) {
        (QUANTITY, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (QUANTITY, Dialect::V2) => json!({"type": "string"}),
        (INT_OR_STRING, Dialect::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (INT_OR_STRING, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        (RAW_EXTENSION, _) => json!({"type": "object"}),
        (JSON, _) => json!({}),
        (name, _) => match name.strip_prefix(META) {
            Some("Time" | "MicroTime") => json!({"type": "string", "format": "date-time"}),
            Some("Duration") => json!({"type": "string"}),
            _ => json!({"type": "object"}),
        },
    }
}
