use super::super::golden;
use super::*;

#[test]
fn agrees_with_upstream_on_every_kind() {
    let mut failures = Vec::new();
    for g in golden::all() {
        let Some(proto) = &g.proto else { continue };
        let mut check = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                let difference = golden::difference(&ours, &theirs);
                failures.push(format!("{} {} {what}\n{difference}", g.api_version, g.kind));
            }
        };
        let mut object: Value = serde_json::from_str(&g.json).expect("JSON");
        let encoded = encode(g.schema(), &object);
        check(
            "encoded",
            format!("{encoded:02x?}"),
            format!("{:02x?}", Ok::<_, DecodeError>(proto)),
        );
        let mut text = Vec::new();
        // A watch event has no kind of its own.
        let api_version = object::str_at(&object, &["apiVersion"]);
        let kind = object::str_at(&object, &["kind"]);
        let done = to_json(g.schema(), api_version, kind, proto, &mut text);
        check(
            "transcoded",
            format!("{done:?} {}", String::from_utf8_lossy(&text)),
            format!("Ok(()) {}", g.json),
        );
        if let Value::Object(map) = &mut object {
            map.remove("kind");
            map.remove("apiVersion");
        }
        let decoded = decode(g.schema(), proto);
        check("decoded", format!("{decoded:?}"), format!("{:?}", Ok::<_, DecodeError>(object)));
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

#[test]
fn envelope() {
    let sealed = seal("v1", "Pod", b"raw");
    assert_eq!(sealed, b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x03raw\x1a\x00\x22\x00");
    let opened = open(&sealed).expect("an envelope").expect("magic");
    assert_eq!((opened.api_version, opened.kind, opened.raw), ("v1", "Pod", &b"raw"[..]));
    assert_eq!(open(b"{}"), Ok(None));
    assert!(open(b"k8s\0\x0a\x09").is_err());
}
