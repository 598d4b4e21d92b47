//! The kubelet's client, with the certificate that it has at the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use client::{Renewable, connect};
use jiff::Timestamp;
use rcgen::KeyPair;
use tokio::sync::watch;

use super::bootstrap;
use super::decide::{Standing, Wanted, standing};
use super::keeper::{Current, Issued, Keeper};
use super::pair::Pair;
use super::request::{self, Purpose};
use super::store::Store;
use crate::options::Options;

/// Of the files of client certificates.
pub const PREFIX: &str = "kubelet-client";
const NAME: &str = "kubelet";
/// How long a request waits to be signed, before another is made.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often it is looked whether the certificate still holds.
const LOOK: Duration = Duration::from_secs(10);

/// A client, and what keeps its certificate current, if that is asked for.
pub struct Connected {
    pub client: kube::Client,
    pub keeping: Option<Keeping>,
}

/// Connects as flags and configuration say; `None`: there is no API server. Without rotation this
/// waits for a first certificate, if one is needed.
///
/// # Errors
/// A file is not right, or no first certificate was given.
pub async fn connected(
    options: &Options,
    rotate: bool,
    node: &str,
) -> anyhow::Result<Option<Connected>> {
    let bootstrap = options.bootstrap_kubeconfig.as_deref();
    let Some(kubeconfig) = options.kubeconfig.as_deref() else {
        if bootstrap.is_some() {
            bail!("--bootstrap-kubeconfig needs --kubeconfig");
        }
        return Ok(None);
    };
    if !rotate {
        if let Some(bootstrap) = bootstrap {
            bootstrap::run(node, kubeconfig, bootstrap, &options.cert_dir).await?;
        }
        let client = connect(kubeconfig, NAME).await?;
        return Ok(Some(Connected { client, keeping: None }));
    }
    let now = Timestamp::now();
    // Which kubeconfig to ask with while there is no certificate.
    let mut asking = kubeconfig;
    let store = Store::open(&options.cert_dir, PREFIX, None)?;
    if let Some(bootstrap) = bootstrap
        && bootstrap::is_needed(kubeconfig, now)?
    {
        connect(bootstrap, NAME).await.context("bootstrap kubeconfig")?;
        bootstrap::write_kubeconfig(bootstrap, kubeconfig, &store.current_path())?;
        asking = bootstrap;
    }
    let user = bootstrap::user(kubeconfig)?;
    let store = Store::open(&options.cert_dir, PREFIX, user.files)?;
    let (first, provisional) = first(&store, user.data, now)?;
    let renewable = Renewable::new(kubeconfig, NAME).await?;
    if let Some(pair) = &first {
        renewable.set(&pair.chain, &pair.key)?;
    }
    let wanted = watch::Sender::new(Some(Wanted::client(node))).subscribe();
    let keeper = Keeper::new("client", store, first, provisional, wanted);
    let client = renewable.client();
    let keeping = Keeping { renewable, keeper, asking: asking.to_owned(), answers: Arc::default() };
    Ok(Some(Connected { client, keeping: Some(keeping) }))
}

/// The pair to begin with: the store's, else that in the kubeconfig, which is provisional: it may
/// be an administrator's.
fn first(
    store: &Store,
    data: Option<(String, String)>,
    now: Timestamp,
) -> anyhow::Result<(Option<Pair>, bool)> {
    if let Some(pair) = store.current()?.filter(|pair| !pair.leaf.is_over(now)) {
        return Ok((Some(pair), false));
    }
    match data {
        Some((certificates, key)) => Ok((Some(store.update(&certificates, &key, now)?), true)),
        None => Ok((None, true)),
    }
}

/// Keeps the client's certificate current.
pub struct Keeping {
    renewable: Renewable,
    keeper: Keeper,
    asking: std::path::PathBuf,
    /// Whether the API server answers requests for certificates.
    answers: Arc<AtomicBool>,
}

impl Keeping {
    /// Runs until it is dropped, or until only another start with other credentials helps.
    pub async fn run(self) -> anyhow::Error {
        let Self { renewable, keeper, asking, answers } = self;
        let current = keeper.current();
        let held = current.clone();
        let (own, told) = (renewable.client(), Arc::clone(&answers));
        let ask = move |wanted: Wanted| {
            let holds = held.borrow().as_ref().is_some_and(|p| !p.leaf.is_over(Timestamp::now()));
            let (own, asking, told) = (own.clone(), asking.clone(), Arc::clone(&told));
            async move {
                let client = match holds {
                    true => own,
                    false => connect(&asking, NAME).await?,
                };
                let issued = ask(&client, Purpose::Client, &wanted).await;
                told.store(answered(&issued), Ordering::Relaxed);
                issued
            }
        };
        tokio::select! {
            () = keeper.run(Timestamp::now, ask) => anyhow::anyhow!("the client certificate is not kept"),
            lost = follow(renewable, current, answers) => lost,
        }
    }
}

