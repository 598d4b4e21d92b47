//! A profile: which plugins have their say for the pods of one scheduler name, in which order and
//! with which weight.

use std::sync::Arc;

use crate::args::Args;
use crate::framework::{ClusterEvent, Plugin, Refusal, Waiter};
use crate::plugins;
use crate::snapshot::PodInfo;

/// The points that plugins extend, in the order in which upstream checks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    PreFilter,
    Filter,
    PostFilter,
    Reserve,
    PreScore,
    Score,
    PreBind,
    Bind,
    PostBind,
    Permit,
    PreEnqueue,
    QueueSort,
}

impl Point {
    pub const ALL: [Self; 12] = [
        Self::PreFilter,
        Self::Filter,
        Self::PostFilter,
        Self::Reserve,
        Self::PreScore,
        Self::Score,
        Self::PreBind,
        Self::Bind,
        Self::PostBind,
        Self::Permit,
        Self::PreEnqueue,
        Self::QueueSort,
    ];

    /// Upstream's name of the interface.
    pub fn interface(self) -> String {
        format!("{self:?}Plugin")
    }
}

/// Plugins that are asked at one point, with their weights.
pub type Asked = Vec<(&'static str, i64)>;

/// A plugin of PreFilter, or Filter, or both: it prepares itself for either, and may then refuse the
/// pod as such.
pub struct Step {
    pub plugin: Arc<dyn Plugin>,
    /// May refuse nodes.
    pub filter: bool,
}

/// The plugins for one scheduler name.
pub struct Profile {
    /// The scheduler name that pods give.
    pub scheduler: String,
    /// Share of the nodes that is enough to choose from; 0: by the cluster's size.
    pub percentage: usize,
    pub steps: Vec<Step>,
    pub scores: Vec<(Arc<dyn Plugin>, i64)>,
    pub post_filter: Vec<Arc<dyn Plugin>>,
    pub reserve: Vec<Arc<dyn Plugin>>,
    pub pre_bind: Vec<Arc<dyn Plugin>>,
    pre_enqueue: Vec<Arc<dyn Plugin>>,
    all: Vec<Arc<dyn Plugin>>,
}

impl Profile {
    /// The profile that asks these plugins, by point.
    pub fn new(
        scheduler: &str,
        percentage: usize,
        args: &Args,
        asked: impl Fn(Point) -> Asked,
    ) -> Self {
        let all: Vec<Arc<dyn Plugin>> = plugins::all(args);
        let find = |name: &str| all.iter().find(|p| p.name() == name).cloned();
        let at = |point: Point| -> Vec<(Arc<dyn Plugin>, i64)> {
            asked(point).into_iter().filter_map(|(name, w)| Some((find(name)?, w))).collect()
        };
        let only = |point| -> Vec<Arc<dyn Plugin>> { at(point).into_iter().map(|x| x.0).collect() };
        let has = |list: &[Arc<dyn Plugin>], p: &Arc<dyn Plugin>| {
            list.iter().any(|q| q.name() == p.name())
        };
        let (pre, filter) = (only(Point::PreFilter), only(Point::Filter));
        let both = filter.iter().chain(pre.iter().filter(|p| !has(&filter, p)));
        let steps = both.map(|p| Step { plugin: Arc::clone(p), filter: has(&filter, p) }).collect();
        Self {
            scheduler: scheduler.to_owned(),
            percentage,
            steps,
            scores: at(Point::Score),
            post_filter: only(Point::PostFilter),
            reserve: only(Point::Reserve),
            pre_bind: only(Point::PreBind),
            pre_enqueue: only(Point::PreEnqueue),
            all,
        }
    }

    /// Whether a pod may be queued.
    ///
    /// # Errors
    /// Why not.
    pub fn enqueue(&self, pod: &PodInfo) -> Result<(), Refusal> {
        let gates = self.pre_enqueue.iter().filter_map(|p| p.pre_enqueue());
        gates.into_iter().try_for_each(|gate| gate.enqueue(pod))
    }

    /// Whether an event may help a pod that these plugins refused. Without one that refused it,
    /// whatever happens may.
    pub fn helps(
        &self,
        refused_by: &[&'static str],
        event: &ClusterEvent<'_>,
        pod: &Waiter<'_>,
    ) -> bool {
        let asked = |p: &&Arc<dyn Plugin>| refused_by.contains(&p.name());
        refused_by.is_empty() || self.all.iter().filter(asked).any(|p| p.helps(event, pod))
    }
}

impl Default for Profile {
    /// Upstream's default profile.
    fn default() -> Self {
        Self::new("default-scheduler", 0, &Args::default(), |point| {
            let extends = |name: &str| plugins::points(name).contains(&point);
            plugins::DEFAULTS.iter().copied().filter(|(name, _)| extends(name)).collect()
        })
    }
}
