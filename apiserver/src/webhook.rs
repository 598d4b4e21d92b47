//! Calls of webhooks: JSON posted over TLS to a Service or a URL, and the answer's JSON
//! (upstream: apiserver `util/webhook`). Admission and the conversion of custom resources use it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::{Value, object};
use base64::Engine as _;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use crate::reader::Reader;
use crate::services::{self, Routing, Unresolved};

/// The most that is read of an answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// So many sets of trusted certificates have connections that are kept.
const MAX_CLIENTS: usize = 64;
/// An idle connection is kept so long.
const IDLE: Duration = Duration::from_secs(90);
/// Making a connection may take so long (Go's dialer).
const CONNECT: Duration = Duration::from_secs(30);
/// So much of a refusal's text is shown, in bytes.
const SHOWN: usize = 2048;

/// Why a webhook gave no answer. The text is upstream's, from after `failed to call webhook: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The configuration says nowhere to call, or what cannot be called.
    #[error("{0}")]
    Config(String),
    /// No answer came: no connection, no trust, or too late.
    #[error("Post \"{url}\": {reason}")]
    Transport { url: String, reason: String },
    /// The answer is no success.
    #[error("{message}")]
    Refused { code: u16, message: String },
    /// The answer is no JSON object, or too large.
    #[error("{0}")]
    Answer(String),
}

type Https = HttpsConnector<Dialer>;
type Pool = HttpClient<Https, Full<Bytes>>;

/// Calls webhooks, and keeps connections for further calls.
pub struct Client {
    reader: Arc<dyn Reader>,
    routing: Routing,
    /// By the certificates that are trusted (as the configuration has them).
    pools: Mutex<HashMap<String, Pool>>,
}

impl Client {
    /// Services are looked up in `reader`.
    pub fn new(reader: Arc<dyn Reader>, routing: Routing) -> Self {
        Self { reader, routing, pools: Mutex::default() }
    }

    /// Posts `body` to where a `clientConfig` points (`service` with namespace, name, path and
    /// port, or `url`; `caBundle`, without which the system's certificates are trusted).
    ///
    /// # Errors
    /// There is nowhere to call, nobody answers in time, or the answer is no success or no JSON.
    pub async fn call(
        &self,
        client_config: &Value,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, WebhookError> {
        let url = url_of(client_config)?;
        let url = with_timeout(&url, timeout);
        let uri: Uri =
            url.parse().map_err(|e| WebhookError::Config(format!("Unparsable URL: {e}")))?;
        let pool = self.pool(object::str_at(client_config, &["caBundle"]))?;
        let data = serde_json::to_vec(body).map_err(|e| WebhookError::Config(e.to_string()))?;
        let mut request = Request::post(uri).body(Full::new(Bytes::from(data)));
        if let Ok(request) = &mut request {
            const JSON: HeaderValue = HeaderValue::from_static("application/json");
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, JSON);
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
            headers
                .insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
        }
        let request = request.map_err(|e| WebhookError::Config(e.to_string()))?;
        let failed = |reason: String| WebhookError::Transport { url: url.clone(), reason };
        let exchange = async {
            let response =
                pool.request(request).await.map_err(|error| failed(reason_of(&error)))?;
            let code = response.status().as_u16();
            let limited = Limited::new(response.into_body(), MAX_ANSWER);
            match limited.collect().await {
                Ok(read) => Ok((code, read.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => {
                    Err(WebhookError::Answer(format!("the answer is larger than {MAX_ANSWER}")))
                }
                Err(error) => Err(failed(reason_of(&*error))),
            }
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answered) => answered.and_then(|(code, data)| read(code, &data)),
            Err(_) => Err(failed("context deadline exceeded".to_owned())),
        }
    }

    fn pool(&self, bundle: &str) -> Result<Pool, WebhookError> {
        if let Some(pool) = self.pools.lock().get(bundle) {
            return Ok(pool.clone());
        }
        let tls = trust(bundle)?;
        let dialer = Dialer { reader: self.reader.clone(), routing: self.routing };
        // With HTTP/2 all calls would go to one of many backends.
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(dialer);
        let pool = HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(https);
        let mut pools = self.pools.lock();
        if pools.len() >= MAX_CLIENTS {
            // Bundles that are in use come back at once.
            pools.clear();
        }
        Ok(pools.entry(bundle.to_owned()).or_insert(pool).clone())
    }
}

/// TLS that trusts a bundle (base64 of PEM, as `caBundle` holds it), or what the system trusts.
///
/// # Errors
/// The bundle holds no certificate.
pub fn trust(bundle: &str) -> Result<ClientConfig, WebhookError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| WebhookError::Config(e.to_string()))?;
    if bundle.is_empty() {
        let builder = builder.with_native_roots();
        let builder = builder.map_err(|e| WebhookError::Config(e.to_string()))?;
        return Ok(builder.with_no_client_auth());
    }
    Ok(builder.with_root_certificates(roots(bundle)?).with_no_client_auth())
}

