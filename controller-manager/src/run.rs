//! Starts the controllers that are enabled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, anyhow};
use client::accounts::Accounts;
use client::election::{self, Candidate, Timing, Watchdog};
use client::events::Recorder;
use client::lease::LeaseLock;
use client::{Caches, Queues, retry, secure};
use component::keys::SigningKey;
use component::leader::{Leader, LeaderFile};
use component::metrics::Page;
use component::serving::text;
use component::shutdown::Scope;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::action::Executor;
use crate::controllers::{
    aggregation, autoscaler, bootstrap, certificates, cronjob, daemonset, deployment, disruption,
    endpoints, garbage, ipam, job, legacytokens, mirroring, namespace, nodelifecycle, podgc,
    replicaset, resourcequota, rootca, serviceaccount, servicecidrs, statefulset, taints, tokens,
    ttl, ttlafterfinished, volumes,
};
use crate::options::Options;
use crate::runner::{self, Context, Controller, Inputs};

const NAME: &str = "kube-controller-manager";
/// Caches are shared: they read as the collector of garbage, which may read everything.
const READER: &str = "generic-garbage-collector";
/// Who makes the tokens of accounts has none of its own.
const OWN: &str = "";

/// Runs until shutdown. All that it started has ended when it returns.
///
/// # Errors
/// A flag or the kubeconfig is wrong, a port is taken, a controller crashed, or another leads now.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = Settings::new(&options)?;
    let kubeconfig = options.kubeconfig.as_ref().context("--kubeconfig is needed")?;
    let client = client::connect_to(kubeconfig, options.master.as_deref(), NAME).await?;
    let candidate = match &settings.leader {
        Some(leader) => Some(candidate(leader, &client, &shutdown)?),
        None => None,
    };
    let watchdog = candidate.as_ref().map(|c| c.watchdog.clone()).unwrap_or_default();
    let mut scope = Scope::new(&shutdown);
    let mut office = None;
    let metrics = Metrics {
        queues: Queues::default(),
        leads: candidate.as_ref().map(|_| Arc::new(AtomicBool::new(false))),
    };
    let mut ended = serve(&options, watchdog, metrics.clone(), &mut scope).await;
    if let (Ok(()), Some(candidate)) = (&ended, candidate) {
        office = election::acquire(candidate, scope.token()).await;
        if let Some(leads) = metrics.leads.as_ref().filter(|_| office.is_some()) {
            leads.store(true, Ordering::Relaxed);
        }
    }
    if ended.is_ok() && !shutdown.is_cancelled() {
        ended = tokio::select! {
            biased;
            () = election::lost(&office) => Err(anyhow!("leaderelection lost")),
            ended = lead(&options, settings, client, metrics.queues, &mut scope) => ended,
        };
    }
    match office {
        // Another may work already.
        Some(office) if office.is_lost() => scope.abort().await,
        Some(office) => {
            scope.end().await;
            office.leave().await;
        }
        None => scope.end().await,
    }
    ended
}

fn candidate(
    leader: &Leader,
    client: &Client,
    shutdown: &CancellationToken,
) -> anyhow::Result<Candidate<LeaseLock>> {
    let timing = Timing { lease: leader.lease, deadline: leader.deadline, retry: leader.retry };
    let place = (leader.namespace.as_str(), leader.name.as_str());
    Candidate::new(
        client,
        place,
        timing,
        Recorder::start(client.clone(), NAME, "", shutdown.clone()),
    )
}

