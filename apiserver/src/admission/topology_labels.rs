//! PodTopologyLabels: pods carry the zone and the region of their node.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::{Attributes, Operation, Plugin};
use crate::reader::Reader;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Copies a node's labels to the Bindings of its pods, from where they come to the pods, and to
/// pods that are made on it.
pub struct PodTopologyLabels(pub Arc<dyn Reader>);

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(object) = object else { return Ok(()) };
        if !a.resource.group.is_empty() || a.resource.resource != "pods" {
            return Ok(());
        }
        let node = match a.subresource {
            "" => object::str_at(object, &["spec", "nodeName"]),
            "binding" if object::str_at(object, &["target", "kind"]) == "Node" => {
                object::str_at(object, &["target", "name"])
            }
            _ => return Ok(()),
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = self.0.get(&GroupResource::new("", "nodes"), "", node) else {
            return Ok(());
        };
        for key in LABELS {
            if let Some(value) = object::label(&node, key) {
                object::set(object, &["metadata", "labels", key], value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;
    use serde_json::json;

    #[tokio::test]
    async fn pods_carry_their_nodes_place() {
        let reader = Memory::with(&[(
            "",
            "nodes",
            json!({"metadata": {"name": "n", "labels":
            {"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "x": "y"}}}),
        )]);
        let place =
            json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"});
        let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        let binding =
            |kind: &str| json!({"metadata": {"name": "p"}, "target": {"kind": kind, "name": "n"}});
        for (resource, object, want) in [
            ("pods", pod("n"), &place),
            ("pods", pod(""), &Value::Null),
            ("pods", pod("gone"), &Value::Null),
            ("pods/binding", binding("Node"), &place),
            ("pods/binding", binding("Other"), &Value::Null),
            ("pods/eviction", binding("Node"), &Value::Null),
        ] {
            let write = Write { resource, object, ..Write::default() };
            let got = write.run(&PodTopologyLabels(reader.clone())).await.expect("admitted").0;
            assert_eq!(got["metadata"]["labels"], *want, "{resource}");
        }
    }
}
