//! A process that writes is killed at random moments; what it reported as done must be there.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::embedded::{Embedded, Options};
use store::{Expect, Outcome, Revision, Store};

const FILE: &str = "STORE_CRASH_FILE";
const ROUNDS: u64 = 6;
const WRITERS: usize = 3;

/// The process that is killed; without the variable there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_process() {
    let Ok(path) = std::env::var(FILE) else { return };
    let store = Embedded::open(path, Options::default()).expect("open");
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write_for_ever(store.clone(), writer))).collect();
    for writer in writers {
        writer.await.expect("writer");
    }
}

async fn write_for_ever(store: Arc<Embedded>, writer: usize) {
    loop {
        let key = Bytes::from(format!("/{writer}"));
        let held = store.get(&key, None).await.expect("get").1;
        let n = held.as_ref().map_or(0, |kv| number(&kv.value)) + 1;
        let mut value = n.to_string();
        value.push_str(&" ".repeat(5000));
        let expect = held.map_or(Expect::Absent, |kv| Expect::At(kv.mod_revision));
        match store.put(key, value.into(), expect, None).await.expect("put") {
            Outcome::Done(revision) => println!("\nacknowledged {writer} {n} {revision} ."),
            outcome => panic!("{outcome:?}"),
        }
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).expect("text").trim_end().parse().expect("number")
}

/// Runs the writing process until it has reported `n` writes, kills it, and returns the last
/// report of each writer: count and revision.
fn run_and_kill(path: &Path, n: usize) -> HashMap<usize, (u64, Revision)> {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "kill::writer_process", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let output = BufReader::new(child.stdout.take().expect("pipe"));
    let mut last = HashMap::new();
    let mut n_reported = 0;
    for line in output.lines() {
        let line = line.expect("read");
        // The kill may cut the last line; a whole one ends with a full stop.
        let report = line.strip_prefix("acknowledged ").and_then(|rest| rest.strip_suffix(" ."));
        let Some(report) = report else { continue };
        let numbers: Vec<u64> = report.split(' ').map_while(|n| n.parse().ok()).collect();
        if let [writer, count, revision] = numbers[..] {
            last.insert(writer as usize, (count, revision));
        }
        n_reported += 1;
        if n_reported == n {
            child.kill().expect("kill");
        }
    }
    let status = child.wait().expect("wait");
    assert!(n_reported >= n, "the writer ended by itself: {status}");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kills() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("db");
    let mut rng = StdRng::seed_from_u64(1);
    let mut floor = 0;
    for round in 0..ROUNDS {
        let n = rng.random_range(1..150);
        let file = path.clone();
        let last = tokio::task::spawn_blocking(move || run_and_kill(&file, n)).await.expect("run");
        let store = Embedded::open(&path, Options::default()).expect("open after the kill");
        for (writer, (count, revision)) in last {
            let (newest, held) = store.get(format!("/{writer}").as_bytes(), None).await.unwrap();
            let held = held.unwrap_or_else(|| panic!("round {round}: /{writer} is lost"));
            let found = number(&held.value);
            assert!(
                found == count && held.mod_revision == revision || found == count + 1,
                "round {round}: /{writer} holds {found} although {count} was acknowledged"
            );
            assert!(newest >= revision.max(floor), "round {round}: the revision fell");
            floor = newest;
        }
        store.close().await.expect("close");
    }
}
