//! NodeName: a pod that names its node goes there or nowhere.

use crate::framework::{ClusterEvent, Plugin, Prepared, Refusal};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodeName;

struct Named<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        Ok(pod.node_name().map(|name| Box::new(Named(name)) as Box<dyn Prepared>))
    }

    fn helps(&self, event: ClusterEvent) -> bool {
        event == ClusterEvent::NodeAdded
    }
}

impl Prepared for Named<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        match node.name() == self.0 {
            true => Ok(()),
            false => Err(Refusal::unresolvable("node(s) didn't match the requested node name")),
        }
    }
}
