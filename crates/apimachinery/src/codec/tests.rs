use super::*;
use crate::Value;
use golden::schema;
use proptest::prelude::*;

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn declared_defaults() {
    for (kind, object, expected) in [
        (
            "Pod",
            r#"{"spec":{"containers":[{"name":"a","ports":[{"containerPort":1},
                {"containerPort":2,"protocol":"UDP"}]}],"volumes":[{"name":"v","azureDisk":{}},
                {"name":"w","rbd":{"user":"u"}}]}}"#,
            r#"{"spec":{"containers":[{"name":"a","ports":[{"containerPort":1,"protocol":"TCP"},
                {"containerPort":2,"protocol":"UDP"}]}],"volumes":[{"name":"v","azureDisk":
                {"cachingMode":"ReadWrite","fsType":"ext4","kind":"Shared","readOnly":false}},
                {"name":"w","rbd":{"user":"u","pool":"rbd","keyring":"/etc/ceph/keyring"}}]}}"#,
        ),
        ("ReplicationController", r#"{"spec":{"replicas":0}}"#, r#"{"spec":{"replicas":0}}"#),
        ("ReplicationController", r#"{"spec":{}}"#, r#"{"spec":{"replicas":1}}"#),
    ] {
        let mut object = value(object);
        apply_defaults(schema("v1", kind), &mut object);
        assert_eq!(object, value(expected), "{kind}");
    }
}

#[test]
fn canonicalizes_objects_in_memory() {
    let mut object = value(
        r#"{"metadata":{"name":"a","creationTimestamp":null},"spec":{"containers":[{"name":"c",
            "resources":{"limits":{"cpu":"1000m","memory":1024}},"foo":1}]}}"#,
    );
    canonicalize(schema("v1", "Pod"), &mut object).expect("a pod");
    assert_eq!(
        object,
        value(
            r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","resources":{"limits":
                {"cpu":"1","memory":"1024"}}}]},"status":{}}"#
        )
    );
    let mut wrong = value(r#"{"spec":[]}"#);
    assert!(canonicalize(schema("v1", "Pod"), &mut wrong).is_err());
}

/// Feeds bytes to every decoder; they may be refused, but nothing may panic, and what is accepted
/// must survive encoding.
fn exercise(schema: Schema<'_>, bytes: &[u8]) {
    if let Ok(decoded) = json::decode(schema, bytes, FieldValidation::Warn) {
        let raw = proto::encode(schema, &decoded.object).expect("a canonical object encodes");
        proto::decode(schema, &raw).expect("what was encoded decodes");
    }
    let mut text = Vec::new();
    let transcoded = proto::to_json(schema, "v1", "X", bytes, &mut text);
    let decoded = proto::decode(schema, bytes);
    if let (Ok(()), Ok(mut object)) = (transcoded, decoded) {
        let mut shown: Value = serde_json::from_slice(&text).expect("JSON was written");
        for name in ["kind", "apiVersion"] {
            for object in [&mut shown, &mut object] {
                object.as_object_mut().expect("an object").remove(name);
            }
        }
        assert_eq!(shown, object, "both ways show the same");
    }
    let _ = proto::open(bytes);
    let _ = list::read_watch_proto(bytes);
}

/// Changes a few bytes, or cuts, as the numbers say.
fn mutate(bytes: &mut Vec<u8>, edits: &[(u16, u8, u8)]) {
    for &(at, what, with) in edits {
        if bytes.is_empty() {
            return;
        }
        let at = at as usize % bytes.len();
        match what % 4 {
            0 => bytes[at] = with,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, with),
            _ => drop(bytes.remove(at)),
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(schema("v1", "Pod"), &bytes);
        let _ = yaml::decode_untyped(&bytes, FieldValidation::Warn);
    }

    #[test]
    fn broken_objects_never_panic(
        n in any::<prop::sample::Index>(),
        edits in prop::collection::vec(any::<(u16, u8, u8)>(), 1..4),
    ) {
        let g = n.get(golden::all());
        let mut json = g.json.clone().into_bytes();
        mutate(&mut json, &edits);
        exercise(g.schema(), &json);
        if let Some(raw) = &g.proto {
            let mut raw = raw.clone();
            mutate(&mut raw, &edits);
            exercise(g.schema(), &raw);
        }
    }
}

#[test]
fn recursive_types_are_bounded() {
    let schema = golden::schema("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let crd = |depth: usize| {
        let (open, close) = (r#"{"not":"#.repeat(depth), "}".repeat(depth));
        format!(
            r#"{{"spec":{{"versions":[{{"name":"v1","schema":{{"openAPIV3Schema":{open}{{}}{close}}}}}]}}}}"#
        )
    };
    let fits = crd(245);
    let decoded = json::decode(schema, fits.as_bytes(), FieldValidation::Strict).expect("a CRD");
    let raw = proto::encode(schema, &decoded.object).expect("protobuf");
    assert_eq!(proto::decode(schema, &raw).expect("a CRD"), decoded.object);
    let mut text = Vec::new();
    proto::to_json(schema, "", "", &raw, &mut text).expect("JSON");
    assert!(json::decode(schema, crd(260).as_bytes(), FieldValidation::Strict).is_err());

    // The same in protobuf, deeper than JSON could have brought it in.
    let mut raw = Vec::new();
    for (number, times) in [(28, 2000), (1, 1), (4, 1), (7, 1), (2, 1)] {
        for _ in 0..times {
            let mut outer = Vec::new();
            proto::wire::put_bytes(&mut outer, number, &raw);
            raw = outer;
        }
    }
    let deep = proto::decode(schema, &raw);
    let mut text = Vec::new();
    let shown = proto::to_json(schema, "", "", &raw, &mut text);
    assert!(deep.is_err() && shown.is_err());
}

/// An empty list or map that is given: Go leaves it out where it may (`omitempty`), and protobuf
/// cannot tell it from none, so that it comes back from the store as none, or as null.
#[test]
fn given_and_empty_is_none() {
    let registry = Registry::builtin();
    let mut seen = 0;
    for (i, message) in registry.messages.iter().enumerate() {
        let schema = Schema { registry, message: MessageId(i as u32) };
        for field in registry.json_fields(schema.message) {
            let empty = match field.ty {
                Type::List(_) => value("[]"),
                Type::Map(_) => value("{}"),
                _ => continue,
            };
            seen += 1;
            let place = format!("{} {}", message.name, field.json);
            let sent = serde_json::json!({ &field.json: empty });
            let object = json::decode(schema, sent.to_string().as_bytes(), FieldValidation::Strict)
                .unwrap_or_else(|e| panic!("{place}: {e}"))
                .object;
            let kept = !field.omitempty || field.empty_counts;
            assert_eq!(object.get(&field.json), kept.then_some(&empty), "{place}");
            if field.number == 0 {
                continue;
            }
            let raw = proto::encode(schema, &object).unwrap_or_else(|e| panic!("{place}: {e}"));
            let back = proto::decode(schema, &raw).unwrap_or_else(|e| panic!("{place}: {e}"));
            let stored = match (field.omitempty, field.wrapped) {
                (true, _) => None,
                (false, true) => Some(&empty),
                (false, false) => Some(&Value::Null),
            };
            assert_eq!(back.get(&field.json), stored, "{place}");
        }
    }
    assert!(seen > 500, "{seen}");
}
