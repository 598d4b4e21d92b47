//! Who asks, and whether they may: client certificates and tokens, then the API server's word.

use std::sync::Arc;

use client::reviews::{Access, Lifetimes, Reviews, User, bearer};
use component::serving::Peer;
use http::{HeaderMap, Method};

use crate::config::KubeletConfiguration;
use crate::kubelet::Kubelet;

/// Judges requests by the API server's answers.
pub struct Auth(Reviews);

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
    pub fn new(config: &KubeletConfiguration) -> Self {
        let (tokens, rights) = (&config.authentication.webhook, &config.authorization.webhook);
        Self(Reviews::new(Lifetimes {
            tokens: tokens.cache_ttl.0,
            allowed: rights.cache_authorized_ttl.0,
            denied: rights.cache_unauthorized_ttl.0,
        }))
    }

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
        let Some(client) = &k.client else {
            return Err(Refused::Failed("no API server to authorize by".into()));
        };
        let (verb, wanted) = (verb(method), subresources(path));
        for &subresource in &wanted {
            let what = Access::Node { verb, subresource, name: k.node_name.clone() };
            if self.0.may(client, &user, what).await.map_err(Refused::Failed)? {
                return Ok(());
            }
        }
        Err(Refused::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
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
        let certificate = peer.and_then(|peer| peer.certificates.first());
        if let Some(certificate) = certificate.filter(|_| !config.x509.client_ca_file.is_empty())
            && let Ok(Some(user)) = User::of_certificate(certificate)
        {
            return Ok(user.known());
        }
        if let Some(token) = bearer(headers) {
            let client = k.client.as_ref().filter(|_| config.webhook.enabled);
            let client = client.ok_or(Refused::Unauthorized)?;
            let user = self.0.token(client, token).await.map_err(Refused::Failed)?;
            return user.ok_or(Refused::Unauthorized);
        }
        match config.anonymous.enabled {
            true => Ok(User::anonymous()),
            false => Err(Refused::Unauthorized),
        }
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
