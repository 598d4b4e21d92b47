use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::Registry;
use store::{Expect, Outcome, Store, embedded};

use super::*;

fn codec() -> Codec {
    let registry = Registry::builtin();
    let message =
        registry.kind(&GroupVersionKind::new("", "v1", "ConfigMap")).expect("a known kind");
    Codec {
        schema: Some((registry, message)),
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        custom: None,
        fields: vec![crate::registry::SelectableField {
            label: "color",
            get: |o| apimachinery::object::str_at(o, &["data", "color"]).into(),
        }],
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    store: Arc<embedded::Embedded>,
    cache: Arc<Cache>,
    stop: CancellationToken,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = embedded::Embedded::open(dir.path().join("db"), Default::default());
        let store = store.expect("a store");
        let cache = Cache::new(store.clone(), "/registry/configmaps/".into(), codec());
        let stop = CancellationToken::new();
        tokio::spawn(cache.clone().run(stop.clone()));
        cache.wait_ready(Duration::from_secs(5)).await.expect("ready");
        Self { _dir: dir, store, cache, stop }
    }

    async fn put(&self, key: &str, color: &str, expect: Expect) -> u64 {
        let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": key, "labels": {"color": color}}, "data": {"color": color}});
        let (registry, message) = codec().schema.expect("a schema");
        let schema = apimachinery::codec::Schema { registry, message };
        let bytes = apimachinery::codec::proto::encode_enveloped(schema, &object);
        let outcome = self
            .store
            .put(self.cache.store_key(key), bytes.expect("bytes").into(), expect, None)
            .await;
        let Ok(Outcome::Done(revision)) = outcome else { panic!("{outcome:?}") };
        self.cache.wait_for(revision, Duration::from_secs(5)).await.expect("to get there");
        revision
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn red(codec: &Codec) -> impl Fn(&Cached) -> bool + '_ {
    |o| o.index(codec).is_ok_and(|i| i.label("color") == Some("red"))
}

#[tokio::test]
async fn watchers_see_what_their_selector_makes_of_events() {
    let f = Fixture::new().await;
    let scope = Scope::Field(0, "red".into());
    let (cut, mut watcher) = f.cache.watch_from_now(scope.clone());
    let one = f.put("ns/a", "red", Expect::Absent).await;
    let two = f.put("ns/a", "blue", Expect::At(one)).await;
    f.put("ns/b", "blue", Expect::Absent).await;
    let three = f.put("ns/a", "red", Expect::At(two)).await;
    let outcome = f.store.delete(f.cache.store_key("ns/a"), three).await;
    let Ok(Outcome::Done(four)) = outcome else { panic!("{outcome:?}") };
    f.cache.wait_for(four, Duration::from_secs(5)).await.expect("to get there");

    let mut resumed = f.cache.watch_from(scope, cut.revision).expect("a watch");
    for watcher in [&mut watcher, &mut resumed] {
        let mut seen = Vec::new();
        while let Some(event) = watcher.ready() {
            let (kind, object) = event.seen(red(&f.cache.codec)).expect("in scope");
            let json = object.json(&f.cache.codec).expect("JSON");
            let value: apimachinery::Value = serde_json::from_slice(&json).expect("JSON");
            assert_eq!(value["metadata"]["resourceVersion"], event.revision().to_string());
            seen.push((kind, event.revision(), value["data"]["color"].clone()));
        }
        let red = || apimachinery::Value::from("red");
        let want = [
            (EventType::Added, one, red()),
            (EventType::Deleted, two, red()),
            (EventType::Added, three, red()),
            (EventType::Deleted, four, red()),
        ];
        assert_eq!(seen, want);
    }
}

#[tokio::test]
async fn cuts_stay_as_they_were() {
    let f = Fixture::new().await;
    let one = f.put("ns/a", "red", Expect::Absent).await;
    let cut = f.cache.cut();
    f.cache.remember(&cut, false);
    let two = f.put("ns/b", "red", Expect::Absent).await;
    assert_eq!(f.cache.cut_at(one, "").map(|c| c.objects.len()), Some(1));
    assert_eq!(f.cache.cut_at(two, "").map(|c| c.objects.len()), Some(2));
    let behind = f.cache.wait_for(two + 100, Duration::from_millis(50)).await;
    assert_eq!(behind, Err(CacheError::Behind { asked: two + 100, current: two }));
}

#[tokio::test]
async fn a_slow_watcher_is_closed_and_never_skipped() {
    let f = Fixture::new().await;
    let (_, mut watcher) = f.cache.watch_from_now(Scope::All);
    let mut revision = f.put("ns/a", "red", Expect::Absent).await;
    let first = revision;
    for _ in 0..1100 {
        let event = Event::put(Arc::new(Cached::new("ns/a", revision, 1, Bytes::new())), None);
        f.cache.state.write().watchers.deliver(&Arc::new(event), &f.cache.codec);
        revision += 1;
    }
    let mut got = 0;
    while let Some(event) = watcher.next().await {
        assert!(event.revision() >= first);
        got += 1;
    }
    assert_eq!(got, 1024);
}

#[tokio::test]
async fn a_watch_from_what_is_yet_to_come_sees_only_what_comes_after() {
    let f = Fixture::new().await;
    let one = f.put("ns/a", "red", Expect::Absent).await;
    // The client has read up to two revisions on from another server.
    let mut ahead = f.cache.watch_from(Scope::All, one + 2).expect("a watch");
    let mut now = f.cache.watch_from(Scope::All, one).expect("a watch");
    let two = f.put("ns/a", "blue", Expect::At(one)).await;
    let three = f.put("ns/a", "red", Expect::At(two)).await;
    let four = f.put("ns/a", "blue", Expect::At(three)).await;
    let seen = |watcher: &mut Watcher| -> Vec<u64> {
        std::iter::from_fn(|| watcher.ready()).map(|event| event.revision()).collect()
    };
    assert_eq!(seen(&mut ahead), [four]);
    assert_eq!(seen(&mut now), [two, three, four]);
}

#[tokio::test]
async fn what_waits_for_a_watcher_is_bounded_in_bytes() {
    let f = Fixture::new().await;
    let (_, mut watcher) = f.cache.watch_from_now(Scope::All);
    let large = Bytes::from(vec![b'x'; 6 << 20]);
    for revision in 100..110 {
        let object = Cached::new("ns/a", revision, 100, large.clone());
        let event = Arc::new(Event::put(Arc::new(object), None));
        f.cache.state.write().watchers.deliver(&event, &f.cache.codec);
        // One that reads is not closed, whatever passes through.
        if revision < 105 {
            assert_eq!(watcher.ready().map(|e| e.revision()), Some(revision));
        }
    }
    let mut got = Vec::new();
    while let Some(event) = watcher.next().await {
        got.push(event.revision());
    }
    assert_eq!(got, [105, 106], "what comes after is not skipped, the watch ends");
}

#[tokio::test]
async fn history_goes_when_its_time_has_passed_though_nothing_happens() {
    let f = Fixture::new().await;
    let mut at = f.put("ns/a", "red", Expect::Absent).await;
    for _ in 0..MIN_EVENTS {
        at = f.put("ns/a", "red", Expect::At(at)).await;
    }
    let held = || f.cache.state.read().ring.len();
    f.cache.tidy(Instant::now());
    assert_eq!(held(), MIN_EVENTS + 1);
    f.cache.tidy(Instant::now() + KEEP_EVENTS);
    assert_eq!(held(), MIN_EVENTS);
}

#[tokio::test]
async fn a_cache_that_differs_from_the_store_begins_anew() {
    let f = Fixture::new().await;
    let one = f.put("ns/a", "red", Expect::Absent).await;
    f.put("ns/b", "red", Expect::Absent).await;
    assert!(!f.cache.is_wrong().await);
    let lost = f.cache.state.write().objects.remove("ns/a");
    assert_eq!(lost.map(|object| object.revision), Some(one));
    let (_, mut watcher) = f.cache.watch_from_now(Scope::All);
    tokio::time::pause();
    tokio::time::advance(2 * check::EVERY + TIDY).await;
    tokio::time::resume();
    assert!(watcher.next().await.is_none(), "watchers must list again");
    assert!(f.cache.get("ns/a").is_some());
    assert_eq!(f.cache.checks().counts(), [("success", 1), ("failure", 1), ("error", 0)]);
}

#[tokio::test]
async fn what_was_made_of_objects_goes_when_nobody_asks_for_it() {
    let f = Fixture::new().await;
    let one = f.put("ns/a", "red", Expect::Absent).await;
    let past = f.cache.get("ns/a").expect("an object");
    f.put("ns/a", "blue", Expect::At(one)).await;
    let present = f.cache.get("ns/a").expect("an object");
    let codec = &f.cache.codec;
    let text = present.json(codec).expect("JSON");
    for object in [&past, &present] {
        object.raw(codec).expect("protobuf");
        object.json(codec).expect("JSON");
        object.value(codec).expect("a value");
    }
    let tidy = || f.cache.tidy(Instant::now());
    tidy();
    assert_eq!(present.made(), [true, true, true], "it was asked for since");
    present.json(codec).expect("JSON");
    tidy();
    assert_eq!(present.made(), [false, true, false]);
    assert_eq!(past.made(), [false; 3]);
    tidy();
    assert_eq!(present.made(), [false; 3]);
    assert_eq!(present.json(codec), Ok(text), "made again, the same");
    assert!(red(codec)(&past) && !red(codec)(&present));
}

#[tokio::test]
async fn what_is_made_of_objects_has_a_bound() {
    let f = Fixture::new().await;
    f.put("ns/a", "red", Expect::Absent).await;
    let stored = f.cache.get("ns/a").expect("an object").stored().clone();
    let codec = &f.cache.codec;
    let size = f.cache.get("ns/a").expect("an object").json_line(codec).expect("JSON").len();
    // For two readers, and one more that watches.
    let room: &'static made::Room = Box::leak(Box::new(made::Room::new(size * 3)));
    let object = |key: &str| Cached::within(room, key.into(), 7, 7, stored.clone());
    let objects = ["ns/a", "ns/b", "ns/c", "ns/d"].map(object);
    for (object, (kept, held)) in objects.iter().zip([(true, 1), (true, 2), (false, 2)]) {
        object.json(codec).expect("JSON");
        assert_eq!((object.made()[1], room.held()), (kept, held * size));
    }
    let [first, _, third, last] = &objects;
    let mut out = Vec::new();
    for object in [third, last] {
        let put =
            event::put_frame(EventType::Added, object, Taker::Watchers, false, codec, &mut out);
        assert_eq!(put, Ok(()));
    }
    assert_eq!((third.made()[1], last.made()[1], room.held()), (true, false, 3 * size));
    assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 2, "written all the same");
    (0..2).for_each(|_| first.age());
    assert_eq!(room.held(), 2 * size);
    drop(objects);
    assert_eq!(room.held(), 0);
}