/// Asks for a certificate with a new key.
///
/// # Errors
/// It is not given.
pub async fn ask(
    client: &kube::Client,
    purpose: Purpose,
    wanted: &Wanted,
) -> anyhow::Result<Issued> {
    let key = KeyPair::generate().context("unable to generate a new private key")?;
    let object = request::object(purpose, wanted, &key, None)?;
    let created = request::create(client, &object, &key, Timestamp::now()).await?;
    let certificates = request::issued(client, &created, PATIENCE).await?;
    Ok(Issued { certificates, key: key.serialize_pem() })
}

/// Whether what came of a request says that the API server is well: these refusals are its own.
fn answered(issued: &anyhow::Result<Issued>) -> bool {
    let Err(error) = issued else { return true };
    let refusal = error.chain().find_map(|cause| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    });
    matches!(refusal, Some(401 | 403 | 404))
}

/// Gives the client each new certificate, and takes away one that has ended.
async fn follow(
    renewable: Renewable,
    mut current: Current,
    answers: Arc<AtomicBool>,
) -> anyhow::Error {
    let mut last = Timestamp::now();
    let mut holds = true;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = current.changed() => {
                if changed.is_err() {
                    return anyhow::anyhow!("the client certificate is not kept");
                }
                let pair = current.borrow_and_update().clone();
                if let Some(pair) = pair
                    && let Err(error) = renewable.set(&pair.chain, &pair.key)
                {
                    tracing::error!(error = client::brief(&error), "client certificate not used");
                }
                holds = true;
            }
        }
        let now = Timestamp::now();
        let until = current.borrow().as_ref().map(|pair| pair.leaf.until);
        match standing(until, last, answers.load(Ordering::Relaxed), now) {
            Standing::Well => last = now,
            Standing::Without => {
                if std::mem::take(&mut holds) && until.is_some() {
                    tracing::error!("the client certificate has expired");
                    renewable.unset();
                }
            }
            Standing::Lost => {
                return anyhow::anyhow!(
                    "no client certificate for five minutes, though the API server answers"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Authority;
    use super::*;

    #[test]
    fn refusals_of_the_api_server_are_answers() {
        let api = |code: u16| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            Err(anyhow::Error::new(kube::Error::Api(Box::new(status))).context("create"))
        };
        let issued = Issued { certificates: String::new(), key: String::new() };
        for (result, want) in [
            (Ok(issued), true),
            (api(401), true),
            (api(403), true),
            (api(404), true),
            (api(500), false),
            (api(503), false),
            (Err(anyhow::anyhow!("not signed after 900 s")), false),
        ] {
            let error = result.as_ref().err().map(client::brief);
            assert_eq!(answered(&result), want, "{error:?}");
        }
    }

    #[test]
    fn what_a_client_begins_with() -> anyhow::Result<()> {
        let (dir, ca, now) = (tempfile::tempdir()?, Authority::new(), Timestamp::UNIX_EPOCH);
        let hour = jiff::SignedDuration::from_hours(1);
        let store = Store::open(dir.path(), PREFIX, None)?;
        let name = |pair: &Option<Pair>| pair.as_ref().map(|pair| pair.leaf.common_name.clone());
        let (pair, provisional) = first(&store, None, now)?;
        assert_eq!((name(&pair), provisional), (None, true));
        // kubeadm's first kubeconfig has it inside.
        let (pair, provisional) = first(&store, Some(ca.pair("inside", now, now + hour)), now)?;
        assert_eq!((name(&pair).as_deref(), provisional), (Some("system:node:inside"), true));
        let (pair, provisional) = first(&store, Some(ca.pair("later", now, now + hour)), now)?;
        assert_eq!((name(&pair).as_deref(), provisional), (Some("system:node:inside"), false));
        let later = now + hour + hour;
        let (pair, provisional) = first(&store, None, later)?;
        assert_eq!((name(&pair), provisional), (None, true));
        Ok(())
    }
}
