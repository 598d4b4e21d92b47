//! NodePorts: no two pods of a node have the same host port.

use crate::framework::{ClusterEvent, Filter, Plugin, PreFilter, Refusal, Waiter};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodePorts;

struct Wants<'a>(&'a PodInfo);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn helps(&self, event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::PodGone(_))
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }
}

impl PreFilter for NodePorts {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        Ok((!pod.ports.is_empty()).then(|| Box::new(Wants(pod)) as Box<dyn Filter>))
    }
}

impl Filter for Wants<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let used = node.pods.iter().filter(|p| p.uid != self.0.uid).flat_map(|p| &p.ports);
        for port in used {
            if self.0.ports.iter().any(|wanted| wanted.conflicts(port)) {
                let reason = "node(s) didn't have free ports for the requested pod ports";
                return Err(Refusal::new(reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{node, pod};
    use serde_json::json;

    #[test]
    fn host_ports_conflict_by_address_protocol_and_number() {
        let wants = |name: &str, port: serde_json::Value| {
            pod(name, json!({"containers": [{"name": "c", "ports": [port]}]}))
        };
        for (have, want, fits) in [
            (
                json!({"hostPort": 80, "containerPort": 1}),
                json!({"hostPort": 80, "containerPort": 1}),
                false,
            ),
            (
                json!({"hostPort": 80, "containerPort": 1}),
                json!({"hostPort": 81, "containerPort": 1}),
                true,
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "protocol": "UDP"}),
                json!({"hostPort": 80, "containerPort": 1}),
                true,
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "127.0.0.1"}),
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "127.0.0.2"}),
                true,
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "127.0.0.1"}),
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "0.0.0.0"}),
                false,
            ),
        ] {
            let mut snapshot = Snapshot::default();
            snapshot.set_node("n", Some(node("n", json!({}))));
            snapshot.assume(&wants("a", have.clone()), "n");
            let b = wants("b", want.clone());
            let prepared =
                NodePorts.prepare(&b, &snapshot).expect("fits somewhere").expect("ports");
            let found = prepared.filter(snapshot.node("n").expect("a node")).is_ok();
            assert_eq!(found, fits, "{have} {want}");
        }
    }
}
