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

    /// [`feed`](Self::feed) into a map that holds just what the cache holds.
    fn mirror<K, I>(
        self: &Arc<Self>,
        caches: &Caches,
        event: impl for<'e> Fn(Seen<'e, K>) -> ClusterEvent<'e> + Send + Sync + 'static,
        map: fn(&mut Volumes) -> &mut HashMap<I, Arc<K>>,
        id: fn(&Key) -> I,
    ) where
        K: Cacheable,
        K::DynamicType: Default,
        I: Eq + Hash + 'static,
    {
        self.feed(caches, event, move |all, key, new| {
            match new {
                Some(new) => map(all).insert(id(key), new),
                None => map(all).remove(&id(key)),
            };
        });
    }

    #[expect(clippy::redundant_closure, reason = "a variant by itself is of one lifetime")]
    pub(super) fn follow_storage(self: &Arc<Self>, caches: &Caches) {
        let name = |key: &Key| key.name.clone();
        self.feed(caches, |seen| ClusterEvent::Claim(seen), Volumes::set_claim);
        self.feed(
            caches,
            |seen| ClusterEvent::Volume(seen),
            |all, key, new| all.set_volume(&key.name, new),
        );
        self.mirror(caches, |seen| ClusterEvent::Class(seen), |all| &mut all.classes, name);
        self.mirror(caches, |seen| ClusterEvent::Driver(seen), |all| &mut all.drivers, name);
        self.mirror(caches, |seen| ClusterEvent::Attachable(seen), |all| &mut all.nodes, name);
        self.mirror(
            caches,
            |seen| ClusterEvent::Capacity(seen),
            |all| &mut all.capacities,
            Key::clone,
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
