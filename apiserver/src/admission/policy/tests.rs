use std::sync::Arc;

use apimachinery::Value;
use serde_json::{Map, json};

use super::*;
use crate::admission::lookup::Lookup;
use crate::admission::testing::{Outcome, Write};
use crate::authorization::AlwaysAllow;
use crate::authorization::testing::Memory;
use crate::reader::Caches;
use crate::services::Routing;
use crate::webhook::Client;

fn plugin(spec: Value, binding: Value) -> ValidatingPolicies {
    let mut policy = json!({"failurePolicy": "Fail", "matchConstraints": {
        "matchPolicy": "Exact",
        "resourceRules": [{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"],
            "resources": ["deployments"]}]}});
    let mut bound = json!({"policyName": "p", "validationActions": ["Deny"]});
    let extend = |to: &mut Value, with: Value| {
        let with: Map<String, Value> = with.as_object().cloned().unwrap_or_default();
        if let Some(to) = to.as_object_mut() {
            to.extend(with);
        }
    };
    extend(&mut policy, spec);
    extend(&mut bound, binding);
    let memory = Memory::with(&[
        (GROUP, "validatingadmissionpolicies", json!({"metadata": {"name": "p"}, "spec": policy})),
        (
            GROUP,
            "validatingadmissionpolicybindings",
            json!({"metadata": {"name": "b"}, "spec": bound}),
        ),
        ("", "namespaces", json!({"metadata": {"name": "a", "labels": {"env": "prod"}}})),
    ]);
    ValidatingPolicies::new(Arc::new(Shared {
        caches: Arc::new(Caches::default()),
        lookup: Lookup { reader: memory.clone(), live: None },
        client: Arc::new(Client::new(memory, Routing::Cluster)),
        authorizer: Arc::new(AlwaysAllow),
    }))
}

async fn create(spec: Value, binding: Value, replicas: i64) -> Outcome {
    let write = Write {
        group: "apps",
        resource: "deployments",
        kind: "Deployment",
        namespace: "a",
        object: json!({"metadata": {"name": "d", "namespace": "a"}, "spec": {"replicas": replicas}}),
        ..Write::default()
    };
    write.run(&plugin(spec, binding)).await
}

const DENIED: &str = "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";

#[tokio::test]
async fn policies_decide() {
    let at_most = |more: Value| {
        let mut validation = json!({"expression": "object.spec.replicas <= 3"});
        for (key, value) in more.as_object().into_iter().flatten() {
            validation[key] = value.clone();
        }
        json!({"validations": [validation]})
    };
    let message =
        json!({"messageExpression": "'wants at most 3, got ' + string(object.spec.replicas)"});
    let variables = json!({"variables": [
            {"name": "n", "expression": "object.spec.replicas"},
            {"name": "odd", "expression": "variables.n % 2 == 1"}],
        "validations": [{"expression": "variables.odd", "message": "must be odd"}]});
    let by_namespace = json!({"validations": [
        {"expression": "namespaceObject.metadata.labels['env'] != 'prod'"}]});
    let asks = json!({"validations": [
        {"expression": "!authorizer.requestResource.check('nope').allowed()", "reason": "Forbidden"}]});
    let failing = json!({"validations": [{"expression": "object.spec.missing > 1"}]});
    let lenient = json!({"failurePolicy": "Ignore", "validations": failing["validations"]});
    let conditional = json!({
        "matchConditions": [{"name": "a", "expression": "object.spec.replicas > 10"}],
        "validations": [{"expression": "false"}]});
    for (spec, replicas, want) in [
        (at_most(json!({})), 3, None),
        (at_most(json!({})), 4, Some("failed expression: object.spec.replicas <= 3")),
        (at_most(json!({"message": "too many"})), 4, Some("too many")),
        (at_most(message), 5, Some("wants at most 3, got 5")),
        (variables.clone(), 3, None),
        (variables, 4, Some("must be odd")),
        (
            by_namespace,
            1,
            Some("failed expression: namespaceObject.metadata.labels['env'] != 'prod'"),
        ),
        (asks, 1, Some("failed expression: !authorizer.requestResource.check('nope').allowed()")),
        (
            failing,
            1,
            Some("expression 'object.spec.missing > 1' resulted in error: no such key: missing"),
        ),
        (lenient, 1, None),
        (conditional.clone(), 5, None),
        (conditional, 11, Some("failed expression: false")),
    ] {
        let outcome = create(spec, json!({}), replicas).await;
        assert_eq!(outcome.err(), want.map(|text| format!("{DENIED}{text}")));
    }
}

#[tokio::test]
async fn bindings_say_where_and_how() {
    let never = json!({"validations": [{"expression": "false", "message": "no"}]});
    let selector = |value: &str| json!({"matchResources": {"namespaceSelector": {"matchLabels": {"env": value}}}});
    assert!(create(never.clone(), selector("test"), 1).await.is_ok());
    assert!(create(never.clone(), selector("prod"), 1).await.is_err());
    let (_, warnings) =
        create(never, json!({"validationActions": ["Warn", "Audit"]}), 1).await.expect("admits");
    assert_eq!(
        warnings,
        ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no"]
    );
}

#[tokio::test]
async fn parameters_must_be_there() {
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "true"}]});
    let binding = json!({"paramRef": {"name": "x", "parameterNotFoundAction": "Deny"}});
    let want = "failed to configure binding: paramKind kind `/v1, Kind=ConfigMap` not known";
    assert_eq!(create(spec, binding, 1).await.err(), Some(format!("{DENIED}{want}")));
}

#[test]
fn types_are_checked() {
    let store = nothing();
    let registry = apimachinery::schema::Registry::builtin();
    let rows = crate::registry::kinds::all(registry, &crate::registry::kinds::Deps::default());
    let catalog = crate::registry::catalog::Catalog::new(rows, registry, &store, "/registry");
    let policy = |expression: &str, message: &str| {
        json!({"spec": {"matchConstraints": {"resourceRules": [{"apiGroups": ["apps"],
                "apiVersions": ["v1"], "resources": ["deployments"]}]},
            "validations": [{"expression": expression, "messageExpression": message}]}})
    };
    let of = |expression: &str, message: &str| {
        let found = typecheck::warnings(&policy(expression, message), &catalog);
        let text = |w: &Value| w["warning"].as_str().unwrap_or("").to_owned();
        found.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(of("object.spec.replicas > 1", ""), Vec::<String>::new());
    let found = of("object.spec.replicas > '1'", "'got ' + object.spec.replicas");
    assert_eq!(found.len(), 2);
    assert!(found[0].contains("found no matching overload for '_>_' applied to '(int, string)'"));
    assert!(found[0].starts_with("apps/v1, Kind=Deployment: compilation failed: ERROR: "));
    assert!(found[1].contains("found no matching overload for '_+_' applied to '(string, int)'"));
    let found = of("object.spec.nope == 1", "");
    assert!(found[0].contains("undefined field 'nope'"));
}

/// A store that nobody reads.
fn nothing() -> store::SharedStore {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let opened = store::embedded::Embedded::open(&path, Default::default());
    opened.expect("a store")
}
