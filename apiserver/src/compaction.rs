//! Forgetting of etcd's history, which the API servers of a cluster see to together.
//!
//! They take turns by a key that all of them know, upstream's too (`storage/etcd3/compact.go`):
//! who changes it while nobody else has since its last turn compacts to the revision that it saw
//! then. So an interval's history is always kept.

use std::time::Duration;

use bytes::Bytes;
use store::{Expect, Outcome, Revision, SharedStore, StoreError};
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Stands outside the prefix of the objects; its value is the revision compacted to.
const KEY: &[u8] = b"compact_rev_key";

/// What a server knows of the turns.
#[derive(Debug, Default)]
struct Turns {
    /// Revision of the key when it was seen last; `None`: it was not there.
    seen: Option<Revision>,
    /// The store's revision then; 0: not known.
    then: Revision,
}

impl Turns {
    /// Takes a turn, or learns that another server has. Returns the revision compacted to.
    async fn take(&mut self, store: &SharedStore) -> Result<Option<Revision>, StoreError> {
        let expect = self.seen.map_or(Expect::Absent, Expect::At);
        let value = Bytes::from(self.then.to_string());
        match store.put(Bytes::from_static(KEY), value, expect, None).await? {
            Outcome::Done(now) => {
                let to = std::mem::replace(&mut self.then, now);
                self.seen = Some(now);
                // The first turn only learns where history is.
                if to == 0 {
                    return Ok(None);
                }
                store.compact(to).await?;
                Ok(Some(to))
            }
            Outcome::Mismatch(found) => {
                let now = store.current_revision().await?;
                *self = Self { seen: found.map(|kv| kv.mod_revision), then: now };
                Ok(None)
            }
        }
    }
}

/// Takes a turn every `every` until `shutdown`.
pub(crate) async fn run(store: SharedStore, every: Duration, shutdown: CancellationToken) {
    let mut turns = Turns::default();
    let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match turns.take(&store).await {
            Ok(Some(revision)) => tracing::debug!(revision, "compacted"),
            Ok(None) => {}
            // Somebody else was there first, an operator by hand perhaps.
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => tracing::warn!(%error, "cannot compact"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use store::embedded::Embedded;

    use super::*;

    async fn write(store: &SharedStore, key: &'static str) -> Revision {
        let key = Bytes::from_static(key.as_bytes());
        match store.put(key, Bytes::new(), Expect::Absent, None).await {
            Ok(Outcome::Done(revision)) => revision,
            other => panic!("{other:?}"),
        }
    }

    async fn readable(store: &SharedStore, at: Revision) -> bool {
        !matches!(store.get(b"a", Some(at)).await, Err(StoreError::Compacted { .. }))
    }

    #[tokio::test]
    async fn servers_take_turns_and_keep_an_interval() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(dir.path().join("store"), Default::default()).expect("a store");
        let store: SharedStore = Arc::clone(&store) as SharedStore;
        let (mut one, mut other) = (Turns::default(), Turns::default());
        let first = write(&store, "a").await;
        // The first turn of each: the key is made, then it is found.
        assert_eq!(one.take(&store).await.expect("a turn"), None);
        assert_eq!(other.take(&store).await.expect("a turn"), None);
        let seen = one.then;
        let second = write(&store, "b").await;
        assert!(readable(&store, first).await);
        // Whoever comes first compacts to what it saw, the other one does not.
        assert_eq!(one.take(&store).await.expect("a turn"), Some(seen));
        assert_eq!(other.take(&store).await.expect("a turn"), None);
        assert!(!readable(&store, first).await);
        assert!(readable(&store, second).await);
        // When the first one is gone, the other goes on.
        let seen = other.then;
        write(&store, "c").await;
        assert_eq!(other.take(&store).await.expect("a turn"), Some(seen));
        let (_, key) = store.get(KEY, None).await.expect("the key");
        assert_eq!(key.map(|kv| kv.value), Some(Bytes::from(seen.to_string())));
        assert!(!readable(&store, second).await);
    }
}
