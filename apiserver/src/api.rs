//! What every request works with.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::{GroupResource, GroupVersionKind};
use store::SharedStore;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admission::Plugin;
use crate::aggregation::Aggregation;
use crate::authentication::legacy_tokens::Uses;
use crate::authentication::union::Union;
use crate::authentication::{Authenticator, Clock, Credentials, Rejected, User};
use crate::authorization::Authorizer;
use crate::discovery::Documents;
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::reader::Caches;
use crate::registry::PostHandler;
use crate::registry::catalog::{Catalog, Served};
use crate::verbs::actions::PostAction;
use crate::verbs::connect::Kubelets;
use crate::verbs::reviews::Answerer;
use crate::warnings::Warnings;
use crate::webhook;

/// Who tells users apart.
pub enum Identity {
    /// The chain made from flags.
    Chain(Box<Union>),
    /// Another one, which sees no headers.
    Other(Arc<dyn Authenticator>),
}

impl Identity {
    /// Headers that say who asks are for this server alone: they go.
    ///
    /// # Errors
    /// The credentials are wrong.
    pub async fn user(
        &self,
        credentials: &Credentials<'_>,
        headers: &mut http::HeaderMap,
        warnings: &Warnings,
    ) -> Result<Option<User>, Rejected> {
        match self {
            Self::Chain(chain) => {
                let user = chain.authenticate_request(credentials, Some(&*headers), warnings).await;
                chain.trust.clear(headers);
                user
            }
            Self::Other(other) => other.authenticate(credentials).await,
        }
    }
}

/// Bounds on requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `--request-timeout`
    pub request_timeout: Duration,
    /// `--min-request-timeout`: watches that name no timeout end between this and its double.
    pub min_request_timeout: Duration,
    /// `--max-requests-inflight`; 0: no limit.
    pub max_requests_inflight: usize,
    /// `--max-mutating-requests-inflight`; 0: no limit.
    pub max_mutating_requests_inflight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1800),
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
        }
    }
}

/// Permits of requests that run at the same time. `None`: no limit.
pub(crate) struct InFlight {
    pub(crate) reading: Option<Semaphore>,
    pub(crate) writing: Option<Semaphore>,
}

impl InFlight {
    pub(crate) fn new(limits: &Limits) -> Self {
        let semaphore = |n: usize| (n > 0).then(|| Semaphore::new(n.min(Semaphore::MAX_PERMITS)));
        Self {
            reading: semaphore(limits.max_requests_inflight),
            writing: semaphore(limits.max_mutating_requests_inflight),
        }
    }
}

/// The server's state.
pub struct Api {
    pub store: SharedStore,
    pub caches: Arc<Caches>,
    pub identity: Identity,
    pub authorizer: Arc<dyn Authorizer>,
    /// In the order that they run.
    pub plugins: Vec<Arc<dyn Plugin>>,
    pub clock: Clock,
    pub limits: Limits,
    /// `--etcd-prefix`
    pub root: String,
    pub actions: HashMap<PostHandler, Arc<dyn PostAction>>,
    /// What answers objects that are created and never stored.
    pub answerers: HashMap<GroupVersionKind, Arc<dyn Answerer>>,
    pub kubelets: Kubelets,
    /// The API servers behind this one.
    pub aggregation: Arc<Aggregation>,
    /// Calls what others registered.
    pub webhooks: Arc<webhook::Client>,
    /// Documents served as they stand: path, media type, bytes.
    pub documents: Vec<(&'static str, &'static str, bytes::Bytes)>,
    pub(crate) in_flight: InFlight,
    pub(crate) discovery: Documents,
    pub(crate) openapi: OpenApi,
    pub(crate) metrics: Metrics,
    pub(crate) token_uses: Arc<Uses>,
    pub(crate) health: crate::health::Health,
    pub(crate) extensions: crate::apiextensions::controller::State,
    /// Long requests end when it is cancelled.
    pub(crate) draining: CancellationToken,
}

impl Api {
    /// The rows in service.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.caches.catalog()
    }

    /// The present time.
    pub fn now(&self) -> jiff::Timestamp {
        (self.clock)()
    }

    /// The row of a resource in its stored version.
    pub fn stored_row(&self, resource: &GroupResource) -> Option<Arc<Served>> {
        self.catalog().stored(resource).cloned()
    }
}

/// Seconds of a time, as metadata shows it.
pub fn rfc3339(now: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
