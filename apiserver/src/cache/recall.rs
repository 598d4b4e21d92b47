//! What happened shortly before a cache's first list, as far as the store remembers it, so that
//! clients that watched before a restart go on and need not list again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use store::{Change, KeyValue, Revision, Store, StoreError, WatchEvent};

use super::{Cached, Event};

/// Revisions to look back, of the whole store.
const REVISIONS: u64 = 1000;
/// Clients can do without; a server that starts does not wait longer for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Events in order, all that there were above `floor`.
pub(super) struct Recalled {
    pub floor: Revision,
    pub events: Vec<Event>,
}

/// The events of a prefix up to a revision. `None` where the store cannot tell, or not in time.
pub(super) async fn recall(
    store: &dyn Store,
    prefix: &str,
    upto: Revision,
    cached: impl Fn(KeyValue) -> Option<Arc<Cached>>,
) -> Option<Recalled> {
    if !store.reports_progress() {
        return None;
    }
    let recalling = async {
        let from = (upto + 1).saturating_sub(REVISIONS).max(1);
        match collect(store, prefix, from..=upto, &cached).await {
            // What is left begins here.
            Err(StoreError::Compacted { oldest }) if (from..=upto).contains(&oldest) => {
                collect(store, prefix, oldest..=upto, &cached).await
            }
            other => other,
        }
    };
    match tokio::time::timeout(PATIENCE, recalling).await {
        Ok(Ok(recalled)) => Some(recalled),
        Ok(Err(error)) => {
            tracing::debug!(prefix, %error, "history is not recalled");
            None
        }
        Err(_) => {
            tracing::debug!(prefix, "history is not recalled in time");
            None
        }
    }
}

async fn collect(
    store: &dyn Store,
    prefix: &str,
    range: std::ops::RangeInclusive<Revision>,
    cached: &impl Fn(KeyValue) -> Option<Arc<Cached>>,
) -> Result<Recalled, StoreError> {
    let mut history = History::new(*range.start(), cached);
    let mut events = store.watch(prefix.to_owned().into(), *range.start()).await?;
    store.request_progress(prefix.as_bytes()).await?;
    while let Some(next) = events.next().await {
        let reached = match next? {
            WatchEvent::Changes { revision, changes } => {
                if range.contains(&revision) {
                    changes.into_iter().for_each(|change| history.take(change));
                }
                revision
            }
            WatchEvent::Progress(revision) => revision,
        };
        if reached >= *range.end() {
            return Ok(history.recalled);
        }
    }
    Err(StoreError::Unavailable("the watch ended".to_owned()))
}

/// Events made of changes; the state before each comes from the change before it.
struct History<'a, F> {
    cached: &'a F,
    known: HashMap<Bytes, Arc<Cached>>,
    recalled: Recalled,
}

impl<'a, F: Fn(KeyValue) -> Option<Arc<Cached>>> History<'a, F> {
    fn new(from: Revision, cached: &'a F) -> Self {
        let recalled = Recalled { floor: from.saturating_sub(1), events: Vec::new() };
        Self { cached, known: HashMap::new(), recalled }
    }

    fn take(&mut self, change: Change) {
        let revision = change.revision();
        let event = match change {
            Change::Put { kv, previous } => {
                let key = kv.key.clone();
                let created = kv.create_revision == kv.mod_revision;
                let Some(object) = (self.cached)(kv) else { return };
                let before = match self.known.entry(key) {
                    Entry::Occupied(mut known) => Some(known.insert(object.clone())),
                    Entry::Vacant(place) => {
                        place.insert(object.clone());
                        previous.and_then(self.cached)
                    }
                };
                (created || before.is_some()).then(|| Event::put(object, before))
            }
            Change::Delete { key, revision, previous } => {
                let known = self.known.remove(&key);
                let last = known.or_else(|| previous.and_then(self.cached));
                last.map(|last| Event::delete(last, revision))
            }
        };
        match event {
            Some(event) => self.recalled.events.push(event),
            // What selectors made of the state before cannot be told.
            None => self.recalled = Recalled { floor: revision, events: Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, create_revision: u64, mod_revision: u64) -> KeyValue {
        let key = Bytes::copy_from_slice(key.as_bytes());
        KeyValue { key, value: Bytes::new(), create_revision, mod_revision }
    }

    fn put(created: u64, revision: u64, previous: Option<u64>) -> Change {
        let previous = previous.map(|at| kv("a", created, at));
        Change::Put { kv: kv("a", created, revision), previous }
    }

    fn delete(revision: u64, previous: Option<u64>) -> Change {
        let previous = previous.map(|at| kv("a", 1, at));
        Change::Delete { key: Bytes::from_static(b"a"), revision, previous }
    }

    #[test]
    fn history_begins_where_the_state_before_is_known() {
        let cases: [(&str, Vec<Change>, u64, &[u64]); 5] = [
            ("made and changed", vec![put(3, 3, None), put(3, 4, None)], 2, &[3, 4]),
            ("changed, known before", vec![put(1, 5, Some(1))], 2, &[5]),
            ("changed, not known before", vec![put(1, 5, None), put(1, 6, None)], 5, &[6]),
            ("deleted, known", vec![put(3, 3, None), delete(4, None)], 2, &[3, 4]),
            ("deleted, not known", vec![delete(4, None), put(5, 5, None)], 4, &[5]),
        ];
        for (name, changes, floor, revisions) in cases {
            let cached = |kv: KeyValue| {
                let key = std::str::from_utf8(&kv.key).ok()?;
                Some(Arc::new(Cached::new(key, kv.mod_revision, kv.create_revision, kv.value)))
            };
            let mut history = History::new(3, &cached);
            changes.into_iter().for_each(|change| history.take(change));
            let Recalled { floor: got, events } = history.recalled;
            let got_revisions: Vec<u64> = events.iter().map(Event::revision).collect();
            assert_eq!((got, &*got_revisions), (floor, revisions), "{name}");
        }
    }
}
