//! Logs, exec, attach, port-forward and proxy: requests that kubelets, pods or services answer
//! (upstream: `registry/core/{pod,node,service}/strategy.go`, `kubelet/client`).

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rand::seq::IndexedRandom as _;
use rustls::ClientConfig;
use serde_json::json;

use super::rewrite::Place;
use super::tunnel::{self, Target};
use super::{Call, RequestBody, write};
use crate::admission::Operation;
use crate::gate::Admission;
use crate::query::Query;
use crate::reader::Reader as _;
use crate::registry::Connect;
use crate::registry::catalog::Served;
use crate::respond::{self, Body};
use crate::services;

/// How kubelets are reached.
pub struct Kubelets {
    /// With the client certificate, and trust in `--kubelet-certificate-authority`; without one,
    /// kubelets' certificates are not verified, as upstream does.
    pub tls: Arc<ClientConfig>,
    /// `--kubelet-preferred-address-types`
    pub address_types: Vec<String>,
    /// For backends of proxies: certificates are not verified.
    pub backends: Arc<ClientConfig>,
}

/// What upstream prefers.
pub const ADDRESS_TYPES: [&str; 5] =
    ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
/// Port of a kubelet that tells none.
const KUBELET_PORT: u16 = 10250;

/// The most that is read of a kubelet's refusal, in bytes.
const REFUSAL: usize = 50_000;
const SEGMENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'?').add(b'/');
const PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'?');

pub(super) async fn connect(
    mut call: Call,
    served: Arc<Served>,
    what: Connect,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let verb = call.authorized.info().verb.clone();
    let fits = match what {
        Connect::Log => verb == "get",
        Connect::Proxy => true,
        _ => matches!(verb.as_str(), "get" | "create"),
    };
    if !fits {
        return Err(super::no_method());
    }
    let name = object_name(&served, call.name());
    let over_websocket = match what {
        Connect::Log if tunnel::is_websocket(&call.parts.headers) => {
            Some(tunnel::LogProtocol::choose(&call.parts.headers)?)
        }
        _ => None,
    };
    let key = served.key(call.namespace(), &name);
    let Some(stored) = write::load(&call.api, &served, &key).await? else {
        return Err(served.not_found(&name));
    };
    let found = stored.object;
    admit(&call, &served, what).await?;
    let target = match (what, &*served.row.plural) {
        (Connect::Proxy, "nodes") => node_proxy(&call, &found),
        (Connect::Proxy, "services") => service_proxy(&call, &found),
        (Connect::Proxy, _) => pod_proxy(&call, &found),
        (what, _) => match pod_stream(&call, &found, what)? {
            Some(target) => Ok(target),
            // Nothing has run yet that could have said something.
            None => {
                let nothing = respond::text(200, "");
                return match over_websocket {
                    Some(protocol) => {
                        tunnel::log_over_websocket(&mut call, protocol, nothing.into_body())
                    }
                    None => Ok(nothing),
                };
            }
        },
    }?;
    if what == Connect::Proxy && redirect_to_slash(&call) {
        let query = call.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let location = format!("{}/{query}", call.parts.uri.path());
        let mut response = respond::text(301, "");
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    // The kubelet is asked for a plain log.
    if over_websocket.is_some() {
        call.parts.headers.remove(header::UPGRADE);
    }
    let mut response = tunnel::forward(&mut call, &target, body).await?;
    if what == Connect::Proxy {
        let proxied = call.authorized.info().trailing.join("/");
        Place::new(&target.host, call.parts.uri.path(), &proxied).rewrite(&mut response);
    }
    if what == Connect::Log && !response.status().is_success() {
        return Err(refused(response).await);
    }
    match over_websocket {
        Some(protocol) => tunnel::log_over_websocket(&mut call, protocol, response.into_body()),
        None => Ok(response),
    }
}

/// A kubelet's refusal, which is plain text, as an error of the API.
async fn refused(response: Response<Body>) -> ApiError {
    let code = response.status();
    let limited = http_body_util::Limited::new(response.into_body(), REFUSAL);
    let text = match limited.collect().await {
        Ok(read) => String::from_utf8_lossy(&read.to_bytes()).into_owned(),
        Err(error) => return ApiError::Internal(error.to_string()),
    };
    match code {
        StatusCode::BAD_REQUEST => ApiError::BadRequest(text),
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::Internal(text),
        StatusCode::NOT_FOUND => ApiError::Other {
            code: 404,
            reason: "NotFound".to_owned(),
            message: "the server could not find the requested resource".to_owned(),
        },
        StatusCode::SERVICE_UNAVAILABLE => ApiError::ServiceUnavailable(text),
        other => ApiError::Internal(format!("the kubelet answered {other}: {text}")),
    }
}

/// A relative link of a proxied page needs the slash.
fn redirect_to_slash(call: &Call) -> bool {
    let info = call.authorized.info();
    info.trailing.is_empty()
        && !call.parts.uri.path().ends_with('/')
        && matches!(call.parts.method, http::Method::GET | http::Method::HEAD)
        && !tunnel::is_upgrade(&call.parts.headers)
}

/// The name in `scheme:name:port`.
fn object_name(served: &Served, text: &str) -> String {
    match split_name(text) {
        Some((_, name, _)) => name.to_owned(),
        None => {
            tracing::debug!(resource = %served.gr, text, "no name to connect to");
            text.to_owned()
        }
    }
}

/// `name`, `name:port` and `scheme:name:port` (`net.SplitSchemeNamePort`).
fn split_name(text: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => Some(("", *name, "")),
        [name, port] => Some(("", *name, *port)),
        [scheme @ ("" | "http" | "https"), name, port] => Some((*scheme, *name, *port)),
        _ => None,
    }
    .filter(|(_, name, _)| !name.is_empty())
}

