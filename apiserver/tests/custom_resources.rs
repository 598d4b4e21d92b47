//! CustomResourceDefinitions and what they define, through the server's front door.

mod common;

use std::time::Duration;

use common::Fixture;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const APPLY: &str = "apply-patch+yaml";
const MERGE: &str = "merge-patch+json";
const GROUP: &str = "shop.example.com";
const URL: &str = "/apis/shop.example.com/v1/namespaces/default/orders";

fn is_true(crd: &Value, kind: &str) -> bool {
    let conditions = crd["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Asks again until an answer is as it should be.
async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("in time: {what}"))
}

async fn establish(f: &Fixture, crd: &Value) -> Value {
    let created = f.post(CRDS, crd).await.expect(201);
    let url = format!("{CRDS}/{}", created["metadata"]["name"].as_str().expect("a name"));
    until("an established definition", async || {
        Some(f.get(&url).await.json()).filter(|crd| is_true(crd, "Established"))
    })
    .await
}

async fn gone(f: &Fixture, url: &str) {
    until("an object is gone", async || (f.get(url).await.code == 404).then_some(())).await;
}

fn order_schema() -> Value {
    json!({"type": "object", "description": "An order.", "properties": {
        "spec": {"type": "object", "required": ["item"], "properties": {
            "item": {"type": "string", "description": "What is ordered.", "minLength": 2},
            "count": {"type": "integer", "default": 1, "minimum": 1, "maximum": 10},
            "color": {"type": "string", "enum": ["red", "blue"]},
            "port": {"x-kubernetes-int-or-string": true},
            "replicas": {"type": "integer"},
            "tags": {"type": "array", "x-kubernetes-list-type": "set",
                "items": {"type": "string"}},
            "lines": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
                "required": ["name"], "properties": {"name": {"type": "string"},
                    "amount": {"type": "integer"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            "x-kubernetes-validations": [
                {"rule": "self.item != 'forbidden'", "message": "not for sale"},
                {"rule": "!has(self.color) || !has(oldSelf.color) || self.color == oldSelf.color",
                    "messageExpression": "'stays ' + oldSelf.color", "fieldPath": ".color",
                    "reason": "FieldValueForbidden"}]},
        "status": {"type": "object", "properties": {
            "phase": {"type": "string"}, "replicas": {"type": "integer"},
            "selector": {"type": "string"}}}}})
}

fn orders() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "orders.shop.example.com"},
        "spec": {"group": GROUP, "scope": "Namespaced",
            "names": {"plural": "orders", "singular": "order", "kind": "Order",
                "shortNames": ["ord"], "categories": ["all"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": order_schema()},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Item", "type": "string", "jsonPath": ".spec.item"},
                    {"name": "Count", "type": "integer", "jsonPath": ".spec.count",
                        "priority": 1}]}]}})
}

