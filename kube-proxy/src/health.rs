//! /healthz and /metrics, and the health-check node ports of services with local traffic.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use component::serving::{self, text};
use component::shutdown::Scope;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::table::{PortName, ServicePort};

/// What the proxy tells of itself. Clones share it.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    shutdown: CancellationToken,
    /// Servers of health-check node ports.
    running: TaskTracker,
    /// Whether rules were written since the last change, and when.
    state: Mutex<State>,
    syncs: AtomicU64,
    failures: AtomicU64,
    seconds: Mutex<f64>,
    servers: Mutex<BTreeMap<u16, Server>>,
}

#[derive(Clone, Copy, Default)]
struct State {
    last: Option<Timestamp>,
    failing: bool,
    /// The node is being deleted: load balancers should look elsewhere.
    leaving: bool,
}

struct Server {
    service: PortName,
    local: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Health {
    pub fn new(shutdown: &CancellationToken) -> Self {
        let inner = Inner {
            shutdown: shutdown.clone(),
            running: TaskTracker::new(),
            state: Mutex::default(),
            syncs: AtomicU64::default(),
            failures: AtomicU64::default(),
            seconds: Mutex::default(),
            servers: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits, after shutdown, until no health-check node port is open.
    pub async fn closed(&self) {
        self.inner.running.close();
        self.inner.running.wait().await;
    }

    pub fn synced(&self, seconds: f64, leaving: bool) {
        *self.inner.state.lock() = State { last: Some(Timestamp::now()), failing: false, leaving };
        self.inner.syncs.fetch_add(1, Ordering::Relaxed);
        *self.inner.seconds.lock() += seconds;
    }

    pub fn failed(&self) {
        self.inner.state.lock().failing = true;
        self.inner.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Serves /healthz and /metrics, each where the config says.
    pub async fn serve(&self, config: &Config, scope: &mut Scope) -> anyhow::Result<()> {
        for (address, path) in [(config.healthz, "/healthz"), (config.metrics, "/metrics")] {
            let Some(address) = address else { continue };
            let listener = serving::bind(address).await?;
            let health = self.clone();
            let handler = move |request: http::Request<hyper::body::Incoming>| {
                let response = match request.uri().path() {
                    "/healthz" => health.healthz(),
                    "/livez" => health.livez(),
                    "/metrics" if path == "/metrics" => text(200, health.metrics()),
                    _ => text(404, "404 page not found\n"),
                };
                async move { response }
            };
            let token = scope.token().clone();
            scope.spawn(path, serving::serve(listener, None, handler, token));
        }
        Ok(())
    }

    fn healthz(&self) -> http::Response<serving::Body> {
        let state = *self.inner.state.lock();
        self.answer(!state.failing && state.last.is_some() && !state.leaving, state)
    }

    fn livez(&self) -> http::Response<serving::Body> {
        let state = *self.inner.state.lock();
        self.answer(!state.failing && state.last.is_some(), state)
    }

    fn answer(&self, good: bool, state: State) -> http::Response<serving::Body> {
        let last = state.last.map(|t| t.to_string()).unwrap_or_default();
        let body = json!({
            "lastUpdated": last,
            "currentTime": Timestamp::now().to_string(),
            "nodeEligible": !state.leaving,
        });
        as_json(good, &body)
    }

    fn metrics(&self) -> String {
        let syncs = self.inner.syncs.load(Ordering::Relaxed);
        let failures = self.inner.failures.load(Ordering::Relaxed);
        let seconds = *self.inner.seconds.lock();
        format!(
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds summary\n\
             kubeproxy_sync_proxy_rules_duration_seconds_sum {seconds}\n\
             kubeproxy_sync_proxy_rules_duration_seconds_count {syncs}\n\
             # TYPE kubeproxy_sync_failures_total counter\n\
             kubeproxy_sync_failures_total {failures}\n"
        )
    }

    /// Opens and closes health-check node ports as the table says.
    pub async fn check_ports(&self, rows: impl Iterator<Item = &ServicePort>) {
        let mut wanted: BTreeMap<u16, (&PortName, u64)> = BTreeMap::new();
        for row in rows {
            if let Some(port) = row.health_check_node_port {
                // A service of both address families is here twice: its endpoints count once.
                let (_, local) = wanted.entry(port).or_insert((&row.name, 0));
                *local = (*local).max(row.local_ready as u64);
            }
        }
        let missing: Vec<_> = {
            let mut servers = self.inner.servers.lock();
            servers.retain(|port, server| {
                let stays = wanted.contains_key(port);
                if !stays {
                    server.stop.cancel();
                }
                stays
            });
            for (port, (_, local)) in &wanted {
                if let Some(server) = servers.get(port) {
                    server.local.store(*local, Ordering::Relaxed);
                }
            }
            wanted.iter().filter(|(port, _)| !servers.contains_key(port)).collect()
        };
        for (port, (service, local)) in missing {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
            match serving::bind(address).await {
                Ok(listener) => self.open(*port, service, *local, listener),
                Err(error) => {
                    tracing::warn!(%service, error = format!("{error:#}"), "health check port")
                }
            }
        }
    }

    fn open(&self, port: u16, service: &PortName, local: u64, listener: tokio::net::TcpListener) {
        let (stop, count) = (self.inner.shutdown.child_token(), Arc::new(AtomicU64::new(local)));
        let (counted, health) = (Arc::clone(&count), self.clone());
        let (namespace, name) = (service.namespace.clone(), service.service.clone());
        let handler = move |_| {
            let local = counted.load(Ordering::Relaxed);
            let healthy = !health.inner.state.lock().failing;
            let response = endpoints(&namespace, &name, local, healthy);
            async move { response }
        };
        self.inner.running.spawn(serving::serve(listener, None, handler, stop.clone()));
        let server = Server { service: service.clone(), local: count, stop };
        let mut servers = self.inner.servers.lock();
        if let Some(other) = servers.insert(port, server) {
            tracing::warn!(port, service = %other.service, "health check port taken over");
            other.stop.cancel();
        }
    }
}

fn as_json(good: bool, body: &serde_json::Value) -> http::Response<serving::Body> {
    let mut response = text(if good { 200 } else { 503 }, body.to_string());
    let headers = response.headers_mut();
    let json = http::HeaderValue::from_static("application/json");
    headers.insert(http::header::CONTENT_TYPE, json);
    let nosniff = http::HeaderValue::from_static("nosniff");
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// What a health-check node port tells a load balancer.
fn endpoints(
    namespace: &str,
    name: &str,
    local: u64,
    healthy: bool,
) -> http::Response<serving::Body> {
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    });
    let mut response = as_json(local > 0 && healthy, &body);
    // How much of the traffic this node should have (upstream since 1.28).
    let weight = http::HeaderValue::from(local);
    response.headers_mut().insert("x-load-balancing-endpoint-weight", weight);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_balancer_is_told_how_many_endpoints_are_here() {
        for (local, healthy, code) in [(2, true, 200), (0, true, 503), (1, false, 503)] {
            let response = endpoints("ns", "web", local, healthy);
            assert_eq!(response.status(), code, "{local} {healthy}");
            let header = |name: &str| response.headers().get(name).and_then(|h| h.to_str().ok());
            assert_eq!(header("content-type"), Some("application/json"));
            assert_eq!(header("x-content-type-options"), Some("nosniff"));
            let weight = local.to_string();
            assert_eq!(header("x-load-balancing-endpoint-weight"), Some(weight.as_str()));
        }
    }
}
