//! What an API server keeps in memory for each pod: makes so many of them (first argument, 10,000)
//! in a server in this process, and prints its anonymous memory after each step.
//!
//! `_RJEM_MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0` gives back at once what is freed.

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::Fixture;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PODS: &str = "/api/v1/namespaces/default/pods";
const WRITERS: usize = 8;
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Anonymous memory of this process, in KiB.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

/// A pod of the size that a controller makes of a small template.
fn pod(n: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("listed-{n}"), "labels": {"app": "listed"}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main",
            "image": "localhost/test:1", "command": ["sleep", "infinity"]}]}})
}

struct Steps {
    pods: u64,
    before: u64,
}

impl Steps {
    fn print(&mut self, what: &str) {
        let now = anonymous();
        let more = now.cast_signed() - self.before.cast_signed();
        let each = more * 1024 / self.pods.cast_signed();
        println!("{what:<44} {:>9.1} MiB {each:>+8} bytes a pod", now as f64 / 1024.0);
        self.before = now;
    }
}

async fn list(f: &Fixture, query: &str, accept: &str) -> usize {
    let answer = f.get_as(&format!("{PODS}{query}"), accept).await;
    assert_eq!(answer.code, 200);
    answer.body.len()
}

#[tokio::main]
async fn main() {
    let pods: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let f = Arc::new(Fixture::new().await);
    let mut steps = Steps { pods: pods as u64, before: anonymous() };
    steps.print("a server");
    // Somebody watches, as controllers do.
    let mut watch = f.watch(&format!("{PODS}?watch=1&timeoutSeconds=3600")).await;
    let reading = tokio::spawn(async move {
        let mut seen = 0;
        while seen < pods && watch.next().await.is_some() {
            seen += 1;
        }
        watch
    });
    let writers = (0..WRITERS).map(|writer| {
        let f = f.clone();
        tokio::spawn(async move {
            for n in (writer..pods).step_by(WRITERS) {
                f.post(PODS, &pod(n)).await.expect(201);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    let _watch = reading.await.expect("a watcher");
    steps.print("pods made, one watch");
    for (what, query, accept) in [
        ("listed as protobuf", "", PROTOBUF),
        ("listed as JSON", "", "application/json"),
        ("listed as JSON by label", "?labelSelector=app%3Dlisted", "application/json"),
        ("listed from the cache", "?resourceVersion=0", "application/json"),
    ] {
        let began = std::time::Instant::now();
        let size = list(&f, query, accept).await;
        let first = began.elapsed();
        let began = std::time::Instant::now();
        list(&f, query, accept).await;
        let again = began.elapsed();
        let each = size / pods;
        steps.print(&format!("{what} ({each} bytes, {first:.0?}, {again:.0?})"));
    }
    let minutes: u64 = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(0);
    for minute in 1..=minutes {
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        steps.print(&format!("{minute} minutes later"));
    }
}
