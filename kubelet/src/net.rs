//! Requests to containers, for probes and hooks: HTTP with or without TLS, TCP and gRPC health.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is read of an answer's body (upstream's limit).
const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;
/// How an answer begins that is no TLS.
const HTTP: &[u8] = b"HTTP/";

/// An HTTP request to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// It pointed to another host, and was not followed.
    pub redirected_away: bool,
}

/// There was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// In words as near to upstream's as may be.
    pub why: String,
    /// TLS was asked for, and the server answered in HTTP without it.
    pub without_tls: bool,
}

impl From<String> for Unanswered {
    fn from(why: String) -> Self {
        Self { why, without_tls: false }
    }
}

/// The number of a port that may be given by name.
///
/// # Errors
/// Upstream's text.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match (named, name.parse()) {
                (Some(port), _) => port.container_port,
                (None, Ok(number)) => number,
                (None, Err(_)) => return Err(format!("couldn't find port: {name:?}")),
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

impl HttpCheck {
    /// The request that an action describes.
    ///
    /// # Errors
    /// A port that cannot be found.
    pub fn of(get: &HTTPGetAction, container: &Container, ip: &str) -> Result<Self, String> {
        let host = match get.host.as_deref() {
            None | Some("") => ip.to_owned(),
            Some(host) => host.to_owned(),
        };
        let path = get.path.as_deref().unwrap_or_default();
        let headers = get.http_headers.iter().flatten();
        Ok(Self {
            https: get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host,
            port: port(&get.port, container)?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
        })
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// As it stands in messages.
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Where a redirect leads, if it stays on the host.
    fn redirected(&self, location: &str) -> Option<Self> {
        let uri: Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        match uri.host() {
            None => Some(Self { path, ..self.clone() }),
            Some(host) if host.trim_matches(['[', ']']) == self.host => {
                let https = uri.scheme_str() == Some("https");
                let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
                Some(Self { https, port, path, ..self.clone() })
            }
            Some(_) => None,
        }
    }
}

/// Makes a request, following redirects on the same host.
///
/// # Errors
/// No answer.
pub async fn http(check: &HttpCheck, agent: &str, timeout: Duration) -> Result<Answer, Unanswered> {
    let run = async {
        let mut current = check.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (answer, location) = once(&current, agent).await?;
            match location {
                Some(location) if (300..400).contains(&answer.status) => {
                    match current.redirected(&location) {
                        Some(next) => current = next,
                        None => return Ok(Answer { redirected_away: true, ..answer }),
                    }
                }
                _ => return Ok(answer),
            }
        }
        let why = format!("Get {:?}: stopped after {MAX_REDIRECTS} redirects", check.url());
        Err(Unanswered::from(why))
    };
    match tokio::time::timeout(timeout, run).await {
        Ok(result) => result,
        Err(_) => Err(Unanswered::from(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            check.url()
        ))),
    }
}

async fn once(check: &HttpCheck, agent: &str) -> Result<(Answer, Option<String>), Unanswered> {
    let fail = |error: String| Unanswered::from(format!("Get {:?}: {error}", check.url()));
    let stream = connect(&check.host, check.port).await.map_err(fail)?;
    let mut request = Request::get(&check.path);
    let has = |name: &str| check.headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !has("host") {
        request = request.header("Host", check.authority());
    }
    if !has("user-agent") {
        request = request.header("User-Agent", format!("{agent}/1.35"));
    }
    if !has("accept") {
        request = request.header("Accept", "*/*");
    }
    for (name, value) in check.headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(name, value);
    }
    let request = request
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| fail(error.to_string()))?;
    if check.https {
        let name = ServerName::try_from(check.host.clone()).map_err(|e| fail(e.to_string()))?;
        let connector =
            tokio_rustls::TlsConnector::from(unverified().map_err(|e| fail(e.to_string()))?);
        let opened = connector.connect(name, Opening::of(stream)).into_fallible().await;
        let stream = opened.map_err(|(error, opening)| match opening.is_http() {
            true => {
                let why = fail("http: server gave HTTP response to HTTPS client".to_owned()).why;
                Unanswered { why, without_tls: true }
            }
            false => fail(error.to_string()),
        })?;
        exchange(TokioIo::new(stream), request).await.map_err(fail)
    } else {
        exchange(TokioIo::new(stream), request).await.map_err(fail)
    }
}

