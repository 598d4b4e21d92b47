//! Who asks, and whether they may: client certificates and tokens, then the API server's word.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use component::serving::Peer;
use http::{HeaderMap, Method};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::kubelet::Kubelet;

/// Remembered answers, of each kind.
const LIMIT: usize = 4096;

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

/// User, groups, verb and subresource.
type Access = (String, Vec<String>, String, String);

/// Answers of the API server, for as long as they hold.
#[derive(Default)]
pub struct Auth {
    tokens: Mutex<HashMap<String, (Instant, Option<User>)>>,
    access: Mutex<HashMap<Access, (Instant, bool)>>,
}

/// The user that a client certificate names.
fn of_certificate(peer: &Peer) -> Option<User> {
    let first = peer.certificates.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(first).ok()?;
    let text =
        |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(text)?;
    let groups = subject.iter_organization().filter_map(text);
    let groups = groups.chain(["system:authenticated".to_owned()]).collect();
    Some(User { name, uid: String::new(), groups })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim())
}

/// The subresources of the node that a path stands for, the finest first.
pub fn subresources(path: &str) -> Vec<&'static str> {
    let below = |prefix: &str| path == prefix || path.starts_with(&format!("{prefix}/"));
    if below("/stats") {
        vec!["stats"]
    } else if below("/metrics") {
        vec!["metrics"]
    } else if below("/logs") {
        vec!["log"]
    } else if below("/checkpoint") {
        vec!["checkpoint"]
    } else if below("/healthz") {
        vec!["healthz", "proxy"]
    } else if below("/configz") {
        vec!["configz", "proxy"]
    } else if below("/pods") || below("/runningpods") {
        vec!["pods", "proxy"]
    } else {
        vec!["proxy"]
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// Why a request was turned away.
#[derive(Debug)]
pub enum Refused {
    Unauthorized,
    Forbidden(String),
    Failed(String),
}

impl Auth {
    /// Lets a request in, or not.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(
        &self,
        k: &Kubelet,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
    ) -> Result<(), Refused> {
        let user = self.authenticate(k, peer, headers).await?;
        if k.config.authorization.mode == "AlwaysAllow" {
            return Ok(());
        }
        let wanted = subresources(path);
        for subresource in &wanted {
            if self.may(k, &user, verb(method), subresource).await? {
                return Ok(());
            }
        }
        Err(Refused::Forbidden(format!(
            "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            verb(method),
            wanted.join(" ")
        )))
    }

    async fn authenticate(
        &self,
        k: &Kubelet,
        peer: Option<&Peer>,
        headers: &HeaderMap,
    ) -> Result<User, Refused> {
        let config = &k.config.authentication;
        if let Some(user) =
            peer.filter(|_| !config.x509.client_ca_file.is_empty()).and_then(of_certificate)
        {
            return Ok(user);
        }
        if let Some(token) = bearer(headers) {
            if !config.webhook.enabled {
                return Err(Refused::Unauthorized);
            }
            return self.review(k, token).await?.ok_or(Refused::Unauthorized);
        }
        match config.anonymous.enabled {
            true => Ok(User {
                name: "system:anonymous".into(),
                groups: vec!["system:unauthenticated".into()],
                ..User::default()
            }),
            false => Err(Refused::Unauthorized),
        }
    }

    async fn review(&self, k: &Kubelet, token: &str) -> Result<Option<User>, Refused> {
        let ttl = k.config.authentication.webhook.cache_ttl.0;
        if let Some((until, user)) = self.tokens.lock().get(token)
            && *until > Instant::now()
        {
            return Ok(user.clone());
        }
        let client = k.client.clone().ok_or(Refused::Unauthorized)?;
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: None },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(client)
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| Refused::Failed(format!("token not reviewed: {error}")))?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
        });
        // A refusal is not kept for long: the token may be about to become known.
        let ttl = if user.is_some() { ttl } else { ttl.min(Duration::from_secs(5)) };
        let mut tokens = self.tokens.lock();
        if tokens.len() >= LIMIT {
            tokens.clear();
        }
        tokens.insert(token.to_owned(), (Instant::now() + ttl, user.clone()));
        Ok(user)
    }

    async fn may(
        &self,
        k: &Kubelet,
        user: &User,
        verb: &str,
        subresource: &str,
    ) -> Result<bool, Refused> {
        let key = (user.name.clone(), user.groups.clone(), verb.to_owned(), subresource.to_owned());
        if let Some((until, allowed)) = self.access.lock().get(&key)
            && *until > Instant::now()
        {
            return Ok(*allowed);
        }
        let Some(client) = k.client.clone() else {
            return Err(Refused::Failed("no API server to authorize by".into()));
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    group: Some(String::new()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(k.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(client)
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| Refused::Failed(format!("access not reviewed: {error}")))?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let webhook = &k.config.authorization.webhook;
        let ttl = match allowed {
            true => webhook.cache_authorized_ttl.0,
            false => webhook.cache_unauthorized_ttl.0,
        };
        let mut access = self.access.lock();
        if access.len() >= LIMIT {
            access.clear();
        }
        access.insert(key, (Instant::now() + ttl, allowed));
        Ok(allowed)
    }
}

/// The peer of a request's connection.
pub fn peer<B>(request: &http::Request<B>) -> Option<Arc<Peer>> {
    request.extensions().get::<Peer>().cloned().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources() {
        for (path, want) in [
            ("/stats/summary", "stats"),
            ("/metrics", "metrics"),
            ("/metrics/resource", "metrics"),
            ("/pods", "pods proxy"),
            ("/healthz", "healthz proxy"),
            ("/exec/a/b/c", "proxy"),
            ("/statsx", "proxy"),
        ] {
            assert_eq!(subresources(path).join(" "), want, "{path}");
        }
    }
}
