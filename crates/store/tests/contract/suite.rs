//! What both engines must do.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::{
    Change, Expect, KeyValue, ListRequest, ListResponse, Outcome, Revision, Store, StoreError,
    WatchEvent, WatchStream,
};

use crate::checker::{Did, Record, check};

type Shared = Arc<dyn Store>;

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(store: &Shared, key: &str, value: &str, expect: Expect) -> Outcome {
    store.put(b(key), b(value), expect, None).await.expect("put")
}

async fn must_put(store: &Shared, key: &str, value: &str, expect: Expect) -> Revision {
    match put(store, key, value, expect).await {
        Outcome::Done(revision) => revision,
        other => panic!("{key} with {expect:?}: {other:?}"),
    }
}

async fn must_delete(store: &Shared, key: &str, at: Revision) -> Revision {
    match store.delete(b(key), at).await.expect("delete") {
        Outcome::Done(revision) => revision,
        other => panic!("{key} at {at}: {other:?}"),
    }
}

async fn list(store: &Shared, prefix: &str, revision: Option<Revision>) -> ListResponse {
    let request = ListRequest { prefix: b(prefix), start: Bound::Unbounded, limit: 0, revision };
    store.list(request).await.expect("list")
}

fn kv(key: &str, value: &str, create_revision: Revision, mod_revision: Revision) -> KeyValue {
    KeyValue { key: b(key), value: b(value), create_revision, mod_revision }
}

/// The next event; a watch that stays silent fails the test.
async fn next(watch: &mut WatchStream) -> Result<WatchEvent, StoreError> {
    tokio::time::timeout(Duration::from_secs(30), watch.next())
        .await
        .expect("the watch is silent")
        .expect("the watch ended")
}

async fn next_changes(watch: &mut WatchStream) -> (Revision, Vec<Change>) {
    loop {
        match next(watch).await.expect("watch") {
            WatchEvent::Changes { revision, changes } => return (revision, changes),
            WatchEvent::Progress(_) => {}
        }
    }
}

/// All changes up to a revision that is known to concern the watch.
async fn changes_to(watch: &mut WatchStream, last: Revision) -> Vec<Change> {
    let mut all = Vec::new();
    loop {
        let (revision, mut changes) = next_changes(watch).await;
        assert!(changes.iter().all(|change| change.revision() == revision));
        all.append(&mut changes);
        if revision >= last {
            assert_eq!(revision, last);
            return all;
        }
    }
}

pub async fn writes_are_conditional(store: Shared) {
    assert_eq!(store.current_revision().await.unwrap(), 1);
    let first = must_put(&store, "/a", "1", Expect::Absent).await;
    assert_eq!(first, 2);
    let held = kv("/a", "1", 2, 2);
    assert_eq!(put(&store, "/a", "x", Expect::Absent).await, Outcome::Mismatch(Some(held.clone())));
    for at in [0, 1, 3, 99] {
        let outcome = put(&store, "/a", "x", Expect::At(at)).await;
        assert_eq!(outcome, Outcome::Mismatch(Some(held.clone())), "update at {at}");
        let outcome = store.delete(b("/a"), at).await.unwrap();
        assert_eq!(outcome, Outcome::Mismatch(Some(held.clone())), "delete at {at}");
    }
    for at in [0, 2] {
        assert_eq!(put(&store, "/none", "x", Expect::At(at)).await, Outcome::Mismatch(None));
        assert_eq!(store.delete(b("/none"), at).await.unwrap(), Outcome::Mismatch(None));
    }
    assert_eq!(store.current_revision().await.unwrap(), 2, "a refused write changed something");

    let second = must_put(&store, "/a", "", Expect::At(2)).await;
    assert_eq!(store.get(b"/a", None).await.unwrap(), (3, Some(kv("/a", "", 2, second))));
    assert_eq!(must_delete(&store, "/a", second).await, 4);
    assert_eq!(store.get(b"/a", None).await.unwrap(), (4, None));
    assert_eq!(must_put(&store, "/a", "2", Expect::Absent).await, 5);
    assert_eq!(store.get(b"/a", None).await.unwrap().1, Some(kv("/a", "2", 5, 5)));
    for (at, value) in [(1, None), (2, Some("1")), (3, Some("")), (4, None), (5, Some("2"))] {
        let (revision, found) = store.get(b"/a", Some(at)).await.unwrap();
        assert_eq!(revision, at);
        assert_eq!(found.map(|kv| kv.value), value.map(b), "at {at}");
    }
}

