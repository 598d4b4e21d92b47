//! Every namespace has its default service account.

use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

const DEFAULT: &str = "default";

pub struct ServiceAccounts {
    namespaces: Cache<Namespace>,
    accounts: Cache<ServiceAccount>,
}

impl ServiceAccounts {
    pub fn new(context: &Context) -> Self {
        Self { namespaces: context.caches.of(), accounts: context.caches.of() }
    }
}

/// Whether a namespace takes new objects.
pub fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "serviceaccount"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let q = queue.clone();
        self.namespaces.on_change(move |change| q.add(Key::new("", &change.key.name)));
        let q = queue.clone();
        self.accounts.on_change(move |change| {
            if change.new.is_none() {
                q.add(Key::new("", &change.key.namespace));
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let wanted = self.namespaces.get(key).is_some_and(|n| is_active(&n));
        if wanted && self.accounts.get(&Key::new(&key.name, DEFAULT)).is_none() {
            plan.push(Action::create(&ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(DEFAULT.into()),
                    namespace: Some(key.name.clone()),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            }));
        }
        plan
    }
}
