//! The kubelet's server: health, pods, logs, numbers, and the streams of exec, attach and
//! port-forward.

pub mod auth;
mod channels;
mod idle;
mod logs;
mod spdy;
mod streams;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use component::files;
use component::serving::{self, Body, body, text};
use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use serde_json::json;
use tokio::net::TcpListener;

use self::auth::{Auth, Refused};
use self::streams::Wanted;
use crate::kubelet::Kubelet;
use crate::objects::{find_container, name, namespace, uid};
use crate::runtime::State;
use crate::stats;

/// The files of the server's certificate and of its key; one that signs itself is made where none
/// is given.
///
/// # Errors
/// It cannot be written.
pub fn certificate(k: &Kubelet, cert_dir: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    match k.config.tls_cert_file.as_str() {
        "" => self_signed(k, cert_dir),
        cert => Ok((PathBuf::from(cert), PathBuf::from(&k.config.tls_private_key_file))),
    }
}

/// The server's TLS settings with a certificate that changes.
///
/// # Errors
/// The CA of clients cannot be read.
pub fn tls_showing(
    k: &Kubelet,
    shown: Arc<dyn ResolvesServerCert>,
) -> anyhow::Result<Arc<ServerConfig>> {
    serving::tls_showing(shown, client_ca(k))
}

fn client_ca(k: &Kubelet) -> Option<&Path> {
    let file = &k.config.authentication.x509.client_ca_file;
    Some(Path::new(file)).filter(|_| !file.is_empty())
}

fn self_signed(k: &Kubelet, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (cert, key) = (directory.join("kubelet.crt"), directory.join("kubelet.key"));
    if cert.exists() && key.exists() {
        return Ok((cert, key));
    }
    let whence = || format!("cannot make a serving certificate in {}", directory.display());
    std::fs::create_dir_all(directory).with_context(whence)?;
    let mut names = vec![k.node_name.clone()];
    names.extend(k.host_ips());
    let pair = rcgen::KeyPair::generate().with_context(whence)?;
    let mut params = rcgen::CertificateParams::new(names).with_context(whence)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, k.node_name.clone());
    let made = params.self_signed(&pair).with_context(whence)?;
    std::fs::write(&cert, made.pem()).with_context(whence)?;
    files::write(&key, pair.serialize_pem().as_bytes(), 0o600).with_context(whence)?;
    Ok((cert, key))
}

/// Serves until shutdown.
pub async fn serve(k: Arc<Kubelet>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let shutdown = k.shutdown.clone();
    let auth = Arc::new(Auth::new(&k.config));
    let handler = move |request| {
        let (k, auth) = (Arc::clone(&k), Arc::clone(&auth));
        async move { guarded(k, auth, request).await }
    };
    serving::serve(listener, Some(tls), handler, shutdown).await;
}

/// Serves `/healthz` alone, without TLS.
pub async fn serve_health(k: Arc<Kubelet>, listener: TcpListener) {
    let shutdown = k.shutdown.clone();
    let handler = move |request: Request<Incoming>| {
        let answer = match request.uri().path().starts_with("/healthz") {
            true => healthz(&k),
            false => text(404, "404 page not found\n"),
        };
        async move { answer }
    };
    serving::serve(listener, None, handler, shutdown).await;
}

/// Serves what may be read by anybody, without TLS (`readOnlyPort`).
pub async fn serve_read_only(k: Arc<Kubelet>, listener: TcpListener) {
    let shutdown = k.shutdown.clone();
    let handler = move |request: Request<Incoming>| {
        let k = Arc::clone(&k);
        async move {
            let path = request.uri().path().to_owned();
            match debugs(&path) {
                true => text(405, "Debug endpoints are disabled.\n"),
                false => route(k, &path, request).await,
            }
        }
    };
    serving::serve(listener, None, handler, shutdown).await;
}

