//! Where a request goes on to. Pure: the caches are read, nothing is sent.

use apimachinery::Value;
use apimachinery::gvk::GroupResource;
use apimachinery::object::{int_at, list_at, str_at};
use apimachinery::status::ApiError;
use http::Uri;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Location, Target};
use crate::reader::{Object, Reader};
use crate::registry::Connect;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Port of a kubelet that reports none.
const KUBELET_PORT: i64 = 10250;

pub fn locate(
    reader: &dyn Reader,
    target: &Target,
    address_types: &[String],
) -> Result<Location, ApiError> {
    match target.what {
        Connect::Proxy => proxy(reader, target, address_types),
        Connect::Log => {
            let query = log_query(&target.query)?;
            container(reader, target, address_types, "containerLogs", &query)
        }
        Connect::Exec => container(reader, target, address_types, "exec", &streams(&target.query)),
        Connect::Attach => {
            container(reader, target, address_types, "attach", &streams(&target.query))
        }
        Connect::PortForward => {
            let pod = pod(reader, target)?;
            let path = format!("/portForward/{}/{}", target.namespace, target.name);
            kubelet(reader, &pod, address_types, &path, &target.query)
        }
    }
}

fn find(
    reader: &dyn Reader,
    resource: &GroupResource,
    namespace: &str,
    name: &str,
) -> Result<Object, ApiError> {
    reader
        .get(resource, namespace, name)
        .ok_or_else(|| ApiError::NotFound { resource: resource.clone(), name: name.to_owned() })
}

fn pod(reader: &dyn Reader, target: &Target) -> Result<Object, ApiError> {
    find(reader, &target.resource, &target.namespace, &target.name)
}

fn uri(text: &str) -> Result<Uri, ApiError> {
    text.parse()
        .map_err(|error| ApiError::BadRequest(format!("invalid location {text:?}: {error}")))
}

