//! A component's own endpoints (`/healthz`, `/metrics`), and who may see them: all may ask how it
//! is, the rest is for those whom the API server lets (k8s.io/apiserver `server/options`:
//! `SecureServingOptions`, `DelegatingAuthenticationOptions`, `DelegatingAuthorizationOptions`).

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use component::callers::MASTERS;
use component::cli::duration;
use component::serving::{self, Body, Peer, body};
use component::shutdown::Scope;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use kube::Client;
use rustls::pki_types::UnixTime;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::connect;
use crate::proxy::{Certificates, TrustFlags};
use crate::reviews::{Access, Lifetimes, Reviews, User, bearer};

/// Flags, but for the port, whose default is the component's.
#[derive(Clone, Debug, clap::Args)]
pub struct SecureFlags {
    /// Address of /healthz and /metrics
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Serving certificate; self-signed in memory when there is none
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub trust: TrustFlags,
    /// Path of a kubeconfig to check callers' tokens with, and to look up whose certificates count;
    /// without it, no token is known
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// How long what is known of a token holds
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// Path of a kubeconfig to check callers' rights with; without it, others than system:masters
    /// have none
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Paths that are for all; `*` at the end stands for all below
    #[arg(long, value_delimiter = ',', default_value = "/healthz,/readyz,/livez")]
    pub authorization_always_allow_paths: Vec<String>,
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
}

/// Why a request is turned away.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Unauthorized,
    Forbidden(String),
    Failed(String),
}

/// Stands before the endpoints.
struct Guard {
    certificates: Certificates,
    open: Vec<String>,
    reviews: Reviews,
    /// Who reviews tokens, and rights.
    authentication: Option<Client>,
    authorization: Option<Client>,
}

impl Guard {
    async fn new(
        flags: &SecureFlags,
        name: &str,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let client = async |path: &Option<PathBuf>| match path {
            Some(path) => connect(path, name).await.map(Some),
            None => Ok(None),
        };
        for path in &flags.authorization_always_allow_paths {
            let inner = path.strip_suffix('*').unwrap_or(path);
            if inner.contains('*') {
                bail!("--authorization-always-allow-paths: {path:?}: `*` is only for the end");
            }
        }
        let authentication = client(&flags.authentication_kubeconfig).await?;
        Ok(Self {
            certificates: Certificates::new(&flags.trust, authentication.as_ref(), shutdown)?,
            open: flags.authorization_always_allow_paths.clone(),
            reviews: Reviews::new(Lifetimes {
                tokens: flags.authentication_token_webhook_cache_ttl,
                allowed: flags.authorization_webhook_cache_authorized_ttl,
                denied: flags.authorization_webhook_cache_unauthorized_ttl,
            }),
            authentication,
            authorization: client(&flags.authorization_kubeconfig).await?,
        })
    }

    async fn who(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Result<User, Refusal> {
        let refused = match self.certificates.who(peer, headers, UnixTime::now()) {
            Ok(Some(user)) => return Ok(user),
            Ok(None) => None,
            Err(why) => Some(why),
        };
        let Some(token) = bearer(headers) else {
            return match refused {
                None => Ok(User::anonymous()),
                Some(why) => {
                    tracing::warn!(why, "a caller is not known");
                    Err(Refusal::Unauthorized)
                }
            };
        };
        let client = self.authentication.as_ref().ok_or(Refusal::Unauthorized)?;
        match self.reviews.token(client, token).await {
            Ok(user) => user.ok_or(Refusal::Unauthorized),
            Err(why) => {
                tracing::warn!(why, "a caller is not known");
                Err(Refusal::Unauthorized)
            }
        }
    }

    fn is_open(&self, path: &str) -> bool {
        self.open.iter().any(|open| match open.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == open,
        })
    }

    async fn check(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
    ) -> Result<(), Refusal> {
        let user = self.who(peer, headers).await?;
        if self.is_open(path) || user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let verb = method.as_str().to_ascii_lowercase();
        let refusal = Refusal::Forbidden(format!(
            "forbidden: User {:?} cannot {verb} path {path:?}",
            user.name
        ));
        let Some(client) = &self.authorization else { return Err(refusal) };
        let what = Access::Path { verb, path: path.to_owned() };
        match self.reviews.may(client, &user, what).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refusal),
            Err(why) => Err(Refusal::Failed(why)),
        }
    }
}

