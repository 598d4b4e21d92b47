//! Pods that wait: for their turn, for a pause to pass, or for something to change
//! (upstream's active, backoff and unschedulable queues).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use client::Key;
use jiff::{SignedDuration, Timestamp};

use crate::framework::ClusterEvent;

/// Pauses after failed attempts: one second, doubling up to ten.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A refused pod is tried again after so long, whatever happens.
const PATIENCE: Duration = Duration::from_secs(300);

/// Order of turns: higher priority first, then who has waited longer.
type Turn = (Reverse<i32>, Timestamp, Key);

#[derive(Clone, Debug)]
struct Waiting {
    priority: i32,
    since: Timestamp,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Debug, PartialEq)]
enum Place {
    Active,
    /// Until then.
    Backoff(Timestamp),
    /// Refused by these plugins, at that time.
    Refused(Vec<&'static str>, Timestamp),
    /// Being scheduled; an event that came meanwhile is kept.
    InFlight(Vec<ClusterEvent>),
}

/// The queue. The present time is passed in.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    active: BTreeSet<Turn>,
    backoff: BTreeMap<(Timestamp, Key), ()>,
}

fn after(now: Timestamp, pause: Duration) -> Timestamp {
    now.checked_add(SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)).unwrap_or(now)
}

fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

impl Queue {
    /// A pod that is new or has changed in a way that may matter.
    pub fn add(&mut self, key: &Key, priority: i32, now: Timestamp) {
        match self.pods.get_mut(key) {
            None => {
                let waiting = Waiting { priority, since: now, attempts: 0, place: Place::Active };
                self.active.insert((Reverse(priority), now, key.clone()));
                self.pods.insert(key.clone(), waiting);
            }
            Some(Waiting { place: Place::InFlight(events), .. }) => {
                events.push(ClusterEvent::Other);
            }
            Some(waiting) => {
                waiting.priority = priority;
                if matches!(waiting.place, Place::Refused(..)) {
                    self.wake(key, now);
                }
            }
        }
    }

    /// A pod that is gone, bound, or gated.
    pub fn remove(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.remove(key) {
            self.unlist(key, &waiting);
        }
    }

    fn unlist(&mut self, key: &Key, waiting: &Waiting) {
        match &waiting.place {
            Place::Active => {
                self.active.retain(|(_, _, k)| k != key);
            }
            Place::Backoff(until) => {
                self.backoff.remove(&(*until, key.clone()));
            }
            Place::Refused(..) | Place::InFlight(_) => {}
        }
    }

