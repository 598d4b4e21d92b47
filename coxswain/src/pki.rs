//! The cluster's certificates and keys, where and as kubeadm keeps them.
//!
//! What is missing is made, what is about to expire is renewed, what is there is kept: an
//! administrator's own CA in place of ours is used as it is.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;

use crate::files;

/// CAs live as long as kubeadm's.
const CA_LIFE: Duration = Duration::days(3650);
const CERTIFICATE_LIFE: Duration = Duration::days(365);
/// Certificates are renewed when they have less than this left.
const RENEW_BEFORE: Duration = Duration::days(30);
/// Clocks of other machines may be behind.
const BACKDATE: Duration = Duration::minutes(5);

/// A CA of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ca {
    /// Signs everything that is not of the other.
    Cluster,
    /// Signs the aggregator's client certificate.
    FrontProxy,
}

impl Ca {
    fn base(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }

    fn common_name(self) -> &'static str {
        match self {
            Self::Cluster => "kubernetes",
            Self::FrontProxy => "front-proxy-ca",
        }
    }
}

/// One certificate to have.
#[derive(Clone, Debug)]
pub struct Spec {
    pub ca: Ca,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub server: bool,
    pub client: bool,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl Spec {
    /// A client certificate of the cluster CA: user and groups.
    pub fn client(user: &str, groups: &[&str]) -> Self {
        Self {
            ca: Ca::Cluster,
            common_name: user.to_owned(),
            organizations: groups.iter().map(|g| (*g).to_owned()).collect(),
            server: false,
            client: true,
            names: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// A serving certificate of the cluster CA.
    pub fn server(common_name: &str, names: Vec<String>, addresses: Vec<IpAddr>) -> Self {
        Self { server: true, client: false, names, addresses, ..Self::client(common_name, &[]) }
    }

    fn params(&self, now: OffsetDateTime) -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(self.names.clone())?;
        params.subject_alt_names.extend(self.addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name = subject(&self.common_name, &self.organizations);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = [
            (self.server, ExtendedKeyUsagePurpose::ServerAuth),
            (self.client, ExtendedKeyUsagePurpose::ClientAuth),
        ]
        .into_iter()
        .filter_map(|(wanted, usage)| wanted.then_some(usage))
        .collect();
        params.not_before = now - BACKDATE;
        params.not_after = now + CERTIFICATE_LIFE;
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn subject(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// The folder of certificates and keys, `/etc/kubernetes/pki`.
#[derive(Clone, Debug)]
pub struct Pki {
    pub dir: PathBuf,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pki {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn certificate(&self, base: &str) -> PathBuf {
        self.dir.join(format!("{base}.crt"))
    }

    pub fn key(&self, base: &str) -> PathBuf {
        self.dir.join(format!("{base}.key"))
    }

    pub fn ca_certificate(&self, ca: Ca) -> PathBuf {
        self.certificate(ca.base())
    }

    pub fn ca_key(&self, ca: Ca) -> PathBuf {
        self.key(ca.base())
    }

    /// Makes a CA, unless it is there.
    ///
    /// # Errors
    /// One that is there has expired (replacing it would cut off everything it signed), lacks its
    /// key, or cannot be read or written; the error names the file.
    pub fn ensure_ca(&self, ca: Ca, now: OffsetDateTime) -> anyhow::Result<()> {
        let (certificate, key) = (self.ca_certificate(ca), self.ca_key(ca));
        if certificate.exists() {
            let pem = files::read(&certificate)?;
            if expiry(&pem).with_context(|| certificate.display().to_string())? <= now {
                bail!(
                    "{}: the CA certificate has expired; replace it and everything it signed, or remove {} to start anew",
                    certificate.display(),
                    self.dir.display()
                );
            }
            return Ok(());
        }
        if key.exists() {
            bail!("{}: is missing, but its key {} is there", certificate.display(), key.display());
        }
        let pair = new_ca(ca.common_name(), now)?;
        files::write_private(&key, &pair.key)?;
        files::write_private(&certificate, &pair.certificate)
    }

    /// Makes or renews a certificate under `base`, unless it is there and fits `spec`.
    /// Returns whether it was written.
    ///
    /// # Errors
    /// As [`Pki::ensure_ca`].
    pub fn ensure(&self, base: &str, spec: &Spec, now: OffsetDateTime) -> anyhow::Result<bool> {
        let (certificate, key) = (self.certificate(base), self.key(base));
        if certificate.exists() && key.exists() {
            let have = files::read(&certificate)?;
            let ca = files::read(&self.ca_certificate(spec.ca))?;
            let why =
                unfit(&have, &ca, spec, now).with_context(|| certificate.display().to_string())?;
            match why {
                None => return Ok(false),
                Some(why) => {
                    tracing::info!(file = %certificate.display(), why, "renewing certificate")
                }
            }
        }
        let pair = self.issue(spec, now)?;
        files::write_private(&key, &pair.key)?;
        files::write_private(&certificate, &pair.certificate)?;
        Ok(true)
    }

    /// Signs a new certificate with a new key; nothing is written.
    ///
    /// # Errors
    /// The CA cannot be read; the error names the file.
    pub fn issue(&self, spec: &Spec, now: OffsetDateTime) -> anyhow::Result<Pair> {
        let (ca, ca_key) = (self.ca_certificate(spec.ca), self.ca_key(spec.ca));
        let signer = KeyPair::from_pem(&files::read(&ca_key)?)
            .with_context(|| ca_key.display().to_string())?;
        let issuer = Issuer::from_ca_cert_pem(&files::read(&ca)?, signer)
            .with_context(|| ca.display().to_string())?;
        let key = KeyPair::generate()?;
        let certificate = spec.params(now)?.signed_by(&key, &issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Makes the key that signs service-account tokens, `sa.key` and `sa.pub`.
    ///
    /// # Errors
    /// Names the file that cannot be read or written.
    pub fn ensure_service_account_key(&self) -> anyhow::Result<()> {
        let (private, public) = (self.key("sa"), self.dir.join("sa.pub"));
        if private.exists() && public.exists() {
            return Ok(());
        }
        let key = match private.exists() {
            true => KeyPair::from_pem(&files::read(&private)?)
                .with_context(|| private.display().to_string())?,
            false => KeyPair::generate()?,
        };
        if !private.exists() {
            files::write_private(&private, &key.serialize_pem())?;
        }
        files::write_private(&public, &key.public_key_pem())
    }
}

fn new_ca(common_name: &str, now: OffsetDateTime) -> anyhow::Result<Pair> {
    let mut params = CertificateParams::new(vec![common_name.to_owned()])?;
    params.distinguished_name = subject(common_name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_LIFE;
    let key = KeyPair::generate()?;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// When a PEM certificate expires.
///
/// # Errors
/// It is no certificate.
pub fn expiry(pem: &str) -> anyhow::Result<OffsetDateTime> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).context("is not PEM")?;
    let certificate = block.parse_x509().context("is not a certificate")?;
    Ok(certificate.validity().not_after.to_datetime())
}

/// Why a certificate will not do: about to expire, of another CA or subject, a name missing.
fn unfit(
    pem: &str,
    ca_pem: &str,
    spec: &Spec,
    now: OffsetDateTime,
) -> anyhow::Result<Option<&'static str>> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).context("is not PEM")?;
    let have = block.parse_x509().context("is not a certificate")?;
    let (_, ca_block) = parse_x509_pem(ca_pem.as_bytes()).context("the CA is not PEM")?;
    let ca = ca_block.parse_x509().context("the CA is not a certificate")?;
    if have.validity().not_after.to_datetime() - now < RENEW_BEFORE {
        return Ok(Some("about to expire"));
    }
    if have.verify_signature(Some(ca.public_key())).is_err() {
        return Ok(Some("signed by another CA"));
    }
    let texts = |kind: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
        kind.filter_map(|a| a.as_str().ok().map(str::to_owned)).collect::<Vec<_>>()
    };
    let names = texts(&mut have.subject().iter_common_name());
    let groups = texts(&mut have.subject().iter_organization());
    if names != [spec.common_name.as_str()] || groups != spec.organizations {
        return Ok(Some("of another subject"));
    }
    let sans = have.subject_alternative_name().ok().flatten();
    let has = |wanted: x509_parser::extensions::GeneralName<'_>| {
        sans.as_ref().is_some_and(|s| s.value.general_names.contains(&wanted))
    };
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    use x509_parser::extensions::GeneralName::{DNSName, IPAddress};
    let complete = spec.names.iter().all(|n| has(DNSName(n)))
        && spec.addresses.iter().all(|a| has(IPAddress(&octets(a))));
    Ok((!complete).then_some("lacks a name"))
}

/// The first address of a service range: what `kubernetes.default` has.
///
/// # Errors
/// The range is no CIDR or too small.
pub fn first_service_address(range: &str) -> anyhow::Result<IpAddr> {
    nth_address(range, 1)
}

/// The `n`th address of a range.
///
/// # Errors
/// The range is no CIDR or too small.
pub fn nth_address(range: &str, n: u32) -> anyhow::Result<IpAddr> {
    let net: ipnet::IpNet = range.parse().with_context(|| format!("{range:?} is not a CIDR"))?;
    let address = match net.network() {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a).wrapping_add(n)).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a).wrapping_add(u128::from(n))).into()),
    };
    match net.contains(&address) {
        true => Ok(address),
        false => bail!("{range} has no address number {n}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pki() -> (tempfile::TempDir, Pki) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pki = Pki::new(dir.path().join("pki"));
        (dir, pki)
    }

    fn apiserver() -> Spec {
        Spec::server(
            "kube-apiserver",
            vec!["kubernetes".into(), "localhost".into()],
            vec![IpAddr::from([10, 96, 0, 1])],
        )
    }

    #[test]
    fn what_is_there_is_kept_and_what_expires_is_renewed() -> anyhow::Result<()> {
        let (_dir, pki) = pki();
        let now = OffsetDateTime::now_utc();
        pki.ensure_ca(Ca::Cluster, now)?;
        let ca = files::read(&pki.ca_certificate(Ca::Cluster))?;
        pki.ensure_ca(Ca::Cluster, now)?;
        assert_eq!(ca, files::read(&pki.ca_certificate(Ca::Cluster))?);

        assert!(pki.ensure("apiserver", &apiserver(), now)?, "made");
        assert!(!pki.ensure("apiserver", &apiserver(), now)?, "kept");
        assert!(!pki.ensure("apiserver", &apiserver(), now + Duration::days(330))?, "kept");
        assert!(pki.ensure("apiserver", &apiserver(), now + Duration::days(340))?, "renewed");

        let mut wider = apiserver();
        wider.addresses.push(IpAddr::from([192, 0, 2, 1]));
        assert!(pki.ensure("apiserver", &wider, now)?, "an address was missing");
        Ok(())
    }

    #[test]
    fn certificates_of_another_ca_are_replaced() -> anyhow::Result<()> {
        let (_dir, pki) = pki();
        let now = OffsetDateTime::now_utc();
        pki.ensure_ca(Ca::Cluster, now)?;
        pki.ensure("apiserver", &apiserver(), now)?;
        std::fs::remove_file(pki.ca_certificate(Ca::Cluster))?;
        let error = pki.ensure_ca(Ca::Cluster, now).expect_err("the key is there");
        assert!(error.to_string().contains("ca.crt: is missing"), "{error}");
        std::fs::remove_file(pki.ca_key(Ca::Cluster))?;
        pki.ensure_ca(Ca::Cluster, now)?;
        assert!(pki.ensure("apiserver", &apiserver(), now)?);
        Ok(())
    }

    #[test]
    fn an_expired_ca_is_an_error_that_names_it() -> anyhow::Result<()> {
        let (_dir, pki) = pki();
        let now = OffsetDateTime::now_utc();
        pki.ensure_ca(Ca::Cluster, now)?;
        let error = pki
            .ensure_ca(Ca::Cluster, now + Duration::days(4000))
            .expect_err("expired")
            .to_string();
        assert!(error.contains("ca.crt") && error.contains("expired"), "{error}");
        Ok(())
    }

    #[test]
    fn private_files_are_for_root_alone() -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, pki) = pki();
        pki.ensure_ca(Ca::Cluster, OffsetDateTime::now_utc())?;
        pki.ensure_service_account_key()?;
        for path in [pki.ca_key(Ca::Cluster), pki.key("sa")] {
            assert_eq!(std::fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
        }
        Ok(())
    }

    #[test]
    fn service_addresses_are_counted_from_the_network() -> anyhow::Result<()> {
        assert_eq!(first_service_address("10.96.0.0/12")?.to_string(), "10.96.0.1");
        assert_eq!(nth_address("10.96.0.0/12", 10)?.to_string(), "10.96.0.10");
        assert!(nth_address("10.96.0.0/30", 10).is_err());
        Ok(())
    }
}
