//! Config → build (binds) → run → drain.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use apimachinery::schema::Registry;
use component::callers::{Authorities, FrontProxy, Headers, Trust};
use component::keys::{SigningKey, VerifyingKey};
use component::serving::{self, Peer};
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rand::RngCore as _;
use store::{SharedStore, embedded, etcd};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::lookup::Lookup;
use crate::admission::{self, Plugin, plugins};
use crate::aggregation::Aggregation;
use crate::api::{Api, Identity, InFlight};
use crate::authentication::bootstrap_token::BootstrapTokens;
use crate::authentication::legacy_tokens::Uses;
use crate::authentication::openid;
use crate::authentication::service_account::ServiceAccounts;
use crate::authentication::token_file::TokenFile;
use crate::authentication::tokens::{TokenIssuer, TokenOptions};
use crate::authentication::union::{Tokens, Union};
use crate::authentication::{Authenticator, Clock, TokenAuthenticator, tracking};
use crate::authorization::{self, Authorizer, escalation};
use crate::bootstrap;
use crate::compaction;
use crate::drain::Drained;
use crate::health::Health;
use crate::options::{Config, StoreConfig};
use crate::reader::{Caches, Reader};
use crate::registry::allocate::{AddressRange, PortRange, ServiceAllocator, StoreLedger};
use crate::registry::catalog::Catalog;
use crate::registry::kinds::{self, Deps};
use crate::verbs::{actions, reviews};
use crate::{aggregation, apiextensions, pipeline, tls, webhook};

/// History of the embedded store is kept so long: for watches that resume and for pages.
const KEEP_HISTORY: Duration = Duration::from_secs(300);
/// How long etcd may take to answer when we start, as upstream lets it.
const ETCD_WAIT: Duration = Duration::from_secs(20);
const ETCD_RETRY: Duration = Duration::from_millis(500);

/// What tests may put in the place of what flags would make.
#[derive(Default)]
pub struct Overrides {
    pub authenticator: Option<Arc<dyn Authenticator>>,
    pub authorizer: Option<Arc<dyn Authorizer>>,
    pub clock: Option<Clock>,
    /// A store that is open already.
    pub store: Option<SharedStore>,
}

/// A server that is bound, and not running yet.
pub struct Server {
    api: Arc<Api>,
    config: Config,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    address: SocketAddr,
    /// To be closed at the end.
    embedded: Option<Arc<embedded::Embedded>>,
}

