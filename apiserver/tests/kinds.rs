//! What some kinds do that others do not, and what collections are deleted by.

mod common;

use common::Fixture;
use serde_json::{Value, json};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn a_page_of_a_collection_is_deleted() {
    let f = Fixture::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["a", "b", "c", "d"] {
        f.post(maps, &json!({"metadata": {"name": name, "finalizers": ["x.io/y"]}})).await;
    }
    let first = f.delete(&format!("{maps}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    // They are shown as they were before.
    assert_eq!(first["items"][0]["metadata"].get("deletionTimestamp"), None);
    let left = f.get(maps).await.expect(200);
    let marked =
        |list: &Value, i: usize| list["items"][i]["metadata"]["deletionTimestamp"].is_string();
    assert_eq!([0, 1, 2, 3].map(|i| marked(&left, i)), [true, true, false, false]);
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = f.delete(&format!("{maps}?limit=1&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["c"]);
    let rest = f.delete(maps).await.expect(200);
    assert_eq!((names(&rest).len(), rest["metadata"].get("continue")), (4, None));
}

#[tokio::test]
async fn deletes_of_jobs_say_what_becomes_of_pods() {
    let f = Fixture::new().await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let warning = "299 - \"child pods are preserved by default when jobs are deleted; set \
                   propagationPolicy=Background to remove them or set propagationPolicy=Orphan to \
                   suppress this warning\"";
    for (path, want) in [
        ("/absent", warning),
        ("", warning),
        ("?propagationPolicy=Orphan", ""),
        ("?orphanDependents=true", ""),
    ] {
        let answer = f.delete(&format!("{jobs}{path}")).await;
        assert_eq!(answer.header("warning"), want, "{path}");
    }
}

#[tokio::test]
async fn policies_that_are_none_are_not_those_by_default() {
    let f = Fixture::new().await;
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let scaler = |rules: Value| {
        json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 2, "behavior": {"scaleUp": rules},
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}})
    };
    let none = f.post(path, &scaler(json!({"policies": []}))).await.expect(422);
    assert_eq!(
        none["details"]["causes"],
        json!([{"reason": "FieldValueRequired", "field": "spec.behavior.scaleUp.policies",
            "message": "Required value: must specify at least one Policy"}])
    );
    let made = f.post(path, &scaler(json!({"policies": null}))).await.expect(201);
    let count =
        |object: &Value| object["spec"]["behavior"]["scaleUp"]["policies"].as_array().map(Vec::len);
    assert_eq!(count(&made), Some(2));
    let patch = json!({"spec": {"behavior": {"scaleUp": {"policies": []}}}});
    let path = format!("{path}/a");
    assert_eq!(f.patch(&path, "merge-patch+json", &patch).await.code, 422);
}

#[tokio::test]
async fn data_of_revisions_stays_to_the_letter() {
    let f = Fixture::new().await;
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let made = f
        .post(path, &json!({"metadata": {"name": "r"}, "revision": 1, "data": {"spec": {}}}))
        .await
        .expect(201);
    let path = format!("{path}/r");
    for data in [json!({}), json!({"spec": null}), json!({"spec": {"a": 1}})] {
        let mut changed = made.clone();
        changed["data"] = data.clone();
        let refused = f.put(&path, &changed).await.expect(422);
        assert_eq!(
            refused["message"],
            format!(
                "ControllerRevision.apps \"r\" is invalid: data: Invalid value: {data}: field is \
                 immutable"
            )
        );
    }
    let labels = json!({"metadata": {"labels": {"a": "b"}}, "revision": 2});
    for kind in ["strategic-merge-patch+json", "merge-patch+json"] {
        f.patch(&path, kind, &labels).await.expect(200);
    }
}

#[tokio::test]
async fn managers_own_what_they_wrote() {
    let f = Fixture::new().await;
    let claim = json!({"name": "c", "namespace": "n"});
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "claimRef": &claim}});
    let made = f.post("/api/v1/persistentvolumes", &volume).await.expect(201);
    let fields = |object: &Value| object["metadata"]["managedFields"][0]["fieldsV1"].clone();
    assert_eq!(
        fields(&made)["f:spec"]["f:claimRef"],
        json!({".": {}, "f:name": {}, "f:namespace": {}})
    );
    let set = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let sets = "/apis/apps/v1/namespaces/default/daemonsets";
    let made = f.post(sets, &set).await.expect(201);
    let annotation = "deprecated.daemonset.template.generation";
    assert_eq!(made["metadata"]["annotations"][annotation], "1");
    assert_eq!(
        fields(&made)["f:metadata"]["f:annotations"],
        json!({".": {}, "f:deprecated.daemonset.template.generation": {}})
    );
    // A status that comes without it leaves it as it is.
    let mut status = made.clone();
    status["metadata"].as_object_mut().expect("metadata").remove("annotations");
    let kept = f.put(&format!("{sets}/d/status"), &status).await.expect(200);
    assert_eq!(kept["metadata"]["annotations"][annotation], "1");
    let mut applied = set.clone();
    applied["apiVersion"] = "apps/v1".into();
    applied["kind"] = "DaemonSet".into();
    applied["metadata"]["name"] = "e".into();
    let path = format!("{sets}/e?fieldManager=m");
    let made = f.patch(&path, "apply-patch+yaml", &applied).await.expect(201);
    assert_eq!(made["metadata"]["annotations"][annotation], "1");
    assert_eq!(fields(&made).get("f:metadata"), None);

    // What a write of the status leaves alone belongs to nobody by it.
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    f.post(deployments, &set).await.expect(201);
    let patch = json!({"metadata": {"labels": {"x": "y"}}, "status": {"replicas": 1}});
    let path = format!("{deployments}/d/status");
    let made = f.patch(&path, "merge-patch+json", &patch).await.expect(200);
    let entries = made["metadata"]["managedFields"].as_array().expect("managers").clone();
    let of_status: Vec<&Value> =
        entries.iter().filter(|e| e["subresource"] == "status").map(|e| &e["fieldsV1"]).collect();
    assert_eq!(of_status, [&json!({"f:status": {"f:replicas": {}}})]);
}
