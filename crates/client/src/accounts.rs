//! Clients that act as service accounts of kube-system, by tokens that are renewed in time: how
//! controllers get rights of their own (`--use-service-account-credentials`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::HeaderValue;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::client::ClientBuilder;
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

use crate::error::brief;
use crate::retry;

const NAMESPACE: &str = "kube-system";
/// How long tokens are asked for; they are renewed at three quarters of it.
const LIFE: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(10);

/// Makes clients of service accounts.
pub struct Accounts {
    /// How the API server is reached, without anybody's credentials.
    bare: kube::Config,
    /// Who makes accounts and asks for tokens.
    root: Client,
    shutdown: CancellationToken,
}

impl Accounts {
    /// # Errors
    /// As [`crate::connect`].
    pub async fn new(
        kubeconfig: &Path,
        master: Option<&str>,
        user_agent: &str,
        root: Client,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut bare = crate::connect::config(kubeconfig, master, user_agent).await?;
        bare.auth_info = kube::config::AuthInfo::default();
        Ok(Self { bare, root, shutdown })
    }

    /// A client that acts as `system:serviceaccount:kube-system:<name>`. The account is made if it
    /// is not there. Waits until the API server has given a token; `None` at shutdown.
    ///
    /// # Errors
    /// The kubeconfig is not usable.
    pub async fn client(&self, name: &str) -> anyhow::Result<Option<Client>> {
        let api: Api<ServiceAccount> = Api::namespaced(self.root.clone(), NAMESPACE);
        let whence = format!("service account {NAMESPACE}/{name}");
        let first = retry::until(&self.shutdown, &whence, || fresh(&api, name)).await;
        let Some(first) = first else { return Ok(None) };
        let token = Arc::new(RwLock::new(first));
        let current = Arc::clone(&token);
        let layer = MapRequestLayer::new(move |mut request: http::Request<kube::client::Body>| {
            let value = current.read().clone();
            request.headers_mut().insert(http::header::AUTHORIZATION, value);
            request
        });
        let client = ClientBuilder::try_from(self.bare.clone())?.with_layer(&layer).build();
        let (name, shutdown) = (name.to_owned(), self.shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = renew(&api, &name, &token) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Some(client))
    }
}

async fn renew(api: &Api<ServiceAccount>, name: &str, token: &RwLock<HeaderValue>) {
    let mut pause = LIFE * 3 / 4;
    loop {
        tokio::time::sleep(pause).await;
        pause = match fresh(api, name).await {
            Ok(fresh) => {
                *token.write() = fresh;
                LIFE * 3 / 4
            }
            Err(error) => {
                tracing::warn!(account = name, error = brief(&error), "token not renewed");
                RETRY
            }
        };
    }
}

/// A new token, of an account that is made if need be: somebody may have deleted it.
async fn fresh(api: &Api<ServiceAccount>, name: &str) -> anyhow::Result<HeaderValue> {
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        ..ServiceAccount::default()
    };
    match api.create(&PostParams::default(), &account).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        made => {
            made.context("making it")?;
        }
    }
    header(api, name).await.context("its token")
}

async fn header(api: &Api<ServiceAccount>, name: &str) -> anyhow::Result<HeaderValue> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: i64::try_from(LIFE.as_secs()).ok(),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = api.create_token_request(name, &PostParams::default(), &request).await?;
    let token = answer.status.context("the API server gave no token")?.token;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}
