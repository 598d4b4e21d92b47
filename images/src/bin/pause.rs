//! The first process of a pod: holds its namespaces, reaps orphans, ends on SIGINT or SIGTERM.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    if let Err(error) = signals.thread_block() {
        eprintln!("cannot block signals: {error}");
        std::process::exit(1);
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return,
            Err(Errno::EINTR) => {}
            Err(error) => {
                eprintln!("cannot wait for signals: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn reap() {
    // Several children may have ended under one signal.
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
