//! Paths that are no resources: discovery, OpenAPI, health, version, metrics.

use apimachinery::Value;
use apimachinery::status::ApiError;
use http::header::{self, HeaderValue};
use http::{Method, Response};
use serde_json::json;

use crate::discovery;
use crate::negotiate::{self, Offer};
use crate::respond::{self, Body};
use crate::verbs::{self, Call, RequestBody};
use crate::{aggregation, health, metrics, openapi};

/// `version.Info` of upstream's release that this server is compatible with.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "35",
        "emulationMajor": "1", "emulationMinor": "35",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "34",
        "gitVersion": "v1.35.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    })
}

/// The machine, as Go names it.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Answers a path that is no resource.
///
/// # Errors
/// What the client gets as a `Status`.
pub(crate) async fn handle(call: Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let path = call.authorized.info().path.clone();
    if let Some(answer) = health::answer(&call.api, &path, &call.query).await {
        return Ok(answer);
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let Some(refused) = check_route(&call, &parts) {
        return refused;
    }
    if let ["openapi", "v3", rest @ ..] = parts.as_slice()
        && let Some(remote) = call.api.aggregation.of_path(&rest.join("/"))
    {
        return aggregation::proxy(call, &remote, body).await;
    }
    let catalog = call.api.catalog();
    let found = match parts.as_slice() {
        [""] => return Ok(index(&call)),
        ["version"] => {
            negotiate::check_accept(call.header("accept"), false, &[negotiate::JSON])?;
            let text = serde_json::to_vec_pretty(&version());
            let text = text.map_err(|e| ApiError::Internal(e.to_string()))?;
            return Ok(respond::answer(200, "application/json", text));
        }
        ["metrics"] => {
            let text = metrics::text(&call.api).await;
            return Ok(call
                .send(200, "text/plain; version=0.0.4; charset=utf-8", text.into())
                .await);
        }
        ["api"] => match aggregated(&call, true).await? {
            Some(answer) => return Ok(answer),
            None => Some(discovery::core_versions(call.header("host"))),
        },
        ["apis"] => match aggregated(&call, false).await? {
            Some(answer) => return Ok(answer),
            None => {
                let mut list = discovery::group_list(&catalog);
                call.api.aggregation.add_to_groups(&mut list);
                Some(list)
            }
        },
        ["api", version] => discovery::resource_list(&catalog, "", version),
        ["apis", group] => call.api.aggregation.group(group, discovery::group(&catalog, group)),
        ["apis", group, version] => discovery::resource_list(&catalog, group, version),
        ["openapi", rest @ ..] => return openapi::answer(&call, rest).await,
        _ => {
            let known = call.api.documents.iter().find(|(p, ..)| *p == path);
            return Ok(match known {
                Some((_, media_type, data)) => {
                    let mut response = respond::answer(200, media_type, data.clone());
                    // Who verifies tokens elsewhere may keep them for an hour, as upstream says.
                    let kept = HeaderValue::from_static("public, max-age=3600");
                    response.headers_mut().insert(header::CACHE_CONTROL, kept);
                    response
                }
                None => respond::text(404, "404 page not found\n"),
            });
        }
    };
    match found {
        Some(found) => {
            negotiate::check_accept(call.header("accept"), false, negotiate::ROUTE)?;
            let wanted = call.wanted(Offer::Plain)?;
            call.send_object(200, &wanted, &found).await
        }
        None => verbs::nowhere(&catalog, group_of(&parts)),
    }
}

/// Refuses methods other than GET, where there is nothing else: in the words of a router for the
/// documents that have routes, and as for an unknown path elsewhere. The lists of paths and groups
/// answer to any method.
fn check_route(call: &Call, parts: &[&str]) -> Option<Result<Response<Body>, ApiError>> {
    let method = &call.parts.method;
    if method == Method::GET || matches!(parts, [""] | ["apis"]) {
        return None;
    }
    let catalog = call.api.catalog();
    let routed = match parts {
        ["api", version] => discovery::resource_list(&catalog, "", version).is_some(),
        ["apis", group] => catalog.is_compiled(group),
        ["apis", group, version] => {
            catalog.is_compiled(group)
                && discovery::resource_list(&catalog, group, version).is_some()
        }
        ["api"] | ["version"] => true,
        _ => false,
    };
    if routed {
        return Some(Err(verbs::no_method()));
    }
    // What is no route of upstream's serves HEAD as well.
    (method != Method::HEAD).then(|| verbs::nowhere(&catalog, group_of(parts)))
}

/// The group of a path of discovery; one that no group has for other paths.
fn group_of<'a>(parts: &[&'a str]) -> &'a str {
    match parts {
        ["api", ..] => "",
        ["apis", group, ..] => group,
        _ => "/",
    }
}

/// The paths that there are.
fn index(call: &Call) -> Response<Body> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis", "/apis/"].map(str::to_owned).to_vec();
    for (group, versions) in call.api.catalog().groups() {
        if group.is_empty() {
            continue;
        }
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    let others = ["/metrics", "/openapi/v2", "/openapi/v3", "/openapi/v3/", "/version"];
    paths.extend(others.map(str::to_owned));
    paths.extend(health::paths(&call.api));
    paths.extend(call.api.documents.iter().map(|(p, ..)| (*p).to_owned()));
    paths.sort();
    let text = serde_json::to_vec_pretty(&json!({"paths": paths})).unwrap_or_default();
    respond::answer(200, "application/json", text)
}

/// The aggregated discovery document, for clients that ask for it. Its tag is the same in all
/// encodings.
async fn aggregated(call: &Call, core: bool) -> Result<Option<Response<Body>>, ApiError> {
    let accepts = call.parts.headers.get_all(header::ACCEPT).iter();
    let accept: Vec<&str> = accepts.filter_map(|v| v.to_str().ok()).collect();
    let (agent, pretty) = (call.header("user-agent"), call.query.get("pretty"));
    let Some(wanted) = negotiate::choose_discovery(&accept.join(","), agent, pretty) else {
        return Ok(None);
    };
    let mut made = call.api.discovery.aggregated(&call.api.catalog(), core);
    let theirs = if core { None } else { call.api.aggregation.add_to_aggregated(&made.object) };
    if let Some(document) = theirs {
        made = discovery::Aggregated {
            etag: discovery::etag(&document),
            object: std::sync::Arc::new(document),
        };
    }
    let quoted = format!("\"{}\"", made.etag);
    let mut response = if call.header("if-none-match") == quoted {
        respond::not_modified()
    } else {
        let (media_type, data) = respond::encode(&wanted, &made.object)?;
        let kind = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        call.send(200, &format!("{media_type};{kind}"), data).await
    };
    let headers = response.headers_mut();
    // What compression has to say of the answer is said already.
    headers.append(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if let Ok(etag) = HeaderValue::from_str(&quoted) {
        headers.insert(header::ETAG, etag);
    }
    Ok(Some(response))
}