async fn exchange<I>(
    io: I,
    request: Request<Empty<Bytes>>,
) -> Result<(Answer, Option<String>), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| match error.is_incomplete_message() {
        true => "EOF".to_owned(),
        false => error.to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    let task = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status().as_u16();
        let location = response.headers().get(http::header::LOCATION);
        let location = location.and_then(|l| l.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        let mut incoming = response.into_body();
        while let Some(Ok(frame)) = incoming.frame().await {
            if let Some(data) = frame.data_ref() {
                body.extend_from_slice(data);
            }
            if body.len() >= MAX_BODY {
                body.truncate(MAX_BODY);
                break;
            }
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok((Answer { status, body, redirected_away: false }, location))
    }
    .await;
    task.abort();
    result
}

/// A connection that remembers how its server began.
struct Opening {
    stream: TcpStream,
    first: Vec<u8>,
}

impl Opening {
    fn of(stream: TcpStream) -> Self {
        Self { stream, first: Vec::with_capacity(HTTP.len()) }
    }

    fn is_http(&self) -> bool {
        self.first == HTTP
    }
}

impl AsyncRead for Opening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let missing = HTTP.len().saturating_sub(self.first.len());
        let new = buffer.filled().iter().skip(before).take(missing);
        self.first.extend(new);
        read
    }
}

impl AsyncWrite for Opening {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| {
        let address = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("dial tcp {address}:{port}: connect: {}", go_io_error(&error))
    })
}

/// The words that Go has for the commonest errors.
fn go_io_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether a TCP connection can be made.
///
/// # Errors
/// Why not.
pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, connect(host, port)).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// Probes do not verify certificates: they ask whether the server answers.
#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
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
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn unverified() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The health messages on the wire.
#[derive(Clone, Copy, Default)]
struct HealthCodec;

impl tonic::codec::Codec for HealthCodec {
    type Encode = HealthRequest;
    type Decode = HealthResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl tonic::codec::Encoder for HealthCodec {
    type Item = HealthRequest;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: HealthRequest,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        prost::Message::encode(&item, buffer).map_err(|e| tonic::Status::internal(e.to_string()))
    }
}

impl tonic::codec::Decoder for HealthCodec {
    type Item = HealthResponse;
    type Error = tonic::Status;

    fn decode(
        &mut self,
        buffer: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<HealthResponse>, tonic::Status> {
        let decoded = <HealthResponse as prost::Message>::decode(buffer);
        decoded.map(Some).map_err(|e| tonic::Status::internal(e.to_string()))
    }
}

/// Asks a server's gRPC health service.
///
/// # Errors
/// It does not serve; upstream's words.
pub async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let call = async {
        let endpoint = tonic::transport::Endpoint::try_from(format!("http://{address}:{port}"))
            .map_err(|e| e.to_string())?;
        let channel = endpoint.connect().await.map_err(|_| {
            format!(
                "timeout: failed to connect service {:?} within {}",
                format!("{address}:{port}"),
                crate::duration::format(timeout)
            )
        })?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.map_err(|e| e.to_string())?;
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = tonic::Request::new(HealthRequest { service: service.to_owned() });
        let answer = grpc.unary(request, path, HealthCodec).await.map_err(|status| {
            match status.code() {
                tonic::Code::Unimplemented => "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
                _ => format!("error: health rpc probe failed: {}", status.message()),
            }
        })?;
        match answer.into_inner().status {
            1 => Ok(()),
            other => {
                let name = match other {
                    0 => "UNKNOWN",
                    2 => "NOT_SERVING",
                    _ => "SERVICE_UNKNOWN",
                };
                Err(format!("service unhealthy (responded with {name:?})"))
            }
        }
    };
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "timeout: health rpc did not complete within {}",
            crate::duration::format(timeout)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_redirects() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}],
        }))
        .unwrap();
        let get: HTTPGetAction =
            serde_json::from_value(serde_json::json!({"port": "web", "path": "healthz"})).unwrap();
        let check = HttpCheck::of(&get, &container, "10.0.0.1").unwrap();
        assert_eq!(check.url(), "http://10.0.0.1:8080/healthz");
        for (location, want) in [
            ("/x", Some("http://10.0.0.1:8080/x")),
            ("https://10.0.0.1/y", Some("https://10.0.0.1:443/y")),
            ("http://elsewhere/y", None),
        ] {
            assert_eq!(check.redirected(location).map(|c| c.url()).as_deref(), want);
        }
        let missing = port(&IntOrString::String("no".into()), &container);
        assert_eq!(missing.unwrap_err(), "couldn't find port: \"no\"");
    }
}
