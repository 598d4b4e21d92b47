//! What metrics and targets are asked for over the API: metrics.k8s.io, custom.metrics.k8s.io,
//! external.metrics.k8s.io and the subresource `scale` of any kind.

use std::collections::HashMap;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector as Selector;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList, LabelSelector};
use kube::Client;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::count::{Sample, Samples};
use super::decide::Measured;

/// Of samples that do not say how long was measured.
const WINDOW: Duration = Duration::from_secs(60);

/// Where objects of a kind are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `/apis/group/version` or `/api/v1`.
    base: String,
    group: String,
    resource: String,
    namespaced: bool,
}

/// Asks the API. Where kinds are is remembered until one is not found there.
pub struct Meter {
    client: Client,
    places: Mutex<HashMap<(String, String), Place>>,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// An item of metrics.k8s.io.
#[derive(Deserialize)]
struct PodUsage {
    metadata: Named,
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerUsage>,
}

#[derive(Deserialize)]
struct ContainerUsage {
    name: String,
    usage: HashMap<String, String>,
}

/// An item of custom.metrics.k8s.io and of external.metrics.k8s.io.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Value {
    described_object: Option<Named>,
    timestamp: Timestamp,
    window_seconds: Option<u64>,
    value: String,
}

fn milli(text: &str) -> Result<i64, String> {
    text.parse::<Quantity>().map(|q| q.milli_value()).map_err(|error| format!("{text:?}: {error}"))
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A selector as a request has it.
fn written(selector: Option<&LabelSelector>) -> Result<String, String> {
    let json = selector.map(serde_json::to_value).transpose().map_err(|e| e.to_string())?;
    let parsed = Selector::from_json(json.as_ref()).map_err(|e| e.to_string())?;
    Ok(parsed.map(|s| s.to_string()).unwrap_or_default())
}

/// What the API said. `what` names that which is not served.
fn said(error: &kube::Error, what: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 && status.details.is_none() => {
            format!("the server could not find the requested resource ({what})")
        }
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => client::error::line(error),
    }
}

