//! Webhooks and policies of admission, with a real HTTPS server that answers reviews.

mod common;

use base64::Engine as _;
use common::Fixture;
use common::hooks::Hooks;
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn answer(path: &str, review: &Value) -> Value {
    let object = &review["request"]["object"];
    let patch = |operations: Value| {
        let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
        json!({"allowed": true, "patch": patch, "patchType": "JSONPatch"})
    };
    let mut response = match path {
        "/deny" if object["data"]["bad"].is_string() => json!({"allowed": false,
            "status": {"message": "the configmap contains unwanted key and value", "code": 403,
                "reason": "Forbidden"}}),
        "/never" => json!({"allowed": false}),
        "/warn" => json!({"allowed": true, "warnings": ["beware"]}),
        "/first" => patch(json!([{"op": "add", "path": "/data/first", "value": "1"}])),
        "/second" if object["data"]["first"].is_string() => {
            patch(json!([{"op": "add", "path": "/data/second", "value": "2"}]))
        }
        "/init" => patch(json!([{"op": "add", "path": "/spec/initContainers", "value": [
            {"name": "added", "image": "registry.example/added:1"}]}])),
        _ => json!({"allowed": true}),
    };
    response["uid"] = review["request"]["uid"].clone();
    json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
}

trait Admission {
    /// A webhook for objects of namespaces that are labelled for it.
    fn hook(&self, name: &str, path: &str, resources: &[&str], more: Value) -> Value;
    async fn register(&self, f: &Fixture, mutating: bool, name: &str, hooks: Value);
}

impl Admission for Hooks {
    fn hook(&self, name: &str, path: &str, resources: &[&str], more: Value) -> Value {
        let mut hook = json!({
            "name": format!("{name}.example.com"), "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://{}{path}", self.address),
                "caBundle": self.bundle},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
                "resources": resources}],
            "namespaceSelector": {"matchLabels": {"hooked": "1"}},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            hook[key] = value.clone();
        }
        hook
    }

    async fn register(&self, f: &Fixture, mutating: bool, name: &str, hooks: Value) {
        let kind = if mutating { "mutating" } else { "validating" };
        let object = json!({"metadata": {"name": name}, "webhooks": hooks});
        f.post(&format!("{GROUP}/{kind}webhookconfigurations"), &object).await.expect(201);
    }
}

async fn fixture() -> Fixture {
    let f = Fixture::new().await;
    let labels = json!({"metadata": {"labels": {"hooked": "1"}}});
    f.patch("/api/v1/namespaces/default", "merge-patch+json", &labels).await.expect(200);
    settle(&f).await;
    f
}

