//! OpenAPI documents, made from the schema registry and the rows when somebody first asks.

mod descriptions;
mod paths;
mod schemas;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{MessageId, Registry};
use apimachinery::status::ApiError;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use serde_json::{Map, json};
use sha2::{Digest as _, Sha512};

use crate::discovery::hex;
use crate::registry::catalog::{Catalog, Served};
use crate::respond::{self, Body};
use crate::verbs::Call;
use descriptions::Description;
use schemas::{Edition, Schemas};

static DESCRIPTIONS: LazyLock<HashMap<String, Description>> = LazyLock::new(descriptions::all);

/// A document and its hash.
struct Document {
    data: Bytes,
    hash: String,
}

/// All documents of a catalog.
struct Built {
    catalog: usize,
    v2: Document,
    /// By path below `/openapi/v3/`: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, Document>,
}

/// The documents, once they were asked for.
#[derive(Default)]
pub(crate) struct OpenApi {
    built: Mutex<Option<Arc<Built>>>,
}

impl OpenApi {
    async fn get(&self, catalog: Arc<Catalog>) -> Result<Arc<Built>, ApiError> {
        let id = Arc::as_ptr(&catalog) as usize;
        if let Some(built) = self.built.lock().as_ref().filter(|b| b.catalog == id) {
            return Ok(built.clone());
        }
        let building = tokio::task::spawn_blocking(move || build(&catalog));
        let built = building.await.map_err(|e| ApiError::Internal(e.to_string()))??;
        let built = Arc::new(built);
        *self.built.lock() = Some(built.clone());
        Ok(built)
    }
}

fn document(value: &Value) -> Result<Document, ApiError> {
    let data = serde_json::to_vec(value).map_err(|e| ApiError::Internal(e.to_string()))?;
    let hash = hex(&Sha512::digest(&data)).to_uppercase();
    Ok(Document { data: data.into(), hash })
}

fn build(catalog: &Arc<Catalog>) -> Result<Built, ApiError> {
    let mut groups: BTreeMap<String, Vec<Arc<Served>>> = BTreeMap::new();
    for served in catalog.rows() {
        let path = match &*served.row.group {
            "" => format!("api/{}", served.row.version),
            group => format!("apis/{group}/{}", served.row.version),
        };
        groups.entry(path).or_default().push(served.clone());
    }
    let mut v3 = BTreeMap::new();
    for (path, rows) in &groups {
        let (paths, schemas) = describe(rows, Edition::V3);
        let made = json!({
            "openapi": "3.0.0", "info": info(), "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"BearerToken": security()},
            },
        });
        v3.insert(path.clone(), document(&made)?);
    }
    let (paths, definitions) = describe(catalog.rows(), Edition::V2);
    let v2 = document(&json!({
        "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions,
        "securityDefinitions": {"BearerToken": security()}, "security": [{"BearerToken": []}],
    }))?;
    Ok(Built { catalog: Arc::as_ptr(catalog) as usize, v2, v3 })
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.35.0"})
}

fn security() -> Value {
    json!({"description": "Bearer Token authentication", "type": "apiKey",
        "name": "authorization", "in": "header"})
}

/// Paths and schemas of some rows.
fn describe(
    rows: &[Arc<Served>],
    edition: Edition,
) -> (Map<String, Value>, BTreeMap<String, Value>) {
    let registry = Registry::builtin();
    let mut kinds: HashMap<MessageId, Vec<GroupVersionKind>> = HashMap::new();
    for (gvk, id) in &registry.kinds {
        kinds.entry(*id).or_default().push(gvk.clone());
    }
    kinds.values_mut().for_each(|all| all.sort());
    let meta =
        |kind: &str| registry.by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    let mut schemas = Schemas::new(registry, &DESCRIPTIONS, &kinds, edition);
    let mut paths = Map::new();
    for served in rows {
        let row = &served.row;
        let list = GroupVersionKind::new(&row.group, &row.version, &served.list_kind);
        let mut context = paths::Context {
            edition,
            name_of: &mut |id| schemas.want(id),
            list: registry.kind(&list),
            patch: meta("Patch"),
            status: meta("Status"),
            delete_options: meta("DeleteOptions"),
            kind: &|gvk| registry.kind(gvk),
        };
        context.paths(served, &mut paths);
        schemas.want(row.message);
    }
    (paths, schemas.finish())
}

/// Answers a path below `/openapi`.
///
/// # Errors
/// 406 for media types that the documents do not come in.
pub(crate) async fn answer(call: &Call, rest: &[&str]) -> Result<Response<Body>, ApiError> {
    let built = call.api.openapi.get(call.api.catalog()).await?;
    match rest {
        ["v2"] => {
            let accept = accepted(&call.parts.headers);
            let json = accept.is_empty()
                || accept.iter().any(|t| t.starts_with("application/json") || t.starts_with("*/*"));
            if !json {
                return Err(ApiError::NotAcceptable {
                    accepted: vec!["application/json".to_owned()],
                });
            }
            send(call, &built.v2).await
        }
        ["v3"] => {
            let paths: Map<String, Value> = built
                .v3
                .iter()
                .map(|(path, document)| {
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    (path.clone(), json!({"serverRelativeURL": url}))
                })
                .collect();
            let index = serde_json::to_vec(&json!({"paths": paths}));
            let index = index.map_err(|e| ApiError::Internal(e.to_string()))?;
            Ok(call.send(200, "application/json", index.into()).await)
        }
        ["v3", path @ ..] => match built.v3.get(&path.join("/")) {
            Some(document) => {
                let mut response = send(call, document).await?;
                if call.query.get("hash") == Some(document.hash.as_str()) {
                    // What a hash names never changes.
                    response.headers_mut().insert(
                        header::CACHE_CONTROL,
                        HeaderValue::from_static("public, immutable"),
                    );
                }
                Ok(response)
            }
            None => Ok(respond::text(404, "404 page not found\n")),
        },
        _ => Ok(respond::text(404, "404 page not found\n")),
    }
}

fn accepted(headers: &HeaderMap) -> Vec<String> {
    let texts = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    texts
        .flat_map(|t| t.split(','))
        .map(|t| t.trim().to_owned())
        .filter(|t| !t.is_empty())
        .collect()
}

async fn send(call: &Call, document: &Document) -> Result<Response<Body>, ApiError> {
    let etag = format!("\"{}\"", document.hash);
    let mut response = if call.header("if-none-match") == etag {
        respond::answer(304, "application/json", Bytes::new())
    } else {
        call.send(200, "application/json", document.data.clone()).await
    };
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}
