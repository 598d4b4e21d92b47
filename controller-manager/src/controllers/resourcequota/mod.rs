//! ResourceQuotas: how much of each is used. Admission counts what comes; this counts what is, and
//! so gives back what goes.

mod others;
mod usage;

use std::any::TypeId;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apimachinery::amounts::{Amounts, Combine};
use client::cache::Cacheable;
use client::{Cache, Caches, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota,
    ResourceQuotaStatus, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use parking_lot::Mutex;

use self::others::Others;
use self::usage::units;
use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

/// All is counted anew so often (upstream's --resource-quota-sync-period).
const PERIOD: Duration = Duration::from_secs(300);
/// Admission has counted what is new; this looks after it.
const SETTLE: Duration = Duration::from_secs(1);

pub struct Quotas {
    quotas: Cache<ResourceQuota>,
    pods: Cache<Pod>,
    caches: Caches,
    queue: OnceLock<Queue<Key>>,
    /// Kinds that wake their namespace's quotas: those that some quota counts.
    wired: Mutex<HashSet<TypeId>>,
    others: Others,
}

impl Quotas {
    pub fn new(context: &Context) -> Self {
        Self {
            quotas: context.caches.of(),
            pods: context.caches.of(),
            caches: context.caches.clone(),
            queue: OnceLock::new(),
            wired: Mutex::default(),
            others: Others::new(context.client().clone(), context.shutdown.clone()),
        }
    }

    /// A namespace's objects of a kind, which is watched from the first question on; `None` while
    /// they are not known.
    fn objects<K: Cacheable>(&self, namespace: &str) -> Option<Vec<Arc<K>>>
    where
        K::DynamicType: Default,
    {
        let cache = self.caches.of::<K>();
        if self.wired.lock().insert(TypeId::of::<K>())
            && let Some(queue) = self.queue.get()
        {
            let (q, quotas) = (queue.clone(), self.quotas.clone());
            cache.on_change(move |change| {
                let quotas = quotas.list_in(&change.key.namespace);
                let keys = quotas.iter().map(|quota| Key::of(&**quota));
                match change.new {
                    None => keys.for_each(|key| q.add(key)),
                    Some(_) => keys.for_each(|key| q.add_after(key, SETTLE)),
                }
            });
        }
        cache.is_synced().then(|| cache.list_in(namespace))
    }

    /// Wakes the quotas of a namespace, or of all, when objects came or went.
    fn changed(&self) -> others::Changed {
        let (queue, quotas) = (self.queue.get().cloned(), self.quotas.clone());
        Arc::new(move |namespace: &str| {
            let found = match namespace {
                "" => quotas.list(),
                namespace => quotas.list_in(namespace),
            };
            for (quota, queue) in found.iter().flat_map(|q| queue.as_ref().map(|queue| (q, queue)))
            {
                queue.add_after(Key::of(&**quota), SETTLE);
            }
        })
    }

    /// How many objects of a resource there are, when that is known; `None`: the resource is not
    /// compiled in.
    fn count(&self, resource: &str, namespace: &str) -> Option<Option<usize>> {
        macro_rules! kinds {
            ($($name:literal => $kind:ty,)*) => {
                match resource {
                    $($name => Some(self.objects::<$kind>(namespace).map(|all| all.len())),)*
                    _ => None,
                }
            };
        }
        kinds! {
            "configmaps" => ConfigMap,
            "secrets" => Secret,
            "serviceaccounts" => ServiceAccount,
            "replicationcontrollers" => ReplicationController,
            "resourcequotas" => ResourceQuota,
            "controllerrevisions.apps" => ControllerRevision,
            "daemonsets.apps" => DaemonSet,
            "deployments.apps" => Deployment,
            "replicasets.apps" => ReplicaSet,
            "statefulsets.apps" => StatefulSet,
            "jobs.batch" => Job,
            "cronjobs.batch" => CronJob,
            "horizontalpodautoscalers.autoscaling" => HorizontalPodAutoscaler,
            "leases.coordination.k8s.io" => Lease,
            "endpointslices.discovery.k8s.io" => EndpointSlice,
            "ingresses.networking.k8s.io" => Ingress,
            "networkpolicies.networking.k8s.io" => NetworkPolicy,
            "poddisruptionbudgets.policy" => PodDisruptionBudget,
            "roles.rbac.authorization.k8s.io" => Role,
            "rolebindings.rbac.authorization.k8s.io" => RoleBinding,
        }
    }
}

impl Controller for Quotas {
    fn name(&self) -> &'static str {
        "resourcequota"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let _ = self.queue.set(queue.clone());
        let q = queue.clone();
        self.quotas.on_change(move |change| {
            let hard = |quota: &ResourceQuota| {
                let spec = quota.spec.as_ref().and_then(|s| s.hard.clone());
                let status = quota.status.as_ref().and_then(|s| s.hard.clone());
                (spec, status)
            };
            let changed = change.new.is_some_and(|new| {
                let (spec, status) = hard(new);
                spec != status || change.old.is_none()
            });
            if changed {
                q.add(change.key.clone());
            }
        });
        let (q, quotas) = (queue.clone(), self.quotas.clone());
        self.pods.on_change(move |change| {
            let ended = |p: &Pod| crate::pods::is_finished(p);
            let gone = change
                .new
                .is_none_or(|new| ended(new) && change.old.is_some_and(|old| !ended(old)));
            for quota in quotas.list_in(&change.key.namespace) {
                if gone {
                    q.add(Key::of(&*quota));
                } else if change.old.is_none() {
                    q.add_after(Key::of(&*quota), SETTLE);
                }
            }
        });
    }

    async fn synced(&self) {
        tokio::join!(self.quotas.synced(), self.pods.synced());
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(quota) = self.quotas.get(key) else { return Plan::default() };
        let namespace = key.namespace.as_str();
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
        let needs = |test: fn(&str) -> bool| hard.keys().any(|name| test(name));
        let services = match needs(|n| n.contains("services")) {
            true => self.objects::<Service>(namespace),
            false => Some(Vec::new()),
        };
        let claims = match needs(|n| n.contains("storage") || n.contains("persistentvolumeclaims"))
        {
            true => self.objects::<PersistentVolumeClaim>(namespace),
            false => Some(Vec::new()),
        };
        let (mut counts, mut uncounted) = (BTreeMap::new(), Vec::new());
        for name in hard.keys() {
            let resource = name.strip_prefix("count/").unwrap_or(name);
            let counted = match self.count(resource, namespace) {
                Some(counted) => counted,
                None if name.starts_with("count/") && resource.contains('.') => {
                    self.others.count(resource, namespace, &self.changed())
                }
                None => continue,
            };
            match counted {
                Some(n) => {
                    counts.insert(name.clone(), n);
                }
                None => uncounted.push(name.clone()),
            }
        }
        let pods = self.pods.list_in(namespace);
        plan(&quota, &View { pods, services, claims, counts, uncounted }, now)
    }

    fn workers(&self) -> usize {
        2
    }
}