/// Waits for the API server, then runs the controllers.
async fn lead(
    options: &Options,
    settings: Settings,
    client: Client,
    queues: Queues,
    scope: &mut Scope,
) -> anyhow::Result<()> {
    let token = scope.token().clone();
    if retry::healthy(&client, &token).await.is_none() {
        return Ok(());
    }
    let accounts = match (options.use_service_account_credentials, &options.kubeconfig) {
        (true, Some(kubeconfig)) => {
            let master = options.master.as_deref();
            Some(Accounts::new(kubeconfig, master, NAME, client.clone(), token.clone()).await?)
        }
        _ => None,
    };
    let reader = match &accounts {
        None => Some(client.clone()),
        Some(accounts) => accounts.client(READER).await?,
    };
    let Some(reader) = reader else { return Ok(()) };
    let caches = Caches::new(reader.clone(), token.clone());
    let shared = Arc::new(Shared { caches, reader, client, accounts, queues, shutdown: token });
    Starter { shared, options, scope }.all(settings);
    scope.until_shutdown().await
}

/// What flags say, checked before anything starts.
struct Settings {
    leader: Option<Leader>,
    root_ca: Option<String>,
    token_key: Option<SigningKey>,
    ranges: Option<Vec<ipam::Range>>,
    grace: std::time::Duration,
    period: std::time::Duration,
    threshold: usize,
    mirrored: usize,
    signers: Option<certificates::Signers>,
    autoscaling: autoscaler::Settings,
    rates: nodelifecycle::Rates,
    /// How long tokens in Secrets may be unused.
    unused_tokens: std::time::Duration,
}

impl Settings {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let root_ca = options.root_ca_file.as_ref().map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("--root-ca-file {}", path.display()))
        });
        let token_key = options.service_account_private_key_file.as_ref().map(|path| {
            let whence = || format!("--service-account-private-key-file {}", path.display());
            let pem = std::fs::read(path).with_context(whence)?;
            SigningKey::parse(&pem).with_context(whence)
        });
        let ranges = options.allocate_node_cidrs.then(|| options.ranges());
        Ok(Self {
            leader: options.leader.settle(&LeaderFile::default(), NAME)?,
            root_ca: root_ca.transpose()?,
            token_key: token_key.transpose()?,
            ranges: ranges.transpose()?,
            grace: options.node_monitor_grace_period,
            period: options.node_monitor_period,
            threshold: usize::try_from(options.terminated_pod_gc_threshold).unwrap_or(0),
            mirrored: usize::from(options.mirroring_max_endpoints_per_subset),
            signers: options.signing.read()?,
            autoscaling: options.autoscaling.settings(),
            rates: options.eviction.rates(),
            unused_tokens: options.unused_tokens()?,
        })
    }
}

/// What /metrics shows.
#[derive(Clone)]
struct Metrics {
    queues: Queues,
    /// Whether this one leads, where there is an election.
    leads: Option<Arc<AtomicBool>>,
}

impl Metrics {
    fn text(&self) -> String {
        let mut page = Page::default();
        page.process();
        if let Some(leads) = &self.leads {
            page.leader(NAME, leads.load(Ordering::Relaxed));
        }
        self.queues.tell(&mut page);
        page.text()
    }
}

async fn serve(
    options: &Options,
    watchdog: Watchdog,
    metrics: Metrics,
    scope: &mut Scope,
) -> anyhow::Result<()> {
    let routes = move |path: &str| match path {
        "/healthz" => match watchdog.check() {
            Ok(()) => text(200, "ok"),
            Err(why) => text(500, format!("leaderElection: {why}\nhealthz check failed\n")),
        },
        "/livez" | "/readyz" => text(200, "ok"),
        "/metrics" => text(200, metrics.text()),
        _ => text(404, "404 page not found\n"),
    };
    secure::serve(&options.secure, options.secure_port, NAME, routes, scope).await
}

/// What controllers have in common.
struct Shared {
    caches: Caches,
    /// What caches read with.
    reader: Client,
    client: Client,
    accounts: Option<Accounts>,
    queues: Queues,
    shutdown: CancellationToken,
}

