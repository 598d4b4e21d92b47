//! NodeRestriction: a kubelet writes only what is its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Attributes, Operation, Plugin, forbidden, pods};
use crate::authorization::node::node_of;
use crate::authorization::{self, Authorizer, Decision};
use crate::reader::{Object, Reader};
use crate::request::RequestInfo;

const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Labels of Kubernetes' own that a kubelet may set on its node.
const LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Prefixes of labels that it may set, with their subdomains.
const LABEL_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io";

pub struct NodeRestriction {
    reader: Arc<dyn Reader>,
    /// Asked whether a node may request tokens for audiences that its pods do not name.
    authorizer: Arc<dyn Authorizer>,
}

/// Why a node may not: a refusal in words, or an error of its own.
enum Refusal {
    Reason(String),
    Error(ApiError),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self::Reason(reason.to_owned())
    }
}

impl Operation {
    fn upper(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

fn within(domain: &str, of: &str) -> bool {
    domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'))
}

/// Labels that a node may not add, remove or change, of those that differ.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let labels =
        |o: &Value| object::map_at(o, &["metadata", "labels"]).cloned().unwrap_or_default();
    let new = labels(new);
    let old = old.map(labels).unwrap_or_default();
    let changed: BTreeSet<&String> =
        new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).collect();
    let refused = |label: &&&String| {
        let domain = label.split_once('/').map_or("", |(domain, _)| domain);
        if within(domain, RESTRICTED_PREFIX) {
            return true;
        }
        let own = within(domain, "kubernetes.io") || within(domain, "k8s.io");
        let allowed = LABELS.contains(&label.as_str())
            || LABEL_PREFIXES.iter().any(|prefix| within(domain, prefix));
        own && !allowed
    };
    changed.iter().filter(refused).map(|label| (*label).clone()).collect()
}

impl NodeRestriction {
    pub fn new(reader: Arc<dyn Reader>, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { reader, authorizer }
    }

    fn find(&self, resource: &str, namespace: &str, name: &str) -> Result<Object, Refusal> {
        let group = if resource == "csidrivers" { "storage.k8s.io" } else { "" };
        let resource = GroupResource::new(group, resource);
        let found = self.reader.get(&resource, namespace, name);
        found.ok_or_else(|| Refusal::Error(ApiError::NotFound { resource, name: name.to_owned() }))
    }

    async fn check(
        &self,
        node: &str,
        a: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), Refusal> {
        match (a.resource.group.as_str(), a.resource.resource.as_str(), a.subresource) {
            ("", "pods", "") => self.pod(node, a, object),
            ("", "pods", "status") => pod_status(node, a, object),
            ("", "pods", "eviction") => self.eviction(node, a, object),
            ("", "pods", sub) => Err(format!(
                "unexpected pod subresource {sub:?}, only 'status' and 'eviction' are allowed"
            )
            .into()),
            ("", "nodes", _) => own_node(node, a, object),
            ("", "persistentvolumeclaims", "status") => claim_status(node, a, object),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".into()),
            ("", "serviceaccounts", "token") if a.operation == Operation::Create => {
                self.token(node, a, object).await
            }
            ("certificates.k8s.io", "podcertificaterequests", _) => {
                Err("PodCertificateRequest feature gate is disabled".into())
            }
            ("coordination.k8s.io", "leases", _) => lease(node, a, object),
            ("storage.k8s.io", "csinodes", _) => csi_node(node, a, object),
            ("resource.k8s.io", "resourceslices", _) => slice(node, a, object),
            ("certificates.k8s.io", "certificatesigningrequests", _) => {
                signing_request(node, a, object)
            }
            _ => Ok(()),
        }
    }

