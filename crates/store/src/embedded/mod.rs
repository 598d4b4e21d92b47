//! The engine in this process: one file, one writer, shared commits.
//!
//! - `layout`: the tables, and the reads and changes on them.
//! - `writer`: the thread that gathers writes into commits, and does the chores.
//! - `hub`: who watches, and what is still to be delivered.
//! - `file`: opening, creating, and what can be wrong with the file.

use std::collections::VecDeque;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use redb::{Database, StorageBackend};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Expect, KeyValue, ListRequest, ListResponse, Outcome, Revision, Store, StoreError, WatchEvent,
    WatchStream,
};

mod file;
mod hub;
mod layout;
mod writer;

use file::{Opener, Tuning, named};
use hub::{Hub, Limits, Registration, Take};
use layout::Snapshot;
use writer::{Job, Op, Reply, Writer};

/// Tells the time; only for expiry and retention.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What can be set about the engine.
#[derive(Clone)]
pub struct Options {
    /// Bound of the page cache, in bytes. The system's file cache stands behind it.
    pub cache_bytes: usize,
    /// Whether opening verifies the checksum of every page (reads the whole file).
    pub verify: bool,
    /// Bound of the writes that wait for a commit, in bytes; more wait outside.
    pub queue_bytes: usize,
    /// Largest key and value together, in bytes; etcd's default.
    pub max_request_bytes: usize,
    /// Bound of the newest changes kept in memory for watchers, in bytes.
    pub recent_bytes: usize,
    /// A watcher that has caught up once and then has more changes than this waiting is closed.
    pub watch_backlog: usize,
    /// If set, history older than so many revisions is forgotten by itself.
    pub keep_revisions: Option<u64>,
    /// If set, history older than this is forgotten by itself.
    pub keep_age: Option<Duration>,
    /// How often expiry and retention are looked at.
    pub sweep_interval: Duration,
    /// How often watches report progress unasked; etcd's default.
    pub progress_interval: Option<Duration>,
    /// The time.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 16 << 20,
            verify: true,
            queue_bytes: 16 << 20,
            max_request_bytes: 3 << 19,
            recent_bytes: 4 << 20,
            watch_backlog: 10_000,
            keep_revisions: None,
            keep_age: None,
            sweep_interval: Duration::from_secs(1),
            progress_interval: Some(Duration::from_secs(600)),
            clock: Arc::new(SystemTime::now),
        }
    }
}

/// Reads that touch the disk at the same time, at most.
const READERS: usize = 16;
/// The queue's budget is counted in units of so many bytes, and each request takes at least one.
const SHARE: usize = 1024;
/// Replay of history visits so many rows, or finds so many changes, before it looks up.
const REPLAY_SCAN: usize = 8192;
const REPLAY_CHANGES: usize = 512;

/// What the readers, the watches and the writer have in common.
struct Shared {
    name: String,
    /// The database, or why there is none.
    db: RwLock<Result<Arc<Database>, String>>,
    /// The database that was withdrawn last, until its readers have left.
    leaving: parking_lot::Mutex<Option<Arc<Database>>>,
    hub: Arc<Hub>,
    readers: Semaphore,
}

impl Shared {
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        match &*self.db.read() {
            Ok(db) => Ok(db.clone()),
            Err(why) => Err(StoreError::Unavailable(why.clone())),
        }
    }

    fn install(&self, db: Database) {
        *self.db.write() = Ok(Arc::new(db));
    }

    fn withdraw(&self, why: &str) {
        let old = std::mem::replace(&mut *self.db.write(), Err(why.to_owned()));
        if let Ok(db) = old {
            *self.leaving.lock() = Some(db);
        }
    }

    /// Waits until nobody reads the withdrawn database any more, and lets go of it.
    fn released(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let Some(mut db) = self.leaving.lock().take() else {
            return true;
        };
        loop {
            match Arc::try_unwrap(db) {
                Ok(_) => return true,
                Err(_) if Instant::now() >= until => return false,
                Err(still) => {
                    db = still;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Runs `read` on the newest state, off the async threads.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _turn = self
            .readers
            .acquire()
            .await
            .map_err(|_| StoreError::Unavailable("the store has been closed".into()))?;
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let db = shared.database()?;
            let snapshot = layout::snapshot(&db)?;
            read(&snapshot)
        });
        match done.await {
            Ok(result) => result.map_err(|error| named(&self.name, error)),
            Err(error) if error.is_panic() => {
                Err(StoreError::Damaged(format!("{}: reading it failed: {error}", self.name)))
            }
            Err(_) => Err(StoreError::Unavailable("the process is shutting down".into())),
        }
    }
}

