//! The cluster's DNS server: [`zone`] answers for services and pods, what is outside goes on to the
//! resolvers of the machine.

mod forward;
mod server;
mod view;
pub mod zone;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

/// Flags.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "cluster-dns", version)]
pub struct Options {
    /// Path of a kubeconfig
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// Address and port to answer on, UDP and TCP
    #[arg(long)]
    pub listen: SocketAddr,
    /// Zone of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Address of the service that leads here
    #[arg(long)]
    pub service_address: IpAddr,
    /// Whose `nameserver` lines name the resolvers for other zones
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Verbosity of the log
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub v: u8,
}

/// Answers until shutdown; its caches end with it.
///
/// # Errors
/// The kubeconfig cannot be used, or the port is taken.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let shutdown = shutdown.child_token();
    let _ended = shutdown.clone().drop_guard();
    let client = client::connect(&options.kubeconfig, "cluster-dns").await?;
    let view = view::Caches::start(client, shutdown.clone());
    let text = std::fs::read_to_string(&options.resolv_conf)
        .with_context(|| options.resolv_conf.display().to_string())
        .unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "no resolvers for other zones");
            String::new()
        });
    let own = [options.listen.ip(), options.service_address];
    let forward = forward::Forward::new(&text, &own);
    let zone = format!("{}.", options.cluster_domain.trim_matches('.').to_ascii_lowercase());
    let server = server::Server::new(view.clone(), forward, zone, options.service_address);
    server.run(options.listen, async move { view.synced().await }, shutdown).await
}
