//! A node that runs short of a resource refuses and evicts pods.

use anyhow::ensure;
use e2e::{Cluster, SOON, Settings, eventually};

/// A pod that is put on the node without asking the scheduler.
fn placed(name: &str, memory: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: node
  containers:
  - name: main
    image: localhost/test:1
    command: [sleep, infinity]
    resources: {memory}
"
    )
}

#[test]
fn a_node_short_of_memory_refuses_and_evicts() -> anyhow::Result<()> {
    let settings = Settings::own("pressure")?;
    // More has to stay free than any machine has.
    let short = [
        "--extra",
        "kubelet=--eviction-soft=memory.available<1Pi",
        "--extra",
        "kubelet=--eviction-soft-grace-period=memory.available=1s",
    ];
    let cluster = Cluster::start(&settings, &short)?;
    let ns = cluster.namespace("short")?;
    ns.apply(&placed("promised", "{requests: {memory: 1Mi}}"))?;
    let ended = |pod: &str, reason: &str, message: &str| {
        eventually(&format!("{pod} is evicted"), SOON, || {
            let status = ns.get(&["pod", pod])?["status"].clone();
            ensure!(status["phase"] == "Failed" && status["reason"] == reason, "{status}");
            let text = status["message"].as_str().unwrap_or_default();
            ensure!(text.contains(message), "{text}");
            Ok(())
        })
    };
    let low = "The node was low on resource: memory. Threshold quantity: 1Pi, available: ";
    ended("promised", "Evicted", low)?;
    eventually("the node says so", SOON, || {
        let node = ns.get(&["node", "node"])?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().any(|c| {
            c["type"] == "MemoryPressure"
                && c["status"] == "True"
                && c["reason"] == "KubeletHasInsufficientMemory"
        });
        ensure!(found, "{conditions:?}");
        let taints = &node["spec"]["taints"];
        ensure!(taints.to_string().contains("node.kubernetes.io/memory-pressure"), "{taints}");
        Ok(())
    })?;
    ns.apply(&placed("unpromised", "{}"))?;
    ended("unpromised", "Evicted", "The node had condition: [MemoryPressure]. ")?;
    drop(ns);
    settings.purge()
}
