//! LimitRanger: what a namespace's LimitRanges say of a pod or claim: defaults of requests and
//! limits, and how little and how much one may ask for
//! (upstream: `plugin/pkg/admission/limitranger`).

use std::sync::Arc;

use apimachinery::amounts::{Amounts, read};
use apimachinery::gvk::GroupResource;
use apimachinery::quantity::Quantity;
use apimachinery::quota::{pod_limits, pod_requests};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::{Attributes, Operation, Plugin, forbidden};
use crate::reader::{Object, Reader};

/// What was set for the user, for the user to read.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger(pub Arc<dyn Reader>);

impl LimitRanger {
    /// The ranges that hold for a write; none for writes that they are not about.
    fn ranges(&self, a: &Attributes<'_>) -> Vec<Object> {
        let pods = a.resource.resource == "pods";
        let update = a.operation == Operation::Update;
        let concerns = a.resource.group.is_empty()
            && match a.subresource {
                "" if pods => !update,
                "" => a.resource.resource == "persistentvolumeclaims",
                "resize" => pods && update,
                _ => false,
            };
        let going = a.old.is_some_and(|old| !object::deletion_timestamp(old).is_empty());
        if !concerns || going || a.namespace.is_empty() {
            return Vec::new();
        }
        self.0.list(&GroupResource::new("", "limitranges"), a.namespace)
    }
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object.filter(|_| a.resource.resource == "pods") else { return Ok(()) };
        for range in self.ranges(a) {
            fill(pod, &range);
        }
        Ok(())
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(shown) = object else { return Ok(()) };
        for range in self.ranges(a) {
            let mut problems = match a.resource.resource.as_str() {
                "pods" => pod_problems(&range, shown),
                _ => claim_problems(&range, shown),
            };
            problems.dedup();
            let reason = match problems.as_slice() {
                [] => continue,
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            return Err(forbidden(a, object, reason));
        }
        Ok(())
    }
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    object::list_at(range, &["spec", "limits"]).iter().filter(move |item| item["type"] == kind)
}

