//! The plugins, one file each, and upstream's default set with its weights.

mod affinity;
#[cfg(test)]
mod book;
mod gates;
mod hints;
mod image;
mod interpod;
mod names;
mod ports;
mod resources;
mod spread;
mod taints;
mod volumes;

use std::sync::Arc;

use crate::args::Args;
use crate::framework::Plugin;
use crate::preemption::DefaultPreemption;
use crate::profile::Point::{
    self, Bind, Filter, PostFilter, PreBind, PreEnqueue, PreFilter, PreScore, QueueSort, Reserve,
    Score,
};

/// Upstream's default set, all of it by multiPoint: names and weights, in order.
pub const DEFAULTS: &[(&str, i64)] = &[
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
];

/// The plugins that there are, and the points that upstream's extend.
pub const NAMES: &[(&str, &[Point])] = &[
    ("SchedulingGates", &[PreEnqueue]),
    ("PrioritySort", &[QueueSort]),
    ("NodeUnschedulable", &[Filter]),
    ("NodeName", &[Filter]),
    ("TaintToleration", &[Filter, PreScore, Score]),
    ("NodeAffinity", &[PreFilter, Filter, PreScore, Score]),
    ("NodePorts", &[PreFilter, Filter]),
    ("NodeResourcesFit", &[PreFilter, Filter, PreScore, Score]),
    ("VolumeRestrictions", &[PreFilter, Filter]),
    ("NodeVolumeLimits", &[PreFilter, Filter]),
    ("VolumeBinding", &[PreFilter, Filter, Reserve, PreScore, Score, PreBind]),
    ("VolumeZone", &[PreFilter, Filter]),
    ("PodTopologySpread", &[PreFilter, Filter, PreScore, Score]),
    ("InterPodAffinity", &[PreFilter, Filter, PreScore, Score]),
    ("DefaultPreemption", &[PostFilter]),
    ("NodeResourcesBalancedAllocation", &[PreScore, Score]),
    ("ImageLocality", &[Score]),
    ("DefaultBinder", &[Bind]),
];

/// The points that a plugin extends.
pub fn points(name: &str) -> &'static [Point] {
    NAMES.iter().find(|(n, _)| *n == name).map_or(&[], |(_, points)| points)
}

/// All plugins that are more than a name, with these arguments.
pub fn all(args: &Args) -> Vec<Arc<dyn Plugin>> {
    vec![
        Arc::new(gates::SchedulingGates),
        Arc::new(taints::NodeUnschedulable),
        Arc::new(names::NodeName),
        Arc::new(taints::TaintToleration),
        Arc::new(affinity::NodeAffinity::new(&args.node_affinity)),
        Arc::new(ports::NodePorts),
        Arc::new(resources::NodeResourcesFit::new(&args.fit)),
        Arc::new(volumes::VolumeRestrictions),
        Arc::new(volumes::NodeVolumeLimits),
        Arc::new(volumes::VolumeBinding::new(&args.volume_binding)),
        Arc::new(volumes::VolumeZone),
        Arc::new(spread::PodTopologySpread::new(&args.spread)),
        Arc::new(interpod::InterPodAffinity::new(&args.interpod)),
        Arc::new(DefaultPreemption::new(&args.preemption)),
        Arc::new(resources::NodeResourcesBalancedAllocation::new(&args.balanced)),
        Arc::new(image::ImageLocality),
    ]
}
