//! Where grants are written down.

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::codec::{self, Schema, proto};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::{Value, object, schema};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::json;
use store::{Expect, Outcome, SharedStore, StoreError};

use super::Grant;
use super::ranges::{Family, PortRange};

/// Why something was not granted. The texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("provided IP is already allocated")]
    Taken,
    #[error("range is full")]
    Full,
    #[error("the provided network does not match the current range")]
    NoSuchRange,
    #[error("{0}")]
    Other(String),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Other(error.to_string())
    }
}

/// Takes and releases. Every grant is durable when the call returns.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    async fn take_address(
        &self,
        ip: IpAddr,
        service: &Value,
        now: jiff::Timestamp,
    ) -> Result<(), Refused>;

    async fn take_port(&self, range: &PortRange, port: u16) -> Result<(), Refused>;

    async fn take_any_port(
        &self,
        range: &PortRange,
        random: &(dyn Fn(u64) -> u64 + Send + Sync),
    ) -> Result<u16, Refused>;

    /// What is not taken is released all the same.
    async fn release(&self, grant: Grant) -> Result<(), Refused>;
}

/// Key of the RangeAllocation of node ports.
const PORTS: &str = "ranges/servicenodeports";
/// Times that a swap is tried when other servers swap, too.
const ATTEMPTS: usize = 64;

/// Upstream's records in the store: IPAddress objects and a RangeAllocation.
pub struct StoreLedger {
    store: SharedStore,
    /// What keys begin with, `/registry/`.
    prefix: String,
    schemas: &'static schema::Registry,
    address: schema::MessageId,
    range: schema::MessageId,
    ports: PortRange,
    /// Serializes swaps of this process, which would only disturb each other.
    swapping: tokio::sync::Mutex<()>,
}

impl StoreLedger {
    /// `None` when `schemas` lacks the kinds that grants are written as.
    pub fn new(
        store: SharedStore,
        prefix: &str,
        schemas: &'static schema::Registry,
        ports: PortRange,
    ) -> Option<Arc<Self>> {
        let kind = |group, kind| schemas.kind(&GroupVersionKind::new(group, "v1", kind));
        let address = kind("networking.k8s.io", "IPAddress")?;
        let range = kind("", "RangeAllocation")
            .or_else(|| schemas.by_name("io.k8s.api.core.v1.RangeAllocation"))?;
        Some(Arc::new(Self {
            store,
            prefix: prefix.to_owned(),
            schemas,
            address,
            range,
            ports,
            swapping: tokio::sync::Mutex::new(()),
        }))
    }

    fn schema(&self, message: schema::MessageId) -> Schema<'_> {
        Schema { registry: self.schemas, message }
    }

    fn key(&self, rest: &str) -> Bytes {
        Bytes::from(format!("{}{rest}", self.prefix))
    }

    /// Swaps the bits of taken ports until no other server was in between. `change` gives the
    /// answer, and whether the bits are to be written.
    async fn swap<T: Send>(
        &self,
        range: &PortRange,
        mut change: impl FnMut(&mut Bits) -> Result<(T, bool), Refused> + Send,
    ) -> Result<T, Refused> {
        let _guard = self.swapping.lock().await;
        for _ in 0..ATTEMPTS {
            let (_, found) = self.store.get(&self.key(PORTS), None).await?;
            let expect = match &found {
                Some(kv) => Expect::At(kv.mod_revision),
                None => Expect::Absent,
            };
            let mut object = match &found {
                Some(kv) => self.decode(&kv.value)?,
                None => json!({"apiVersion": "v1", "kind": "RangeAllocation", "metadata": {}}),
            };
            let mut bits = Bits::of(&object, range)?;
            let (answer, write) = change(&mut bits)?;
            if !write {
                return Ok(answer);
            }
            object["range"] = range.to_string().into();
            object["data"] = STANDARD.encode(bits.to_bytes()).into();
            let value = self.encode(self.range, &object)?;
            match self.store.put(self.key(PORTS), value, expect, None).await? {
                Outcome::Done(_) => return Ok(answer),
                Outcome::Mismatch(_) => continue,
            }
        }
        Err(Refused::Other("too many others change the node port allocations".to_owned()))
    }

    fn encode(&self, message: schema::MessageId, object: &Value) -> Result<Bytes, Refused> {
        let encoded = proto::encode_enveloped(self.schema(message), object);
        encoded.map(Bytes::from).map_err(|e| Refused::Other(e.to_string()))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, Refused> {
        let broken = |e: codec::DecodeError| Refused::Other(e.to_string());
        let raw = match proto::open(bytes).map_err(broken)? {
            Some(envelope) => envelope.raw,
            None => {
                let decoded = serde_json::from_slice(bytes);
                return decoded.map_err(|e| Refused::Other(e.to_string()));
            }
        };
        let mut object = proto::decode(self.schema(self.range), raw).map_err(broken)?;
        object["apiVersion"] = "v1".into();
        object["kind"] = "RangeAllocation".into();
        Ok(object)
    }
}

