//! Service account tokens for pods: asked for once, and again when they have lived most of their
//! time.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;

use crate::objects::{name, namespace, spec, uid};

/// A token older than this is renewed, however long it lasts.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Renewals spread over this time.
const JITTER: u64 = 10;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    pod: String,
    audience: String,
    seconds: i64,
}

struct Held {
    token: String,
    asked: Timestamp,
    expires: Timestamp,
    jitter: u64,
}

/// Whether a token has lived four fifths of its time, or a day.
fn is_due(asked: Timestamp, expires: Timestamp, jitter: u64, now: Timestamp) -> bool {
    let life = expires.duration_since(asked).as_secs();
    let limit = (life * 4 / 5).min(MAX_AGE.as_secs().cast_signed()) - jitter.cast_signed();
    now.duration_since(asked).as_secs() >= limit
}

/// Tokens held for pods.
#[derive(Default)]
pub struct Tokens {
    held: Mutex<HashMap<Key, Held>>,
}

impl Tokens {
    /// A token for a pod's service account, for an audience (empty: the API server's).
    ///
    /// # Errors
    /// The API server's text, when there is no older token that still holds.
    pub async fn get(
        &self,
        client: &kube::Client,
        pod: &Pod,
        audience: &str,
        seconds: i64,
    ) -> Result<String, String> {
        let key = Key { pod: uid(pod).to_owned(), audience: audience.to_owned(), seconds };
        let now = Timestamp::now();
        let older = {
            let held = self.held.lock();
            match held.get(&key) {
                Some(h) if !is_due(h.asked, h.expires, h.jitter, now) => {
                    return Ok(h.token.clone());
                }
                Some(h) if h.expires > now => Some(h.token.clone()),
                _ => None,
            }
        };
        match self.ask(client, pod, &key, now).await {
            Ok(token) => Ok(token),
            Err(error) => older.ok_or(error),
        }
    }

    async fn ask(
        &self,
        client: &kube::Client,
        pod: &Pod,
        key: &Key,
        now: Timestamp,
    ) -> Result<String, String> {
        let account = match spec(pod).service_account_name.as_deref() {
            None | Some("") => "default",
            Some(account) => account,
        };
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: match key.audience.as_str() {
                    "" => Vec::new(),
                    audience => vec![audience.to_owned()],
                },
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(name(pod).to_owned()),
                    uid: Some(uid(pod).to_owned()),
                }),
            },
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace(pod));
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|error| format!("failed to fetch token: {error}"))?;
        let status = answer.status.ok_or("failed to fetch token: the answer has no status")?;
        let held = Held {
            token: status.token.clone(),
            asked: now,
            expires: status.expiration_timestamp.0,
            jitter: rand::random_range(0..JITTER),
        };
        self.held.lock().insert(key.clone(), held);
        Ok(status.token)
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, pod: &str) {
        self.held.lock().retain(|key, _| key.pod != pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_due_at_four_fifths_or_a_day() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (life, age, due) in [
            (3600, 2879, false),
            (3600, 2880, true),
            (600, 480, true),
            (7 * 86_400, 86_399, false),
            (7 * 86_400, 86_400, true),
        ] {
            assert_eq!(is_due(at(0), at(life), 0, at(age)), due, "{life} {age}");
        }
    }
}
