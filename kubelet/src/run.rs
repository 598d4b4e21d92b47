//! Starts a kubelet and runs it until shutdown.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};
use client::Cache;
use client::events::Recorder;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::watcher;
use parking_lot::RwLock;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::certificates::client::{Connected, Keeping, connected};
use crate::certificates::serving;
use crate::cgroups::{Cgroups, Driver};
use crate::config::KubeletConfiguration;
use crate::events::Events;
use crate::images::Images;
use crate::kubelet::{Kubelet, RuntimeHealth};
use crate::manager::Manager;
use crate::node::machine::Machine;
use crate::node::register::{Beginning, taints};
use crate::quantity::{millis, value};
use crate::rate::Bucket;
use crate::references::References;
use crate::runtime::Cri;
use crate::runtime::views::Views;
use crate::static_pods::{Known, StaticPods};
use crate::{eviction, gc, image_gc, node, options, pleg, pressure, server};

/// The first pause before a container that failed is started again, and the longest.
const CRASH_BACKOFF: Duration = Duration::from_secs(10);
const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Runs a kubelet until `shutdown`. Pods go on running.
///
/// # Errors
/// The configuration is wrong, or something that the kubelet cannot do without is missing: a
/// kubeconfig that cannot be read, a cgroup controller, a port that is taken.
pub async fn run(options: options::Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = options.configuration()?;
    check_machine(&config)?;
    let name = node_name(&options)?;
    let connected = tokio::select! {
        connected = connected(&options, config.rotate_certificates, &name) => connected?,
        () = shutdown.cancelled() => return Ok(()),
    };
    // The kubelet may end by itself too.
    let shutdown = shutdown.child_token();
    let _whatever_happens = shutdown.clone().drop_guard();
    let mut tasks = JoinSet::new();
    let (client, lost) = keep_client(connected, &shutdown, &mut tasks);
    let k = Arc::new(build(&options, config, name, client, shutdown.clone())?);
    // Eviction begins before the cgroup is full: its limit leaves that room too.
    let allocatable = node::status::allocatable(&k.config, &k.machine, &[]);
    let (cpu, memory) = match k.config.enforces_pods() {
        true => (millis(Some(&allocatable), "cpu"), value(Some(&allocatable), "memory")),
        false => (Some(k.machine.cpus * 1000), None),
    };
    k.cgroups.set_up(cpu.unwrap_or(0), memory).context("failed to set up cgroups")?;
    servers(&k, &options, &mut tasks).await?;
    tracing::info!(node = k.node_name, "kubelet starts");
    let changed = Arc::new(Notify::new());
    let seen = pleg::Seen::default();
    tasks.spawn(pleg::run(Arc::clone(&k), Arc::clone(&seen), Arc::clone(&changed)));
    tasks.spawn(node::watch_runtime(Arc::clone(&k)));
    tasks.spawn(node::register::keep(Arc::clone(&k), beginning(&options, &k.config)?));
    tasks.spawn(node::lease::keep(Arc::clone(&k)));
    tasks.spawn(gc::run(Arc::clone(&k)));
    tasks.spawn(eviction::run(Arc::clone(&k)));
    tasks.spawn(pressure::run(Arc::clone(&k)));
    tasks.spawn(image_gc::run(Arc::clone(&k)));
    tasks.spawn(follow_node(Arc::clone(&k)));
    let stages = k.config.shutdown_stages();
    if !stages.is_empty() {
        tasks.spawn(crate::shutdown::run(Arc::clone(&k), stages));
    }

    let statics = StaticPods::default();
    if !k.config.static_pod_path.is_empty() {
        let path = PathBuf::from(&k.config.static_pod_path);
        let mut known = Known::default();
        statics.read(&path, &k.node_name, &mut known);
        let follow = statics.clone().follow(Arc::clone(&k), path, known, Arc::clone(&changed));
        tasks.spawn(follow);
    }
    let api = k.client.as_ref().map(|client| {
        let ours = watcher::Config::default().fields(&format!("spec.nodeName={}", k.node_name));
        Cache::<Pod>::start(client.clone(), ours, shutdown.clone())
    });
    let manager = Manager::new(Arc::clone(&k), api, statics, seen, changed);
    let managing = tokio::spawn(manager.run());
    let failed = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Ok(why) = lost => Err(why),
    };
    shutdown.cancel();
    managing.await.context("the pods' manager failed")?;
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(6), drained).await.is_err() {
        tracing::debug!("tasks cut off at shutdown");
    }
    failed
}

