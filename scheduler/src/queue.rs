//! Pods that wait: for their turn, for a pause to pass, or for something to change
//! (upstream's active, backoff and unschedulable queues).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use client::Key;
use jiff::{SignedDuration, Timestamp};

use crate::framework::Waiter;
use crate::snapshot::PodInfo;

/// Pauses after failed attempts: the first, which doubles up to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(10) }
    }
}

impl Pauses {
    fn after(self, attempts: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.longest)
    }
}

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
    Refused(Refused),
    /// Being scheduled; whether the pod has changed meanwhile. What else happens is in the snapshot
    /// that the decision is made on, or comes after the refusal.
    InFlight(bool),
}

#[derive(Clone, Debug, PartialEq)]
struct Refused {
    at: Timestamp,
    by: Vec<&'static str>,
    /// The pod's claims, as [`PodInfo`] has them.
    claims: Vec<(String, bool)>,
}

/// The queue. The present time is passed in. Each pod is in the set of its place, so that neither a
/// turn nor an event looks at all that wait.
#[derive(Debug, Default)]
pub struct Queue {
    pauses: Pauses,
    pods: HashMap<Key, Waiting>,
    active: BTreeSet<Turn>,
    /// By when their pause ends.
    backoff: BTreeSet<(Timestamp, Key)>,
    /// By when they were refused.
    refused: BTreeSet<(Timestamp, Key)>,
}

fn after(now: Timestamp, pause: Duration) -> Timestamp {
    now.checked_add(SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)).unwrap_or(now)
}

impl Queue {
    pub fn new(pauses: Pauses) -> Self {
        Self { pauses, ..Self::default() }
    }

    /// A pod that is new or has changed in a way that may matter.
    pub fn add(&mut self, key: &Key, priority: i32, now: Timestamp) {
        match self.pods.get_mut(key) {
            None => {
                let waiting = Waiting { priority, since: now, attempts: 0, place: Place::Active };
                self.active.insert((Reverse(priority), now, key.clone()));
                self.pods.insert(key.clone(), waiting);
            }
            Some(Waiting { place: Place::InFlight(changed), .. }) => *changed = true,
            Some(waiting) => {
                let is_refused = matches!(waiting.place, Place::Refused(..));
                if waiting.priority != priority {
                    let place = waiting.place.clone();
                    self.unlist(key);
                    self.set(key, place, |waiting| waiting.priority = priority);
                }
                if is_refused {
                    self.wake(key, now);
                }
            }
        }
    }

