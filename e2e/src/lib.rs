//! Tests of the real thing: a cluster in network namespaces of this machine, driven by stock
//! kubectl. `hack/test` says by environment what to drive.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// A cluster that was started for tests.
pub struct Cluster {
    netns: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    log: PathBuf,
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run hack/test"))
}

/// The arguments that name the cluster's folders.
fn folders() -> anyhow::Result<Vec<String>> {
    Ok(variable("E2E_FOLDERS")?.split_whitespace().map(str::to_owned).collect())
}

/// `coxswain` with these arguments and the cluster's folders.
pub fn coxswain(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(variable("E2E_COXSWAIN")?);
    command.args(arguments).args(folders()?).stdin(Stdio::null());
    Ok(command)
}

impl Cluster {
    /// Starts `coxswain up` with these further arguments, and returns when all nodes are Ready.
    ///
    /// # Errors
    /// It ended, or took too long; the error has the end of its log.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let dir = PathBuf::from(variable("E2E_DIR")?);
        let log = dir.join("up.log");
        let out = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let images = variable("E2E_IMAGES")?;
        let common = ["up", "--isolated", "--node-name", "node", "--images", &images];
        let mut command = coxswain(&[&common[..], arguments].concat())?;
        let mut child = command.stdout(out.try_clone()?).stderr(out).spawn()?;
        let cluster = Self {
            netns: "/run/netns/cxtest".to_owned(),
            kubeconfig: dir.join("etc/admin.conf"),
            kubectl: variable("E2E_KUBECTL")?.into(),
            log,
        };
        eventually("the cluster is up", Duration::from_secs(90), || {
            if let Some(status) = child.try_wait()? {
                bail!("coxswain up ended with {status}");
            }
            let text = cluster.log()?;
            anyhow::ensure!(text.contains("\nUse it:"), "its log: {}", tail(&text));
            Ok(())
        })?;
        Ok(cluster)
    }

    fn log(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }

    /// The same cluster by another version of kubectl.
    ///
    /// # Errors
    /// It is not named in the environment.
    pub fn by_old_kubectl(&self) -> anyhow::Result<Self> {
        Ok(Self {
            netns: self.netns.clone(),
            kubeconfig: self.kubeconfig.clone(),
            kubectl: variable("E2E_KUBECTL_OLD")?.into(),
            log: self.log.clone(),
        })
    }

    /// A command inside the cluster's network namespace.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns)).arg(program).stdin(Stdio::null());
        command
    }

    /// kubectl, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.inside(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// It failed: what it printed to standard error.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments).output().context("kubectl")?;
        printed(arguments, &output)
    }

    /// What kubectl prints when it reads `input`.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl")?;
        child.stdin.take().context("kubectl")?.write_all(input.as_bytes())?;
        printed(arguments, &child.wait_with_output()?)
    }

    /// What kubectl says when it fails.
    ///
    /// # Errors
    /// It did not fail.
    pub fn refusal(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        match self.kubectl_with(arguments, input) {
            Ok(text) => bail!("kubectl {} did not fail: {text}", arguments.join(" ")),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// An object, or a list of them, as JSON.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Makes a namespace for a test, with its default service account.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn namespace(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        self.kubectl(&["create", "namespace", name])?;
        eventually("the namespace has its account", Duration::from_secs(20), || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", name]).map(drop)
        })?;
        Ok(Namespace { cluster: self, name: name.to_owned() })
    }
}

/// A namespace of a test, deleted at its end.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Namespace<'_> {
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

    /// As [`Cluster::get`].
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.cluster.get(&self.with(arguments))
    }

    /// Starts kubectl and leaves it running.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        let mut command = self.cluster.command(&self.with(arguments));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Running(command.spawn().context("kubectl")?))
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

/// A process that is ended when it is dropped.
pub struct Running(Child);

impl Running {
    /// Ends it and returns what it printed.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn end(mut self) -> anyhow::Result<String> {
        self.0.kill()?;
        let mut text = String::new();
        if let Some(mut out) = self.0.stdout.take() {
            std::io::Read::read_to_string(&mut out, &mut text)?;
        }
        Ok(text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn printed(arguments: &[&str], output: &Output) -> anyhow::Result<String> {
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("kubectl {}: {}", arguments.join(" "), text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Tries until it succeeds.
///
/// # Errors
/// The last failure, when the time is up.
pub fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not within {} s: {what}", patience.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A Deployment of the test server, and its Service on port 80.
pub fn web(name: &str, replicas: u32) -> String {
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
      - name: server
        image: localhost/test:1
        command: [testserver]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    )
}

/// A pod that does nothing, for running commands in.
pub fn idle(name: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: 'localhost/test:1', command: [sleep, infinity]}}]
"
    )
}
