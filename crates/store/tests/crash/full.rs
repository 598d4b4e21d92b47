//! A disk that is full now and then, at any write: what was acknowledged stays, what was refused is
//! not there, watches miss nothing, and the store goes on by itself when there is room again.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use store::embedded::{Embedded, Options};
use store::{Change, Expect, ListRequest, Outcome, Store, StoreError, WatchEvent};

/// How many lives of a store are tried; more by the environment.
fn n_seeds() -> u64 {
    std::env::var("STORE_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30)
}

const OPS: usize = 60;

/// Storage with room for so many changes more.
#[derive(Clone, Debug)]
struct Tight {
    memory: Arc<InMemoryBackend>,
    left: Arc<AtomicUsize>,
}

impl Tight {
    fn has_room(&self) -> bool {
        let less = |left: usize| left.checked_sub(usize::from(left != usize::MAX));
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

impl StorageBackend for Tight {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.has_room() {
            true => self.memory.set_len(len),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.has_room() {
            return self.memory.write(offset, data);
        }
        // A part of it fitted.
        self.memory.write(offset, &data[..data.len() / 2])?;
        Err(io::ErrorKind::StorageFull.into())
    }
}

type Model = BTreeMap<Bytes, Bytes>;

/// Waits until the store answers again, and gives what a key holds.
async fn held(store: &Embedded, key: &Bytes) -> Option<store::KeyValue> {
    loop {
        match store.get(key, None).await {
            Ok((_, held)) => return held,
            Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Random writes; returns how many were refused or left in doubt, and what must be there.
async fn write(store: &Embedded, room: &AtomicUsize, rng: &mut StdRng) -> (usize, Model) {
    let (mut model, mut n_failed) = (Model::new(), 0);
    for n in 0..OPS {
        let key = Bytes::from(format!("/{}", rng.random_range(0..6)));
        let before = held(store, &key).await;
        if rng.random_bool(0.3) {
            room.store(rng.random_range(0..12), Ordering::SeqCst);
        }
        let delete = before.is_some() && rng.random_bool(0.3);
        let value = Bytes::from(vec![n as u8; rng.random_range(0..30_000)]);
        let done = match &before {
            Some(kv) if delete => store.delete(key.clone(), kv.mod_revision).await,
            before => {
                let expect =
                    before.as_ref().map_or(Expect::Absent, |kv| Expect::At(kv.mod_revision));
                store.put(key.clone(), value.clone(), expect, None).await
            }
        };
        let after = (!delete).then_some(value);
        room.store(usize::MAX, Ordering::SeqCst);
        let before = before.map(|kv| kv.value);
        let now = held(store, &key).await.map(|kv| kv.value);
        match done {
            Ok(Outcome::Done(_)) => assert!(now == after, "{key:?} lost what was acknowledged"),
            Err(StoreError::Unavailable(why)) => {
                assert!(now == before, "{key:?} was refused ({why}) and done");
                n_failed += 1;
            }
            Err(StoreError::Unknown(_)) => {
                assert!(now == before || now == after, "{key:?} holds what nobody wrote");
                n_failed += 1;
            }
            other => panic!("{other:?}"),
        }
        match now {
            Some(value) => model.insert(key, value),
            None => model.remove(&key),
        };
    }
    (n_failed, model)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_now_and_then_loses_nothing() {
    let mut n_failed = 0;
    for seed in 0..n_seeds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let room = Arc::new(AtomicUsize::new(usize::MAX));
        let disk = Tight { memory: Arc::default(), left: room.clone() };
        let options = Options {
            cache_bytes: 64 << 10,
            sweep_interval: Duration::from_millis(1),
            ..Options::default()
        };
        let store = Embedded::open_backend(move || disk.clone(), options).expect("a new store");
        let mut watch = store.watch(Bytes::new(), 2).await.expect("a watch");
        let (failed, model) = write(&store, &room, &mut rng).await;
        n_failed += failed;
        let all =
            ListRequest { prefix: Bytes::new(), start: Bound::Unbounded, limit: 0, revision: None };
        let listed = store.list(all).await.expect("a list");
        let found: Model = listed.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
        assert!(found == model, "seed {seed}: the list is not what was written");
        let mut replayed = Model::new();
        for expected in 2..=listed.revision {
            let next = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
            let Ok(Some(Ok(WatchEvent::Changes { revision, changes }))) = next else {
                panic!("seed {seed}: instead of {expected} came {next:?}");
            };
            assert_eq!(revision, expected, "seed {seed}: skipped");
            for change in changes {
                match change {
                    Change::Put { kv, .. } => drop(replayed.insert(kv.key, kv.value)),
                    Change::Delete { key, .. } => drop(replayed.remove(&key)),
                }
            }
        }
        assert!(replayed == model, "seed {seed}: the watch does not lead to the present");
        store.close().await.expect("close");
    }
    assert!(n_failed as u64 > 3 * n_seeds(), "too few writes failed to tell: {n_failed}");
}
