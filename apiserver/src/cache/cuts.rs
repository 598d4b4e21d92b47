//! The states that lists under way are paged through.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Cut;

/// Cuts that are remembered at most.
const MAX: usize = 32;
/// So long pages are given from a cut. From then on the store decides: it keeps its history about as
/// long, and a client whose list takes longer is told so.
const KEPT: Duration = Duration::from_secs(300);

/// Cuts of which more pages may be asked for.
#[derive(Default)]
pub(super) struct Cuts {
    known: VecDeque<(Instant, Cut)>,
    /// The newest revision whose time has passed.
    passed: u64,
}

impl Cuts {
    pub(super) fn remember(&mut self, cut: &Cut, goes_on: bool, now: Instant) {
        self.forget(now);
        // The store still has it, but no list lasts longer because its pages are asked for.
        if goes_on && cut.revision <= self.passed {
            return;
        }
        let same = |known: &Cut| known.revision == cut.revision && known.prefix == cut.prefix;
        if self.known.iter().any(|(_, known)| same(known)) {
            return;
        }
        // A state that still lasted when it was asked for again begins anew.
        self.passed = self.passed.min(cut.revision.saturating_sub(1));
        if self.known.len() >= MAX {
            self.known.pop_front();
        }
        self.known.push_back((now, cut.clone()));
    }

    /// A cut that holds all that is below `prefix`.
    pub(super) fn get(&mut self, revision: u64, prefix: &str, now: Instant) -> Option<Cut> {
        self.forget(now);
        let holds = |cut: &&Cut| cut.revision == revision && prefix.starts_with(&cut.prefix);
        self.known.iter().map(|(_, cut)| cut).find(holds).cloned()
    }

    /// Whether pages of a revision may still be given from here.
    pub(super) fn lasts(&mut self, revision: u64, now: Instant) -> bool {
        self.forget(now);
        revision > self.passed
    }

    pub(super) fn forget(&mut self, now: Instant) {
        let (passed, known) = (&mut self.passed, &mut self.known);
        known.retain(|(since, cut)| {
            let lasts = now.saturating_duration_since(*since) < KEPT;
            if !lasts {
                *passed = (*passed).max(cut.revision);
            }
            lasts
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Tree;

    fn cut(revision: u64) -> Cut {
        Cut { revision, prefix: String::new(), objects: Tree::default() }
    }

    #[test]
    fn cuts_last_for_a_while() {
        let (mut cuts, start) = (Cuts::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        cuts.remember(&cut(5), false, start);
        cuts.remember(&cut(9), false, after(200));
        assert!(cuts.get(5, "", after(299)).is_some() && cuts.lasts(5, after(299)));
        assert!(cuts.get(5, "", after(300)).is_none() && !cuts.lasts(5, after(300)));
        assert!(cuts.get(9, "", after(300)).is_some() && cuts.lasts(9, after(300)));
        // The store had it once more for a further page.
        cuts.remember(&cut(5), true, after(301));
        assert!(cuts.get(5, "", after(301)).is_none() && !cuts.lasts(5, after(301)));
        // Nothing has changed since, and somebody lists again.
        assert!(!cuts.lasts(9, after(500)));
        cuts.remember(&cut(9), false, after(501));
        assert!(cuts.lasts(9, after(502)) && cuts.get(9, "", after(502)).is_some());
    }

    #[test]
    fn they_are_not_many() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        for revision in 1..=40 {
            cuts.remember(&cut(revision), false, now);
        }
        assert!(cuts.get(8, "", now).is_none() && cuts.get(9, "", now).is_some());
    }

    #[test]
    fn a_part_is_not_taken_for_the_whole() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        cuts.remember(&Cut { prefix: "ns1/".to_owned(), ..cut(5) }, false, now);
        for (prefix, held) in [("ns1/", true), ("ns1/a", true), ("ns2/", false), ("", false)] {
            assert_eq!(cuts.get(5, prefix, now).is_some(), held, "{prefix}");
        }
        cuts.remember(&cut(5), false, now);
        for prefix in ["ns1/", "ns2/", ""] {
            assert!(cuts.get(5, prefix, now).is_some(), "{prefix}");
        }
    }
}
