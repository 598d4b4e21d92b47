//! Making tokens: the `token` subresource of service accounts
//! (upstream: `registry/core/serviceaccount/storage/token.go`).

use apimachinery::field::{FieldError, Path};
use apimachinery::gvk::{GroupResource, split_api_version};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use component::keys::SigningKey;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, json};

use super::service_account::user_name;
use crate::admission::lookup::Lookup;
use crate::reader::Object;

/// What pods' tokens ask for, in seconds: asking for just this marks a token that may live
/// longer, since old clients do not reload it.
pub const WARN_ONLY_SECONDS: i64 = 60 * 60 + 7;
/// How long such a token lives, in seconds.
pub const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;
const DEFAULT_SECONDS: i64 = 60 * 60;
const MIN_SECONDS: i64 = 10 * 60;
const GROUP: &str = "authentication.k8s.io";

/// Flags of kube-apiserver about tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenOptions {
    /// The first `--service-account-issuer`.
    pub issuer: String,
    /// `--api-audiences`
    pub audiences: Vec<String>,
    /// `--service-account-max-token-expiration`, in seconds; 0: no limit.
    pub max_seconds: i64,
    /// `--service-account-extend-token-expiration`
    pub extend: bool,
}

/// What the time and chance of one request are.
#[derive(Clone, Debug)]
pub struct Moment {
    pub now: Timestamp,
    /// `jti`: a random UUID.
    pub id: String,
}

/// Makes tokens of service accounts.
pub struct TokenIssuer {
    key: SigningKey,
    options: TokenOptions,
}

/// What a token is bound to.
#[derive(Default)]
struct Bound {
    /// `pod`, `secret` or `node` with its object.
    to: Option<(&'static str, Object)>,
    /// Name and uid of the node that the pod runs on.
    node: Option<(String, String)>,
}

impl TokenIssuer {
    pub fn new(key: SigningKey, options: TokenOptions) -> Self {
        Self { key, options }
    }

    /// The key that tokens are signed with.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Fills in what a TokenRequest leaves out, and validates it. Validating admission comes
    /// between this and [`issue`](Self::issue).
    ///
    /// # Errors
    /// As upstream: 404 without the service account, 409 for another uid, 422 for what is invalid.
    pub async fn prepare(
        &self,
        lookup: &Lookup,
        (namespace, name): (&str, &str),
        request: &mut Value,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        for (field, want, says) in [
            ("name", name, "must match the service account name if specified"),
            ("namespace", namespace, "must match the service account namespace if specified"),
        ] {
            let got = object::str_at(request, &["metadata", field]);
            if !got.is_empty() && got != want {
                let path = Path::new("metadata").child(field);
                return Err(invalid(name, FieldError::invalid(&path, got, says)));
            }
        }
        let account = account(lookup, namespace, name).await?;
        let uid = object::uid(&account);
        let asked = object::uid(request);
        if !asked.is_empty() && asked != uid {
            return Err(ApiError::Conflict {
                resource: GroupResource::new(GROUP, "TokenRequest"),
                name: name.to_owned(),
                reason: format!(
                    "the UID in the token request ({asked}) does not match the UID of the service account ({uid})"
                ),
            });
        }
        if object::list_at(request, &["spec", "audiences"]).is_empty() {
            object::set(request, &["spec", "audiences"], json!(self.options.audiences));
        }
        object::set_name(request, name);
        object::set_namespace(request, namespace);
        object::set_uid(request, uid);
        object::set_creation_timestamp(request, &whole_seconds(now).to_string());
        let seconds =
            object::int_at(request, &["spec", "expirationSeconds"]).unwrap_or(DEFAULT_SECONDS);
        object::set(request, &["spec", "expirationSeconds"], seconds);
        object::set(request, &["status"], json!({"token": "", "expirationTimestamp": null}));
        let path = Path::new("spec").child("expirationSeconds");
        let says = if seconds < MIN_SECONDS {
            "may not specify a duration less than 10 minutes"
        } else if seconds > 1 << 32 {
            "may not specify a duration larger than 2^32 seconds"
        } else {
            return Ok(());
        };
        Err(invalid("", FieldError::invalid(&path, seconds, says)))
    }

