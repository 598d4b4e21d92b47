//! ResourceQuota: charges what is created, and what grows, to the quotas of its namespace, before
//! it is stored (upstream: `plugin/resourcequota` of k8s.io/apiserver).
//!
//! A quota's status is written only if it is as it was when it was read, so that two servers
//! cannot spend the same twice. What is charged and not stored after all is given back by the
//! quota controller, which counts what there is.

pub mod ledger;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use apimachinery::amounts::{Amounts, read};
use apimachinery::gvk::GroupResource;
use apimachinery::quota::{Counted, attributes_classes, is_terminating, scopes};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Mutex;

use self::ledger::Ledger;
use super::lookup::Lookup;
use super::{Attributes, Operation, Plugin, forbidden};
use crate::authentication::Clock;
use crate::reader::Object;

/// A charge that was overtaken is tried so often.
const ATTEMPTS: usize = 8;
/// Namespaces share locks, so that there are not more and more.
const LOCKS: usize = 64;
/// Never counted: what is not stored, and events.
const IGNORED: [(&str, &str); 10] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

pub struct ResourceQuota {
    lookup: Lookup,
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    /// This server's own charges to a namespace come one after another.
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl ResourceQuota {
    pub fn new(lookup: Lookup, ledger: Arc<dyn Ledger>, clock: Clock) -> Self {
        let locks = (0..LOCKS).map(|_| Mutex::default()).collect();
        Self { lookup, ledger, clock, locks, hasher: RandomState::new() }
    }

    fn lock(&self, namespace: &str) -> Option<&Mutex<()>> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(namespace.as_bytes());
        let at = usize::try_from(hasher.finish() % 64).unwrap_or(0);
        self.locks.get(at)
    }

    async fn charge(
        &self,
        a: &Attributes<'_>,
        object: &Value,
        counted: Counted<'_>,
    ) -> Result<(), ApiError> {
        let resource = GroupResource::new("", "resourcequotas");
        let known = self.lookup.reader.list(&resource, a.namespace);
        if known.is_empty() {
            return Ok(());
        }
        let _turn = match self.lock(a.namespace) {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        let mut names: Vec<String> = known.iter().map(|q| object::name(q).to_owned()).collect();
        for _ in 0..ATTEMPTS {
            let mut quotas: Vec<Object> = Vec::new();
            for name in &names {
                quotas.extend(self.lookup.live(&resource, a.namespace, name).await);
            }
            let request = Request { a, object, counted, now: (self.clock)() };
            let charges = request.check(&quotas)?;
            if a.dry_run {
                return Ok(());
            }
            names.clear();
            for (quota, used) in charges {
                if !self.ledger.spend(quota, used).await? {
                    names.push(object::name(quota).to_owned());
                }
            }
            if names.is_empty() {
                return Ok(());
            }
        }
        Err(ApiError::Conflict {
            resource,
            name: names.first().cloned().unwrap_or_default(),
            reason: "the object has been modified; please apply your changes to the latest \
                     version and try again"
                .to_owned(),
        })
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let (group, resource) = (a.resource.group.as_str(), a.resource.resource.as_str());
        let new_namespace = group.is_empty() && resource == "namespaces";
        if a.namespace.is_empty() || new_namespace || IGNORED.contains(&(group, resource)) {
            return Ok(());
        }
        let counted = Counted::of(group, resource);
        match object {
            Some(object) if concerns(a, counted, object) => self.charge(a, object, counted).await,
            _ => Ok(()),
        }
    }
}

/// Whether a write can change what is used.
fn concerns(a: &Attributes<'_>, counted: Counted<'_>, new: &Value) -> bool {
    let (create, update) = (a.operation == Operation::Create, a.operation == Operation::Update);
    match (counted, a.subresource) {
        (Counted::Pod, "") => {
            create || a.old.is_some_and(|old| is_terminating(old) != is_terminating(new))
        }
        (Counted::Pod, "resize") => update,
        (Counted::Claim, "status") => a.old.is_some_and(|old| {
            let allocated = |o: &Value| object::get(o, &["status", "allocatedResources"]).cloned();
            allocated(old) != allocated(new) || attributes_classes(old) != attributes_classes(new)
        }),
        (Counted::Service | Counted::Claim | Counted::DeviceClaim, "") => create || update,
        (Counted::Object { .. }, "") => create,
        _ => false,
    }
}

/// A write that is to be charged.
struct Request<'a> {
    a: &'a Attributes<'a>,
    object: &'a Value,
    counted: Counted<'a>,
    now: Timestamp,
}

