//! Caches: the objects of a kind as last seen, kept current by one watch per kind and process.
//!
//! A handler is told of every change but should only turn it into keys for a [`crate::Queue`]:
//! whoever works off the queue reads the present state here.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kube::core::ApiResource;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{is_not_served, line};
use crate::queue::Queue;
use crate::raw::Raw;

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
        let resource = ApiResource::erase::<K>(&K::DynamicType::default());
        Self::fed(Api::all_with(client, &resource), config, shutdown)
    }

    /// As [`Cache::start`], of one namespace.
    pub fn start_in(
        client: kube::Client,
        namespace: &str,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) -> Self
    where
        K::DynamicType: Default,
    {
        let resource = ApiResource::erase::<K>(&K::DynamicType::default());
        Self::fed(Api::namespaced_with(client, namespace, &resource), config, shutdown)
    }

    fn fed(api: Api<Raw>, config: watcher::Config, shutdown: CancellationToken) -> Self {
        let cache = Self::detached();
        let feed = Feed { cache: cache.clone(), fresh: BTreeMap::new() };
        tokio::spawn(async move {
            tokio::select! {
                () = follow(api, config, Box::new(feed)) => {}
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

    /// The arrival of the first list, whatever the kind.
    pub fn first_list(&self) -> Synced {
        Synced(self.inner.synced.subscribe())
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        self.first_list().wait().await;
    }
}

/// The arrival of a cache's first list.
#[derive(Clone)]
pub struct Synced(watch::Receiver<bool>);

impl Synced {
    /// Waits for it; ends also when nobody holds the cache any longer.
    pub async fn wait(mut self) {
        let _ = self.0.wait_for(|synced| *synced).await;
    }
}

/// What a watch tells of, kept in a cache.
struct Feed<K> {
    cache: Cache<K>,
    /// The part of a list that has arrived.
    fresh: BTreeMap<Key, Arc<K>>,
}

/// A [`Feed`], whatever it is of.
trait Sink: Send {
    /// One more object of a list.
    fn listed(&mut self, object: &Raw);

    /// The list is whole, or begins anew.
    fn list_ends(&mut self, whole: bool);

    fn changed(&mut self, object: &Raw);

    fn gone(&mut self, key: Key);
}

impl<K: Cacheable> Feed<K> {
    /// The object, unless it does not fit its type, which is told.
    fn fit(&self, object: &Raw) -> Option<Arc<K>> {
        let unfit = |error: &serde_json::Error| {
            let (key, kind) = (Key::of(object), std::any::type_name::<K>());
            tracing::error!(%key, kind, %error, "object not understood");
        };
        let mut object: K = object.decode().inspect_err(unfit).ok()?;
        // Nobody here reads managedFields, and they are half of an object.
        object.meta_mut().managed_fields = None;
        Some(Arc::new(object))
    }
}

impl<K: Cacheable> Sink for Feed<K> {
    fn listed(&mut self, object: &Raw) {
        if let Some(fit) = self.fit(object) {
            self.fresh.insert(Key::of(object), fit);
        }
    }

    fn list_ends(&mut self, whole: bool) {
        let fresh = std::mem::take(&mut self.fresh);
        if whole {
            self.cache.replace(fresh);
        }
    }

    fn changed(&mut self, object: &Raw) {
        // What no longer fits is left as it was last understood.
        if let Some(fit) = self.fit(object) {
            self.cache.apply(Key::of(object), Some(fit));
        }
    }

    fn gone(&mut self, key: Key) {
        self.cache.apply(key, None);
    }
}

async fn follow(api: Api<Raw>, config: watcher::Config, mut sink: Box<dyn Sink>) {
    let url = api.resource_url().to_owned();
    let mut events = watcher(api, config).default_backoff().boxed();
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => sink.list_ends(false),
            Ok(Some(watcher::Event::InitApply(object))) => sink.listed(&object),
            Ok(Some(watcher::Event::InitDone)) => sink.list_ends(true),
            Ok(Some(watcher::Event::Apply(object))) => sink.changed(&object),
            Ok(Some(watcher::Event::Delete(object))) => sink.gone(Key::of(&object)),
            Ok(None) => return,
            Err(error) if is_not_served(&error) => tracing::debug!(url, "is not served"),
            // The watcher recovers by itself, after a pause.
            Err(error) => tracing::warn!(error = line(&error), url, "watch failed"),
        }
    }
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

    /// A cache of its own, of the objects of a kind that a field selector picks: for few of many.
    pub fn selected<K>(&self, fields: &str) -> Cache<K>
    where
        K: Cacheable,
        K::DynamicType: Default,
    {
        let config = watcher::Config::default().fields(fields);
        Cache::start(self.client.clone(), config, self.shutdown.clone())
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_object_of_a_namespace_is_followed_until_the_end() -> anyhow::Result<()> {
        let (asked, mut questions) = mpsc::unbounded_channel();
        let answer = move |request: http::Request<Body>| {
            let uri = request.uri().to_string();
            let watches = uri.contains("watch=true");
            let told = asked.send(uri);
            async move {
                told?;
                if watches {
                    std::future::pending::<()>().await;
                }
                let list = json!({"kind": "ConfigMapList", "apiVersion": "v1",
                    "metadata": {"resourceVersion": "7"},
                    "items": [{"metadata": {"namespace": "ns", "name": "x"}, "data": {"k": "v"}}]});
                Ok::<_, tower::BoxError>(http::Response::new(Body::from(
                    list.to_string().into_bytes(),
                )))
            }
        };
        let client = kube::Client::new(tower::service_fn(answer), "default");
        let (one, until) =
            (watcher::Config::default().fields("metadata.name=x"), CancellationToken::new());
        let cache = Cache::<ConfigMap>::start_in(client, "ns", one, until.clone());
        cache.synced().await;
        let data = cache.get(&Key::new("ns", "x")).and_then(|map| map.data.clone());
        assert_eq!(data.map(|data| data["k"].clone()).as_deref(), Some("v"));
        for kind in ["list", "watch"] {
            let uri = questions.recv().await.unwrap_or_default();
            assert!(uri.starts_with("/api/v1/namespaces/ns/configmaps?"), "{kind} {uri}");
            assert!(uri.contains("fieldSelector=metadata.name%3Dx"), "{kind} {uri}");
            assert_eq!(uri.contains("watch=true"), kind == "watch", "{uri}");
        }
        until.cancel();
        // Nobody holds the client any longer.
        assert_eq!(questions.recv().await, None);
        Ok(())
    }
}