async fn admit(call: &Call, served: &Arc<Served>, what: Connect) -> Result<(), ApiError> {
    let kind = match (what, &*served.row.kind) {
        (Connect::Log, _) => "PodLogOptions",
        (Connect::Exec, _) => "PodExecOptions",
        (Connect::Attach, _) => "PodAttachOptions",
        (Connect::PortForward, _) => "PodPortForwardOptions",
        (Connect::Proxy, "Node") => "NodeProxyOptions",
        (Connect::Proxy, "Service") => "ServiceProxyOptions",
        (Connect::Proxy, _) => "PodProxyOptions",
    };
    // Reading a log connects without admission, as upstream does.
    if what == Connect::Log {
        return Ok(());
    }
    let gvk = apimachinery::gvk::GroupVersionKind::new("", "v1", kind);
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    for key in ["stdin", "stdout", "stderr", "tty"] {
        if call.query.flag(key) {
            options[key] = true.into();
        }
    }
    if let Some(container) = call.query.get("container") {
        options["container"] = container.into();
    }
    let command: Vec<&str> = call.query.all("command").collect();
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    let admission = Admission {
        api: &call.api,
        authorized: &call.authorized,
        served,
        operation: Operation::Connect,
        kind: &gvk,
        subresource: &call.authorized.info().subresource,
        namespace: call.namespace(),
        name: call.name(),
        options: &Value::Null,
        dry_run: false,
    };
    admission.admit_connection(&mut options, &mut Vec::new()).await
}

/// The kubelet's address and port, by its Node's status.
fn kubelet(call: &Call, node_name: &str) -> Result<(String, u16), ApiError> {
    let resource = GroupResource::new("", "nodes");
    let Some(node) = call.api.caches.get(&resource, "", node_name) else {
        return Err(ApiError::NotFound { resource, name: node_name.to_owned() });
    };
    kubelet_of(&node, &call.api.kubelets.address_types)
}

fn kubelet_of(node: &Value, types: &[String]) -> Result<(String, u16), ApiError> {
    let addresses = object::list_at(node, &["status", "addresses"]);
    let found = types.iter().find_map(|wanted| {
        addresses
            .iter()
            .find(|a| a["type"] == wanted.as_str())
            .map(|a| object::str_at(a, &["address"]).to_owned())
    });
    let Some(host) = found.filter(|host| !host.is_empty()) else {
        return Err(ApiError::Internal(format!(
            "no preferred addresses found; known addresses: {}",
            Value::from(addresses.to_vec())
        )));
    };
    let port = object::int_at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
    Ok((host, port.unwrap_or(KUBELET_PORT)))
}

fn node_proxy(call: &Call, node: &Value) -> Result<Target, ApiError> {
    let (scheme, _, port) = split_name(call.name()).unwrap_or_default();
    let (host, kubelet_port) = kubelet_of(node, &call.api.kubelets.address_types)?;
    let path = proxied_path(call);
    match (scheme, port) {
        ("" | "https", "") => {
            Ok(Target { host, port: kubelet_port, tls: Some(call.api.kubelets.tls.clone()), path })
        }
        (scheme, port) => {
            let number = port.parse().map_err(|_| {
                ApiError::BadRequest(format!("invalid node request {:?}", call.name()))
            })?;
            let tls = if number == kubelet_port && scheme.is_empty() {
                Some(call.api.kubelets.tls.clone())
            } else {
                (scheme == "https").then(|| call.api.kubelets.backends.clone())
            };
            Ok(Target { host, port: number, tls, path })
        }
    }
}

