//! Types as OpenAPI schemas.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{Field, ListType, MessageId, Registry, Type};
use serde_json::{Map, json};

use super::descriptions::Description;

/// Which edition of OpenAPI a document is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edition {
    V2,
    V3,
}

impl Edition {
    pub(super) fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

/// Makes the schemas of types and of all that they lead to.
pub(super) struct Schemas<'a> {
    registry: &'a Registry,
    descriptions: &'a HashMap<String, Description>,
    edition: Edition,
    /// Kinds by type.
    kinds: &'a HashMap<MessageId, Vec<GroupVersionKind>>,
    made: BTreeMap<String, Value>,
    wanted: Vec<MessageId>,
    seen: BTreeSet<u32>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        descriptions: &'a HashMap<String, Description>,
        kinds: &'a HashMap<MessageId, Vec<GroupVersionKind>>,
        edition: Edition,
    ) -> Self {
        Self {
            registry,
            descriptions,
            edition,
            kinds,
            made: BTreeMap::new(),
            wanted: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Wants a type; gives its name.
    pub(super) fn want(&mut self, id: MessageId) -> String {
        if self.seen.insert(id.0) {
            self.wanted.push(id);
        }
        self.registry.message(id).name.clone()
    }

    pub(super) fn edition(&self) -> Edition {
        self.edition
    }

    /// Wants a type by its name, and refers to it.
    pub(super) fn of_type(&mut self, name: &str) -> Value {
        if let Some(id) = self.registry.by_name(name) {
            self.want(id);
        }
        self.reference(name)
    }

    /// Refers to a schema where nothing is said beside.
    pub(super) fn reference_inside(&self, name: &str) -> Value {
        json!({"$ref": self.edition.reference(name)})
    }

    /// What is said of a field of a type.
    pub(super) fn words(&self, name: &str, field: &str) -> &str {
        self.descriptions.get(name).and_then(|d| d.fields.get(field)).map_or("", String::as_str)
    }

    /// A schema that is no compiled type's.
    pub(super) fn put(&mut self, name: String, schema: Value) {
        self.made.insert(name, schema);
    }

    /// All schemas that were wanted.
    pub(super) fn finish(mut self) -> BTreeMap<String, Value> {
        while let Some(id) = self.wanted.pop() {
            let schema = self.message(id);
            self.made.insert(self.registry.message(id).name.clone(), schema);
        }
        self.made
    }

    fn message(&mut self, id: MessageId) -> Value {
        let registry = self.registry;
        let message = registry.message(id);
        let described = self.descriptions.get(&message.name);
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in registry.json_fields(id) {
            let mut schema = self.field(field);
            let text = described.and_then(|d| d.fields.get(&field.json)).map_or("", String::as_str);
            let text = with_values(text, field);
            if !text.is_empty() {
                schema["description"] = text.into();
            }
            properties.insert(field.json.clone(), schema);
            if field.required {
                required.push(field.json.clone());
            }
        }
        let mut schema = json!({"type": "object"});
        if let Some(text) = described.map(|d| d.text.as_str()).filter(|t| !t.is_empty()) {
            schema["description"] = text.into();
        }
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if message.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(kinds) = self.kinds.get(&id) {
            schema["x-kubernetes-group-version-kind"] = kinds.iter().map(gvk).collect();
        }
        schema
    }

    fn field(&mut self, field: &Field) -> Value {
        let mut schema = self.value(&field.ty);
        if !field.values.is_empty() {
            let of = match field.ty {
                Type::List(_) => &mut schema["items"],
                Type::Map(_) => &mut schema["additionalProperties"],
                _ => &mut schema,
            };
            of["enum"] = json!(field.values);
        }
        match &field.list {
            ListType::Atomic => {}
            ListType::Set => schema["x-kubernetes-list-type"] = "set".into(),
            ListType::Map(keys) => {
                schema["x-kubernetes-list-type"] = "map".into();
                schema["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
        if field.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(key) = &field.merge_key {
            schema["x-kubernetes-patch-merge-key"] = key.as_str().into();
        }
        if !field.patch_strategy.is_empty() {
            schema["x-kubernetes-patch-strategy"] = field.patch_strategy.join(",").into();
        }
        if self.edition == Edition::V3
            && let Some(default) = self.default(field)
        {
            schema["default"] = default;
        }
        schema
    }

    /// What upstream shows as the value of a field that is left out.
    fn default(&self, field: &Field) -> Option<Value> {
        if let Some(default) = &field.default {
            return Some(default.clone());
        }
        if field.pointer || field.omitempty && !field.required {
            return None;
        }
        match field.ty {
            Type::String => Some("".into()),
            Type::Bool => Some(false.into()),
            Type::Int32 | Type::Int64 | Type::Double => Some(0.into()),
            Type::Message(_) => Some(json!({})),
            _ => None,
        }
    }

    fn value(&mut self, ty: &Type) -> Value {
        match ty {
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Message(id) => {
                let name = self.want(*id);
                self.reference(&name)
            }
            Type::List(elem) => json!({"type": "array", "items": self.value(elem)}),
            Type::Map(elem) => {
                json!({"type": "object", "additionalProperties": self.value(elem)})
            }
            Type::Quantity => {
                let schema = match self.edition {
                    Edition::V2 => json!({"type": "string"}),
                    Edition::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
                };
                self.scalar("io.k8s.apimachinery.pkg.api.resource.Quantity", schema)
            }
            Type::IntOrString => {
                let schema = match self.edition {
                    Edition::V2 => json!({"type": "string", "format": "int-or-string"}),
                    Edition::V3 => json!({"format": "int-or-string",
                        "oneOf": [{"type": "integer"}, {"type": "string"}]}),
                };
                self.scalar("io.k8s.apimachinery.pkg.util.intstr.IntOrString", schema)
            }
            Type::Time => self
                .scalar(&format!("{META}.Time"), json!({"type": "string", "format": "date-time"})),
            Type::MicroTime => self.scalar(
                &format!("{META}.MicroTime"),
                json!({"type": "string", "format": "date-time"}),
            ),
            Type::Duration => self.scalar(&format!("{META}.Duration"), json!({"type": "string"})),
            Type::FieldsV1 => self.scalar(&format!("{META}.FieldsV1"), json!({"type": "object"})),
            Type::RawExtension => self
                .scalar("io.k8s.apimachinery.pkg.runtime.RawExtension", json!({"type": "object"})),
            Type::Json | Type::SchemaOr(..) => self.scalar(JSON, json!({})),
        }
    }

    /// A type that is one value in JSON.
    fn scalar(&mut self, name: &str, mut schema: Value) -> Value {
        if !self.made.contains_key(name) {
            let text = self.descriptions.get(name).map(|d| d.text.as_str()).unwrap_or("");
            if !text.is_empty() {
                schema["description"] = text.into();
            }
            self.made.insert(name.to_owned(), schema);
        }
        self.reference(name)
    }

    fn reference(&self, name: &str) -> Value {
        let reference = json!({"$ref": self.edition.reference(name)});
        match self.edition {
            Edition::V2 => reference,
            // Beside a reference nothing else may stand.
            Edition::V3 => json!({"allOf": [reference]}),
        }
    }
}

/// What is said of a field, with the values that there are. (What each means upstream says beside
/// it; our facts do not have that.)
fn with_values(text: &str, field: &Field) -> String {
    // Of lists and maps, upstream tells them at the elements alone.
    if field.values.is_empty() || field.ty != Type::String {
        return text.to_owned();
    }
    let lines = field.values.iter().map(|value| format!("\n - `\"{value}\"`"));
    format!("{text}\n\nPossible enum values:{}", lines.collect::<String>())
}

/// As `x-kubernetes-group-version-kind` writes it.
pub(super) fn gvk(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told() {
        let registry = Registry::builtin();
        let (words, kinds) = (HashMap::new(), HashMap::new());
        for edition in [Edition::V2, Edition::V3] {
            let mut schemas = Schemas::new(registry, &words, &kinds, edition);
            for name in ["PodSpec", "PersistentVolumeClaimSpec"] {
                schemas.of_type(&format!("io.k8s.api.core.v1.{name}"));
            }
            let made = schemas.finish();
            let policy = &made["io.k8s.api.core.v1.PodSpec"]["properties"]["restartPolicy"];
            assert_eq!(policy["enum"], json!(["Always", "Never", "OnFailure"]));
            let text =
                "\n\nPossible enum values:\n - `\"Always\"`\n - `\"Never\"`\n - `\"OnFailure\"`";
            assert_eq!(policy["description"], text);
            let modes =
                &made["io.k8s.api.core.v1.PersistentVolumeClaimSpec"]["properties"]["accessModes"];
            assert_eq!(
                modes["items"]["enum"],
                json!(["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"])
            );
            assert!(modes["enum"].is_null() && modes["description"].is_null());
        }
    }
}
