//! Stored bytes as an upstream API server writes them: what it stored is served here as it served
//! it, and what is stored here is, decoded by code that is not ours, what it stored.
//!
//! `data/upstream.jsonl.gz` is made by `hack/dump` with a real upstream API server and etcd.

mod common;

use std::io::Read as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::Fixture;
use k8s_pb::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_pb::apimachinery::pkg::runtime::Unknown;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use store::embedded::Embedded;
use store::{Expect, Outcome, Store as _};

/// One object of the dump.
#[derive(Deserialize)]
struct Dumped {
    /// Where it was created.
    path: String,
    request: Value,
    answer: Value,
    key: String,
    /// The value in etcd, in base64.
    value: String,
}

impl Dumped {
    fn value(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.value).expect("base64")
    }

    fn name(&self) -> &str {
        self.answer["metadata"]["name"].as_str().expect("a name")
    }

    fn what(&self) -> String {
        format!("{} {}", self.answer["kind"], self.name())
    }
}

fn dump() -> Vec<Dumped> {
    let compressed = &include_bytes!("data/upstream.jsonl.gz")[..];
    let mut text = String::new();
    flate2::read::GzDecoder::new(compressed).read_to_string(&mut text).expect("gzip");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn open(dir: &tempfile::TempDir) -> std::sync::Arc<Embedded> {
    let folder = dir.path().join("store");
    std::fs::create_dir_all(&folder).expect("a folder");
    Embedded::open(folder.join("db"), Default::default()).expect("a store")
}

#[tokio::test]
async fn what_upstream_stored_is_served() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(&dir);
    let dump = dump();
    for object in &dump {
        let key = object.key.clone().into();
        let put = store.put(key, object.value().into(), Expect::Absent, None).await;
        assert!(matches!(put, Ok(Outcome::Done(_))), "{}: {put:?}", object.what());
    }
    store.close().await.expect("closed");
    drop(store);
    let f = Fixture::over(dir, |_| {}).await;
    for object in &dump {
        let mut served = f.get(&format!("{}/{}", object.path, object.name())).await.expect(200);
        let mut wanted = object.answer.clone();
        // The store's own: it is another store.
        for value in [&mut served, &mut wanted] {
            let version = value["metadata"]["resourceVersion"].take();
            assert!(version.is_string(), "{}", object.what());
        }
        assert_eq!(served, wanted, "{}", object.what());
    }
}

/// What differs from server to server, and from one second to the next.
fn without_origin(meta: &mut Option<ObjectMeta>) {
    let meta = meta.as_mut().expect("metadata");
    assert!(meta.uid.take().is_some_and(|uid| uid.len() == 36));
    assert!(meta.creation_timestamp.take().is_some());
    assert!(!meta.managed_fields.is_empty());
    meta.managed_fields.clear();
}

