//! The lock of leader elections: a Lease (coordination.k8s.io/v1), with the same fields as
//! client-go's `LeaseLock`, so that ours and upstream's candidates stand in one election.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;

use crate::Key;
use crate::election::{Lock, Record};

/// A Lease as lock.
pub struct LeaseLock {
    api: Api<Lease>,
    key: Key,
    /// As last read or written: an update names its resourceVersion.
    seen: Option<Lease>,
}

impl LeaseLock {
    /// The Lease need not exist yet.
    pub fn new(client: kube::Client, namespace: &str, name: &str) -> Self {
        let key = Key::new(namespace, name);
        Self { api: Api::namespaced(client, namespace), key, seen: None }
    }
}

impl Lock for LeaseLock {
    fn describe(&self) -> String {
        self.key.to_string()
    }

    fn about(&self) -> ObjectReference {
        match &self.seen {
            Some(lease) => crate::events::reference(lease),
            None => ObjectReference::default(),
        }
    }

    async fn get(&mut self) -> anyhow::Result<Option<Record>> {
        self.seen = self.api.get_opt(&self.key.name).await?;
        Ok(self.seen.as_ref().map(|lease| record(lease.spec.as_ref())))
    }

    async fn create(&mut self, record: &Record) -> anyhow::Result<()> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.key.name.clone()),
                namespace: Some(self.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(spec(record)),
        };
        self.seen = Some(self.api.create(&PostParams::default(), &lease).await?);
        Ok(())
    }

    async fn update(&mut self, record: &Record) -> anyhow::Result<()> {
        let Some(seen) = &self.seen else { anyhow::bail!("the lease has not been read") };
        let lease = Lease { spec: Some(spec(record)), ..seen.clone() };
        let params = PostParams::default();
        self.seen = Some(self.api.replace(&self.key.name, &params, &lease).await?);
        Ok(())
    }
}

fn record(spec: Option<&LeaseSpec>) -> Record {
    let spec = spec.cloned().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease_seconds: spec.lease_duration_seconds.unwrap_or(0),
        acquired: spec.acquire_time.map(|t| t.0),
        renewed: spec.renew_time.map(|t| t.0),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

fn spec(record: &Record) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(record.holder.clone()),
        lease_duration_seconds: Some(record.lease_seconds),
        acquire_time: record.acquired.map(MicroTime),
        renew_time: record.renewed.map(MicroTime),
        lease_transitions: Some(record.transitions),
        ..LeaseSpec::default()
    }
}