/// Whether a path leads into containers or shows more than state.
fn debugs(path: &str) -> bool {
    let first = path.split('/').find(|part| !part.is_empty()).unwrap_or_default();
    [
        "run",
        "exec",
        "attach",
        "portForward",
        "containerLogs",
        "runningpods",
        "logs",
        "debug",
        "configz",
    ]
    .contains(&first)
}

fn healthz(k: &Kubelet) -> Response<Body> {
    let alive = k.relisted.lock().map_or(k.started, |at| at).elapsed().as_secs() < 180;
    match alive {
        true => text(200, "ok"),
        false => text(
            500,
            "[-]syncloop failed: the runtime has not answered for 3 minutes\nhealthz check failed\n",
        ),
    }
}

async fn guarded(k: Arc<Kubelet>, auth: Arc<Auth>, request: Request<Incoming>) -> Response<Body> {
    let peer = auth::peer(&request);
    let path = request.uri().path().to_owned();
    let checked = auth.check(&k, peer.as_deref(), request.headers(), request.method(), &path).await;
    match checked {
        Ok(()) if !k.config.enable_debugging_handlers && debugs(&path) => {
            text(405, "Debug endpoints are disabled.\n")
        }
        Ok(()) => route(k, &path, request).await,
        Err(Refused::Unauthorized) => text(401, "Unauthorized"),
        Err(Refused::Forbidden(message)) => text(403, message),
        Err(Refused::Failed(message)) => {
            tracing::warn!(message, "request not judged");
            text(500, "Authorization error")
        }
    }
}

/// The pairs of a query, decoded.
fn query(request: &Request<Incoming>) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let text = request.uri().query().unwrap_or_default();
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn json_answer(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(body(bytes));
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => text(500, error.to_string()),
    }
}

async fn route(k: Arc<Kubelet>, path: &str, request: Request<Incoming>) -> Response<Body> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let reads = request.method() == Method::GET;
    match parts[..] {
        ["healthz", ..] => healthz(&k),
        ["pods"] if reads => {
            let items: Vec<Arc<Pod>> = k.pods.read().values().cloned().collect();
            json_answer(
                &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
            )
        }
        ["runningpods"] if reads => running_pods(&k).await,
        ["configz"] if reads => json_answer(&json!({ "kubeletconfig": k.config })),
        ["stats", "summary"] => match stats::summary(&k).await {
            Ok(summary) => json_answer(&summary),
            Err(error) => text(500, error.to_string()),
        },
        ["metrics"] => text(200, stats::metrics(&k)),
        ["metrics", "resource"] => match stats::resource_metrics(&k).await {
            Ok(metrics) => text(200, metrics),
            Err(error) => text(500, error.to_string()),
        },
        ["metrics", "cadvisor"] => match stats::cadvisor_metrics(&k).await {
            Ok(metrics) => text(200, metrics),
            Err(error) => text(500, error.to_string()),
        },
        ["metrics", "probes" | "slis"] => text(200, ""),
        ["containerLogs", ns, pod, container] => {
            container_logs(k, ns, pod, container, &request).await
        }
        ["exec", ns, pod, container] => stream(k, ns, pod, None, container, request, true).await,
        ["exec", ns, pod, id, container] => {
            stream(k, ns, pod, Some(id), container, request, true).await
        }
        ["attach", ns, pod, container] => stream(k, ns, pod, None, container, request, false).await,
        ["attach", ns, pod, id, container] => {
            stream(k, ns, pod, Some(id), container, request, false).await
        }
        ["portForward", ns, pod] => port_forward(k, ns, pod, None, request).await,
        ["portForward", ns, pod, id] => port_forward(k, ns, pod, Some(id), request).await,
        _ => text(404, "404 page not found\n"),
    }
}

/// How long a stream may be quiet.
fn idle(k: &Kubelet) -> std::time::Duration {
    k.config.streaming_connection_idle_timeout.0
}

