//! OpenAPI documents, v2 and v3, made from the rows and the schema registry; descriptions come from
//! the types of `k8s-openapi`, and are dropped again when a document is made.

mod descriptions;
mod paths;
mod schemas;

use std::collections::{BTreeSet, HashMap};

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{MessageId, Registry};
use apimachinery::status::ApiError;
use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};
use parking_lot::Mutex;
use serde_json::{Map, json};

use crate::registry::Resource;
use crate::respond::{self, Body};
use crate::verbs::Call;
use schemas::{Dialect, Schemas};

/// Version that the documents tell.
const VERSION: &str = "v1.35.0";

/// Documents that were asked for, encoded; made at the first request for each.
#[derive(Default)]
pub(crate) struct OpenApi {
    made: Mutex<HashMap<String, Made>>,
}

#[derive(Clone)]
struct Made {
    etag: String,
    json: Bytes,
}

impl OpenApi {
    fn get(
        &self,
        path: &str,
        make: impl FnOnce() -> Option<Value>,
    ) -> Result<Option<Made>, ApiError> {
        if let Some(made) = self.made.lock().get(path) {
            return Ok(Some(made.clone()));
        }
        let Some(document) = make() else { return Ok(None) };
        let json = serde_json::to_vec(&document).map_err(|e| ApiError::Internal(e.to_string()))?;
        let made = Made { etag: format!("\"{}\"", digest(&json)), json: json.into() };
        self.made.lock().insert(path.to_owned(), made.clone());
        Ok(Some(made))
    }
}

fn digest(data: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(data).iter().map(|b| format!("{b:02X}")).collect()
}

/// Answers `/openapi/<rest>`.
///
/// # Errors
/// A document cannot be encoded.
pub(crate) async fn answer(call: &Call, rest: &[&str]) -> Result<Response<Body>, ApiError> {
    let catalog = call.api.catalog();
    let rows: Vec<&Resource> = catalog.rows().iter().map(|served| &served.row).collect();
    let path = rest.join("/");
    let made = call.api.openapi.get(&path, || match rest {
        ["v2"] => Some(v2(&rows)),
        ["v3"] => Some(v3_index(&rows)),
        ["v3", document @ ..] => v3(&rows, &document.join("/")),
        _ => None,
    })?;
    let Some(made) = made else { return Ok(respond::text(404, "404 page not found\n")) };
    let mut response = match call.header("if-none-match") == made.etag {
        true => respond::answer(304, "application/json", Bytes::new()),
        false => call.send(200, "application/json", made.json).await,
    };
    if let Ok(etag) = HeaderValue::from_str(&made.etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    // The hash in the index makes a document's address change with its content.
    if call.parts.uri.query().is_some_and(|q| q.contains("hash=")) {
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(response)
}

/// `api/v1` or `apis/<group>/<version>`
fn document_path(row: &Resource) -> String {
    match &*row.group {
        "" => format!("api/{}", row.version),
        group => format!("apis/{group}/{}", row.version),
    }
}

/// `GET /openapi/v3`: where each group version's document is. The hash changes with what is
/// served, so that clients may keep a document for ever.
pub fn v3_index(rows: &[&Resource]) -> Value {
    let mut paths = Map::new();
    for path in rows.iter().map(|row| document_path(row)).collect::<BTreeSet<_>>() {
        let hash = fingerprint(rows, &path);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// A hash of what a document is made from.
fn fingerprint(rows: &[&Resource], path: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(VERSION);
    for row in rows.iter().filter(|row| document_path(row) == path) {
        hash.update(format!("{}/{}/{:?};", row.kind, row.plural, row.message));
        for sub in &row.subresources {
            hash.update(sub.name);
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02X}")).collect()
}

/// The messages that a row's documents refer to first.
fn roots(registry: &Registry, row: &Resource) -> Vec<MessageId> {
    let kind = |name: &str| registry.kind(&GroupVersionKind::new(&row.group, &row.version, name));
    let mut roots = vec![row.message];
    roots.extend(kind(&format!("{}List", row.kind)));
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1";
    for name in ["DeleteOptions", "Status", "WatchEvent", "APIResourceList"] {
        roots.extend(registry.by_name(&format!("{meta}.{name}")));
    }
    for sub in &row.subresources {
        roots.extend(paths::answer(registry, row, sub));
    }
    roots
}

/// `GET /openapi/v3/<path>`
pub fn v3(rows: &[&Resource], path: &str) -> Option<Value> {
    let registry = Registry::builtin();
    let rows: Vec<&Resource> =
        rows.iter().copied().filter(|row| document_path(row) == path).collect();
    if rows.is_empty() {
        return None;
    }
    let mut schemas = Schemas::new(registry, Dialect::V3);
    let mut all = Map::new();
    for row in &rows {
        for root in roots(registry, row) {
            schemas.add(root);
        }
        paths::add(registry, row, Dialect::V3, &mut all);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": all,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header",
                "description": "Bearer token",
            }},
        },
    }))
}

