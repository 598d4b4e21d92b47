//! What `hack/test` says about the cluster to be tested.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;

/// Names and places, from the environment.
pub struct Settings {
    /// Name of the cluster, of its network namespace and its cgroup.
    pub name: String,
    /// Folder above all of the cluster's.
    pub dir: PathBuf,
    /// The binary.
    pub coxswain: PathBuf,
    /// Folder of OCI archives.
    pub images: PathBuf,
    pub kubectl: PathBuf,
    /// That of the minor version before.
    pub old_kubectl: PathBuf,
    folders: Vec<String>,
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run hack/test"))
}

impl Settings {
    /// # Errors
    /// A variable is not set.
    pub fn from_environment() -> anyhow::Result<Self> {
        Ok(Self {
            name: variable("E2E_NAME")?,
            dir: variable("E2E_DIR")?.into(),
            coxswain: variable("E2E_COXSWAIN")?.into(),
            images: variable("E2E_IMAGES")?.into(),
            kubectl: variable("E2E_KUBECTL")?.into(),
            old_kubectl: variable("E2E_KUBECTL_OLD")?.into(),
            folders: variable("E2E_FOLDERS")?.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// `coxswain` with these arguments and the cluster's folders.
    pub fn coxswain(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.coxswain);
        command.args(arguments).args(&self.folders).stdin(Stdio::null());
        command
    }
}
