//! The node's shutdown against a logind that these tests play: on a bus that they play too, and on
//! D-Bus's own.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use clap::Parser;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;

use super::dbus::{BUS, Connection};
use super::wire::{Head, Kind, Value};
use super::*;
use crate::config::KubeletConfiguration;
use crate::objects::name;
use crate::options;
use crate::run::build;

const OWNER: &str = ":1.5";
const LOGIND: &str = "org.freedesktop.login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const CRITICAL: i32 = 2_000_000_000;

/// The machine that logind looks after.
struct Machine {
    drop_ins: PathBuf,
    /// Reads its configuration when it is told to.
    obeys: bool,
    delay: Duration,
    preparing: bool,
    /// The ends of locks that logind keeps.
    locks: Vec<OwnedFd>,
    asked: Vec<String>,
}

impl Machine {
    /// Whether a lock is held still.
    fn is_held(&self, lock: usize) -> bool {
        match nix::unistd::read(&self.locks[lock], &mut [0; 1]) {
            Err(Errno::EAGAIN) => true,
            Ok(0) => false,
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, method: &str, given: &[Value]) -> (Vec<Value>, Option<OwnedFd>) {
        let texts: Vec<String> = given.iter().map(|value| format!("{value:?}")).collect();
        match (method, given) {
            ("Hello", []) => (vec![Value::text(":1.9")], None),
            ("AddMatch", [Value::Text(_)]) => (vec![], None),
            ("GetNameOwner", [Value::Text(name)]) if name == LOGIND => {
                (vec![Value::text(OWNER)], None)
            }
            ("Get", [Value::Text(interface), Value::Text(property)]) if interface == MANAGER => {
                let value = match property.as_str() {
                    "InhibitDelayMaxUSec" => {
                        Value::Uint64(u64::try_from(self.delay.as_micros()).unwrap())
                    }
                    "PreparingForShutdown" => Value::Bool(self.preparing),
                    other => panic!("{other}"),
                };
                (vec![Value::Variant(Box::new(value))], None)
            }
            ("KillUnit", [_, _, Value::Int32(1)]) => {
                self.asked.push(format!("KillUnit {}", texts.join(" ")));
                if self.obeys {
                    let text = std::fs::read_to_string(self.drop_ins.join(CONF)).unwrap();
                    let line = text.lines().find_map(|l| l.strip_prefix("InhibitDelayMaxSec="));
                    self.delay = Duration::from_secs(line.unwrap().parse().unwrap());
                }
                (vec![], None)
            }
            ("Inhibit", [_, _, _, _]) => {
                self.asked.push(format!("Inhibit {}", texts.join(" ")));
                let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let (own, given) = nix::unistd::pipe2(flags).unwrap();
                self.locks.push(own);
                (vec![Value::Descriptor(0)], Some(given))
            }
            other => panic!("{other:?}"),
        }
    }
}

type Shared = Arc<Mutex<Machine>>;

fn prepare(now: bool, sender: &str) -> (Head, Vec<Value>) {
    let head = Head {
        kind: Kind::Signal,
        path: Some("/org/freedesktop/login1".to_owned()),
        interface: Some(MANAGER.to_owned()),
        member: Some("PrepareForShutdown".to_owned()),
        sender: Some(sender.to_owned()),
        ..Head::default()
    };
    (head, vec![Value::Bool(now)])
}

/// Answers whatever is asked over a connection, and sends signals.
async fn serve(
    mut connection: Connection,
    machine: Shared,
    mut signals: broadcast::Receiver<(Head, Vec<Value>)>,
) -> anyhow::Result<()> {
    loop {
        let call = tokio::select! {
            call = connection.called() => call?,
            signal = signals.recv() => {
                let (head, values) = signal?;
                connection.send(head, &values, None).await?;
                continue;
            }
        };
        let method = call.head.member.clone().unwrap_or_default();
        let (values, lock) = machine.lock().answer(&method, &call.values()?);
        let head = Head {
            kind: Kind::Return,
            reply_to: Some(call.head.serial),
            destination: call.head.sender.clone(),
            ..Head::default()
        };
        connection.send(head, &values, lock.as_ref().map(AsFd::as_fd)).await?;
    }
}

/// A logind on a bus.
struct World {
    folder: TempDir,
    machine: Shared,
    signals: broadcast::Sender<(Head, Vec<Value>)>,
    /// D-Bus's own, and the connection that logind has to it.
    real: Option<(Child, tokio::task::JoinHandle<()>)>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((daemon, _)) = &mut self.real {
            daemon.kill().and_then(|()| daemon.wait()).expect("it runs");
        }
    }
}