impl Server {
    /// Opens the store, reads keys and certificates, and binds.
    ///
    /// # Errors
    /// Names the flag or file that is wrong, or the address that is taken.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        Self::build_with(config, Overrides::default()).await
    }

    /// As [`build`](Self::build), with parts replaced.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn build_with(config: Config, overrides: Overrides) -> anyhow::Result<Self> {
        let (store, embedded) = match &overrides.store {
            Some(store) => (store.clone(), None),
            None => open_store(&config.store).await?,
        };
        let clock: Clock = overrides.clock.unwrap_or_else(|| Arc::new(jiff::Timestamp::now));
        let caches = Arc::new(Caches::default());
        caches.set_store(store.clone());
        let registry = Registry::builtin();
        let rows = kinds::all(registry, &deps(&config, &store)?);
        let catalog = Catalog::new(rows, registry, &store, &config.store_prefix);
        caches.set_catalog(Arc::new(catalog));

        let reader: Arc<dyn Reader> = caches.clone();
        let webhooks = Arc::new(webhook::Client::new(reader.clone(), config.routing));
        let front = config.proxy_client.clone();
        let aggregation = Arc::new(Aggregation::new(reader.clone(), config.routing, front)?);
        let modes: Vec<&str> = config.authorization_modes.iter().map(String::as_str).collect();
        let (chain, rbac) = authorization::chain(&modes, &reader).map_err(|e| anyhow!(e))?;
        let authorizer = overrides.authorizer.unwrap_or_else(|| Arc::new(chain));
        let keys = Keys::read(&config)?;
        let lookup = Lookup { reader: reader.clone(), live: Some(caches.clone()) };
        let token_uses = Arc::<Uses>::default();
        let token_kinds = token_kinds(&config, &keys, &lookup, &clock, &token_uses)?;
        let audiences = audiences(&config);
        let tokens = || {
            let mut key = [0; 32];
            rand::rng().fill_bytes(&mut key);
            Tokens::new(token_kinds.clone(), audiences.clone(), clock.clone(), key)
        };
        let identity = match overrides.authenticator {
            Some(other) => Identity::Other(other),
            None => Identity::Chain(Box::new(union(&config, tokens(), &clock)?)),
        };
        let reviewer: Arc<dyn TokenAuthenticator> = Arc::new(union(&config, tokens(), &clock)?);
        let mut plugins = plugins::plugins(&plugins::Config {
            reader,
            live: Some(caches.clone()),
            authorizer: authorizer.clone(),
            quotas: Some(caches.clone()),
            clock: clock.clone(),
            enable: config.enable_admission_plugins.clone(),
            disable: config.disable_admission_plugins.clone(),
            not_ready_toleration_seconds: config.not_ready_toleration_seconds,
            unreachable_toleration_seconds: config.unreachable_toleration_seconds,
            others: dynamic_admission(&caches, &webhooks, &authorizer),
        })?;
        if let Some(rbac) = rbac {
            plugins.push(Arc::new(escalation::Plugin::new(rbac, authorizer.clone())));
        }
        let documents = documents(&config, &keys);
        let issuer = keys.signing.map(|key| {
            let options = TokenOptions {
                issuer: config.service_accounts.issuers.first().cloned().unwrap_or_default(),
                audiences: audiences.clone(),
                max_seconds: config.service_accounts.max_token_seconds,
                extend: config.service_accounts.extend_expiration,
            };
            TokenIssuer::new(key, options)
        });
        let api = Api {
            store,
            caches,
            identity,
            answerers: reviews::answerers(&authorizer, Some(&reviewer), &audiences, &clock),
            authorizer,
            plugins,
            clock,
            in_flight: InFlight::new(&config.limits),
            limits: config.limits.clone(),
            root: config.store_prefix.clone(),
            actions: actions::all(issuer),
            kubelets: tls::kubelets(&config.kubelet)?,
            aggregation,
            webhooks,
            documents,
            discovery: Default::default(),
            openapi: Default::default(),
            metrics: Default::default(),
            token_uses,
            health: Health::new(modes.contains(&"RBAC")),
            extensions: Default::default(),
            draining: CancellationToken::new(),
        };
        let tls = tls::server(&config.tls_cert_file, &config.tls_private_key_file)?;
        let listener = serving::bind(config.bind).await?;
        let address = listener.local_addr().context("the bound address")?;
        let api = Arc::new(api);
        api.token_uses.connect(&api);
        Ok(Self { api, config, listener, tls, address, embedded })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The state that requests work with.
    pub fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Serves until `shutdown`, then lets requests under way finish and closes the store.
    ///
    /// # Errors
    /// The store could not be closed.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { api, config, listener, tls, address, embedded } = self;
        tracing::info!(%address, "serving");
        let stop_caches = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        for cache in api.catalog().caches() {
            tasks.spawn(cache.run(stop_caches.clone()));
        }
        tasks.spawn(apiextensions::controller::run(
            api.clone(),
            shutdown.clone(),
            stop_caches.clone(),
        ));
        // The embedded store compacts itself.
        if let StoreConfig::Etcd(_, interval) = config.store
            && !interval.is_zero()
        {
            tasks.spawn(compaction::run(api.store.clone(), interval, shutdown.clone()));
        }
        tasks.spawn(admission::policy::typecheck::run(api.clone(), shutdown.clone()));
        tasks.spawn(aggregation::run(api.clone(), shutdown.clone()));
        tasks.spawn(tracking::run(api.clone(), shutdown.clone()));
        let advertised = SocketAddr::new(advertise(&config, address.ip()), address.port());
        let settings = bootstrap::Settings::new(&config, advertised);
        let bootstrapping = shutdown.clone();
        let api_for_bootstrap = api.clone();
        // It needs the caches until its end.
        let bootstrap = tokio::spawn(async move {
            tokio::select! {
                () = bootstrapping.cancelled() => {}
                () = bootstrap::run(api_for_bootstrap.clone(), &settings) => {}
            }
            bootstrap::leave(&api_for_bootstrap, &settings).await;
        });
        let draining = api.draining.clone();
        let stopping = shutdown.clone();
        tasks.spawn(async move {
            // Watches end at once, so that clients go elsewhere.
            stopping.cancelled().await;
            draining.cancel();
        });
        let handler = move |request: Request<Incoming>| {
            let api = api.clone();
            async move {
                let (mut parts, body) = request.into_parts();
                let peer = parts.extensions.remove::<Peer>();
                let peer = peer.unwrap_or_else(|| Peer { address, certificates: Arc::default() });
                let body = Drained::new(body).boxed_unsync();
                pipeline::serve(api, Request::from_parts(parts, body), peer).await
            }
        };
        serving::serve(listener, Some(tls), handler, shutdown).await;
        if let Err(error) = bootstrap.await {
            tracing::error!(%error, "the task that keeps the first objects failed");
        }
        stop_caches.cancel();
        while tasks.join_next().await.is_some() {}
        if let Some(embedded) = embedded {
            embedded.close().await.context("closing the store")?;
        }
        Ok(())
    }
}

