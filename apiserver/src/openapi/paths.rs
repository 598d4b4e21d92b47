//! The paths of a resource with their operations.

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{MessageId, Registry};
use serde_json::{Map, json};

use super::schemas::Dialect;
use crate::registry::{Action, Resource, Subresource, Verbs};

/// A query parameter: name, type, description.
type Parameter = (&'static str, &'static str, &'static str);

const WRITE: [Parameter; 3] = [
    ("dryRun", "string", "All: nothing is stored"),
    ("fieldManager", "string", "Name of who makes this change"),
    (
        "fieldValidation",
        "string",
        "What to do about unknown and duplicate fields: Ignore, Warn or Strict",
    ),
];
const FORCE: Parameter = ("force", "boolean", "Take fields over from other managers");
const DELETE: [Parameter; 5] = [
    ("dryRun", "string", "All: nothing is deleted"),
    ("gracePeriodSeconds", "integer", "Seconds before the object is deleted"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", "Delete what cannot be read"),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy"),
    ("propagationPolicy", "string", "Orphan, Background or Foreground"),
];
const LIST: [Parameter; 10] = [
    ("allowWatchBookmarks", "boolean", "Bookmarks are understood"),
    ("continue", "string", "Token of the next page"),
    ("fieldSelector", "string", "Selector on fields"),
    ("labelSelector", "string", "Selector on labels"),
    ("limit", "integer", "The most objects of a page"),
    ("resourceVersion", "string", "Which state to read"),
    ("resourceVersionMatch", "string", "How resourceVersion is meant"),
    ("sendInitialEvents", "boolean", "Begin a watch with the present objects"),
    ("timeoutSeconds", "integer", "The longest that the call may take"),
    ("watch", "boolean", "Tell changes instead of listing"),
];
const PRETTY: Parameter = ("pretty", "string", "Indent the output");

/// What a subresource answers with, when it is a message.
pub fn answer(registry: &Registry, row: &Resource, sub: &Subresource) -> Option<MessageId> {
    match &sub.action {
        Action::Part { .. } => Some(row.message),
        Action::Scale { .. } => registry.kind(&GroupVersionKind::new("autoscaling", "v1", "Scale")),
        Action::Post { group, version, kind, .. } => {
            registry.kind(&GroupVersionKind::new(group, version, kind))
        }
        Action::Connect(_) => None,
    }
}

/// Adds the paths of a row.
pub fn add(registry: &Registry, row: &Resource, dialect: Dialect, out: &mut Map<String, Value>) {
    let mut document = Document { registry, row, dialect, out };
    let base = match &*row.group {
        "" => format!("/api/{}", row.version),
        group => format!("/apis/{group}/{}", row.version),
    };
    let scope = if row.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", row.plural);
    let object = format!("{collection}/{{name}}");
    document.collection(&collection);
    if row.verbs == Verbs::CreateOnly {
        return;
    }
    document.object(&object, "", row.message);
    if row.namespaced {
        document.all_namespaces(&format!("{base}/{}", row.plural));
    }
    for sub in &row.subresources {
        let path = format!("{object}/{}", sub.name);
        match (&sub.action, answer(registry, row, sub)) {
            (Action::Part { .. } | Action::Scale { .. }, Some(message)) => {
                document.part(&path, sub.name, message);
            }
            (Action::Post { .. }, Some(message)) => document.post(&path, sub.name, message),
            _ => document.connect(&path, sub.name),
        }
    }
}

struct Document<'a> {
    registry: &'a Registry,
    row: &'a Resource,
    dialect: Dialect,
    out: &'a mut Map<String, Value>,
}