    fn pod(&self, node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
        match (a.operation, object) {
            (Operation::Create, Some(pod)) => self.new_pod(node, pod),
            (Operation::Delete, _) => {
                let pod = self.find("pods", a.namespace, a.name)?;
                if object::str_at(&pod, &["spec", "nodeName"]) == node {
                    return Ok(());
                }
                Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself")
                    .into())
            }
            (operation, _) => Err(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation.upper()
            )
            .into()),
        }
    }

    fn new_pod(&self, node: &str, pod: &Value) -> Result<(), Refusal> {
        if !pods::is_mirror(pod) {
            return Err(format!(
                "pod does not have {:?} annotation, node {node:?} can only create mirror pods",
                pods::MIRROR
            )
            .into());
        }
        if object::str_at(pod, &["spec", "nodeName"]) != node {
            return Err(format!(
                "node {node:?} can only create pods with spec.nodeName set to itself"
            )
            .into());
        }
        let to_itself =
            || format!("node {node:?} can only create pods with an owner reference set to itself");
        let owner = match object::list_at(pod, &["metadata", "ownerReferences"]) {
            [] => return Err(to_itself().into()),
            [owner] => owner,
            _ => {
                return Err(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                )
                .into());
            }
        };
        let is = |field: &str, value: &str| object::str_at(owner, &[field]) == value;
        if !is("apiVersion", "v1") || !is("kind", "Node") || !is("name", node) {
            return Err(to_itself().into());
        }
        if !object::bool_at(owner, &["controller"]) {
            return Err(format!(
                "node {node:?} can only create pods with a controller owner reference set to itself"
            )
            .into());
        }
        if object::bool_at(owner, &["blockOwnerDeletion"]) {
            return Err(format!(
                "node {node:?} must not set blockOwnerDeletion on an owner reference"
            )
            .into());
        }
        let found = self.find("nodes", "", node)?;
        let uid = object::str_at(owner, &["uid"]);
        if uid != object::uid(&found) {
            return Err(format!(
                "node {node} UID mismatch: expected {uid} got {}",
                object::uid(&found)
            )
            .into());
        }
        match pods::api_reference(pod) {
            Ok(None) => Ok(()),
            Ok(Some(what)) => {
                Err(format!("node {node:?} can not create pods that reference {what}").into())
            }
            Err(e) => Err(format!("error checking mirror pod for API references: {e}").into()),
        }
    }

    fn eviction(
        &self,
        node: &str,
        a: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), Refusal> {
        if a.operation != Operation::Create {
            return Err(format!("unexpected operation {}", a.operation.upper()).into());
        }
        let name = match (a.name, object) {
            ("", Some(eviction)) => object::name(eviction),
            (name, _) => name,
        };
        if name.is_empty() {
            return Err("could not determine pod from request data".into());
        }
        let pod = self.find("pods", a.namespace, name)?;
        if object::str_at(&pod, &["spec", "nodeName"]) != node {
            return Err(format!(
                "node {node} can only evict pods with spec.nodeName set to itself"
            )
            .into());
        }
        Ok(())
    }

    async fn token(
        &self,
        node: &str,
        a: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), Refusal> {
        let request = object.unwrap_or(&Value::Null);
        let reference = object::get(request, &["spec", "boundObjectRef"]).unwrap_or(&Value::Null);
        let field = |name: &str| object::str_at(reference, &[name]);
        if field("apiVersion") != "v1" || field("kind") != "Pod" || field("name").is_empty() {
            return Err("node requested token not bound to a pod".into());
        }
        if field("uid").is_empty() {
            return Err("node requested token with a pod binding without a uid".into());
        }
        let pod = self.find("pods", a.namespace, field("name"))?;
        if field("uid") != object::uid(&pod) {
            return Err(format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                field("uid")
            )
            .into());
        }
        if object::str_at(&pod, &["spec", "nodeName"]) != node {
            return Err("node requested token bound to a pod scheduled on a different node".into());
        }
        let audience = match object::list_at(request, &["spec", "audiences"]) {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return Err("node may only request 0 or 1 audiences".into()),
        };
        match self.names_audience(&pod, audience) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) => return Err(format!("error validating audience {audience:?}: {e}").into()),
        }
        let asked = RequestInfo {
            is_resource: true,
            verb: "request-serviceaccounts-token-audience".to_owned(),
            version: "v1".to_owned(),
            namespace: a.namespace.to_owned(),
            resource: audience.to_owned(),
            name: a.name.to_owned(),
            ..RequestInfo::default()
        };
        let asked = authorization::Attributes { user: a.user, request: &asked };
        if let Decision::Allow { .. } = self.authorizer.authorize(&asked).await {
            return Ok(());
        }
        Err(format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            a.user.name
        )
        .into())
    }

    /// Whether a volume of a pod needs tokens for an audience, itself or by its CSI driver.
    fn names_audience(&self, pod: &Value, audience: &str) -> Result<bool, String> {
        let mut errors = Vec::new();
        for volume in pods::volumes(pod) {
            let projected = object::list_at(volume, &["projected", "sources"]).iter().any(|s| {
                object::get(s, &["serviceAccountToken"])
                    .is_some_and(|t| object::str_at(t, &["audience"]) == audience)
            });
            if projected {
                return Ok(true);
            }
            match self.driver_names_audience(pod, volume, audience) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(e) => errors.push(e.message()),
            }
        }
        if errors.is_empty() { Ok(false) } else { Err(authorization::aggregate(&errors)) }
    }

    fn driver_names_audience(
        &self,
        pod: &Value,
        volume: &Value,
        audience: &str,
    ) -> Result<bool, ApiError> {
        let find = |resource: &str, namespace: &str, name: &str| {
            self.find(resource, namespace, name).map_err(|refusal| match refusal {
                Refusal::Error(e) => e,
                Refusal::Reason(reason) => ApiError::Internal(reason),
            })
        };
        let claim = if object::get(volume, &["ephemeral", "volumeClaimTemplate"]).is_some() {
            format!("{}-{}", object::name(pod), object::str_at(volume, &["name"]))
        } else {
            object::str_at(volume, &["persistentVolumeClaim", "claimName"]).to_owned()
        };
        let driver = if claim.is_empty() {
            object::str_at(volume, &["csi", "driver"]).to_owned()
        } else {
            let claim = find("persistentvolumeclaims", object::namespace(pod), &claim)?;
            let bound = object::str_at(&claim, &["spec", "volumeName"]);
            let bound = find("persistentvolumes", "", bound)?;
            object::str_at(&bound, &["spec", "csi", "driver"]).to_owned()
        };
        if driver.is_empty() {
            return Ok(false);
        }
        let driver = find("csidrivers", "", &driver)?;
        let requests = object::list_at(&driver, &["spec", "tokenRequests"]);
        Ok(requests.iter().any(|r| object::str_at(r, &["audience"]) == audience))
    }
}

