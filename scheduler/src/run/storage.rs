//! Caches of claims, volumes and what decides about them feed the snapshot.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use client::cache::Cacheable;
use client::{Caches, Key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

use super::Scheduler;
use crate::framework::{ClusterEvent, Seen};
use crate::volumes::Volumes;

/// Puts what is there now under a key.
fn put<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Scheduler {
    /// Lets a cache change what is known of storage, and tell pods that wait.
    fn feed<K>(
        self: &Arc<Self>,
        caches: &Caches,
        event: impl for<'e> Fn(Seen<'e, K>) -> ClusterEvent<'e> + Send + Sync + 'static,
        set: impl Fn(&mut Volumes, &Key, Option<Arc<K>>) + Send + Sync + 'static,
    ) where
        K: Cacheable,
        K::DynamicType: Default,
    {
        let me = Arc::clone(self);
        caches.of::<K>().on_change(move |change| {
            let mut state = me.state.lock();
            set(&mut state.snapshot.volumes, change.key, change.new.cloned());
            me.storage.notify_waiters();
            // What goes away lets nobody in.
            if let Some(new) = change.new {
                let seen = Seen { old: change.old.map(|old| &**old), new: &**new };
                me.event(&mut state, &event(seen));
            }
        });
    }

    #[expect(clippy::redundant_closure, reason = "a variant by itself is of one lifetime")]
    pub(super) fn follow_storage(self: &Arc<Self>, caches: &Caches) {
        self.feed(caches, |seen| ClusterEvent::Claim(seen), Volumes::set_claim);
        self.feed(
            caches,
            |seen| ClusterEvent::Volume(seen),
            |all, key, new| all.set_volume(&key.name, new),
        );
        self.feed(
            caches,
            |seen| ClusterEvent::Class(seen),
            |all, key, new| put(&mut all.classes, key.name.clone(), new),
        );
        self.feed(
            caches,
            |seen| ClusterEvent::Driver(seen),
            |all, key, new| put(&mut all.drivers, key.name.clone(), new),
        );
        self.feed(
            caches,
            |seen| ClusterEvent::Attachable(seen),
            |all, key, new| put(&mut all.nodes, key.name.clone(), new),
        );
        self.feed(
            caches,
            |seen| ClusterEvent::Capacity(seen),
            |all, key, new| put(&mut all.capacities, key.clone(), new),
        );
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
