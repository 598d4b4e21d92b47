//! The engine that is an etcd cluster, 3.4 or later.
//!
//! - `errors`: what etcd's answers mean, and which of them leave a write in doubt.
//! - `lease`: time to live, one lease shared by many keys.
//! - `progress`: one task that asks watches how far they are, for all who wait for that.
//! - `watch`: a watch that outlives its connection.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, CompactionOptions, Compare, CompareOp, ConnectOptions, GetOptions,
    Identity, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse,
};

use crate::{
    Expect, KeyValue, ListRequest, ListResponse, Outcome, Revision, Store, StoreError, WatchStream,
    prefix_end,
};

mod errors;
mod lease;
mod progress;
mod watch;

use errors::{Effect, lease_is_gone, read_error, write_error};
use lease::Leases;
use progress::Wanted;

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Options {
    /// `scheme://host:port` of the members.
    pub endpoints: Vec<String>,
    /// PEM file of the authority that signed the members' certificates.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate shown to the members; goes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// Bound of one request, reconnection included.
    pub request_timeout: Duration,
    /// Bound of making one connection.
    pub connect_timeout: Duration,
    /// A watcher that takes nothing for this long although its buffer is full is closed.
    pub slow_after: Duration,
    /// Transactions buffered for each watcher.
    pub watch_buffer: usize,
}

impl Options {
    /// The defaults, for these members.
    pub fn new(endpoints: Vec<String>) -> Self {
        Options {
            endpoints,
            ca_file: None,
            cert_file: None,
            key_file: None,
            request_timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(5),
            slow_after: Duration::from_secs(10),
            watch_buffer: 1000,
        }
    }
}

/// Upstream's keepalive of connections to etcd.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between attempts of a request that did not reach etcd.
const RETRY: Duration = Duration::from_millis(100);
/// etcd bounds what it sends by itself; lists are as large as they are.
const MESSAGE_LIMIT: usize = i32::MAX as usize;

/// An etcd cluster as the store.
pub struct Etcd {
    client: Client,
    /// Watches have connections of their own, so that a reader that stalls for a moment does not
    /// hold up requests by filling the connection's window.
    watcher: watch::Opener,
    leases: Leases,
    /// Who waits for the progress of watches.
    wanted: Arc<Wanted>,
    options: Options,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.wanted.close();
    }
}

impl Etcd {
    /// Connects to the cluster and learns whether its progress reports can be relied upon.
    ///
    /// # Errors
    /// `Unavailable` if the files cannot be read or no member answers in time.
    pub async fn connect(options: Options) -> Result<Arc<Self>, StoreError> {
        let unavailable = |error: etcd_client::Error| StoreError::Unavailable(error.to_string());
        let connect = connect_options(&options).await?;
        let client = Client::connect(&options.endpoints, Some(connect.clone()))
            .await
            .map_err(unavailable)?;
        let for_watches = connect.clone().with_require_leader(true);
        let watching =
            Client::connect(&options.endpoints, Some(for_watches)).await.map_err(unavailable)?;
        let exact = progress_is_exact(&options, &connect).await?;
        let watcher = watch::Opener::new(watching, exact, &options);
        let leases = Leases::new(client.lease_client());
        let wanted = Arc::<Wanted>::default();
        let etcd = Arc::new(Etcd { client, watcher, leases, wanted: wanted.clone(), options });
        tokio::spawn(progress::run(Arc::downgrade(&etcd), wanted));
        Ok(etcd)
    }

    /// Repeats what cannot do harm twice, or has not been sent, until the time is up.
    async fn attempt<T, F>(
        &self,
        effect: Effect,
        mut call: impl FnMut() -> F,
    ) -> Result<T, etcd_client::Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let until = tokio::time::Instant::now() + self.options.request_timeout;
        loop {
            let error = match tokio::time::timeout_at(until, call()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(etcd_client::Error::GRpcStatus(tonic::Status::deadline_exceeded(
                        "no answer from etcd in time",
                    )));
                }
            };
            let again = tokio::time::Instant::now() + RETRY;
            if !errors::may_repeat(&error, effect) || again >= until {
                return Err(error);
            }
            tokio::time::sleep_until(again).await;
        }
    }

    async fn range(
        &self,
        key: Vec<u8>,
        options: GetOptions,
        asked: Option<Revision>,
    ) -> Result<etcd_client::GetResponse, StoreError> {
        let options = match asked {
            Some(revision) => options.with_revision(signed(revision)),
            None => options,
        };
        let done = self
            .attempt(Effect::None, || {
                let mut kv = self.client.kv_client().max_decoding_message_size(MESSAGE_LIMIT);
                let (key, options) = (key.clone(), options.clone());
                async move { kv.get(key, Some(options)).await }
            })
            .await;
        match done {
            Ok(response) => Ok(response),
            Err(error) => Err(self.explain(read_error(error), asked).await),
        }
    }

    /// etcd says that a revision is in the future and not how far; that takes another request.
    async fn explain(&self, error: StoreError, asked: Option<Revision>) -> StoreError {
        match (error, asked) {
            (StoreError::Future { .. }, Some(asked)) => {
                let current = self.current_revision().await.unwrap_or(0);
                StoreError::Future { asked, current }
            }
            (error, _) => error,
        }
    }

    /// One compare, one change, and what is there if the compare fails.
    async fn change(
        &self,
        key: &Bytes,
        at: Revision,
        change: TxnOp,
    ) -> Result<Outcome, etcd_client::Error> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key.as_ref(), CompareOp::Equal, signed(at))])
            .and_then([change])
            .or_else([TxnOp::get(key.as_ref(), None)]);
        let response = self
            .attempt(Effect::Once, || {
                let mut kv = self.client.kv_client().max_decoding_message_size(MESSAGE_LIMIT);
                let txn = txn.clone();
                async move { kv.txn(txn).await }
            })
            .await?;
        if response.succeeded() {
            return Ok(Outcome::Done(response.header().map_or(0, |h| unsigned(h.revision()))));
        }
        let current = response.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
            _ => None,
        });
        Ok(Outcome::Mismatch(current.map(key_value)))
    }

    /// What a key holds, for an expectation that nothing can meet.
    async fn mismatch(&self, key: &Bytes) -> Result<Outcome, StoreError> {
        Ok(Outcome::Mismatch(self.get(key, None).await?.1))
    }
}

