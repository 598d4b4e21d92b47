//! /healthz and /metrics, and the health-check node ports of services with local traffic.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use component::serving::{self, text};
use component::shutdown::Scope;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::families::Families;
use crate::table::{PortName, ServicePort, family};

/// What the proxy tells of itself. Clones share it.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    shutdown: CancellationToken,
    /// Servers of health-check node ports.
    running: TaskTracker,
    state: Mutex<State>,
    ports: tokio::sync::Mutex<Ports>,
}

/// What the families have told, IPv4's first; nothing of one that is not kept.
#[derive(Clone, Copy, Debug)]
struct State {
    families: [Option<Family>; 2],
    /// How long a family's rules may be behind.
    patience: Duration,
    /// The node is being deleted: load balancers should look elsewhere.
    leaving: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Family {
    /// When its rules were last as they should be.
    synced: Option<Timestamp>,
    /// Since when they may not be.
    behind: Option<Timestamp>,
    syncs: u64,
    failures: u64,
    seconds: f64,
    /// Stale flows that the kernel was told to forget.
    forgotten: u64,
}

impl State {
    /// Whether rules are what they should be, or have not been for long; and since when.
    fn judge(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let late = |family: &&Family| {
            let long = |since| now.duration_since(since).unsigned_abs() >= self.patience;
            family.synced.is_none() || family.behind.is_some_and(long)
        };
        match self.families.iter().flatten().find(late) {
            Some(family) => (false, family.synced),
            None => (true, Some(now)),
        }
    }

