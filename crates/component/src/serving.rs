//! Serving HTTP, plain or over TLS: what scheduler, controller-manager, kubelet and proxy need for
//! health, metrics and their own endpoints.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ResolvesServerCert, WantsServerCert, WebPkiClientVerifier};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::trust::any_client;

/// What a handler answers with.
pub type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// Time for requests that are under way at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection. In the request's extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The client certificate's chain; empty without one. Verified against the client CA of
    /// [`tls`]; of servers that are [`asking`], not verified yet.
    pub certificates: Arc<Vec<CertificateDer<'static>>>,
}

/// A whole body in memory.
pub fn body(data: impl Into<Bytes>) -> Body {
    use http_body_util::BodyExt;
    http_body_util::Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A plain-text answer.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(body(text.into()));
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

/// TLS from PEM files. With `client_ca`, client certificates are asked for (not demanded) and
/// verified against it.
///
/// # Errors
/// Names the file that is missing or holds no certificate or key.
pub fn tls(cert: &Path, key: &Path, client_ca: Option<&Path>) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = pair(cert, key)?;
    Ok(finished(builder(verifier(client_ca)?)?.with_single_cert(chain, key)?))
}

/// TLS with a certificate that changes; `client_ca` as for [`tls`].
///
/// # Errors
/// The CA cannot be read.
pub fn tls_showing(
    shown: Arc<dyn ResolvesServerCert>,
    client_ca: Option<&Path>,
) -> anyhow::Result<Arc<ServerConfig>> {
    Ok(finished(builder(verifier(client_ca)?)?.with_cert_resolver(shown)))
}

/// TLS that asks for client certificates and leaves it to the handler to judge them. From PEM files
/// of certificate and key; without them, with a certificate made for this run.
///
/// # Errors
/// Names the file that is missing or holds no certificate or key.
pub fn asking(files: Option<(&Path, &Path)>, name: &str) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = match files {
        Some((cert, key)) => pair(cert, key)?,
        None => self_signed(name)?,
    };
    let clients = Some(any_client(&provider()));
    Ok(finished(builder(clients)?.with_single_cert(chain, key)?))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Verifies client certificates against a CA.
fn verifier(client_ca: Option<&Path>) -> anyhow::Result<Option<Arc<dyn ClientCertVerifier>>> {
    let Some(path) = client_ca else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("client CA {}", path.display()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    Ok(Some(verifier.allow_unauthenticated().build()?))
}

fn builder(
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> anyhow::Result<ConfigBuilder<ServerConfig, WantsServerCert>> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    })
}

fn finished(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A certificate's chain and its key, from PEM files.
fn pair(
    cert: &Path,
    key: &Path,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("private key {}", key.display()))?;
    Ok((chain, key))
}

/// A certificate made for this run, and its key.
fn self_signed(
    name: &str,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let pair = rcgen::generate_simple_self_signed(vec![name.to_owned(), "localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(pair.signing_key.serialize_der().into());
    Ok((vec![pair.cert.der().clone()], key))
}

/// The certificates of a PEM file.
///
/// # Errors
/// Names the file, when it cannot be read or has none.
pub fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let whence = || format!("certificate {}", path.display());
    let found = CertificateDer::pem_file_iter(path)
        .with_context(whence)?
        .collect::<Result<Vec<_>, _>>()
        .with_context(whence)?;
    if found.is_empty() {
        bail!("certificate {}: no certificate in it", path.display());
    }
    Ok(found)
}

/// Binds a TCP port.
///
/// # Errors
/// Names the address, and says so when it is taken.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Serves `handler` on `listener` until shutdown, then lets requests under way finish.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    handler: H,
    shutdown: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let (stream, address) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: give connections time to close.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Without it small answers wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let (acceptor, handler, watcher) = (acceptor.clone(), handler.clone(), graceful.watcher());
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else {
                let peer = Peer { address, certificates: Arc::default() };
                return connection(TokioIo::new(stream), peer, handler, watcher).await;
            };
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
                    let peer = Peer { address, certificates: Arc::new(chain) };
                    connection(TokioIo::new(stream), peer, handler, watcher).await;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::debug!("connections closed with requests under way");
    }
}

async fn connection<I, H, F>(
    io: I,
    peer: Peer,
    handler: H,
    watcher: hyper_util::server::graceful::Watcher,
) where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection_with_upgrades(io, service).into_owned();
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%error, "connection ended");
    }
}
