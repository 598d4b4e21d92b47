//! `coxswain down`: stops the cluster and removes what it made on this machine, whatever state an
//! earlier run left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::component::Component;
use crate::containerd::Containerd;
use crate::further::{BRIDGE, has_link};
use crate::layout::{Layout, containerd_socket};
use crate::netns;
use crate::network;
use crate::preflight;
use crate::process::Process;
use crate::up::{NodeRecord, Record};

/// How long a process may take to end well.
const GRACE: Duration = Duration::from_secs(30);
/// How long a containerd may take to recover its pods.
const RECOVERY: Duration = Duration::from_secs(10);
/// How long a pod may take to be taken down.
const POD_GRACE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    layout: Layout,
    /// Remove state too: the store, certificates, kubeconfigs, images, volumes and logs
    #[arg(long)]
    purge: bool,
}

pub fn main(args: &Args) -> anyhow::Result<()> {
    component::logs::init(0);
    let text = fs::read_to_string(args.layout.record());
    let record: Option<Record> = text.ok().and_then(|text| serde_json::from_str(&text).ok());
    let layout = record.as_ref().map_or(&args.layout, |record| &record.layout);
    let mut wrong = Vec::new();
    let mut note = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            wrong.push(format!("{what}: {error:#}"));
        }
    };
    if let Some(record) = &record {
        note("coxswain up", end(record.up));
        for node in &record.nodes {
            note(&node.name, in_netns(&node.netns, || stop_node(node)));
        }
    }
    note("processes", kill_cgroup(&layout.cgroup()));
    for node in record.iter().flat_map(|r| &r.nodes) {
        note(&node.name, kill_shims(&node.run));
    }
    let mut folders = vec![layout.run.clone(), layout.data.clone()];
    folders.extend(record.iter().flat_map(|r| &r.nodes).map(|n| n.kubelet_dir.clone()));
    note("mounts", unmount_below(&folders));
    if let Some(record) = &record {
        note("network", remove_network(record));
    }
    note("cgroups", remove_cgroup(&layout.cgroup()));
    if args.purge {
        let config = [
            "admin.conf",
            "super-admin.conf",
            "controller-manager.conf",
            "scheduler.conf",
            "kubelet.conf",
            "kube-proxy.conf",
            "cluster-dns.conf",
            "pki",
        ];
        folders.extend(config.iter().map(|name| layout.config.join(name)));
        folders.push(layout.pod_logs.clone());
    } else {
        folders.truncate(1);
    }
    for folder in &folders {
        note("state", remove_all(folder));
    }
    if args.purge {
        // The folder itself may hold what is not ours; only an empty one goes.
        let _ = std::fs::remove_dir(&layout.config);
    }
    match wrong.as_slice() {
        [] => Ok(()),
        wrong => anyhow::bail!("\n  {}", wrong.join("\n  ")),
    }
}

