//! The server's certificate, signed by the cluster (`serverTLSBootstrap`).

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::client::ask;
use super::decide::Wanted;
use super::keeper::{Current, Keeper};
use super::request::Purpose;
use super::store::Store;
use crate::config::KubeletConfiguration;
use crate::kubelet::Kubelet;

/// Of the files of serving certificates.
const PREFIX: &str = "kubelet-server";

/// What a TLS server shows: the certificate in use; nothing while there is none that holds, so
/// that nobody is answered.
#[derive(Debug)]
pub struct Shown(Current);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pair = self.0.borrow().clone();
        let holds = pair.filter(|pair| !pair.leaf.is_over(Timestamp::now()));
        if holds.is_none() {
            tracing::warn!("no serving certificate available for the kubelet");
        }
        holds.map(|pair| Arc::clone(&pair.certified))
    }
}

/// What to show, and what keeps it current: to be run, if there is an API server.
///
/// # Errors
/// The certificate that is there cannot be read.
pub fn serving(
    config: &KubeletConfiguration,
    directory: &Path,
) -> anyhow::Result<(Shown, Serving)> {
    let given = (!config.tls_cert_file.is_empty() && !config.tls_private_key_file.is_empty())
        .then(|| (config.tls_cert_file.clone().into(), config.tls_private_key_file.clone().into()));
    let store = Store::open(directory, PREFIX, given)?;
    let first = store.current()?.filter(|pair| !pair.leaf.is_over(Timestamp::now()));
    let (wanted, receiver) = watch::channel(None);
    let keeper = Keeper::new("serving", store, first, false, receiver);
    Ok((Shown(keeper.current()), Serving { keeper, wanted }))
}

/// Keeps the serving certificate current.
pub struct Serving {
    keeper: Keeper,
    wanted: watch::Sender<Option<Wanted>>,
}

impl Serving {
    /// Runs until it is dropped. Other addresses of the node need another certificate.
    pub async fn keep(self, client: kube::Client, k: Arc<Kubelet>) {
        let Self { keeper, wanted } = self;
        let ask = move |wanted: Wanted| {
            let client = client.clone();
            async move { ask(&client, Purpose::Serving, &wanted).await }
        };
        let mut addresses = k.host_ips.subscribe();
        let follow = async {
            loop {
                let mut named = addresses.borrow_and_update().clone();
                named.push(k.node_name.clone());
                wanted.send_replace(Wanted::serving(&k.node_name, &named));
                if addresses.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(follow, keeper.run(Timestamp::now, ask));
    }
}
