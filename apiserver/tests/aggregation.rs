//! An API server behind ours: found, asked, and gone.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::Fixture;
use common::https::Https;
use http::{Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::{Value, json};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

type Asked = Arc<Mutex<Vec<(String, http::HeaderMap)>>>;

/// Starts a server for `api.default.svc`, and tells what it is asked.
async fn start() -> (Https, Asked) {
    let asked = Asked::default();
    let kept = asked.clone();
    let answer = move |request: Request<Bytes>| {
        let path = request.uri().to_string();
        kept.lock().push((path.clone(), request.headers().clone()));
        let object = match path.as_str() {
            "/apis/example.test/v1" => json!({"kind": "APIResourceList",
                "groupVersion": "example.test/v1", "resources": [
                {"name": "things", "singularName": "thing", "namespaced": true,
                    "kind": "Thing", "verbs": ["get", "list"]}]}),
            _ => json!({"kind": "Thing", "path": path}),
        };
        let response = Response::builder().header("content-type", "application/json");
        let body = Full::new(object.to_string().into());
        std::future::ready(response.body(body).expect("a response"))
    };
    (Https::start("api.default.svc", answer).await, asked)
}

/// Waits until the APIService has a condition of that reason.
async fn until(f: &Fixture, reason: &str) -> Value {
    let mut watch =
        f.watch(&format!("{SERVICES}?watch=1&fieldSelector=metadata.name=v1.example.test")).await;
    loop {
        let object = watch.next().await.expect("an event")["object"].clone();
        if object["status"]["conditions"][0]["reason"] == reason {
            return object["status"]["conditions"][0].clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_servers_are_passed_on_to() {
    let (server, asked) = start().await;
    let f = Fixture::new().await;
    let service = json!({"metadata": {"name": "v1.example.test"}, "spec": {
        "group": "example.test", "version": "v1", "groupPriorityMinimum": 2000,
        "versionPriority": 15, "caBundle": server.bundle,
        "service": {"namespace": "default", "name": "api", "port": server.address.port()}}});
    f.post(SERVICES, &service).await.expect(201);
    let condition = until(&f, "ServiceNotFound").await;
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["message"], "service/api in \"default\" is not present");
    let url = "/apis/example.test/v1/namespaces/default/things/a?x=1";
    let refused = f.get(url).await;
    assert_eq!((refused.code, &refused.body[..]), (503, &b"service unavailable\n"[..]));

    let found = json!({"metadata": {"name": "api"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    f.post("/api/v1/namespaces/default/services", &found).await.expect(201);
    let condition = until(&f, "Passed").await;
    assert_eq!(condition["status"], "True");
    assert_eq!(condition["message"], "all checks passed");

    // Nobody says for himself who he is.
    let spoofed = [("x-remote-user", "root"), ("x-remote-extra-a", "b"), ("x-other", "1")];
    let mut answer = f.send("GET", url, &spoofed, "").await;
    for _ in 0..200 {
        if answer.code == 200 {
            break;
        }
        answer = f.send("GET", url, &spoofed, "").await;
    }
    assert_eq!(answer.expect(200)["path"], url);
    let (_, headers) = asked.lock().last().cloned().expect("asked");
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.map(|v| v.to_str().expect("text").to_owned()).collect()
    };
    assert_eq!(all("x-remote-user"), ["admin"]);
    assert_eq!(all("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert!(all("x-remote-extra-a").is_empty() && all("authorization").is_empty());
    assert_eq!(all("x-other"), ["1"]);

    let groups = f.get("/apis").await.expect(200)["groups"].clone();
    let names: Vec<&str> =
        groups.as_array().expect("groups").iter().filter_map(|g| g["name"].as_str()).collect();
    assert_eq!(names.first(), Some(&"apiregistration.k8s.io"));
    assert!(names.contains(&"example.test"));
    let group = f.get("/apis/example.test").await.expect(200);
    assert_eq!(group["preferredVersion"]["groupVersion"], "example.test/v1");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let document = f.get_as("/apis", accept).await.expect(200);
    let item = document["items"].as_array().expect("items").iter();
    let item = item.filter(|i| i["metadata"]["name"] == "example.test").collect::<Vec<_>>();
    assert_eq!(item[0]["versions"][0]["freshness"], "Current");
    assert_eq!(item[0]["versions"][0]["resources"][0]["resource"], "things");
    let index = f.get("/openapi/v3").await.expect(200);
    assert!(index["paths"]["apis/example.test/v1"].is_object());

    let own = f.get(&format!("{SERVICES}/v1.apps")).await.expect(200);
    assert_eq!(own["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(own["status"]["conditions"][0]["reason"], "Local");
    assert_eq!(
        (&own["spec"]["groupPriorityMinimum"], &own["spec"]["versionPriority"]),
        (&json!(17800), &json!(15))
    );

    f.delete(&format!("{SERVICES}/v1.example.test")).await.expect(200);
    for _ in 0..200 {
        if f.get(url).await.code == 404 {
            return;
        }
    }
    panic!("is still passed on");
}
