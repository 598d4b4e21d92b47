//! The life of a pod: its containers in order, probes, restarts, its end.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::manifests::script;
use e2e::{SOON, eventually};
use serde_json::Value;

use crate::cluster;

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

#[test]
fn init_containers_and_sidecars_start_in_order() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("order")?;
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  restartPolicy: Never
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: first, image: 'localhost/test:1', command: [sh, -c, 'sleep 1; echo first >> /shared/log'], volumeMounts: [{name: shared, mountPath: /shared}]}
  - name: side
    image: localhost/test:1
    restartPolicy: Always
    command: [sh, -c, 'trap ''echo side ends >> /shared/log; exit 0'' TERM; echo side >> /shared/log; touch /tmp/up; while :; do sleep 0.1; done']
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {name: second, image: 'localhost/test:1', command: [sh, -c, 'echo second >> /shared/log'], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - {name: main, image: 'localhost/test:1', command: [sh, -c, 'echo main >> /shared/log; cat /shared/log'], volumeMounts: [{name: shared, mountPath: /shared}]}
";
    ns.apply(pod)?;
    let pod = ns.pod("ordered", "it has ended", |p| p["status"]["phase"] == "Succeeded")?;
    let log = ns.kubectl(&["logs", "ordered"])?;
    ensure!(log == "first\nside\nsecond\nmain\n", "{log}");
    let side = &pod["status"]["initContainerStatuses"][1]["state"]["terminated"];
    ensure!(side["exitCode"] == 0, "the sidecar ended after the others: {side}");
    Ok(())
}

#[test]
fn a_sidecars_hook_runs_while_the_others_end() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("hooked")?;
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - name: side
    image: localhost/test:1
    restartPolicy: Always
    command: [sh, -c, 'trap ''exit 0'' TERM; while :; do sleep 0.1; done']
    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo the hook has run > /shared/hook']}}}
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: localhost/test:1
    command: [sh, -c, 'trap ''sleep 3; cat /shared/hook; exit 0'' TERM; echo up; while :; do sleep 0.1; done']
    volumeMounts: [{name: shared, mountPath: /shared}]
";
    ns.ready(pod, "hooked")?;
    let log = ns.spawn(&["logs", "--follow", "hooked", "-c", "main"])?;
    log.until("up", SOON)?;
    ns.kubectl(&["delete", "pod", "hooked", "--wait=false"])?;
    log.until("the hook has run", SOON)?;
    ns.kubectl(&["wait", "--for=delete", "pod/hooked", "--timeout=60s"]).map(drop)
}

#[test]
fn a_container_that_could_not_begin_is_asked_to_end() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("unbegun")?;
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: unbegun}
spec:
  terminationGracePeriodSeconds: 5
  restartPolicy: Never
  containers:
  - name: main
    image: localhost/test:1
    command: [sh, -c, 'trap ''exit 3'' TERM; while :; do sleep 0.1; done']
    lifecycle:
      postStart: {exec: {command: ['false']}}
      preStop: {exec: {command: [sh, -c, 'echo asked > /dev/termination-log']}}
";
    ns.apply(pod)?;
    eventually("it was asked, and has ended", SOON, || {
        let pod = ns.get(&["pod", "unbegun"])?;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(ended["exitCode"] == 3 && ended["message"] == "asked\n", "{}", pod["status"]);
        Ok(())
    })?;
    let events = ns.kubectl(&["get", "events"])?;
    ensure!(events.contains("FailedPostStartHook"), "{events}");
    Ok(())
}

#[test]
fn what_has_started_may_be_ready_at_once() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("started")?;
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: started}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/test:1
    command: [sh, -c, 'sleep 3; touch /tmp/up; sleep infinity']
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 60}
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 600}
";
    ns.ready(pod, "started")
}

#[test]
fn a_failing_init_container_holds_the_pod() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("held")?;
    let pod = script("held", "true").replace(
        "  containers:",
        "  initContainers: [{name: first, image: 'localhost/test:1', command: ['false']}]\n  containers:",
    );
    ns.apply(&pod)?;
    let pod = ns.pod("held", "it has failed", |p| p["status"]["phase"] == "Failed")?;
    let main = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    ensure!(main == "PodInitializing", "{}", pod["status"]);
    let shown = ns.kubectl(&["get", "pod", "held"])?;
    ensure!(shown.contains("Init:Error"), "{shown}");
    Ok(())
}

