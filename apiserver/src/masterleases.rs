//! Which API servers there are: each keeps a record of its address in the store, which ends by
//! itself when the server does not renew it (upstream: `controlplane/reconcilers/lease.go`).

use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use apimachinery::codec::{Schema, proto};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{MessageId, Registry};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use serde_json::json;
use store::{Expect, ListRequest, Outcome, SharedStore};

/// For how long a server counts after it was last heard of.
const TTL: Duration = Duration::from_secs(15);
/// Times that a write is tried when somebody else writes the same record.
const ATTEMPTS: usize = 8;

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::Internal(error.to_string())
}

/// The records of all servers, and this server's own.
pub(crate) struct Leases {
    store: SharedStore,
    /// What keys begin with, `/registry/masterleases/`.
    prefix: String,
    own: IpAddr,
    schema: Schema<'static>,
}

impl Leases {
    /// `root` is `--etcd-prefix`, `own` the address that this server is known by. `None` when the
    /// schemas lack the kind that records are written as.
    pub(crate) fn new(store: SharedStore, root: &str, own: IpAddr) -> Option<Self> {
        let registry = Registry::builtin();
        let message: MessageId = registry.kind(&GroupVersionKind::new("", "v1", "Endpoints"))?;
        let schema = Schema { registry, message };
        Some(Self { store, prefix: format!("{root}/masterleases/"), own, schema })
    }

    fn key(&self) -> Bytes {
        format!("{}{}", self.prefix, self.own).into()
    }

    fn decode(&self, stored: &[u8]) -> Option<Value> {
        let envelope = proto::open(stored).ok()??;
        proto::decode(self.schema, envelope.raw).ok()
    }

    /// Says that this server lives.
    ///
    /// # Errors
    /// The store took no record.
    pub(crate) async fn renew(&self) -> Result<(), ApiError> {
        let (_, mut found) = self.store.get(&self.key(), None).await.map_err(internal)?;
        for _ in 0..ATTEMPTS {
            let expect = found.as_ref().map_or(Expect::Absent, |kv| Expect::At(kv.mod_revision));
            let old = found.as_ref().and_then(|kv| self.decode(&kv.value));
            let record = renewed(old, self.own);
            let value = proto::encode_enveloped(self.schema, &record).map_err(internal)?;
            let put = self.store.put(self.key(), value.into(), expect, Some(TTL));
            match put.await.map_err(internal)? {
                Outcome::Done(_) => return Ok(()),
                Outcome::Mismatch(now) => found = now,
            }
        }
        Err(internal("the record of this API server changes too often"))
    }

    /// Says that this server ends.
    ///
    /// # Errors
    /// The store did not answer; the record ends by itself.
    pub(crate) async fn remove(&self) -> Result<(), ApiError> {
        let (_, mut found) = self.store.get(&self.key(), None).await.map_err(internal)?;
        for _ in 0..ATTEMPTS {
            let Some(kv) = found else { return Ok(()) };
            let deleted = self.store.delete(self.key(), kv.mod_revision);
            match deleted.await.map_err(internal)? {
                Outcome::Done(_) => return Ok(()),
                Outcome::Mismatch(now) => found = now,
            }
        }
        Err(internal("the record of this API server changes too often"))
    }

    /// Addresses of the servers that live, in the order of their texts.
    ///
    /// # Errors
    /// The store did not answer.
    pub(crate) async fn addresses(&self) -> Result<Vec<String>, ApiError> {
        let request = ListRequest {
            prefix: self.prefix.clone().into(),
            start: Bound::Unbounded,
            limit: 0,
            revision: None,
        };
        let listed = self.store.list(request).await.map_err(internal)?;
        let records = listed.kvs.iter().filter_map(|kv| self.decode(&kv.value));
        let mut all: Vec<String> = records.filter_map(|record| address(&record)).collect();
        all.sort();
        all.dedup();
        Ok(all)
    }
}

/// A server's record with the next generation, which makes every renewal a write.
fn renewed(old: Option<Value>, own: IpAddr) -> Value {
    let mut record = old.unwrap_or_else(|| json!({"metadata": {}}));
    let generation = object::get(&record, &["metadata", "generation"]).and_then(Value::as_i64);
    object::set(&mut record, &["apiVersion"], "v1");
    object::set(&mut record, &["kind"], "Endpoints");
    let next = generation.unwrap_or(0).saturating_add(1);
    object::set(&mut record, &["metadata", "generation"], next);
    object::set(&mut record, &["subsets"], json!([{"addresses": [{"ip": own.to_string()}]}]));
    record
}

fn address(record: &Value) -> Option<String> {
    let ip = record.get("subsets")?.get(0)?.get("addresses")?.get(0)?.get("ip")?.as_str()?;
    (!ip.is_empty()).then(|| ip.to_owned())
}

#[cfg(test)]
mod tests {
    use store::Store as _;

    use super::*;

    #[tokio::test]
    async fn all_servers_that_live_are_known() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store");
        let store = store::embedded::Embedded::open(&path, Default::default()).expect("a store");
        let server = |ip: &str| {
            let ip = ip.parse().expect("an address");
            Leases::new(store.clone(), "/registry", ip).expect("a schema")
        };
        let (one, two) = (server("192.0.2.2"), server("192.0.2.1"));
        for leases in [&one, &two, &one] {
            leases.renew().await.expect("renewed");
        }
        assert_eq!(two.addresses().await.expect("all"), ["192.0.2.1", "192.0.2.2"]);
        let (_, found) = store.get(b"/registry/masterleases/192.0.2.2", None).await.expect("read");
        let record = one.decode(&found.expect("a record").value).expect("decoded");
        assert_eq!(object::get(&record, &["metadata", "generation"]), Some(&json!(2)));
        one.remove().await.expect("removed");
        one.remove().await.expect("nothing to remove");
        assert_eq!(two.addresses().await.expect("all"), ["192.0.2.1"]);
    }
}
