//! The watch caches: one for each prefix of the store.
//!
//! A cache holds the present state as an ordered [`Tree`] whose copies are cheap, and the newest
//! events for watches that resume, those of shortly before its first list included. It is fed by
//! one list and one watch of the store. What it has delivered to its watchers is always exactly what happened up to [`State::revision`].

mod check;
mod cuts;
pub mod event;
mod lent;
mod made;
pub mod object;
mod recall;
pub mod splice;
pub mod tree;
mod watchers;

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::{Mutex, RwLock};
use store::{Change, KeyValue, ListRequest, SharedStore, StoreError, WatchEvent};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use cuts::Cuts;
use recall::recall;

pub use check::Checks;
pub use event::{Event, EventType};
pub use lent::Lent;
use lent::Loans;
pub use made::Taker;
pub use object::{Cached, Codec, Index, Reading};
pub use tree::Tree;
use watchers::Watchers;
pub use watchers::{Scope, Watcher};

/// Events younger than this are kept for watches that resume (upstream keeps 75 seconds too).
const KEEP_EVENTS: Duration = Duration::from_secs(75);
/// Events kept whatever their age, and at most.
const MIN_EVENTS: usize = 100;
const MAX_EVENTS: usize = 20_000;
/// Stored bytes of the objects in the events kept, at most; what was made of them is a few times
/// as large.
const MAX_EVENT_BYTES: usize = 16 << 20;
/// Objects in one page of the initial list from the store.
const PAGE: usize = 5000;
/// How often progress is asked for again while somebody waits.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Pause before the store is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How often what is not needed any more is let go.
const TIDY: Duration = Duration::from_secs(60);

/// A consistent cut: objects as of one revision.
#[derive(Clone)]
pub struct Cut {
    pub revision: u64,
    /// All objects whose keys begin with this are there, and no others.
    pub prefix: String,
    pub objects: Tree,
}

struct State {
    objects: Tree,
    /// Everything up to this revision is in `objects`. 0: not listed yet.
    revision: u64,
    /// The revision of the newest event or of the list, whichever is newer.
    changed: u64,
    /// All events above `floor` are in the ring.
    floor: u64,
    ring: VecDeque<(Instant, Arc<Event>)>,
    /// Stored bytes of the objects in `ring`.
    ring_bytes: usize,
    watchers: Watchers,
}

impl State {
    fn cut(&self) -> Cut {
        let objects = self.objects.clone();
        Cut { revision: self.revision, prefix: String::new(), objects }
    }

    fn keep(&mut self, now: Instant, event: Arc<Event>) {
        self.ring_bytes += event.weight();
        self.ring.push_back((now, event));
    }

    /// Forgets events that are too old, or too many.
    fn forget(&mut self, now: Instant) {
        while let Some((at, event)) = self.ring.front() {
            let wanted = self.ring.len() <= MIN_EVENTS || now.duration_since(*at) < KEEP_EVENTS;
            let fits = self.ring.len() <= MAX_EVENTS && self.ring_bytes <= MAX_EVENT_BYTES;
            if wanted && fits {
                break;
            }
            self.floor = event.revision();
            self.ring_bytes -= event.weight();
            self.ring.pop_front();
        }
    }
}

/// Why a cache cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The cache is at `current` and did not get to what was asked for in time.
    #[error("too large resource version: {asked}, current: {current}")]
    Behind { asked: u64, current: u64 },
    /// Events as old as this are forgotten; `oldest` is the oldest revision to begin from.
    #[error("too old resource version: {asked} ({oldest})")]
    TooOld { asked: u64, oldest: u64 },
    /// The first list is not there yet.
    #[error("the cache is not ready")]
    NotReady,
}

