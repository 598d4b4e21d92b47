//! Generated histories: many clients at once against real servers, on the embedded store and on
//! etcd (two servers there, and clients that move between them), judged by `checker`.
//!
//! Needs the `etcd` program in the path. `HISTORY_SEEDS` runs more histories.

mod checker;
mod clients;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../../crates/store/tests/contract/engines.rs"]
#[allow(dead_code, reason = "the contract's tests use the rest")]
mod engines;

use std::sync::Arc;

use checker::{Did, Selection, Truth, check};
use clients::{Clients, Ending};
use common::Fixture;
use engines::{EtcdServer, connect};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use store::SharedStore;

const WRITERS: u64 = 4;
const READERS: u64 = 3;
const WATCHERS: u64 = 6;

fn n_seeds() -> u64 {
    std::env::var("HISTORY_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Runs one history and judges it. `history` is the store in which it is forgotten meanwhile.
async fn run(seed: u64, servers: Vec<Fixture>, history: Option<SharedStore>) {
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
    let compacting = history.map(|store| tokio::spawn(clients.clone().compact_on(store)));
    let mut records = Vec::new();
    for task in busy {
        records.append(&mut task.await.expect("a client"));
    }
    if let Some(compacting) = compacting {
        compacting.abort();
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
    println!("seed {seed}: changes, refused, lists, watches, gets: {counts:?}");
    assert!(counts.iter().all(|n| *n >= 5), "too little was done to tell");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_on_the_embedded_store() {
    for seed in 0..n_seeds() {
        run(seed, vec![Fixture::new().await], None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_two_servers_on_etcd_that_is_compacted() {
    for seed in 0..n_seeds() {
        let folder = tempfile::tempdir().expect("a folder");
        let etcd = EtcdServer::start(folder.path(), &[]);
        let mut servers = Vec::new();
        let mut last: Option<SharedStore> = None;
        for _ in 0..2 {
            let options = store::etcd::Options::new(vec![etcd.url("http")]);
            let store: SharedStore = connect(options).await;
            last = Some(store.clone());
            servers.push(Fixture::on(store).await);
        }
        run(seed, servers, last).await;
    }
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
