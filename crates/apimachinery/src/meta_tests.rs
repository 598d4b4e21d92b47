use super::*;
use serde_json::json;

fn texts(errors: ErrorList) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn create(meta: Value, namespaced: bool) -> Vec<String> {
    let object = json!({"metadata": meta});
    let path = Path::new("metadata");
    texts(validate_object_meta(&object, namespaced, names::name_is_subdomain, &path))
}

#[test]
fn new_objects() {
    for (meta, namespaced, want) in [
        (json!({"name": "a", "namespace": "b"}), true, vec![]),
        (json!({"name": "a"}), false, vec![]),
        (
            json!({}),
            true,
            vec![
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Required value",
            ],
        ),
        (
            json!({"name": "a", "namespace": "b"}),
            false,
            vec!["metadata.namespace: Forbidden: not allowed on this type"],
        ),
        (
            json!({"name": "a", "generation": -1}),
            false,
            vec!["metadata.generation: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            json!({"name": "a", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Event", "name": "x", "uid": "u"}]}),
            false,
            vec![
                "metadata.ownerReferences: Invalid value: \
                 {\"apiVersion\":\"v1\",\"kind\":\"Event\",\"name\":\"x\",\"uid\":\"u\"}: \
                 /v1, Kind=Event is disallowed from being an owner",
            ],
        ),
        (
            json!({"name": "a", "ownerReferences": [{}]}),
            false,
            vec![
                "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty",
                "metadata.ownerReferences.kind: Invalid value: \"\": must not be empty",
                "metadata.ownerReferences.name: Invalid value: \"\": must not be empty",
                "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
            ],
        ),
        (
            json!({"name": "a", "finalizers": ["orphan", "foregroundDeletion"]}),
            false,
            vec![
                "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: \
                 finalizer orphan and foregroundDeletion cannot be both set",
            ],
        ),
        (
            json!({"name": "a", "managedFields": [{"operation": "Get", "fieldsType": "X", "manager": "a\n"}]}),
            false,
            vec![
                "metadata.managedFields[0].operation: Invalid value: \"Get\": must be `Apply` or `Update`",
                "metadata.managedFields[0].fieldsType: Invalid value: \"X\": must be `FieldsV1`",
                "metadata.managedFields[0].manager: Invalid value: \"a\\n\": invalid character U+000A (at position 1)",
            ],
        ),
    ] {
        assert_eq!(create(meta.clone(), namespaced), want, "{meta}");
    }
    assert_eq!(create(json!({"name": "A", "generateName": "B"}), false).len(), 2);
    let big =
        json!({"name": "a", "annotations": {"Any.Case/Key": "x".repeat(MAX_ANNOTATION_BYTES)}});
    assert_eq!(
        create(big, false),
        ["metadata.annotations: Too long: may not be more than 262144 bytes"]
    );
}

#[test]
fn two_controllers() {
    let reference = |name| json!({"apiVersion": "v1", "kind": "K", "name": name, "uid": "u", "controller": true});
    let meta = json!({"name": "a", "ownerReferences": [reference("x"), reference("y")]});
    let errors = create(meta, false);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].ends_with(
        ": Only one reference can have Controller set to true. Found \"true\" in references for \
         K/x and K/y"
    ));
}

#[test]
fn changed_objects() {
    let old = json!({"name": "a", "uid": "u", "resourceVersion": "1", "generation": 2,
        "creationTimestamp": "2020-01-01T00:00:00Z"});
    let with = |changes: Value| {
        let mut meta = old.clone();
        if let (Some(meta), Value::Object(changes)) = (meta.as_object_mut(), changes) {
            meta.extend(changes);
        }
        meta
    };
    let update = |new: Value, old: Value| {
        let (new, old) = (json!({"metadata": new}), json!({"metadata": old}));
        texts(validate_object_meta_update(&new, &old, &Path::new("metadata")))
    };
    let deleting = json!({"deletionTimestamp": "2020-01-01T00:00:00Z", "finalizers": ["a/b"]});
    for (new, old, want) in [
        (with(json!({})), old.clone(), vec![]),
        (
            with(json!({"name": "b"})),
            old.clone(),
            vec!["metadata.name: Invalid value: \"b\": field is immutable"],
        ),
        (
            with(json!({"resourceVersion": ""})),
            old.clone(),
            vec!["metadata.resourceVersion: Invalid value: \"\": must be specified for an update"],
        ),
        (
            with(json!({"generation": 1})),
            old.clone(),
            vec!["metadata.generation: Invalid value: 1: must not be decremented"],
        ),
        (
            with(json!({"deletionTimestamp": "2020-01-01T00:00:00Z"})),
            old.clone(),
            vec![
                "metadata.deletionTimestamp: Invalid value: \"2020-01-01T00:00:00Z\": field is immutable",
            ],
        ),
        (
            with(
                json!({"deletionTimestamp": "2020-01-01T00:00:00Z", "finalizers": ["a/b", "a/c"]}),
            ),
            with(deleting),
            vec![
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is \
                 being deleted, found new finalizers []string{\"a/c\"}",
            ],
        ),
    ] {
        assert_eq!(update(new.clone(), old), want, "{new}");
    }
}

#[test]
fn selectors() {
    let check = |selector: Value, options| {
        texts(validate_label_selector(Some(&selector), options, &Path::new("spec.selector")))
    };
    let strict = LabelSelectorOptions::default();
    for (selector, want) in [
        (json!(null), vec![]),
        (json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), vec![]),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            vec![
                "spec.selector.matchExpressions[0].values: Required value: must be specified when \
                 `operator` is 'In' or 'NotIn'",
            ],
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
            vec![
                "spec.selector.matchExpressions[0].values: Forbidden: may not be specified when \
                 `operator` is 'Exists' or 'DoesNotExist'",
            ],
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "X"}]}),
            vec![
                "spec.selector.matchExpressions[0].operator: Invalid value: \"X\": not a valid \
                 selector operator",
            ],
        ),
    ] {
        assert_eq!(check(selector.clone(), strict), want, "{selector}");
    }
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["-"]}]});
    assert_eq!(check(odd.clone(), strict).len(), 1);
    assert!(selector_has_invalid_value(Some(&odd)));
    let lax = LabelSelectorOptions { allow_invalid_label_value: true, ..strict };
    assert!(check(odd, lax).is_empty());
}

#[test]
fn empty_is_absent() {
    for (a, b, want) in [
        (json!(null), json!([]), true),
        (json!({}), json!(null), true),
        (json!({"a": []}), json!({}), true),
        (json!({"a": 1}), json!({}), false),
        (json!([1]), json!([]), false),
        (json!(""), json!(null), false),
    ] {
        assert_eq!(semantically_equal(&a, &b), want, "{a} {b}");
        assert_eq!(semantically_equal(&b, &a), want, "{b} {a}");
    }
}
