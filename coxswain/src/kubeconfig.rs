//! Kubeconfig files with embedded certificates, as kubeadm writes them.

use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::{Duration, OffsetDateTime};

use crate::files;
use crate::pki::{self, Ca, Pair, Pki, Spec};

/// One kubeconfig to have.
pub struct Kubeconfig<'a> {
    pub path: &'a Path,
    /// `https://address:port`
    pub server: &'a str,
    /// User name in the file, `system:kube-scheduler`.
    pub user: &'a str,
    pub spec: Spec,
}

/// Makes the file, or makes it anew when its certificate is about to expire, or when the CA or
/// the server's address has changed. Returns whether it was written.
///
/// # Errors
/// Names the file that cannot be read or written.
pub fn ensure(wanted: &Kubeconfig<'_>, pki: &Pki, now: OffsetDateTime) -> anyhow::Result<bool> {
    let ca = files::read(&pki.ca_certificate(Ca::Cluster))?;
    if wanted.path.exists() {
        let have = files::read(wanted.path)?;
        if still_good(&have, &ca, wanted.server, now).unwrap_or(false) {
            return Ok(false);
        }
    }
    let pair = pki.issue(&wanted.spec, now)?;
    files::write_private(wanted.path, &render(wanted, &ca, &pair)?)?;
    Ok(true)
}

fn still_good(text: &str, ca: &str, server: &str, now: OffsetDateTime) -> anyhow::Result<bool> {
    let config: serde_json::Value = serde_saphyr::from_str(text)?;
    let field = |pointer: &str| config.pointer(pointer).and_then(|v| v.as_str());
    let certificate = field("/users/0/user/client-certificate-data").context("no certificate")?;
    let certificate = String::from_utf8(STANDARD.decode(certificate)?)?;
    Ok(field("/clusters/0/cluster/server") == Some(server)
        && field("/clusters/0/cluster/certificate-authority-data")
            == Some(STANDARD.encode(ca).as_str())
        && pki::expiry(&certificate)? - now > Duration::days(30))
}

fn render(wanted: &Kubeconfig<'_>, ca: &str, pair: &Pair) -> anyhow::Result<String> {
    let context = format!("{}@kubernetes", wanted.user);
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": {
            "certificate-authority-data": STANDARD.encode(ca),
            "server": wanted.server,
        }}],
        "users": [{"name": wanted.user, "user": {
            "client-certificate-data": STANDARD.encode(&pair.certificate),
            "client-key-data": STANDARD.encode(&pair.key),
        }}],
        "contexts": [{"name": context, "context": {
            "cluster": "kubernetes",
            "user": wanted.user,
        }}],
        "current-context": context,
        "preferences": {},
    });
    // JSON is YAML; pretty, so that people can read it.
    Ok(serde_json::to_string_pretty(&config)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_kept_until_it_expires_or_the_server_moves() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let pki = Pki::new(dir.path().join("pki"));
        let now = OffsetDateTime::now_utc();
        pki.ensure_ca(Ca::Cluster, now)?;
        let path = dir.path().join("admin.conf");
        let write = |server: &str, at: OffsetDateTime| -> anyhow::Result<String> {
            let spec = Spec::client("kubernetes-admin", &["kubeadm:cluster-admins"]);
            let wanted = Kubeconfig { path: &path, server, user: "kubernetes-admin", spec };
            ensure(&wanted, &pki, at)?;
            files::read(&path)
        };
        let first = write("https://127.0.0.1:6443", now)?;
        assert_eq!(first, write("https://127.0.0.1:6443", now + Duration::days(300))?);
        let moved = write("https://127.0.0.2:6443", now)?;
        assert_ne!(first, moved);
        assert_ne!(moved, write("https://127.0.0.2:6443", now + Duration::days(360))?);
        Ok(())
    }
}