/// The cache of one prefix.
pub struct Cache {
    pub codec: Codec,
    /// Whole prefix of the keys: `/registry/pods/`.
    prefix: String,
    store: SharedStore,
    state: RwLock<State>,
    cuts: Mutex<Cuts>,
    /// The revision reached, for those who wait.
    reached: watch::Sender<u64>,
    /// The revision of the last change, for those who follow.
    changes: watch::Sender<u64>,
    checks: Checks,
    loans: Loans,
}

impl Cache {
    /// `prefix` is whole, with a slash at its end.
    pub fn new(store: SharedStore, prefix: String, codec: Codec) -> Arc<Self> {
        let state = State {
            objects: Tree::default(),
            revision: 0,
            changed: 0,
            floor: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            watchers: Watchers::default(),
        };
        Arc::new(Self {
            codec,
            prefix,
            store,
            state: RwLock::new(state),
            cuts: Mutex::default(),
            reached: watch::Sender::new(0),
            changes: watch::Sender::new(0),
            checks: Checks::default(),
            loans: Loans::default(),
        })
    }

    /// Whole prefix of the keys in the store.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key in the store of an object's own key.
    pub fn store_key(&self, key: &str) -> Bytes {
        format!("{}{key}", self.prefix).into()
    }

    /// Whether the first list is there.
    pub fn is_ready(&self) -> bool {
        self.state.read().revision > 0
    }

    /// The revision that the cache has reached; 0: none.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// The revision of the last change of any object.
    pub fn changed(&self) -> u64 {
        self.state.read().changed
    }

    /// Tells of changes: of [`Cache::changed`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The present state.
    pub fn cut(&self) -> Cut {
        self.state.read().cut()
    }

    /// One object of the present state.
    pub fn get(&self, key: &str) -> Option<Arc<Cached>> {
        self.state.read().objects.get(key).cloned()
    }

    /// The state of what is below `prefix` as of a revision, when the cache still has it.
    pub fn cut_at(&self, revision: u64, prefix: &str) -> Option<Cut> {
        let (mut cuts, now) = (self.cuts.lock(), Instant::now());
        {
            let state = self.state.read();
            let is_now = revision == state.revision;
            let unchanged = state.changed <= revision && revision < state.revision;
            if is_now || unchanged && cuts.lasts(revision, now) {
                return Some(Cut { revision, ..state.cut() });
            }
        }
        cuts.get(revision, prefix, now)
    }

    /// Remembers a cut of which more pages will be asked for.
    /// `goes_on`: of a list that began before.
    pub fn remember(&self, cut: &Cut, goes_on: bool) {
        self.cuts.lock().remember(cut, goes_on, Instant::now());
    }

    /// Waits until the cache has reached a revision.
    ///
    /// # Errors
    /// `Behind` after `patience`.
    pub async fn wait_for(&self, revision: u64, patience: Duration) -> Result<(), CacheError> {
        let mut reached = self.reached.subscribe();
        if *reached.borrow_and_update() >= revision {
            return Ok(());
        }
        let waiting = async {
            loop {
                // A progress report that is lost is asked for again.
                if self.store.reports_progress()
                    && let Err(error) = self.store.request_progress(self.prefix.as_bytes()).await
                {
                    tracing::debug!(%error, "cannot ask for progress");
                }
                let pause = tokio::time::sleep(ASK_AGAIN);
                tokio::pin!(pause);
                loop {
                    if *reached.borrow_and_update() >= revision {
                        return;
                    }
                    tokio::select! {
                        changed = reached.changed() => if changed.is_err() { return },
                        () = &mut pause => break,
                    }
                }
            }
        };
        if tokio::time::timeout(patience, waiting).await.is_err() {
            return Err(CacheError::Behind { asked: revision, current: self.revision() });
        }
        Ok(())
    }

    /// Waits until the first list is there.
    ///
    /// # Errors
    /// `NotReady` after `patience`.
    pub async fn wait_ready(&self, patience: Duration) -> Result<(), CacheError> {
        let mut reached = self.reached.subscribe();
        match tokio::time::timeout(patience, reached.wait_for(|r| *r > 0)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(CacheError::NotReady),
        }
    }