fn pod_status(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    let (Operation::Update, Some(old), Some(new)) = (a.operation, a.old, object) else {
        return Err(format!("unexpected operation {:?}", a.operation.upper()).into());
    };
    if object::str_at(old, &["spec", "nodeName"]) != node {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )
        .into());
    }
    let labels =
        |o: &Value| object::map_at(o, &["metadata", "labels"]).cloned().unwrap_or_default();
    if labels(old) != labels(new) {
        return Err(format!("node {node:?} cannot update labels through pod status").into());
    }
    let claims = |o: &Value| -> Vec<(String, Option<Value>)> {
        let all = object::list_at(o, &["status", "resourceClaimStatuses"]).iter();
        all.map(|s| {
            let name = object::get(s, &["resourceClaimName"]).cloned();
            (object::str_at(s, &["name"]).to_owned(), name)
        })
        .collect()
    };
    if claims(old) != claims(new) {
        return Err(format!("node {node:?} cannot update resource claim statues").into());
    }
    let extended = |o: &Value| object::get(o, &["status", "extendedResourceClaimStatus"]).cloned();
    if extended(old) != extended(new) {
        return Err(format!("node {node:?} cannot update extended resource claim status").into());
    }
    Ok(())
}

fn own_node(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    let asked = match (a.operation, a.name, object) {
        (Operation::Create, "", Some(new)) => object::name(new),
        (_, name, _) => name,
    };
    if asked != node {
        return Err(format!("node {node:?} is not allowed to modify node {asked:?}").into());
    }
    let Some(new) = object else { return Ok(()) };
    let source = |o: &Value| object::get(o, &["spec", "configSource"]).cloned();
    match (a.operation, a.old) {
        (Operation::Create, _) => {
            if source(new).is_some() {
                return Err(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                )
                .into());
            }
            let labels = forbidden_labels(new, None);
            if !labels.is_empty() {
                return Err(format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    labels.join(", ")
                )
                .into());
            }
        }
        (Operation::Update, Some(old)) => {
            if source(new).is_some() && source(new) != source(old) {
                return Err(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                )
                .into());
            }
            let list = |o: &Value, path: &[&str]| object::list_at(o, path).to_vec();
            if list(new, &["spec", "taints"]) != list(old, &["spec", "taints"]) {
                return Err(format!("node {node:?} is not allowed to modify taints").into());
            }
            let owners: &[&str] = &["metadata", "ownerReferences"];
            if list(new, owners) != list(old, owners) {
                return Err(
                    format!("node {node:?} is not allowed to modify ownerReferences").into()
                );
            }
            let labels = forbidden_labels(new, Some(old));
            if !labels.is_empty() {
                return Err(
                    format!("is not allowed to modify labels: {}", labels.join(", ")).into()
                );
            }
        }
        _ => {}
    }
    Ok(())
}