/// Keeps the client's certificate current. The receiver is told why the kubelet cannot go on.
fn keep_client(
    connected: Option<Connected>,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> (Option<kube::Client>, oneshot::Receiver<anyhow::Error>) {
    let (sender, receiver) = oneshot::channel();
    let Some(Connected { client, keeping }) = connected else { return (None, receiver) };
    if let Some(keeping) = keeping {
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            if let Some(why) = shutdown.run_until_cancelled(Keeping::run(keeping)).await {
                // At shutdown nobody asks.
                let _ = sender.send(why);
            }
        });
    }
    (Some(client), receiver)
}

/// The TLS settings of the server; what they show is kept current.
fn server_tls(
    k: &Arc<Kubelet>,
    cert_dir: &Path,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let shutdown = k.shutdown.clone();
    if !k.config.server_tls_bootstrap {
        let (certificate, key) = server::certificate(k, cert_dir)?;
        let (shown, given) = serving::given(certificate, key)?;
        let following = given.follow();
        tasks.spawn(async move { shutdown.run_until_cancelled(following).await.unwrap_or(()) });
        return server::tls_showing(k, Arc::new(shown));
    }
    let (shown, serving) = serving::serving(&k.config, cert_dir)?;
    let tls = server::tls_showing(k, Arc::new(shown))?;
    if let Some(client) = k.client.clone() {
        let keeping = serving.keep(client, Arc::clone(k));
        tasks.spawn(async move { shutdown.run_until_cancelled(keeping).await.unwrap_or(()) });
    }
    Ok(tls)
}

/// Starts the servers that the configuration asks for. Their ports are taken before any of the
/// kubelet's work begins.
async fn servers(
    k: &Arc<Kubelet>,
    options: &options::Options,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let config = &k.config;
    let ip: IpAddr = config.address.parse().context("address")?;
    if config.enable_server {
        let tls = server_tls(k, &options.cert_dir, tasks)?;
        let listener = component::serving::bind(SocketAddr::new(ip, config.port)).await?;
        tasks.spawn(server::serve(Arc::clone(k), listener, tls));
    }
    if config.read_only_port != 0 {
        let address = SocketAddr::new(ip, config.read_only_port);
        let listener = component::serving::bind(address).await?;
        tasks.spawn(server::serve_read_only(Arc::clone(k), listener));
    }
    if config.healthz_port != 0 {
        let ip: IpAddr = config.healthz_bind_address.parse().context("healthzBindAddress")?;
        let address = SocketAddr::new(ip, config.healthz_port);
        let listener = component::serving::bind(address).await?;
        tasks.spawn(server::serve_health(Arc::clone(k), listener));
    }
    Ok(())
}

fn check_machine(config: &KubeletConfiguration) -> anyhow::Result<()> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if config.fail_swap_on && swaps.lines().count() > 1 {
        bail!(
            "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"
        );
    }
    if config.container_runtime_endpoint.is_empty() {
        bail!(
            "the container runtime endpoint address was not specified or empty, use --container-runtime-endpoint to set"
        );
    }
    Ok(())
}

fn beginning(
    options: &options::Options,
    config: &KubeletConfiguration,
) -> anyhow::Result<Beginning> {
    let labels = component::cli::key_values(&options.node_labels)
        .map_err(anyhow::Error::msg)
        .context("--node-labels")?;
    let mut all = taints(&options.register_with_taints)
        .map_err(anyhow::Error::msg)
        .context("--register-with-taints")?;
    all.extend(config.register_with_taints.iter().map(|t| k8s_openapi::api::core::v1::Taint {
        key: t.key.clone(),
        value: Some(t.value.clone()).filter(|v| !v.is_empty()),
        effect: t.effect.clone(),
        time_added: None,
    }));
    Ok(Beginning { labels: labels.into_iter().collect(), taints: all })
}

fn node_name(options: &options::Options) -> anyhow::Result<String> {
    let name = match &options.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .context("host name")?
            .into_string()
            .map_err(|_| anyhow::anyhow!("the host name is not text"))?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("empty hostname is invalid");
    }
    Ok(name)
}

