//! Client certificates: the common name is the user, organizations are the groups
//! (upstream: `authentication/request/x509`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use x509_parser::der_parser::oid::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authenticator, CREDENTIAL_ID, Clock, Credentials, Rejected, User};

/// Kubernetes' attribute for a user's UID: 1.3.6.1.4.1.57683.2.
const UID: &str = "1.3.6.1.4.1.57683.2";

/// The bundle of authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("reading the certificate bundle")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("no certificate in the bundle")]
    Empty,
    #[error("a certificate of the bundle is unusable")]
    Certificate(#[source] rustls::Error),
    #[error("the bundle makes no verifier")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Verifies chains against a bundle: signatures, validity and extended key usage (clientAuth).
pub struct ChainVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    clock: Clock,
}

impl ChainVerifier {
    /// # Errors
    /// The bundle is no PEM, or has no certificate.
    pub fn new(bundle: &[u8], clock: Clock) -> Result<Self, BundleError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = certificate.map_err(BundleError::Pem)?;
            roots.add(certificate).map_err(BundleError::Certificate)?;
        }
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(BundleError::Verifier)?;
        Ok(Self { verifier, clock })
    }

    /// The subject of a chain that is trusted; `None`: there is no chain.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Option<Subject>, Rejected> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(None) };
        let subject = Subject::read(leaf)?;
        let seconds = u64::try_from((self.clock)().as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let intermediates: Vec<CertificateDer<'_>> = intermediates.to_vec();
        self.verifier.verify_client_cert(leaf, &intermediates, now).map_err(|e| {
            Rejected(format!(
                "verifying certificate SN={}, CN={} failed: {e}",
                subject.serial, subject.common_name
            ))
        })?;
        Ok(Some(subject))
    }
}

/// What a certificate says of its owner.
#[derive(Debug)]
pub(super) struct Subject {
    pub common_name: String,
    serial: String,
    organizations: Vec<String>,
    uids: Vec<String>,
}

impl Subject {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, Rejected> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|e| Rejected(format!("x509: malformed certificate: {e}")))?;
        let subject = parsed.subject();
        let uid: Vec<u64> = UID.split('.').filter_map(|n| n.parse().ok()).collect();
        let uid = Oid::from(&uid).map_err(|_| Rejected("x509: no UID attribute".into()))?;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            a.as_str()
                .map(str::to_owned)
                .map_err(|_| Rejected("x509: a subject attribute is no text".to_owned()))
        };
        // Go keeps the last common name when there are several.
        let common_name = subject.iter_common_name().last().map(text).transpose()?;
        Ok(Self {
            common_name: common_name.unwrap_or_default(),
            serial: parsed.tbs_certificate.serial.to_string(),
            organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            uids: subject.iter_by_oid(&uid).map(text).collect::<Result<_, _>>()?,
        })
    }

    fn uid(&self) -> Result<String, Rejected> {
        match self.uids.as_slice() {
            [] => Ok(String::new()),
            [one] if one.is_empty() => Err(Rejected("UID cannot be an empty string".to_owned())),
            [one] => Ok(one.clone()),
            many => {
                Err(Rejected(format!("expected 1 UID, but found multiple: [{}]", many.join(" "))))
            }
        }
    }
}

/// Authenticates by client certificate.
pub struct X509(ChainVerifier);

impl X509 {
    /// `bundle`: the PEM of `--client-ca-file`.
    ///
    /// # Errors
    /// The bundle is no PEM, or has no certificate.
    pub fn new(bundle: &[u8], clock: Clock) -> Result<Self, BundleError> {
        ChainVerifier::new(bundle, clock).map(Self)
    }

