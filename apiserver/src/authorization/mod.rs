//! Who may do what.

use async_trait::async_trait;

use crate::authentication::User;
use crate::request::RequestInfo;

/// What is to be decided on.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a User,
    pub request: &'a RequestInfo,
}

/// What an authorizer says. `reason` goes to the client of a refusal, after upstream's sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { reason: String },
    Deny { reason: String },
    NoOpinion { reason: String },
}

/// Node, RBAC, webhook; asked in order until one allows or denies.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}
