//! Whether the servers behind this one answer
//! (upstream: `controllers/status/remote/remote_available_controller.go`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::{Value, object};
use http::Method;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Remote, resource};
use crate::api::{Api, rfc3339};
use crate::pipeline::local;
use crate::reader::Reader;
use crate::registry::kinds::apiregistration::condition;

/// How often servers are asked though nothing did.
const AGAIN: Duration = Duration::from_secs(30);
/// How soon after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Status, reason and message of the condition.
type State = (&'static str, &'static str, String);

/// What can be told without asking the server; `None`: nothing is wrong.
fn before_asking(reader: &dyn Reader, remote: &Remote) -> Option<State> {
    let (namespace, name, port) = (&remote.namespace, &remote.service, remote.port);
    let not = |reason, message| Some(("False", reason, message));
    let services = GroupResource::new("", "services");
    let Some(service) = reader.get(&services, namespace, name) else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return not("ServiceNotFound", message);
    };
    if object::str_at(&service, &["spec", "type"]) != "ClusterIP" {
        return None;
    }
    let ports = object::list_at(&service, &["spec", "ports"]);
    let found = ports.iter().find(|p| object::int_at(p, &["port"]) == Some(i64::from(port)));
    let Some(found) = found else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return not("ServicePortError", message);
    };
    let slices = GroupResource::new("discovery.k8s.io", "endpointslices");
    let of = |s: &Arc<Value>| object::label(s, "kubernetes.io/service-name") == Some(name.as_str());
    if !reader.list(&slices, namespace).iter().any(of) {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return not("EndpointsNotFound", message);
    }
    let port_name = object::str_at(found, &["name"]);
    if crate::services::ready_endpoints(reader, namespace, name, port_name).is_empty() {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return not("MissingEndpoints", message);
    }
    None
}

/// Asks the server for its resources, and keeps them.
async fn ask(api: &Api, remote: &Remote) -> State {
    if let Some(state) = before_asking(&*api.caches, remote) {
        return state;
    }
    let root = remote.root();
    let failed = |message| ("False", "FailedDiscoveryCheck", message);
    match api.aggregation.get(remote, &root).await {
        Ok((200..=299, data)) => {
            if let Ok(list) = serde_json::from_slice::<Value>(&data) {
                api.aggregation.documents.keep(&remote.group, &remote.version, &list);
            }
            ("True", "Passed", "all checks passed".to_owned())
        }
        Ok((code, _)) => {
            let url = format!("https://{}:{}{root}", remote.server_name(), remote.port);
            let why = format!("bad status from {url}: {code}");
            failed(format!("failing or missing response from {url}: {why}"))
        }
        Err(why) => failed(why),
    }
}

/// The APIService with the condition, if it has another.
fn with_state(service: &Value, state: &State, now: &str) -> Option<Value> {
    let (status, reason, message) = state;
    let text = |c: &Value, field| object::str_at(c, &[field]).to_owned();
    let since = match condition(service, "Available") {
        Some(c) if text(c, "status") == *status => {
            if text(c, "reason") == *reason && text(c, "message") == *message {
                return None;
            }
            text(c, "lastTransitionTime")
        }
        _ => now.to_owned(),
    };
    let made = json!({"type": "Available", "status": status, "lastTransitionTime": since,
        "reason": reason, "message": message});
    let mut conditions = object::list_at(service, &["status", "conditions"]).to_vec();
    match conditions.iter_mut().find(|c| c["type"] == "Available") {
        Some(found) => *found = made,
        None => conditions.push(made),
    }
    let mut changed = service.clone();
    object::set(&mut changed, &["apiVersion"], "apiregistration.k8s.io/v1");
    object::set(&mut changed, &["kind"], "APIService");
    object::set(&mut changed, &["status", "conditions"], conditions);
    Some(changed)
}

/// Checks one server; whether it is as it should be.
async fn check(api: &Arc<Api>, remote: &Remote) -> bool {
    let state = ask(api, remote).await;
    let now = rfc3339(api.now());
    if let Some(changed) = with_state(&remote.value, &state, &now) {
        let name = object::name(&changed).to_owned();
        let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}/status");
        if let Err(error) = local(api, Method::PUT, &path, Some(changed)).await {
            tracing::debug!(%error, name, "status of an APIService");
            return false;
        }
    }
    state.0 == "True"
}

/// What the answer to whether a server is available depends on, but for the server.
#[derive(PartialEq)]
struct Premises {
    spec: Value,
    /// Of its service, and of the service's slices.
    versions: Vec<String>,
}

impl Premises {
    fn of(reader: &dyn Reader, remote: &Remote) -> Self {
        let version = |o: &Arc<Value>| object::resource_version(o).to_owned();
        let (namespace, name) = (remote.namespace.as_str(), remote.service.as_str());
        let service = reader.get(&GroupResource::new("", "services"), namespace, name);
        let slices =
            reader.list(&GroupResource::new("discovery.k8s.io", "endpointslices"), namespace);
        let own =
            slices.iter().filter(|s| object::label(s, "kubernetes.io/service-name") == Some(name));
        let versions = service.iter().chain(own).map(version).collect();
        Self { spec: remote.value["spec"].clone(), versions }
    }
}

