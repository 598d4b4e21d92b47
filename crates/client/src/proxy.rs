//! Whom a component's endpoints believe: clients with certificates, and a front proxy that says in
//! headers for whom it asks (k8s.io/apiserver `server/options/authentication.go`). What flags do not
//! say is read from where API servers publish it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use component::callers::{Authorities, FrontProxy, Headers, Trust, User};
use component::serving::Peer;
use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::line;

/// Where API servers publish it.
const PUBLISHED: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
/// How often that is read again, and how soon after a failure.
const PERIOD: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default, clap::Args)]
pub struct TrustFlags {
    /// Who has a certificate of this CA is who it says
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Who has a certificate of this CA is a front proxy, which says in headers for whom it asks
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of front proxies; none: any
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-user")]
    pub requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-group")]
    pub requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-extra-")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Go by these flags alone, not by what the API server publishes
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub authentication_skip_lookup: bool,
}

/// What flags say.
struct Given {
    clients: Option<Vec<u8>>,
    proxy: Option<(Vec<u8>, Headers)>,
}

fn of_flag(flag: &str, path: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let bundle = path.map(read).transpose().with_context(|| flag.to_owned())?;
    if let Some(bundle) = &bundle {
        Authorities::new(bundle).with_context(|| flag.to_owned())?;
    }
    Ok(bundle)
}

impl Given {
    fn read(flags: &TrustFlags) -> anyhow::Result<Self> {
        let clients = of_flag("--client-ca-file", flags.client_ca_file.as_deref())?;
        let path = flags.requestheader_client_ca_file.as_deref();
        let headers = || Headers {
            allowed_names: flags.requestheader_allowed_names.clone(),
            username: flags.requestheader_username_headers.clone(),
            uid: flags.requestheader_uid_headers.clone(),
            group: flags.requestheader_group_headers.clone(),
            extra_prefix: flags.requestheader_extra_headers_prefix.clone(),
        };
        let proxy = of_flag("--requestheader-client-ca-file", path)?;
        Ok(Self { clients, proxy: proxy.map(|bundle| (bundle, headers())) })
    }

    /// With what is published, where flags do not say.
    fn with(&self, published: &BTreeMap<String, String>) -> anyhow::Result<Trust> {
        let text = |key: &str| published.get(key).filter(|text| !text.trim().is_empty());
        let list = |key: &str| -> anyhow::Result<Vec<String>> {
            let list = text(key).map(|text| serde_json::from_str(text));
            Ok(list.transpose().with_context(|| key.to_owned())?.unwrap_or_default())
        };
        let bundle = |key: &str| text(key).map(|text| text.clone().into_bytes());
        let clients = self.clients.clone().or_else(|| bundle("client-ca-file"));
        let proxy = match (&self.proxy, bundle("requestheader-client-ca-file")) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(bundle)) => {
                let headers = Headers {
                    allowed_names: list("requestheader-allowed-names")?,
                    username: list("requestheader-username-headers")?,
                    uid: list("requestheader-uid-headers")?,
                    group: list("requestheader-group-headers")?,
                    extra_prefix: list("requestheader-extra-headers-prefix")?,
                };
                Some((bundle, headers))
            }
            (None, None) => None,
        };
        let proxy = proxy.map(|(bundle, headers)| {
            Authorities::new(&bundle).map(|authorities| FrontProxy { authorities, headers })
        });
        Ok(Trust {
            proxy: proxy.transpose()?,
            clients: clients.map(|bundle| Authorities::new(&bundle)).transpose()?,
        })
    }
}

/// Tells who calls, by certificates.
pub struct Certificates(watch::Receiver<Arc<Trust>>);

