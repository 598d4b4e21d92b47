//! StatefulSets: pods with names that stay, made and ended in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::events::EventType;
use client::lean::Pod;
use client::matching::selects;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus,
};
use k8s_openapi::api::core::v1::{
    self as core, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::action::{Action, Plan, Target};
use crate::owners::{claim, controller_key, controller_of, controller_reference, template_hash};
use crate::pods::{self, is_available, is_ready};
use crate::runner::{Context, Controller};

const REVISION: &str = "controller-revision-hash";
const REVISION_HASH: &str = "controller.kubernetes.io/hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// Revisions kept when the set does not say.
const HISTORY: i32 = 10;

pub struct StatefulSets {
    sets: Cache<StatefulSet>,
    pods: Cache<Pod>,
    revisions: Cache<ControllerRevision>,
    claims: Cache<PersistentVolumeClaim>,
}

impl StatefulSets {
    pub fn new(context: &Context) -> Self {
        let caches = &context.caches;
        Self { sets: caches.of(), pods: caches.of(), revisions: caches.of(), claims: caches.of() }
    }
}

impl Controller for StatefulSets {
    fn name(&self) -> &'static str {
        "statefulset"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.sets.feed(queue);
        let (q, sets) = (queue.clone(), self.sets.clone());
        self.pods.on_change(move |change| {
            for pod in change.old.into_iter().chain(change.new) {
                if let Some(owner) = controller_key::<StatefulSet>(&pod.metadata) {
                    q.add(owner);
                } else if controller_of(&pod.metadata).is_none() {
                    for set in sets.list_in(&change.key.namespace) {
                        let selector = set.spec.as_ref().map(|s| &s.selector);
                        if selector.is_some_and(|s| selects(s, pod.metadata.labels.as_ref())) {
                            q.add(Key::of(&*set));
                        }
                    }
                }
            }
        });
        let q = queue.clone();
        self.revisions.on_change(move |change| {
            for revision in change.old.into_iter().chain(change.new) {
                if let Some(owner) = controller_key::<StatefulSet>(&revision.metadata) {
                    q.add(owner);
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = self.sets.get(key) else { return Plan::default() };
        let view = View {
            pods: self.pods.list_in(&key.namespace),
            revisions: self.revisions.list_in(&key.namespace),
            claims: self.claims.list_in(&key.namespace),
        };
        plan(&set, view, now)
    }

    fn not_created(&self, key: &Key, why: &str) -> Vec<Action> {
        let Some(set) = self.sets.get(key) else { return Vec::new() };
        let message = format!("create Pod in StatefulSet {} failed error: {why}", key.name);
        vec![Action::event(&*set, EventType::Warning, "FailedCreate", message)]
    }
}

/// What a plan is made from: the namespace's objects.
pub struct View {
    pub pods: Vec<Arc<Pod>>,
    pub revisions: Vec<Arc<ControllerRevision>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// The set with what follows from it.
struct Work<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    name: &'a str,
    start: i32,
    replicas: i32,
    /// In order: each pod waits for the one before.
    ordered: bool,
    min_ready: i32,
    current: Revision,
    update: Revision,
    claims: &'a [Arc<PersistentVolumeClaim>],
    now: Timestamp,
}

#[derive(Clone, Debug)]
struct Revision {
    name: String,
    template: PodTemplateSpec,
}

/// Decides about a set.
pub fn plan(set: &StatefulSet, view: View, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let own = |pod: &Pod| ordinal(name, pod.metadata.name.as_deref().unwrap_or_default()).is_some();
    let named = view.pods.into_iter().filter(|p| own(p)).collect();
    let (pods, adoptions) = claim(set, &spec.selector, named, |p: &Pod| !pods::is_finished(p));
    plan.actions.extend(adoptions);
    let (current, update) = revisions(set, spec, &view.revisions, &pods, &mut plan);
    let work = Work {
        set,
        spec,
        name,
        start: spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0),
        replicas: spec.replicas.unwrap_or(1),
        ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        min_ready: spec.min_ready_seconds.unwrap_or(0),
        current,
        update,
        claims: &view.claims,
        now,
    };
    if let Some(wait) =
        pods.iter().filter_map(|p| pods::until_available(p, work.min_ready, now)).min()
    {
        plan.again(wait);
    }
    let status = work.status(&pods);
    if set.metadata.deletion_timestamp.is_none() {
        work.act(&pods, &mut plan);
    }
    if set.status.as_ref() != Some(&status) {
        plan.push(Action::update_status(&StatefulSet { status: Some(status), ..set.clone() }));
    }
    plan
}

/// The number at the end of a pod's name.
fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let canonical = digits == "0" || !digits.starts_with('0');
    let numeric = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    (canonical && numeric).then(|| digits.parse().ok())?
}

fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)).map_or("", String::as_str)
}

