use super::super::golden;
use super::*;
use golden::schema;
use serde_json::json;

#[test]
fn decides_as_upstream_does_on_changed_objects() {
    let mut failures = Vec::new();
    for case in golden::decodings() {
        let schema = golden::schema(&case.api_version, &case.kind);
        let result = match decode(schema, case.input.as_bytes(), FieldValidation::Strict) {
            Ok(_) => "ok".to_owned(),
            Err(e @ DecodeError::Strict(_)) => format!("strict {e}"),
            Err(e) => format!("error {e}"),
        };
        if result != case.result {
            failures.push(format!("{}\n  ours   {result}\n  theirs {}", case.input, case.result));
            continue;
        }
        let Some(json) = &case.json else { continue };
        let theirs: Value = serde_json::from_str(json).expect("JSON");
        match decode(schema, case.input.as_bytes(), FieldValidation::Ignore) {
            Ok(decoded) if decoded.object == theirs => {}
            Ok(decoded) => failures.push(format!(
                "{} {} decoded\n{}",
                case.kind,
                case.result,
                golden::difference(&decoded.object.to_string(), &theirs.to_string())
            )),
            Err(e) => failures.push(format!("{}: {e}", case.input)),
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures[..failures.len().min(12)].join("\n")
    );
}

#[test]
fn agrees_with_upstream_on_every_kind() {
    let mut failures = Vec::new();
    for g in golden::all() {
        let object: Value = serde_json::from_str(&g.json).expect("JSON");
        match decode(g.schema(), g.json.as_bytes(), FieldValidation::Strict) {
            Ok(decoded) if decoded.object == object => {}
            Ok(decoded) => failures.push(format!(
                "{} {}\n{}",
                g.api_version,
                g.kind,
                golden::difference(&decoded.object.to_string(), &object.to_string())
            )),
            Err(e) => failures.push(format!("{} {}: {e}", g.api_version, g.kind)),
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

fn pod(text: &str) -> Result<Decoded, DecodeError> {
    decode(schema("v1", "Pod"), text.as_bytes(), FieldValidation::Strict)
}

#[test]
fn canonical_form() {
    for (text, expected) in [
        ("{}", r#"{"metadata":{},"spec":{"containers":null},"status":{}}"#),
        (
            r#"{"spec":{"containers":[],"nodeName":"","restartPolicy":null,"hostNetwork":false,
                "terminationGracePeriodSeconds":0,"tolerations":[],"nodeSelector":{}}}"#,
            r#"{"metadata":{},"spec":{"containers":[],"terminationGracePeriodSeconds":0},"status":{}}"#,
        ),
        (
            r#"{"metadata":{"creationTimestamp":null,"labels":{"a":null}},
                "spec":{"containers":[{"name":"a"},null]}}"#,
            r#"{"metadata":{"labels":{"a":""}},
                "spec":{"containers":[{"name":"a","resources":{}},{"name":"","resources":{}}]},
                "status":{}}"#,
        ),
        (
            r#"{"metadata":{"deletionTimestamp":"2024-01-01T01:00:00.9+01:00"}}"#,
            r#"{"metadata":{"deletionTimestamp":"2024-01-01T00:00:00Z"},
                "spec":{"containers":null},"status":{}}"#,
        ),
    ] {
        let expected: Value = serde_json::from_str(expected).expect("JSON");
        assert_eq!(pod(text).expect(text).object, expected, "{text}");
    }
}

