//! TLS of the server, and of its connections to kubelets.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use component::serving::certificates;
use component::trust::{any_client, any_server};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::options::KubeletConfig;
use crate::verbs::connect::Kubelets;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("private key {}", path.display()))
}

/// TLS for the server. Client certificates are asked for, and any is accepted: whether it is
/// trusted is for authentication to say.
///
/// # Errors
/// Names the file that is missing or holds no certificate or key.
pub fn server(cert: &Path, private_key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(any_client(&provider))
        .with_single_cert(certificates(cert)?, key(private_key)?)
        .with_context(|| format!("certificate {}", cert.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How kubelets are reached.
///
/// # Errors
/// Names the file that is missing or wrong.
pub fn kubelets(config: &KubeletConfig) -> anyhow::Result<Kubelets> {
    let provider = provider();
    let builder = || {
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()
    };
    let builder_for_kubelets = match &config.certificate_authority {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).with_context(|| format!("CA {}", path.display()))?;
            }
            builder()?.with_root_certificates(roots)
        }
        None => builder()?.dangerous().with_custom_certificate_verifier(any_server(&provider)),
    };
    let tls = match (&config.client_certificate, &config.client_key) {
        (Some(cert), Some(private_key)) => {
            builder_for_kubelets.with_client_auth_cert(certificates(cert)?, key(private_key)?)?
        }
        (None, None) => builder_for_kubelets.with_no_client_auth(),
        _ => bail!("--kubelet-client-certificate and --kubelet-client-key go together"),
    };
    let backends = builder()?
        .dangerous()
        .with_custom_certificate_verifier(any_server(&provider))
        .with_no_client_auth();
    Ok(Kubelets {
        tls: Arc::new(tls),
        address_types: config.address_types.clone(),
        backends: Arc::new(backends),
    })
}
