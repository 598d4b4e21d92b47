use super::*;
use serde_json::json;

/// (text, canonical text or error), as upstream's parser has them.
type Cases = &'static [(&'static str, Result<&'static str, &'static str>)];

#[track_caller]
fn check<T: fmt::Display>(parse: fn(&str) -> Result<T, ParseError>, cases: Cases) {
    for (text, want) in cases {
        let got = parse(text).map(|s| s.to_string()).map_err(|e| e.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), *want, "{text:?}");
    }
}

#[test]
fn label_selectors_read_as_upstream() {
    let cases: Cases = &[
        ("", Ok("")),
        ("a=b", Ok("a=b")),
        ("a==b", Ok("a==b")),
        ("a!=b", Ok("a!=b")),
        ("a in (b)", Ok("a in (b)")),
        ("a in (c,b)", Ok("a in (b,c)")),
        ("a notin (b,,c)", Ok("a notin (,b,c)")),
        ("a", Ok("a")),
        ("!a", Ok("!a")),
        ("a,b", Ok("a,b")),
        ("b,a", Ok("a,b")),
        ("a=", Ok("a=")),
        ("a=,b", Ok("a=,b")),
        ("a in ()", Ok("a in ()")),
        ("a in (,)", Ok("a in ()")),
        ("a>5", Ok("a>5")),
        ("a<5", Ok("a<5")),
        (
            "a>x",
            Err(
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ),
        ("a,", Err("found '', expected: identifier after ','")),
        ("a,,b", Err("found ',', expected: identifier after ','")),
        ("=b", Err("found '=', expected: !, identifier, or 'end of string'")),
        ("a in b", Err("unable to parse requirement: found 'b' expected: '('")),
        ("a in (b", Err("unable to parse requirement: found '', expected: ',' or ')'")),
        ("a in (b c)", Err("unable to parse requirement: found 'c', expected: ',' or ')'")),
        ("a=b=c", Err("found '=', expected: ',' or 'end of string'")),
        (
            "a!",
            Err("unable to parse requirement: found '!', expected: in, notin, =, ==, !=, gt, lt"),
        ),
        (
            "x_/=a",
            Err(
                "unable to parse requirement: <nil>: Invalid value: \"x_/\": prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*'); name part must be non-empty; name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
        ),
        (
            "a=-b",
            Err(
                "unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
        ),
        ("! a", Ok("!a")),
        (
            "a b",
            Err("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ),
        ("in=in", Ok("in=in")),
        ("notin in (in)", Ok("notin in (in)")),
        ("a in (b,", Err("unable to parse requirement: found '', expected: ',', or identifier")),
        ("a====b", Err("unable to parse requirement: found '==', expected: identifier")),
        ("(a)", Err("found '(', expected: !, identifier, or 'end of string'")),
        (
            "a in (>)",
            Err("unable to parse requirement: found '>', expected: ',', ')' or identifier"),
        ),
        ("a>=5", Err("unable to parse requirement: found '=', expected: identifier")),
        ("a,!", Err("unable to parse requirement: found '', expected: identifier")),
        ("!=a", Err("found '!=', expected: !, identifier, or 'end of string'")),
        ("a=b,a!=c", Ok("a=b,a!=c")),
        ("!a=b", Err("found '=', expected: ',' or 'end of string'")),
        (
            "a!b",
            Err("unable to parse requirement: found '!', expected: in, notin, =, ==, !=, gt, lt"),
        ),
        ("a in", Err("unable to parse requirement: found '' expected: '('")),
        (
            "a)",
            Err("unable to parse requirement: found ')', expected: in, notin, =, ==, !=, gt, lt"),
        ),
        (
            "a<",
            Err(
                "unable to parse requirement: values[0]: Invalid value: \"\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ),
        ("<a", Err("found '<', expected: !, identifier, or 'end of string'")),
    ];
    check(LabelSelector::parse, cases);
}

#[test]
fn field_selectors_read_as_upstream() {
    let cases: Cases = &[
        ("", Ok("")),
        ("a=b", Ok("a=b")),
        ("a==b", Ok("a=b")),
        ("a!=b", Ok("a!=b")),
        ("b=1,a=2", Ok("a=2,b=1")),
        ("a=b\\,c", Ok("a=b\\,c")),
        ("a=b\\=c", Ok("a=b\\=c")),
        ("a=b\\\\", Ok("a=b\\\\")),
        ("a=b\\", Err("invalid field selector: invalid escape sequence: \\")),
        ("a=b\\x", Err("invalid field selector: invalid escape sequence: \\x")),
        ("a=b=c", Err("invalid field selector: unescaped character in value: 61")),
        ("a", Err("invalid selector: 'a'; can't understand 'a'")),
        ("a,b=c", Err("invalid selector: 'a,b=c'; can't understand 'a'")),
        (",a=b,", Ok("a=b")),
        ("a!b", Err("invalid selector: 'a!b'; can't understand 'a!b'")),
        ("=x", Ok("=x")),
        ("a=", Ok("a=")),
        ("a\\=b=c", Err("invalid field selector: unescaped character in value: 61")),
    ];
    check(FieldSelector::parse, cases);
}

#[test]
fn label_selectors_match() {
    let labels = |key: &str| match key {
        "a" => Some("b"),
        "n" => Some("5"),
        "e" => Some(""),
        _ => None,
    };
    for (text, want) in [
        ("", true),
        ("a=b", true),
        ("a==c", false),
        ("a!=c", true),
        ("x!=c", true),
        ("a in (b,c)", true),
        ("a in (c)", false),
        ("x in (c)", false),
        ("a notin (b)", false),
        ("x notin (b)", true),
        ("a", true),
        ("x", false),
        ("!x", true),
        ("!a", false),
        ("e=", true),
        ("x=", false),
        ("n>4", true),
        ("n>5", false),
        ("n<6", true),
        ("a>1", false),
        ("a=b,n=6", false),
    ] {
        let selector = LabelSelector::parse(text).expect(text);
        assert_eq!(selector.matches(labels), want, "{text}");
    }
}

#[test]
fn selectors_of_objects() {
    assert_eq!(LabelSelector::from_json(None), Ok(None));
    assert_eq!(LabelSelector::from_json(Some(&Value::Null)), Ok(None));
    for (selector, want) in [
        (json!({}), Ok("")),
        (json!({"matchLabels": {"b": "1", "a": "2"}}), Ok("a=2,b=1")),
        (
            json!({"matchLabels": {"m": "1"}, "matchExpressions": [
                {"key": "z", "operator": "Exists"},
                {"key": "a", "operator": "NotIn", "values": ["y", "x"]},
                {"key": "c", "operator": "DoesNotExist"}]}),
            Ok("a notin (x,y),!c,m=1,z"),
        ),
        (
            json!({"matchExpressions": [{"key": "z", "operator": "Gt", "values": ["1"]}]}),
            Err("\"Gt\" is not a valid label selector operator"),
        ),
        (
            json!({"matchExpressions": [{"key": "z", "operator": "In"}]}),
            Err(
                "values: Invalid value: null: for 'in', 'notin' operators, values set can't be empty",
            ),
        ),
    ] {
        let got = LabelSelector::from_json(Some(&selector))
            .map(|s| s.expect("not null").to_string())
            .map_err(|e| e.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), want, "{selector}");
    }
}

#[test]
fn field_selectors_match() {
    let fields = |name: &str| Cow::Borrowed(if name == "metadata.name" { "a" } else { "" });
    for (text, want) in [
        ("", true),
        ("metadata.name=a", true),
        ("metadata.name!=a", false),
        ("metadata.name=a,spec.nodeName=", true),
        ("spec.nodeName!=", false),
    ] {
        assert_eq!(FieldSelector::parse(text).expect(text).matches(fields), want, "{text}");
    }
    let selector = FieldSelector::parse("a!=1,a=2").expect("valid");
    assert_eq!(selector.exact("a"), Some("2"));
}
