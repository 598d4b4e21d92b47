//! Tokens of service accounts: who they name, and whether that still exists
//! (upstream: `serviceaccount/claims.go`, `legacy.go`, `jwt.go`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::legacy_tokens::INVALID_SINCE;
use apimachinery::{Value, object};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::Validation;

use super::legacy_tokens::{Use, Uses, WARNING};
use super::{Authenticated, CREDENTIAL_ID, Clock, Rejected, TokenAuthenticator, User};
use crate::admission::lookup::Lookup;
use crate::authorization::rule::quoted;
use crate::reader::Object;
use component::keys::VerifyingKey;

/// Issuer of tokens that Secrets hold.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Clocks may differ by this much.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
const INVALIDATED: &str = "service account token has been invalidated";

/// The user name of a service account.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Namespace and name of the service account that a user name stands for.
pub fn split_user_name(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The groups of all service accounts of a namespace.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// Authenticates tokens of service accounts.
pub struct ServiceAccounts {
    keys: Vec<VerifyingKey>,
    issuers: Vec<String>,
    /// `--api-audiences`: for tokens that name no audience, and when none is asked for.
    audiences: Vec<String>,
    lookup: Lookup,
    clock: Clock,
    uses: Arc<Uses>,
}

impl ServiceAccounts {
    /// `issuers`: `--service-account-issuer`, the first of which signs.
    pub fn new(
        keys: Vec<VerifyingKey>,
        issuers: Vec<String>,
        audiences: Vec<String>,
        lookup: Lookup,
        clock: Clock,
        uses: Arc<Uses>,
    ) -> Self {
        Self { keys, issuers, audiences, lookup, clock, uses }
    }

    fn verify(&self, token: &str) -> Result<Value, Rejected> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| Rejected(e.to_string()))?;
        let mut failed = Rejected("invalid signature, no keys found".to_owned());
        for key in &self.keys {
            if header.kid.as_ref().is_some_and(|id| !id.is_empty() && *id != key.id) {
                continue;
            }
            let mut validation = Validation::new(key.algorithm);
            // Times, issuer and audiences are judged apart, with our own clock.
            validation.required_spec_claims.clear();
            validation.validate_exp = false;
            validation.validate_aud = false;
            match jsonwebtoken::decode::<Value>(token, &key.decoding, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(e) => failed = Rejected(e.to_string()),
            }
        }
        Err(failed)
    }

    /// What the caches do not have yet is looked for in the store.
    async fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Object> {
        let resource = GroupResource::new("", resource);
        self.lookup.patient(&resource, namespace, name, (1, Duration::ZERO)).await
    }

    /// An object that a token is bound to, if it is the same one and still there.
    async fn bound(
        &self,
        what: (&str, &str, &str),
        namespace: &str,
        reference: &Value,
        now: Timestamp,
    ) -> Result<(String, String), String> {
        let (resource, kind, lower) = what;
        let name = object::str_at(reference, &["name"]);
        let uid = object::str_at(reference, &["uid"]);
        let found = self.find(resource, namespace, name).await.ok_or(INVALIDATED)?;
        if object::uid(&found) != uid {
            return Err(format!(
                "{kind} UID ({}) does not match service account {lower} ref claim ({uid})",
                object::uid(&found)
            ));
        }
        if deleted(&found, now) {
            return Err(INVALIDATED.to_owned());
        }
        Ok((name.to_owned(), uid.to_owned()))
    }

    async fn bound_token(&self, claims: &Value) -> Result<User, String> {
        let now = (self.clock)();
        check_times(claims, now)?;
        let private = claims.get("kubernetes.io").unwrap_or(&Value::Null);
        let namespace = object::str_at(private, &["namespace"]);
        let name = object::str_at(private, &["serviceaccount", "name"]);
        let uid = object::str_at(private, &["serviceaccount", "uid"]);
        let account = self
            .find("serviceaccounts", namespace, name)
            .await
            .ok_or_else(|| format!("serviceaccounts {name:?} not found"))?;
        if object::uid(&account) != uid {
            return Err(format!(
                "service account UID ({}) does not match claim ({uid})",
                object::uid(&account)
            ));
        }
        if deleted(&account, now) {
            return Err(format!("service account {namespace}/{name} has been deleted"));
        }
        let mut extra = BTreeMap::new();
        let mut tell = |key: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        if let Some(secret) = object::get(private, &["secret"]) {
            self.bound(("secrets", "secret", "secret"), namespace, secret, now).await?;
        }
        let pod = object::get(private, &["pod"]);
        if let Some(pod) = pod {
            let (name, uid) = self.bound(("pods", "pod", "pod"), namespace, pod, now).await?;
            if !name.is_empty() && !uid.is_empty() {
                tell("pod-name", &name);
                tell("pod-uid", &uid);
            }
        }
        if let Some(node) = object::get(private, &["node"]) {
            // The node of a pod is told, not checked: it does not bind the token.
            if pod.is_none() {
                self.bound(("nodes", "node", "node"), "", node, now).await?;
            }
            let (name, uid) = (object::str_at(node, &["name"]), object::str_at(node, &["uid"]));
            if !name.is_empty() {
                tell("node-name", name);
                if !uid.is_empty() {
                    tell("node-uid", uid);
                }
            }
        }
        if let Some(after) = number(private, "warnafter").filter(|n| *n != 0) {
            let stale = now.as_second() > after;
            self.uses.count(if stale { Use::Stale } else { Use::Valid });
            if stale {
                tracing::debug!(subject = object::str_at(claims, &["sub"]), "stale token");
            }
        }
        let id = object::str_at(claims, &["jti"]);
        if !id.is_empty() {
            extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        Ok(User {
            name: user_name(namespace, name),
            uid: uid.to_owned(),
            groups: groups(namespace),
            extra,
        })
    }

    /// A token that a Secret holds: whose it is, and what is to be said of its use.
    async fn legacy_token(
        &self,
        token: &str,
        claims: &Value,
    ) -> Result<(User, Vec<String>), String> {
        let claim = |name: &str, says: &str| match object::str_at(claims, &[name]) {
            "" => Err(format!("{says} claim is missing")),
            value => Ok(value.to_owned()),
        };
        let subject = claim("sub", "sub")?;
        let namespace = claim("kubernetes.io/serviceaccount/namespace", "namespace")?;
        let secret_name = claim("kubernetes.io/serviceaccount/secret.name", "secretName")?;
        let name =
            claim("kubernetes.io/serviceaccount/service-account.name", "serviceAccountName")?;
        let uid = claim("kubernetes.io/serviceaccount/service-account.uid", "serviceAccountUID")?;
        if split_user_name(&subject) != Some((namespace.as_str(), name.as_str())) {
            return Err("sub claim is invalid".to_owned());
        }
        let gone = "Token has been invalidated";
        let secret = self.find("secrets", &namespace, &secret_name).await.ok_or(gone)?;
        if !object::deletion_timestamp(&secret).is_empty() {
            return Err(gone.to_owned());
        }
        let stored =
            STANDARD.decode(object::str_at(&secret, &["data", "token"])).unwrap_or_default();
        if aws_lc_rs::constant_time::verify_slices_are_equal(&stored, token.as_bytes()).is_err() {
            return Err("Token does not match server's copy".to_owned());
        }
        let account = self
            .find("serviceaccounts", &namespace, &name)
            .await
            .ok_or_else(|| format!("serviceaccounts {name:?} not found"))?;
        if !object::deletion_timestamp(&account).is_empty() {
            return Err(format!("ServiceAccount {namespace}/{name} has been deleted"));
        }
        if object::uid(&account) != uid {
            return Err(format!(
                "ServiceAccount UID ({}) does not match claim ({uid})",
                object::uid(&account)
            ));
        }
        // A refused token counts as used, too: somebody wants it.
        let invalid = object::label(&secret, INVALID_SINCE).is_some_and(|since| !since.is_empty());
        let listed = |r: &Value| object::str_at(r, &["name"]) == secret_name;
        let what = match object::list_at(&account, &["secrets"]).iter().any(listed) {
            _ if invalid => Use::Invalidated,
            true => Use::AutoGenerated,
            false => Use::Manual,
        };
        self.uses.count(what);
        self.uses.note(&secret, (self.clock)()).await;
        if invalid {
            return Err(format!(
                "the token in secret {namespace}/{secret_name} for service account {namespace}/{name} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        let user = User {
            name: user_name(&namespace, &name),
            uid,
            groups: groups(&namespace),
            ..User::default()
        };
        let warned = (what == Use::AutoGenerated).then(|| WARNING.to_owned());
        Ok((user, warned.into_iter().collect()))
    }
}

fn number(claims: &Value, name: &str) -> Option<i64> {
    let value = claims.get(name)?;
    value.as_i64().or_else(|| value.as_f64().map(|f| f as i64))
}

fn check_times(claims: &Value, now: Timestamp) -> Result<(), String> {
    let (now, leeway) = (now.as_second(), LEEWAY.as_secs());
    if number(claims, "nbf").is_some_and(|at| now + leeway < at) {
        return Err("service account token is not valid yet".to_owned());
    }
    if number(claims, "exp").is_some_and(|at| at != 0 && now - leeway > at) {
        return Err("service account token has expired".to_owned());
    }
    if number(claims, "iat").is_some_and(|at| now + leeway < at) {
        return Err("service account token is issued in the future".to_owned());
    }
    Ok(())
}

/// Whether an object's deletion is past, clocks' differences aside.
fn deleted(object: &Value, now: Timestamp) -> bool {
    let at = object::deletion_timestamp(object);
    if at.is_empty() {
        return false;
    }
    // A time that cannot be read must not keep a token alive.
    at.parse::<Timestamp>().is_ok_and(|at| at < now - LEEWAY) || at.parse::<Timestamp>().is_err()
}

/// The issuer that an unverified token names.
fn issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

fn audiences_of(claims: &Value) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => {
            many.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

#[async_trait]
impl TokenAuthenticator for ServiceAccounts {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, Rejected> {
        let Some(issuer) = issuer(token) else { return Ok(None) };
        let legacy = issuer == LEGACY_ISSUER;
        if !legacy && !self.issuers.contains(&issuer) {
            return Ok(None);
        }
        let claims = self.verify(token)?;
        let mut named = audiences_of(&claims);
        if named.is_empty() {
            self.uses.count(Use::Legacy);
            named.clone_from(&self.audiences);
        }
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        let common: Vec<String> = named.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if common.is_empty() && !self.audiences.is_empty() {
            return Err(Rejected(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&named),
                quoted(wanted)
            )));
        }
        let known = if legacy {
            self.legacy_token(token, &claims).await
        } else {
            self.bound_token(&claims).await.map(|user| (user, Vec::new()))
        };
        let (user, warnings) = known.map_err(Rejected)?;
        Ok(Some(Authenticated { user, audiences: common, warnings }))
    }
}
