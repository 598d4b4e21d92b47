//! Who watches a cache. Watchers are filed by what they can be interested in, so that an event
//! costs as much as it has takers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::{Codec, Event};

/// Events that may wait for a watcher; one that is slower is closed.
const BUFFER: usize = 1024;
/// Stored bytes of the objects in them, so that a reader that stalls costs a bounded amount of
/// memory also where objects are large. One event always fits.
const BUFFER_BYTES: usize = 16 << 20;

/// What part of the objects a watcher looks at. Its selectors may leave some of that out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    All,
    /// One namespace.
    Namespace(String),
    /// One object, by its key.
    Object(String),
    /// Objects of which a field (by its index in [`Codec::fields`]) has a value.
    Field(usize, String),
}

impl Scope {
    /// Whether an event is in the scope, as it was before or as it is after.
    pub fn covers(&self, event: &Event, codec: &Codec) -> bool {
        let object = event.object();
        match self {
            Self::All => true,
            Self::Namespace(namespace) => object.names().0 == namespace,
            Self::Object(key) => *object.key == **key,
            Self::Field(at, value) => {
                object.field(codec, *at) == **value
                    || event.previous().is_some_and(|p| p.field(codec, *at) == **value)
            }
        }
    }
}

/// The reader's end of a watch of a cache.
pub struct Watcher {
    /// Everything up to this revision is known to whoever watches, though the cache may have yet
    /// to get there: the client has read it from another server, or from the store.
    after: u64,
    replay: VecDeque<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
    waiting: Arc<AtomicUsize>,
}

impl Watcher {
    /// The next event in scope; `None`: closed, since the watcher was too slow, the cache has
    /// lost history, or the server stops.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        if let Some(event) = self.replay.pop_front() {
            return Some(event);
        }
        loop {
            let event = self.events.recv().await?;
            if self.takes(&event) {
                return Some(event);
            }
        }
    }

    /// The next event that is there already.
    pub fn ready(&mut self) -> Option<Arc<Event>> {
        if let Some(event) = self.replay.pop_front() {
            return Some(event);
        }
        loop {
            let event = self.events.try_recv().ok()?;
            if self.takes(&event) {
                return Some(event);
            }
        }
    }

    fn takes(&self, event: &Event) -> bool {
        self.waiting.fetch_sub(event.weight(), Ordering::Relaxed);
        event.revision() > self.after
    }

    /// Whether no further events will come.
    pub fn is_closed(&self) -> bool {
        self.replay.is_empty() && self.events.is_closed() && self.events.is_empty()
    }
}

/// The cache's end of a watch.
struct Sender {
    events: mpsc::Sender<Arc<Event>>,
    /// Weight of the events that wait.
    waiting: Arc<AtomicUsize>,
}

impl Sender {
    fn has_room(&self, n_events: usize, weight: usize) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting.saturating_add(weight) <= BUFFER_BYTES && self.events.capacity() >= n_events
    }

    /// Whether the event was taken; if not, the watch has ended.
    fn offer(&self, event: &Arc<Event>) -> bool {
        let weight = event.weight();
        let waiting = self.waiting.fetch_add(weight, Ordering::Relaxed);
        let fits = waiting == 0 || waiting.saturating_add(weight) <= BUFFER_BYTES;
        fits && self.events.try_send(event.clone()).is_ok()
    }
}

#[derive(Default)]
pub(super) struct Watchers {
    by_scope: HashMap<Scope, Vec<Sender>>,
    /// Fields by which somebody watches, with how many scopes do.
    fields: HashMap<usize, usize>,
    /// The cache has ended: whoever comes now gets nothing.
    ended: bool,
}

impl Watchers {
    /// Closes all watchers there are and will be.
    pub(super) fn end(&mut self) {
        self.close_all();
        self.ended = true;
    }

    pub(super) fn len(&self) -> usize {
        self.by_scope.values().flatten().filter(|s| !s.events.is_closed()).count()
    }

    /// Adds a watcher that gets `replay`, and then what comes with revisions above `after`.
    pub(super) fn add(&mut self, scope: Scope, after: u64, replay: Vec<Arc<Event>>) -> Watcher {
        let (sender, events) = mpsc::channel(BUFFER);
        let sender = Sender { events: sender, waiting: Arc::default() };
        let waiting = sender.waiting.clone();
        let watcher = Watcher { after, replay: replay.into(), events, waiting };
        if self.ended {
            return watcher;
        }
        if let Scope::Field(at, _) = &scope
            && !self.by_scope.contains_key(&scope)
        {
            *self.fields.entry(*at).or_default() += 1;
        }
        let senders = self.by_scope.entry(scope).or_default();
        // Those who left without an event since are forgotten here.
        senders.retain(|s| !s.events.is_closed());
        senders.push(sender);
        watcher
    }

    pub(super) fn close_all(&mut self) {
        self.by_scope.clear();
        self.fields.clear();
    }

    /// Closes watchers that could take only some of so many events of one revision: a client that
    /// has seen a part would miss the rest, as it goes on after the revision.
    pub(super) fn make_room(&mut self, n_events: usize, weight: usize) {
        for senders in self.by_scope.values_mut() {
            senders.retain(|sender| sender.has_room(n_events, weight));
        }
    }

    pub(super) fn deliver(&mut self, event: &Arc<Event>, codec: &Codec) {
        if self.by_scope.is_empty() {
            return;
        }
        let object = event.object();
        self.send(&Scope::All, event);
        self.send(&Scope::Object(object.key.to_string()), event);
        let namespace = object.names().0;
        if !namespace.is_empty() {
            self.send(&Scope::Namespace(namespace.to_owned()), event);
        }
        let fields: Vec<usize> = self.fields.keys().copied().collect();
        for at in fields {
            let is = object.field(codec, at).into_owned();
            let was = event.previous().map(|p| p.field(codec, at).into_owned());
            if let Some(was) = was.filter(|was| *was != is) {
                self.send(&Scope::Field(at, was), event);
            }
            self.send(&Scope::Field(at, is), event);
        }
    }

    fn send(&mut self, scope: &Scope, event: &Arc<Event>) {
        let Some(senders) = self.by_scope.get_mut(scope) else { return };
        senders.retain(|sender| sender.offer(event));
        if senders.is_empty() {
            self.by_scope.remove(scope);
            if let Scope::Field(at, _) = scope
                && let Some(count) = self.fields.get_mut(at)
            {
                *count -= 1;
                if *count == 0 {
                    self.fields.remove(at);
                }
            }
        }
    }
}
