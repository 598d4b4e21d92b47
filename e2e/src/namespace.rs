//! A test's own namespace.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::manifests::idle;
use crate::{Cluster, Running, SOON, eventually};

/// A namespace of a test, deleted at its end.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Namespace<'a> {
    pub(crate) fn create(cluster: &'a Cluster, name: &str) -> anyhow::Result<Self> {
        // A run before this one on the same cluster may still be about to delete its own.
        let name = format!("{name}-{}", std::process::id());
        cluster.kubectl(&["create", "namespace", &name])?;
        eventually("the namespace has its account", Duration::from_secs(20), || {
            cluster.kubectl(&["get", "serviceaccount", "default", "-n", &name]).map(drop)
        })?;
        Ok(Self { cluster, name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    fn with<'b>(&'b self, arguments: &[&'b str]) -> Vec<&'b str> {
        [&["-n", self.name.as_str()], arguments].concat()
    }

    /// kubectl in this namespace.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&self.with(arguments))
    }

    /// As [`Cluster::kubectl_with`].
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.kubectl_with(&self.with(arguments), input)
    }

    /// As [`Cluster::refusal`].
    ///
    /// # Errors
    /// It did not fail.
    pub fn refusal(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.refusal(&self.with(arguments), input)
    }

    /// As [`Cluster::terminal`].
    ///
    /// # Errors
    /// As [`Cluster::terminal`].
    pub fn terminal(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        self.cluster.terminal(&self.with(arguments))
    }

    /// As [`Cluster::get`].
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.cluster.get(&self.with(arguments))
    }

    /// A pod, when it fulfils a condition.
    ///
    /// # Errors
    /// It does not in time: its status.
    pub fn pod(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        eventually(what, SOON, || {
            let pod = self.get(&["pod", name])?;
            ensure!(holds(&pod), "{}", pod["status"]);
            Ok(pod)
        })
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifest)
    }

    /// Applies a manifest of pods, and waits until one is Ready.
    ///
    /// # Errors
    /// It does not become so in time: its status.
    pub fn ready(&self, manifest: &str, pod: &str) -> anyhow::Result<()> {
        self.apply(manifest)?;
        let ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions
                .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        };
        self.pod(pod, &format!("pod {pod} is Ready"), ready).map(drop)
    }

    /// Starts a pod to run commands in.
    ///
    /// # Errors
    /// As [`Namespace::ready`].
    pub fn idle(&self, name: &str) -> anyhow::Result<()> {
        self.ready(&idle(name), name)
    }

    /// Waits until a Deployment or the like is rolled out.
    ///
    /// # Errors
    /// It is not in time: the namespace's pods.
    pub fn rolled_out(&self, what: &str) -> anyhow::Result<()> {
        let status = self.kubectl(&["rollout", "status", what, "--timeout=120s"]);
        status.map(drop).or_else(|error| {
            let pods = self.kubectl(&["get", "pods", "-o", "wide"])?;
            Err(error.context(pods))
        })
    }

    /// Starts kubectl and leaves it running.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        Running::start(self.cluster.command(&self.with(arguments))).context("kubectl")
    }

    /// Runs a shell script in a pod's first container.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn shell(&self, pod: &str, script: &str) -> anyhow::Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // What cannot be deleted here goes with the cluster.
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
