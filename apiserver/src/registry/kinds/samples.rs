//! One small valid object for each row that stores, and each that only answers: for tests that
//! walk the registry.

use apimachinery::Value;
use serde_json::json;

/// Group, version and kind, and an object without namespace (the test chooses one).
pub type Sample = (&'static str, &'static str, &'static str, Value);

/// A certificate request, signed by a key that nobody has.
const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIS01ITUNBUUF3RVRFUE1BMEdBMVVFQXd3R2My\
    RnRjR3hsTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowRApBUWNEUWdBRUNiQkw1Nm84UXlzdDd5cVJRS0pGNGN3\
    Q2xpZ05nNE1xcDFSd25OMklEMVJxUGE4K1VJUWFiQitJCjBxcEFmYm5SdHpTYmwreFB2Z1cwd3VUNW40SmdQYUFB\
    TUFvR0NDcUdTTTQ5QkFNQ0EwY0FNRVFDSVFEWm1IdGcKK2x0MkozRkNvTkdlc3dUcUZDaFNXUXNXWWZ6a1owU29a\
    cEF2UGdJZllBYjNBTXZ6SjBLZVFjSWhucWdYS0d4QQpGbFVJbDN1YzlJbXpNM0Jqa0E9PQotLS0tLUVORCBDRVJU\
    SUZJQ0FURSBSRVFVRVNULS0tLS0K";

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "sample"}},
        "spec": {"containers": [{"name": "main", "image": "registry.example/sample:1"}]},
    })
}

fn workload(mut spec: Value) -> Value {
    spec["selector"] = json!({"matchLabels": {"app": "sample"}});
    spec["template"] = template();
    json!({"spec": spec})
}

/// Valid objects, at least one for each row.
pub fn samples() -> Vec<Sample> {
    let mut list: Vec<Sample> = core();
    list.extend(groups());
    list.extend(jobs());
    list.extend(storage());
    list.extend(others());
    list.extend(admission());
    list.push(definition());
    list.extend(reviews());
    for (group, version, kind, object) in &mut list {
        object["apiVersion"] = apimachinery::gvk::api_version(group, version).into();
        object["kind"] = (*kind).into();
        if object.get("metadata").is_none() && !kind.ends_with("Review") {
            object["metadata"] = json!({"name": "sample"});
        }
    }
    list
}

fn core() -> Vec<Sample> {
    let v1 = |kind, object| ("", "v1", kind, object);
    vec![
        v1("Namespace", json!({})),
        v1("Node", json!({})),
        v1("Pod", json!({"spec": template()["spec"]})),
        v1("PodTemplate", json!({"template": template()})),
        v1("Binding", json!({"target": {"kind": "Node", "name": "sample"}})),
        v1("ReplicationController", json!({"spec": {"replicas": 0, "template": template()}})),
        v1("Service", json!({"spec": {"ports": [{"port": 80}]}})),
        v1(
            "Endpoints",
            json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        ),
        v1("LimitRange", json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}})),
        v1("ResourceQuota", json!({"spec": {"hard": {"count/samples.example.com": "5"}}})),
        v1(
            "PersistentVolume",
            json!({"spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "hostPath": {"path": "/sample"},
            }}),
        ),
        v1(
            "PersistentVolumeClaim",
            json!({"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            }}),
        ),
        v1("ConfigMap", json!({"data": {"key": "value"}})),
        v1("Secret", json!({"data": {"key": "dmFsdWU="}})),
        v1("ServiceAccount", json!({})),
        v1(
            "Event",
            json!({
                "involvedObject": {"kind": "Namespace", "namespace": "default", "name": "default"},
                "reason": "Sampled", "message": "a sample", "type": "Normal",
                "metadata": {"name": "sample", "namespace": "default"},
            }),
        ),
    ]
}

