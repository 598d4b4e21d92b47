//! Tests of the real thing: a cluster in network namespaces of this machine, driven by stock
//! kubectl. `hack/test` says by environment what to drive.

pub mod manifests;
mod namespace;
mod run;
pub mod services;
mod settings;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use crate::namespace::Namespace;
pub use crate::run::{Output, Running, eventually, run};
pub use crate::settings::Settings;

/// How long most things may take on a slow machine.
pub const SOON: Duration = Duration::from_secs(90);
/// How long a cluster may take to come up.
const START: Duration = Duration::from_secs(180);

/// A cluster that was started for tests.
pub struct Cluster {
    settings: Settings,
    kubectl: PathBuf,
    /// For kubectl.
    environment: &'static [(&'static str, &'static str)],
}

/// What the API server answered to curl.
pub struct Answer {
    pub code: String,
    pub body: String,
}

impl Cluster {
    /// The cluster that runs, else a new one of two nodes.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn shared() -> anyhow::Result<Self> {
        let settings = Settings::from_environment()?;
        let kubectl = settings.kubectl.clone();
        let status = run(settings.coxswain(&["status"]), "")?;
        if status.stdout.contains("ready at") {
            return Ok(Self { settings, kubectl, environment: &[] });
        }
        Self::start(&settings, &["--nodes", "2"])
    }

    /// Starts `coxswain up` with these further arguments, and returns when all nodes are Ready.
    ///
    /// # Errors
    /// It ended, or took too long; the error has the end of its log.
    pub fn start(settings: &Settings, arguments: &[&str]) -> anyhow::Result<Self> {
        let log = settings.dir.join("up.log");
        let out = File::create(&log).with_context(|| log.display().to_string())?;
        let images = settings.images.display().to_string();
        let common = ["up", "--isolated", "--node-name", "node", "--images", &images];
        let mut command = settings.coxswain(&[&common[..], arguments].concat());
        let mut child = command.stdout(out.try_clone()?).stderr(out).spawn()?;
        let deadline = Instant::now() + START;
        while !std::fs::read_to_string(&log)?.contains("\nUse it:") {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let state = ended.map_or("is not up yet".to_owned(), |s| format!("ended, {s}"));
                let text = std::fs::read_to_string(&log)?;
                bail!("coxswain up {state}; its log: {}", run::tail(&text));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // It is ended by `down` or `kill`, perhaps of another process than this one: somebody must
        // wait for it, or it stays as a zombie.
        std::thread::spawn(move || child.wait());
        let (settings, kubectl) = (settings.clone(), settings.kubectl.clone());
        Ok(Self { settings, kubectl, environment: &[] })
    }

    /// What `coxswain up` wrote down about what runs.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn record(&self) -> anyhow::Result<Value> {
        let path = self.settings.dir.join("run/cluster.json");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Kills control plane and first node at once, as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        let pid = self.record()?["up"]["pid"].as_i64().context("a pid")?;
        kill_and_wait(pid)
    }

    /// Sends a signal to the process of control plane and first node.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.record()?["up"]["pid"].as_i64().context("a pid")?;
        Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
    }

    /// Kills the containerd of a node.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_containerd(&self, node: &str) -> anyhow::Result<()> {
        let path = self.settings.dir.join("run").join(node).join("containerd.pid");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let process: Value = serde_json::from_slice(&text)?;
        kill_and_wait(process["pid"].as_i64().context("a pid")?)
    }

    /// The process of a further node.
    ///
    /// # Errors
    /// Processes cannot be listed.
    pub fn node_process(&self, node: &str) -> anyhow::Result<Option<i64>> {
        let netns = format!("{}-{node}", self.settings.name);
        let is_it = |pid: &i64| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&&b"node"[..]) && words.contains(&netns.as_bytes())
        };
        let all = std::fs::read_dir("/proc")?.flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(pids.find(is_it))
    }

    /// Kills the process of a further node.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_node(&self, node: &str) -> anyhow::Result<()> {
        kill_and_wait(self.node_process(node)?.with_context(|| format!("{node} does not run"))?)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The same cluster by another version of kubectl.
    pub fn by_old_kubectl(&self) -> Self {
        let (settings, kubectl) = (self.settings.clone(), self.settings.old_kubectl.clone());
        Self { settings, kubectl, environment: &[] }
    }

    /// The same cluster by a kubectl that streams over SPDY, as all did before WebSockets.
    pub fn by_spdy(&self) -> Self {
        let environment = &[
            ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"),
            ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false"),
        ];
        let (settings, kubectl) = (self.settings.clone(), self.kubectl.clone());
        Self { settings, kubectl, environment }
    }

    /// A command inside the cluster's network namespace.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let netns = Path::new("/run/netns").join(&self.settings.name);
        command.arg(format!("--net={}", netns.display())).arg(program).stdin(Stdio::null());
        command
    }

    /// kubectl, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.inside(&self.kubectl);
        let config = self.settings.dir.join("etc/admin.conf");
        command.arg("--kubeconfig").arg(config).args(arguments);
        // Caches of discovery and HTTP: not those of whoever runs the tests.
        command.env("KUBECACHEDIR", self.settings.dir.join("cache"));
        command.envs(self.environment.iter().copied());
        command
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// It failed: what it printed to standard error.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// What kubectl prints when it reads `input`.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let output = run(self.command(arguments), input)?;
        output.text().with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// What kubectl says when it fails.
    ///
    /// # Errors
    /// It did not fail.
    pub fn refusal(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let output = run(self.command(arguments), input)?;
        ensure!(!output.success, "kubectl {} did not fail: {}", arguments.join(" "), output.stdout);
        Ok(output.stderr)
    }

    /// kubectl on a terminal, whose keyboard is what is written.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn terminal(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        let command = self.command(arguments);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line: Vec<String> =
            words.map(|w| format!("'{}'", w.to_string_lossy().replace('\'', r"'\''"))).collect();
        let mut script = Command::new("script");
        script.args(["-qec", &line.join(" "), "/dev/null"]).env("TERM", "xterm");
        Running::start(script)
    }

    /// An object, or a list of them, as JSON.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What the API server answers to curl, which brings no credentials of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> anyhow::Result<Answer> {
        let server = self.record()?["server"].as_str().context("a server")?.to_owned();
        let ca = self.settings.dir.join("etc/pki/ca.crt").display().to_string();
        self.ask(&format!("{server}{path}"), &[&["--cacert", &ca], arguments].concat())
    }

    /// What any server answers to curl, asked from the first node.
    ///
    /// # Errors
    /// There is no answer.
    pub fn ask(&self, url: &str, arguments: &[&str]) -> anyhow::Result<Answer> {
        let mut command = self.inside("curl".as_ref());
        // Named otherwise, because answers to curl and to browsers are indented.
        command.args(["-sS", "-A", "test", "-m", "20", "-w", "\n%{http_code}"]);
        command.args(arguments).arg(url);
        let text = run(command, "")?.text()?;
        let (body, code) = text.rsplit_once('\n').context("a status code")?;
        Ok(Answer { code: code.to_owned(), body: body.to_owned() })
    }

    /// The body of an answer to a plain HTTP request from the first node, not from a pod.
    ///
    /// # Errors
    /// There is none, or it is an error.
    pub fn fetch(&self, url: &str) -> anyhow::Result<String> {
        let mut command = self.inside("curl".as_ref());
        command.args(["-sSf", "-m", "5", url]);
        run(command, "")?.text()
    }

    /// Makes a namespace for a test, with its default service account.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn namespace(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::create(self, name)
    }
}

fn kill_and_wait(pid: i64) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid.try_into()?);
    kill(pid, Signal::SIGKILL).context("kill")?;
    eventually("it is dead", Duration::from_secs(10), || {
        ensure!(kill(pid, None).is_err(), "process {pid} lives");
        Ok(())
    })
}
