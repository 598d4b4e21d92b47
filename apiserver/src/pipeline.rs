//! The path of a request: request info, authentication, impersonation, limits, authorization,
//! and the verb's handler.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::Value;
use apimachinery::status::ApiError;
use bytes::Bytes;
use component::serving::Peer;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::Api;
use crate::authentication::{AUTHENTICATED, Credentials, MASTERS, User};
use crate::gate;
use crate::query::Query;
use crate::registry::catalog::Served;
use crate::request::RequestInfo;
use crate::respond::{self, Body};
use crate::verbs::{self, Call, RequestBody};
use crate::warnings::Warnings;
use crate::{aggregation, authorization, special};

/// A request that finds no place waits so long for one.
const QUEUE: Duration = Duration::from_secs(10);
/// Prefix of WebSocket protocols that carry a bearer token.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// What upstream warns of when a bearer token is not where it should be.
const EXTRA_SPACE: &str = "the provided Authorization header contains extra space before the bearer token, and is ignored";

/// Answers a request that came over the network.
pub(crate) async fn serve(
    api: Arc<Api>,
    mut request: Request<RequestBody>,
    peer: Peer,
) -> Response<Body> {
    let started = Instant::now();
    let is_head = request.method() == Method::HEAD;
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let audit_id = match verbs::header(request.headers(), "audit-id") {
        "" => uuid::Uuid::new_v4().to_string(),
        given => given.to_owned(),
    };
    let long = is_long(&request, &path, &query);
    let warnings = Warnings::default();
    let shown = verbs::wanted_of_errors(request.headers(), &query);
    let info = RequestInfo::parse(request.method(), &path, &query);
    let mut response = match info {
        Ok(info) => {
            let counted = info.clone();
            let user = identify(&api, &mut request, &peer, &warnings).await;
            let answered = match user {
                Ok(user) => answer(&api, request, query, info, user, &warnings).await,
                Err(error) => Err(error),
            };
            let response = answered.unwrap_or_else(|error| respond::failure(&error, &shown));
            let took = (!long).then(|| started.elapsed());
            api.metrics.answered(&counted, response.status().as_u16(), took);
            response
        }
        Err(error) => respond::failure(&ApiError::Internal(error.to_string()), &shown),
    };
    let headers = response.headers_mut();
    respond::warn(headers, &warnings.take());
    if let Ok(id) = HeaderValue::from_str(&audit_id) {
        headers.insert("audit-id", id);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if is_head { without_content(response) } else { response }
}

/// What answers a HEAD: the same without its content (RFC 9110, section 9.3.2).
fn without_content(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(parts, respond::body(Bytes::new()))
}

fn is_long(request: &Request<RequestBody>, path: &str, query: &Query) -> bool {
    RequestInfo::parse(request.method(), path, query)
        .is_ok_and(|info| verbs::is_long_running(&info))
}

/// Who asks, by certificate, token or headers.
async fn identify(
    api: &Api,
    request: &mut Request<RequestBody>,
    peer: &Peer,
    warnings: &Warnings,
) -> Result<User, ApiError> {
    let headers = request.headers_mut();
    let token = bearer(headers, warnings);
    let credentials = Credentials { certificates: &peer.certificates, bearer: token.as_deref() };
    let user = match api.identity.user(&credentials, headers, warnings).await {
        Ok(Some(user)) => user,
        Ok(None) => return Err(ApiError::Unauthorized),
        Err(rejected) => {
            tracing::debug!(%rejected, "request was not authenticated");
            return Err(ApiError::Unauthorized);
        }
    };
    headers.remove(header::AUTHORIZATION);
    gate::impersonate(&*api.authorizer, user, headers).await
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap, warnings: &Warnings) -> Option<String> {
    use base64::Engine as _;
    let text = verbs::header(headers, "authorization").trim();
    if let Some((scheme, token)) = text.split_once(' ')
        && scheme.eq_ignore_ascii_case("bearer")
    {
        // What follows another space is not looked at.
        match token.split(' ').next() {
            Some("") | None => warnings.push(EXTRA_SPACE.to_owned()),
            Some(token) => return Some(token.to_owned()),
        }
    }
    // Browsers cannot set headers of WebSockets.
    let protocols = verbs::header(headers, "sec-websocket-protocol").split(',').map(str::trim);
    let encoded = protocols.filter_map(|p| p.strip_prefix(BEARER_PROTOCOL)).next()?;
    let decoded =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('='));
    String::from_utf8(decoded.ok()?).ok()
}

/// Waits for a place among the requests that run at the same time.
async fn place(semaphore: Option<&Semaphore>) -> Result<Option<SemaphorePermit<'_>>, ApiError> {
    let Some(semaphore) = semaphore else { return Ok(None) };
    match tokio::time::timeout(QUEUE, semaphore.acquire()).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => Err(ApiError::TooManyRequests {
            message: "Too many requests, please try again later.".to_owned(),
            retry_after_seconds: 1,
            cause: None,
        }),
    }
}

