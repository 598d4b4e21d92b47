//! One cluster of two nodes, and what people do with it. The tests run side by side, each in a
//! namespace of its own.

mod client;
mod extended;
mod lifecycle;
mod network;
mod objects;
mod refusals;
mod rights;
mod streams;
mod volumes;
mod workloads;

use std::sync::OnceLock;

use e2e::Cluster;

/// The cluster that all tests here share.
fn cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let made = CLUSTER.get_or_init(|| Cluster::shared().map_err(|e| format!("{e:#}")));
    made.as_ref().map_err(|e| anyhow::anyhow!("{e}"))
}
