//! Bootstrap tokens (Secrets `bootstrap-token-<id>` of kube-system): those that may sign vouch for the
//! kubeconfig of the ConfigMap cluster-info, and all go when they expire
//! (`pkg/controller/bootstrap`; the API's page "Authenticating with Bootstrap Tokens").

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

/// Where tokens are.
const TOKENS: &str = "kube-system";
/// Which Secrets are tokens.
const TYPE: &str = "type=bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
/// Who wants to join a cluster reads this without credentials.
const PUBLIC: (&str, &str) = ("kube-public", "cluster-info");
const SIGNED: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

/// Signs cluster-info.
pub struct Signer {
    maps: Cache<ConfigMap>,
    tokens: Cache<Secret>,
}

impl Signer {
    pub fn new(context: &Context) -> Self {
        Self { maps: context.caches.of(), tokens: context.caches.selected(TYPE) }
    }
}

impl Controller for Signer {
    fn name(&self) -> &'static str {
        "bootstrap-signer"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let all = || Key::new(PUBLIC.0, PUBLIC.1);
        let q = queue.clone();
        self.maps.on_change(move |change| {
            if *change.key == all() {
                q.add(all());
            }
        });
        let q = queue.clone();
        self.tokens.on_change(move |_| q.add(all()));
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(map) = self.maps.get(key) else { return Plan::default() };
        sign(&map, &self.tokens.list_in(TOKENS), now)
    }

    fn workers(&self) -> usize {
        1
    }
}

/// Deletes tokens that have expired.
pub struct Cleaner {
    tokens: Cache<Secret>,
}

impl Cleaner {
    pub fn new(context: &Context) -> Self {
        Self { tokens: context.caches.selected(TYPE) }
    }
}

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let q = queue.clone();
        self.tokens.on_change(move |change| {
            if change.key.namespace == TOKENS {
                q.add(change.key.clone());
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        self.tokens.get(key).map(|token| clean(&token, now)).unwrap_or_default()
    }

    fn workers(&self) -> usize {
        1
    }
}

fn field<'a>(secret: &'a Secret, name: &str) -> &'a str {
    let bytes = secret.data.as_ref().and_then(|data| data.get(name));
    bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
}

/// How long a token holds.
#[derive(Debug, PartialEq, Eq)]
enum Validity {
    Forever,
    For(Duration),
    Over,
}

/// What says no time that can be read is over.
fn validity(secret: &Secret, now: Timestamp) -> Validity {
    let text = field(secret, "expiration");
    if text.is_empty() {
        return Validity::Forever;
    }
    let left = text.parse::<Timestamp>().ok().map(|at| at.duration_since(now));
    match left.and_then(|left| Duration::try_from(left).ok()) {
        Some(left) if !left.is_zero() => Validity::For(left),
        _ => Validity::Over,
    }
}

fn clean(secret: &Secret, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match validity(secret, now) {
        Validity::Forever => {}
        Validity::For(left) => plan.again(left),
        Validity::Over => plan.push(Action::delete(secret)),
    }
    plan
}

/// Id and secret of a token that may sign, as long as it is named after its id.
fn signing(secret: &Secret) -> Option<(&str, &str)> {
    let id = secret.metadata.name.as_deref()?.strip_prefix(PREFIX)?;
    let sound = id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let key = field(secret, "token-secret");
    let may = field(secret, "usage-bootstrap-signing") == "true";
    (sound && field(secret, "token-id") == id && !key.is_empty() && may).then_some((id, key))
}