fn find(k: &Kubelet, ns: &str, pod: &str, id: Option<&str>) -> Option<Arc<Pod>> {
    let pods = k.pods.read();
    let found = pods.values().find(|p| {
        namespace(p) == ns && name(p) == pod && id.is_none_or(|id| id.is_empty() || uid(p) == id)
    });
    found.cloned()
}

async fn running_pods(k: &Kubelet) -> Response<Body> {
    let ids: Vec<Arc<Pod>> = k.pods.read().values().cloned().collect();
    let mut items = Vec::new();
    for pod in ids {
        let Ok(view) = k.views.pod(uid(&pod)).await else { continue };
        let containers: Vec<_> = view
            .containers
            .iter()
            .filter(|c| c.state == State::Running)
            .map(|c| json!({"name": c.name, "image": c.image, "resources": {}}))
            .collect();
        if !containers.is_empty() {
            items.push(json!({
                "metadata": {"name": view.name, "namespace": view.namespace, "uid": view.uid},
                "spec": {"containers": containers}, "status": {},
            }));
        }
    }
    json_answer(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn container_logs(
    k: Arc<Kubelet>,
    ns: &str,
    pod: &str,
    container: &str,
    request: &Request<Incoming>,
) -> Response<Body> {
    let wanted = match logs::Wanted::of(&query(request), jiff::Timestamp::now()) {
        Ok(wanted) => wanted,
        Err(message) => return text(400, message),
    };
    let Some(found) = find(&k, ns, pod, None) else {
        return text(404, format!("pod {pod:?} does not exist\n"));
    };
    if find_container(&found, container).is_none() {
        return text(404, format!("container {container:?} not found in pod {pod:?}\n"));
    }
    logs::serve(k, &found, container, wanted).await
}

async fn stream(
    k: Arc<Kubelet>,
    ns: &str,
    pod: &str,
    id: Option<&str>,
    container: &str,
    request: Request<Incoming>,
    exec: bool,
) -> Response<Body> {
    let query = query(&request);
    let wanted = match Wanted::of(&query) {
        Ok(wanted) => wanted,
        Err(error) => return text(400, error.to_string()),
    };
    let Some(found) = find(&k, ns, pod, id) else {
        return text(404, "pod does not exist\n");
    };
    let view = match k.views.pod(uid(&found)).await {
        Ok(view) => view,
        Err(error) => return text(500, error.to_string()),
    };
    let Some(target) = view.container(container).filter(|c| c.state == State::Running) else {
        return text(500, format!("container not found ({container:?})\n"));
    };
    let url = match exec {
        true => {
            let command = query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone());
            streams::exec_url(&k, &target.id, command.collect(), wanted).await
        }
        false => streams::attach_url(&k, &target.id, wanted).await,
    };
    match url {
        Ok(url) => streams::proxy(request, &url, Some(wanted), idle(&k)).await,
        Err(error) => text(500, format!("{error:#}")),
    }
}

async fn port_forward(
    k: Arc<Kubelet>,
    ns: &str,
    pod: &str,
    id: Option<&str>,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(found) = find(&k, ns, pod, id) else {
        return text(404, "pod does not exist\n");
    };
    let view = match k.views.pod(uid(&found)).await {
        Ok(view) => view,
        Err(error) => return text(500, error.to_string()),
    };
    let Some(sandbox) = view.sandboxes.first().filter(|s| s.ready) else {
        return text(500, format!("pod {pod:?} is not running\n"));
    };
    let ports = query(&request);
    let ports = ports.iter().filter(|(k, _)| k == "port" || k == "ports");
    let port = ports.flat_map(|(_, v)| v.split(',')).filter_map(|p| p.parse().ok()).collect();
    let asked = k8s_cri::v1::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port };
    match k.cri.port_forward(asked).await {
        Ok(answer) => streams::proxy(request, &answer.url, None, idle(&k)).await,
        Err(error) => text(500, error.to_string()),
    }
}
