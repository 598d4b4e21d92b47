//! Asking a component on this machine how it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::trust::any_server;

const PATIENCE: Duration = Duration::from_secs(3);
/// Of what it answers, in bytes.
const MOST: usize = 4096;

/// Asks `/healthz`, over TLS or not; whose certificate it is does not matter.
///
/// # Errors
/// Nothing answers there in time, or it is not well: what it says.
pub async fn check(address: SocketAddr, tls: bool) -> anyhow::Result<()> {
    let asking = async {
        let tcp = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        if !tls {
            return ask(tcp).await;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(any_server(&provider))
            .with_no_client_auth();
        let name = ServerName::IpAddress(address.ip().into());
        ask(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?).await
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => bail!("{address}: no answer within {} s", PATIENCE.as_secs()),
    }
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> anyhow::Result<()> {
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let request = Request::get("/healthz")
        .header(http::header::HOST, "localhost")
        .body(Empty::<bytes::Bytes>::new())?;
    // The connection goes on only while it is polled.
    let (answer, _) = tokio::join!(
        async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MOST).collect().await;
            let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned());
            anyhow::Ok((status, text.unwrap_or_default()))
        },
        connection
    );
    let (status, text) = answer?;
    ensure!(status.is_success(), "{status}: {}", text.trim());
    Ok(())
}
