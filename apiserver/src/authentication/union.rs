//! All ways to know a user, in upstream's order: front proxy, client certificate, bearer token,
//! nobody (upstream: `kubeapiserver/authenticator`, `authentication/token/cache`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component::callers::Trust;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use sha2::{Digest, Sha256};

use super::{Authenticated, Authenticator, Clock, Credentials, Rejected, TokenAuthenticator, User};
use crate::authorization::aggregate;
use crate::warnings::Warnings;

/// How long an accepted token is not looked at again.
const CACHED_FOR: SignedDuration = SignedDuration::from_secs(10);
/// At most so many tokens are remembered.
const CACHE_SIZE: usize = 4096;
const INVALID: &str = "invalid bearer token";

/// Tokens that were accepted lately, by a keyed hash.
struct Cache {
    key: [u8; 32],
    entries: Mutex<HashMap<[u8; 32], (Timestamp, Authenticated)>>,
}

impl Cache {
    fn id(&self, token: &str, audiences: &[String]) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(self.key);
        for part in audiences.iter().map(String::as_str).chain([token]) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn get(&self, id: &[u8; 32], now: Timestamp) -> Option<Authenticated> {
        let entries = self.entries.lock();
        entries.get(id).filter(|(until, _)| now < *until).map(|(_, found)| found.clone())
    }

    fn put(&self, id: [u8; 32], found: Authenticated, now: Timestamp) {
        let mut entries = self.entries.lock();
        if entries.len() >= CACHE_SIZE {
            entries.retain(|_, (until, _)| now < *until);
        }
        if entries.len() >= CACHE_SIZE {
            entries.clear();
        }
        entries.insert(id, (now + CACHED_FOR, found));
    }
}

/// Tries each kind of token in turn.
pub struct Tokens {
    kinds: Vec<Arc<dyn TokenAuthenticator>>,
    /// `--api-audiences`
    audiences: Vec<String>,
    clock: Clock,
    cache: Cache,
}

impl Tokens {
    /// `key`: random, so that nobody can tell which tokens share a place in the cache.
    pub fn new(
        kinds: Vec<Arc<dyn TokenAuthenticator>>,
        audiences: Vec<String>,
        clock: Clock,
        key: [u8; 32],
    ) -> Self {
        let cache = Cache { key, entries: Mutex::default() };
        Self { kinds, audiences, clock, cache }
    }

    async fn ask(&self, token: &str, wanted: &[String]) -> Result<Option<Authenticated>, Rejected> {
        let mut errors = Vec::new();
        for kind in &self.kinds {
            match kind.authenticate_token(token, wanted).await {
                Ok(None) => {}
                Ok(Some(mut found)) => {
                    // Tokens without audiences are good for this server's own.
                    if found.audiences.is_empty() {
                        let own = self.audiences.iter().filter(|a| wanted.contains(a));
                        found.audiences = own.cloned().collect();
                        if found.audiences.is_empty() && !wanted.is_empty() {
                            continue;
                        }
                    }
                    return Ok(Some(found));
                }
                Err(e) => errors.push(e.0),
            }
        }
        if errors.is_empty() { Ok(None) } else { Err(Rejected(aggregate(&errors))) }
    }
}

#[async_trait]
impl TokenAuthenticator for Tokens {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, Rejected> {
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        let id = self.cache.id(token, wanted);
        let now = (self.clock)();
        if let Some(found) = self.cache.get(&id, now) {
            return Ok(Some(found));
        }
        let found = self.ask(token, wanted).await?;
        if let Some(found) = &found {
            self.cache.put(id, found.clone(), now);
        }
        Ok(found)
    }
}

/// The authenticator of the server.
pub struct Union {
    pub trust: Trust,
    pub clock: Clock,
    pub tokens: Option<Tokens>,
    /// `--anonymous-auth`
    pub anonymous: bool,
}

impl Union {
    /// The user of a request, with the headers that a front proxy may have set. What the sender is
    /// to hear of the token is among the warnings then.
    ///
    /// # Errors
    /// Credentials were shown and none was accepted; or none was shown, and nobody may be
    /// anonymous.
    pub async fn authenticate_request(
        &self,
        credentials: &Credentials<'_>,
        headers: Option<&HeaderMap>,
        warnings: &Warnings,
    ) -> Result<Option<User>, Rejected> {
        let mut errors = Vec::new();
        let found = self.find(credentials, headers, &mut errors).await;
        if let Some(found) = found {
            found.warnings.into_iter().for_each(|warning| warnings.push(warning));
            return Ok(Some(found.user.known()));
        }
        if !errors.is_empty() {
            return Err(Rejected(aggregate(&errors)));
        }
        Ok(self.anonymous.then(User::anonymous))
    }

