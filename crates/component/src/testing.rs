//! Authorities and what they sign, for tests; those of the API server read this file, too.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::CertificateDer;

/// Kubernetes' attribute for a user's UID.
const UID: [u64; 8] = [1, 3, 6, 1, 4, 1, 57683, 2];

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says; by default it is a client's.
pub struct Leaf<'a> {
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

impl Authority {
    /// Valid from 1970 to 2030.
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
            params.distinguished_name.push(DnType::CustomDnType(UID.to_vec()), *uid);
        }
        params.extended_key_usages = leaf.usages.to_vec();
        params.not_before = rcgen::date_time_ymd(1970 + leaf.valid.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(1970 + leaf.valid.1, 1, 1);
        let key = KeyPair::generate().expect("a key");
        params.signed_by(&key, &self.0).expect("a certificate").der().clone()
    }
}
