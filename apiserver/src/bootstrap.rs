//! The objects that every cluster starts with, made and kept through the ordinary pipeline
//! (upstream: `controlplane/controller/{systemnamespaces,kubernetesservice}`,
//! `rbac/rest/storage_rbac.go`, `clusterauthenticationtrust`).

mod flow;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use futures::StreamExt as _;
use http::Method;
use ipnet::IpNet;
use serde_json::json;

use crate::api::Api;
use crate::authorization::bootstrap as policy;
use crate::health::Step;
use crate::identity::Identity;
use crate::masterleases::Leases;
use crate::options::Config;
use crate::pipeline::local;
use crate::registry::allocate::AddressRange;

const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];
/// Classes of the system's own pods: name, value and description
/// (`pkg/apis/scheduling/v1/helpers.go`).
const PRIORITIES: [(&str, i32, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another \
         node if necessary.",
    ),
];
const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
/// How often the objects are looked at, and this server says that it lives.
const PERIOD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);
/// For how long a server that ends tries to take itself out.
const PATIENCE: Duration = Duration::from_secs(3);
/// Writes under way at the same time: they share commits.
const AT_ONCE: usize = 16;

/// What the objects say about this server.
pub(crate) struct Settings {
    advertised: SocketAddr,
    ranges: Vec<IpNet>,
    rbac: bool,
    /// What it is known by; `None`: its machine has no name.
    identity: Option<Identity>,
    /// Data of the ConfigMap `extension-apiserver-authentication`.
    trust: serde_json::Map<String, Value>,
}

impl Settings {
    pub(crate) fn new(config: &Config, advertised: SocketAddr) -> Self {
        let file = |path: &Option<std::path::PathBuf>| {
            path.as_ref().and_then(|p| std::fs::read_to_string(p).ok())
        };
        let mut trust = serde_json::Map::new();
        if let Some(ca) = file(&config.client_ca_file) {
            trust.insert("client-ca-file".into(), ca.into());
        }
        let front = &config.request_header;
        if let Some(ca) = file(&front.client_ca_file) {
            trust.insert("requestheader-client-ca-file".into(), ca.into());
            for (key, names) in [
                ("requestheader-allowed-names", &front.allowed_names),
                ("requestheader-username-headers", &front.username),
                ("requestheader-uid-headers", &front.uid),
                ("requestheader-group-headers", &front.group),
                ("requestheader-extra-headers-prefix", &front.extra_prefixes),
            ] {
                trust.insert(key.into(), json!(names).to_string().into());
            }
        }
        Self {
            advertised,
            ranges: config.service_cluster_ip_ranges.clone(),
            rbac: config.authorization_modes.iter().any(|m| m == "RBAC"),
            identity: Identity::here(),
            trust,
        }
    }
}