/// What is behind `/proxy`, with the query.
fn proxied_path(call: &Call) -> String {
    let info = call.authorized.info();
    let rest = utf8_percent_encode(&info.trailing.join("/"), PATH).to_string();
    let slash =
        if !info.trailing.is_empty() && call.parts.uri.path().ends_with('/') { "/" } else { "" };
    match call.parts.uri.query() {
        Some(query) => format!("/{rest}{slash}?{query}"),
        None => format!("/{rest}{slash}"),
    }
}

fn backend(call: &Call, scheme: &str, host: String, port: u16) -> Target {
    let tls = (scheme == "https").then(|| call.api.kubelets.backends.clone());
    Target { host, port, tls, path: proxied_path(call) }
}

/// Only addresses that pods can have: not this machine, not the link.
fn check_address(ip: &str) -> Result<(), ApiError> {
    let bad = match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => v4.is_link_local() || v4.is_loopback(),
        Ok(IpAddr::V6(v6)) => v6.is_loopback() || v6.is_unicast_link_local(),
        Err(_) => true,
    };
    if bad { Err(ApiError::BadRequest("address not allowed".to_owned())) } else { Ok(()) }
}

fn pod_proxy(call: &Call, pod: &Value) -> Result<Target, ApiError> {
    let bad = || ApiError::BadRequest(format!("invalid pod request {:?}", call.name()));
    let (scheme, _, port) = split_name(call.name()).ok_or_else(bad)?;
    let port = if port.is_empty() {
        let containers = object::list_at(pod, &["spec", "containers"]).iter();
        let first = containers
            .flat_map(|c| object::list_at(c, &["ports"]).iter())
            .find_map(|p| object::int_at(p, &["containerPort"]));
        first.and_then(|p| u16::try_from(p).ok()).unwrap_or(if scheme == "https" {
            443
        } else {
            80
        })
    } else {
        port.parse().map_err(|_| bad())?
    };
    let ip = object::str_at(pod, &["status", "podIP"]);
    check_address(ip)?;
    Ok(backend(call, scheme, ip.to_owned(), port))
}

fn service_proxy(call: &Call, service: &Value) -> Result<Target, ApiError> {
    let bad = || ApiError::BadRequest(format!("invalid service request {:?}", call.name()));
    let (scheme, name, port) = split_name(call.name()).ok_or_else(bad)?;
    let ports = object::list_at(service, &["spec", "ports"]);
    let wanted = match port {
        "" => match ports {
            [only] => Some(only),
            _ => ports.iter().find(|p| object::str_at(p, &["name"]).is_empty()),
        },
        port => ports.iter().find(|p| {
            object::str_at(p, &["name"]) == port
                || object::int_at(p, &["port"]).is_some_and(|n| n.to_string() == port)
        }),
    };
    let missing = || {
        ApiError::ServiceUnavailable(format!("no service port {port:?} found for service {name:?}"))
    };
    let port_name = object::str_at(wanted.ok_or_else(missing)?, &["name"]);
    let caches = &*call.api.caches;
    let candidates = services::ready_endpoints(caches, call.namespace(), name, port_name);
    let Some((host, port)) = candidates.choose(&mut rand::rng()).cloned() else {
        return Err(ApiError::ServiceUnavailable(format!(
            "no endpoints available for service {name:?}"
        )));
    };
    Ok(backend(call, scheme, host, port))
}

/// The container that a request means.
fn container(pod: &Value, asked: &str) -> Result<String, ApiError> {
    let all = ["initContainers", "containers", "ephemeralContainers"];
    let names = |field: &str| -> Vec<String> {
        let list = object::list_at(pod, &["spec", field]).iter();
        list.map(|c| object::str_at(c, &["name"]).to_owned()).collect()
    };
    let pod_name = object::name(pod);
    if !asked.is_empty() {
        if all.iter().any(|field| names(field).iter().any(|n| n == asked)) {
            return Ok(asked.to_owned());
        }
        return Err(ApiError::BadRequest(format!(
            "container {asked} is not valid for pod {pod_name}"
        )));
    }
    let containers = names("containers");
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::BadRequest(format!(
            "a container name must be specified for pod {pod_name}"
        ))),
        many => {
            if let Some(default) =
                object::annotation(pod, "kubectl.kubernetes.io/default-container")
                && many.iter().any(|n| n == default)
            {
                return Ok(default.to_owned());
            }
            let mut text = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                many.join(" ")
            );
            let init = names("initContainers");
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::BadRequest(text))
        }
    }
}