impl Document<'_> {
    fn name(&self, message: MessageId) -> String {
        self.registry.message(message).name.clone()
    }

    fn list_name(&self) -> String {
        let row = self.row;
        let list = format!("{}List", row.kind);
        let gvk = GroupVersionKind::new(&row.group, &row.version, &list);
        self.registry.kind(&gvk).map_or_else(|| self.name(row.message), |id| self.name(id))
    }

    fn parameter(&self, (name, ty, description): Parameter) -> Value {
        match self.dialect {
            Dialect::V2 => json!({"name": name, "in": "query", "type": ty,
                "description": description, "uniqueItems": true}),
            Dialect::V3 => json!({"name": name, "in": "query", "description": description,
                "schema": {"type": ty, "uniqueItems": true}}),
        }
    }

    fn in_path(&self, name: &str) -> Value {
        match self.dialect {
            Dialect::V2 => {
                json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true})
            }
            Dialect::V3 => {
                json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
            }
        }
    }

    /// One operation: `action` is upstream's word for it, `body` and `answer` are schema names.
    fn operation(
        &self,
        action: &str,
        sub: &str,
        parameters: &[Parameter],
        body: Option<&str>,
        answer: Option<&str>,
    ) -> Value {
        let row = self.row;
        let media = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
        let patches = [
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ];
        let consumed: &[&str] = if action == "patch" { &patches } else { &media };
        let mut list: Vec<Value> = parameters.iter().map(|p| self.parameter(*p)).collect();
        let reference = |name: &str| self.dialect.reference(name);
        let content = |media: &[&str], name: &str| -> Map<String, Value> {
            media.iter().map(|m| ((*m).to_owned(), json!({"schema": reference(name)}))).collect()
        };
        let mut ok = json!({"description": "OK"});
        if let Some(name) = answer {
            match self.dialect {
                Dialect::V2 => ok["schema"] = reference(name),
                Dialect::V3 => ok["content"] = Value::Object(content(&media, name)),
            }
        }
        let mut operation = json!({
            "operationId": self.operation_id(action, sub),
            "tags": [self.tag()],
            "responses": {"200": ok, "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind":
                {"group": row.group, "version": row.version, "kind": row.kind},
        });
        if let Some(name) = body {
            match self.dialect {
                Dialect::V2 => {
                    list.push(json!({"name": "body", "in": "body", "required": true, "schema": reference(name)}));
                    operation["consumes"] = json!(consumed);
                }
                Dialect::V3 => {
                    operation["requestBody"] =
                        json!({"required": true, "content": content(consumed, name)});
                }
            }
        }
        if self.dialect == Dialect::V2 {
            operation["produces"] = json!(media);
        }
        operation["parameters"] = Value::Array(list);
        operation
    }

    fn tag(&self) -> String {
        let group = self.row.group.split('.').next().unwrap_or_default();
        let group = if group.is_empty() { "core" } else { group };
        format!("{group}_{}", self.row.version)
    }

    fn operation_id(&self, action: &str, sub: &str) -> String {
        let capital = |text: &str| -> String {
            let mut chars = text.chars();
            chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
        };
        let group = self.row.group.split('.').next().unwrap_or_default();
        let group = if group.is_empty() { "core" } else { group };
        let scope = if self.row.namespaced { "Namespaced" } else { "" };
        format!(
            "{action}{}{}{scope}{}{}",
            capital(group),
            capital(&self.row.version),
            self.row.kind,
            capital(sub)
        )
    }

    fn insert(&mut self, path: &str, operations: Vec<(&str, Value)>) {
        let mut item: Map<String, Value> =
            operations.into_iter().map(|(method, op)| (method.to_owned(), op)).collect();
        let mut parameters: Vec<Value> = ["name", "namespace"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(|name| self.in_path(name))
            .collect();
        parameters.push(self.parameter(PRETTY));
        item.insert("parameters".to_owned(), Value::Array(parameters));
        self.out.insert(path.to_owned(), Value::Object(item));
    }

    fn collection(&mut self, path: &str) {
        let own = self.name(self.row.message);
        let post = self.operation("post", "", &WRITE, Some(&own), Some(&own));
        if self.row.verbs == Verbs::CreateOnly {
            return self.insert(path, vec![("post", post)]);
        }
        let list = self.list_name();
        let status = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
        let options = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
        let get = self.operation("list", "", &LIST, None, Some(&list));
        let parameters = [&DELETE[..], &LIST[1..7]].concat();
        let delete =
            self.operation("deletecollection", "", &parameters, Some(options), Some(status));
        self.insert(path, vec![("get", get), ("post", post), ("delete", delete)]);
    }

    fn all_namespaces(&mut self, path: &str) {
        let list = self.list_name();
        let mut get = self.operation("list", "ForAllNamespaces", &LIST, None, Some(&list));
        let id = self.operation_id("list", "ForAllNamespaces").replace("Namespaced", "");
        get["operationId"] = json!(id);
        self.insert(path, vec![("get", get)]);
    }

    fn object(&mut self, path: &str, sub: &str, message: MessageId) {
        let status = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
        let options = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
        let delete = self.operation("delete", sub, &DELETE, Some(options), Some(status));
        let mut operations = self.get_put_patch(sub, message);
        operations.push(("delete", delete));
        self.insert(path, operations);
    }

    fn part(&mut self, path: &str, sub: &str, message: MessageId) {
        let operations = self.get_put_patch(sub, message);
        self.insert(path, operations);
    }

    fn get_put_patch(&self, sub: &str, message: MessageId) -> Vec<(&'static str, Value)> {
        let own = self.name(message);
        let patch = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
        let with_force = [&WRITE[..], &[FORCE]].concat();
        // A patch is any JSON: the schema of the object serves as well as an empty one.
        let body = if self.registry.by_name(patch).is_some() { patch } else { own.as_str() };
        vec![
            ("get", self.operation("get", sub, &[], None, Some(&own))),
            ("put", self.operation("put", sub, &WRITE, Some(&own), Some(&own))),
            ("patch", self.operation("patch", sub, &with_force, Some(body), Some(&own))),
        ]
    }

    fn post(&mut self, path: &str, sub: &str, message: MessageId) {
        let own = self.name(message);
        let post = self.operation("post", sub, &WRITE, Some(&own), Some(&own));
        self.insert(path, vec![("post", post)]);
    }

    fn connect(&mut self, path: &str, sub: &str) {
        let get = self.operation("connect", sub, &[], None, None);
        self.insert(path, vec![("get", get)]);
    }
}
