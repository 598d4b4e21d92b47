//! Measures an engine: `bench [embedded|etcd]...` (both without arguments), with `etcd` in the path.
//!
//! Prints writes per second at several numbers of concurrent writers, the time to list 10,000 keys,
//! and how long a change takes from the request until a watch delivers it.

use std::ops::Bound;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use store::{Expect, ListRequest, Outcome, Store, StoreError, WatchEvent, embedded, etcd};

/// About the size of a small pod.
const VALUE_BYTES: usize = 2000;
const LISTED: usize = 10_000;
const PER_LEVEL: Duration = Duration::from_secs(4);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names = vec!["embedded".into(), "etcd".into()];
    }
    for name in names {
        let folder = tempfile::tempdir()?;
        match name.as_str() {
            "embedded" => {
                let path = folder.path().join("db");
                let open = || embedded::Embedded::open(&path, embedded::Options::default());
                let store = open()?;
                measure(&name, store.clone()).await?;
                store.close().await?;
                let begin = Instant::now();
                open()?.close().await?;
                println!("{name}: opened and verified in {:.0?}", begin.elapsed());
            }
            "etcd" => {
                let (_server, store) = start_etcd(folder.path()).await?;
                measure(&name, store).await?;
            }
            other => return Err(format!("no engine is called {other}").into()),
        }
    }
    Ok(())
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn start_etcd(folder: &std::path::Path) -> Result<(Server, Arc<etcd::Etcd>), Failure> {
    let port = || std::net::TcpListener::bind("127.0.0.1:0")?.local_addr().map(|at| at.port());
    let (client, peer) =
        (format!("http://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?));
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run etcd: {error}"))?;
    let server = Server(child);
    loop {
        match etcd::Etcd::connect(etcd::Options::new(vec![client.clone()])).await {
            Ok(store) => return Ok((server, store)),
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn measure(name: &str, store: Arc<dyn Store>) -> Result<(), Failure> {
    for n_writers in [1, 16, 128] {
        let (n, took) = write(&store, n_writers).await?;
        let rate = n as f64 / took.as_secs_f64();
        let each = took.as_secs_f64() * 1e3 * n_writers as f64 / n as f64;
        println!("{name}: {n_writers:>3} writers: {rate:>7.0} writes/s, {each:.2} ms each");
    }
    println!("{name}: {:.1} MB resident after the writes", rss()?);
    list(name, &store).await?;
    let newest = store.current_revision().await?;
    store.compact(newest).await?;
    watch(name, &store).await?;
    println!("{name}: {:.1} MB on disk, {:.1} MB resident", megabytes(store.size().await?), rss()?);
    Ok(())
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn rss() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1e3)
}

async fn write(store: &Arc<dyn Store>, n_writers: usize) -> Result<(usize, Duration), Failure> {
    let begin = Instant::now();
    let tasks: Vec<_> = (0..n_writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
                let key = Bytes::from(format!("/w/{n_writers}/{writer}"));
                let mut expect = Expect::Absent;
                let mut n = 0;
                while begin.elapsed() < PER_LEVEL {
                    match store.put(key.clone(), value.clone(), expect, None).await? {
                        Outcome::Done(revision) => expect = Expect::At(revision),
                        Outcome::Mismatch(found) => return Err(format!("{found:?}").into()),
                    }
                    n += 1;
                }
                Ok::<usize, Failure>(n)
            })
        })
        .collect();
    let mut n = 0;
    for task in tasks {
        n += task.await??;
    }
    Ok((n, begin.elapsed()))
}

async fn list(name: &str, store: &Arc<dyn Store>) -> Result<(), Failure> {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let fill = futures::stream::iter(0..LISTED).map(|n| {
        let key = Bytes::from(format!("/l/{n:05}"));
        store.put(key, value.clone(), Expect::Absent, None)
    });
    let mut filled = fill.buffer_unordered(128);
    while let Some(done) = filled.next().await {
        done?;
    }
    let request = |limit, revision| ListRequest {
        prefix: Bytes::from("/l/"),
        start: Bound::Unbounded,
        limit,
        revision,
    };
    let newest = store.current_revision().await?;
    for (what, limit, revision) in [
        ("all", 0, None),
        ("all again", 0, None),
        ("first 500", 500, None),
        ("all at an older revision", 0, Some(newest - 100)),
    ] {
        let begin = Instant::now();
        let page = store.list(request(limit, revision)).await?;
        println!(
            "{name}: list {what}: {} of {} keys in {:.1} ms",
            page.kvs.len(),
            page.count,
            begin.elapsed().as_secs_f64() * 1e3
        );
    }
    let begin = Instant::now();
    for n in 0..1000 {
        store.get(format!("/l/{n:05}").as_bytes(), None).await?;
    }
    println!("{name}: get: {:.3} ms each", begin.elapsed().as_secs_f64());
    Ok(())
}

async fn watch(name: &str, store: &Arc<dyn Store>) -> Result<(), Failure> {
    let mut watch = store.watch(Bytes::from("/d"), 0).await?;
    let mut expect = Expect::Absent;
    let (mut whole, mut after) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let begin = Instant::now();
        let writing = {
            let store = store.clone();
            tokio::spawn(async move {
                let done = store.put(Bytes::from("/d"), Bytes::from("x"), expect, None).await;
                (done, Instant::now())
            })
        };
        loop {
            match watch.next().await.ok_or("the watch ended")?? {
                WatchEvent::Changes { .. } => break,
                WatchEvent::Progress(_) => {}
            }
        }
        let seen = Instant::now();
        let (done, acknowledged) = writing.await?;
        let Outcome::Done(revision) = done? else { return Err("not written".into()) };
        expect = Expect::At(revision);
        whole.push(seen - begin);
        after.push(seen.saturating_duration_since(acknowledged));
    }
    for (what, mut times) in [("from request", whole), ("after acknowledgement", after)] {
        times.sort_unstable();
        let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
        println!("{name}: watch {what}: median {:.3} ms, p99 {:.3} ms", at(50), at(99));
    }
    Ok(())
}