    /// Watches from now on, with the state that the watch begins from.
    pub fn watch_from_now(&self, scope: Scope) -> (Cut, Watcher) {
        let mut state = self.state.write();
        let cut = state.cut();
        let watcher = state.watchers.add(scope, cut.revision, Vec::new());
        (cut, watcher)
    }

    /// Watches what happens after a revision, which the cache may have yet to reach.
    ///
    /// # Errors
    /// `TooOld` when events after it are forgotten.
    pub fn watch_from(&self, scope: Scope, revision: u64) -> Result<Watcher, CacheError> {
        let mut state = self.state.write();
        if revision < state.floor {
            return Err(CacheError::TooOld { asked: revision, oldest: state.floor });
        }
        let begin = state.ring.partition_point(|(_, e)| e.revision() <= revision);
        let replay: Vec<Arc<Event>> = state
            .ring
            .range(begin..)
            .map(|(_, event)| event)
            .filter(|event| scope.covers(event, &self.codec))
            .cloned()
            .collect();
        Ok(state.watchers.add(scope, revision, replay))
    }

    /// A watch's bytes for its client, which the cache takes back when they are not read.
    pub fn lend(&self, stream: impl Stream<Item = Bytes> + Send + 'static) -> Lent {
        self.loans.lend(stream)
    }

    /// Watchers that are open.
    pub fn watchers(&self) -> usize {
        self.state.read().watchers.len()
    }

