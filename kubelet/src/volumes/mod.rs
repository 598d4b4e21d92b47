//! Volumes: directories of a pod that its containers see. Their places are upstream's, so that
//! either kubelet finds the other's.

pub mod atomic;
pub mod files;
pub mod mounts;
pub mod ownership;
pub mod payload;
pub mod setup;

use std::path::{Path, PathBuf};

/// The directory of all that belongs to a pod.
pub fn pod_directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// The directory of a volume of a plugin (`empty-dir`, `configmap`).
pub fn volume_directory(root: &Path, uid: &str, plugin: &str, volume: &str) -> PathBuf {
    pod_directory(root, uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
}