/// Reads the files and fills in the client's options.
async fn connect_options(options: &Options) -> Result<ConnectOptions, StoreError> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(options.connect_timeout)
        .with_keep_alive(KEEPALIVE, KEEPALIVE_TIMEOUT);
    let secure = options.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    if secure {
        let mut tls = TlsOptions::new();
        if let Some(file) = &options.ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(read(file).await?));
        }
        match (&options.cert_file, &options.key_file) {
            (Some(cert), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read(cert).await?, read(key).await?));
            }
            (None, None) => {}
            _ => {
                return Err(StoreError::Unavailable(
                    "etcd's client certificate and key must be given together".into(),
                ));
            }
        }
        connect = connect.with_tls(tls);
    }
    Ok(connect)
}

async fn read(file: &PathBuf) -> Result<Vec<u8>, StoreError> {
    tokio::fs::read(file)
        .await
        .map_err(|error| StoreError::Unavailable(format!("{}: {error}", file.display())))
}

/// Asks the members for their versions; those that do not answer are not asked again, but one
/// must answer.
async fn progress_is_exact(
    options: &Options,
    connect: &ConnectOptions,
) -> Result<bool, StoreError> {
    let mut exact = true;
    let mut answered = false;
    let mut last = None;
    for endpoint in &options.endpoints {
        let asked = tokio::time::timeout(options.connect_timeout, async {
            let mut member = Client::connect([endpoint], Some(connect.clone())).await?;
            member.status().await
        });
        match asked.await {
            Ok(Ok(status)) => {
                answered = true;
                exact &= version_reports_exactly(status.version());
            }
            Ok(Err(error)) => last = Some(format!("{endpoint}: {error}")),
            Err(_) => last = Some(format!("{endpoint}: no answer in time")),
        }
    }
    match last {
        Some(why) if !answered => Err(StoreError::Unavailable(why)),
        _ => Ok(exact),
    }
}

/// Whether progress on request means what it says: before 3.4.31 and 3.5.13 etcd may report a
/// revision before the events up to it (etcd issues 15220 and 17507). Upstream draws the same
/// line.
fn version_reports_exactly(version: &str) -> bool {
    let numbers: Vec<u64> =
        version.split(['.', '-', '+']).take(3).map_while(|part| part.parse().ok()).collect();
    match numbers[..] {
        [3, 4, patch] => patch >= 31,
        [3, 5, patch] => patch >= 13,
        [major, minor, _] => (major, minor) > (3, 5),
        _ => false,
    }
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    u64::try_from(revision).unwrap_or(0)
}

fn key_value(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) =
        (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
    let (key, value) = kv.into_key_value();
    KeyValue { key: key.into(), value: value.into(), create_revision, mod_revision }
}

/// First key of a listed range, in etcd's terms; the empty prefix begins at the zero byte.
fn first_key(request: &ListRequest) -> Vec<u8> {
    let start = match &request.start {
        Bound::Included(key) if key > &request.prefix => key.to_vec(),
        Bound::Excluded(key) if key >= &request.prefix => [key.as_ref(), &[0]].concat(),
        _ => request.prefix.to_vec(),
    };
    if start.is_empty() { vec![0] } else { start }
}

/// End of the range of a prefix, in etcd's terms: the zero byte stands for no end.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let end = prefix_end(prefix);
    if end.is_empty() { vec![0] } else { end.to_vec() }
}