    /// The next pod to schedule; it is in flight until [`Queue::remove`] or [`Queue::refused`].
    pub fn pop(&mut self, now: Timestamp) -> Option<Key> {
        self.ripen(now);
        let (_, _, key) = self.active.pop_first()?;
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.attempts = waiting.attempts.saturating_add(1);
            waiting.place = Place::InFlight(Vec::new());
        }
        Some(key)
    }

    /// When [`Queue::pop`] may have something, if not now.
    pub fn next_due(&self) -> Option<Timestamp> {
        let refused = self.pods.values().filter_map(|w| match &w.place {
            Place::Refused(_, at) => Some(after(*at, PATIENCE)),
            _ => None,
        });
        self.backoff.keys().next().map(|(at, _)| *at).into_iter().chain(refused).min()
    }

    fn ripen(&mut self, now: Timestamp) {
        while let Some(entry) = self.backoff.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (_, key) = entry.remove_entry().0;
            self.activate(&key);
        }
        let patient: Vec<Key> = self
            .pods
            .iter()
            .filter(
                |(_, w)| matches!(&w.place, Place::Refused(_, at) if after(*at, PATIENCE) <= now),
            )
            .map(|(key, _)| key.clone())
            .collect();
        for key in patient {
            self.activate(&key);
        }
    }

    fn activate(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.place = Place::Active;
            self.active.insert((Reverse(waiting.priority), waiting.since, key.clone()));
        }
    }

    fn wake(&mut self, key: &Key, now: Timestamp) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let until = match &waiting.place {
            Place::Refused(_, at) => after(*at, pause(waiting.attempts)),
            _ => after(now, pause(waiting.attempts)),
        };
        if until <= now {
            self.activate(key);
        } else {
            waiting.place = Place::Backoff(until);
            self.backoff.insert((until, key.clone()), ());
        }
    }

    /// A pod in flight found no node: it waits for an event that helps one of these plugins.
    pub fn refused(
        &mut self,
        key: &Key,
        plugins: &[&'static str],
        helps: impl Fn(&[&'static str], ClusterEvent) -> bool,
        now: Timestamp,
    ) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let Place::InFlight(events) = std::mem::replace(&mut waiting.place, Place::Active) else {
            return;
        };
        waiting.place = Place::Refused(plugins.to_vec(), now);
        if events.iter().any(|event| helps(plugins, *event)) {
            self.wake(key, now);
        }
    }

    /// A pod in flight failed for a reason outside of it (the binding was refused): tried again.
    pub fn failed(&mut self, key: &Key, now: Timestamp) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.place = Place::Refused(Vec::new(), now);
        self.wake(key, now);
    }

    /// Something happened: pods that it may help are woken. `helps` says so of a pod that these
    /// plugins refused.
    pub fn event(
        &mut self,
        event: ClusterEvent,
        helps: impl Fn(&[&'static str], ClusterEvent) -> bool,
        now: Timestamp,
    ) {
        let mut helped = Vec::new();
        for (key, waiting) in &mut self.pods {
            match &mut waiting.place {
                Place::InFlight(events) if !events.contains(&event) => events.push(event),
                Place::Refused(plugins, _) if helps(plugins, event) => helped.push(key.clone()),
                _ => {}
            }
        }
        for key in helped {
            self.wake(&key, now);
        }
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("a time")
    }

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn higher_priority_goes_first_then_who_waited_longer() {
        let mut q = Queue::default();
        q.add(&key("late"), 0, at(2));
        q.add(&key("early"), 0, at(1));
        q.add(&key("high"), 10, at(3));
        let order: Vec<String> = std::iter::from_fn(|| q.pop(at(4))).map(|k| k.name).collect();
        assert_eq!(order, ["high", "early", "late"]);
    }

    #[test]
    fn a_refused_pod_waits_for_an_event_that_helps_and_for_its_pause() {
        let profile = Profile::default();
        let helps = |plugins: &[&'static str], event| profile.helps(plugins, event);
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        assert!(q.pop(at(0)).is_some());
        q.refused(&key("p"), &["NodeName"], helps, at(0));
        q.event(ClusterEvent::PodGone, helps, at(5));
        assert_eq!(q.pop(at(5)), None, "a pod's end gives no node of that name");
        q.event(ClusterEvent::NodeAdded, helps, at(5));
        assert_eq!(q.pop(at(5)), Some(key("p")));
        q.refused(&key("p"), &["NodeName"], helps, at(5));
        q.event(ClusterEvent::NodeAdded, helps, at(6));
        assert_eq!(q.pop(at(6)), None, "two seconds' pause after the second attempt");
        assert_eq!(q.next_due(), Some(at(7)));
        assert_eq!(q.pop(at(7)), Some(key("p")));
    }

    #[test]
    fn an_event_during_the_attempt_is_not_lost() {
        let profile = Profile::default();
        let helps = |plugins: &[&'static str], event| profile.helps(plugins, event);
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        q.pop(at(0));
        q.event(ClusterEvent::PodGone, helps, at(0));
        q.refused(&key("p"), &["NodeResourcesFit"], helps, at(0));
        assert_eq!(q.pop(at(1)), Some(key("p")));
    }

    #[test]
    fn whatever_happens_a_refused_pod_is_tried_again() {
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        q.pop(at(0));
        q.refused(&key("p"), &["NodeName"], |_, _| false, at(0));
        assert_eq!(q.pop(at(299)), None);
        assert_eq!(q.pop(at(300)), Some(key("p")));
        q.remove(&key("p"));
        assert!(q.is_empty());
    }
}