/// A query as decoded pairs.
fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    query.split('&').filter(|p| !p.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

fn encode(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> =
        pairs.into_iter().map(|(n, v)| format!("{}={}", escape(&n), escape(&v))).collect();
    pairs.join("&")
}

/// The options of exec and attach under the kubelet's names. Output is attached unless refused
/// (PodExecOptions' defaults).
fn streams(query: &str) -> String {
    let given: Vec<(String, String)> = pairs(query).collect();
    let is = |name: &str, default: bool| match given.iter().rfind(|(n, _)| n == name) {
        Some((_, v)) => matches!(v.as_str(), "1" | "t" | "T" | "true" | "True" | "TRUE"),
        None => default,
    };
    // When a stream is named, the others are off.
    let named = ["stdin", "stdout", "stderr"].iter().any(|s| given.iter().any(|(n, _)| n == s));
    let tty = is("tty", false);
    let flags = [
        ("input", is("stdin", false)),
        ("output", is("stdout", !named)),
        ("error", is("stderr", !named) && !tty),
        ("tty", tty),
    ];
    let commands = given.iter().filter(|(n, _)| n == "command").cloned();
    let set = flags.into_iter().filter(|(_, on)| *on).map(|(n, _)| (n.to_owned(), "1".to_owned()));
    encode(set.chain(commands))
}

/// The options of a log, checked as upstream validates PodLogOptions.
fn log_query(query: &str) -> Result<String, ApiError> {
    let known = [
        "follow",
        "insecureSkipTLSVerifyBackend",
        "limitBytes",
        "pretty",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "stream",
        "tailLines",
        "timestamps",
    ];
    let mut out = Vec::new();
    for (name, value) in pairs(query).filter(|(n, _)| known.contains(&n.as_str())) {
        match name.as_str() {
            "tailLines" | "sinceSeconds" | "limitBytes" => {
                let number: i64 = value.parse().map_err(|_| {
                    ApiError::BadRequest(format!("unable to convert {name} {value:?} to a number"))
                })?;
                let least = i64::from(name != "tailLines");
                if number < least {
                    return Err(invalid_log_option(&name, number, least));
                }
            }
            "insecureSkipTLSVerifyBackend" | "pretty" => continue,
            _ => {}
        }
        out.push((name, value));
    }
    Ok(encode(out))
}

fn invalid_log_option(name: &str, number: i64, least: i64) -> ApiError {
    use apimachinery::field::{FieldError, Path};
    let rule = match least {
        0 => "must be greater than or equal to 0",
        _ => "must be greater than 0",
    };
    ApiError::Invalid {
        group: String::new(),
        kind: "PodLogOptions".to_owned(),
        name: String::new(),
        errors: vec![FieldError::invalid(&Path::new(name), number, rule)],
    }
}

fn container(
    reader: &dyn Reader,
    target: &Target,
    address_types: &[String],
    verb: &str,
    query: &str,
) -> Result<Location, ApiError> {
    let pod = pod(reader, target)?;
    let asked = pairs(&target.query).filter(|(n, _)| n == "container").map(|(_, v)| v).last();
    let name = container_name(&pod, &target.name, asked.as_deref().unwrap_or_default())?;
    let path = format!("/{verb}/{}/{}/{name}", target.namespace, target.name);
    kubelet(reader, &pod, address_types, &path, query)
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    list_at(pod, &["spec", list]).iter().map(|c| str_at(c, &["name"])).collect()
}

/// The container that is meant; without a name, the only one there is.
fn container_name(pod: &Value, pod_name: &str, asked: &str) -> Result<String, ApiError> {
    let (running, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    if asked.is_empty() {
        return match running.as_slice() {
            [only] => Ok((*only).to_owned()),
            [] => Err(ApiError::BadRequest(format!(
                "a container name must be specified for pod {pod_name}"
            ))),
            many => {
                let mut text = format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    many.join(" ")
                );
                if !init.is_empty() {
                    text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(ApiError::BadRequest(text))
            }
        };
    }
    match running.iter().chain(&init).chain(&ephemeral).any(|name| *name == asked) {
        true => Ok(asked.to_owned()),
        false => {
            Err(ApiError::BadRequest(format!("container {asked} is not valid for pod {pod_name}")))
        }
    }
}

fn kubelet(
    reader: &dyn Reader,
    pod: &Value,
    address_types: &[String],
    path: &str,
    query: &str,
) -> Result<Location, ApiError> {
    let node = str_at(pod, &["spec", "nodeName"]);
    if node.is_empty() {
        let name = apimachinery::object::name(pod);
        return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
    }
    let node = find(reader, &GroupResource::new("", "nodes"), "", node)?;
    let (host, port) = kubelet_of(&node, address_types)?;
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    Ok(Location {
        uri: uri(&format!("https://{}{path}{query}", join(&host, port)))?,
        kubelet: true,
    })
}

fn join(host: &str, port: i64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A kubelet's address, by the order of types that is preferred, and its port.
fn kubelet_of(node: &Value, address_types: &[String]) -> Result<(String, i64), ApiError> {
    let addresses = list_at(node, &["status", "addresses"]);
    let of = |ty: &String| addresses.iter().find(|a| str_at(a, &["type"]) == ty);
    let Some(found) = address_types.iter().find_map(of) else {
        return Err(ApiError::Internal(format!(
            "no preferred addresses found; known addresses: {}",
            Value::from(addresses.to_vec())
        )));
    };
    let port = int_at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    Ok((str_at(found, &["address"]).to_owned(), port.filter(|p| *p > 0).unwrap_or(KUBELET_PORT)))
}

/// `scheme:name:port`, of which scheme and port may be missing.
fn split(name: &str) -> Result<(&str, &str, &str), ApiError> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] => Ok(("", *name, "")),
        [name, port] => Ok(("", *name, *port)),
        [scheme @ ("" | "http" | "https"), name, port] => Ok((*scheme, *name, *port)),
        _ => Err(ApiError::BadRequest(format!("invalid proxy request {name:?}"))),
    }
}

