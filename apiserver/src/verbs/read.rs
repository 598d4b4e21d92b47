//! Get, and how objects are shown.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::codec::{Schema, proto, yaml};
use apimachinery::schema::Registry;
use apimachinery::status::ApiError;
use bytes::Bytes;
use http::Response;
use serde_json::json;

use super::{Call, unreadable, write};
use crate::cache::{Cache, CacheError, Cached};
use crate::negotiate::{Encoding, Offer, Shape, Wanted};
use crate::registry::catalog::Served;
use crate::respond::{self, Body};
use crate::table;

/// How long a read waits for the cache to get to a resourceVersion (upstream's bound).
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// How long a read waits for the first list of a cache.
const READY: Duration = Duration::from_secs(30);

pub(super) async fn get(call: Call, served: Arc<Served>) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Object)?;
    let key = served.key(call.namespace(), call.name());
    let version = parse_version(call.query.text("resourceVersion"))?;
    let found = match version {
        None => write::fetch(&call.api, &served, &key).await?,
        Some(version) => {
            let cache = served.cache()?;
            ready(cache).await?;
            reach(cache, version).await?;
            match cache.get(&key) {
                Some(cached) => Some(served.bring_one(cached).await?),
                None => None,
            }
        }
    };
    let Some(cached) = found else { return Err(served.not_found(call.name())) };
    let (media_type, data) = show(&call, &served, &wanted, &cached)?;
    Ok(call.send(200, &media_type, data).await)
}

/// A resourceVersion parameter; `None` when absent.
pub(super) fn parse_version(text: &str) -> Result<Option<u64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let why = if text.bytes().all(|b| b.is_ascii_digit()) {
            "value out of range"
        } else {
            "invalid syntax"
        };
        let message = format!("strconv.ParseUint: parsing {text:?}: {why}");
        let path = apimachinery::field::Path::new("resourceVersion");
        let message = apimachinery::field::FieldError::invalid(&path, text, message).to_string();
        // Upstream makes no Status of this error.
        ApiError::Other { code: 500, reason: String::new(), message }
    })
}

/// Waits for the cache's first list.
pub(super) async fn ready(cache: &Cache) -> Result<(), ApiError> {
    cache.wait_ready(READY).await.map_err(|_| ApiError::TooManyRequests {
        message: "storage is (re)initializing".to_owned(),
        retry_after_seconds: 1,
        cause: None,
    })
}

/// Waits until the cache has got to a revision.
pub(super) async fn reach(cache: &Cache, revision: u64) -> Result<(), ApiError> {
    match cache.wait_for(revision, PATIENCE).await {
        Err(CacheError::Behind { asked, current }) => {
            Err(ApiError::TooLargeResourceVersion { asked, current })
        }
        Err(other) => Err(ApiError::Internal(other.to_string())),
        Ok(()) => Ok(()),
    }
}

/// A cached object's bytes as the client wants them, with their Content-Type.
pub(super) fn show(
    call: &Call,
    served: &Served,
    wanted: &Wanted,
    cached: &Cached,
) -> Result<(String, Bytes), ApiError> {
    let data = match (&wanted.shape, wanted.encoding) {
        (Shape::Itself, Encoding::Json) => {
            let json = served.json_line(cached).map_err(|e| unreadable(&e))?;
            if wanted.pretty { respond::json_bytes(json, true) } else { json }
        }
        (Shape::Itself, Encoding::Protobuf) => {
            let raw = served.raw(cached).map_err(|e| unreadable(&e))?;
            proto::seal(&served.api_version, &served.row.kind, &raw).into()
        }
        (Shape::Partial(version), encoding) => {
            let raw = served.partial_raw(cached).map_err(|e| unreadable(&e))?;
            return partial(wanted, encoding, version, &raw);
        }
        _ => {
            let object = served.decode(cached).map_err(|e| unreadable(&e))?;
            return show_value(call, served, wanted, &object);
        }
    };
    Ok((content_type(wanted), data))
}

/// An object in memory as the client wants it, with its Content-Type.
pub(super) fn show_value(
    call: &Call,
    served: &Served,
    wanted: &Wanted,
    object: &Value,
) -> Result<(String, Bytes), ApiError> {
    let internal = |e: &dyn std::fmt::Display| ApiError::Internal(e.to_string());
    match (&wanted.shape, wanted.encoding) {
        (Shape::Table(version), _) => {
            let include = table::Include::read(call.query.text("includeObject"))?;
            let made = table::of_object(served, object, version, include, call.api.now());
            let (_, data) = respond::encode(wanted, &made)?;
            Ok((content_type(wanted), data))
        }
        (Shape::Partial(version), encoding) => {
            let raw = served.partial_of(object).map_err(|e| internal(&e))?;
            partial(wanted, encoding, version, &raw)
        }
        (Shape::Itself, Encoding::Protobuf) => {
            let schema = served.schema().ok_or_else(no_protobuf)?;
            let data = proto::encode_enveloped(schema, object).map_err(|e| internal(&e))?;
            Ok((content_type(wanted), data.into()))
        }
        (Shape::Itself, _) => {
            let (_, data) = respond::encode(wanted, object)?;
            Ok((content_type(wanted), data))
        }
    }
}

/// 406 in upstream's words: a custom resource has no protobuf.
pub(super) fn no_protobuf() -> ApiError {
    ApiError::Other {
        code: 406,
        reason: "NotAcceptable".to_owned(),
        message: "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf".to_owned(),
    }
}

/// The schema of a type of `meta.k8s.io`.
pub(super) fn meta_schema(kind: &str) -> Result<Schema<'static>, ApiError> {
    let registry = Registry::builtin();
    let message = registry.by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    let message = message.ok_or_else(|| ApiError::Internal(format!("{kind} has no schema")))?;
    Ok(Schema { registry, message })
}

/// JSON of a bare `PartialObjectMetadata`.
pub(super) fn partial_json(version: &str, raw: &[u8]) -> Result<Vec<u8>, ApiError> {
    let schema = meta_schema("PartialObjectMetadata")?;
    let api_version = format!("meta.k8s.io/{version}");
    let mut out = Vec::with_capacity(raw.len() * 2);
    proto::to_json(schema, &api_version, "PartialObjectMetadata", raw, &mut out)
        .map_err(|e| unreadable(&e))?;
    Ok(out)
}

fn partial(
    wanted: &Wanted,
    encoding: Encoding,
    version: &str,
    raw: &[u8],
) -> Result<(String, Bytes), ApiError> {
    if encoding == Encoding::Protobuf {
        let api_version = format!("meta.k8s.io/{version}");
        let data = proto::seal(&api_version, "PartialObjectMetadata", raw);
        return Ok((content_type(wanted), data.into()));
    }
    let json: Bytes = partial_json(version, raw)?.into();
    let data = match encoding {
        Encoding::Yaml => to_yaml(&json)?,
        _ => respond::json_bytes(json, wanted.pretty),
    };
    Ok((content_type(wanted), data))
}

pub(super) fn to_yaml(json: &[u8]) -> Result<Bytes, ApiError> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(yaml::encode(&value).into())
}

/// Content-Type of an answer; it repeats what the objects were made into.
pub(super) fn content_type(wanted: &Wanted) -> String {
    wanted.encoding.media_type().to_owned()
}

/// An object of which only the metadata counts, for events of partial watches.
pub(super) fn bookmark(
    api_version: &str,
    kind: &str,
    revision: u64,
    initial_events_end: bool,
) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial_events_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": kind, "apiVersion": api_version, "metadata": metadata})
}
