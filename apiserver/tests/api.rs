//! What clients rely on, over TLS.

mod common;

use std::time::Duration;

use common::{Fixture, Watch};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().expect("a version");
    text.parse().expect("a number")
}

#[tokio::test]
async fn lists_come_in_pages_of_one_state() {
    let f = Fixture::new().await;
    for i in 0..7 {
        f.post(MAPS, &map(&format!("m{i}"))).await.expect(201);
    }
    let first = f.get(&format!("{MAPS}?limit=3")).await.expect(200);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    f.delete(&format!("{MAPS}/m4")).await.expect(200);
    f.post(MAPS, &map("m9")).await.expect(201);
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        for item in page["items"].as_array().expect("items") {
            names.push(item["metadata"]["name"].as_str().expect("a name").to_owned());
        }
        assert_eq!(version(&page), version(&first), "pages share one state");
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = f.get(&format!("{MAPS}?limit=3&continue={token}")).await.expect(200);
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    let exact = format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first));
    assert_eq!(f.get(&exact).await.expect(200)["items"].as_array().map(Vec::len), Some(7));
    let future = format!("{MAPS}?resourceVersion=999999&resourceVersionMatch=NotOlderThan");
    let late = f.get(&future).await.expect(504);
    assert_eq!(late["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn watches_resume_and_mark_where_they_are() {
    let f = Fixture::new().await;
    let one = f.post(MAPS, &map("a")).await.expect(201);
    f.post(MAPS, &map("b")).await.expect(201);
    let mut watch = f.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&one))).await;
    assert_eq!(watch.next_name().await, ("ADDED".into(), "b".into()));
    let patch = json!({"metadata": {"labels": {"color": "red"}}});
    f.patch(&format!("{MAPS}/a"), "merge-patch+json", &patch).await.expect(200);
    assert_eq!(watch.next_name().await, ("MODIFIED".into(), "a".into()));

    let mut red = f
        .watch(&format!(
            "{MAPS}?watch=1&labelSelector=color%3Dred&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=5"
        ))
        .await;
    assert_eq!(red.next_name().await, ("ADDED".into(), "a".into()));
    let end = red.next().await.expect("a bookmark");
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let patch = json!({"metadata": {"labels": {"color": "blue"}}});
    let blue = f.patch(&format!("{MAPS}/a"), "merge-patch+json", &patch).await.expect(200);
    let gone = red.next().await.expect("an event");
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["metadata"]["labels"]["color"], "red");
    assert_eq!(version(&gone["object"]), version(&blue));
    // Shortly before the end comes a bookmark, and then the end.
    let last = red.next().await.expect("a bookmark");
    assert_eq!(last["type"], "BOOKMARK");
    assert_eq!(red.next().await, None);
}

/// Without an end of its own, such a watch would keep what waits for it as long as its connection
/// lasts.
#[tokio::test]
async fn a_watch_that_nobody_reads_ends() {
    let f = Fixture::new().await;
    let path = format!("{MAPS}?watch=1&timeoutSeconds=3000");
    let unread = [f.watch(&path).await, Watch::of(f.open_http1("GET", &path, &[]).await)];
    let mut read = f.watch(&path).await;
    // More than the connections take in, less than may wait for a watch.
    let mut large = map("large");
    large["data"]["k"] = "x".repeat(900_000).into();
    for n in 0..16 {
        large["metadata"]["name"] = format!("m{n}").into();
        f.post(MAPS, &large).await.expect(201);
        assert_eq!(read.next_name().await.1, format!("m{n}"));
    }
    for _ in 0..3 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
        f.get("/readyz").await;
    }
    f.post(MAPS, &map("last")).await.expect(201);
    assert_eq!(read.next_name().await.1, "last", "one that is read goes on");
    for mut watch in unread {
        let mut seen = 0;
        while watch.next().await.is_some() {
            seen += 1;
        }
        assert!(seen < 16, "what did not fit is not kept");
    }
}