fn claim_status(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    let (Operation::Update, Some(old), Some(new)) = (a.operation, a.old, object) else {
        return Err(format!("unexpected operation {:?}", a.operation.upper()).into());
    };
    // What a kubelet may report, and what any write changes.
    const OWN: [&[&str]; 6] = [
        &["metadata", "resourceVersion"],
        &["metadata", "managedFields"],
        &["status", "capacity"],
        &["status", "conditions"],
        &["status", "allocatedResourceStatuses"],
        &["status", "allocatedResources"],
    ];
    let strip = |o: &Value| {
        let mut o = o.clone();
        for path in OWN {
            object::remove(&mut o, path);
        }
        if object::map_at(&o, &["status"]).is_some_and(serde_json::Map::is_empty) {
            object::remove(&mut o, &["status"]);
        }
        o
    };
    let (old, new) = (strip(old), strip(new));
    if old == new {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.quantity and status.conditions: {}",
        difference(&old, &new)
    )
    .into())
}

/// The fields on which two objects differ.
fn difference(old: &Value, new: &Value) -> String {
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed: Vec<&str> =
        keys.into_iter().filter(|k| old.get(*k) != new.get(*k)).map(String::as_str).collect();
    changed.join(", ")
}

fn lease(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    if a.namespace != LEASE_NAMESPACE {
        return Err(
            format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace").into()
        );
    }
    if written_name(a, object) != node {
        return Err("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn csi_node(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    if written_name(a, object) != node {
        return Err("can only access CSINode with the same name as the requesting node".into());
    }
    Ok(())
}

fn written_name<'a>(a: &'a Attributes<'_>, object: Option<&'a Value>) -> &'a str {
    match (a.operation, object) {
        (Operation::Create, Some(object)) => object::name(object),
        _ => a.name,
    }
}

fn slice(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    let (slice, verb) = match a.operation {
        Operation::Create => (object, "create"),
        Operation::Delete => (a.old, "delete"),
        _ => return Ok(()),
    };
    if slice.is_some_and(|s| object::str_at(s, &["spec", "nodeName"]) == node) {
        return Ok(());
    }
    Err(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node")
        .into())
}

fn signing_request(node: &str, a: &Attributes<'_>, object: Option<&Value>) -> Result<(), Refusal> {
    let Some(request) = object.filter(|_| a.operation == Operation::Create) else { return Ok(()) };
    let signer = object::str_at(request, &["spec", "signerName"]);
    if !matches!(
        signer,
        "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet"
    ) {
        return Ok(());
    }
    let name = common_name(object::str_at(request, &["spec", "request"]))
        .map_err(|e| format!("unable to parse csr: {e}"))?;
    if name != format!("system:node:{node}") {
        return Err(format!("can only create a node CSR with CN=system:node:{node}").into());
    }
    Ok(())
}