/// Gives the map the signatures of all tokens that may sign, and no others.
fn sign(map: &ConfigMap, tokens: &[Arc<Secret>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(have) = &map.data else { return plan };
    let Some(content) = have.get(SIGNED) else { return plan };
    let mut data: BTreeMap<String, String> = have.clone();
    data.retain(|key, _| !key.starts_with(SIGNATURE));
    for token in tokens {
        let Some((id, key)) = signing(token) else { continue };
        match validity(token, now) {
            Validity::Over => continue,
            Validity::For(left) => plan.again(left),
            Validity::Forever => {}
        }
        data.insert(format!("{SIGNATURE}{id}"), signature(content, id, key));
    }
    if data != *have {
        plan.push(Action::update(&ConfigMap { data: Some(data), ..map.clone() }));
    }
    plan
}

/// A JWS without its payload (RFC 7515, appendix F). Whoever verifies it makes it anew and compares
/// the text, so that the header has to be these bytes.
fn signature(content: &str, id: &str, key: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ID: &str = "abcdef";

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    fn token(fields: &[(&str, &str)]) -> Arc<Secret> {
        let mut all = BTreeMap::from([
            ("token-id", ID),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-signing", "true"),
        ]);
        all.extend(fields.iter().copied());
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let data: BTreeMap<_, _> = all.into_iter().map(|(k, v)| (k, encode(v))).collect();
        let name = format!("{PREFIX}{ID}");
        let secret = json!({"metadata": {"namespace": TOKENS, "name": name, "uid": "u"},
            "data": data});
        Arc::new(serde_json::from_value(secret).expect("a secret"))
    }

    fn map(data: Value) -> ConfigMap {
        let map = json!({"metadata": {"namespace": PUBLIC.0, "name": PUBLIC.1}, "data": data});
        serde_json::from_value(map).expect("a map")
    }

    #[test]
    fn a_signature_is_the_one_that_others_make() {
        // From Python's hmac and base64 on the same input.
        let want =
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..j3rMYFkwddE8X30xfZmMV5OTtxkbWSuBY11sRVvJt1Y";
        assert_eq!(signature("a: b\n", ID, "0123456789abcdef"), want);
    }

    #[test]
    fn who_may_sign_signs_and_others_signatures_go() {
        let key = format!("{SIGNATURE}{ID}");
        let fresh = signature("k", ID, "0123456789abcdef");
        for (fields, signs, again) in [
            (vec![], true, None),
            (vec![("expiration", "2026-01-01T00:01:00Z")], true, Some(60)),
            (vec![("expiration", "2026-01-01T00:00:00Z")], false, None),
            (vec![("expiration", "some day")], false, None),
            (vec![("usage-bootstrap-signing", "false")], false, None),
            (vec![("usage-bootstrap-signing", "")], false, None),
            (vec![("token-id", "fedcba")], false, None),
            (vec![("token-secret", "")], false, None),
        ] {
            let tokens = [token(&fields)];
            // A wrong signature of this token, and one of a token that is gone.
            let old = map(json!({"kubeconfig": "k", &key: "x", "jws-kubeconfig-000000": "y"}));
            let made = sign(&old, &tokens, now());
            let mut want = json!({"kubeconfig": "k"});
            if signs {
                want[&key] = fresh.clone().into();
            }
            let got = made.actions.iter().find_map(|action| match action {
                Action::Update(_, object) => Some(object["data"].clone()),
                _ => None,
            });
            assert_eq!(got, Some(want.clone()), "{fields:?}");
            assert_eq!(made.again, again.map(Duration::from_secs), "{fields:?}");
            assert!(sign(&map(want), &tokens, now()).actions.is_empty(), "{fields:?}");
        }
        assert!(sign(&map(json!({"x": "y"})), &[token(&[])], now()).actions.is_empty());
    }

    #[test]
    fn a_token_goes_when_it_expires() {
        for (expiration, deletes, again) in [
            ("", false, None),
            ("2026-01-01T00:00:01Z", false, Some(1)),
            ("2026-01-01T01:00:01+01:00", false, Some(1)),
            ("2026-01-01T00:00:00Z", true, None),
            ("2025-01-01T00:00:00Z", true, None),
            ("never", true, None),
        ] {
            let plan = clean(&token(&[("expiration", expiration)]), now());
            assert_eq!(!plan.actions.is_empty(), deletes, "{expiration}");
            assert_eq!(plan.again, again.map(Duration::from_secs), "{expiration}");
        }
    }
}