#[tokio::test]
async fn writes_check_what_they_are_told() {
    let f = Fixture::new().await;
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let mut odd = map("a");
    odd["foo"] = 1.into();
    let refused = f.post(&strict, &odd).await.expect(400);
    assert_eq!(
        refused["message"],
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "foo""#
    );
    let warned = f.post(MAPS, &odd).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.header("warning"), r#"299 - "unknown field \"foo\"""#);

    let generated = json!({"metadata": {"generateName": "g-"}});
    let generated = f.post(MAPS, &generated).await.expect(201);
    assert_eq!(generated["metadata"]["name"].as_str().map(str::len), Some(7));

    let dry = f.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await.expect(201);
    assert!(dry["metadata"]["uid"].is_string());
    assert_eq!(f.get(&format!("{MAPS}/dry")).await.code, 404);

    let invalid = f.post(MAPS, &map("Not_A_Name")).await.expect(422);
    assert_eq!(invalid["details"]["causes"][0]["field"], "metadata.name");
    let twice = f.post(MAPS, &map("a")).await.expect(409);
    assert_eq!(twice["message"], r#"configmaps "a" already exists"#);

    let url = format!("{MAPS}/a");
    let uid = r#"{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"x"}}"#;
    assert_eq!(
        f.send("DELETE", &url, &[("content-type", "application/json")], uid).await.code,
        409
    );
    let foreground = f.delete(&format!("{url}?propagationPolicy=Foreground")).await.expect(200);
    assert_eq!(foreground["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let freed = json!({"metadata": {"finalizers": null}});
    f.patch(&url, "merge-patch+json", &freed).await.expect(200);
    assert_eq!(f.get(&url).await.code, 404);

    let large = vec![b' '; 3 * 1024 * 1024 + 1];
    let answer = f.send("POST", MAPS, &[("content-type", "application/json")], large).await;
    assert_eq!(answer.expect(413)["message"], "Request entity too large: limit is 3145728");
    let patch = f.send("PATCH", &url, &[("content-type", "application/json")], "{}").await;
    assert_eq!(patch.code, 415);
    assert_eq!(f.get("/api/v1/nothings").await.code, 404);
    assert_eq!(f.send("POST", &url, &[], "{}").await.code, 405);
}

#[tokio::test]
async fn apply_creates_merges_and_conflicts() {
    let f = Fixture::new().await;
    let url = format!("{MAPS}/a");
    let first = f.patch(&format!("{url}?fieldManager=one"), "apply-patch+yaml", &map("a")).await;
    assert_eq!(first.expect(201)["metadata"]["managedFields"][0]["manager"], "one");
    let mut other = map("a");
    other["data"]["k"] = "w".into();
    let path = format!("{url}?fieldManager=two");
    let conflict = f.patch(&path, "apply-patch+yaml", &other).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.k");
    let forced = f.patch(&format!("{path}&force=true"), "apply-patch+yaml", &other).await;
    assert_eq!(forced.expect(200)["data"]["k"], "w");
}

#[tokio::test]
async fn others_are_impersonated_and_refused() {
    let f = Fixture::new().await;
    let headers = [("impersonate-user", "eve"), ("impersonate-group", "devs")];
    let refused = f.send("GET", MAPS, &headers, "").await.expect(403);
    assert_eq!(
        refused["message"],
        r#"configmaps is forbidden: User "eve" cannot list resource "configmaps" in API group "" in the namespace "default""#
    );
    let mut f = f;
    f.as_nobody();
    let refused = f.send("GET", MAPS, &headers, "").await.expect(403);
    assert_eq!(
        refused["message"],
        r#"users "eve" is forbidden: User "nobody" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
}

#[tokio::test]
async fn namespaces_end_in_phases() {
    let f = Fixture::new().await;
    let url = "/api/v1/namespaces/gone";
    f.post("/api/v1/namespaces", &json!({"metadata": {"name": "gone"}})).await.expect(201);
    let marked = f.delete(url).await.expect(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let late = f.post("/api/v1/namespaces/gone/configmaps", &map("a")).await.expect(403);
    assert_eq!(late["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut finalized = f.get(url).await.expect(200);
    finalized["spec"]["finalizers"] = json!([]);
    f.put(&format!("{url}/finalize"), &finalized).await.expect(200);
    assert_eq!(f.get(url).await.code, 404);
}

#[tokio::test]
async fn pods_are_bound_scaled_and_left_with_grace() {
    let f = Fixture::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    f.post(pods, &pod).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n"}});
    f.post(&format!("{pods}/p/binding"), &binding).await.expect(201);
    let again = f.post(&format!("{pods}/p/binding"), &binding).await.expect(409);
    assert_eq!(
        again["message"],
        r#"Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n""#
    );
    let on_node = f.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn").await.expect(200);
    assert_eq!(on_node["items"].as_array().map(Vec::len), Some(1));
    let marked = f.delete(&format!("{pods}/p")).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    f.delete(&format!("{pods}/p?gracePeriodSeconds=0")).await.expect(200);
    assert_eq!(f.get(&format!("{pods}/p")).await.code, 404);

    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]}}});
    f.post(deployments, &deployment).await.expect(201);
    let scale = f.get(&format!("{deployments}/d/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("a=b"))
    );
    let patch = json!({"spec": {"replicas": 4}});
    f.patch(&format!("{deployments}/d/scale"), "merge-patch+json", &patch).await.expect(200);
    let scaled = f.get(&format!("{deployments}/d")).await.expect(200);
    assert_eq!(
        (&scaled["spec"]["replicas"], &scaled["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
    let status = json!({"status": {"replicas": 1}, "spec": {"replicas": 9}});
    let status = f.patch(&format!("{deployments}/d/status"), "merge-patch+json", &status).await;
    let status = status.expect(200);
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&json!(4), &json!(1))
    );
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let f = Fixture::new().await;
    let made = f.post(MAPS, &map("a")).await.expect(201);
    let dir = f.stop().await;
    let f = Fixture::over(dir, |_| {}).await;
    assert_eq!(f.get(&format!("{MAPS}/a")).await.expect(200), made);
    assert!(version(&f.post(MAPS, &map("b")).await.expect(201)) > version(&made));
    // Who watched before goes on where it was.
    let mut old = f.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&made) - 1)).await;
    for name in ["a", "b"] {
        let event = old.next().await.expect("an event");
        let seen = (event["type"].as_str(), event["object"]["metadata"]["name"].as_str());
        assert_eq!(seen, (Some("ADDED"), Some(name)));
    }
}

#[tokio::test]
async fn the_api_describes_itself() {
    let f = Fixture::new().await;
    assert_eq!(f.get("/version").await.expect(200)["gitVersion"], "v1.35.0");
    let list = f.get("/api/v1").await.expect(200);
    let names: Vec<&str> = list["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert!(names.contains(&"pods") && names.contains(&"pods/status"), "{names:?}");
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let aggregated = f.get_as("/apis", accept).await;
    let etag = aggregated.header("etag").to_owned();
    assert_eq!(aggregated.expect(200)["kind"], "APIGroupDiscoveryList");
    assert_eq!(etag.len(), 130, "{etag}");
    let headers = [("accept", accept), ("if-none-match", etag.as_str())];
    let same = f.send("GET", "/apis", &headers, "").await;
    assert_eq!((same.code, same.header("etag")), (304, etag.as_str()));
    assert_eq!((same.header("content-type"), same.header("vary")), ("", "Accept"));
    assert_eq!(same.header("cache-control"), "public");
    let protobuf =
        format!("application/json,{}", accept.replace("json;", "vnd.kubernetes.protobuf;"));
    let protobuf = f.get_as("/apis", &protobuf).await;
    assert_eq!(protobuf.header("etag"), etag);
    assert!(protobuf.header("content-type").starts_with("application/vnd.kubernetes.protobuf;g="));
    assert!(protobuf.body.starts_with(b"k8s\0"));
    let plain = f.get("/apis").await;
    assert_eq!(
        (plain.header("etag"), plain.expect(200)["kind"].as_str()),
        ("", Some("APIGroupList"))
    );
    let index = f.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("a path").to_owned();
    let document = f.get(&url).await;
    assert_eq!(document.header("cache-control"), "public, immutable");
    assert!(document.header("expires").ends_with(" UTC"));
    let tag = document.header("etag").to_owned();
    let path = url.split('?').next().unwrap_or_default();
    let moved = f.get(&format!("{path}?hash=OLD")).await;
    assert_eq!((moved.code, moved.header("location")), (301, url.as_str()));
    let known = f.send("GET", path, &[("if-none-match", tag.as_str())], "").await;
    assert_eq!((known.code, known.header("vary")), (304, "Accept"));
    let document = document.expect(200);
    let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    assert!(pod["description"].as_str().is_some_and(|d| d.starts_with("Pod is a collection")));
    let v2 = f.get("/openapi/v2").await.expect(200);
    assert!(v2["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
    for (path, id, action) in [
        ("pods", "watchCoreV1PodListForAllNamespaces", "watchlist"),
        ("namespaces/{namespace}/pods", "watchCoreV1NamespacedPodList", "watchlist"),
        ("namespaces/{namespace}/pods/{name}", "watchCoreV1NamespacedPod", "watch"),
        ("nodes", "watchCoreV1NodeList", "watchlist"),
        ("nodes/{name}", "watchCoreV1Node", "watch"),
    ] {
        let path = format!("/api/v1/watch/{path}");
        for document in [&v2, &document] {
            let get = &document["paths"][&path]["get"];
            let got = (get["operationId"].as_str(), get["x-kubernetes-action"].as_str());
            assert_eq!(got, (Some(id), Some(action)), "{path}");
        }
    }
    let watched = "/apis/authorization.k8s.io/v1/watch/subjectaccessreviews";
    assert!(v2["paths"][watched].is_null(), "what is only created is not watched");
    let compressed = f.send("GET", "/openapi/v2", &[("accept-encoding", "gzip")], "").await;
    assert_eq!(compressed.header("content-encoding"), "gzip");
}

#[tokio::test]
async fn parts_of_pods_own_all_that_is_applied_to_them() {
    let f = Fixture::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    f.post(pods, &pod).await.expect(201);
    let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]},
        "status": {"phase": "Running"}});
    let url = format!("{pods}/p/ephemeralcontainers?fieldManager=a");
    let applied = f.patch(&url, "apply-patch+yaml", &config).await.expect(200);
    // The part is stored, and the rest is only owned.
    assert_eq!(applied["spec"]["ephemeralContainers"][0]["name"], "d");
    assert_eq!(applied["status"]["phase"], "Pending");
    let entries = applied["metadata"]["managedFields"].as_array().expect("entries");
    let entry = entries.iter().find(|e| e["manager"] == "a").expect("an entry");
    let fields = json!({
        "f:spec": {"f:ephemeralContainers": {"k:{\"name\":\"d\"}": {
            ".": {}, "f:image": {}, "f:name": {}}}},
        "f:status": {"f:phase": {}},
    });
    assert_eq!(entry["subresource"], "ephemeralcontainers");
    assert_eq!(entry["fieldsV1"], fields);
}

