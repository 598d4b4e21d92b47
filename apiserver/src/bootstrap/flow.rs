//! The FlowSchemas and PriorityLevelConfigurations that every cluster starts with, and the
//! condition that tells of schemas without a level (upstream: `registry/flowcontrol/ensurer`, and
//! the controller of k8s.io/apiserver `util/flowcontrol`).

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::Method;
use serde_json::{Value as Json, json};

use super::{ensure, get, serves};
use crate::api::{Api, rfc3339};
use crate::pipeline::local;
use crate::reader::Reader;
use crate::registry::kinds::check::same;
use crate::registry::kinds::flowcontrol::{MANDATORY, initial_levels, initial_schemas};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const BASE: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
/// Whether an object follows what the server would make of it.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Makes the objects, and gives back their specs to those that changed and may not.
pub(super) async fn keep(api: &Arc<Api>) -> Result<(), ApiError> {
    if !serves(api, GROUP, "flowschemas") {
        return Ok(());
    }
    for (kind, plural, initial) in [
        ("PriorityLevelConfiguration", "prioritylevelconfigurations", initial_levels()),
        ("FlowSchema", "flowschemas", initial_schemas()),
    ] {
        for wanted in initial {
            keep_one(api, kind, plural, wanted).await?;
        }
    }
    keep_conditions(api).await
}

async fn keep_one(
    api: &Arc<Api>,
    kind: &str,
    plural: &str,
    wanted: &Value,
) -> Result<(), ApiError> {
    let name = object::str_at(wanted, &["name"]);
    let found = api.caches.get(&GroupResource::new(GROUP, plural), "", name);
    let Some(found) = found else {
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
            "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
            "spec": wanted["spec"]});
        return ensure(api, &format!("{BASE}/{plural}"), object).await;
    };
    let Some(changed) = corrected(&found, wanted) else { return Ok(()) };
    let url = format!("{BASE}/{plural}/{name}");
    match local(api, Method::PUT, &url, Some(changed)).await {
        Ok(_) | Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What has to be written so that an object is as it should; `None`: nothing.
fn corrected(found: &Value, wanted: &Value) -> Option<Json> {
    let name = object::name(found);
    let mandatory = MANDATORY.contains(&name);
    let follows = match object::annotation(found, AUTO_UPDATE) {
        _ if mandatory => true,
        Some(told) => told == "true",
        // Nobody has said so: what nobody has changed follows.
        None => object::generation(found) == 1,
    };
    let mut changed = found.clone();
    object::set(
        &mut changed,
        &["metadata", "annotations", AUTO_UPDATE],
        if follows { "true" } else { "false" },
    );
    if follows {
        let own = object::get(found, &["spec", "exempt"]).cloned();
        object::set(&mut changed, &["spec"], wanted["spec"].clone());
        // How many places requests of the administrators take is for them to say.
        if let Some(own) = own.filter(|_| mandatory) {
            object::set(&mut changed, &["spec", "exempt"], own);
        }
    }
    (!same(&changed, found)).then_some(changed)
}

/// Tells of each schema whether its level is there.
async fn keep_conditions(api: &Arc<Api>) -> Result<(), ApiError> {
    let resource = |plural| GroupResource::new(GROUP, plural);
    for schema in api.caches.list(&resource("flowschemas"), "") {
        let level = object::str_at(&schema, &["spec", "priorityLevelConfiguration", "name"]);
        let levels = resource("prioritylevelconfigurations");
        let there = api.caches.get(&levels, "", level).is_some();
        let Some(condition) = dangling(&schema, level, there, &rfc3339(api.now())) else {
            continue;
        };
        let url = format!("{BASE}/flowschemas/{}", object::name(&schema));
        let Some(mut newest) = get(api, &url).await? else { continue };
        let mut conditions = object::list_at(&newest, &["status", "conditions"]).to_vec();
        conditions.retain(|c| c["type"] != "Dangling");
        conditions.push(condition);
        object::set(&mut newest, &["status", "conditions"], conditions);
        match local(api, Method::PUT, &format!("{url}/status"), Some(newest)).await {
            Ok(_) | Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The condition that the schema should have, if it has another.
fn dangling(schema: &Value, level: &str, there: bool, now: &str) -> Option<Json> {
    let (status, reason, text) = match there {
        true => ("False", "Found", "it exists"),
        false => ("True", "NotFound", "there is no such object"),
    };
    let conditions = object::list_at(schema, &["status", "conditions"]);
    let has = conditions.iter().find(|c| c["type"] == "Dangling");
    let link = if there { "and" } else { "but" };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named \"{level}\" {link} \
         {text}"
    );
    if has.is_some_and(|c| c["status"] == status && c["message"] == message.as_str()) {
        return None;
    }
    Some(json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, annotation: Option<&str>, generation: i64, spec: Json) -> Json {
        let mut object =
            json!({"metadata": {"name": name, "generation": generation}, "spec": spec});
        if let Some(text) = annotation {
            object["metadata"]["annotations"] = json!({AUTO_UPDATE: text});
        }
        object
    }

    #[test]
    fn only_what_follows_is_corrected() {
        let wanted = json!({"name": "x", "spec": {"a": 1}});
        let other = json!({"a": 2});
        for (object, spec, annotation) in [
            (found("x", Some("true"), 3, other.clone()), Some(1), "true"),
            (found("x", Some("false"), 3, other.clone()), None, "false"),
            (found("x", None, 1, other.clone()), Some(1), "true"),
            (found("x", None, 3, other.clone()), Some(2), "false"),
            (found("catch-all", Some("false"), 3, other), Some(1), "true"),
            (found("x", Some("true"), 1, json!({"a": 1})), None, "true"),
        ] {
            let got = corrected(&object, &wanted);
            assert_eq!(got.as_ref().map(|o| o["spec"]["a"].as_i64()), spec.map(Some), "{object}");
            if let Some(got) = got {
                assert_eq!(got["metadata"]["annotations"][AUTO_UPDATE], annotation);
            }
        }
    }

    #[test]
    fn schemas_without_a_level_say_so() {
        let now = "2026-01-01T00:00:00Z";
        let found = dangling(&json!({}), "a", true, now).expect("a condition");
        let schema = json!({"status": {"conditions": [found]}});
        assert_eq!(dangling(&schema, "a", true, now), None);
        let lost = dangling(&schema, "a", false, now).expect("a condition");
        assert_eq!((&lost["status"], &lost["reason"]), (&json!("True"), &json!("NotFound")));
    }
}
