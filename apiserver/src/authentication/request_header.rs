//! Users that a front proxy vouches for with headers
//! (upstream: `authentication/request/headerrequest`).

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;

use super::x509::ChainVerifier;
use super::{Rejected, User};

/// `--requestheader-*`.
#[derive(Clone, Debug, Default)]
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

/// Authenticates what comes through a front proxy.
pub struct RequestHeader {
    verifier: ChainVerifier,
    headers: Headers,
}

impl RequestHeader {
    /// `verifier`: over `--requestheader-client-ca-file`.
    pub fn new(verifier: ChainVerifier, headers: Headers) -> Self {
        Self { verifier, headers }
    }

    /// The user that the headers name. `None`: they name none, or no certificate was shown.
    ///
    /// # Errors
    /// The certificate is no proxy's.
    pub fn user(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
    ) -> Result<Option<User>, Rejected> {
        let Some(subject) = self.verifier.verify(chain)? else { return Ok(None) };
        let allowed = &self.headers.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&subject.common_name) {
            return Err(Rejected(format!(
                "x509: subject with cn={} is not in the allowed list",
                subject.common_name
            )));
        }
        Ok(self.headers.read(headers))
    }

    /// Removes the headers that were for this server alone.
    pub fn clear(&self, headers: &mut HeaderMap) {
        let own = &self.headers;
        for name in own.username.iter().chain(&own.uid).chain(&own.group) {
            headers.remove(name);
        }
        let extra: Vec<HeaderName> =
            headers.keys().filter(|name| own.extra_key(name).is_some()).cloned().collect();
        for name in extra {
            headers.remove(name);
        }
    }
}

impl Headers {
    fn read(&self, headers: &HeaderMap) -> Option<User> {
        let values = |names: &[String]| -> Vec<String> {
            let all = names.iter().flat_map(|name| headers.get_all(name));
            all.filter_map(|v| v.to_str().ok())
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
                .collect()
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
}

#[cfg(test)]
mod tests {
    use super::super::x509::tests::{Authority, Leaf, clock};
    use super::*;

    #[test]
    fn only_a_proxy_is_believed() {
        let authority = Authority::new("front");
        let verifier =
            ChainVerifier::new(authority.pem().as_bytes(), clock(100_000_000)).expect("a bundle");
        let names = |n: &str| vec![n.to_owned()];
        let proxy = RequestHeader::new(
            verifier,
            Headers {
                allowed_names: names("proxy"),
                username: names("X-Remote-User"),
                uid: names("X-Remote-Uid"),
                group: names("X-Remote-Group"),
                extra_prefix: names("X-Remote-Extra-"),
            },
        );
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "bob"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-extra-scopes", "x"),
            ("x-remote-extra-acme.com%2fproject", "y"),
            ("accept", "z"),
        ] {
            headers.append(name, value.parse().expect("a value"));
        }
        let good = [authority.sign(&Leaf { name: "proxy", ..Leaf::default() })];
        let user = proxy.user(&good, &headers).expect("trusted").expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("bob", "7"));
        assert_eq!(user.groups, ["a", "b"]);
        let extra: Vec<&str> = user.extra.keys().map(String::as_str).collect();
        assert_eq!(extra, ["acme.com/project", "scopes"]);

        let other = [authority.sign(&Leaf { name: "other", ..Leaf::default() })];
        assert!(proxy.user(&other, &headers).is_err());
        assert_eq!(proxy.user(&[], &headers).ok(), Some(None));
        proxy.clear(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        assert_eq!(proxy.user(&good, &headers).ok(), Some(None));
    }
}
