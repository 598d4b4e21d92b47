//! The config maps and secrets that the node's pods refer to, kept current in the way that
//! `configMapAndSecretChangeDetectionStrategy` names (upstream: `kubelet/util/manager`).
//!
//! Each is kept for as long as a pod refers to it. With `Watch` it is followed by a watch of its
//! own, since a node may see no others; one that is not asked for any more is not followed (a pod's
//! environment is made once), and one that cannot change is not either.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client::cache::Cacheable;
use client::{Cache, Key};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::KubeletConfiguration;
use crate::objects::{ephemeral_containers, init_containers, namespace, spec, uid};
use crate::pod::env::{self, Missing};

/// How long the first list of a watch is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Watches of each kind; each is a connection. What is beyond them is read when it is asked for.
const WATCHES: usize = 512;
/// A watch ends when this many turns of its pods have passed it by.
const IDLE_TURNS: u32 = 5;
const LEAST_IDLE: Duration = Duration::from_secs(60);
/// With `Cache`: how long what was read will do, unless the node says something else.
const TTL: Duration = Duration::from_secs(60);
const TTL_ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// How changes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    Watch,
    Cache,
    Get,
}

impl Strategy {
    /// By its name in the configuration.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "Watch" => Some(Self::Watch),
            "Cache" => Some(Self::Cache),
            "Get" => Some(Self::Get),
            _ => None,
        }
    }
}

/// What pods refer to.
pub trait Referred:
    Cacheable + kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
{
    fn is_immutable(&self) -> bool;
}

impl Referred for ConfigMap {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Referred for Secret {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// All that the node's pods refer to.
pub struct References {
    pub config_maps: Objects<ConfigMap>,
    pub secrets: Objects<Secret>,
}

impl References {
    pub fn new(
        strategy: Strategy,
        client: Option<&kube::Client>,
        shutdown: &CancellationToken,
    ) -> Self {
        Self {
            config_maps: Objects::new(strategy, client, shutdown),
            secrets: Objects::new(strategy, client, shutdown),
        }
    }

    /// Takes note of what a pod refers to.
    pub fn register(&self, pod: &Pod) {
        let (maps, secrets) = referred(pod);
        self.config_maps.register(uid(pod), maps);
        self.secrets.register(uid(pod), secrets);
    }

    /// A pod needs nothing more.
    pub fn forget(&self, pod: &str) {
        self.config_maps.table.lock().forget(pod);
        self.secrets.table.lock().forget(pod);
    }