/// The certificates of a bundle.
///
/// # Errors
/// It holds none.
pub fn roots(bundle: &str) -> Result<RootCertStore, WebhookError> {
    let bad = || {
        let text = "unable to load root certificates: unable to parse bytes as PEM block";
        WebhookError::Config(text.to_owned())
    };
    let pem = base64::engine::general_purpose::STANDARD.decode(bundle).map_err(|_| bad())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
    }
    if roots.is_empty() { Err(bad()) } else { Ok(roots) }
}

/// Where a `clientConfig` points.
fn url_of(config: &Value) -> Result<String, WebhookError> {
    if let Some(service) = object::get(config, &["service"]).filter(|s| s.is_object()) {
        let text = |field| object::str_at(service, &[field]);
        let port = object::int_at(service, &["port"]).filter(|p| *p != 0).unwrap_or(443);
        let path = text("path");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let (name, namespace) = (text("name"), text("namespace"));
        return Ok(format!("https://{name}.{namespace}.svc:{port}{slash}{path}"));
    }
    match object::str_at(config, &["url"]) {
        "" => {
            let text = "webhook configuration must have either service or URL";
            Err(WebhookError::Config(text.to_owned()))
        }
        url => Ok(url.to_owned()),
    }
}

/// The webhook is told how long it has, in whole seconds.
fn with_timeout(url: &str, timeout: Duration) -> String {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    let text = match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    };
    let url = url.split('#').next().unwrap_or(url);
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}timeout={text}")
}

/// An answer's JSON, or why it is none.
fn read(code: u16, data: &[u8]) -> Result<Value, WebhookError> {
    let parsed: Result<Value, _> = serde_json::from_slice(data);
    if !(200..=206).contains(&code) {
        // A status says itself what is wrong.
        if let Ok(status) = &parsed
            && object::str_at(status, &["kind"]) == "Status"
            && object::str_at(status, &["status"]) != "Success"
        {
            let message = object::str_at(status, &["message"]).to_owned();
            let code = object::int_at(status, &["code"]).and_then(|c| u16::try_from(c).ok());
            return Err(WebhookError::Refused { code: code.unwrap_or(500), message });
        }
        return Err(WebhookError::Refused { code, message: refusal(code, data) });
    }
    match parsed {
        Ok(answer) if answer.is_object() => Ok(answer),
        Ok(_) => Err(WebhookError::Answer(
            "couldn't get version/kind; json parse error: the answer is no object".to_owned(),
        )),
        Err(error) => Err(WebhookError::Answer(format!(
            "couldn't get version/kind; json parse error: {error}"
        ))),
    }
}

/// What client-go says of an HTTP code (`NewGenericServerResponse`).
fn refusal(code: u16, data: &[u8]) -> String {
    let shown = String::from_utf8_lossy(data.get(..SHOWN).unwrap_or(data));
    let shown = shown.trim();
    match code {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        // The server's own words are better here.
        403 if !shown.is_empty() => shown.to_owned(),
        403 => "the server does not allow access to the requested resource".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        406 => "the server was unable to respond with a content type that the client supports"
            .to_owned(),
        409 => "the server reported a conflict".to_owned(),
        415 => "the server was unable to process the request's content type".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later"
            .to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned(),
        500.. => format!(
            "an error on the server ({}) has prevented the request from succeeding",
            apimachinery::field::quote(if shown.is_empty() { "unknown" } else { shown })
        ),
        other => format!(
            "the server responded with the status code {other} but did not return more information"
        ),
    }
}

/// The innermost cause, in Go's words where it has some.
fn reason_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = Some(error);
    let mut last = error.to_string();
    while let Some(error) = cause {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return dial.to_string();
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return tls_reason(tls);
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if let Some(inner) = io.get_ref() {
                let inner: &(dyn std::error::Error + 'static) = inner;
                return reason_of(inner);
            }
            return match io.kind() {
                std::io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
                _ => os_reason(io),
            };
        }
        if let Some(hyper) = error.downcast_ref::<hyper::Error>()
            && hyper.is_incomplete_message()
        {
            return "EOF".to_owned();
        }
        last = error.to_string();
        cause = error.source();
    }
    last
}

fn tls_reason(error: &rustls::Error) -> String {
    use rustls::CertificateError as C;
    let invalid = |why: &str| format!("tls: failed to verify certificate: x509: {why}");
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            C::UnknownIssuer | C::BadSignature => {
                invalid("certificate signed by unknown authority")
            }
            C::Expired
            | C::ExpiredContext { .. }
            | C::NotValidYet
            | C::NotValidYetContext { .. } => {
                invalid("certificate has expired or is not yet valid")
            }
            C::NotValidForName => invalid("certificate is not valid for the name"),
            C::NotValidForNameContext { expected, presented } => match presented.is_empty() {
                true => invalid("certificate relies on legacy Common Name field, use SANs instead"),
                false => {
                    let names: Vec<String> =
                        presented.iter().map(|n| presented_name(n).to_owned()).collect();
                    invalid(&format!(
                        "certificate is valid for {}, not {}",
                        names.join(", "),
                        expected.to_str()
                    ))
                }
            },
            other => invalid(&other.to_string()),
        },
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {alert:?}"),
        rustls::Error::InvalidMessage(_) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        other => format!("tls: {other}"),
    }
}

