//! Caches of claims, volumes and what decides about them feed the snapshot.

use std::sync::Arc;

use client::Caches;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

use super::Scheduler;
use crate::framework::ClusterEvent;
use crate::volumes::Volumes;

impl Scheduler {
    /// Changes what is known of storage, and tells pods that wait.
    fn storage_change(&self, event: ClusterEvent, change: impl FnOnce(&mut Volumes)) {
        let mut state = self.state.lock();
        change(&mut state.snapshot.volumes);
        self.storage.notify_waiters();
        self.event(&mut state, event);
    }

    pub(super) fn follow_storage(self: &Arc<Self>, caches: &Caches) {
        let me = Arc::clone(self);
        caches.of::<PersistentVolumeClaim>().on_change(move |change| {
            me.storage_change(ClusterEvent::ClaimChanged, |all| {
                all.set_claim(change.key, change.new.cloned());
            });
        });
        let me = Arc::clone(self);
        caches.of::<PersistentVolume>().on_change(move |change| {
            me.storage_change(ClusterEvent::StorageChanged, |all| {
                all.set_volume(&change.key.name, change.new.cloned());
            });
        });
        let me = Arc::clone(self);
        caches.of::<StorageClass>().on_change(move |change| {
            let (name, new) = (change.key.name.clone(), change.new.cloned());
            me.storage_change(ClusterEvent::StorageChanged, |all| {
                match new {
                    Some(class) => all.classes.insert(name, class),
                    None => all.classes.remove(&name),
                };
            });
        });
        let me = Arc::clone(self);
        caches.of::<CSIDriver>().on_change(move |change| {
            let (name, new) = (change.key.name.clone(), change.new.cloned());
            me.storage_change(ClusterEvent::StorageChanged, |all| {
                match new {
                    Some(driver) => all.drivers.insert(name, driver),
                    None => all.drivers.remove(&name),
                };
            });
        });
        let me = Arc::clone(self);
        caches.of::<CSINode>().on_change(move |change| {
            let (name, new) = (change.key.name.clone(), change.new.cloned());
            me.storage_change(ClusterEvent::StorageChanged, |all| {
                match new {
                    Some(node) => all.nodes.insert(name, node),
                    None => all.nodes.remove(&name),
                };
            });
        });
        let me = Arc::clone(self);
        caches.of::<CSIStorageCapacity>().on_change(move |change| {
            let (key, new) = (change.key.clone(), change.new.cloned());
            me.storage_change(ClusterEvent::StorageChanged, |all| {
                match new {
                    Some(capacity) => all.capacities.insert(key, capacity),
                    None => all.capacities.remove(&key),
                };
            });
        });
    }

    /// Waits until all of it is known: before, claims would look missing.
    pub(super) async fn storage_synced(caches: &Caches) {
        let (claims, volumes) =
            (caches.of::<PersistentVolumeClaim>(), caches.of::<PersistentVolume>());
        let (classes, drivers) = (caches.of::<StorageClass>(), caches.of::<CSIDriver>());
        let (nodes, capacities) = (caches.of::<CSINode>(), caches.of::<CSIStorageCapacity>());
        tokio::join!(
            claims.synced(),
            volumes.synced(),
            classes.synced(),
            drivers.synced(),
            nodes.synced(),
            capacities.synced()
        );
    }
}
