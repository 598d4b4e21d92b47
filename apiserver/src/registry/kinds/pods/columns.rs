//! What tables show of pods.

use apimachinery::amounts::is_sidecar;
use apimachinery::{Value, object};
use jiff::Timestamp;

use super::super::cells::{age_column, column, named, or_none, since, wide};
use crate::registry::Column;

/// The columns of pods.
pub fn columns() -> Vec<Column> {
    named([
        column("Ready", "string", "Containers that are ready, of all.", |p, _| {
            let summary = Summary::of(p);
            format!("{}/{}", summary.ready, summary.total).into()
        }),
        column("Status", "string", "What the containers of the pod are doing.", |p, _| {
            Summary::of(p).reason.into()
        }),
        column("Restarts", "string", "Restarts of its containers, and the last one.", restarts),
        age_column(),
        wide("IP", "string", "Address of the pod.", |p, _| or_none(first_ip(p))),
        wide("Node", "string", "Node that the pod is bound to.", |p, _| {
            or_none(object::str_at(p, &["spec", "nodeName"]))
        }),
        wide("Nominated Node", "string", "Node that is being cleared for the pod.", |p, _| {
            or_none(object::str_at(p, &["status", "nominatedNodeName"]))
        }),
        wide("Readiness Gates", "string", "Gates whose conditions are true, of all.", gates),
    ])
}

/// The pod's first address, or an empty text.
pub fn first_ip(pod: &Value) -> &str {
    match object::list_at(pod, &["status", "podIPs"]).first() {
        Some(entry) => object::str_at(entry, &["ip"]),
        None => object::str_at(pod, &["status", "podIP"]),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> Value {
    let summary = Summary::of(pod);
    match (summary.restarts, summary.last_restart) {
        (0, _) | (_, "") => summary.restarts.to_string().into(),
        (n, last) => format!("{n} ({} ago)", since(last, now)).into(),
    }
}

fn gates(pod: &Value, _: Timestamp) -> Value {
    let gates = object::list_at(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates.iter().filter(|g| is_true(pod, object::str_at(g, &["conditionType"]))).count();
    format!("{open}/{}", gates.len()).into()
}

fn is_true(pod: &Value, condition: &str) -> bool {
    object::list_at(pod, &["status", "conditions"])
        .iter()
        .find(|c| object::str_at(c, &["type"]) == condition)
        .is_some_and(|c| object::str_at(c, &["status"]) == "True")
}

/// A pod in a line.
struct Summary<'a> {
    ready: usize,
    total: usize,
    restarts: i64,
    /// When a container last ended to be started again; empty for never.
    last_restart: &'a str,
    reason: String,
}

/// State of one container.
fn state<'a>(status: &'a Value, which: &str) -> Option<&'a Value> {
    object::get(status, &["state", which])
}