    fn metrics(&self) -> String {
        type Value = fn(&Family) -> String;
        let duration: [(&str, Value); 2] =
            [("_sum", |f| f.seconds.to_string()), ("_count", |f| f.syncs.to_string())];
        let failures: [(&str, Value); 1] = [("", |f| f.failures.to_string())];
        let forgotten: [(&str, Value); 1] = [("", |f| f.forgotten.to_string())];
        let mut out = String::new();
        for (name, kind, of) in [
            ("sync_proxy_rules_duration_seconds", "summary", &duration[..]),
            ("sync_failures_total", "counter", &failures),
            ("conntrack_reconciler_deleted_entries_total", "counter", &forgotten),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# TYPE kubeproxy_{name} {kind}");
            for (family, label) in self.families.iter().zip([false, true].map(family)) {
                let Some(family) = family else { continue };
                for (suffix, value) in of {
                    let (name, value) = (format!("kubeproxy_{name}{suffix}"), value(family));
                    let _ = writeln!(out, "{name}{{ip_family=\"{label}\"}} {value}");
                }
            }
        }
        out
    }
}

/// Health-check node ports: what each family says of them, and who answers there.
#[derive(Default)]
struct Ports {
    wanted: [BTreeMap<u16, (PortName, u64)>; 2],
    servers: BTreeMap<u16, Server>,
}

struct Server {
    /// The service, and its endpoints here.
    of: Arc<Mutex<(PortName, u64)>>,
    stop: CancellationToken,
}

impl Health {
    /// One of the `kept` families whose rules are behind for longer than `patience` is not healthy.
    pub fn new(shutdown: &CancellationToken, patience: Duration, kept: Families) -> Self {
        let of = |ipv6| kept.has(ipv6).then(Family::default);
        let state = State { families: [of(false), of(true)], patience, leaving: false };
        let inner = Inner {
            shutdown: shutdown.clone(),
            running: TaskTracker::new(),
            state: Mutex::new(state),
            ports: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits, after shutdown, until no health-check node port is open.
    pub async fn closed(&self) {
        self.inner.running.close();
        self.inner.running.wait().await;
    }

    fn family(&self, ipv6: bool, change: impl FnOnce(&mut Family)) {
        if let Some(family) = &mut self.inner.state.lock().families[usize::from(ipv6)] {
            change(family);
        }
    }

    /// A family's rules are to be written.
    pub fn begins(&self, ipv6: bool, now: Timestamp) {
        self.family(ipv6, |family| family.behind = family.behind.or(Some(now)));
    }

    pub fn synced(&self, ipv6: bool, now: Timestamp, took: Duration) {
        self.family(ipv6, |family| {
            (family.synced, family.behind) = (Some(now), None);
            family.syncs += 1;
            family.seconds += took.as_secs_f64();
        });
    }

    pub fn failed(&self, ipv6: bool) {
        self.family(ipv6, |family| family.failures += 1);
    }

    pub fn forgot(&self, ipv6: bool, flows: usize) {
        self.family(ipv6, |family| family.forgotten += flows as u64);
    }

    pub fn leaves(&self, leaving: bool) {
        self.inner.state.lock().leaving = leaving;
    }

    /// Serves /healthz and /metrics, each where the config says.
    pub async fn serve(&self, config: &Config, scope: &mut Scope) -> anyhow::Result<()> {
        for (address, path) in [(config.healthz, "/healthz"), (config.metrics, "/metrics")] {
            let Some(address) = address else { continue };
            let listener = serving::bind(address).await?;
            let health = self.clone();
            let handler = move |request: http::Request<hyper::body::Incoming>| {
                let response = match request.uri().path() {
                    "/healthz" => answer(&health.state(), false, Timestamp::now()),
                    "/livez" => answer(&health.state(), true, Timestamp::now()),
                    "/metrics" if path == "/metrics" => text(200, health.state().metrics()),
                    _ => text(404, "404 page not found\n"),
                };
                async move { response }
            };
            let token = scope.token().clone();
            scope.spawn(path, serving::serve(listener, None, handler, token));
        }
        Ok(())
    }

    fn state(&self) -> State {
        *self.inner.state.lock()
    }

    /// Opens and closes health-check node ports as a family's rows say.
    pub async fn check_ports(&self, ipv6: bool, rows: impl Iterator<Item = &ServicePort>) {
        let mut wanted = BTreeMap::new();
        for row in rows {
            if let Some(port) = row.health_check_node_port {
                wanted.entry(port).or_insert_with(|| (row.name.clone(), row.local_ready as u64));
            }
        }
        let mut ports = self.inner.ports.lock().await;
        ports.wanted[usize::from(ipv6)] = wanted;
        let Ports { wanted, servers } = &mut *ports;
        // A service of both address families is here twice: its endpoints count once.
        let mut all: BTreeMap<u16, (PortName, u64)> = BTreeMap::new();
        for (port, (service, local)) in wanted.iter().flatten() {
            let (_, most) = all.entry(*port).or_insert_with(|| (service.clone(), 0));
            *most = (*most).max(*local);
        }
        servers.retain(|port, server| {
            let stays = all.contains_key(port);
            if !stays {
                server.stop.cancel();
            }
            stays
        });
        for (port, of) in all {
            if let Some(server) = servers.get(&port) {
                *server.of.lock() = of;
                continue;
            }
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            match serving::bind(address).await {
                Ok(listener) => {
                    servers.insert(port, self.open(of, listener));
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(service = %of.0, error, "health check port");
                }
            }
        }
    }

    fn open(&self, of: (PortName, u64), listener: tokio::net::TcpListener) -> Server {
        let (stop, of) = (self.inner.shutdown.child_token(), Arc::new(Mutex::new(of)));
        let (told, health) = (Arc::clone(&of), self.clone());
        let handler = move |_| {
            let (healthy, _) = health.state().judge(Timestamp::now());
            let (service, local) = &*told.lock();
            let response = endpoints(&service.namespace, &service.service, *local, healthy);
            async move { response }
        };
        self.inner.running.spawn(serving::serve(listener, None, handler, stop.clone()));
        Server { of, stop }
    }
}

/// What /healthz says, or /livez: to that it does not matter whether the node leaves.
fn answer(state: &State, live: bool, now: Timestamp) -> http::Response<serving::Body> {
    let (healthy, since) = state.judge(now);
    let since = since.map(|t| t.to_string()).unwrap_or_default();
    let mut body = json!({"lastUpdated": since, "currentTime": now.to_string()});
    if !live {
        body["nodeEligible"] = (!state.leaving).into();
    }
    as_json(healthy && (live || !state.leaving), &body)
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
    use crate::table::build;
    use crate::table::tests::{here, service, slice};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn health() -> Health {
        of(Families::BOTH)
    }

    fn of(kept: Families) -> Health {
        Health::new(&CancellationToken::new(), Duration::from_secs(60), kept)
    }

    #[test]
    fn a_family_that_is_not_kept_is_not_waited_for() {
        for (kept, other) in [(Families::IPV4, "IPv6"), (Families::IPV6, "IPv4")] {
            let health = of(kept);
            let judge = |second| health.state().judge(at(second));
            let ipv6 = kept.has(true);
            health.begins(ipv6, at(0));
            assert_eq!(judge(1), (false, None), "no rules are written");
            health.synced(ipv6, at(2), Duration::ZERO);
            assert_eq!(judge(200), (true, Some(at(200))), "{other} counts");
            assert!(!health.state().metrics().contains(other));
        }
    }

    #[test]
    fn each_family_is_healthy_by_itself() {
        let health = health();
        let judge = |second| health.state().judge(at(second));
        let begin = |second| [false, true].map(|ipv6| health.begins(ipv6, at(second)));
        begin(0);
        assert_eq!(judge(1), (false, None), "no rules are written");
        health.synced(false, at(2), Duration::ZERO);
        assert_eq!(judge(2), (false, None), "of one family none are written");
        health.failed(true);
        begin(3);
        health.synced(true, at(3), Duration::ZERO);
        assert_eq!(judge(4), (true, Some(at(4))));
        // One fails from now on, the other is as it should be.
        for second in [10, 30, 69] {
            begin(second);
            health.failed(true);
            health.synced(false, at(second), Duration::ZERO);
            assert_eq!(judge(second), (true, Some(at(second))), "not for long");
        }
        assert_eq!(judge(70), (false, Some(at(3))), "for long");
        health.synced(true, at(71), Duration::ZERO);
        assert_eq!(judge(200), (true, Some(at(200))), "nothing is to be written");
    }

    #[test]
    fn metrics_tell_of_each_family() {
        let health = health();
        health.synced(false, at(1), Duration::from_millis(250));
        health.synced(false, at(2), Duration::from_millis(250));
        health.failed(true);
        health.forgot(true, 3);
        let metrics = health.state().metrics();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 0.5",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 0",
            "kubeproxy_sync_failures_total{ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_failures_total{ip_family=\"IPv6\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 3",
        ] {
            assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }
    }

    #[test]
    fn a_node_that_leaves_is_alive() {
        let health = health();
        let codes = || {
            let state = health.state();
            [false, true].map(|live| answer(&state, live, at(9)).status().as_u16())
        };
        assert_eq!(codes(), [503, 503]);
        for ipv6 in [false, true] {
            health.synced(ipv6, at(1), Duration::ZERO);
        }
        assert_eq!(codes(), [200, 200]);
        health.leaves(true);
        assert_eq!(codes(), [503, 200]);
    }

    #[tokio::test]
    async fn endpoints_of_both_families_count_once() {
        let health = health();
        let wanted = |ports: &Ports| -> Vec<u64> {
            ports.servers.values().map(|server| server.of.lock().1).collect()
        };
        // A port that nobody has.
        let listener = serving::bind((Ipv4Addr::UNSPECIFIED, 0).into()).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let row = |local| {
            let spec = json!({"clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": port, "ports": [{"port": 80}]});
            let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
            let (service, slice) = (service(spec), slice(&all[..local]));
            let table = build(&here(), false, [&service], [&slice]);
            table.into_values().next().expect("a row")
        };
        for (ipv6, row, counts) in [
            (false, Some(row(2)), vec![2]),
            (true, Some(row(3)), vec![3]),
            (true, Some(row(1)), vec![2]),
            (false, None, vec![1]),
            (true, None, vec![]),
        ] {
            health.check_ports(ipv6, row.iter()).await;
            assert_eq!(wanted(&*health.inner.ports.lock().await), counts);
        }
        health.closed().await;
    }

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
