//! The server's certificate: signed by the cluster (`serverTLSBootstrap`), or in files that somebody
//! else keeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::client::ask;
use super::decide::Wanted;
use super::keeper::{Current, Keeper};
use super::pair::Pair;
use super::request::Purpose;
use super::store::Store;
use crate::config::KubeletConfiguration;
use crate::kubelet::Kubelet;

/// Of the files of serving certificates.
const PREFIX: &str = "kubelet-server";

/// Files are looked at this often: two small ones; upstream is told by inotify.
const LOOK: Duration = Duration::from_secs(2);

/// What a TLS server shows: the certificate in use; nothing while there is none that may be shown,
/// so that nobody is answered.
#[derive(Debug)]
pub struct Shown {
    current: Current,
    /// One that holds no more, too: who keeps the files knows.
    expired: bool,
}

impl Shown {
    fn at(&self, now: Timestamp) -> Option<Arc<Pair>> {
        let pair = self.current.borrow().clone();
        pair.filter(|pair| self.expired || !pair.leaf.is_over(now))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.at(Timestamp::now());
        if shown.is_none() {
            tracing::warn!("no serving certificate available for the kubelet");
        }
        shown.map(|pair| Arc::clone(&pair.certified))
    }
}

/// What to show from the files of a certificate and its key, and what follows them: to be run.
///
/// # Errors
/// They cannot be read, or are no pair.
pub fn given(certificate: PathBuf, key: PathBuf) -> anyhow::Result<(Shown, Given)> {
    let files = Files { certificate, key };
    let texts = files.read()?;
    let current = watch::Sender::new(Some(Arc::new(files.pair(&texts)?)));
    let shown = Shown { current: current.subscribe(), expired: true };
    Ok((shown, Given { files, texts, current, told: None }))
}

/// Of a certificate and of its key.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What is in them.
type Texts = (String, String);

impl Files {
    fn read(&self) -> anyhow::Result<Texts> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        Ok((read(&self.certificate)?, read(&self.key)?))
    }

    fn pair(&self, (certificate, key): &Texts) -> anyhow::Result<Pair> {
        Pair::read(certificate, key).with_context(|| {
            format!("certificate {}, key {}", self.certificate.display(), self.key.display())
        })
    }
}

/// Keeps to files that somebody else changes.
pub struct Given {
    files: Files,
    /// What the certificate in use was read from.
    texts: Texts,
    current: watch::Sender<Option<Arc<Pair>>>,
    /// Why they cannot be used at present, as it was told.
    told: Option<String>,
}

impl Given {
    /// Runs until it is dropped.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }

    /// Goes over to what is in the files. While they are no pair (one may be changed before the
    /// other), the certificate before is shown.
    fn look(&mut self) {
        let fresh = self.files.read().and_then(|texts| {
            let changed = texts != self.texts;
            changed.then(|| Ok((self.files.pair(&texts)?, texts))).transpose()
        });
        match fresh {
            Ok(None) => self.told = None,
            Ok(Some((pair, texts))) => {
                tracing::info!(until = %pair.leaf.until, "serving certificate read anew");
                self.current.send_replace(Some(Arc::new(pair)));
                (self.texts, self.told) = (texts, None);
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.told.as_ref() != Some(&error) {
                    tracing::warn!(error, "serving certificate not read anew");
                    self.told = Some(error);
                }
            }
        }
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
    let shown = Shown { current: keeper.current(), expired: false };
    Ok((shown, Serving { keeper, wanted }))
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

#[cfg(test)]
mod tests {
    use component::files;
    use jiff::SignedDuration;

    use super::super::tests::Authority;
    use super::*;

    /// What is in the files one after another, and which pair is shown then.
    #[test]
    fn the_pair_in_the_files_is_shown() {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let pair = |node: &str| ca.pair(node, now, now + SignedDuration::from_hours(1));
        let (a, b, c) = (pair("a"), pair("b"), pair("c"));
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let put = |path: &Path, text: Option<&str>| match text {
            Some(text) => files::write(path, text.as_bytes(), 0o600).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        };
        put(&certificate, Some(&a.0));
        assert!(given(certificate.clone(), key.clone()).is_err(), "without a key");
        put(&key, Some(&a.1));
        let (shown, mut given) = given(certificate.clone(), key.clone()).unwrap();
        for (what, certificate_holds, key_holds, want) in [
            ("nothing new", Some(&a.0), Some(&a.1), "a"),
            ("the key first", Some(&a.0), Some(&b.1), "a"),
            ("the certificate then", Some(&b.0), Some(&b.1), "b"),
            ("no key", Some(&b.0), None, "b"),
            ("no certificate in it", Some(&c.1), Some(&c.1), "b"),
            ("both", Some(&c.0), Some(&c.1), "c"),
            ("the one before", Some(&b.0), Some(&b.1), "b"),
        ] {
            put(&certificate, certificate_holds.map(String::as_str));
            put(&key, key_holds.map(String::as_str));
            given.look();
            // Also when it holds no more.
            for at in [now, now + SignedDuration::from_hours(2)] {
                let name = shown.at(at).map(|pair| pair.leaf.common_name.clone());
                assert_eq!(name, Some(format!("system:node:{want}")), "{what}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_followed() {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let now = Timestamp::UNIX_EPOCH;
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let put = |node: &str| {
            let pair = ca.pair(node, now, now + SignedDuration::from_hours(1));
            std::fs::write(&certificate, pair.0).unwrap();
            std::fs::write(&key, pair.1).unwrap();
        };
        put("a");
        let (mut shown, given) = given(certificate.clone(), key.clone()).unwrap();
        let following = tokio::spawn(given.follow());
        put("b");
        shown.current.changed().await.unwrap();
        assert_eq!(shown.at(now).unwrap().leaf.common_name, "system:node:b");
        following.abort();
    }
}
