//! `coxswain status`: what runs, and what is wrong.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use component::healthz;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};

use crate::layout::Layout;
use crate::netns;
use crate::process::Process;
use crate::runtime;
use crate::up::Record;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    layout: Layout,
}

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One line of the report.
struct Line {
    good: bool,
    what: String,
    state: String,
}

pub fn main(args: &Args) -> anyhow::Result<()> {
    let path = args.layout.record();
    let text = fs::read_to_string(&path)
        .with_context(|| format!("no cluster was started here: {}", path.display()))?;
    let record: Record = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    if !record.netns.is_empty() {
        netns::enter(&record.netns)?;
    }
    let mut lines = processes(&record);
    let api = async {
        tokio::time::timeout(PATIENCE, cluster(&record.layout))
            .await
            .unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()))
    };
    match runtime()?.block_on(api) {
        Ok(found) => {
            lines.push(line(true, "API server", format!("ready at {}", record.server)));
            lines.extend(found);
        }
        Err(error) => {
            lines.push(line(false, "API server", format!("{}: {error:#}", record.server)))
        }
    }
    lines.extend(components(&record));
    for Line { good, what, state } in &lines {
        println!("{} {what:<28} {state}", if *good { "ok   " } else { "WRONG" });
    }
    match lines.iter().filter(|l| !l.good).count() {
        0 => Ok(()),
        wrong => bail!("{wrong} of {} are wrong", lines.len()),
    }
}

fn line(good: bool, what: impl Into<String>, state: impl Into<String>) -> Line {
    Line { good, what: what.into(), state: state.into() }
}

fn processes(record: &Record) -> Vec<Line> {
    let mut lines = Vec::new();
    let up = record.up.is_alive();
    let state = if up { "runs" } else { "does not run" };
    lines.push(line(up, "coxswain up", format!("{state} (pid {})", record.up.pid)));
    for node in &record.nodes {
        let process = Process::read(&node.run.join("containerd.pid"));
        let alive = process.is_some_and(|p| p.is_alive());
        let state = match process {
            Some(p) if alive => format!("runs (pid {})", p.pid),
            Some(p) => format!(
                "does not run (pid {}); see {}",
                p.pid,
                node.data.join("containerd.log").display()
            ),
            None => "was not started".to_owned(),
        };
        lines.push(line(alive, format!("containerd of {}", node.name), state));
    }
    lines
}

/// How the components say they are: those of the control plane, and each node's.
fn components(record: &Record) -> Vec<Line> {
    let control = [("kube-controller-manager", 10257, true), ("kube-scheduler", 10259, true)];
    let node = [("kubelet", 10248, false), ("kube-proxy", 10256, false)];
    let mut lines: Vec<Line> =
        control.map(|(name, port, tls)| component_line(name.to_owned(), port, tls)).into();
    for (i, of) in record.nodes.iter().enumerate() {
        let asked =
            || Ok(node.map(|(n, p, tls)| component_line(format!("{n} of {}", of.name), p, tls)));
        // The first node is where this is already.
        let found = if i == 0 { asked() } else { netns::inside(&of.netns, asked) };
        match found {
            Ok(found) => lines.extend(found),
            Err(error) => {
                lines.push(line(false, format!("node {}", of.name), format!("{error:#}")))
            }
        }
    }
    lines
}

fn component_line(name: String, port: u16, tls: bool) -> Line {
    let asked = runtime().and_then(|runtime| {
        runtime.block_on(healthz::check((Ipv4Addr::LOCALHOST, port).into(), tls))
    });
    match asked {
        Ok(()) => line(true, name, "healthy"),
        Err(error) => line(false, name, format!("{error:#}")),
    }
}

async fn cluster(layout: &Layout) -> anyhow::Result<Vec<Line>> {
    let client = client::connect(&layout.admin_kubeconfig(), "coxswain").await?;
    let ready = http::Request::get("/readyz").body(Vec::new())?;
    client.request_text(ready).await.context("is not ready")?;
    let mut lines = Vec::new();
    for node in Api::<Node>::all(client.clone()).list(&Default::default()).await?.items {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.clone());
        let mut bad: Vec<String> = Vec::new();
        for c in conditions.unwrap_or_default() {
            if (c.type_ == "Ready") != (c.status == "True") {
                bad.push(format!("{}={} ({})", c.type_, c.status, c.message.unwrap_or_default()));
            }
        }
        let state = if bad.is_empty() { "Ready".to_owned() } else { bad.join(", ") };
        lines.push(line(bad.is_empty(), format!("node {}", node.name_any()), state));
    }
    for pod in Api::<Pod>::namespaced(client, "kube-system").list(&Default::default()).await?.items
    {
        let status = pod.status.as_ref();
        let ready = status
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        let phase = status.and_then(|s| s.phase.clone()).unwrap_or_default();
        let good = ready || phase == "Succeeded";
        lines.push(line(good, format!("pod kube-system/{}", pod.name_any()), phase));
    }
    Ok(lines)
}