/// The embedded store. Dropping it ends its watches and closes the file soon after;
/// [`Embedded::close`] waits for that.
pub struct Embedded {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
    budget: Arc<Semaphore>,
    options: Options,
    size: Box<dyn Fn() -> std::io::Result<u64> + Send + Sync>,
}

impl Embedded {
    /// Opens the store in the file `path`, making one with mode 0600 if there is none. Its folder
    /// must exist. Blocks while the file is verified.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be opened or another process has it open; `Damaged` if it
    /// is not what was written.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Arc<Self>, StoreError> {
        let tuning = Tuning { cache_bytes: options.cache_bytes, verify: options.verify };
        Self::start(Opener::file(path.as_ref(), tuning), options)
    }

    /// Opens the store in other storage than a file. `make` is called again to recover from a
    /// failure, and must give the same storage.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_backend<B: StorageBackend>(
        make: impl Fn() -> B + Send + Sync + Clone + 'static,
        options: Options,
    ) -> Result<Arc<Self>, StoreError> {
        let tuning = Tuning { cache_bytes: options.cache_bytes, verify: options.verify };
        Self::start(Opener::backend(make, tuning), options)
    }

    fn start(mut opener: Opener, options: Options) -> Result<Arc<Self>, StoreError> {
        let db = opener.open()?;
        let name = opener.name.clone();
        let revision = layout::snapshot(&db).map_err(|error| named(&name, error))?.revision;
        let (cleaning, next_deadline) = layout::chores(&db).map_err(|error| named(&name, error))?;
        let limits = Limits { ring_bytes: options.recent_bytes, backlog: options.watch_backlog };
        let shared = Arc::new(Shared {
            name,
            db: RwLock::new(Ok(Arc::new(db))),
            leaving: parking_lot::Mutex::new(None),
            hub: Arc::new(Hub::new(revision, limits)),
            readers: Semaphore::new(READERS),
        });
        let size = opener.take_size();
        let (queue, jobs) = mpsc::channel();
        let writer = Writer {
            shared: shared.clone(),
            queue: jobs,
            opener,
            options: options.clone(),
            cleaning,
            next_deadline,
            ages: VecDeque::new(),
            last_progress: (options.clock)(),
        };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Unavailable(format!("cannot start a thread: {error}")))?;
        let budget = Arc::new(Semaphore::new((options.queue_bytes / SHARE).max(1)));
        Ok(Arc::new(Embedded { shared, queue, budget, options, size }))
    }

    /// Ends all watches, finishes the writes that have begun, and closes the file.
    ///
    /// # Errors
    /// `Unavailable` if it was closed before.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.ask(0, |reply| Op::Close { reply }).await
    }

    /// Deletes what has expired and applies retention now instead of at the next tick.
    ///
    /// # Errors
    /// As a write.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        self.ask(0, |reply| Op::Sweep { reply }).await
    }

    /// Hands a request to the writer and waits for the answer. Once handed over it is carried
    /// out, even if the caller leaves.
    async fn ask<T>(&self, bytes: usize, op: impl FnOnce(Reply<T>) -> Op) -> Result<T, StoreError> {
        let whole = (self.options.queue_bytes / SHARE).max(1);
        let share = (1 + bytes / SHARE).min(whole);
        let share = self
            .budget
            .clone()
            .acquire_many_owned(u32::try_from(share).unwrap_or(u32::MAX))
            .await
            .map_err(|_| StoreError::Unavailable("the store has been closed".into()))?;
        let (reply, answer) = oneshot::channel();
        self.queue
            .send(Job { op: op(reply), _share: Some(share) })
            .map_err(|_| StoreError::Unavailable("the store has been closed".into()))?;
        answer
            .await
            .map_err(|_| StoreError::Unknown("the writer stopped".into()))?
            .map_err(|error| named(&self.shared.name, error))
    }

    fn check_size(&self, key: &[u8], value: &[u8]) -> Result<usize, StoreError> {
        let bytes = key.len() + value.len();
        let limit = self.options.max_request_bytes;
        if bytes > limit {
            return Err(StoreError::TooLarge(format!("{bytes} bytes, the limit is {limit}")));
        }
        Ok(bytes)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(
        &self,
        key: &[u8],
        revision: Option<Revision>,
    ) -> Result<(Revision, Option<KeyValue>), StoreError> {
        let key = Bytes::copy_from_slice(key);
        self.shared
            .read(move |snapshot| {
                let found = snapshot.get(&key, revision)?;
                Ok((revision.unwrap_or(snapshot.revision), found))
            })
            .await
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse, StoreError> {
        self.shared.read(move |snapshot| snapshot.list(&request)).await
    }

    async fn revisions(
        &self,
        prefix: Bytes,
        revision: Option<Revision>,
    ) -> Result<(Revision, Vec<(Bytes, Revision)>), StoreError> {
        let request = ListRequest { prefix, start: Bound::Unbounded, limit: 0, revision };
        self.shared.read(move |snapshot| snapshot.revisions(&request)).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, StoreError> {
        let bytes = self.check_size(&key, &value)?;
        self.ask(bytes, |reply| Op::Put { key, value, expect, ttl, reply }).await
    }

    async fn delete(&self, key: Bytes, revision: Revision) -> Result<Outcome, StoreError> {
        let bytes = self.check_size(&key, &[])?;
        self.ask(bytes, |reply| Op::Delete { key, revision, reply }).await
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        // In the hub first, so that nothing happens between the check and the watch.
        let place = self.shared.hub.register(prefix.clone(), from);
        let oldest = self.shared.read(|snapshot| Ok(snapshot.oldest)).await?;
        if from != 0 && from < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let watcher = Watcher {
            shared: self.shared.clone(),
            place,
            prefix,
            ready: VecDeque::new(),
            ended: false,
        };
        Ok(Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
            let item = watcher.next().await?;
            Some((item, watcher))
        })))
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), StoreError> {
        // Through the writer: whatever the caller has seen is then published before.
        let prefix = Bytes::copy_from_slice(prefix);
        self.ask(prefix.len(), |reply| Op::Progress { prefix, reply }).await
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        self.shared.read(|snapshot| Ok(snapshot.revision)).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(0, |reply| Op::Compact { revision, reply }).await
    }

    async fn size(&self) -> Result<u64, StoreError> {
        (self.size)()
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", self.shared.name)))
    }
}

