//! ResourceQuotas: how much of each is used. Admission counts what comes; this counts what is, and
//! so gives back what goes.

mod others;

use std::any::TypeId;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apimachinery::amounts::{Amounts, Combine};
use apimachinery::quota::{self, Counted, Scope, units};
use client::cache::Cacheable;
use client::lean::{ContainerStatus, Pod};
use client::{Cache, Caches, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, ReplicationController, ResourceQuota, ResourceQuotaStatus,
    Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;

use self::others::Others;
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
            caches: context.caches.later().clone(),
            queue: OnceLock::new(),
            wired: Mutex::default(),
            others: Others::new(context.client().clone(), context.shutdown.clone()),
        }
    }

    /// A namespace's objects of a kind, which is watched from the first question on; `None` while
    /// they are not known. `matters`: whether a change of one may change what it counts as.
    fn objects<K: Cacheable>(
        &self,
        namespace: &str,
        matters: fn(&K, &K) -> bool,
    ) -> Option<Vec<Arc<K>>>
    where
        K::DynamicType: Default,
    {
        let cache = self.caches.of::<K>();
        if self.wired.lock().insert(TypeId::of::<K>())
            && let Some(queue) = self.queue.get()
        {
            self.wire_kind(&cache, queue, matters);
        }
        cache.is_synced().then(|| cache.list_in(namespace))
    }

    fn wire_kind<K: Cacheable>(
        &self,
        cache: &Cache<K>,
        queue: &Queue<Key>,
        matters: fn(&K, &K) -> bool,
    ) {
        let (q, quotas) = (queue.clone(), self.quotas.clone());
        cache.on_change(move |change| {
            // What goes makes room at once.
            let after = match (change.old, change.new) {
                (_, None) => Duration::ZERO,
                (None, Some(_)) => SETTLE,
                (Some(old), Some(new)) if matters(old, new) => Duration::ZERO,
                (Some(_), Some(_)) => return,
            };
            for quota in quotas.list_in(&change.key.namespace) {
                q.add_after(Key::of(&*quota), after);
            }
        });
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
                    $($name => Some(self.objects::<$kind>(namespace, |_, _| false).map(|all| all.len())),)*
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

/// Whether a quota limits anything that such objects count as.
fn asked_for(counted: Counted<'_>, hard: &BTreeMap<String, Text>) -> bool {
    hard.keys().any(|name| counted.counts_as(name))
}

/// What objects count as together: as admission counts them, each as it is written in the API.
fn sum<'a, K: Serialize + 'a>(
    counted: Counted<'_>,
    scopes: &[Scope<'_>],
    objects: impl IntoIterator<Item = &'a Arc<K>>,
    now: Timestamp,
) -> Amounts {
    let mut total = Amounts::new();
    for object in objects {
        let Ok(object) = serde_json::to_value(&**object) else { continue };
        if scopes.iter().all(|scope| counted.in_scope(&object, scope)) {
            total.add(&counted.usage(&object, now));
        }
    }
    total
}

/// Resources of containers as their node reports them: they change as it grants a resize.
fn pod_matters(old: &Pod, new: &Pod) -> bool {
    fn granted(pod: &Pod) -> impl Iterator<Item = (&str, &ContainerStatus)> {
        let status = pod.status.iter();
        let lists = status.flat_map(|s| [&s.container_statuses, &s.init_container_statuses]);
        lists.flatten().flatten().map(|status| (status.name.as_str(), status))
    }
    let same = |a: &ContainerStatus, b: &ContainerStatus| {
        (&a.resources, &a.allocated_resources) == (&b.resources, &b.allocated_resources)
    };
    let resized = granted(old).any(|(name, before)| {
        granted(new).any(|(other, after)| other == name && !same(before, after))
    });
    let ends = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.active_deadline_seconds.is_some());
    let finished = !crate::pods::is_finished(old) && crate::pods::is_finished(new);
    resized || finished || ends(old) != ends(new)
}

fn service_matters(old: &Service, new: &Service) -> bool {
    let kind = |service: &Service| service.spec.as_ref().and_then(|s| s.type_.clone());
    kind(old) != kind(new)
}

/// A claim that grows counts for what its volume will have; its attributes may be in a scope.
fn claim_matters(old: &PersistentVolumeClaim, new: &PersistentVolumeClaim) -> bool {
    fn seen(claim: &PersistentVolumeClaim) -> (Option<&Text>, [Option<&str>; 3]) {
        let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
        let allocated = status.and_then(|s| s.allocated_resources.as_ref()?.get("storage"));
        let wanted = status.and_then(|s| s.modify_volume_status.as_ref());
        let classes = [
            spec.and_then(|s| s.volume_attributes_class_name.as_deref()),
            status.and_then(|s| s.current_volume_attributes_class_name.as_deref()),
            wanted.and_then(|s| s.target_volume_attributes_class_name.as_deref()),
        ];
        (allocated, classes)
    }
    seen(old) != seen(new)
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
        self.wire_kind(&self.pods, queue, pod_matters);
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(quota) = self.quotas.get(key) else { return Plan::default() };
        let namespace = key.namespace.as_str();
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
        let services = asked_for(Counted::Service, &hard)
            .then(|| self.objects::<Service>(namespace, service_matters));
        let claims = asked_for(Counted::Claim, &hard)
            .then(|| self.objects::<PersistentVolumeClaim>(namespace, claim_matters));
        let device_claims = asked_for(Counted::DeviceClaim, &hard)
            .then(|| self.objects::<ResourceClaim>(namespace, |_, _| false));
        let (mut counts, mut uncounted) = (BTreeMap::new(), Vec::new());
        let special = |name: &str| Counted::SPECIAL.iter().any(|c| c.counts_as(name));
        for name in hard.keys().filter(|name| !special(name)) {
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
        // Kinds that are not asked for have nothing that counts.
        let view = View {
            pods,
            services: services.unwrap_or_else(|| Some(Vec::new())),
            claims: claims.unwrap_or_else(|| Some(Vec::new())),
            device_claims: device_claims.unwrap_or_else(|| Some(Vec::new())),
            counts,
            uncounted,
        };
        plan(&quota, &view, now)
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
    pub device_claims: Option<Vec<Arc<ResourceClaim>>>,
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
    let written = json!({ "spec": spec });
    let scopes = quota::scopes(&written);
    let mut all = Amounts::new();
    if asked_for(Counted::Pod, &hard) {
        all.add(&sum(Counted::Pod, &scopes, &view.pods, now));
    }
    all.add(&sum(Counted::Service, &scopes, view.services.iter().flatten(), now));
    all.add(&sum(Counted::Claim, &scopes, view.claims.iter().flatten(), now));
    all.add(&sum(Counted::DeviceClaim, &scopes, view.device_claims.iter().flatten(), now));
    // What is only counted is in no scope.
    if scopes.is_empty() {
        all.extend(view.counts.iter().map(|(name, n)| (name.clone(), units(*n))));
    }
    let old = quota.status.clone().unwrap_or_default();
    let unknown = |name: &str| {
        view.uncounted.iter().any(|n| n == name)
            || view.services.is_none() && Counted::Service.counts_as(name)
            || view.claims.is_none() && Counted::Claim.counts_as(name)
            || view.device_claims.is_none() && Counted::DeviceClaim.counts_as(name)
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
    use serde_json::Value;

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
        let claim = json!({"spec": {"storageClassName": "fast", "volumeAttributesClassName": "gold",
            "resources": {"requests": {"storage": "2Gi"}}}});
        let devices = json!({"metadata": {}, "spec": {"devices": {"requests": [{"name": "r",
            "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}}]}}});
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
            device_claims: Some(vec![Arc::new(serde_json::from_value(devices).expect("a claim"))]),
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
                ("gpu.deviceclass.resource.k8s.io/devices", "2"),
                ("count/resourceclaims.resource.k8s.io", "1"),
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
    fn claims_are_in_scopes_of_their_attributes() {
        let attributes = |class: &str| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "VolumeAttributesClass", "operator": "In", "values": [class]}]}})
        };
        let all = [("persistentvolumeclaims", "1"), ("requests.storage", "2Gi")];
        check(attributes("gold"), &all);
        check(attributes("lead"), &all.map(|(name, _)| (name, "0")));
    }

    #[test]
    fn a_resize_counts_until_it_is_granted() {
        let spec = asks(json!({"cpu": "1"}), json!({}));
        let sized = |allocated: &str, has: &str| {
            let mut pod = (*pod(spec.clone(), "Running")).clone();
            let status = json!([{"name": "c", "image": "", "imageID": "", "ready": true,
                "restartCount": 0, "allocatedResources": {"cpu": allocated},
                "resources": {"requests": {"cpu": has}}}]);
            let status = serde_json::from_value(status).expect("statuses");
            pod.status.get_or_insert_default().container_statuses = Some(status);
            pod
        };
        let now = Timestamp::UNIX_EPOCH;
        for (allocated, has, want) in [("1", "1", "1"), ("2", "1", "2"), ("1", "3", "3")] {
            let pods = [Arc::new(sized(allocated, has))];
            let used = sum(Counted::Pod, &[], &pods, now);
            assert_eq!(used["requests.cpu"].to_string(), want);
            assert_eq!(pod_matters(&sized("1", "1"), &pods[0]), want != "1");
        }
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
