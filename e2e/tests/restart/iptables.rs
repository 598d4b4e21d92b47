//! The rules that kube-proxy keeps by iptables.

use anyhow::ensure;
use e2e::{Cluster, Settings, services};

#[test]
fn services_work_by_iptables() -> anyhow::Result<()> {
    let settings = Settings::own("iptables")?;
    let cluster = Cluster::start(&settings, &["--nodes", "2", "--proxy-mode", "iptables"])?;
    services::node_port(&cluster.namespace("nodeport")?)?;
    services::local_node_port(&cluster.namespace("local")?)?;
    services::datagrams(&cluster.namespace("datagrams")?)?;
    services::follow_pods(&cluster.namespace("services")?)?;
    let rules = e2e::run(cluster.inside("iptables-save".as_ref()), "")?.text()?;
    ensure!(rules.contains(":KUBE-SERVICES"), "{rules}");
    let mut nft = cluster.inside("nft".as_ref());
    nft.args(["list", "tables"]);
    let tables = e2e::run(nft, "")?.text()?;
    ensure!(!tables.contains("kube-proxy"), "{tables}");
    settings.purge()
}
