use super::*;
use crate::schema::Registry;
use proptest::prelude::*;
use serde_json::json;

fn schema_of(api_version: &str, kind: &str) -> Schema<'static> {
    let registry = Registry::builtin();
    let gvk = GroupVersionKind::from_api_version(api_version, kind);
    Schema { registry, message: registry.kind(&gvk).expect(kind) }
}

fn manager<'a>(name: &'a str, api_version: &'a str, now: &'a str) -> Manager<'a> {
    Manager { name, subresource: "", api_version, now }
}

const NOW: &str = "2024-01-02T03:04:05Z";
const LATER: &str = "2024-02-02T03:04:05Z";

fn without_times(mut obj: Value) -> Value {
    let entries = obj.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
        entry.remove("time");
    }
    obj
}

/// Each line is a story of applies and updates, with what upstream makes of each step.
#[test]
fn applies_as_upstream() {
    for line in include_str!("testdata/apply.jsonl").lines() {
        let story: Value = serde_json::from_str(line).expect("valid story");
        let text = |v: &Value, name: &str| v[name].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text(&story, "apiVersion"), text(&story, "kind"));
        let typing = match kind.as_str() {
            "Deduced" => Typing::Deduced,
            kind => Typing::Schema(schema_of(&api_version, kind)),
        };
        let mut live = json!({"apiVersion": api_version, "kind": kind});
        for (i, step) in story["steps"].as_array().into_iter().flatten().enumerate() {
            let place = format!("{}, step {i}", story["name"]);
            let name = text(step, "manager");
            let manager = manager(&name, &api_version, NOW);
            let config = &step["object"];
            let force = step["force"] == json!(true);
            let got = if step["op"] == json!("apply") {
                apply_typed(typing, Some(&live), config, &manager, force, &[])
            } else {
                let mut new = config.clone();
                track_update_typed(typing, Some(&live), &mut new, &manager, &[]);
                Ok(new)
            };
            match (got, step.get("result"), step.get("conflicts"), step.get("error")) {
                (Ok(got), Some(want), _, _) => {
                    assert_eq!(without_times(got.clone()), *want, "{place}");
                    live = got;
                }
                (Err(ApplyError::Conflicts(mut got)), _, Some(want), _) => {
                    // The cases list them sorted: upstream has no order between managers.
                    got.sort();
                    assert_eq!(json!(got), *want, "{place}");
                }
                (Err(ApplyError::Patch(e)), _, _, Some(want)) => {
                    assert_eq!(json!(e.to_string()), *want, "{place}");
                }
                (got, ..) => panic!("{place}: {got:?}, not {step}"),
            }
        }
    }
}

/// Each line is a request to a real API server and what it answered. Objects go from line to
/// line; what a write leaves of the fields' owners must be the same here.
#[test]
fn owners_as_a_real_server() {
    let mut live: Option<Value> = None;
    let mut story = Value::Null;
    for line in include_str!("testdata/server.jsonl").lines() {
        let case: Value = serde_json::from_str(line).expect("valid case");
        if case["story"] != story {
            (live, story) = (None, case["story"].clone());
        }
        let text = |name: &str| case[name].as_str().unwrap_or_default();
        let schema = schema_of(text("apiVersion"), text("kind"));
        let m = Manager {
            name: text("manager"),
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            now: NOW,
        };
        let reset: ResetFields<'_> = match m.subresource {
            "" => &[&["status"]],
            _ => &[&["spec"], &["metadata", "labels"]],
        };
        let force = case["force"] == json!(true);
        let got = if text("op") == "apply" {
            apply(schema, live.as_ref(), &case["body"], &m, force, reset)
        } else {
            match &case["result"] {
                Value::Null => continue,
                result => Ok(tracked(schema, live.as_ref(), result, &case["body"], &m, reset)),
            }
        };
        match got {
            Ok(got) => {
                let result = &case["result"];
                // Their order is by times, which the lines do not have.
                let owners = |v: &Value| {
                    let mut owners = object::list_at(v, &["metadata", "managedFields"]).to_vec();
                    for entry in owners.iter_mut().filter_map(Value::as_object_mut) {
                        entry.remove("time");
                    }
                    owners.sort_by_key(ToString::to_string);
                    owners
                };
                assert_eq!(owners(&got), owners(result), "{line}");
                live = Some(result.clone());
            }
            Err(e) => {
                let status = crate::status::ApiError::from(e).status();
                assert_eq!(status["message"], case["message"], "{line}");
                assert_eq!(status["code"], case["code"], "{line}");
            }
        }
    }
}