fn ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && is_ready(pod)
}

impl Work<'_> {
    fn ordinal(&self, pod: &Pod) -> i32 {
        ordinal(self.name, pod.metadata.name.as_deref().unwrap_or_default()).unwrap_or(-1)
    }

    fn wanted(&self, ordinal: i32) -> bool {
        (self.start..self.start.saturating_add(self.replicas)).contains(&ordinal)
    }

    fn healthy(&self, pod: &Pod) -> bool {
        running_and_ready(pod) && !ending(pod)
    }

    fn available(&self, pod: &Pod) -> bool {
        running_and_ready(pod) && is_available(pod, self.min_ready, self.now)
    }

    fn act(&self, all: &[Arc<Pod>], plan: &mut Plan) {
        let by_ordinal: BTreeMap<i32, &Arc<Pod>> =
            all.iter().map(|p| (self.ordinal(p), p)).collect();
        let wanted = self.start..self.start.saturating_add(self.replicas);
        self.retain_claims(&by_ordinal, plan);
        for ordinal in wanted.clone() {
            if !self.keep(ordinal, by_ordinal.get(&ordinal).copied(), plan) && self.ordered {
                return;
            }
        }
        let condemned: Vec<&Arc<Pod>> =
            by_ordinal.iter().rev().filter(|(o, _)| !self.wanted(**o)).map(|(_, p)| *p).collect();
        // The lowest that is not well may go though others after it are not well either.
        let first_ill = by_ordinal.values().find(|p| !self.healthy(p)).map(|p| p.uid());
        for pod in condemned {
            if ending(pod) {
                if self.ordered {
                    return;
                }
                continue;
            }
            let waits = self.ordered
                && !(running_and_ready(pod) && self.available(pod))
                && Some(pod.uid()) != first_ill;
            if waits {
                return;
            }
            self.delete(pod, plan);
            if self.ordered {
                return;
            }
        }
        if self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete") {
            self.roll(&by_ordinal, plan);
        }
    }

    /// Sees to one pod that should be; whether the next may be looked at.
    fn keep(&self, ordinal: i32, pod: Option<&Arc<Pod>>, plan: &mut Plan) -> bool {
        let Some(pod) = pod else {
            self.create(ordinal, plan);
            return false;
        };
        match pods::phase(pod) {
            phase @ ("Failed" | "Succeeded") => {
                if !ending(pod) {
                    let reason = match phase {
                        "Failed" => "RecreatingFailedPod",
                        _ => "RecreatingTerminatedPod",
                    };
                    let state = if phase == "Failed" { "failed" } else { "succeeded" };
                    let message = format!(
                        "StatefulSet {} is recreating {state} Pod {}",
                        Key::of(self.set),
                        pod.name_any()
                    );
                    let severity =
                        if phase == "Failed" { EventType::Warning } else { EventType::Normal };
                    plan.push(Action::event(self.set, severity, reason, message));
                    self.delete(pod, plan);
                }
                return false;
            }
            "Pending" => self.make_claims(ordinal, plan),
            _ => {}
        }
        self.identify(ordinal, pod, plan);
        !ending(pod) && running_and_ready(pod) && self.available(pod)
    }

    /// Gives back labels that name the pod, should they be gone.
    fn identify(&self, ordinal: i32, pod: &Pod, plan: &mut Plan) {
        let labels = pod.metadata.labels.as_ref();
        let has = |key: &str, value: &str| {
            labels.and_then(|l| l.get(key)).map(String::as_str) == Some(value)
        };
        let (name, index) = (pod.name_any(), ordinal.to_string());
        let named = has(POD_NAME, &name) && has(POD_INDEX, &index);
        if !named && !ending(pod) {
            let labels = json!({POD_NAME: name, POD_INDEX: index});
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": labels}});
            plan.push(Action::Patch(Target::of::<Pod>(&Key::of(pod)), "", patch));
        }
    }

    fn partition(&self) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        rolling.and_then(|r| r.partition).unwrap_or(0)
    }

    fn create(&self, ordinal: i32, plan: &mut Plan) {
        let strategy = self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
        let old = strategy != Some("OnDelete") && ordinal - self.start < self.partition();
        let revision = if old { &self.current } else { &self.update };
        self.make_claims(ordinal, plan);
        let pod = self.pod(ordinal, revision);
        let message =
            format!("create Pod {} in StatefulSet {} successful", pod.name_any(), self.name);
        plan.push(Action::create(&pod));
        plan.push(Action::event(self.set, EventType::Normal, "SuccessfulCreate", message));
    }

    fn delete(&self, pod: &Pod, plan: &mut Plan) {
        plan.push(Action::delete(pod));
        let message =
            format!("delete Pod {} in StatefulSet {} successful", pod.name_any(), self.name);
        plan.push(Action::event(self.set, EventType::Normal, "SuccessfulDelete", message));
    }

    fn pod(&self, ordinal: i32, revision: &Revision) -> core::Pod {
        let namespace = self.set.namespace().unwrap_or_default();
        let owner = controller_reference(self.set);
        let mut pod = pods::from_template(&revision.template, &namespace, self.name, owner);
        let name = format!("{}-{ordinal}", self.name);
        pod.metadata.generate_name = None;
        pod.metadata.name = Some(name.clone());
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(POD_NAME.into(), name.clone());
        labels.insert(POD_INDEX.into(), ordinal.to_string());
        labels.insert(REVISION.into(), revision.name.clone());
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name);
        spec.subdomain = self.spec.service_name.clone();
        let templates = self.spec.volume_claim_templates.as_deref().unwrap_or_default();
        if !templates.is_empty() {
            let volumes = spec.volumes.get_or_insert_default();
            for template in templates {
                let volume = template.name_any();
                volumes.retain(|v| v.name != volume);
                volumes.push(Volume {
                    persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                        claim_name: self.claim_name(template, ordinal),
                        read_only: Some(false),
                    }),
                    name: volume,
                    ..Volume::default()
                });
            }
        }
        pod
    }

    fn claim_name(&self, template: &PersistentVolumeClaim, ordinal: i32) -> String {
        format!("{}-{}-{ordinal}", template.name_any(), self.name)
    }

    fn make_claims(&self, ordinal: i32, plan: &mut Plan) {
        for template in self.spec.volume_claim_templates.iter().flatten() {
            let name = self.claim_name(template, ordinal);
            if self.claims.iter().any(|c| c.metadata.name.as_deref() == Some(&name)) {
                continue;
            }
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(self.spec.selector.match_labels.clone().unwrap_or_default());
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: self.set.namespace(),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    owner_references: self.deleted_with_set().then(|| vec![self.claim_owner()]),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            plan.push(Action::create(&claim));
        }
    }

    fn policy(&self, when: fn(&Policy) -> &Option<String>) -> bool {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        policy.is_some_and(|p| when(p).as_deref() == Some("Delete"))
    }

    fn deleted_with_set(&self) -> bool {
        self.policy(|p| &p.when_deleted)
    }

    fn claim_owner(&self) -> OwnerReference {
        let reference = controller_reference(self.set);
        OwnerReference { controller: Some(true), block_owner_deletion: Some(true), ..reference }
    }

    /// Claims of pods that go by scaling belong to their pods, when they are to go with them; and
    /// to the set again when the pods are wanted again.
    fn retain_claims(&self, pods: &BTreeMap<i32, &Arc<Pod>>, plan: &mut Plan) {
        let scaled = self.policy(|p| &p.when_scaled);
        for template in self.spec.volume_claim_templates.iter().flatten() {
            for (ordinal, pod) in pods {
                let name = self.claim_name(template, *ordinal);
                let found = self.claims.iter().find(|c| c.metadata.name.as_deref() == Some(&name));
                let Some(claim) = found else { continue };
                let by_pod = OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: pod.name_any(),
                    uid: pod.uid().unwrap_or_default(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                };
                let wanted = match (self.wanted(*ordinal), scaled, self.deleted_with_set()) {
                    (false, true, _) => Some(by_pod),
                    (_, _, true) => Some(self.claim_owner()),
                    _ => None,
                };
                let ours = |r: &OwnerReference| {
                    r.uid == self.set.uid().unwrap_or_default() || r.kind == "Pod"
                };
                let have: Vec<OwnerReference> = claim.owner_references().to_vec();
                let mut next: Vec<OwnerReference> =
                    have.iter().filter(|r| !ours(r)).cloned().collect();
                next.extend(wanted);
                if next != have {
                    let mut changed = PersistentVolumeClaim::clone(claim);
                    changed.metadata.owner_references = Some(next).filter(|n| !n.is_empty());
                    plan.push(Action::update(&changed));
                }
            }
        }
    }

    /// Ends pods of other revisions, the highest first, down to the partition.
    fn roll(&self, pods: &BTreeMap<i32, &Arc<Pod>>, plan: &mut Plan) {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let budget = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
            Some(IntOrString::Int(n)) => *n,
            Some(IntOrString::String(text)) => percent(text, self.replicas),
            None => 1,
        };
        let wanted: Vec<&Arc<Pod>> =
            pods.iter().filter(|(o, _)| self.wanted(**o)).map(|(_, p)| *p).collect();
        let well = |p: &Arc<Pod>| !ending(p) && self.available(p);
        let missing = usize::try_from(self.replicas).unwrap_or(0).saturating_sub(wanted.len());
        let ill = wanted.iter().filter(|p| !well(p)).count() + missing;
        let mut left = usize::try_from(budget.max(1)).unwrap_or(1).saturating_sub(ill);
        let first = self.start.saturating_add(self.partition());
        for pod in wanted.iter().rev().filter(|p| self.ordinal(p) >= first) {
            if revision_of(pod) != self.update.name && !ending(pod) {
                // One that is ill costs nothing more.
                if well(pod) {
                    if left == 0 {
                        return;
                    }
                    left -= 1;
                }
                self.delete(pod, plan);
                if self.ordered && budget <= 1 {
                    return;
                }
            } else if !well(pod) && budget <= 1 {
                return;
            }
        }
    }

    fn status(&self, all: &[Arc<Pod>]) -> StatefulSetStatus {
        let count = |f: &dyn Fn(&Pod) -> bool| {
            i32::try_from(all.iter().filter(|p| f(p)).count()).unwrap_or(i32::MAX)
        };
        let of = |revision: &str, p: &Pod| !ending(p) && revision_of(p) == revision;
        let old = self.set.status.clone().unwrap_or_default();
        let mut status = StatefulSetStatus {
            replicas: count(&|_| true),
            ready_replicas: Some(count(&running_and_ready)),
            available_replicas: Some(count(&|p| self.available(p))),
            current_replicas: Some(count(&|p| of(&self.current.name, p))),
            updated_replicas: Some(count(&|p| of(&self.update.name, p))),
            current_revision: Some(self.current.name.clone()),
            update_revision: Some(self.update.name.clone()),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(old.collision_count.unwrap_or(0)),
            conditions: old.conditions,
        };
        let strategy = self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
        let done = strategy != Some("OnDelete")
            && status.updated_replicas == Some(status.replicas)
            && status.ready_replicas == Some(status.replicas)
            && status.replicas == self.replicas;
        if done {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
        let non_zero = |n: Option<i32>| n.filter(|n| *n != 0);
        status.ready_replicas = non_zero(status.ready_replicas);
        status.current_replicas = non_zero(status.current_replicas);
        status.updated_replicas = non_zero(status.updated_replicas);
        status
    }
}

