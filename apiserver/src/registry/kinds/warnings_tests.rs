//! What kinds warn of, in upstream's words.

use apimachinery::{Value, object, schema};
use serde_json::json;

use super::{Deps, all};

const NAME: &str = "this is used in Pod names and hostnames, which can result in surprising \
                    behavior; a DNS label is recommended: [must not contain dots]";

/// Warnings of a create, or of an update of `old`.
fn warnings(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let rows = all(schema::Registry::builtin(), &Deps::default());
    let row = rows.iter().find(|row| row.kind == kind).expect("a row");
    let mut list = match old {
        None => row.strategy.early_warnings(object),
        Some(_) => Vec::new(),
    };
    list.extend(row.strategy.warnings(object, old));
    list
}

#[track_caller]
fn check(kind: &str, object: Value, want: &[&str]) {
    assert_eq!(warnings(kind, &object, None), want, "{object:#}");
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn pods_choose_nodes_by_labels_of_old_names() {
    const ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
    let term = json!({"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["a b"]}]});
    let spec = json!({
        "nodeSelector": {"beta.kubernetes.io/os": "linux", "x": "y"},
        "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [&term]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": &term}],
        }},
        "topologySpreadConstraints": [{"topologyKey": ZONE, "labelSelector": {}}],
    });
    let zone = "failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use \
                \"topology.kubernetes.io/zone\" instead";
    let affinity = "spec.affinity.nodeAffinity";
    let preferred = format!(
        "{affinity}.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0]"
    );
    let value = apimachinery::names::label_value("a b").join("");
    check(
        "Pod",
        pod(spec),
        &[
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \
             \"kubernetes.io/os\" instead",
            &format!(
                "{affinity}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]\
                 .matchExpressions[0].key: {zone}"
            ),
            &format!("{preferred}.key: {zone}"),
            &format!("{preferred}.values[0]: a b is invalid, {value}"),
            &format!("spec.topologySpreadConstraints[0].topologyKey: {zone}"),
        ],
    );
}

#[test]
fn files_of_volumes_take_each_others_place() {
    let items = |paths: &[&str]| -> Value {
        paths.iter().map(|p| json!({"key": "k", "path": p})).collect::<Vec<_>>().into()
    };
    let volumes = json!({"volumes": [
        {"name": "a", "configMap": {"name": "m", "items": items(&["x", "x/y/", "xy"])}},
        {"name": "b", "secret": {"secretName": "s", "items": items(&["p", "p"])}},
        {"name": "c", "projected": {"sources": [
            {"serviceAccountToken": {"path": "t"}},
            {"configMap": {"name": "m", "items": items(&["t/u"])}},
            {"clusterTrustBundle": {"signerName": "g", "path": "t"}},
            {},
        ]}},
    ]});
    check(
        "Pod",
        pod(volumes),
        &[
            "volume \"a\" (ConfigMap \"m\"): overlapping paths: \"x/y\" with \"x\"",
            "volume \"b\" (Secret \"s\"): overlapping paths: \"p\" with \"p\"",
            "volume \"c\" (Projected) has no sources provided",
            "volume \"c\" (Projected): overlapping paths: \"t/u\" (ConfigMap \"m\") with \"t\" \
             (ServiceAccountToken)",
            "volume \"c\" (Projected): overlapping paths: \"t\" (ClusterTrustBundle \"g\") with \
             \"t\" (ServiceAccountToken)",
            "volume \"c\" (Projected): overlapping paths: \"t\" (ClusterTrustBundle \"g\") with \
             \"t/u\" (ConfigMap \"m\")",
        ],
    );
}

