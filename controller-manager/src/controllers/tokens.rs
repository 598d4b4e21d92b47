//! Secrets of type `kubernetes.io/service-account-token` hold a token of the service account that
//! they name, which does not expire, and go with the account; an account that lists one does so no
//! more when that goes (`pkg/controller/serviceaccount/tokens_controller.go`). None is made by
//! itself (KEP-2799).

use std::collections::HashMap;
use std::sync::Arc;

use client::{Cache, Key, Queue};
use component::keys::SigningKey;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::json;

use crate::action::{Action, Plan, Target, Unless};
use crate::runner::{Context, Controller};

/// Which Secrets hold tokens.
pub(super) const TYPE: &str = "type=kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

pub struct Tokens {
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
    source: Source,
    /// Secrets that went, until their accounts have been looked at.
    gone: Arc<Mutex<HashMap<Key, Gone>>>,
}

struct Gone {
    secret: Arc<Secret>,
    /// A plan knows of it.
    planned: bool,
}

/// What Secrets get.
pub struct Source {
    pub key: SigningKey,
    /// PEM of the CA that the API server's certificate is from; without one, Secrets get none.
    pub ca: Option<String>,
}

impl Tokens {
    pub fn new(context: &Context, source: Source) -> Self {
        let caches = &context.caches;
        Self { secrets: caches.selected(TYPE), accounts: caches.of(), source, gone: Arc::default() }
    }
}