/// The reader's end of a watch.
struct Watcher {
    shared: Arc<Shared>,
    place: Registration,
    prefix: Bytes,
    /// Taken and not yet handed out.
    ready: VecDeque<WatchEvent>,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchEvent, StoreError>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.place.take() {
                Take::Events(events) => self.ready.extend(events),
                Take::Replay(from, to) => {
                    if let Err(error) = self.replay(from, to).await {
                        return self.end(error);
                    }
                }
                Take::Wait => self.place.notify.notified().await,
                Take::Slow => return self.end(StoreError::Slow),
                Take::Closed(why) => return self.end(StoreError::Unavailable(why)),
            }
        }
    }

    async fn replay(&mut self, from: Revision, to: Revision) -> Result<(), StoreError> {
        let prefix = self.prefix.clone();
        let stretch = self
            .shared
            .read(move |snapshot| snapshot.replay(&prefix, from, to, REPLAY_CHANGES, REPLAY_SCAN))
            .await?;
        self.place.advance(stretch.next, stretch.changes.len());
        self.ready = hub::events(stretch.changes);
        Ok(())
    }

    fn end(&mut self, error: StoreError) -> Option<Result<WatchEvent, StoreError>> {
        self.ended = true;
        Some(Err(error))
    }
}

#[cfg(test)]
mod tests;
