//! What holds for every custom resource (upstream: `pkg/registry/customresource`).

use std::sync::Arc;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::{Map, Value, names, object};

use super::definition::{Definition, Scale, Version};
use super::schema::Schema;
use super::{lists, rules, validate};
use crate::registry::{Context, Strategy};

/// The resource itself.
pub struct Main {
    pub definition: Arc<Definition>,
    /// Index of the version.
    pub version: usize,
}

/// Its `status` subresource.
pub struct Status(pub Main);

const STATUS: &[&[&str]] = &[&["status"]];

/// What an object may be named and hold beside its schema.
const FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

impl Main {
    fn version(&self) -> Option<&Version> {
        self.definition.versions.get(self.version)
    }

    fn type_meta(&self, object: &Value) -> ErrorList {
        let wanted = [
            ("kind", self.definition.names.kind.clone()),
            ("apiVersion", self.definition.api_version(self.version)),
        ];
        let mut errors = ErrorList::new();
        for (field, wanted) in wanted {
            let found = object::str_at(object, &[field]);
            if found != wanted {
                let text = format!("must be {wanted}");
                errors.push(FieldError::invalid(&Path::new(field), found, text));
            }
        }
        errors
    }

    /// All rules, for a new object or a changed one.
    fn check(&self, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = self.type_meta(object);
        let Some(version) = self.version().filter(|_| errors.is_empty()) else { return errors };
        let root = Path::new("");
        if let Some(schema) = &version.schema {
            errors.extend(validate::validate(&root, schema, object, old));
        }
        if let Some(scale) = &version.scale {
            scale_spec(object, scale, &mut errors);
            scale_status(object, scale, &mut errors);
        }
        self.beside(version, object, old, &mut errors);
        errors
    }

    /// What schemas do not say by themselves.
    fn beside(
        &self,
        version: &Version,
        object: &Value,
        old: Option<&Value>,
        errors: &mut ErrorList,
    ) {
        let Some(schema) = &version.schema else { return };
        let root = Path::new("");
        lists::embedded(object, schema, &root, errors);
        self.duplicates(schema, object, old, errors);
        self.rules(version, object, old, errors);
    }

    fn duplicates(
        &self,
        schema: &Schema,
        object: &Value,
        old: Option<&Value>,
        errors: &mut ErrorList,
    ) {
        let of = |object: &Value| {
            let mut found = ErrorList::new();
            lists::duplicates(object, schema, &Path::new(""), &mut found);
            found
        };
        // What was there twice before may be so still.
        if old.is_none_or(|old| of(old).is_empty()) {
            errors.extend(of(object));
        }
    }

    fn rules(
        &self,
        version: &Version,
        object: &Value,
        old: Option<&Value>,
        errors: &mut ErrorList,
    ) {
        let Some(compiled) = &version.rules else { return };
        match rules::blocked(errors) {
            Some(error) => errors.push(error),
            None => errors.extend(compiled.check(&Path::new(""), object, old)),
        }
    }
}

/// An integer below an object, as upstream's accessor finds it.
fn replicas(object: &Value, path: &str) -> Result<i64, String> {
    let wrong = |found: &Value, wanted: &str| {
        let ty = object::go_type(found);
        let shown = match found {
            Value::String(text) => text.clone(),
            Value::Null => ty.to_owned(),
            other => other.to_string(),
        };
        Err(format!(".{path} accessor error: {shown} is of the type {ty}, expected {wanted}"))
    };
    let mut found = object;
    for step in path.split('.') {
        match found {
            Value::Object(map) => match map.get(step) {
                None => return Ok(0),
                Some(inner) => found = inner,
            },
            other => return wrong(other, "map[string]interface{}"),
        }
    }
    match found.as_i64() {
        Some(n) => Ok(n),
        None => wrong(found, "int64"),
    }
}

