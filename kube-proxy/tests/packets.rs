//! Packets that services are asked with, in network namespaces of this test's own: a node with two
//! pods and a client outside, for both modes and both address families.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube_proxy::config::Mode;
use kube_proxy::conntrack::{self, Serving};
use kube_proxy::kernel::Kernel;
use kube_proxy::nftables::{Local, Node};
use kube_proxy::table::{self, Changes, Here, Table};
use serde_json::{Value, json};

/// How long an answer may take, and how long none is waited for.
const ANSWER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(400);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace: what is run in it runs on its thread.
struct Space {
    jobs: mpsc::Sender<Job>,
    thread: i32,
}

impl Space {
    fn new() -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (told, thread) = mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            told.send(nix::unistd::gettid().as_raw()).expect("heard");
            work.into_iter().for_each(|job| job());
        });
        let space = Self { jobs, thread: thread.recv().expect("a thread") };
        space.ip("link set lo up");
        space
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(work())))).expect("the thread lives");
        result.recv().expect("no panic there")
    }

    fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(&arguments).output());
        let output = output.expect("ip is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Joins the two: `net` has the node's address (1) and the other's (2).
    fn join(&self, name: &str, other: &Self, ipv6: bool, net: &str) {
        let (bits, near, far) = match ipv6 {
            true => (64, format!("{net}::1"), format!("{net}::2")),
            false => (24, format!("{net}.1"), format!("{net}.2")),
        };
        let more = if ipv6 { " nodad" } else { "" };
        let space = format!("/proc/{}/task/{}/ns/net", std::process::id(), other.thread);
        self.ip(&format!("link add {name} type veth peer name eth0 netns {space}"));
        self.ip(&format!("addr add {near}/{bits} dev {name}{more}"));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("addr add {far}/{bits} dev eth0{more}"));
        other.ip("link set eth0 up");
        let family = if ipv6 { "-6 " } else { "" };
        other.ip(&format!("{family}route add default via {near}"));
    }

    /// Who the server sees when this one asks over TCP.
    fn ask(&self, address: &str, port: u16) -> Result<IpAddr, ErrorKind> {
        let to = SocketAddr::new(address.parse().expect("an address"), port);
        self.run(move || {
            let wait = |stream: std::io::Result<TcpStream>| -> std::io::Result<String> {
                let mut stream = stream?;
                stream.set_read_timeout(Some(ANSWER))?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            };
            let text = wait(TcpStream::connect_timeout(&to, ANSWER)).map_err(|e| e.kind())?;
            text.parse::<IpAddr>().map_err(|_| ErrorKind::InvalidData)
        })
    }

    fn ask_udp(&self, address: &str, port: u16) -> Result<IpAddr, ErrorKind> {
        self.ask_udp_from(0, ANSWER, address, port)
    }

    /// From a port of one's own: of the same flow each time.
    fn ask_udp_from(
        &self,
        own: u16,
        patience: Duration,
        address: &str,
        port: u16,
    ) -> Result<IpAddr, ErrorKind> {
        let to = SocketAddr::new(address.parse().expect("an address"), port);
        self.run(move || {
            let any = if to.is_ipv6() { "[::]" } else { "0.0.0.0" };
            let exchange = || -> std::io::Result<String> {
                let socket = UdpSocket::bind(format!("{any}:{own}"))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(patience))?;
                socket.send(b"who")?;
                let mut answer = [0; 64];
                let length = socket.recv(&mut answer)?;
                Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
            };
            let text = exchange().map_err(|e| e.kind())?;
            text.parse().map_err(|_| ErrorKind::InvalidData)
        })
    }

    fn hears_nothing(&self, address: &str, port: u16) -> bool {
        let to = SocketAddr::new(address.parse().expect("an address"), port);
        let tried = self.run(move || TcpStream::connect_timeout(&to, SILENCE).map(drop));
        tried.is_err_and(|e| e.kind() == ErrorKind::TimedOut)
    }

    /// Tells whoever asks who they are, over TCP and UDP.
    fn serve(&self, port: u16, ipv6: bool) {
        self.run(move || {
            let any = if ipv6 { "[::]" } else { "0.0.0.0" };
            let listener = TcpListener::bind(format!("{any}:{port}")).expect("a port");
            let socket = UdpSocket::bind(format!("{any}:{port}")).expect("a port");
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let peer = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                    let _ = stream.write_all(peer.as_bytes());
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
                }
            });
        });
    }
}

