//! Who calls, by what a connection and a front proxy show: the rules of client certificates and of
//! request headers, for all that serve (k8s.io/apiserver `authentication/request/x509`,
//! `authentication/request/headerrequest`).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use x509_parser::der_parser::oid::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
/// Its members may do everything.
pub const MASTERS: &str = "system:masters";

/// Key of [`User::extra`] that says which credential was shown.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// Kubernetes' attribute for a user's UID.
const UID: [u64; 8] = [1, 3, 6, 1, 4, 1, 57683, 2];

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Who did not say who he is.
    pub fn anonymous() -> Self {
        let groups = vec![UNAUTHENTICATED.to_owned()];
        Self { name: ANONYMOUS.to_owned(), groups, ..Self::default() }
    }

    /// The user that a verified client certificate names, if any: its common name; its
    /// organizations are the groups.
    ///
    /// # Errors
    /// It cannot be read, or says of itself what it may not.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Option<Self>, String> {
        Subject::read(certificate)?.user(certificate)
    }

    /// In the group of those who are known, unless given that or its opposite.
    #[must_use]
    pub fn known(mut self) -> Self {
        let told = self.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED);
        if self.name != ANONYMOUS && !told {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// What a certificate says of its owner.
struct Subject {
    common_name: String,
    serial: String,
    organizations: Vec<String>,
    uids: Vec<String>,
}

impl Subject {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|e| format!("x509: malformed certificate: {e}"))?;
        let subject = parsed.subject();
        let uid = Oid::from(&UID).map_err(|_| "x509: no UID attribute".to_owned())?;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            let text = a.as_str().map(str::to_owned);
            text.map_err(|_| "x509: a subject attribute is no text".to_owned())
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

    fn uid(&self) -> Result<String, String> {
        match self.uids.as_slice() {
            [] => Ok(String::new()),
            [one] if one.is_empty() => Err("UID cannot be an empty string".to_owned()),
            [one] => Ok(one.clone()),
            many => Err(format!("expected 1 UID, but found multiple: [{}]", many.join(" "))),
        }
    }

    fn user(self, certificate: &CertificateDer<'_>) -> Result<Option<User>, String> {
        if self.common_name.is_empty() {
            return Ok(None);
        }
        let print = Sha256::digest(certificate.as_ref());
        let print: String = print.iter().map(|b| format!("{b:02x}")).collect();
        let uid = self.uid()?;
        let extra = [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={print}")])].into();
        Ok(Some(User { name: self.common_name, uid, groups: self.organizations, extra }))
    }
}

/// CAs that client certificates are held to after the handshake.
pub struct Authorities(Arc<dyn ClientCertVerifier>);

impl Authorities {
    /// # Errors
    /// The bundle is no PEM, or has no certificate.
    pub fn new(bundle: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        Ok(Self(builder.build()?))
    }

    /// The subject of a chain (leaf first) that leads to one of them: signatures, validity and
    /// extended key usage. `None`: there is no chain.
    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Option<Subject>, String> {
        let Some((leaf, others)) = chain.split_first() else { return Ok(None) };
        let subject = Subject::read(leaf)?;
        self.0.verify_client_cert(leaf, others, now).map_err(|e| {
            let (serial, name) = (&subject.serial, &subject.common_name);
            format!("verifying certificate SN={serial}, CN={name} failed: {e}")
        })?;
        Ok(Some(subject))
    }

    /// The user of a chain. `None`: there is no chain, or it names no user.
    ///
    /// # Errors
    /// The chain is not trusted.
    pub fn user(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Option<User>, String> {
        match (self.verify(chain, now)?, chain.first()) {
            (Some(subject), Some(leaf)) => subject.user(leaf),
            _ => Ok(None),
        }
    }
}

/// What a front proxy may be called, and how it says who asks (`--requestheader-*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Common names that a proxy's certificate may have; none: any.
    pub allowed_names: Vec<String>,
    /// `X-Remote-User`
    pub username: Vec<String>,
    /// `X-Remote-Uid`
    pub uid: Vec<String>,
    /// `X-Remote-Group`
    pub group: Vec<String>,
    /// `X-Remote-Extra-`
    pub extra_prefix: Vec<String>,
}

impl Headers {
    /// Those that aggregators use, whatever is configured.
    fn standard() -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            allowed_names: Vec::new(),
            username: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            group: one("X-Remote-Group"),
            extra_prefix: one("X-Remote-Extra-"),
        }
    }

    /// Whom the headers name.
    fn read(&self, headers: &HeaderMap) -> Option<User> {
        let values = |names: &[String]| -> Vec<String> {
            let all = names.iter().flat_map(|name| headers.get_all(name));
            let texts = all.filter_map(|value| value.to_str().ok()).filter(|text| !text.is_empty());
            texts.map(str::to_owned).collect()
        };
        let name = values(&self.username).into_iter().next()?;
        let uid = values(&self.uid).into_iter().next().unwrap_or_default();
        let mut user = User { name, uid, groups: values(&self.group), ..User::default() };
        for (header, value) in headers {
            if let (Some(key), Ok(value)) = (self.extra_key(header), value.to_str()) {
                user.extra.entry(key).or_default().push(value.to_owned());
            }
        }
        Some(user)
    }

    fn extra_key(&self, header: &HeaderName) -> Option<String> {
        // Header names are in lower case, and so are the keys.
        let header = header.as_str();
        let prefixes = self.extra_prefix.iter().map(|p| p.to_ascii_lowercase());
        let key = prefixes.filter(|p| !p.is_empty()).find_map(|p| header.strip_prefix(&p))?;
        match percent_decode_str(key).decode_utf8() {
            Ok(decoded) => Some(decoded.into_owned()),
            Err(_) => Some(key.to_owned()),
        }
    }

    fn clear(&self, headers: &mut HeaderMap) {
        for name in self.username.iter().chain(&self.uid).chain(&self.group) {
            headers.remove(name);
        }
        let extra: Vec<HeaderName> =
            headers.keys().filter(|name| self.extra_key(name).is_some()).cloned().collect();
        for name in extra {
            headers.remove(name);
        }
    }
}

