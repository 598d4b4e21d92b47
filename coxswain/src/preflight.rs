//! What must be so before anything is started: all of it is checked, all that is wrong is told.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::containerd;

/// Folders in which distributions keep the CNI plugins.
const CNI_FOLDERS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
const CNI_PLUGINS: [&str; 4] = ["host-local", "loopback", "portmap", "ptp"];
/// Program and the package that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("runc", "runc"),
];
/// Cgroup v1 controllers that pods need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Finds everything that keeps a node from running here.
///
/// # Errors
/// One line for each thing that is wrong.
pub fn node() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        bail!("must be run as root");
    }
    for (program, package) in PROGRAMS {
        if !on_path(program) {
            wrong.push(format!("{program} is not installed (package {package})"));
        }
    }
    if on_path("containerd")
        && let Err(error) = containerd::check()
    {
        wrong.push(format!("{error:#}"));
    }
    if cni_plugins().is_none() {
        wrong.push(format!(
            "CNI plugins {} are not in {} (package containernetworking-plugins)",
            CNI_PLUGINS.join(", "),
            CNI_FOLDERS.join(" or ")
        ));
    }
    if let Err(error) = cgroups(Path::new("/sys/fs/cgroup")) {
        wrong.push(error.to_string());
    }
    fail(&wrong)
}

/// Checks that a port is free.
///
/// # Errors
/// It is taken, or the address is not of this machine.
pub fn port(address: SocketAddr, flag: &str) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => bail!("cannot listen on {address} (see {flag}): {error}"),
    }
}

fn fail(wrong: &[String]) -> anyhow::Result<()> {
    match wrong {
        [] => Ok(()),
        [one] => bail!("{one}"),
        many => bail!("\n  {}", many.join("\n  ")),
    }
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The folder with the CNI plugins.
pub fn cni_plugins() -> Option<PathBuf> {
    CNI_FOLDERS
        .into_iter()
        .map(PathBuf::from)
        .find(|dir| CNI_PLUGINS.iter().all(|plugin| dir.join(plugin).is_file()))
}

/// v2 with its controllers, or v1 with each controller mounted.
fn cgroups(root: &Path) -> anyhow::Result<()> {
    let missing: Vec<&str> = match std::fs::read_to_string(root.join("cgroup.controllers")) {
        Ok(text) => {
            let have: Vec<&str> = text.split_whitespace().collect();
            CONTROLLERS.into_iter().filter(|c| !have.contains(c)).collect()
        }
        Err(_) => {
            let mounted = |c: &&str| root.join(c).join("cgroup.procs").exists();
            CONTROLLERS.into_iter().filter(|c| !mounted(c)).collect()
        }
    };
    if !missing.is_empty() {
        bail!("cgroup controllers {} are missing below {}", missing.join(", "), root.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_both_versions_are_known() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let error = cgroups(dir.path()).expect_err("nothing is mounted").to_string();
        assert!(error.contains("cpu, memory, pids"), "{error}");
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n")?;
        let error = cgroups(dir.path()).expect_err("pids is missing").to_string();
        assert!(error.contains("controllers pids"), "{error}");
        std::fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n")?;
        cgroups(dir.path())?;

        let v1 = tempfile::tempdir()?;
        for controller in CONTROLLERS {
            std::fs::create_dir(v1.path().join(controller))?;
            std::fs::write(v1.path().join(controller).join("cgroup.procs"), "")?;
        }
        cgroups(v1.path())
    }

    #[test]
    fn a_taken_port_is_named() -> anyhow::Result<()> {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let error = port(taken.local_addr()?, "--secure-port").expect_err("taken").to_string();
        assert!(error.contains(&taken.local_addr()?.to_string()), "{error}");
        assert!(error.contains("--secure-port"), "{error}");
        Ok(())
    }
}
