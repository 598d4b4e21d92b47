//! What is particular to this engine; what both must do is in the contract.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;

use super::*;
use crate::Change;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn create(store: &Embedded, key: &str, value: &str) -> Revision {
    match store.put(bytes(key), bytes(value), Expect::Absent, None).await {
        Ok(Outcome::Done(revision)) => revision,
        other => panic!("create of {key}: {other:?}"),
    }
}

async fn update(store: &Embedded, key: &str, value: &str, at: Revision) -> Revision {
    match store.put(bytes(key), bytes(value), Expect::At(at), None).await {
        Ok(Outcome::Done(revision)) => revision,
        other => panic!("update of {key} at {at}: {other:?}"),
    }
}

fn clock(at: &Arc<AtomicU64>) -> Clock {
    let at = at.clone();
    Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(at.load(Ordering::SeqCst)))
}

#[tokio::test]
async fn revisions_values_and_history_survive_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Embedded::open(&path, Options::default()).unwrap();
    assert_eq!(store.current_revision().await.unwrap(), 1);
    let first = create(&store, "/a", "one").await;
    let second = update(&store, "/a", "two", first).await;
    assert_eq!((first, second), (2, 3));
    store.close().await.unwrap();

    let store = Embedded::open(&path, Options::default()).unwrap();
    assert_eq!(store.current_revision().await.unwrap(), 3);
    let (_, now) = store.get(b"/a", None).await.unwrap();
    assert_eq!(now.unwrap().value, "two");
    let (_, then) = store.get(b"/a", Some(2)).await.unwrap();
    assert_eq!(then.unwrap().value, "one");
    let mut watch = store.watch(bytes("/"), 2).await.unwrap();
    for revision in [2, 3] {
        match watch.next().await {
            Some(Ok(WatchEvent::Changes { revision: seen, .. })) => assert_eq!(seen, revision),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(create(&store, "/b", "three").await, 4);
    match watch.next().await {
        Some(Ok(WatchEvent::Changes { revision: 4, changes })) => {
            assert!(matches!(&changes[..], [Change::Put { previous: None, .. }]));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn expiry_survives_reopening_and_spares_rewritten_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let now = Arc::new(AtomicU64::new(1_000));
    let options = Options { clock: clock(&now), ..Options::default() };
    let store = Embedded::open(&path, options.clone()).unwrap();
    let ttl = Some(Duration::from_secs(60));
    for key in ["/gone", "/kept"] {
        store.put(bytes(key), bytes("x"), Expect::Absent, ttl).await.unwrap();
    }
    update(&store, "/kept", "y", 3).await;
    store.close().await.unwrap();

    now.store(1_059, Ordering::SeqCst);
    let store = Embedded::open(&path, options).unwrap();
    store.sweep().await.unwrap();
    assert!(store.get(b"/gone", None).await.unwrap().1.is_some());
    now.store(1_060, Ordering::SeqCst);
    store.sweep().await.unwrap();
    assert!(store.get(b"/gone", None).await.unwrap().1.is_none());
    assert!(store.get(b"/kept", None).await.unwrap().1.is_some());
    assert_eq!(store.current_revision().await.unwrap(), 5);
}

#[tokio::test]
async fn retention_by_number_and_by_age_forgets_history() {
    let now = Arc::new(AtomicU64::new(0));
    let by_number = Options { keep_revisions: Some(2), ..Options::default() };
    let by_age = Options {
        keep_age: Some(Duration::from_secs(100)),
        clock: clock(&now),
        // The thread's own ticks would take samples between those of the test.
        sweep_interval: Duration::from_secs(3600),
        ..Options::default()
    };
    for (options, oldest) in [(by_number, 5), (by_age, 4)] {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path().join("db"), options).unwrap();
        now.store(0, Ordering::SeqCst);
        let mut at = create(&store, "/a", "0").await;
        for (seconds, value) in [(10, "1"), (50, "2"), (60, "3"), (115, "4"), (120, "5")] {
            now.store(seconds, Ordering::SeqCst);
            at = update(&store, "/a", value, at).await;
            store.sweep().await.unwrap();
        }
        assert_eq!(at, 7);
        match store.watch(bytes("/"), 2).await.err() {
            Some(StoreError::Compacted { oldest: found }) => assert!(found <= oldest, "{found}"),
            other => panic!("{other:?}"),
        }
        assert!(store.get(b"/a", Some(6)).await.is_ok());
    }
}

#[tokio::test]
async fn history_is_forgotten_also_after_the_clock_was_set_back() {
    let now = Arc::new(AtomicU64::new(1_000_000));
    let options = Options {
        keep_age: Some(Duration::from_secs(100)),
        clock: clock(&now),
        sweep_interval: Duration::from_secs(3600),
        ..Options::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("db"), options).unwrap();
    let mut at = create(&store, "/a", "0").await;
    store.sweep().await.unwrap();
    for seconds in [1_000, 1_050, 1_101] {
        now.store(seconds, Ordering::SeqCst);
        store.sweep().await.unwrap();
        assert!(store.get(b"/a", Some(2)).await.is_ok(), "forgotten early, at {seconds}");
        at = update(&store, "/a", "1", at).await;
    }
    now.store(1_151, Ordering::SeqCst);
    store.sweep().await.unwrap();
    let error = store.get(b"/a", Some(2)).await.err();
    assert!(matches!(error, Some(StoreError::Compacted { oldest: 3 })), "{error:?}");
}

#[tokio::test]
async fn compaction_gives_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("db"), Options::default()).unwrap();
    let value = "v".repeat(100_000);
    let mut at = create(&store, "/a", &value).await;
    let mut sizes = Vec::new();
    for _ in 0..12 {
        for _ in 0..20 {
            at = update(&store, "/a", &value, at).await;
        }
        store.compact(at).await.unwrap();
        // The rows go after the answer; a write behind that waits for at least one step.
        store.sweep().await.unwrap();
        sizes.push(store.size().await.unwrap());
    }
    // 24 MB were written; without reuse the file would be as large.
    assert!(*sizes.last().unwrap() <= 10 << 20, "{sizes:?}");
}

