//! kube-proxy: makes the addresses of services lead to their pods.
//!
//! [`table`] decides where traffic goes, [`nftables`] and [`iptables`] render it, [`sync`] keeps the
//! kernel as rendered.

pub mod config;
pub mod conntrack;
mod families;
mod health;
pub mod iptables;
pub mod kernel;
mod limits;
mod names;
mod netlink;
pub mod nftables;
mod sync;
pub mod table;
mod unsupported;

pub use config::Options;

use component::shutdown::Scope;
use families::Families;
use tokio_util::sync::CancellationToken;

/// Runs until shutdown; no port is held after it. Rules stay in the kernel: connections outlive the proxy.
///
/// # Errors
/// A flag, the config file or the kubeconfig is wrong, a port is taken, or the machine has rules of no
/// address family.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    if options.cleanup == Some(true) {
        return kernel::cleanup();
    }
    let config = options.settle()?;
    let mode = config.mode;
    let families = tokio::task::spawn_blocking(move || Families::find(mode)).await??;
    let client =
        client::connect_to(&config.kubeconfig, config.master.as_deref(), "kube-proxy").await?;
    let mut scope = Scope::new(&shutdown);
    // As long as upstream's has.
    let health = health::Health::new(scope.token(), config.sync_period * 2, families);
    let served = health.serve(&config, &mut scope).await;
    let ended = match served {
        Ok(()) => {
            let limits = sync::start(config, families, client, &health, &mut scope);
            tokio::select! {
                biased;
                Err(error) = limits => Err(error),
                ended = scope.until_shutdown() => ended,
            }
        }
        failed => failed,
    };
    scope.end().await;
    health.closed().await;
    ended
}