/// Waits until admission sees what was written: a namespace's label is read from a cache.
async fn settle(f: &Fixture) {
    let mut watch = f.watch("/api/v1/namespaces?watch=1&fieldSelector=metadata.name=default").await;
    while let Some(event) = watch.next().await {
        if event["object"]["metadata"]["labels"]["hooked"] == "1" {
            return;
        }
    }
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

/// Creates as often as it takes until what was registered is in force.
async fn until_refused(f: &Fixture, data: Value) -> common::Answer {
    for i in 0..500 {
        let answer = f.post(CONFIG_MAPS, &config_map(&format!("try-{i}"), data.clone())).await;
        if answer.code != 201 {
            return answer;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validating_webhooks_refuse_and_warn() {
    let (f, hooks) = (fixture().await, Hooks::start(answer).await);
    let all = json!([
        hooks.hook("deny", "/deny", &["configmaps"], json!({})),
        hooks.hook("warn", "/warn", &["configmaps"], json!({})),
        hooks.hook("never", "/never", &["secrets"], json!({
            "matchConditions": [{"name": "only-some", "expression": "object.metadata.name == 'no'"}]})),
    ]);
    hooks.register(&f, false, "v", all).await;
    let refused = until_refused(&f, json!({"bad": "1"})).await.expect(403);
    assert_eq!(
        refused["message"],
        "admission webhook \"deny.example.com\" denied the request: the configmap contains unwanted key and value"
    );
    assert_eq!((&refused["code"], &refused["reason"]), (&json!(403), &json!("Forbidden")));
    let made = f.post(CONFIG_MAPS, &config_map("good", json!({}))).await;
    assert_eq!(made.code, 201);
    assert_eq!(made.header("warning"), "299 - \"beware\"");

    let secrets = "/api/v1/namespaces/default/secrets";
    f.post(secrets, &json!({"metadata": {"name": "yes"}})).await.expect(201);
    let refused = f.post(secrets, &json!({"metadata": {"name": "no"}})).await.expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"never.example.com\" denied the request without explanation"
    );
    // An update that makes it bad, and a deletion that is asked about.
    let bad = json!({"data": {"bad": "1"}});
    let url = format!("{CONFIG_MAPS}/good");
    assert_eq!(f.patch(&url, "merge-patch+json", &bad).await.code, 403);
    assert_eq!(f.delete(&url).await.code, 200);
    let asked = hooks.asked.lock().clone();
    let last = &asked.iter().rev().find(|(path, _)| path == "/deny").expect("asked").1["request"];
    assert_eq!((&last["operation"], &last["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(last["oldObject"]["metadata"]["name"], "good");
    assert_eq!(last["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(last["userInfo"]["username"], "admin");
    assert_eq!((&last["name"], &last["namespace"]), (&json!("good"), &json!("default")));
    assert_eq!(last["options"]["kind"], "DeleteOptions");
    let created = &asked.iter().find(|(p, _)| p == "/deny").expect("asked").1["request"];
    assert_eq!(created["object"]["kind"], "ConfigMap");
    assert_eq!((&created["oldObject"], &created["dryRun"]), (&Value::Null, &json!(false)));
    assert_eq!(created["options"]["kind"], "CreateOptions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutating_webhooks_change_in_order_and_again() {
    let (f, hooks) = (fixture().await, Hooks::start(answer).await);
    // The one that needs the other's change comes before it, and is called again.
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    let all = json!([
        hooks.hook("second", "/second", &["configmaps"], again),
        hooks.hook("first", "/first", &["configmaps"], json!({})),
        hooks.hook("init", "/init", &["pods"], json!({})),
    ]);
    hooks.register(&f, true, "m", all).await;
    let mut data = Value::Null;
    for i in 0..500 {
        let made = f.post(CONFIG_MAPS, &config_map(&format!("m-{i}"), json!({"own": "0"}))).await;
        data = made.expect(201)["data"].clone();
        if data["first"] == "1" {
            break;
        }
    }
    assert_eq!(data, json!({"own": "0", "first": "1", "second": "2"}));
    let account = json!({"metadata": {"name": "default"}});
    f.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "main", "image": "registry.example/main:1"}]}});
    let made = f.post("/api/v1/namespaces/default/pods", &pod).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(added["name"], "added");
    // Defaults were put into what was added.
    assert_eq!(added["terminationMessagePolicy"], "File");
    assert_eq!(added["imagePullPolicy"], "IfNotPresent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_follow_their_policies() {
    let (f, hooks) = (fixture().await, Hooks::start(answer).await);
    let unreachable = json!({"service": {"namespace": "default", "name": "nope"}});
    let all = json!([
        hooks.hook(
            "ignored",
            "/x",
            &["configmaps"],
            json!({"failurePolicy": "Ignore", "clientConfig": unreachable})
        ),
        hooks.hook(
            "slow",
            "/slow",
            &["configmaps"],
            json!({"timeoutSeconds": 1,
            "objectSelector": {"matchLabels": {"slow": "1"}}})
        ),
        hooks.hook("closed", "/x", &["secrets"], json!({"clientConfig": unreachable})),
        hooks.hook("effects", "/x", &["services"], json!({"sideEffects": "NoneOnDryRun"})),
    ]);
    hooks.register(&f, false, "v", all).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let mut refused = None;
    for i in 0..500 {
        let answer = f.post(secrets, &json!({"metadata": {"name": format!("s-{i}")}})).await;
        if answer.code != 201 {
            refused = Some(answer.expect(500));
            break;
        }
    }
    assert_eq!(
        refused.expect("a refusal")["message"],
        "Internal error occurred: failed calling webhook \"closed.example.com\": failed to call webhook: Post \"https://nope.default.svc:443/?timeout=10s\": service \"nope\" not found"
    );
    f.post(CONFIG_MAPS, &config_map("fine", json!({}))).await.expect(201);
    let mut slow = config_map("slow", json!({}));
    slow["metadata"]["labels"] = json!({"slow": "1"});
    let refused = f.post(CONFIG_MAPS, &slow).await.expect(500);
    let want = format!(
        "Internal error occurred: failed calling webhook \"slow.example.com\": failed to call webhook: Post \"https://{}/slow?timeout=1s\": context deadline exceeded",
        hooks.address
    );
    assert_eq!(refused["message"], want);
    // Configurations of webhooks can be removed whatever they say.
    let url = format!("{GROUP}/validatingwebhookconfigurations/v");
    f.delete(&url).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_asked_about() {
    let (f, hooks) = (fixture().await, Hooks::start(answer).await);
    let all = json!([hooks.hook("attach", "/never", &["pods/attach"], json!({}))]);
    hooks.register(&f, false, "v", all).await;
    f.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "main", "image": "registry.example/main:1"}]}});
    f.post("/api/v1/namespaces/default/pods", &pod).await.expect(201);
    let url = "/api/v1/namespaces/default/pods/p/attach?stdin=true&container=main";
    for _ in 0..500 {
        let answer = f.post(url, &json!({})).await;
        let message = answer.json()["message"].as_str().unwrap_or("").to_owned();
        if message.contains("does not have a host assigned") {
            continue;
        }
        assert_eq!(
            message,
            "admission webhook \"attach.example.com\" denied the request without explanation"
        );
        let request = hooks.asked.lock().last().expect("asked").1["request"].clone();
        assert_eq!(
            (&request["operation"], &request["subResource"]),
            (&json!("CONNECT"), &json!("attach"))
        );
        assert_eq!(request["object"]["kind"], "PodAttachOptions");
        assert_eq!(request["object"]["stdin"], true);
        return;
    }
    panic!("nothing was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_refuse_and_are_checked() {
    let f = fixture().await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["secrets"]}]},
        "validations": [{"expression": "object.metadata.name.startsWith(params.data.prefix)",
            "messageExpression": "'wants names that begin with ' + params.data.prefix"}]}});
    f.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy).await.expect(201);
    f.post(CONFIG_MAPS, &config_map("limits", json!({"prefix": "ok-"}))).await.expect(201);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p",
        "validationActions": ["Deny"],
        "paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}}});
    f.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.expect(201);
    let secrets = "/api/v1/namespaces/default/secrets";
    for i in 0..500 {
        let answer = f.post(secrets, &json!({"metadata": {"name": format!("no-{i}")}})).await;
        if answer.code == 201 {
            continue;
        }
        let refused = answer.expect(422);
        assert_eq!(
            refused["message"],
            format!(
                "secrets \"no-{i}\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: wants names that begin with ok-"
            )
        );
        break;
    }
    f.post(secrets, &json!({"metadata": {"name": "ok-1"}})).await.expect(201);
    let url = format!("{GROUP}/validatingadmissionpolicies/p");
    let mut watch = f
        .watch(&format!(
            "{GROUP}/validatingadmissionpolicies?watch=1&fieldSelector=metadata.name=p"
        ))
        .await;
    while let Some(event) = watch.next().await {
        if event["object"]["status"]["observedGeneration"] == 1 {
            break;
        }
    }
    let status = f.get(&url).await.expect(200)["status"].clone();
    assert_eq!(status["typeChecking"], json!({}));
}
