//! NodeName: a pod that names its node goes there or nowhere.

use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, Refusal, Waiter};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodeName;

struct Named<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn helps(&self, event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        matches!(event, ClusterEvent::NodeAdded)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }
}

impl PreFilter for NodeName {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        Ok(pod.node_name().map(|name| Box::new(Named(name)) as Box<dyn Filter>))
    }
}

impl Filter for Named<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        match node.name() == self.0 {
            true => Ok(()),
            false => Err(Refusal::unresolvable("node(s) didn't match the requested node name")),
        }
    }
}