fn proxy(
    reader: &dyn Reader,
    target: &Target,
    address_types: &[String],
) -> Result<Location, ApiError> {
    let (scheme, name, port) = split(&target.name)?;
    let scheme = if scheme.is_empty() { "http" } else { scheme };
    let object = find(reader, &target.resource, &target.namespace, name)?;
    let (host, port, scheme, kubelet) = match target.resource.resource.as_str() {
        "nodes" => {
            let (host, own) = kubelet_of(&object, address_types)?;
            match port {
                "" => (host, own, "https", true),
                port => {
                    let port = number(port)?;
                    let is_kubelet = port == own;
                    (host, port, if is_kubelet { "https" } else { scheme }, is_kubelet)
                }
            }
        }
        "services" => {
            let (host, port) = endpoint(reader, target, &object, name, port)?;
            (host, port, scheme, false)
        }
        _ => {
            let host = str_at(&object, &["status", "podIP"]);
            if host.is_empty() {
                return Err(ApiError::BadRequest("address not allowed".to_owned()));
            }
            let port = match port {
                "" => first_port(&object),
                port => number(port).or_else(|_| named_port(&object, port))?,
            };
            (host.to_owned(), port, scheme, false)
        }
    };
    let path = if target.path.is_empty() { "/" } else { &target.path };
    let query = match target.query.as_str() {
        "" => String::new(),
        query => format!("?{query}"),
    };
    Ok(Location { uri: uri(&format!("{scheme}://{}{path}{query}", join(&host, port)))?, kubelet })
}

fn number(port: &str) -> Result<i64, ApiError> {
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(i64::from(port)),
        _ => Err(ApiError::BadRequest(format!("invalid port {port:?}"))),
    }
}

fn container_ports(pod: &Value) -> impl Iterator<Item = &Value> {
    list_at(pod, &["spec", "containers"]).iter().flat_map(|c| list_at(c, &["ports"]))
}

fn first_port(pod: &Value) -> i64 {
    container_ports(pod).find_map(|p| int_at(p, &["containerPort"])).unwrap_or(80)
}

fn named_port(pod: &Value, name: &str) -> Result<i64, ApiError> {
    container_ports(pod)
        .find(|p| str_at(p, &["name"]) == name)
        .and_then(|p| int_at(p, &["containerPort"]))
        .ok_or_else(|| ApiError::ServiceUnavailable(format!("no port named {name:?} for pod")))
}