#[test]
fn probes_decide_on_restarts_and_readiness() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("probes")?;
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/test:1
    command: [sh, -c, 'touch /tmp/live; testserver']
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {exec: {command: [cat, /tmp/live]}, periodSeconds: 1, failureThreshold: 2}
    readinessProbe: {exec: {command: [test, '!', -e, /tmp/busy]}, periodSeconds: 1, failureThreshold: 1}
";
    ns.ready(pod, "probed")?;
    let ready = |wanted: &'static str| {
        let what = format!("Ready is {wanted}");
        ns.pod("probed", &what, |p| {
            let conditions = p["status"]["conditions"].as_array();
            conditions
                .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == wanted))
        })
    };
    ns.shell("probed", "touch /tmp/busy")?;
    let busy = ready("False")?;
    ensure!(restarts(&busy) == 0, "readiness restarts nothing");
    ns.shell("probed", "rm /tmp/busy")?;
    ready("True")?;
    ns.shell("probed", "rm /tmp/live")?;
    ns.pod("probed", "it is restarted", |p| restarts(p) == 1)?;
    ready("True")?;
    let events = ns.kubectl(&["describe", "pod", "probed"])?;
    for wanted in [
        "Liveness probe failed: cat: can't open '/tmp/live'",
        "failed liveness probe, will be restarted",
        "Readiness probe failed",
    ] {
        ensure!(events.contains(wanted), "{wanted:?} is not in {events}");
    }
    Ok(())
}

#[test]
fn a_container_that_keeps_failing_is_held_back() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("crashing")?;
    let pod = script("crashing", "echo attempt; echo last words > /dev/termination-log; exit 7")
        .replace("restartPolicy: Never", "restartPolicy: Always");
    ns.apply(&pod)?;
    let pod = ns.pod("crashing", "it is held back", |p| {
        let waiting = &p["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CrashLoopBackOff" && restarts(p) >= 1
    })?;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 7 && last["message"] == "last words\n", "{last}");
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str();
    ensure!(message.is_some_and(|m| m.contains("restarting failed container=main")), "{message:?}");
    let previous = ns.kubectl(&["logs", "crashing", "--previous"])?;
    ensure!(previous == "attempt\n", "{previous}");
    let shown = ns.kubectl(&["get", "pod", "crashing"])?;
    ensure!(shown.contains("CrashLoopBackOff") || shown.contains("Error"), "{shown}");
    Ok(())
}

#[test]
fn memory_and_time_end() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("limits")?;
    let hungry = script("hungry", "exec tail /dev/zero")
        .replace("name: main,", "name: main, resources: {limits: {memory: 32Mi}},");
    ns.apply(&hungry)?;
    let late = script("late", "exec sleep 600")
        .replace("  restartPolicy", "  activeDeadlineSeconds: 2\n  restartPolicy");
    ns.apply(&late)?;
    let pod = ns.pod("hungry", "it has failed", |p| p["status"]["phase"] == "Failed")?;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{ended}");
    let pod = ns.pod("late", "it has failed", |p| p["status"]["phase"] == "Failed")?;
    ensure!(pod["status"]["reason"] == "DeadlineExceeded", "{}", pod["status"]);
    ensure!(
        pod["status"]["message"] == "Pod was active on the node longer than the specified deadline",
        "{}",
        pod["status"]
    );
    Ok(())
}

