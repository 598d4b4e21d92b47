//! Custom resources of several versions, that a webhook converts or that differ by name alone.

mod common;

use std::time::Duration;

use common::Fixture;
use common::hooks::Hooks;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/doors.house.example.com";
const MERGE: &str = "merge-patch+json";

fn doors(version: &str) -> String {
    format!("/apis/house.example.com/{version}/namespaces/default/doors")
}

/// `v1` has `spec.size` as text (`2x3`); `v2` has `spec.width` and `spec.height`.
fn convert(object: &Value, to: &str) -> Value {
    let mut made = object.clone();
    made["apiVersion"] = to.into();
    let spec = &object["spec"];
    match (to, spec["size"].as_str()) {
        ("house.example.com/v2", Some(size)) => {
            let (width, height) = size.split_once('x').unwrap_or(("", ""));
            made["spec"] = json!({"width": width, "height": height});
        }
        ("house.example.com/v1", None) => {
            let text = |name: &str| spec[name].as_str().unwrap_or("").to_owned();
            made["spec"] = json!({"size": format!("{}x{}", text("width"), text("height"))});
        }
        _ => {}
    }
    made["metadata"]["labels"]["converted"] = "yes".into();
    made
}

fn answer(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let to = request["desiredAPIVersion"].as_str().unwrap_or("");
    let objects = request["objects"].as_array().cloned().unwrap_or_default();
    let response = match path {
        "/broken" => json!({"uid": request["uid"],
            "result": {"status": "Failure", "message": "no way"}}),
        _ => json!({"uid": request["uid"], "result": {"status": "Success"},
            "convertedObjects": objects.iter().map(|o| convert(o, to)).collect::<Vec<_>>()}),
    };
    json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response})
}

fn definition(conversion: Value, stored: &str) -> Value {
    let version = |name: &str, properties: Value| {
        json!({"name": name, "served": true, "storage": name == stored,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": properties}}}}})
    };
    let text = json!({"type": "string"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "doors.house.example.com"},
        "spec": {"group": "house.example.com", "scope": "Namespaced", "conversion": conversion,
            "names": {"plural": "doors", "kind": "Door"},
            "versions": [version("v1", json!({"size": text})),
                version("v2", json!({"width": text, "height": text}))]}})
}

async fn establish(f: &Fixture, crd: &Value) {
    f.post(CRDS, crd).await.expect(201);
    let waiting = async {
        while f.get(&doors("v1")).await.code != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("served in time");
}

fn hook(hooks: &Hooks, path: &str) -> Value {
    json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://{}{path}", hooks.address),
            "caBundle": hooks.bundle}}})
}