#[tokio::test]
async fn the_second_edition_comes_as_protobuf() {
    let f = Fixture::new().await;
    let returned = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    for accept in [
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json;q=0.5",
    ] {
        let answer = f.get_as("/openapi/v2", accept).await;
        assert_eq!((answer.code, answer.header("content-type")), (200, returned), "{accept}");
        assert_eq!(answer.header("vary"), "Accept");
        assert!(answer.body.len() > 100_000, "{}", answer.body.len());
        let headers = [("accept", accept), ("if-none-match", answer.header("etag"))];
        assert_eq!(f.send("GET", "/openapi/v2", &headers, "").await.code, 304);
    }
    assert_eq!(f.get_as("/openapi/v2", "text/html").await.code, 406);
    assert_eq!(f.get_as("/openapi/v2", "*/*").await.header("content-type"), "application/json");
}

#[tokio::test]
async fn health_is_told_check_by_check() {
    let f = Fixture::new().await;
    let all = f.get("/readyz?verbose").await;
    assert_eq!((all.code, all.header("content-type")), (200, "text/plain; charset=utf-8"));
    let text = String::from_utf8_lossy(&all.body).into_owned();
    let begin = "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n[+]informer-sync ok\n\
                 [+]poststarthook/start-apiserver-admission-initializer ok\n";
    assert!(text.starts_with(begin), "{text}");
    assert!(text.ends_with("[+]shutdown ok\nreadyz check passed\n"), "{text}");
    let paths = f.get("/").await.expect(200);
    let paths: Vec<&str> =
        paths["paths"].as_array().expect("paths").iter().filter_map(Value::as_str).collect();
    for line in text.lines() {
        let Some(name) = line.strip_prefix("[+]").and_then(|l| l.strip_suffix(" ok")) else {
            continue;
        };
        let path = format!("/readyz/{name}");
        let one = f.get(&path).await;
        assert_eq!((one.code, &*one.body), (200, &b"ok"[..]), "{path}");
        assert!(paths.contains(&path.as_str()), "{path}");
        // What is of readiness alone is nowhere else.
        let of_life = f.get(&format!("/livez/{name}")).await.code;
        let alone = ["etcd-readiness", "informer-sync", "shutdown"].contains(&name);
        assert_eq!(of_life, if alone { 404 } else { 200 }, "{name}");
    }
}

#[tokio::test]
async fn servers_tell_that_they_are_there() {
    let f = Fixture::new().await;
    let all = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=apiserver.kubernetes.io%2Fidentity%3Dkube-apiserver";
    let leases = f.get(all).await.expect(200);
    let [lease] = leases["items"].as_array().expect("items").as_slice() else {
        panic!("one server has one lease: {leases}");
    };
    let name = lease["metadata"]["name"].as_str().expect("a name");
    let holder = lease["spec"]["holderIdentity"].as_str().expect("a holder");
    assert!(name.starts_with("apiserver-") && holder.starts_with(&format!("{name}_")), "{lease}");
    assert!(lease["spec"]["renewTime"].is_string());
}