impl Shared {
    /// `source` is what events say they come from, `account` whose rights are used. `None` at
    /// shutdown.
    async fn context(&self, source: &str, account: &str) -> anyhow::Result<Option<Context>> {
        let client = match &self.accounts {
            Some(accounts) if account != OWN => accounts.client(account).await?,
            _ => Some(self.client.clone()),
        };
        let Some(client) = client else { return Ok(None) };
        // Events are written with the manager's own rights.
        let recorder = Recorder::start(self.client.clone(), source, "", self.shutdown.clone());
        Ok(Some(Context {
            caches: Inputs::new(self.caches.clone()),
            executor: Executor { client, reader: self.reader.clone(), recorder },
            queues: self.queues.clone(),
            shutdown: self.shutdown.clone(),
        }))
    }
}

/// Names of a controller: of `--controllers`, in events, of its account.
type Names = (&'static str, &'static str, &'static str);

struct Starter<'a> {
    shared: Arc<Shared>,
    options: &'a Options,
    scope: &'a mut Scope,
}

impl Starter<'_> {
    /// Starts a controller, if it is enabled, as soon as it has its rights: none waits for another.
    fn add<C: Controller>(
        &mut self,
        names: Names,
        make: impl FnOnce(&Context) -> C + Send + 'static,
    ) {
        self.add_loop(names, move |context| {
            let controller = make(&context);
            runner::run(Arc::new(controller), context)
        });
    }

    /// As [`Starter::add`], for what is not run by [`runner::run`].
    fn add_loop<F>(
        &mut self,
        (name, source, account): Names,
        run: impl FnOnce(Context) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if !self.options.enabled(name) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.scope.spawn(name, async move {
            match shared.context(source, account).await {
                Ok(Some(context)) => run(context).await,
                Ok(None) => {}
                Err(error) => tracing::error!(name, error = client::brief(&error), "not started"),
            }
        });
    }

    fn all(mut self, settings: Settings) {
        let Settings { root_ca, token_key, ranges, grace, period, threshold, .. } = settings;
        let (mirrored, signers) = (settings.mirrored, settings.signers);
        let (autoscaling, rates) = (settings.autoscaling, settings.rates);
        let unused = settings.unused_tokens;
        let same = |name| (name, name, name);
        self.add(same("deployment-controller"), deployment::Deployments::new);
        self.add(same("replicaset-controller"), replicaset::ReplicaSets::new);
        let names = (
            "replicationcontroller-controller",
            "replication-controller",
            "replication-controller",
        );
        self.add(names, replicaset::ReplicationControllers::new);
        let names = ("statefulset-controller", "statefulset-controller", "statefulset-controller");
        self.add(names, statefulset::StatefulSets::new);
        self.add(same("job-controller"), job::Jobs::new);
        self.add(same("cronjob-controller"), cronjob::CronJobs::new);
        let names = (
            "ttl-after-finished-controller",
            "ttl-after-finished",
            "ttl-after-finished-controller",
        );
        self.add(names, ttlafterfinished::TtlAfterFinished::new);
        let names =
            ("resourcequota-controller", "resourcequota-controller", "resourcequota-controller");
        self.add(names, resourcequota::Quotas::new);
        let names = ("disruption-controller", "controllermanager", "disruption-controller");
        self.add(names, disruption::Budgets::new);
        let account = "horizontal-pod-autoscaler";
        let names = ("horizontal-pod-autoscaler-controller", account, account);
        self.add_loop(names, move |context| autoscaler::run(context, autoscaling));
        let names = ("daemonset-controller", "daemonset-controller", "daemon-set-controller");
        self.add(names, daemonset::DaemonSets::new);
        let (slices, endpoints) = ("endpointslice-controller", "endpoint-controller");
        let account = (slices, "endpoint-slice-controller", "endpointslice-controller");
        self.add(account, endpoints::Slices::new);
        self.add(("endpoints-controller", endpoints, endpoints), endpoints::Objects::new);
        let names = (
            "endpointslice-mirroring-controller",
            "endpoint-slice-mirroring-controller",
            "endpointslicemirroring-controller",
        );
        self.add(names, move |c| mirroring::Mirror::new(c, mirrored));
        self.volumes();
        self.bootstrap();
        let account = "legacy-service-account-token-cleaner";
        let names = (legacytokens::NAME, account, account);
        self.add(names, move |c| legacytokens::Cleaner::new(c, unused));
        self.certificates(signers);
        let names = (
            "serviceaccount-controller",
            "service-account-controller",
            "service-account-controller",
        );
        self.add(names, serviceaccount::ServiceAccounts::new);
        if let Some(key) = token_key {
            let (name, ca) = ("serviceaccount-token-controller", root_ca.clone());
            let source = tokens::Source { key, ca };
            self.add((name, name, OWN), |c| tokens::Tokens::new(c, source));
        }
        if let Some(ca) = root_ca {
            let publisher = "root-ca-cert-publisher";
            let names = ("root-ca-certificate-publisher-controller", publisher, publisher);
            self.add(names, |c| rootca::RootCa::new(c, ca));
        }
        if let Some(ranges) = ranges {
            let names = ("node-ipam-controller", "cidrAllocator", "node-controller");
            self.add(names, |c| ipam::Ipam::new(c, ranges));
        }
        self.add(same("ttl-controller"), ttl::Ttl::new);
        let name = "service-cidr-controller";
        self.add((name, name, "service-cidrs-controller"), servicecidrs::ServiceCidrs::new);
        let names = ("node-lifecycle-controller", "node-controller", "node-controller");
        self.add(names, move |c| nodelifecycle::NodeLifecycle::new(c, grace, period, rates));
        let taint = "taint-eviction-controller";
        self.add((taint, taint, "node-controller"), taints::TaintEviction::new);
        let collector = "pod-garbage-collector";
        let names = ("pod-garbage-collector-controller", collector, collector);
        self.add(names, move |c| podgc::PodGc::new(c, threshold));
        self.add(same("clusterrole-aggregation-controller"), aggregation::Aggregation::new);
        self.add_loop(same("namespace-controller"), namespace::run);
        let names = ("garbage-collector-controller", "garbage-collector", READER);
        self.add_loop(names, garbage::run);
    }

    /// What has to do with CertificateSigningRequests.
    fn certificates(&mut self, signers: Option<certificates::Signers>) {
        const ACCOUNT: &str = "certificate-controller";
        let names = |name| (name, ACCOUNT, ACCOUNT);
        if let Some(signers) = signers {
            let names = names("certificatesigningrequest-signing-controller");
            self.add(names, |c| certificates::Signer::new(c, signers));
        }
        let approving = names("certificatesigningrequest-approving-controller");
        self.add(approving, certificates::Approver::new);
        let cleaning = names("certificatesigningrequest-cleaner-controller");
        self.add(cleaning, certificates::Cleaner::new);
    }

    /// What has to do with bootstrap tokens.
    fn bootstrap(&mut self) {
        let names = ("bootstrap-signer-controller", "bootstrap-signer", "bootstrap-signer");
        self.add(names, bootstrap::Signer::new);
        let names = ("token-cleaner-controller", "token-cleaner", "token-cleaner");
        self.add(names, bootstrap::Cleaner::new);
    }

    /// What has to do with PersistentVolumes.
    fn volumes(&mut self) {
        let (binder, account) = ("persistentvolume-binder-controller", "persistent-volume-binder");
        self.add((binder, "persistentvolume-controller", account), volumes::Binder::new);
        let (name, account) =
            ("persistentvolumeclaim-protection-controller", "pvc-protection-controller");
        self.add((name, account, account), volumes::ClaimProtection::new);
        let (name, account) =
            ("persistentvolume-protection-controller", "pv-protection-controller");
        self.add((name, account, account), volumes::VolumeProtection::new);
        let (name, source) = ("ephemeral-volume-controller", "ephemeral_volume");
        self.add((name, source, name), volumes::Ephemeral::new);
        let name = "volumeattributesclass-protection-controller";
        self.add((name, name, name), volumes::AttributesProtection::new);
    }
}
