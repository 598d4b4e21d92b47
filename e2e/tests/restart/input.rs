//! What `coxswain` says when it cannot do what it is asked to.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use e2e::{Cluster, Settings, run};

/// What the command prints when it fails.
fn refusal(command: Command) -> anyhow::Result<String> {
    let what = format!("{command:?}");
    let output = run(command, "")?;
    ensure!(!output.success, "{what} did not fail: {}", output.stdout);
    Ok(output.stderr)
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH")?;
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(program));
    places.find(|p| p.is_file()).with_context(|| format!("{program} is not on the PATH"))
}

#[test]
fn up_says_what_is_missing() -> anyhow::Result<()> {
    let settings = Settings::own("missing")?;
    // Where everybody may read it.
    let copy = settings.dir.join("coxswain");
    std::fs::copy(&settings.coxswain, &copy)?;
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).arg("up");
    ensure!(refusal(stranger)?.trim() == "coxswain up: must be run as root");

    let path = settings.dir.join("path");
    std::fs::create_dir_all(&path)?;
    for program in ["ctr", "ip", "iptables", "nft", "runc"] {
        let link = path.join(program);
        if !link.exists() {
            std::os::unix::fs::symlink(find(program)?, link)?;
        }
    }
    let mut poor = settings.coxswain(&["up", "--isolated"]);
    poor.env("PATH", &path);
    let refused = refusal(poor)?;
    let wanted = "coxswain up: containerd is not installed (package containerd)";
    ensure!(refused.trim() == wanted, "{refused}");

    let old = path.join("containerd");
    std::fs::write(&old, "#!/bin/sh\necho containerd github.com/containerd/containerd 1.5.9 x\n")?;
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755))?;
    let mut outdated = settings.coxswain(&["up", "--isolated"]);
    outdated.env("PATH", &path);
    let refused = refusal(outdated)?;
    let wanted = "coxswain up: containerd 1.5 is too old: 1.6 or later is needed";
    ensure!(refused.trim() == wanted, "{refused}");

    let up = settings.coxswain(&["up", "--isolated"]);
    let mut hidden = Command::new("unshare");
    let script = "mount -t tmpfs none /sys/fs/cgroup && exec \"$0\" \"$@\"";
    hidden.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    hidden.arg(up.get_program()).args(up.get_args());
    let refused = refusal(hidden)?;
    let wanted = "cgroup controllers cpu, memory, pids are missing below /sys/fs/cgroup";
    ensure!(refused.trim() == format!("coxswain up: {wanted}"), "{refused}");
    std::fs::remove_dir_all(&path)?;
    std::fs::remove_file(&copy)?;
    Ok(())
}

#[test]
fn flags_that_are_wrong_are_named() -> anyhow::Result<()> {
    let settings = Settings::from_environment()?;
    for (arguments, wanted) in [
        (&["up", "--nonsense"][..], "--nonsense"),
        (&["up", "--nodes", "many"], "--nodes"),
        (&["up", "--service-cidr", "10.0.0.0/99"], "--service-cidr"),
        (&["up", "--secure-port", "70000"], "--secure-port"),
        (&["sideways"], "sideways"),
        (&["kube-apiserver", "--nonsense"], "unknown flag: --nonsense"),
        (&["kubelet", "--config", "/nowhere"], "/nowhere"),
    ] {
        let mut command = Command::new(&settings.coxswain);
        command.args(arguments);
        let refused = refusal(command)?;
        ensure!(refused.contains(wanted), "{wanted:?} is not in {refused}");
    }
    Ok(())
}

#[test]
fn what_is_taken_is_not_taken_again() -> anyhow::Result<()> {
    let settings = Settings::own("taken")?;
    let cluster = Cluster::start(&settings, &[])?;
    let twice = refusal(settings.coxswain(&["up", "--isolated"]))?;
    let run = settings.dir.join("run");
    let wanted = format!("coxswain up: a cluster is already running from {}", run.display());
    ensure!(twice.trim() == wanted, "{twice}");
    // Other folders, but the same network.
    let other = settings.dir.join("other");
    let mut command = Command::new(&settings.coxswain);
    command.args(["up", "--isolated", "--cluster-name", &settings.name]);
    for folder in ["data", "run", "config", "kubelet", "pod-logs"] {
        command.arg(format!("--{folder}-dir")).arg(other.join(folder));
    }
    let taken = refusal(command)?;
    let wanted = "cannot listen on 172.30.255.1:6443 (see --secure-port): Address already in use";
    ensure!(taken.contains(wanted), "{taken}");
    ensure!(cluster.kubectl(&["get", "nodes"])?.contains(" Ready "), "the first is well");
    settings.purge()
}

#[test]
fn a_store_that_was_cut_short_is_not_served() -> anyhow::Result<()> {
    let settings = Settings::own("cut")?;
    let cluster = Cluster::start(&settings, &[])?;
    cluster.kubectl(&["create", "namespace", "kept"])?;
    cluster.kill()?;
    let store = settings.dir.join("data/store/coxswain.redb");
    let whole = std::fs::read(&store).with_context(|| store.display().to_string())?;
    std::fs::write(&store, &whole[..whole.len() / 3])?;
    let told = told_of(&settings, &store)?;
    // Put back, all is there.
    std::fs::write(&store, &whole)?;
    let cluster = Cluster::start(&settings, &[])?;
    cluster.kubectl(&["get", "namespace", "kept"])?;
    settings.purge()?;
    ensure!(told, "the file is named");
    Ok(())
}

#[test]
fn a_store_that_cannot_be_opened_is_named() -> anyhow::Result<()> {
    let settings = Settings::own("unopened")?;
    let store = settings.dir.join("data/store/coxswain.redb");
    std::fs::create_dir_all(&store)?;
    let told = told_of(&settings, &store)?;
    settings.purge()?;
    ensure!(told, "the file is named");
    Ok(())
}

/// Whether `up` ends by itself with an error that names the file.
fn told_of(settings: &Settings, store: &Path) -> anyhow::Result<bool> {
    let images = settings.images.display().to_string();
    let up = ["up", "--isolated", "--node-name", "node", "--images", &images];
    let mut command = Command::new("timeout");
    let whole = settings.coxswain(&up);
    command.arg("30").arg(whole.get_program()).args(whole.get_args());
    let said = refusal(command)?;
    Ok(said.contains(&store.display().to_string()))
}
