//! API servers behind this one: requests for versions of groups that an APIService gives to a
//! Service are passed on, with the user in headers that our certificate vouches for
//! (kube-aggregator).

mod available;
pub(crate) mod discovery;
mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use component::serving::certificates;
use component::trust::any_server;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::ClientConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::authentication::User;
use crate::reader::Reader;
use crate::registry::kinds::apiregistration::condition;
use crate::respond::{self, Body};
use crate::services::{self, Routing};
use crate::verbs::tunnel::{self, Identity, Target};
use crate::verbs::{Call, RequestBody};
use crate::webhook;

/// Discovery is to be answered so fast.
const DISCOVERY: Duration = Duration::from_secs(5);
/// The most that is read of a document, in bytes.
const MAX_DOCUMENT: usize = 64 << 20;
/// What stands for itself in a header's name (Go's `shouldEscape` of header keys).
const KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

fn resource() -> GroupResource {
    GroupResource::new("apiregistration.k8s.io", "apiservices")
}

/// An API server that serves a version of a group.
pub struct Remote {
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    namespace: String,
    service: String,
    port: u16,
    available: bool,
    /// How it is talked to, or why it cannot be.
    tls: Result<Arc<ClientConfig>, String>,
    value: crate::reader::Object,
}

impl Remote {
    fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Below which all its resources are.
    fn root(&self) -> String {
        match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }
}

/// By group and version.
type Remotes = BTreeMap<(String, String), Arc<Remote>>;

/// The servers behind this one, as APIServices name them.
pub struct Aggregation {
    reader: Arc<dyn Reader>,
    routing: Routing,
    /// Certificates and key that say that we may speak for users.
    identity: Option<(PathBuf, PathBuf)>,
    /// As of a version of the APIServices.
    known: Mutex<Option<(u64, Arc<Remotes>)>>,
    /// What was found of each server's resources.
    pub(crate) documents: discovery::Found,
    /// Those of our own APIServices that were never seen to be available; before the first look,
    /// it is not known which there are.
    pending: Mutex<Option<BTreeSet<String>>>,
}

impl Aggregation {
    /// # Errors
    /// The files of the certificate cannot be read.
    pub fn new(
        reader: Arc<dyn Reader>,
        routing: Routing,
        identity: Option<(PathBuf, PathBuf)>,
    ) -> anyhow::Result<Self> {
        let made = Self {
            reader,
            routing,
            identity,
            known: Mutex::default(),
            documents: discovery::Found::default(),
            pending: Mutex::default(),
        };
        // What is wrong with the files is told at start.
        made.tls("", true).map_err(anyhow::Error::msg).context("--proxy-client-cert-file")?;
        Ok(made)
    }

