//! Static pods: from files of a directory, shown in the API by mirror pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client::{Cache, Key};
use fingerprint::digest;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::PostParams;
use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::kubelet::Kubelet;
use crate::objects::{
    CONFIG_HASH, CONFIG_MIRROR, CONFIG_SEEN, CONFIG_SOURCE, annotation, name, namespace, uid,
};
use crate::pod::report;

/// A digest for names that must not change while a manifest does not.
mod fingerprint {
    /// 128 bits of FNV-1a, in hexadecimal.
    pub fn digest(data: &[u8]) -> String {
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for byte in data {
            hash =
                (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        format!("{hash:032x}")
    }
}

/// The static pods there are.
#[derive(Clone, Default)]
pub struct StaticPods {
    pods: Arc<RwLock<Vec<Arc<Pod>>>>,
}

impl StaticPods {
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.pods.read().clone()
    }

    /// Reads the path once.
    pub fn read(&self, path: &Path, node: &str, known: &mut Known) -> bool {
        let fresh = known.read(path, node);
        let changed = {
            let old = self.pods.read();
            old.len() != fresh.len() || old.iter().zip(&fresh).any(|(a, b)| !Arc::ptr_eq(a, b))
        };
        if changed {
            *self.pods.write() = fresh;
        }
        changed
    }

    /// Reads the path again and again until shutdown; tells `changed` of differences.
    pub async fn follow(
        self,
        k: Arc<Kubelet>,
        path: PathBuf,
        mut known: Known,
        changed: Arc<Notify>,
    ) {
        // Looking at the times of a few files is cheap; upstream is told by inotify.
        let period = k.config.file_check_frequency.0.min(Duration::from_secs(2));
        loop {
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = k.shutdown.cancelled() => return,
            }
            if self.read(&path, &k.node_name, &mut known) {
                changed.notify_one();
            }
        }
    }
}

/// Files as they were read last.
#[derive(Default)]
pub struct Known {
    files: BTreeMap<PathBuf, (SystemTime, u64, Option<Arc<Pod>>)>,
}

impl Known {
    fn read(&mut self, path: &Path, node: &str) -> Vec<Arc<Pod>> {
        let mut paths = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                if !entry.file_name().to_string_lossy().starts_with('.') && entry.path().is_file() {
                    paths.push(entry.path());
                }
            }
        } else if path.is_file() {
            paths.push(path.to_owned());
        }
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            let stamp = (meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len());
            if self.files.get(&path).is_some_and(|(time, size, _)| (*time, *size) == stamp) {
                continue;
            }
            let pod = match load(&path, node) {
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = format!("{error:#}"), "no static pod");
                    // What runs from the file's last good state goes on.
                    self.files.get(&path).and_then(|(_, _, pod)| pod.clone())
                }
            };
            self.files.insert(path, (stamp.0, stamp.1, pod));
        }
        self.files.values().filter_map(|(_, _, pod)| pod.clone()).collect()
    }
}

fn load(path: &Path, node: &str) -> anyhow::Result<Pod> {
    let text = std::fs::read_to_string(path)?;
    let value: serde_json::Value = serde_saphyr::from_str(&text)?;
    anyhow::ensure!(value.get("kind").and_then(|k| k.as_str()) == Some("Pod"), "it is not a Pod");
    complete(serde_json::from_value(value)?, &text, path, node)
}

/// Gives a pod from a file what the API server would have given it.
fn complete(mut pod: Pod, text: &str, path: &Path, node: &str) -> anyhow::Result<Pod> {
    anyhow::ensure!(!name(&pod).is_empty(), "it has no name");
    let meta = &mut pod.metadata;
    let hash = digest(format!("host:{node}\nfile:{}\n{text}", path.display()).as_bytes());
    // A manifest may name the uid itself; then that stands for the manifest, as upstream has it.
    let uid = meta.uid.take().filter(|uid| !uid.is_empty()).unwrap_or(hash);
    meta.uid = Some(uid.clone());
    meta.name = meta.name.take().map(|n| format!("{n}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    meta.generation = Some(1);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), uid);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert(CONFIG_SEEN.into(), jiff::Timestamp::now().to_string());
    let Some(spec) = &mut pod.spec else { anyhow::bail!("it has no spec") };
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    // Static pods stay whatever happens to the node.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
        container.termination_message_policy.get_or_insert_with(|| "File".into());
        container.resources.get_or_insert_default();
        let latest = container.image.as_deref().is_some_and(|i| {
            crate::images::with_default_tag(i).is_ok_and(|i| i.ends_with(":latest"))
        });
        let policy = if latest { "Always" } else { "IfNotPresent" };
        container.image_pull_policy.get_or_insert_with(|| policy.into());
    }
    Ok(pod)
}

/// Makes the mirror pods in the API as the static pods are: creates the missing, deletes those
/// whose pod is gone or has changed.
pub async fn mirror(k: &Kubelet, statics: &[Arc<Pod>], api: Option<&Cache<Pod>>) {
    let (Some(client), Some(api)) = (&k.client, api) else { return };
    if !api.is_synced() {
        return;
    }
    let mut fitting = Vec::new();
    for existing in api.list().iter().filter(|p| crate::objects::is_mirror(p)) {
        let current = statics.iter().any(|s| {
            Key::of(&**s) == Key::of(&**existing)
                && annotation(existing, CONFIG_MIRROR) == annotation(s, CONFIG_HASH)
        });
        if current && existing.metadata.deletion_timestamp.is_none() {
            fitting.push(Key::of(&**existing));
        } else if let Err(error) = report::delete(k, existing).await {
            tracing::warn!(pod = name(existing), %error, "mirror pod not deleted");
        }
    }
    let Some(node) = k.node.as_ref().and_then(|n| n.list().first().cloned()) else { return };
    for pod in statics.iter().filter(|p| !fitting.contains(&Key::of(&***p))) {
        let mut copy = Pod::clone(pod);
        copy.status = None;
        let hash = uid(pod).to_owned();
        copy.metadata.uid = None;
        copy.metadata.annotations.get_or_insert_default().insert(CONFIG_MIRROR.into(), hash);
        copy.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: k.node_name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
        match pods.create(&PostParams::default(), &copy).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => tracing::warn!(pod = name(pod), %error, "mirror pod not created"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_pods_and_keep_their_identity() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n";
        std::fs::write(&file, text).unwrap();
        std::fs::write(dir.path().join(".hidden"), text).unwrap();
        std::fs::write(dir.path().join("broken"), "kind: Node\n").unwrap();
        let (pods, mut known) = (StaticPods::default(), Known::default());
        assert!(pods.read(dir.path(), "Node1", &mut known));
        let first = pods.list();
        assert_eq!(first.len(), 1);
        assert_eq!(name(&first[0]), "a-node1");
        assert!(crate::objects::is_static(&first[0]));
        assert!(!pods.read(dir.path(), "Node1", &mut known), "nothing changed");
        std::fs::write(&file, text.replace("image: i", "image: other")).unwrap();
        assert!(pods.read(dir.path(), "Node1", &mut known));
        assert_ne!(uid(&pods.list()[0]), uid(&first[0]));
        std::fs::remove_file(&file).unwrap();
        assert!(pods.read(dir.path(), "Node1", &mut known));
        assert!(pods.list().is_empty());
    }
}