impl Meter {
    pub fn new(client: Client) -> Self {
        Self { client, places: Mutex::default() }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, kube::Error> {
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// Where a kind is: in the version that is named, or else in another that has it.
    async fn place(&self, api_version: &str, kind: &str) -> Result<Place, String> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.places.lock().get(&key).cloned() {
            return Ok(known);
        }
        let (group, named) = api_version.split_once('/').unwrap_or(("", api_version));
        if group.contains('/') || named.contains('/') {
            return Err(format!("unexpected GroupVersion string: {api_version}"));
        }
        let mut versions = vec![named.to_owned()];
        if !group.is_empty() {
            let path = format!("/apis/{group}");
            match self.get::<APIGroup>(&path).await {
                Ok(found) => versions.extend(found.versions.into_iter().map(|v| v.version)),
                Err(error) if crate::action::is_gone(&error) => {}
                Err(error) => return Err(said(&error, &format!("get {path}"))),
            }
        }
        for version in versions.iter().filter(|version| !version.is_empty()) {
            let base = match group {
                "" => format!("/api/{version}"),
                group => format!("/apis/{group}/{version}"),
            };
            let list = match self.get::<APIResourceList>(&base).await {
                Ok(list) => list,
                Err(error) if crate::action::is_gone(&error) => continue,
                Err(error) => return Err(said(&error, &format!("get {base}"))),
            };
            let whole = |name: &str| !name.contains('/');
            let found = list.resources.into_iter().find(|r| r.kind == kind && whole(&r.name));
            if let Some(found) = found {
                let (resource, namespaced) = (found.name, found.namespaced);
                let place = Place { base, group: group.to_owned(), resource, namespaced };
                self.places.lock().insert(key, place.clone());
                return Ok(place);
            }
        }
        Err(format!("no matches for kind {kind:?} in group {group:?}"))
    }

    async fn scale_path(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<String, String> {
        let api_version = target.api_version.as_deref().unwrap_or_default();
        let Place { base, resource, .. } = self.place(api_version, &target.kind).await?;
        Ok(format!("{base}/namespaces/{namespace}/{resource}/{}/scale", target.name))
    }

    /// How many replicas a target has and is to have.
    pub async fn scale(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<Scale, String> {
        let path = self.scale_path(namespace, target).await?;
        self.get(&path).await.map_err(|error| {
            if crate::action::is_gone(&error) {
                // Its definition may have changed.
                self.places.lock().retain(|(_, kind), _| *kind != target.kind);
            }
            said(&error, &format!("get {path}"))
        })
    }

    /// Gives a target another number of replicas, unless it was changed meanwhile.
    pub async fn rescale(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
        scale: &Scale,
    ) -> Result<(), String> {
        let path = self.scale_path(namespace, target).await?;
        let body = serde_json::to_vec(scale).map_err(|error| error.to_string())?;
        let request = Request::put(&path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| error.to_string())?;
        let put: Result<Scale, _> = self.client.request(request).await;
        put.map(|_| ()).map_err(|error| said(&error, &format!("put {path}")))
    }

    /// Measures what a metric is about. `pods`: the selector of the target's pods.
    pub async fn measure(
        &self,
        namespace: &str,
        metric: &MetricSpec,
        pods: &str,
    ) -> Result<Measured, String> {
        match metric.type_.as_str() {
            "Resource" => {
                let source = metric.resource.as_ref().ok_or("no resource")?;
                self.usage(namespace, pods, &source.name, None).await
            }
            "ContainerResource" => {
                let source = metric.container_resource.as_ref().ok_or("no containerResource")?;
                self.usage(namespace, pods, &source.name, Some(&source.container)).await
            }
            "Pods" => {
                let source = metric.pods.as_ref().ok_or("no pods")?;
                let selector = written(source.metric.selector.as_ref())?;
                self.custom_of_pods(namespace, pods, &source.metric.name, &selector).await
            }
            "Object" => {
                let source = metric.object.as_ref().ok_or("no object")?;
                let selector = written(source.metric.selector.as_ref())?;
                let object = &source.described_object;
                self.custom_of_object(namespace, object, &source.metric.name, &selector).await
            }
            "External" => {
                let source = metric.external.as_ref().ok_or("no external")?;
                let selector = written(source.metric.selector.as_ref())?;
                self.external(namespace, &source.metric.name, &selector).await
            }
            other => Err(format!("unknown metric source type {other:?}")),
        }
    }

    async fn usage(
        &self,
        namespace: &str,
        pods: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Measured, String> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}",
            escaped(pods)
        );
        let list: List<PodUsage> = self.get(&path).await.map_err(|error| {
            let why = said(&error, "get pods.metrics.k8s.io");
            format!("unable to fetch metrics from resource metrics API: {why}")
        })?;
        if list.items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        used(&list.items, namespace, resource, container).map(Measured::Pods)
    }

    /// The version of custom.metrics.k8s.io to ask.
    async fn custom(&self) -> Result<&'static str, String> {
        let path = "/apis/custom.metrics.k8s.io";
        let group: APIGroup = self.get(path).await.map_err(|error| {
            let why = said(&error, &format!("get {path}"));
            format!("unable to fetch metrics from custom metrics API: {why}")
        })?;
        let preferred = group.preferred_version.map(|v| v.version);
        let offered = preferred.into_iter().chain(group.versions.into_iter().map(|v| v.version));
        let known = |version: String| ["v1beta1", "v1beta2"].into_iter().find(|k| *k == version);
        offered.filter_map(known).next().ok_or_else(|| {
            "unable to fetch metrics from custom metrics API: no known available metric versions found"
                .to_owned()
        })
    }

    async fn values(&self, what: &str, path: &str) -> Result<Vec<Value>, String> {
        let list: List<Value> = self.get(path).await.map_err(|error| {
            let why = said(&error, &format!("get {path}"));
            format!("unable to fetch metrics from {what} metrics API: {why}")
        })?;
        match list.items.is_empty() {
            true => Err(format!("no metrics returned from {what} metrics API")),
            false => Ok(list.items),
        }
    }

    async fn custom_of_pods(
        &self,
        namespace: &str,
        pods: &str,
        metric: &str,
        selector: &str,
    ) -> Result<Measured, String> {
        let version = self.custom().await?;
        let path = format!(
            "/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/pods/*/{}?labelSelector={}&metricLabelSelector={}",
            escaped(metric),
            escaped(pods),
            escaped(selector)
        );
        let mut samples = Samples::new();
        for value in self.values("custom", &path).await? {
            let window = value.window_seconds.map_or(WINDOW, Duration::from_secs);
            let sample = Sample { value: milli(&value.value)?, at: value.timestamp, window };
            let pod = value.described_object.map(|o| o.name).unwrap_or_default();
            samples.insert(pod, sample);
        }
        Ok(Measured::Pods(samples))
    }

    async fn custom_of_object(
        &self,
        namespace: &str,
        object: &CrossVersionObjectReference,
        metric: &str,
        selector: &str,
    ) -> Result<Measured, String> {
        let version = self.custom().await?;
        let api_version = object.api_version.as_deref().unwrap_or("v1");
        let place = self.place(api_version, &object.kind).await?;
        let path = format!(
            "/apis/custom.metrics.k8s.io/{version}/{}/{}?metricLabelSelector={}",
            described(&place, namespace, &object.name),
            escaped(metric),
            escaped(selector)
        );
        let values = self.values("custom", &path).await?;
        milli(&values[0].value).map(Measured::Value)
    }