/// What a plan is made from: the namespace's objects. `None`: not known yet.
pub struct View {
    pub pods: Vec<Arc<Pod>>,
    pub services: Option<Vec<Arc<Service>>>,
    pub claims: Option<Vec<Arc<PersistentVolumeClaim>>>,
    /// Objects of other kinds, by the quota's names for them.
    pub counts: BTreeMap<String, usize>,
    /// The quota's names for kinds whose objects are not known yet.
    pub uncounted: Vec<String>,
}

/// Decides about a quota.
pub fn plan(quota: &ResourceQuota, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &quota.spec else { return plan };
    let hard = spec.hard.clone().unwrap_or_default();
    let scopes = usage::scopes(spec);
    let mut all = Amounts::new();
    for pod in view.pods.iter().filter(|p| usage::covers(&scopes, p)) {
        all.add(&usage::of_pod(pod, now));
    }
    // Scopes are about pods alone: nothing else is in any.
    if scopes.is_empty() {
        view.services.iter().flatten().for_each(|s| all.add(&usage::of_service(s)));
        view.claims.iter().flatten().for_each(|c| all.add(&usage::of_claim(c)));
        all.extend(view.counts.iter().map(|(name, n)| (name.clone(), units(*n))));
    }
    let old = quota.status.clone().unwrap_or_default();
    let unknown = |name: &str| {
        view.uncounted.iter().any(|n| n == name)
            || view.services.is_none() && name.contains("services")
            || view.claims.is_none()
                && (name.contains("storage") || name.contains("persistentvolumeclaims"))
    };
    let used: BTreeMap<String, Text> = hard
        .keys()
        .filter_map(|name| {
            // Admission takes a nought for what it says.
            let amount = match unknown(name) {
                true => old.used.as_ref()?.get(name)?.clone(),
                false => Text(all.get(name).copied().unwrap_or_default().to_string()),
            };
            Some((name.clone(), amount))
        })
        .collect();
    plan.again(if hard.keys().any(|n| unknown(n)) { SETTLE } else { PERIOD });
    let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
    if status != old {
        let changed = ResourceQuota { status: Some(status), ..quota.clone() };
        plan.push(Action::update_status(&changed));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, phase: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec,
            "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn asks(requests: Value, limits: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]})
    }

    fn quota(hard: &[&str], scopes: Value) -> ResourceQuota {
        let hard: BTreeMap<&str, &str> = hard.iter().map(|name| (*name, "9")).collect();
        let mut quota = json!({"metadata": {"namespace": "ns", "name": "q"}, "spec": scopes});
        quota["spec"]["hard"] = json!(hard);
        serde_json::from_value(quota).expect("a quota")
    }

    /// The view's pods: two that run, one that has ended, one without requests and a deadline.
    fn view() -> View {
        let two = json!({"cpu": "500m", "memory": "1Gi", "example.com/gpu": "1"});
        let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}});
        let claim = json!({"spec": {"storageClassName": "fast",
            "resources": {"requests": {"storage": "2Gi"}}}});
        let mut short = asks(json!({}), json!({}));
        short["activeDeadlineSeconds"] = json!(10);
        View {
            pods: vec![
                pod(asks(two.clone(), json!({"cpu": "1"})), "Running"),
                pod(asks(two.clone(), json!({})), "Pending"),
                pod(asks(two, json!({})), "Succeeded"),
                pod(short, "Running"),
            ],
            services: Some(vec![Arc::new(serde_json::from_value(service).expect("a service"))]),
            claims: Some(vec![Arc::new(serde_json::from_value(claim).expect("a claim"))]),
            counts: BTreeMap::from([("count/jobs.batch".into(), 3), ("secrets".into(), 2)]),
            uncounted: vec!["count/orders.shop.example.com".into()],
        }
    }

    #[track_caller]
    fn check(scopes: Value, wanted: &[(&str, &str)]) {
        let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let plan = plan(&quota(&names, scopes), &view(), now);
        let [Action::UpdatePart(_, "status", object)] = plan.actions.as_slice() else {
            panic!("{:?}", plan.actions)
        };
        let wanted: BTreeMap<_, _> = wanted.iter().copied().collect();
        assert_eq!(object["status"]["used"], json!(wanted));
        assert_eq!(object["status"]["hard"], object["spec"]["hard"]);
    }

    #[test]
    fn what_there_is_is_counted() {
        check(
            json!({}),
            &[
                ("pods", "3"),
                ("count/pods", "4"),
                ("cpu", "1"),
                ("requests.cpu", "1"),
                ("limits.cpu", "1"),
                ("requests.memory", "2Gi"),
                ("requests.example.com/gpu", "2"),
                ("services", "1"),
                ("services.nodeports", "2"),
                ("services.loadbalancers", "0"),
                ("persistentvolumeclaims", "1"),
                ("requests.storage", "2Gi"),
                ("fast.storageclass.storage.k8s.io/requests.storage", "2Gi"),
                ("count/jobs.batch", "3"),
                ("secrets", "2"),
                ("configmaps", "0"),
            ],
        );
    }

    #[test]
    fn what_is_not_known_stays_as_it_was() {
        let name = "count/orders.shop.example.com";
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let mut quota = quota(&[name], json!({}));
        let amounts = |n: &str| Some(BTreeMap::from([(name.to_owned(), Text(n.to_owned()))]));
        let status = ResourceQuotaStatus { hard: amounts("9"), used: amounts("4") };
        quota.status = Some(status);
        assert!(plan(&quota, &view(), now).actions.is_empty());
        let mut view = view();
        view.uncounted.clear();
        view.counts.insert(name.to_owned(), 5);
        assert_eq!(plan(&quota, &view, now).actions.len(), 1);
    }

    #[test]
    fn scopes_narrow_it_to_some_pods() {
        let scope = |name: &str| json!({"scopes": [name]});
        check(scope("Terminating"), &[("pods", "1"), ("requests.cpu", "0")]);
        check(scope("NotTerminating"), &[("pods", "2"), ("requests.cpu", "1")]);
        check(scope("BestEffort"), &[("pods", "1")]);
        check(scope("NotBestEffort"), &[("pods", "2")]);
        let classes = json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        check(classes, &[("pods", "0")]);
    }

    #[test]
    fn a_status_that_is_right_is_left_alone() {
        let mut quota = quota(&["services"], json!({}));
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone());
        let used = BTreeMap::from([("services".to_owned(), Text("1".into()))]);
        quota.status = Some(ResourceQuotaStatus { hard, used: Some(used) });
        assert_eq!(plan(&quota, &view(), now).actions, vec![]);
        // What is not known is not taken for nothing.
        let blind = View { services: None, ..view() };
        let plan = plan(&quota, &blind, now);
        assert_eq!((plan.actions.len(), plan.again), (0, Some(SETTLE)));
    }
}
