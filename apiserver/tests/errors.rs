//! What clients hear when a request cannot be served: in which form, in which words, and what they
//! are warned of meanwhile.

mod common;

use common::{Answer, Fixture};
use serde_json::json;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const LOST: &str = "the server could not find the requested resource";
const NO_METHOD: &str = "the server does not allow this method on the requested resource";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn message(answer: &Answer) -> String {
    if answer.header("content-type") != JSON {
        return String::from_utf8_lossy(&answer.body).into_owned();
    }
    answer.json()["message"].as_str().unwrap_or("").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods_that_are_not_served() {
    let f = Fixture::new().await;
    let nowhere = "404 page not found\n";
    // Method, path, Accept; code, Content-Type, message.
    #[rustfmt::skip]
    let cases = [
        ("GET", "/api/v2", "", 404, JSON, LOST),
        ("GET", "/api/v1/foos", "", 404, JSON, LOST),
        ("GET", "/apis/apps/v2/foos", "", 404, JSON, LOST),
        ("GET", "/api/v1/namespaces/default/configmaps/a/scale", "", 404, JSON, LOST),
        ("GET", "/api/v1/configmaps/a", "", 404, JSON, LOST),
        ("GET", "/api/v1/bindings", "", 404, JSON, LOST),
        ("GET", "/apis/foo/v1/bars", "", 404, TEXT, nowhere),
        ("GET", "/foo", "", 404, TEXT, nowhere),
        ("GET", "/healthz/", "", 404, TEXT, nowhere),
        ("POST", "/api/v1/configmaps", "", 405, JSON, NO_METHOD),
        ("PUT", "/version", "", 405, JSON, NO_METHOD),
        ("POST", "/apis/apps/v1", "", 405, JSON, NO_METHOD),
        ("OPTIONS", "/apis/apps", "", 405, JSON, NO_METHOD),
        ("GET", "/api/v1/namespaces/default/finalize", "", 405, JSON, NO_METHOD),
        ("POST", "/apis", "", 200, JSON, ""),
        ("GET", "/version", "text/html", 406, JSON,
            "406: Not Acceptable\n\nAvailable representations: application/json"),
        ("GET", MAPS, "application/*", 406, JSON,
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"),
        ("PATCH", "/api/v1/namespaces/default/configmaps/a", "", 415, JSON, "415: Unsupported Media Type"),
        ("GET", "/api/v1/nodes?timeout=1", "", 400, JSON,
            "invalid timeout specified in the request URL - time: missing unit in duration \"1\""),
        ("GET", "/api/v1/persistentvolumes?fieldSelector=name%3Dx", "", 400, JSON,
            "\"name\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
        ("GET", "/api/v1/pods?fieldSelector=name%3Dx", "", 400, JSON, "field label not supported: name"),
        ("GET", "/api/v1/nodes?resourceVersion=x", "", 400, JSON,
            "invalid resource version: resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax"),
    ];
    for (method, path, accept, code, content_type, text) in cases {
        let headers: &[(&str, &str)] = if accept.is_empty() { &[] } else { &[("accept", accept)] };
        let answer = f.send(method, path, headers, "").await;
        let got = (answer.code, answer.header("content-type"), message(&answer));
        assert_eq!(got, (code, content_type, text.to_owned()), "{method} {path} {accept}");
        if content_type == TEXT && code >= 400 {
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        }
    }
    let yaml = [("content-type", "application/apply-patch+yaml")];
    for (object, text) in [
        (json!({"apiVersion": "v1", "metadata": {"name": "a"}}), "invalid object type: /v1, Kind="),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap"}),
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
    ] {
        let path = format!("{MAPS}/a?fieldManager=m");
        let answer = f.send("PATCH", &path, &yaml, object.to_string()).await;
        assert_eq!((answer.code, message(&answer)), (400, text.to_owned()));
    }
    let head = f.send("HEAD", MAPS, &[], "").await;
    assert_eq!(head.code, 405);
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
