//! Who asks.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;

/// An authenticated user.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const MASTERS: &str = "system:masters";

/// What a request shows of its sender.
#[derive(Debug)]
pub struct Credentials<'a> {
    /// The TLS client's chain, leaf first. TLS took any certificate; trust is decided here.
    pub certificates: &'a [CertificateDer<'a>],
    /// The bearer token: `Authorization` header or WebSocket subprotocol.
    pub bearer: Option<&'a str>,
}

/// The credentials are wrong; the request ends with 401. The text is for the log alone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

/// One way to know a user.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `None`: these credentials are not of this kind.
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Rejected>;
}
