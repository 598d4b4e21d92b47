//! Where Services are reached by this server itself: webhooks and aggregated API servers
//! (upstream: apiserver `util/proxy`, `ResolveCluster` and `ResolveEndpoint`).

use apimachinery::gvk::GroupResource;
use apimachinery::{Value, object};
use rand::seq::IndexedRandom as _;

use crate::reader::Reader;

/// How a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Routing {
    /// By its ClusterIP, which the node's proxy translates.
    #[default]
    Cluster,
    /// By one of its ready endpoints (`--enable-aggregator-routing`).
    Endpoints,
}

/// Why a Service cannot be reached, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("service {0:?} not found")]
    NotFound(String),
    #[error("cannot route to service with ClusterIP \"None\"")]
    Headless,
    #[error("unsupported service type {0:?}")]
    Type(String),
    #[error("no service port {port} found for service {service:?}")]
    Port { service: String, port: u16 },
    #[error("no endpoints available for service {0:?}")]
    Endpoints(String),
}

/// Host and port to connect to for a port of a Service.
///
/// # Errors
/// There is no such Service or port, or nothing that answers for it.
pub fn resolve(
    reader: &dyn Reader,
    routing: Routing,
    (namespace, name): (&str, &str),
    port: u16,
) -> Result<(String, u16), Unresolved> {
    let resource = GroupResource::new("", "services");
    let Some(service) = reader.get(&resource, namespace, name) else {
        return Err(Unresolved::NotFound(name.to_owned()));
    };
    let kind = object::str_at(&service, &["spec", "type"]);
    match (routing, kind) {
        (Routing::Cluster, "ExternalName") => {
            Ok((object::str_at(&service, &["spec", "externalName"]).to_owned(), port))
        }
        (_, "ClusterIP" | "NodePort" | "LoadBalancer") => {
            let ip = object::str_at(&service, &["spec", "clusterIP"]);
            if routing == Routing::Cluster && ip == "None" {
                return Err(Unresolved::Headless);
            }
            let ports = object::list_at(&service, &["spec", "ports"]);
            let found =
                ports.iter().find(|p| object::int_at(p, &["port"]) == Some(i64::from(port)));
            let Some(found) = found else {
                return Err(Unresolved::Port { service: name.to_owned(), port });
            };
            if routing == Routing::Cluster {
                return Ok((ip.to_owned(), port));
            }
            let port_name = object::str_at(found, &["name"]);
            let ready = ready_endpoints(reader, namespace, name, port_name);
            let chosen = ready.choose(&mut rand::rng()).cloned();
            chosen.ok_or_else(|| Unresolved::Endpoints(name.to_owned()))
        }
        (_, other) => Err(Unresolved::Type(other.to_owned())),
    }
}

/// Addresses and ports of the endpoints of a Service's port that are ready.
pub fn ready_endpoints(
    reader: &dyn Reader,
    namespace: &str,
    service: &str,
    port_name: &str,
) -> Vec<(String, u16)> {
    let resource = GroupResource::new("discovery.k8s.io", "endpointslices");
    let mut found = Vec::new();
    for slice in reader.list(&resource, namespace) {
        if object::label(&slice, "kubernetes.io/service-name") != Some(service) {
            continue;
        }
        let port = object::list_at(&slice, &["ports"])
            .iter()
            .find(|p| object::str_at(p, &["name"]) == port_name)
            .and_then(|p| object::int_at(p, &["port"]))
            .and_then(|p| u16::try_from(p).ok());
        let Some(port) = port else { continue };
        for endpoint in object::list_at(&slice, &["endpoints"]) {
            let ready = object::get(endpoint, &["conditions", "ready"]).and_then(Value::as_bool);
            if ready == Some(false) {
                continue;
            }
            let addresses = object::list_at(endpoint, &["addresses"]);
            if let Some(address) = addresses.first().and_then(Value::as_str) {
                found.push((address.to_owned(), port));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authorization::testing::Memory;

    #[test]
    fn services_are_found_by_address_or_endpoint() {
        let memory = Memory::default();
        let service = |name: &str, spec: Value| {
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "n"}, "spec": spec})
        };
        let ports = json!([{"name": "web", "port": 443}]);
        for (name, spec) in [
            ("a", json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": ports})),
            ("h", json!({"type": "ClusterIP", "clusterIP": "None", "ports": ports})),
            ("e", json!({"type": "ExternalName", "externalName": "x.example.com"})),
        ] {
            memory.put("", "services", service(name, spec));
        }
        let slice = json!({"metadata": {"name": "a-1", "namespace": "n",
                "labels": {"kubernetes.io/service-name": "a"}},
            "ports": [{"name": "web", "port": 8443}],
            "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": false}},
                {"addresses": ["10.1.0.2"]}]});
        memory.put("discovery.k8s.io", "endpointslices", slice);
        let ask = |routing, name: &str, port| {
            resolve(&memory, routing, ("n", name), port).map_err(|e| e.to_string())
        };
        use Routing::{Cluster, Endpoints};
        let ok = |host: &str, port| Ok((host.to_owned(), port));
        let err = |text: &str| Err(text.to_owned());
        assert_eq!(ask(Cluster, "a", 443), ok("10.0.0.1", 443));
        assert_eq!(ask(Endpoints, "a", 443), ok("10.1.0.2", 8443));
        assert_eq!(ask(Cluster, "a", 80), err("no service port 80 found for service \"a\""));
        assert_eq!(ask(Cluster, "h", 443), err("cannot route to service with ClusterIP \"None\""));
        assert_eq!(ask(Endpoints, "h", 443), err("no endpoints available for service \"h\""));
        assert_eq!(ask(Cluster, "e", 9), ok("x.example.com", 9));
        assert_eq!(ask(Endpoints, "e", 9), err("unsupported service type \"ExternalName\""));
        assert_eq!(ask(Cluster, "x", 9), err("service \"x\" not found"));
    }
}
