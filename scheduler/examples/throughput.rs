//! Scheduling cycles a second of CPU time, of one thread, without an API server: 5,000 nodes, and the
//! pods of upstream's `scheduler_perf` workloads. Each row: pods are there already, others are given
//! a node one by one and assumed, for at most so many seconds.
//!
//! `cargo run -p scheduler --config profile.dev.package.scheduler.opt-level=3 --example throughput`

use std::sync::Arc;
use std::time::Duration;

use scheduler::cycle::{self, Unschedulable};
use scheduler::framework::Refused;
use scheduler::profile::Profile;
use scheduler::snapshot::{PodInfo, Snapshot};
use serde_json::{Value, json};

const NODES: usize = 5000;
const LONGEST: Duration = Duration::from_secs(4);

struct Workload {
    name: &'static str,
    /// There already, and to be scheduled; each with that pod.
    before: (usize, Value),
    then: (usize, Value),
    /// Pods a second that upstream's own benchmark must reach.
    upstream: u32,
}

fn pod(kind: &Value, number: usize, who: &str) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"namespace": "bench", "name": format!("{who}-{number}"),
            "uid": format!("{who}-{number}"), "labels": kind["labels"]},
        "spec": {"containers": [{"name": "c", "image": "registry.example/pause:3",
            "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]},
    });
    for (field, value) in kind["spec"].as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).expect("a pod"))))
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..NODES {
        let name = format!("node-{number:05}");
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3), "all": "one"}},
            "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"},
                "images": [{"names": ["registry.example/pause:3"], "sizeBytes": 700_000}]},
        });
        let node = serde_json::from_value(node).expect("a node");
        snapshot.set_node(&name, Some(Arc::new(node)));
    }
    snapshot
}

fn workloads() -> Vec<Workload> {
    let selector = |color: &str| json!({"matchLabels": {"color": color}});
    let plain = json!({"labels": {"type": "plain"}, "spec": {}});
    let required = |kind: &str, color: &str, key: &str| {
        json!({"labels": {"color": color}, "spec": {"affinity": {kind: {
            "requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": key, "labelSelector": selector(color)}]}}}})
    };
    let preferred = |kind: &str, color: &str| {
        json!({"labels": {"color": color}, "spec": {"affinity": {kind: {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm":
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector(color)}}]}}}})
    };
    let spread = |when: &str, key: &str| {
        json!({"labels": {"color": "blue"}, "spec": {"topologySpreadConstraints": [{"maxSkew": 5,
            "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": selector("blue")}]}})
    };
    let zone = "topology.kubernetes.io/zone";
    let host = "kubernetes.io/hostname";
    let huge = json!({"labels": {}, "spec": {"containers": [{"name": "c", "image": "i",
        "resources": {"requests": {"cpu": "9"}}}]}});
    let sized = |priority: i32, cpu: &str| {
        json!({"labels": {}, "spec": {"priority": priority, "containers": [{"name": "c",
            "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
    };
    let (low, high) = (sized(0, "900m"), sized(10, "3"));
    let anti = required("podAntiAffinity", "green", host);
    let row = |name, before, then, upstream| Workload { name, before, then, upstream };
    vec![
        row("basic", (1000, plain.clone()), (10_000, plain.clone()), 680),
        row("basic, 20,000 there", (20_000, plain.clone()), (10_000, plain.clone()), 680),
        row("does not fit", (20_000, plain.clone()), (2000, huge), 600),
        row("preempts others", (20_000, low), (2000, high), 570),
        row(
            "spread over zones, required",
            (5000, plain.clone()),
            (5000, spread("DoNotSchedule", zone)),
            460,
        ),
        row(
            "spread over zones, preferred",
            (5000, plain.clone()),
            (5000, spread("ScheduleAnyway", zone)),
            340,
        ),
        row(
            "spread over hosts, required",
            (5000, plain.clone()),
            (5000, spread("DoNotSchedule", host)),
            460,
        ),
        row("anti-affinity, required", (1000, anti.clone()), (2000, anti), 60),
        row(
            "affinity, required",
            (5000, required("podAffinity", "blue", "all")),
            (5000, required("podAffinity", "blue", "all")),
            35,
        ),
        row(
            "affinity, preferred",
            (5000, preferred("podAffinity", "red")),
            (5000, preferred("podAffinity", "red")),
            90,
        ),
        row(
            "anti-affinity, preferred",
            (5000, preferred("podAntiAffinity", "yellow")),
            (5000, preferred("podAntiAffinity", "yellow")),
            90,
        ),
        row(
            "plain beside 5,000 with anti-affinity",
            (5000, preferred("podAntiAffinity", "yellow")),
            (5000, plain),
            140,
        ),
    ]
}

/// CPU time of this thread, so that what else the machine does makes no difference.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    Duration::from_nanos(nanos)
}

/// Has the pods gone at once that are in the way.
fn make_room(
    profile: &Profile,
    snapshot: &mut Snapshot,
    pod: &PodInfo,
    why: &Unschedulable,
    start: usize,
) -> Option<String> {
    let plugin = profile.post_filter.iter().find_map(|p| p.post_filter())?;
    let refused = Refused { profile, snapshot, pod, why, budgets: &[], start };
    let room = plugin.make_room(&refused).ok()?;
    room.victims.iter().for_each(|victim| snapshot.remove_pod(&victim.uid));
    Some(room.node)
}

fn main() {
    let profile = Profile::default();
    println!("{:40} {:>10} {:>8} {:>10}", "workload", "pods/s", "pods", "upstream");
    for workload in workloads() {
        let mut snapshot = cluster();
        let (count, kind) = &workload.before;
        for number in 0..*count {
            let node = format!("node-{:05}", number % NODES);
            snapshot.assume(&pod(kind, number, "before"), &node);
        }
        let (count, kind) = &workload.then;
        let pods: Vec<Arc<PodInfo>> = (0..*count).map(|n| pod(kind, n, "then")).collect();
        let mut seed = 1_usize;
        let mut random = |n: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let (begin, mut done) = (cpu_time(), 0_u32);
        for pod in &pods {
            let start = usize::try_from(done).unwrap_or(0) * 500;
            let node = match cycle::schedule(&profile, &snapshot, pod, start, &mut random) {
                Ok(node) => Some(node),
                Err(why) => make_room(&profile, &mut snapshot, pod, &why, start),
            };
            if let Some(node) = node {
                snapshot.assume(pod, &node);
            }
            done += 1;
            if cpu_time() - begin > LONGEST {
                break;
            }
        }
        let rate = f64::from(done) / (cpu_time() - begin).as_secs_f64();
        println!("{:40} {rate:10.0} {done:8} {:10}", workload.name, workload.upstream);
    }
}
