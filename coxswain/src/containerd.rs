//! A node's containerd: configured, started, found again after a restart, and kept running.
//!
//! It survives us, and containers survive it: their shims are processes of their own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::node::PAUSE_IMAGE;
use crate::process::Process;

/// The oldest containerd with CRI v1.
const OLDEST: (u32, u32) = (1, 6);
/// How long a containerd may take to answer.
const START: Duration = Duration::from_secs(20);

/// One containerd.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// Images, snapshots, metadata.
    pub root: PathBuf,
    /// Running containers, its socket and its pid.
    pub run: PathBuf,
    pub pause_image: String,
    pub cni_config: PathBuf,
    pub cni_plugins: PathBuf,
    pub log: PathBuf,
}

impl Containerd {
    /// That of a node with these folders.
    pub fn of(data: &Path, run: &Path, cni_plugins: &Path) -> Self {
        Self {
            root: data.join("containerd"),
            run: run.to_owned(),
            pause_image: PAUSE_IMAGE.to_owned(),
            cni_config: data.join("cni"),
            cni_plugins: cni_plugins.to_owned(),
            log: data.join("containerd.log"),
        }
    }

    pub fn socket(&self) -> PathBuf {
        crate::layout::containerd_socket(&self.run)
    }

    fn pid_file(&self) -> PathBuf {
        self.run.join("containerd.pid")
    }

    fn config(&self) -> String {
        let Self { root, run, pause_image, cni_config, cni_plugins, .. } = self;
        // Inside a container, or a sandbox, processes cannot be shielded from the OOM killer.
        let restrict = !has_sys_resource();
        let oom_score = if restrict { 0 } else { -999 };
        format!(
            r#"version = 2
root = {root:?}
state = {state:?}
oom_score = {oom_score}
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = {socket:?}

[ttrpc]
address = {ttrpc:?}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {pause_image:?}
restrict_oom_score_adj = {restrict}
stream_server_address = "127.0.0.1"
stream_server_port = "0"
enable_unprivileged_ports = true
enable_unprivileged_icmp = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {cni_plugins:?}
conf_dir = {cni_config:?}
"#,
            state = run.join("containerd"),
            socket = self.socket(),
            ttrpc = run.join("containerd.sock.ttrpc"),
        )
    }

    /// Whether it answers.
    async fn answers(&self) -> bool {
        UnixStream::connect(self.socket()).await.is_ok()
    }

    /// Starts it, or finds it running, and returns when it answers.
    ///
    /// # Errors
    /// It ended, with the end of its log; or it does not answer in time.
    pub async fn start(&self) -> anyhow::Result<Running> {
        files::make_dir(&self.root)?;
        files::make_dir(&self.run)?;
        let config = self.root.join("config.toml");
        files::update_public(&config, &self.config())?;
        if let Some(process) = Process::read(&self.pid_file())
            && process.is_alive()
        {
            self.wait(None).await?;
            return Ok(Running::Found(process));
        }
        let log =
            std::fs::File::create(&self.log).with_context(|| self.log.display().to_string())?;
        let mut child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: a Ctrl-C for us is not for it.
            .process_group(0)
            .spawn()
            .context("containerd cannot be started")?;
        if let Some(pid) = child.id() {
            Process::of(pid)?.write(&self.pid_file())?;
        }
        self.wait(Some(&mut child)).await?;
        Ok(Running::Started(child))
    }

    async fn wait(&self, mut child: Option<&mut Child>) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + START;
        while !self.answers().await {
            if let Some(child) = child.as_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("containerd ended with {status}: {}", tail(&self.log));
            }
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "containerd does not answer on {}: {}",
                    self.socket().display(),
                    tail(&self.log)
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Keeps it running until shutdown; leaves it running then.
    pub async fn keep(&self, mut running: Running, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = running.ended() => {}
            }
            tracing::warn!("containerd ended; starting it again");
            running = loop {
                match self.start().await {
                    Ok(running) => break running,
                    Err(error) => tracing::error!(error = format!("{error:#}"), "containerd"),
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(2)) => {}
                }
            };
        }
    }

    /// Imports each OCI archive of a folder that was not imported yet.
    ///
    /// # Errors
    /// What `ctr` printed.
    pub async fn import(&self, archives: &Path) -> anyhow::Result<()> {
        let Ok(entries) = std::fs::read_dir(archives) else { return Ok(()) };
        for entry in entries {
            let path = entry.with_context(|| archives.display().to_string())?.path();
            if path.extension().is_some_and(|e| e == "tar") {
                self.import_one(&path).await.with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    async fn import_one(&self, archive: &Path) -> anyhow::Result<()> {
        let meta = std::fs::metadata(archive)?;
        let mark = self.root.join("imported").join(archive.file_name().unwrap_or_default());
        let modified = meta.modified()?.duration_since(std::time::UNIX_EPOCH)?;
        let stamp = format!("{} {}\n", meta.len(), modified.as_nanos());
        if std::fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
            return Ok(());
        }
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import", "--digests"])
            .arg(archive)
            .output()
            .await
            .context("ctr cannot be started")?;
        if !output.status.success() {
            bail!("ctr images import: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        files::write_public(&mark, &stamp)
    }
}

/// A containerd that answers.
pub enum Running {
    /// Our child.
    Started(Child),
    /// Started by an earlier run of ours.
    Found(Process),
}

impl Running {
    async fn ended(&mut self) {
        match self {
            Self::Started(child) => {
                // Whatever the status, it is gone.
                let _ = child.wait().await;
            }
            Self::Found(process) => {
                while process.is_alive() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Whether this process may lower OOM scores (CAP_SYS_RESOURCE, capability 24).
fn has_sys_resource() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & (1 << 24) != 0)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

/// Checks that containerd is there and new enough.
///
/// # Errors
/// It is absent, too old, or does not tell its version.
pub fn check() -> anyhow::Result<()> {
    let output = std::process::Command::new("containerd")
        .arg("--version")
        .output()
        .context("containerd is not installed (package containerd)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match version(&text) {
        None => bail!("containerd does not tell its version: {:?}", text.trim()),
        Some(found) if found < OLDEST => bail!(
            "containerd {}.{} is too old: {}.{} or later is needed",
            found.0,
            found.1,
            OLDEST.0,
            OLDEST.1
        ),
        Some(_) => Ok(()),
    }
}

/// Major and minor in `containerd github.com/containerd/containerd 1.6.20~ds1 ...`.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().map(|_| (major, minor))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        for (text, wanted) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1",
                Some((1, 6)),
            ),
            ("containerd containerd.io 2.1.4 75cb2b7193e4", Some((2, 1))),
            ("containerd github.com/containerd/containerd v1.7.24 abc", Some((1, 7))),
            ("nonsense", None),
        ] {
            assert_eq!(version(text), wanted, "{text}");
        }
    }
}
