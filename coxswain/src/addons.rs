//! What `up` adds to the cluster through its API: rights of the administrators and of the DNS
//! server, and the DNS service.

use std::net::IpAddr;

use anyhow::Context;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

/// User of the DNS server.
pub const DNS_USER: &str = "system:cluster-dns";
/// Group of the administrators' certificate, as kubeadm names it.
pub const ADMINS: &str = "kubeadm:cluster-admins";

/// Where DNS answers.
#[derive(Clone, Copy, Debug)]
pub struct Dns {
    /// Address of the service.
    pub service: IpAddr,
    /// Address and port of the server behind it.
    pub server: IpAddr,
    pub port: u16,
}

/// The objects, with plural names.
fn objects(dns: Dns) -> Vec<(&'static str, Value)> {
    let rbac = "rbac.authorization.k8s.io";
    let binding = |name: &str, role: &str, kind: &str, subject: &str| {
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": rbac, "kind": kind, "name": subject}],
        })
    };
    let labels = json!({
        "k8s-app": "kube-dns",
        "kubernetes.io/cluster-service": "true",
        "kubernetes.io/name": "CoreDNS",
    });
    let (port, target) = (53, dns.port);
    let service_port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
    let slice_port =
        |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": target});
    let family = if dns.server.is_ipv4() { "IPv4" } else { "IPv6" };
    vec![
        ("clusterrolebindings", binding(ADMINS, "cluster-admin", "Group", ADMINS)),
        (
            "clusterroles",
            json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole",
                "metadata": {"name": DNS_USER},
                "rules": [
                    {"apiGroups": [""], "resources": ["services", "namespaces", "pods"],
                     "verbs": ["list", "watch"]},
                    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
                     "verbs": ["list", "watch"]},
                ],
            }),
        ),
        ("clusterrolebindings", binding(DNS_USER, DNS_USER, "User", DNS_USER)),
        (
            "services",
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
                "spec": {
                    "clusterIP": dns.service,
                    "ports": [service_port("dns", "UDP"), service_port("dns-tcp", "TCP")],
                },
            }),
        ),
        (
            "endpointslices",
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": "kube-dns-coxswain", "namespace": "kube-system",
                    "labels": {
                        "kubernetes.io/service-name": "kube-dns",
                        "endpointslice.kubernetes.io/managed-by": "coxswain",
                    },
                },
                "addressType": family,
                "endpoints": [{"addresses": [dns.server], "conditions": {"ready": true}}],
                "ports": [slice_port("dns", "UDP"), slice_port("dns-tcp", "TCP")],
            }),
        ),
    ]
}

/// Applies them; safe to repeat.
///
/// # Errors
/// Names the object that was refused.
pub async fn apply(client: &Client, dns: Dns) -> anyhow::Result<()> {
    for (plural, object) in objects(dns) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let (group, version) =
            text("/apiVersion").rsplit_once('/').unwrap_or(("", text("/apiVersion")));
        let gvk = GroupVersionKind::gvk(group, version, text("/kind"));
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let api: Api<DynamicObject> = match text("/metadata/namespace") {
            "" => Api::all_with(client.clone(), &resource),
            namespace => Api::namespaced_with(client.clone(), namespace, &resource),
        };
        let name = text("/metadata/name");
        let params = PatchParams::apply("coxswain").force();
        api.patch(name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("{plural} {name}"))?;
    }
    Ok(())
}
