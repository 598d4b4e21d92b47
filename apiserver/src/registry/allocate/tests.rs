//! Grants to services, with the ledger in memory: what is taken, kept and released.

use std::collections::BTreeSet;

use futures::executor::block_on;
use parking_lot::Mutex;
use serde_json::json;

use super::ledger::Bits;
use super::*;
use crate::registry::kinds::corpus_context as context;

/// The contract of ledgers, in a few lines.
#[derive(Default)]
pub(crate) struct MemoryLedger {
    addresses: Mutex<BTreeSet<IpAddr>>,
    ports: Mutex<BTreeSet<u16>>,
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn take_address(&self, ip: IpAddr, _: &Value, _: jiff::Timestamp) -> Result<(), Refused> {
        self.addresses.lock().insert(ip).then_some(()).ok_or(Refused::Taken)
    }

    async fn take_port(&self, _: &PortRange, port: u16) -> Result<(), Refused> {
        self.ports.lock().insert(port).then_some(()).ok_or(Refused::Taken)
    }

    async fn take_any_port(
        &self,
        range: &PortRange,
        random: &(dyn Fn(u64) -> u64 + Send + Sync),
    ) -> Result<u16, Refused> {
        let mut ports = self.ports.lock();
        range.candidates(&random).find(|p| ports.insert(*p)).ok_or(Refused::Full)
    }

    async fn release(&self, grant: Grant) -> Result<(), Refused> {
        match grant {
            Grant::Address(ip) => self.addresses.lock().remove(&ip),
            Grant::Port(port) => self.ports.lock().remove(&port),
        };
        Ok(())
    }
}

fn allocator(range: &str) -> (Arc<MemoryLedger>, ServiceAllocator) {
    let ledger = Arc::new(MemoryLedger::default());
    let range = AddressRange::new(range.parse().unwrap());
    let ports = PortRange::new(30000, 30003);
    (ledger.clone(), ServiceAllocator::new(ledger, vec![range], ports, |_| 0))
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})
}

fn ports(service: &Value) -> Vec<i64> {
    node_ports(service)
}

#[test]
fn a_service_is_granted_what_its_type_needs() {
    for (spec, ip, node_ports, taken) in [
        (json!({"type": "ClusterIP"}), "10.0.0.1", vec![], 1),
        (json!({"type": "ClusterIP", "clusterIP": "10.0.0.9"}), "10.0.0.9", vec![], 1),
        (json!({"type": "ClusterIP", "clusterIP": "None"}), "None", vec![], 0),
        (json!({"type": "ExternalName"}), "", vec![], 0),
        (json!({"type": "NodePort", "ports": [{"port": 80}]}), "10.0.0.1", vec![30000], 2),
        (
            json!({"type": "NodePort", "ports": [
                {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 54},
            ]}),
            "10.0.0.1",
            vec![30000, 30000, 30001],
            3,
        ),
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 80}],
                "allocateLoadBalancerNodePorts": false}),
            "10.0.0.1",
            vec![],
            1,
        ),
    ] {
        let (_, allocator) = allocator("10.0.0.0/28");
        let mut object = service(spec.clone());
        let reservation = block_on(allocator.create(&context(), &mut object, false)).unwrap();
        assert_eq!(object::str_at(&object, &["spec", "clusterIP"]), ip, "{spec}");
        assert_eq!(ports(&object), node_ports, "{spec}");
        assert_eq!(reservation.taken().len(), taken, "{spec}");
    }
}

#[test]
fn nothing_is_granted_twice_and_refused_writes_give_back() {
    let (ledger, allocator) = allocator("10.0.0.0/29");
    let create = |spec: Value| {
        let mut object = service(spec);
        block_on(allocator.create(&context(), &mut object, false)).map(|r| (object, r))
    };
    let (first, reservation) = create(json!({"type": "NodePort", "ports": [
        {"port": 80, "nodePort": 30002}]}))
    .unwrap();
    block_on(reservation.commit());
    // The address is taken already, and the port that came with it goes back.
    let error = create(json!({"type": "NodePort", "clusterIP": "10.0.0.5", "ports": [
        {"port": 80, "nodePort": 30002}]}))
    .err()
    .unwrap();
    assert_eq!(
        error.to_string(),
        "Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 30002: provided port is \
         already allocated"
    );
    assert_eq!(ledger.addresses.lock().len(), 1);
    let mut granted = BTreeSet::from([object::str_at(&first, &["spec", "clusterIP"]).to_owned()]);
    while let Ok((object, reservation)) = create(json!({"type": "ClusterIP"})) {
        let new = granted.insert(object::str_at(&object, &["spec", "clusterIP"]).to_owned());
        assert!(new, "granted twice");
        block_on(reservation.commit());
    }
    // Eight addresses, less the network's and the broadcast.
    assert_eq!(granted.len(), 6);
    block_on(allocator.deleted(&first));
    assert!(create(json!({"type": "ClusterIP"})).is_ok());
}

