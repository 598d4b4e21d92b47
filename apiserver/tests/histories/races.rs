//! What nobody may lose and only one can have, when many clients ask two servers on one store at
//! once: fields, finalizers, nodes of pods, addresses and ports of services, quota.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::common::{Answer, Fixture};
use super::engines::{self, Engine};
use super::late::Late;

const CLIENTS: usize = 6;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";

type Servers = Arc<[Fixture; 2]>;

/// Two servers on one store, of which one is behind.
async fn two() -> (Engine, Servers) {
    let engine = engines::embedded();
    let late = Arc::new(Late::new(engine.store.clone()));
    let servers = [Fixture::on(engine.store.clone()).await, Fixture::on(late).await];
    (engine, Arc::new(servers))
}

/// Runs a client for each number at once.
async fn at_once<T, F>(servers: &Servers, client: impl Fn(Servers, usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let running = (0..CLIENTS).map(|n| tokio::spawn(client(servers.clone(), n)));
    join_all(running).await.into_iter().map(|done| done.expect("a client")).collect()
}

async fn apply(server: &Fixture, manager: &str, data: Value) -> Answer {
    let path = format!("{MAPS}/shared?fieldManager={manager}&force=true");
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": "shared"}});
    server.patch(&path, "apply-patch+yaml", &config).await
}

/// Writes a field of its own again and again, and takes one that the others take, too.
async fn own_a_field(servers: Servers, n: usize) -> String {
    let (field, path) = (format!("own-{n}"), format!("{MAPS}/shared"));
    let mut last = String::new();
    for round in 0..12 {
        let (server, other) = (&servers[round % 2], &servers[(round + 1) % 2]);
        let value = format!("{n}-{round}");
        loop {
            let answer = match n % 3 {
                0 => apply(server, &field, json!({&field: value})).await,
                1 => {
                    let patch = json!({"data": {&field: value}});
                    server.patch(&path, "merge-patch+json", &patch).await
                }
                _ => {
                    let add =
                        json!({"op": "add", "path": format!("/data/{field}"), "value": value});
                    server.patch(&path, "json-patch+json", &json!([add])).await
                }
            };
            // A server may give up when others are always faster.
            if answer.code != 409 {
                assert_eq!(answer.expect(200)["data"][&field], *value);
                break;
            }
        }
        let seen = other.get(&path).await.expect(200);
        assert_eq!(seen["data"][&field], *value, "what was acknowledged is gone: {seen}");
        let taker = format!("taker-{n}");
        while apply(server, &taker, json!({"contested": taker})).await.code == 409 {}
        last = value;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_of_fields_lose_nothing_to_each_other() {
    let (_engine, servers) = two().await;
    let new = json!({"metadata": {"name": "shared"}, "data": {"there": "already"}});
    servers[0].post(MAPS, &new).await.expect(201);
    let last = at_once(&servers, own_a_field).await;
    let end = servers[1].get(&format!("{MAPS}/shared")).await.expect(200);
    for (n, value) in last.iter().enumerate() {
        assert_eq!(end["data"][format!("own-{n}")], **value);
    }
    assert_eq!(end["data"]["there"], "already");
    let entries = end["metadata"]["managedFields"].as_array().expect("managers");
    let owners = |field: &str| -> Vec<&Value> {
        let field = format!("f:{field}");
        let owns = |entry: &&Value| entry["fieldsV1"]["f:data"].get(&field).is_some();
        entries.iter().filter(owns).map(|entry| &entry["manager"]).collect()
    };
    assert_eq!(owners("contested"), [&end["data"]["contested"]], "of {entries:#?}");
    for n in (0..CLIENTS).step_by(3) {
        assert_eq!(owners(&format!("own-{n}")), [&json!(format!("own-{n}"))]);
    }
}

/// Holds an object by a finalizer of its own while it is deleted by others. Gives how often.
async fn hold_by_a_finalizer(servers: Servers, n: usize) -> usize {
    let mut rng = StdRng::seed_from_u64(n as u64);
    let mut held = 0;
    for round in 0..20 {
        let name = ["a", "b"][rng.random_range(0..2)];
        let path = format!("{MAPS}/{name}");
        let mut any = || &servers[rng.random_range(0..2)];
        let mine = format!("test.example/{n}-{round}");
        // It is there already, or goes at once.
        let created = any().post(MAPS, &json!({"metadata": {"name": name}})).await;
        assert!(matches!(created.code, 201 | 409), "{created:?}");
        let add = json!({"metadata": {"finalizers": [mine]}});
        let added = any().patch(&path, "strategic-merge-patch+json", &add).await;
        // It was gone, or is being deleted already and takes no more; or others were faster.
        if matches!(added.code, 404 | 409 | 422) {
            continue;
        }
        let uid = added.expect(200)["metadata"]["uid"].clone();
        for _ in 0..2 {
            let deleted = any().delete(&path).await;
            assert!(matches!(deleted.code, 200 | 409), "{deleted:?}");
            let seen = any().get(&path).await.expect(200);
            let finalizers = seen["metadata"]["finalizers"].as_array().expect("finalizers");
            assert!(seen["metadata"]["uid"] == uid && finalizers.contains(&json!(mine)), "{seen}");
        }
        held += 1;
        let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [mine]}});
        loop {
            let removed = any().patch(&path, "strategic-merge-patch+json", &remove).await;
            if removed.code != 409 {
                removed.expect(200);
                break;
            }
        }
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_while_somebody_holds_it_by_a_finalizer() {
    let (_engine, servers) = two().await;
    let held = at_once(&servers, hold_by_a_finalizer).await;
    assert!(held.iter().sum::<usize>() >= CLIENTS, "too little was held to tell: {held:?}");
    for name in ["a", "b"] {
        // Nobody holds what is left, if it is left.
        let path = format!("{MAPS}/{name}");
        servers[0].delete(&path).await;
        assert_eq!(servers[1].get(&path).await.code, 404);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_bound_to_one_node() {
    let (_engine, servers) = two().await;
    let pods = "/api/v1/namespaces/default/pods";
    for round in 0..8 {
        let name = format!("pod-{round}");
        let pod = json!({"metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        servers[round % 2].post(pods, &pod).await.expect(201);
        let codes = at_once(&servers, |servers, n| {
            let path = format!("{pods}/{name}/binding");
            let binding = json!({"apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name}, "target": {"kind": "Node", "name": format!("node-{n}")}});
            async move { servers[n % 2].post(&path, &binding).await.code }
        });
        let codes = codes.await;
        let won: Vec<usize> = (0..CLIENTS).filter(|n| codes[*n] == 201).collect();
        let lost = codes.iter().filter(|code| **code == 409).count();
        assert!(won.len() == 1 && lost == CLIENTS - 1, "{codes:?}");
        let bound = servers[0].get(&format!("{pods}/{name}")).await.expect(200);
        assert_eq!(bound["spec"]["nodeName"], format!("node-{}", won[0]));
    }
}

/// Makes and deletes services that ask for few addresses and ports.
async fn serve(servers: Servers, n: usize) -> [usize; 2] {
    let mut rng = StdRng::seed_from_u64(n as u64);
    let (mut granted, mut refused) = (0, 0);
    for round in 0..15 {
        let name = format!("s-{n}-{round}");
        let mut service = json!({"metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        if rng.random_bool(0.6) {
            service["spec"]["clusterIP"] = format!("10.96.0.{}", rng.random_range(20..23)).into();
        }
        if rng.random_bool(0.6) {
            service["spec"]["ports"][0]["nodePort"] = rng.random_range(30000..30003).into();
        }
        let (first, second) = (rng.random_range(0..2), rng.random_range(0..2));
        let created = servers[first].post(SERVICES, &service).await;
        if created.code == 422 {
            refused += 1;
            continue;
        }
        created.expect(201);
        granted += 1;
        if rng.random_bool(0.9) {
            let path = format!("{SERVICES}/{name}");
            if rng.random_bool(0.5) {
                // Gives up what it has in another way.
                let change = json!({"spec": {"type": "ExternalName", "externalName": "a.example",
                    "clusterIP": "", "clusterIPs": null}});
                servers[second].patch(&path, "merge-patch+json", &change).await.expect(200);
            }
            servers[second].delete(&path).await.expect(200);
        }
    }
    [granted, refused]
}

/// What services have, by address or port.
fn grants(service: &Value) -> Vec<String> {
    let ip = service["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty());
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|port| port["nodePort"].as_u64());
    ip.map(str::to_owned).into_iter().chain(ports.map(|port| port.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_or_port_is_granted_twice() {
    let (_engine, servers) = two().await;
    let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut watch = servers[0].watch(&format!("/api/v1/services?{initial}")).await;
    let counts = at_once(&servers, serve).await;
    for at in [0, 1] {
        assert!(counts.iter().map(|c| c[at]).sum::<usize>() >= CLIENTS, "too little: {counts:?}");
    }
    let end = json!({"metadata": {"name": "end"}, "spec": {"ports": [{"port": 80}]}});
    servers[0].post(SERVICES, &end).await.expect(201);
    let mut have = BTreeMap::new();
    loop {
        let event = watch.next().await.expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or("").to_owned();
        have.insert(name.clone(), grants(&event["object"]));
        if event["type"] == "DELETED" {
            have.remove(&name);
        }
        let all: Vec<&String> = have.values().flatten().collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), distinct.len(), "granted twice: {have:?}");
        if name == "end" {
            break;
        }
    }
    // What is written down as taken is what services have.
    let addresses = "/apis/networking.k8s.io/v1/ipaddresses";
    let list = servers[0].get(addresses).await.expect(200);
    let items = list["items"].as_array().expect("items").iter();
    let taken: BTreeSet<&str> = items.filter_map(|a| a["metadata"]["name"].as_str()).collect();
    let had = have.values().flatten().map(String::as_str).filter(|grant| grant.contains('.'));
    assert_eq!(taken, had.collect());
    for port in 30000..30003 {
        let free = !have.values().flatten().any(|grant| *grant == port.to_string());
        let service = json!({"metadata": {"name": format!("again-{port}")},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
        let code = servers[1].post(SERVICES, &service).await.code;
        assert_eq!(code, if free { 201 } else { 422 }, "{port} of {have:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_made_than_the_quota_has() {
    const HARD: usize = 40;
    let (_engine, servers) = two().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"configmaps": HARD.to_string()});
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    let mut quota = servers[0].post(quotas, &quota).await.expect(201);
    quota["status"] = json!({"hard": hard, "used": {"configmaps": "0"}});
    servers[0].put(&format!("{quotas}/q/status"), &quota).await.expect(200);
    let made = at_once(&servers, |servers, n| async move {
        let mut made = 0;
        for round in 0..12 {
            let map = json!({"metadata": {"name": format!("m-{n}-{round}")}});
            match servers[(n + round) % 2].post(MAPS, &map).await.code {
                201 => made += 1,
                code => assert_eq!(code, 403),
            }
        }
        made
    });
    let made: usize = made.await.into_iter().sum();
    let list = servers[0].get(MAPS).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(made));
    let used = servers[1].get(&format!("{quotas}/q")).await.expect(200);
    assert_eq!(used["status"]["used"]["configmaps"], made.to_string());
    assert_eq!(made, HARD);
}
