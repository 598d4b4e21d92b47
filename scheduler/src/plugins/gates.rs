//! SchedulingGates: a pod with gates waits until they are gone (KEP-3521).

use crate::framework::{Plugin, PreEnqueue, Refusal};
use crate::snapshot::PodInfo;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn pre_enqueue(&self) -> Option<&dyn PreEnqueue> {
        Some(self)
    }
}

impl PreEnqueue for SchedulingGates {
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
}