fn check_replicas(object: &Value, path: &str, errors: &mut ErrorList) {
    let at = Path::new(&format!(".{path}"));
    match replicas(object, path) {
        Err(text) => errors.push(FieldError::invalid(&at, 0, text)),
        Ok(n) if n < 0 => {
            errors.push(FieldError::invalid(&at, n, "should be a non-negative integer"));
        }
        Ok(n) if n > i64::from(i32::MAX) => {
            let text = format!("should be less than or equal to {}", i32::MAX);
            errors.push(FieldError::invalid(&at, n, text));
        }
        Ok(_) => {}
    }
}

fn scale_spec(object: &Value, scale: &Scale, errors: &mut ErrorList) {
    check_replicas(object, &scale.spec_replicas, errors);
}

fn scale_status(object: &Value, scale: &Scale, errors: &mut ErrorList) {
    check_replicas(object, &scale.status_replicas, errors);
    let Some(selector) = &scale.selector else { return };
    let steps: Vec<&str> = selector.split('.').collect();
    if object::get(object, &steps).is_some_and(|v| !v.is_string()) {
        let text =
            format!(".{selector} accessor error: is not of the type string, expected string");
        errors.push(FieldError::invalid(&Path::new(&format!(".{selector}")), "", text));
    }
}

/// What does not count for `metadata.generation`.
fn without_metadata(object: &Value) -> Option<Map> {
    let mut map = object.as_object()?.clone();
    map.remove("metadata");
    Some(map)
}

impl Strategy for Main {
    fn default(&self, object: &mut Value) {
        self.definition.default(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        if self.version().is_some_and(|v| v.status) {
            object::remove(object, &["status"]);
        }
        object::set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        if self.version().is_some_and(|v| v.status) {
            match old.get("status") {
                Some(status) => object::set(object, &["status"], status.clone()),
                None => {
                    object::remove(object, &["status"]);
                }
            }
        }
        if without_metadata(object) != without_metadata(old) {
            object::set(object, &["metadata", "generation"], object::generation(old) + 1);
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        self.check(object, None)
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        self.check(object, Some(old))
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let known = |f: &str| old.is_some_and(|old| object::finalizers(old).any(|o| o == f));
        let mut added: Vec<&str> = object::finalizers(object).filter(|f| !known(f)).collect();
        added.sort_unstable();
        added.into_iter().flat_map(finalizer_warnings).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        if self.version().is_some_and(|v| v.status) { STATUS } else { &[] }
    }

    fn refuses_new(&self) -> Option<&'static str> {
        self.definition
            .is_terminating()
            .then_some("create not allowed while custom resource definition is terminating")
    }
}

fn finalizer_warnings(finalizer: &str) -> Vec<String> {
    let mut all: Vec<String> = names::qualified_name(finalizer)
        .into_iter()
        .map(|m| format!("metadata.finalizers: {finalizer:?}: {m}"))
        .collect();
    if !finalizer.contains('/') && !FINALIZERS.contains(&finalizer) {
        let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
        all.push(format!(
            "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
        ));
    }
    all
}

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        self.0.definition.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let status = object::remove(object, &["status"]);
        let managed = object::remove(object, &["metadata", "managedFields"]);
        let version = object::resource_version(object).to_owned();
        *object = old.clone();
        object::set_resource_version(object, &version);
        match managed {
            Some(managed) => object::set(object, &["metadata", "managedFields"], managed),
            None => {
                object::remove(object, &["metadata", "managedFields"]);
            }
        }
        match status {
            Some(status) => object::set(object, &["status"], status),
            None => {
                object::remove(object, &["status"]);
            }
        }
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let main = &self.0;
        let mut errors = main.type_meta(object);
        let Some(version) = main.version().filter(|_| errors.is_empty()) else { return errors };
        let schema = version.schema.as_ref().and_then(|s| s.properties.get("status"));
        if let (Some(schema), Some(status)) = (schema, object.get("status")) {
            let base = Path::new("status");
            errors.extend(validate::validate(&base, schema, status, old.get("status")));
        }
        if let Some(scale) = &version.scale {
            scale_status(object, scale, &mut errors);
        }
        if let Some(schema) = &version.schema {
            main.duplicates(schema, object, Some(old), &mut errors);
        }
        main.rules(version, object, Some(old), &mut errors);
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
