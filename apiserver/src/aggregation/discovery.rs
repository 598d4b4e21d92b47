//! What other servers serve, in our documents of discovery.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::{Value, object};
use parking_lot::Mutex;
use serde_json::json;

use super::{Aggregation, Remote, Remotes, local};

/// The resources of other servers, in the aggregated form, as they were last found.
#[derive(Default)]
pub(crate) struct Found(Mutex<BTreeMap<(String, String), Arc<Vec<Value>>>>);

impl Found {
    /// Keeps what a server said (`APIResourceList`).
    pub(super) fn keep(&self, group: &str, version: &str, list: &Value) {
        let resources = Arc::new(resources(group, version, list));
        self.0.lock().insert((group.to_owned(), version.to_owned()), resources);
    }

    pub(super) fn retain(&self, fits: impl Fn(&str, &str) -> bool) {
        self.0.lock().retain(|(group, version), _| fits(group, version));
    }

    fn get(&self, remote: &Remote) -> Arc<Vec<Value>> {
        let key = (remote.group.clone(), remote.version.clone());
        self.0.lock().get(&key).cloned().unwrap_or_default()
    }
}

/// An `APIResourceList` in the aggregated form.
fn resources(group: &str, version: &str, list: &Value) -> Vec<Value> {
    let mut made: Vec<Value> = Vec::new();
    for resource in object::list_at(list, &["resources"]) {
        let text = |field| object::str_at(resource, &[field]);
        let or = |field, other: &str| match text(field) {
            "" => other.to_owned(),
            own => own.to_owned(),
        };
        let kind = json!({"group": or("group", group), "version": or("version", version),
            "kind": text("kind")});
        let verbs = resource.get("verbs").cloned().unwrap_or_else(|| json!([]));
        if let Some((parent, name)) = text("name").split_once('/') {
            let sub = json!({"subresource": name, "responseKind": kind, "verbs": verbs});
            if let Some(parent) = made.iter_mut().find(|r| r["resource"] == parent) {
                let mut subs = object::list_at(parent, &["subresources"]).to_vec();
                subs.push(sub);
                parent["subresources"] = subs.into();
            }
            continue;
        }
        let namespaced = object::bool_at(resource, &["namespaced"]);
        let mut entry = json!({
            "resource": text("name"), "responseKind": kind,
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": text("singularName"), "verbs": verbs,
        });
        for field in ["shortNames", "categories"] {
            if let Some(list) = resource.get(field).filter(|l| l.is_array()) {
                entry[field] = list.clone();
            }
        }
        made.push(entry);
    }
    made
}

/// The servers of each group, the preferred version first.
fn by_group(remotes: &Remotes) -> BTreeMap<&str, Vec<&Arc<Remote>>> {
    let mut groups: BTreeMap<&str, Vec<&Arc<Remote>>> = BTreeMap::new();
    for remote in remotes.values().filter(|r| !r.group.is_empty()) {
        groups.entry(&remote.group).or_default().push(remote);
    }
    for remotes in groups.values_mut() {
        remotes.sort_by_key(|r| Reverse(r.version_priority));
    }
    groups
}

