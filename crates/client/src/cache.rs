//! Caches: the objects of a kind as last seen, kept current by one watch per kind and process.
//!
//! A handler is told of every change but should only turn it into keys for a [`crate::Queue`]:
//! whoever works off the queue reads the present state here.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{is_not_served, line};
use crate::lenient::Lenient;
use crate::queue::Queue;

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

/// `namespace/name`, or `name`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// One change: `old` is absent for a new object, `new` for one that is gone.
pub struct Change<'a, K> {
    pub key: &'a Key,
    pub old: Option<&'a Arc<K>>,
    pub new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The object after the change, or before it when it is gone.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.or(self.old)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

struct Inner<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    // Locked for every change, so that a new handler misses none and sees none twice.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// The objects of one kind. Clones share them.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// What a kind must be to be cached.
pub trait Cacheable:
    Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static> Cacheable for K {}

impl<K: Cacheable> Cache<K> {
    /// Starts to list and watch the objects of all namespaces that `config` selects, until
    /// `shutdown`.
    pub fn start(client: kube::Client, config: watcher::Config, shutdown: CancellationToken) -> Self
    where
        K::DynamicType: Default,
    {
        let api = Api::all(client);
        let cache = Self::detached();
        let feed = cache.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = feed.follow(api, config) => {}
                () = shutdown.cancelled() => {}
            }
        });
        cache
    }

    /// A cache that only [`Cache::replace`] and [`Cache::apply`] change: for tests.
    pub fn detached() -> Self {
        Self {
            inner: Arc::new(Inner {
                objects: RwLock::default(),
                handlers: Mutex::default(),
                synced: watch::channel(false).0,
            }),
        }
    }

    async fn follow(&self, api: Api<Lenient<K>>, config: watcher::Config) {
        let mut fresh = BTreeMap::new();
        let mut events = watcher(api, config).default_backoff().boxed();
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Init)) => fresh = BTreeMap::new(),
                Ok(Some(watcher::Event::InitApply(object))) => {
                    if let Some(object) = fit(object) {
                        fresh.insert(Key::of(&object), Arc::new(slim(object)));
                    }
                }
                Ok(Some(watcher::Event::InitDone)) => self.replace(std::mem::take(&mut fresh)),
                Ok(Some(watcher::Event::Apply(object))) => {
                    // What no longer fits is left as it was last understood.
                    if let Some(object) = fit(object) {
                        self.apply(Key::of(&object), Some(Arc::new(slim(object))));
                    }
                }
                Ok(Some(watcher::Event::Delete(object))) => self.apply(Key::of(&object), None),
                Ok(None) => return,
                Err(error) if is_not_served(&error) => {
                    tracing::debug!(kind = kind::<K>(), "is not served");
                }
                // The watcher recovers by itself, after a pause.
                Err(error) => {
                    tracing::warn!(error = line(&error), kind = kind::<K>(), "watch failed")
                }
            }
        }
    }

    /// Makes `fresh` the whole content, telling handlers of each difference.
    pub fn replace(&self, fresh: BTreeMap<Key, Arc<K>>) {
        let gone: Vec<Key> =
            self.inner.objects.read().keys().filter(|k| !fresh.contains_key(*k)).cloned().collect();
        for key in gone {
            self.apply(key, None);
        }
        for (key, object) in fresh {
            let same = self.get(&key).is_some_and(|old| {
                old.meta().resource_version.is_some()
                    && old.meta().resource_version == object.meta().resource_version
            });
            if !same {
                self.apply(key, Some(object));
            }
        }
        self.inner.synced.send_replace(true);
    }

    /// Sets or removes one object and tells handlers.
    pub fn apply(&self, key: Key, new: Option<Arc<K>>) {
        let handlers = self.inner.handlers.lock();
        let old = {
            let mut objects = self.inner.objects.write();
            match &new {
                Some(object) => objects.insert(key.clone(), Arc::clone(object)),
                None => objects.remove(&key),
            }
        };
        if old.is_none() && new.is_none() {
            return;
        }
        let change = Change { key: &key, old: old.as_ref(), new: new.as_ref() };
        for handler in handlers.iter() {
            handler(&change);
        }
    }

    /// Calls `handler` for each object there is, then for every change. It must not block.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        for (key, object) in self.inner.objects.read().iter() {
            handler(&Change { key, old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }

    /// Puts the key of each object there is, then of every one that changes, into a queue.
    pub fn feed(&self, queue: &Queue<Key>) {
        let queue = queue.clone();
        self.on_change(move |change| queue.add(change.key.clone()));
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.objects.read().get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.objects.read().values().cloned().collect()
    }

    /// The objects of a namespace, by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.inner.objects.read();
        objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// Whether the first list has arrived.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        // The sender lives in `self`, so this ends only when the value is true.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

/// `Pod`, of `k8s_openapi::api::core::v1::pod::Pod`.
fn kind<K>() -> &'static str {
    let path = std::any::type_name::<K>();
    path.rsplit("::").next().unwrap_or(path)
}

/// The object, unless it does not fit its type, which is told.
fn fit<K: Cacheable>(object: Lenient<K>) -> Option<K> {
    let key = Key::of(&object);
    object
        .0
        .inspect_err(|unfit| {
            tracing::error!(%key, kind = kind::<K>(), error = unfit.why, "object not understood");
        })
        .ok()
}

/// Nobody here reads managedFields, and they are half of an object.
fn slim<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// The caches of a process: one for each kind, started at its first use.
#[derive(Clone)]
pub struct Caches {
    client: kube::Client,
    shutdown: CancellationToken,
    started: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>>,
}

impl Caches {
    pub fn new(client: kube::Client, shutdown: CancellationToken) -> Self {
        Self { client, shutdown, started: Arc::default() }
    }

    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// The cache of all objects of a kind.
    pub fn of<K>(&self) -> Cache<K>
    where
        K: Cacheable,
        K::DynamicType: Default,
    {
        let mut started = self.started.lock();
        let entry = started.entry(TypeId::of::<K>()).or_insert_with(|| {
            Box::new(Cache::<K>::start(
                self.client.clone(),
                watcher::Config::default(),
                self.shutdown.clone(),
            ))
        });
        match entry.downcast_ref::<Cache<K>>() {
            Some(cache) => cache.clone(),
            None => unreachable!("entries are keyed by their type"),
        }
    }
}
