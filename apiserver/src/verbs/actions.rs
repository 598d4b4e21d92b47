//! Subresources that are created to have something done: a pod bound or evicted, a token made.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::codec::Schema;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::gvk::{GroupResource, GroupVersionKind};
use apimachinery::schema::Registry;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use http::Response;
use serde_json::json;

use super::input::{self, Input};
use super::{Call, RequestBody, write};
use crate::admission::Operation;
use crate::admission::lookup::Lookup;
use crate::api::rfc3339;
use crate::authentication::tokens::{Moment, TokenIssuer};
use crate::gate::Admission;
use crate::negotiate::Offer;
use crate::registry::catalog::Served;
use crate::registry::{Action, PostHandler};
use crate::respond::Body;

/// Attempts of a change that others overtake.
pub(super) const ATTEMPTS: usize = 20;

/// An action in progress.
pub struct Posted<'a> {
    pub call: &'a Call,
    pub served: &'a Arc<Served>,
    /// To be passed by the object before anything is done.
    pub admission: Admission<'a>,
    pub dry_run: bool,
    pub warnings: &'a mut Vec<String>,
}

/// What a subresource of [`Action::Post`] does.
#[async_trait]
pub trait PostAction: Send + Sync + 'static {
    /// Does it, and gives what to answer with.
    async fn post(&self, posted: Posted<'_>, object: Value) -> Result<Value, ApiError>;
}

/// The actions that this crate knows. `tokens` is absent without a signing key.
pub fn all(tokens: Option<TokenIssuer>) -> HashMap<PostHandler, Arc<dyn PostAction>> {
    let mut actions: HashMap<PostHandler, Arc<dyn PostAction>> = HashMap::new();
    actions.insert(PostHandler::Binding, Arc::new(Bind));
    actions.insert(PostHandler::Eviction, Arc::new(super::eviction::Evict));
    if let Some(issuer) = tokens {
        actions.insert(PostHandler::Token, Arc::new(Token(issuer)));
    }
    actions
}

pub(super) async fn post(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Plain)?;
    let subresource = call.authorized.info().subresource.clone();
    let Some(Action::Post { group, version, kind, handler }) =
        served.subresource(&subresource).map(|s| &s.action)
    else {
        return Err(served.not_allowed("create"));
    };
    let gvk = GroupVersionKind::new(group, version, kind);
    let registry = Registry::builtin();
    let Some(message) = registry.kind(&gvk) else {
        return Err(ApiError::Internal(format!("{kind} has no schema")));
    };
    let schema = Schema { registry, message };
    let input = Input::read(&call, "CreateOptions", false)?;
    let data = input::read_body(body).await?;
    let content_type = call.header("content-type");
    let also = handler.accepts_too();
    let read = input::decode(content_type, &data, schema, (&gvk, also), input.validation)?;
    let mut object = read.object;
    apimachinery::codec::apply_defaults(schema, &mut object);
    input::check_namespace(&served, call.namespace(), &mut object)?;
    let Some(action) = call.api.actions.get(handler) else {
        return Err(served.not_allowed("create"));
    };
    let mut warnings = call.warnings.collect();
    warnings.extend(read.warnings);
    let admission = Admission {
        api: &call.api,
        authorized: &call.authorized,
        served: &served,
        operation: Operation::Create,
        kind: &gvk,
        subresource: &subresource,
        namespace: call.namespace(),
        name: call.name(),
        options: &input.object,
        dry_run: input.dry_run,
    };
    admission.mutate(&mut object, None, &mut warnings).await?;
    let dry_run = input.dry_run;
    let posted =
        Posted { call: &call, served: &served, admission, dry_run, warnings: &mut warnings };
    let answer = action.post(posted, object).await?;
    call.send_object(201, &wanted, &answer).await
}

/// A Status that answers a create says which code it comes with.
pub(super) fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// `pods/binding`
struct Bind;

#[async_trait]
impl PostAction for Bind {
    async fn post(&self, posted: Posted<'_>, binding: Value) -> Result<Value, ApiError> {
        let Posted { call, served, admission, dry_run, warnings } = posted;
        let name = call.name();
        let bound = object::name(&binding);
        if bound != name {
            return Err(ApiError::BadRequest(
                "name in URL does not match name in Binding object".to_owned(),
            ));
        }
        let errors = binding_errors(&binding);
        if !errors.is_empty() {
            // Upstream makes no Status of these errors.
            let message = apimachinery::field::aggregate(&errors);
            return Err(ApiError::Other { code: 500, reason: String::new(), message });
        }
        let admitted = admission.admit(binding, None, warnings).await?;
        let key = served.key(call.namespace(), name);
        for _ in 0..ATTEMPTS {
            let Some(old) = write::load(&call.api, served, &key).await? else {
                return Err(served.not_found(name));
            };
            let now = rfc3339(call.api.now());
            let pod = bind(&old.object, admitted.object(), &now).map_err(|reason| {
                ApiError::Conflict {
                    resource: GroupResource::new("", "pods/binding"),
                    name: name.to_owned(),
                    reason,
                }
            })?;
            let pod = admitted.leads_to(pod);
            if write::replace(&call.api, served, &key, &old, pod, dry_run).await?.is_some() {
                return Ok(success());
            }
        }
        Err(served.conflict(name, write::MODIFIED))
    }
}

