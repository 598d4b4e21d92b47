//! Subresources that are created to have something done: a pod bound or evicted, a token made.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::codec::Schema;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::gvk::{GroupResource, GroupVersionKind};
use apimachinery::schema::Registry;
use apimachinery::selector::LabelSelector;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use http::{Method, Response};
use serde_json::json;

use super::input::{self, Input};
use super::{Call, RequestBody, write};
use crate::admission::Operation;
use crate::admission::lookup::Lookup;
use crate::api::{Api, rfc3339};
use crate::authentication::tokens::{Moment, TokenIssuer};
use crate::gate::Admission;
use crate::negotiate::Offer;
use crate::pipeline;
use crate::reader::Reader as _;
use crate::registry::catalog::Served;
use crate::registry::{Action, PostHandler};
use crate::respond::{self, Body};

/// Attempts of a change that others overtake.
const ATTEMPTS: usize = 20;
/// Pods whose eviction a budget has granted and that are not gone yet, at most (upstream's bound).
const MAX_DISRUPTED: usize = 2000;

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
    actions.insert(PostHandler::Eviction, Arc::new(Evict));
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
    let read = input::decode(content_type, &data, schema, &gvk, input.validation)?;
    let mut object = read.object;
    apimachinery::codec::apply_defaults(schema, &mut object);
    input::check_namespace(&served, call.namespace(), &mut object)?;
    let Some(action) = call.api.actions.get(handler) else {
        return Err(served.not_allowed("create"));
    };
    let mut warnings = read.warnings;
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
    let mut response = call.send_object(201, &wanted, &answer).await?;
    respond::warn(response.headers_mut(), &warnings);
    Ok(response)
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
}

/// `pods/binding`
struct Bind;

