//! The node's lease: renewed often, so that the node's status need not be.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;

use crate::kubelet::Kubelet;

const NAMESPACE: &str = "kube-node-lease";

/// Renews the lease until shutdown, four times in its duration.
pub async fn keep(k: Arc<Kubelet>) {
    let Some(client) = &k.client else { return };
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let duration = k.config.node_lease_duration_seconds.max(1);
    let period = Duration::from_secs_f64(f64::from(duration) / 4.0);
    let mut last: Option<Lease> = None;
    loop {
        match renew(&k, &api, last.take(), duration).await {
            Ok(lease) => last = Some(lease),
            Err(error) => tracing::warn!(%error, "lease not renewed"),
        }
        // A little jitter keeps nodes that started together apart.
        let pause = period.mul_f64(0.98 + rand::random::<f64>() * 0.04);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = k.shutdown.cancelled() => return,
        }
    }
}

async fn renew(
    k: &Kubelet,
    api: &Api<Lease>,
    last: Option<Lease>,
    duration: i32,
) -> Result<Lease, kube::Error> {
    let current = match last {
        Some(lease) => Some(lease),
        None => api.get_opt(&k.node_name).await?,
    };
    let fresh = |mut spec: LeaseSpec| {
        spec.holder_identity = Some(k.node_name.clone());
        spec.lease_duration_seconds = Some(duration);
        spec.renew_time = Some(MicroTime(jiff::Timestamp::now()));
        Some(spec)
    };
    let owner = k.node.as_ref().and_then(|n| n.list().first().cloned()).and_then(|node| {
        Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: k.node_name.clone(),
            uid: node.metadata.uid.clone()?,
            ..OwnerReference::default()
        }])
    });
    match current {
        Some(mut lease) => {
            lease.spec = fresh(lease.spec.take().unwrap_or_default());
            if lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
                lease.metadata.owner_references = owner;
            }
            api.replace(&k.node_name, &PostParams::default(), &lease).await
        }
        None => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(k.node_name.clone()),
                    namespace: Some(NAMESPACE.into()),
                    owner_references: owner,
                    ..ObjectMeta::default()
                },
                spec: fresh(LeaseSpec::default()),
            };
            api.create(&PostParams::default(), &lease).await
        }
    }
}