#[async_trait]
impl Ledger for StoreLedger {
    async fn take_address(
        &self,
        ip: IpAddr,
        service: &Value,
        now: jiff::Timestamp,
    ) -> Result<(), Refused> {
        let mut object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IPAddress",
            "metadata": {
                "name": ip.to_string(),
                "uid": uuid::Uuid::new_v4().to_string(),
                "creationTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "labels": {
                    "ipaddress.kubernetes.io/ip-family": Family::of(ip).name(),
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
                },
            },
            "spec": {"parentRef": {
                "resource": "services",
                "namespace": object::namespace(service),
                "name": object::name(service),
            }},
        });
        codec::canonicalize(self.schema(self.address), &mut object)
            .map_err(|e| Refused::Other(e.to_string()))?;
        let value = self.encode(self.address, &object)?;
        let key = self.key(&format!("ipaddresses/{ip}"));
        match self.store.put(key, value, Expect::Absent, None).await? {
            Outcome::Done(_) => Ok(()),
            Outcome::Mismatch(_) => Err(Refused::Taken),
        }
    }

    async fn take_port(&self, range: &PortRange, port: u16) -> Result<(), Refused> {
        self.swap(range, |bits| match bits.set(port - range.first()) {
            true => Ok(((), true)),
            false => Err(Refused::Taken),
        })
        .await
    }

    async fn take_any_port(
        &self,
        range: &PortRange,
        random: &(dyn Fn(u64) -> u64 + Send + Sync),
    ) -> Result<u16, Refused> {
        let range = *range;
        self.swap(&range, |bits| {
            let free = range.candidates(&random).find(|p| bits.set(*p - range.first()));
            free.map(|port| (port, true)).ok_or(Refused::Full)
        })
        .await
    }

    async fn release(&self, grant: Grant) -> Result<(), Refused> {
        match grant {
            Grant::Port(port) => {
                let range = self.ports;
                self.swap(&range, |bits| Ok(((), bits.clear(port.saturating_sub(range.first())))))
                    .await
            }
            Grant::Address(ip) => {
                let key = self.key(&format!("ipaddresses/{ip}"));
                let (_, found) = self.store.get(&key, None).await?;
                if let Some(kv) = found {
                    self.store.delete(key, kv.mod_revision).await?;
                }
                Ok(())
            }
        }
    }
}

/// Which ports of a range are taken: upstream's big integer, most significant byte first.
pub(super) struct Bits {
    /// Least significant byte first.
    bytes: Vec<u8>,
}

impl Bits {
    pub(super) fn of(object: &Value, range: &PortRange) -> Result<Self, Refused> {
        let mut bits = Self { bytes: vec![0; usize::from(range.size()).div_ceil(8)] };
        let text = object::str_at(object, &["range"]);
        let data = STANDARD
            .decode(object::str_at(object, &["data"]))
            .map_err(|e| Refused::Other(e.to_string()))?;
        if !text.is_empty() && text != range.to_string() && !data.is_empty() {
            return Err(Refused::Other(
                "the provided port range does not match the current port range".to_owned(),
            ));
        }
        for (own, stored) in bits.bytes.iter_mut().zip(data.iter().rev()) {
            *own = *stored;
        }
        Ok(bits)
    }

    /// False if the bit was set.
    pub(super) fn set(&mut self, bit: u16) -> bool {
        let (byte, mask) = (usize::from(bit / 8), 1_u8 << (bit % 8));
        match self.bytes.get_mut(byte) {
            Some(b) if *b & mask == 0 => {
                *b |= mask;
                true
            }
            _ => false,
        }
    }

    /// False if the bit was clear.
    pub(super) fn clear(&mut self, bit: u16) -> bool {
        let (byte, mask) = (usize::from(bit / 8), 1_u8 << (bit % 8));
        match self.bytes.get_mut(byte) {
            Some(b) if *b & mask != 0 => {
                *b &= !mask;
                true
            }
            _ => false,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.bytes.iter().rev().copied().skip_while(|b| *b == 0).collect()
    }
}