impl World {
    fn new(delay: u64, obeys: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine {
            drop_ins: folder.path().join("logind.conf.d"),
            obeys,
            delay: Duration::from_secs(delay),
            preparing: false,
            locks: Vec::new(),
            asked: Vec::new(),
        };
        let machine = Arc::new(Mutex::new(machine));
        Self { folder, machine, signals: broadcast::channel(8).0, real: None }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("bus")
    }

    /// The bus is played too: whoever connects talks to logind.
    async fn played(delay: u64, obeys: bool) -> Self {
        let world = Self::new(delay, obeys);
        let listener = UnixListener::bind(world.socket()).unwrap();
        let (machine, signals) = (Arc::clone(&world.machine), world.signals.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (machine, signals) = (Arc::clone(&machine), signals.subscribe());
                tokio::spawn(async move {
                    let connection = Connection::accept(stream).await?;
                    serve(connection, machine, signals).await
                });
            }
        });
        world
    }

    /// D-Bus's own; `None` where it is not installed.
    async fn real(delay: u64, obeys: bool) -> Option<Self> {
        let mut world = Self::new(delay, obeys);
        let config = world.folder.path().join("bus.conf");
        let text = format!(
            "<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow send_destination='*'/><allow receive_sender='*'/><allow own='*'/></policy></busconfig>",
            world.socket().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon");
        let daemon = daemon.arg("--config-file").arg(config).args(["--nofork", "--nopidfile"]);
        let daemon = daemon.stdin(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let nobody = tokio::spawn(async {});
        world.real = Some((daemon, nobody));
        until(|| std::os::unix::net::UnixStream::connect(world.socket()).is_ok()).await;
        world.start_logind().await;
        Some(world)
    }

    async fn start_logind(&mut self) {
        let mut connection = Connection::open(&self.keeper(&[]).address).await.unwrap();
        for name in [LOGIND, "org.freedesktop.systemd1"] {
            let arguments = [Value::text(name), Value::Uint32(0)];
            connection.call(BUS, "RequestName", &arguments).await.unwrap();
        }
        let (machine, signals) = (Arc::clone(&self.machine), self.signals.subscribe());
        let (_, logind) = self.real.as_mut().unwrap();
        *logind = tokio::spawn(async move { drop(serve(connection, machine, signals).await) });
    }

    /// Another logind takes the place of this one, and begins so.
    async fn replace_logind(&mut self, preparing: bool) {
        self.machine.lock().preparing = preparing;
        if let Some((_, logind)) = &self.real {
            logind.abort();
            return self.start_logind().await;
        }
        let head = Head {
            kind: Kind::Signal,
            path: Some(BUS.path.to_owned()),
            interface: Some(BUS.interface.to_owned()),
            member: Some("NameOwnerChanged".to_owned()),
            sender: Some(BUS.name.to_owned()),
            ..Head::default()
        };
        let values = [LOGIND, OWNER, ":1.77"].map(Value::text);
        self.signals.send((head, values.to_vec())).unwrap();
    }

    fn keeper(&self, stages: &[(i32, i64)]) -> Keeper {
        let stage =
            |(priority, seconds): &(i32, i64)| Stage { priority: *priority, seconds: *seconds };
        Keeper {
            address: format!("unix:path={}", self.socket().display()),
            drop_ins: self.machine.lock().drop_ins.clone(),
            stages: stages.iter().map(stage).collect(),
        }
    }

    fn tell(&self, now: bool) {
        self.machine.lock().preparing = now;
        self.signals.send(prepare(now, OWNER)).unwrap();
    }

    /// Somebody who is not logind says that the machine goes.
    async fn lie(&self) {
        let (head, values) = prepare(true, ":1.66");
        if self.real.is_none() {
            self.signals.send((head, values)).unwrap();
            return;
        }
        let mut liar = Connection::open(&self.keeper(&[]).address).await.unwrap();
        liar.send(head, &values, None).await.unwrap();
        // When the bus has answered this, it has passed that on.
        liar.call(BUS, "GetId", &[]).await.unwrap();
    }

    async fn locks(&self, count: usize) {
        until(|| self.machine.lock().locks.len() == count).await;
        assert!(self.is_held(count - 1), "lock {count}");
    }

    fn is_held(&self, lock: usize) -> bool {
        self.machine.lock().is_held(lock)
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time");
}

/// A node with pods that end when the test says so.
#[derive(Default)]
struct Node {
    pods: Mutex<Vec<Arc<Pod>>>,
    ending: Mutex<HashMap<String, CancellationToken>>,
    shuts_down: watch::Sender<bool>,
    log: Mutex<Vec<String>>,
}

impl House for Node {
    fn shuts_down(&self, now: bool) {
        if self.shuts_down.send_replace(now) != now {
            self.log.lock().push(format!("shuts down: {now}"));
        }
    }

    fn active(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().clone()
    }

    fn end(&self, pod: &Pod, grace: i64) -> CancellationToken {
        let ended = CancellationToken::new();
        self.ending.lock().insert(name(pod).to_owned(), ended.clone());
        self.log.lock().push(format!("{} ends in {grace}", name(pod)));
        ended
    }

    fn note(&self, times: Times) {
        assert!(times.start.is_some());
        self.log.lock().push(if times.end.is_some() { "over" } else { "begins" }.to_owned());
    }
}

impl Node {
    fn with(pods: &[(&str, i32, i64)]) -> Arc<Self> {
        let pod = |(name, priority, grace): &(&str, i32, i64)| {
            let spec = json!({"priority": priority, "terminationGracePeriodSeconds": grace,
                "containers": []});
            let pod = json!({"metadata": {"name": name}, "spec": spec});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let node = Self::default();
        *node.pods.lock() = pods.iter().map(pod).collect();
        Arc::new(node)
    }

    /// A pod has ended.
    fn ended(&self, pod: &str) {
        self.pods.lock().retain(|p| name(p) != pod);
        self.ending.lock().remove(pod).expect("it was told to").cancel();
    }

    /// Waits until so much has been logged since last time.
    async fn logs(&self, want: &[&str]) {
        until(|| self.log.lock().len() >= want.len()).await;
        assert_eq!(std::mem::take(&mut *self.log.lock()), want);
    }
}

/// From a lock to the machine's end, and back; in between everything that may happen.
async fn shutdown(mut world: World) {
    let node = Node::with(&[("web", 0, 60), ("db", 5, 3), ("dns", CRITICAL, 60)]);
    let (keeper, house) = (world.keeper(&[(0, 20), (CRITICAL, 10)]), Arc::clone(&node));
    let keeping = tokio::spawn(async move { keeper.keep(&*house).await });

    world.locks(1).await;
    let asked = world.machine.lock().asked.clone();
    let why = "Text(\"Kubelet needs time to handle node shutdown\")";
    assert_eq!(
        asked,
        [
            "KillUnit Text(\"systemd-logind.service\") Text(\"all\") Int32(1)".to_owned(),
            format!("Inhibit Text(\"shutdown\") Text(\"kubelet\") {why} Text(\"delay\")"),
        ]
    );

    world.lie().await;
    // What logind says afterwards is heard afterwards.
    world.tell(false);
    world.locks(2).await;
    assert!(!world.is_held(0), "the lock of before");
    node.logs(&[]).await;

    world.tell(true);
    node.logs(&["shuts down: true", "begins", "web ends in 20", "db ends in 3"]).await;
    node.ended("db");
    assert!(world.is_held(1), "a pod has not ended");
    node.ended("web");
    node.logs(&["dns ends in 10"]).await;
    assert!(world.is_held(1), "a pod has not ended");
    node.ended("dns");
    node.logs(&["over"]).await;
    until(|| !world.is_held(1)).await;

    world.tell(false);
    node.logs(&["shuts down: false"]).await;
    world.locks(3).await;

    // It is called off while pods end.
    *node.pods.lock() = Node::with(&[("web", 0, 60), ("dns", CRITICAL, 60)]).active();
    world.tell(true);
    node.logs(&["shuts down: true", "begins", "web ends in 20"]).await;
    world.tell(false);
    node.logs(&["shuts down: false"]).await;
    world.locks(4).await;
    node.ended("web");

    // Nobody is told by a logind that has gone: the next one is asked.
    world.replace_logind(true).await;
    node.logs(&["shuts down: true", "begins", "dns ends in 10"]).await;
    assert!(world.is_held(3), "the lock of the one before");
    node.ended("dns");
    node.logs(&["over"]).await;
    until(|| !world.is_held(3)).await;
    keeping.abort();
}

#[tokio::test]
async fn a_shutdown_on_a_played_bus() {
    shutdown(World::played(5, true).await).await;
}

#[tokio::test]
async fn a_shutdown_on_a_real_bus() {
    match World::real(5, true).await {
        Some(world) => shutdown(world).await,
        None => panic!("dbus-daemon is not installed: hack/test installs it"),
    }
}

#[tokio::test]
async fn a_lock_is_taken_only_if_it_lasts() {
    for (delay, obeys, amended, error) in [
        (40, false, None, None),
        (30, false, None, None),
        (5, true, Some("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=30\n"), None),
        (
            5,
            false,
            Some("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=30\n"),
            Some(
                "node shutdown manager was timed out after 5 attempts waiting for logind InhibitDelayMaxSec to update to 30s (ShutdownGracePeriod), current value is 5s",
            ),
        ),
    ] {
        let world = World::played(delay, obeys).await;
        let keeper = world.keeper(&[(0, 20), (CRITICAL, 10)]);
        let (node, mut lock) = (Node::default(), None);
        let failed = tokio::select! {
            Err(error) = keeper.session(&node, &mut lock) => Some(format!("{error:#}")),
            () = world.locks(1) => None,
        };
        assert_eq!(failed.as_deref(), error, "{delay} {obeys}");
        let file = std::fs::read_to_string(world.machine.lock().drop_ins.join(CONF)).ok();
        assert_eq!(file.as_deref(), amended, "{delay} {obeys}");
    }
}

#[tokio::test]
async fn a_bus_that_is_not_there_is_an_error() {
    let world = World::new(5, true);
    let keeper = world.keeper(&[(0, 1)]);
    let error = keeper.session(&Node::default(), &mut None).await.unwrap_err();
    assert!(format!("{error:#}").starts_with("D-Bus at "), "{error:#}");
    let listener = UnixListener::bind(world.socket()).unwrap();
    let refusing = async {
        let (mut stream, _): (UnixStream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"REJECTED EXTERNAL\r\n").await.unwrap();
        stream
    };
    let (_stream, refused) =
        tokio::join!(refusing, async { keeper.session(&Node::default(), &mut None).await });
    let error = format!("{:#}", refused.unwrap_err());
    assert_eq!(error, "D-Bus does not let us in: \"REJECTED EXTERNAL\"");
}

/// What the kubelet does about it, without a runtime or an API server.
#[tokio::test]
async fn a_kubelet_goes_by_the_nodes_state() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("kubelet").display().to_string();
    let options = options::Options::parse_from(["kubelet", "--root-dir", &root]);
    let config = KubeletConfiguration { fail_cgroup_v1: false, ..KubeletConfiguration::default() };
    let k = build(&options, config, "node".into(), None, CancellationToken::new()).unwrap();
    let pod = |name: &str, phase: &str| -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"containers": [{"name": "c"}]}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    let pods = [pod("done", "Succeeded"), pod("runs", "Running"), pod("waits", "Pending")];
    *k.pods.write() = pods.iter().map(|p| (name(p).to_owned(), Arc::clone(p))).collect();
    let active: Vec<String> = k.active().iter().map(|p| name(p).to_owned()).collect();
    assert_eq!(active, ["runs", "waits"]);

    let mut told = k.node_shutdown.now.subscribe();
    for (now, news, refused) in [
        (false, false, None),
        (true, true, Some(("NodeShutdown", "Pod was rejected as the node is shutting down."))),
        (true, false, Some(("NodeShutdown", "Pod was rejected as the node is shutting down."))),
        (false, true, None),
    ] {
        k.shuts_down(now);
        assert_eq!(told.has_changed().ok(), Some(news), "{now}");
        told.mark_unchanged();
        // Once let in a pod is not asked again.
        let admission = crate::admission::Admission::default();
        let why = admission.admit(&k, &pods[2]).err();
        let why = why.as_ref().map(|why| (why.reason.as_str(), why.message.as_str()));
        assert_eq!(why, refused, "{now}");
        assert!(admission.admit(&k, &pods[1]).is_ok(), "what runs was let in before");
    }

    let ended = k.end(&pods[1], 7);
    let order = k.evictions.take("runs").expect("an order");
    assert_eq!((order.cause, order.grace), (Cause::NodeShutdown, 7));
    assert_eq!(order.message, "Pod was terminated in response to imminent node shutdown.");
    assert!(!ended.is_cancelled());
    drop(order);
    assert!(ended.is_cancelled());

    let at = |second| Timestamp::from_second(second).ok();
    let times = Times { start: at(1_800_000_000), end: at(1_800_000_020) };
    k.note(times);
    assert_eq!(Times::load(&k.root).unwrap(), times);
    let metrics = crate::stats::metrics(&k);
    for line in [
        "kubelet_graceful_shutdown_start_time_seconds 1800000000",
        "kubelet_graceful_shutdown_end_time_seconds 1800000020",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

/// Of each stage's time no more is used than it has; nobody waits where nobody is.
#[tokio::test(start_paused = true)]
async fn stages_wait_for_their_pods_and_not_longer() {
    let stages = [(0, 20), (10, 30), (CRITICAL, 10)];
    let stages = stages.map(|(priority, seconds)| Stage { priority, seconds });
    for (pods, ends_after, want) in [
        (&[][..], 1, 0),
        (&[("web", 0, 60)], 5, 5),
        (&[("web", 0, 60)], 500, 20),
        (&[("web", 0, 60), ("dns", CRITICAL, 60)], 5, 10),
        (&[("web", 0, 60), ("dns", CRITICAL, 60)], 15, 25),
        (&[("web", 0, 60), ("db", 10, 60), ("dns", CRITICAL, 60)], 500, 60),
    ] {
        let node = Node::with(pods);
        let start = Instant::now();
        let ender = Arc::clone(&node);
        let pods_end = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                for (_, token) in ender.ending.lock().drain() {
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(ends_after)).await;
                        token.cancel();
                    });
                }
            }
        });
        end_all(&*node, &stages).await;
        let took = start.elapsed().as_secs_f64();
        assert!((took - f64::from(want)).abs() < 0.5, "{pods:?} {ends_after}: {took}");
        pods_end.abort();
    }
}
