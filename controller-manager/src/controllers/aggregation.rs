//! ClusterRoles made of others, by label (clusterrole aggregation).

use client::matching::selects;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

pub struct Aggregation {
    roles: Cache<ClusterRole>,
}

impl Aggregation {
    pub fn new(context: &Context) -> Self {
        Self { roles: context.caches.of() }
    }
}

/// The rules of all roles that one aggregates, each once, in the order of the roles' names.
fn union(role: &ClusterRole, all: &[std::sync::Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let matching = all.iter().filter(|r| {
            r.metadata.name != role.metadata.name && selects(selector, r.metadata.labels.as_ref())
        });
        for rule in matching.flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

impl Controller for Aggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let (q, roles) = (queue.clone(), self.roles.clone());
        self.roles.on_change(move |change| {
            // A change of any role may matter to all that aggregate; these are few.
            for role in roles.list().iter().filter(|r| r.aggregation_rule.is_some()) {
                q.add(Key::of(&**role));
            }
            if change.new.is_some_and(|r| r.aggregation_rule.is_some()) {
                q.add(change.key.clone());
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(role) = self.roles.get(key) else { return plan };
        if let Some(rules) = union(&role, &self.roles.list())
            && role.rules.as_ref().is_none_or(|have| *have != rules)
        {
            plan.push(Action::update(&ClusterRole {
                rules: Some(rules),
                ..ClusterRole::clone(&role)
            }));
        }
        plan
    }
}
