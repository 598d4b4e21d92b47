//! Loss of power at any moment, on a disk that reorders and tears what was not synced.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::embedded::{Embedded, Options};
use store::{Change, Expect, ListRequest, Outcome, Revision, Store, StoreError, WatchEvent};

use crate::disk::Disk;

/// How many lives of a store are tried; more by the environment.
fn n_seeds() -> u64 {
    std::env::var("STORE_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

const WRITERS: usize = 4;
const CRASHES: u64 = 3;

fn options() -> Options {
    Options {
        // Small, so that pages are also written before the commit that needs them.
        cache_bytes: 64 << 10,
        sweep_interval: Duration::from_secs(3600),
        ..Options::default()
    }
}

/// What the writers know of the store, over all of its crashes.
#[derive(Default)]
struct Known {
    /// Values that were ever tried for a key.
    tried: HashMap<Bytes, Vec<Bytes>>,
    /// The last acknowledged change of each key; `None`: deleted.
    acknowledged: HashMap<Bytes, (Revision, Option<Bytes>)>,
    /// The highest acknowledged revision.
    revision: Revision,
}

impl Known {
    fn attempt(&mut self, key: &Bytes, value: &Bytes) {
        self.tried.entry(key.clone()).or_default().push(value.clone());
    }

    fn acknowledge(&mut self, key: &Bytes, revision: Revision, value: Option<Bytes>) {
        self.revision = self.revision.max(revision);
        self.acknowledged.insert(key.clone(), (revision, value));
    }
}

/// One writer with keys of its own, until the power fails.
async fn write(store: Arc<Embedded>, known: Arc<Mutex<Known>>, mut rng: StdRng, writer: usize) {
    loop {
        let key = Bytes::from(format!("/{writer}/{}", rng.random_range(0..4)));
        let Ok((_, held)) = store.get(&key, None).await else { return };
        if rng.random_bool(0.05) {
            let Ok(newest) = store.current_revision().await else { return };
            let to = newest.saturating_sub(rng.random_range(0..10));
            match store.compact(to).await {
                Ok(()) | Err(StoreError::Compacted { .. }) => continue,
                Err(_) => return,
            }
        }
        let done = match held {
            Some(kv) if rng.random_bool(0.2) => {
                let done = store.delete(key.clone(), kv.mod_revision).await;
                done.map(|outcome| (outcome, None))
            }
            held => {
                let mut value = vec![0; rng.random_range(0..20_000)];
                rng.fill(&mut value[..]);
                let value = Bytes::from(value);
                known.lock().expect("known").attempt(&key, &value);
                let expect = held.map_or(Expect::Absent, |kv| Expect::At(kv.mod_revision));
                put(&store, &key, value, expect).await
            }
        };
        match done {
            Ok((Outcome::Done(revision), value)) => {
                known.lock().expect("known").acknowledge(&key, revision, value);
            }
            Ok((outcome, _)) => panic!("another writer at {key:?}: {outcome:?}"),
            Err(_) => return,
        }
    }
}

async fn put(
    store: &Embedded,
    key: &Bytes,
    value: Bytes,
    expect: Expect,
) -> Result<(Outcome, Option<Bytes>), StoreError> {
    let outcome = store.put(key.clone(), value.clone(), expect, None).await?;
    Ok((outcome, Some(value)))
}

/// Compares what the store holds with what is known, and takes over what it holds.
async fn verify(store: &Embedded, known: &mut Known, context: &str) {
    let request =
        ListRequest { prefix: Bytes::new(), start: Bound::Unbounded, limit: 0, revision: None };
    let listed = store.list(request).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(listed.revision >= known.revision, "{context}: the revision fell");
    let most = known.revision.max(1) + WRITERS as u64;
    assert!(listed.revision <= most, "{context}: {} revisions too many", listed.revision - most);
    let held: BTreeMap<Bytes, _> =
        listed.kvs.iter().map(|kv| (kv.key.clone(), kv.clone())).collect();
    for kv in held.values() {
        let whole = known.tried.get(&kv.key).is_some_and(|tried| tried.contains(&kv.value));
        assert!(whole, "{context}: {:?} holds what nobody wrote", kv.key);
    }
    for (key, (revision, value)) in &known.acknowledged {
        match (held.get(key), value) {
            (Some(kv), Some(value)) if kv.mod_revision == *revision => {
                assert_eq!(kv.value, value, "{context}: {key:?}");
            }
            // A later write that was not acknowledged may have been done.
            (Some(kv), _) => assert!(kv.mod_revision > known.revision, "{context}: {key:?}"),
            (None, None) => {}
            (None, Some(_)) => {
                assert!(listed.revision > known.revision, "{context}: {key:?} is lost");
            }
        }
    }
    replay_gives(store, &held, listed.revision, context).await;
    known.revision = listed.revision;
    for key in known.tried.keys() {
        if let Some(kv) = held.get(key) {
            known.acknowledged.insert(key.clone(), (kv.mod_revision, Some(kv.value.clone())));
        } else if let Some(entry) = known.acknowledged.get_mut(key) {
            entry.1 = None;
        }
    }
}

/// The history that is left has no gap and leads to the present.
async fn replay_gives(
    store: &Embedded,
    held: &BTreeMap<Bytes, store::KeyValue>,
    newest: Revision,
    context: &str,
) {
    let mut watch = None;
    let mut from = 1;
    while watch.is_none() {
        match store.watch(Bytes::new(), from).await {
            Ok(opened) => watch = Some(opened),
            Err(StoreError::Compacted { oldest }) => from = oldest,
            Err(error) => panic!("{context}: {error}"),
        }
    }
    let Some(mut watch) = watch else { return };
    from = from.max(2);
    let request = |revision| ListRequest {
        prefix: Bytes::new(),
        start: Bound::Unbounded,
        limit: 0,
        revision: Some(revision),
    };
    let start = store.list(request(from.min(newest))).await.expect("list at the oldest revision");
    let mut state: BTreeMap<Bytes, _> =
        start.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    for revision in from..=newest {
        match watch.next().await {
            Some(Ok(WatchEvent::Changes { revision: seen, changes })) => {
                assert_eq!(seen, revision, "{context}");
                for change in changes {
                    match change {
                        Change::Put { kv, .. } => drop(state.insert(kv.key.clone(), kv)),
                        Change::Delete { key, .. } => drop(state.remove(&key)),
                    }
                }
            }
            other => panic!("{context}: {other:?}"),
        }
    }
    assert_eq!(&state, held, "{context}: history does not lead to the present");
}

/// Returns how many writes were done.
async fn live_and_crash(seed: u64) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let known = Arc::new(Mutex::new(Known::default()));
    let new = Disk::new(Vec::new(), usize::MAX);
    let make = new.clone();
    let store = Embedded::open_backend(move || make.clone(), options()).expect("a new store");
    store.close().await.expect("close");
    let mut image = new.contents();
    for crash in 0..CRASHES {
        let context = format!("seed {seed}, crash {crash}");
        let disk = Disk::new(image, rng.random_range(1..600));
        let make = disk.clone();
        if let Ok(store) = Embedded::open_backend(move || make.clone(), options()) {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let rng = StdRng::seed_from_u64(rng.random());
                    tokio::spawn(write(store.clone(), known.clone(), rng, writer))
                })
                .collect();
            for writer in writers {
                writer.await.expect("writer");
            }
        }
        // Opening may have failed only because the power did, in the midst of the repair.
        assert!(disk.failed(), "{context}: stopped without a reason");
        image = disk.after_power_loss(rng.random());
        let sound = Disk::new(image, usize::MAX);
        let make = sound.clone();
        let store = Embedded::open_backend(move || make.clone(), options())
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut so_far = std::mem::take(&mut *known.lock().expect("known"));
        verify(&store, &mut so_far, &context).await;
        *known.lock().expect("known") = so_far;
        store.close().await.expect("close");
        image = sound.contents();
    }
    known.lock().expect("known").revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_power_loss() {
    let mut n_writes = 0;
    for seed in 0..n_seeds() {
        n_writes += live_and_crash(seed).await;
    }
    assert!(n_writes > 10 * n_seeds(), "too little was written to tell: {n_writes}");
}