pub async fn one_of_many_writers_wins(store: Shared) {
    let n_writers = 8;
    let each = 10;
    must_put(&store, "/n", "0", Expect::Absent).await;
    let tasks: Vec<_> = (0..n_writers)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    let mut now = store.get(b"/n", None).await.unwrap().1;
                    loop {
                        let held = now.expect("the counter is there");
                        let n: u64 = std::str::from_utf8(&held.value).unwrap().parse().unwrap();
                        let at = Expect::At(held.mod_revision);
                        match put(&store, "/n", &(n + 1).to_string(), at).await {
                            Outcome::Done(_) => break,
                            Outcome::Mismatch(found) => now = found,
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (revision, found) = store.get(b"/n", None).await.unwrap();
    assert_eq!(found.unwrap().value, (n_writers * each).to_string());
    assert_eq!(revision, 2 + n_writers * each);
}

pub async fn pages_share_one_revision(store: Shared) {
    let keys: Vec<String> = (0..25).map(|n| format!("/p/{n:02}")).collect();
    for key in &keys {
        must_put(&store, key, "old", Expect::Absent).await;
    }
    for key in ["/o", "/p", "/p0", "/q/1"] {
        must_put(&store, key, "other", Expect::Absent).await;
    }
    let at = store.current_revision().await.unwrap();
    let mut start = Bound::Unbounded;
    let mut seen = Vec::new();
    let mut round = 0;
    loop {
        let request = ListRequest { prefix: b("/p/"), start, limit: 7, revision: Some(at) };
        let page = store.list(request).await.unwrap();
        assert_eq!(page.revision, at);
        assert_eq!(page.count as usize, keys.len() - seen.len());
        assert_eq!(page.more, seen.len() + page.kvs.len() < keys.len());
        assert!(page.kvs.iter().all(|kv| kv.value == "old" && kv.mod_revision <= at));
        seen.extend(page.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()));
        // Between the pages a key of the past, one of the future and a new one change.
        let (_, early) = store.get(keys[round].as_bytes(), None).await.unwrap();
        must_delete(&store, &keys[round], early.unwrap().mod_revision).await;
        let late = &keys[20 + round];
        let (_, held) = store.get(late.as_bytes(), None).await.unwrap();
        must_put(&store, late, "new", Expect::At(held.unwrap().mod_revision)).await;
        must_put(&store, &format!("/p/new{round}"), "new", Expect::Absent).await;
        round += 1;
        if !page.more {
            break;
        }
        start = Bound::Excluded(page.kvs.last().unwrap().key.clone());
    }
    assert_eq!((seen, round), (keys, 4));
    for (prefix, start, limit, found, count) in [
        ("/p/", Bound::Included(b("/p/24")), 1, 1, 5),
        ("/p/", Bound::Excluded(b("/p/24")), 0, 4, 4),
        ("/p/", Bound::Included(b("/p/zz")), 0, 0, 0),
        ("/p/", Bound::Included(b("/q")), 0, 0, 0),
        ("/p", Bound::Unbounded, 1, 1, 27),
        ("", Bound::Unbounded, 0, 29, 29),
        ("/none", Bound::Unbounded, 0, 0, 0),
    ] {
        let request =
            ListRequest { prefix: b(prefix), start: start.clone(), limit, revision: None };
        let page = store.list(request).await.unwrap();
        let shape = (page.kvs.len(), page.count, page.more);
        assert_eq!(shape, (found, count, found < count as usize), "{prefix} {start:?}");
    }
}

/// Does `n` random writes to few keys; returns how far they got.
async fn churn(store: &Shared, rng: &mut StdRng, n: usize) -> Revision {
    let mut last = 0;
    for _ in 0..n {
        let key = format!("/{}/{}", ["x", "y"][rng.random_range(0..2)], rng.random_range(0..4));
        let held = store.get(key.as_bytes(), None).await.unwrap().1;
        last = match held {
            None => must_put(store, &key, &rng.random::<u32>().to_string(), Expect::Absent).await,
            Some(kv) if rng.random_bool(0.3) => must_delete(store, &key, kv.mod_revision).await,
            Some(kv) => {
                let value = rng.random::<u32>().to_string();
                must_put(store, &key, &value, Expect::At(kv.mod_revision)).await
            }
        };
    }
    last
}

fn apply(state: &mut BTreeMap<Bytes, KeyValue>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Put { kv, previous } => {
                assert_eq!(state.insert(kv.key.clone(), kv), previous);
            }
            Change::Delete { key, previous, .. } => assert_eq!(state.remove(&key), previous),
        }
    }
}

