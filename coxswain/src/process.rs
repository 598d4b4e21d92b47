//! Processes told apart by pid and start time: a pid alone may have gone to another.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::files;

/// One process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// In ticks since boot.
    pub started: u64,
}

impl Process {
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        match started(pid) {
            Some(started) => Ok(Self { pid, started }),
            None => anyhow::bail!("there is no process {pid}"),
        }
    }

    /// This process.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn own() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// The process that a file names, alive or not.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }

    /// # Errors
    /// Names the file.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        files::write_public(path, &(serde_json::to_string(self)? + "\n"))
    }

    /// Sends a signal, if the process is still there.
    ///
    /// # Errors
    /// It may not be signalled.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid.cast_signed()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Field 22 of /proc/PID/stat. Zombies count as gone.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have spaces and parentheses itself.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() -> anyhow::Result<()> {
        let own = Process::own()?;
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive(), "another with the pid");
        let mut child = std::process::Command::new("true").spawn()?;
        let process = Process::of(child.id());
        child.wait()?;
        if let Ok(process) = process {
            assert!(!process.is_alive());
        }
        Ok(())
    }
}