/// An update's result, with the owners that follow from it here.
fn tracked(
    schema: Schema<'_>,
    live: Option<&Value>,
    result: &Value,
    body: &Value,
    m: &Manager<'_>,
    reset: ResetFields<'_>,
) -> Value {
    let mut new = result.clone();
    object::remove(&mut new, &["metadata", "managedFields"]);
    if live.is_none() {
        // The owners of a new object are found before admission and the strategy touch it.
        new["status"] = json!({});
        for path in ["/spec/priority", "/spec/preemptionPolicy", "/spec/enableServiceLinks"] {
            let (parent, name) = path.rsplit_once('/').unwrap_or_default();
            let spec = new.pointer_mut(parent).and_then(Value::as_object_mut);
            if str_at(result, &["kind"]) == "Pod" && name != "enableServiceLinks" {
                spec.and_then(|s| s.remove(name));
            }
        }
        let added = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
        if let Some(tolerations) =
            new.pointer_mut("/spec/tolerations").and_then(Value::as_array_mut)
        {
            tolerations.retain(|t| !added.contains(&str_at(t, &["key"])));
        }
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            object::remove(&mut new, &["spec", name]);
        }
        object::remove(&mut new, &["metadata", "annotations"]);
        if let Some(annotations) = object::get(body, &["metadata", "annotations"]) {
            object::set(&mut new, &["metadata", "annotations"], annotations.clone());
        }
    }
    if let Some(entries) = object::get(body, &["metadata", "managedFields"]) {
        object::set(&mut new, &["metadata", "managedFields"], entries.clone());
    }
    track_update(schema, live, &mut new, m, reset);
    new
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data})
}

fn config_map_schema() -> Schema<'static> {
    schema_of("v1", "ConfigMap")
}

fn times(obj: &Value) -> Vec<&str> {
    let entries = object::list_at(obj, &["metadata", "managedFields"]);
    entries.iter().map(|e| str_at(e, &["time"])).collect()
}

#[test]
fn times_follow_changes() {
    let schema = config_map_schema();
    let apply_at = |live: Option<&Value>, now: &'static str, v: &str| {
        let config = config_map(json!({"k": v}));
        apply(schema, live, &config, &manager("a", "v1", now), false, &[]).expect("no conflict")
    };
    let first = apply_at(None, NOW, "1");
    assert_eq!(times(&first), [NOW]);
    let same = apply_at(Some(&first), LATER, "1");
    assert_eq!(same, first);
    let other = apply_at(Some(&first), LATER, "2");
    assert_eq!(times(&other), [LATER]);
    let mut updated = first.clone();
    track_update(schema, Some(&first), &mut updated, &manager("u", "v1", LATER), &[]);
    assert_eq!(updated, first);
}

#[test]
fn unchanged_objects_keep_their_times() {
    let old = json!({"a": 1, "metadata": {"managedFields": [{"manager": "m", "time": NOW}]}});
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = LATER.into();
    let mut changed = new.clone();
    changed["a"] = 2.into();
    let before = changed.clone();
    super::super::managers::keep_times_if_unchanged(&mut new, &old);
    assert_eq!(new, old);
    super::super::managers::keep_times_if_unchanged(&mut changed, &old);
    assert_eq!(changed, before);
}

#[test]
fn reset_fields_belong_to_nobody() {
    let schema = schema_of("v1", "Pod");
    let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIPs": [{"ip": "1.1.1.1"}]}});
    let m = manager("a", "v1", NOW);
    let applied = apply(schema, None, &config, &m, false, &[&["status"]]).expect("no conflict");
    let owned = &applied["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(*owned, json!({"f:spec": {"f:nodeName": {}}}));
    let mut created = config.clone();
    track_update(schema, None, &mut created, &m, &[&["status"]]);
    let owned = &created["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(*owned, json!({"f:spec": {"f:nodeName": {}}}));
}

#[test]
fn subresources_have_entries_of_their_own() {
    let schema = schema_of("v1", "Pod");
    let base = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "status": {}});
    let status = Manager { subresource: "status", ..manager("k", "v1", NOW) };
    let mut live = base.clone();
    live["status"] = json!({"phase": "Running"});
    // What a client says of managedFields through a subresource does not count.
    live["metadata"]["managedFields"] = json!([{}]);
    track_update(schema, Some(&base), &mut live, &status, &[]);
    assert_eq!(
        live["metadata"]["managedFields"],
        json!([{"manager": "k", "operation": "Update", "apiVersion": "v1", "time": NOW,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:phase": {}}},
            "subresource": "status"}])
    );
    let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "status": {"phase": "Failed"}});
    let got = apply(schema, Some(&live), &config, &manager("a", "v1", NOW), false, &[]);
    assert_eq!(
        got,
        Err(ApplyError::Conflicts(vec![(
            "conflict with \"k\" with subresource \"status\" using v1".to_owned(),
            ".status.phase".to_owned()
        )]))
    );
}