pub async fn a_list_and_its_watch_make_the_later_list(store: Shared) {
    let mut rng = StdRng::seed_from_u64(7);
    churn(&store, &mut rng, 40).await;
    let early = list(&store, "/x/", None).await;
    let mut live = store.watch(b("/x/"), early.revision + 1).await.unwrap();
    churn(&store, &mut rng, 60).await;
    // The last write is in the range, so that the watch's end is known.
    let last = must_put(&store, "/x/end", "", Expect::Absent).await;
    let late = list(&store, "/x/", None).await;
    let mut replayed = store.watch(b("/x/"), early.revision + 1).await.unwrap();
    let mut whole = store.watch(b("/x/"), 1).await.unwrap();
    for (watch, start) in
        [(&mut live, early.kvs.clone()), (&mut replayed, early.kvs), (&mut whole, vec![])]
    {
        let mut state: BTreeMap<Bytes, KeyValue> =
            start.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        apply(&mut state, changes_to(watch, last).await);
        assert_eq!(state.into_values().collect::<Vec<_>>(), late.kvs);
    }
    // Every state of the past is what the watch leads to.
    let mut watch = store.watch(b("/"), 2).await.unwrap();
    let mut state = BTreeMap::new();
    for revision in 2..=last {
        apply(&mut state, changes_to(&mut watch, revision).await);
        let then = list(&store, "/", Some(revision)).await;
        assert_eq!(then.kvs, state.values().cloned().collect::<Vec<_>>(), "at {revision}");
        assert_eq!(then.count, state.len() as u64);
        let (at, revisions) = store.revisions(b("/"), Some(revision)).await.unwrap();
        let held = state.values().map(|kv| (kv.key.clone(), kv.mod_revision));
        assert_eq!((at, revisions), (revision, held.collect()), "at {revision}");
    }
    let (at, revisions) = store.revisions(b("/x/"), None).await.unwrap();
    let held = late.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision));
    assert_eq!((at, revisions), (last, held.collect()));
}

pub async fn watches_see_their_range_in_order(store: Shared) {
    let mut all = store.watch(b(""), 0).await.unwrap();
    let mut a = store.watch(b("/a/"), 0).await.unwrap();
    let mut one = store.watch(b("/a/1"), 0).await.unwrap();
    let mut future = store.watch(b("/a/"), 6).await.unwrap();
    must_put(&store, "/a/1", "x", Expect::Absent).await;
    must_put(&store, "/b/1", "x", Expect::Absent).await;
    must_put(&store, "/a/2", "x", Expect::Absent).await;
    must_put(&store, "/a/1", "y", Expect::At(2)).await;
    must_delete(&store, "/a/2", 4).await;
    must_delete(&store, "/a/1", 5).await;
    for (name, watch, expected) in [
        ("all", &mut all, vec![2, 3, 4, 5, 6, 7]),
        ("a", &mut a, vec![2, 4, 5, 6, 7]),
        ("one", &mut one, vec![2, 5, 7]),
        ("future", &mut future, vec![6, 7]),
    ] {
        let changes = changes_to(watch, 7).await;
        let seen: Vec<_> = changes.iter().map(Change::revision).collect();
        assert_eq!(seen, expected, "{name}");
        let deleted =
            Change::Delete { key: b("/a/1"), revision: 7, previous: Some(kv("/a/1", "y", 2, 5)) };
        assert_eq!(changes.last(), Some(&deleted), "{name}");
    }
}