/// Gives a pod's containers the requests and limits that they do not have.
fn fill(pod: &mut Value, range: &Value) {
    let merged = |field: &str| {
        let mut all = serde_json::Map::new();
        for item in items(range, "Container") {
            all.extend(
                object::map_at(item, &[field])
                    .into_iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
        }
        all
    };
    let defaults =
        [("requests", "request", merged("defaultRequest")), ("limits", "limit", merged("default"))];
    let mut notes: Vec<String> = Vec::new();
    for (list, shown) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (field, word, defaults) in &defaults {
                let mut set: Vec<&str> = Vec::new();
                for (name, amount) in defaults {
                    if object::get(container, &["resources", field, name]).is_none() {
                        object::set(container, &["resources", field, name], amount.clone());
                        set.push(name);
                    }
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    let name = object::str_at(container, &["name"]);
                    notes.push(format!("{} {word} for {shown} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        object::set(pod, &["metadata", "annotations", ANNOTATION], text);
    }
}

/// One thing that a LimitRange is about, with what it asks for.
struct Asked<'a> {
    kind: &'a str,
    requests: Amounts,
    limits: Amounts,
}

impl Asked<'_> {
    fn too_small(&self, name: &str, least: Quantity) -> Option<String> {
        let start = format!("minimum {name} usage per {} is {least}", self.kind);
        let limit = self.limits.get(name);
        match self.requests.get(name) {
            None => Some(format!("{start}.  No request is specified")),
            Some(request) if *request < least => Some(format!("{start}, but request is {request}")),
            Some(_) => {
                let limit = limit.filter(|limit| **limit < least)?;
                Some(format!("{start}, but limit is {limit}"))
            }
        }
    }

    fn too_large(&self, name: &str, most: Quantity) -> Option<String> {
        let start = format!("maximum {name} usage per {} is {most}", self.kind);
        let request = self.requests.get(name);
        match self.limits.get(name) {
            None => Some(format!("{start}.  No limit is specified")),
            Some(limit) if *limit > most => Some(format!("{start}, but limit is {limit}")),
            Some(_) => {
                let request = request.filter(|request| **request > most)?;
                Some(format!("{start}, but request is {request}"))
            }
        }
    }

    /// Of claims, only requests count.
    fn asks_too_much(&self, name: &str, most: Quantity) -> Option<String> {
        let start = format!("maximum {name} usage per {} is {most}", self.kind);
        match self.requests.get(name) {
            None => Some(format!("{start}.  No request is specified")),
            Some(request) if *request > most => Some(format!("{start}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn too_far_apart(&self, name: &str, ratio: Quantity) -> Option<String> {
        let start = format!("{name} max limit to request ratio per {} is {ratio}, but", self.kind);
        let amount =
            |of: &Amounts| of.get(name).filter(|q| !q.is_zero()).map(Quantity::approximate);
        let Some(request) = amount(&self.requests) else {
            return Some(format!("{start} no request is specified or request is 0"));
        };
        let Some(limit) = amount(&self.limits) else {
            return Some(format!("{start} no limit is specified or limit is 0"));
        };
        let is = limit / request;
        (is > ratio.approximate()).then(|| format!("{start} provided ratio is {is:.6}"))
    }

    fn problems(&self, item: &Value) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, least) in read(item.get("min")) {
            problems.extend(self.too_small(&name, least));
        }
        for (name, most) in read(item.get("max")) {
            problems.extend(self.too_large(&name, most));
        }
        for (name, ratio) in read(item.get("maxLimitRequestRatio")) {
            problems.extend(self.too_far_apart(&name, ratio));
        }
        problems
    }
}

fn pod_problems(range: &Value, pod: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for item in object::list_at(range, &["spec", "limits"]) {
        match object::str_at(item, &["type"]) {
            kind @ "Container" => {
                for container in ["containers", "initContainers"]
                    .iter()
                    .flat_map(|list| object::list_at(pod, &["spec", list]))
                {
                    let of = |field| read(object::get(container, &["resources", field]));
                    let asked = Asked { kind, requests: of("requests"), limits: of("limits") };
                    problems.extend(asked.problems(item));
                }
            }
            kind @ "Pod" => {
                let (requests, limits) = (pod_requests(pod, false), pod_limits(pod, false));
                problems.extend(Asked { kind, requests, limits }.problems(item));
            }
            _ => {}
        }
    }
    problems
}

fn claim_problems(range: &Value, claim: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let requests = read(object::get(claim, &["spec", "resources", "requests"]));
    let asked = Asked { kind: "PersistentVolumeClaim", requests, limits: Amounts::new() };
    for item in items(range, "PersistentVolumeClaim") {
        for (name, least) in read(item.get("min")) {
            problems.extend(asked.too_small(&name, least));
        }
        for (name, most) in read(item.get("max")) {
            problems.extend(asked.asks_too_much(&name, most));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;

    fn plugin(item: Value) -> LimitRanger {
        let range =
            json!({"metadata": {"name": "r", "namespace": "a"}, "spec": {"limits": [item]}});
        LimitRanger(Memory::with(&[("", "limitranges", range)]))
    }

    fn pod(resources: Value) -> Value {
        let container = json!({"name": "c", "resources": resources});
        json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}})
    }

    #[tokio::test]
    async fn containers_get_defaults_and_a_note_of_them() {
        let plugin = plugin(json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "500m"}}));
        let object = pod(json!({"limits": {"cpu": "2"}}));
        let write = Write { object, ..Write::default() };
        let (got, _) = write.run(&plugin).await.expect("admitted");
        let resources =
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(got["spec"]["containers"][0]["resources"], resources);
        assert_eq!(
            got["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; memory limit for container c"
        );
    }

    #[tokio::test]
    async fn what_is_out_of_range_is_refused() {
        let both = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        let (container, of_pod) = ("Container", "Pod");
        let cases = [
            (container, json!({"min": {"cpu": "1"}}), both("1", "2"), ""),
            (
                container,
                json!({"min": {"cpu": "1"}}),
                json!({}),
                "minimum cpu usage per Container is 1.  No request is specified",
            ),
            (
                container,
                json!({"min": {"cpu": "1"}}),
                both("500m", "2"),
                "minimum cpu usage per Container is 1, but request is 500m",
            ),
            (
                of_pod,
                json!({"max": {"cpu": "1"}}),
                both("1", "2"),
                "maximum cpu usage per Pod is 1, but limit is 2",
            ),
            (
                of_pod,
                json!({"max": {"memory": "1Gi"}}),
                both("1", "2"),
                "maximum memory usage per Pod is 1Gi.  No limit is specified",
            ),
            (
                container,
                json!({"maxLimitRequestRatio": {"cpu": "1500m"}}),
                both("1", "2"),
                "cpu max limit to request ratio per Container is 1500m, but provided ratio is \
                 2.000000",
            ),
            (
                container,
                json!({"min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                both("1", "2"),
                "[minimum cpu usage per Container is 2, but request is 1, maximum cpu usage per \
                 Container is 1, but limit is 2]",
            ),
        ];
        for (kind, mut item, resources, want) in cases {
            item["type"] = kind.into();
            let write = Write { object: pod(resources), ..Write::default() };
            let got = write.run(&plugin(item)).await.err();
            let want = (!want.is_empty()).then(|| format!("pods \"p\" is forbidden: {want}"));
            assert_eq!(got, want);
        }
    }

    #[tokio::test]
    async fn claims_ask_for_as_much_as_they_may() {
        let plugin = plugin(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"},
            "max": {"storage": "2Gi"}}));
        for (size, want) in [
            ("1Gi", None),
            (
                "1Mi",
                Some("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
            ),
            (
                "3Gi",
                Some("maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"),
            ),
        ] {
            let claim = json!({"metadata": {"name": "c"},
                "spec": {"resources": {"requests": {"storage": size}}}});
            let write =
                Write { resource: "persistentvolumeclaims", object: claim, ..Write::default() };
            let got = write.run(&plugin).await.err();
            let want = want.map(|w| format!("persistentvolumeclaims \"c\" is forbidden: {w}"));
            assert_eq!(got, want);
        }
    }
}
