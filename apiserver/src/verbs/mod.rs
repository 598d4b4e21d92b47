//! One handler for each verb, whatever the resource.

pub mod actions;
pub mod connect;
mod create;
mod delete;
mod eviction;
mod input;
mod list;
mod list_options;
mod past;
mod patch;
mod read;
pub mod reviews;
mod rewrite;
mod scale;
mod select;
pub(crate) mod tunnel;
mod update;
mod watch;
pub(crate) mod write;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::codec::DecodeError;
use apimachinery::status::ApiError;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::api::Api;
use crate::gate::Authorized;
use crate::negotiate::{self, Offer, Wanted};
use crate::query::Query;
use crate::registry::catalog::{Catalog, Served};
use crate::registry::{Action, Verbs};
use crate::respond::{self, Body, BodyError};
use crate::warnings::Warnings;

/// The body of a request.
pub type RequestBody = UnsyncBoxBody<Bytes, BodyError>;

/// A request that has passed its gates.
pub struct Call {
    pub api: Arc<Api>,
    pub parts: Parts,
    pub query: Query,
    pub authorized: Authorized,
    pub warnings: Warnings,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        header(&self.parts.headers, name)
    }

    /// What the client wants of an offer.
    ///
    /// # Errors
    /// 406
    pub fn wanted(&self, offer: Offer) -> Result<Wanted, ApiError> {
        wanted(&self.parts.headers, &self.query, offer)
    }

    pub fn namespace(&self) -> &str {
        &self.authorized.info().namespace
    }

    pub fn name(&self) -> &str {
        &self.authorized.info().name
    }

    /// Sends bytes that are encoded already, compressed if they are many.
    pub async fn send(&self, code: u16, content_type: &str, data: Bytes) -> Response<Body> {
        let response = respond::answer(code, content_type, Bytes::new());
        let gzip = respond::accepts_gzip(&self.parts.headers);
        respond::compressed(gzip, response, data).await
    }

    /// Sends an object that was made in memory.
    pub async fn send_object(
        &self,
        code: u16,
        wanted: &Wanted,
        object: &Value,
    ) -> Result<Response<Body>, ApiError> {
        let (media_type, data) = respond::encode(wanted, object)?;
        Ok(self.send(code, media_type, data).await)
    }
}

/// A header's text; empty when it is absent.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
}