    /// Ends watches that nobody has asked for lately.
    pub fn tidy(&self, config: &KubeletConfiguration) {
        let idle = (config.sync_frequency.0 * IDLE_TURNS).max(LEAST_IDLE);
        self.config_maps.table.lock().rest(Instant::now(), idle);
        self.secrets.table.lock().rest(Instant::now(), idle);
    }
}

/// The config maps and secrets that a pod refers to.
fn referred(pod: &Pod) -> (BTreeSet<Key>, BTreeSet<Key>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let mut add = |to_secrets: bool, name: &str| {
        if !name.is_empty() {
            let to = if to_secrets { &mut secrets } else { &mut maps };
            to.insert(Key::new(namespace(pod), name));
        }
    };
    let ephemeral = ephemeral_containers(pod);
    for container in spec(pod).containers.iter().chain(init_containers(pod)).chain(&ephemeral) {
        let (own_maps, own_secrets) = env::references(container);
        own_maps.into_iter().for_each(|name| add(false, name));
        own_secrets.into_iter().for_each(|name| add(true, name));
    }
    for volume in spec(pod).volumes.iter().flatten() {
        if let Some(map) = &volume.config_map {
            add(false, &map.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
            add(true, name);
        }
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for part in projected {
            if let Some(map) = &part.config_map {
                add(false, &map.name);
            }
            if let Some(secret) = &part.secret {
                add(true, &secret.name);
            }
        }
    }
    for reference in spec(pod).image_pull_secrets.iter().flatten() {
        add(true, &reference.name);
    }
    (maps, secrets)
}

/// How long what was read will do on a node, with `Cache`.
pub fn ttl(node: Option<&Node>) -> Duration {
    let annotations = node.and_then(|node| node.metadata.annotations.as_ref());
    let seconds = annotations.and_then(|all| all.get(TTL_ANNOTATION)?.parse().ok());
    seconds.map_or(TTL, Duration::from_secs)
}

/// A watch of one object, until it is dropped.
struct Watched<K> {
    cache: Cache<K>,
    _until: Option<DropGuard>,
}

enum State<K> {
    Unread,
    Watched(Watched<K>),
    /// With `Cache`.
    Read {
        at: Instant,
        object: Arc<K>,
    },
    /// It cannot change any more.
    Settled(Arc<K>),
}

struct Item<K> {
    /// How many pods refer to it.
    pods: usize,
    asked: Instant,
    state: State<K>,
}

/// Who refers to what, and what is known of that.
struct Table<K> {
    items: HashMap<Key, Item<K>>,
    pods: HashMap<String, BTreeSet<Key>>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { items: HashMap::new(), pods: HashMap::new() }
    }
}

impl<K: Referred> Table<K> {
    /// Sets what a pod refers to. Returns what no pod referred to before.
    fn register(&mut self, pod: &str, names: BTreeSet<Key>, now: Instant) -> Vec<Key> {
        if self.pods.get(pod).is_some_and(|before| *before == names) {
            return Vec::new();
        }
        let mut fresh = Vec::new();
        for key in &names {
            let item = self.items.entry(key.clone()).or_insert_with(|| {
                fresh.push(key.clone());
                Item { pods: 0, asked: now, state: State::Unread }
            });
            item.pods += 1;
        }
        self.forget(pod);
        if !names.is_empty() {
            self.pods.insert(pod.to_owned(), names);
        }
        fresh
    }

    fn forget(&mut self, pod: &str) {
        for key in self.pods.remove(pod).into_iter().flatten() {
            if let Some(item) = self.items.get_mut(&key) {
                item.pods -= 1;
                if item.pods == 0 {
                    self.items.remove(&key);
                }
            }
        }
    }

    /// The item, for somebody who asks for it.
    fn ask(&mut self, key: &Key, now: Instant) -> Option<&mut State<K>> {
        let item = self.items.get_mut(key)?;
        item.asked = now;
        Some(&mut item.state)
    }

    fn set(&mut self, key: &Key, state: State<K>) {
        if let Some(item) = self.items.get_mut(key) {
            item.state = state;
        }
    }

    fn watches(&self) -> usize {
        self.items.values().filter(|item| matches!(item.state, State::Watched(_))).count()
    }

    /// Ends watches that were not asked for in this time. One that is still at its first list goes
    /// on: what the server does for it would be lost.
    fn rest(&mut self, now: Instant, idle: Duration) {
        for item in self.items.values_mut() {
            if let State::Watched(watched) = &item.state
                && watched.cache.is_synced()
                && now.duration_since(item.asked) > idle
            {
                item.state = State::Unread;
            }
        }
    }
}

/// Where an object is to be had.
enum Place<K> {
    Here(Arc<K>),
    Watched(Cache<K>),
    Away,
}

type Start<K> = Box<dyn Fn(&Key) -> Watched<K> + Send + Sync>;

/// The objects of one kind that the node's pods refer to.
pub struct Objects<K> {
    strategy: Strategy,
    client: Option<kube::Client>,
    /// Begins a watch.
    start: Option<Start<K>>,
    table: Mutex<Table<K>>,
}

impl<K: Referred> Objects<K> {
    fn new(
        strategy: Strategy,
        client: Option<&kube::Client>,
        shutdown: &CancellationToken,
    ) -> Self {
        let start = client.map(|client| {
            let (client, shutdown) = (client.clone(), shutdown.clone());
            let start = move |key: &Key| {
                let (until, client) = (shutdown.child_token(), client.clone());
                let one = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
                let cache = Cache::start_in(client, &key.namespace, one, until.clone());
                Watched { cache, _until: Some(until.drop_guard()) }
            };
            Box::new(start) as Start<K>
        });
        Self { strategy, client: client.cloned(), start, table: Mutex::default() }
    }

