//! Who waits for progress, and the one task that asks for it.
//!
//! What a watch must reach takes a linearizable read to know, and many readers wait at a time: one
//! read serves all who came before it began, and only watches that somebody waits for are asked.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Etcd, RETRY};
use crate::Store as _;

/// Prefixes whose watches are to report how far they are.
#[derive(Default)]
pub(super) struct Wanted {
    prefixes: Mutex<BTreeSet<Bytes>>,
    more: Notify,
}

impl Wanted {
    /// Asks for a prefix; for how often it is asked for until then, it is served once.
    pub(super) fn add(&self, prefix: &[u8]) {
        self.prefixes.lock().insert(Bytes::copy_from_slice(prefix));
        self.more.notify_one();
    }

    /// Lets the task see that the store is gone.
    pub(super) fn close(&self) {
        self.more.notify_one();
    }

    fn take(&self) -> BTreeSet<Bytes> {
        std::mem::take(&mut *self.prefixes.lock())
    }

    fn give_back(&self, prefixes: BTreeSet<Bytes>) {
        self.prefixes.lock().extend(prefixes);
        self.more.notify_one();
    }
}

/// Serves who waits, until the store is gone.
pub(super) async fn run(etcd: Weak<Etcd>, wanted: Arc<Wanted>) {
    loop {
        wanted.more.notified().await;
        let Some(etcd) = etcd.upgrade() else { return };
        // Taken before the read: who comes while it is under way gets the next one.
        let prefixes = wanted.take();
        if prefixes.is_empty() {
            continue;
        }
        let failed = match etcd.current_revision().await {
            Ok(target) => {
                etcd.watcher.request_progress(&prefixes, target);
                continue;
            }
            Err(error) => error,
        };
        drop(etcd);
        tracing::debug!(error = %failed, "cannot ask for progress");
        tokio::time::sleep(RETRY).await;
        wanted.give_back(prefixes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_it_is_asked_for_a_prefix_is_served_once() {
        let wanted = Wanted::default();
        for prefix in ["/a/", "/b/", "/a/"] {
            wanted.add(prefix.as_bytes());
        }
        let taken = wanted.take();
        assert_eq!(taken.iter().collect::<Vec<_>>(), ["/a/", "/b/"]);
        assert!(wanted.take().is_empty());
        wanted.add(b"/c/");
        wanted.give_back(taken);
        assert_eq!(wanted.take().len(), 3, "what failed is owed still");
    }
}