/// Answers a request of a known user.
async fn answer(
    api: &Arc<Api>,
    request: Request<RequestBody>,
    query: Query,
    info: RequestInfo,
    user: User,
    warnings: &Warnings,
) -> Result<Response<Body>, ApiError> {
    let long = verbs::is_long_running(&info);
    let reads = matches!(request.method(), &Method::GET | &Method::HEAD | &Method::OPTIONS);
    let exempt = long || user.groups.iter().any(|g| g == MASTERS);
    let semaphore = if exempt {
        None
    } else if reads {
        api.in_flight.reading.as_ref()
    } else {
        api.in_flight.writing.as_ref()
    };
    let _place = place(semaphore).await?;
    let authorized = gate::authorize(&*api.authorizer, user, info).await?;
    let is_head = request.method() == Method::HEAD;
    let (parts, body) = request.into_parts();
    let limit = if long { api.limits.request_timeout } else { timeout(api, &query)? };
    let warnings = warnings.clone();
    let call = Call { api: api.clone(), parts, query, authorized, warnings };
    if long {
        return handle(call, body).await;
    }
    let handling = handle(call, body);
    // What has begun is finished, though the client leaves.
    let handling: Pin<Box<dyn Future<Output = _> + Send>> = if reads {
        Box::pin(handling)
    } else {
        let task = tokio::spawn(handling);
        Box::pin(async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a handler failed");
                Err(ApiError::Internal("the request was not completed".to_owned()))
            })
        })
    };
    let Ok(response) = tokio::time::timeout(limit, handling).await else {
        return Err(ApiError::Timeout {
            message: "request did not complete within the allotted timeout".to_owned(),
            retry_after_seconds: 0,
        });
    };
    let mut response = response?;
    if is_head {
        *response.body_mut() = respond::body(Bytes::new());
    }
    Ok(response)
}

/// Finds who answers: another server, a verb, or a document.
async fn handle(call: Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let info = call.authorized.info();
    if let Some(remote) = call.api.aggregation.of_path(&info.path) {
        return aggregation::proxy(call, &remote, body).await;
    }
    if info.is_resource {
        verbs::handle(call, body).await
    } else {
        special::handle(call, body).await
    }
}

/// The client may ask for less time than the server gives.
fn timeout(api: &Api, query: &Query) -> Result<Duration, ApiError> {
    let most = api.limits.request_timeout;
    let asked = match query.text("timeout") {
        "" => return Ok(most),
        // A time that is over is taken as none.
        text => match go_duration(text.strip_prefix('-').unwrap_or(text)) {
            Some(asked) if !text.starts_with('-') => asked,
            Some(_) => return Ok(most),
            None => {
                let numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
                let why = if numeric { "missing unit in" } else { "invalid" };
                return Err(ApiError::BadRequest(format!(
                    "invalid timeout specified in the request URL - time: {why} duration {text:?}"
                )));
            }
        },
    };
    Ok(if asked.is_zero() { most } else { asked.min(most) })
}

/// `1m30s`, `500ms`, as Go writes durations.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let length = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match rest.get(..length)? {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = rest.get(length..)?;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

/// The server's own name. Others have it only by impersonation, which must be allowed to them.
pub(crate) const OWN_USER: &str = "system:apiserver";

/// The server's own user.
pub(crate) fn own_user() -> User {
    User {
        name: OWN_USER.to_owned(),
        groups: vec![MASTERS.to_owned(), AUTHENTICATED.to_owned()],
        ..User::default()
    }
}

type LocalAnswer<'a> = Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send + 'a>>;

/// Makes a request as the server itself, through the same gates as any other.
pub(crate) fn local<'a>(
    api: &'a Arc<Api>,
    method: Method,
    url: &'a str,
    object: Option<Value>,
) -> LocalAnswer<'a> {
    local_on(api, None, method, url, object)
}

/// The same on a row that need not be in service.
pub(crate) fn local_on<'a>(
    api: &'a Arc<Api>,
    served: Option<Arc<Served>>,
    method: Method,
    url: &'a str,
    object: Option<Value>,
) -> LocalAnswer<'a> {
    Box::pin(async move {
        let data = match &object {
            Some(object) => {
                serde_json::to_vec(object).map_err(|e| ApiError::Internal(e.to_string()))?
            }
            None => Vec::new(),
        };
        let content_type = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = Request::new(respond::body(data));
        *request.method_mut() = method;
        *request.uri_mut() = url.parse().map_err(|e| ApiError::Internal(format!("{url}: {e}")))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver"));
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let query = Query::parse(query);
        let path = percent_decode_str(path).decode_utf8_lossy();
        let info = RequestInfo::parse(request.method(), &path, &query)
            .map_err(|e| ApiError::Internal(e.to_string()))?;
        let authorized = gate::authorize(&authorization::Superusers, own_user(), info).await?;
        let (parts, body) = request.into_parts();
        let warnings = Warnings::default();
        let call = Call { api: api.clone(), parts, query, authorized, warnings };
        let response = match served {
            Some(served) => verbs::handle_row(call, served, body).await?,
            None => verbs::handle(call, body).await?,
        };
        let status = response.status();
        let collected = response.into_body().collect().await;
        let data = collected.map_err(|e| ApiError::Internal(e.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(ApiError::Internal(format!("{url}: {status}")));
        }
        serde_json::from_slice(&data).map_err(|e| ApiError::Internal(format!("{url}: {e}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(go_duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(go_duration("0"), Some(Duration::ZERO));
        for bad in ["", "5", "x", "5y"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn tokens_come_in_headers_or_protocols() {
        let mut headers = HeaderMap::new();
        let warnings = Warnings::default();
        assert_eq!(bearer(&headers, &warnings), None);
        let protocols = HeaderValue::from_static("v4, base64url.bearer.authorization.k8s.io.YWJj");
        headers.insert("sec-websocket-protocol", protocols);
        assert_eq!(bearer(&headers, &warnings).as_deref(), Some("abc"));
        headers.remove("sec-websocket-protocol");
        for (header, want) in
            [("bearer x", Some("x")), ("Bearer x y", Some("x")), ("bearer  x", None)]
        {
            assert!(warnings.take().is_empty());
            headers.insert("authorization", HeaderValue::from_static(header));
            assert_eq!(bearer(&headers, &warnings).as_deref(), want, "{header}");
        }
        assert_eq!(warnings.take(), [EXTRA_SPACE]);
    }
}