    async fn find(
        &self,
        credentials: &Credentials<'_>,
        headers: Option<&HeaderMap>,
        errors: &mut Vec<String>,
    ) -> Option<Authenticated> {
        let seconds = u64::try_from((self.clock)().as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        if let Some(user) = self.trust.who(credentials.certificates, headers, now, errors) {
            return Some(Authenticated { user, ..Authenticated::default() });
        }
        if let (Some(tokens), Some(token)) = (&self.tokens, credentials.bearer)
            && !token.is_empty()
        {
            match tokens.authenticate_token(token, &[]).await {
                Ok(Some(found)) => return Some(found),
                Ok(None) => errors.push(INVALID.to_owned()),
                Err(e) => errors.push(e.0),
            }
        }
        None
    }
}

#[async_trait]
impl Authenticator for Union {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Rejected> {
        self.authenticate_request(credentials, None, &Warnings::default()).await
    }
}

/// What a TokenReview asks: tokens alone, with the errors as upstream words them.
#[async_trait]
impl TokenAuthenticator for Union {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, Rejected> {
        let Some(tokens) = &self.tokens else { return Err(Rejected(INVALID.to_owned())) };
        match tokens.authenticate_token(token, audiences).await {
            Ok(Some(found)) => Ok(Some(Authenticated { user: found.user.known(), ..found })),
            Ok(None) => Err(Rejected(INVALID.to_owned())),
            Err(e) => Err(Rejected(aggregate(&[INVALID.to_owned(), e.0]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use component::callers::Authorities;

    use super::super::testing::{Authority, clock};
    use super::super::{AUTHENTICATED, UNAUTHENTICATED};
    use super::*;

    /// Accepts `good`, is unsure of anything but `bad`.
    #[derive(Default)]
    struct Fixed(AtomicUsize);

    #[async_trait]
    impl TokenAuthenticator for Fixed {
        async fn authenticate_token(
            &self,
            token: &str,
            _audiences: &[String],
        ) -> Result<Option<Authenticated>, Rejected> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match token {
                "good" => {
                    let user = User { name: "tok".into(), ..User::default() };
                    Ok(Some(Authenticated { user, ..Authenticated::default() }))
                }
                "bad" => Err(Rejected("bad".into())),
                _ => Ok(None),
            }
        }
    }

    #[tokio::test]
    async fn the_first_credential_that_holds_names_the_user() {
        const AT: i64 = 150_000_000;
        let authority = Authority::new("ours");
        let other = Authority::new("other");
        let good = [authority.sign("cert")];
        let bad = [other.sign("bob")];
        // time, certificate, token, anonymous allowed, user ("": none; "!": rejected)
        let none: &[_] = &[];
        let cases = [
            (AT, none, None, true, "system:anonymous"),
            (AT, none, None, false, ""),
            (AT, &good[..], None, true, "cert"),
            (AT, &good[..], Some("bad"), true, "cert"),
            (3 * AT, &good[..], None, true, "!"),
            (AT, &bad[..], None, true, "!"),
            (AT, &bad[..], Some("good"), true, "tok"),
            (AT, none, Some("good"), true, "tok"),
            (AT, none, Some("unknown"), true, "!invalid bearer token"),
            (AT, none, Some("bad"), true, "!bad"),
            (AT, none, Some(""), true, "system:anonymous"),
        ];
        for (at, certificates, bearer, anonymous, want) in cases {
            let union = Union {
                trust: Trust {
                    clients: Authorities::new(authority.pem().as_bytes()).ok(),
                    proxy: None,
                },
                clock: clock(at),
                tokens: Some(Tokens::new(
                    vec![Arc::new(Fixed::default())],
                    vec!["a".into()],
                    clock(AT),
                    [0; 32],
                )),
                anonymous,
            };
            let got = union.authenticate(&Credentials { certificates, bearer }).await;
            let text = match &got {
                Ok(Some(user)) => user.name.clone(),
                Ok(None) => String::new(),
                Err(e) => format!("!{e}"),
            };
            let matches = if want == "!" { text.starts_with('!') } else { text == want };
            assert!(matches, "{bearer:?} {want}: {text}");
            if let Ok(Some(user)) = got {
                let group = if user.name == super::super::ANONYMOUS {
                    UNAUTHENTICATED
                } else {
                    AUTHENTICATED
                };
                assert_eq!(user.groups, [group]);
            }
        }
    }

    #[tokio::test]
    async fn accepted_tokens_are_remembered_for_a_while() {
        let at = Arc::new(std::sync::atomic::AtomicI64::new(1000));
        let reading = at.clone();
        let clock: Clock = Arc::new(move || {
            Timestamp::from_second(reading.load(Ordering::Relaxed)).expect("a time")
        });
        let kind = Arc::new(Fixed::default());
        let tokens = Tokens::new(vec![kind.clone()], vec!["a".into()], clock, [1; 32]);
        let ask = async |token: &str, audience: &str| {
            let found = tokens.authenticate_token(token, &[audience.to_owned()]).await;
            (matches!(found, Ok(Some(_))), kind.0.load(Ordering::Relaxed))
        };
        assert_eq!(ask("good", "a").await, (true, 1));
        assert_eq!(ask("good", "a").await, (true, 1));
        assert_eq!(ask("good", "b").await, (false, 2));
        assert_eq!(ask("bad", "a").await, (false, 3));
        assert_eq!(ask("bad", "a").await, (false, 4));
        at.store(1010, Ordering::Relaxed);
        assert_eq!(ask("good", "a").await, (true, 5));
        for i in 0..2 * CACHE_SIZE {
            tokens.cache.put(
                tokens.cache.id(&i.to_string(), &[]),
                Authenticated::default(),
                Timestamp::UNIX_EPOCH,
            );
        }
        assert!(tokens.cache.entries.lock().len() <= CACHE_SIZE);
    }
}
