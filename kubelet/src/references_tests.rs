//! What is known of what pods refer to, with watches that tests feed and time that they pass.

use serde_json::json;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn keys(names: &[&str]) -> BTreeSet<Key> {
    names.iter().map(|name| Key::new("ns", name)).collect()
}

/// A watch that has begun: its cache, and whether it has ended.
type Begun = (Key, Cache<ConfigMap>, CancellationToken);

struct Scene {
    objects: Objects<ConfigMap>,
    begun: Arc<Mutex<Vec<Begun>>>,
}

impl Scene {
    fn new(strategy: Strategy) -> Self {
        let begun: Arc<Mutex<Vec<Begun>>> = Arc::default();
        let log = Arc::clone(&begun);
        let start = move |key: &Key| {
            let (cache, until) = (Cache::detached(), CancellationToken::new());
            log.lock().push((key.clone(), cache.clone(), until.clone()));
            Watched { cache, _until: Some(until.drop_guard()) }
        };
        let start: Option<Start<ConfigMap>> = Some(Box::new(start));
        let objects = Objects { strategy, client: None, start, table: Mutex::default() };
        Self { objects, begun }
    }

    fn register(&self, pod: &str, names: &[&str]) {
        self.objects.register(pod, keys(names));
    }

    /// The watches that go on.
    fn watched(&self) -> Vec<String> {
        let begun = self.begun.lock();
        let live = begun.iter().filter(|(_, _, until)| !until.is_cancelled());
        live.map(|(key, ..)| key.name.clone()).collect()
    }

    /// What the last watch of a name has told.
    fn tell(&self, name: &str, map: Option<serde_json::Value>) {
        let begun = self.begun.lock();
        let (key, cache, _) = begun.iter().rfind(|(key, ..)| key.name == name).unwrap();
        let map = map.map(|map| (key.clone(), Arc::new(serde_json::from_value(map).unwrap())));
        cache.replace(map.into_iter().collect());
    }

    async fn get(&self, name: &str) -> Result<String, String> {
        let found = self.objects.get("ns", name, MINUTE).await;
        let value = |map: Arc<ConfigMap>| map.data.as_ref().map(|data| data["k"].clone());
        found.map(|map| value(map).unwrap_or_default()).map_err(|missing| missing.message)
    }

    fn rest(&self) {
        self.objects.table.lock().rest(Instant::now(), 5 * MINUTE);
    }
}

fn map(value: &str) -> Option<serde_json::Value> {
    Some(json!({"metadata": {}, "data": {"k": value}}))
}

