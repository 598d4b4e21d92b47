//! Clients that do random things to few objects and record what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use store::{SharedStore, StoreError};

use super::checker::{Asked, Did, Item, Kind, Record, Revision, Seen, Selection};
use super::common::{Answer, Fixture};

pub const NAMESPACES: [&str; 2] = ["default", "other"];
const COLORS: [&str; 2] = ["red", "blue"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const WRITES: u64 = 60;
const READS: u64 = 60;
/// Before a store that is away is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// When a watch has seen enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All that was acknowledged so far.
    Reached,
    /// The last of the writes of [`Clients::finish`] in its scope.
    Sentinels,
}

pub struct Clients {
    servers: Vec<Fixture>,
    clock: AtomicU64,
    newest: AtomicU64,
}

/// The last revision that a watch knows.
pub fn reached(seen: &[Seen]) -> Option<Revision> {
    seen.last().map(|last| match last {
        Seen::Event(_, item) => item.revision,
        Seen::Bookmark(at) | Seen::InitialEnd(at) => *at,
    })
}

fn revision(object: &Value) -> Revision {
    let text = object["metadata"]["resourceVersion"].as_str().expect("a version");
    text.parse().expect("a number")
}

fn item(object: &Value) -> Item {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let meta = &object["metadata"];
    Item {
        key: format!("{}/{}", text(&meta["namespace"]), text(&meta["name"])),
        revision: revision(object),
        color: text(&meta["labels"]["color"]),
        value: text(&object["data"]["v"]),
    }
}

/// What an event of a watch tells, or the code of the error that it is.
fn told(event: &Value) -> Result<Seen, u64> {
    let object = &event["object"];
    let ended = object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true";
    Ok(match event["type"].as_str().expect("a type") {
        "ADDED" => Seen::Event(Kind::Added, item(object)),
        "MODIFIED" => Seen::Event(Kind::Modified, item(object)),
        "DELETED" => Seen::Event(Kind::Deleted, item(object)),
        "BOOKMARK" if ended => Seen::InitialEnd(revision(object)),
        "BOOKMARK" => Seen::Bookmark(revision(object)),
        _ => return Err(object["code"].as_u64().expect("a code")),
    })
}

fn object(name: &str, color: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"v": value},
        "metadata": {"name": name, "labels": {"color": color, "history": ""}}})
}

fn maps(namespace: &str) -> String {
    match namespace {
        "" => "/api/v1/configmaps".to_owned(),
        namespace => format!("/api/v1/namespaces/{namespace}/configmaps"),
    }
}

/// Path and query of a selection; more parameters can follow.
fn query(select: &Selection) -> String {
    let color = match select.color.as_str() {
        "" => String::new(),
        color => format!(",color%3D{color}"),
    };
    format!("{}?labelSelector=history{color}", maps(&select.namespace))
}

fn pick<'a>(rng: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[rng.random_range(0..from.len())]
}

fn selection(rng: &mut StdRng) -> Selection {
    Selection {
        namespace: pick(rng, &["", "default", "other"]).to_owned(),
        color: pick(rng, &["", "red", "blue"]).to_owned(),
    }
}

/// Key and color of the writes of the end, in order.
fn sentinels() -> impl Iterator<Item = (&'static str, &'static str)> {
    COLORS.into_iter().flat_map(|color| NAMESPACES.into_iter().map(move |of| (of, color)))
}

fn last_sentinel(select: &Selection) -> String {
    let in_scope = |(namespace, color): &(&str, &str)| {
        (select.namespace.is_empty() || select.namespace == *namespace)
            && (select.color.is_empty() || select.color == *color)
    };
    let (namespace, color) = sentinels().filter(in_scope).last().expect("a sentinel");
    format!("{namespace}/end-{color}")
}

impl Clients {
    pub fn new(servers: Vec<Fixture>) -> Self {
        Self { servers, clock: AtomicU64::new(0), newest: AtomicU64::new(0) }
    }