#[async_trait]
impl PostAction for Bind {
    async fn post(&self, posted: Posted<'_>, binding: Value) -> Result<Value, ApiError> {
        let Posted { call, served, admission, dry_run, warnings } = posted;
        let name = call.name();
        let bound = object::name(&binding);
        if !bound.is_empty() && bound != name {
            return Err(ApiError::BadRequest(
                "name in URL does not match name in Binding object".to_owned(),
            ));
        }
        let errors = binding_errors(&binding);
        if !errors.is_empty() {
            return Err(ApiError::Invalid {
                group: String::new(),
                kind: "Binding".to_owned(),
                name: name.to_owned(),
                errors,
            });
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
fn set_condition(object: &mut Value, mut condition: Value, now: &str) {
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

/// `pods/eviction`
struct Evict;

#[async_trait]
impl PostAction for Evict {
    async fn post(&self, posted: Posted<'_>, mut eviction: Value) -> Result<Value, ApiError> {
        let Posted { call, served, admission, mut dry_run, warnings } = posted;
        let name = call.name().to_owned();
        if object::name(&eviction) != name {
            return Err(ApiError::BadRequest(
                "name in URL does not match name in Eviction object".to_owned(),
            ));
        }
        dry_run |= !object::list_at(&eviction, &["deleteOptions", "dryRun"]).is_empty();
        if dry_run {
            object::set(&mut eviction, &["deleteOptions", "dryRun"], json!(["All"]));
        }
        let eviction = admission.admit(eviction, None, warnings).await?.into_object();
        let key = served.key(call.namespace(), &name);
        let Some(stored) = write::load(&call.api, served, &key).await? else {
            return Err(served.not_found(&name));
        };
        let pod = &stored.object;
        let mut options = object::get(&eviction, &["deleteOptions"]).cloned().unwrap_or(json!({}));
        let pinned = object::get(&options, &["preconditions", "resourceVersion"]).is_some();
        let phase = object::str_at(pod, &["status", "phase"]);
        let free = matches!(phase, "Succeeded" | "Failed" | "Pending")
            || !object::deletion_timestamp(pod).is_empty();
        let mut pin = free;
        if !free {
            pin = spend_budget(&call.api, pod, dry_run).await?;
        }
        if pin && !pinned {
            object::set(
                &mut options,
                &["preconditions", "resourceVersion"],
                object::resource_version(pod),
            );
        }
        let path = format!("/api/v1/namespaces/{}/pods/{name}", call.namespace());
        object::set(&mut options, &["kind"], "DeleteOptions");
        object::set(&mut options, &["apiVersion"], "v1");
        if !dry_run && !pin {
            mark_evicted(&call.api, &path, pod).await?;
        }
        let deleted = pipeline::local(&call.api, Method::DELETE, &path, Some(options)).await;
        match deleted {
            Ok(_) => Ok(success()),
            Err(ApiError::Conflict { .. }) if pin && !pinned => Err(too_many("")),
            Err(error) => Err(error),
        }
    }
}

/// Says on the pod why it goes.
async fn mark_evicted(api: &Arc<Api>, path: &str, pod: &Value) -> Result<(), ApiError> {
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    });
    let now = rfc3339(api.now());
    let mut marked = pod.clone();
    set_condition(&mut marked, condition, &now);
    object::remove(&mut marked, &["metadata", "resourceVersion"]);
    let path = format!("{path}/status");
    pipeline::local(api, Method::PUT, &path, Some(marked)).await.map(|_| ())
}

fn too_many(budget: &str) -> ApiError {
    let _ = budget;
    ApiError::TooManyRequests {
        message: "Cannot evict pod as it would violate the pod's disruption budget.".to_owned(),
        retry_after_seconds: 0,
    }
}

/// Takes one disruption from the pod's budget, if it has one. Gives whether the pod was let go
/// because it is not healthy, and so must not have changed.
async fn spend_budget(api: &Arc<Api>, pod: &Value, dry_run: bool) -> Result<bool, ApiError> {
    let namespace = object::namespace(pod);
    let resource = GroupResource::new("policy", "poddisruptionbudgets");
    for _ in 0..ATTEMPTS {
        let budgets: Vec<_> = api
            .caches
            .list(&resource, namespace)
            .into_iter()
            .filter(|budget| {
                let selector = object::get(budget, &["spec", "selector"]);
                LabelSelector::from_json(selector)
                    .is_ok_and(|s| s.is_some_and(|s| s.matches_object(pod)))
            })
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(false),
            [one] => one,
            _ => {
                return Err(ApiError::Other {
                    code: 500,
                    reason: String::new(),
                    message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.".to_owned(),
                });
            }
        };
        if unhealthy_may_go(pod, budget) {
            return Ok(true);
        }
        let spent = spend(budget, object::name(pod), &rfc3339(api.now()))?;
        if dry_run {
            return Ok(false);
        }
        let path = format!(
            "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{}/status",
            object::name(budget)
        );
        match pipeline::local(api, Method::PUT, &path, Some(spent)).await {
            Ok(_) => return Ok(false),
            // The cache is behind, or somebody else spent: look again.
            Err(ApiError::Conflict { .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::Timeout {
        message: "couldn't update PodDisruptionBudget due to conflicts".to_owned(),
        retry_after_seconds: 10,
    })
}

fn unhealthy_may_go(pod: &Value, budget: &Value) -> bool {
    let ready = object::list_at(pod, &["status", "conditions"])
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    let count = |field| object::int_at(budget, &["status", field]).unwrap_or(0);
    let always = object::str_at(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
    let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
    !ready && (always || (healthy >= desired && desired > 0))
}

/// The budget with one disruption less.
fn spend(budget: &Value, pod: &str, now: &str) -> Result<Value, ApiError> {
    let name = object::name(budget);
    let observed = object::int_at(budget, &["status", "observedGeneration"]).unwrap_or(0);
    if observed < object::generation(budget) {
        return Err(too_many_about(format!(
            "The disruption budget {name} is still being processed by the server."
        )));
    }
    let allowed = object::int_at(budget, &["status", "disruptionsAllowed"]).unwrap_or(0);
    let disrupted = object::map_at(budget, &["status", "disruptedPods"]).map_or(0, |m| m.len());
    if allowed < 0 || disrupted > MAX_DISRUPTED {
        return Err(ApiError::Forbidden {
            resource: GroupResource::new("policy", "poddisruptionbudget"),
            name: name.to_owned(),
            reason: if allowed < 0 {
                "pdb disruptions allowed is negative".to_owned()
            } else {
                "DisruptedPods map too big - too many evictions not confirmed by PDB controller"
                    .to_owned()
            },
        });
    }
    if allowed == 0 {
        return Err(too_many(name));
    }
    let mut spent = budget.clone();
    object::set(&mut spent, &["status", "disruptionsAllowed"], allowed - 1);
    object::set(&mut spent, &["status", "disruptedPods", pod], now);
    Ok(spent)
}

fn too_many_about(message: String) -> ApiError {
    let text = "Cannot evict pod as it would violate the pod's disruption budget.";
    ApiError::TooManyRequests { message: format!("{text} {message}"), retry_after_seconds: 10 }
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

    #[test]
    fn a_budget_is_spent_down_to_nothing() {
        let budget = json!({"metadata": {"name": "b", "generation": 2},
            "status": {"observedGeneration": 2, "disruptionsAllowed": 1}});
        let spent = spend(&budget, "p", "t").expect("spent");
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert_eq!(spent["status"]["disruptedPods"], json!({"p": "t"}));
        assert_eq!(spend(&spent, "q", "t").map_err(|e| e.code()), Err(429));
        let stale = json!({"metadata": {"generation": 3}, "status": {"observedGeneration": 2}});
        assert_eq!(spend(&stale, "q", "t").map_err(|e| e.code()), Err(429));
    }
}