/// A stream of a pod's kubelet. `None`: a log of a pod that has no node yet.
fn pod_stream(call: &Call, pod: &Value, what: Connect) -> Result<Option<Target>, ApiError> {
    let node = object::str_at(pod, &["spec", "nodeName"]);
    let (namespace, name) = (object::namespace(pod), object::name(pod));
    let query = &call.query;
    let container = match what {
        Connect::PortForward => String::new(),
        _ => container(pod, query.text("container"))?,
    };
    if node.is_empty() {
        if what == Connect::Log {
            return Ok(None);
        }
        return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
    }
    let (verb, query) = match what {
        Connect::Log => ("containerLogs", log_query(query)?),
        Connect::Exec => ("exec", stream_query(query)),
        Connect::Attach => ("attach", stream_query(query)),
        _ => ("portForward", port_query(query)),
    };
    let segment = |text: &str| utf8_percent_encode(text, SEGMENT).to_string();
    let mut path = format!("/{verb}/{}/{}", segment(namespace), segment(name));
    if !container.is_empty() {
        path.push_str(&format!("/{}", segment(&container)));
    }
    let query = query.encode();
    if !query.is_empty() {
        path.push_str(&format!("?{query}"));
    }
    let (host, port) = kubelet(call, node)?;
    Ok(Some(Target { host, port, tls: Some(call.api.kubelets.tls.clone()), path }))
}

fn log_query(query: &Query) -> Result<Query, ApiError> {
    let mut out = Query::default();
    for key in ["follow", "previous", "timestamps"] {
        if query.flag(key) {
            out.push(key, "true");
        }
    }
    if query.flag("insecureSkipTLSVerifyBackend") {
        tracing::debug!("insecureSkipTLSVerifyBackend changes nothing");
    }
    for key in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        let text = query.text(key);
        let number = matches!(key, "sinceSeconds" | "tailLines" | "limitBytes");
        if text.is_empty() {
            continue;
        }
        if number && text.parse::<i64>().is_err() {
            return Err(ApiError::BadRequest(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax"
            )));
        }
        out.push(key, text);
    }
    Ok(out)
}

fn stream_query(query: &Query) -> Query {
    let mut out = Query::default();
    for (key, theirs) in
        [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
    {
        if query.flag(key) {
            out.push(theirs, "1");
        }
    }
    query.all("command").for_each(|part| out.push("command", part));
    out
}

fn port_query(query: &Query) -> Query {
    let mut out = Query::default();
    query.all("ports").for_each(|port| out.push("port", port));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_scheme_and_port() {
        assert_eq!(split_name("a"), Some(("", "a", "")));
        assert_eq!(split_name("a:80"), Some(("", "a", "80")));
        assert_eq!(split_name("https:a:web"), Some(("https", "a", "web")));
        assert_eq!(split_name("ftp:a:1"), None);
        assert_eq!(split_name(":80"), None);
    }

    #[test]
    fn containers_are_chosen_as_upstream_chooses() {
        let pod = |names: &[&str]| {
            let containers: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
            json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})
        };
        assert_eq!(container(&pod(&["a"]), ""), Ok("a".to_owned()));
        assert_eq!(container(&pod(&["a", "b"]), "b"), Ok("b".to_owned()));
        assert_eq!(
            container(&pod(&["a", "b"]), "").map_err(|e| e.message()),
            Err("a container name must be specified for pod p, choose one of: [a b]".to_owned())
        );
        assert_eq!(
            container(&pod(&["a"]), "x").map_err(|e| e.message()),
            Err("container x is not valid for pod p".to_owned())
        );
    }

    #[test]
    fn kubelets_are_found_by_their_nodes() {
        let node = json!({"status": {"addresses": [{"type": "ExternalIP", "address": "1.1.1.1"},
            {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 1234}}}});
        let types = ADDRESS_TYPES.map(str::to_owned);
        assert_eq!(kubelet_of(&node, &types), Ok(("10.0.0.1".to_owned(), 1234)));
        assert!(kubelet_of(&json!({}), &types).is_err());
        assert!(check_address("127.0.0.1").is_err() && check_address("10.1.2.3").is_ok());
    }

    #[test]
    fn parameters_are_the_kubelets() {
        let query = Query::parse("stdin=true&stdout=1&tty=false&command=sh&command=-c");
        assert_eq!(stream_query(&query).encode(), "input=1&output=1&command=sh&command=-c");
        let query = Query::parse("follow=true&tailLines=5&container=a");
        assert_eq!(log_query(&query).expect("valid").encode(), "follow=true&tailLines=5");
        assert!(log_query(&Query::parse("tailLines=x")).is_err());
    }
}
