//! Starts the controllers that are enabled.

use anyhow::Context as _;
use client::Caches;
use client::accounts::Accounts;
use client::events::Recorder;
use component::serving::{self, text};
use futures::future::join_all;
use kube::Client;
use tokio::task::JoinHandle;
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
    let accounts = match options.use_service_account_credentials {
        false => None,
        true => {
            let agent = "kube-controller-manager";
            Some(Accounts::new(kubeconfig, agent, client.clone(), shutdown.clone()).await?)
        }
    };
    let reader = match &accounts {
        // Caches are shared: they read as the collector of garbage, which may read everything.
        Some(accounts) => accounts.client("generic-garbage-collector").await?,
        None => client.clone(),
    };
    let starter = Starter {
        caches: Caches::new(reader, shutdown.clone()),
        client,
        accounts,
        shutdown: shutdown.clone(),
        options: &options,
        running: Vec::new(),
    };
    let running = starter.all().await?;
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
    accounts: Option<Accounts>,
    shutdown: CancellationToken,
    options: &'a Options,
    running: Vec<JoinHandle<()>>,
}

impl Starter<'_> {
    /// `source` is what events say they come from, `account` whose rights are used.
    async fn context(&self, source: &str, account: &str) -> anyhow::Result<Context> {
        let client = match &self.accounts {
            Some(accounts) => accounts.client(account).await?,
            None => self.client.clone(),
        };
        // Events are written with the manager's own rights.
        let recorder = Recorder::start(self.client.clone(), source, "", self.shutdown.clone());
        Ok(Context {
            caches: self.caches.clone(),
            executor: Executor { client, recorder },
            shutdown: self.shutdown.clone(),
        })
    }

    /// Adds a controller under its names: of `--controllers`, in events, of its account.
    async fn add<C: Controller>(
        &mut self,
        (name, source, account): (&str, &str, &str),
        make: impl FnOnce(&Context) -> C,
    ) -> anyhow::Result<()> {
        if self.options.enabled(name) {
            let context = self.context(source, account).await?;
            let controller = make(&context);
            self.running.push(tokio::spawn(runner::run(controller, context)));
        }
        Ok(())
    }

    async fn all(mut self) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let options = self.options;
        let same = |name| (name, name, name);
        self.add(same("deployment-controller"), deployment::Deployments::new).await?;
        self.add(same("replicaset-controller"), replicaset::ReplicaSets::new).await?;
        let names = ("daemonset-controller", "daemonset-controller", "daemon-set-controller");
        self.add(names, daemonset::DaemonSets::new).await?;
        let (slices, endpoints) = ("endpointslice-controller", "endpoint-controller");
        let account = (slices, "endpoint-slice-controller", "endpointslice-controller");
        self.add(account, endpoints::Slices::new).await?;
        self.add(("endpoints-controller", endpoints, endpoints), endpoints::Objects::new).await?;
        let names = (
            "serviceaccount-controller",
            "service-account-controller",
            "service-account-controller",
        );
        self.add(names, serviceaccount::ServiceAccounts::new).await?;
        if let Some(path) = &options.root_ca_file {
            let ca = std::fs::read_to_string(path)
                .with_context(|| format!("--root-ca-file {}", path.display()))?;
            let publisher = "root-ca-cert-publisher";
            let names = ("root-ca-certificate-publisher-controller", publisher, publisher);
            self.add(names, |c| rootca::RootCa::new(c, ca)).await?;
        }
        if options.allocate_node_cidrs {
            let ranges = options.ranges()?;
            let names = ("node-ipam-controller", "cidrAllocator", "node-controller");
            self.add(names, |c| ipam::Ipam::new(c, ranges)).await?;
        }
        let grace = duration("node-monitor-grace-period", &options.node_monitor_grace_period)?;
        let period = duration("node-monitor-period", &options.node_monitor_period)?;
        let names = ("node-lifecycle-controller", "node-controller", "node-controller");
        self.add(names, |c| nodelifecycle::NodeLifecycle::new(c, grace, period)).await?;
        let taint = "taint-eviction-controller";
        self.add((taint, taint, "node-controller"), taints::TaintEviction::new).await?;
        let threshold = usize::try_from(options.terminated_pod_gc_threshold).unwrap_or(0);
        let collector = "pod-garbage-collector";
        let names = ("pod-garbage-collector-controller", collector, collector);
        self.add(names, |c| podgc::PodGc::new(c, threshold)).await?;
        let account = "clusterrole-aggregation-controller";
        self.add((account, account, account), aggregation::Aggregation::new).await?;
        if options.enabled("namespace-controller") {
            let context = self.context("namespace-controller", "namespace-controller").await?;
            self.running.push(tokio::spawn(namespace::run(context)));
        }
        if options.enabled("garbage-collector-controller") {
            let context = self.context("garbage-collector", "generic-garbage-collector").await?;
            self.running.push(tokio::spawn(garbage::run(context)));
        }
        Ok(self.running)
    }
}
