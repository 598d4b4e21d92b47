//! A real server in this process, on port 0, over an embedded store in a temporary directory.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod hooks;
pub mod https;

use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::{Config, Overrides, Server};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const ADMIN: &str = "admin-token";
const NOBODY: &str = "nobody-token";

type Connector = hyper_rustls::HttpsConnector<HttpConnector>;

pub struct Fixture {
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    client: Client<Connector, Full<bytes::Bytes>>,
    shutdown: CancellationToken,
    running: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    pub token: &'static str,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: bytes::Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The object, when the code is as it should be.
    pub fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::over(dir, change).await
    }

    /// Over a directory that may have a store already.
    pub async fn over(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        Self::build(dir, Overrides::default(), change).await
    }

    /// Over a store that others may use as well.
    pub async fn on(store: store::SharedStore) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::build(dir, Overrides { store: Some(store), ..Overrides::default() }, |_| {}).await
    }

    async fn build(
        dir: tempfile::TempDir,
        overrides: Overrides,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let path = |name: &str| dir.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let made = made.expect("a certificate");
        std::fs::write(path("tls.crt"), made.cert.pem()).expect("a file");
        std::fs::write(path("tls.key"), made.signing_key.serialize_pem()).expect("a file");
        let key = rcgen::KeyPair::generate().expect("a key");
        std::fs::write(path("sa.key"), key.serialize_pem()).expect("a file");
        let tokens = format!("{ADMIN},admin,1,system:masters\n{NOBODY},nobody,2\n");
        std::fs::write(path("tokens.csv"), tokens).expect("a file");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::embedded(any, path("tls.crt"), path("tls.key"), path("store/db"));
        config.token_auth_file = Some(path("tokens.csv"));
        config.authorization_modes = vec!["Node".to_owned(), "RBAC".to_owned()];
        config.service_accounts.issuers = vec!["https://issuer.test".to_owned()];
        config.service_accounts.key_files = vec![path("sa.key")];
        config.service_accounts.signing_key_file = Some(path("sa.key"));
        config.service_cluster_ip_ranges = vec!["10.96.0.0/16".parse().expect("a range")];
        // Pods of tests need no token.
        config.disable_admission_plugins = vec!["ServiceAccount".to_owned()];
        change(&mut config);
        let server = Server::build_with(config, overrides).await.expect("a server");
        let address = server.address();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(server.run(shutdown.clone()));
        let fixture =
            Self { address, dir, client: client(), shutdown, running: Some(running), token: ADMIN };
        fixture.ready().await;
        fixture
    }

    async fn ready(&self) {
        let waiting = async {
            while self.get("/readyz").await.code != 200 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await;
        waited.expect("to become ready");
    }

    /// Stops the server, and gives its directory.
    pub async fn stop(mut self) -> tempfile::TempDir {
        self.shutdown.cancel();
        let running = self.running.take().expect("a running server");
        running.await.expect("no panic").expect("a clean end");
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"))
    }

    pub fn as_nobody(&mut self) {
        self.token = NOBODY;
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> Answer {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Sends a request and leaves the body to be read.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> http::Response<hyper::body::Incoming> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header("user-agent", "tests/1")
            .header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        self.client.request(request).await.expect("an answer")
    }

    /// As [`open`](Self::open), over HTTP/1.1, which can be upgraded.
    pub async fn open_http1(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> http::Response<hyper::body::Incoming> {
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls())
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(https);
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(bytes::Bytes::new())).expect("a request");
        client.request(request).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send("GET", path, &[("accept", accept)], "").await
    }

    pub async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Answer {
        let content_type = format!("application/{kind}");
        self.send("PATCH", path, &[("content-type", &content_type)], patch.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    /// The first events of a watch, as they come.
    pub async fn watch(&self, path: &str) -> Watch {
        self.try_watch(path).await.expect("a watch")
    }

    /// The same, if the server can begin one now.
    pub async fn try_watch(&self, path: &str) -> Option<Watch> {
        let response = self.open("GET", path, &[], "").await;
        match response.status().as_u16() {
            200 => Some(Watch::of(response)),
            503 | 504 => None,
            code => panic!("{code}"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A watch under way.
pub struct Watch {
    body: hyper::body::Incoming,
    read: Vec<u8>,
}

impl Watch {
    pub fn of(response: http::Response<hyper::body::Incoming>) -> Self {
        Self { body: response.into_body(), read: Vec::new() }
    }

    /// The next event; `None`: the watch has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("JSON"));
            }
            let waiting = self.body.frame();
            let frame = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await;
            match frame.expect("an event in time")? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Type and name of the next event.
    pub async fn next_name(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

fn tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(provider)))
        .with_no_client_auth()
}

fn client() -> Client<Connector, Full<bytes::Bytes>> {
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls())
        .https_only()
        .enable_all_versions()
        .build();
    Client::builder(TokioExecutor::new()).build(https)
}

/// Accepts any certificate.
#[derive(Debug)]
struct Any(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