/// `GET /openapi/v2`
pub fn v2(rows: &[&Resource]) -> Value {
    let registry = Registry::builtin();
    let mut schemas = Schemas::new(registry, Dialect::V2);
    let mut all = Map::new();
    for row in rows {
        for root in roots(registry, row) {
            schemas.add(root);
        }
        paths::add(registry, row, Dialect::V2, &mut all);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": all,
        "definitions": schemas.finish(),
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "name": "authorization", "in": "header",
            "description": "Bearer token",
        }},
        "security": [{"BearerToken": []}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::kinds::{self, Deps};

    fn rows() -> Vec<Resource> {
        kinds::all(Registry::builtin(), &Deps::default())
    }

    /// Every `$ref` of a document leads somewhere in it.
    fn dangling(document: &Value) -> Vec<String> {
        fn walk(root: &Value, here: &Value, found: &mut Vec<String>) {
            match here {
                Value::Object(map) => {
                    if let Some(target) = map.get("$ref").and_then(Value::as_str)
                        && root.pointer(target.trim_start_matches('#')).is_none()
                    {
                        found.push(target.to_owned());
                    }
                    map.values().for_each(|v| walk(root, v, found));
                }
                Value::Array(list) => list.iter().for_each(|v| walk(root, v, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        walk(document, document, &mut found);
        found
    }

    #[test]
    fn documents_are_closed() {
        let rows = rows();
        let rows: Vec<&Resource> = rows.iter().collect();
        assert_eq!(dangling(&v2(&rows)), Vec::<String>::new());
        let index = v3_index(&rows);
        for path in index["paths"].as_object().expect("paths").keys() {
            let document = v3(&rows, path).expect("a document");
            assert_eq!(dangling(&document), Vec::<String>::new(), "{path}");
        }
        assert!(v3(&rows, "apis/nowhere/v1").is_none());
    }

    #[test]
    fn a_schema_says_what_clients_need() {
        let rows = rows();
        let rows: Vec<&Resource> = rows.iter().collect();
        let core = v3(&rows, "api/v1").expect("a document");
        let schema = |name: &str| core["components"]["schemas"][name].clone();
        let pod = schema("io.k8s.api.core.v1.Pod");
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        assert!(pod["description"].as_str().is_some_and(|d| d.starts_with("Pod is")), "{pod}");
        let spec = schema("io.k8s.api.core.v1.PodSpec");
        let containers = &spec["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        let probe = schema("io.k8s.api.core.v1.Probe");
        assert!(probe["properties"]["httpGet"].is_object(), "inlined fields are the parent's");
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .expect("parameters")
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        for wanted in ["dryRun", "fieldManager", "fieldValidation", "force"] {
            assert!(names.contains(&wanted), "{wanted}: {names:?}");
        }
    }
}
