//! ServiceAccount: every pod runs as one, with its token mounted.

use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, names, object};
use async_trait::async_trait;
use rand::Rng as _;
use serde_json::json;

use super::lookup::Lookup;
use super::{Attributes, Operation, Plugin, forbidden, pods};
use crate::authentication::tokens::WARN_ONLY_SECONDS;
use crate::reader::Object;

const DEFAULT: &str = "default";
const VOLUME: &str = "kube-api-access";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

pub struct ServiceAccount {
    lookup: Lookup,
    accounts: GroupResource,
}

impl ServiceAccount {
    pub fn new(lookup: Lookup) -> Self {
        Self { lookup, accounts: GroupResource::new("", "serviceaccounts") }
    }

    async fn account(
        &self,
        a: &Attributes<'_>,
        pod: &Value,
        name: &str,
    ) -> Result<Object, ApiError> {
        // The default account of a new namespace is on its way: a controller makes it.
        let attempts = if name == DEFAULT { 10 } else { 1 };
        let pause = Duration::from_millis(rand::rng().random_range(100..200));
        let found = self.lookup.patient(&self.accounts, a.namespace, name, (attempts, pause)).await;
        found.ok_or_else(|| {
            let reason = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                a.namespace
            );
            forbidden(a, Some(pod), reason)
        })
    }
}

fn concerns(a: &Attributes<'_>) -> bool {
    a.resource.group.is_empty()
        && a.resource.resource == "pods"
        && matches!(a.subresource, "" | "ephemeralcontainers")
}

fn account_of(pod: &Value) -> &str {
    object::str_at(pod, &["spec", "serviceAccountName"])
}

/// Whether a pod wants the token: its own word first, then the account's, then yes.
fn automount(account: &Value, pod: &Value) -> bool {
    let says = |o: &Value, path: &[&str]| object::get(o, path).and_then(Value::as_bool);
    says(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| says(account, &["automountServiceAccountToken"]))
        .unwrap_or(true)
}

/// The volume that a token is mounted from.
fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": WARN_ONLY_SECONDS, "path": "token"}},
            {"configMap": {
                "name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }},
            {"downwardAPI": {"items": [{
                "path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
            }]}},
        ]},
    })
}

/// Mounts the token into all containers that mount nothing in its place.
/// `random` gives numbers below its argument.
fn mount_token(pod: &mut Value, random: impl FnMut(usize) -> usize) {
    let prefix = format!("{VOLUME}-");
    let existing = pods::volumes(pod)
        .iter()
        .map(|v| object::str_at(v, &["name"]))
        .find(|name| name.starts_with(&prefix))
        .map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| names::generate(&prefix, random));
    let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        let Some(list) = pod.get_mut("spec").and_then(|s| s.get_mut(kind)) else { continue };
        for container in list.as_array_mut().into_iter().flatten() {
            let taken = object::list_at(container, &["volumeMounts"])
                .iter()
                .any(|m| object::str_at(m, &["mountPath"]) == MOUNT_PATH);
            if !taken {
                append(container, "volumeMounts", mount.clone());
                needed = true;
            }
        }
    }
    if existing.is_none()
        && needed
        && let Some(spec) = pod.get_mut("spec")
    {
        append(spec, "volumes", token_volume(&name));
    }
}

fn append(object: &mut Value, field: &str, item: Value) {
    match object.get_mut(field).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => object[field] = json!([item]),
    }
}

fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    if !account_of(pod).is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    if pods::secrets(pod).next().is_some() {
        return Err("a mirror pod may not reference secrets");
    }
    let projects_token = pods::volumes(pod).iter().any(|v| {
        object::list_at(v, &["projected", "sources"])
            .iter()
            .any(|s| object::get(s, &["serviceAccountToken"]).is_some())
    });
    if projects_token {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// Go's `strconv.ParseBool`.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn enforces(account: &Value) -> bool {
    object::annotation(account, ENFORCE).is_some_and(is_true)
}

fn names_of<'a>(account: &'a Value, field: &str) -> Vec<&'a str> {
    object::list_at(account, &[field]).iter().map(|s| object::str_at(s, &["name"])).collect()
}

