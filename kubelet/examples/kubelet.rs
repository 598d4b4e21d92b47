//! The kubelet as a program of its own.

use component::cli::CliError;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let options: kubelet::Options = match component::cli::parse("kubelet", &args) {
        Ok(options) => options,
        Err(CliError::Print(text)) => {
            println!("{text}");
            return Ok(());
        }
        Err(CliError::Usage(text)) => anyhow::bail!(text),
    };
    component::logs::init(options.v);
    kubelet::run(options, component::shutdown::on_signal()?).await
}
