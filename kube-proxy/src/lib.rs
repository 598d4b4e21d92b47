//! kube-proxy: makes the addresses of services lead to their pods.
//!
//! [`table`] decides where traffic goes, [`nftables`] and [`iptables`] render it, [`sync`] keeps the
//! kernel as rendered.

pub mod config;
pub mod conntrack;
mod health;
pub mod iptables;
mod kernel;
mod names;
pub mod nftables;
mod sync;
pub mod table;

pub use config::Options;

use tokio_util::sync::CancellationToken;

/// Runs until shutdown. Rules stay in the kernel: connections outlive the proxy.
///
/// # Errors
/// A flag, the config file or the kubeconfig is wrong, or a port is taken.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    if options.cleanup == Some(true) {
        return kernel::cleanup();
    }
    let config = options.settle()?;
    let client = client::connect(&config.kubeconfig, "kube-proxy").await?;
    let health = health::Health::default();
    health.serve(&config, shutdown.clone()).await?;
    sync::run(config, client, health, shutdown).await
}
