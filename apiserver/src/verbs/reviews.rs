//! Objects that are created to ask something, and never stored.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::status::ApiError;
use async_trait::async_trait;

use super::Call;
use crate::admission::Operation;
use crate::authentication::{Clock, TokenAuthenticator};
use crate::authorization::{Authorizer, reviews};
use crate::gate::Admission;
use crate::registry::Context;
use crate::registry::catalog::Served;

/// Answers one kind of question.
#[async_trait]
pub trait Answerer: Send + Sync + 'static {
    /// Fills in the status of a question, or does what it asks for.
    async fn answer(&self, call: &Call, review: Value) -> Result<Value, ApiError>;
}

/// Lets admission see the question, and has it answered.
pub(super) async fn answer(
    call: &Call,
    served: &Arc<Served>,
    mut object: Value,
) -> Result<Value, ApiError> {
    let api = &*call.api;
    let options = serde_json::json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"});
    let admission = Admission {
        api,
        authorized: &call.authorized,
        served,
        operation: Operation::Create,
        kind: &served.gvk,
        subresource: "",
        namespace: call.namespace(),
        name: "",
        options: &options,
        dry_run: false,
    };
    let mut warnings = call.warnings.collect();
    admission.mutate(&mut object, None, &mut warnings).await?;
    let context = Context { now: api.now(), reader: &*api.caches };
    served.row.strategy.prepare_for_create(&context, &mut object);
    let errors: ErrorList = served.row.strategy.validate(&context, &object);
    if !errors.is_empty() {
        // Upstream leaves the kind out.
        return Err(ApiError::Invalid {
            group: served.gvk.group.clone(),
            kind: String::new(),
            name: String::new(),
            errors,
        });
    }
    let object = admission.admit(object, None, &mut warnings).await?.into_object();
    let Some(answerer) = api.answerers.get(&served.gvk) else {
        return Err(served.not_allowed("create"));
    };
    answerer.answer(call, object).await
}

/// The questions that authentication and authorization answer.
enum Review {
    Subject,
    Local,
    Own,
    Rules,
    Token,
    Whoami,
}

struct Reviews {
    what: Review,
    authorizer: Arc<dyn Authorizer>,
    tokens: Option<Arc<dyn TokenAuthenticator>>,
    audiences: Vec<String>,
    clock: Clock,
}

#[async_trait]
impl Answerer for Reviews {
    async fn answer(&self, call: &Call, review: Value) -> Result<Value, ApiError> {
        let (user, namespace) = (call.authorized.user(), call.namespace());
        let authorizer = &*self.authorizer;
        match self.what {
            Review::Subject => reviews::subject_access_review(authorizer, review).await,
            Review::Local => {
                reviews::local_subject_access_review(authorizer, namespace, review).await
            }
            Review::Own => reviews::self_subject_access_review(user, authorizer, review).await,
            Review::Rules => reviews::self_subject_rules_review(user, authorizer, review).await,
            Review::Whoami => Ok(reviews::self_subject_review(user, &review, (self.clock)())),
            Review::Token => match &self.tokens {
                Some(tokens) => reviews::token_review(&**tokens, &self.audiences, review).await,
                None => Err(ApiError::Internal("no tokens are authenticated".to_owned())),
            },
        }
    }
}

/// The old way to bind a pod: a Binding of its own, which binds the pod of its name.
struct OldBinding;

#[async_trait]
impl Answerer for OldBinding {
    async fn answer(&self, call: &Call, binding: Value) -> Result<Value, ApiError> {
        let name = apimachinery::object::name(&binding);
        let url = format!("/api/v1/namespaces/{}/pods/{name}/binding", call.namespace());
        crate::pipeline::local(&call.api, http::Method::POST, &url, Some(binding)).await
    }
}

/// Answerers of all questions about users and what they may do, and of Bindings.
pub fn answerers(
    authorizer: &Arc<dyn Authorizer>,
    tokens: Option<&Arc<dyn TokenAuthenticator>>,
    audiences: &[String],
    clock: &Clock,
) -> HashMap<GroupVersionKind, Arc<dyn Answerer>> {
    let authorization = |kind| GroupVersionKind::new("authorization.k8s.io", "v1", kind);
    let authentication = |kind| GroupVersionKind::new("authentication.k8s.io", "v1", kind);
    let all = [
        (authorization("SubjectAccessReview"), Review::Subject),
        (authorization("LocalSubjectAccessReview"), Review::Local),
        (authorization("SelfSubjectAccessReview"), Review::Own),
        (authorization("SelfSubjectRulesReview"), Review::Rules),
        (authentication("SelfSubjectReview"), Review::Whoami),
        (authentication("TokenReview"), Review::Token),
    ];
    let mut answerers: HashMap<GroupVersionKind, Arc<dyn Answerer>> = all
        .into_iter()
        .map(|(gvk, what)| {
            let answerer = Reviews {
                what,
                authorizer: authorizer.clone(),
                tokens: tokens.cloned(),
                audiences: audiences.to_vec(),
                clock: clock.clone(),
            };
            (gvk, Arc::new(answerer) as Arc<dyn Answerer>)
        })
        .collect();
    answerers.insert(GroupVersionKind::new("", "v1", "Binding"), Arc::new(OldBinding));
    answerers
}
