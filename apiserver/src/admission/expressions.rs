//! Expressions about requests: their variables, and the answers that they ask authorization for
//! (k8s.io/apiserver `admission/plugin/cel`).

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use serde_json::json;

use super::Attributes;
use super::matching::{Matched, operation_name};
use super::policy::environment::{namespace_type, request_type};
use crate::authentication::{AUTHENTICATED, User, service_account};
use crate::authorization::{self, Authorizer, Decision};
use crate::cel::{
    About, Activation, Authorizations, Budget, Decided, EvalError, PER_CALL_LIMIT, Program,
    Question, Val, authz,
};
use crate::request::RequestInfo;

/// More questions than the budget can pay for are never asked.
const MAX_QUESTIONS: usize = 64;

/// The JSON of `userInfo`.
pub fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn kind_json(kind: &GroupVersionKind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// What an AdmissionReview's request and `request` in expressions have in common.
pub fn request(attributes: &Attributes<'_>, namespace: &str, matched: &Matched) -> Value {
    let resource = |group: &str, version: &str, resource: &str| json!({"group": group, "version": version, "resource": resource});
    let own = attributes.resource;
    let mut request = json!({
        "kind": kind_json(&matched.kind),
        "resource": resource(&matched.group, &matched.version, &matched.resource),
        "requestKind": kind_json(attributes.kind),
        "requestResource": resource(&own.group, attributes.version, &own.resource),
        "operation": operation_name(attributes.operation),
        "userInfo": user_info(attributes.user),
        "dryRun": attributes.dry_run,
        "options": attributes.options,
    });
    for (field, text) in [
        ("subResource", attributes.subresource),
        ("requestSubResource", attributes.subresource),
        ("name", attributes.name),
        ("namespace", namespace),
    ] {
        if !text.is_empty() {
            request[field] = text.into();
        }
    }
    request
}

/// The values that expressions about one request name.
pub struct Subject<'a> {
    pub object: &'a Value,
    pub old: &'a Value,
    pub request: &'a Value,
    pub namespace: &'a Value,
    pub params: Option<&'a Value>,
}

impl<'a> Subject<'a> {
    /// The variables; `authorizer` beside, if expressions may ask it.
    pub fn activation(&self, authorizer: Option<authz::Resource>) -> Activation<'a> {
        let mut activation = Activation::default();
        activation.set("object", Val::json(self.object));
        activation.set("oldObject", Val::json(self.old));
        activation.set("request", Val::typed(self.request, request_type()));
        activation.set("namespaceObject", Val::typed(self.namespace, namespace_type()));
        if let Some(params) = self.params {
            activation.set("params", Val::json(params));
        }
        if let Some(resource) = authorizer {
            activation.set("authorizer", Val::authorizer());
            activation.set("authorizer.requestResource", Val::resource_check(resource));
        }
        activation
    }
}

/// What `authorizer.requestResource` asks about.
pub fn request_resource(attributes: &Attributes<'_>, namespace: &str) -> authz::Resource {
    authz::Resource {
        group: attributes.resource.group.clone(),
        resource: attributes.resource.resource.clone(),
        subresource: attributes.subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: attributes.name.to_owned(),
        ..authz::Resource::default()
    }
}

/// Evaluates expressions, asking authorization what they need to know.
pub struct Evaluator<'a> {
    pub authorizer: &'a dyn Authorizer,
    pub user: &'a User,
}

impl Evaluator<'_> {
    /// Within the limit of one call and what is left of a budget.
    ///
    /// # Errors
    /// As [`Program::eval`], in the words of upstream's callers.
    pub async fn eval<'v>(
        &self,
        program: &Program,
        activation: &mut Activation<'v>,
        budget: &mut Budget,
    ) -> Result<Val<'v>, String> {
        for _ in 0..MAX_QUESTIONS {
            let limit = budget.left().min(PER_CALL_LIMIT);
            let mut call = Budget::new(limit);
            let question = match program.eval(activation, &mut call) {
                Err(EvalError::Unasked(question)) => question,
                Err(EvalError::OverBudget) if limit < PER_CALL_LIMIT => {
                    *budget = Budget::new(0);
                    return Err("validation failed due to running out of cost budget, no further validation rules will be run".to_owned());
                }
                answer => {
                    *budget = Budget::new(budget.left() - (limit - call.left()));
                    return answer.map_err(|error| {
                        format!("expression '{}' resulted in error: {error}", program.source())
                    });
                }
            };
            let decided = self.decide(&question).await;
            let mut known: Authorizations = HashMap::clone(&activation.authorizations);
            known.insert(*question, Arc::new(decided));
            activation.authorizations = Arc::new(known);
        }
        Err(format!("expression '{}' asks too much", program.source()))
    }

    async fn decide(&self, question: &Question) -> Decided {
        let account = question.service_account.as_ref().map(|(namespace, name)| {
            let mut groups = service_account::groups(namespace);
            groups.push(AUTHENTICATED.to_owned());
            User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups,
                ..User::default()
            }
        });
        let request = match &question.about {
            About::Path(path) => RequestInfo {
                verb: question.verb.clone(),
                path: path.clone(),
                ..RequestInfo::default()
            },
            About::Resource(resource) => RequestInfo {
                is_resource: true,
                verb: question.verb.clone(),
                group: resource.group.clone(),
                version: "*".to_owned(),
                namespace: resource.namespace.clone(),
                resource: resource.resource.clone(),
                subresource: resource.subresource.clone(),
                name: resource.name.clone(),
                field_selector: resource.field_selector.clone(),
                label_selector: resource.label_selector.clone(),
                ..RequestInfo::default()
            },
        };
        let user = account.as_ref().unwrap_or(self.user);
        let asked = authorization::Attributes { user, request: &request };
        match self.authorizer.authorize(&asked).await {
            Decision::Allow { reason } => Decided { allowed: true, reason, error: None },
            Decision::Deny { reason } | Decision::NoOpinion { reason } => {
                Decided { allowed: false, reason, error: None }
            }
        }
    }
}

/// What match conditions say of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Conditions {
    Match,
    /// One of them is false.
    NoMatch,
    /// None is false, and some could not be evaluated.
    Failed(String),
}

/// Evaluates match conditions, all of which must hold. `Err` among them are those that do not
/// compile.
pub async fn match_conditions(
    conditions: &[Result<Program, String>],
    evaluator: &Evaluator<'_>,
    activation: &mut Activation<'_>,
) -> Conditions {
    let mut budget = Budget::new(crate::cel::MATCH_CONDITIONS_BUDGET);
    let mut errors = Vec::new();
    for condition in conditions {
        let answer = match condition {
            Ok(program) => evaluator.eval(program, activation, &mut budget).await,
            Err(error) => Err(error.clone()),
        };
        match answer.map(|value| value.as_bool()) {
            Ok(Some(true)) => {}
            Ok(Some(false)) => return Conditions::NoMatch,
            Ok(None) => errors.push("the expression is no condition".to_owned()),
            Err(error) => errors.push(error),
        }
    }
    match errors.as_slice() {
        [] => Conditions::Match,
        [one] => Conditions::Failed(one.clone()),
        many => Conditions::Failed(format!("[{}]", many.join(", "))),
    }
}

/// An object of a request as expressions see it: with its kind, null when there is none.
pub fn shown(object: Option<Value>) -> Value {
    object.unwrap_or(Value::Null)
}