#[test]
fn updates_keep_what_was_granted_and_release_the_rest() {
    let (ledger, allocator) = allocator("10.0.0.0/28");
    let mut old = service(json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}]}));
    block_on(block_on(allocator.create(&context(), &mut old, false)).unwrap().commit());
    let mut new = service(json!({"type": "NodePort", "ports": [
        {"name": "a", "port": 80}, {"name": "b", "port": 81}]}));
    block_on(block_on(allocator.update(&context(), &mut new, &old, false)).unwrap().commit());
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert_eq!(ports(&new), [30000, 30001]);
    let mut inside = service(json!({"type": "ClusterIP", "ports": [{"name": "a", "port": 80}]}));
    block_on(block_on(allocator.update(&context(), &mut inside, &new, false)).unwrap().commit());
    assert!(ledger.ports.lock().is_empty());
    assert_eq!(ledger.addresses.lock().len(), 1);
    let mut outside = service(json!({"type": "ExternalName", "externalName": "x.example"}));
    block_on(
        block_on(allocator.update(&context(), &mut outside, &inside, false)).unwrap().commit(),
    );
    assert!(ledger.addresses.lock().is_empty());
}

#[test]
fn candidates_are_all_addresses_once_the_reserved_ones_last() {
    let range = AddressRange::new("10.0.0.0/24".parse().unwrap());
    let all: Vec<IpAddr> = range.candidates(&|_| 5).collect();
    assert_eq!(all.len(), 254);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 254);
    assert_eq!(all[0].to_string(), "10.0.0.22");
    assert_eq!(all[253].to_string(), "10.0.0.5");
    assert!(all.iter().all(|ip| range.grants(*ip)));
}

#[test]
fn bits_are_upstreams_big_integer() {
    let range = PortRange::new(30000, 32767);
    let mut bits = Bits::of(&json!({}), &range).unwrap();
    assert!(bits.set(0) && bits.set(9) && !bits.set(9));
    assert_eq!(bits.to_bytes(), [2, 1]);
    let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [2, 1]);
    let object = json!({"range": "30000-32767", "data": data});
    let mut again = Bits::of(&object, &range).unwrap();
    assert!(again.clear(9) && !again.clear(9) && again.clear(0));
    assert!(again.to_bytes().is_empty());
    assert!(Bits::of(&object, &PortRange::new(1, 9)).is_err());
}

/// Two servers on one store: whoever asks, each address and port goes to one service.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_on_one_store_grant_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store: store::SharedStore =
        store::embedded::Embedded::open(folder.path().join("db"), Default::default()).unwrap();
    let schemas = apimachinery::schema::Registry::builtin();
    let ports = PortRange::new(30000, 30063);
    let server = || {
        let ledger = StoreLedger::new(store.clone(), "/registry/", schemas, ports).unwrap();
        let range = AddressRange::new("10.0.0.0/26".parse().unwrap());
        Arc::new(ServiceAllocator::new(ledger, vec![range], ports, |n| n / 2))
    };
    let servers = [server(), server()];
    let mut writes = tokio::task::JoinSet::new();
    for i in 0..60 {
        let server = servers[i % 2].clone();
        writes.spawn(async move {
            let mut object = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
            set(&mut object, &["metadata", "name"], format!("s{i}"));
            let reservation = server.create(&context(), &mut object, false).await.unwrap();
            // A write in three is refused after all.
            if i % 3 == 0 {
                reservation.abandon().await;
                return None;
            }
            reservation.commit().await;
            Some(object)
        });
    }
    let (mut ips, mut taken, mut stored) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for object in writes.join_all().await.into_iter().flatten() {
        assert!(ips.insert(object::str_at(&object, &["spec", "clusterIP"]).to_owned()));
        assert!(taken.insert(ports_of(&object)));
        stored.push(object);
    }
    assert_eq!(stored.len(), 40);
    for object in &stored {
        servers[0].deleted(object).await;
    }
    // All is free again: the whole range can be granted once more.
    let ledger = StoreLedger::new(store, "/registry/", schemas, ports).unwrap();
    for port in 30000..30064 {
        ledger.take_port(&ports, port).await.unwrap();
    }
    assert_eq!(ledger.take_any_port(&ports, &|_| 0).await, Err(Refused::Full));
    assert_eq!(ledger.take_port(&ports, 30001).await, Err(Refused::Taken));
}

fn ports_of(service: &Value) -> i64 {
    node_ports(service)[0]
}