#[tokio::test]
async fn a_reader_that_lags_is_closed_and_one_that_replays_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { watch_backlog: 10, recent_bytes: 2_000, ..Options::default() };
    let store = Embedded::open(folder.path().join("db"), options).unwrap();
    let mut live = store.watch(bytes("/a"), 0).await.unwrap();
    let mut other = store.watch(bytes("/b"), 0).await.unwrap();
    let mut at = create(&store, "/a", "0").await;
    assert!(matches!(live.next().await, Some(Ok(WatchEvent::Changes { revision: 2, .. }))));
    for _ in 0..30 {
        at = update(&store, "/a", &"x".repeat(100), at).await;
    }
    let mut seen = 2;
    let error = loop {
        match live.next().await {
            Some(Ok(WatchEvent::Changes { revision, .. })) => {
                assert_eq!(revision, seen + 1, "skipped");
                seen = revision;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("ended without an error"),
        }
    };
    assert!(matches!(error, StoreError::Slow));
    assert!(live.next().await.is_none());
    // The ring is shorter than this, and the log has the rest.
    let all: Vec<_> = store.watch(bytes("/a"), 2).await.unwrap().take(31).collect().await;
    assert!(all.iter().all(Result::is_ok));
    store.request_progress(b"").await.unwrap();
    assert!(matches!(other.next().await, Some(Ok(WatchEvent::Progress(32)))));
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Embedded::open(&path, Options::default()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a leftover file");

    let taken = Embedded::open(&path, Options::default()).err().unwrap().to_string();
    assert!(taken.contains("in use by another process"), "{taken}");
    for n in 0..200 {
        create(&store, &format!("/{n}"), &"v".repeat(1000)).await;
    }
    store.close().await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    let is_damaged = |what: &str, content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        match Embedded::open(&path, Options::default()).err() {
            Some(StoreError::Damaged(said)) => {
                assert!(said.contains(path.to_str().unwrap()), "{what}: {said}");
            }
            other => panic!("{what}: {other:?}"),
        }
    };
    is_damaged("empty", &[]);
    is_damaged("cut in the header", &whole[..100]);
    is_damaged("cut in the middle", &whole[..whole.len() / 2]);
    is_damaged("another file", b"#!/bin/sh\necho this is not a database, just some text\n");
    let mut flipped = whole.clone();
    for byte in flipped.iter_mut().skip(8192).step_by(4096) {
        *byte ^= 0x55;
    }
    is_damaged("flipped bits", &flipped);
    for (missing, path) in [("folder", folder.path().join("no/db")), ("file", folder.path().into())]
    {
        let error = Embedded::open(&path, Options::default()).err();
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{missing}: {error:?}");
    }
}

/// Storage in memory that can be told to fail.
#[derive(Clone, Debug, Default)]
struct Faulty {
    memory: Arc<redb::backends::InMemoryBackend>,
    full: Arc<std::sync::atomic::AtomicBool>,
    sync_fails: Arc<std::sync::atomic::AtomicBool>,
}

impl StorageBackend for Faulty {
    fn len(&self) -> std::io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        match self.sync_fails.load(Ordering::SeqCst) {
            true => Err(std::io::Error::other("sync failed")),
            false => self.memory.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => self.memory.write(offset, data),
        }
    }
}

#[tokio::test]
async fn a_full_disk_stops_writes_only_while_it_is_full() {
    let storage = Faulty::default();
    let make = storage.clone();
    let options = Options { sweep_interval: Duration::from_millis(5), ..Options::default() };
    let store = Embedded::open_backend(move || make.clone(), options).unwrap();
    create(&store, "/a", "x").await;
    let mut watch = store.watch(bytes("/"), 2).await.unwrap();

    storage.full.store(true, Ordering::SeqCst);
    let put = || store.put(bytes("/b"), bytes("x"), Expect::Absent, None);
    let error = put().await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown(_) | StoreError::Unavailable(_)), "{error:?}");
    assert!(matches!(put().await, Err(StoreError::Unavailable(_))));

    storage.full.store(false, Ordering::SeqCst);
    let outcome = loop {
        match put().await {
            Ok(outcome) => break outcome,
            Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    };
    // The first attempt was in doubt, so either is right; the watch knows which.
    let revision = match outcome {
        Outcome::Done(revision) => revision,
        Outcome::Mismatch(Some(kv)) => kv.mod_revision,
        Outcome::Mismatch(None) => panic!("refused without a reason"),
    };
    assert_eq!(revision, 3);
    for expected in [2, 3] {
        match watch.next().await {
            Some(Ok(WatchEvent::Changes { revision, .. })) => assert_eq!(revision, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_is_built_on_a_failed_sync() {
    let storage = Faulty::default();
    let make = storage.clone();
    let options = Options { sweep_interval: Duration::from_millis(5), ..Options::default() };
    let store = Embedded::open_backend(move || make.clone(), options).unwrap();
    storage.sync_fails.store(true, Ordering::SeqCst);
    let error = store.put(bytes("/a"), bytes("x"), Expect::Absent, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown(_)), "{error:?}");
    storage.sync_fails.store(false, Ordering::SeqCst);
    store.sweep().await.unwrap_err();
    let error = store.get(b"/a", None).await.unwrap_err().to_string();
    assert!(error.contains("failed to sync"), "{error}");
}