/// Refuses Secrets in the environment of containers that the account does not list.
fn check_env(pod: &Value, account: &Value, kind: &str, called: &str) -> Result<(), String> {
    let allowed = names_of(account, "secrets");
    let account = object::name(account);
    for container in object::list_at(pod, &["spec", kind]) {
        let name = object::str_at(container, &["name"]);
        for env in object::list_at(container, &["env"]) {
            let Some(secret) = object::get(env, &["valueFrom", "secretKeyRef"]) else { continue };
            let secret = object::str_at(secret, &["name"]);
            if !allowed.contains(&secret) {
                return Err(format!(
                    "{called} {name} with envVar {} referencing secret.secretName=\"{secret}\" is not allowed because service account {account} does not reference that secret",
                    object::str_at(env, &["name"])
                ));
            }
        }
        for from in object::list_at(container, &["envFrom"]) {
            let Some(secret) = object::get(from, &["secretRef"]) else { continue };
            let secret = object::str_at(secret, &["name"]);
            if !allowed.contains(&secret) {
                return Err(format!(
                    "{called} {name} with envFrom referencing secret.secretName=\"{secret}\" is not allowed because service account {account} does not reference that secret"
                ));
            }
        }
    }
    Ok(())
}

fn check_secrets(pod: &Value, account: &Value) -> Result<(), String> {
    let allowed = names_of(account, "secrets");
    for volume in pods::volumes(pod) {
        let Some(secret) = object::get(volume, &["secret"]) else { continue };
        let secret = object::str_at(secret, &["secretName"]);
        if !allowed.contains(&secret) {
            return Err(format!(
                "volume with secret.secretName=\"{secret}\" is not allowed because service account {} does not reference that secret",
                object::name(account)
            ));
        }
    }
    check_env(pod, account, "initContainers", "init container")?;
    check_env(pod, account, "containers", "container")?;
    let pull = names_of(account, "imagePullSecrets");
    for (i, secret) in object::list_at(pod, &["spec", "imagePullSecrets"]).iter().enumerate() {
        let secret = object::str_at(secret, &["name"]);
        if !pull.contains(&secret) {
            return Err(format!(
                "imagePullSecrets[{i}].name=\"{secret}\" is not allowed because service account {} does not reference that imagePullSecret",
                object::name(account)
            ));
        }
    }
    Ok(())
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object else { return Ok(()) };
        if !concerns(a) || a.operation != Operation::Create {
            return Ok(());
        }
        // What a kubelet mirrors must stay as its file has it.
        if !pods::is_mirror(pod) {
            if account_of(pod).is_empty() {
                // The second is the old name of the first; clients are shown both.
                object::set(pod, &["spec", "serviceAccountName"], DEFAULT);
                object::set(pod, &["spec", "serviceAccount"], DEFAULT);
            }
            let name = account_of(pod).to_owned();
            let account = self.account(a, pod, &name).await?;
            if automount(&account, pod) {
                mount_token(pod, |below| rand::rng().random_range(0..below));
            }
            if object::list_at(pod, &["spec", "imagePullSecrets"]).is_empty() {
                let secrets: Vec<Value> = names_of(&account, "imagePullSecrets")
                    .into_iter()
                    .map(|name| json!({"name": name}))
                    .collect();
                if !secrets.is_empty() {
                    object::set(pod, &["spec", "imagePullSecrets"], secrets);
                }
            }
        }
        self.validate(a, Some(pod), warnings).await
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object else { return Ok(()) };
        let ephemeral = a.operation == Operation::Update && a.subresource == "ephemeralcontainers";
        if !concerns(a) || (a.operation != Operation::Create && !ephemeral) {
            return Ok(());
        }
        if !ephemeral && pods::is_mirror(pod) {
            return check_mirror(pod).map_err(|reason| forbidden(a, object, reason));
        }
        let name = account_of(pod);
        if name.is_empty() {
            let reason = format!(
                "no service account specified for pod {}/{}",
                a.namespace,
                object::name(pod)
            );
            return Err(forbidden(a, object, reason));
        }
        let account = self.account(a, pod, name).await?;
        if !enforces(&account) {
            return Ok(());
        }
        let checked = if ephemeral {
            check_env(pod, &account, "ephemeralContainers", "ephemeral container")
        } else {
            check_secrets(pod, &account)
        };
        checked.map_err(|reason| forbidden(a, object, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;

    fn plugin() -> ServiceAccount {
        let account = |name: &str, mut rest: Value| {
            rest["metadata"]["name"] = name.into();
            rest["metadata"]["namespace"] = "a".into();
            ("", "serviceaccounts", rest)
        };
        let reader = Memory::with(&[
            account("default", json!({"imagePullSecrets": [{"name": "pull"}]})),
            account("quiet", json!({"automountServiceAccountToken": false})),
            account(
                "strict",
                json!({
                    "metadata": {"annotations": {ENFORCE: "true"}}, "secrets": [{"name": "s"}],
                }),
            ),
        ]);
        ServiceAccount::new(Lookup { reader, live: None })
    }

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        if pod["spec"].get("containers").is_none() {
            pod["spec"]["containers"] = json!([{"name": "c"}]);
        }
        pod
    }

    async fn create(pod: Value) -> Result<Value, String> {
        let write = Write { object: pod, ..Write::default() };
        write.run(&plugin()).await.map(|(pod, _)| pod)
    }

    #[tokio::test(start_paused = true)]
    async fn pods_get_an_account_and_its_token() {
        let got = create(pod(json!({"initContainers": [{"name": "i"}]}))).await.expect("admitted");
        assert_eq!(got["spec"]["serviceAccountName"], "default");
        assert_eq!(got["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
        let volume = &got["spec"]["volumes"][0];
        let name = object::str_at(volume, &["name"]);
        assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
        assert_eq!(*volume, token_volume(name));
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        for kind in ["initContainers", "containers"] {
            assert_eq!(got["spec"][kind][0]["volumeMounts"], mount, "{kind}");
        }

        let own = json!([{"name": "c", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]);
        for spec in [
            json!({"automountServiceAccountToken": false}),
            json!({"serviceAccountName": "quiet"}),
            json!({"containers": own}),
        ] {
            let got = create(pod(spec)).await.expect("admitted");
            assert!(got["spec"].get("volumes").is_none(), "{got}");
        }
        let reused = json!({"volumes": [{"name": "kube-api-access-x"}], "automountServiceAccountToken": true,
            "serviceAccountName": "quiet"});
        let got = create(pod(reused)).await.expect("admitted");
        assert_eq!(got["spec"]["volumes"].as_array().map(Vec::len), Some(1));
        assert_eq!(got["spec"]["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-x");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals() {
        let mirror = |spec: Value| {
            let mut pod = pod(spec);
            pod["metadata"]["annotations"] = json!({pods::MIRROR: "x"});
            pod
        };
        let strict = |spec: Value| {
            let mut pod = pod(spec);
            pod["spec"]["serviceAccountName"] = "strict".into();
            pod
        };
        let token = json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {}}]}}]});
        let env = json!([{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "x"}}}]}]);
        let cases = [
            (mirror(json!({})), ""),
            (
                mirror(json!({"serviceAccountName": "x"})),
                "a mirror pod may not reference service accounts",
            ),
            (
                mirror(json!({"imagePullSecrets": [{"name": "x"}]})),
                "a mirror pod may not reference secrets",
            ),
            (mirror(token), "a mirror pod may not use ServiceAccountToken volume projections"),
            (
                pod(json!({"serviceAccountName": "none"})),
                r#"error looking up service account a/none: serviceaccount "none" not found"#,
            ),
            (strict(json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]})), ""),
            (
                strict(json!({"volumes": [{"name": "v", "secret": {"secretName": "x"}}]})),
                r#"volume with secret.secretName="x" is not allowed because service account strict does not reference that secret"#,
            ),
            (
                strict(json!({"containers": env})),
                r#"container c with envVar E referencing secret.secretName="x" is not allowed because service account strict does not reference that secret"#,
            ),
            (
                strict(json!({"imagePullSecrets": [{"name": "x"}]})),
                r#"imagePullSecrets[0].name="x" is not allowed because service account strict does not reference that imagePullSecret"#,
            ),
        ];
        for (pod, want) in cases {
            let want = match want {
                "" => String::new(),
                reason => format!("pods \"p\" is forbidden: {reason}"),
            };
            assert_eq!(create(pod.clone()).await.err().unwrap_or_default(), want, "{pod}");
        }
    }
}