impl Request<'_> {
    fn refuse(&self, reason: String) -> ApiError {
        forbidden(self.a, Some(self.object), reason)
    }

    fn covers(&self, quota: &Value, hard: &Amounts, object: &Value) -> bool {
        !self.counted.matching(hard).is_empty()
            && scopes(quota).iter().all(|scope| self.counted.in_scope(object, scope))
    }

    /// The quotas that change, with what is used of each then.
    fn check<'q>(&self, quotas: &'q [Object]) -> Result<Vec<(&'q Value, Amounts)>, ApiError> {
        let amounts = |quota: &Value, field: &str| read(object::get(quota, &["status", field]));
        let mut covering: Vec<(&Value, Amounts, Amounts)> = Vec::new();
        for quota in quotas {
            let (hard, used) = (amounts(quota, "hard"), amounts(quota, "used"));
            if !self.covers(quota, &hard, self.object) {
                continue;
            }
            let restricted = self.counted.matching(&hard);
            let name = object::name(quota);
            if let Some(problem) = self.counted.constraint(&restricted, self.object) {
                return Err(self.refuse(format!("failed quota: {name}: {problem}")));
            }
            if restricted.iter().any(|resource| !used.contains_key(*resource)) {
                let all: Vec<&str> = restricted.into_iter().collect();
                let all = all.join(",");
                return Err(
                    self.refuse(format!("status unknown for quota: {name}, resources: {all}"))
                );
            }
            covering.push((quota, hard, used));
        }
        let usage = self.counted.usage(self.object, self.now);
        let negative: Vec<&str> =
            usage.iter().filter(|(_, q)| q.sign() < 0).map(|(n, _)| n.as_str()).collect();
        if !negative.is_empty() {
            let negative = negative.join(",");
            return Err(self.refuse(format!("quota usage is negative for resource(s): {negative}")));
        }
        let mut charges = Vec::new();
        for (quota, hard, used) in covering {
            let delta = self.delta(&usage, quota, &hard);
            let asked: Amounts =
                delta.into_iter().filter(|(n, q)| hard.contains_key(n) && !q.is_zero()).collect();
            if !asked.is_empty() {
                charges.push((quota, self.fit(quota, &hard, used, &asked)?));
            }
        }
        Ok(charges)
    }

    /// What is asked for beyond what the object has had already.
    fn delta(&self, usage: &Amounts, quota: &Value, hard: &Amounts) -> Amounts {
        let old = self.a.old.filter(|_| self.a.operation == Operation::Update);
        let Some(old) = old.filter(|old| self.covers(quota, hard, old)) else {
            return usage.clone();
        };
        let before = self.counted.usage(old, self.now);
        let grown = usage.iter().map(|(name, amount)| {
            let had = before.get(name).copied().unwrap_or_default();
            (name.clone(), if *amount > had { *amount - had } else { Default::default() })
        });
        grown.collect()
    }

    fn fit(
        &self,
        quota: &Value,
        hard: &Amounts,
        used: Amounts,
        asked: &Amounts,
    ) -> Result<Amounts, ApiError> {
        let mut then = used.clone();
        for (name, amount) in asked {
            match then.get_mut(name) {
                Some(have) => *have += *amount,
                None => drop(then.insert(name.clone(), *amount)),
            }
        }
        let over: BTreeSet<&str> = asked
            .keys()
            .filter(
                |name| matches!((then.get(*name), hard.get(*name)), (Some(t), Some(h)) if t > h),
            )
            .map(String::as_str)
            .collect();
        if over.is_empty() || self.a.subresource == "status" {
            return Ok(then);
        }
        let shown = |amounts: &Amounts| {
            let all = amounts.iter().filter(|(name, _)| over.contains(name.as_str()));
            all.map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
        };
        Err(self.refuse(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            object::name(quota),
            shown(asked),
            shown(&used),
            shown(hard)
        )))
    }
}

/// Amounts as a ResourceList.
fn to_list(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect()
}

#[cfg(test)]
mod tests;
