//! The scheduling framework (KEP-624): a trait for each point of a pod's way at which a plugin may
//! have its say. A [`Profile`](crate::profile::Profile) says which plugins are asked at which.
//!
//! A plugin prepares itself for one pod and one snapshot, and the prepared value then answers for
//! each node. So state of a cycle is a value, not a lookup. The order of the queue (QueueSort,
//! PrioritySort) and the binding (Bind, DefaultBinder) are the scheduler's own: no other plugin for
//! them is known.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use client::Key;
use client::lean::Pod;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use serde_json::Value;

use crate::cycle::Unschedulable;
use crate::preemption::Preemption;
use crate::profile::Profile;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// The highest score of a node by one plugin.
pub const MAX_SCORE: i64 = 100;

/// A reason in upstream's words; mostly one of those that are always the same.
pub type Reason = Cow<'static, str>;

/// Why a pod cannot go to a node, or anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reasons: Vec<Reason>,
    /// Removing other pods could not help.
    pub unresolvable: bool,
}

impl Refusal {
    pub fn new(reason: impl Into<Reason>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    pub fn unresolvable(reason: impl Into<Reason>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: true }
    }
}

/// An object that came or has changed.
#[derive(Debug)]
pub struct Seen<'e, K> {
    /// As it was; `None`: it came.
    pub old: Option<&'e K>,
    pub new: &'e K,
}

impl<'e, K> Seen<'e, K> {
    pub fn is_new(&self) -> bool {
        self.old.is_none()
    }

    /// Whether the object came, or something of it has changed.
    pub fn differs<T: PartialEq>(&self, of: impl Fn(&'e K) -> T) -> bool {
        self.old.is_none_or(|old| of(old) != of(self.new))
    }
}

/// What happened in the cluster that may let a refused pod in.
#[derive(Debug)]
pub enum ClusterEvent<'e> {
    NodeAdded,
    NodeChanged,
    /// A pod that had a node has ended, is gone, or does not get there after all.
    PodGone(&'e Pod),
    /// A placed pod asks for another amount than before.
    PodResized,
    PodPlaced,
    Claim(Seen<'e, PersistentVolumeClaim>),
    Volume(Seen<'e, PersistentVolume>),
    Class(Seen<'e, StorageClass>),
    Driver(Seen<'e, CSIDriver>),
    /// What drivers say of a node.
    Attachable(Seen<'e, CSINode>),
    Capacity(Seen<'e, CSIStorageCapacity>),
}

impl ClusterEvent<'_> {
    /// Whether a node came or changed.
    pub fn is_of_node(&self) -> bool {
        matches!(self, Self::NodeAdded | Self::NodeChanged)
    }
}

/// A refused pod, as far as it tells which events help it.
#[derive(Clone, Copy, Debug)]
pub struct Waiter<'w> {
    pub key: &'w Key,
    /// Names of its claims; whether each is made for the pod.
    pub claims: &'w [(String, bool)],
}

/// A scheduling plugin: its name, and the points that it extends.
pub trait Plugin: Send + Sync {
    /// Upstream's name: `NodeResourcesFit`.
    fn name(&self) -> &'static str;

    /// Whether such an event may help a pod that this plugin refused (QueueingHint).
    fn helps(&self, _event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        false
    }

    fn pre_enqueue(&self) -> Option<&dyn PreEnqueue> {
        None
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        None
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        None
    }

    fn post_filter(&self) -> Option<&dyn PostFilter> {
        None
    }

    fn reserve(&self) -> Option<&dyn Reserve> {
        None
    }

    fn pre_bind(&self) -> Option<&dyn PreBind> {
        None
    }
}

/// Says which pods may be queued.
pub trait PreEnqueue {
    /// Whether the pod may be queued at all.
    ///
    /// # Errors
    /// Why not.
    fn enqueue(&self, pod: &PodInfo) -> Result<(), Refusal>;
}

/// Says which nodes will do.
pub trait PreFilter {
    /// Prepares for a pod. `None`: any node will do.
    ///
    /// # Errors
    /// The pod fits nowhere.
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal>;
}

/// Knows the pod, and answers for nodes.
pub trait Filter {
    /// Names of the only nodes that are worth a look, if it knows them.
    fn only(&self) -> Option<Vec<&str>> {
        None
    }

    /// Whether the pod may go to this node.
    ///
    /// # Errors
    /// Why not.
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal>;

    /// Another pod comes to a node or leaves it, in a trial (upstream's PreFilterExtensions): what
    /// was counted in preparation is counted anew. A node's own pods are seen in the filter.
    fn changed(&mut self, _node: &NodeInfo, _other: &PodInfo, _comes: bool) {}
}

/// Says which nodes are better.
pub trait PreScore {
    /// Prepares for a pod that may go to any of these nodes. `None`: all are as good.
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>>;
}

/// Knows the pod, and scores nodes.
pub trait Score {
    /// How well the pod would do there; `None`: this node gets nothing.
    fn score(&self, node: &NodeInfo) -> Option<i64>;

    /// Brings raw scores into 0 to [`MAX_SCORE`] (NormalizeScore).
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// What is asked when no node takes a pod.
pub struct Refused<'a> {
    pub profile: &'a Profile,
    pub snapshot: &'a Snapshot,
    pub pod: &'a PodInfo,
    pub why: &'a Unschedulable,
    pub budgets: &'a [Arc<PodDisruptionBudget>],
    /// Where to begin among the nodes.
    pub start: usize,
}

/// Makes room for a pod that was refused everywhere.
pub trait PostFilter {
    /// Which pods are to go.
    ///
    /// # Errors
    /// Why nothing can be done, in upstream's words.
    fn make_room(&self, refused: &Refused<'_>) -> Result<Preemption, String>;
}

/// Keeps what a pod needs on its node, from when the node is chosen until the binding has ended.
pub trait Reserve {
    /// The pod goes to this node.
    ///
    /// # Errors
    /// It cannot, after all.
    fn reserve(&self, pod: &PodInfo, node: &str, snapshot: &mut Snapshot) -> Result<(), String>;

    /// Its binding has ended, one way or the other (upstream's Unreserve).
    fn ended(&self, pod: &PodInfo, snapshot: &mut Snapshot);
}

/// A merge patch that must be written before a pod is bound.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Volume(String, Value),
    Claim(Key, Value),
}

/// Has something done, and waits for it, before a pod is bound.
pub trait PreBind: Send + Sync {
    /// What is to be written.
    fn writes(&self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<Write>;

    /// Whether all has come about that the binding needs; asked after the writes, and again after
    /// each change of what they are about.
    ///
    /// # Errors
    /// It never will.
    fn is_done(&self, pod: &PodInfo, snapshot: &Snapshot) -> Result<bool, String>;

    /// For how long it is waited for, and what is said then.
    fn patience(&self) -> (Duration, &'static str);
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
