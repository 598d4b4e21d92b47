//! One change of one object. The bytes that watchers get are made once for all of them, by its
//! states; the few bytes around those are written anew for each.

use std::sync::{Arc, OnceLock};

use apimachinery::codec::{DecodeError, list, proto};

use super::made::Taker;
use super::object::{Cached, Codec};

/// What a watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    /// As events name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change.
pub struct Event {
    kind: EventType,
    /// The new state; of a deletion, the last state under the deletion's revision.
    object: Arc<Cached>,
    previous: Option<Arc<Cached>>,
    /// The previous state under this revision: what those see for whom the object is gone.
    gone: OnceLock<Arc<Cached>>,
}

impl Event {
    fn new(kind: EventType, object: Arc<Cached>, previous: Option<Arc<Cached>>) -> Self {
        Self { kind, object, previous, gone: OnceLock::new() }
    }

    /// An object was created (`previous` is `None`) or changed.
    pub fn put(object: Arc<Cached>, previous: Option<Arc<Cached>>) -> Self {
        let kind = if previous.is_some() { EventType::Modified } else { EventType::Added };
        Self::new(kind, object, previous)
    }

    /// An object was deleted at a revision; `last` is its last state.
    pub fn delete(last: Arc<Cached>, revision: u64) -> Self {
        Self::new(EventType::Deleted, Arc::new(last.at(revision)), Some(last))
    }

    pub fn revision(&self) -> u64 {
        self.object.revision
    }

    pub fn object(&self) -> &Arc<Cached> {
        &self.object
    }

    /// Stored bytes of the object, which stand for the memory that the event takes.
    pub(super) fn weight(&self) -> usize {
        self.object.stored().len()
    }

    pub fn previous(&self) -> Option<&Arc<Cached>> {
        self.previous.as_ref()
    }

    /// What a watcher with a selector sees: the type, and the object to show with it. `None`:
    /// nothing.
    pub fn seen(&self, matches: impl Fn(&Cached) -> bool) -> Option<(EventType, &Arc<Cached>)> {
        let was = self.previous.as_ref().is_some_and(|p| matches(p));
        let is = self.kind != EventType::Deleted && matches(&self.object);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some((EventType::Added, &self.object)),
            (true, true) => Some((EventType::Modified, &self.object)),
            (true, false) if self.kind == EventType::Deleted => {
                Some((EventType::Deleted, &self.object))
            }
            (true, false) => {
                let previous = self.previous.as_ref()?;
                let gone = self.gone.get_or_init(|| Arc::new(previous.at(self.revision())));
                Some((EventType::Deleted, gone))
            }
        }
    }

    /// Lets go of what was made of states that are past; the `present` one has its turn with the
    /// other objects.
    pub(super) fn age(&self, present: impl Fn(&Arc<Cached>) -> bool) {
        let states = [Some(&self.object), self.previous.as_ref(), self.gone.get()];
        states.into_iter().flatten().filter(|state| !present(state)).for_each(|state| state.age());
    }
}

/// Writes the frame of a JSON or protobuf watch in the stored version. Nothing is written when it
/// fails.
///
/// # Errors
/// The stored bytes are not of this kind.
pub fn put_frame(
    kind: EventType,
    object: &Cached,
    taker: Taker,
    protobuf: bool,
    codec: &Codec,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    if protobuf {
        let object = proto::seal(&codec.api_version, &codec.kind, &object.raw_for(taker, codec)?);
        list::watch_proto(kind.as_str(), &object, out);
    } else {
        list::watch_json(kind.as_str(), &object.json_for(taker, codec)?, out);
    }
    Ok(())
}
