//! A client whose certificate is changed while it is used: what is asked from then on goes over new
//! connections, which begin with the new certificate; what is under way ends on the old ones
//! (watches after five minutes at most), and they end with it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::client::Body;
use kube::config::AuthInfo;
use serde_json::json;
use tokio::sync::watch;
use tower::BoxError;

use crate::connect;

/// How long a request waits for the first certificate.
const PATIENCE: Duration = Duration::from_secs(5);

/// Changes the certificate of the clients that it gives.
pub struct Renewable {
    /// Without a user.
    config: kube::Config,
    current: watch::Sender<Option<kube::Client>>,
}

impl Renewable {
    /// To the cluster of the kubeconfig, whose user does not count: nobody yet.
    ///
    /// # Errors
    /// As [`connect::connect`].
    pub async fn new(kubeconfig: &Path, user_agent: &str) -> anyhow::Result<Self> {
        let mut config = connect::config(kubeconfig, None, user_agent).await?;
        config.auth_info = AuthInfo::default();
        Ok(Self { config, current: watch::Sender::new(None) })
    }

    /// A client. What it is asked while there is no certificate waits for one, for a while.
    pub fn client(&self) -> kube::Client {
        let current = self.current.subscribe();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let mut current = current.clone();
            async move {
                let waited = tokio::time::timeout(PATIENCE, current.wait_for(Option::is_some));
                let inner = waited.await.ok().and_then(|seen| seen.ok().and_then(|c| c.clone()));
                let inner = inner.ok_or_else(|| BoxError::from("no client certificate yet"))?;
                inner.send(request).await.map_err(BoxError::from)
            }
        });
        kube::Client::new(service, self.config.default_namespace.clone())
    }

    /// From now on with this certificate and its chain, and this key, both in PEM.
    ///
    /// # Errors
    /// They do not fit each other, or are none.
    pub fn set(&self, chain: &str, key: &str) -> anyhow::Result<()> {
        let mut config = self.config.clone();
        config.auth_info = serde_json::from_value(json!({
            "client-certificate-data": STANDARD.encode(chain),
            "client-key-data": STANDARD.encode(key),
        }))
        .context("client certificate")?;
        let client = kube::Client::try_from(config).context("client certificate")?;
        self.current.send_replace(Some(client));
        Ok(())
    }

    /// The certificate holds no more, and there is no other.
    pub fn unset(&self) {
        self.current.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use component::serving::{self, Peer};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::reviews::User;

    type Pair = (String, String);

    fn pair(ca: &Issuer<'_, KeyPair>, name: &str) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
    }

    /// A server that says who asks, and a kubeconfig for it.
    async fn server(
        folder: &Path,
    ) -> anyhow::Result<(Issuer<'static, KeyPair>, CancellationToken)> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        std::fs::write(folder.join("ca.crt"), params.self_signed(&key)?.pem())?;
        let ca = Issuer::new(params, key);
        let (certificate, key) = pair(&ca, "server")?;
        let [cert_file, key_file, ca_file] =
            ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.join(name));
        std::fs::write(&cert_file, certificate)?;
        std::fs::write(&key_file, key)?;
        let listener = serving::bind(([127, 0, 0, 1], 0).into()).await?;
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {
                "server": format!("https://{}", listener.local_addr()?),
                "certificate-authority": ca_file}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "not to be shown"}}]});
        std::fs::write(folder.join("kubeconfig"), config.to_string())?;
        let tls = serving::tls(&cert_file, &key_file, Some(&ca_file))?;
        let handler = |request: http::Request<hyper::body::Incoming>| async move {
            let peer = request.extensions().get::<Peer>();
            let shown =
                peer.and_then(|peer| User::of_certificate(peer.certificates.first()?).ok()?);
            let token = request.headers().contains_key(http::header::AUTHORIZATION);
            serving::text(200, format!("{} {token}", shown.unwrap_or_default().name))
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(serving::serve(listener, Some(tls), handler, shutdown.clone()));
        Ok((ca, shutdown))
    }

    async fn who(client: &kube::Client) -> anyhow::Result<String> {
        Ok(client.request_text(http::Request::get("/who").body(Vec::new())?).await?)
    }

    #[tokio::test]
    async fn requests_go_with_the_certificate_of_the_time() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (ca, _shutdown) = server(folder.path()).await?;
        let renewable = Renewable::new(&folder.path().join("kubeconfig"), "test").await?;
        let client = renewable.client();
        let early = client.clone();
        let early = tokio::spawn(async move { who(&early).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        for name in ["a", "b"] {
            let (chain, key) = pair(&ca, name)?;
            renewable.set(&chain, &key)?;
            // Twice: the second time over a connection that is there.
            for _ in 0..2 {
                assert_eq!(who(&client).await?, format!("{name} false"));
            }
        }
        assert_eq!(early.await??, "a false", "it waited");
        let (chain, _) = pair(&ca, "c")?;
        let (_, key) = pair(&ca, "c")?;
        assert!(renewable.set(&chain, &key).is_err(), "another's key");
        assert_eq!(who(&client).await?, "b false");
        renewable.unset();
        tokio::time::pause();
        let error = who(&client).await.err().map(|error| crate::brief(&error));
        assert_eq!(error.as_deref(), Some("no client certificate yet"));
        Ok(())
    }
}