#[tokio::test]
async fn a_transaction_is_delivered_whole_or_not_at_all() {
    let f = Fixture::new().await;
    let mut last = 0;
    for n in 0..10 {
        last = f.put(&format!("ns/{n}"), "red", Expect::Absent).await;
    }
    let (_, mut fast) = f.cache.watch_from_now(Scope::All);
    let (_, mut slow) = f.cache.watch_from_now(Scope::All);
    let one = |revision| store::KeyValue {
        key: f.cache.store_key("ns/one"),
        value: Bytes::new(),
        create_revision: revision,
        mod_revision: revision,
    };
    for _ in 0..1020 {
        last += 1;
        f.cache.apply(last, vec![Change::Put { kv: one(last), previous: None }]);
        assert!(fast.ready().is_some());
    }
    // Keys of one lease end together.
    let ended = (0..10).map(|n| {
        let key = f.cache.store_key(&format!("ns/{n}"));
        Change::Delete { key, revision: last + 1, previous: None }
    });
    f.cache.apply(last + 1, ended.collect());
    let rest = |watcher: &mut Watcher| {
        std::iter::from_fn(|| watcher.ready()).filter(|e| e.revision() > last).count()
    };
    assert_eq!((rest(&mut fast), rest(&mut slow)), (10, 0));
    assert!(slow.is_closed());
}
