//! Numbers about the node, its pods and containers, from the kernel and the runtime.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::kubelet::Kubelet;
use crate::node::machine::meminfo;
use crate::objects::{name, namespace, uid};
use crate::pod::resources::qos_class;
use crate::runtime::{RuntimeError, labels};

/// CPU in nanoseconds since the start, memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    cpu: u64,
    memory: u64,
    working_set: u64,
    rss: u64,
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of a line `key value`.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

/// Reads a cgroup's accounts, of v1 or v2.
fn usage(memory: &Path, cpu: &Path, v2: bool) -> Usage {
    let stat = std::fs::read_to_string(memory.join("memory.stat")).unwrap_or_default();
    let (used, cpu, inactive, rss) = match v2 {
        true => {
            let cpu_stat = std::fs::read_to_string(cpu.join("cpu.stat")).unwrap_or_default();
            let used = number(&memory.join("memory.current")).unwrap_or(0);
            let cpu = field(&cpu_stat, "usage_usec") * 1000;
            (used, cpu, field(&stat, "inactive_file"), field(&stat, "anon"))
        }
        false => (
            number(&memory.join("memory.usage_in_bytes")).unwrap_or(0),
            number(&cpu.join("cpuacct.usage")).unwrap_or(0),
            field(&stat, "total_inactive_file"),
            field(&stat, "total_rss"),
        ),
    };
    Usage { cpu, memory: used, working_set: used.saturating_sub(inactive), rss }
}

/// The machine's own: CPU time from the kernel's sum, memory that is not available.
fn node_usage() -> Usage {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = stat
        .lines()
        .next()
        .map(|line| {
            let fields: Vec<u64> =
                line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
            // All but idle and waiting for disks.
            fields
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != 3 && *i != 4 && *i < 8)
                .map(|(_, n)| n)
                .sum()
        })
        .unwrap_or(0);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let get = |key: &str| meminfo(&memory, key).unwrap_or(0).unsigned_abs();
    let total = get("MemTotal");
    Usage {
        // The kernel counts hundredths of a second.
        cpu: ticks * 10_000_000,
        memory: total.saturating_sub(get("MemFree")),
        working_set: total.saturating_sub(get("MemAvailable")),
        rss: get("AnonPages"),
    }
}

fn file_system(path: &Path) -> Value {
    let Ok(s) = nix::sys::statvfs::statvfs(path) else { return Value::Null };
    let bytes = |blocks: u64| blocks * s.fragment_size();
    json!({
        "time": now(),
        "availableBytes": bytes(s.blocks_available()),
        "capacityBytes": bytes(s.blocks()),
        "usedBytes": bytes(s.blocks().saturating_sub(s.blocks_free())),
        "inodesFree": s.files_free(),
        "inodes": s.files(),
        "inodesUsed": s.files().saturating_sub(s.files_free()),
    })
}

fn now() -> String {
    crate::objects::now().0.to_string()
}

fn cpu_json(usage: &Usage) -> Value {
    json!({"time": now(), "usageCoreNanoSeconds": usage.cpu})
}

fn memory_json(usage: &Usage) -> Value {
    json!({
        "time": now(),
        "usageBytes": usage.memory,
        "workingSetBytes": usage.working_set,
        "rssBytes": usage.rss,
    })
}

struct ContainerUsage {
    uid: String,
    name: String,
    id: String,
    image: String,
    usage: Usage,
    written: u64,
}

