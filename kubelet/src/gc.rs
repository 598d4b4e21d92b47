//! Collects what has had its day: dead containers, sandboxes without containers, and logs that
//! have grown too large.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;

use crate::kubelet::Kubelet;
use crate::runtime::labels;

const PERIOD: Duration = Duration::from_secs(60);
/// Dead containers kept of each container (upstream's `maxPerPodContainer`).
const KEEP: usize = 1;

/// Collects until shutdown.
pub async fn run(k: Arc<Kubelet>) {
    // How often logs are looked at.
    let period = k.config.container_log_monitor_interval.0.max(Duration::from_secs(1));
    let mut collected = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(period.min(PERIOD)) => {}
            () = k.shutdown.cancelled() => return,
        }
        let listed = k.cri.list_containers(cri::ListContainersRequest::default()).await;
        let Ok(listed) = listed else { continue };
        rotate_all(&k, &listed.containers).await;
        if collected.elapsed() >= PERIOD {
            collected = tokio::time::Instant::now();
            collect(&k, &listed.containers).await;
        }
    }
}

/// The dead containers to remove: of each container all but the newest.
fn superfluous(containers: &[cri::Container]) -> Vec<&cri::Container> {
    let mut by_name: BTreeMap<(&str, &str), Vec<&cri::Container>> = BTreeMap::new();
    for container in containers {
        let label = |key: &str| container.labels.get(key).map(String::as_str).unwrap_or_default();
        by_name
            .entry((label(labels::POD_UID), label(labels::CONTAINER_NAME)))
            .or_default()
            .push(container);
    }
    let exited = cri::ContainerState::ContainerExited as i32;
    let mut result = Vec::new();
    for ((uid, _), mut list) in by_name {
        if uid.is_empty() {
            continue;
        }
        list.retain(|c| c.state == exited);
        list.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        result.extend(list.into_iter().skip(KEEP));
    }
    result
}

async fn collect(k: &Kubelet, containers: &[cri::Container]) {
    for container in superfluous(containers) {
        let attempt = container.metadata.as_ref().map_or(0, |m| m.attempt);
        let request = cri::RemoveContainerRequest { container_id: container.id.clone() };
        if let Err(error) = k.cri.remove_container(request).await {
            tracing::debug!(%error, id = container.id, "dead container not removed");
            continue;
        }
        if let Some(path) = log_path(k, container, attempt) {
            remove_logs(&path);
        }
    }
    let Ok(listed) = k.cri.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await else {
        return;
    };
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let mut newest: HashMap<&str, i64> = HashMap::new();
    for sandbox in &listed.items {
        let uid = sandbox.labels.get(labels::POD_UID).map(String::as_str).unwrap_or_default();
        let at = newest.entry(uid).or_insert(i64::MIN);
        *at = sandbox.created_at.max(*at);
    }
    for sandbox in &listed.items {
        let uid = sandbox.labels.get(labels::POD_UID).map(String::as_str).unwrap_or_default();
        let used = containers.iter().any(|c| c.pod_sandbox_id == sandbox.id);
        let latest = newest.get(uid) == Some(&sandbox.created_at);
        if uid.is_empty() || sandbox.state == ready || used || latest {
            continue;
        }
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        if let Err(error) = k.cri.stop_pod_sandbox(request).await {
            tracing::debug!(%error, "dead sandbox not stopped");
        }
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        if let Err(error) = k.cri.remove_pod_sandbox(request).await {
            tracing::debug!(%error, "dead sandbox not removed");
        }
    }
    drop_dead_links(k);
}

/// Links to logs that are gone.
fn drop_dead_links(k: &Kubelet) {
    let Some(parent) = k.logs.parent() else { return };
    for entry in std::fs::read_dir(parent.join("containers")).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = std::fs::read_link(&path).is_ok_and(|target| target.starts_with(&k.logs));
        if ours
            && !path.exists()
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::debug!(%error, "dead link not removed");
        }
    }
}

/// The path of a container's log.
pub fn log_path(k: &Kubelet, container: &cri::Container, attempt: u32) -> Option<PathBuf> {
    let label = |key: &str| container.labels.get(key);
    let (namespace, name) = (label(labels::POD_NAMESPACE)?, label(labels::POD_NAME)?);
    let (uid, container) = (label(labels::POD_UID)?, label(labels::CONTAINER_NAME)?);
    let directory = k.logs.join(format!("{namespace}_{name}_{uid}")).join(container);
    Some(directory.join(format!("{attempt}.log")))
}

fn remove_logs(path: &Path) {
    for rotated in rotations(path).into_iter().chain([path.to_owned()]) {
        if let Err(error) = std::fs::remove_file(&rotated)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %rotated.display(), "log not removed");
        }
    }
}

/// The rotated files of a log, oldest first.
fn rotations(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .collect();
    found.sort();
    found
}

async fn rotate_all(k: &Kubelet, containers: &[cri::Container]) {
    let Ok(limit) = k.config.container_log_max_bytes() else { return };
    let running = cri::ContainerState::ContainerRunning as i32;
    for container in containers.iter().filter(|c| c.state == running) {
        let attempt = container.metadata.as_ref().map_or(0, |m| m.attempt);
        let Some(path) = log_path(k, container, attempt) else { continue };
        let large = std::fs::metadata(&path).is_ok_and(|m| m.len() >= limit);
        if large && let Err(error) = rotate(k, &container.id, &path).await {
            tracing::warn!(%error, path = %path.display(), "log not rotated");
        }
    }
}

/// Moves a log aside, has the runtime begin a new one, and drops the oldest.
async fn rotate(k: &Kubelet, id: &str, path: &Path) -> io::Result<()> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let aside = PathBuf::from(format!("{}.{stamp}", path.display()));
    std::fs::rename(path, &aside)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
    if let Err(error) = k.cri.reopen_container_log(request).await {
        // The runtime still writes to the old file: it gets its name back.
        std::fs::rename(&aside, path)?;
        return Err(io::Error::other(error.to_string()));
    }
    let keep = usize::try_from(k.config.container_log_max_files - 1).unwrap_or(1);
    let old = rotations(path);
    for path in old.iter().take(old.len().saturating_sub(keep)) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_dead_container_stays() {
        let make = |id: &str, name: &str, created_at, state: cri::ContainerState| cri::Container {
            id: id.into(),
            created_at,
            state: state as i32,
            labels: HashMap::from([
                (labels::POD_UID.to_owned(), "u".to_owned()),
                (labels::CONTAINER_NAME.to_owned(), name.to_owned()),
            ]),
            ..cri::Container::default()
        };
        use cri::ContainerState::{ContainerExited as Exited, ContainerRunning as Running};
        let list = [
            make("a1", "a", 1, Exited),
            make("a2", "a", 2, Exited),
            make("a3", "a", 3, Running),
            make("b1", "b", 1, Exited),
        ];
        let ids: Vec<&str> = superfluous(&list).iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["a1"]);
    }
}
