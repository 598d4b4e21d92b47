//! Runs the component alone, with its own flags: for work on it.

use std::ffi::OsString;

use component::cli::{self, CliError};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let options: controller_manager::Options = match cli::parse("kube-controller-manager", &args) {
        Ok(options) => options,
        Err(CliError::Print(text)) => {
            print!("{text}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    component::logs::init(options.v);
    controller_manager::run(options, component::shutdown::on_signal()?).await
}