    /// The user of a chain, leaf first. `None`: there is no chain, or it names no user.
    ///
    /// # Errors
    /// The chain is not trusted.
    pub fn user(&self, chain: &[CertificateDer<'_>]) -> Result<Option<User>, Rejected> {
        let (Some(leaf), Some(subject)) = (chain.first(), self.0.verify(chain)?) else {
            return Ok(None);
        };
        if subject.common_name.is_empty() {
            return Ok(None);
        }
        let print: String =
            Sha256::digest(leaf.as_ref()).iter().map(|b| format!("{b:02x}")).collect();
        let uid = subject.uid()?;
        let extra = [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={print}")])].into();
        Ok(Some(User { name: subject.common_name, uid, groups: subject.organizations, extra }))
    }
}

#[async_trait]
impl Authenticator for X509 {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Rejected> {
        self.user(credentials.certificates)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair,
    };

    pub(in super::super) struct Authority(CertifiedIssuer<'static, KeyPair>);

    pub(in super::super) struct Leaf<'a> {
        pub name: &'a str,
        pub organizations: &'a [&'a str],
        pub uids: &'a [&'a str],
        pub usages: &'a [ExtendedKeyUsagePurpose],
        /// Years after 1970, inclusive and exclusive.
        pub valid: (i32, i32),
    }

    impl Default for Leaf<'_> {
        fn default() -> Self {
            Self {
                name: "bob",
                organizations: &[],
                uids: &[],
                usages: &[ExtendedKeyUsagePurpose::ClientAuth],
                valid: (1, 10),
            }
        }
    }

    const YEAR: i64 = 365 * 24 * 3600;

    impl Authority {
        pub fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_before = rcgen::date_time_ymd(1970, 1, 1);
            params.not_after = rcgen::date_time_ymd(2030, 1, 1);
            let key = KeyPair::generate().expect("a key");
            Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
        }

        pub fn pem(&self) -> String {
            self.0.pem()
        }

        pub fn sign(&self, leaf: &Leaf<'_>) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, leaf.name);
            for o in leaf.organizations {
                params.distinguished_name.push(DnType::OrganizationName, *o);
            }
            for uid in leaf.uids {
                let oid: Vec<u64> = UID.split('.').filter_map(|n| n.parse().ok()).collect();
                params.distinguished_name.push(DnType::CustomDnType(oid), *uid);
            }
            params.extended_key_usages = leaf.usages.to_vec();
            params.not_before = rcgen::date_time_ymd(1970 + leaf.valid.0, 1, 1);
            params.not_after = rcgen::date_time_ymd(1970 + leaf.valid.1, 1, 1);
            let key = KeyPair::generate().expect("a key");
            params.signed_by(&key, &self.0).expect("a certificate").der().clone()
        }
    }

    pub(in super::super) fn clock(seconds: i64) -> Clock {
        Arc::new(move || jiff::Timestamp::from_second(seconds).expect("a time"))
    }

    #[test]
    fn trusted_chains_name_users() {
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let bundle = ours.pem();
        let x509 = X509::new(bundle.as_bytes(), clock(5 * YEAR)).expect("a bundle");
        let chain = [ours.sign(&Leaf {
            name: "bob",
            organizations: &["devs"],
            uids: &["1234"],
            ..Leaf::default()
        })];
        let user = x509.user(&chain).expect("trusted").expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("bob", "1234"));
        assert_eq!(user.groups, ["devs"]);
        let id = user.extra.get(CREDENTIAL_ID).and_then(|v| v.first()).expect("an id");
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");

        assert_eq!(x509.user(&[]).ok(), Some(None));
        let nameless = [ours.sign(&Leaf { name: "", ..Leaf::default() })];
        assert_eq!(x509.user(&nameless).ok(), Some(None));
        let any_use = [ours.sign(&Leaf { usages: &[], ..Leaf::default() })];
        assert!(x509.user(&any_use).is_ok_and(|u| u.is_some()));

        let server = &[ExtendedKeyUsagePurpose::ServerAuth];
        for (why, bad) in [
            ("expired", ours.sign(&Leaf { valid: (1, 4), ..Leaf::default() })),
            ("not yet valid", ours.sign(&Leaf { valid: (6, 9), ..Leaf::default() })),
            ("another authority", other.sign(&Leaf::default())),
            ("a server's", ours.sign(&Leaf { usages: server, ..Leaf::default() })),
            ("garbage", CertificateDer::from(vec![1, 2, 3])),
        ] {
            assert!(x509.user(&[bad]).is_err(), "{why}");
        }
        assert!(X509::new(b"", clock(0)).is_err());
    }
}
