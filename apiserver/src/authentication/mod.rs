//! Who asks.

pub mod bootstrap_token;
pub mod openid;
pub mod request_header;
pub mod service_account;
pub mod token_file;
pub mod tokens;
pub mod union;
pub mod x509;

use std::collections::BTreeMap;
use std::sync::Arc;

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

/// Key of [`User::extra`] that says which credential was shown.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The present time; tests give their own.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

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

/// A user known by a token, and those of the wanted audiences that the token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    pub user: User,
    pub audiences: Vec<String>,
}

/// One kind of bearer token.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// `None`: not a token of this kind. `audiences`: those of which the token must name one;
    /// empty means that none is asked for.
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, Rejected>;
}

/// The user of requests without credentials.
pub fn anonymous() -> User {
    User { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..User::default() }
}