/// The plugins whose rules are objects.
fn dynamic_admission(
    caches: &Arc<Caches>,
    client: &Arc<webhook::Client>,
    authorizer: &Arc<dyn Authorizer>,
) -> Vec<Arc<dyn Plugin>> {
    let shared = Arc::new(admission::webhook::Shared {
        caches: caches.clone(),
        lookup: Lookup { reader: caches.clone(), live: Some(caches.clone()) },
        client: client.clone(),
        authorizer: authorizer.clone(),
    });
    vec![
        Arc::new(admission::webhook::Mutating::new(shared.clone())),
        Arc::new(admission::policy::ValidatingPolicies::new(shared.clone())),
        Arc::new(admission::webhook::Validating::new(shared)),
    ]
}

async fn open_store(
    config: &StoreConfig,
) -> anyhow::Result<(SharedStore, Option<Arc<embedded::Embedded>>)> {
    match config {
        StoreConfig::Embedded(path) => {
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("directory {}", parent.display()))?;
            }
            let path = path.clone();
            let opening = tokio::task::spawn_blocking(move || {
                let options =
                    embedded::Options { keep_age: Some(KEEP_HISTORY), ..Default::default() };
                embedded::Embedded::open(&path, options)
                    .with_context(|| format!("store {}", path.display()))
            });
            let store = opening.await??;
            Ok((store.clone(), Some(store)))
        }
        StoreConfig::Etcd(options, _) => Ok((connect_etcd(options).await.context("etcd")?, None)),
    }
}

/// Connects to an etcd that may be starting as well.
async fn connect_etcd(options: &etcd::Options) -> Result<Arc<etcd::Etcd>, store::StoreError> {
    let until = Instant::now() + ETCD_WAIT;
    loop {
        let error = match etcd::Etcd::connect(options.clone()).await {
            Ok(etcd) => return Ok(etcd),
            Err(error) => error,
        };
        let again = Instant::now() + ETCD_RETRY;
        if again >= until {
            return Err(error);
        }
        tracing::warn!(%error, "etcd");
        tokio::time::sleep_until(again).await;
    }
}

fn deps(config: &Config, store: &SharedStore) -> anyhow::Result<Deps> {
    let ranges: Vec<AddressRange> =
        config.service_cluster_ip_ranges.iter().map(|net| AddressRange::new(*net)).collect();
    let (first, last) = config.service_node_ports;
    let ports = PortRange::new(first, last);
    let prefix = format!("{}/", config.store_prefix);
    let family = match config.service_cluster_ip_ranges.first() {
        Some(ipnet::IpNet::V6(_)) => 6,
        _ => 4,
    };
    let services = match ranges.is_empty() {
        true => None,
        false => {
            let ledger = StoreLedger::new(store.clone(), &prefix, Registry::builtin(), ports);
            let ledger = ledger.context("grants to services have no schema")?;
            let random = |below: u64| rand::random_range(0..below.max(1));
            let allocator = ServiceAllocator::new(ledger, ranges, ports, random);
            Some(Arc::new(allocator) as Arc<dyn crate::registry::allocate::Allocator>)
        }
    };
    Ok(Deps {
        services,
        allow_privileged: config.allow_privileged,
        service_family: family,
        event_ttl: config.event_ttl,
    })
}

/// Keys of service account tokens.
struct Keys {
    verifying: Vec<VerifyingKey>,
    signing: Option<SigningKey>,
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("file {}", path.display()))
}

impl Keys {
    fn read(config: &Config) -> anyhow::Result<Self> {
        let mut verifying: Vec<VerifyingKey> = Vec::new();
        for path in &config.service_accounts.key_files {
            let keys = VerifyingKey::parse(&read(path)?)
                .with_context(|| format!("--service-account-key-file {}", path.display()))?;
            for key in keys {
                if !verifying.iter().any(|k| k.id == key.id) {
                    verifying.push(key);
                }
            }
        }
        let signing = match &config.service_accounts.signing_key_file {
            Some(path) => Some(SigningKey::parse(&read(path)?).with_context(|| {
                format!("--service-account-signing-key-file {}", path.display())
            })?),
            None => None,
        };
        Ok(Self { verifying, signing })
    }
}