type Policy = k8s_openapi::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy;

fn percent(text: &str, of: i32) -> i32 {
    let share = text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
    i32::try_from(share * i64::from(of) / 100).unwrap_or(1)
}

/// The present revision and the one to come; made, renumbered and cleared away as need be.
fn revisions(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    all: &[Arc<ControllerRevision>],
    pods: &[Arc<Pod>],
    plan: &mut Plan,
) -> (Revision, Revision) {
    let uid = set.metadata.uid.as_deref();
    let mut mine: Vec<&Arc<ControllerRevision>> =
        all.iter().filter(|r| controller_of(&r.metadata).map(|o| o.uid.as_str()) == uid).collect();
    mine.sort_by_key(|r| (r.revision, r.metadata.creation_timestamp.clone(), r.name_any()));
    let data = data(&spec.template);
    let latest = mine.last().map_or(0, |r| r.revision);
    let same = mine.iter().rev().find(|r| r.data.as_ref().is_some_and(|d| d.0 == data));
    let update = match same {
        Some(found) => {
            if found.revision < latest {
                let next =
                    ControllerRevision { revision: latest + 1, ..ControllerRevision::clone(found) };
                plan.push(Action::update(&next));
            }
            found.name_any()
        }
        None => {
            let collisions = set.status.as_ref().and_then(|s| s.collision_count);
            let hash = template_hash(&spec.template, collisions.filter(|n| *n > 0));
            let name = format!("{}-{hash}", set.name_any());
            let mut labels = spec.template.metadata.clone().unwrap_or_default().labels;
            labels.get_or_insert_default().insert(REVISION_HASH.into(), hash);
            plan.push(Action::create(&ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: set.namespace(),
                    labels,
                    owner_references: Some(vec![controller_reference(set)]),
                    ..ObjectMeta::default()
                },
                revision: latest + 1,
                data: Some(RawExtension(data)),
            }));
            name
        }
    };
    let now = Revision { name: update.clone(), template: spec.template.clone() };
    let wanted = set.status.as_ref().and_then(|s| s.current_revision.clone());
    let current = mine
        .iter()
        .find(|r| Some(r.name_any()) == wanted)
        .and_then(|r| Some(Revision { name: r.name_any(), template: template(r)? }))
        .unwrap_or_else(|| now.clone());
    let mut live: BTreeSet<&str> = pods.iter().map(|p| revision_of(p)).collect();
    live.extend([update.as_str(), current.name.as_str()]);
    let idle: Vec<_> = mine.iter().filter(|r| !live.contains(r.name_any().as_str())).collect();
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(HISTORY)).unwrap_or(0);
    for revision in idle.iter().take(idle.len().saturating_sub(keep)) {
        plan.push(Action::delete(&****revision));
    }
    (current, now)
}

