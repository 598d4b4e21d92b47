//! Who is told of which commit.
//!
//! Watchers do not own queues: the newest changes lie once in a ring that all share, and a watcher
//! is only the first revision that it has still to look at. What has left the ring is read back
//! from the log. So a watcher costs no memory by being slow, and can miss nothing; it is closed
//! when more than the permitted number of its changes are waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Change, Revision, WatchEvent};

/// A watcher takes at most so many events out of the hub at a time.
const TAKE: usize = 128;

/// How many changes lie in the ring, and how far watchers may lag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) ring_bytes: usize,
    pub(super) backlog: usize,
}

pub(super) struct Hub {
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    published: Revision,
    /// The changes of the newest revisions, without gaps; the last one is `published`.
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    watchers: HashMap<u64, Slot>,
    next_id: u64,
    closed: Option<String>,
}

struct Slot {
    prefix: Bytes,
    from: Revision,
    /// Everything below this has been taken; `None`: nothing up to `published` concerns it.
    pending: Option<Revision>,
    /// Changes published for it that it has not taken.
    backlog: usize,
    /// Whether it has caught up once; replay of history is not counted as slowness.
    live: bool,
    slow: bool,
    progress: bool,
    notify: Arc<Notify>,
}

/// What a watcher is to do next.
pub(super) enum Take {
    Events(Vec<WatchEvent>),
    /// Read the log from the first to the second revision, then [`Hub::advance`].
    Replay(Revision, Revision),
    Wait,
    Slow,
    Closed(String),
}

/// A place in the hub, given back on drop.
pub(super) struct Registration {
    hub: Arc<Hub>,
    id: u64,
    pub(super) notify: Arc<Notify>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.hub.state.lock().watchers.remove(&self.id);
    }
}

impl Hub {
    pub(super) fn new(published: Revision, limits: Limits) -> Self {
        Hub {
            limits,
            state: Mutex::new(State {
                published,
                ring: VecDeque::new(),
                ring_bytes: 0,
                watchers: HashMap::new(),
                next_id: 0,
                closed: None,
            }),
        }
    }

    /// Newest revision that watchers have been told of.
    pub(super) fn published(&self) -> Revision {
        self.state.lock().published
    }

    /// Tells of committed changes, one per revision, which follow `published` without a gap.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        for change in changes {
            let revision = change.revision();
            debug_assert_eq!(revision, state.published + 1, "a revision was left out");
            state.published = revision;
            for slot in state.watchers.values_mut() {
                if revision < slot.from || slot.slow || !change.key().starts_with(&slot.prefix) {
                    continue;
                }
                slot.backlog += 1;
                if slot.live && slot.backlog > self.limits.backlog {
                    slot.slow = true;
                    slot.notify.notify_one();
                } else if slot.pending.is_none() {
                    slot.pending = Some(revision);
                    slot.notify.notify_one();
                }
            }
            state.ring_bytes += cost(&change);
            state.ring.push_back(Arc::new(change));
        }
        while state.ring_bytes > self.limits.ring_bytes {
            let Some(oldest) = state.ring.pop_front() else { break };
            state.ring_bytes -= cost(&oldest);
        }
    }

    /// Adds a watcher of `prefix` from `from` on; 0 means from the next revision on.
    pub(super) fn register(self: &Arc<Self>, prefix: Bytes, from: Revision) -> Registration {
        let mut state = self.state.lock();
        let from = if from == 0 { state.published + 1 } else { from };
        let id = state.next_id;
        state.next_id += 1;
        let notify = Arc::new(Notify::new());
        let pending = (from <= state.published).then_some(from);
        state.watchers.insert(
            id,
            Slot {
                prefix,
                from,
                pending,
                backlog: 0,
                live: pending.is_none(),
                slow: false,
                progress: false,
                notify: notify.clone(),
            },
        );
        Registration { hub: self.clone(), id, notify }
    }

    /// Asks every watcher below a prefix to report how far it is.
    pub(super) fn request_progress(&self, prefix: &[u8]) {
        let mut state = self.state.lock();
        for slot in state.watchers.values_mut().filter(|slot| slot.prefix.starts_with(prefix)) {
            slot.progress = true;
            slot.notify.notify_one();
        }
    }

    /// Ends all watches, present and future.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.state.lock();
        state.closed.get_or_insert_with(|| why.to_owned());
        state.ring.clear();
        state.ring_bytes = 0;
        for slot in state.watchers.values() {
            slot.notify.notify_one();
        }
    }

    fn take(&self, id: u64) -> Take {
        let mut guard = self.state.lock();
        let State { published, ring, watchers, closed, .. } = &mut *guard;
        if let Some(why) = closed {
            return Take::Closed(why.clone());
        }
        let Some(slot) = watchers.get_mut(&id) else {
            return Take::Closed("the watch was cancelled".into());
        };
        if slot.slow {
            return Take::Slow;
        }
        let Some(start) = slot.pending else {
            slot.live = true;
            slot.backlog = 0;
            if std::mem::take(&mut slot.progress) {
                return Take::Events(vec![WatchEvent::Progress(*published)]);
            }
            return Take::Wait;
        };
        let ring_start = *published + 1 - ring.len() as u64;
        if start < ring_start {
            return Take::Replay(start, ring_start - 1);
        }
        let mut events = Vec::new();
        slot.pending = None;
        for change in ring.iter().skip((start - ring_start) as usize) {
            if !change.key().starts_with(&slot.prefix) {
                continue;
            }
            if events.len() == TAKE {
                slot.pending = Some(change.revision());
                break;
            }
            events.push(WatchEvent::Changes {
                revision: change.revision(),
                changes: vec![Change::clone(change)],
            });
        }
        slot.backlog = slot.backlog.saturating_sub(events.len());
        Take::Events(events)
    }

    fn advance(&self, id: u64, next: Revision, n_events: usize) {
        let mut state = self.state.lock();
        let published = state.published;
        if let Some(slot) = state.watchers.get_mut(&id) {
            slot.pending = (next <= published).then_some(next);
            if slot.live {
                slot.backlog = slot.backlog.saturating_sub(n_events);
            }
        }
    }
}

impl Registration {
    pub(super) fn take(&self) -> Take {
        self.hub.take(self.id)
    }

    /// Everything below `next` has been read from the log, `n_events` of it for this watcher.
    pub(super) fn advance(&self, next: Revision, n_events: usize) {
        self.hub.advance(self.id, next, n_events);
    }
}

/// What a change weighs in the ring, in bytes.
fn cost(change: &Change) -> usize {
    let previous = match change {
        Change::Put { previous, .. } | Change::Delete { previous, .. } => previous,
    };
    let value = match change {
        Change::Put { kv, .. } => kv.value.len(),
        Change::Delete { .. } => 0,
    };
    std::mem::size_of::<Change>()
        + change.key().len()
        + value
        + previous.as_ref().map_or(0, |kv| kv.value.len())
}

/// Turns replayed changes into events.
pub(super) fn events(changes: Vec<(Revision, Change)>) -> VecDeque<WatchEvent> {
    changes
        .into_iter()
        .map(|(revision, change)| WatchEvent::Changes { revision, changes: vec![change] })
        .collect()
}