#[async_trait]
impl Store for Etcd {
    async fn get(
        &self,
        key: &[u8],
        revision: Option<Revision>,
    ) -> Result<(Revision, Option<KeyValue>), StoreError> {
        let mut response = self.range(key.to_vec(), GetOptions::new(), revision).await?;
        let newest = response.header().map_or(0, |h| unsigned(h.revision()));
        let found = response.take_kvs().pop().map(key_value);
        Ok((revision.unwrap_or(newest), found))
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse, StoreError> {
        let options = GetOptions::new()
            .with_range(range_end(&request.prefix))
            .with_limit(i64::try_from(request.limit).unwrap_or(0));
        let mut response = self.range(first_key(&request), options, request.revision).await?;
        let newest = response.header().map_or(0, |h| unsigned(h.revision()));
        let (more, count) = (response.more(), unsigned(response.count()));
        let kvs = response.take_kvs().into_iter().map(key_value).collect();
        Ok(ListResponse { revision: request.revision.unwrap_or(newest), kvs, more, count })
    }

    async fn revisions(
        &self,
        prefix: Bytes,
        revision: Option<Revision>,
    ) -> Result<(Revision, Vec<(Bytes, Revision)>), StoreError> {
        let options = GetOptions::new().with_range(range_end(&prefix)).with_keys_only();
        let first = if prefix.is_empty() { vec![0] } else { prefix.to_vec() };
        let mut response = self.range(first, options, revision).await?;
        let newest = response.header().map_or(0, |h| unsigned(h.revision()));
        let keys = response.take_kvs().into_iter().map(key_value);
        let keys = keys.map(|kv| (kv.key, kv.mod_revision)).collect();
        Ok((revision.unwrap_or(newest), keys))
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, StoreError> {
        let at = match expect {
            Expect::Absent => 0,
            // To etcd 0 would mean that the key is absent.
            Expect::At(0) => return self.mismatch(&key).await,
            Expect::At(revision) => revision,
        };
        let mut retried = false;
        loop {
            let lease = match ttl {
                Some(ttl) => Some(self.leases.get(ttl, self.options.request_timeout).await?),
                None => None,
            };
            let options = lease.map(|id| PutOptions::new().with_lease(id));
            let put = TxnOp::put(key.as_ref(), value.as_ref(), options);
            match self.change(&key, at, put).await {
                Ok(outcome) => return Ok(outcome),
                // The lease ran out, or etcd was restored from a time before it.
                Err(error) => match lease {
                    Some(id) if !retried && lease_is_gone(&error) => {
                        retried = true;
                        self.leases.forget(id).await;
                    }
                    _ => return Err(write_error(error)),
                },
            }
        }
    }

    async fn delete(&self, key: Bytes, revision: Revision) -> Result<Outcome, StoreError> {
        if revision == 0 {
            return self.mismatch(&key).await;
        }
        let delete = TxnOp::delete(key.as_ref(), None);
        self.change(&key, revision, delete).await.map_err(write_error)
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        self.watcher.open(prefix, from).await
    }

    fn reports_progress(&self) -> bool {
        self.watcher.exact
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), StoreError> {
        if !self.watcher.exact {
            return Err(StoreError::Unavailable(
                "this version of etcd cannot report the progress of watches reliably; \
                 3.4.31, 3.5.13 and later can"
                    .into(),
            ));
        }
        self.wanted.add(prefix);
        Ok(())
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        // Any linearizable read carries the revision; this one finds nothing.
        let response = self.range(vec![0], GetOptions::new().with_count_only(), None).await?;
        Ok(response.header().map_or(0, |h| unsigned(h.revision())))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let done = self
            .attempt(Effect::Once, || {
                let mut kv = self.client.kv_client();
                async move { kv.compact(signed(revision), Some(CompactionOptions::new())).await }
            })
            .await;
        match done {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(write_error(error), Some(revision)).await),
        }
    }

    async fn size(&self) -> Result<u64, StoreError> {
        let done = self
            .attempt(Effect::None, || {
                let mut maintenance = self.client.maintenance_client();
                async move { maintenance.status().await }
            })
            .await;
        Ok(unsigned(done.map_err(read_error)?.db_size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_report_progress_exactly() {
        for (version, exact) in [
            ("3.4.23", false),
            ("3.4.30", false),
            ("3.4.31", true),
            ("3.5.0", false),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("unknown", false),
        ] {
            assert_eq!(version_reports_exactly(version), exact, "{version}");
        }
    }

    #[test]
    fn ranges_in_etcds_terms() {
        let request = |prefix: &'static str, start: Bound<&'static str>| ListRequest {
            prefix: Bytes::from(prefix),
            start: start.map(Bytes::from),
            limit: 0,
            revision: None,
        };
        for (prefix, start, first) in [
            ("/a/", Bound::Unbounded, "/a/"),
            ("/a/", Bound::Included("/a/b"), "/a/b"),
            ("/a/", Bound::Excluded("/a/b"), "/a/b\0"),
            ("/a/", Bound::Excluded("/a/"), "/a/\0"),
            ("/a/", Bound::Included("/"), "/a/"),
            ("", Bound::Unbounded, "\0"),
        ] {
            assert_eq!(first_key(&request(prefix, start)), first.as_bytes(), "{prefix} {start:?}");
        }
        assert_eq!(range_end(b"/a/"), b"/a0");
        assert_eq!(range_end(b""), b"\0");
    }
}