/// Puts a kubelet together; what it does begins with [`run`].
///
/// # Errors
/// As there.
pub(crate) fn build(
    options: &options::Options,
    config: KubeletConfiguration,
    name: String,
    client: Option<kube::Client>,
    shutdown: CancellationToken,
) -> anyhow::Result<Kubelet> {
    let root = std::path::absolute(&options.root_dir).context("--root-dir")?;
    for directory in [root.join("pods"), root.join("plugins"), root.join("plugins_registry")] {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let cri = Cri::new(
        &config.container_runtime_endpoint,
        &config.image_service_endpoint,
        config.runtime_request_timeout.0,
    )?;
    let now = tokio::time::Instant::now();
    let driver = match config.cgroup_driver.as_str() {
        "systemd" => Driver::Systemd,
        _ => Driver::Cgroupfs,
    };
    let mut cgroups = Cgroups::find(driver, &config.cgroup_root, config.cgroups_per_qos)?;
    if config.fail_cgroup_v1 && !cgroups.is_v2() {
        bail!(
            "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is in maintenance mode (failCgroupV1, --fail-cgroupv1)"
        );
    }
    cgroups.limit_pids(config.pod_pids_limit);
    let recorder = match &client {
        Some(client) => Recorder::start(client.clone(), "kubelet", &name, shutdown.clone()),
        None => Recorder::none(),
    };
    let event_rate = Bucket::new(config.event_record_qps, config.event_burst, now);
    let pull_rate = Bucket::new(config.registry_pull_qps, config.registry_burst, now);
    let longest_restart = config.crash_loop_back_off.max_container_restart_period;
    let longest_restart = longest_restart.map_or(CRASH_BACKOFF_MAX, |period| period.0);
    let services = client.as_ref().map(|client| {
        Cache::<Service>::start(client.clone(), watcher::Config::default(), shutdown.clone())
    });
    let node = client.as_ref().map(|client| {
        let own = watcher::Config::default().fields(&format!("metadata.name={name}"));
        Cache::<Node>::start(client.clone(), own, shutdown.clone())
    });
    Ok(Kubelet {
        logs: Path::new(&config.pod_logs_dir).to_owned(),
        machine: Machine::look(&root),
        node_name: name,
        views: Views::new(cri.clone()),
        images: Images::new(config.parallel_pulls(), pull_rate),
        crash_backoff: Backoff::new(CRASH_BACKOFF.min(longest_restart), longest_restart),
        prober: crate::probe::Prober::default(),
        tokens: crate::tokens::Tokens::default(),
        admission: crate::admission::Admission::default(),
        evictions: crate::eviction::Evictions::default(),
        thresholds: config.thresholds().map_err(anyhow::Error::msg)?,
        pressure: pressure::Pressure::default(),
        node_shutdown: crate::shutdown::NodeShutdown::default(),
        http_fallbacks: AtomicU64::new(0),
        allocations: crate::allocation::Allocations::default(),
        wakers: parking_lot::Mutex::default(),
        health: watch::channel(RuntimeHealth {
            runtime: Some("container runtime status check may not have completed yet".to_owned()),
            network: None,
        })
        .0,
        runtime: parking_lot::Mutex::default(),
        look_at_runtime: Notify::new(),
        given_ips: options.node_ip.clone(),
        host_ips: watch::channel(node::addresses::find(&options.node_ip)).0,
        pods: RwLock::default(),
        relisted: parking_lot::Mutex::default(),
        references: References::new(config.strategy()?, client.as_ref(), &shutdown),
        started: now,
        config,
        root,
        client,
        cri,
        events: Events::start(recorder, event_rate, shutdown.clone()),
        services,
        node,
        cgroups,
        shutdown,
    })
}

/// Tells the runtime which addresses its pods get, when the node has them.
async fn follow_node(k: Arc<Kubelet>) {
    let Some(nodes) = &k.node else {
        return give_pod_cidr(&k, &k.config.pod_cidr).await;
    };
    let (sender, mut receiver) = watch::channel(String::new());
    nodes.on_change(move |change| {
        let cidrs = change.new.and_then(|n| n.spec.as_ref()).and_then(|s| match &s.pod_cidrs {
            Some(cidrs) if !cidrs.is_empty() => Some(cidrs.join(",")),
            _ => s.pod_cidr.clone(),
        });
        if let Some(cidrs) = cidrs {
            sender.send_if_modified(|current| {
                let changed = *current != cidrs;
                current.clone_from(&cidrs);
                changed
            });
        }
    });
    loop {
        let cidr = receiver.borrow_and_update().clone();
        give_pod_cidr(&k, &cidr).await;
        tokio::select! {
            changed = receiver.changed() => if changed.is_err() { return },
            () = k.shutdown.cancelled() => return,
        }
    }
}

async fn give_pod_cidr(k: &Kubelet, cidr: &str) {
    if cidr.is_empty() {
        return;
    }
    let request = k8s_cri::v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(k8s_cri::v1::RuntimeConfig {
            network_config: Some(k8s_cri::v1::NetworkConfig { pod_cidr: cidr.to_owned() }),
        }),
    };
    match k.cri.update_runtime_config(request).await {
        Ok(_) => tracing::info!(cidr, "pod range given to the runtime"),
        Err(error) => tracing::warn!(%error, cidr, "pod range not given to the runtime"),
    }
    // With the range its network may have become ready.
    k.look_at_runtime.notify_one();
}