/// The common name of a base64-encoded PEM certificate request.
fn common_name(encoded: &str) -> Result<String, String> {
    let pem = STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let not_pem = "PEM block type must be CERTIFICATE REQUEST";
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| not_pem)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(not_pem.to_owned());
    }
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().last().and_then(|cn| cn.as_str().ok());
    Ok(name.unwrap_or_default().to_owned())
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(node) = node_of(a.user) else { return Ok(()) };
        let object = object.as_deref();
        if node.is_empty() {
            let reason = format!("could not determine node from user {:?}", a.user.name);
            return Err(forbidden(a, object, reason));
        }
        self.check(node, a, object).await.map_err(|refusal| match refusal {
            Refusal::Reason(reason) => forbidden(a, object, reason),
            Refusal::Error(error) => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::{Memory, user};
    use crate::authorization::{AlwaysAllow, AlwaysDeny};
    use serde_json::json;

    fn world() -> Arc<Memory> {
        let pod = |name: &str, node: &str, volumes: Value| {
            (
                "",
                "pods",
                json!({"metadata": {"name": name, "namespace": "a", "uid": name},
                "spec": {"nodeName": node, "volumes": volumes}}),
            )
        };
        let volumes = json!([
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "pvc"}},
        ]);
        Memory::with(&[
            pod("mine", "n1", volumes),
            pod("other", "n2", json!([])),
            ("", "nodes", json!({"metadata": {"name": "n1", "uid": "u1"}})),
            (
                "",
                "persistentvolumeclaims",
                json!({"metadata": {"name": "pvc", "namespace": "a"},
                "spec": {"volumeName": "pv"}}),
            ),
            (
                "",
                "persistentvolumes",
                json!({"metadata": {"name": "pv"},
                "spec": {"csi": {"driver": "d"}}}),
            ),
            (
                "storage.k8s.io",
                "csidrivers",
                json!({"metadata": {"name": "d"},
                "spec": {"tokenRequests": [{"audience": "csi"}]}}),
            ),
        ])
    }

    async fn refusal(write: &Write<'_>) -> String {
        let plugin = NodeRestriction::new(world(), Arc::new(AlwaysDeny));
        write.run(&plugin).await.err().unwrap_or_default()
    }

    fn node() -> crate::authentication::User {
        user("system:node:n1", &["system:nodes"])
    }

    fn mirror(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "annotations": {pods::MIRROR: "x"}, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}
            ]},
            "spec": {"nodeName": "n1", "volumes": [{"name": "h", "hostPath": {}}]},
        });
        change(&mut pod);
        pod
    }

    #[tokio::test]
    async fn mirror_pods() {
        let owner = |p: &mut Value, field: &str, value: Value| {
            p["metadata"]["ownerReferences"][0][field] = value;
        };
        let cases = [
            (mirror(|_| {}), ""),
            (
                mirror(|p| p["metadata"]["annotations"] = json!({})),
                r#"pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods"#,
            ),
            (
                mirror(|p| p["spec"]["nodeName"] = "n2".into()),
                r#"node "n1" can only create pods with spec.nodeName set to itself"#,
            ),
            (
                mirror(|p| p["metadata"]["ownerReferences"] = json!([])),
                r#"node "n1" can only create pods with an owner reference set to itself"#,
            ),
            (
                mirror(|p| p["metadata"]["ownerReferences"] = json!([{}, {}])),
                r#"node "n1" can only create pods with a single owner reference set to itself"#,
            ),
            (
                mirror(|p| owner(p, "kind", "Pod".into())),
                r#"node "n1" can only create pods with an owner reference set to itself"#,
            ),
            (
                mirror(|p| owner(p, "controller", false.into())),
                r#"node "n1" can only create pods with a controller owner reference set to itself"#,
            ),
            (
                mirror(|p| owner(p, "blockOwnerDeletion", true.into())),
                r#"node "n1" must not set blockOwnerDeletion on an owner reference"#,
            ),
            (mirror(|p| owner(p, "uid", "u2".into())), "node n1 UID mismatch: expected u2 got u1"),
            (
                mirror(|p| p["spec"]["serviceAccountName"] = "sa".into()),
                r#"node "n1" can not create pods that reference serviceaccounts"#,
            ),
            (
                mirror(|p| {
                    p["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}])
                }),
                r#"node "n1" can not create pods that reference secrets"#,
            ),
            (
                mirror(|p| {
                    p["spec"]["volumes"] =
                        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}])
                }),
                r#"node "n1" can not create pods that reference persistentvolumeclaims"#,
            ),
        ];
        for (object, want) in cases {
            let write = Write { user: node(), object: object.clone(), ..Write::default() };
            let want = match want {
                "" => String::new(),
                reason => format!("pods \"p\" is forbidden: {reason}"),
            };
            assert_eq!(refusal(&write).await, want, "{object}");
        }
    }

    #[tokio::test]
    async fn nodes_change_themselves_alone() {
        let labelled = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}});
        // old, new, message
        let cases = [
            (
                None,
                labelled(
                    json!({"kubernetes.io/os": "linux", "mine": "1", "node.kubernetes.io/x": "y"}),
                ),
                "",
            ),
            (
                None,
                json!({"metadata": {"name": "n2"}}),
                r#"nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2""#,
            ),
            (
                None,
                labelled(json!({"node-restriction.kubernetes.io/x": "1", "foo.k8s.io/y": "2"})),
                r#"nodes "n1" is forbidden: node "n1" is not allowed to set the following labels: foo.k8s.io/y, node-restriction.kubernetes.io/x"#,
            ),
            (
                Some(labelled(json!({"node-role.kubernetes.io/x": ""}))),
                labelled(json!({})),
                r#"nodes "n1" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/x"#,
            ),
            (
                Some(labelled(json!({}))),
                json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "k"}]}}),
                r#"nodes "n1" is forbidden: node "n1" is not allowed to modify taints"#,
            ),
            (
                Some(labelled(json!({}))),
                json!({"metadata": {"name": "n1", "ownerReferences": [{"uid": "x"}]}}),
                r#"nodes "n1" is forbidden: node "n1" is not allowed to modify ownerReferences"#,
            ),
        ];
        for (old, object, want) in cases {
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let write = Write {
                operation,
                resource: "nodes",
                kind: "Node",
                namespace: "",
                user: node(),
                object: object.clone(),
                old,
                ..Write::default()
            };
            assert_eq!(refusal(&write).await, want, "{object}");
        }
    }

    #[tokio::test]
    async fn other_writes() {
        use Operation::{Create, Delete, Update};
        let named = |name: &str| json!({"metadata": {"name": name}});
        let slice = |node: &str| json!({"metadata": {"name": "s"}, "spec": {"nodeName": node}});
        let status = |labels: Value| json!({"metadata": {"name": "mine", "labels": labels}, "spec": {"nodeName": "n1"}});
        let claim = |capacity: &str, phase: &str| json!({"metadata": {"name": "c"}, "status": {"capacity": capacity, "phase": phase}});
        let lease = "coordination.k8s.io";
        // operation, group, resource, namespace, name, object, old, the end of the message
        let cases = [
            (Delete, "", "pods", "a", "mine", Value::Null, None, ""),
            (
                Delete,
                "",
                "pods",
                "a",
                "other",
                Value::Null,
                None,
                r#"node "n1" can only delete pods with spec.nodeName set to itself"#,
            ),
            (Delete, "", "pods", "a", "none", Value::Null, None, r#"pods "none" not found"#),
            (
                Update,
                "",
                "pods",
                "a",
                "mine",
                named("mine"),
                Some(named("mine")),
                r#"unexpected operation "UPDATE", node "n1" can only create and delete mirror pods"#,
            ),
            (
                Create,
                "",
                "pods/exec",
                "a",
                "mine",
                named("x"),
                None,
                r#"unexpected pod subresource "exec", only 'status' and 'eviction' are allowed"#,
            ),
            (Create, "", "pods/eviction", "a", "mine", named("mine"), None, ""),
            (
                Create,
                "",
                "pods/eviction",
                "a",
                "other",
                named("other"),
                None,
                "node n1 can only evict pods with spec.nodeName set to itself",
            ),
            (
                Update,
                "",
                "pods/status",
                "a",
                "mine",
                status(json!({})),
                Some(status(json!({}))),
                "",
            ),
            (
                Update,
                "",
                "pods/status",
                "a",
                "mine",
                status(json!({"a": "b"})),
                Some(status(json!({}))),
                r#"node "n1" cannot update labels through pod status"#,
            ),
            (
                Update,
                "",
                "persistentvolumeclaims/status",
                "a",
                "c",
                claim("2", "Bound"),
                Some(claim("1", "Bound")),
                "",
            ),
            (
                Update,
                "",
                "persistentvolumeclaims/status",
                "a",
                "c",
                claim("1", "Lost"),
                Some(claim("1", "Bound")),
                r#"node "n1" is not allowed to update fields other than status.quantity and status.conditions: status"#,
            ),
            (
                Update,
                "",
                "persistentvolumeclaims",
                "a",
                "c",
                claim("1", ""),
                Some(claim("1", "")),
                "may only update PVC status",
            ),
            (Create, lease, "leases", LEASE_NAMESPACE, "", named("n1"), None, ""),
            (
                Create,
                lease,
                "leases",
                LEASE_NAMESPACE,
                "",
                named("n2"),
                None,
                "can only access node lease with the same name as the requesting node",
            ),
            (
                Create,
                lease,
                "leases",
                "a",
                "",
                named("n1"),
                None,
                r#"can only access leases in the "kube-node-lease" system namespace"#,
            ),
            (
                Create,
                "storage.k8s.io",
                "csinodes",
                "",
                "",
                named("n2"),
                None,
                "can only access CSINode with the same name as the requesting node",
            ),
            (Create, "resource.k8s.io", "resourceslices", "", "", slice("n1"), None, ""),
            (
                Create,
                "resource.k8s.io",
                "resourceslices",
                "",
                "",
                slice("n2"),
                None,
                "can only create ResourceSlice with the same NodeName as the requesting node",
            ),
            (
                Delete,
                "resource.k8s.io",
                "resourceslices",
                "",
                "s",
                Value::Null,
                Some(slice("n2")),
                "can only delete ResourceSlice with the same NodeName as the requesting node",
            ),
            (Create, "", "configmaps", "a", "", named("x"), None, ""),
        ];
        for (operation, group, resource, namespace, name, object, old, want) in cases {
            let write = Write {
                operation,
                group,
                resource,
                kind: "K",
                namespace,
                name,
                user: node(),
                object,
                old,
            };
            let got = refusal(&write).await;
            assert!(
                got.is_empty() == want.is_empty() && got.ends_with(want),
                "{resource} {name}: {got}"
            );
            let others = Write { user: user("bob", &[]), ..write };
            assert_eq!(refusal(&others).await, "");
        }
    }

    #[tokio::test]
    async fn tokens_are_for_pods_on_the_node() {
        let bound = |kind: &str, name: &str, uid: &str, audiences: &[&str]| {
            json!({"spec": {"audiences": audiences, "boundObjectRef":
                {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}})
        };
        let cases = [
            (bound("Pod", "mine", "mine", &["vault"]), ""),
            (bound("Pod", "mine", "mine", &["csi"]), ""),
            (
                bound("Pod", "mine", "mine", &["x"]),
                r#"audience "x" not found in pod spec volume, system:node:n1 is not authorized to request tokens for this audience"#,
            ),
            (bound("Pod", "mine", "mine", &["a", "b"]), "node may only request 0 or 1 audiences"),
            (bound("Secret", "mine", "mine", &[]), "node requested token not bound to a pod"),
            (
                bound("Pod", "mine", "", &[]),
                "node requested token with a pod binding without a uid",
            ),
            (
                bound("Pod", "other", "other", &[]),
                "node requested token bound to a pod scheduled on a different node",
            ),
            (
                bound("Pod", "mine", "x", &[]),
                "the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated",
            ),
        ];
        for (object, want) in cases {
            let write = Write {
                resource: "serviceaccounts/token",
                kind: "TokenRequest",
                name: "sa",
                user: node(),
                object,
                ..Write::default()
            };
            let want = match want {
                "" => String::new(),
                reason => format!("serviceaccounts \"sa\" is forbidden: {reason}"),
            };
            assert_eq!(refusal(&write).await, want);
            if want.contains("not authorized") {
                let plugin = NodeRestriction::new(world(), Arc::new(AlwaysAllow));
                assert!(write.run(&plugin).await.is_ok());
            }
        }
    }

    #[tokio::test]
    async fn certificates_name_the_node() {
        let request = |name: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().expect("a key");
            let pem = params.serialize_request(&key).and_then(|r| r.pem()).expect("a request");
            json!({"metadata": {"name": "csr"}, "spec": {
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "request": STANDARD.encode(pem),
            }})
        };
        let write = |object: Value| Write {
            group: "certificates.k8s.io",
            resource: "certificatesigningrequests",
            kind: "CertificateSigningRequest",
            namespace: "",
            user: node(),
            object,
            ..Write::default()
        };
        assert_eq!(refusal(&write(request("system:node:n1"))).await, "");
        let other = refusal(&write(request("system:node:n2"))).await;
        assert!(other.ends_with("can only create a node CSR with CN=system:node:n1"), "{other}");
        let mut garbage = request("x");
        garbage["spec"]["request"] = "AAAA".into();
        assert!(refusal(&write(garbage)).await.contains("unable to parse csr: "));
    }
}