impl Aggregation {
    /// Puts other servers' versions into `/apis` (`APIGroupList`).
    pub(crate) fn add_to_groups(&self, list: &mut Value) {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return;
        }
        let mut groups = object::list_at(list, &["groups"]).to_vec();
        for (group, remotes) in by_group(&remotes) {
            let at = groups.iter().position(|g| g["name"] == group);
            let own = at.and_then(|at| groups.get(at)).cloned();
            let made = with_versions(own, group, &remotes);
            match at.and_then(|at| groups.get_mut(at)) {
                Some(slot) => *slot = made,
                None => groups.push(made),
            }
        }
        self.sort(&mut groups, &remotes, |g| object::str_at(g, &["name"]));
        list["groups"] = groups.into();
    }

    /// `/apis/<group>`, of which other servers serve versions. `own`: what this one serves of it.
    pub(crate) fn group(&self, name: &str, own: Option<Value>) -> Option<Value> {
        let remotes = self.remotes();
        let groups = by_group(&remotes);
        let Some(remotes) = groups.get(name) else { return own };
        let mut made = with_versions(own, name, remotes);
        made["kind"] = "APIGroup".into();
        made["apiVersion"] = "v1".into();
        Some(made)
    }

    /// Puts other servers' resources into the aggregated document of `/apis`; `None`: there are
    /// none.
    pub(crate) fn add_to_aggregated(&self, document: &Value) -> Option<Value> {
        let remotes = self.remotes();
        let groups = by_group(&remotes);
        if groups.is_empty() {
            return None;
        }
        let mut items = object::list_at(document, &["items"]).to_vec();
        for (group, remotes) in groups {
            let made = remotes.iter().map(|remote| {
                let freshness = if remote.available { "Current" } else { "Stale" };
                json!({"version": remote.version, "freshness": freshness,
                    "resources": *self.documents.get(remote)})
            });
            let named = |i: &&mut Value| object::str_at(i, &["metadata", "name"]) == group;
            match items.iter_mut().find(named) {
                Some(item) => {
                    let mut versions = object::list_at(item, &["versions"]).to_vec();
                    versions.retain(|v| remotes.iter().all(|r| v["version"] != *r.version));
                    versions.extend(made);
                    item["versions"] = versions.into();
                }
                None => items.push(json!({
                    "metadata": {"name": group, "creationTimestamp": null},
                    "versions": made.collect::<Vec<_>>(),
                })),
            }
        }
        self.sort(&mut items, &remotes, |i| object::str_at(i, &["metadata", "name"]));
        let mut document = document.clone();
        document["items"] = items.into();
        Some(document)
    }

    /// Paths of other servers' documents below `/openapi/v3/`.
    pub(crate) fn openapi_paths(&self) -> Vec<String> {
        let remotes = self.remotes();
        let available = remotes.values().filter(|r| r.available && !r.group.is_empty());
        available.map(|r| r.root().trim_start_matches('/').to_owned()).collect()
    }

    /// By the highest priority that a server gives the group, then by name.
    fn sort(&self, groups: &mut [Value], remotes: &Remotes, name: impl Fn(&Value) -> &str) {
        groups.sort_by_key(|group| {
            let name = name(group);
            let own = match name {
                "apiregistration.k8s.io" => i64::MAX,
                name => local::priorities(name, "").0,
            };
            let theirs = remotes.values().filter(|r| r.group == name).map(|r| r.group_priority);
            let rank = match theirs.max() {
                // Not a group of ours.
                Some(theirs) if own == 1000 => theirs,
                _ => own,
            };
            (Reverse(rank), name.to_owned())
        });
    }
}

/// A group with the versions that other servers serve of it.
fn with_versions(own: Option<Value>, group: &str, remotes: &[&Arc<Remote>]) -> Value {
    let mut made = own.unwrap_or_else(|| json!({"name": group, "versions": []}));
    let mut versions: Vec<Value> = object::list_at(&made, &["versions"]).to_vec();
    for remote in remotes {
        let version = remote.version.as_str();
        if !versions.iter().any(|v| v["version"] == version) {
            let full = format!("{group}/{version}");
            versions.push(json!({"groupVersion": full, "version": version}));
        }
    }
    let priority = |v: &Value| {
        let version = object::str_at(v, &["version"]);
        let theirs = remotes.iter().find(|r| r.version == version).map(|r| r.version_priority);
        theirs.unwrap_or_else(|| local::priorities(group, version).1)
    };
    versions.sort_by_key(|v| Reverse(priority(v)));
    made["preferredVersion"] = versions.first().cloned().unwrap_or(Value::Null);
    made["versions"] = versions.into();
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_lists_are_aggregated() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "verbs": ["get"], "shortNames": ["fl"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
        ]});
        let kind = json!({"group": "wardle.example.com", "version": "v1", "kind": "Flunder"});
        assert_eq!(
            resources("wardle.example.com", "v1", &list),
            [json!({"resource": "flunders", "responseKind": kind, "scope": "Namespaced",
                "singularResource": "flunder", "verbs": ["get"], "shortNames": ["fl"],
                "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["get"]}]})]
        );
    }
}
