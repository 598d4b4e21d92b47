//! The zone's view of the cluster: caches of services, slices and namespaces, with an index of
//! addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use client::{Cache, Change, Key};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;

use crate::zone::View;

const SERVICE: &str = "kubernetes.io/service-name";

/// Keys by what they are looked up by.
#[derive(Default)]
struct Index {
    services: HashMap<IpAddr, Key>,
    slices_by_ip: HashMap<IpAddr, Vec<Key>>,
    slices_by_service: HashMap<Key, Vec<Key>>,
}

#[derive(Clone)]
pub struct Caches {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    namespaces: Cache<Namespace>,
    index: Arc<RwLock<Index>>,
}

impl Caches {
    pub fn start(client: kube::Client, shutdown: CancellationToken) -> Self {
        let all = watcher::Config::default;
        let caches = Self {
            services: Cache::start(client.clone(), all(), shutdown.clone()),
            slices: Cache::start(client.clone(), all(), shutdown.clone()),
            namespaces: Cache::start(client, all(), shutdown),
            index: Arc::default(),
        };
        let index = Arc::clone(&caches.index);
        caches.services.on_change(move |change| write(&index).service(change));
        let index = Arc::clone(&caches.index);
        caches.slices.on_change(move |change| write(&index).slice(change));
        caches
    }

    pub async fn synced(&self) {
        tokio::join!(self.services.synced(), self.slices.synced(), self.namespaces.synced());
    }

    fn slices(&self, keys: Option<&Vec<Key>>) -> Vec<Arc<EndpointSlice>> {
        keys.into_iter().flatten().filter_map(|key| self.slices.get(key)).collect()
    }
}

fn write(index: &RwLock<Index>) -> RwLockWriteGuard<'_, Index> {
    index.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn read(index: &RwLock<Index>) -> RwLockReadGuard<'_, Index> {
    index.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Index {
    fn service(&mut self, change: &Change<'_, Service>) {
        let ips = |service: &Service| -> Vec<IpAddr> {
            let spec = service.spec.as_ref();
            let ips = spec.and_then(|s| s.cluster_ips.as_ref()).into_iter().flatten();
            ips.filter_map(|ip| ip.parse().ok()).collect()
        };
        for ip in change.old.into_iter().flat_map(|s| ips(s)) {
            // The address may be another service's by now.
            if self.services.get(&ip) == Some(change.key) {
                self.services.remove(&ip);
            }
        }
        for ip in change.new.into_iter().flat_map(|s| ips(s)) {
            self.services.insert(ip, change.key.clone());
        }
    }

    fn slice(&mut self, change: &Change<'_, EndpointSlice>) {
        if let Some(old) = change.old {
            for ip in addresses(old) {
                remove(&mut self.slices_by_ip, &ip, change.key);
            }
            if let Some(service) = service_of(old) {
                remove(&mut self.slices_by_service, &service, change.key);
            }
        }
        if let Some(new) = change.new {
            for ip in addresses(new) {
                self.slices_by_ip.entry(ip).or_default().push(change.key.clone());
            }
            if let Some(service) = service_of(new) {
                self.slices_by_service.entry(service).or_default().push(change.key.clone());
            }
        }
    }
}

fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Vec<Key>>, at: &K, key: &Key) {
    if let Some(keys) = index.get_mut(at) {
        keys.retain(|k| k != key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

fn addresses(slice: &EndpointSlice) -> Vec<IpAddr> {
    slice.endpoints.iter().flat_map(|e| &e.addresses).filter_map(|a| a.parse().ok()).collect()
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE)?;
    Some(Key::new(slice.metadata.namespace.as_ref()?, service))
}

impl View for Caches {
    fn namespace(&self, name: &str) -> bool {
        self.namespaces.get(&Key::new("", name)).is_some()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&Key::new(namespace, name))
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let index = read(&self.index);
        self.slices(index.slices_by_service.get(&Key::new(namespace, service)))
    }

    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        let key = read(&self.index).services.get(&ip).cloned()?;
        self.services.get(&key)
    }

    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let index = read(&self.index);
        self.slices(index.slices_by_ip.get(&ip))
    }
}