    fn tls(&self, bundle: &str, insecure: bool) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let builder = match (insecure, bundle) {
            (true, _) => {
                builder.dangerous().with_custom_certificate_verifier(any_server(&provider))
            }
            (false, "") => builder.with_native_roots().map_err(|e| e.to_string())?,
            (false, bundle) => {
                builder.with_root_certificates(webhook::roots(bundle).map_err(|e| e.to_string())?)
            }
        };
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some((chain, key)) => {
                let chain = certificates(chain).map_err(|e| format!("{e:#}"))?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|e| format!("{}: {e}", key.display()))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())
            }
        }
    }

    /// All servers behind this one.
    pub fn remotes(&self) -> Arc<Remotes> {
        let resource = resource();
        let version = self.reader.version(&resource);
        if let Some((known, remotes)) = &*self.known.lock()
            && *known == version
        {
            return remotes.clone();
        }
        let mut remotes = Remotes::new();
        for value in self.reader.list(&resource, "") {
            if let Some(remote) = self.remote(value) {
                let key = (remote.group.clone(), remote.version.clone());
                remotes.insert(key, Arc::new(remote));
            }
        }
        let remotes = Arc::new(remotes);
        *self.known.lock() = Some((version, remotes.clone()));
        remotes
    }

    fn remote(&self, value: crate::reader::Object) -> Option<Remote> {
        let spec = value.get("spec")?;
        let service = spec.get("service").filter(|s| s.is_object())?;
        let text = |of: &Value, field| object::str_at(of, &[field]).to_owned();
        let port = object::int_at(service, &["port"]).and_then(|p| u16::try_from(p).ok());
        let insecure = object::bool_at(spec, &["insecureSkipTLSVerify"]);
        let tls = self.tls(object::str_at(spec, &["caBundle"]), insecure).map(Arc::new);
        Some(Remote {
            group: text(spec, "group"),
            version: text(spec, "version"),
            group_priority: object::int_at(spec, &["groupPriorityMinimum"]).unwrap_or(0),
            version_priority: object::int_at(spec, &["versionPriority"]).unwrap_or(0),
            namespace: text(service, "namespace"),
            service: text(service, "name"),
            port: port.unwrap_or(443),
            available: condition(&value, "Available").is_some_and(|c| c["status"] == "True"),
            tls,
            value,
        })
    }

    /// The APIServices of what is compiled in that were never available yet.
    pub(crate) fn missing(&self, api: &Api) -> Vec<String> {
        let mut pending = self.pending.lock();
        let pending = pending.get_or_insert_with(|| local::compiled_names(api));
        if !pending.is_empty() {
            local::strike_out(pending, &self.reader.list(&resource(), ""));
        }
        pending.iter().cloned().collect()
    }

    /// The server that a request's path belongs to, if it is another.
    pub fn of_path(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return None;
        }
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        remotes.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    fn target(&self, remote: &Remote, path: String) -> Result<Target, String> {
        let tls = remote.tls.clone()?;
        let of = (remote.namespace.as_str(), remote.service.as_str());
        let found = services::resolve(&*self.reader, self.routing, of, remote.port);
        let (host, port) = found.map_err(|e| e.to_string())?;
        Ok(Target { host, port, tls: Some(tls), path })
    }

    /// Asks a server for a document, as ourselves.
    ///
    /// # Errors
    /// No answer came, in Go's words.
    pub(crate) async fn get(&self, remote: &Remote, path: &str) -> Result<(u16, Bytes), String> {
        let mut target = self.target(remote, path.to_owned())?;
        // What is asked decides nothing, and is asked of whoever is there.
        target.tls = self.tls("", true).ok().map(Arc::new);
        let url = format!("https://{}:{}{path}", target.host, target.port);
        let failed = |why: &dyn std::fmt::Display| {
            format!("failing or missing response from {url}: Get \"{url}\": {why}")
        };
        let asking = async {
            let server = remote.server_name();
            let stream = tunnel::dial(&target, Some(&server)).await.map_err(|e| match e {
                ApiError::ServiceUnavailable(text) => {
                    failed(&text.trim_start_matches("error trying to reach service: "))
                }
                other => failed(&other),
            })?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| failed(&e))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to an API server ended");
                }
            });
            let mut request = Request::new(Full::new(Bytes::new()));
            *request.uri_mut() = path.parse().map_err(|e| failed(&e))?;
            let headers = request.headers_mut();
            if let Ok(host) = HeaderValue::from_str(&target.host) {
                headers.insert(header::HOST, host);
            }
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            let user = User {
                name: "system:kube-aggregator".to_owned(),
                groups: vec![crate::authentication::MASTERS.to_owned()],
                ..User::default()
            };
            headers.extend(user_headers(&user));
            let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
            let code = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_DOCUMENT).collect().await;
            Ok((code, body.map_err(|e| failed(&e))?.to_bytes()))
        };
        match tokio::time::timeout(DISCOVERY, asking).await {
            Ok(answered) => answered,
            Err(_) => Err(failed(&"context deadline exceeded")),
        }
    }
}

/// What tells another server who asks.
fn user_headers(user: &User) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| add("x-remote-group", group));
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", utf8_percent_encode(key, KEY));
        values.iter().for_each(|value| add(&name, value));
    }
    headers
}

/// Passes a request on.
///
/// # Errors
/// 503 when the server cannot be reached.
pub(crate) async fn proxy(
    mut call: Call,
    remote: &Remote,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let unavailable = || Ok(respond::text(503, "service unavailable\n"));
    if !remote.available {
        return unavailable();
    }
    if let Err(why) = &remote.tls {
        return Ok(respond::text(500, format!("{why}\n")));
    }
    let uri = &call.parts.uri;
    let path = uri.path_and_query().map_or(uri.path(), |p| p.as_str()).to_owned();
    let aggregation = call.api.aggregation.clone();
    let target = match aggregation.target(remote, path) {
        Ok(target) => target,
        Err(why) => {
            tracing::warn!(why, group = remote.group, "an API server cannot be reached");
            return unavailable();
        }
    };
    let identity = Identity {
        server_name: Some(remote.server_name()),
        headers: user_headers(call.authorized.user()),
    };
    let discovery = call.parts.uri.path().trim_matches('/').split('/').count() <= 3;
    let forwarding = tunnel::forward_as(&mut call, &target, &identity, body);
    if !discovery {
        return forwarding.await;
    }
    match tokio::time::timeout(DISCOVERY, forwarding).await {
        Ok(answered) => answered,
        Err(_) => {
            Ok(respond::text(503, "error trying to reach service: context deadline exceeded\n"))
        }
    }
}

/// Keeps APIServices and what is known of the servers, until it is cancelled.
pub(crate) async fn run(api: Arc<Api>, stop: CancellationToken) {
    tokio::join!(local::run(&api, &stop), available::run(&api, &stop));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_in_headers() {
        let user = User {
            name: "a".to_owned(),
            uid: "u".to_owned(),
            groups: vec!["g".to_owned(), "h".to_owned()],
            extra: [("example.com/Scopes".to_owned(), vec!["view".to_owned()])].into(),
        };
        let headers = user_headers(&user);
        let all = |name: &str| -> Vec<&str> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect()
        };
        assert_eq!(all("x-remote-user"), ["a"]);
        assert_eq!(all("x-remote-uid"), ["u"]);
        assert_eq!(all("x-remote-group"), ["g", "h"]);
        assert_eq!(all("x-remote-extra-example.com%2fscopes"), ["view"]);
    }
}