    pub fn into_servers(self) -> Vec<Fixture> {
        self.servers
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn any(&self, rng: &mut StdRng) -> &Fixture {
        &self.servers[rng.random_range(0..self.servers.len())]
    }

    pub async fn prepare(&self) {
        let namespace = json!({"metadata": {"name": "other"}});
        self.servers[0].post("/api/v1/namespaces", &namespace).await.expect(201);
    }

    /// The revision of a list of everything.
    pub async fn list_revision(&self) -> Revision {
        let list = self.servers[0].get(&query(&Selection::default())).await.expect(200);
        self.newest.fetch_max(revision(&list), Ordering::SeqCst);
        revision(&list)
    }

    /// Carries a write out, which is to be done on a state (0: none), and records what came of it.
    async fn wrote(
        &self,
        records: &mut Vec<Record>,
        key: &str,
        value: &str,
        on: Option<Revision>,
        answer: impl Future<Output = Answer>,
    ) {
        let began = self.tick();
        let answer = answer.await;
        let did = match answer.code {
            200 | 201 => {
                let revision = revision(&answer.json());
                self.newest.fetch_max(revision, Ordering::SeqCst);
                Did::Wrote { key: key.to_owned(), value: Some(value.to_owned()), on, revision }
            }
            404 | 409 | 503 => Did::Refused { value: value.to_owned() },
            504 => Did::InDoubt { key: key.to_owned(), value: Some(value.to_owned()) },
            code => panic!("{code}: {}", String::from_utf8_lossy(&answer.body)),
        };
        records.push(Record { began, ended: self.tick(), did });
    }

    pub async fn write_on(self: Arc<Self>, seed: u64) -> Vec<Record> {
        self.write(seed, WRITES).await
    }

    /// Random writes, each after a read of its object.
    pub async fn write(&self, seed: u64, n: u64) -> Vec<Record> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut records = Vec::new();
        for n in 0..n {
            let (namespace, name) = (pick(&mut rng, &NAMESPACES), pick(&mut rng, &NAMES));
            let (key, all) = (format!("{namespace}/{name}"), maps(namespace));
            let (color, value) = (pick(&mut rng, &COLORS), format!("{seed}-{n}"));
            let (path, new) = (format!("{all}/{name}"), object(name, color, &value));
            let found = self.get(&mut rng, &mut records, &key, &path).await;
            let server = self.any(&mut rng);
            let Some(found) = found else {
                self.wrote(&mut records, &key, &value, Some(0), server.post(&all, &new)).await;
                continue;
            };
            match rng.random_range(0..10) {
                0..=1 => self.delete(server, &mut records, &found, &path).await,
                2..=4 => {
                    let patch =
                        json!({"data": {"v": value}, "metadata": {"labels": {"color": color}}});
                    let done = server.patch(&path, "merge-patch+json", &patch);
                    self.wrote(&mut records, &key, &value, None, done).await;
                }
                at => {
                    // Some are stale from the beginning, others by what is done meanwhile.
                    let stale = u64::from(at == 5);
                    let (mut new, on) = (new, found.revision - stale);
                    new["metadata"]["resourceVersion"] = on.to_string().into();
                    let done = server.put(&path, &new);
                    self.wrote(&mut records, &key, &value, Some(on), done).await;
                }
            }
        }
        records
    }

    async fn get(
        &self,
        rng: &mut StdRng,
        records: &mut Vec<Record>,
        key: &str,
        path: &str,
    ) -> Option<Item> {
        let began = self.tick();
        let found = loop {
            let answer = self.any(rng).get(path).await;
            match answer.code {
                404 => break None,
                // The store is away for a while.
                503 | 504 => tokio::time::sleep(PAUSE).await,
                _ => break Some(item(&answer.expect(200))),
            }
        };
        let did = Did::Got { key: key.to_owned(), found: found.clone() };
        records.push(Record { began, ended: self.tick(), did });
        found
    }