impl Certificates {
    /// Reads the files of the flags. What they do not say is looked for by `lookup`, again and
    /// again until shutdown; without a client, nobody has it.
    ///
    /// # Errors
    /// Names the flag whose file cannot be read.
    pub fn new(
        flags: &TrustFlags,
        lookup: Option<&Client>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let given = Given::read(flags)?;
        let all_said = given.clients.is_some() && given.proxy.is_some();
        let (sender, receiver) = watch::channel(Arc::new(given.with(&BTreeMap::new())?));
        let lookup = lookup.filter(|_| !all_said && !flags.authentication_skip_lookup);
        if let Some(client) = lookup.cloned() {
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = follow(client, given, sender) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
        Ok(Self(receiver))
    }

    /// Who calls; `None`: no certificate says so.
    ///
    /// # Errors
    /// A certificate was shown that none of those vouches for who could.
    pub fn who(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<Option<User>, String> {
        let trust = Arc::clone(&self.0.borrow());
        let chain = peer.map(|peer| peer.certificates.as_slice()).unwrap_or_default();
        let mut refusals = Vec::new();
        match trust.who(chain, Some(headers), now, &mut refusals) {
            Some(user) => Ok(Some(user.known())),
            None => refusals.pop().map_or(Ok(None), Err),
        }
    }
}

async fn follow(client: Client, given: Given, sender: watch::Sender<Arc<Trust>>) {
    let maps: Api<ConfigMap> = Api::namespaced(client, PUBLISHED.0);
    let mut seen: Option<BTreeMap<String, String>> = None;
    loop {
        let (pause, why) = match maps.get(PUBLISHED.1).await {
            Ok(map) => {
                let data = map.data.unwrap_or_default();
                match given.with(&data) {
                    Ok(_) if seen.as_ref() == Some(&data) => (PERIOD, None),
                    Ok(trust) => {
                        sender.send_replace(Arc::new(trust));
                        seen = Some(data);
                        (PERIOD, None)
                    }
                    Err(error) => (PERIOD, Some(crate::brief(&error))),
                }
            }
            Err(error) => (RETRY, Some(line(&error))),
        };
        if let Some(why) = why {
            let map = format!("{}/{}", PUBLISHED.0, PUBLISHED.1);
            tracing::warn!(why, map, "whom to believe is not known from there");
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::pki_types::CertificateDer;
    use serde_json::json;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca(name: &str) -> anyhow::Result<Ca> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
    }

    fn certificate(ca: &Ca, name: &str) -> anyhow::Result<CertificateDer<'static>> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "own");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&KeyPair::generate()?, ca)?.der().clone())
    }

    #[test]
    fn certificates_and_proxies_are_believed_by_their_cas() -> anyhow::Result<()> {
        let (clients, front, other) = (ca("clients")?, ca("front")?, ca("other")?);
        let published = BTreeMap::from([
            ("client-ca-file".to_owned(), clients.pem()),
            ("requestheader-client-ca-file".to_owned(), front.pem()),
            ("requestheader-allowed-names".to_owned(), json!(["proxy"]).to_string()),
            ("requestheader-username-headers".to_owned(), json!(["X-Remote-User"]).to_string()),
            ("requestheader-group-headers".to_owned(), json!(["X-Remote-Group"]).to_string()),
            (
                "requestheader-extra-headers-prefix".to_owned(),
                json!(["X-Remote-Extra-"]).to_string(),
            ),
        ]);
        let given = Given { clients: None, proxy: None };
        let both = watch::channel(Arc::new(given.with(&published)?)).1;
        let nobody = watch::channel(Arc::new(Trust::default())).1;
        let headers: HeaderMap = [
            (http::HeaderName::from_static("x-remote-user"), "bob".parse()?),
            (http::HeaderName::from_static("x-remote-group"), "a".parse()?),
            (http::HeaderName::from_static("x-remote-extra-k%2f1"), "v".parse()?),
        ]
        .into_iter()
        .collect();
        let bare = HeaderMap::new();
        // Who is told to call: a name, nobody or an error.
        for (trust, ca, name, headers, want) in [
            (&both, &clients, "me", &bare, Ok(Some("me"))),
            (&both, &clients, "me", &headers, Ok(Some("me"))),
            (&both, &front, "proxy", &headers, Ok(Some("bob"))),
            (&both, &front, "proxy", &bare, Err(())),
            (&both, &front, "else", &headers, Err(())),
            (&both, &other, "proxy", &headers, Err(())),
            (&nobody, &clients, "me", &headers, Ok(None)),
        ] {
            let der = certificate(ca, name)?;
            let address = ([127, 0, 0, 1], 1).into();
            let peer = Peer { address, certificates: Arc::new(vec![der]) };
            let certificates = Certificates(trust.clone());
            let got = certificates.who(Some(&peer), headers, UnixTime::now());
            let got = got.map(|user| user.map(|user| user.name)).map_err(|_| ());
            assert_eq!(got, want.map(|name| name.map(str::to_owned)), "{name}");
            assert_eq!(certificates.who(None, headers, UnixTime::now()), Ok(None));
        }
        Ok(())
    }

    #[test]
    fn flags_go_before_what_is_published() -> anyhow::Result<()> {
        let (ours, theirs) = (ca("ours")?, ca("theirs")?);
        let published = BTreeMap::from([
            ("client-ca-file".to_owned(), theirs.pem()),
            ("requestheader-client-ca-file".to_owned(), theirs.pem()),
            ("requestheader-username-headers".to_owned(), json!(["u"]).to_string()),
        ]);
        let given = Given {
            clients: Some(ours.pem().into_bytes()),
            proxy: Some((ours.pem().into_bytes(), Headers::default())),
        };
        let now = UnixTime::now();
        let chain = [certificate(&ours, "x")?];
        let trust = given.with(&published)?;
        assert!(trust.clients.is_some_and(|c| c.user(&chain, now).is_ok()));
        let proxy = trust.proxy.map(|p| (p.authorities.user(&chain, now).is_ok(), p.headers));
        assert_eq!(proxy, Some((true, Headers::default())));
        let bad = BTreeMap::from([
            ("requestheader-client-ca-file".to_owned(), theirs.pem()),
            ("requestheader-username-headers".to_owned(), "u".to_owned()),
        ]);
        assert!(Given { clients: None, proxy: None }.with(&bad).is_err());
        Ok(())
    }
}
