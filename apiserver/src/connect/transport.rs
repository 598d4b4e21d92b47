//! Connections to kubelets, pods and services: one for each request, since it may be upgraded.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ConnectConfig, Location};

/// Time to reach a target.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Transport {
    kubelet: TlsConnector,
    other: TlsConnector,
}

impl Transport {
    pub fn new(config: &ConnectConfig) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
        };
        let anyone = || {
            let verifier = Anyone(Arc::clone(&provider));
            Ok::<_, anyhow::Error>(
                builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
            )
        };
        let checked = match &config.authority {
            None => anyone()?,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in component::serving::certificates(path)? {
                    roots.add(certificate).with_context(|| path.display().to_string())?;
                }
                builder()?.with_root_certificates(roots)
            }
        };
        let kubelet = match &config.certificate {
            None => checked.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = component::serving::certificates(certificate)?;
                let whence = || key.display().to_string();
                let key = PrivateKeyDer::from_pem_file(key).with_context(whence)?;
                checked.with_client_auth_cert(chain, key).context("kubelet client certificate")?
            }
        };
        // Pods' and services' certificates are nobody's to check: the proxy is for looking in.
        let other = anyone()?.with_no_client_auth();
        Ok(Self { kubelet: Arc::new(kubelet).into(), other: Arc::new(other).into() })
    }

    /// Sends a request on a new connection.
    pub async fn send(
        &self,
        location: &Location,
        mut request: Request<Incoming>,
    ) -> anyhow::Result<Response<Incoming>> {
        let uri = &location.uri;
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            bail!("no host in {uri}");
        };
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = host.trim_matches(['[', ']']);
        request.headers_mut().insert(header::HOST, authority.as_str().parse()?);
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        *request.uri_mut() = path.parse()?;
        let sender = tokio::time::timeout(PATIENCE, self.connect(location, host, port, secure));
        let mut sender =
            sender.await.with_context(|| format!("dial tcp {host}:{port}: i/o timeout"))??;
        Ok(sender.send_request(request).await?)
    }

    async fn connect(
        &self,
        location: &Location,
        host: &str,
        port: u16,
        secure: bool,
    ) -> anyhow::Result<http1::SendRequest<Incoming>> {
        let stream = TcpStream::connect((host, port))
            .await
            .with_context(|| format!("dial tcp {host}:{port}"))?;
        stream.set_nodelay(true)?;
        if !secure {
            return handshake(stream).await;
        }
        let tls = if location.kubelet { &self.kubelet } else { &self.other };
        let name = ServerName::try_from(host.to_owned())?;
        handshake(tls.connect(name, stream).await.context("tls")?).await
    }
}

async fn handshake<S>(stream: S) -> anyhow::Result<http1::SendRequest<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    Ok(sender)
}

/// Takes any server certificate, as upstream's transports without an authority do.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
