//! One binary that is all of Kubernetes: `coxswain up | down | status`, and each component under
//! its upstream name, by link (`kube-apiserver --flags`) or by argument
//! (`coxswain kube-apiserver --flags`).

mod addons;
mod component;
mod containerd;
mod credentials;
mod down;
mod files;
mod further;
mod kubeconfig;
mod layout;
mod netns;
mod network;
mod node;
mod pki;
mod preflight;
mod process;
mod status;
mod up;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use ::component::cli::{self, CliError};
use clap::{Parser, Subcommand};

use crate::component::Component;

/// A cluster grows and shrinks for months: what is freed must go back.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Kubernetes in one binary.
#[derive(Debug, Parser)]
#[command(name = "coxswain", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine and keep it running
    Up(Box<up::Args>),
    /// Stop the cluster and remove what it made on this machine
    Down(down::Args),
    /// Tell what runs, and what is wrong
    Status(status::Args),
    /// Run one more node of a cluster that `up` started (used by `up --nodes`)
    #[command(hide = true)]
    Node(further::Args),
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(|a| Path::new(a).file_name().unwrap_or_default().to_owned());
    let by_link = called.as_ref().and_then(|n| n.to_str()).and_then(Component::by_name);
    if let Some(component) = by_link {
        return component::main(component, &args[1..]);
    }
    let by_argument = args.get(1).and_then(|a| a.to_str()).and_then(Component::by_name);
    if let Some(component) = by_argument {
        return component::main(component, &args[2..]);
    }
    let args = args.split_off(1.min(args.len()));
    let cli = match cli::parse::<Cli>("coxswain", &args) {
        Ok(cli) => cli,
        Err(CliError::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(CliError::Usage(text)) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let (name, result) = match cli.command {
        Command::Up(args) => ("coxswain up", up::main(*args)),
        Command::Down(args) => ("coxswain down", down::main(&args)),
        Command::Status(args) => ("coxswain status", status::main(&args)),
        Command::Node(args) => ("coxswain node", further::main(&args)),
    };
    finish(name, result.map_err(Some))
}

/// Ends the process: an error is printed with its causes on one line.
fn finish(name: &str, result: Result<(), Option<anyhow::Error>>) -> ExitCode {
    match result {
        Ok(()) | Err(None) => ExitCode::SUCCESS,
        Err(Some(error)) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The runtime of a process that is a component or several.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
