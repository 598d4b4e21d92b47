//! Network namespaces: named as `ip netns` names them, entered with setns. (`ip netns exec`
//! would also mount a new /sys, and hide the cgroups from what runs in it.)

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

/// Where a named namespace is.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Makes a namespace with its loopback up, unless it is there.
///
/// # Errors
/// Says what `ip` says.
pub fn create(name: &str) -> anyhow::Result<()> {
    if !path(name).exists() {
        ip(&["netns", "add", name])?;
    }
    inside(name, || {
        ip(&["link", "set", "lo", "up"])?;
        forward()
    })
}

/// Removes a namespace, if it is there.
///
/// # Errors
/// Says what `ip` says.
pub fn delete(name: &str) -> anyhow::Result<()> {
    match path(name).exists() {
        true => ip(&["netns", "delete", name]),
        false => Ok(()),
    }
}

/// Moves the calling thread, and what it starts from now on, into a namespace.
///
/// # Errors
/// There is no such namespace, or it may not be entered.
pub fn enter(name: &str) -> anyhow::Result<()> {
    let path = path(name);
    let whence = || format!("network namespace {}", path.display());
    let file = File::open(&path).with_context(whence)?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(whence)
}

/// Runs `work` in a namespace, on a thread of its own.
///
/// # Errors
/// The namespace cannot be entered, or `work` failed.
pub fn inside<T: Send>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(name)?;
            work()
        });
        match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("work in network namespace {name} panicked"),
        }
    })
}

/// Lets the present namespace route between its links.
///
/// # Errors
/// The setting cannot be written.
pub fn forward() -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    std::fs::write(path, "1").context(path)
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// What `ip` printed, with the command.
pub fn ip(args: &[&str]) -> anyhow::Result<()> {
    run("ip", args)
}

/// Runs a program to its end.
///
/// # Errors
/// It is not there, or failed: what it printed, with the command.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let command = || format!("{program} {}", args.join(" "));
    let output = Command::new(program).args(args).output().with_context(command)?;
    if !output.status.success() {
        bail!("{}: {}", command(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
