//! The types of a custom resource as server-side apply sees them: its schema as a registry of
//! messages (upstream: kube-openapi `pkg/schemaconv`).

use std::collections::HashMap;

use apimachinery::codec::Schema as Typed;
use apimachinery::schema::{Field, ListType, Message, MessageId, Registry, Type};

use super::schema::Schema;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The types of one version.
#[derive(Debug)]
pub struct Types {
    registry: Registry,
    root: MessageId,
}

impl Types {
    /// From the schema of a whole resource.
    pub fn new(schema: &Schema) -> Self {
        let mut maker = Maker { registry: Registry::default(), imported: HashMap::new() };
        let root = maker.message(schema, true);
        Self { registry: maker.registry, root }
    }

    pub fn typed(&self) -> Typed<'_> {
        Typed { registry: &self.registry, message: self.root }
    }
}

struct Maker {
    registry: Registry,
    /// Messages of the built-in registry that were copied.
    imported: HashMap<MessageId, MessageId>,
}

fn field(json: &str, ty: Type) -> Field {
    Field {
        json: json.to_owned(),
        number: 0,
        ty,
        pointer: true,
        empty_counts: false,
        omitempty: true,
        inline: false,
        required: false,
        list: ListType::Atomic,
        atomic: false,
        merge_key: None,
        patch_strategy: Vec::new(),
        default: None,
        wrapped: false,
        shows: None,
        go: None,
        values: Box::default(),
    }
}

impl Maker {
    fn reserve(&mut self, name: String) -> MessageId {
        let id = MessageId(u32::try_from(self.registry.messages.len()).unwrap_or(u32::MAX));
        self.registry.messages.push(Message {
            name,
            fields: Vec::new(),
            atomic: false,
            open: false,
        });
        id
    }

    fn put(&mut self, id: MessageId, fields: Vec<Field>, atomic: bool, open: bool) {
        if let Some(message) = self.registry.messages.get_mut(id.0 as usize) {
            (message.fields, message.atomic, message.open) = (fields, atomic, open);
        }
    }

    /// A map with named fields.
    fn message(&mut self, schema: &Schema, resource: bool) -> MessageId {
        let id = self.reserve(String::new());
        let mut fields = Vec::new();
        let meta = |name: &str| matches!(name, "apiVersion" | "kind" | "metadata");
        let embedded = resource || schema.embedded;
        if embedded {
            fields.push(field("apiVersion", Type::String));
            fields.push(field("kind", Type::String));
            if let Some(metadata) = Registry::builtin().by_name(OBJECT_META) {
                let metadata = self.import(metadata);
                fields.push(field("metadata", Type::Message(metadata)));
            }
        }
        for (name, property) in &schema.properties {
            if !(embedded && meta(name)) {
                fields.push(self.field(name, property));
            }
        }
        // Without a schema at all, anything may be there.
        let open = schema.preserve || resource && schema.ty.is_empty();
        self.put(id, fields, schema.map_type.as_deref() == Some("atomic"), open);
        id
    }

    fn field(&mut self, name: &str, schema: &Schema) -> Field {
        let mut made = field(name, self.ty(schema));
        made.default = schema.default.clone();
        made.atomic = schema.map_type.as_deref() == Some("atomic");
        made.list = match schema.list_type.as_deref() {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(schema.list_keys.clone()),
            _ => ListType::Atomic,
        };
        made
    }

    fn ty(&mut self, schema: &Schema) -> Type {
        if schema.int_or_string {
            return Type::IntOrString;
        }
        let nested = schema.additional.as_ref().and_then(|a| a.schema.as_deref());
        match schema.ty.as_str() {
            "string" => Type::String,
            "integer" => Type::Int64,
            "number" => Type::Double,
            "boolean" => Type::Bool,
            "array" => match schema.items.as_deref() {
                Some(items) => Type::List(Box::new(self.ty(items))),
                None => Type::List(Box::new(Type::Json)),
            },
            "object" if schema.properties.is_empty() && !schema.embedded => match nested {
                Some(values) => Type::Map(Box::new(self.ty(values))),
                None => Type::RawExtension,
            },
            "object" => Type::Message(self.message(schema, false)),
            _ => Type::Json,
        }
    }

    /// Copies a message of the built-in registry, with those it leads to.
    fn import(&mut self, id: MessageId) -> MessageId {
        if let Some(known) = self.imported.get(&id) {
            return *known;
        }
        let builtin = Registry::builtin();
        let message = builtin.message(id);
        let made = self.reserve(message.name.clone());
        self.imported.insert(id, made);
        let fields = message.fields.iter().map(|from| {
            let mut copy = from.clone();
            copy.ty = self.imported_type(&from.ty);
            copy
        });
        let fields: Vec<Field> = fields.collect();
        self.put(made, fields, message.atomic, false);
        made
    }

    fn imported_type(&mut self, ty: &Type) -> Type {
        match ty {
            Type::Message(id) => Type::Message(self.import(*id)),
            Type::List(elem) => Type::List(Box::new(self.imported_type(elem))),
            Type::Map(elem) => Type::Map(Box::new(self.imported_type(elem))),
            other => other.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::patch::apply::{Manager, Typing, apply_typed};
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_merged_by_their_keys() {
        let schema = Schema::read(&json!({"type": "object", "properties": {"spec": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "ports": {"type": "array", "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {"name": {"type": "string"},
                        "port": {"type": "integer"}}}},
                "args": {"type": "array", "items": {"type": "string"}}}}}}));
        let types = Types::new(&schema.expect("a schema"));
        let typing = Typing::Schema(types.typed());
        let object = |spec: serde_json::Value| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"}, "spec": spec});
        let by = |name| Manager {
            name,
            subresource: "",
            api_version: "g/v1",
            now: "2026-01-01T00:00:00Z",
        };
        let first =
            object(json!({"ports": [{"name": "a", "port": 1}], "args": ["x"], "free": {"b": 1}}));
        let live = apply_typed(typing, None, &first, &by("one"), false, &[]).expect("applied");
        let second = object(json!({"ports": [{"name": "b", "port": 2}], "free": {"c": 2}}));
        let live =
            apply_typed(typing, Some(&live), &second, &by("two"), false, &[]).expect("applied");
        assert_eq!(
            live["spec"],
            json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}], "args": ["x"],
                "free": {"b": 1, "c": 2}})
        );
        let third = object(json!({"args": ["y"]}));
        assert!(apply_typed(typing, Some(&live), &third, &by("two"), false, &[]).is_err());
    }
}
