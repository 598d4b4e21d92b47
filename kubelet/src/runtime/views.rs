//! Reads what the runtime has of a pod.

use std::collections::HashMap;
use std::path::Path;

use k8s_cri::v1 as cri;
use parking_lot::Mutex;

use super::model::{ContainerView, PodView, SandboxView, State};
use super::{Cri, RuntimeError, labels};
use crate::logs;

/// The most that is kept of a termination message (upstream's limits).
const MESSAGE_BYTES: u64 = 4096;
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;

/// Reads pods from the runtime, remembering what cannot change: containers that have exited.
pub struct Views {
    cri: Cri,
    exited: Mutex<HashMap<String, ContainerView>>,
}

impl Views {
    pub fn new(cri: Cri) -> Self {
        Self { cri, exited: Mutex::default() }
    }

    /// Forgets containers that are no longer there.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.exited.lock().retain(|id, _| exists(id));
    }

    /// What the runtime has of a pod.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn pod(&self, uid: &str) -> Result<PodView, RuntimeError> {
        let selector = HashMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
        let sandboxes = self.cri.list_pod_sandbox(cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter {
                label_selector: selector.clone(),
                ..cri::PodSandboxFilter::default()
            }),
        });
        let containers = self.cri.list_containers(cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter {
                label_selector: selector,
                ..cri::ContainerFilter::default()
            }),
        });
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        let mut view = PodView { uid: uid.to_owned(), ..PodView::default() };
        for sandbox in sandboxes.items {
            if let Some(meta) = &sandbox.metadata {
                view.namespace.clone_from(&meta.namespace);
                view.name.clone_from(&meta.name);
            }
            match self.cri.sandbox(&sandbox.id).await {
                Ok(status) => view.sandboxes.push(sandbox_view(status)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        for container in containers.containers {
            match self.container(&container).await {
                Ok(found) => view.containers.push(found),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        view.sandboxes
            .sort_by_key(|s| (std::cmp::Reverse(s.attempt), std::cmp::Reverse(s.created_at)));
        view.containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        Ok(view)
    }

    async fn container(&self, listed: &cri::Container) -> Result<ContainerView, RuntimeError> {
        if let Some(known) = self.exited.lock().get(&listed.id) {
            return Ok(known.clone());
        }
        let status = self.cri.container(&listed.id).await?;
        let mut view = container_view(&status);
        view.sandbox.clone_from(&listed.pod_sandbox_id);
        if view.state == State::Exited {
            append_termination_message(&status, &mut view).await;
            self.exited.lock().insert(view.id.clone(), view.clone());
        }
        Ok(view)
    }
}

fn sandbox_view(status: cri::PodSandboxStatus) -> SandboxView {
    let ready = status.state == cri::PodSandboxState::SandboxReady as i32;
    let namespaces = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
    let host = cri::NamespaceMode::Node as i32;
    let mut ips = Vec::new();
    if let Some(network) = status.network.filter(|n| ready && !n.ip.is_empty()) {
        ips.push(network.ip);
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    }
    SandboxView {
        id: status.id,
        attempt: status.metadata.map_or(0, |m| m.attempt),
        created_at: status.created_at,
        ready,
        host_network: namespaces.is_some_and(|o| o.network == host),
        ips,
    }
}

fn container_view(status: &cri::ContainerStatus) -> ContainerView {
    let annotation =
        |key: &str| status.annotations.get(key).map(String::as_str).unwrap_or_default();
    let name = match status.labels.get(labels::CONTAINER_NAME) {
        Some(name) => name.clone(),
        None => status.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
    };
    ContainerView {
        id: status.id.clone(),
        name,
        sandbox: String::new(),
        state: State::of(status.state),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: status.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
        image_ref: status.image_ref.clone(),
        hash: u64::from_str_radix(annotation(labels::HASH), 16).unwrap_or(0),
        restart_count: annotation(labels::RESTART_COUNT).parse().unwrap_or(0),
        log_path: status.log_path.clone(),
        resources: status.resources.as_ref().and_then(|r| r.linux.clone()),
        user: status.user.as_ref().and_then(|u| u.linux.clone()),
    }
}

/// What the container left as its last words: its file, or the end of its log when it failed and
/// asked for that.
async fn append_termination_message(status: &cri::ContainerStatus, view: &mut ContainerView) {
    let annotation =
        |key: &str| status.annotations.get(key).map(String::as_str).unwrap_or_default();
    let path = annotation(labels::TERMINATION_PATH);
    let fall_back = annotation(labels::TERMINATION_POLICY) == "FallbackToLogsOnError"
        && (view.exit_code != 0 || view.reason == "OOMKilled");
    let mount = status.mounts.iter().find(|m| !path.is_empty() && m.container_path == path);
    let mut words = mount.map(|m| read_message(Path::new(&m.host_path))).unwrap_or_default();
    if words.is_empty() && fall_back && !status.log_path.is_empty() {
        let path = Path::new(&status.log_path);
        logs::written(path, status.finished_at).await;
        words = logs::last_words(path, LOG_LINES, LOG_BYTES);
    }
    if !words.is_empty() {
        if !view.message.is_empty() {
            view.message.push_str(": ");
        }
        view.message.push_str(&words);
    }
}

fn read_message(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|f| f.take(MESSAGE_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => format!("Error on reading termination log {}: {error}", path.display()),
    }
}