/// Those that may say in headers for whom they ask.
pub struct FrontProxy {
    pub authorities: Authorities,
    pub headers: Headers,
}

impl FrontProxy {
    /// The user that the headers name. `None`: they name none, or no certificate was shown.
    ///
    /// # Errors
    /// The certificate is no proxy's.
    pub fn user(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<Option<User>, String> {
        let Some(Subject { common_name, .. }) = self.authorities.verify(chain, now)? else {
            return Ok(None);
        };
        let allowed = &self.headers.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&common_name) {
            return Err(format!("x509: subject with cn={common_name} is not in the allowed list"));
        }
        Ok(self.headers.read(headers))
    }
}

/// Whom certificates are believed from.
#[derive(Default)]
pub struct Trust {
    pub proxy: Option<FrontProxy>,
    pub clients: Option<Authorities>,
}

impl Trust {
    /// Who calls; `None`: no certificate says so. `refusals` takes why a chain was not believed.
    /// `headers`: absent where nobody may say for whom he asks.
    pub fn who(
        &self,
        chain: &[CertificateDer<'_>],
        headers: Option<&HeaderMap>,
        now: UnixTime,
        refusals: &mut Vec<String>,
    ) -> Option<User> {
        let proxy = self.proxy.as_ref().zip(headers);
        let proxied = proxy.map(|(proxy, headers)| proxy.user(chain, headers, now));
        let own = || self.clients.as_ref().map(|clients| clients.user(chain, now));
        for found in [proxied].into_iter().chain(std::iter::once_with(own)).flatten() {
            match found {
                Ok(Some(user)) => return Some(user),
                Ok(None) => {}
                Err(why) => refusals.push(why),
            }
        }
        None
    }

    /// Removes the headers by which proxies speak: they are for this server alone.
    pub fn clear(&self, headers: &mut HeaderMap) {
        Headers::standard().clear(headers);
        if let Some(proxy) = &self.proxy {
            proxy.headers.clear(headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::testing::{Authority, Leaf};

    fn trusted(authority: &Authority) -> Authorities {
        Authorities::new(authority.pem().as_bytes()).expect("a bundle")
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(5 * 365 * 24 * 3600))
    }

    #[test]
    fn trusted_chains_name_users() {
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let clients = trusted(&ours);
        let user = |chain: &[CertificateDer<'_>]| clients.user(chain, now());
        let named =
            ours.sign(&Leaf { organizations: &["devs"], uids: &["1234"], ..<_>::default() });
        let bob = user(std::slice::from_ref(&named)).expect("trusted").expect("a user");
        assert_eq!((bob.name.as_str(), bob.uid.as_str()), ("bob", "1234"));
        assert_eq!(bob.groups, ["devs"]);
        let id = bob.extra.get(CREDENTIAL_ID).and_then(|v| v.first()).expect("an id");
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");
        assert_eq!(User::of_certificate(&named), Ok(Some(bob)));

        assert_eq!(user(&[]), Ok(None));
        let nameless = [ours.sign(&Leaf { name: "", ..Leaf::default() })];
        assert_eq!(user(&nameless), Ok(None));
        let any_use = [ours.sign(&Leaf { usages: &[], ..Leaf::default() })];
        assert!(user(&any_use).is_ok_and(|u| u.is_some()));

        let server = &[ExtendedKeyUsagePurpose::ServerAuth];
        for (why, bad) in [
            ("expired", ours.sign(&Leaf { valid: (1, 4), ..Leaf::default() })),
            ("not yet valid", ours.sign(&Leaf { valid: (6, 9), ..Leaf::default() })),
            ("another authority", other.sign(&Leaf::default())),
            ("a server's", ours.sign(&Leaf { usages: server, ..Leaf::default() })),
            ("an empty UID", ours.sign(&Leaf { uids: &[""], ..Leaf::default() })),
            ("garbage", CertificateDer::from(vec![1, 2, 3])),
        ] {
            assert!(user(&[bad]).is_err(), "{why}");
        }
        assert!(Authorities::new(b"").is_err());
        let mut subject = Subject::read(&named).expect("a subject");
        subject.uids.push("5".to_owned());
        let refused = Err("expected 1 UID, but found multiple: [1234 5]".to_owned());
        assert_eq!(subject.user(&named), refused);
    }

    #[test]
    fn only_a_proxy_is_believed_for_others() {
        let (front, clients) = (Authority::new("front"), Authority::new("clients"));
        let headers = Headers { allowed_names: vec!["proxy".to_owned()], ..Headers::standard() };
        let proxy = FrontProxy { authorities: trusted(&front), headers };
        let trust = Trust { proxy: Some(proxy), clients: Some(trusted(&clients)) };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "alice"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-extra-scopes", "x"),
            ("x-remote-extra-acme.com%2fproject", "y"),
            ("accept", "z"),
        ] {
            headers.append(name, value.parse().expect("a value"));
        }
        let bare = HeaderMap::new();
        let proxy = [front.sign(&Leaf { name: "proxy", ..Leaf::default() })];
        let other = [front.sign(&Leaf { name: "other", ..Leaf::default() })];
        let client = [clients.sign(&Leaf::default())];
        // Who calls, and how many refuse to believe it.
        let cases: [(&[CertificateDer<'_>], Option<&HeaderMap>, Option<&str>, usize); 7] = [
            (&proxy, Some(&headers), Some("alice"), 0),
            (&proxy, Some(&bare), None, 1),
            (&proxy, None, None, 1),
            (&other, Some(&headers), None, 2),
            (&client, Some(&headers), Some("bob"), 1),
            (&client, None, Some("bob"), 0),
            (&[], Some(&headers), None, 0),
        ];
        for (chain, headers, want, refused) in cases {
            let mut refusals = Vec::new();
            let got = trust.who(chain, headers, now(), &mut refusals).map(|user| user.name);
            assert_eq!((got.as_deref(), refusals.len()), (want, refused), "{refusals:?}");
        }
        let alice = trust.who(&proxy, Some(&headers), now(), &mut Vec::new()).expect("a user");
        assert_eq!((alice.uid.as_str(), &*alice.groups), ("7", &["a", "b"].map(str::to_owned)[..]));
        let extra: Vec<&str> = alice.extra.keys().map(String::as_str).collect();
        assert_eq!(extra, ["acme.com/project", "scopes"]);
        trust.clear(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn who_is_known_is_in_a_group() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..User::default()
        };
        for (before, want) in [
            (user("a", &["g"]), &["g", AUTHENTICATED][..]),
            (user("a", &[AUTHENTICATED]), &[AUTHENTICATED]),
            (user("a", &[UNAUTHENTICATED]), &[UNAUTHENTICATED]),
            (User::anonymous(), &[UNAUTHENTICATED]),
            (user(ANONYMOUS, &[]), &[]),
        ] {
            assert_eq!(before.known().groups, want);
        }
    }
}
