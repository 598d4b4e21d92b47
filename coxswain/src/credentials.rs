//! Certificates, keys and kubeconfigs of a cluster: made at its first start, kept, and renewed in
//! time, also while it runs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::addons;
use crate::files;
use crate::kubeconfig::{self, Kubeconfig};
use crate::layout::Layout;
use crate::node::NodeSpec;
use crate::pki::{self, Ca, Pki, Spec};

/// How often a running cluster looks for what is about to expire.
const LOOK: Duration = Duration::from_secs(12 * 3600);

/// What they are made from.
pub struct Credentials {
    pub layout: Layout,
    pub pki: Pki,
    pub nodes: Vec<NodeSpec>,
    /// The API server's.
    pub address: IpAddr,
    pub server: String,
    /// Addresses of services, as CIDR.
    pub services: String,
    pub domain: String,
}

impl Credentials {
    /// Makes or renews what is missing, about to expire, or no longer fits. Returns whether
    /// anything was written.
    ///
    /// # Errors
    /// A CA has expired, or a file cannot be read or written: names it.
    pub fn ensure(&self, now: OffsetDateTime) -> anyhow::Result<bool> {
        let pki = &self.pki;
        let mut made = false;
        pki.ensure_ca(Ca::Cluster, now)?;
        pki.ensure_ca(Ca::FrontProxy, now)?;
        pki.ensure_service_account_key()?;
        let mut names: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .into_iter()
            .map(str::to_owned)
            .collect();
        names.push(format!("kubernetes.default.svc.{}", self.domain));
        names.push("localhost".to_owned());
        names.push(self.nodes[0].name.clone());
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let addresses = vec![pki::first_service_address(&self.services)?, self.address, loopback];
        made |= pki.ensure("apiserver", &Spec::server("kube-apiserver", names, addresses), now)?;
        let kubelet_client = Spec::client("kube-apiserver-kubelet-client", &[addons::ADMINS]);
        made |= pki.ensure("apiserver-kubelet-client", &kubelet_client, now)?;
        let proxy_client = Spec { ca: Ca::FrontProxy, ..Spec::client("front-proxy-client", &[]) };
        made |= pki.ensure("front-proxy-client", &proxy_client, now)?;

        let layout = &self.layout;
        let mut wanted = vec![
            (layout.admin_kubeconfig(), "kubernetes-admin", vec![addons::ADMINS]),
            (layout.super_admin_kubeconfig(), "kubernetes-super-admin", vec!["system:masters"]),
            (layout.kubeconfig("controller-manager"), "system:kube-controller-manager", vec![]),
            (layout.kubeconfig("scheduler"), "system:kube-scheduler", vec![]),
            (layout.kubeconfig("kube-proxy"), "system:kube-proxy", vec![]),
            (layout.kubeconfig("cluster-dns"), addons::DNS_USER, vec![]),
        ];
        let users: Vec<String> =
            self.nodes.iter().map(|n| format!("system:node:{}", n.name)).collect();
        for (node, user) in self.nodes.iter().zip(&users) {
            wanted.push((node.kubelet_kubeconfig.clone(), user, vec!["system:nodes"]));
        }
        for (path, user, groups) in &wanted {
            let spec = Spec::client(user, groups);
            let wanted = Kubeconfig { path, server: &self.server, user, spec };
            made |= kubeconfig::ensure(&wanted, pki, now)?;
        }
        for (node, user) in self.nodes.iter().zip(&users) {
            let spec = Spec::server(user, vec![node.name.clone()], vec![node.address]);
            made |= ensure_outside(pki, node, &spec, now)?;
        }
        Ok(made)
    }

    /// Renews while the cluster runs, twice a day and on SIGUSR1, and tells when something was.
    ///
    /// # Errors
    /// The signal cannot be awaited.
    pub async fn keep(
        self,
        renewed: watch::Sender<()>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut asked = signal(SignalKind::user_defined1()).context("SIGUSR1")?;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
                _ = asked.recv() => {}
            }
            match self.ensure(OffsetDateTime::now_utc()) {
                Ok(true) => renewed.send_modify(|()| {}),
                Ok(false) => {}
                Err(error) => tracing::error!(error = format!("{error:#}"), "not renewed"),
            }
        }
    }
}

/// A kubelet's serving certificate, which is kept with the node and not in the cluster's folder.
fn ensure_outside(
    pki: &Pki,
    node: &NodeSpec,
    spec: &Spec,
    now: OffsetDateTime,
) -> anyhow::Result<bool> {
    let dir =
        node.kubelet_certificate.parent().context("no folder for the kubelet's certificate")?;
    let have = files::read(&node.kubelet_certificate).ok();
    let fresh = have
        .is_some_and(|pem| pki::expiry(&pem).is_ok_and(|at| at - now > time::Duration::days(30)));
    let newer = fresh && newer_than(&node.kubelet_certificate, &pki.ca_certificate(Ca::Cluster));
    if newer && node.kubelet_key.exists() {
        return Ok(false);
    }
    files::make_dir(dir)?;
    let pair = pki.issue(spec, now)?;
    files::write_private(&node.kubelet_key, &pair.key)?;
    files::write_private(&node.kubelet_certificate, &pair.certificate)?;
    Ok(true)
}

fn newer_than(a: &Path, b: &Path) -> bool {
    let at = |p: &Path| std::fs::metadata(p).and_then(|m| m.modified()).ok();
    at(a) >= at(b)
}
