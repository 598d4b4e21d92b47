//! A CustomResourceDefinition as its resources are served by: read once, when it is established or
//! changed.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apimachinery::Value;
use apimachinery::codec::{DecodeError, Decoded, FieldValidation};
use apimachinery::field::Path;
use apimachinery::gvk::api_version;
use apimachinery::object::{self, bool_at, get, list_at, str_at};
use apimachinery::patch::apply::Typing;
use jiff::Timestamp;
use serde_json::json;

use super::coerce::{self, Malformed};
use super::convert::{Conversion, Converter, Hook};
use super::jsonpath::JsonPath;
use super::rules::Rules;
use super::schema::{self, Schema};
use super::typing::Types;
use crate::cache::Reading;
use crate::registry::catalog::version_rank;
use crate::registry::kinds::cells;

/// The names that a resource goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub short: Vec<String>,
    pub kind: String,
    pub list_kind: String,
    pub categories: Vec<String>,
}

impl Names {
    /// From `spec.names` or `status.acceptedNames`.
    pub fn read(names: &Value) -> Self {
        let text = |name: &str| str_at(names, &[name]).to_owned();
        let texts = |name: &str| schema::strings(list_at(names, &[name]));
        Self {
            plural: text("plural"),
            singular: text("singular"),
            short: texts("shortNames"),
            kind: text("kind"),
            list_kind: text("listKind"),
            categories: texts("categories"),
        }
    }
}

/// A printer column.
pub struct Column {
    name: String,
    ty: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<JsonPath>,
}

/// The `scale` subresource's paths, without the dot that they begin with.
#[derive(Clone, Debug)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: Option<String>,
}

/// One version.
pub struct Version {
    pub name: String,
    pub served: bool,
    pub schema: Option<Schema>,
    pub rules: Option<Rules>,
    types: Option<Types>,
    columns: Vec<Column>,
    /// Labels of fields that selectors may name.
    pub selectable: Vec<String>,
    pub status: bool,
    pub scale: Option<Scale>,
    /// What clients of a deprecated version are told.
    pub warning: Option<String>,
}

/// A definition.
pub struct Definition {
    pub name: String,
    pub uid: String,
    pub group: String,
    pub names: Names,
    pub namespaced: bool,
    pub versions: Vec<Version>,
    /// Index of the version that is stored.
    storage: usize,
    /// `spec.preserveUnknownFields`, of definitions from before v1.
    preserve: bool,
    pub conversion: Conversion,
    /// Objects are stored in the storage version alone.
    single: bool,
    terminating: AtomicBool,
    /// All labels that any version may select by.
    labels: Vec<String>,
    paths: Vec<Option<JsonPath>>,
    /// The object itself, for what describes the resource.
    pub source: Arc<Value>,
}

fn is_true(crd: &Value, kind: &str) -> bool {
    list_at(crd, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == kind && str_at(c, &["status"]) == "True")
}

/// What a definition's resources are served by: another `spec` or other names make other rows.
pub fn same_resources(a: &Value, b: &Value) -> bool {
    let part = |v: &Value, path: &[&str]| get(v, path).cloned().unwrap_or_default();
    [
        &["metadata", "uid"][..],
        &["spec"],
        &["status", "acceptedNames"],
        &["status", "storedVersions"],
    ]
    .iter()
    .all(|path| part(a, path) == part(b, path))
}

impl Definition {
    /// Reads a definition; a schema that cannot be read is none.
    pub fn read(crd: Arc<Value>, converter: &Arc<dyn Converter>) -> Self {
        let names = Names::read(
            crd.get("status").and_then(|s| s.get("acceptedNames")).unwrap_or(&Value::Null),
        );
        let group = str_at(&crd, &["spec", "group"]).to_owned();
        let versions: Vec<Version> = list_at(&crd, &["spec", "versions"])
            .iter()
            .map(|version| Version::read(version, &crd))
            .collect();
        let is_storage = |v: &Value| bool_at(v, &["storage"]);
        let storage = list_at(&crd, &["spec", "versions"]).iter().position(is_storage).unwrap_or(0);
        let mut labels: Vec<String> = versions.iter().flat_map(|v| v.selectable.clone()).collect();
        labels.sort();
        labels.dedup();
        let paths = labels.iter().map(|l| JsonPath::parse(&format!(".{l}")).ok()).collect();
        let conversion = match str_at(&crd, &["spec", "conversion", "strategy"]) {
            "Webhook" => Conversion::Webhook(Arc::new(Hook {
                converter: converter.clone(),
                client_config: get(&crd, &["spec", "conversion", "webhook", "clientConfig"])
                    .cloned()
                    .unwrap_or_default(),
                review_versions: schema::strings(list_at(
                    &crd,
                    &["spec", "conversion", "webhook", "conversionReviewVersions"],
                )),
            })),
            _ => Conversion::None,
        };
        let stored = list_at(&crd, &["status", "storedVersions"]);
        Self {
            name: object::name(&crd).to_owned(),
            uid: object::uid(&crd).to_owned(),
            namespaced: str_at(&crd, &["spec", "scope"]) == "Namespaced",
            preserve: bool_at(&crd, &["spec", "preserveUnknownFields"]),
            single: stored.len() == 1,
            terminating: AtomicBool::new(is_true(&crd, "Terminating")),
            group,
            names,
            versions,
            storage,
            conversion,
            labels,
            paths,
            source: crd,
        }
    }