fn door(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("house.example.com/{version}"), "kind": "Door",
        "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_converts() {
    let (f, hooks) = (Fixture::new().await, Hooks::start(answer).await);
    establish(&f, &definition(hook(&hooks, "/convert"), "v1")).await;
    // What is stored as it is sent is not converted.
    f.post(&doors("v1"), &door("v1", "a", json!({"size": "2x3"}))).await.expect(201);
    assert!(hooks.asked.lock().is_empty());
    let mut watch = f.watch(&format!("{}?watch=1", doors("v2"))).await;
    let first = watch.next().await.expect("an event");
    assert_eq!(first["object"]["spec"], json!({"width": "2", "height": "3"}));

    let url = format!("{}/a", doors("v2"));
    let second = f.get(&url).await.expect(200);
    assert_eq!(second["spec"], json!({"width": "2", "height": "3"}));
    assert_eq!(second["metadata"]["labels"]["converted"], "yes");
    let request = hooks.asked.lock().last().expect("a review").1["request"].clone();
    assert_eq!(request["desiredAPIVersion"], "house.example.com/v2");
    assert_eq!(request["objects"][0]["spec"]["size"], "2x3");

    // Written in one version, read in the other; lists of both at once.
    let made = f.post(&doors("v2"), &door("v2", "b", json!({"width": "4", "height": "5"}))).await;
    assert_eq!(made.expect(201)["apiVersion"], "house.example.com/v2");
    let added = watch.next().await.expect("an event");
    assert_eq!(added["object"]["spec"], json!({"width": "4", "height": "5"}));
    let stored = f.get(&format!("{}/b", doors("v1"))).await.expect(200);
    assert_eq!(stored["spec"], json!({"size": "4x5"}));
    let list = f.get(&doors("v2")).await.expect(200);
    let widths: Vec<&str> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|i| i["spec"]["width"].as_str())
        .collect();
    assert_eq!(widths, ["2", "4"]);
    let page = f.get(&format!("{}?limit=1", doors("v2"))).await.expect(200);
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let rest = f.get(&format!("{}?limit=1&continue={token}", doors("v2"))).await.expect(200);
    assert_eq!(rest["items"][0]["metadata"]["name"], "b");

    // Changes go through the version they are made in.
    let wide = json!({"spec": {"width": "9"}});
    f.patch(&url, MERGE, &wide).await.expect(200);
    let seen = f.get(&format!("{}/a", doors("v1"))).await.expect(200);
    assert_eq!(seen["spec"]["size"], "9x3");
    assert_eq!(watch.next().await.expect("an event")["object"]["spec"]["width"], "9");
    let applied = f
        .patch(
            &format!("{url}?fieldManager=me&force=true"),
            "apply-patch+yaml",
            &door("v2", "a", json!({"height": "8"})),
        )
        .await;
    assert_eq!(applied.expect(200)["spec"], json!({"width": "9", "height": "8"}));

    // Another version is stored from now on; what was stored is still read.
    let other = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let crd = f.patch(CRD, "json-patch+json", &other).await.expect(200);
    assert_eq!(crd["status"]["storedVersions"], json!(["v1", "v2"]));
    f.post(&doors("v1"), &door("v1", "c", json!({"size": "1x1"}))).await.expect(201);
    for version in ["v1", "v2"] {
        let list = f.get(&doors(version)).await.expect(200);
        assert_eq!(list["items"].as_array().map(Vec::len), Some(3), "{version}");
    }

    // A webhook that refuses fails what needs it.
    let broken = json!({"spec": {"conversion": hook(&hooks, "/broken")}});
    f.patch(CRD, MERGE, &broken).await.expect(200);
    let failing = async {
        loop {
            let answer = f.get(&format!("{}/a", doors("v2"))).await;
            if answer.code == 500 {
                return answer.json();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let failed = tokio::time::timeout(Duration::from_secs(20), failing).await.expect("in time");
    assert_eq!(
        failed["message"],
        "conversion webhook for house.example.com/v1, Kind=Door failed: no way"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_webhook_fields_are_cut_to_the_version() {
    let f = Fixture::new().await;
    establish(&f, &definition(json!({"strategy": "None"}), "v2")).await;
    let sent = door("v1", "a", json!({"size": "2x3", "width": "no"}));
    let made = f.post(&doors("v1"), &sent).await.expect(201);
    assert_eq!(made["apiVersion"], "house.example.com/v1");
    let second = f.get(&format!("{}/a", doors("v2"))).await.expect(200);
    assert_eq!(
        (&second["apiVersion"], &second["kind"]),
        (&json!("house.example.com/v2"), &json!("Door"))
    );
    f.patch(&format!("{}/a", doors("v2")), MERGE, &json!({"spec": {"width": "4"}}))
        .await
        .expect(200);
    let list = f.get(&doors("v1")).await.expect(200);
    assert_eq!(list["items"][0]["apiVersion"], "house.example.com/v1");
    assert_eq!(list["items"][0]["spec"].get("width"), None);
    let mut watch = f.watch(&format!("{}?watch=1", doors("v1"))).await;
    assert_eq!(
        watch.next().await.expect("an event")["object"]["apiVersion"],
        "house.example.com/v1"
    );
    // A change of the definition ends watches, so that clients see what it means.
    let labels = json!([{"op": "replace", "path": "/spec/versions/0/served", "value": false}]);
    f.patch(CRD, "json-patch+json", &labels).await.expect(200);
    assert_eq!(watch.next().await, None);
    assert_eq!(f.get(&doors("v1")).await.code, 404);
}
