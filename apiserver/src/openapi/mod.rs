//! OpenAPI documents, made from the schema registry and the rows when somebody first asks.

mod custom;
mod descriptions;
mod document;
mod paths;
mod proto;
mod schemas;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
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

use crate::negotiate;
use crate::registry::catalog::{Catalog, Served};
use crate::respond::{self, Body};
use crate::verbs::Call;
use descriptions::Description;
use document::{Document, Segment, internal};
use paths::SchemaOf;
use schemas::{Edition, Schemas};

const JSON: &str = "application/json";
/// What the second edition as protobuf is called in answers.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What clients call the forms of the second edition, and whether it is protobuf.
const FORMS: [(&str, bool); 3] = [
    ("json", false),
    ("com.github.proto-openapi.spec.v2@v1.0+protobuf", true),
    ("com.github.proto-openapi.spec.v2.v1.0+protobuf", true),
];

/// What is compiled in, described once.
struct Compiled {
    rows: Vec<Arc<Served>>,
    /// By path below `/openapi/v3/`: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, Arc<Document>>,
    /// The second edition's paths and definitions, each within its braces.
    paths: Segment,
    definitions: Segment,
    /// The definitions' names.
    names: BTreeSet<String>,
    /// Words for what all kinds share.
    words: HashMap<String, Description>,
}

/// What the custom resources of one group and version add.
struct Added {
    rows: Vec<Arc<Served>>,
    v3: Arc<Document>,
    /// Of the second edition, with a comma before each.
    paths: String,
    definitions: String,
}

/// All documents of a catalog.
struct Built {
    catalog: u64,
    compiled: Arc<Compiled>,
    /// By path below `/openapi/v3/`.
    added: BTreeMap<String, Arc<Added>>,
    v2: Document,
}

/// The documents, once they were asked for.
#[derive(Default)]
pub(crate) struct OpenApi {
    built: Mutex<Option<Arc<Built>>>,
}

impl OpenApi {
    async fn get(&self, catalog: Arc<Catalog>) -> Result<Arc<Built>, ApiError> {
        let id = catalog.id();
        let last = self.built.lock().clone();
        if let Some(built) = last.as_ref().filter(|b| b.catalog == id) {
            return Ok(built.clone());
        }
        let building = tokio::task::spawn_blocking(move || build(&catalog, last.as_deref()));
        let built = building.await.map_err(|e| ApiError::Internal(e.to_string()))??;
        let built = Arc::new(built);
        let mut kept = self.built.lock();
        if kept.as_ref().is_none_or(|k| k.catalog < id) {
            *kept = Some(built.clone());
        }
        Ok(built)
    }
}

impl Built {
    fn third(&self, path: &str) -> Option<&Arc<Document>> {
        self.added.get(path).map(|a| &a.v3).or_else(|| self.compiled.v3.get(path))
    }

    /// The third edition's documents by path.
    fn thirds(&self) -> BTreeMap<&str, &Arc<Document>> {
        let compiled = self.compiled.v3.iter().map(|(path, document)| (path.as_str(), document));
        let added = self.added.iter().map(|(path, added)| (path.as_str(), &added.v3));
        compiled.chain(added).collect()
    }
}