#[test]
fn a_pod_ends_gracefully_and_in_time() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("graceful")?;
    let loops = "trap 'echo asked to end; sleep 1; echo done; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let polite = script("polite", loops)
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 30")
        .replace("name: main,", "name: main, lifecycle: {preStop: {exec: {command: [sh, -c, 'echo hook > /proc/1/fd/1']}}},");
    ns.ready(&polite, "polite")?;
    let followed = ns.spawn(&["logs", "-f", "polite"])?;
    followed.until("up", SOON)?;
    let start = Instant::now();
    ns.kubectl(&["delete", "pod", "polite", "--timeout=60s"])?;
    ensure!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    followed.until("hook\nasked to end\ndone\n", SOON)?;

    let stubborn = script("stubborn", "trap '' TERM; echo up; while :; do sleep 0.1; done")
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 600");
    ns.ready(&stubborn, "stubborn")?;
    let start = Instant::now();
    ns.kubectl(&["delete", "pod", "stubborn", "--grace-period=2", "--timeout=60s"])?;
    let took = start.elapsed();
    ensure!(took > Duration::from_secs(2) && took < Duration::from_secs(25), "it took {took:?}");
    Ok(())
}

#[test]
fn nothing_of_a_pod_stays_on_its_node() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("remains")?;
    ns.idle("box")?;
    let pod = ns.get(&["pod", "box"])?;
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    ns.kubectl(&["delete", "pod", "box", "--timeout=60s"])?;
    let dir = cluster.settings().dir.clone();
    let shown = |folder: &str| -> anyhow::Result<String> {
        let mut find = std::process::Command::new("find");
        find.arg(folder).args(["-maxdepth", "6", "-name", &format!("*{uid}*")]);
        // Folders go while it looks: what it found counts.
        Ok(e2e::run(find, "")?.stdout)
    };
    eventually("its folders and cgroups are gone", SOON, || {
        let folders = shown(&dir.display().to_string())?;
        let cgroups = shown("/sys/fs/cgroup")?;
        ensure!(folders.is_empty() && cgroups.is_empty(), "{folders}{cgroups}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&uid), "it is still mounted");
        Ok(())
    })
}

#[test]
fn pods_that_fit_nowhere_wait_with_a_reason() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("pending")?;
    let large = script("large", "true")
        .replace("name: main,", "name: main, resources: {requests: {cpu: 1k}},");
    ns.apply(&large)?;
    let choosy = script("choosy", "true")
        .replace("  restartPolicy", "  nodeSelector: {no: such}\n  restartPolicy");
    ns.apply(&choosy)?;
    let message = |name: &str| -> anyhow::Result<String> {
        let pod = ns.pod(name, "it was looked at", |p| {
            p["status"]["conditions"][0]["reason"] == "Unschedulable"
        })?;
        Ok(pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_owned())
    };
    let large = message("large")?;
    ensure!(large.starts_with("0/2 nodes are available: 2 Insufficient cpu."), "{large}");
    let choosy = message("choosy")?;
    let wanted = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
    ensure!(choosy.starts_with(wanted), "{choosy}");
    let events = ns.kubectl(&["get", "events", "--field-selector=reason=FailedScheduling"])?;
    ensure!(events.contains("pod/choosy"), "{events}");
    Ok(())
}

/// A manifest in a node's folder is a pod, and shows in the API.
#[test]
fn a_manifest_in_a_folder_is_a_pod() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let file = cluster.settings().dir.join("kubelet/manifests/standing.yaml");
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: standing, labels: {app: standing}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'localhost/test:1', command: [sleep, infinity]}]
";
    // As editors do: the kubelet never sees half of it.
    let half = file.with_extension("part");
    std::fs::write(&half, pod)?;
    std::fs::rename(&half, &file)?;
    let running = ["wait", "--for=condition=Ready", "pod/standing-node", "--timeout=90s"];
    eventually("it runs and shows", SOON, || cluster.kubectl(&running))?;
    // Deleting what shows does not end it.
    let container = || {
        let pod = cluster.get(&["pod", "standing-node"])?;
        Ok::<_, anyhow::Error>(pod["status"]["containerStatuses"][0]["containerID"].clone())
    };
    let before = container()?;
    cluster.kubectl(&["delete", "pod", "standing-node", "--wait=false"])?;
    eventually("it shows again", SOON, || {
        ensure!(container()? == before, "the same container");
        cluster.kubectl(&running)
    })?;
    std::fs::remove_file(&file)?;
    cluster.kubectl(&["wait", "--for=delete", "pod/standing-node", "--timeout=90s"])?;
    Ok(())
}
