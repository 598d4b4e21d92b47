//! Generated histories: many clients at once against two real servers on one store, embedded or
//! etcd. Clients move between the servers, of which one is behind. `checker` judges.
//!
//! Needs the `etcd` program in the path. `HISTORY_SEEDS` runs more histories.

mod checker;
mod clients;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../../crates/store/tests/contract/engines.rs"]
#[allow(dead_code, reason = "the contract's tests use the rest")]
mod engines;
mod late;
mod past;
mod races;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use checker::{Did, Selection, Truth, check};
use clients::{Clients, Ending};
use common::Fixture;
use engines::{EtcdServer, connect};
use late::Late;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use store::SharedStore;

const WRITERS: u64 = 4;
const READERS: u64 = 3;
const WATCHERS: u64 = 6;

fn n_seeds() -> u64 {
    std::env::var("HISTORY_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// What goes on while a history is made.
enum Meanwhile {
    Nothing,
    /// History is forgotten.
    Compaction(SharedStore),
    /// etcd is killed and comes back; its folder.
    Restart(EtcdServer, PathBuf),
}

async fn go_on(clients: Arc<Clients>, meanwhile: Meanwhile) {
    match meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::Compaction(store) => clients.compact_on(store).await,
        Meanwhile::Restart(mut etcd, folder) => {
            clients.wait_for_writes(40).await;
            etcd.kill();
            etcd.restart(&folder);
            // It must live until the end.
            std::future::pending().await
        }
    }
}

/// Runs one history and judges it.
async fn run(seed: u64, servers: Vec<Fixture>, meanwhile: Meanwhile) {
    let clients = Arc::new(Clients::new(servers));
    clients.prepare().await;
    let start = clients.list_revision().await;
    let mut busy = Vec::new();
    let mut watching = Vec::new();
    for n in 0..WATCHERS {
        watching.push(tokio::spawn(clients.clone().watch_on(seed << 8 | n, start)));
    }
    for n in 0..WRITERS {
        busy.push(tokio::spawn(clients.clone().write_on(seed << 8 | 32 | n)));
    }
    for n in 0..READERS {
        busy.push(tokio::spawn(clients.clone().read_on(seed << 8 | 64 | n)));
    }
    let compacts = matches!(meanwhile, Meanwhile::Compaction(_));
    let meanwhile = tokio::spawn(go_on(clients.clone(), meanwhile));
    let mut records = Vec::new();
    for task in busy {
        records.append(&mut task.await.expect("a client"));
    }
    if compacts {
        meanwhile.abort();
    }
    // The last writes are in the scope of every watch, so that its end is known.
    records.append(&mut clients.finish().await);
    for task in watching {
        records.append(&mut task.await.expect("a watcher"));
    }
    let changes = clients.changes_since(start).await;
    let n_changes = changes.len();
    let truth = Truth::new(start, changes).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    check(&records, &truth).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let count = |of: fn(&Did) -> bool| records.iter().filter(|r| of(&r.did)).count();
    let counts = [
        n_changes,
        count(|did| matches!(did, Did::Refused { .. })),
        count(|did| matches!(did, Did::Listed { .. })),
        count(|did| matches!(did, Did::Watched { .. })),
        count(|did| matches!(did, Did::Got { .. })),
    ];
    meanwhile.abort();
    println!("seed {seed}: changes, refused, lists, watches, gets: {counts:?}");
    assert!(counts.iter().all(|n| *n >= 5), "too little was done to tell");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_two_servers_on_an_embedded_store() {
    for seed in 0..n_seeds() {
        let engine = engines::embedded();
        let store = engine.store.clone();
        let servers =
            vec![Fixture::on(store.clone()).await, Fixture::on(Arc::new(Late::new(store))).await];
        run(seed, servers, Meanwhile::Nothing).await;
    }
}

/// Two servers on an etcd of their own.
async fn on_etcd(folder: &Path) -> (EtcdServer, SharedStore, Vec<Fixture>) {
    let etcd = EtcdServer::start(folder, &[]);
    let mut options = store::etcd::Options::new(vec![etcd.url("http")]);
    options.request_timeout = Duration::from_secs(2);
    let (one, other) = (connect(options.clone()).await, connect(options).await);
    let servers =
        vec![Fixture::on(one.clone()).await, Fixture::on(Arc::new(Late::new(other))).await];
    (etcd, one, servers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_two_servers_on_etcd_that_is_compacted() {
    for seed in 0..n_seeds() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_etcd, store, servers) = on_etcd(folder.path()).await;
        run(seed, servers, Meanwhile::Compaction(store)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_two_servers_on_etcd_that_is_killed() {
    for seed in 0..n_seeds() {
        let folder = tempfile::tempdir().expect("a folder");
        let (etcd, _, servers) = on_etcd(folder.path()).await;
        run(seed, servers, Meanwhile::Restart(etcd, folder.path().to_owned())).await;
    }
}

/// A cache that cannot follow must not stop consistent reads, nor show less to a watch that begins
/// with the state; when it follows again, nothing is delivered twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stuck_still_shows_what_was_acknowledged() {
    let engine = engines::embedded();
    let store: SharedStore = engine.store.clone();
    let (late, stuck) = Late::with_switch(store.clone());
    let (good, bad) = (Fixture::on(store).await, Fixture::on(Arc::new(late)).await);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str| serde_json::json!({"metadata": {"name": name}});
    good.post(maps, &map("a")).await.expect(201);
    bad.get(maps).await.expect(200);
    stuck.send_replace(true);
    good.post(maps, &map("b")).await.expect(201);
    let list = bad.get(maps).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    let from_state =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = bad.watch(&format!("{maps}?{from_state}")).await;
    for want in [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "")] {
        assert_eq!(watch.next_name().await, (want.0.to_owned(), want.1.to_owned()));
    }
    stuck.send_replace(false);
    good.post(maps, &map("c")).await.expect(201);
    assert_eq!(watch.next_name().await, ("ADDED".to_owned(), "c".to_owned()));
}

/// Who watched before a restart goes on where it was, and misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_after_a_restart() {
    let clients = Clients::new(vec![Fixture::new().await]);
    clients.prepare().await;
    let start = clients.list_revision().await;
    let mut records = Vec::new();
    for n in 0..5 {
        records.append(&mut clients.write(n, 20).await);
    }
    let everything = Selection::default();
    let mut rng = StdRng::seed_from_u64(1);
    let seen = clients.watch(&mut rng, &everything, Some(start), Ending::Reached).await;
    let mut seen = seen.expect("events");
    let servers = clients.into_servers();
    let mut again = Vec::new();
    for server in servers {
        again.push(Fixture::over(server.stop().await, |_| {}).await);
    }
    let clients = Clients::new(again);
    let from = clients::reached(&seen).or(Some(start));
    records.append(&mut clients.write(7, 20).await);
    records.append(&mut clients.finish().await);
    let more = clients.watch(&mut rng, &everything, from, Ending::Sentinels).await;
    seen.append(&mut more.expect("history across the restart"));
    // What was acknowledged before the restart is all there, under its revisions.
    let events: Vec<_> = clients.changes_since(start).await;
    let truth = Truth::new(start, events).unwrap_or_else(|why| panic!("{why}"));
    let did = Did::Watched { select: everything, from: Some(start), seen };
    records.push(checker::Record { began: u64::MAX - 1, ended: u64::MAX, did });
    // The clocks of the two lives are not one: only what needs no order of time is checked.
    records.iter_mut().for_each(|record| (record.began, record.ended) = (0, u64::MAX));
    check(&records, &truth).unwrap_or_else(|why| panic!("{why}"));
}