pub async fn compacted_history_is_refused(store: Shared) {
    let mut live = store.watch(b("/"), 2).await.unwrap();
    must_put(&store, "/gone", "x", Expect::Absent).await;
    let mut at = must_put(&store, "/a", "0", Expect::Absent).await;
    must_delete(&store, "/gone", 2).await;
    for n in 1..10 {
        at = must_put(&store, "/a", &n.to_string(), Expect::At(at)).await;
    }
    assert_eq!(at, 13);
    store.compact(8).await.unwrap();
    let refused =
        |error: Option<StoreError>| matches!(error, Some(StoreError::Compacted { oldest: 0 | 8 }));
    assert!(refused(store.get(b"/a", Some(7)).await.err()));
    let request =
        ListRequest { prefix: b("/"), start: Bound::Unbounded, limit: 0, revision: Some(2) };
    let error = store.list(request).await.err();
    assert!(refused(error));
    for from in [1, 7] {
        let error = match store.watch(b("/"), from).await {
            Err(error) => error,
            Ok(mut watch) => next(&mut watch).await.expect_err("a compacted watch"),
        };
        assert!(refused(Some(error)), "watch from {from}");
    }
    for revision in [3, 8] {
        let error = store.compact(revision).await.err();
        assert!(refused(error), "compaction at {revision}");
    }
    let error = store.compact(14).await.err();
    assert!(matches!(error, Some(StoreError::Future { asked: 14, current: 13 })), "{error:?}");

    let then = list(&store, "/", Some(8)).await;
    assert_eq!(then.kvs, [kv("/a", "4", 3, 8)]);
    assert_eq!(list(&store, "/", None).await.kvs, [kv("/a", "9", 3, 13)]);
    let mut watch = store.watch(b("/"), 9).await.unwrap();
    let changes = changes_to(&mut watch, 13).await;
    assert_eq!(changes.len(), 5);
    let first = Change::Put { kv: kv("/a", "5", 3, 9), previous: Some(kv("/a", "4", 3, 8)) };
    assert_eq!(changes[0], first);
    // A watch that was there before either has everything or is told.
    let mut seen = 1;
    while seen < 13 {
        match next(&mut live).await {
            Ok(WatchEvent::Changes { revision, .. }) => {
                assert_eq!(revision, seen + 1);
                seen = revision;
            }
            Ok(WatchEvent::Progress(_)) => {}
            Err(error) => {
                assert!(refused(Some(error)));
                break;
            }
        }
    }
    assert_eq!(must_put(&store, "/b", "x", Expect::Absent).await, 14);
}

pub async fn future_revisions_are_refused(store: Shared) {
    must_put(&store, "/a", "x", Expect::Absent).await;
    let request =
        ListRequest { prefix: b("/"), start: Bound::Unbounded, limit: 1, revision: Some(9) };
    for error in [store.get(b"/a", Some(9)).await.err(), store.list(request).await.err()] {
        assert!(matches!(error, Some(StoreError::Future { asked: 9, current: 2 })), "{error:?}");
    }
}

