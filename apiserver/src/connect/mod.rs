//! Requests that go on to a kubelet, a pod or a service: logs, exec, attach, port-forward, proxy.
//!
//! Upgraded connections (SPDY, WebSocket) are passed on as bytes, both ways: what is spoken in them
//! is between the client and the kubelet.

mod target;
mod transport;

use std::path::PathBuf;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use component::serving::Body;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::reader::Reader;
use crate::registry::Connect;
use transport::Transport;

/// Text of an error that a kubelet sends back, at most.
const ERROR_TEXT: usize = 64 * 1024;

/// How kubelets are reached.
#[derive(Clone, Debug, Default)]
pub struct ConnectConfig {
    /// `--kubelet-client-certificate` and `--kubelet-client-key`
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// `--kubelet-certificate-authority`; without it any certificate is taken.
    pub authority: Option<PathBuf>,
    /// `--kubelet-preferred-address-types`
    pub address_types: Vec<String>,
}

/// What is to be reached.
#[derive(Clone, Debug)]
pub struct Target {
    pub what: Connect,
    /// `pods`, `services` or `nodes`.
    pub resource: GroupResource,
    /// Empty for nodes.
    pub namespace: String,
    /// Name in the path; of a proxied resource with scheme and port: `https:web:443`.
    pub name: String,
    /// What follows `proxy` in the path, with its leading slash.
    pub path: String,
    /// The raw query.
    pub query: String,
}

/// Where a request goes on to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub uri: Uri,
    /// With the client certificate for kubelets.
    pub kubelet: bool,
}

/// Carries requests on.
pub struct Connector {
    address_types: Vec<String>,
    transport: Transport,
}

impl Connector {
    /// # Errors
    /// Names the certificate or key that cannot be used.
    pub fn new(config: &ConnectConfig) -> anyhow::Result<Self> {
        let mut address_types = config.address_types.clone();
        if address_types.is_empty() {
            let usual = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
            address_types = usual.map(str::to_owned).to_vec();
        }
        Ok(Self { address_types, transport: Transport::new(config)? })
    }

    /// Answers with what the target answers.
    ///
    /// # Errors
    /// The target does not exist or cannot be reached, or refuses a log.
    pub async fn serve(
        &self,
        reader: &dyn Reader,
        target: &Target,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let location = target::locate(reader, target, &self.address_types)?;
        let upgrade = upgrade_of(request.headers());
        let proxied = target.what == Connect::Proxy;
        let prefix = proxied.then(|| prefix_of(request.uri().path(), &target.path));
        let (mut parts, body) = request.into_parts();
        let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = location.uri.clone();
        *onward.headers_mut() = onward_headers(&parts.headers, upgrade.is_some());
        let response = self
            .transport
            .send(&location, onward)
            .await
            .map_err(|error| unreachable(proxied, &location, &error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(switch(response, client));
        }
        if target.what == Connect::Log && response.status().as_u16() >= 400 {
            return Err(refused(target, response).await);
        }
        let mut response = response.map(|body| body.map_err(anyhow::Error::from).boxed_unsync());
        for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
            response.headers_mut().remove(hop);
        }
        if let Some(prefix) = prefix {
            rewrite_location(response.headers_mut(), &location, &prefix);
        }
        Ok(response)
    }
}

/// The protocol of an upgrade, if one is asked for.
fn upgrade_of(headers: &HeaderMap) -> Option<String> {
    let connection = headers.get_all(header::CONNECTION).iter();
    let wanted = connection
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")));
    let protocol = headers.get(header::UPGRADE)?.to_str().ok()?;
    wanted.then(|| protocol.to_owned())
}

/// Headers that go on: not those of this connection, and not the caller's credentials.
fn onward_headers(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut onward = headers.clone();
    for name in [
        header::HOST,
        header::AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::PROXY_AUTHORIZATION,
        header::TRANSFER_ENCODING,
    ] {
        onward.remove(name);
    }
    if !upgrade {
        onward.remove(header::CONNECTION);
        onward.remove(header::UPGRADE);
    }
    // A token may come as a WebSocket subprotocol (base64url.bearer.authorization.k8s.io.*).
    let protocols: Vec<String> = onward
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    if onward.remove(header::SEC_WEBSOCKET_PROTOCOL).is_some()
        && let Ok(value) = protocols.join(", ").parse()
    {
        onward.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    onward
}

/// Joins the two upgraded connections until one of them ends.
fn switch(
    mut response: Response<Incoming>,
    client: Option<hyper::upgrade::OnUpgrade>,
) -> Response<Body> {
    let server = hyper::upgrade::on(&mut response);
    let (parts, _) = response.into_parts();
    tokio::spawn(async move {
        let Some(client) = client else { return };
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "upgrade"),
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
            tracing::debug!(%error, "tunnel ended");
        }
    });
    Response::from_parts(parts, component::serving::body(bytes::Bytes::new()))
}

fn unreachable(proxied: bool, location: &Location, error: &anyhow::Error) -> ApiError {
    if proxied {
        return ApiError::ServiceUnavailable(format!("error trying to reach service: {error:#}"));
    }
    // Upstream's words: kubectl shows them when a node is down.
    let authority = location.uri.authority().map_or("", |a| a.as_str());
    ApiError::Internal(format!("Get \"https://{authority}\": {error:#}"))
}

/// A kubelet's refusal as the API words it.
async fn refused(target: &Target, response: Response<Incoming>) -> ApiError {
    let code = response.status().as_u16();
    let body = http_body_util::Limited::new(response.into_body(), ERROR_TEXT).collect().await;
    let text = match body {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match code {
        400 => ApiError::BadRequest(text),
        404 => ApiError::NotFound { resource: target.resource.clone(), name: target.name.clone() },
        _ => ApiError::Internal(text),
    }
}

/// The part of the request's path before what is proxied.
fn prefix_of(request: &str, proxied: &str) -> String {
    request.strip_suffix(proxied).unwrap_or(request).trim_end_matches('/').to_owned()
}

/// A redirect inside the proxied host stays inside the proxy.
fn rewrite_location(headers: &mut HeaderMap, location: &Location, prefix: &str) {
    let Some(to) = headers.get(header::LOCATION).and_then(|v| v.to_str().ok()) else { return };
    let Ok(uri) = to.parse::<Uri>() else { return };
    if uri.authority().is_some_and(|a| Some(a) != location.uri.authority()) {
        return;
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    if let Ok(value) = format!("{prefix}{path}").parse() {
        headers.insert(header::LOCATION, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_do_not_go_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eA",
            ),
        ] {
            headers.insert(name, value.parse().expect("a header"));
        }
        assert_eq!(upgrade_of(&headers).as_deref(), Some("websocket"));
        let onward = onward_headers(&headers, true);
        assert!(onward.get("authorization").is_none());
        assert_eq!(onward["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert!(onward_headers(&headers, false).get("upgrade").is_none());
    }

    #[test]
    fn redirects_stay_inside_the_proxy() {
        let location =
            Location { uri: "http://10.0.0.1:80/a".parse().expect("a URI"), kubelet: false };
        let prefix = prefix_of("/api/v1/namespaces/n/pods/p:80/proxy/a", "/a");
        for (to, wanted) in [
            ("/b?c=d", "/api/v1/namespaces/n/pods/p:80/proxy/b?c=d"),
            ("http://10.0.0.1:80/b", "/api/v1/namespaces/n/pods/p:80/proxy/b"),
            ("http://example.com/b", "http://example.com/b"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, to.parse().expect("a header"));
            rewrite_location(&mut headers, &location, &prefix);
            assert_eq!(headers[header::LOCATION], wanted);
        }
    }
}
