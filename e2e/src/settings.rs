//! What `hack/test` says about the cluster to be tested.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::run;

/// Names and places of a cluster.
#[derive(Clone)]
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
    /// Those of the cluster that tests share, from the environment.
    ///
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

    /// Those of a cluster that is one test's own, whose names and places begin with the shared one's.
    /// What an earlier run of the test left is removed.
    ///
    /// # Errors
    /// As [`Settings::from_environment`] and [`Settings::purge`].
    pub fn own(test: &str) -> anyhow::Result<Self> {
        let shared = Self::from_environment()?;
        let (name, dir) = (format!("{}-{test}", shared.name), shared.dir.join(test));
        let folder = |flag: String| match Path::new(&flag).strip_prefix(&shared.dir) {
            Ok(below) => dir.join(below).display().to_string(),
            Err(_) if flag == shared.name => name.clone(),
            Err(_) => flag,
        };
        let folders = shared.folders.into_iter().map(folder).collect();
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let own = Self { name, dir, folders, ..shared };
        own.purge()?;
        Ok(own)
    }

    /// Stops the cluster and removes all of it, if there is one.
    ///
    /// # Errors
    /// What `coxswain down` printed.
    pub fn purge(&self) -> anyhow::Result<()> {
        run(self.coxswain(&["down", "--purge"]), "")?.text()?;
        // `down` knows nothing of a store that is not its own.
        match std::fs::remove_dir_all(self.dir.join("etcd")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// `coxswain` with these arguments and the cluster's folders.
    pub fn coxswain(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.coxswain);
        command.args(arguments).args(&self.folders).stdin(Stdio::null());
        command
    }
}
