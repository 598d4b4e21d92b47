//! What was made of objects: kept while it is asked for, and while there is room.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use apimachinery::codec::DecodeError;

/// Bytes of what was made of objects, in all caches together, at most: the JSON of some fifty
/// thousand pods of the usual size. Clients that list more than that again and again cost time
/// instead, as they would if nothing were kept.
const MOST: usize = 256 << 20;

/// The room of all caches of the process.
pub(super) static ROOM: Room = Room::new(MOST);

/// For whom something is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// Whoever reads now, and may read again.
    Reader,
    /// All who watch, about now. A part of the room is for them alone, so that an event is encoded
    /// once also where lists have filled the rest.
    Watchers,
}

/// How much may be kept. What there is no room for is made for whoever asks, and not kept.
#[derive(Debug)]
pub(super) struct Room {
    held: AtomicUsize,
    most: usize,
}

impl Room {
    pub(super) const fn new(most: usize) -> Self {
        Self { held: AtomicUsize::new(0), most }
    }

    /// Takes room for so many bytes, if there is.
    fn take(&self, bytes: usize, taker: Taker) -> bool {
        let most = match taker {
            Taker::Reader => self.most - self.most / 4,
            Taker::Watchers => self.most,
        };
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// Something that was made of an object. It is kept while it is asked for, and let go when for a
/// while nobody has. Its owner gives the room back.
pub(super) struct Made<T>(Mutex<Slot<T>>);

struct Slot<T> {
    made: Option<T>,
    /// The room that it takes; 0 when nothing is kept.
    bytes: u32,
    /// Asked for since [`Made::age`] was called last.
    used: bool,
}

impl<T: Clone> Made<T> {
    pub(super) fn empty() -> Self {
        Self(Mutex::new(Slot { made: None, bytes: 0, used: false }))
    }

    pub(super) fn known(&self) -> Option<T> {
        let mut slot = self.0.lock();
        slot.used = true;
        slot.made.clone()
    }

    /// What is kept, or what `make` makes and how many bytes of room it takes.
    pub(super) fn or_make(
        &self,
        room: &Room,
        taker: Taker,
        make: impl FnOnce() -> Result<(T, usize), DecodeError>,
    ) -> Result<T, DecodeError> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        // Not under the lock: making takes long. What another thread made meanwhile stays.
        let (made, bytes) = make()?;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut slot = self.0.lock();
        if let Some(known) = &slot.made {
            return Ok(known.clone());
        }
        if room.take(bytes as usize, taker) {
            slot.made = Some(made.clone());
            slot.bytes = bytes;
        }
        Ok(made)
    }

    /// Lets go of what was not asked for since the last call.
    pub(super) fn age(&self, room: &Room) {
        let mut slot = self.0.lock();
        if !std::mem::take(&mut slot.used) {
            slot.made = None;
            room.give_back(std::mem::take(&mut slot.bytes) as usize);
        }
    }

    /// The room that it takes, for its owner to give back when it goes.
    pub(super) fn bytes(&mut self) -> usize {
        self.0.get_mut().bytes as usize
    }

    #[cfg(test)]
    pub(super) fn is_kept(&self) -> bool {
        self.0.lock().made.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_not_kept() {
        let room = Room::new(100);
        let made: Vec<Made<usize>> = (0..5).map(|_| Made::empty()).collect();
        let make = |at: usize, bytes: usize, taker: Taker| {
            assert_eq!(made[at].or_make(&room, taker, || Ok((at, bytes))), Ok(at));
            (made[at].is_kept(), room.held())
        };
        assert_eq!(make(0, 40, Taker::Reader), (true, 40));
        assert_eq!(make(0, 40, Taker::Reader), (true, 40), "it is there already");
        assert_eq!(make(1, 35, Taker::Reader), (true, 75));
        assert_eq!(make(2, 1, Taker::Reader), (false, 75), "the rest is for watchers");
        assert_eq!(make(3, 25, Taker::Watchers), (true, 100));
        assert_eq!(make(4, 1, Taker::Watchers), (false, 100));
        let failed = made[4].or_make(&room, Taker::Watchers, || {
            Err(DecodeError::Malformed("no object".to_owned()))
        });
        assert!(failed.is_err() && room.held() == 100);
        made[0].age(&room);
        assert_eq!(room.held(), 100, "it was asked for");
        made[0].age(&room);
        made[0].age(&room);
        assert_eq!((made[0].is_kept(), room.held()), (false, 60), "given back once");
        assert_eq!(make(2, 15, Taker::Reader), (true, 75));
    }
}
