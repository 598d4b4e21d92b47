//! The server alone, with kube-apiserver's flags: `cargo run --example serve -- --help`.

use std::ffi::OsString;

use apiserver::{Config, Server};
use component::cli::CliError;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let config = match Config::from_args(&args) {
        Ok(config) => config,
        Err(CliError::Print(text)) => {
            println!("{text}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    component::logs::init(config.verbosity);
    let shutdown = component::shutdown::on_signal()?;
    Server::build(config).await?.run(shutdown).await
}