fn audiences(config: &Config) -> Vec<String> {
    let given = &config.service_accounts.audiences;
    if given.is_empty() { config.service_accounts.issuers.clone() } else { given.clone() }
}

fn token_kinds(
    config: &Config,
    keys: &Keys,
    lookup: &Lookup,
    clock: &Clock,
    uses: &Arc<Uses>,
) -> anyhow::Result<Vec<Arc<dyn TokenAuthenticator>>> {
    let mut kinds: Vec<Arc<dyn TokenAuthenticator>> = Vec::new();
    if let Some(path) = &config.token_auth_file {
        let text = String::from_utf8(read(path)?).context("--token-auth-file is no text")?;
        kinds.push(Arc::new(TokenFile::parse(&text).context("--token-auth-file")?));
    }
    if !keys.verifying.is_empty() {
        kinds.push(Arc::new(ServiceAccounts::new(
            keys.verifying.clone(),
            config.service_accounts.issuers.clone(),
            audiences(config),
            lookup.clone(),
            clock.clone(),
            uses.clone(),
        )));
    }
    if config.enable_bootstrap_token_auth {
        kinds.push(Arc::new(BootstrapTokens::new(lookup.reader.clone(), clock.clone())));
    }
    Ok(kinds)
}

fn union(config: &Config, tokens: Tokens, clock: &Clock) -> anyhow::Result<Union> {
    let authorities = |path: &Path, flag: &'static str| -> anyhow::Result<Authorities> {
        Authorities::new(&read(path)?).context(flag)
    };
    let front = &config.request_header;
    let proxy = match &front.client_ca_file {
        Some(path) => {
            let headers = Headers {
                allowed_names: front.allowed_names.clone(),
                username: front.username.clone(),
                uid: front.uid.clone(),
                group: front.group.clone(),
                extra_prefix: front.extra_prefixes.clone(),
            };
            let authorities = authorities(path, "--requestheader-client-ca-file")?;
            Some(FrontProxy { authorities, headers })
        }
        None => None,
    };
    let clients = match &config.client_ca_file {
        Some(path) => Some(authorities(path, "--client-ca-file")?),
        None => None,
    };
    Ok(Union {
        trust: Trust { proxy, clients },
        clock: clock.clone(),
        tokens: Some(tokens),
        anonymous: config.anonymous_auth,
    })
}

/// What lets others verify service account tokens.
fn documents(config: &Config, keys: &Keys) -> Vec<(&'static str, &'static str, bytes::Bytes)> {
    const JWKS: &str = "/openid/v1/jwks";
    let accounts = &config.service_accounts;
    let Some(issuer) = accounts.issuers.first() else { return Vec::new() };
    let uri = accounts
        .jwks_uri
        .clone()
        .unwrap_or_else(|| format!("{}{JWKS}", issuer.trim_end_matches('/')));
    match openid::discovery(issuer, &uri, &keys.verifying) {
        Ok(discovery) => {
            let set = openid::key_set(&keys.verifying);
            vec![
                (
                    "/.well-known/openid-configuration",
                    "application/json",
                    discovery.to_string().into(),
                ),
                (JWKS, "application/jwk-set+json", set.to_string().into()),
            ]
        }
        Err(reason) => {
            tracing::warn!(reason, "service account issuer discovery is not served");
            Vec::new()
        }
    }
}

/// The address that clients in the cluster reach the server at.
fn advertise(config: &Config, bound: IpAddr) -> IpAddr {
    if let Some(given) = config.advertise_address {
        return given;
    }
    if !bound.is_unspecified() {
        return bound;
    }
    // Connecting a datagram socket sends nothing, and tells which address would be used.
    let probe = || {
        let socket = UdpSocket::bind((bound, 0))?;
        match bound {
            IpAddr::V4(_) => socket.connect("192.0.2.1:9")?,
            IpAddr::V6(_) => socket.connect("[2001:db8::1]:9")?,
        }
        socket.local_addr().map(|address| address.ip())
    };
    probe().unwrap_or_else(|error: std::io::Error| {
        tracing::warn!(%error, "no default route; advertising the loopback address");
        IpAddr::from([127, 0, 0, 1])
    })
}
