//! NodeRestriction: a kubelet writes only what is its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::{Attributes, Operation, Plugin, certificates, forbidden, pods};
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
        // Upstream's listers name what is missing in the singular.
        found.ok_or_else(|| {
            let one = resource.resource.strip_suffix('s').unwrap_or(&resource.resource);
            let resource = GroupResource::new(group, one);
            Refusal::Error(ApiError::NotFound { resource, name: name.to_owned() })
        })
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
    let name = certificates::subject(request)
        .map_err(|e| format!("unable to parse csr: {e}"))?
        .common_name;
    if name != format!("system:node:{node}") {
        return Err(format!("can only create a node CSR with CN=system:node:{node}").into());
    }
    Ok(())
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
#[path = "node_restriction_tests.rs"]
mod tests;
