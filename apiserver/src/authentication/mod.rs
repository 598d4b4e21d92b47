//! Who asks.

pub mod bootstrap_token;
pub mod legacy_tokens;
pub mod openid;
pub mod service_account;
#[cfg(test)]
mod testing;
pub mod token_file;
pub mod tokens;
pub(crate) mod tracking;
pub mod union;

use std::sync::Arc;

use async_trait::async_trait;
pub use component::callers::{
    ANONYMOUS, AUTHENTICATED, CREDENTIAL_ID, MASTERS, UNAUTHENTICATED, User,
};
use rustls::pki_types::CertificateDer;

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

/// A user known by a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    pub user: User,
    /// Those of the wanted audiences that the token is for.
    pub audiences: Vec<String>,
    /// What the sender is to hear of using this token.
    pub warnings: Vec<String>,
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
