//! Starts the controllers that are enabled.

use anyhow::Context as _;
use client::Caches;
use client::events::Recorder;
use component::serving::{self, text};
use futures::future::{BoxFuture, join_all};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::action::Executor;
use crate::controllers::{
    aggregation, daemonset, deployment, endpoints, garbage, ipam, namespace, nodelifecycle, podgc,
    replicaset, rootca, serviceaccount, taints,
};
use crate::options::{Options, duration};
use crate::runner::{self, Context, Controller};

/// Runs until shutdown.
///
/// # Errors
/// A flag or the kubeconfig is wrong, or a port is taken.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let kubeconfig = options.kubeconfig.as_ref().context("--kubeconfig is needed")?;
    let client = client::connect(kubeconfig, "kube-controller-manager").await?;
    serve(&options, shutdown.clone()).await?;
    let starter = Starter {
        caches: Caches::new(client.clone(), shutdown.clone()),
        client,
        shutdown: shutdown.clone(),
        options: &options,
        running: Vec::new(),
    };
    let running = starter.all()?;
    tokio::select! {
        _ = join_all(running) => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

async fn serve(options: &Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    if options.secure_port == 0 {
        return Ok(());
    }
    let tls = match (&options.tls_cert_file, &options.tls_private_key_file) {
        (Some(cert), Some(key)) => serving::tls(cert, key, None)?,
        _ => serving::self_signed("kube-controller-manager")?,
    };
    let listener = serving::bind((options.bind_address, options.secure_port).into()).await?;
    let handler = |request: http::Request<hyper::body::Incoming>| {
        let response = match request.uri().path() {
            "/healthz" | "/livez" | "/readyz" => text(200, "ok"),
            _ => text(404, "404 page not found\n"),
        };
        async move { response }
    };
    tokio::spawn(serving::serve(listener, Some(tls), handler, shutdown));
    Ok(())
}

struct Starter<'a> {
    caches: Caches,
    client: Client,
    shutdown: CancellationToken,
    options: &'a Options,
    running: Vec<BoxFuture<'static, ()>>,
}

impl Starter<'_> {
    fn context(&self, name: &str) -> Context {
        let recorder = Recorder::start(self.client.clone(), name, "", self.shutdown.clone());
        Context {
            caches: self.caches.clone(),
            executor: Executor { client: self.client.clone(), recorder },
            shutdown: self.shutdown.clone(),
        }
    }

    /// `name` is upstream's of `--controllers`, `source` what its events say they come from.
    fn add<C: Controller>(&mut self, name: &str, source: &str, make: impl FnOnce(&Context) -> C) {
        if self.options.enabled(name) {
            let context = self.context(source);
            let controller = make(&context);
            self.running.push(Box::pin(runner::run(controller, context)));
        }
    }

    fn all(mut self) -> anyhow::Result<Vec<BoxFuture<'static, ()>>> {
        let options = self.options;
        self.add("deployment-controller", "deployment-controller", deployment::Deployments::new);
        self.add("replicaset-controller", "replicaset-controller", replicaset::ReplicaSets::new);
        self.add("daemonset-controller", "daemonset-controller", daemonset::DaemonSets::new);
        self.add(
            "endpointslice-controller",
            "endpoint-slice-controller",
            endpoints::EndpointsController::new,
        );
        self.add(
            "serviceaccount-controller",
            "service-account-controller",
            serviceaccount::ServiceAccounts::new,
        );
        if let Some(path) = &options.root_ca_file {
            let ca = std::fs::read_to_string(path)
                .with_context(|| format!("--root-ca-file {}", path.display()))?;
            self.add("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", |c| {
                rootca::RootCa::new(c, ca)
            });
        }
        if options.allocate_node_cidrs {
            let ranges = options.ranges()?;
            self.add("node-ipam-controller", "cidrAllocator", |c| ipam::Ipam::new(c, ranges));
        }
        let grace = duration("node-monitor-grace-period", &options.node_monitor_grace_period)?;
        let period = duration("node-monitor-period", &options.node_monitor_period)?;
        self.add("node-lifecycle-controller", "node-controller", |c| {
            nodelifecycle::NodeLifecycle::new(c, grace, period)
        });
        self.add(
            "taint-eviction-controller",
            "taint-eviction-controller",
            taints::TaintEviction::new,
        );
        let threshold = usize::try_from(options.terminated_pod_gc_threshold).unwrap_or(0);
        self.add("pod-garbage-collector-controller", "pod-garbage-collector", |c| {
            podgc::PodGc::new(c, threshold)
        });
        self.add(
            "clusterrole-aggregation-controller",
            "clusterrole-aggregation",
            aggregation::Aggregation::new,
        );
        for (name, source) in [
            ("namespace-controller", "namespace-controller"),
            ("garbage-collector-controller", "garbage-collector"),
        ] {
            if options.enabled(name) {
                let context = self.context(source);
                self.running.push(match name {
                    "namespace-controller" => Box::pin(namespace::run(context)),
                    _ => Box::pin(garbage::run(context)),
                });
            }
        }
        Ok(self.running)
    }
}
