//! Delays that double with each failure and are forgotten after a quiet time (client-go
//! `flowcontrol.Backoff`).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

struct Entry {
    delay: Duration,
    updated: Instant,
}

/// Delays by key. Time is an argument.
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, entries: Mutex::default() }
    }

    /// The present delay of a key, zero without one.
    pub fn get(&self, key: &str) -> Duration {
        self.entries.lock().get(key).map_or(Duration::ZERO, |e| e.delay)
    }

    /// Counts one more failure, which was at `since`.
    pub fn next(&self, key: &str, since: Instant, now: Instant) {
        let mut entries = self.entries.lock();
        match entries.get_mut(key) {
            Some(entry) if !self.is_quiet(entry, since) => {
                entry.delay = (entry.delay * 2).min(self.max);
                entry.updated = now;
            }
            _ => {
                entries.insert(key.to_owned(), Entry { delay: self.initial, updated: now });
            }
        }
    }

    /// Whether nothing failed for twice the longest delay before `since`. Waiting after that does
    /// not count.
    fn is_quiet(&self, entry: &Entry, since: Instant) -> bool {
        since.saturating_duration_since(entry.updated) > self.max * 2
    }

    /// How long the delay still lasts, counted from `since` for a container's end. A key that was
    /// quiet for long starts afresh.
    pub fn remaining(&self, key: &str, since: Instant, now: Instant) -> Option<Duration> {
        let entries = self.entries.lock();
        let entry = entries.get(key)?;
        if self.is_quiet(entry, since) {
            return None;
        }
        let passed = now.saturating_duration_since(since);
        (passed < entry.delay).then(|| entry.delay - passed)
    }

    /// How long the delay still lasts since the last failure.
    pub fn remaining_since_update(&self, key: &str, now: Instant) -> Option<Duration> {
        let updated = self.entries.lock().get(key)?.updated;
        self.remaining(key, updated, now)
    }

    /// Forgets keys that have been quiet.
    pub fn collect(&self, now: Instant) {
        self.entries.lock().retain(|_, e| now.duration_since(e.updated) <= self.max * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_limit_and_are_forgotten() {
        let backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let start = Instant::now();
        let mut delays = Vec::new();
        let mut now = start;
        for _ in 0..7 {
            backoff.next("a", now, now);
            delays.push(backoff.get("a").as_secs());
            now += backoff.get("a");
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        let left = backoff.remaining_since_update("a", now - Duration::from_secs(20));
        assert_eq!(left, Some(Duration::from_secs(20)));
        assert_eq!(backoff.remaining_since_update("a", now), None);
        // It ran for six minutes, and waited for five: that is no quiet time.
        let (ended, later) = (now + Duration::from_secs(60), now + Duration::from_secs(359));
        assert_eq!(backoff.remaining("a", ended, later), Some(Duration::from_secs(1)));
        now += Duration::from_secs(360);
        backoff.next("a", ended, now);
        assert_eq!(backoff.get("a").as_secs(), 300);
        now += Duration::from_secs(601);
        assert_eq!(backoff.remaining("a", now, now), None);
        backoff.next("a", now, now);
        assert_eq!(backoff.get("a").as_secs(), 10, "afresh after a quiet time");
        backoff.collect(now + Duration::from_secs(601));
        assert_eq!(backoff.get("a"), Duration::ZERO);
    }
}
