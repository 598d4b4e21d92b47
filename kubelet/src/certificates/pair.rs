//! A certificate with its key.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Leaf {
    fn read(certificate: &X509Certificate<'_>) -> anyhow::Result<Self> {
        let texts =
            |kind: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
                kind.filter_map(|a| a.as_str().ok().map(str::to_owned)).collect::<Vec<_>>()
            };
        let subject = certificate.subject();
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        let others = certificate.subject_alternative_name().context("subjectAltName")?;
        for name in others.iter().flat_map(|others| &others.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let validity = certificate.validity();
        Ok(Self {
            common_name: texts(&mut subject.iter_common_name()).pop().unwrap_or_default(),
            organizations: texts(&mut subject.iter_organization()),
            names,
            addresses,
            from: Timestamp::from_second(validity.not_before.timestamp())?,
            // One that never ends says so by a moment after all that are known (RFC 5280, 4.1.2.5).
            until: Timestamp::from_second(validity.not_after.timestamp()).unwrap_or(Timestamp::MAX),
        })
    }

    /// Whether it holds no more.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now > self.until
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A certificate, those that vouch for it, and its private key.
pub struct Pair {
    /// PEM; the certificate itself is the first.
    pub chain: String,
    /// PEM.
    pub key: String,
    pub leaf: Leaf,
    /// For TLS.
    pub certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl Pair {
    /// From PEM; what else is in the texts is left out, so both may be the same.
    ///
    /// # Errors
    /// Something is missing, not understood, or the key is another certificate's.
    pub fn read(certificates: &str, key: &str) -> anyhow::Result<Self> {
        let chain = CertificateDer::pem_slice_iter(certificates.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("invalid certificate data")?;
        let first = chain.first().context("invalid certificate data: no certificate in it")?;
        let (_, read) = x509_parser::parse_x509_certificate(first).context("certificate")?;
        let leaf = Leaf::read(&read)?;
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("invalid key data")?;
        let blocks = chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_ref()));
        let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let text = pem::encode_many_config(&blocks.collect::<Vec<_>>(), lines);
        let keys = pem::parse_many(key).context("invalid key data")?;
        let own = keys.iter().find(|block| block.tag().ends_with("PRIVATE KEY"));
        let own = pem::encode_config(own.context("invalid key data")?, lines);
        let certified = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
            .context("certificate and key")?;
        Ok(Self { chain: text, key: own, leaf, certified: Arc::new(certified) })
    }
}

/// When the first of a PEM text's certificates ends.
///
/// # Errors
/// There is none, or one is not understood.
pub fn ends(certificates: &str) -> anyhow::Result<Timestamp> {
    let mut first = Timestamp::MAX;
    for der in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
        let der = der.context("invalid certificate data")?;
        let (_, read) = x509_parser::parse_x509_certificate(&der).context("certificate")?;
        first = first.min(Timestamp::from_second(read.validity().not_after.timestamp())?);
    }
    ensure!(first != Timestamp::MAX, "no certificate in it");
    Ok(first)
}
