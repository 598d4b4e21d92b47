//! Probes: a task for each probe of each container, and what they have found.

pub mod counter;
pub mod run;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::kubelet::Kubelet;
use crate::objects::{init_containers, is_sidecar, spec, uid};
use crate::pod::plan::Verdicts;
use crate::pod::status::Health;
use crate::runtime::{PodView, State};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }

    /// As events name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// A container as probes see it.
#[derive(Clone, Debug)]
pub struct Target {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub id: String,
    pub running: bool,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    pub ip: String,
    /// Told when it has started in the sense of its startup probe.
    pub started: Arc<Notify>,
}

type TaskKey = (String, String, Kind);

/// All probes of a kubelet and their results.
#[derive(Default)]
pub struct Prober {
    /// By container id.
    results: RwLock<HashMap<(String, Kind), bool>>,
    /// By pod and container name.
    targets: RwLock<HashMap<(String, String), Target>>,
    tasks: Mutex<HashMap<TaskKey, AbortHandle>>,
}

impl Prober {
    /// Takes note of a pod's containers and starts the probes that are missing.
    pub fn sync(&self, k: &Arc<Kubelet>, pod: &Arc<Pod>, view: &PodView) {
        let sidecars = init_containers(pod).iter().filter(|c| is_sidecar(c));
        let ip = match crate::objects::host_network(pod) {
            true => k.host_ips().first().cloned(),
            false => view.ips().first().cloned(),
        };
        for container in spec(pod).containers.iter().chain(sidecars) {
            let kinds: Vec<Kind> =
                Kind::ALL.into_iter().filter(|kind| kind.of(container).is_some()).collect();
            if kinds.is_empty() {
                continue;
            }
            let key = (uid(pod).to_owned(), container.name.clone());
            if let Some(found) = view.container(&container.name) {
                let started = self.target(&key).map(|target| target.started);
                let target = Target {
                    pod: Arc::clone(pod),
                    container: container.clone(),
                    id: found.id.clone(),
                    running: found.state == State::Running,
                    started_at: found.started_at,
                    ip: ip.clone().unwrap_or_default(),
                    started: started.unwrap_or_default(),
                };
                let before = self.targets.write().insert(key.clone(), target);
                if before.is_none() {
                    self.inherit(pod, container, &found.id);
                }
                if let Some(before) = before.filter(|b| b.id != found.id) {
                    self.results.write().retain(|(id, _), _| *id != before.id);
                }
            }
            let mut tasks = self.tasks.lock();
            for kind in kinds {
                let task_key = (key.0.clone(), key.1.clone(), kind);
                tasks.entry(task_key).or_insert_with(|| {
                    let (k, key) = (Arc::clone(k), key.clone());
                    tokio::spawn(run::run(k, key, kind)).abort_handle()
                });
            }
        }
    }

    /// Takes over what was reported of a container before the kubelet started: a pod that was
    /// ready does not leave its services because the kubelet comes back.
    fn inherit(&self, pod: &Pod, container: &Container, id: &str) {
        let status = crate::objects::status(pod);
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let full = format!("containerd://{id}");
        let mut same = all.filter(|s| s.name == container.name);
        let Some(reported) = same.find(|s| s.container_id.as_deref() == Some(&full)) else {
            return;
        };
        for (kind, was) in
            [(Kind::Startup, reported.started == Some(true)), (Kind::Readiness, reported.ready)]
        {
            if was && kind.of(container).is_some() {
                self.set(id, kind, true);
            }
        }
    }

    /// Ends a pod's probes.
    pub fn forget(&self, pod: &str) {
        self.tasks.lock().retain(|(uid, _, _), task| {
            if uid == pod {
                task.abort();
            }
            uid != pod
        });
        let mut ids = Vec::new();
        self.targets.write().retain(|(uid, _), target| {
            if uid == pod {
                ids.push(target.id.clone());
            }
            uid != pod
        });
        self.results.write().retain(|(id, _), _| !ids.contains(id));
    }

    fn target(&self, key: &(String, String)) -> Option<Target> {
        self.targets.read().get(key).cloned()
    }

    fn result(&self, id: &str, kind: Kind) -> Option<bool> {
        self.results.read().get(&(id.to_owned(), kind)).copied()
    }

    /// Keeps a result; whether it is a new one.
    fn set(&self, id: &str, kind: Kind, result: bool) -> bool {
        self.results.write().insert((id.to_owned(), kind), result) != Some(result)
    }
}

impl Verdicts for Prober {
    fn liveness(&self, container_id: &str) -> Option<bool> {
        self.result(container_id, Kind::Liveness)
    }

    fn startup(&self, container_id: &str) -> Option<bool> {
        self.result(container_id, Kind::Startup)
    }
}

impl Health for Prober {
    fn started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.result(id, Kind::Startup) == Some(true)
    }

    fn ready(&self, container: &Container, id: &str) -> bool {
        container.readiness_probe.is_none() || self.result(id, Kind::Readiness) == Some(true)
    }
}