fn groups() -> Vec<Sample> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    const NETWORKING: &str = "networking.k8s.io";
    let role = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    let binding = |kind: &str| {
        json!({
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": "sample"},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": "sample"}],
        })
    };
    vec![
        ("apps", "v1", "Deployment", workload(json!({"replicas": 1}))),
        ("apps", "v1", "ReplicaSet", workload(json!({"replicas": 1}))),
        ("apps", "v1", "StatefulSet", workload(json!({"serviceName": "sample"}))),
        ("apps", "v1", "DaemonSet", workload(json!({}))),
        ("apps", "v1", "ControllerRevision", json!({"revision": 1, "data": {"spec": {}}})),
        ("coordination.k8s.io", "v1", "Lease", json!({"spec": {"holderIdentity": "sample"}})),
        (
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            json!({
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}],
                "ports": [{"name": "http", "port": 80}],
            }),
        ),
        (
            "events.k8s.io",
            "v1",
            "Event",
            json!({
                "metadata": {"name": "sample-new", "namespace": "default"},
                "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Sampled",
                "action": "Sample", "reportingController": "example.com/sampler",
                "reportingInstance": "sampler-0", "note": "a sample",
                "regarding": {"kind": "Namespace", "namespace": "default", "name": "default"},
            }),
        ),
        (RBAC, "v1", "Role", role.clone()),
        (RBAC, "v1", "ClusterRole", role),
        (RBAC, "v1", "RoleBinding", binding("Role")),
        (RBAC, "v1", "ClusterRoleBinding", binding("ClusterRole")),
        (
            "policy",
            "v1",
            "PodDisruptionBudget",
            json!({
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "sample"}}}}),
        ),
        ("scheduling.k8s.io", "v1", "PriorityClass", json!({"value": 100})),
        ("node.k8s.io", "v1", "RuntimeClass", json!({"handler": "sample"})),
        (
            NETWORKING,
            "v1",
            "IPAddress",
            json!({
                "metadata": {"name": "10.250.0.1"},
                "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "sample"}},
            }),
        ),
        (
            NETWORKING,
            "v1",
            "Ingress",
            json!({"spec": {"defaultBackend": {"service":
                {"name": "sample", "port": {"number": 80}}}}}),
        ),
        (NETWORKING, "v1", "IngressClass", json!({"spec": {"controller": "example.com/ingress"}})),
        (NETWORKING, "v1", "NetworkPolicy", json!({"spec": {"podSelector": {}}})),
        (NETWORKING, "v1", "ServiceCIDR", json!({"spec": {"cidrs": ["10.250.0.0/24"]}})),
    ]
}

fn jobs() -> Vec<Sample> {
    let mut template = template();
    template["spec"]["restartPolicy"] = "Never".into();
    let job = json!({"template": template});
    vec![
        ("batch", "v1", "Job", json!({"spec": job})),
        (
            "batch",
            "v1",
            "CronJob",
            json!({"spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": job}}}),
        ),
    ]
}

fn storage() -> Vec<Sample> {
    let v1 = |kind, object| ("storage.k8s.io", "v1", kind, object);
    vec![
        v1("StorageClass", json!({"provisioner": "example.com/sample"})),
        v1(
            "VolumeAttachment",
            json!({"spec": {"attacher": "driver.example.com", "nodeName": "sample",
                "source": {"persistentVolumeName": "sample"}}}),
        ),
        v1(
            "CSINode",
            json!({"spec": {"drivers": [{"name": "driver.example.com", "nodeID": "sample",
                "topologyKeys": ["example.com/zone"]}]}}),
        ),
        v1("CSIDriver", json!({"spec": {"attachRequired": false}})),
        v1("CSIStorageCapacity", json!({"storageClassName": "sample", "capacity": "1Gi"})),
        v1(
            "VolumeAttributesClass",
            json!({"driverName": "driver.example.com", "parameters": {"iops": "100"}}),
        ),
    ]
}