/// What a client wants of an offer.
///
/// # Errors
/// 406
pub fn wanted(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Wanted, ApiError> {
    // Several Accept headers mean the same as one with commas.
    let accept: Vec<&str> =
        headers.get_all("accept").iter().filter_map(|v| v.to_str().ok()).collect();
    negotiate::choose(&accept.join(","), header(headers, "user-agent"), query.get("pretty"), offer)
}

/// How a client gets an error: as its Accept header says, and when that allows nothing that
/// errors come in, as JSON for people (upstream: `ErrorNegotiated`, `WriteRawJSON`).
pub(crate) fn wanted_of_errors(headers: &HeaderMap, query: &Query) -> Wanted {
    wanted(headers, query, Offer::Plain).unwrap_or(Wanted {
        encoding: negotiate::Encoding::Json,
        shape: negotiate::Shape::Itself,
        pretty: true,
    })
}

/// Stored bytes that cannot be read.
pub(crate) fn unreadable(error: &DecodeError) -> ApiError {
    ApiError::Internal(format!("unable to decode an object of the store: {error}"))
}

/// A path that nothing serves. Among the groups that are compiled in a router answers, elsewhere
/// a plain handler.
///
/// # Errors
/// 404, where it comes as a `Status`.
pub(crate) fn nowhere(catalog: &Catalog, group: &str) -> Result<Response<Body>, ApiError> {
    if catalog.is_compiled(group) {
        return Err(ApiError::NoSuchPath);
    }
    Ok(respond::text(404, "404 page not found\n"))
}

/// The method does not fit the path.
pub(crate) fn no_method() -> ApiError {
    ApiError::MethodNotAllowed {
        resource: apimachinery::gvk::GroupResource::new("", ""),
        verb: String::new(),
    }
}

/// Whether a request's answer may take as long as it wants.
pub fn is_long_running(info: &crate::request::RequestInfo) -> bool {
    info.is_resource
        && (info.verb == "watch"
            || info.verb == "proxy"
            || matches!(
                info.subresource.as_str(),
                "attach" | "exec" | "proxy" | "log" | "portforward"
            ))
}

/// Answers a request for a resource.
///
/// # Errors
/// What the client gets as a `Status`.
pub async fn handle(call: Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let info = call.authorized.info();
    let catalog = call.api.catalog();
    let found = catalog.find(&info.group, &info.version, &info.resource);
    let Some(served) = found.filter(|s| s.fits_path(&info.namespace)).cloned() else {
        return nowhere(&catalog, &info.group);
    };
    handle_row(call, served, body).await
}

/// Answers a request for a row, which may be one that the catalog does not serve.
///
/// # Errors
/// What the client gets as a `Status`.
pub(crate) async fn handle_row(
    mut call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    if let Some(warning) = &served.row.warning {
        call.warnings.push(warning.to_string());
    }
    if served.row.custom.is_none() {
        check_route(&call, &served)?;
        return verb(call, served, body).await;
    }
    let info = call.authorized.info();
    if info.subresource != "scale" && !without_protobuf(&mut call.parts.headers) {
        let deletes = call.authorized.info().verb.starts_with("delete");
        if !deletes {
            return Err(read::no_protobuf());
        }
    }
    verb(call, served, body).await
}

/// What upstream's router sees to before a handler of a compiled kind: it has no HEAD, and the
/// client must accept some media type of the route, whatever its parameters.
fn check_route(call: &Call, served: &Served) -> Result<(), ApiError> {
    let info = call.authorized.info();
    let action = served.subresource(&info.subresource).map(|s| &s.action);
    if matches!(action, Some(Action::Connect(_))) {
        return Ok(());
    }
    if call.parts.method == http::Method::HEAD {
        return Err(no_method());
    }
    let streams = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    negotiate::check_accept(call.header("accept"), streams, negotiate::ROUTE)
}

/// Custom resources have no protobuf: takes it out of what a client accepts. False: it accepts
/// nothing else.
fn without_protobuf(headers: &mut HeaderMap) -> bool {
    let accept: Vec<&str> =
        headers.get_all("accept").iter().filter_map(|v| v.to_str().ok()).collect();
    let accept = accept.join(",");
    let plain = |clause: &&str| {
        // Metadata alone has a protobuf message.
        !clause.contains("application/vnd.kubernetes.protobuf") || clause.contains("as=")
    };
    let kept: Vec<&str> = accept.split(',').filter(plain).collect();
    if accept.is_empty() || kept.len() == accept.split(',').count() {
        return true;
    }
    if kept.iter().all(|clause| clause.trim().is_empty()) {
        return false;
    }
    if let Ok(value) = http::HeaderValue::from_str(&kept.join(",")) {
        headers.insert("accept", value);
    }
    true
}

async fn verb(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let info = call.authorized.info();
    if !info.subresource.is_empty() {
        return subresource(call, served, body).await;
    }
    let on_object = !info.name.is_empty() && !is_collection_path(info);
    if served.row.namespaced && served.row.plural != "namespaces" && info.namespace.is_empty() {
        let reads = matches!(info.verb.as_str(), "list" | "watch") && !on_object;
        let everywhere = reads && !matches!(served.row.verbs, Verbs::CreateOnly);
        if !everywhere {
            // A custom resource has no such path, where others may have no such method.
            return match (&served.row.custom, served.row.verbs) {
                (Some(_), _) => Ok(respond::text(404, "404 page not found\n")),
                (None, Verbs::All) if !on_object => Err(no_method()),
                (None, _) => Err(ApiError::NoSuchPath),
            };
        }
    }
    match (served.row.verbs, info.verb.as_str(), on_object) {
        (_, "create", false) => create::create(call, served, body).await,
        (Verbs::CreateOnly, _, true) => Err(ApiError::NoSuchPath),
        (Verbs::CreateOnly, ..) => Err(no_method()),
        (_, "get", true) => read::get(call, served).await,
        (_, "list", false) => list::list(call, served).await,
        (_, "watch", _) => watch::watch(call, served).await,
        (_, "update", true) => update::update(call, served, body).await,
        (_, "patch", true) => patch::patch(call, served, body).await,
        (_, "delete", true) => delete::delete(call, served, body).await,
        (_, "deletecollection", false) if served.row.delete_collection => {
            delete::delete_collection(call, served, body).await
        }
        _ => Err(no_method()),
    }
}

/// A list or watch of one object by `fieldSelector=metadata.name=x` has a name all the same.
fn is_collection_path(info: &crate::request::RequestInfo) -> bool {
    matches!(info.verb.as_str(), "list" | "watch" | "deletecollection")
}

async fn subresource(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let info = call.authorized.info();
    let Some(sub) = served.subresource(&info.subresource) else {
        if served.row.custom.is_some() {
            return Err(served.not_found(&info.name));
        }
        return Err(ApiError::NoSuchPath);
    };
    match (&sub.action, info.verb.as_str()) {
        (Action::Part { replaced_only: true, .. }, verb) if verb != "update" => Err(no_method()),
        (Action::Part { .. }, "get") => read::get(call, served).await,
        (Action::Part { .. }, "update") => update::update(call, served, body).await,
        (Action::Part { .. }, "patch") => patch::patch(call, served, body).await,
        (Action::Scale { .. }, "get") => scale::get(call, served).await,
        (Action::Scale { .. }, "update") => scale::update(call, served, body).await,
        (Action::Scale { .. }, "patch") => scale::patch(call, served, body).await,
        (Action::Post { .. }, "create") => actions::post(call, served, body).await,
        (Action::Connect(what), _) => {
            let what = *what;
            connect::connect(call, served, what, body).await
        }
        _ => Err(no_method()),
    }
}
