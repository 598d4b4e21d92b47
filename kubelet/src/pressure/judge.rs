//! Which thresholds are crossed, for how long, and what follows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::thresholds::{Condition, Signal, Threshold};

/// A signal as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

pub type Observations = BTreeMap<Signal, Observation>;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Conditions that the node shows: also those that were true a short while ago.
    pub conditions: BTreeSet<Condition>,
    /// What to reclaim first, if anything.
    pub reclaim: Option<Threshold>,
}

/// Remembers what was crossed before.
#[derive(Debug)]
pub struct Judge {
    thresholds: Vec<Threshold>,
    /// How long a condition stays after it was last seen.
    transition: Duration,
    /// By index in `thresholds`: since when it has been crossed.
    since: BTreeMap<usize, Instant>,
    /// Those whose grace period was over at the last look.
    met: BTreeSet<usize>,
    /// When a condition was last seen.
    last: BTreeMap<Condition, Instant>,
}

impl Judge {
    pub fn new(thresholds: Vec<Threshold>, transition: Duration) -> Self {
        Self {
            thresholds,
            transition,
            since: BTreeMap::new(),
            met: BTreeSet::new(),
            last: BTreeMap::new(),
        }
    }

    /// Judges what was observed.
    pub fn judge(&mut self, observed: &Observations, now: Instant) -> Verdict {
        let crossed: BTreeSet<usize> = self
            .thresholds
            .iter()
            .enumerate()
            .filter(|(i, t)| is_crossed(t, self.met.contains(i), observed))
            .map(|(i, _)| i)
            .collect();
        self.since.retain(|i, _| crossed.contains(i));
        for i in &crossed {
            self.since.entry(*i).or_insert(now);
            self.last.extend(self.thresholds.get(*i).map(|t| (t.signal.condition(), now)));
        }
        self.last.retain(|_, at| now.duration_since(*at) < self.transition);
        let thresholds = &self.thresholds;
        let is_over = |i: usize, since: Instant| {
            thresholds.get(i).is_some_and(|t| now.duration_since(since) >= t.grace)
        };
        self.met = self.since.iter().filter(|(i, s)| is_over(**i, **s)).map(|(i, _)| *i).collect();
        // Memory is the most urgent: without it nothing else can be done.
        let first = self.met.iter().filter_map(|i| thresholds.get(*i)).min_by_key(|t| t.signal);
        Verdict { conditions: self.last.keys().copied().collect(), reclaim: first.cloned() }
    }

    /// Whether something is still short: asked after more was made available.
    pub fn is_short(&self, observed: &Observations) -> bool {
        let met = self.met.iter().filter_map(|i| self.thresholds.get(*i));
        met.into_iter().any(|t| is_crossed(t, true, observed))
    }
}

fn is_crossed(threshold: &Threshold, before: bool, observed: &Observations) -> bool {
    let Some(now) = observed.get(&threshold.signal) else { return false };
    let mut needed = threshold.amount.of(now.capacity);
    if before && let Some(reclaim) = threshold.reclaim {
        needed = needed.saturating_add(reclaim.of(now.capacity));
    }
    now.available < needed
}

#[cfg(test)]
mod tests {
    use super::super::thresholds::Amount;
    use super::*;

    fn threshold(signal: Signal, amount: u64, grace: u64, reclaim: Option<u64>) -> Threshold {
        Threshold {
            signal,
            amount: Amount::Of(amount),
            grace: Duration::from_secs(grace),
            reclaim: reclaim.map(Amount::Of),
        }
    }

    fn observed(memory: u64, disk: u64) -> Observations {
        let of = |available| Observation { available, capacity: 1000 };
        [(Signal::MemoryAvailable, of(memory)), (Signal::NodefsAvailable, of(disk))].into()
    }

    #[test]
    fn thresholds_have_grace_reclaim_and_conditions_that_stay() {
        let hard = threshold(Signal::MemoryAvailable, 100, 0, Some(50));
        let soft = threshold(Signal::NodefsAvailable, 200, 30, None);
        let mut judge = Judge::new(vec![soft.clone(), hard.clone()], Duration::from_secs(60));
        let start = Instant::now();
        let (memory, disk) = (Condition::Memory, Condition::Disk);
        // Seconds, memory, disk; conditions, what to reclaim.
        let steps: [(u64, u64, u64, &[Condition], Option<&Threshold>); 8] = [
            (0, 500, 500, &[], None),
            (10, 500, 150, &[disk], None),
            (39, 500, 150, &[disk], None),
            (40, 500, 150, &[disk], Some(&soft)),
            (50, 90, 150, &[memory, disk], Some(&hard)),
            // Above the threshold, but not by as much as has to be reclaimed.
            (60, 120, 500, &[memory, disk], Some(&hard)),
            (70, 160, 500, &[memory, disk], None),
            (121, 160, 500, &[], None),
        ];
        for (at, memory, disk, conditions, reclaim) in steps {
            let verdict = judge.judge(&observed(memory, disk), start + Duration::from_secs(at));
            let conditions = conditions.iter().copied().collect();
            assert_eq!(verdict, Verdict { conditions, reclaim: reclaim.cloned() }, "at {at}");
        }
    }
}