fn others() -> Vec<Sample> {
    const FLOW: &str = "flowcontrol.apiserver.k8s.io";
    const DEVICES: &str = "resource.k8s.io";
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "sample"});
    let claim = json!({"devices": {"requests": [
        {"name": "one", "exactly": {"deviceClassName": "sample"}}]}});
    let everything =
        json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true});
    vec![
        (
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": target}}),
        ),
        (
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            json!({
                "metadata": {"name": "sample-v1"},
                "spec": {"maxReplicas": 3, "scaleTargetRef": target},
            }),
        ),
        (
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            json!({"spec": {
                "request": REQUEST, "signerName": "example.com/sample", "usages": ["client auth"],
            }}),
        ),
        (
            FLOW,
            "v1",
            "FlowSchema",
            json!({"spec": {
                "priorityLevelConfiguration": {"name": "sample"},
                "rules": [{
                    "subjects": [{"kind": "User", "user": {"name": "sample"}}],
                    "resourceRules": [everything],
                }],
            }}),
        ),
        (
            FLOW,
            "v1",
            "PriorityLevelConfiguration",
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}}),
        ),
        (
            DEVICES,
            "v1",
            "DeviceClass",
            json!({"spec": {"selectors": [{"cel": {"expression": "true"}}]}}),
        ),
        (DEVICES, "v1", "ResourceClaim", json!({"spec": claim})),
        (DEVICES, "v1", "ResourceClaimTemplate", json!({"spec": {"spec": claim}})),
        (
            DEVICES,
            "v1",
            "ResourceSlice",
            json!({"spec": {
                "driver": "driver.example.com", "nodeName": "sample",
                "pool": {"name": "sample", "resourceSliceCount": 1},
                "devices": [{"name": "one", "attributes": {"model": {"string": "sample"}}}],
            }}),
        ),
    ]
}

fn admission() -> Vec<Sample> {
    // They match nothing that others write.
    let rules = json!([{"operations": ["CREATE"], "apiGroups": ["sample.example.com"],
        "apiVersions": ["v1"], "resources": ["samples"]}]);
    let webhooks = json!({"webhooks": [{
        "name": "sample.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://sample.example.com/"}, "rules": rules,
    }]});
    let of = |kind, object| ("admissionregistration.k8s.io", "v1", kind, object);
    vec![
        (
            "apiregistration.k8s.io",
            "v1",
            "APIService",
            json!({"metadata": {"name": "v1.sample.example.com"},
                "spec": {"group": "sample.example.com", "version": "v1",
                    "groupPriorityMinimum": 100, "versionPriority": 100,
                    "service": {"namespace": "default", "name": "sample"}}}),
        ),
        of("MutatingWebhookConfiguration", webhooks.clone()),
        of("ValidatingWebhookConfiguration", webhooks),
        of(
            "ValidatingAdmissionPolicy",
            json!({"spec": {"matchConstraints": {"resourceRules": rules},
                "validations": [{"expression": "object.spec.replicas < 5"}]}}),
        ),
        of(
            "ValidatingAdmissionPolicyBinding",
            json!({"spec": {"policyName": "sample", "validationActions": ["Deny"]}}),
        ),
    ]
}

fn definition() -> Sample {
    let object = json!({
        "metadata": {"name": "samples.sample.example.com"},
        "spec": {"group": "sample.example.com", "scope": "Namespaced",
            "names": {"plural": "samples", "kind": "Sample"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", object)
}

fn reviews() -> Vec<Sample> {
    const AUTHN: &str = "authentication.k8s.io";
    const AUTHZ: &str = "authorization.k8s.io";
    let attributes = json!({"verb": "get", "resource": "pods", "namespace": "default"});
    vec![
        (AUTHN, "v1", "TokenReview", json!({"spec": {"token": "sample"}})),
        (AUTHN, "v1", "SelfSubjectReview", json!({})),
        (AUTHZ, "v1", "SelfSubjectRulesReview", json!({"spec": {"namespace": "default"}})),
        (
            AUTHZ,
            "v1",
            "SubjectAccessReview",
            json!({
            "spec": {"user": "sample", "resourceAttributes": attributes}}),
        ),
        (
            AUTHZ,
            "v1",
            "SelfSubjectAccessReview",
            json!({
            "spec": {"resourceAttributes": attributes}}),
        ),
        (
            AUTHZ,
            "v1",
            "LocalSubjectAccessReview",
            json!({
            "metadata": {"namespace": "default"},
            "spec": {"user": "sample", "resourceAttributes": attributes}}),
        ),
    ]
}