#[test]
fn versions_must_match() {
    let config = config_map(json!({}));
    let m = manager("a", "v2", NOW);
    let got = apply(config_map_schema(), None, &config, &m, false, &[]);
    let text = "invalid object type: /v1, Kind=ConfigMap".to_owned();
    assert_eq!(got, Err(ApplyError::Patch(PatchError::Malformed(text))));
}

#[test]
fn creation_owns_what_the_client_gave() {
    let schema = schema_of("apps/v1", "Deployment");
    let mut new = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"replicas": 1}});
    crate::codec::canonicalize(schema, &mut new).expect("valid");
    track_update(schema, None, &mut new, &manager("", "apps/v1", NOW), &[]);
    assert_eq!(
        new["metadata"]["managedFields"],
        json!([{"manager": "unknown", "operation": "Update", "apiVersion": "apps/v1", "time": NOW,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}])
    );
}

#[test]
fn ownership_follows_changes_of_schema() {
    // `matchLabels` was granular once: its owner owns the whole selector now.
    let live = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "x", "managedFields": [{"manager": "u", "operation": "Update",
            "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:selector": {"f:matchLabels": {"f:app": {}}}}}}]},
        "spec": {"selector": {"matchLabels": {"app": "x"}}}});
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": {"app": "y"}}}});
    let m = manager("a", "apps/v1", NOW);
    let got = apply(schema_of("apps/v1", "Deployment"), Some(&live), &config, &m, false, &[]);
    let conflict = ("conflict with \"u\" using apps/v1".to_owned(), ".spec.selector".to_owned());
    assert_eq!(got, Err(ApplyError::Conflicts(vec![conflict])));
}

#[test]
fn owners_of_obsolete_versions_are_dropped() {
    let live = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "x", "managedFields": [{"manager": "u", "operation": "Update",
            "apiVersion": "extensions/v1beta1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
        "spec": {"replicas": 1}});
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"replicas": 2}});
    let m = manager("a", "apps/v1", NOW);
    let got = apply(schema_of("apps/v1", "Deployment"), Some(&live), &config, &m, false, &[])
        .expect("no conflict");
    assert_eq!(
        got["metadata"]["managedFields"],
        json!([{"manager": "a", "operation": "Apply", "apiVersion": "apps/v1", "time": NOW,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}])
    );
}

#[test]
fn sets_read_and_write() {
    for fields in [
        json!({}),
        json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}}),
        json!({"f:l": {"k:{\"name\":\"x\",\"port\":80}": {".": {}, "f:v": {}}, "v:\"s\"": {}, "v:1": {}, "i:3": {}}}),
    ] {
        let set = Set::parse(&fields).expect("valid");
        assert_eq!(set.serialize(), fields);
    }
    // What is not known is left out; what is wrong is an error.
    assert_eq!(
        Set::parse(&json!({"x:a": {}, "f:b": {}})).map(|s| s.serialize()),
        Ok(json!({"f:b": {}}))
    );
    for bad in
        [json!({"f": {}}), json!({"fa": {}}), json!({"v:{": {}}), json!({"i:x": {}}), json!([])]
    {
        assert!(Set::parse(&bad).is_err(), "{bad}");
    }
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Objects that look like pods here and there.
fn podlike() -> impl Strategy<Value = Value> {
    let container = ("[ab]", prop::option::of(json_value()), prop::option::of("[xy]"))
        .prop_map(|(name, ports, image)| json!({"name": name, "ports": ports, "image": image}));
    let containers =
        prop_oneof![prop::collection::vec(container, 0..4).prop_map(Value::from), json_value()];
    (containers, json_value(), prop::collection::vec("[a-c]/x", 0..3)).prop_map(|(c, labels, f)| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "x", "labels": labels, "finalizers": f},
            "spec": {"containers": c}})
    })
}