    /// Makes the token of a prepared TokenRequest and puts it into its status.
    ///
    /// # Errors
    /// As upstream: 404 without the bound object, 409 for another uid, 400 for what tokens cannot
    /// be bound to.
    pub async fn issue(
        &self,
        lookup: &Lookup,
        (namespace, name): (&str, &str),
        request: &mut Value,
        moment: &Moment,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let account = account(lookup, namespace, name).await?;
        let bound = match object::get(request, &["spec", "boundObjectRef"]) {
            Some(reference) => bind(lookup, (namespace, name), reference).await?,
            None => Bound::default(),
        };
        let mut seconds =
            object::int_at(request, &["spec", "expirationSeconds"]).unwrap_or(DEFAULT_SECONDS);
        let max = self.options.max_seconds;
        if max > 0 && seconds > max {
            warnings.push(format!(
                "requested expiration of {seconds} seconds shortened to {max} seconds"
            ));
            seconds = max;
            object::set(request, &["spec", "expirationSeconds"], seconds);
        }
        let audiences: Vec<&str> = object::list_at(request, &["spec", "audiences"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let ours = audiences.iter().all(|a| self.options.audiences.iter().any(|o| o == a));
        let for_pod = matches!(bound.to, Some(("pod", _)));
        let extended = self.options.extend && for_pod && seconds == WARN_ONLY_SECONDS && ours;
        let mut claims = json!({
            "iss": self.options.issuer,
            "sub": user_name(namespace, name),
            "aud": audiences,
            "jti": moment.id,
            "kubernetes.io": private_claims(&account, &bound),
        });
        let now = moment.now.as_second();
        let lives = if extended {
            object::set(&mut claims, &["kubernetes.io", "warnafter"], now + seconds);
            EXTENDED_SECONDS
        } else {
            seconds
        };
        for (claim, value) in [("iat", now), ("nbf", now), ("exp", now + lives)] {
            claims[claim] = value.into();
        }
        let token = self
            .key
            .sign(&claims)
            .map_err(|e| ApiError::Internal(format!("failed to generate token: {e}")))?;
        let expires = whole_seconds(moment.now) + SignedDuration::from_secs(seconds);
        let status = json!({"token": token, "expirationTimestamp": expires.to_string()});
        object::set(request, &["status"], status);
        Ok(())
    }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn invalid(name: &str, error: FieldError) -> ApiError {
    ApiError::Invalid {
        group: GROUP.to_owned(),
        kind: "TokenRequest".to_owned(),
        name: name.to_owned(),
        errors: vec![error],
    }
}

async fn find(
    lookup: &Lookup,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Result<Object, ApiError> {
    let resource = GroupResource::new("", resource);
    let found = lookup.live(&resource, namespace, name).await;
    found.ok_or_else(|| ApiError::NotFound { resource, name: name.to_owned() })
}

async fn account(lookup: &Lookup, namespace: &str, name: &str) -> Result<Object, ApiError> {
    find(lookup, "serviceaccounts", namespace, name).await
}

async fn bind(
    lookup: &Lookup,
    (namespace, account): (&str, &str),
    reference: &Value,
) -> Result<Bound, ApiError> {
    let (group, version) = split_api_version(object::str_at(reference, &["apiVersion"]));
    let kind = object::str_at(reference, &["kind"]);
    let name = object::str_at(reference, &["name"]);
    let (claim, found) = match (group, kind) {
        ("", "Pod") => ("pod", find(lookup, "pods", namespace, name).await?),
        ("", "Secret") => ("secret", find(lookup, "secrets", namespace, name).await?),
        ("", "Node") => ("node", find(lookup, "nodes", "", name).await?),
        _ => {
            return Err(ApiError::BadRequest(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let mut node = None;
    if claim == "pod" {
        if object::str_at(&found, &["spec", "serviceAccountName"]) != account {
            return Err(ApiError::BadRequest(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        let on = object::str_at(&found, &["spec", "nodeName"]);
        if !on.is_empty() {
            // A node that is gone is still named.
            let there = lookup.live(&GroupResource::new("", "nodes"), "", on).await;
            let uid = there.map(|n| object::uid(&n).to_owned()).unwrap_or_default();
            node = Some((on.to_owned(), uid));
        }
    }
    let asked = object::str_at(reference, &["uid"]);
    if !asked.is_empty() && asked != object::uid(&found) {
        return Err(ApiError::Conflict {
            resource: GroupResource::new(group, kind),
            name: name.to_owned(),
            reason: format!(
                "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        });
    }
    Ok(Bound { to: Some((claim, found)), node })
}

fn reference(name: &str, uid: &str) -> Value {
    let mut reference = Map::new();
    for (key, value) in [("name", name), ("uid", uid)] {
        if !value.is_empty() {
            reference.insert(key.to_owned(), value.into());
        }
    }
    reference.into()
}

fn private_claims(account: &Value, bound: &Bound) -> Value {
    let of = |o: &Value| reference(object::name(o), object::uid(o));
    let mut claims =
        json!({"namespace": object::namespace(account), "serviceaccount": of(account)});
    if let Some((claim, object)) = &bound.to {
        claims[*claim] = of(object);
    }
    if let Some((name, uid)) = &bound.node {
        claims["node"] = reference(name, uid);
    }
    claims
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::super::service_account::ServiceAccounts;
    use super::super::testing::clock;
    use super::super::{CREDENTIAL_ID, TokenAuthenticator};
    use super::*;
    use crate::authorization::testing::Memory;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    const NOW: i64 = 1_800_000_000;
    const AUDIENCE: &str = "https://kubernetes.default.svc";
    const ACCOUNT: (&str, &str) = ("a", "sa");

    fn world() -> Arc<Memory> {
        let named =
            |n: &str, uid: &str| json!({"metadata": {"name": n, "namespace": "a", "uid": uid}});
        let mut pod = named("p", "u-pod");
        pod["spec"] = json!({"serviceAccountName": "sa", "nodeName": "n"});
        let mut other = named("q", "u-q");
        other["spec"] = json!({"serviceAccountName": "else"});
        Memory::with(&[
            ("", "serviceaccounts", named("sa", "u-sa")),
            ("", "secrets", named("s", "u-s")),
            ("", "pods", pod),
            ("", "pods", other),
            ("", "nodes", json!({"metadata": {"name": "n", "uid": "u-n"}})),
        ])
    }

    /// A new key.
    pub fn signing_key() -> SigningKey {
        let pem = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        SigningKey::parse(pem.as_bytes()).expect("a key")
    }

    fn issuer(max_seconds: i64) -> TokenIssuer {
        let options = TokenOptions {
            issuer: AUDIENCE.into(),
            audiences: vec![AUDIENCE.into()],
            max_seconds,
            extend: true,
        };
        TokenIssuer::new(signing_key(), options)
    }

    fn moment() -> Moment {
        let now = Timestamp::from_second(NOW).expect("a time");
        Moment { now, id: "11111111-2222-4333-8444-555555555555".into() }
    }

    fn lookup(memory: &Arc<Memory>) -> Lookup {
        Lookup { reader: memory.clone(), live: None }
    }

    async fn ask(
        issuer: &TokenIssuer,
        memory: &Arc<Memory>,
        spec: Value,
    ) -> Result<Value, ApiError> {
        let lookup = lookup(memory);
        let mut request = json!({"metadata": {}, "spec": spec});
        issuer.prepare(&lookup, ACCOUNT, &mut request, moment().now).await?;
        issuer.issue(&lookup, ACCOUNT, &mut request, &moment(), &mut Vec::new()).await?;
        Ok(request)
    }

    fn verifier(issuer: &TokenIssuer, memory: &Arc<Memory>, at: i64) -> ServiceAccounts {
        let keys = vec![issuer.key().verifying().clone()];
        let names = vec![AUDIENCE.to_owned()];
        let uses = Arc::default();
        ServiceAccounts::new(keys, names.clone(), names, lookup(memory), clock(at), uses)
    }

    fn claims(token: &str) -> Value {
        let payload = token.split('.').nth(1).expect("a payload");
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload);
        serde_json::from_slice(&bytes.expect("base64")).expect("JSON")
    }

    #[tokio::test]
    async fn tokens_come_back_as_users() {
        let (memory, issuer) = (world(), issuer(0));
        let pod = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "u-pod"}});
        let request = ask(&issuer, &memory, pod).await.expect("a token");
        assert_eq!(request["status"]["expirationTimestamp"], "2027-01-15T09:00:00Z");
        let token = object::str_at(&request, &["status", "token"]);
        let check = async |at: i64, audiences: &[String]| {
            let got = verifier(&issuer, &memory, at).authenticate_token(token, audiences).await;
            got.map_err(|e| e.to_string())
        };
        let got = check(NOW, &[]).await.expect("accepted").expect("a user");
        assert_eq!(got.user.name, "system:serviceaccount:a:sa");
        assert_eq!(got.user.uid, "u-sa");
        assert_eq!(got.user.groups, ["system:serviceaccounts", "system:serviceaccounts:a"]);
        assert_eq!(got.audiences, [AUDIENCE]);
        let extra = |key: &str| {
            let key = format!("authentication.kubernetes.io/{key}");
            got.user.extra.get(&key).map(|v| v.join(",")).unwrap_or_default()
        };
        assert_eq!(extra("pod-name"), "p");
        assert_eq!(extra("pod-uid"), "u-pod");
        assert_eq!(extra("node-name"), "n");
        assert_eq!(extra("node-uid"), "u-n");
        assert_eq!(
            got.user.extra.get(CREDENTIAL_ID).map(|v| v.join(",")),
            Some("JTI=11111111-2222-4333-8444-555555555555".into())
        );

        assert!(check(NOW + 3600 + 59, &[]).await.is_ok());
        assert_eq!(
            check(NOW + 3661, &[]).await.err().as_deref(),
            Some("service account token has expired")
        );
        assert_eq!(
            check(NOW - 61, &[]).await.err().as_deref(),
            Some("service account token is not valid yet")
        );
        assert_eq!(
            check(NOW, &["x".to_owned()]).await.err(),
            Some(format!(
                r#"token audiences ["{AUDIENCE}"] is invalid for the target audiences ["x"]"#
            ))
        );

        // The pod goes: at once by uid, and a minute after its deletion has come.
        let pod = |uid: &str, deleted: Option<&str>| {
            let mut pod = json!({"metadata": {"name": "p", "namespace": "a", "uid": uid}});
            if let Some(at) = deleted {
                pod["metadata"]["deletionTimestamp"] = at.into();
            }
            memory.put("", "pods", pod);
        };
        pod("u-pod", Some("2027-01-15T08:00:00Z"));
        assert!(check(NOW, &[]).await.is_ok());
        assert_eq!(
            check(NOW + 61, &[]).await.err().as_deref(),
            Some("service account token has been invalidated")
        );
        pod("other", None);
        assert_eq!(
            check(NOW, &[]).await.err().as_deref(),
            Some("pod UID (other) does not match service account pod ref claim (u-pod)")
        );
        memory.remove("", "pods", "a", "p");
        assert!(check(NOW, &[]).await.is_err());
    }

    #[tokio::test]
    async fn only_our_own_tokens_count() {
        let (memory, ours, other) = (world(), issuer(0), issuer(0));
        let foreign = ask(&other, &memory, json!({})).await.expect("a token");
        let foreign = object::str_at(&foreign, &["status", "token"]);
        let verifier = verifier(&ours, &memory, NOW);
        assert!(verifier.authenticate_token(foreign, &[]).await.is_err());
        for not_ours in ["", "abc", "a.b.c", "abcdef.0123456789abcdef"] {
            assert_eq!(verifier.authenticate_token(not_ours, &[]).await.ok(), Some(None));
        }
        let own = ask(&ours, &memory, json!({})).await.expect("a token");
        let own = object::str_at(&own, &["status", "token"]);
        let unsigned = own.rsplit_once('.').map(|(m, _)| format!("{m}.")).expect("a token");
        assert!(verifier.authenticate_token(&unsigned, &[]).await.is_err());
    }

    #[tokio::test]
    async fn tokens_of_secrets() {
        let (memory, issuer) = (world(), issuer(0));
        let claims = json!({
            "iss": super::super::service_account::LEGACY_ISSUER,
            "sub": user_name("a", "sa"),
            "kubernetes.io/serviceaccount/namespace": "a",
            "kubernetes.io/serviceaccount/secret.name": "s",
            "kubernetes.io/serviceaccount/service-account.name": "sa",
            "kubernetes.io/serviceaccount/service-account.uid": "u-sa",
        });
        let token = issuer.key().sign(&claims).expect("a token");
        let verifier = verifier(&issuer, &memory, NOW);
        let refused = verifier.authenticate_token(&token, &[]).await.err();
        assert_eq!(refused.map(|e| e.0).as_deref(), Some("Token does not match server's copy"));
        let mut secret = json!({"metadata": {"name": "s", "namespace": "a"},
            "data": {"token": STANDARD.encode(&token)}});
        memory.put("", "secrets", secret.clone());
        let got = verifier.authenticate_token(&token, &[]).await.expect("accepted");
        assert_eq!(got.map(|a| a.user.name).as_deref(), Some("system:serviceaccount:a:sa"));
        secret["metadata"]["labels"] =
            json!({"kubernetes.io/legacy-token-invalid-since": "2020-01-01"});
        memory.put("", "secrets", secret);
        assert!(verifier.authenticate_token(&token, &[]).await.is_err());
    }

    #[tokio::test]
    async fn lifetimes() {
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
        // max, spec, seconds of life, warnafter after now
        let cases = [
            (0, json!({}), 3600, None),
            (0, json!({"expirationSeconds": 600}), 600, None),
            (700, json!({"expirationSeconds": 7200}), 700, None),
            (0, json!({"expirationSeconds": 3607}), 3607, None),
            (
                0,
                json!({"expirationSeconds": 3607, "boundObjectRef": bound}),
                EXTENDED_SECONDS,
                Some(3607),
            ),
            (
                0,
                json!({"expirationSeconds": 3607, "boundObjectRef": bound, "audiences": ["x"]}),
                3607,
                None,
            ),
        ];
        for (max, spec, lives, warn) in cases {
            let request = ask(&issuer(max), &world(), spec.clone()).await.expect("a token");
            let claims = claims(object::str_at(&request, &["status", "token"]));
            assert_eq!(claims["exp"].as_i64(), Some(NOW + lives), "{spec}");
            let after = object::int_at(&claims, &["kubernetes.io", "warnafter"]);
            assert_eq!(after, warn.map(|w| NOW + w), "{spec}");
        }
    }

    #[tokio::test]
    async fn refusals() {
        let to = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
        let cases = [
            (
                json!({"expirationSeconds": 5}),
                422,
                r#"TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes"#,
            ),
            (
                json!({"expirationSeconds": (1i64 << 32) + 1}),
                422,
                r#"TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds"#,
            ),
            (to("Foo", "p", ""), 400, "cannot bind token to object of type /v1, Kind=Foo"),
            (to("Pod", "gone", ""), 404, r#"pods "gone" not found"#),
            (
                to("Pod", "q", ""),
                400,
                r#"cannot bind token for serviceaccount "sa" to pod running with different serviceaccount name."#,
            ),
            (
                to("Secret", "s", "x"),
                409,
                r#"Operation cannot be fulfilled on Secret "s": the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated"#,
            ),
        ];
        for (spec, code, text) in cases {
            let error = ask(&issuer(0), &world(), spec).await.expect_err("refused");
            assert_eq!((error.code(), error.message().as_str()), (code, text));
        }
        let mut request = json!({"metadata": {"name": "x"}});
        let error = issuer(0).prepare(&lookup(&world()), ACCOUNT, &mut request, moment().now).await;
        assert_eq!(
            error.map_err(|e| e.message()).err().as_deref(),
            Some(
                r#"TokenRequest.authentication.k8s.io "sa" is invalid: metadata.name: Invalid value: "x": must match the service account name if specified"#
            )
        );
    }
}