    /// `stable.example.com/v1` of a version.
    pub fn api_version(&self, version: usize) -> String {
        let name = self.versions.get(version).map_or("", |v| v.name.as_str());
        api_version(&self.group, name)
    }

    /// The name of the version that is stored.
    pub fn storage_version(&self) -> &str {
        self.versions.get(self.storage).map_or("", |v| v.name.as_str())
    }

    /// The index of the version that is stored.
    pub fn storage(&self) -> usize {
        self.storage
    }

    pub fn is_storage(&self, version: usize) -> bool {
        self.storage == version
    }

    /// Whether what is read from the store may have to be converted by a webhook.
    pub fn may_convert(&self, version: usize) -> bool {
        let stored_so = self.is_storage(version) && self.single;
        matches!(self.conversion, Conversion::Webhook(_)) && !stored_so
    }

    pub fn is_terminating(&self) -> bool {
        self.terminating.load(Ordering::Relaxed)
    }

    pub fn set_terminating(&self, terminating: bool) {
        self.terminating.store(terminating, Ordering::Relaxed);
    }

    /// The schema of the version that an object is in.
    fn schema_of(&self, object: &Value) -> Option<&Schema> {
        let found = str_at(object, &["apiVersion"]);
        let version = found.strip_prefix(&self.group)?.strip_prefix('/')?;
        self.versions.iter().find(|v| v.name == version)?.schema.as_ref()
    }

    /// Drops what an object's schema does not know. Gives the paths of what was unknown.
    fn coerce(&self, object: &mut Value, malformed: Malformed) -> Result<Vec<String>, String> {
        let mut unknown = coerce::root_metadata(object, malformed)?;
        let empty;
        let schema = match self.schema_of(object) {
            Some(schema) => schema,
            None => {
                empty = Schema::default();
                &empty
            }
        };
        if !self.preserve {
            unknown.extend(coerce::prune(object, schema));
            coerce::drop_nulls(object, Some(schema));
        }
        let mut within = Vec::new();
        coerce::embedded(object, schema, &Path::new(""), malformed, &mut within)
            .map_err(|e| e.to_string())?;
        within.sort();
        unknown.extend(within);
        Ok(unknown)
    }

    /// Sets the defaults of the version that the object is in.
    pub fn default(&self, object: &mut Value) {
        if let Some(schema) = self.schema_of(object) {
            coerce::default(object, schema);
        }
    }

    /// Puts an object into a version; only where no webhook does that.
    ///
    /// # Errors
    /// A webhook should have done it.
    pub fn to_version(&self, object: &mut Value, version: usize) -> Result<(), DecodeError> {
        let wanted = self.api_version(version);
        if str_at(object, &["apiVersion"]) == wanted {
            return Ok(());
        }
        if matches!(self.conversion, Conversion::Webhook(_)) {
            let found = str_at(object, &["apiVersion"]);
            let text = format!("is stored in {found} and was not converted to {wanted}");
            return Err(DecodeError::Malformed(text));
        }
        object::set(object, &["apiVersion"], wanted);
        self.settle(object)
    }

    /// Drops what the version that an object was converted to does not know.
    pub fn settle(&self, object: &mut Value) -> Result<(), DecodeError> {
        self.coerce(object, Malformed::Refuse).map(drop).map_err(DecodeError::Malformed)
    }

    /// An object that a client sent, with the fields that were unknown.
    ///
    /// # Errors
    /// Metadata does not fit; unknown or duplicate fields under strict validation.
    pub fn sent(
        &self,
        decoded: Decoded,
        validation: FieldValidation,
    ) -> Result<Decoded, DecodeError> {
        let Decoded { mut object, mut warnings } = decoded;
        let unknown =
            self.coerce(&mut object, Malformed::Refuse).map_err(DecodeError::Malformed)?;
        if validation != FieldValidation::Ignore {
            warnings.extend(unknown.into_iter().map(|path| format!("unknown field \"{path}\"")));
        }
        if validation == FieldValidation::Strict && !warnings.is_empty() {
            return Err(DecodeError::Strict(warnings));
        }
        Ok(Decoded { object, warnings })
    }

    /// How server-side apply sees a version.
    pub fn typing(&self, version: usize) -> Typing<'_> {
        match self.versions.get(version).and_then(|v| v.types.as_ref()) {
            Some(types) => Typing::Schema(types.typed()),
            None => Typing::Deduced,
        }
    }
}