#[tokio::test(start_paused = true)]
async fn an_object_is_watched_while_pods_refer_to_it() {
    let scene = Scene::new(Strategy::Watch);
    scene.register("a", &["x", "y"]);
    scene.register("b", &["y", "z"]);
    assert_eq!(scene.watched(), ["x", "y", "z"]);
    scene.register("a", &["x", "y"]);
    scene.register("b", &["z"]);
    assert_eq!(scene.watched(), ["x", "y", "z"]);
    scene.register("a", &["x"]);
    assert_eq!(scene.watched(), ["x", "z"]);
    scene.tell("x", map("1"));
    assert_eq!(scene.get("x").await, Ok("1".to_owned()));
    scene.tell("x", map("2"));
    assert_eq!(scene.get("x").await, Ok("2".to_owned()));
    scene.tell("x", None);
    assert_eq!(scene.get("x").await, Err("configmap \"x\" not found".to_owned()));
    let unsynced = "failed to sync configmap cache: timed out waiting for the condition";
    assert_eq!(scene.get("z").await, Err(unsynced.to_owned()));
    assert_eq!(scene.get("y").await, Err("object \"ns\"/\"y\" not registered".to_owned()));
    for pod in ["a", "b", "b"] {
        scene.objects.table.lock().forget(pod);
    }
    let table = scene.objects.table.lock();
    assert!(table.items.is_empty() && table.pods.is_empty() && scene.watched().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_is_not_watched() {
    let scene = Scene::new(Strategy::Watch);
    scene.register("a", &["env", "unsynced", "volume"]);
    scene.tell("env", map("1"));
    scene.tell("volume", map("1"));
    for _ in 0..6 {
        tokio::time::advance(MINUTE).await;
        assert_eq!(scene.get("volume").await, Ok("1".to_owned()));
        // The pod's turns ask for nothing by themselves.
        scene.register("a", &["env", "unsynced", "volume"]);
        scene.rest();
    }
    assert_eq!(scene.watched(), ["unsynced", "volume"]);
    // Who asks again gets what is there now.
    let asked = async {
        tokio::task::yield_now().await;
        scene.tell("env", map("2"));
    };
    let (got, ()) = tokio::join!(scene.get("env"), asked);
    assert_eq!(got, Ok("2".to_owned()));
    assert_eq!(scene.watched(), ["unsynced", "volume", "env"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_change_is_not_watched() {
    let scene = Scene::new(Strategy::Watch);
    scene.register("a", &["x"]);
    scene.tell("x", map("1"));
    assert_eq!(scene.get("x").await, Ok("1".to_owned()));
    assert_eq!(scene.watched(), ["x"]);
    scene.tell("x", Some(json!({"metadata": {}, "data": {"k": "2"}, "immutable": true})));
    for _ in 0..2 {
        assert_eq!(scene.get("x").await, Ok("2".to_owned()));
        assert!(scene.watched().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn watches_are_bounded() {
    let scene = Scene::new(Strategy::Watch);
    let names: Vec<String> = (0..=WATCHES).map(|i| format!("{i:04}")).collect();
    scene.register("a", &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(scene.watched().len(), WATCHES);
    // It is read instead.
    let last = format!("{WATCHES:04}");
    assert_eq!(scene.get(&last).await, Err("the kubelet has no API server".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_will_do_for_a_while() {
    let scene = Scene::new(Strategy::Cache);
    scene.register("a", &["x"]);
    let object = Arc::new(ConfigMap::default());
    let state = State::Read { at: Instant::now(), object };
    scene.objects.table.lock().set(&Key::new("ns", "x"), state);
    assert_eq!(scene.get("x").await, Ok(String::new()));
    tokio::time::advance(MINUTE).await;
    assert_eq!(scene.get("x").await, Err("the kubelet has no API server".to_owned()));
    assert!(scene.watched().is_empty());
}

#[test]
fn a_node_says_how_long_what_was_read_will_do() {
    for (annotations, want) in [
        (json!(null), 60),
        (json!({}), 60),
        (json!({"node.alpha.kubernetes.io/ttl": "0"}), 0),
        (json!({"node.alpha.kubernetes.io/ttl": "300"}), 300),
        (json!({"node.alpha.kubernetes.io/ttl": "soon"}), 60),
    ] {
        let node = json!({"metadata": {"annotations": annotations}});
        let node: Node = serde_json::from_value(node).unwrap();
        assert_eq!(ttl(Some(&node)).as_secs(), want, "{annotations}");
    }
    assert_eq!(ttl(None).as_secs(), 60);
}

#[test]
fn all_that_a_pod_refers_to_is_found() {
    let from = |map: &str, secret: &str| {
        json!({"name": map, "envFrom": [{"configMapRef": {"name": map}}], "env": [
            {"name": "e", "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}}]})
    };
    let pod = json!({"metadata": {"namespace": "ns", "uid": "u"}, "spec": {
        "containers": [from("c", "cs")],
        "initContainers": [from("i", "is")],
        "ephemeralContainers": [from("e", "es")],
        "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
        "volumes": [
            {"name": "a", "configMap": {"name": "v"}},
            {"name": "b", "secret": {"secretName": "vs"}},
            {"name": "c", "projected": {"sources": [
                {"configMap": {"name": "p"}}, {"secret": {"name": "ps"}}, {"configMap": {"name": "c"}}]}},
            {"name": "d", "emptyDir": {}},
        ],
    }});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let (maps, secrets) = referred(&pod);
    assert_eq!(maps, keys(&["c", "e", "i", "p", "v"]));
    assert_eq!(secrets, keys(&["cs", "es", "is", "ps", "pull", "vs"]));
}