    async fn delete(&self, on: &Fixture, records: &mut Vec<Record>, last: &Item, path: &str) {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
            "preconditions": {"resourceVersion": last.revision.to_string()}});
        let began = self.tick();
        let json = [("content-type", "application/json")];
        let answer = on.send("DELETE", path, &json, options.to_string()).await;
        let ended = self.tick();
        match answer.code {
            200 => {
                let did = Did::Deleted { key: last.key.clone(), last: last.revision };
                records.push(Record { began, ended, did });
            }
            504 => {
                let did = Did::InDoubt { key: last.key.clone(), value: None };
                records.push(Record { began, ended, did });
            }
            // Nothing of it can be seen in the history.
            404 | 409 | 503 => {}
            code => panic!("{code}: {}", String::from_utf8_lossy(&answer.body)),
        }
    }

    /// Random reads.
    pub async fn read_on(self: Arc<Self>, seed: u64) -> Vec<Record> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut records = Vec::new();
        for _ in 0..READS {
            let newest = self.newest.load(Ordering::SeqCst);
            let at = newest.saturating_sub(rng.random_range(0..4));
            let asked = match rng.random_range(0..6) {
                0..=1 => Asked::Newest,
                2 => Asked::Any,
                3 => Asked::NotOlderThan(at),
                _ => Asked::Exact(at),
            };
            let (select, limit) = (selection(&mut rng), rng.random_range(0..3));
            if let Some(record) = self.list(&mut rng, select, asked, limit).await {
                records.push(record);
            }
        }
        records
    }

    /// One list, page by page, each page from any server. `None`: it came too late, or the store
    /// is away.
    async fn list(
        &self,
        rng: &mut StdRng,
        select: Selection,
        asked: Asked,
        limit: usize,
    ) -> Option<Record> {
        let version = match asked {
            Asked::Newest => String::new(),
            Asked::Any => "&resourceVersion=0".to_owned(),
            Asked::NotOlderThan(at) => {
                format!("&resourceVersion={at}&resourceVersionMatch=NotOlderThan")
            }
            Asked::Exact(at) => format!("&resourceVersion={at}&resourceVersionMatch=Exact"),
        };
        let path = format!("{}&limit={limit}", query(&select));
        let began = self.tick();
        let (mut next, mut items, mut at) = (version, Vec::new(), None);
        loop {
            let answer = self.any(rng).get(&format!("{path}{next}")).await;
            if answer.code == 410 {
                // A list under way is told how to go on.
                if at.is_some() {
                    let token = answer.json()["metadata"]["continue"].clone();
                    let token = token.as_str().expect("a token");
                    let rest = self.any(rng).get(&format!("{path}&continue={token}")).await;
                    assert!(matches!(rest.code, 200 | 503 | 504), "{rest:?}");
                }
                return None;
            }
            if matches!(answer.code, 503 | 504) {
                tokio::time::sleep(PAUSE).await;
                return None;
            }
            let page = answer.expect(200);
            items.extend(page["items"].as_array().expect("items").iter().map(item));
            let same = *at.get_or_insert(revision(&page)) == revision(&page);
            assert!(same, "pages of {path} do not share one state");
            match page["metadata"]["continue"].as_str() {
                Some(token) => next = format!("&continue={token}"),
                None => break,
            }
        }
        let revision = at?;
        if asked == Asked::Newest {
            self.newest.fetch_max(revision, Ordering::SeqCst);
        }
        let did = Did::Listed { select, asked, revision, items };
        Some(Record { began, ended: self.tick(), did })
    }

    /// Waits until so much has been written since the beginning.
    pub async fn wait_for_writes(&self, n: u64) {
        let start = self.newest.load(Ordering::SeqCst);
        while self.newest.load(Ordering::SeqCst) < start + n {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Forgets history close behind those who read, again and again.
    pub async fn compact_on(self: Arc<Self>, store: SharedStore) {
        loop {
            let newest = self.newest.load(Ordering::SeqCst);
            match store.compact(newest - 1).await {
                Ok(()) | Err(StoreError::Compacted { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes that every watch waits for.
    pub async fn finish(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (namespace, color) in sentinels() {
            let name = format!("end-{color}");
            let key = format!("{namespace}/{name}");
            let new = object(&name, color, &key);
            let path = maps(namespace);
            let done = self.servers[0].post(&path, &new);
            self.wrote(&mut records, &key, &key, Some(0), done).await;
        }
        records
    }

    /// Everything that happened after a revision.
    pub async fn changes_since(&self, start: Revision) -> Vec<(Kind, Item)> {
        let mut rng = StdRng::seed_from_u64(0);
        let select = Selection::default();
        let seen = self.watch(&mut rng, &select, Some(start), Ending::Sentinels).await;
        let event = |seen| match seen {
            Seen::Event(kind, item) => Some((kind, item)),
            _ => None,
        };
        seen.expect("history").into_iter().filter_map(event).collect()
    }

    /// Watches from a list, from the state as events, or from the start, until the end.
    pub async fn watch_on(self: Arc<Self>, seed: u64, start: Revision) -> Vec<Record> {
        let mut rng = StdRng::seed_from_u64(seed);
        let select = selection(&mut rng);
        loop {
            let mut records = Vec::new();
            let began = self.tick();
            let from = match seed % 3 {
                0 => Some(start),
                1 => None,
                _ => {
                    let listed = self.list(&mut rng, select.clone(), Asked::Newest, 0).await;
                    records.extend(listed);
                    match records.last().map(|record| &record.did) {
                        Some(Did::Listed { revision, .. }) => Some(*revision),
                        _ => continue,
                    }
                }
            };
            if let Some(seen) = self.watch(&mut rng, &select, from, Ending::Sentinels).await {
                let did = Did::Watched { select, from, seen };
                records.push(Record { began, ended: self.tick(), did });
                return records;
            }
        }
    }

    /// A watch over as many connections as it takes, each to any server. `None`: it came too
    /// late, and must begin anew.
    pub async fn watch(
        &self,
        rng: &mut StdRng,
        select: &Selection,
        from: Option<Revision>,
        ending: Ending,
    ) -> Option<Vec<Seen>> {
        let (goal, sentinel) = (self.newest.load(Ordering::SeqCst), last_sentinel(select));
        let (mut seen, mut whole) = (Vec::new(), from.is_some());
        loop {
            let known = reached(&seen).or(from).map(|at| at.to_string());
            let how = match known {
                Some(at) => format!("resourceVersion={at}"),
                None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
            };
            // Short ones end in a bookmark.
            let seconds = if rng.random_bool(0.5) { 3 } else { 60 };
            let path = format!(
                "{}&watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&{how}",
                query(select)
            );
            let Some(mut watch) = self.any(rng).try_watch(&path).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            while let Some(event) = watch.next().await {
                let one = match told(&event) {
                    Ok(one) => one,
                    Err(410) => return None,
                    // The server is too far behind.
                    Err(504) => break,
                    Err(code) => panic!("{code}: {event}"),
                };
                let all = match (&one, ending) {
                    (Seen::Event(_, item), Ending::Sentinels) => item.key == sentinel,
                    (Seen::Event(_, item), Ending::Reached) => item.revision >= goal,
                    _ => false,
                };
                whole |= matches!(one, Seen::InitialEnd(_));
                seen.push(one);
                if all && whole {
                    return Some(seen);
                }
                // Connections break, and the next one may be to a server that is behind.
                if whole && rng.random_bool(0.1) {
                    break;
                }
            }
            // Cut off in the midst of the initial events, a client must begin anew.
            if !whole {
                return None;
            }
        }
    }
}
