//! Tokens with which nodes join: Secrets `bootstrap-token-<id>` of `kube-system`
//! (upstream: `auth/authenticator/token/bootstrap`).

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::{Value, object};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Authenticated, Clock, Rejected, TokenAuthenticator, User};
use crate::reader::Reader;

const DEFAULT_GROUP: &str = "system:bootstrappers";
const GROUP_PREFIX: &str = "system:bootstrappers:";

/// Authenticates `<id>.<secret>`.
pub struct BootstrapTokens {
    reader: Arc<dyn Reader>,
    clock: Clock,
    secrets: GroupResource,
}

impl BootstrapTokens {
    pub fn new(reader: Arc<dyn Reader>, clock: Clock) -> Self {
        Self { reader, clock, secrets: GroupResource::new("", "secrets") }
    }
}

/// Splits `[a-z0-9]{6}.[a-z0-9]{16}`.
fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let part = |s: &str, length| {
        s.len() == length && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (part(id, 6) && part(secret, 16)).then_some((id, secret))
}

fn data(secret: &Value, key: &str) -> String {
    let encoded = object::str_at(secret, &["data", key]);
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    String::from_utf8(decoded).unwrap_or_default()
}

/// Whether every part of `system:bootstrappers:<name>` is well-formed:
/// `[a-z0-9:-]{0,255}[a-z0-9]` after the prefix.
fn valid_group(group: &str) -> bool {
    group.strip_prefix(GROUP_PREFIX).is_some_and(|rest| {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':' || b == b'-';
        let ends_well =
            rest.bytes().last().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        rest.len() <= 256 && rest.bytes().all(allowed) && ends_well
    })
}

/// The user of a token with this id, or why the Secret does not vouch for one.
fn user_of(
    secret: &Value,
    id: &str,
    private: &str,
    now: jiff::Timestamp,
) -> Result<User, &'static str> {
    if !object::deletion_timestamp(secret).is_empty() {
        return Err("is deleted and awaiting removal");
    }
    if object::str_at(secret, &["type"]) != "bootstrap.kubernetes.io/token" {
        return Err("has an invalid type");
    }
    let stored = data(secret, "token-secret");
    if aws_lc_rs::constant_time::verify_slices_are_equal(stored.as_bytes(), private.as_bytes())
        .is_err()
    {
        return Err("has an invalid value for key token-secret");
    }
    if data(secret, "token-id") != id {
        return Err("has an invalid value for key token-id");
    }
    let expiration = data(secret, "expiration");
    if !expiration.is_empty() {
        // What cannot be read has expired.
        let expires: Option<jiff::Timestamp> = expiration.parse().ok();
        if expires.is_none_or(|at| now >= at) {
            return Err("has expired");
        }
    }
    if data(secret, "usage-bootstrap-authentication") != "true" {
        return Err("is not marked usage-bootstrap-authentication=true");
    }
    let extra = data(secret, "auth-extra-groups");
    let mut groups: Vec<String> =
        extra.split(',').filter(|g| !g.is_empty()).map(str::to_owned).collect();
    if !groups.iter().all(|g| valid_group(g)) {
        return Err("has an invalid value for key auth-extra-groups");
    }
    groups.push(DEFAULT_GROUP.to_owned());
    groups.sort();
    groups.dedup();
    Ok(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

#[async_trait]
impl TokenAuthenticator for BootstrapTokens {
    async fn authenticate_token(
        &self,
        token: &str,
        _audiences: &[String],
    ) -> Result<Option<Authenticated>, Rejected> {
        let Some((id, private)) = parse(token) else { return Ok(None) };
        let name = format!("bootstrap-token-{id}");
        let Some(secret) = self.reader.get(&self.secrets, "kube-system", &name) else {
            return Ok(None);
        };
        match user_of(&secret, id, private, (self.clock)()) {
            Ok(user) => Ok(Some(Authenticated { user, ..Authenticated::default() })),
            Err(why) => {
                tracing::info!(secret = name, why, "bootstrap token refused");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::clock;
    use super::*;
    use crate::authorization::testing::Memory;
    use serde_json::json;

    #[tokio::test]
    async fn secrets_vouch_for_tokens() {
        const ID: &str = "abcdef";
        const TOKEN: &str = "abcdef.0123456789abcdef";
        let full = [
            ("token-id", ID),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2030-01-01T00:00:00Z"),
            ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
        ];
        // key to change, its value, whether the token still works
        let cases = [
            ("", "", true),
            ("expiration", "", true),
            ("expiration", "1999-01-01T00:00:00Z", false),
            ("expiration", "soon", false),
            ("token-id", "bcdefg", false),
            ("token-secret", "0000000000000000", false),
            ("usage-bootstrap-authentication", "yes", false),
            ("auth-extra-groups", "system:masters", false),
            ("auth-extra-groups", "", true),
        ];
        for (key, value, works) in cases {
            let mut secret = json!({
                "metadata": {"name": format!("bootstrap-token-{ID}"), "namespace": "kube-system"},
                "type": "bootstrap.kubernetes.io/token",
            });
            for (k, v) in full {
                let v = if k == key { value } else { v };
                if !v.is_empty() {
                    secret["data"][k] = STANDARD.encode(v).into();
                }
            }
            let memory = Memory::with(&[("", "secrets", secret)]);
            let tokens = BootstrapTokens::new(memory, clock(1_700_000_000));
            let got = tokens.authenticate_token(TOKEN, &[]).await.expect("no error");
            assert_eq!(got.is_some(), works, "{key}={value}");
            if key.is_empty() {
                let user = got.expect("a user").user;
                assert_eq!(user.name, "system:bootstrap:abcdef");
                assert_eq!(
                    user.groups,
                    ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"]
                );
            }
            for other in ["abcdef", "ABCDEF.0123456789abcdef", "zzzzzz.0123456789abcdef"] {
                assert_eq!(tokens.authenticate_token(other, &[]).await.ok(), Some(None));
            }
        }
    }
}