    /// Puts a pod that is nowhere somewhere.
    fn set(&mut self, key: &Key, place: Place, change: impl FnOnce(&mut Waiting)) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        change(waiting);
        match &place {
            Place::Active => {
                self.active.insert((Reverse(waiting.priority), waiting.since, key.clone()));
            }
            Place::Backoff(until) => {
                self.backoff.insert((*until, key.clone()));
            }
            Place::Refused(refused) => {
                self.refused.insert((refused.at, key.clone()));
            }
            Place::InFlight(_) => {}
        }
        waiting.place = place;
    }

    /// Takes a pod from where it is.
    fn unlist(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get(key) else { return };
        match &waiting.place {
            Place::Active => {
                self.active.remove(&(Reverse(waiting.priority), waiting.since, key.clone()));
            }
            Place::Backoff(until) => {
                self.backoff.remove(&(*until, key.clone()));
            }
            Place::Refused(refused) => {
                self.refused.remove(&(refused.at, key.clone()));
            }
            Place::InFlight(_) => {}
        }
    }

    fn change_place(&mut self, key: &Key, place: Place) {
        self.unlist(key);
        self.set(key, place, |_| {});
    }

    /// A pod that is gone, bound, or gated.
    pub fn remove(&mut self, key: &Key) {
        self.unlist(key);
        self.pods.remove(key);
    }

    /// The next pod to schedule; it is in flight until [`Queue::remove`] or [`Queue::refused`].
    pub fn pop(&mut self, now: Timestamp) -> Option<Key> {
        self.ripen(now);
        let (_, _, key) = self.active.first()?.clone();
        self.unlist(&key);
        self.set(&key, Place::InFlight(false), |waiting| {
            waiting.attempts = waiting.attempts.saturating_add(1);
        });
        Some(key)
    }

    /// When [`Queue::pop`] may have something, if not now.
    pub fn next_due(&self) -> Option<Timestamp> {
        let backoff = self.backoff.first().map(|(at, _)| *at);
        let refused = self.refused.first().map(|(at, _)| after(*at, PATIENCE));
        backoff.into_iter().chain(refused).min()
    }

    fn ripen(&mut self, now: Timestamp) {
        let ripe = |at: Timestamp, pause| after(at, pause) <= now;
        while let Some((_, key)) = self.backoff.first().filter(|(at, _)| *at <= now).cloned() {
            self.change_place(&key, Place::Active);
        }
        while let Some((_, key)) = self.refused.first().filter(|x| ripe(x.0, PATIENCE)).cloned() {
            self.change_place(&key, Place::Active);
        }
    }

    fn wake(&mut self, key: &Key, now: Timestamp) {
        let Some(waiting) = self.pods.get(key) else { return };
        let since = match &waiting.place {
            Place::Refused(refused) => refused.at,
            _ => now,
        };
        let until = after(since, self.pauses.after(waiting.attempts));
        self.change_place(key, if until <= now { Place::Active } else { Place::Backoff(until) });
    }

    /// A pod in flight found no node: it waits for an event that helps one of these plugins.
    pub fn refused(&mut self, pod: &PodInfo, plugins: &[&'static str], now: Timestamp) {
        let Some(Waiting { place: Place::InFlight(changed), .. }) = self.pods.get(&pod.key) else {
            return;
        };
        let changed = *changed;
        let refused = Refused { at: now, by: plugins.to_vec(), claims: pod.claims.clone() };
        self.change_place(&pod.key, Place::Refused(refused));
        if changed {
            self.wake(&pod.key, now);
        }
    }

    /// A pod in flight failed for a reason outside of it (the binding was refused): tried again.
    pub fn failed(&mut self, key: &Key, now: Timestamp) {
        let refused = Refused { at: now, by: Vec::new(), claims: Vec::new() };
        self.change_place(key, Place::Refused(refused));
        self.wake(key, now);
    }

    /// Something happened: pods that it may help are woken. `helps` says so of a pod that these
    /// plugins refused.
    pub fn event(&mut self, helps: impl Fn(&[&'static str], &Waiter<'_>) -> bool, now: Timestamp) {
        let is_helped = |key: &Key| match self.pods.get(key).map(|w| &w.place) {
            Some(Place::Refused(r)) => helps(&r.by, &Waiter { key, claims: &r.claims }),
            _ => false,
        };
        let keys = self.refused.iter().map(|(_, key)| key);
        let helped: Vec<Key> = keys.filter(|key| is_helped(key)).cloned().collect();
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
    use crate::framework::ClusterEvent;
    use crate::profile::Profile;
    use crate::snapshot::tests::pod;
    use serde_json::json;

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
        let p = pod("p", json!({}));
        let happens = |q: &mut Queue, event: ClusterEvent<'_>, now| {
            q.event(|plugins, pod| profile.helps(plugins, &event, pod), now);
        };
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        assert!(q.pop(at(0)).is_some());
        q.refused(&p, &["NodeName"], at(0));
        happens(&mut q, ClusterEvent::PodGone(&p.pod), at(5));
        assert_eq!(q.pop(at(5)), None, "a pod's end gives no node of that name");
        happens(&mut q, ClusterEvent::NodeAdded, at(5));
        assert_eq!(q.pop(at(5)), Some(key("p")));
        q.refused(&p, &["NodeName"], at(5));
        happens(&mut q, ClusterEvent::NodeAdded, at(6));
        assert_eq!(q.pop(at(6)), None, "two seconds' pause after the second attempt");
        assert_eq!(q.next_due(), Some(at(7)));
        assert_eq!(q.pop(at(7)), Some(key("p")));
    }

    #[test]
    fn a_pod_is_in_one_place_whatever_happens() {
        let mut q = Queue::default();
        q.add(&key("a"), 0, at(0));
        q.add(&key("b"), 5, at(0));
        q.add(&key("a"), 10, at(1));
        assert_eq!(q.pop(at(1)), Some(key("a")), "it is more important now");
        q.failed(&key("a"), at(1));
        q.add(&key("a"), 0, at(1));
        q.remove(&key("b"));
        assert_eq!((q.pop(at(1)), q.next_due()), (None, Some(at(2))));
        q.remove(&key("a"));
        assert_eq!((q.pop(at(9)), q.next_due(), q.len()), (None, None, 0));
        q.failed(&key("a"), at(9));
        assert!(q.is_empty() && q.next_due().is_none(), "what is not there cannot fail");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds = |pauses: Pauses| [1, 2, 3, 5, 40].map(|n| pauses.after(n).as_secs());
        assert_eq!(seconds(Pauses::default()), [1, 2, 4, 10, 10]);
        let (first, longest) = (Duration::from_secs(3), Duration::from_secs(100));
        assert_eq!(seconds(Pauses { first, longest }), [3, 6, 12, 48, 100]);
    }

    #[test]
    fn a_pod_that_no_plugin_refused_is_helped_by_whatever_happens() {
        let profile = Profile::default();
        let p = pod("p", json!({}));
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        q.pop(at(0));
        q.refused(&p, &[], at(0));
        q.event(|plugins, pod| profile.helps(plugins, &ClusterEvent::NodeAdded, pod), at(5));
        assert_eq!(q.pop(at(5)), Some(key("p")), "there was no node to refuse it");
    }

    #[test]
    fn a_change_of_the_pod_during_the_attempt_is_not_lost() {
        let p = pod("p", json!({}));
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        q.pop(at(0));
        q.add(&key("p"), 0, at(0));
        q.refused(&p, &["NodeName"], at(0));
        assert_eq!(q.pop(at(1)), Some(key("p")));
    }

    #[test]
    fn whatever_happens_a_refused_pod_is_tried_again() {
        let mut q = Queue::default();
        q.add(&key("p"), 0, at(0));
        q.pop(at(0));
        q.refused(&pod("p", json!({})), &["NodeName"], at(0));
        assert_eq!(q.pop(at(299)), None);
        assert_eq!(q.pop(at(300)), Some(key("p")));
        q.remove(&key("p"));
        assert!(q.is_empty());
    }
}
