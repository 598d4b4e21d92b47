//! A store whose watches are behind, as those of an etcd member that lags.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use store::{
    Expect, KeyValue, ListRequest, ListResponse, Outcome, Revision, SharedStore, Store, StoreError,
    WatchStream,
};
use tokio::sync::watch;

pub struct Late {
    store: SharedStore,
    /// While this is set, nothing is delivered.
    stuck: watch::Receiver<bool>,
    /// The limits of the lists of past states that it was asked for.
    pub past: Arc<Mutex<Vec<usize>>>,
}

impl Late {
    pub fn new(store: SharedStore) -> Self {
        // Without a sender it stays as it is.
        Self::with_switch(store).0
    }

    /// As [`new`](Self::new), with a switch.
    pub fn with_switch(store: SharedStore) -> (Self, watch::Sender<bool>) {
        let switch = watch::Sender::new(false);
        (Self { store, stuck: switch.subscribe(), past: Arc::default() }, switch)
    }
}

#[async_trait::async_trait]
impl Store for Late {
    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        let events = self.store.watch(prefix, from).await?;
        let stuck = self.stuck.clone();
        Ok(Box::pin(events.then(move |event| {
            let mut stuck = stuck.clone();
            async move {
                let late = rand::random::<u64>() % 20;
                tokio::time::sleep(Duration::from_millis(late)).await;
                // An error: nobody holds the switch any more.
                let _free = stuck.wait_for(|stuck| !stuck).await;
                event
            }
        })))
    }

    async fn get(
        &self,
        key: &[u8],
        revision: Option<Revision>,
    ) -> Result<(Revision, Option<KeyValue>), StoreError> {
        self.store.get(key, revision).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse, StoreError> {
        if request.revision.is_some() {
            self.past.lock().push(request.limit);
        }
        self.store.list(request).await
    }

    async fn revisions(
        &self,
        prefix: Bytes,
        revision: Option<Revision>,
    ) -> Result<(Revision, Vec<(Bytes, Revision)>), StoreError> {
        self.store.revisions(prefix, revision).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, StoreError> {
        self.store.put(key, value, expect, ttl).await
    }

    async fn delete(&self, key: Bytes, revision: Revision) -> Result<Outcome, StoreError> {
        self.store.delete(key, revision).await
    }

    fn reports_progress(&self) -> bool {
        self.store.reports_progress()
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.store.request_progress(prefix).await
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        self.store.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.store.size().await
    }
}