    fn register(&self, pod: &str, names: BTreeSet<Key>) {
        let now = Instant::now();
        let fresh = self.table.lock().register(pod, names, now);
        if self.strategy == Strategy::Watch {
            // All of them at once: the pod is about to ask for one after another.
            fresh.iter().for_each(|key| drop(self.place(key, now, Duration::ZERO)));
        }
    }

    /// An object that a registered pod refers to. One read in the last `ttl` will do, unless it is
    /// watched.
    ///
    /// # Errors
    /// It is not there, or the API server does not give it.
    pub async fn get(&self, namespace: &str, name: &str, ttl: Duration) -> Result<Arc<K>, Missing> {
        let key = Key::new(namespace, name);
        if self.strategy == Strategy::Get {
            return self.read(&key).await;
        }
        match self.place(&key, Instant::now(), ttl)? {
            Place::Here(object) => Ok(object),
            Place::Watched(cache) => self.watched(&key, &cache).await,
            Place::Away => {
                let object = self.read(&key).await?;
                let state = match object.is_immutable() {
                    true => State::Settled(Arc::clone(&object)),
                    false => State::Read { at: Instant::now(), object: Arc::clone(&object) },
                };
                self.table.lock().set(&key, state);
                Ok(object)
            }
        }
    }

    /// Where it is to be had; a watch begins if it should.
    fn place(&self, key: &Key, now: Instant, ttl: Duration) -> Result<Place<K>, Missing> {
        let mut table = self.table.lock();
        let more = table.watches() < WATCHES;
        let Some(state) = table.ask(key, now) else {
            let message = format!("object {:?}/{:?} not registered", key.namespace, key.name);
            return Err(Missing { not_found: false, message });
        };
        Ok(match (&*state, &self.start) {
            (State::Settled(object), _) => Place::Here(Arc::clone(object)),
            (State::Watched(watched), _) => Place::Watched(watched.cache.clone()),
            (_, Some(start)) if self.strategy == Strategy::Watch && more => {
                let watched = start(key);
                let cache = watched.cache.clone();
                *state = State::Watched(watched);
                Place::Watched(cache)
            }
            (State::Read { at, object }, _) if now.duration_since(*at) < ttl => {
                Place::Here(Arc::clone(object))
            }
            _ => Place::Away,
        })
    }

    async fn watched(&self, key: &Key, cache: &Cache<K>) -> Result<Arc<K>, Missing> {
        if tokio::time::timeout(PATIENCE, cache.synced()).await.is_err() {
            let kind = kind::<K>();
            let message =
                format!("failed to sync {kind} cache: timed out waiting for the condition");
            return Err(Missing { not_found: false, message });
        }
        let object = cache.get(key).ok_or_else(|| not_found::<K>(key))?;
        if object.is_immutable() {
            self.table.lock().set(key, State::Settled(Arc::clone(&object)));
        }
        Ok(object)
    }

    async fn read(&self, key: &Key) -> Result<Arc<K>, Missing> {
        let Some(client) = &self.client else {
            let message = "the kubelet has no API server".to_owned();
            return Err(Missing { not_found: false, message });
        };
        let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
        match api.get(&key.name).await {
            Ok(object) => Ok(Arc::new(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Err(not_found::<K>(key)),
            Err(kube::Error::Api(status)) => {
                Err(Missing { not_found: false, message: status.message.clone() })
            }
            Err(error) => Err(Missing { not_found: false, message: error.to_string() }),
        }
    }
}

/// As upstream's caches of objects name it.
fn kind<K: Referred>() -> String {
    K::kind(&()).to_lowercase()
}

fn not_found<K: Referred>(key: &Key) -> Missing {
    Missing { not_found: true, message: format!("{} {:?} not found", kind::<K>(), key.name) }
}

#[cfg(test)]
#[path = "references_tests.rs"]
mod tests;