    /// Feeds the cache from the store until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let feeding = async {
            loop {
                match self.list_all().await {
                    Ok(()) => tokio::select! {
                        () = self.follow() => {}
                        () = self.upkeep() => {}
                    },
                    Err(error) => {
                        tracing::warn!(prefix = self.prefix, %error, "cannot list");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = feeding => {}
        }
        self.state.write().watchers.end();
    }

    /// Replaces the state by a list from the store.
    async fn list_all(&self) -> Result<(), StoreError> {
        let mut objects: Vec<Arc<Cached>> = Vec::new();
        let (mut revision, mut start) = (None, Bound::Unbounded);
        loop {
            let request =
                ListRequest { prefix: self.prefix.clone().into(), start, limit: PAGE, revision };
            let page = self.store.list(request).await?;
            revision = Some(page.revision);
            let last = page.kvs.last().map(|kv| kv.key.clone());
            objects.extend(page.kvs.into_iter().filter_map(|kv| self.cached(kv)));
            match last {
                Some(last) if page.more => start = Bound::Excluded(last),
                _ => break,
            }
        }
        let revision = revision.unwrap_or(0);
        let recalled = match self.is_ready() {
            true => None,
            false => recall(&*self.store, &self.prefix, revision, |kv| self.cached(kv)).await,
        };
        let mut state = self.state.write();
        // What happened between the old state and this one is not known event by event.
        state.watchers.close_all();
        state.ring.clear();
        state.ring_bytes = 0;
        state.objects = Tree::from_sorted(objects);
        (state.revision, state.changed, state.floor) = (revision, revision, revision);
        if let Some(recalled) = recalled {
            let now = Instant::now();
            state.floor = recalled.floor;
            recalled.events.into_iter().for_each(|event| state.keep(now, Arc::new(event)));
            state.forget(now);
        }
        drop(state);
        self.reached.send_replace(revision);
        self.changes.send_replace(revision);
        Ok(())
    }

    /// Follows the store's watch until history is lost.
    async fn follow(&self) {
        loop {
            let from = self.revision() + 1;
            let mut events = match self.store.watch(self.prefix.clone().into(), from).await {
                Ok(events) => events,
                Err(StoreError::Compacted { .. } | StoreError::Future { .. }) => return,
                Err(error) => {
                    tracing::debug!(prefix = self.prefix, %error, "cannot watch");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            while let Some(next) = events.next().await {
                match next {
                    Ok(WatchEvent::Changes { revision, changes }) => self.apply(revision, changes),
                    Ok(WatchEvent::Progress(revision)) => self.apply(revision, Vec::new()),
                    Err(StoreError::Compacted { .. } | StoreError::Future { .. }) => return,
                    Err(error) => {
                        tracing::debug!(prefix = self.prefix, %error, "watch ended");
                        break;
                    }
                }
            }
            tokio::time::sleep(RETRY / 10).await;
        }
    }

    /// Lets go of what is not needed, and checks the cache from time to time; ends when it must
    /// begin anew.
    async fn upkeep(&self) {
        // Servers and caches take their turns at different times.
        let first = check::EVERY.mul_f64(1.0 + rand::random::<f64>());
        let mut check = tokio::time::Instant::now() + first;
        loop {
            tokio::time::sleep(TIDY).await;
            self.tidy(Instant::now());
            if tokio::time::Instant::now() >= check {
                if self.is_wrong().await {
                    return;
                }
                check += check::EVERY;
            }
        }
    }

    fn tidy(&self, now: Instant) {
        self.cuts.lock().forget(now);
        self.loans.age();
        let (objects, events) = {
            let mut state = self.state.write();
            state.forget(now);
            let events: Vec<Arc<Event>> =
                state.ring.iter().map(|(_, event)| event.clone()).collect();
            (state.objects.clone(), events)
        };
        objects.all().for_each(|object| object.age());
        let present = |o: &Arc<Cached>| objects.get(&o.key).is_some_and(|now| Arc::ptr_eq(now, o));
        events.iter().for_each(|event| event.age(present));
    }

    /// What the store holds under a key of the cache's prefix: the cache's own object with all that
    /// was made of it, where it is of the same revision. `None`: the key is no object's.
    pub fn adopt(&self, kv: KeyValue) -> Option<Arc<Cached>> {
        let known = self.get(self.own_key(&kv.key)?);
        known.filter(|known| known.revision == kv.mod_revision).or_else(|| self.cached(kv))
    }

    /// An object's own key, of its key in the store.
    fn own_key<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key.get(self.prefix.len()..)?).ok()
    }

    fn cached(&self, kv: KeyValue) -> Option<Arc<Cached>> {
        let key = self.own_key(&kv.key)?;
        Some(Arc::new(Cached::new(key, kv.mod_revision, kv.create_revision, kv.value)))
    }

    /// Takes one change in.
    fn take(&self, objects: &mut Tree, change: Change) -> Option<Event> {
        match change {
            Change::Put { kv, .. } => {
                let object = self.cached(kv)?;
                let previous = objects.insert(object.clone());
                Some(Event::put(object, previous))
            }
            Change::Delete { key, revision, previous } => {
                let key = self.own_key(&key)?;
                let known = objects.remove(key);
                let last = known.or_else(|| previous.and_then(|kv| self.cached(kv)))?;
                Some(Event::delete(last, revision))
            }
        }
    }

    /// Takes one transaction in.
    fn apply(&self, revision: u64, changes: Vec<Change>) {
        let mut state = self.state.write();
        if revision <= state.revision {
            return;
        }
        let now = Instant::now();
        let before = state.changed;
        let taken = changes.into_iter().filter_map(|change| self.take(&mut state.objects, change));
        let events: Vec<Arc<Event>> = taken.map(Arc::new).collect();
        // Whoever resumes after a revision has had all of it.
        if events.len() > 1 {
            let weight = events.iter().map(|event| event.weight()).sum();
            state.watchers.make_room(events.len(), weight);
        }
        for event in events {
            state.changed = event.revision();
            state.watchers.deliver(&event, &self.codec);
            state.keep(now, event);
        }
        state.forget(now);
        state.revision = revision;
        let changed = state.changed;
        drop(state);
        self.reached.send_replace(revision);
        if changed != before {
            self.changes.send_replace(changed);
        }
    }
}

#[cfg(test)]
mod tests;
