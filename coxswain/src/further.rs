//! The further nodes of a machine: each a process of its own in a network namespace, joined to the
//! others by a bridge.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use component::{logs, shutdown};
use ipnet::IpNet;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::component::Term;
use crate::files;
use crate::netns::{self, ip};
use crate::node::{self, NodeSpec};
use crate::pki;
use crate::process::Process;
use crate::runtime;

/// The bridge that joins the nodes of this machine.
pub const BRIDGE: &str = "cx0";
/// A node's process that ended is started again after this long.
const RESTART: Duration = Duration::from_secs(1);

/// Whether a link is in the present namespace.
pub fn has_link(name: &str) -> bool {
    Path::new("/proc/sys/net/ipv4/conf").join(name).exists()
}

/// Makes the bridge in the present namespace, with the first address of `nodes`.
///
/// # Errors
/// What `ip` printed.
pub fn bridge(nodes: &IpNet, isolated: bool) -> anyhow::Result<()> {
    netns::forward()?;
    if !has_link(BRIDGE) {
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    }
    let first = pki::nth_address(&nodes.to_string(), 1)?;
    ip(&["address", "replace", &format!("{first}/{}", nodes.prefix_len()), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    if isolated {
        // There is nothing behind it; but without a route, nothing would be translated.
        ip(&["route", "replace", "default", "dev", BRIDGE])?;
    }
    Ok(())
}

/// How a further node is started.
pub struct Further {
    pub node: NodeSpec,
    pub netns: String,
    /// Addresses of all nodes.
    pub nodes: IpNet,
    /// Verbosity of its log.
    pub v: u8,
}

impl Further {
    fn spec(&self) -> PathBuf {
        self.node.data.join("node.json")
    }

    /// Gives the node its network namespace and its link, and writes down what it must know.
    ///
    /// # Errors
    /// What `ip` printed, or the file that cannot be written.
    pub fn prepare(&self) -> anyhow::Result<()> {
        netns::create(&self.netns)?;
        let address = self.node.address.to_string();
        let outer = format!("{BRIDGE}.{}", address.rsplit(['.', ':']).next().unwrap_or_default());
        if !has_link(&outer) {
            let (peer, space) = ("eth0", self.netns.as_str());
            ip(&["link", "add", &outer, "type", "veth", "peer", "name", peer, "netns", space])?;
        }
        ip(&["link", "set", &outer, "master", BRIDGE, "up"])?;
        // Where bridges pass through netfilter, a packet for the first node's address that is
        // translated to a pod of the node it came from goes back by the port it came by.
        ip(&["link", "set", &outer, "type", "bridge_slave", "hairpin", "on"])?;
        let address = format!("{address}/{}", self.nodes.prefix_len());
        let gateway = pki::nth_address(&self.nodes.to_string(), 1)?.to_string();
        netns::inside(&self.netns, || {
            ip(&["address", "replace", &address, "dev", "eth0"])?;
            ip(&["link", "set", "eth0", "up"])?;
            ip(&["route", "replace", "default", "via", &gateway])
        })?;
        files::write_private(&self.spec(), &serde_json::to_string_pretty(&self.node)?)
    }

    fn start(&self) -> anyhow::Result<Child> {
        let path = self.node.data.join("node.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        // This very program, whatever its file has become meanwhile.
        Command::new("/proc/self/exe")
            .arg0(std::env::args_os().next().unwrap_or_else(|| "coxswain".into()))
            .args(["node", "--netns", &self.netns, "--spec"])
            .arg(self.spec())
            .args(["-v", &self.v.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C is for us: we end the nodes.
            .process_group(0)
            .spawn()
            .context("node process")
    }

    /// Keeps the node's process running, and ends it at shutdown.
    pub async fn keep(self, mut term: Term) {
        let shutdown = term.shutdown.clone();
        while !shutdown.is_cancelled() {
            match self.start() {
                Ok(mut child) => tokio::select! {
                    status = child.wait() => {
                        tracing::error!(node = self.node.name, ?status, "node process ended");
                    }
                    () = shutdown.cancelled() => {
                        end(child).await;
                        return;
                    }
                    () = term.renewed() => end(child).await,
                },
                Err(error) => tracing::error!(error = format!("{error:#}"), "node process"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(RESTART) => {}
            }
        }
    }
}

async fn end(mut child: Child) {
    if let Some(process) = child.id().and_then(|pid| Process::of(pid).ok())
        && let Err(error) = process.signal(Signal::SIGTERM)
    {
        tracing::warn!(%error, "node process");
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "node process");
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    netns: String,
    #[arg(long)]
    spec: PathBuf,
    #[arg(short = 'v', default_value_t = 0)]
    v: u8,
}

/// The process of a further node.
///
/// # Errors
/// Its namespace cannot be entered, or its runtime does not start.
pub fn main(args: &Args) -> anyhow::Result<()> {
    logs::init(args.v);
    let spec: NodeSpec = serde_json::from_str(&files::read(&args.spec)?)
        .with_context(|| args.spec.display().to_string())?;
    netns::enter(&args.netns)?;
    runtime()?.block_on(async {
        let shutdown = shutdown::on_signal()?;
        tokio::spawn(end_with_parent(shutdown.clone()));
        node::start_runtime(spec.clone(), shutdown.clone()).await.context("container runtime")?;
        node::run(spec, Term::new(shutdown).0).await
    })
}

/// `up` may be killed without telling its nodes; a new `up` starts them anew.
async fn end_with_parent(shutdown: CancellationToken) {
    let parent = getppid();
    while getppid() == parent {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    shutdown.cancel();
}
