//! What a kubelet may do (upstream: `auth/authorizer/node`).
//!
//! A node reads the objects that its pods refer to. Instead of keeping a graph of everything, a
//! decision looks at the pods of the object's namespace that are bound to the node.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::selector::FieldSelector;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::{Attributes, Authorizer, Decision, Grants, Rule, bootstrap};
use crate::admission::pods;
use crate::authentication::User;
use crate::reader::Reader;
use crate::request::RequestInfo;

const NODES_GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node that a user is: `Some("")` for one in the group without a node's name.
pub fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX)?;
    user.groups.iter().any(|g| g == NODES_GROUP).then_some(name)
}

/// What is sought on the way from an object to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vertex {
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ResourceClaim,
    Attachment,
    ServiceAccount,
    Slice,
    Pod,
}

/// The authorizer of mode `Node`.
pub struct NodeAuthorizer {
    reader: Arc<dyn Reader>,
    rules: Vec<Rule>,
    pods: GroupResource,
    volumes: GroupResource,
    attachments: GroupResource,
    slices: GroupResource,
}

impl NodeAuthorizer {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self {
            reader,
            rules: bootstrap::cluster_role_rules("system:node"),
            pods: GroupResource::new("", "pods"),
            volumes: GroupResource::new("", "persistentvolumes"),
            attachments: GroupResource::new("storage.k8s.io", "volumeattachments"),
            slices: GroupResource::new("resource.k8s.io", "resourceslices"),
        }
    }

    fn decide(&self, node: &str, attributes: &Attributes<'_>) -> Decision {
        let request = attributes.request;
        if request.is_resource {
            match (request.group.as_str(), request.resource.as_str()) {
                ("", "secrets") => return self.read(node, Vertex::Secret, request),
                ("", "configmaps") => return self.read(node, Vertex::ConfigMap, request),
                ("", "persistentvolumeclaims") if request.subresource == "status" => {
                    return match request.verb.as_str() {
                        "update" | "patch" => self.related(node, Vertex::Claim, request),
                        _ => Decision::no_opinion("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims") => return self.get(node, Vertex::Claim, request),
                ("", "persistentvolumes") => return self.get(node, Vertex::Volume, request),
                ("resource.k8s.io", "resourceclaims") => {
                    return self.get(node, Vertex::ResourceClaim, request);
                }
                ("storage.k8s.io", "volumeattachments") => {
                    return self.get(node, Vertex::Attachment, request);
                }
                ("", "serviceaccounts") => return self.service_account(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("storage.k8s.io", "csinodes") => return csi_node(node, request),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, request),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return self.pod(node, request),
                ("certificates.k8s.io", "podcertificaterequests") => {
                    return Decision::no_opinion("");
                }
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(attributes)) {
            Decision::allow()
        } else {
            Decision::no_opinion("")
        }
    }

    fn get(&self, node: &str, vertex: Vertex, request: &RequestInfo) -> Decision {
        if request.verb != "get" {
            return Decision::no_opinion("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot get subresource");
        }
        self.related(node, vertex, request)
    }

    fn read(&self, node: &str, vertex: Vertex, request: &RequestInfo) -> Decision {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return Decision::no_opinion("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return Decision::no_opinion("can only read namespaced object of this type");
        }
        self.related(node, vertex, request)
    }

    fn service_account(&self, node: &str, request: &RequestInfo) -> Decision {
        if request.verb == "get" && request.subresource.is_empty() {
            return self.read(node, Vertex::ServiceAccount, request);
        }
        if request.verb != "create" || request.name.is_empty() {
            return Decision::no_opinion("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return Decision::no_opinion("can only create token subresource of serviceaccount");
        }
        self.related(node, Vertex::ServiceAccount, request)
    }

    fn slice(&self, node: &str, request: &RequestInfo) -> Decision {
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot authorize ResourceSlice subresources");
        }
        match request.verb.as_str() {
            "create" => Decision::allow(),
            "get" | "update" | "patch" | "delete" => self.related(node, Vertex::Slice, request),
            "watch" | "list" | "deletecollection" => {
                if selects(request, "spec.nodeName", node) {
                    return Decision::allow();
                }
                Decision::no_opinion(
                    "can only list/watch/deletecollection resourceslices with nodeName field selector",
                )
            }
            _ => Decision::no_opinion(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, request: &RequestInfo) -> Decision {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.related(node, Vertex::Pod, request),
            ("", "list" | "watch") => {
                if selects(request, "spec.nodeName", node) {
                    return Decision::allow();
                }
                if !request.name.is_empty() {
                    return self.related(node, Vertex::Pod, request);
                }
                Decision::no_opinion("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::allow()
            }
            _ => Decision::no_opinion(""),
        }
    }

    fn related(&self, node: &str, vertex: Vertex, request: &RequestInfo) -> Decision {
        if request.name.is_empty() {
            return Decision::no_opinion("No Object name found");
        }
        if self.has_path(node, vertex, &request.namespace, &request.name) {
            return Decision::allow();
        }
        Decision::no_opinion(format!("no relationship found between node '{node}' and this object"))
    }

    /// Whether an object belongs to a node.
    fn has_path(&self, node: &str, vertex: Vertex, namespace: &str, name: &str) -> bool {
        let on_node = |resource: &GroupResource, namespace: &str| {
            let found = self.reader.get(resource, namespace, name);
            found.is_some_and(|o| object::str_at(&o, &["spec", "nodeName"]) == node)
        };
        match vertex {
            Vertex::Pod => on_node(&self.pods, namespace),
            Vertex::Attachment => on_node(&self.attachments, ""),
            Vertex::Slice => on_node(&self.slices, ""),
            Vertex::Volume => {
                let volume = self.reader.get(&self.volumes, "", name);
                volume.is_some_and(|v| self.volume_used(node, &v))
            }
            Vertex::Secret => {
                self.pod_refers(node, namespace, |pod| pods::secrets(pod).any(|s| s == name))
                    || self.volume_secret(node, namespace, name)
            }
            Vertex::ConfigMap => {
                self.pod_refers(node, namespace, |pod| pods::config_maps(pod).any(|c| c == name))
            }
            Vertex::Claim => {
                self.pod_refers(node, namespace, |pod| pods::claims(pod).any(|c| c == name))
            }
            Vertex::ServiceAccount => self.pod_refers(node, namespace, |pod| {
                object::str_at(pod, &["spec", "serviceAccountName"]) == name
            }),
            Vertex::ResourceClaim => self
                .pod_refers(node, namespace, |pod| pods::resource_claims(pod).any(|c| c == name)),
        }
    }

    fn pod_refers(&self, node: &str, namespace: &str, refers: impl Fn(&Value) -> bool) -> bool {
        // Mirror pods grant nothing: a node makes them itself.
        let on_node = self.reader.list_by(&self.pods, namespace, "spec.nodeName", node);
        on_node.iter().any(|pod| !pods::is_mirror(pod) && refers(pod))
    }

    fn volume_used(&self, node: &str, volume: &Value) -> bool {
        let namespace = object::str_at(volume, &["spec", "claimRef", "namespace"]);
        let claim = object::str_at(volume, &["spec", "claimRef", "name"]);
        !claim.is_empty() && self.has_path(node, Vertex::Claim, namespace, claim)
    }

    /// Whether a volume that the node uses names a secret which the kubelet reads.
    fn volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.reader.list(&self.volumes, "").iter().any(|volume| {
            pods::volume_secrets(volume).any(|s| s == (namespace, name))
                && self.volume_used(node, volume)
        })
    }
}

fn selects(request: &RequestInfo, field: &str, value: &str) -> bool {
    if request.field_selector.is_empty() {
        return false;
    }
    let selector = FieldSelector::parse(&request.field_selector).unwrap_or_default();
    selector.terms.iter().any(|t| t.field == field && t.value == value && !t.negated)
}

fn lease(node: &str, request: &RequestInfo) -> Decision {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return Decision::no_opinion("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != LEASE_NAMESPACE {
        return Decision::no_opinion(format!(
            "can only access leases in the {LEASE_NAMESPACE:?} system namespace"
        ));
    }
    if request.verb != "create" && request.name != node {
        return Decision::no_opinion(
            "can only access node lease with the same name as the requesting node",
        );
    }
    Decision::allow()
}

fn csi_node(node: &str, request: &RequestInfo) -> Decision {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return Decision::no_opinion("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return Decision::no_opinion("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return Decision::no_opinion(
            "can only access CSINode with the same name as the requesting node",
        );
    }
    Decision::allow()
}

fn own_node(node: &str, request: &RequestInfo) -> Decision {
    match (request.subresource.as_str(), request.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow(),
        ("", "get" | "list" | "watch") => match request.name.as_str() {
            name if name == node => Decision::allow(),
            "" => Decision::no_opinion(format!(
                "node '{node}' cannot read all nodes, only its own Node object"
            )),
            name => Decision::no_opinion(format!(
                "node '{node}' cannot read '{name}', only its own Node object"
            )),
        },
        _ => Decision::no_opinion(""),
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        match node_of(attributes.user) {
            None => Decision::no_opinion(""),
            Some("") => {
                Decision::no_opinion(format!("unknown node for user {:?}", attributes.user.name))
            }
            Some(node) => self.decide(node, attributes),
        }
    }

    fn grants(&self, user: &User, _namespace: &str) -> Grants {
        match node_of(user) {
            None => Grants::default(),
            Some(_) => Grants {
                rules: Vec::new(),
                incomplete: true,
                errors: vec!["node authorizer does not support user rule resolution".to_owned()],
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::testing::{Memory, user};
    use serde_json::json;

    fn world() -> Arc<Memory> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {
                "nodeName": "n1", "serviceAccountName": "sa",
                "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "cm"}}]}],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "pvc"}},
                    {"name": "tmp", "ephemeral": {"volumeClaimTemplate": {}}},
                    {"name": "s", "projected": {"sources": [{"secret": {"name": "proj"}}]}},
                ],
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}],
            },
            "status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "p-gpu-x"}]},
        });
        let mut mirror = pod.clone();
        mirror["metadata"] = json!({"name": "m", "namespace": "b",
            "annotations": {"kubernetes.io/config.mirror": "x"}});
        Memory::with(&[
            ("", "pods", pod),
            ("", "pods", mirror),
            (
                "",
                "persistentvolumes",
                json!({
                    "metadata": {"name": "pv"},
                    "spec": {"claimRef": {"namespace": "a", "name": "pvc"}, "csi": {
                        "nodePublishSecretRef": {"namespace": "a", "name": "csi"},
                        "controllerExpandSecretRef": {"namespace": "a", "name": "hidden"},
                    }},
                }),
            ),
            (
                "storage.k8s.io",
                "volumeattachments",
                json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
            ),
            (
                "resource.k8s.io",
                "resourceslices",
                json!({"metadata": {"name": "slice"}, "spec": {"nodeName": "n1"}}),
            ),
        ])
    }

    #[tokio::test]
    async fn nodes_reach_what_their_pods_use() {
        let authorizer = NodeAuthorizer::new(world());
        let none = "no relationship found between node 'n1' and this object";
        // verb, group, resource[/sub], namespace, name, reason ("+": allowed)
        let cases = [
            ("get", "", "secrets", "a", "pull", "+"),
            ("get", "", "secrets", "a", "proj", "+"),
            ("get", "", "secrets", "a", "csi", "+"),
            ("get", "", "secrets", "a", "hidden", none),
            ("get", "", "secrets", "a", "other", none),
            ("get", "", "secrets", "b", "pull", none),
            ("list", "", "secrets", "a", "", "No Object name found"),
            ("list", "", "secrets", "", "", "can only read namespaced object of this type"),
            ("delete", "", "secrets", "a", "pull", "can only read resources of this type"),
            ("watch", "", "configmaps", "a", "cm", "+"),
            ("get", "", "persistentvolumeclaims", "a", "pvc", "+"),
            ("get", "", "persistentvolumeclaims", "a", "p-tmp", "+"),
            ("patch", "", "persistentvolumeclaims/status", "a", "pvc", "+"),
            (
                "list",
                "",
                "persistentvolumeclaims",
                "a",
                "pvc",
                "can only get individual resources of this type",
            ),
            ("get", "", "persistentvolumes", "", "pv", "+"),
            ("get", "", "serviceaccounts", "a", "sa", "+"),
            ("create", "", "serviceaccounts/token", "a", "sa", "+"),
            ("create", "", "serviceaccounts/token", "a", "sb", none),
            (
                "create",
                "",
                "serviceaccounts",
                "a",
                "sa",
                "can only create token subresource of serviceaccount",
            ),
            ("get", "resource.k8s.io", "resourceclaims", "a", "p-gpu-x", "+"),
            ("get", "storage.k8s.io", "volumeattachments", "", "va", "+"),
            ("get", "resource.k8s.io", "resourceslices", "", "slice", "+"),
            ("create", "resource.k8s.io", "resourceslices", "", "", "+"),
            ("get", "coordination.k8s.io", "leases", LEASE_NAMESPACE, "n1", "+"),
            (
                "get",
                "coordination.k8s.io",
                "leases",
                LEASE_NAMESPACE,
                "n2",
                "can only access node lease with the same name as the requesting node",
            ),
            (
                "get",
                "coordination.k8s.io",
                "leases",
                "a",
                "n1",
                "can only access leases in the \"kube-node-lease\" system namespace",
            ),
            ("get", "storage.k8s.io", "csinodes", "", "n1", "+"),
            ("get", "", "nodes", "", "n1", "+"),
            ("get", "", "nodes", "", "n2", "node 'n1' cannot read 'n2', only its own Node object"),
            (
                "list",
                "",
                "nodes",
                "",
                "",
                "node 'n1' cannot read all nodes, only its own Node object",
            ),
            ("get", "", "pods", "a", "p", "+"),
            ("get", "", "pods", "a", "q", none),
            (
                "list",
                "",
                "pods",
                "",
                "",
                "can only list/watch pods with spec.nodeName field selector",
            ),
            ("create", "", "pods/eviction", "a", "p", "+"),
            ("create", "", "pods/exec", "a", "p", ""),
            ("list", "", "services", "", "", "+"),
            ("create", "", "events", "a", "", "+"),
            ("create", "", "services", "a", "", ""),
        ];
        let n1 = user("system:node:n1", &[NODES_GROUP]);
        for (verb, group, what, namespace, name, want) in cases {
            let (resource, sub) = what.split_once('/').unwrap_or((what, ""));
            let request = RequestInfo {
                is_resource: true,
                verb: verb.into(),
                group: group.into(),
                resource: resource.into(),
                subresource: sub.into(),
                namespace: namespace.into(),
                name: name.into(),
                ..RequestInfo::default()
            };
            let got = match authorizer.authorize(&Attributes { user: &n1, request: &request }).await
            {
                Decision::Allow { .. } => "+".to_owned(),
                Decision::Deny { reason } | Decision::NoOpinion { reason } => reason,
            };
            assert_eq!(got, want, "{verb} {what} {namespace}/{name}");
        }
    }

    #[tokio::test]
    async fn lists_must_select_the_node() {
        let authorizer = NodeAuthorizer::new(world());
        let n1 = user("system:node:n1", &[NODES_GROUP]);
        // group, resource, field selector, allowed
        let cases = [
            ("", "pods", "spec.nodeName=n1", true),
            ("", "pods", "status.phase!=Failed,spec.nodeName=n1", true),
            ("", "pods", "spec.nodeName=n2", false),
            ("", "pods", "spec.nodeName!=n1", false),
            ("resource.k8s.io", "resourceslices", "spec.nodeName=n1", true),
            ("resource.k8s.io", "resourceslices", "", false),
        ];
        for (group, resource, selector, want) in cases {
            let request = RequestInfo {
                is_resource: true,
                verb: "watch".into(),
                group: group.into(),
                resource: resource.into(),
                field_selector: selector.into(),
                ..RequestInfo::default()
            };
            let got = authorizer.authorize(&Attributes { user: &n1, request: &request }).await;
            assert_eq!(matches!(got, Decision::Allow { .. }), want, "{resource} {selector}");
        }
    }

    #[test]
    fn who_is_a_node() {
        assert_eq!(node_of(&user("system:node:n1", &[NODES_GROUP])), Some("n1"));
        assert_eq!(node_of(&user("system:node:n1", &[])), None);
        assert_eq!(node_of(&user("n1", &[NODES_GROUP])), None);
        assert_eq!(node_of(&user("system:node:", &[NODES_GROUP])), Some(""));
    }
}
