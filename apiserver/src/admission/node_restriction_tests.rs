use super::super::testing::Write;
use super::*;
use crate::authorization::testing::{Memory, user};
use crate::authorization::{AlwaysAllow, AlwaysDeny};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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
        (Delete, "", "pods", "a", "none", Value::Null, None, r#"pod "none" not found"#),
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
        (Update, "", "pods/status", "a", "mine", status(json!({})), Some(status(json!({}))), ""),
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
        (bound("Pod", "mine", "", &[]), "node requested token with a pod binding without a uid"),
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
