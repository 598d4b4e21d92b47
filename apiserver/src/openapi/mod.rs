//! OpenAPI documents, made from the schema registry and the rows when somebody first asks.

mod descriptions;
mod paths;
mod proto;
mod schemas;

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write as _};
use std::sync::Arc;

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
use crate::negotiate;
use crate::registry::catalog::{Catalog, Served};
use crate::respond::{self, Body};
use crate::verbs::Call;
use descriptions::Description;
use schemas::{Edition, Schemas};

/// What the second edition as protobuf is called in answers.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What clients call the forms of the second edition, and whether it is protobuf.
const FORMS: [(&str, bool); 3] = [
    ("json", false),
    ("com.github.proto-openapi.spec.v2@v1.0+protobuf", true),
    ("com.github.proto-openapi.spec.v2.v1.0+protobuf", true),
];

/// A document in JSON and its hash. It is kept compressed, as most clients want it.
struct Document {
    gzip: Bytes,
    hash: String,
}

impl Document {
    fn read(&self) -> flate2::read::GzDecoder<&[u8]> {
        flate2::read::GzDecoder::new(&self.gzip)
    }
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

/// Hashes what goes through to the compressor.
struct Hashing {
    hash: Sha512,
    gzip: flate2::write::GzEncoder<Vec<u8>>,
}

impl std::io::Write for Hashing {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.gzip.write(data)?;
        self.hash.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.gzip.flush()
    }
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::Internal(error.to_string())
}

fn document(value: &Value) -> Result<Document, ApiError> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    // The serializer writes a few bytes at a time.
    let mut out = std::io::BufWriter::new(Hashing { hash: Sha512::new(), gzip });
    serde_json::to_writer(&mut out, value).map_err(internal)?;
    out.flush().map_err(internal)?;
    let Hashing { hash, gzip } = out.into_inner().map_err(internal)?;
    let mut gzip = gzip.finish().map_err(internal)?;
    gzip.shrink_to_fit();
    Ok(Document { gzip: gzip.into(), hash: hex(&hash.finalize()).to_uppercase() })
}

fn build(catalog: &Arc<Catalog>) -> Result<Built, ApiError> {
    // Needed here only, and megabytes of text.
    let descriptions = descriptions::all();
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
        let (paths, schemas) = describe(rows, Edition::V3, &descriptions);
        let made = json!({
            "openapi": "3.0.0", "info": info(), "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"BearerToken": security()},
            },
        });
        v3.insert(path.clone(), document(&made)?);
    }
    let (paths, definitions) = describe(catalog.rows(), Edition::V2, &descriptions);
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
    descriptions: &HashMap<String, Description>,
) -> (Map<String, Value>, BTreeMap<String, Value>) {
    let registry = Registry::builtin();
    let mut kinds: HashMap<MessageId, Vec<GroupVersionKind>> = HashMap::new();
    for (gvk, id) in &registry.kinds {
        kinds.entry(*id).or_default().push(gvk.clone());
    }
    kinds.values_mut().for_each(|all| all.sort());
    let meta =
        |kind: &str| registry.by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    let mut schemas = Schemas::new(registry, descriptions, &kinds, edition);
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
/// A document cannot be made.
pub(crate) async fn answer(call: &Call, rest: &[&str]) -> Result<Response<Body>, ApiError> {
    let built = call.api.openapi.get(call.api.catalog()).await?;
    match rest {
        ["v2"] => second(call, &built).await,
        ["v3"] => {
            let mut paths: Map<String, Value> = built
                .v3
                .iter()
                .map(|(path, document)| {
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    (path.clone(), json!({"serverRelativeURL": url}))
                })
                .collect();
            for path in call.api.aggregation.openapi_paths() {
                let url = format!("/openapi/v3/{path}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
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

/// Whether a client wants the second edition as protobuf; `None`: in no form that there is.
fn wants_protobuf(headers: &HeaderMap) -> Option<bool> {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let accept = accept.join(",");
    let accept = if accept.is_empty() { "*/*" } else { &accept };
    negotiate::clauses(accept).iter().filter(|c| matches!(c.main, "application" | "*")).find_map(
        |clause| {
            FORMS.iter().find(|(name, _)| clause.sub == "*" || clause.sub == *name).map(|f| f.1)
        },
    )
}

/// Answers with the second edition. As protobuf it is made on every request that asks for it:
/// clients do so seldom, and keep it by its tag.
async fn second(call: &Call, built: &Arc<Built>) -> Result<Response<Body>, ApiError> {
    let mut response = match wants_protobuf(&call.parts.headers) {
        None => {
            let mut response = Response::new(respond::body(Bytes::new()));
            *response.status_mut() = http::StatusCode::NOT_ACCEPTABLE;
            response
        }
        Some(false) => send(call, &built.v2).await?,
        Some(true) if is_known(call, &built.v2) => tagged(not_modified(PROTOBUF), &built.v2),
        Some(true) => {
            let built_too = built.clone();
            let made = tokio::task::spawn_blocking(move || {
                proto::encode(std::io::BufReader::new(built_too.v2.read()))
            });
            let made = made.await.map_err(internal)?.map_err(internal)?;
            tagged(call.send(200, PROTOBUF, made.into()).await, &built.v2)
        }
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn tag(document: &Document) -> String {
    format!("\"{}\"", document.hash)
}

/// Whether the client has the document already.
fn is_known(call: &Call, document: &Document) -> bool {
    call.header("if-none-match") == tag(document)
}

fn not_modified(media_type: &str) -> Response<Body> {
    respond::answer(304, media_type, Bytes::new())
}

fn tagged(mut response: Response<Body>, document: &Document) -> Response<Body> {
    if let Ok(tag) = HeaderValue::from_str(&tag(document)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

async fn send(call: &Call, document: &Document) -> Result<Response<Body>, ApiError> {
    const JSON: &str = "application/json";
    if is_known(call, document) {
        return Ok(tagged(not_modified(JSON), document));
    }
    if respond::accepts_gzip(&call.parts.headers) {
        let mut response = respond::answer(200, JSON, document.gzip.clone());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        return Ok(tagged(response, document));
    }
    let mut data = Vec::new();
    document.read().read_to_end(&mut data).map_err(internal)?;
    Ok(tagged(respond::answer(200, JSON, data), document))
}
