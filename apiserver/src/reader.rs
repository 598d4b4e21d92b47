//! How the parts of the apiserver itself read objects: from the watch caches, never over HTTP.

use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use apimachinery::gvk::GroupResource;
use apimachinery::{Value, object};
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::admission::lookup::Live;
use crate::cache::{Cached, Codec};
use crate::registry::catalog::Catalog;

/// A decoded object, shared.
pub type Object = Arc<Value>;

/// Reads of objects in their storage version, from the caches.
pub trait Reader: Send + Sync + 'static {
    /// `namespace` is empty for cluster-scoped resources.
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object>;

    /// All objects of a resource; of one namespace, when it is not empty.
    fn list(&self, resource: &GroupResource, namespace: &str) -> Vec<Object>;

    /// Those of which a field that selectors may name has a value. Of the others, caches look at
    /// the index alone.
    fn list_by(
        &self,
        resource: &GroupResource,
        namespace: &str,
        field: &str,
        value: &str,
    ) -> Vec<Object> {
        let path: Vec<&str> = field.split('.').collect();
        let mut objects = self.list(resource, namespace);
        objects.retain(|object| object::str_at(object, &path) == value);
        objects
    }

    /// A number that changes whenever the resource does: for whoever keeps something computed
    /// from its objects.
    fn version(&self, resource: &GroupResource) -> u64;
}

/// The caches of a catalog as a [`Reader`]. Strategies and authorizers are made before the
/// catalog is, so that it comes later.
#[derive(Default)]
pub struct Caches {
    catalog: watch::Sender<Arc<Catalog>>,
    store: OnceLock<store::SharedStore>,
}

impl Caches {
    /// The store that [`Live`] reads go to.
    pub fn set_store(&self, store: store::SharedStore) {
        let _ = self.store.set(store);
    }

    /// The store that objects are in.
    pub(crate) fn store(&self) -> Option<&store::SharedStore> {
        self.store.get()
    }

    /// Reads from the caches of this catalog from now on.
    pub fn set_catalog(&self, catalog: Arc<Catalog>) {
        self.catalog.send_replace(catalog);
    }

    /// The catalog in service.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    fn list_where(
        &self,
        resource: &GroupResource,
        namespace: &str,
        wanted: impl Fn(&Codec, &Cached) -> bool,
    ) -> Vec<Object> {
        let catalog = self.catalog();
        let Some(cache) = catalog.cache(resource) else { return Vec::new() };
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let cut = cache.cut();
        let range = cut.objects.range(&prefix, Bound::Unbounded);
        let wanted = range.filter(|cached| wanted(&cache.codec, cached));
        wanted.filter_map(|cached| value(&cache.codec, cached)).collect()
    }

    /// Tells when one of these resources, or what is served, may have changed; the first time at
    /// once. The resources are those that are always served.
    pub fn changes(&self, resources: &[GroupResource]) -> Changes {
        let catalog = self.catalog();
        let caches = resources.iter().filter_map(|r| catalog.cache(r));
        let mut changes = Changes {
            catalog: self.catalog.subscribe(),
            caches: caches.map(|cache| cache.changes()).collect(),
        };
        changes.catalog.mark_changed();
        changes
    }
}

/// See [`Caches::changes`].
pub struct Changes {
    catalog: watch::Receiver<Arc<Catalog>>,
    caches: Vec<watch::Receiver<u64>>,
}

impl Changes {
    /// Waits for a change that was not waited for yet. What ends changes no more.
    pub async fn next(&mut self) {
        async fn of<T>(receiver: &mut watch::Receiver<T>) {
            if receiver.changed().await.is_err() {
                std::future::pending().await
            }
        }
        let mut all: FuturesUnordered<_> = self.caches.iter_mut().map(of).collect();
        tokio::select! {
            () = of(&mut self.catalog) => {}
            Some(()) = all.next() => {}
        }
    }
}

fn value(codec: &Codec, cached: &Cached) -> Option<Object> {
    match cached.value(codec) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(key = &*cached.key, %error, "stored object cannot be read");
            None
        }
    }
}

fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl Reader for Caches {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object> {
        let catalog = self.catalog();
        let cache = catalog.cache(resource)?;
        let cached = cache.get(&key(namespace, name))?;
        value(&cache.codec, &cached)
    }

    fn list(&self, resource: &GroupResource, namespace: &str) -> Vec<Object> {
        self.list_where(resource, namespace, |_, _| true)
    }

    fn list_by(
        &self,
        resource: &GroupResource,
        namespace: &str,
        field: &str,
        value: &str,
    ) -> Vec<Object> {
        self.list_where(resource, namespace, |codec, cached| {
            codec.field_at(field).is_some_and(|at| cached.field(codec, at) == value)
        })
    }

    fn version(&self, resource: &GroupResource) -> u64 {
        let catalog = self.catalog();
        catalog.cache(resource).map_or(0, |cache| cache.changed())
    }
}

#[async_trait]
impl Live for Caches {
    async fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object> {
        let catalog = self.catalog();
        let cache = catalog.cache(resource)?;
        let store = self.store.get()?;
        let key = key(namespace, name);
        let kv = match store.get(&cache.store_key(&key), None).await {
            Ok((_, kv)) => kv?,
            Err(error) => {
                tracing::warn!(%resource, %error, "cannot read from the store");
                return Reader::get(self, resource, namespace, name);
            }
        };
        value(&cache.codec, &*cache.adopt(kv)?)
    }
}
