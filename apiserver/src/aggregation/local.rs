//! An APIService for each version of a group that this server serves itself
//! (upstream: `controllers/autoregister`, `pkg/controlplane/apiserver/aggregator.go`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use futures::StreamExt as _;
use http::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::resource;
use crate::api::Api;
use crate::pipeline::local;
use crate::reader::Reader as _;
use crate::registry::catalog::group_priority;
use crate::registry::kinds::apiregistration::condition;

/// After a write that failed, all is looked at again.
const RETRY: Duration = Duration::from_millis(500);
/// Writes under way at the same time: they share commits, and at the start many wait for them.
const AT_ONCE: usize = 16;
/// The label of those that we made, and its value for what is compiled in and for what is not.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const COMPILED: &str = "onstart";
const DYNAMIC: &str = "true";
const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// The priority of custom resources' groups.
const CUSTOM: i64 = 1000;

/// Priorities of a group and of its version, as upstream has them.
pub(super) fn priorities(group: &str, version: &str) -> (i64, i64) {
    let of_group = group_priority(group);
    if of_group == CUSTOM {
        return (CUSTOM, 100);
    }
    let of_version = match (group, version) {
        ("", "v1") => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", "v1") => 21,
        (_, "v1") => 15,
        _ => 9,
    };
    (of_group, of_version)
}

fn wanted(group: &str, version: &str, managed: &str) -> Value {
    let (group_priority, version_priority) = priorities(group, version);
    let mut spec = json!({"version": version, "groupPriorityMinimum": group_priority,
        "versionPriority": version_priority});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name(group, version), "labels": {MANAGED: managed}},
        "spec": spec,
    })
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Update(Value),
    Delete(String),
}

/// Compares what is served with the APIServices that there are.
fn plan(
    compiled: &BTreeSet<(String, String)>,
    served: &BTreeSet<(String, String)>,
    found: &[Arc<Value>],
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (group, version) in served {
        let managed =
            if compiled.contains(&(group.clone(), version.clone())) { COMPILED } else { DYNAMIC };
        let wanted = wanted(group, version, managed);
        match found.iter().find(|s| object::name(s) == object::name(&wanted)) {
            None => steps.push(Step::Create(wanted)),
            // What others made is theirs.
            Some(found) if object::label(found, MANAGED).is_none() => {}
            Some(found) if found["spec"] == wanted["spec"] => {}
            Some(found) => {
                let mut kept = (**found).clone();
                for field in ["apiVersion", "kind", "spec"] {
                    object::set(&mut kept, &[field], wanted[field].clone());
                }
                steps.push(Step::Update(kept));
            }
        }
    }
    for service in found {
        let of = |field| object::str_at(service, &["spec", field]).to_owned();
        let gone = object::label(service, MANAGED) == Some(DYNAMIC)
            && !served.contains(&(of("group"), of("version")));
        if gone {
            steps.push(Step::Delete(object::name(service).to_owned()));
        }
    }
    steps
}

fn served(api: &Api) -> BTreeSet<(String, String)> {
    let groups = api.catalog().groups();
    let pairs = groups.into_iter().flat_map(|(group, versions)| {
        versions.into_iter().map(move |version| (group.clone(), version))
    });
    // Our own group is not for anybody else to serve.
    pairs.filter(|(group, _)| group != "apiregistration.k8s.io").collect()
}

fn name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// The APIServices of what is compiled in.
pub(super) fn compiled_names(api: &Api) -> BTreeSet<String> {
    let catalog = api.catalog();
    let compiled = served(api).into_iter().filter(|(group, _)| catalog.is_compiled(group));
    compiled.map(|(group, version)| name(&group, &version)).collect()
}

/// Takes those out of names that are available.
pub(super) fn strike_out(names: &mut BTreeSet<String>, found: &[Arc<Value>]) {
    let available = |s: &&Arc<Value>| {
        condition(s, "Available").is_some_and(|condition| condition["status"] == "True")
    };
    for service in found.iter().filter(available) {
        names.remove(object::name(service));
    }
}