fn binding_errors(binding: &Value) -> ErrorList {
    let target = Path::new("target");
    let mut errors = ErrorList::new();
    let kind = object::str_at(binding, &["target", "kind"]);
    if !matches!(kind, "" | "Node") {
        let valid = ["Node", "<empty>"];
        errors.push(FieldError::not_supported(&target.child("kind"), kind, &valid));
    }
    if object::str_at(binding, &["target", "name"]).is_empty() {
        errors.push(FieldError::required(&target.child("name"), ""));
    }
    errors
}

/// The bound pod, or why it cannot be bound.
fn bind(pod: &Value, binding: &Value, now: &str) -> Result<Value, String> {
    let name = object::name(pod);
    for (what, found) in [
        ("UID", (object::uid(binding), object::uid(pod))),
        ("ResourceVersion", (object::resource_version(binding), object::resource_version(pod))),
    ] {
        let (asked, has) = found;
        if !asked.is_empty() && asked != has {
            return Err(format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {has}"
            ));
        }
    }
    if !object::deletion_timestamp(pod).is_empty() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = object::str_at(pod, &["spec", "nodeName"]);
    if !node.is_empty() {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if !object::list_at(pod, &["spec", "schedulingGates"]).is_empty() {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut bound = pod.clone();
    object::set(&mut bound, &["spec", "nodeName"], object::str_at(binding, &["target", "name"]));
    object::remove(&mut bound, &["status", "nominatedNodeName"]);
    for field in ["annotations", "labels"] {
        let added = object::map_at(binding, &["metadata", field]).cloned().unwrap_or_default();
        if !added.is_empty() {
            object::map_mut(&mut bound, &["metadata", field]).extend(added);
        }
    }
    let condition = json!({"type": "PodScheduled", "status": "True"});
    set_condition(&mut bound, condition, now);
    Ok(bound)
}

/// Sets a condition; its transition time changes with its status.
pub(super) fn set_condition(object: &mut Value, mut condition: Value, now: &str) {
    let mut conditions = object::list_at(object, &["status", "conditions"]).to_vec();
    let known = conditions.iter_mut().find(|c| c["type"] == condition["type"]);
    let since = match &known {
        Some(known) if known["status"] == condition["status"] => {
            known["lastTransitionTime"].clone()
        }
        _ => now.into(),
    };
    condition["lastTransitionTime"] = since;
    if condition.get("lastProbeTime").is_none() {
        condition["lastProbeTime"] = Value::Null;
    }
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    object::set(object, &["status", "conditions"], conditions);
}

/// `serviceaccounts/token`
struct Token(TokenIssuer);

#[async_trait]
impl PostAction for Token {
    async fn post(&self, posted: Posted<'_>, mut request: Value) -> Result<Value, ApiError> {
        let Posted { call, admission, warnings, .. } = posted;
        let account = (call.namespace(), call.name());
        let caches = call.api.caches.clone();
        let lookup = Lookup { reader: caches.clone(), live: Some(caches) };
        let now = call.api.now();
        self.0.prepare(&lookup, account, &mut request, now).await?;
        let mut request = admission.admit(request, None, warnings).await?.into_object();
        let moment = Moment { now, id: uuid::Uuid::new_v4().to_string() };
        self.0.issue(&lookup, account, &mut request, &moment, warnings).await?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {}});
        let binding =
            json!({"metadata": {"name": "a", "labels": {"zone": "z"}}, "target": {"name": "n"}});
        let bound = bind(&pod, &binding, "t").expect("bound");
        assert_eq!(bound["spec"]["nodeName"], "n");
        assert_eq!(bound["metadata"]["labels"]["zone"], "z");
        assert_eq!(bound["status"]["conditions"][0]["lastTransitionTime"], "t");
        assert_eq!(
            bind(&bound, &binding, "t"),
            Err("pod a is already assigned to node \"n\"".to_owned())
        );
        let other = json!({"metadata": {"uid": "v"}, "target": {"name": "n"}});
        assert!(bind(&pod, &other, "t").is_err());
    }
}