impl Controller for Tokens {
    fn name(&self) -> &'static str {
        "serviceaccount-token"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let (q, gone) = (queue.clone(), self.gone.clone());
        self.secrets.on_change(move |change| {
            if let (Some(old), None) = (change.old, change.new) {
                let secret = old.clone();
                gone.lock().insert(change.key.clone(), Gone { secret, planned: false });
            }
            q.add(change.key.clone());
        });
        let (q, secrets) = (queue.clone(), self.secrets.clone());
        self.accounts.on_change(move |change| {
            for secret in secrets.list_in(&change.key.namespace) {
                if account_name(&secret) == change.key.name {
                    q.add(Key::of(&*secret));
                }
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let account =
            |secret: &Secret| self.accounts.get(&Key::new(&key.namespace, account_name(secret)));
        if let Some(secret) = self.secrets.get(key) {
            self.gone.lock().remove(key);
            return plan(&secret, account(&secret).as_deref(), &self.source);
        }
        let gone = self.gone.lock().get_mut(key).map(|gone| {
            gone.planned = true;
            gone.secret.clone()
        });
        gone.map(|secret| part(&secret, account(&secret).as_deref())).unwrap_or_default()
    }

    fn went_through(&self, key: &Key) -> bool {
        let mut gone = self.gone.lock();
        if gone.get(key).is_some_and(|gone| gone.planned) {
            gone.remove(key);
        }
        false
    }
}

/// The service account that a Secret names.
pub(super) fn account_name(secret: &Secret) -> &str {
    secret.annotations().get(ACCOUNT_NAME).map_or("", String::as_str)
}

fn account_uid(secret: &Secret) -> Option<&String> {
    secret.annotations().get(ACCOUNT_UID).filter(|uid| !uid.is_empty())
}

/// Whether an account of the name that a Secret says is the one that it means.
pub(super) fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    account_uid(secret).is_none_or(|uid| account.metadata.uid.as_ref() == Some(uid))
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, source: &Source) -> Plan {
    let mut plan = Plan::default();
    let Some(account) = account.filter(|account| is_of(secret, account)) else {
        let uid = account_uid(secret);
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let named = Target::of::<ServiceAccount>(&Key::new(namespace, account_name(secret)));
        plan.unless = Some(Unless::Exists(named, uid.cloned()));
        plan.push(Action::delete(secret));
        return plan;
    };
    let filled = filled(secret, account, source);
    if filled.data != secret.data {
        plan.push(Action::update(&filled));
    }
    plan
}

/// Has the account of a Secret that is gone list it no more.
fn part(secret: &Secret, account: Option<&ServiceAccount>) -> Plan {
    let mut plan = Plan::default();
    let Some(account) = account.filter(|account| is_of(secret, account)) else { return plan };
    let mut left = account.secrets.clone().unwrap_or_default();
    left.retain(|one| one.name != secret.metadata.name);
    if account.secrets.as_ref().is_some_and(|listed| listed.len() > left.len()) {
        plan.push(Action::update(&ServiceAccount { secrets: Some(left), ..account.clone() }));
    }
    plan
}

/// The Secret with what it lacks. A CA that is not ours is replaced, what else is there stays.
fn filled(secret: &Secret, account: &ServiceAccount, source: &Source) -> Secret {
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    let lacks = |field: &str, data: &std::collections::BTreeMap<String, ByteString>| {
        data.get(field).is_none_or(|value| value.0.is_empty())
    };
    if let Some(ca) = source.ca.as_ref().filter(|ca| !ca.is_empty()) {
        data.insert("ca.crt".into(), ByteString(ca.clone().into_bytes()));
    }
    if lacks("namespace", data) {
        let namespace = account.namespace().unwrap_or_default();
        data.insert("namespace".into(), ByteString(namespace.into_bytes()));
    }
    if lacks("token", data) {
        match source.key.sign(&claims(&secret.name_any(), account)) {
            Ok(token) => drop(data.insert("token".into(), ByteString(token.into_bytes()))),
            Err(error) => tracing::error!(secret = secret.name_any(), %error, "no token"),
        }
    }
    let about = filled.metadata.annotations.get_or_insert_default();
    about.insert(ACCOUNT_NAME.into(), account.name_any());
    about.insert(ACCOUNT_UID.into(), account.uid().unwrap_or_default());
    filled
}

/// What a token says that a Secret holds.
fn claims(secret: &str, account: &ServiceAccount) -> serde_json::Value {
    let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
    json!({
        "iss": "kubernetes/serviceaccount",
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": secret,
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": account.uid(),
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use serde_json::Value;

    use super::*;

    fn source() -> Source {
        let pem = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        let key = SigningKey::parse(pem.as_bytes()).expect("a key");
        Source { key, ca: Some("ca".into()) }
    }

    fn secret(uid: &str, data: Value) -> Secret {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "s", "uid": "us",
                "annotations": {ACCOUNT_NAME: "sa", ACCOUNT_UID: uid}},
            "type": "kubernetes.io/service-account-token",
            "data": data,
        }))
        .expect("a secret")
    }

    fn account() -> ServiceAccount {
        let account = json!({"metadata": {"namespace": "ns", "name": "sa", "uid": "ua"}});
        serde_json::from_value(account).expect("an account")
    }

    #[test]
    fn what_a_secret_lacks_is_filled_in() {
        let b64 = |text: &str| STANDARD.encode(text);
        let whole = json!({"ca.crt": b64("ca"), "namespace": b64("ns"), "token": b64("t")});
        for (data, made) in [
            (json!({}), true),
            (json!({"extra": b64("x")}), true),
            (json!({"ca.crt": b64("other"), "namespace": b64("ns"), "token": b64("t")}), false),
            (json!({"ca.crt": b64("ca"), "namespace": b64("ns"), "token": ""}), true),
        ] {
            let plan = plan(&secret("", data.clone()), Some(&account()), &source());
            let [Action::Update(_, new)] = plan.actions.as_slice() else { panic!("{plan:?}") };
            assert_eq!(new["metadata"]["annotations"][ACCOUNT_UID], "ua", "{data}");
            assert_eq!(new["data"]["ca.crt"], whole["ca.crt"], "{data}");
            assert_eq!(new["data"]["namespace"], whole["namespace"], "{data}");
            assert_eq!(new["data"]["extra"], data["extra"], "{data}");
            assert_eq!(new["data"]["token"] != whole["token"], made, "{data}");
            if made {
                let token = STANDARD.decode(new["data"]["token"].as_str().expect("text"));
                let token = String::from_utf8(token.expect("base64")).expect("text");
                let claims = token.split('.').nth(1).expect("claims");
                let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
                let claims: Value = serde_json::from_slice(&claims).expect("JSON");
                assert_eq!(claims["sub"], "system:serviceaccount:ns:sa");
                assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "s");
                assert_eq!(claims["kubernetes.io/serviceaccount/service-account.uid"], "ua");
            }
        }
        let done = plan(&secret("ua", whole), Some(&account()), &source());
        assert_eq!(done, Plan::default());
    }

    #[test]
    fn a_secret_goes_with_its_account() {
        for (uid, account, asked) in [
            ("ua", None, Some(Some("ua"))),
            ("", None, Some(None)),
            ("before", Some(account()), Some(Some("before"))),
            ("ua", Some(account()), None),
        ] {
            let plan = plan(&secret(uid, json!({})), account.as_ref(), &source());
            let deletes =
                plan.actions.iter().any(|a| matches!(a, Action::Delete(_, uid, _) if uid == "us"));
            assert_eq!(deletes, asked.is_some(), "{uid}");
            let target = Target::of::<ServiceAccount>(&Key::new("ns", "sa"));
            let unless = asked.map(|uid| Unless::Exists(target, uid.map(str::to_owned)));
            assert_eq!(plan.unless, unless, "{uid}");
        }
    }

    #[test]
    fn an_account_lists_no_secret_that_is_gone() {
        let mut account = account();
        for (uid, listed, left) in [
            (
                "ua",
                json!([{"name": "a"}, {"name": "s"}, {"name": "s"}]),
                Some(json!([{"name": "a"}])),
            ),
            ("", json!([{"name": "s"}]), Some(json!([]))),
            ("before", json!([{"name": "s"}]), None),
            ("ua", json!([{"name": "a"}]), None),
            ("ua", json!(null), None),
        ] {
            account.secrets = serde_json::from_value(listed.clone()).expect("references");
            let plan = part(&secret(uid, json!({})), Some(&account));
            let got = plan.actions.iter().map(|action| match action {
                Action::Update(_, new) => new["secrets"].clone(),
                other => panic!("{other:?}"),
            });
            assert_eq!(got.collect::<Vec<_>>(), Vec::from_iter(left), "{uid} {listed}");
        }
        assert_eq!(part(&secret("", json!({})), None), Plan::default());
    }
}