fn is_same(a: &[Arc<Served>], b: &[Arc<Served>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Rows by path below `/openapi/v3/`.
fn grouped<'a>(rows: impl Iterator<Item = &'a Arc<Served>>) -> BTreeMap<String, Vec<Arc<Served>>> {
    let mut groups: BTreeMap<String, Vec<Arc<Served>>> = BTreeMap::new();
    for served in rows {
        let path = match &*served.row.group {
            "" => format!("api/{}", served.row.version),
            group => format!("apis/{group}/{}", served.row.version),
        };
        groups.entry(path).or_default().push(served.clone());
    }
    groups
}

/// Makes what is not as it was when the documents were made last.
fn build(catalog: &Arc<Catalog>, last: Option<&Built>) -> Result<Built, ApiError> {
    let is_custom = |s: &&Arc<Served>| s.row.custom.is_some();
    let rows: Vec<Arc<Served>> = catalog.rows().iter().filter(|s| !is_custom(s)).cloned().collect();
    let known = last.map(|l| &l.compiled).filter(|known| is_same(&known.rows, &rows));
    let compiled = match known {
        Some(compiled) => compiled.clone(),
        None => Arc::new(compile(rows)?),
    };
    let mut added = BTreeMap::new();
    for (path, rows) in grouped(catalog.rows().iter().filter(is_custom)) {
        let known = last.and_then(|l| l.added.get(&path)).filter(|a| is_same(&a.rows, &rows));
        let made = match known {
            Some(added) => added.clone(),
            None => Arc::new(add(&path, rows, &compiled)?),
        };
        added.insert(path, made);
    }
    let text = |of: fn(&Added) -> &str| {
        let texts: Vec<&str> = added.values().map(|a| of(a)).collect();
        texts.concat()
    };
    let info = serde_json::to_string(&info()).map_err(internal)?;
    let security = serde_json::to_string(&security()).map_err(internal)?;
    let begin = Segment::text(&format!("{{\"swagger\":\"2.0\",\"info\":{info},\"paths\":{{"))?;
    let paths = Segment::text(&format!("{}}},\"definitions\":{{", text(|a| &a.paths)))?;
    let definitions = Segment::text(&format!(
        "{}}},\"securityDefinitions\":{{\"BearerToken\":{security}}},\"security\":[{{\"BearerToken\":[]}}]}}",
        text(|a| &a.definitions)
    ))?;
    let v2 = Document::of(&[&begin, &compiled.paths, &paths, &compiled.definitions, &definitions]);
    Ok(Built { catalog: catalog.id(), compiled, added, v2 })
}

/// The entries of a map in JSON, without its braces.
fn entries(map: &impl serde::Serialize) -> Result<String, ApiError> {
    let text = serde_json::to_string(map).map_err(internal)?;
    Ok(text.get(1..text.len().saturating_sub(1)).unwrap_or("").to_owned())
}

fn third(paths: &Map<String, Value>, schemas: &BTreeMap<String, Value>, info: &Value) -> Value {
    json!({
        "openapi": "3.0.0", "info": info, "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": security()},
        },
    })
}

fn compile(rows: Vec<Arc<Served>>) -> Result<Compiled, ApiError> {
    // Needed here only, and megabytes of text.
    let mut words = descriptions::all();
    let mut v3 = BTreeMap::new();
    for (path, rows) in grouped(rows.iter()) {
        let (paths, schemas) = describe(&rows, Edition::V3, &words);
        v3.insert(path, Arc::new(Document::json(&third(&paths, &schemas, &info()))?));
    }
    let (paths, definitions) = describe(&rows, Edition::V2, &words);
    let segment = |text: String| Segment::text(&text);
    let shared = |name: &str| {
        name.starts_with("io.k8s.apimachinery.") || name.contains(".autoscaling.v1.Scale")
    };
    words.retain(|name, _| shared(name));
    Ok(Compiled {
        rows,
        v3,
        paths: segment(entries(&paths)?)?,
        definitions: segment(entries(&definitions)?)?,
        names: definitions.into_keys().collect(),
        words,
    })
}

