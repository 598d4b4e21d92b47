//! The scheduling framework (KEP-624): what a plugin may say at which point of a pod's way.
//!
//! A plugin prepares itself for one pod and one snapshot (PreFilter and PreScore in one), and the
//! prepared value then answers for each node. So state of a cycle is a value, not a lookup.

use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// The highest score of a node by one plugin.
pub const MAX_SCORE: i64 = 100;

/// Why a pod cannot go to a node, or anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Upstream's words, one for each reason.
    pub reasons: Vec<String>,
    /// Removing other pods could not help.
    pub unresolvable: bool,
}

impl Refusal {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: true }
    }
}

/// What happened in the cluster that may let a refused pod in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    NodeAdded,
    NodeChanged,
    PodGone,
    PodPlaced,
    Other,
}

/// A scheduling plugin.
pub trait Plugin: Send + Sync {
    /// Upstream's name: `NodeResourcesFit`.
    fn name(&self) -> &'static str;

    /// Whether the pod may be queued at all (PreEnqueue).
    ///
    /// # Errors
    /// Why not.
    fn enqueue(&self, _pod: &PodInfo) -> Result<(), Refusal> {
        Ok(())
    }

    /// Prepares for a pod (PreFilter, PreScore). `None`: nothing to say about this pod.
    ///
    /// # Errors
    /// The pod fits nowhere.
    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal>;

    /// Whether such an event may help a pod that this plugin refused (QueueingHint).
    fn helps(&self, event: ClusterEvent) -> bool;
}

/// A plugin that knows the pod.
pub trait Prepared: Send + Sync {
    /// Whether the pod may go to this node (Filter).
    ///
    /// # Errors
    /// Why not.
    fn filter(&self, _node: &NodeInfo) -> Result<(), Refusal> {
        Ok(())
    }

    /// How well it would do there (Score); `None`: this plugin does not score this pod.
    fn score(&self, _node: &NodeInfo) -> Option<i64> {
        None
    }

    /// Brings raw scores into 0 to [`MAX_SCORE`] (NormalizeScore).
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales scores so that the largest is [`MAX_SCORE`]; with `reverse`, low raw scores are good.
pub fn scale(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = match (max, reverse) {
            (0, true) => MAX_SCORE,
            (0, false) => 0,
            (max, true) => MAX_SCORE - *score * MAX_SCORE / max,
            (max, false) => *score * MAX_SCORE / max,
        };
    }
}