fn order(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "shop.example.com/v1", "kind": "Order",
        "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_come_and_go() {
    let f = Fixture::new().await;
    assert_eq!(f.get(URL).await.code, 404);
    let crd = establish(&f, &orders()).await;
    assert!(is_true(&crd, "NamesAccepted") && !is_true(&crd, "NonStructuralSchema"));
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(crd["status"]["acceptedNames"]["listKind"], "OrderList");
    assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));

    // Discovery of both kinds.
    let groups = f.get("/apis").await.expect(200);
    let has = |v: &Value| v["name"] == GROUP && v["preferredVersion"]["version"] == "v1";
    assert!(groups["groups"].as_array().expect("groups").iter().any(has));
    let list = f.get("/apis/shop.example.com/v1").await.expect(200);
    let names: Vec<&str> = list["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(names, ["orders", "orders/scale", "orders/status"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["ord"]));
    let aggregated = f
        .get_as("/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
        .await
        .expect(200);
    let all = aggregated["items"].as_array().expect("items");
    let own = all.iter().find(|i| i["metadata"]["name"] == GROUP).expect("the group");
    assert_eq!(own["versions"][0]["resources"][0]["responseKind"]["kind"], "Order");

    // Names that are taken.
    let mut other = orders();
    other["metadata"]["name"] = "orders2.shop.example.com".into();
    other["spec"]["names"] = json!({"plural": "orders2", "kind": "Order"});
    f.post(CRDS, &other).await.expect(201);
    let other = until("a refusal", async || {
        let crd = f.get(&format!("{CRDS}/orders2.shop.example.com")).await.json();
        crd["status"]["conditions"].is_array().then_some(crd)
    })
    .await;
    assert!(!is_true(&other, "NamesAccepted") && !is_true(&other, "Established"));

    // Objects go with the definition; a finalizer of theirs holds it.
    let mut held = order("held", json!({"item": "tea"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    f.post(URL, &held).await.expect(201);
    f.post(URL, &order("free", json!({"item": "tea"}))).await.expect(201);
    let mut watch = f.watch(&format!("{URL}?watch=1&fieldSelector=metadata.name=free")).await;
    assert_eq!(watch.next_name().await.0, "ADDED");
    let crd_url = format!("{CRDS}/orders.shop.example.com");
    let deleted = f.delete(&crd_url).await.expect(200);
    assert_eq!(
        deleted["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    assert_eq!(watch.next_name().await.0, "DELETED");
    let crd = f.get(&crd_url).await.expect(200);
    assert!(is_true(&crd, "Terminating"));
    let refused = f.post(URL, &order("late", json!({"item": "tea"}))).await;
    assert_eq!(refused.code, 403, "{refused:?}");
    let free = json!({"metadata": {"finalizers": null}});
    f.patch(&format!("{URL}/held"), MERGE, &free).await.expect(200);
    gone(&f, &crd_url).await;
    assert_eq!(watch.next().await, None);
    assert_eq!(f.get(URL).await.code, 404);
    // The names are free for the other.
    until("the other definition", async || {
        let crd = f.get(&format!("{CRDS}/orders2.shop.example.com")).await.json();
        is_true(&crd, "Established").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_are_validated() {
    let f = Fixture::new().await;
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut crd = orders();
        change(&mut crd);
        crd
    };
    let version = "/spec/versions/0";
    let set = |crd: &mut Value, path: &str, value: Value| {
        let at = crd.pointer_mut(path).expect("a place");
        *at = value;
    };
    let cases: Vec<(Value, &str)> = vec![
        (
            broken(&|c| c["metadata"]["name"] = "x.shop.example.com".into()),
            "metadata.name: Invalid value: \"x.shop.example.com\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            broken(&|c| set(c, &format!("{version}/storage"), false.into())),
            "must have exactly one version marked as storage version",
        ),
        (
            broken(&|c| c["spec"]["scope"] = "Galaxy".into()),
            "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            broken(&|c| c["spec"]["preserveUnknownFields"] = true.into()),
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
        ),
        (
            broken(&|c| {
                set(c, &format!("{version}/schema/openAPIV3Schema/properties/status"), json!({}))
            }),
            "spec.validation.openAPIV3Schema.properties[status].type: Required value: must not be empty for specified object fields",
        ),
        (
            broken(&|c| {
                set(
                    c,
                    &format!(
                        "{version}/schema/openAPIV3Schema/properties/spec/properties/count/default"
                    ),
                    "x".into(),
                )
            }),
            "default: Invalid value: \"string\"",
        ),
        (
            broken(&|c| {
                set(
                    c,
                    &format!(
                        "{version}/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations/0/rule"
                    ),
                    "self.none == 1".into(),
                )
            }),
            "undefined field 'none'",
        ),
        (
            broken(&|c| set(c, &format!("{version}/schema"), Value::Null)),
            "spec.versions[0].schema.openAPIV3Schema: Required value",
        ),
        (
            broken(&|c| {
                c["spec"]["group"] = "x.k8s.io".into();
                c["metadata"]["name"] = "orders.x.k8s.io".into();
            }),
            "protected groups must have approval annotation \"api-approved.kubernetes.io\"",
        ),
    ];
    for (crd, want) in cases {
        let answer = f.post(CRDS, &crd).await;
        let message = answer.json()["message"].as_str().unwrap_or("").to_owned();
        assert_eq!(answer.code, 422, "{want}: {message}");
        assert!(message.contains(want), "{want}\n{message}");
    }
    let crd = establish(&f, &orders()).await;
    let url = format!("{CRDS}/orders.shop.example.com");
    let scope = f.patch(&url, MERGE, &json!({"spec": {"scope": "Cluster"}})).await;
    assert!(
        scope.expect(422)["message"].as_str().is_some_and(|m| m.contains("field is immutable"))
    );
    // The status belongs to its subresource.
    let status = json!({"status": {"storedVersions": ["v1", "v2"]}});
    let same = f.patch(&url, MERGE, &status).await.expect(200);
    assert_eq!(same["status"], crd["status"]);
    let applied = json!({"apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition", "metadata": {"labels": {"a": "b"}}});
    let path = format!("{url}?fieldManager=me");
    assert_eq!(f.patch(&path, APPLY, &applied).await.expect(200)["metadata"]["labels"]["a"], "b");
    let table = f.get_as(&url, "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    assert_eq!(table["columnDefinitions"][1]["name"], "Created At");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_pruned_defaulted_and_validated() {
    let f = Fixture::new().await;
    establish(&f, &orders()).await;
    let sent = order(
        "a",
        json!({"item": "tea", "unknown": 1, "port": "http",
        "free": {"any": {"thing": 1}}}),
    );
    let made = f.post(URL, &sent).await.expect(201);
    assert_eq!(
        made["spec"],
        json!({"item": "tea", "count": 1, "port": "http",
        "free": {"any": {"thing": 1}}})
    );
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(f.get(&format!("{URL}/a")).await.expect(200), made);

    for (spec, want) in [
        (json!({}), "spec.item: Required value"),
        (
            json!({"item": "x"}),
            "spec.item: Invalid value: \"x\": spec.item in body should be at least 2 chars long",
        ),
        (
            json!({"item": 1}),
            "spec.item: Invalid value: \"integer\": spec.item in body must be of type string: \"integer\"",
        ),
        (
            json!({"item": "tea", "count": 11}),
            "spec.count: Invalid value: 11: spec.count in body should be less than or equal to 10",
        ),
        (
            json!({"item": "tea", "color": "green"}),
            "spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"",
        ),
        (json!({"item": "tea", "tags": ["a", "a"]}), "spec.tags[1]: Duplicate value: \"a\""),
        (
            json!({"item": "tea", "lines": [{"name": "a"}, {"name": "a"}]}),
            "spec.lines[1]: Duplicate value: {\"name\":\"a\"}",
        ),
        (json!({"item": "forbidden"}), "spec: Invalid value: not for sale"),
    ] {
        let answer = f.post(URL, &order("b", spec)).await.expect(422);
        let message = answer["message"].as_str().unwrap_or("");
        assert!(message.starts_with("Order.shop.example.com \"b\" is invalid: "), "{message}");
        assert!(message.contains(want), "{want}\n{message}");
    }
    // A rule that looks at what was there before.
    let url = format!("{URL}/a");
    f.patch(&url, MERGE, &json!({"spec": {"color": "red"}})).await.expect(200);
    let refused = f.patch(&url, MERGE, &json!({"spec": {"color": "blue"}})).await.expect(422);
    let message = refused["message"].as_str().unwrap_or("");
    assert!(message.ends_with("spec.color: Forbidden: stays red"), "{message}");

    // What was stored before a rule came may stay as it is.
    let crd_url = format!("{CRDS}/orders.shop.example.com");
    let mut crd = f.get(&crd_url).await.json();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    crd.pointer_mut(spec).expect("properties")["item"]["minLength"] = 5.into();
    crd.pointer_mut(spec).expect("properties")["note"] =
        json!({"type": "string", "default": "none"});
    f.put(&crd_url, &crd).await.expect(200);
    // New defaults show in what is stored.
    let seen = until("the new default", async || {
        Some(f.get(&url).await.json()).filter(|o| o["spec"]["note"] == "none")
    })
    .await;
    assert_eq!(seen["spec"]["item"], "tea");
    f.patch(&url, MERGE, &json!({"spec": {"count": 2}})).await.expect(200);
    f.patch(&url, MERGE, &json!({"spec": {"item": "cup"}})).await.expect(422);
    let other = format!("{URL}?labelSelector=a%3Db");
    assert_eq!(f.get(&other).await.expect(200)["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_duplicate_fields_are_told_of() {
    let f = Fixture::new().await;
    establish(&f, &orders()).await;
    let sent =
        order("a", json!({"item": "tea", "unknown": 1, "lines": [{"name": "a", "what": 2}]}));
    let strict = f.post(&format!("{URL}?fieldValidation=Strict"), &sent).await.expect(400);
    assert_eq!(
        strict["message"],
        "Order in version \"v1\" cannot be handled as a Order: strict decoding error: unknown field \"spec.lines[0].what\", unknown field \"spec.unknown\""
    );
    let warned = f.post(&format!("{URL}?fieldValidation=Warn"), &sent).await;
    assert_eq!(warned.code, 201);
    let warnings: Vec<&str> =
        warned.headers.get_all("warning").iter().filter_map(|v| v.to_str().ok()).collect();
    assert_eq!(
        warnings,
        [
            "299 - \"unknown field \\\"spec.lines[0].what\\\"\"",
            "299 - \"unknown field \\\"spec.unknown\\\"\""
        ]
    );
    let twice = "{\"apiVersion\": \"shop.example.com/v1\", \"kind\": \"Order\", \"metadata\": {\"name\": \"b\"}, \"spec\": {\"item\": \"tea\", \"item\": \"cup\"}}";
    let send = async |validation: &str, kind: &str, text: &str| {
        let path = format!("{URL}?fieldValidation={validation}");
        f.send("POST", &path, &[("content-type", kind)], text.to_owned()).await
    };
    let strict = send("Strict", "application/json", twice).await.expect(400);
    assert_eq!(
        strict["message"],
        "Order in version \"v1\" cannot be handled as a Order: strict decoding error: duplicate field \"spec.item\""
    );
    assert_eq!(send("Ignore", "application/json", twice).await.code, 201);
    let yaml = "apiVersion: shop.example.com/v1\nkind: Order\nmetadata:\n  name: c\nspec:\n  item: tea\n  what: 1\n";
    assert_eq!(send("Strict", "application/yaml", yaml).await.code, 400);
    assert_eq!(send("Warn", "application/yaml", yaml).await.code, 201);
    assert_eq!(send("Warn", "application/vnd.kubernetes.protobuf", "k8s").await.code, 415);
    // A patch and an apply are told the same.
    let url = format!("{URL}/a?fieldValidation=Strict");
    let patched = f.patch(&url, MERGE, &json!({"spec": {"what": 1}})).await;
    assert!(
        patched.code >= 400
            && patched.json()["message"]
                .as_str()
                .is_some_and(|m| m.contains("unknown field \"spec.what\"")),
        "{patched:?}"
    );
    let applied = order("a", json!({"item": "tea", "what": 1}));
    let path = format!("{URL}/a?fieldManager=me&force=true&fieldValidation=Strict");
    let applied = f.patch(&path, APPLY, &applied).await;
    assert!(applied.code >= 400, "{applied:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_are_those_of_built_in_resources() {
    let f = Fixture::new().await;
    establish(&f, &orders()).await;
    for i in 0..5 {
        let color = if i % 2 == 0 { "red" } else { "blue" };
        let object = order(&format!("o{i}"), json!({"item": "tea", "color": color}));
        f.post(URL, &object).await.expect(201);
    }
    // Pages, fields, tables.
    let page = f.get(&format!("{URL}?limit=2")).await.expect(200);
    assert_eq!(page["kind"], "OrderList");
    assert_eq!(page["items"][0]["kind"], "Order");
    assert_eq!(page["metadata"]["remainingItemCount"], 3);
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let rest = f.get(&format!("{URL}?continue={token}")).await.expect(200);
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(3));
    let red = f.get(&format!("{URL}?fieldSelector=spec.color%3Dred")).await.expect(200);
    assert_eq!(red["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(f.get(&format!("{URL}?fieldSelector=spec.item%3Dtea")).await.code, 400);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let shown = f.get_as(URL, table).await.expect(200);
    let columns: Vec<&str> = shown["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(columns, ["Name", "Item", "Count"]);
    assert_eq!(shown["rows"][0]["cells"], json!(["o0", "tea", 1]));
    let protobuf = "application/vnd.kubernetes.protobuf";
    assert_eq!(f.get_as(URL, protobuf).await.code, 406);
    let either = f.get_as(URL, &format!("{protobuf},application/json")).await;
    assert_eq!((either.code, either.header("content-type")), (200, "application/json"));
    let metadata = format!("{protobuf};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    assert_eq!(f.get_as(URL, &metadata).await.code, 200);

    // Update, conflict, dry run, patches.
    let url = format!("{URL}/o0");
    let old = f.get(&url).await.json();
    let mut new = old.clone();
    new["spec"]["count"] = 3.into();
    new["status"] = json!({"phase": "Ignored"});
    let dry = f.put(&format!("{url}?dryRun=All"), &new).await.expect(200);
    assert_eq!(dry["spec"]["count"], 3);
    assert_eq!(f.get(&url).await.json(), old);
    let put = f.put(&url, &new).await.expect(200);
    assert_eq!((&put["metadata"]["generation"], put.get("status")), (&json!(2), None));
    assert_eq!(f.put(&url, &new).await.code, 409);
    let mut without = new.clone();
    without["metadata"]["resourceVersion"] = Value::Null;
    let refused = f.put(&url, &without).await.expect(422);
    assert_eq!(
        refused["message"],
        "orders.shop.example.com \"o0\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    let json_patch = json!([{"op": "replace", "path": "/spec/count", "value": 4}]);
    let patched = f.patch(&url, "json-patch+json", &json_patch).await.expect(200);
    assert_eq!(patched["spec"]["count"], 4);
    assert_eq!(f.patch(&url, "strategic-merge-patch+json", &json!({})).await.code, 415);

    // Watches see what their selectors choose.
    let version = patched["metadata"]["resourceVersion"].as_str().expect("a version");
    let path = format!("{URL}?watch=1&resourceVersion={version}&fieldSelector=spec.color%3Dblue");
    let mut watch = f.watch(&path).await;
    let blue = json!({"spec": {"count": 2}});
    f.patch(&format!("{URL}/o1"), MERGE, &blue).await.expect(200);
    assert_eq!(watch.next_name().await, ("MODIFIED".to_owned(), "o1".to_owned()));

    // deletecollection.
    let deleted = f.delete(&format!("{URL}?fieldSelector=spec.color%3Dred")).await.expect(200);
    assert_eq!(deleted["kind"], "OrderList");
    assert_eq!(f.get(URL).await.json()["items"].as_array().map(Vec::len), Some(2));
    f.delete(&format!("{URL}/o1")).await.expect(200);
    assert_eq!(watch.next_name().await, ("DELETED".to_owned(), "o1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_scale_are_apart() {
    let f = Fixture::new().await;
    establish(&f, &orders()).await;
    let mut object = order("a", json!({"item": "tea", "replicas": 2}));
    object["status"] = json!({"phase": "Dropped"});
    let made = f.post(URL, &object).await.expect(201);
    assert_eq!(made.get("status"), None);
    let status = json!({"spec": {"item": "cup"},
        "status": {"phase": "Ready", "replicas": 1, "selector": "a=b"}});
    let url = format!("{URL}/a");
    let patched = f.patch(&format!("{url}/status"), MERGE, &status).await.expect(200);
    assert_eq!(
        (&patched["spec"]["item"], &patched["status"]["phase"]),
        (&json!("tea"), &json!("Ready"))
    );
    assert_eq!(patched["metadata"]["generation"], 1);
    let managers = patched["metadata"]["managedFields"].as_array().expect("managers");
    assert!(managers.iter().any(|m| m["subresource"] == "status"), "{managers:?}");
    let scale = f.get(&format!("{url}/scale")).await.expect(200);
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"], json!({"replicas": 1, "selector": "a=b"}));
    let scaled = json!({"spec": {"replicas": 5}});
    f.patch(&format!("{url}/scale"), MERGE, &scaled).await.expect(200);
    let object = f.get(&url).await.json();
    assert_eq!(
        (&object["spec"]["replicas"], &object["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
    let wrong = json!({"status": {"phase": 1}});
    f.patch(&format!("{url}/status"), MERGE, &wrong).await.expect(422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_merges_by_the_schema() {
    let f = Fixture::new().await;
    establish(&f, &orders()).await;
    let apply = async |manager: &str, spec: Value, more: &str| {
        let path = format!("{URL}/a?fieldManager={manager}{more}");
        f.patch(&path, APPLY, &order("a", spec)).await
    };
    let made = apply(
        "one",
        json!({"item": "tea", "lines": [{"name": "x", "amount": 1}], "tags": ["t"]}),
        "",
    )
    .await;
    assert_eq!(made.expect(201)["spec"]["count"], 1);
    let merged = apply(
        "two",
        json!({"item": "tea", "lines": [{"name": "y", "amount": 2}], "tags": ["u"]}),
        "",
    )
    .await;
    let merged = merged.expect(200);
    assert_eq!(
        merged["spec"]["lines"],
        json!([{"name": "x", "amount": 1}, {"name": "y", "amount": 2}])
    );
    assert_eq!(merged["spec"]["tags"], json!(["t", "u"]));
    let conflict = apply("two", json!({"item": "cup"}), "").await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".spec.item");
    apply("two", json!({"item": "cup"}), "&force=true").await.expect(200);
    // What one no longer says goes.
    let left = apply("one", json!({"count": 3}), "").await.expect(200);
    assert_eq!(left["spec"], json!({"item": "cup", "count": 3}));
    let fields = left["metadata"]["managedFields"].as_array().expect("managers");
    let one = fields.iter().find(|m| m["manager"] == "one").expect("the manager");
    assert_eq!(one["fieldsV1"], json!({"f:spec": {"f:count": {}}}));
    assert_eq!(one["apiVersion"], "shop.example.com/v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_follows_definitions() {
    let f = Fixture::new().await;
    let first = f.get("/openapi/v2").await;
    establish(&f, &orders()).await;
    let second = f.get("/openapi/v2").await;
    assert_ne!(first.header("etag"), second.header("etag"));
    let v2 = second.expect(200);
    let own = &v2["definitions"]["com.example.shop.v1.Order"];
    assert_eq!(own["description"], "An order.");
    assert_eq!(
        own["properties"]["spec"]["properties"]["item"],
        order_schema()["properties"]["spec"]["properties"]["item"]
    );
    assert_eq!(
        own["properties"]["metadata"]["$ref"],
        "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    );
    assert!(v2["definitions"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    assert!(v2["definitions"]["com.example.shop.v1.OrderList"].is_object());
    assert!(
        v2["paths"][format!("{}/{{name}}", URL.replace("default", "{namespace}"))]["patch"]
            .is_object()
    );
    let protobuf =
        f.get_as("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf").await;
    assert_eq!(protobuf.code, 200);

    let index = f.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/shop.example.com/v1"]["serverRelativeURL"].as_str();
    let v3 = f.get(url.expect("a document")).await.expect(200);
    let own = &v3["components"]["schemas"]["com.example.shop.v1.Order"];
    assert_eq!(
        own["x-kubernetes-group-version-kind"],
        json!([{"group": GROUP, "version": "v1", "kind": "Order"}])
    );
    assert_eq!(
        own["properties"]["spec"]["properties"]["port"]["anyOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
    let text = own["properties"]["kind"]["description"].as_str().unwrap_or("");
    assert!(text.starts_with("Kind is a string value"), "{text}");
    assert!(v3["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"]["name"]["description"].is_string());

    // A version that is not served is not described.
    let crd_url = format!("{CRDS}/orders.shop.example.com");
    let mut crd = f.get(&crd_url).await.json();
    let mut next = crd["spec"]["versions"][0].clone();
    next["name"] = "v2".into();
    next["storage"] = false.into();
    crd["spec"]["versions"].as_array_mut().expect("versions").push(next);
    f.put(&crd_url, &crd).await.expect(200);
    let has = async |name: &str| f.get("/openapi/v2").await.json()["definitions"][name].is_object();
    let v2_of = "com.example.shop.v2.Order";
    until("the second version", async || has(v2_of).await.then_some(())).await;
    let off = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]);
    f.patch(&crd_url, "json-patch+json", &off).await.expect(200);
    until("its end", async || (!has(v2_of).await).then_some(())).await;
    assert!(has("com.example.shop.v1.Order").await);
    f.delete(&crd_url).await.expect(200);
    gone(&f, &crd_url).await;
    assert!(!has("com.example.shop.v1.Order").await);
    let last = f.get("/openapi/v2").await;
    assert_eq!(last.header("etag"), first.header("etag"));
}