fn set_of(paths: &[Vec<PathElement>]) -> Set {
    let mut set = Set::default();
    for path in paths {
        set.insert(path);
    }
    set
}

fn paths() -> impl Strategy<Value = Vec<Vec<PathElement>>> {
    let element = prop_oneof![
        "[a-c]".prop_map(PathElement::Field),
        leaf().prop_map(PathElement::Value),
        (0..3_i64).prop_map(PathElement::Index),
        leaf().prop_map(|v| PathElement::Key(vec![("k".to_owned(), v)])),
    ];
    prop::collection::vec(prop::collection::vec(element, 1..4), 0..6)
}

proptest! {
    #[test]
    fn any_set_round_trips(paths in paths()) {
        let set = set_of(&paths);
        prop_assert_eq!(Set::parse(&set.serialize()), Ok(set));
    }

    /// The set operations, against plain lists of paths.
    #[test]
    fn set_operations(a in paths(), b in paths()) {
        let (sa, sb) = (set_of(&a), set_of(&b));
        let both: Vec<_> = a.iter().filter(|p| b.contains(p)).cloned().collect();
        let only_a: Vec<_> = a.iter().filter(|p| !b.contains(p)).cloned().collect();
        let all: Vec<_> = a.iter().chain(&b).cloned().collect();
        let below = |p: &Vec<PathElement>| b.iter().any(|q| p.starts_with(q));
        let outside: Vec<_> = a.iter().filter(|p| !below(p)).cloned().collect();
        prop_assert_eq!(sa.union(&sb), set_of(&all));
        prop_assert_eq!(sa.intersection(&sb), set_of(&both));
        prop_assert_eq!(sa.difference(&sb), set_of(&only_a));
        prop_assert_eq!(sa.recursive_difference(&sb), set_of(&outside));
    }

    #[test]
    fn applying_twice_is_a_no_op(live in podlike(), config in podlike()) {
        let schema = schema_of("v1", "Pod");
        let m = manager("a", "v1", NOW);
        if let Ok(once) = apply(schema, Some(&live), &config, &m, true, &[]) {
            let again = apply(schema, Some(&once), &config, &manager("a", "v1", LATER), false, &[]);
            prop_assert_eq!(again, Ok(once));
        }
    }

    #[test]
    fn disjoint_appliers_never_conflict(
        a in prop::collection::btree_map("a[a-d]", "[xy]", 0..4),
        b in prop::collection::btree_map("b[a-d]", "[xy]", 0..4),
    ) {
        let schema = config_map_schema();
        let config = |data: &std::collections::BTreeMap<String, String>| config_map(json!(data));
        let (ma, mb) = (manager("a", "v1", NOW), manager("b", "v1", NOW));
        let live = apply(schema, None, &config(&a), &ma, false, &[]).expect("first");
        let live = apply(schema, Some(&live), &config(&b), &mb, false, &[]).expect("second");
        let mut all = a.clone();
        all.extend(b.clone());
        if !all.is_empty() {
            prop_assert_eq!(&live["data"], &json!(all));
        }
        // Each takes its own away again and leaves the other's.
        let live =
            apply(schema, Some(&live), &config(&Default::default()), &ma, false, &[]).expect("third");
        if !b.is_empty() {
            prop_assert_eq!(&live["data"], &json!(b));
        }
    }

    #[test]
    fn never_panics(live in json_value(), config in json_value(), deduced in any::<bool>()) {
        let typing = if deduced { Typing::Deduced } else { Typing::Schema(schema_of("v1", "Pod")) };
        let wrap = |v: Value| json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "x", "managedFields": v.clone(), "labels": v.clone()},
            "spec": v.clone(), "status": v});
        let m = manager("a", "v1", NOW);
        let _ = apply_typed(typing, Some(&wrap(live.clone())), &config, &m, true, &[]);
        let mut config = wrap(config);
        config["metadata"]["managedFields"] = Value::Null;
        let _ = apply_typed(typing, Some(&wrap(live.clone())), &config, &m, true, &[]);
        track_update_typed(typing, Some(&wrap(live)), &mut config, &m, &[]);
    }
}
