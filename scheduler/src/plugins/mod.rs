//! The plugins, one file each, and upstream's default set with its weights.

mod affinity;
mod gates;
mod image;
mod interpod;
mod names;
mod ports;
mod resources;
mod spread;
mod taints;

use crate::framework::Plugin;

/// A plugin and the weight of its scores.
pub struct Weighted {
    pub plugin: Box<dyn Plugin>,
    /// 0: its scores do not count.
    pub weight: i64,
    /// Whether it may refuse nodes.
    pub filters: bool,
}

/// Upstream's default profile, in the order in which filters run.
pub fn defaults() -> Vec<Weighted> {
    let plugins: Vec<(Box<dyn Plugin>, i64)> = vec![
        (Box::new(gates::SchedulingGates), 0),
        (Box::new(taints::NodeUnschedulable), 0),
        (Box::new(names::NodeName), 0),
        (Box::new(taints::TaintToleration), 3),
        (Box::new(affinity::NodeAffinity), 2),
        (Box::new(ports::NodePorts), 0),
        (Box::new(resources::NodeResourcesFit), 1),
        (Box::new(spread::PodTopologySpread), 2),
        (Box::new(interpod::InterPodAffinity), 2),
        (Box::new(resources::NodeResourcesBalancedAllocation), 1),
        (Box::new(image::ImageLocality), 1),
    ];
    plugins.into_iter().map(|(plugin, weight)| Weighted { plugin, weight, filters: true }).collect()
}