/// Addresses of one family.
struct Plan {
    ipv6: bool,
    /// Networks of the two pods and of the client.
    nets: [&'static str; 3],
    pods: &'static str,
    cluster: &'static str,
    balancer: &'static str,
    client_range: &'static str,
}

const FOUR: Plan = Plan {
    ipv6: false,
    nets: ["10.244.1", "10.244.2", "192.0.2"],
    pods: "10.244.0.0/16",
    cluster: "10.96.0.7",
    balancer: "203.0.113.1",
    client_range: "192.0.2.0/24",
};

const SIX: Plan = Plan {
    ipv6: true,
    nets: ["fd00:244:1", "fd00:244:2", "2001:db8:1"],
    pods: "fd00:244::/32",
    cluster: "fd00:96::7",
    balancer: "2001:db8:2::1",
    client_range: "2001:db8:1::/64",
};

impl Plan {
    fn host(&self, net: usize, host: u8) -> String {
        let dot = if self.ipv6 { "::" } else { "." };
        format!("{}{dot}{host}", self.nets[net])
    }

    fn ip(&self, net: usize, host: u8) -> IpAddr {
        self.host(net, host).parse().expect("an address")
    }

    fn table(&self, spec: &Value, backend: Option<&str>) -> Table {
        let mut service = json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {"clusterIP": self.cluster, "type": "LoadBalancer", "ports": [
                {"name": "t", "port": 80, "nodePort": 30080},
                {"name": "u", "port": 80, "protocol": "UDP", "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": self.balancer}]}},
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        let endpoints: Vec<Value> = backend
            .iter()
            .map(|a| json!({"addresses": [a], "nodeName": "n1", "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "metadata": {"namespace": "ns", "name": "web-x",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": if self.ipv6 { "IPv6" } else { "IPv4" },
            "endpoints": endpoints,
            "ports": [{"name": "t", "port": 8080}, {"name": "u", "port": 8080, "protocol": "UDP"}],
        });
        let service: Service = serde_json::from_value(service).expect("a service");
        let slice: EndpointSlice = serde_json::from_value(slice).expect("a slice");
        let here = Here { node: "n1".into(), ..Here::default() };
        table::build(&here, self.ipv6, [&service], [&slice])
    }
}

struct Rig {
    plan: &'static Plan,
    node: Space,
    /// Two pods and a client outside.
    others: [Space; 3],
    mode: Mode,
}

impl Rig {
    fn new(plan: &'static Plan, mode: Mode) -> Self {
        let node = Space::new();
        let others = [Space::new(), Space::new(), Space::new()];
        for (i, (other, net)) in others.iter().zip(plan.nets).enumerate() {
            node.join(&format!("cx{i}"), other, plan.ipv6, net);
        }
        let forward = match plan.ipv6 {
            true => "/proc/sys/net/ipv6/conf/all/forwarding",
            false => "/proc/sys/net/ipv4/ip_forward",
        };
        node.run(move || std::fs::write(forward, "1")).expect("forwarding");
        // What is addressed to services is routed like anything else until it is translated.
        node.ip("link add out type veth peer name away");
        node.ip("link set away up");
        node.ip("link set out up");
        let family = if plan.ipv6 { "-6 " } else { "" };
        node.ip(&format!("{family}route add default dev out"));
        // Each refusal is told, however many there are.
        let limit = match plan.ipv6 {
            true => "/proc/sys/net/ipv6/icmp/ratelimit",
            false => "/proc/sys/net/ipv4/icmp_ratelimit",
        };
        node.run(move || std::fs::write(limit, "0")).expect("no limit");
        others[1].serve(8080, plan.ipv6);
        Self { plan, node, others, mode }
    }

    /// Makes a table's rules anew.
    fn rules(&self, table: &Table, local: Local) {
        let (table, mode, ipv6) = (table.clone(), self.mode, self.plan.ipv6);
        let node = Node {
            addresses: vec![self.plan.ip(2, 1)],
            any_address: false,
            local,
            masquerade_all: false,
            mark: 0x4000,
        };
        let done = self.node.run(move || {
            Kernel::new(mode, ipv6)
                .sync(&table, &Changes::new(), &node)
                .map_err(|e| format!("{e:#}"))
        });
        done.expect("rules");
    }