/// SIGTERM, and after a while SIGKILL.
fn end(process: Process) -> anyhow::Result<()> {
    process.signal(Signal::SIGTERM)?;
    let deadline = Instant::now() + GRACE;
    while process.is_alive() {
        if Instant::now() > deadline {
            process.signal(Signal::SIGKILL)?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn in_netns<T: Send>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    match name {
        "" => work(),
        name => netns::inside(name, work),
    }
}

/// Takes the node's pods down in order, while its containerd can still do so; then ends that.
fn stop_node(node: &NodeRecord) -> anyhow::Result<()> {
    let pid_file = node.run.join("containerd.pid");
    if !pid_file.exists() {
        return Ok(());
    }
    let plugins = preflight::cni_plugins().unwrap_or_default();
    let containerd = Containerd::of(&node.data, &node.run, &plugins);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // One that died knows its pods' namespaces and mounts still, once it is started again.
    let removing = async {
        let running = containerd.start().await?;
        remove_pods(&containerd.socket()).await?;
        anyhow::Ok(running)
    };
    if let Err(error) = runtime.block_on(removing) {
        // What is left is killed below.
        tracing::warn!(node = node.name, error = format!("{error:#}"), "pods");
    }
    Process::read(&pid_file).map_or(Ok(()), end)
}

async fn remove_pods(socket: &Path) -> anyhow::Result<()> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    // The address is not used: the connector knows the socket.
    let endpoint = tonic::transport::Endpoint::from_static("http://containerd");
    let channel = endpoint.connect_with_connector(connector).await.context("containerd")?;
    let mut cri = RuntimeServiceClient::new(channel);
    // One that has just been started answers before it knows its pods.
    let deadline = Instant::now() + RECOVERY;
    let sandboxes = loop {
        match cri.list_pod_sandbox(ListPodSandboxRequest::default()).await {
            Ok(answer) => break answer.into_inner(),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let removals = sandboxes.items.into_iter().map(|sandbox| {
        let mut cri = cri.clone();
        tokio::time::timeout(POD_GRACE, async move {
            let pod_sandbox_id = sandbox.id;
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            cri.stop_pod_sandbox(stop).await?;
            cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await
        })
    });
    for removal in futures::future::join_all(removals).await {
        removal.context("a pod does not end")??;
    }
    Ok(())
}

/// Every folder of a cgroup below the root of each hierarchy, deepest first.
fn cgroup_folders(cgroup: &str) -> Vec<PathBuf> {
    let name = cgroup.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let mut tops = vec![root.join(name)];
    tops.extend(fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path().join(name)));
    let mut found = Vec::new();
    for top in tops.into_iter().filter(|t| t.is_dir()) {
        collect(&top, &mut found);
    }
    found
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

/// Kills everything in the cgroup: only the cluster's containers are in it.
fn kill_cgroup(cgroup: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + GRACE;
    loop {
        let mut alive = false;
        for dir in cgroup_folders(cgroup) {
            let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for process in pids.lines().filter_map(|p| Process::of(p.parse().ok()?).ok()) {
                alive = true;
                process.signal(Signal::SIGKILL)?;
            }
        }
        if !alive {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "processes in cgroup {cgroup} do not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends the shims of a node's containerd: known by the socket in their arguments.
fn kill_shims(run: &Path) -> anyhow::Result<()> {
    let socket = containerd_socket(run).display().to_string();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut args = cmdline.split(|b| *b == 0);
        let is_shim = args.next().is_some_and(|a| a.ends_with(b"containerd-shim-runc-v2"));
        if is_shim && args.any(|a| a == socket.as_bytes()) {
            Process::of(pid).ok().map_or(Ok(()), |p| p.signal(Signal::SIGKILL))?;
        }
    }
    Ok(())
}

/// Unmounts everything below these folders, innermost first.
fn unmount_below(folders: &[PathBuf]) -> anyhow::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape);
    let mut ours: Vec<PathBuf> =
        points.filter(|p| folders.iter().any(|f| p.starts_with(f))).collect();
    ours.reverse();
    for point in ours {
        match umount2(&point, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error).context(point.display().to_string()),
        }
    }
    Ok(())
}

/// mountinfo writes blanks and backslashes as `\040` and so on.
fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    PathBuf::from(out)
}

/// Namespaces go with all that is in them; of the host's, rules, routes and the bridge are removed.
fn remove_network(record: &Record) -> anyhow::Result<()> {
    for node in record.nodes.iter().skip(1) {
        netns::delete(&node.netns)?;
    }
    if !record.netns.is_empty() {
        return netns::delete(&record.netns);
    }
    network::remove()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cleanup = ["--cleanup".into()];
    runtime
        .block_on(Component::KubeProxy.run(&cleanup, CancellationToken::new()))
        .context("kube-proxy --cleanup")?;
    if has_link(BRIDGE) {
        netns::ip(&["link", "delete", BRIDGE])?;
    }
    Ok(())
}

fn remove_cgroup(cgroup: &str) -> anyhow::Result<()> {
    for dir in cgroup_folders(cgroup) {
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(dir.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    let result = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        for (text, wanted) in [("/a", "/a"), ("/a\\040b", "/a b"), ("/a\\134040", "/a\\040")] {
            assert_eq!(unescape(text), PathBuf::from(wanted), "{text}");
        }
    }
}