fn answer(refusal: Refusal) -> Response<Body> {
    let (code, reason, message) = match refusal {
        Refusal::Unauthorized => (401, "Unauthorized", "Unauthorized".to_owned()),
        Refusal::Forbidden(why) => (403, "Forbidden", why),
        Refusal::Failed(why) => (500, "InternalError", format!("Internal error occurred: {why}")),
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "details": {}, "code": code});
    let mut response = Response::new(body(status.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Serves a component's endpoints, by their paths, until the scope ends. Port 0: not at all.
///
/// # Errors
/// A file of the flags cannot be read, or the port is taken.
pub async fn serve<R>(
    flags: &SecureFlags,
    port: u16,
    name: &'static str,
    routes: R,
    scope: &mut Scope,
) -> anyhow::Result<()>
where
    R: Fn(&str) -> Response<Body> + Clone + Send + Sync + 'static,
{
    if port == 0 {
        return Ok(());
    }
    let files = match (&flags.tls_cert_file, &flags.tls_private_key_file) {
        (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
        (None, None) => None,
        _ => bail!("--tls-cert-file and --tls-private-key-file go together"),
    };
    let tls = serving::asking(files, name)?;
    let guard = Arc::new(Guard::new(flags, name, scope.token()).await?);
    let listener = serving::bind((flags.bind_address, port).into()).await?;
    let handler = move |request: Request<Incoming>| {
        let (guard, routes) = (guard.clone(), routes.clone());
        async move {
            let (path, peer) = (request.uri().path(), request.extensions().get::<Peer>());
            match guard.check(peer, request.headers(), request.method(), path).await {
                Ok(()) => routes(path),
                Err(refusal) => answer(refusal),
            }
        }
    };
    let token = scope.token().clone();
    scope.spawn("serving", serving::serve(listener, Some(tls), handler, token));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        secure: SecureFlags,
    }

    async fn guard(args: &[&str]) -> anyhow::Result<Guard> {
        let flags: Flags = clap::Parser::parse_from([&["component"], args].concat());
        Guard::new(&flags.secure, "component", &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn health_is_for_all_and_metrics_are_not() -> anyhow::Result<()> {
        let guard = guard(&[]).await?;
        let token = [(header::AUTHORIZATION, "Bearer x".parse()?)].into_iter().collect();
        let forbidden = Refusal::Forbidden(
            "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"".to_owned(),
        );
        for (path, want) in [("/healthz", true), ("/healthz/log", false), ("/metrics", false)] {
            let got = guard.check(None, &HeaderMap::new(), &Method::GET, path).await;
            assert_eq!(got.is_ok(), want, "{path}");
        }
        let got = guard.check(None, &HeaderMap::new(), &Method::GET, "/metrics").await;
        assert_eq!(got, Err(forbidden));
        // Who says who he is has to be right, for anything.
        let got = guard.check(None, &token, &Method::GET, "/healthz").await;
        assert_eq!(got, Err(Refusal::Unauthorized));
        Ok(())
    }

    #[tokio::test]
    async fn masters_may_see_all_and_open_paths_are_told() -> anyhow::Result<()> {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, ca.pem())?;
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "me");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, MASTERS);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let der = params.signed_by(&rcgen::KeyPair::generate()?, &ca)?.der().clone();
        let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new(vec![der]) };
        let ask = async |guard: &Guard, path: &str| {
            guard.check(Some(&peer), &HeaderMap::new(), &Method::GET, path).await.is_ok()
        };
        let flag = format!("--client-ca-file={}", file.display());
        assert!(ask(&guard(&[&flag]).await?, "/metrics").await);
        let other = guard(&["--authorization-always-allow-paths=/a*,/b"]).await?;
        for (path, want) in [("/metrics", false), ("/a/b", true), ("/b", true), ("/b/c", false)] {
            assert_eq!(ask(&other, path).await, want, "{path}");
        }
        assert!(guard(&["--authorization-always-allow-paths=/a*b"]).await.is_err());
        Ok(())
    }
}