impl Reading for Definition {
    fn read(&self, object: &mut Value) -> Result<(), DecodeError> {
        self.coerce(object, Malformed::Drop).map_err(DecodeError::Malformed)?;
        if object::generation(object) == 0 {
            object::set(object, &["metadata", "generation"], 1);
        }
        self.default(object);
        if matches!(self.conversion, Conversion::None) {
            self.to_version(object, self.storage)?;
        }
        Ok(())
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn field(&self, at: usize, object: &Value) -> String {
        let path = self.paths.get(at).and_then(Option::as_ref);
        path.and_then(|path| path.first(object)).map(shown).unwrap_or_default().into_owned()
    }
}

/// A value as Go prints it.
fn shown(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

impl Version {
    fn read(version: &Value, crd: &Value) -> Self {
        let props = get(version, &["schema", "openAPIV3Schema"]);
        let schema = props.and_then(|props| match Schema::read(props) {
            Ok(schema) => Some(schema),
            Err(error) => {
                tracing::warn!(crd = object::name(crd), error, "a schema is not structural");
                None
            }
        });
        let columns: Vec<Column> = list_at(version, &["additionalPrinterColumns"])
            .iter()
            .map(|column| Column::read(column))
            .collect();
        let selectable = list_at(version, &["selectableFields"])
            .iter()
            .map(|f| str_at(f, &["jsonPath"]).trim_start_matches('.').to_owned())
            .collect();
        let scale = get(version, &["subresources", "scale"]).map(|scale| {
            let path = |name: &str| str_at(scale, &[name]).trim_start_matches('.').to_owned();
            Scale {
                spec_replicas: path("specReplicasPath"),
                status_replicas: path("statusReplicasPath"),
                selector: Some(path("labelSelectorPath")).filter(|p| !p.is_empty()),
            }
        });
        let keeps = bool_at(crd, &["spec", "preserveUnknownFields"]);
        Self {
            name: str_at(version, &["name"]).to_owned(),
            served: bool_at(version, &["served"]),
            types: schema.as_ref().filter(|_| !keeps).map(Types::new),
            rules: schema.as_ref().and_then(Rules::new),
            schema,
            columns: if columns.is_empty() { vec![Column::age()] } else { columns },
            selectable,
            // An empty map is there, though it says nothing.
            status: version.pointer("/subresources/status").is_some_and(|s| !s.is_null()),
            scale,
            warning: bool_at(version, &["deprecated"]).then(|| warning(version, crd)),
        }
    }

    /// The columns of tables, `Name` first.
    pub fn columns(&self) -> Value {
        let name = json!({"name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"});
        let others = self.columns.iter().map(|c| {
            json!({"name": c.name, "type": c.ty, "format": c.format,
                "description": c.description, "priority": c.priority})
        });
        std::iter::once(name).chain(others).collect()
    }

    /// The cells of one object.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Value {
        let name = Value::from(object::name(object));
        std::iter::once(name).chain(self.columns.iter().map(|c| c.cell(object, now))).collect()
    }
}

/// What clients of a deprecated version are told.
fn warning(version: &Value, crd: &Value) -> String {
    if let Some(text) = get(version, &["deprecationWarning"]).and_then(Value::as_str) {
        return text.to_owned();
    }
    let (group, kind) = (str_at(crd, &["spec", "group"]), str_at(crd, &["spec", "names", "kind"]));
    let own = str_at(version, &["name"]);
    let mut better: Vec<&str> = list_at(crd, &["spec", "versions"])
        .iter()
        .filter(|v| bool_at(v, &["served"]) && !bool_at(v, &["deprecated"]))
        .map(|v| str_at(v, &["name"]))
        .filter(|name| version_rank(name) > version_rank(own))
        .collect();
    better.sort_by_key(|name| version_rank(name));
    let instead = better.last().map(|v| format!("; use {group}/{v} {kind}")).unwrap_or_default();
    format!("{group}/{own} {kind} is deprecated{instead}")
}

impl Column {
    fn read(column: &Value) -> Self {
        let text = |name: &str| str_at(column, &[name]).to_owned();
        let path = text("jsonPath");
        let description = match text("description") {
            text if text.is_empty() => {
                format!("Custom resource definition column (in JSONPath format): {path}")
            }
            text => text,
        };
        Self {
            name: text("name"),
            ty: text("type"),
            format: text("format"),
            description,
            priority: object::int_at(column, &["priority"]).unwrap_or(0),
            path: JsonPath::parse(&path).ok(),
        }
    }

    /// What definitions without columns show.
    fn age() -> Self {
        let text = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
        Self {
            name: "Age".to_owned(),
            ty: "date".to_owned(),
            format: String::new(),
            description: text.to_owned(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = self.path.as_ref().and_then(|path| path.find(object).into_iter().next());
        let Some(value) = found else { return Value::Null };
        match (self.ty.as_str(), value) {
            ("string", value) => shown(value).into_owned().into(),
            ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => n.into(),
                #[expect(clippy::cast_possible_truncation, reason = "as upstream cuts it")]
                (None, Some(f)) => (f as i64).into(),
                _ => Value::Null,
            },
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
            ("date", Value::String(text)) => match text.parse::<Timestamp>() {
                Ok(_) => cells::since(text, now).into(),
                Err(_) => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}
