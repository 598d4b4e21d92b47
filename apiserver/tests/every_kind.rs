//! Every row of the registry through every verb and media type, over TLS.

mod common;

use apimachinery::codec::{Schema, proto};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::Registry;
use apiserver::registry::kinds::{self, Deps, samples};
use apiserver::registry::{Resource, Verbs};
use common::Fixture;
use serde_json::{Value, json};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const PARTIAL: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
const PARTIAL_LIST: &str =
    "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

fn base(row: &Resource, namespace: &str) -> String {
    let root = match &*row.group {
        "" => format!("/api/{}", row.version),
        group => format!("/apis/{group}/{}", row.version),
    };
    if row.namespaced {
        format!("{root}/namespaces/{namespace}/{}", row.plural)
    } else {
        format!("{root}/{}", row.plural)
    }
}

fn rows() -> Vec<(Resource, Value)> {
    let all = samples::samples();
    let rows = kinds::all(Registry::builtin(), &Deps::default());
    rows.into_iter()
        .map(|row| {
            let sample = all
                .iter()
                .find(|(g, v, k, _)| *g == row.group && *v == row.version && *k == row.kind)
                .unwrap_or_else(|| panic!("no sample of {}/{}", row.group, row.kind));
            let mut object = sample.3.clone();
            object["apiVersion"] = match &*row.group {
                "" => row.version.to_string(),
                group => format!("{group}/{}", row.version),
            }
            .into();
            object["kind"] = (*row.kind).into();
            (row, object)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_has_every_verb() {
    let f = Fixture::new().await;
    f.post("/api/v1/namespaces", &json!({"metadata": {"name": "t"}})).await.expect(201);
    let account = json!({"metadata": {"name": "default"}});
    f.post("/api/v1/namespaces/t/serviceaccounts", &account).await.expect(201);
    for (row, sample) in rows() {
        match row.verbs {
            Verbs::CreateOnly => {
                let namespace = sample["metadata"]["namespace"].as_str().unwrap_or("t");
                let answer = f.post(&base(&row, namespace), &sample).await;
                // A Binding binds a pod that is not there.
                assert!(answer.code == 201 || answer.code == 404, "{}: {answer:?}", row.kind);
            }
            // Its status is written by the server itself at any time: it has tests of its own.
            Verbs::All if row.kind == "CustomResourceDefinition" => {}
            Verbs::All => walk(&f, &row, sample).await,
        }
    }
}

async fn walk(f: &Fixture, row: &Resource, sample: Value) {
    let collection = base(row, sample["metadata"]["namespace"].as_str().unwrap_or("t"));
    let what = &*row.kind;
    let created = f.post(&collection, &sample).await;
    assert_eq!(created.code, 201, "{what}: {}", String::from_utf8_lossy(&created.body));
    let created = created.json();
    let name = created["metadata"]["name"].as_str().expect("a name").to_owned();
    let url = format!("{collection}/{name}");
    let created = settled(f, what, &url, created).await;
    assert_eq!(f.post(&collection, &with_name(&sample, &name)).await.code, 409, "{what}");

    let mut watch =
        f.watch(&format!("{collection}?watch=1&fieldSelector=metadata.name={name}")).await;
    assert_eq!(watch.next_name().await, ("ADDED".to_owned(), name.clone()), "{what}");

    let got = f.get(&url).await.expect(200);
    assert_eq!(got, created, "{what}");
    media_types(f, row, &url, &collection, &got).await;

    let patched =
        f.patch(&url, "merge-patch+json", &json!({"metadata": {"labels": {"patched": "1"}}})).await;
    let patched = patched.expect(200);
    assert_eq!(patched["metadata"]["labels"]["patched"], "1", "{what}");
    assert_eq!(watch.next_name().await, ("MODIFIED".to_owned(), name.clone()), "{what}");
    let again =
        f.patch(&url, "merge-patch+json", &json!({"metadata": {"labels": {"patched": "1"}}})).await;
    let version = |o: &Value| o["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&again.expect(200)), version(&patched), "{what}: a patch without change");

    let stale = f.put(&url, &created).await;
    assert_eq!(stale.code, 409, "{what}: {}", String::from_utf8_lossy(&stale.body));
    let updated = f.put(&url, &f.get(&url).await.expect(200)).await.expect(200);
    assert_eq!(version(&updated), version(&patched), "{what}: an update without change");

    let applied = json!({"apiVersion": created["apiVersion"], "kind": what,
        "metadata": {"name": name, "labels": {"applied": "1"}}});
    let path = format!("{url}?fieldManager=applier&force=true");
    let applied = f.patch(&path, "apply-patch+yaml", &applied).await.expect(200);
    assert_eq!(applied["metadata"]["labels"]["applied"], "1", "{what}");

    let dry = f.delete(&format!("{url}?dryRun=All")).await;
    assert_eq!(dry.code, 200, "{what}");
    assert_eq!(f.get(&url).await.code, 200, "{what}");
    let listed = f.get(&format!("{collection}?labelSelector=applied%3D1")).await.expect(200);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{what}");
    if applied["metadata"].get("finalizers").is_some() && what != "Namespace" {
        let free = json!({"metadata": {"finalizers": null}});
        f.patch(&url, "merge-patch+json", &free).await.expect(200);
    }
    // Some kinds would else wait for a collector to orphan their dependents.
    let at_once = "gracePeriodSeconds=0&propagationPolicy=Background";
    let deleted = f.delete(&format!("{url}?{at_once}")).await;
    assert_eq!(deleted.code, 200, "{what}: {deleted:?}");
    if what != "Namespace" {
        assert_eq!(f.get(&url).await.code, 404, "{what}");
        while watch.next_name().await.0 != "DELETED" {}
        let second = f.post(&collection, &sample).await;
        assert_eq!(second.code, 201, "{what}");
        let path = format!(
            "{collection}?fieldSelector=metadata.name={}",
            second.json()["metadata"]["name"].as_str().expect("a name")
        );
        f.delete(&path).await.expect(200);
    }
}

/// The object once the server itself, which keeps the status of some, has written it.
async fn settled(f: &Fixture, what: &str, url: &str, created: Value) -> Value {
    let done = |o: &Value| match what {
        "ValidatingAdmissionPolicy" => o["status"]["observedGeneration"].is_number(),
        "APIService" | "FlowSchema" => o["status"]["conditions"].is_array(),
        _ => true,
    };
    let mut object = created;
    while !done(&object) {
        object = f.get(url).await.expect(200);
    }
    object
}

fn with_name(sample: &Value, name: &str) -> Value {
    let mut object = sample.clone();
    object["metadata"]["name"] = name.into();
    object
}

async fn media_types(f: &Fixture, row: &Resource, url: &str, collection: &str, got: &Value) {
    let what = &*row.kind;
    let registry = Registry::builtin();
    let schema = |version: &str, kind: &str| {
        let gvk = GroupVersionKind::from_api_version(version, kind);
        Schema { registry, message: registry.kind(&gvk).expect("a kind") }
    };
    let version = got["apiVersion"].as_str().expect("a version");
    let raw = f.get_as(url, PROTOBUF).await;
    assert_eq!((raw.code, raw.header("content-type")), (200, PROTOBUF), "{what}");
    let envelope = proto::open(&raw.body).expect("protobuf").expect("an envelope");
    let mut decoded = proto::decode(schema(version, what), envelope.raw).expect("an object");
    decoded["apiVersion"] = version.into();
    decoded["kind"] = what.into();
    assert_eq!(&decoded, got, "{what}: protobuf and JSON differ");

    let yaml = f.get_as(url, "application/yaml").await;
    assert_eq!((yaml.code, yaml.header("content-type")), (200, "application/yaml"), "{what}");
    let table = f.get_as(url, TABLE).await.expect(200);
    assert_eq!(
        (table["kind"].as_str(), table["rows"].as_array().map(Vec::len)),
        (Some("Table"), Some(1))
    );
    let partial = f.get_as(url, PARTIAL).await.expect(200);
    assert_eq!(partial["kind"], "PartialObjectMetadata", "{what}");
    assert_eq!(partial["metadata"], got["metadata"], "{what}");
    assert_eq!(f.get_as(url, "text/html").await.code, 406, "{what}");

    let list = f.get_as(collection, JSON).await.expect(200);
    assert_eq!(list["kind"], format!("{what}List"));
    let name = &got["metadata"]["name"];
    let items = list["items"].as_array().expect("items");
    let mut own = got.clone();
    if let Some(own) = own.as_object_mut() {
        own.remove("apiVersion");
        own.remove("kind");
    }
    assert!(items.contains(&own), "{what}: {name} is not in the list");
    let table = f.get_as(collection, TABLE).await.expect(200);
    let columns = table["columnDefinitions"].as_array().map(Vec::len);
    for row in table["rows"].as_array().expect("rows") {
        assert_eq!(row["cells"].as_array().map(Vec::len), columns, "{what}");
    }
    for accept in [PROTOBUF, PARTIAL_LIST] {
        let raw = f.get_as(collection, accept).await;
        assert_eq!(raw.code, 200, "{what}");
        assert!(proto::open(&raw.body).expect("protobuf").is_some(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reaches_a_row_without_being_allowed_to() {
    let mut f = Fixture::new().await;
    f.as_nobody();
    for (row, sample) in rows() {
        let url = base(&row, "default");
        let reviews = row.group.starts_with("auth");
        let code = f.post(&url, &sample).await.code;
        // Whoever is authenticated may ask about itself.
        assert!(code == 403 || (reviews && code == 201), "{}: {code}", row.kind);
        if row.verbs == Verbs::All {
            assert_eq!(f.get(&url).await.code, 403, "{}", row.kind);
            assert_eq!(f.get(&format!("{url}?watch=1")).await.code, 403, "{}", row.kind);
            assert_eq!(f.get(&format!("{url}/x")).await.code, 403, "{}", row.kind);
            assert_eq!(f.delete(&format!("{url}/x")).await.code, 403, "{}", row.kind);
            assert_eq!(f.put(&format!("{url}/x"), &sample).await.code, 403, "{}", row.kind);
            for sub in &row.subresources {
                let path = format!("{url}/x/{}", sub.name);
                assert_eq!(f.get(&path).await.code, 403, "{path}");
            }
        }
    }
}
