//! Time to live by leases, one for many keys, since granting is a write of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::LeaseClient;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::errors::read_error;
use crate::StoreError;

/// A lease is given out for so long at most, and for a twentieth of the time to live at most; keys
/// live longer by as much. Upstream's values.
const REUSE: Duration = Duration::from_secs(60);
const REUSE_FRACTION: u32 = 20;
/// Keys on one lease; a lease that ends deletes all of its keys at once.
const KEYS: u32 = 1000;

pub(super) struct Leases {
    client: LeaseClient,
    /// The newest lease for each time to live, of which a cluster has few.
    current: Mutex<BTreeMap<Duration, Lease>>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: i64,
    ends: Instant,
    n_keys: u32,
}

impl Lease {
    /// Whether a key written now would live for `ttl`, and not for much longer.
    fn suits(&self, ttl: Duration, now: Instant) -> bool {
        let least = now + ttl;
        self.n_keys < KEYS && least < self.ends && self.ends <= least + reuse(ttl)
    }
}

/// For how long a lease for `ttl` is given out, in whole seconds as etcd counts.
fn reuse(ttl: Duration) -> Duration {
    Duration::from_secs((ttl / REUSE_FRACTION).min(REUSE).as_secs())
}

impl Leases {
    pub(super) fn new(client: LeaseClient) -> Self {
        Leases { client, current: Mutex::default() }
    }

    /// A lease under which a key lives for `ttl` or a little longer.
    pub(super) async fn get(&self, ttl: Duration, patience: Duration) -> Result<i64, StoreError> {
        let mut current = self.current.lock().await;
        let now = Instant::now();
        current.retain(|_, lease| lease.ends > now);
        if let Some(lease) = current.get_mut(&ttl).filter(|lease| lease.suits(ttl, now)) {
            lease.n_keys += 1;
            return Ok(lease.id);
        }
        // etcd counts whole seconds, at least one.
        let seconds = (ttl + reuse(ttl)).as_millis().div_ceil(1000).max(1);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let mut client = self.client.clone();
        let granted = tokio::time::timeout(patience, client.grant(seconds, None))
            .await
            .map_err(|_| StoreError::Unavailable("etcd granted no lease in time".into()))?
            .map_err(read_error)?;
        let ends = now + Duration::from_secs(seconds.unsigned_abs());
        current.insert(ttl, Lease { id: granted.id(), ends, n_keys: 1 });
        Ok(granted.id())
    }

    /// A lease that was given out does not exist any more.
    pub(super) async fn forget(&self, id: i64) {
        self.current.lock().await.retain(|_, lease| lease.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shared_while_it_suits() {
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        for (ends, n_keys, suits) in [
            (at(3660), 1, true),
            (at(3601), 999, true),
            (at(3601), 1000, false),
            (at(3600), 1, false),
            (at(3661), 1, false),
        ] {
            let lease = Lease { id: 1, ends, n_keys };
            assert_eq!(lease.suits(hour, now), suits, "{lease:?}");
        }
        assert_eq!(reuse(hour), Duration::from_secs(60));
        assert_eq!(reuse(Duration::from_secs(100)), Duration::from_secs(5));
        assert_eq!(reuse(Duration::from_secs(10)), Duration::ZERO);
    }
}