#[test]
fn reports() {
    let strict = |text: &str| match pod(text) {
        Err(DecodeError::Strict(all)) => all,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(
        strict(
            r#"{"foo":1,"spec":{"containers":[{"imag":"a","name":"x","name":"y"}],"Volumes":[]}}"#
        ),
        [
            r#"unknown field "foo""#,
            r#"unknown field "spec.containers[0].imag""#,
            r#"duplicate field "spec.containers[0].name""#,
            r#"unknown field "spec.Volumes""#,
        ]
    );
    assert_eq!(
        strict(r#"{"metadata":{"labels":{"a":"1","a":"2"}}}"#),
        [r#"duplicate field "metadata.labels.a""#]
    );
    let warned = decode(schema("v1", "Pod"), br#"{"x":1}"#, FieldValidation::Warn).expect("a pod");
    assert_eq!(warned.warnings, [r#"unknown field "x""#]);
    let many: String = (0..150).map(|i| format!("\"x{i}\":1,")).collect();
    assert_eq!(strict(&format!("{{{}\"y\":1}}", many)).len(), MAX_REPORTED);
}

#[test]
fn errors_are_gos() {
    for (kind, text, error) in [
        (
            "Pod",
            r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
            "json: cannot unmarshal string into Go struct field \
             ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            "Pod",
            r#"{"spec":{"dnsPolicy":1}}"#,
            "json: cannot unmarshal number into Go struct field PodSpec.spec.dnsPolicy of type \
             v1.DNSPolicy",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":["a"]}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type \
             v1.Container",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type \
             []v1.Container",
        ),
        (
            "Pod",
            r#"{"spec":{"volumes":[{"emptyDir":[]}]}}"#,
            "json: cannot unmarshal array into Go struct field \
             Volume.spec.volumes.VolumeSource.emptyDir of type v1.EmptyDirVolumeSource",
        ),
        (
            "Pod",
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of \
             type string",
        ),
        (
            "Pod",
            r#"{"spec":{"priority":3000000000}}"#,
            "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority \
             of type int32",
        ),
        (
            "Pod",
            r#"{"metadata":{"creationTimestamp":5}}"#,
            "json: cannot unmarshal number into Go struct field \
             ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            "Pod",
            r#"{"metadata":{"creationTimestamp":"x"}}"#,
            r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#,
        ),
        (
            "Pod",
            r#"{"spec":}"#,
            "couldn't get version/kind; json parse error: invalid character '}' looking for \
             beginning of value",
        ),
        (
            "Pod",
            r#"{"spec":{"#,
            "couldn't get version/kind; json parse error: unexpected end of JSON input",
        ),
        (
            "Pod",
            r#"{"kind":5}"#,
            "couldn't get version/kind; json parse error: json: cannot unmarshal number into Go \
             struct field .kind of type string",
        ),
        ("Secret", r#"{"data":{"a":"?"}}"#, "illegal base64 data at input byte 0"),
    ] {
        match decode(schema("v1", kind), text.as_bytes(), FieldValidation::Strict) {
            Err(DecodeError::Malformed(e) | DecodeError::Unread(e)) => {
                assert_eq!(e, error, "{text}")
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn later_fields_of_a_name_merge_as_in_go() {
    let text =
        r#"{"metadata":{"name":"a","labels":{"x":"1"}},"metadata":{"uid":"u","labels":{"y":"2"}}}"#;
    let decoded = decode(schema("v1", "Secret"), text.as_bytes(), FieldValidation::Ignore);
    let expected: Value =
        serde_json::from_str(r#"{"metadata":{"name":"a","uid":"u","labels":{"x":"1","y":"2"}}}"#)
            .expect("JSON");
    assert_eq!(decoded.expect("a secret").object, expected);
}

#[test]
fn depth_is_bounded() {
    for open in ["[", r#"{"a":"#] {
        let text = format!(r#"{{"spec":{}"#, open.repeat(100_000));
        assert!(pod(&text).is_err());
        assert!(decode_untyped(text.as_bytes(), FieldValidation::Ignore).is_err());
    }
}

#[test]
fn strings() {
    let decoded = |text: &[u8]| decode_untyped(text, FieldValidation::Ignore).expect("JSON").object;
    assert_eq!(decoded(br#""a\u00e9\ud83d\ude00\n""#), "a\u{e9}\u{1f600}\n");
    assert_eq!(decoded(br#""\ud83d!""#), "\u{fffd}!");
    assert_eq!(decoded(b"\"a\xff\xfe\""), "a\u{fffd}\u{fffd}");
}

#[test]
fn numbers_of_custom_resources_are_gos() {
    for (text, want) in [
        ("1", json!(1)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("9223372036854775807", json!(i64::MAX)),
        ("9223372036854775808", json!(9_223_372_036_854_775_808_f64)),
        ("18446744073709551615", json!(18_446_744_073_709_551_615_f64)),
        ("1.0", json!(1)),
        ("-2e3", json!(-2000)),
        ("1e16", json!(1e16)),
        ("0.5", json!(0.5)),
    ] {
        let decoded = decode_untyped(text.as_bytes(), FieldValidation::Strict).expect(text);
        assert_eq!(decoded.object, want, "{text}");
    }
    // What stays as it is written keeps what it says.
    assert_eq!(parse(b"18446744073709551615"), Ok(json!(u64::MAX)));
    assert!(decode_untyped(b"1e999", FieldValidation::Ignore).is_err());
}