/// `DnsName("a.b")` → `a.b`
fn presented_name(shown: &str) -> &str {
    shown.split('"').nth(1).unwrap_or(shown)
}

fn os_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        std::io::ErrorKind::BrokenPipe => "broken pipe".to_owned(),
        _ => error.to_string(),
    }
}

/// Connects to what a URL names: Services by their address, other hosts by name.
#[derive(Clone)]
struct Dialer {
    reader: Arc<dyn Reader>,
    routing: Routing,
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Unresolved(#[from] Unresolved),
    #[error("no host in URL")]
    NoHost,
    #[error("dial tcp: lookup {host}: {reason}")]
    Lookup { host: String, reason: String },
    #[error("dial tcp {address}: {reason}")]
    Connect { address: String, reason: String },
}

impl Dialer {
    /// The host and port to connect to. A name that ends in `.svc` is a Service's.
    fn target(&self, uri: &Uri) -> Result<(String, u16), DialError> {
        let host = uri.host().ok_or(DialError::NoHost)?;
        let port = uri.port_u16().unwrap_or(443);
        let parts: Vec<&str> = host.split('.').collect();
        if let [name, namespace, "svc"] = parts.as_slice() {
            let of = (*namespace, *name);
            return Ok(services::resolve(&*self.reader, self.routing, of, port)?);
        }
        Ok((host.trim_matches(['[', ']']).to_owned(), port))
    }
}

/// A TCP connection to a host and port.
async fn dial(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let shown = |host: &str| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let lookup = |reason: String| DialError::Lookup { host: host.to_owned(), reason };
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<_> = found.map_err(|_| lookup("no such host".to_owned()))?.collect();
    let mut last = lookup("no such host".to_owned());
    for address in addresses {
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(address));
        let reason = match connecting.await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => format!("connect: {}", os_reason(&error)),
            Err(_) => "i/o timeout".to_owned(),
        };
        last = DialError::Connect { address: shown(&address.ip().to_string()), reason };
    }
    Err(last)
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let target = self.target(&uri);
        Box::pin(async move {
            let (host, port) = target?;
            Ok(TokioIo::new(dial(&host, port).await?))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authorization::testing::Memory;

    #[test]
    fn configurations_point_somewhere() {
        let of = |config: Value| url_of(&config).map_err(|e| e.to_string());
        let service = json!({"service": {"namespace": "n", "name": "a", "path": "/x"}});
        assert_eq!(of(service), Ok("https://a.n.svc:443/x".to_owned()));
        let service = json!({"service": {"namespace": "n", "name": "a", "port": 8443}});
        assert_eq!(of(service), Ok("https://a.n.svc:8443/".to_owned()));
        assert_eq!(of(json!({"url": "https://x/y"})), Ok("https://x/y".to_owned()));
        let text = "webhook configuration must have either service or URL";
        assert_eq!(of(json!({})), Err(text.to_owned()));
        let second = Duration::from_secs(1);
        assert_eq!(with_timeout("https://x/y", second), "https://x/y?timeout=1s");
        assert_eq!(with_timeout("https://x/y?a=b", second * 90), "https://x/y?a=b&timeout=1m30s");
        let rounded = Duration::from_millis(9001);
        assert_eq!(with_timeout("https://x", rounded), "https://x?timeout=10s");
    }

    #[test]
    fn refusals_are_told_in_client_gos_words() {
        let of = |code, data: &str| read(code, data.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(of(200, r#"{"a":1}"#), Ok(json!({"a": 1})));
        for (code, data, want) in [
            (404, "x", "the server could not find the requested resource"),
            (
                500,
                "boom\n",
                r#"an error on the server ("boom") has prevented the request from succeeding"#,
            ),
            (503, "", "the server is currently unable to handle the request"),
            (500, r#"{"kind":"Status","status":"Failure","message":"no"}"#, "no"),
        ] {
            assert_eq!(of(code, data), Err(want.to_owned()), "{code}");
        }
        assert!(of(200, "x").is_err() && of(200, "[]").is_err());
    }

    #[tokio::test]
    async fn who_does_not_answer_is_named() {
        let client = Client::new(Arc::new(Memory::default()), Routing::Cluster);
        let second = Duration::from_secs(1);
        let service = json!({"service": {"namespace": "n", "name": "a"}});
        let error = client.call(&service, &json!({}), second).await.map_err(|e| e.to_string());
        let want = "Post \"https://a.n.svc:443/?timeout=1s\": service \"a\" not found";
        assert_eq!(error, Err(want.to_owned()));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = closed.local_addr().expect("an address").port();
        drop(closed);
        let config = json!({"url": format!("https://127.0.0.1:{port}/")});
        let error = client.call(&config, &json!({}), second).await.map_err(|e| e.to_string());
        let want = format!(
            "Post \"https://127.0.0.1:{port}/?timeout=1s\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(error, Err(want));
        let config = json!({"url": "https://x", "caBundle": "aGVsbG8="});
        assert!(matches!(
            client.call(&config, &json!({}), second).await,
            Err(WebhookError::Config(_))
        ));
    }
}
