//! Every namespace has the cluster's CA, for pods to verify the API server with.

use std::collections::BTreeMap;

use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::serviceaccount::is_active;
use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";

pub struct RootCa {
    namespaces: Cache<Namespace>,
    maps: Cache<ConfigMap>,
    /// PEM.
    ca: String,
}

impl RootCa {
    pub fn new(context: &Context, ca: String) -> Self {
        Self { namespaces: context.caches.of(), maps: context.caches.of(), ca }
    }
}

impl Controller for RootCa {
    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let q = queue.clone();
        self.namespaces.on_change(move |change| q.add(Key::new("", &change.key.name)));
        let q = queue.clone();
        self.maps.on_change(move |change| {
            if change.key.name == NAME {
                q.add(Key::new("", &change.key.namespace));
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if !self.namespaces.get(key).is_some_and(|n| is_active(&n)) {
            return plan;
        }
        let data = Some(BTreeMap::from([(FILE.to_owned(), self.ca.clone())]));
        match self.maps.get(&Key::new(&key.name, NAME)) {
            None => plan.push(Action::create(&ConfigMap {
                metadata: ObjectMeta {
                    name: Some(NAME.into()),
                    namespace: Some(key.name.clone()),
                    annotations: Some(BTreeMap::from([(
                        "kubernetes.io/description".to_owned(),
                        "The CA of the API server's certificate, as pods of the cluster reach it."
                            .to_owned(),
                    )])),
                    ..ObjectMeta::default()
                },
                data,
                ..ConfigMap::default()
            })),
            Some(map) if map.data != data => {
                plan.push(Action::update(&ConfigMap { data, ..ConfigMap::clone(&map) }));
            }
            Some(_) => {}
        }
        plan
    }
}