#[test]
fn pods_warn_of_their_containers() {
    let seccomp = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    check(
        "Pod",
        json!({
            "metadata": {"name": "a.b", "annotations": {
                "seccomp.security.alpha.kubernetes.io/pod": "x",
                "container.seccomp.security.alpha.kubernetes.io/c": "x",
                "container.apparmor.security.beta.kubernetes.io/c": "unconfined",
                "container.apparmor.security.beta.kubernetes.io/d": "unconfined",
            }},
            "spec": {
                "volumes": [{"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec":
                    {"resources": {"requests": {"storage": "1500m"}}}}}}],
                "containers": [
                    {"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP", "hostIP": "::01"}],
                        "resources": {"limits": {"memory": "100m"}}},
                    {"name": "d", "securityContext": {
                        "appArmorProfile": {"type": "Unconfined"}, "seccompProfile": {}}},
                ],
            },
        }),
        &[
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated \
             since v1.30; use the \"appArmorProfile\" field instead",
            "metadata.name: this is used in the Pod's hostname, which can result in surprising \
             behavior; a DNS label is recommended: [must not contain dots]",
            "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources.requests[storage]: \
             fractional byte value \"1500m\" is invalid, must be an integer",
            &format!("metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: {seccomp}"),
            &format!(
                "metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: {seccomp}"
            ),
            "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is \
             invalid, must be an integer",
            "spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 \
             ContainerPort:80 Protocol:TCP HostIP:::01}",
        ],
    );
}

#[test]
fn workloads_warn_of_names_and_of_templates_that_change() {
    let of = |grace: i64, generation: i64| {
        json!({"metadata": {"name": "a.b", "generation": generation}, "spec": {"template":
            {"metadata": {}, "spec": {"terminationGracePeriodSeconds": grace}}}})
    };
    let negative = "spec.template.spec.terminationGracePeriodSeconds: must be >= 0; negative \
                    values are invalid and will be treated as 1";
    let name = format!("metadata.name: {NAME}");
    for kind in ["Deployment", "ReplicaSet", "Job", "ReplicationController"] {
        check(kind, of(-1, 1), &[&name, negative]);
        let unchanged = warnings(kind, &of(-1, 1), Some(&of(-1, 1)));
        assert!(unchanged.is_empty(), "{kind} {unchanged:?}");
    }
    assert_eq!(warnings("Deployment", &of(-1, 2), Some(&of(1, 1))), [negative]);
    assert_eq!(warnings("ReplicationController", &of(-1, 2), Some(&of(1, 1))), [""; 0]);
    assert_eq!(warnings("ReplicationController", &of(1, 2), Some(&of(-1, 1))), [negative]);
    check("StatefulSet", of(-1, 1), &[negative]);
    let mut annotated = of(1, 1);
    let key = "container.apparmor.security.beta.kubernetes.io/c";
    object::set(&mut annotated, &["spec", "template", "metadata", "annotations", key], "x");
    object::set(
        &mut annotated,
        &["spec", "template", "spec", "containers"],
        json!([{"name": "c"}]),
    );
    check(
        "DaemonSet",
        annotated,
        &[&format!(
            "spec.template.metadata.annotations[{key}]: deprecated since v1.30; use the \
             \"appArmorProfile\" field instead"
        )],
    );
}

#[test]
fn stateful_sets_warn_of_claims_and_of_histories_without_end() {
    let set = json!({"spec": {"revisionHistoryLimit": -1, "template": {}, "volumeClaimTemplates":
        [{"spec": {"resources": {"limits": {"storage": "1m"}}}}]}});
    let claim =
        "resources.limits[storage]: fractional byte value \"1m\" is invalid, must be an integer";
    let history = "spec.revisionHistoryLimit: a negative value retains all historical revisions; \
                   a value >= 0 is recommended";
    check("StatefulSet", set.clone(), &[&format!("spec.volumeClaimTemplates[0].{claim}"), history]);
    assert_eq!(
        warnings("StatefulSet", &set, Some(&set)),
        [format!("spec.volumeClaimTemplates[0].Spec.{claim}"), history.to_owned()]
    );
}