/// When a server is to be asked.
struct Asked {
    premises: Premises,
    next: Instant,
    /// How long after the next failure.
    wait: Duration,
}

impl Asked {
    /// What was known before, or that nothing was.
    fn is_due(known: Option<&Self>, premises: &Premises, now: Instant) -> bool {
        known.is_none_or(|asked| asked.premises != *premises || asked.next <= now)
    }

    fn after(known: Option<Self>, premises: Premises, available: bool, now: Instant) -> Self {
        if available {
            return Self { premises, next: now + AGAIN, wait: RETRY.0 };
        }
        let wait = known.filter(|k| k.premises == premises).map_or(RETRY.0, |known| known.wait);
        Self { premises, next: now + wait, wait: (wait * 2).min(RETRY.1) }
    }
}

pub(super) async fn run(api: &Arc<Api>, stop: &CancellationToken) {
    let mut changes = api.caches.changes(&[
        resource(),
        GroupResource::new("", "services"),
        GroupResource::new("discovery.k8s.io", "endpointslices"),
    ]);
    let mut asked: BTreeMap<(String, String), Asked> = BTreeMap::new();
    let following = async {
        loop {
            let next = asked.values().map(|asked| asked.next).min();
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            let remotes = api.aggregation.remotes();
            asked.retain(|key, _| remotes.contains_key(key));
            api.aggregation.documents.retain(|group, version| {
                remotes.contains_key(&(group.to_owned(), version.to_owned()))
            });
            let checks = remotes.iter().filter_map(|(key, remote)| {
                let premises = Premises::of(&*api.caches, remote);
                let due = Asked::is_due(asked.get(key), &premises, Instant::now());
                due.then_some(async move { (key, premises, check(api, remote).await) })
            });
            for (key, premises, available) in futures::future::join_all(checks).await {
                let known = asked.remove(key);
                let after = Asked::after(known, premises, available, Instant::now());
                asked.insert(key.clone(), after);
            }
        }
    };
    stop.run_until_cancelled(following).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::testing::Memory;

    fn remote() -> Remote {
        Remote {
            group: "example.com".to_owned(),
            version: "v1".to_owned(),
            group_priority: 1,
            version_priority: 1,
            namespace: "n".to_owned(),
            service: "api".to_owned(),
            port: 443,
            available: false,
            tls: Err("none".to_owned()),
            value: Arc::new(json!({})),
        }
    }

    #[test]
    fn what_is_missing_is_told() {
        let memory = Memory::default();
        let told = |memory: &Memory| before_asking(memory, &remote()).map(|s| (s.1, s.2));
        let is = |reason, message: &str| Some((reason, message.to_owned()));
        assert_eq!(told(&memory), is("ServiceNotFound", "service/api in \"n\" is not present"));
        let service = |port: i64| {
            json!({"metadata": {"name": "api", "namespace": "n"},
                "spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": port}]}})
        };
        memory.put("", "services", service(80));
        assert_eq!(
            told(&memory),
            is("ServicePortError", "service/api in \"n\" is not listening on port 443")
        );
        memory.put("", "services", service(443));
        assert_eq!(
            told(&memory),
            is("EndpointsNotFound", "cannot find endpointslices for service/api in \"n\"")
        );
        let slice = |ready: bool| {
            json!({"metadata": {"name": "api-1", "namespace": "n",
                    "labels": {"kubernetes.io/service-name": "api"}},
                "ports": [{"name": "https", "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
        };
        memory.put("discovery.k8s.io", "endpointslices", slice(false));
        assert_eq!(
            told(&memory),
            is(
                "MissingEndpoints",
                "endpointslices for service/api in \"n\" have no addresses with port name \"https\""
            )
        );
        memory.put("discovery.k8s.io", "endpointslices", slice(true));
        assert_eq!(told(&memory), None);
    }

    #[test]
    fn servers_are_asked_again() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let of = |version: &str| Premises { spec: json!({}), versions: vec![version.to_owned()] };
        assert!(Asked::is_due(None, &of("1"), now));
        let well = Asked::after(None, of("1"), true, now);
        assert!(!Asked::is_due(Some(&well), &of("1"), now + 29 * second));
        assert!(Asked::is_due(Some(&well), &of("2"), now), "something changed");
        assert!(Asked::is_due(Some(&well), &of("1"), now + AGAIN));
        // Failures come further and further apart, until something changes.
        let mut failed = Asked::after(Some(well), of("1"), false, now);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(failed.next, now + wait * second);
            failed = Asked::after(Some(failed), of("1"), false, now);
        }
        failed = Asked::after(Some(failed), of("2"), false, now);
        assert_eq!(failed.next, now + second);
    }

    #[test]
    fn times_of_conditions_change_with_their_status() {
        let state = |status, message: &str| (status, "R", message.to_owned());
        let first = with_state(&json!({}), &state("False", "a"), "1").expect("a change");
        assert_eq!(with_state(&first, &state("False", "a"), "2"), None);
        let second = with_state(&first, &state("False", "b"), "2").expect("a change");
        assert_eq!(second["status"]["conditions"][0]["lastTransitionTime"], "1");
        let third = with_state(&second, &state("True", "b"), "3").expect("a change");
        assert_eq!(third["status"]["conditions"][0]["lastTransitionTime"], "3");
    }
}