async fn containers(k: &Kubelet) -> Result<Vec<ContainerUsage>, RuntimeError> {
    let listed = k.cri.list_container_stats(cri::ListContainerStatsRequest::default()).await?;
    let mut result = Vec::new();
    for stats in listed.stats {
        let Some(attributes) = stats.attributes else { continue };
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let value = |v: Option<cri::UInt64Value>| v.map_or(0, |v| v.value);
        let memory = stats.memory.unwrap_or_default();
        let working_set = value(memory.working_set_bytes);
        result.push(ContainerUsage {
            uid: label(labels::POD_UID),
            name: label(labels::CONTAINER_NAME),
            image: attributes
                .annotations
                .get("io.kubernetes.cri.image-name")
                .cloned()
                .unwrap_or_default(),
            id: attributes.id.clone(),
            usage: Usage {
                cpu: stats.cpu.map_or(0, |c| value(c.usage_core_nano_seconds)),
                memory: value(memory.usage_bytes).max(working_set),
                working_set,
                rss: value(memory.rss_bytes),
            },
            written: stats.writable_layer.map_or(0, |l| value(l.used_bytes)),
        });
    }
    Ok(result)
}

/// What a pod uses of a resource that runs short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub total: u64,
    /// By container, where that is known.
    pub containers: BTreeMap<String, u64>,
}

/// The memory that pods use, by uid.
///
/// # Errors
/// The runtime's.
pub async fn memory(k: &Kubelet) -> Result<HashMap<String, PodUsage>, RuntimeError> {
    let mut by_pod: HashMap<String, PodUsage> = HashMap::new();
    for container in containers(k).await? {
        let pod = by_pod.entry(container.uid).or_default();
        pod.total += container.usage.working_set;
        pod.containers.insert(container.name, container.usage.working_set);
    }
    Ok(by_pod)
}

/// The processes of pods, by uid.
pub fn processes(k: &Kubelet, pods: &[Arc<Pod>]) -> HashMap<String, PodUsage> {
    let one = |pod: &Arc<Pod>| {
        let total = k.cgroups.processes(qos_class(pod), uid(pod));
        (uid(pod).to_owned(), PodUsage { total, containers: BTreeMap::new() })
    };
    pods.iter().map(one).collect()
}

/// The bytes in the writable layers of containers, by the pod's uid and the container's name.
///
/// # Errors
/// The runtime's.
pub async fn written(k: &Kubelet) -> Result<HashMap<String, BTreeMap<String, u64>>, RuntimeError> {
    let mut by_pod: HashMap<String, BTreeMap<String, u64>> = HashMap::new();
    for container in containers(k).await? {
        by_pod.entry(container.uid).or_default().insert(container.name, container.written);
    }
    Ok(by_pod)
}

/// `/stats/summary`.
///
/// # Errors
/// The runtime's.
pub async fn summary(k: &Kubelet) -> Result<Value, RuntimeError> {
    let node = node_usage();
    let all = containers(k).await?;
    let pods: Vec<_> = k.pods.read().values().cloned().collect();
    let pods: Vec<Value> = pods
        .iter()
        .filter(|pod| all.iter().any(|c| c.uid == uid(pod)))
        .map(|pod| {
            let (memory, cpu) = k.cgroups.accounting(qos_class(pod), uid(pod));
            let own = usage(&memory, &cpu, k.cgroups.is_v2());
            let containers: Vec<Value> = all
                .iter()
                .filter(|c| c.uid == uid(pod))
                .map(|c| {
                    json!({
                        "name": c.name,
                        "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
                        "cpu": cpu_json(&c.usage),
                        "memory": memory_json(&c.usage),
                        "rootfs": {"time": now(), "usedBytes": c.written},
                    })
                })
                .collect();
            json!({
                "podRef": {"name": name(pod), "namespace": namespace(pod), "uid": uid(pod)},
                "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
                "containers": containers,
                "cpu": cpu_json(&own),
                "memory": memory_json(&own),
            })
        })
        .collect();
    let mut memory = memory_json(&node);
    memory["availableBytes"] =
        json!(k.machine.memory.unsigned_abs().saturating_sub(node.working_set));
    Ok(json!({
        "node": {
            "nodeName": k.node_name,
            "startTime": now(),
            "cpu": cpu_json(&node),
            "memory": memory,
            "fs": file_system(&k.root),
            "runtime": {"imageFs": file_system(&k.root)},
        },
        "pods": pods,
    }))
}

