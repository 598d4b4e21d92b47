//! A client from a kubeconfig file.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A connection that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(300);

/// Connects as the kubeconfig's current context says. No request is made yet.
///
/// `user_agent` is the component's name; the version is added.
///
/// # Errors
/// The file cannot be read or names no usable cluster and user; the error names the file.
pub async fn connect(kubeconfig: &Path, user_agent: &str) -> anyhow::Result<kube::Client> {
    connect_to(kubeconfig, None, user_agent).await
}

/// As [`connect`], to the API server at `master` (a URL) if it is given.
///
/// # Errors
/// As [`connect`]; `master` is no URL.
pub async fn connect_to(
    kubeconfig: &Path,
    master: Option<&str>,
    user_agent: &str,
) -> anyhow::Result<kube::Client> {
    let config = config(kubeconfig, master, user_agent).await?;
    kube::Client::try_from(config).with_context(|| format!("kubeconfig {}", kubeconfig.display()))
}

/// How [`connect`] connects.
pub(crate) async fn config(
    kubeconfig: &Path,
    master: Option<&str>,
    user_agent: &str,
) -> anyhow::Result<kube::Config> {
    let whence = || format!("kubeconfig {}", kubeconfig.display());
    let file = Kubeconfig::read_from(kubeconfig).with_context(whence)?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(whence)?;
    if let Some(master) = master.filter(|m| !m.is_empty()) {
        config.cluster_url = master.parse().with_context(|| format!("--master {master:?}"))?;
    }
    // Watches end after 290 s and carry bookmarks before: silence for longer is a dead connection.
    config.read_timeout = Some(SILENCE);
    let agent = format!("{user_agent}/v{}", env!("CARGO_PKG_VERSION"));
    let name = http::header::USER_AGENT;
    config.headers.push((name, http::HeaderValue::from_str(&agent).with_context(whence)?));
    Ok(config)
}
