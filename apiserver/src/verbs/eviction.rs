//! `pods/eviction`: a pod goes if its disruption budget lets it (policy/v1).

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::selector::LabelSelector;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use http::Method;
use serde_json::json;

use super::actions::{ATTEMPTS, PostAction, Posted, set_condition, success};
use super::write;
use crate::api::{Api, rfc3339};
use crate::pipeline;
use crate::reader::Reader as _;

/// Pods whose eviction a budget has granted and that are not gone yet, at most (upstream's bound).
const MAX_DISRUPTED: usize = 2000;

/// `pods/eviction`
pub(super) struct Evict;

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
        let mut tries = 0;
        loop {
            let Some(stored) = write::load(&call.api, served, &key).await? else {
                return Err(served.not_found(&name));
            };
            tries += 1;
            match evict(&call.api, &stored.object, &eviction, dry_run).await {
                // It changed meanwhile, and may need its budget now.
                Err(Refused { error: ApiError::Conflict { .. }, again: true })
                    if tries < ATTEMPTS => {}
                Err(Refused { error, .. }) => return Err(error),
                Ok(()) => return Ok(success()),
            }
        }
    }
}

/// Why a pod was not evicted.
struct Refused {
    error: ApiError,
    /// The pod was not what it was taken for: another look may help.
    again: bool,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self { error, again: false }
    }
}

async fn evict(
    api: &Arc<Api>,
    pod: &Value,
    eviction: &Value,
    dry_run: bool,
) -> Result<(), Refused> {
    let mut options = object::get(eviction, &["deleteOptions"]).cloned().unwrap_or(json!({}));
    let pinned = object::get(&options, &["preconditions", "resourceVersion"]).is_some();
    let phase = object::str_at(pod, &["status", "phase"]);
    let free = matches!(phase, "Succeeded" | "Failed" | "Pending")
        || !object::deletion_timestamp(pod).is_empty();
    let leave = if free { Leave::Free } else { spend_budget(api, pod, dry_run).await? };
    let must_be_as_seen = !matches!(leave, Leave::Spent);
    if must_be_as_seen && !pinned {
        let version = object::resource_version(pod);
        object::set(&mut options, &["preconditions", "resourceVersion"], version);
    }
    let path = format!("/api/v1/namespaces/{}/pods/{}", object::namespace(pod), object::name(pod));
    object::set(&mut options, &["kind"], "DeleteOptions");
    object::set(&mut options, &["apiVersion"], "v1");
    if !dry_run && !must_be_as_seen {
        mark_evicted(api, &path, pod).await?;
    }
    match (pipeline::local(api, Method::DELETE, &path, Some(options)).await, leave) {
        (Ok(_), _) => Ok(()),
        (Err(ApiError::Conflict { .. }), Leave::Unhealthy { budget }) if !pinned => {
            Err(not_processed(&budget).into())
        }
        (Err(error), leave) => {
            Err(Refused { error, again: matches!(leave, Leave::Free) && !pinned })
        }
    }
}

/// By what right a pod goes.
enum Leave {
    /// It does not run: no budget counts it.
    Free,
    /// A disruption was taken from its budget, or it has none.
    Spent,
    /// It is not healthy, and its budget lets such pods go.
    Unhealthy { budget: String },
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

/// The budget lets no pod go.
fn too_many(retry_after_seconds: u32, why: String) -> ApiError {
    ApiError::TooManyRequests {
        message: "Cannot evict pod as it would violate the pod's disruption budget.".to_owned(),
        retry_after_seconds,
        cause: Some(("DisruptionBudget", why)),
    }
}

/// What is known of the budget is out of date.
fn not_processed(budget: &str) -> ApiError {
    too_many(10, format!("The disruption budget {budget} is still being processed by the server."))
}

/// Why a budget without a disruption left has none.
fn spent_why(budget: &Value) -> String {
    let name = object::name(budget);
    let count = |field| object::int_at(budget, &["status", field]).unwrap_or(0);
    let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
    let refusal = object::list_at(budget, &["status", "conditions"])
        .iter()
        .find(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False")
        .map(|c| (object::str_at(c, &["reason"]), object::str_at(c, &["message"])))
        .filter(|(_, message)| !message.is_empty());
    match refusal {
        Some(("SyncFailed", message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed \
             sync: {message}"
        ),
        _ if healthy <= desired => format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        ),
        Some((reason, message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

/// Takes one disruption from the pod's budget, if it has one.
async fn spend_budget(api: &Arc<Api>, pod: &Value, dry_run: bool) -> Result<Leave, ApiError> {
    let namespace = object::namespace(pod);
    let resource = GroupResource::new("policy", "poddisruptionbudgets");
    let mut tried = String::new();
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
            [] => return Ok(Leave::Spent),
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
            return Ok(Leave::Unhealthy { budget: object::name(budget).to_owned() });
        }
        let spent = spend(budget, object::name(pod), &rfc3339(api.now()))?;
        if dry_run {
            return Ok(Leave::Spent);
        }
        let path = format!(
            "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{}/status",
            object::name(budget)
        );
        match pipeline::local(api, Method::PUT, &path, Some(spent)).await {
            Ok(_) => return Ok(Leave::Spent),
            // The cache is behind, or somebody else spent: look again.
            Err(ApiError::Conflict { .. }) => {
                object::name(budget).clone_into(&mut tried);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::Timeout {
        message: format!("couldn't update PodDisruptionBudget {tried:?} due to conflicts"),
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
        return Err(not_processed(name));
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
        return Err(too_many(0, spent_why(budget)));
    }
    let mut spent = budget.clone();
    object::set(&mut spent, &["status", "disruptionsAllowed"], allowed - 1);
    object::set(&mut spent, &["status", "disruptedPods", pod], now);
    Ok(spent)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_refused_eviction_tells_why() {
        let condition = |reason: &str| {
            json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason,
                "message": "m"}])
        };
        let why = |healthy: i64, conditions: Value| {
            spent_why(&json!({"metadata": {"name": "b"}, "status": {
                "currentHealthy": healthy, "desiredHealthy": 2, "conditions": conditions}}))
        };
        let b = "The disruption budget b";
        for (healthy, conditions, wanted) in [
            (1, json!([]), format!("{b} needs 2 healthy pods and has 1 currently")),
            (3, json!([]), format!("{b} does not allow evicting pods currently")),
            (
                3,
                condition("InsufficientPods"),
                format!("{b} does not allow evicting pods currently (InsufficientPods): m"),
            ),
            (
                1,
                condition("SyncFailed"),
                format!("{b} does not allow evicting pods currently because it failed sync: m"),
            ),
        ] {
            assert_eq!(why(healthy, conditions), wanted);
        }
        let status = too_many(0, "why".to_owned()).status();
        let causes = json!([{"reason": "DisruptionBudget", "message": "why"}]);
        assert_eq!(status["details"]["causes"], causes);
    }
}