/// `/metrics/resource`, in Prometheus's text format.
///
/// # Errors
/// The runtime's.
pub async fn resource_metrics(k: &Kubelet) -> Result<String, RuntimeError> {
    let all = containers(k).await?;
    let node = node_usage();
    let pods: Vec<_> = k.pods.read().values().cloned().collect();
    let (mut cpu, mut memory) = (String::new(), String::new());
    let (mut pod_cpu, mut pod_memory) = (String::new(), String::new());
    // Writing to a string cannot fail.
    for pod in &pods {
        let place = format!("namespace=\"{}\",pod=\"{}\"", namespace(pod), name(pod));
        for c in all.iter().filter(|c| c.uid == uid(pod)) {
            let of = format!("container=\"{}\",{place}", c.name);
            let _ = writeln!(
                cpu,
                "container_cpu_usage_seconds_total{{{of}}} {}",
                c.usage.cpu as f64 / 1e9
            );
            let _ = writeln!(
                memory,
                "container_memory_working_set_bytes{{{of}}} {}",
                c.usage.working_set
            );
        }
        let (mem, acct) = k.cgroups.accounting(qos_class(pod), uid(pod));
        let own = usage(&mem, &acct, k.cgroups.is_v2());
        let _ =
            writeln!(pod_cpu, "pod_cpu_usage_seconds_total{{{place}}} {}", own.cpu as f64 / 1e9);
        let _ = writeln!(pod_memory, "pod_memory_working_set_bytes{{{place}}} {}", own.working_set);
    }
    let family = |name: &str, kind: &str, help: &str, lines: &str| {
        format!("# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}\n{lines}")
    };
    Ok([
        family(
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
            &cpu,
        ),
        family(
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set of the container in bytes",
            &memory,
        ),
        family(
            "node_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the node in core-seconds",
            &format!("node_cpu_usage_seconds_total {}\n", node.cpu as f64 / 1e9),
        ),
        family(
            "node_memory_working_set_bytes",
            "gauge",
            "Current working set of the node in bytes",
            &format!("node_memory_working_set_bytes {}\n", node.working_set),
        ),
        family(
            "pod_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the pod in core-seconds",
            &pod_cpu,
        ),
        family(
            "pod_memory_working_set_bytes",
            "gauge",
            "Current working set of the pod in bytes",
            &pod_memory,
        ),
        family(
            "resource_scrape_error",
            "gauge",
            "1 if there was an error while getting container metrics, 0 otherwise",
            "resource_scrape_error 0\n",
        ),
    ]
    .concat())
}

/// `/metrics/cadvisor`: the containers' numbers under the names that cAdvisor gives them, and the
/// pods' as those of a container without a name.
///
/// # Errors
/// The runtime's.
pub async fn cadvisor_metrics(k: &Kubelet) -> Result<String, RuntimeError> {
    let all = containers(k).await?;
    let pods: Vec<_> = k.pods.read().values().cloned().collect();
    let mut rows: Vec<(String, Usage)> = Vec::new();
    for pod in &pods {
        let place = format!("namespace=\"{}\",pod=\"{}\"", namespace(pod), name(pod));
        let (memory, cpu) = k.cgroups.accounting(qos_class(pod), uid(pod));
        let id = k.cgroups.runtime_parent(qos_class(pod), uid(pod));
        for c in all.iter().filter(|c| c.uid == uid(pod)) {
            let of = format!(
                "container=\"{}\",id=\"{id}/{}\",image=\"{}\",name=\"{}\",{place}",
                c.name, c.id, c.image, c.id
            );
            rows.push((of, c.usage));
        }
        let of = format!("container=\"\",id=\"{id}\",image=\"\",name=\"\",{place}");
        rows.push((of, usage(&memory, &cpu, k.cgroups.is_v2())));
    }
    let mut text = cadvisor(&rows);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "# HELP machine_cpu_cores Number of logical CPU cores.\n# TYPE machine_cpu_cores gauge\nmachine_cpu_cores {}\n\
         # HELP machine_memory_bytes Amount of memory installed on the machine.\n# TYPE machine_memory_bytes gauge\nmachine_memory_bytes {}\n",
        k.machine.cpus, k.machine.memory
    );
    Ok(text)
}