async fn carry_out(api: &Arc<Api>, step: Step) -> Result<(), ApiError> {
    let made = match step {
        Step::Create(object) => local(api, Method::POST, PATH, Some(object)).await,
        Step::Update(object) => {
            let path = format!("{PATH}/{}", object::name(&object));
            local(api, Method::PUT, &path, Some(object)).await
        }
        Step::Delete(name) => {
            local(api, Method::DELETE, &format!("{PATH}/{name}"), Some(json!({}))).await
        }
    };
    match made {
        Ok(_)
        | Err(
            ApiError::AlreadyExists { .. } | ApiError::Conflict { .. } | ApiError::NotFound { .. },
        ) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Does what is to be done; false: something of it failed.
async fn keep(api: &Arc<Api>, compiled: &BTreeSet<(String, String)>) -> bool {
    let steps = plan(compiled, &served(api), &api.caches.list(&resource(), ""));
    let mut carried_out =
        futures::stream::iter(steps).map(|step| carry_out(api, step)).buffer_unordered(AT_ONCE);
    let mut kept = true;
    while let Some(result) = carried_out.next().await {
        if let Err(error) = result {
            tracing::debug!(%error, "an APIService could not be kept");
            kept = false;
        }
    }
    kept
}

pub(super) async fn run(api: &Arc<Api>, stop: &CancellationToken) {
    let compiled = served(api);
    let mut changes = api.caches.changes(&[resource()]);
    let mut kept = true;
    let following = async {
        loop {
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep(RETRY), if !kept => {}
            }
            // What there is is known from the first list on, which is a change too.
            if api.caches.version(&resource()) > 0 {
                kept = keep(api, &compiled).await;
            }
        }
    };
    stop.run_until_cancelled(following).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_registered() {
        let of = |pairs: &[(&str, &str)]| -> BTreeSet<(String, String)> {
            pairs.iter().map(|(g, v)| ((*g).to_owned(), (*v).to_owned())).collect()
        };
        let compiled = of(&[("", "v1"), ("apps", "v1")]);
        let custom = of(&[("", "v1"), ("apps", "v1"), ("example.com", "v1")]);
        let steps = plan(&compiled, &custom, &[]);
        assert_eq!(steps.len(), 3);
        let Some(Step::Create(core)) = steps.first() else { panic!("is created") };
        assert_eq!(object::name(core), "v1.");
        assert_eq!(
            core["spec"],
            json!({"version": "v1", "groupPriorityMinimum": 18000, "versionPriority": 1})
        );
        let made: Vec<Arc<Value>> = steps
            .into_iter()
            .filter_map(|step| match step {
                Step::Create(object) => Some(Arc::new(object)),
                _ => None,
            })
            .collect();
        assert_eq!(plan(&compiled, &custom, &made), []);
        // A custom group that is gone, and another's that stays.
        let mut theirs = wanted("other.example.com", "v1", DYNAMIC);
        object::remove(&mut theirs, &["metadata", "labels"]);
        let mut found = made.clone();
        found.push(Arc::new(theirs));
        let steps = plan(&compiled, &compiled, &found);
        assert_eq!(steps, [Step::Delete("v1.example.com".to_owned())]);
    }

    #[test]
    fn what_was_available_once_is_not_missing() {
        let service = |name: &str, status: &str| {
            Arc::new(json!({"metadata": {"name": name},
                "status": {"conditions": [{"type": "Available", "status": status}]}}))
        };
        let mut names: BTreeSet<String> = ["v1.", "v1.apps"].map(str::to_owned).into();
        strike_out(&mut names, &[service("v1.", "True"), service("v1.apps", "False")]);
        assert_eq!(names.iter().collect::<Vec<_>>(), ["v1.apps"]);
        strike_out(&mut names, &[service("v1.", "False"), service("v1.apps", "True")]);
        assert!(names.is_empty());
    }
}
