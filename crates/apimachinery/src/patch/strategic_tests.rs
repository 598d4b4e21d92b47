use super::*;
use crate::gvk::GroupVersionKind;
use serde_json::json;

fn schema_of(api_version: &str, kind: &str) -> Schema<'static> {
    let registry = Registry::builtin();
    let gvk = GroupVersionKind::from_api_version(api_version, kind);
    Schema { registry, message: registry.kind(&gvk).expect(kind) }
}

fn schema(kind: &str) -> Schema<'static> {
    let api_version = match kind {
        "Deployment" => "apps/v1",
        "CustomResourceDefinition" => "apiextensions.k8s.io/v1",
        _ => "v1",
    };
    schema_of(api_version, kind)
}

/// Each line has an object, a patch, and what upstream makes of them.
#[test]
fn patches_as_upstream() {
    for line in include_str!("testdata/strategic.jsonl").lines() {
        let case: Value = serde_json::from_str(line).expect("valid case");
        let mut object = case["object"].clone();
        let kind = case["kind"].as_str().unwrap_or_default();
        let got = apply(schema(kind), &mut object, &case["patch"]);
        match case.get("error").and_then(Value::as_str) {
            Some(want) => {
                assert_eq!(got.map_err(|e| e.to_string()), Err(want.to_owned()), "{line}");
            }
            None => {
                assert_eq!(got, Ok(()), "{line}");
                assert_eq!(object, case["result"], "{line}");
            }
        }
    }
}

#[test]
fn errors_are_sorted_by_whose_fault_they_are() {
    let pod = |object: Value, patch: Value| {
        let mut object = object;
        apply(schema("Pod"), &mut object, &patch).expect_err("must fail")
    };
    let retain = pod(json!({}), json!({"$retainKeys": "x"}));
    assert!(matches!(retain, PatchError::Malformed(_)));
    let order = pod(json!({}), json!({"$setElementOrder": []}));
    assert!(matches!(order, PatchError::Malformed(_)));
    let lists = json!({"metadata": {"finalizers": [["a"]]}});
    assert!(matches!(pod(lists.clone(), lists), PatchError::Unprocessable(_)));
    assert!(matches!(pod(json!({}), json!([])), PatchError::Malformed(_)));
    let unknown = json!({"what": {"a": 1}});
    assert_eq!(
        pod(unknown.clone(), unknown).to_string(),
        "unable to find api field in struct Pod for the json field \"what\""
    );
}

/// A patch with nothing in it, or with what is there already, changes nothing.
#[test]
fn patching_with_itself_is_a_no_op() {
    let pod = json!({
        "metadata": {"labels": {"a": "1"}, "finalizers": ["x", "y"]},
        "spec": {"containers": [{"name": "a", "env": [{"name": "A", "value": "1"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}], "args": ["x"]}, {"name": "b"}],
            "tolerations": [{"key": "k"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}
    });
    for patch in [json!({}), pod.clone()] {
        let mut object = pod.clone();
        assert_eq!(apply(schema("Pod"), &mut object, &patch), Ok(()));
        assert_eq!(object, pod);
    }
}