/// The families of containers' numbers; a row is its labels and the numbers.
fn cadvisor(rows: &[(String, Usage)]) -> String {
    type Get = fn(&Usage) -> f64;
    let families: [(&str, &str, &str, Get); 4] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed in seconds.",
            |u| u.cpu as f64 / 1e9,
        ),
        (
            "container_memory_usage_bytes",
            "gauge",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |u| u.memory as f64,
        ),
        ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |u| {
            u.working_set as f64
        }),
        ("container_memory_rss", "gauge", "Size of RSS in bytes.", |u| u.rss as f64),
    ];
    let mut text = String::new();
    for (name, kind, help, get) in families {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, usage) in rows {
            let _ = writeln!(text, "{name}{{{labels}}} {}", get(usage));
        }
    }
    text
}

/// `/metrics`: about the kubelet itself.
pub fn metrics(k: &Kubelet) -> String {
    let pods = k.pods.read().len();
    let workers = k.wakers.lock().len();
    let uptime = k.started.elapsed().as_secs_f64();
    let [start, end] = k.node_shutdown.times.lock().seconds();
    let fallbacks = k.http_fallbacks.load(Ordering::Relaxed);
    format!(
        "# HELP kubelet_node_name [ALPHA] The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n\
         # HELP kubelet_desired_pods [ALPHA] The number of pods the kubelet is being instructed to run.\n# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods{{static=\"\"}} {pods}\n\
         # HELP kubelet_active_pods [ALPHA] The number of pods the kubelet considers active.\n# TYPE kubelet_active_pods gauge\nkubelet_active_pods{{static=\"\"}} {workers}\n\
         # HELP kubelet_graceful_shutdown_start_time_seconds [ALPHA] Last graceful shutdown start time since unix epoch in seconds\n# TYPE kubelet_graceful_shutdown_start_time_seconds gauge\nkubelet_graceful_shutdown_start_time_seconds {start}\n\
         # HELP kubelet_graceful_shutdown_end_time_seconds [ALPHA] Last graceful shutdown start time since unix epoch in seconds\n# TYPE kubelet_graceful_shutdown_end_time_seconds gauge\nkubelet_graceful_shutdown_end_time_seconds {end}\n\
         # HELP kubelet_lifecycle_handler_http_fallbacks_total [ALPHA] The number of times lifecycle handlers successfully fell back to http from https.\n# TYPE kubelet_lifecycle_handler_http_fallbacks_total counter\nkubelet_lifecycle_handler_http_fallbacks_total {fallbacks}\n\
         # HELP process_uptime_seconds [ALPHA] Seconds since the kubelet started.\n# TYPE process_uptime_seconds gauge\nprocess_uptime_seconds {uptime}\n",
        k.node_name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_hold_every_row() {
        let usage = Usage { cpu: 1_500_000_000, memory: 3, working_set: 2, rss: 1 };
        let text = cadvisor(&[("pod=\"p\"".to_owned(), usage)]);
        for line in [
            "container_cpu_usage_seconds_total{pod=\"p\"} 1.5",
            "container_memory_working_set_bytes{pod=\"p\"} 2",
            "# TYPE container_memory_rss gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn accounts_of_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("memory.usage_in_bytes", "1000\n");
        write(
            "memory.stat",
            "total_inactive_file 300\ntotal_rss 200\ninactive_file 100\nanon 50\n",
        );
        write("cpuacct.usage", "77\n");
        write("memory.current", "900\n");
        write("cpu.stat", "usage_usec 5\n");
        let v1 = usage(dir.path(), dir.path(), false);
        assert_eq!(v1, Usage { cpu: 77, memory: 1000, working_set: 700, rss: 200 });
        let v2 = usage(dir.path(), dir.path(), true);
        assert_eq!(v2, Usage { cpu: 5000, memory: 900, working_set: 800, rss: 50 });
    }
}