/// Why a container ended: its reason, or its signal, or its exit code.
fn ended(terminated: &Value) -> String {
    let number = |field: &str| object::int_at(terminated, &[field]).unwrap_or(0);
    match (object::str_at(terminated, &["reason"]), number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Value) -> Self {
        let init = object::list_at(pod, &["spec", "initContainers"]);
        let phase = object::str_at(pod, &["status", "phase"]);
        let mut reason = match object::str_at(pod, &["status", "reason"]) {
            "" => phase,
            reason => reason,
        };
        let gated = object::list_at(pod, &["status", "conditions"]).iter().any(|c| {
            object::str_at(c, &["type"]) == "PodScheduled"
                && object::str_at(c, &["reason"]) == "SchedulingGated"
        });
        if gated {
            reason = "SchedulingGated";
        }
        let sidecars = init.iter().filter(|c| is_sidecar(c)).count();
        let mut summary = Summary {
            ready: 0,
            total: object::list_at(pod, &["spec", "containers"]).len() + sidecars,
            restarts: 0,
            last_restart: "",
            reason: reason.to_owned(),
        };
        let of_sidecars = summary.init_phase(pod, init);
        if let Some((restarts, last)) = of_sidecars {
            summary.restarts = restarts;
            summary.last_restart = last;
            summary.main_phase(pod);
        }
        summary.leaving(pod, phase);
        summary
    }

    fn count_restarts(&mut self, status: &'a Value) {
        self.restarts += object::int_at(status, &["restartCount"]).unwrap_or(0);
        let last = object::str_at(status, &["lastState", "terminated", "finishedAt"]);
        // RFC 3339 in UTC orders as text.
        if last > self.last_restart {
            self.last_restart = last;
        }
    }

    /// Goes over the init containers. Gives the restarts of sidecars when the main containers'
    /// turn has come.
    fn init_phase(&mut self, pod: &'a Value, init: &[Value]) -> Option<(i64, &'a str)> {
        let mut of_sidecars: (i64, &str) = (0, "");
        let mut initializing = false;
        for (i, status) in
            object::list_at(pod, &["status", "initContainerStatuses"]).iter().enumerate()
        {
            self.count_restarts(status);
            let name = object::str_at(status, &["name"]);
            let sidecar =
                init.iter().any(|c| object::str_at(c, &["name"]) == name && is_sidecar(c));
            if sidecar {
                of_sidecars.0 += object::int_at(status, &["restartCount"]).unwrap_or(0);
                let last = object::str_at(status, &["lastState", "terminated", "finishedAt"]);
                of_sidecars.1 = of_sidecars.1.max(last);
            }
            let terminated = state(status, "terminated");
            if terminated.is_some_and(|t| object::int_at(t, &["exitCode"]).unwrap_or(0) == 0) {
                continue;
            }
            if sidecar && object::bool_at(status, &["started"]) {
                self.ready += usize::from(object::bool_at(status, &["ready"]));
                continue;
            }
            let waiting = state(status, "waiting").map_or("", |w| object::str_at(w, &["reason"]));
            self.reason = match (terminated, waiting) {
                (Some(terminated), _) => format!("Init:{}", ended(terminated)),
                (None, "" | "PodInitializing") => format!("Init:{i}/{}", init.len()),
                (None, reason) => format!("Init:{reason}"),
            };
            initializing = true;
            break;
        }
        (!initializing || is_true(pod, "Initialized")).then_some(of_sidecars)
    }

    fn main_phase(&mut self, pod: &'a Value) {
        let mut running = false;
        let mut error = String::new();
        for status in object::list_at(pod, &["status", "containerStatuses"]).iter().rev() {
            self.count_restarts(status);
            let waiting = state(status, "waiting").map_or("", |w| object::str_at(w, &["reason"]));
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = state(status, "terminated") {
                self.reason = ended(terminated);
                if object::int_at(terminated, &["exitCode"]).unwrap_or(0) != 0 {
                    error = self.reason.clone();
                }
            } else if object::bool_at(status, &["ready"]) && state(status, "running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if running && is_true(pod, "Ready") {
                self.reason = "Running".to_owned();
            } else if !error.is_empty() {
                self.reason = error;
            } else if running {
                self.reason = "NotReady".to_owned();
            }
        }
    }

    fn leaving(&mut self, pod: &Value, phase: &str) {
        if object::deletion_timestamp(pod).is_empty() {
            return;
        }
        if object::str_at(pod, &["status", "reason"]) == "NodeLost" {
            self.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            self.reason = "Terminating".to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_says_what_matters_most() {
        let waiting = |reason: &str| json!({"name": "a", "state": {"waiting": {"reason": reason}}});
        let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
        let ended = |code: i64| json!({"name": "a", "state": {"terminated": {"exitCode": code}}});
        for (status, deleting, expected) in [
            (json!({"phase": "Pending"}), false, "0/1 Pending"),
            (
                json!({"phase": "Pending", "containerStatuses": [waiting("ImagePullBackOff")]}),
                false,
                "0/1 ImagePullBackOff",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running.clone()]}),
                false,
                "1/1 Running",
            ),
            (json!({"phase": "Running", "containerStatuses": [running]}), true, "1/1 Terminating"),
            (json!({"phase": "Failed", "containerStatuses": [ended(3)]}), true, "0/1 ExitCode:3"),
            (
                json!({"phase": "Pending", "initContainerStatuses": [waiting("")]}),
                false,
                "0/1 Init:0/1",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [ended(1)]}),
                false,
                "0/1 Init:ExitCode:1",
            ),
        ] {
            let mut pod = json!({
                "metadata": {}, "status": status,
                "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "a"}]},
            });
            if deleting {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let summary = Summary::of(&pod);
            assert_eq!(format!("{}/{} {}", summary.ready, summary.total, summary.reason), expected);
        }
    }
}
