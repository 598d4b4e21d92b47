//! TaintNodesByCondition: a new node takes no pods until it is ready.

use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use serde_json::json;

use super::tolerations::NOT_READY;
use super::{Attributes, Operation, Plugin};

pub struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
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
        let Some(node) = object else { return Ok(()) };
        let concerns = a.resource.group.is_empty() && a.resource.resource == "nodes";
        if !concerns || !a.subresource.is_empty() {
            return Ok(());
        }
        let mut taints = object::list_at(node, &["spec", "taints"]).to_vec();
        let there = taints.iter().any(|t| {
            object::str_at(t, &["key"]) == NOT_READY
                && object::str_at(t, &["effect"]) == "NoSchedule"
        });
        if !there {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            object::set(node, &["spec", "taints"], taints);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;

    #[tokio::test]
    async fn new_nodes_are_tainted_once() {
        let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
        let other = json!({"key": NOT_READY, "effect": "NoExecute"});
        for (has, want) in [
            (json!([]), json!([taint])),
            (json!([taint]), json!([taint])),
            (json!([other]), json!([other, taint])),
        ] {
            let object = json!({"metadata": {"name": "n"}, "spec": {"taints": has}});
            let write = Write { resource: "nodes", kind: "Node", object, ..Write::default() };
            let got = write.run(&TaintNodesByCondition).await.expect("admitted").0;
            assert_eq!(got["spec"]["taints"], want);
        }
    }
}