pub async fn progress_means_that_all_has_come(store: Shared) {
    if !store.reports_progress() {
        let error = store.request_progress(b"/").await.err();
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
        return;
    }
    let mut busy = store.watch(b("/busy"), 0).await.unwrap();
    let mut quiet = store.watch(b("/quiet"), 0).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut at = must_put(&store, "/busy", "0", Expect::Absent).await;
            for n in 1..100 {
                at = must_put(&store, "/busy", &n.to_string(), Expect::At(at)).await;
            }
            at
        })
    };
    let mut seen = 1;
    let mut floor = 0;
    while floor < 101 {
        floor = store.current_revision().await.unwrap();
        store.request_progress(b"/").await.unwrap();
        loop {
            match next(&mut busy).await.unwrap() {
                WatchEvent::Changes { revision, .. } => {
                    assert_eq!(revision, seen + 1, "reported before it was delivered");
                    seen = revision;
                }
                // Each revision here is one write to the range, so none may be missing.
                WatchEvent::Progress(revision) => {
                    assert_eq!(revision, seen.max(1));
                    if revision >= floor {
                        break;
                    }
                }
            }
        }
        loop {
            match next(&mut quiet).await.unwrap() {
                WatchEvent::Progress(revision) if revision >= floor => break,
                WatchEvent::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(writer.await.unwrap(), 101);
}

pub async fn progress_can_be_asked_of_some(store: Shared) {
    if !store.reports_progress() {
        return;
    }
    let mut quiet = store.watch(b("/quiet"), 0).await.unwrap();
    let mut others = Vec::new();
    for n in 0..20 {
        others.push(store.watch(b(&format!("/other{n}")), 0).await.unwrap());
    }
    let mut at = must_put(&store, "/busy", "x", Expect::Absent).await;
    let mut reaches = async |floor: Revision| loop {
        match next(&mut quiet).await.unwrap() {
            WatchEvent::Progress(revision) if revision >= floor => return,
            WatchEvent::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    };
    // Twice: it is said again though nothing has happened since.
    for _ in 0..2 {
        store.request_progress(b"/quiet").await.unwrap();
        reaches(at).await;
    }
    at = must_put(&store, "/busy", "y", Expect::At(at)).await;
    // However many ask, and whoever leaves before it is answered.
    let asking = (0..100).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.request_progress(b"/quiet").await })
    });
    for (n, asking) in asking.enumerate() {
        match n % 2 {
            0 => asking.abort(),
            _ => asking.await.unwrap().unwrap(),
        }
    }
    reaches(at).await;
    for other in &mut others {
        let waited = tokio::time::timeout(Duration::from_millis(5), other.next()).await;
        assert!(waited.is_err(), "nobody asked: {waited:?}");
    }
}

pub async fn keys_expire(store: Shared) {
    let mut watch = store.watch(b("/e"), 0).await.unwrap();
    let ttl = Some(Duration::from_secs(1));
    for key in ["/e1", "/e2"] {
        store.put(b(key), b("x"), Expect::Absent, ttl).await.unwrap();
    }
    // Written again without a time to live, a key stays.
    must_put(&store, "/e2", "y", Expect::At(3)).await;
    let mut changes = Vec::new();
    while !matches!(changes.last(), Some(Change::Delete { .. })) {
        changes.append(&mut next_changes(&mut watch).await.1);
    }
    let expired =
        Change::Delete { key: b("/e1"), revision: 5, previous: Some(kv("/e1", "x", 2, 2)) };
    assert_eq!(changes.last(), Some(&expired));
    assert_eq!(list(&store, "/e", None).await.kvs, [kv("/e2", "y", 3, 4)]);
}

pub async fn large_values_are_refused(store: Shared) {
    let large = Bytes::from(vec![b'x'; 2 << 20]);
    let error = store.put(b("/l"), large.clone(), Expect::Absent, None).await.expect_err("large");
    assert!(matches!(error, StoreError::TooLarge(_)), "{error:?}");
    assert_eq!(error.to_string(), "etcdserver: request is too large");
    assert_eq!(store.get(b"/l", None).await.unwrap(), (1, None));
    let fits = large.slice(..(3 << 19) - 4096);
    assert_eq!(
        store.put(b("/l"), fits.clone(), Expect::Absent, None).await.unwrap(),
        Outcome::Done(2)
    );
    assert_eq!(store.get(b"/l", None).await.unwrap().1.unwrap().value, fits);
    assert!(store.size().await.unwrap() > 0);
}

