//! One change of one object, with the bytes that watchers get made once for all of them.

use std::sync::{Arc, OnceLock};

use apimachinery::codec::{DecodeError, list, proto};
use bytes::Bytes;

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
    /// Encoded: JSON and protobuf, by type.
    frames: [OnceLock<Bytes>; 6],
}

impl Event {
    fn new(kind: EventType, object: Arc<Cached>, previous: Option<Arc<Cached>>) -> Self {
        Self { kind, object, previous, gone: OnceLock::new(), frames: Default::default() }
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

    /// The frame of a JSON or protobuf watch in the stored version, for what
    /// [`seen`](Self::seen) gave.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn frame(
        &self,
        (kind, object): (EventType, &Cached),
        protobuf: bool,
        codec: &Codec,
    ) -> Result<Bytes, DecodeError> {
        let slot = kind as usize * 2 + usize::from(protobuf);
        let made = self.frames.get(slot).and_then(OnceLock::get);
        if let Some(made) = made {
            return Ok(made.clone());
        }
        let frame = frame(kind, object, protobuf, codec)?;
        match self.frames.get(slot) {
            Some(cell) => Ok(cell.get_or_init(|| frame).clone()),
            None => Ok(frame),
        }
    }
}

/// A frame of an object that belongs to no event: of the state that a watch begins with.
///
/// # Errors
/// The stored bytes are not of this kind.
pub fn frame(
    kind: EventType,
    object: &Cached,
    protobuf: bool,
    codec: &Codec,
) -> Result<Bytes, DecodeError> {
    let mut out = Vec::new();
    if protobuf {
        let object = proto::seal(&codec.api_version, &codec.kind, object.raw(codec)?);
        list::watch_proto(kind.as_str(), &object, &mut out);
    } else {
        list::watch_json(kind.as_str(), object.json(codec)?, &mut out);
    }
    Ok(out.into())
}