/// What a revision holds: a patch that sets the template (as upstream's).
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn set(replicas: i32, spec: Value) -> StatefulSet {
        let mut set = json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "u", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "serviceName": "svc", "updateStrategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"partition": 0}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        });
        for (key, value) in spec.as_object().expect("a map") {
            set["spec"][key] = value.clone();
        }
        serde_json::from_value(set).expect("a set")
    }

    fn revision(
        set: &StatefulSet,
        name: &str,
        number: i64,
        image: &str,
    ) -> Arc<ControllerRevision> {
        let mut template = set.spec.clone().expect("a spec").template;
        if !image.is_empty() {
            template.spec.get_or_insert_default().hostname = Some(image.into());
        }
        Arc::new(ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(name.into()),
                owner_references: Some(vec![controller_reference(set)]),
                ..ObjectMeta::default()
            },
            revision: number,
            data: Some(RawExtension(data(&template))),
        })
    }

    /// `0 ready r1`, `1 pending r1`, `2 ending r1`, `0 failed r1`.
    fn pod(text: &str) -> Arc<Pod> {
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (index, state, revision) = (word(), word(), word());
        let name = format!("web-{index}");
        let phase = match state {
            "pending" => "Pending",
            "failed" => "Failed",
            _ => "Running",
        };
        let ready = if matches!(state, "ready" | "ending") { "True" } else { "False" };
        let pod = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name,
                "deletionTimestamp": (state == "ending").then_some("2026-01-01T00:30:00Z"),
                "labels": {"app": "web", REVISION: revision, POD_NAME: name, POD_INDEX: index},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet",
                    "name": "web", "uid": "u", "controller": true}]},
            "spec": {"containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn told(plan: &Plan) -> String {
        let texts = plan.actions.iter().filter_map(|a| match a {
            Action::Create(t, o) if t.resource.kind == "Pod" => {
                Some(format!("+{}:{}", t.key.name, o["metadata"]["labels"][REVISION].as_str()?))
            }
            Action::Create(t, _) => Some(format!("+{} {}", t.resource.kind, t.key.name)),
            Action::Delete(t, ..) => Some(format!("-{}", t.key.name)),
            _ => None,
        });
        texts.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(set: &StatefulSet, pods: &[&str], wanted: &str) {
        let view = View {
            pods: pods.iter().map(|p| pod(p)).collect(),
            revisions: vec![revision(set, "r0", 1, "old"), revision(set, "r1", 2, "")],
            claims: vec![],
        };
        assert_eq!(told(&plan(set, view, now())), wanted, "{pods:?}");
    }

    #[test]
    fn pods_come_and_go_in_order() {
        let three = set(3, json!({}));
        check(&three, &[], "+web-0:r1");
        check(&three, &["0 pending r1"], "");
        check(&three, &["0 ready r1"], "+web-1:r1");
        check(&three, &["0 ready r1", "2 ready r1"], "+web-1:r1");
        check(&three, &["0 failed r1", "1 ready r1", "2 ready r1"], "-web-0");
        let one = set(1, json!({}));
        check(&one, &["0 ready r1", "1 ready r1", "2 ready r1"], "-web-2");
        check(&one, &["0 ready r1", "1 ready r1", "2 ending r1"], "");
        check(&one, &["0 pending r1", "1 ready r1"], "");
        check(&one, &["0 ready r1", "1 pending r1"], "-web-1");
        check(
            &set(2, json!({"ordinals": {"start": 5}})),
            &["5 ready r1", "0 ready r1"],
            "+web-6:r1",
        );
    }

    #[test]
    fn in_parallel_none_waits() {
        let policy = json!({"podManagementPolicy": "Parallel"});
        check(&set(3, policy.clone()), &["1 pending r1"], "+web-0:r1 +web-2:r1");
        check(&set(0, policy), &["0 pending r1", "1 ready r1"], "-web-1 -web-0");
    }

    #[test]
    fn updates_go_from_the_last_down_to_the_partition() {
        let three = set(3, json!({}));
        check(&three, &["0 ready r0", "1 ready r0", "2 ready r0"], "-web-2");
        check(&three, &["0 ready r0", "1 ready r0", "2 pending r1"], "");
        check(&three, &["0 ready r0", "1 ready r0", "2 ready r1"], "-web-1");
        check(&three, &["0 ready r0", "1 ready r0"], "+web-2:r1");
        let partition = |n: i32| {
            let mut set = set(
                3,
                json!({"updateStrategy": {"type": "RollingUpdate",
                "rollingUpdate": {"partition": n}}}),
            );
            set.status = Some(StatefulSetStatus {
                current_revision: Some("r0".into()),
                ..StatefulSetStatus::default()
            });
            set
        };
        check(&partition(2), &["0 ready r0", "1 ready r0", "2 ready r1"], "");
        check(&partition(2), &["1 ready r0", "2 ready r1"], "+web-0:r0");
        check(&partition(3), &["0 ready r0", "1 ready r0"], "+web-2:r0");
        let by_hand = set(2, json!({"updateStrategy": {"type": "OnDelete"}}));
        check(&by_hand, &["0 ready r0", "1 ready r0"], "");
    }

    #[test]
    fn a_new_template_makes_a_revision_and_an_old_one_is_renumbered() {
        let set = set(0, json!({"revisionHistoryLimit": 1}));
        let view = |revisions| View { pods: vec![], revisions, claims: vec![] };
        let made = told(&plan(&set, view(vec![]), now()));
        assert!(made.starts_with("+ControllerRevision web-"), "{made}");
        let back = vec![revision(&set, "r1", 1, ""), revision(&set, "r2", 2, "new")];
        let plan_back = plan(&set, view(back), now());
        let renumbered = plan_back
            .actions
            .iter()
            .any(|a| matches!(a, Action::Update(t, o) if t.key.name == "r1" && o["revision"] == 3));
        assert!(renumbered, "{:?}", plan_back.actions);
        let many = vec![
            revision(&set, "a", 1, "a"),
            revision(&set, "b", 2, "b"),
            revision(&set, "r1", 3, ""),
        ];
        assert_eq!(told(&plan(&set, view(many), now())), "-a");
    }

    #[test]
    fn claims_are_made_before_their_pod() {
        let set = set(
            1,
            json!({"volumeClaimTemplates": [{"metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"]}}]}),
        );
        check(&set, &[], "+PersistentVolumeClaim data-web-0 +web-0:r1");
    }

    #[test]
    fn pod_names_are_read_strictly() {
        for (name, wanted) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-01", None),
            ("web-a", None),
            ("web", None),
            ("other-1", None),
        ] {
            assert_eq!(ordinal("web", name), wanted, "{name}");
        }
    }
}
