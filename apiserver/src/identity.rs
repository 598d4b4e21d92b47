//! Leases by which API servers tell that they are there, and the end of those of servers that are
//! gone (upstream: `pkg/controlplane/apiserver/server.go`, `controller/apiserverleasegc`).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::api::Api;
use crate::pipeline::local;
use crate::reader::Reader as _;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
/// The label of such leases, and its value for servers like this.
const LABEL: &str = "apiserver.kubernetes.io/identity";
const KIND: &str = "kube-apiserver";
/// How long a server counts after it was last heard of.
const DURATION: SignedDuration = SignedDuration::from_hours(1);
/// How often leases that have ended are looked for.
const COLLECT: Duration = Duration::from_secs(3600);

/// What this server is known by.
pub(crate) struct Identity {
    host: String,
    id: String,
    /// Tells one run from another.
    holder: String,
    /// When leases that have ended are looked for next.
    next: parking_lot::Mutex<Option<Instant>>,
}

impl Identity {
    /// Of this machine. `None`: it has no name.
    pub(crate) fn here() -> Option<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        let host = host.trim().to_owned();
        let id = id(&host);
        let holder = format!("{id}_{}", uuid::Uuid::new_v4());
        (!host.is_empty()).then(|| Self { host, id, holder, next: parking_lot::Mutex::default() })
    }

    /// Says that this server lives, and now and then takes away the leases of those that do not.
    ///
    /// # Errors
    /// The lease cannot be written.
    pub(crate) async fn renew(&self, api: &Arc<Api>) -> Result<(), ApiError> {
        let url = format!("{LEASES}/{}", self.id);
        let written = match local(api, Method::GET, &url, None).await {
            Ok(found) => {
                let renewed = self.renewed(found, api.now());
                local(api, Method::PUT, &url, Some(renewed)).await
            }
            Err(ApiError::NotFound { .. }) => {
                let lease = self.renewed(self.lease(), api.now());
                local(api, Method::POST, LEASES, Some(lease)).await
            }
            Err(error) => Err(error),
        };
        match written {
            // Another server of the same name has just done it.
            Ok(_) | Err(ApiError::Conflict { .. } | ApiError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let now = Instant::now();
        let due = self.next.lock().is_none_or(|next| next <= now);
        if due {
            *self.next.lock() = Some(now + COLLECT);
            collect(api).await;
        }
        Ok(())
    }

    /// A lease that was not there.
    fn lease(&self) -> Value {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.id, "namespace": "kube-system"},
            "spec": {"holderIdentity": self.holder, "leaseDurationSeconds": DURATION.as_secs()}})
    }

    fn renewed(&self, mut lease: Value, now: Timestamp) -> Value {
        object::set(&mut lease, &["metadata", "labels", LABEL], KIND);
        object::set(&mut lease, &["metadata", "labels", "kubernetes.io/hostname"], &*self.host);
        object::set(
            &mut lease,
            &["spec", "renewTime"],
            now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        );
        lease
    }
}

/// The name of a server on a host: of a hash over the host and the kind of server, each with its
/// length before it.
fn id(host: &str) -> String {
    let mut hash = Sha256::new();
    for part in [host, KIND] {
        hash.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    format!("apiserver-{}", base32(hash.get(..16).unwrap_or_default()))
}

/// RFC 4648, section 6, in lower case and without padding.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digit = |value: u32| char::from(DIGITS[(value & 31) as usize]);
    let (mut out, mut bits, mut count) = (String::new(), 0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            out.push(digit(bits >> count));
        }
    }
    if count > 0 {
        out.push(digit(bits << (5 - count)));
    }
    out
}

/// Whether the server of a lease is gone. A lease that does not say when it ends has ended.
fn has_ended(lease: &Value, now: Timestamp) -> bool {
    let renewed = object::str_at(lease, &["spec", "renewTime"]).parse::<Timestamp>();
    let seconds = object::int_at(lease, &["spec", "leaseDurationSeconds"]);
    let (Ok(renewed), Some(seconds)) = (renewed, seconds) else { return true };
    renewed.checked_add(SignedDuration::from_secs(seconds)).is_ok_and(|end| end < now)
}

/// Takes away the leases of servers that are gone.
async fn collect(api: &Arc<Api>) {
    let leases = GroupResource::new("coordination.k8s.io", "leases");
    let own = |lease: &Arc<Value>| object::label(lease, LABEL) == Some(KIND);
    for lease in api.caches.list(&leases, "kube-system").iter().filter(|lease| own(lease)) {
        if !has_ended(lease, api.now()) {
            continue;
        }
        // Unless it was renewed meanwhile.
        let options =
            json!({"preconditions": {"resourceVersion": object::resource_version(lease)}});
        let url = format!("{LEASES}/{}", object::name(lease));
        match local(api, Method::DELETE, &url, Some(options)).await {
            Ok(_) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {}
            Err(error) => tracing::warn!(%error, url, "a lease cannot be taken away"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_by_their_hosts() {
        // RFC 4648, section 10.
        for (bytes, want) in
            [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foobar", "mzxw6ytboi")]
        {
            assert_eq!(base32(bytes.as_bytes()), want);
        }
        assert_eq!(id("one"), "apiserver-lonn3mgjh4otei2c3b7rmvvvfq");
    }

    #[test]
    fn leases_end_when_nobody_renews_them() {
        let identity = Identity {
            host: "h".to_owned(),
            id: "apiserver-x".to_owned(),
            holder: "apiserver-x_1".to_owned(),
            next: parking_lot::Mutex::default(),
        };
        let at = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
        let lease = identity.renewed(identity.lease(), at(0));
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);
        assert_eq!(
            lease["metadata"]["labels"],
            json!({LABEL: "kube-apiserver", "kubernetes.io/hostname": "h"})
        );
        assert!(!has_ended(&lease, at(3600)) && has_ended(&lease, at(3601)));
        let lease = identity.renewed(lease, at(10));
        assert!(!has_ended(&lease, at(3601)));
        assert!(has_ended(&json!({"spec": {"leaseDurationSeconds": 3600}}), at(0)));
    }
}