pub async fn a_slow_reader_misses_nothing_or_is_closed(store: Shared) {
    let mut watch = store.watch(b("/s"), 0).await.unwrap();
    let mut at = must_put(&store, "/s", "0", Expect::Absent).await;
    assert_eq!(next_changes(&mut watch).await.0, 2);
    for n in 0..600 {
        at = must_put(&store, "/s", &n.to_string(), Expect::At(at)).await;
    }
    let mut seen = 2;
    while seen < at {
        match next(&mut watch).await {
            Ok(WatchEvent::Changes { revision, .. }) => {
                assert_eq!(revision, seen + 1, "skipped");
                seen = revision;
            }
            Ok(WatchEvent::Progress(_)) => {}
            Err(StoreError::Slow) => {
                assert!(watch.next().await.is_none(), "goes on after the end");
                return;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub async fn histories_are_linearizable(store: Shared) {
    let clock = Arc::new(AtomicU64::new(0));
    let mut watch = store.watch(b("/h/"), 2).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|seed| {
            let (store, clock) = (store.clone(), clock.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed);
                let mut records = Vec::new();
                for n in 0..60 {
                    let began = clock.fetch_add(1, Ordering::SeqCst);
                    let did = act(&store, &mut rng, format!("{seed}-{n}")).await;
                    let ended = clock.fetch_add(1, Ordering::SeqCst);
                    records.push(Record { began, ended, did });
                }
                records
            })
        })
        .collect();
    let mut records = Vec::new();
    let reading = tokio::spawn(async move {
        let mut changes = Vec::new();
        while changes.last().is_none_or(|change: &Change| change.key() != "/h/end") {
            changes.append(&mut next_changes(&mut watch).await.1);
        }
        changes
    });
    for task in tasks {
        records.append(&mut task.await.unwrap());
    }
    let began = clock.fetch_add(1, Ordering::SeqCst);
    let revision = must_put(&store, "/h/end", "", Expect::Absent).await;
    let did = Did::Wrote { key: "/h/end".into(), value: String::new(), revision };
    records.push(Record { began, ended: clock.fetch_add(1, Ordering::SeqCst), did });
    let watched = reading.await.unwrap();
    assert!(watched.len() > 50, "too little was written to tell");
    check(&records, &watched).unwrap();
}

/// One random request. The expectation of a write comes from a read before it, so it may be stale.
async fn act(store: &Shared, rng: &mut StdRng, value: String) -> Did {
    let key = format!("/h/{}", rng.random_range(0..3));
    match rng.random_range(0..6) {
        0 => {
            let (revision, found) = store.get(key.as_bytes(), None).await.unwrap();
            Did::Got { key, revision, found }
        }
        1 => {
            let found = list(store, "/h/", None).await;
            Did::Listed { prefix: "/h/".into(), revision: found.revision, found: found.kvs }
        }
        n => {
            let (newest, held) = store.get(key.as_bytes(), None).await.unwrap();
            let at = match held {
                Some(kv) if rng.random_bool(0.9) => kv.mod_revision,
                Some(_) => newest + 1,
                None => 0,
            };
            let outcome = if n == 2 && at != 0 {
                store.delete(b(&key), at).await.unwrap()
            } else {
                let expect = if at == 0 { Expect::Absent } else { Expect::At(at) };
                put(store, &key, &value, expect).await
            };
            match outcome {
                Outcome::Mismatch(found) => Did::Refused { key, expected: at, found },
                Outcome::Done(revision) if n == 2 && at != 0 => Did::Deleted { key, revision },
                Outcome::Done(revision) => Did::Wrote { key, value, revision },
            }
        }
    }
}
