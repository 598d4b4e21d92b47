//! A store whose watches are behind, as those of an etcd member that lags.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use store::{
    Expect, KeyValue, ListRequest, ListResponse, Outcome, Revision, SharedStore, Store, StoreError,
    WatchStream,
};

pub struct Late(pub SharedStore);

#[async_trait::async_trait]
impl Store for Late {
    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        let events = self.0.watch(prefix, from).await?;
        Ok(Box::pin(events.then(|event| async move {
            let late = rand::random::<u64>() % 20;
            tokio::time::sleep(Duration::from_millis(late)).await;
            event
        })))
    }

    async fn get(
        &self,
        key: &[u8],
        revision: Option<Revision>,
    ) -> Result<(Revision, Option<KeyValue>), StoreError> {
        self.0.get(key, revision).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse, StoreError> {
        self.0.list(request).await
    }

    async fn revisions(
        &self,
        prefix: Bytes,
        revision: Option<Revision>,
    ) -> Result<(Revision, Vec<(Bytes, Revision)>), StoreError> {
        self.0.revisions(prefix, revision).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, StoreError> {
        self.0.put(key, value, expect, ttl).await
    }

    async fn delete(&self, key: Bytes, revision: Revision) -> Result<Outcome, StoreError> {
        self.0.delete(key, revision).await
    }

    fn reports_progress(&self) -> bool {
        self.0.reports_progress()
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        self.0.request_progress().await
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        self.0.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.0.compact(revision).await
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.0.size().await
    }
}
