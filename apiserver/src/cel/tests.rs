use serde_json::{Value, json};

use super::*;

fn env() -> Env {
    Env::new()
        .variable("object", Type::Dyn)
        .variable("n", Type::Int)
        .variable("labels", Type::map(Type::String, Type::String))
}

fn object() -> Value {
    json!({
        "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "a/b": "c"}},
        "spec": {"replicas": 3, "ratio": 0.5, "nothing": null, "paused": false,
            "ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}],
            "since": "2026-01-02T03:04:05Z", "memory": "1Gi"},
    })
}

fn run(source: &str) -> Result<Value, String> {
    let program = Program::compile(source, &env()).map_err(|e| e.to_string())?;
    let object = object();
    let labels = json!({"app": "web"});
    let mut activation = Activation::default();
    activation.set("object", Val::json(&object));
    activation.set("labels", Val::json(&labels));
    activation.set("n", Val::Int(7));
    let mut budget = Budget::new(PER_CALL_LIMIT);
    program.eval(&activation, &mut budget).map(|v| v.to_json()).map_err(|e| e.to_string())
}

#[test]
fn expressions_that_hold() {
    let cases = "
        1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && -7 / 2 == -3 && -7 % 2 == -1
        1u + 2u == 3u && dyn(1) == 1.0 && 1 < 1.5 && 2u > 1 && 0x10 == 16
        !(true && false) && (false || true) && !!true
        true || object.missing == 1
        object.missing == 1 || true
        !(false && object.missing) && !(object.missing && false)
        n > 5 ? true : object.missing
        'a' + 'b' == 'ab' && \"a\" == 'a' && r'\\n'.size() == 2 && '\\n'.size() == 1
        '''a'b''' == \"a'b\" && b'ab' == bytes('ab') && '\\u00e9' == '\u{e9}'
        object.spec.replicas == 3 && object.spec['replicas'] == 3 && object['spec'].ratio == 0.5
        has(object.spec.replicas) && !has(object.spec.missing) && has(object.spec.nothing)
        object.metadata.namespace == 'n' && object.metadata.labels['a/b'] == 'c'
        object.metadata.labels.`a/b` == 'c'
        'app' in object.metadata.labels && 80 in object.spec.ports.map(p, p.port)
        object.spec.ports.all(p, p.port > 0) && object.spec.ports.exists(p, p.name == 'http')
        object.spec.ports.exists_one(p, p.port == 80) && !object.spec.ports.exists(p, p.port == 1)
        object.spec.ports.filter(p, p.port > 100).map(p, p.name) == ['https']
        object.spec.ports.map(p, p.port > 100, p.name) == ['https']
        object.metadata.labels.all(k, k.size() > 0) && object.metadata.labels.size() == 2
        object.spec.ports.all(i, p, i < 2 && p.port > 0)
        [1, 2, 3].transformList(i, v, i * v) == [0, 2, 6]
        {'a': 1, 'b': 2}.transformMap(k, v, v + 1) == {'a': 2, 'b': 3}
        {'a': 'x'}.transformMapEntry(k, v, {v: k}) == {'x': 'a'}
        [1, 2, 3].exists(x, x / 0 == 1 || x == 3)
        {'a': 1}.a == 1 && {1: 'x'}[1] == 'x' && dyn({1: 'x'})[1u] == 'x' && {true: 1}[true] == 1
        [1, 2] + [3] == [1, 2, 3] && [1, 2, 3][1] == 2 && size([1, 2]) == 2 && [[1], [2]] == [[1], [2]]
        type(1) == int && type('a') == string && type([]) == list && type(null) == null_type
        int('7') == 7 && string(7) == '7' && double('1.5') == 1.5 && uint(7) == 7u && bool('true')
        'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')
        'hello'.matches('^h.*o$') && matches('abc', 'b')
        'hello'.charAt(1) == 'e' && 'hello'.indexOf('l') == 2 && 'hello'.lastIndexOf('l') == 3
        'hello'.indexOf('z') == -1 && 'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b'
        'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'aaa'.replace('a', 'b', 2) == 'bba'
        'Hello'.lowerAscii() == 'hello' && ' a '.trim() == 'a' && 'hello'.substring(1, 3) == 'el'
        '%s is %d, %.2f, %x, %e'.format([dyn('a'), 1, 1.5, 255, 1234.5]) == 'a is 1, 1.50, ff, 1.234500e+03'
        '%s'.format([[dyn(1), 'a']]) == '[1, a]'
        'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+') == ['1', '22']
        [1, 2, 3].sum() == 6 && [1, 2].isSorted() && ![2, 1].isSorted() && [3, 1].min() == 1
        [1, 3, 2].sort() == [1, 2, 3] && [1, 2].reverse() == [2, 1] && [1, 1].distinct() == [1]
        [[1], [2]].flatten() == [1, 2] && [1, 2, 3].slice(1, 2) == [2] && lists.range(3) == [0, 1, 2]
        sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1]) && !sets.intersects([1], [2])
        quantity('1Gi') == quantity('1024Mi') && quantity(object.spec.memory).isGreaterThan(quantity('1M'))
        quantity('500m').add(quantity('1500m')).asInteger() == 2 && isQuantity('5') && !isQuantity('5x')
        url('https://a.example:8080/x?k=v').getHostname() == 'a.example' && !isURL('x')
        url('https://a.example:8080/x?k=v').getQuery() == {'k': ['v']}
        ip('10.0.0.1').family() == 4 && isIP('::1') && ip('::1').isLoopback() && !isIP('10.0.0.256')
        cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')
        cidr('10.0.0.1/8').masked() == cidr('10.0.0.0/8') && string(cidr('10.0.0.1/8').ip()) == '10.0.0.1'
        !format.dns1123Label().validate('my-name').hasValue() && format.named('uuid').hasValue()
        format.dns1123Label().validate('My').value().size() == 1
        semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2
        duration('1h30m').getMinutes() == 90 && duration('1m') < duration('1h')
        timestamp(object.spec.since).getFullYear() == 2026 && timestamp(object.spec.since).getMonth() == 0
        timestamp('2026-01-01T00:00:00Z') + duration('24h') == timestamp('2026-01-02T00:00:00Z')
        object.?spec.?missing.orValue('x') == 'x' && object.?spec.?replicas.orValue(0) == 3
        object.spec[?'replicas'].hasValue() && [1, 2][?5] == optional.none()
        optional.of(1).optMap(x, x + 1).value() == 2 && [?object.?missing, 1] == [1]
        {?'a': optional.none(), 'b': 1} == {'b': 1}
        labels.app == 'web' && labels.exists(k, k == 'app')
        // a comment\n true
    ";
    let mut wrong = Vec::new();
    for case in cases.lines().map(str::trim).filter(|c| !c.is_empty() && !c.starts_with("//")) {
        let got = run(case);
        if got != Ok(json!(true)) {
            wrong.push(format!("{case}: {got:?}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn evaluation_fails_in_cel_gos_words() {
    for (source, want) in [
        ("object.missing.x", "no such key: missing"),
        ("object.spec.ports[5].port == 1", "index out of bounds: 5"),
        ("1 / 0 == 1", "division by zero"),
        ("n % 0 == 1", "modulus by zero"),
        ("9223372036854775807 + n > 0", "integer overflow"),
        ("(-9223372036854775807 - n) / (n - n - n) > 0", "integer overflow"),
        ("(-9223372036854775807 - n) % (n - n - n) > 0", "integer overflow"),
        ("18446744073709551615u * uint(n + n) > 0u", "unsigned integer overflow"),
        ("uint(n) - uint(n + n) > 0u", "unsigned integer overflow"),
        ("n % (n - n) > 0", "modulus by zero"),
        ("'a' + object.spec.replicas == 'a'", "no such overload"),
        ("object.spec.replicas.x == 1", "no such overload"),
        ("int('x') == 1", "type conversion error from 'string' to 'int'"),
        (
            "lists.range(1000).all(i, lists.range(1000).all(j, i + j >= 0))",
            "operation cancelled: actual cost limit exceeded",
        ),
    ] {
        assert_eq!(run(source), Err(want.to_owned()), "{source}");
    }
}

#[test]
fn compilation_fails_in_cel_gos_form() {
    for (source, want) in [
        (
            "x == 1",
            "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x == 1\n | ^",
        ),
        (
            "n > '1'",
            "ERROR: <input>:1:3: found no matching overload for '_>_' applied to '(int, string)'\n | n > '1'\n | ..^",
        ),
        (
            "'a' + n",
            "ERROR: <input>:1:5: found no matching overload for '_+_' applied to '(string, int)'\n | 'a' + n\n | ....^",
        ),
        (
            "'a'.contains(1)",
            "ERROR: <input>:1:13: found no matching overload for 'contains' applied to 'string.(int)'\n | 'a'.contains(1)\n | ............^",
        ),
        ("n.x", "ERROR: <input>:1:2: type 'int' does not support field selection\n | n.x\n | .^"),
        (
            "n && true",
            "ERROR: <input>:1:1: expected type 'bool' but found 'int'\n | n && true\n | ^",
        ),
        (
            "[1, 'a']",
            "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^",
        ),
        (
            "nope(1)",
            "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^",
        ),
        (
            "n == ",
            "ERROR: <input>:1:6: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | n == \n | .....^",
        ),
        (
            "n = 42",
            "ERROR: <input>:1:3: Syntax error: token recognition error at: '= '\n | n = 42\n | ..^\nERROR: <input>:1:5: Syntax error: mismatched input '42' expecting <EOF>\n | n = 42\n | ....^",
        ),
        ("has(n)", "ERROR: <input>:1:4: invalid argument to has() macro\n | has(n)\n | ...^"),
        ("for == 1", "ERROR: <input>:1:1: reserved identifier: for\n | for == 1\n | ^"),
    ] {
        assert_eq!(run(source), Err(want.to_owned()), "{source}");
    }
    for source in
        ["", "(", "a b", "... [] bad expression", "[1", "{'a' 1}", "'a", "1 +* 2", "n.all(1, true)"]
    {
        assert!(Program::compile(source, &env()).is_err(), "{source}");
    }
}

#[test]
fn types_are_inferred() {
    for (source, want) in [
        ("1 + n", "int"),
        ("object.spec", "dyn"),
        ("[1].map(x, string(x))", "list(string)"),
        ("{'a': [1]}", "map(string, list(int))"),
        ("[]", "list(dyn)"),
        ("n > 1 ? 'a' : object.b", "dyn"),
        ("optional.of(1)", "optional_type(int)"),
        ("labels[?'a']", "optional_type(string)"),
        ("labels.exists(k, k == 'a')", "bool"),
        ("quantity('1')", "kubernetes.Quantity"),
    ] {
        let program = Program::compile(source, &env()).expect(source);
        assert_eq!(program.output().to_string(), want, "{source}");
    }
}

#[test]
fn expressions_are_bounded() {
    let deep = "(".repeat(5000) + "1" + &")".repeat(5000);
    assert!(Program::compile(&deep, &env()).is_err());
    let long = vec!["n == 7"; 2000].join(" && ");
    assert_eq!(run(&long), Ok(json!(true)));
    let sum = vec!["1"; 5000].join(" + ");
    assert!(Program::compile(&sum, &env()).is_err());
    let nots = "!".repeat(10_000) + "true";
    assert_eq!(run(&nots), Ok(json!(true)));
}

#[test]
fn questions_are_answered_between_evaluations() {
    let env = Env::new().variable("authorizer", Type::authorizer());
    let source =
        "authorizer.group('apps').resource('deployments').namespace('n').check('create').allowed()";
    let program = Program::compile(source, &env).expect("compiles");
    let mut activation = Activation::default();
    activation.set("authorizer", Val::authorizer());
    let mut budget = Budget::new(PER_CALL_LIMIT);
    let Err(EvalError::Unasked(question)) = program.eval(&activation, &mut budget) else {
        panic!("asks")
    };
    assert_eq!(question.verb, "create");
    let decided = Decided { allowed: true, reason: String::new(), error: None };
    activation.authorizations = std::sync::Arc::new([(*question, decided.into())].into());
    let answer = program.eval(&activation, &mut Budget::new(PER_CALL_LIMIT));
    assert_eq!(answer.ok().and_then(|v| v.as_bool()), Some(true));
}

#[test]
fn names_are_unescaped() {
    for (name, want) in [
        ("a", "a"),
        ("__namespace__", "namespace"),
        ("a__dash__b__dot__c", "a-b.c"),
        ("x__slash__y", "x/y"),
        ("a__underscores__b", "a__b"),
    ] {
        assert_eq!(unescape(name).as_deref(), Some(want));
    }
    assert_eq!(unescape("a__b"), None);
}
