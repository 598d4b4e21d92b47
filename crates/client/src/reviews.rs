//! Who calls a component by a token, and what callers may do there: what the API server says of tokens
//! and rights (TokenReview and SubjectAccessReview; k8s.io/apiserver
//! `authentication/authenticatorfactory/delegating.go`).

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

pub use component::callers::User;
use http::HeaderMap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Remembered answers, of each kind.
const LIMIT: usize = 4096;
/// A refused token may be about to become known.
const REFUSED: Duration = Duration::from_secs(5);

/// The token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim())
}

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Something with a subresource of a Node.
    Node { verb: &'static str, subresource: &'static str, name: String },
    /// Something with a path.
    Path { verb: String, path: String },
}

/// How long answers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub tokens: Duration,
    pub allowed: Duration,
    pub denied: Duration,
}

/// Answers, until they hold no more.
struct Memory<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock();
        known.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, v)| v.clone())
    }

    fn keep(&self, key: K, value: V, lifetime: Duration) {
        let mut known = self.0.lock();
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(key, (Instant::now() + lifetime, value));
    }
}

/// Asks the API server, and remembers its answers.
pub struct Reviews {
    lifetimes: Lifetimes,
    tokens: Memory<String, Option<User>>,
    access: Memory<(User, Access), bool>,
}

impl Reviews {
    pub fn new(lifetimes: Lifetimes) -> Self {
        let (tokens, access) = (Memory(Mutex::default()), Memory(Mutex::default()));
        Self { lifetimes, tokens, access }
    }

    /// Whose token it is; `None`: nobody's.
    ///
    /// # Errors
    /// The API server could not say.
    pub async fn token(&self, client: &Client, token: &str) -> Result<Option<User>, String> {
        let key = token.to_owned();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let spec = TokenReviewSpec { token: Some(key.clone()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = Api::<TokenReview>::all(client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| format!("token not reviewed: {error}"))?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
            extra: u.extra.unwrap_or_default(),
        });
        let lifetime = self.lifetimes.tokens;
        let lifetime = if user.is_some() { lifetime } else { lifetime.min(REFUSED) };
        self.tokens.keep(key, user.clone(), lifetime);
        Ok(user)
    }

    /// Whether a user may.
    ///
    /// # Errors
    /// The API server could not say.
    pub async fn may(&self, client: &Client, user: &User, what: Access) -> Result<bool, String> {
        let key = (user.clone(), what);
        if let Some(known) = self.access.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview { spec: asked(user, &key.1), ..<_>::default() };
        let answer = Api::<SubjectAccessReview>::all(client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| format!("access not reviewed: {error}"))?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let lifetime = if allowed { self.lifetimes.allowed } else { self.lifetimes.denied };
        self.access.keep(key, allowed, lifetime);
        Ok(allowed)
    }
}

fn asked(user: &User, what: &Access) -> SubjectAccessReviewSpec {
    let spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
        ..SubjectAccessReviewSpec::default()
    };
    match what {
        Access::Node { verb, subresource, name } => SubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some((*verb).to_owned()),
                group: Some(String::new()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some((*subresource).to_owned()),
                name: Some(name.clone()),
                ..ResourceAttributes::default()
            }),
            ..spec
        },
        Access::Path { verb, path } => SubjectAccessReviewSpec {
            non_resource_attributes: Some(NonResourceAttributes {
                verb: Some(verb.clone()),
                path: Some(path.clone()),
            }),
            ..spec
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_from_headers() {
        for (value, want) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("Bearer", None),
        ] {
            let headers = [(http::header::AUTHORIZATION, value.parse().expect("a value"))];
            assert_eq!(bearer(&headers.into_iter().collect()), want, "{value:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten() {
        let memory: Memory<u8, bool> = Memory(Mutex::default());
        memory.keep(1, true, Duration::from_secs(10));
        assert_eq!((memory.get(&1), memory.get(&2)), (Some(true), None));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(memory.get(&1), None);
    }

    #[test]
    fn paths_are_no_resources() {
        let what = Access::Path { verb: "get".to_owned(), path: "/metrics".to_owned() };
        let spec = asked(&User::anonymous(), &what);
        assert_eq!(spec.user.as_deref(), Some("system:anonymous"));
        assert!(spec.resource_attributes.is_none() && spec.uid.is_none());
        let path = spec.non_resource_attributes.and_then(|a| a.path);
        assert_eq!(path.as_deref(), Some("/metrics"));
    }
}
