//! SchedulingGates: a pod with gates waits until they are gone (KEP-3521).

use crate::framework::{ClusterEvent, Plugin, Prepared, Refusal};
use crate::snapshot::{PodInfo, Snapshot};

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn enqueue(&self, pod: &PodInfo) -> Result<(), Refusal> {
        let gates = pod.pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_deref());
        match gates.unwrap_or_default() {
            [] => Ok(()),
            gates => {
                let names: Vec<&str> = gates.iter().map(|g| g.name.as_str()).collect();
                let names = names.join(" ");
                Err(Refusal::unresolvable(format!("waiting for scheduling gates: [{names}]")))
            }
        }
    }

    fn prepare<'a>(
        &self,
        _pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        Ok(None)
    }

    fn helps(&self, _event: ClusterEvent) -> bool {
        false
    }
}