/// Without the seconds of transitions that came with the creation: all times that the objects
/// themselves name are before.
fn without_now(text: &str) -> String {
    const DUMPED: i64 = 1_790_000_000;
    let line = |line: &str| match line.trim().trim_end_matches(',').parse::<i64>() {
        Ok(seconds) if seconds > DUMPED => "now\n".to_owned(),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The message in a value of etcd, with its version and kind.
fn opened(value: &[u8]) -> (String, String, Vec<u8>) {
    let unknown =
        Unknown::decode(value.strip_prefix(b"k8s\0").expect("the magic")).expect("protobuf");
    let kind = unknown.type_meta.expect("typeMeta");
    assert_eq!(unknown.content_encoding.unwrap_or_default(), "");
    let (version, kind) = (kind.api_version.expect("a version"), kind.kind.expect("a kind"));
    (version, kind, unknown.raw.expect("a message"))
}

macro_rules! decoders {
    ($($version:literal $kind:literal => $($type:ident)::+;)*) => {
        /// A stored value in the words of a decoder that is not ours.
        fn decoded(value: &[u8]) -> String {
            let (version, kind, raw) = opened(value);
            match (version.as_str(), kind.as_str()) {
                $(($version, $kind) => {
                    let mut object = k8s_pb::api::$($type)::+::decode(&*raw).expect($kind);
                    without_origin(&mut object.metadata);
                    without_now(&format!("{object:#?}"))
                })*
                other => panic!("no decoder for {other:?}"),
            }
        }
    };
}

decoders! {
    "v1" "Namespace" => core::v1::Namespace;
    "v1" "Node" => core::v1::Node;
    "v1" "ConfigMap" => core::v1::ConfigMap;
    "v1" "Secret" => core::v1::Secret;
    "v1" "ServiceAccount" => core::v1::ServiceAccount;
    "v1" "Service" => core::v1::Service;
    "v1" "Endpoints" => core::v1::Endpoints;
    "v1" "Event" => core::v1::Event;
    "v1" "PodTemplate" => core::v1::PodTemplate;
    "v1" "ReplicationController" => core::v1::ReplicationController;
    "v1" "Pod" => core::v1::Pod;
    "discovery.k8s.io/v1" "EndpointSlice" => discovery::v1::EndpointSlice;
    "coordination.k8s.io/v1" "Lease" => coordination::v1::Lease;
    "scheduling.k8s.io/v1" "PriorityClass" => scheduling::v1::PriorityClass;
    "node.k8s.io/v1" "RuntimeClass" => node::v1::RuntimeClass;
    "rbac.authorization.k8s.io/v1" "Role" => rbac::v1::Role;
    "rbac.authorization.k8s.io/v1" "ClusterRole" => rbac::v1::ClusterRole;
    "rbac.authorization.k8s.io/v1" "RoleBinding" => rbac::v1::RoleBinding;
    "rbac.authorization.k8s.io/v1" "ClusterRoleBinding" => rbac::v1::ClusterRoleBinding;
    "policy/v1" "PodDisruptionBudget" => policy::v1::PodDisruptionBudget;
    "apps/v1" "ReplicaSet" => apps::v1::ReplicaSet;
    "apps/v1" "DaemonSet" => apps::v1::DaemonSet;
    "apps/v1" "StatefulSet" => apps::v1::StatefulSet;
    "apps/v1" "ControllerRevision" => apps::v1::ControllerRevision;
    "apps/v1" "Deployment" => apps::v1::Deployment;
    "networking.k8s.io/v1" "IPAddress" => networking::v1::IPAddress;
    "networking.k8s.io/v1" "ServiceCIDR" => networking::v1::ServiceCIDR;
}

#[tokio::test]
async fn what_is_stored_is_what_upstream_stores() {
    // As the dump was made.
    let f = Fixture::with(|config| {
        config.disable_admission_plugins = vec!["ServiceAccount".to_owned()];
        config.allow_privileged = true;
        config.service_cluster_ip_ranges = vec!["10.0.0.0/24".parse().expect("a range")];
    })
    .await;
    let dump = dump();
    for object in &dump {
        let mut request = object.request.clone();
        // Services get whichever address is free.
        if let Some(address) = object.answer["spec"].get("clusterIP")
            && request["kind"] == "Service"
        {
            request["spec"]["clusterIP"] = address.clone();
        }
        let answer = f.post(&object.path, &request).await;
        assert_eq!(
            answer.code,
            201,
            "{}: {}",
            object.what(),
            String::from_utf8_lossy(&answer.body)
        );
    }
    let dir = f.stop().await;
    let store = open(&dir);
    for object in &dump {
        let (_, found) = store.get(object.key.as_bytes(), None).await.expect("an answer");
        let found = found.unwrap_or_else(|| panic!("{}: nothing at {}", object.what(), object.key));
        let (ours, theirs) = (decoded(&found.value), decoded(&object.value()));
        assert!(ours == theirs, "{}:\n{}", object.what(), differences(&ours, &theirs));
    }
}

/// The lines that only one of them has.
fn differences(ours: &str, theirs: &str) -> String {
    let only = |a: &str, b: &str, sign: &str| -> String {
        let b: std::collections::HashSet<&str> = b.lines().collect();
        a.lines().filter(|l| !b.contains(l)).map(|l| format!("{sign}{l}\n")).collect()
    };
    only(ours, theirs, "ours  ") + &only(theirs, ours, "theirs")
}