    /// A flow is led where its first packet was, until it is found to be stale.
    fn check_flows(&self) {
        let (plan, client) = (self.plan, &self.others[2]);
        let pods = || Local::Addresses(plan.pods.parse().expect("a net"));
        let ask = |patience| client.ask_udp_from(5000, patience, plan.cluster, 80);
        self.rules(&plan.table(&json!({}), Some(&plan.host(1, 9))), pods());
        assert_eq!(ask(SILENCE), Err(ErrorKind::WouldBlock), "nobody is there");
        let table = plan.table(&json!({}), Some(&plan.host(1, 2)));
        self.rules(&table, pods());
        assert_eq!(ask(SILENCE), Err(ErrorKind::WouldBlock), "the same flow");
        let ipv6 = plan.ipv6;
        let forgotten = self.node.run(move || {
            conntrack::forget_stale(ipv6, &Serving::of(&table)).map_err(|e| format!("{e:#}"))
        });
        assert_eq!(forgotten, Ok(1));
        assert_eq!(ask(ANSWER), Ok(plan.ip(1, 1)), "to the new one");
    }

    fn check(&self) {
        let plan = self.plan;
        let pods = || Local::Addresses(plan.pods.parse().expect("a net"));
        let [pod, server, client] = &self.others;
        let (node_port, pod_side) = (plan.host(2, 1), plan.ip(1, 1));
        let cluster = plan.cluster;
        let spec = json!({});
        self.rules(&plan.table(&spec, Some(&plan.host(1, 2))), pods());
        assert_eq!(pod.ask(cluster, 80), Ok(plan.ip(0, 2)), "pods keep their addresses");
        assert_eq!(pod.ask_udp(cluster, 80), Ok(plan.ip(0, 2)));
        assert_eq!(client.ask(cluster, 80), Ok(pod_side), "others do not");
        assert_eq!(server.ask(cluster, 80), Ok(pod_side), "to itself");
        assert!(self.node.ask(cluster, 80).is_ok(), "a process of the node");
        assert_eq!(client.ask(&node_port, 30_080), Ok(pod_side), "by node port");
        assert_eq!(client.ask_udp(&node_port, 30_080), Ok(pod_side), "by node port");
        assert_eq!(client.ask(plan.balancer, 80), Ok(pod_side), "by load balancer");
        assert!(self.node.ask(&node_port, 30_080).is_ok(), "a process of the node by node port");

        let bridge = Local::Bridge("cx0".into());
        self.rules(&plan.table(&spec, Some(&plan.host(1, 2))), bridge);
        assert_eq!(pod.ask(cluster, 80), Ok(plan.ip(0, 2)), "through the bridge");
        assert_eq!(client.ask(cluster, 80), Ok(pod_side), "not through the bridge");
        self.rules(&plan.table(&spec, Some(&plan.host(1, 2))), Local::Prefix("cx".into()));
        assert_eq!(client.ask(cluster, 80), Ok(plan.ip(2, 2)), "all interfaces begin so");

        let local = json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": [plan.client_range]});
        self.rules(&plan.table(&local, Some(&plan.host(1, 2))), pods());
        assert_eq!(client.ask(&node_port, 30_080), Ok(plan.ip(2, 2)), "clients keep theirs");
        assert_eq!(client.ask(plan.balancer, 80), Ok(plan.ip(2, 2)), "from a range that may");
        assert!(pod.hears_nothing(plan.balancer, 80), "from none that may");
        for _ in 0..3 {
            assert_eq!(pod.ask(cluster, 80), Ok(plan.ip(0, 2)), "the same backend again");
        }

        self.rules(&plan.table(&spec, None), pods());
        for (who, space) in [("a pod", pod), ("a client", client), ("the node", &self.node)] {
            let refused = Err(ErrorKind::ConnectionRefused);
            assert_eq!(space.ask(cluster, 80), refused, "{who}");
            // A process of the node is told when it sends.
            let told = space.ask_udp(cluster, 80).expect_err("refused");
            let how = [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied];
            assert!(how.contains(&told), "{who}: {told:?}");
            assert_eq!(space.ask(&node_port, 30_080), refused, "{who}");
        }
    }
}

#[test]
fn nftables_leads_packets_of_both_families() {
    for plan in [&FOUR, &SIX] {
        let rig = Rig::new(plan, Mode::Nftables);
        rig.check();
        rig.check_flows();
    }
}

#[test]
fn iptables_leads_packets_of_both_families() {
    for plan in [&FOUR, &SIX] {
        let rig = Rig::new(plan, Mode::Iptables);
        rig.check();
        rig.check_flows();
    }
}