#[test]
fn other_kinds_warn_of_what_is_old() {
    let arch = "deprecated since v1.14; use \"kubernetes.io/arch\" instead";
    let labels = json!({"beta.kubernetes.io/arch": "x"});
    let mountable = json!({"metadata": {"annotations":
        {"kubernetes.io/enforce-mountable-secrets": "true"}}});
    assert!(warnings("ServiceAccount", &mountable, Some(&mountable)).is_empty());
    check(
        "ServiceAccount",
        mountable,
        &["metadata.annotations[kubernetes.io/enforce-mountable-secrets]: deprecated in v1.32+; \
           prefer separate namespaces to isolate access to mounted secrets"],
    );
    check(
        "RuntimeClass",
        json!({"scheduling": {"nodeSelector": &labels}}),
        &[&format!("scheduling.nodeSelector: {arch}")],
    );
    check(
        "CSIStorageCapacity",
        json!({"nodeTopology": {"matchLabels": &labels,
            "matchExpressions": [{"key": "beta.kubernetes.io/arch"}]}}),
        &[
            &format!("nodeTopology.matchExpressions[0].key: beta.kubernetes.io/arch is {arch}"),
            &format!("nodeTopology.matchLabels.beta.kubernetes.io/arch: {arch}"),
        ],
    );
    check(
        "PersistentVolume",
        json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms":
            [{"matchExpressions": [{"key": "beta.kubernetes.io/arch"}]}]}}}}),
        &[&format!(
            "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: \
             beta.kubernetes.io/arch is {arch}"
        )],
    );
    check(
        "Node",
        json!({"spec": {"externalID": "x", "podCIDRs": ["10.0.0.01/24"]}}),
        &[
            "spec.externalID: this field is deprecated, and is unused by Kubernetes",
            "spec.podCIDRs[0]: CIDR value \"10.0.0.01/24\" is ambiguous in this context (should be \
             \"10.0.0.0/24\" or \"10.0.0.1/32\"?)",
            "spec.podCIDRs[0]: non-standard CIDR value \"10.0.0.01/24\" will be considered invalid \
             in a future Kubernetes release: use \"10.0.0.0/24\"",
        ],
    );
    check(
        "ResourceSlice",
        json!({"spec": {"driver": "A.b"}}),
        &["spec.driver: driver names should be lowercase; \"A.b\" contains uppercase characters"],
    );
    check(
        "ResourceQuota",
        json!({"spec": {"hard": {"requests.storage": "2", "limits.storage": "1", "storage": "9"}}}),
        &["ResourceQuota requests.storage (2) should be less than limits.storage (1)"],
    );
}

#[test]
fn addresses_are_to_be_canonical() {
    let old = |path: &str, text: &str, new: &str| {
        format!(
            "{path}: non-standard IP address \"{text}\" will be considered invalid in a future \
             Kubernetes release: use \"{new}\""
        )
    };
    let addresses = ["::ffff:1.2.3.4", "1.2.3.4", "1.2.3.04", "FE80::1"];
    check(
        "EndpointSlice",
        json!({"addressType": "FQDN", "endpoints": [{"addresses": addresses}]}),
        &[
            "spec.addressType: FQDN endpoints are deprecated",
            &old("endpoints[0].addresses[0]", "::ffff:1.2.3.4", "1.2.3.4"),
            &old("endpoints[0].addresses[2]", "1.2.3.04", "1.2.3.4"),
            "endpoints[0].addresses[3]: IPv6 address \"FE80::1\" should be in RFC 5952 canonical \
             format (\"fe80::1\")",
        ],
    );
    let mut endpoints = json!({"subsets": [{"notReadyAddresses": [{"ip": "1.2.3.04"}]}]});
    check(
        "Endpoints",
        endpoints.clone(),
        &[&old("subsets[0].notReadyAddresses[0].ip", "1.2.3.04", "1.2.3.4")],
    );
    let key = ["metadata", "labels", "endpoints.kubernetes.io/managed-by"];
    object::set(&mut endpoints, &key, "endpoint-controller");
    check("Endpoints", endpoints, &[]);
    check(
        "Service",
        json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.01"],
            "externalIPs": ["1.2.3.4"], "loadBalancerSourceRanges": ["::ffff:1.2.3.0/120", "1.0.0.0/08"]}}),
        &[
            &old("spec.clusterIPs[0]", "10.0.0.01", "10.0.0.1"),
            "spec.loadBalancerSourceRanges[0]: non-standard CIDR value \"::ffff:1.2.3.0/120\" will \
             be considered invalid in a future Kubernetes release: use \"1.2.3.0/24\"",
            "spec.loadBalancerSourceRanges[1]: non-standard CIDR value \"1.0.0.0/08\" will be \
             considered invalid in a future Kubernetes release: use \"1.0.0.0/8\"",
        ],
    );
}
