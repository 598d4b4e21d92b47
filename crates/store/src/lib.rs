//! One revisioned key-value space, and two engines behind it: etcd and an embedded one.
//!
//! The contract is etcd's (api_guarantees): a write that was acknowledged is durable and in every
//! later linearizable read; revisions grow by one transaction; a watch delivers every event of
//! its range once, in order, whole transactions together. `tests/contract` holds both engines to it.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Position in the history of the store. The resourceVersion of the API is this number.
pub type Revision = u64;

/// A key's value at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

/// What must be true of a key for a write to it to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The key exists and was last changed at this revision.
    At(Revision),
}

/// How a conditional write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done and durable, at this revision.
    Done(Revision),
    /// The expectation did not hold; this is what the key holds instead.
    Mismatch(Option<KeyValue>),
}

/// One range to list.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Keys that begin with this.
    pub prefix: Bytes,
    /// Where in the prefix to begin (for continuation).
    pub start: Bound<Bytes>,
    /// At most so many; 0: all.
    pub limit: usize,
    /// State at this revision; `None`: the newest, linearizable.
    pub revision: Option<Revision>,
}

/// A consistent cut of a range.
#[derive(Clone, Debug, Default)]
pub struct ListResponse {
    /// The revision of the cut.
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// Whether more keys follow.
    pub more: bool,
    /// Keys in the range from `start` on, those returned included.
    pub count: u64,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was created or changed; `kv.create_revision == kv.mod_revision` tells which.
    Put { kv: KeyValue, previous: Option<KeyValue> },
    /// `previous` is what was deleted, where the engine still knows it.
    Delete { key: Bytes, revision: Revision, previous: Option<KeyValue> },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put { kv, .. } => &kv.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// The revision that changed it.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put { kv, .. } => kv.mod_revision,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of the range in one transaction, in order.
    Changes { revision: Revision, changes: Vec<Change> },
    /// Everything up to this revision has been delivered.
    Progress(Revision),
}

/// Why an operation failed. Every write that returns an error other than `Unknown` had no effect.
///
/// Where upstream's API server shows etcd's words to clients, the text is etcd's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Revision below the compaction; carries the oldest one still kept, or 0 if the engine does
    /// not tell.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted { oldest: Revision },
    /// A revision that the store has not reached.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future { asked: Revision, current: Revision },
    /// The request was larger than the engine takes; carries how large and what the limit is.
    #[error("etcdserver: request is too large")]
    TooLarge(String),
    /// A watcher that reads too slowly was closed.
    #[error("watcher was too slow and has been closed")]
    Slow,
    /// The engine cannot be reached or is shutting down; nothing was done.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// A write whose outcome is not known (connection lost).
    #[error("outcome of the write is unknown: {0}")]
    Unknown(String),
    /// The data on disk is not what was written.
    #[error("store is damaged: {0}")]
    Damaged(String),
}

/// A running watch. Dropping it ends it.
pub type WatchStream =
    std::pin::Pin<Box<dyn futures::Stream<Item = Result<WatchEvent, StoreError>> + Send>>;

/// A revisioned key-value space.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key: its value and the revision of the read. Linearizable when `revision` is `None`.
    async fn get(
        &self,
        key: &[u8],
        revision: Option<Revision>,
    ) -> Result<(Revision, Option<KeyValue>), StoreError>;

    /// A range, in key order.
    async fn list(&self, request: ListRequest) -> Result<ListResponse, StoreError>;

    /// The keys that begin with `prefix` and the revision that changed each last, in key order, as
    /// of `revision` (`None`: the newest), and which revision that is. Values are not read.
    async fn revisions(
        &self,
        prefix: Bytes,
        revision: Option<Revision>,
    ) -> Result<(Revision, Vec<(Bytes, Revision)>), StoreError>;

    /// Writes a key if `expect` holds. With `ttl` the key is deleted when so much time has passed
    /// (coarsely; used for Events only).
    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, StoreError>;

    /// Deletes a key if it was last changed at `revision`.
    async fn delete(&self, key: Bytes, revision: Revision) -> Result<Outcome, StoreError>;

    /// Changes of keys that begin with `prefix`, from `from` (inclusive) on.
    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError>;

    /// Whether progress can be asked for. Without it (old etcd) a cache cannot be shown to be
    /// current, and what must be current is read from the store.
    fn reports_progress(&self) -> bool {
        true
    }

    /// Asks that all watches of prefixes that begin with `prefix` soon deliver
    /// [`WatchEvent::Progress`] at or above the present revision; other watches are left alone.
    /// `Unavailable` where [`Store::reports_progress`] is false.
    async fn request_progress(&self, prefix: &[u8]) -> Result<(), StoreError>;

    /// The newest revision, linearizable.
    async fn current_revision(&self) -> Result<Revision, StoreError>;

    /// Forgets history below `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Bytes on disk, for metrics.
    async fn size(&self) -> Result<u64, StoreError>;
}

/// A shared handle.
pub type SharedStore = Arc<dyn Store>;

/// The first key after all keys that begin with `prefix`; empty if there is none (the prefix is
/// empty or all `0xff`), which stands for "to the end of the key space".
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != u8::MAX) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        }
        None => Bytes::new(),
    }
}

pub mod embedded;
pub mod etcd;
