//! What a controller has done and not yet seen: until then its caches are behind, and it would do it
//! again (upstream's controller expectations).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use client::Key;
use jiff::Timestamp;
use parking_lot::Mutex;

/// Expectations are given up after so long: the event was missed.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Entry {
    creations: HashSet<String>,
    deletions: HashSet<String>,
    since: Option<Timestamp>,
}

/// Expectations by owner.
#[derive(Default)]
pub struct Expectations {
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Expectations {
    /// An object was made. `seen` tells whether the cache has it already; it is asked once the
    /// object is expected, so that one that comes meanwhile is not waited for.
    pub fn created(&self, owner: &Key, uid: &str, now: Timestamp, seen: impl FnOnce() -> bool) {
        {
            let mut entries = self.entries.lock();
            let entry = entries.entry(owner.clone()).or_default();
            entry.creations.insert(uid.to_owned());
            entry.since = Some(now);
        }
        if seen() {
            self.saw(owner, uid);
        }
    }

    /// An object is about to be deleted.
    pub fn deleting(&self, owner: &Key, uid: &str, now: Timestamp) {
        let mut entries = self.entries.lock();
        let entry = entries.entry(owner.clone()).or_default();
        entry.deletions.insert(uid.to_owned());
        entry.since = Some(now);
    }

    /// The cache has seen the object come.
    pub fn saw(&self, owner: &Key, uid: &str) {
        if let Some(entry) = self.entries.lock().get_mut(owner) {
            entry.creations.remove(uid);
        }
    }

    /// The cache has seen the object go, or begin to.
    pub fn saw_end(&self, owner: &Key, uid: &str) {
        if let Some(entry) = self.entries.lock().get_mut(owner) {
            entry.creations.remove(uid);
            entry.deletions.remove(uid);
        }
    }

    /// Whether everything was seen, or too much time has passed.
    pub fn satisfied(&self, owner: &Key, now: Timestamp) -> bool {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get(owner) else { return true };
        let old = entry.since.is_none_or(|at| {
            Duration::try_from(now.duration_since(at)).is_ok_and(|age| age > PATIENCE)
        });
        if entry.creations.is_empty() && entry.deletions.is_empty() || old {
            entries.remove(owner);
            return true;
        }
        false
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &Key) {
        self.entries.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_must_be_seen_or_grow_old() {
        let expectations = Expectations::default();
        let (owner, now) = (Key::new("ns", "rs"), Timestamp::UNIX_EPOCH);
        assert!(expectations.satisfied(&owner, now));
        expectations.created(&owner, "a", now, || true);
        assert!(expectations.satisfied(&owner, now), "seen before the answer came");
        expectations.created(&owner, "a", now, || false);
        expectations.deleting(&owner, "b", now);
        expectations.saw(&owner, "a");
        assert!(!expectations.satisfied(&owner, now));
        expectations.saw_end(&owner, "b");
        assert!(expectations.satisfied(&owner, now));
        expectations.created(&owner, "c", now, || false);
        let later = Timestamp::from_second(301).expect("a time");
        assert!(expectations.satisfied(&owner, later));
    }
}
