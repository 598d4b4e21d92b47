//! What pods belong to, as far as their selectors go: for topology spread constraints that a pod
//! has by default.

use std::collections::{BTreeMap, HashMap};

use client::Key;
use client::lean::Pod;
use client::matching::Labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Kinds whose selectors count, beside Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnerKind {
    ReplicationController,
    ReplicaSet,
    StatefulSet,
}

/// Selectors of Services and of pods' controllers.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Namespace to name to selector.
    services: HashMap<String, BTreeMap<String, Labels>>,
    controllers: HashMap<(OwnerKind, Key), LabelSelector>,
}

impl Owners {
    /// A Service is there with a selector, or has none, or is gone.
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: Option<&Labels>) {
        let all = self.services.entry(namespace.to_owned()).or_default();
        match selector.filter(|s| !s.is_empty()) {
            Some(selector) => {
                all.insert(name.to_owned(), selector.clone());
            }
            None => {
                all.remove(name);
                if all.is_empty() {
                    self.services.remove(namespace);
                }
            }
        }
    }

    /// A controller is there, or gone.
    pub fn set_controller(&mut self, kind: OwnerKind, key: &Key, selector: Option<LabelSelector>) {
        match selector {
            Some(selector) => self.controllers.insert((kind, key.clone()), selector),
            None => self.controllers.remove(&(kind, key.clone())),
        };
    }

    /// What selects the pods that belong together with this one: the selectors of all Services
    /// that select it and of its controller, in one. `None`: nothing does.
    pub fn selector(&self, pod: &Pod) -> Option<LabelSelector> {
        let meta = &pod.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let has = |selector: &Labels| {
            let labels = meta.labels.as_ref();
            selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
        };
        let services = self.services.get(namespace).into_iter().flatten().map(|(_, s)| s);
        let mut labels = Labels::new();
        services.filter(|s| has(s)).for_each(|s| labels.extend(s.clone()));
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let kind = owner.and_then(|o| match (o.api_version.as_str(), o.kind.as_str()) {
            ("v1", "ReplicationController") => Some(OwnerKind::ReplicationController),
            ("apps/v1", "ReplicaSet") => Some(OwnerKind::ReplicaSet),
            ("apps/v1", "StatefulSet") => Some(OwnerKind::StatefulSet),
            _ => None,
        });
        let controller = owner.zip(kind).and_then(|(owner, kind)| {
            self.controllers.get(&(kind, Key::new(namespace, &owner.name)))
        });
        let mut selector = controller.cloned().unwrap_or_default();
        labels.extend(selector.match_labels.take().unwrap_or_default());
        if labels.is_empty() && selector.match_expressions.as_ref().is_none_or(Vec::is_empty) {
            return None;
        }
        selector.match_labels = Some(labels);
        Some(selector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_of_services_and_controller_are_one() {
        let labels =
            |v: serde_json::Value| -> Labels { serde_json::from_value(v).expect("labels") };
        let mut owners = Owners::default();
        owners.set_service("ns", "mine", Some(&labels(json!({"app": "web"}))));
        owners.set_service("ns", "no", Some(&labels(json!({"app": "db"}))));
        owners.set_service("other", "mine", Some(&labels(json!({"tier": "1"}))));
        let selector = json!({"matchLabels": {"hash": "x"}});
        let key = Key::new("ns", "web-x");
        let selector = serde_json::from_value(selector).expect("a selector");
        owners.set_controller(OwnerKind::ReplicaSet, &key, Some(selector));
        let pod = |labels: serde_json::Value| -> Pod {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-x",
                "uid": "u", "controller": true});
            let meta = json!({"namespace": "ns", "name": "p", "labels": labels,
                "ownerReferences": [owner]});
            serde_json::from_value(json!({"metadata": meta})).expect("a pod")
        };
        let found = |owners: &Owners, l| owners.selector(&pod(l)).and_then(|s| s.match_labels);
        let web = json!({"app": "web", "tier": "1"});
        assert_eq!(found(&owners, web.clone()), Some(labels(json!({"app": "web", "hash": "x"}))));
        owners.set_controller(OwnerKind::ReplicaSet, &key, None);
        assert_eq!(found(&owners, web.clone()), Some(labels(json!({"app": "web"}))));
        owners.set_service("ns", "mine", None);
        assert_eq!(found(&owners, web), None);
    }
}