    async fn external(
        &self,
        namespace: &str,
        metric: &str,
        selector: &str,
    ) -> Result<Measured, String> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector={}",
            escaped(metric),
            escaped(selector)
        );
        let mut sum = 0_i64;
        for value in self.values("external", &path).await? {
            sum = sum.saturating_add(milli(&value.value)?);
        }
        Ok(Measured::Value(sum))
    }
}

/// An object in a path of custom.metrics.k8s.io. A namespace's own metrics are a resource of it.
fn described(place: &Place, namespace: &str, name: &str) -> String {
    let resource = match place.group.as_str() {
        "" => place.resource.clone(),
        group => format!("{}.{group}", place.resource),
    };
    match (resource.as_str(), place.namespaced) {
        ("namespaces", _) => format!("namespaces/{name}/metrics"),
        (resource, true) => format!("namespaces/{namespace}/{resource}/{name}"),
        (resource, false) => format!("{resource}/{name}"),
    }
}

/// What pods use of a resource, in one container or in all. Pods of which not all is known are left
/// out.
fn used(
    items: &[PodUsage],
    namespace: &str,
    resource: &str,
    container: Option<&str>,
) -> Result<Samples, String> {
    let mut samples = Samples::new();
    for pod in items {
        let of = |c: &ContainerUsage| c.usage.get(resource).map(|q| milli(q)).transpose();
        let sum = match container {
            Some(wanted) => {
                let found = pod.containers.iter().find(|c| c.name == wanted);
                let found = found.ok_or_else(|| {
                    let pod = &pod.metadata.name;
                    format!("container {wanted} not present in metrics for pod {namespace}/{pod}")
                })?;
                of(found)?
            }
            None => {
                let mut sum = Some(0_i64).filter(|_| !pod.containers.is_empty());
                for container in &pod.containers {
                    sum = match (sum, of(container)?) {
                        (Some(sum), Some(more)) => Some(sum.saturating_add(more)),
                        _ => None,
                    };
                }
                sum
            }
        };
        let window = component::cli::duration(&pod.window).unwrap_or(WINDOW);
        if let Some(value) = sum {
            samples.insert(pod.metadata.name.clone(), Sample { value, at: pod.timestamp, window });
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_is_summed_and_what_is_not_whole_left_out() {
        let list: List<PodUsage> = serde_json::from_value(json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s",
             "containers": [{"name": "x", "usage": {"cpu": "100m", "memory": "1Ki"}},
                            {"name": "y", "usage": {"cpu": "1", "memory": "1Ki"}}]},
            {"metadata": {"name": "b"}, "timestamp": "2026-01-01T00:00:00Z", "window": "",
             "containers": [{"name": "x", "usage": {"cpu": "50m"}},
                            {"name": "y", "usage": {"memory": "1"}}]},
            {"metadata": {"name": "c"}, "timestamp": "2026-01-01T00:00:00Z", "containers": []},
        ]}))
        .expect("a list");
        let sums = |items: &[PodUsage], container| {
            let all = used(items, "ns", "cpu", container)?;
            Ok::<_, String>(all.into_iter().map(|(pod, s)| (pod, s.value)).collect::<Vec<_>>())
        };
        let pair = |pod: &str, value| (pod.to_owned(), value);
        assert_eq!(sums(&list.items, None), Ok(vec![pair("a", 1100)]));
        let of_x = Ok(vec![pair("a", 100), pair("b", 50)]);
        assert_eq!(sums(&list.items[..2], Some("x")), of_x);
        let error = "container x not present in metrics for pod ns/c".to_owned();
        assert_eq!(sums(&list.items, Some("x")), Err(error));
        let all = used(&list.items, "ns", "cpu", None).expect("all");
        assert_eq!(all["a"].window, Duration::from_secs(15));
    }

    #[test]
    fn objects_are_named_by_group_and_scope() {
        let place = |group: &str, resource: &str, namespaced| Place {
            base: String::new(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespaced,
        };
        for (place, want) in [
            (place("", "services", true), "namespaces/ns/services/n"),
            (
                place("networking.k8s.io", "ingresses", true),
                "namespaces/ns/ingresses.networking.k8s.io/n",
            ),
            (place("", "nodes", false), "nodes/n"),
            (place("", "namespaces", false), "namespaces/n/metrics"),
        ] {
            assert_eq!(described(&place, "ns", "n"), want);
        }
    }
}