/// A ready endpoint of a service, chosen at random.
fn endpoint(
    reader: &dyn Reader,
    target: &Target,
    service: &Value,
    name: &str,
    port: &str,
) -> Result<(String, i64), ApiError> {
    let ports = list_at(service, &["spec", "ports"]);
    let wanted = match (port, ports) {
        ("", [only]) => Some(only),
        ("", _) => ports.iter().find(|p| str_at(p, &["name"]).is_empty()),
        (port, _) => ports.iter().find(|p| {
            str_at(p, &["name"]) == port
                || int_at(p, &["port"]).is_some_and(|n| n.to_string() == port)
        }),
    };
    let unavailable =
        || ApiError::ServiceUnavailable(format!("no endpoints available for service {name:?}"));
    let Some(wanted) = wanted else {
        return Err(ApiError::ServiceUnavailable(format!(
            "no service port {port:?} found for service {name:?}"
        )));
    };
    let slices =
        reader.list(&GroupResource::new("discovery.k8s.io", "endpointslices"), &target.namespace);
    let mut found = Vec::new();
    for slice in
        slices.iter().filter(|s| apimachinery::object::label(s, SERVICE_NAME) == Some(name))
    {
        let port = list_at(slice, &["ports"])
            .iter()
            .find(|p| str_at(p, &["name"]) == str_at(wanted, &["name"]))
            .and_then(|p| int_at(p, &["port"]));
        let Some(port) = port else { continue };
        for endpoint in list_at(slice, &["endpoints"]) {
            let ready = apimachinery::object::get(endpoint, &["conditions", "ready"]);
            if ready.is_some_and(|r| r == false) {
                continue;
            }
            let addresses = list_at(endpoint, &["addresses"]);
            found.extend(addresses.first().and_then(Value::as_str).map(|a| (a.to_owned(), port)));
        }
    }
    match found.len() {
        0 => Err(unavailable()),
        n => Ok(found.swap_remove(rand::random_range(0..n))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    struct Objects;

    impl Reader for Objects {
        fn get(&self, resource: &GroupResource, _: &str, name: &str) -> Option<Object> {
            let object = match (resource.resource.as_str(), name) {
                ("pods", "p") => json!({
                    "metadata": {"name": "p"},
                    "spec": {"nodeName": "n", "containers": [
                        {"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}]},
                    "status": {"podIP": "10.0.0.5"},
                }),
                ("pods", "two") => json!({
                    "metadata": {"name": "two"},
                    "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
                }),
                ("nodes", "n") => json!({"status": {
                    "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}},
                }}),
                ("services", "s") => json!({"spec": {"ports": [{"name": "http", "port": 80}]}}),
                _ => return None,
            };
            Some(Arc::new(object))
        }
        fn list(&self, _: &GroupResource, _: &str) -> Vec<Object> {
            vec![Arc::new(json!({
                "metadata": {"labels": {SERVICE_NAME: "s"}},
                "ports": [{"name": "http", "port": 8080}],
                "endpoints": [
                    {"addresses": ["10.0.0.5"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.6"], "conditions": {"ready": false}},
                ],
            }))]
        }
        fn version(&self, _: &GroupResource) -> u64 {
            0
        }
    }

    fn find(what: Connect, resource: &str, name: &str, path: &str, query: &str) -> String {
        let target = Target {
            what,
            resource: GroupResource::new("", resource),
            namespace: "ns".into(),
            name: name.into(),
            path: path.into(),
            query: query.into(),
        };
        match locate(&Objects, &target, &["InternalIP".to_owned()]) {
            Ok(location) => location.uri.to_string(),
            Err(error) => error.message(),
        }
    }

    #[test]
    fn requests_go_to_the_kubelet_of_the_pod() {
        for (what, name, query, wanted) in [
            (
                Connect::Log,
                "p",
                "follow=true&tailLines=5",
                "https://192.0.2.1:10251/containerLogs/ns/p/a?follow=true&tailLines=5",
            ),
            (
                Connect::Exec,
                "p",
                "command=ls&command=-l&stdin=true&stdout=true&tty=true",
                "https://192.0.2.1:10251/exec/ns/p/a?input=1&output=1&tty=1&command=ls&command=%2Dl",
            ),
            (
                Connect::Exec,
                "p",
                "command=ls",
                "https://192.0.2.1:10251/exec/ns/p/a?output=1&error=1&command=ls",
            ),
            (
                Connect::Attach,
                "p",
                "container=a&stdout=1",
                "https://192.0.2.1:10251/attach/ns/p/a?output=1",
            ),
            (Connect::PortForward, "p", "", "https://192.0.2.1:10251/portForward/ns/p"),
            (Connect::Log, "p", "container=x", "container x is not valid for pod p"),
            (
                Connect::Log,
                "two",
                "",
                "a container name must be specified for pod two, choose one of: [a b] or one of the init containers: [i]",
            ),
            (Connect::Log, "two", "container=a", "pod two does not have a host assigned"),
            (Connect::Log, "none", "", "pods \"none\" not found"),
        ] {
            assert_eq!(find(what, "pods", name, "", query), wanted);
        }
        assert!(
            find(Connect::Log, "pods", "p", "", "tailLines=-1")
                .contains("must be greater than or equal to 0")
        );
    }

    #[test]
    fn proxies_name_scheme_and_port() {
        for (resource, name, path, wanted) in [
            ("pods", "p", "/x", "http://10.0.0.5:8080/x"),
            ("pods", "p:9090", "", "http://10.0.0.5:9090/"),
            ("pods", "https:p:web", "/", "https://10.0.0.5:8080/"),
            ("services", "s", "/a", "http://10.0.0.5:8080/a"),
            ("services", "s:http", "/a", "http://10.0.0.5:8080/a"),
            ("services", "https:s:80", "/a", "https://10.0.0.5:8080/a"),
            ("services", "s:x", "/a", "no service port \"x\" found for service \"s\""),
            ("nodes", "n", "/metrics", "https://192.0.2.1:10251/metrics"),
            ("nodes", "n:80", "/", "http://192.0.2.1:80/"),
            ("pods", "a:b:c:d", "/", "invalid proxy request \"a:b:c:d\""),
        ] {
            assert_eq!(find(Connect::Proxy, resource, name, path, ""), wanted, "{resource} {name}");
        }
    }
}
