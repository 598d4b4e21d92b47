//! What clients hear when a request cannot be served: in which form, in which words, and what they
//! are warned of meanwhile.

mod common;

use common::Fixture;
use serde_json::json;

const JSON: &str = "application/json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_among_compiled_groups_that_are_not_served() {
    let f = Fixture::new().await;
    let paths = [
        "/api/v2",
        "/api/v1/foos",
        "/apis/apps/v2/foos",
        "/api/v1/namespaces/default/configmaps/a/scale",
        "/api/v1/configmaps/a",
    ];
    for path in paths {
        let answer = f.get(path).await;
        assert_eq!((answer.code, answer.header("content-type")), (404, JSON), "{path}");
        let text = "the server could not find the requested resource";
        assert_eq!(answer.json()["message"], text, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_come_in_what_the_client_accepts() {
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let f = Fixture::new().await;
    let path = format!("{MAPS}/absent");
    let cases = [
        (PROTOBUF, PROTOBUF, &b"k8s\0"[..]),
        ("application/yaml", "application/yaml", b"apiVersion: v1\ncode: 404\n"),
        ("application/json", JSON, b"{\"apiVersion\""),
        // A table of an error there is none: as JSON for people.
        ("application/json;as=Table;v=v1;g=meta.k8s.io", JSON, b"{\n  \""),
    ];
    for (accept, content_type, begin) in cases {
        let answer = f.get_as(&path, accept).await;
        assert_eq!((answer.code, answer.header("content-type")), (404, content_type), "{accept}");
        assert!(answer.body.starts_with(begin), "{accept}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_come_with_errors_too() {
    let f = Fixture::new().await;
    let old =
        "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    let unknown = "299 - \"unknown field \\\"foo\\\"\"";
    let named = |name: &str| json!({"metadata": {"name": name}, "foo": 1});
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let cases = [
        ("POST", MAPS, named("B_"), 422, vec![unknown]),
        ("PUT", "/api/v1/namespaces/default/configmaps/a", named("b"), 400, vec![unknown]),
        ("POST", endpoints, named("B_"), 422, vec![old, unknown]),
        ("GET", "/api/v1/namespaces/default/endpoints/absent", json!(null), 404, vec![old]),
        ("GET", endpoints, json!(null), 200, vec![old]),
    ];
    for (method, path, object, code, want) in cases {
        let body = if object.is_null() { String::new() } else { object.to_string() };
        let answer = f.send(method, path, &[("content-type", JSON)], body).await;
        assert_eq!(answer.code, code, "{method} {path}: {answer:?}");
        let all = answer.headers.get_all("warning").iter();
        let got: Vec<&str> = all.filter_map(|v| v.to_str().ok()).collect();
        assert_eq!(got, want, "{method} {path}");
    }
}