/// Makes the objects, and goes on keeping them.
pub(crate) async fn run(api: Arc<Api>, settings: &Settings) {
    for cache in api.catalog().caches() {
        while cache.wait_ready(Duration::from_secs(60)).await.is_err() {
            tracing::warn!(prefix = cache.prefix(), "the cache is not ready yet");
        }
    }
    let mut ready = false;
    loop {
        let result = keep(&api, settings, !ready).await;
        match result {
            Ok(()) => ready = true,
            Err(error) => {
                tracing::warn!(%error, "cannot make the objects that a cluster starts with");
                if !ready {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn keep(api: &Arc<Api>, settings: &Settings, first: bool) -> Result<(), ApiError> {
    for name in NAMESPACES {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(api, "/api/v1/namespaces", namespace).await?;
    }
    api.health.set_done(Step::Namespaces);
    if let Some(identity) = settings.identity.as_ref().filter(|_| serves(api, LEASES.0, LEASES.1)) {
        identity.renew(api).await?;
    }
    if first && settings.rbac {
        keep_policy(api).await?;
        api.health.set_done(Step::Roles);
    }
    flow::keep(api).await?;
    api.health.set_done(Step::Flow);
    for (name, value, description) in PRIORITIES {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description});
        ensure(api, "/apis/scheduling.k8s.io/v1/priorityclasses", class).await?;
    }
    api.health.set_done(Step::PriorityClasses);
    keep_trust(api, settings).await?;
    api.health.set_done(Step::Trust);
    keep_range(api, settings).await?;
    api.health.set_done(Step::ServiceRange);
    keep_service(api, settings).await?;
    if let Some(leases) = leases(api, settings) {
        // First of all, so that the others know of this server whatever fails after.
        leases.renew().await?;
        let addresses = leases.addresses().await?;
        if addresses.is_empty() {
            let text = "no API server IP addresses were listed in storage, refusing to erase all \
                endpoints for the kubernetes Service";
            return Err(ApiError::Internal(text.to_owned()));
        }
        keep_endpoints(api, &addresses, settings.advertised.port()).await?;
    }
    api.health.set_done(Step::Service);
    Ok(())
}

/// Takes this server out of the endpoints of the Service `kubernetes`. Nothing may keep them any
/// more at that time.
pub(crate) async fn leave(api: &Arc<Api>, settings: &Settings) {
    let left = async {
        let Some(leases) = leases(api, settings) else { return Ok(()) };
        leases.remove().await?;
        let addresses = leases.addresses().await?;
        keep_endpoints(api, &addresses, settings.advertised.port()).await
    };
    match tokio::time::timeout(PATIENCE, left).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot leave the kubernetes Service"),
        Err(_) => tracing::warn!("leaving the kubernetes Service took too long"),
    }
}

/// The records of servers. A Service whose only endpoint is the loopback address would mislead:
/// upstream refuses it.
fn leases(api: &Arc<Api>, settings: &Settings) -> Option<Leases> {
    let address = settings.advertised.ip();
    if settings.ranges.is_empty() || address.is_loopback() {
        tracing::debug!(%address, "the kubernetes Service gets no endpoint here");
        return None;
    }
    Leases::new(api.store.clone(), &api.root, address)
}

fn serves(api: &Api, group: &str, resource: &str) -> bool {
    api.stored_row(&GroupResource::new(group, resource)).is_some()
}

async fn get(api: &Arc<Api>, url: &str) -> Result<Option<Value>, ApiError> {
    match local(api, Method::GET, url, None).await {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates an object that is not there.
async fn ensure(api: &Arc<Api>, collection: &str, wanted: Value) -> Result<(), ApiError> {
    if get(api, &format!("{collection}/{}", object::name(&wanted))).await?.is_some() {
        return Ok(());
    }
    match local(api, Method::POST, collection, Some(wanted)).await {
        Ok(_) | Err(ApiError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates an object, or gives one that is there the wanted values at some paths.
async fn keep_object(
    api: &Arc<Api>,
    collection: &str,
    wanted: Value,
    paths: &[&[&str]],
) -> Result<(), ApiError> {
    let url = format!("{collection}/{}", object::name(&wanted));
    let Some(found) = get(api, &url).await? else { return ensure(api, collection, wanted).await };
    let mut kept = found.clone();
    for path in paths {
        match object::get(&wanted, path) {
            Some(value) => object::set(&mut kept, path, value.clone()),
            None => {
                object::remove(&mut kept, path);
            }
        }
    }
    if kept == found {
        return Ok(());
    }
    match local(api, Method::PUT, &url, Some(kept)).await {
        // Somebody else keeps it, too; the next round looks again.
        Ok(_) | Err(ApiError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Default roles and bindings.
async fn keep_policy(api: &Arc<Api>) -> Result<(), ApiError> {
    let mut kept = futures::stream::iter(policy::expected())
        .map(|(resource, expected)| keep_policy_object(api, resource, expected))
        .buffer_unordered(AT_ONCE);
    while let Some(result) = kept.next().await {
        result?;
    }
    Ok(())
}

async fn keep_policy_object(
    api: &Arc<Api>,
    resource: GroupResource,
    expected: Value,
) -> Result<(), ApiError> {
    let namespace = object::namespace(&expected);
    let place = match namespace {
        "" => String::new(),
        namespace => format!("namespaces/{namespace}/"),
    };
    let collection = format!("/apis/{}/v1/{place}{}", resource.group, resource.resource);
    let url = format!("{collection}/{}", object::name(&expected));
    let existing = get(api, &url).await?;
    let Some(wanted) = policy::reconcile(existing.as_ref(), &expected) else { return Ok(()) };
    let written = match existing {
        Some(existing) if policy::must_recreate(&existing, &expected) => {
            local(api, Method::DELETE, &url, None).await?;
            local(api, Method::POST, &collection, Some(wanted)).await
        }
        Some(_) => local(api, Method::PUT, &url, Some(wanted)).await,
        None => local(api, Method::POST, &collection, Some(wanted)).await,
    };
    match written {
        Ok(_) | Err(ApiError::AlreadyExists { .. } | ApiError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What extension API servers trust.
async fn keep_trust(api: &Arc<Api>, settings: &Settings) -> Result<(), ApiError> {
    if settings.trust.is_empty() || !serves(api, "", "configmaps") {
        return Ok(());
    }
    let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": settings.trust});
    keep_object(api, "/api/v1/namespaces/kube-system/configmaps", wanted, &[&["data"]]).await
}

/// The ServiceCIDR that the addresses of Services are from.
async fn keep_range(api: &Arc<Api>, settings: &Settings) -> Result<(), ApiError> {
    if settings.ranges.is_empty() || !serves(api, "networking.k8s.io", "servicecidrs") {
        return Ok(());
    }
    let cidrs: Vec<String> = settings.ranges.iter().map(IpNet::to_string).collect();
    let wanted = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    ensure(api, "/apis/networking.k8s.io/v1/servicecidrs", wanted).await
}

/// The Service `kubernetes`, which leads to this server.
async fn keep_service(api: &Arc<Api>, settings: &Settings) -> Result<(), ApiError> {
    let Some(range) = settings.ranges.first() else { return Ok(()) };
    let port = settings.advertised.port();
    if serves(api, "", "services") {
        let ip = AddressRange::new(*range).first();
        let wanted = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": ip.to_string(), "type": "ClusterIP", "sessionAffinity": "None",
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]}});
        keep_object(api, "/api/v1/namespaces/default/services", wanted, &[&["spec", "ports"]])
            .await?;
    }
    Ok(())
}

/// Makes the endpoints of the Service `kubernetes` those addresses.
async fn keep_endpoints(api: &Arc<Api>, addresses: &[String], port: u16) -> Result<(), ApiError> {
    if serves(api, "", "endpoints") {
        let mut wanted = json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}});
        if !addresses.is_empty() {
            let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            wanted["subsets"] = json!([{"addresses": ips,
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]);
        }
        keep_object(api, "/api/v1/namespaces/default/endpoints", wanted, &[&["subsets"]]).await?;
    }
    if serves(api, "discovery.k8s.io", "endpointslices") {
        let family = match addresses.first() {
            Some(ip) if ip.contains(':') => "IPv6",
            _ => "IPv4",
        };
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect();
        let wanted = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
        let collection = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        keep_object(api, collection, wanted, &[&["endpoints"], &["ports"]]).await?;
    }
    Ok(())
}