fn add(path: &str, rows: Vec<Arc<Served>>, compiled: &Compiled) -> Result<Added, ApiError> {
    let beside = compiled.v3.contains_key(path);
    let v3 = if beside {
        // A definition in a group of ours: both are in one document.
        let ours = grouped(compiled.rows.iter()).remove(path).unwrap_or_default();
        let all: Vec<Arc<Served>> = ours.into_iter().chain(rows.iter().cloned()).collect();
        let (paths, schemas) = describe(&all, Edition::V3, &descriptions::all());
        third(&paths, &schemas, &info())
    } else {
        let (paths, schemas) = describe(&rows, Edition::V3, &compiled.words);
        let info = json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"});
        third(&paths, &schemas, &info)
    };
    let (paths, mut definitions) = describe(&rows, Edition::V2, &compiled.words);
    definitions.retain(|name, _| !compiled.names.contains(name));
    let after = |text: String| if text.is_empty() { text } else { format!(",{text}") };
    Ok(Added {
        rows,
        v3: Arc::new(Document::json(&v3)?),
        paths: after(entries(&paths)?),
        definitions: after(entries(&definitions)?),
    })
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
    let meta = |kind: &str| {
        let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
        registry.by_name(&name).map(SchemaOf::Type)
    };
    let mut schemas = Schemas::new(registry, descriptions, &kinds, edition);
    let mut paths = Map::new();
    for served in rows {
        let row = &served.row;
        let list = GroupVersionKind::new(&row.group, &row.version, &served.list_kind);
        let (own, list) = if row.custom.is_some() {
            custom::put(served, &mut schemas);
            let name = |kind: &str| Some(SchemaOf::Name(custom::model_name(served, kind)));
            (name(&row.kind), name(&served.list_kind))
        } else {
            schemas.want(row.message);
            (Some(SchemaOf::Type(row.message)), registry.kind(&list).map(SchemaOf::Type))
        };
        let mut context = paths::Context {
            edition,
            name_of: &mut |id| schemas.want(id),
            own,
            list,
            patch: meta("Patch"),
            status: meta("Status"),
            delete_options: meta("DeleteOptions"),
            event: meta("WatchEvent"),
            kind: &|gvk| registry.kind(gvk),
        };
        context.paths(served, &mut paths);
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
                .thirds()
                .into_iter()
                .map(|(path, document)| {
                    let url = url_of_third(path, document);
                    (path.to_owned(), json!({"serverRelativeURL": url}))
                })
                .collect();
            for path in call.api.aggregation.openapi_paths() {
                let url = format!("/openapi/v3/{path}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
            let index = serde_json::to_vec(&json!({"paths": paths}));
            let index = index.map_err(|e| ApiError::Internal(e.to_string()))?;
            // Upstream leaves it to Go to guess what this is.
            Ok(call.send(200, "text/plain; charset=utf-8", index.into()).await)
        }
        ["v3", path @ ..] => {
            let path = path.join("/");
            match built.third(&path) {
                Some(document) => of_third(call, &path, document).await,
                None => Ok(respond::text(404, "404 page not found\n")),
            }
        }
        _ => Ok(respond::text(404, "404 page not found\n")),
    }
}

fn url_of_third(path: &str, document: &Document) -> String {
    format!("/openapi/v3/{path}?hash={}", document.hash)
}

/// Answers with a document of the third edition. What a hash names never changes, so who asks by
/// one may keep it; who asks by one of a document that was is sent to the one that is.
async fn of_third(
    call: &Call,
    path: &str,
    document: &Document,
) -> Result<Response<Body>, ApiError> {
    let hash = call.query.get("hash").filter(|hash| !hash.is_empty());
    let mut response = match hash {
        Some(hash) if hash != document.hash => {
            let mut response = tagged(respond::answer(301, JSON, Bytes::new()), document);
            let url = HeaderValue::from_str(&url_of_third(path, document)).map_err(internal)?;
            response.headers_mut().insert(header::LOCATION, url);
            response
        }
        _ => send(call, document).await?,
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Accept"));
    if hash == Some(document.hash.as_str()) {
        let keep = HeaderValue::from_static("public, immutable");
        headers.insert(header::CACHE_CONTROL, keep);
        let expires = HeaderValue::from_str(&in_a_year(call.api.now())).map_err(internal)?;
        headers.insert(header::EXPIRES, expires);
    }
    Ok(response)
}

/// The time in a year, as Go's RFC 1123 writes it.
fn in_a_year(now: jiff::Timestamp) -> String {
    let now = now.to_zoned(jiff::tz::TimeZone::UTC);
    let then = now.checked_add(jiff::Span::new().years(1)).unwrap_or(now);
    then.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string()
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
        Some(true) if is_known(call, &built.v2) => tagged(respond::not_modified(), &built.v2),
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
    names_tag(call.header("if-none-match"), &tag(document))
}

/// Whether an `If-None-Match` names a tag; what is said of weakness does not count (RFC 9110,
/// section 13.1.2).
fn names_tag(header: &str, tag: &str) -> bool {
    let names = |one: &str| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag;
    header.split(',').map(str::trim).any(names)
}

fn tagged(mut response: Response<Body>, document: &Document) -> Response<Body> {
    if let Ok(tag) = HeaderValue::from_str(&tag(document)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

async fn send(call: &Call, document: &Document) -> Result<Response<Body>, ApiError> {
    if is_known(call, document) {
        return Ok(tagged(respond::not_modified(), document));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_in_lists() {
        for (header, want) in [
            ("", false),
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("a", false),
            ("\"b\"", false),
        ] {
            assert_eq!(names_tag(header, "\"a\""), want, "{header}");
        }
    }

    #[test]
    fn a_year_later_is_written_as_go_does() {
        let now = "2026-11-30T01:02:03Z".parse().expect("a time");
        assert_eq!(in_a_year(now), "Tue, 30 Nov 2027 01:02:03 UTC");
    }
}
