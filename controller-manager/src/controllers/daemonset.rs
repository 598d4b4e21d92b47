//! DaemonSets: a pod on each node that takes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::events::EventType;
use client::lean::Pod;
use client::matching::{any_term_matches, tolerates};
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    self as core, Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::json;

use crate::action::{Action, Plan};
use crate::expectations::Expectations;
use crate::owners::{claim, controller_key, controller_reference, dependent_name, template_hash};
use crate::pods::{self, is_available, is_ready};
use crate::runner::{Context, Controller};

const HASH: &str = "controller-revision-hash";
const GENERATION: &str = "pod-template-generation";
/// Taints that a daemon's pods always tolerate (upstream's AddOrUpdateDaemonPodTolerations).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

pub struct DaemonSets {
    sets: Cache<DaemonSet>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    revisions: Cache<ControllerRevision>,
    expectations: Arc<Expectations>,
}

impl DaemonSets {
    pub fn new(context: &Context) -> Self {
        let caches = &context.caches;
        Self {
            sets: caches.of(),
            pods: caches.of(),
            nodes: caches.of(),
            revisions: caches.of(),
            expectations: Arc::default(),
        }
    }
}

impl Controller for DaemonSets {
    fn name(&self) -> &'static str {
        "daemonset"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.sets.feed(queue);
        let (q, expectations) = (queue.clone(), Arc::clone(&self.expectations));
        self.pods.on_change(move |change| {
            for pod in change.old.into_iter().chain(change.new) {
                let Some(owner) = controller_key::<DaemonSet>(&pod.metadata) else { continue };
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if change.new.is_none() || pod.metadata.deletion_timestamp.is_some() {
                    expectations.saw_end(&owner, uid);
                } else {
                    expectations.saw(&owner, uid);
                }
                q.add(owner);
            }
        });
        let (q, sets) = (queue.clone(), self.sets.clone());
        self.nodes.on_change(move |change| {
            let shape = |n: Option<&Arc<Node>>| {
                n.map(|n| {
                    (
                        n.metadata.labels.clone(),
                        n.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable)),
                    )
                })
            };
            if shape(change.old) != shape(change.new) {
                for set in sets.list() {
                    q.add(Key::of(&*set));
                }
            }
        });
        let (q, expectations) = (queue.clone(), Arc::clone(&self.expectations));
        self.revisions.on_change(move |change| {
            for revision in change.old.into_iter().chain(change.new) {
                if let Some(owner) = controller_key::<DaemonSet>(&revision.metadata) {
                    expectations.saw(&owner, revision.metadata.uid.as_deref().unwrap_or_default());
                    q.add(owner);
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Plan::default();
        };
        let view = View {
            pods: self.pods.list_in(&key.namespace),
            nodes: self.nodes.list(),
            revisions: self.revisions.list_in(&key.namespace),
            current: self.expectations.satisfied(key, now),
        };
        let plan = plan(&set, view, now);
        for action in &plan.actions {
            if let Action::Delete(target, uid, _) = action
                && target.resource.kind == "Pod"
            {
                self.expectations.deleting(key, uid, now);
            }
        }
        plan
    }

    fn announce(&self, key: &Key, pod: &str) -> Option<Action> {
        let set = self.sets.get(key)?;
        let message = format!("Created pod: {pod}");
        Some(Action::event(&*set, EventType::Normal, "SuccessfulCreate", message))
    }

    fn created(&self, key: &Key, uid: &str) {
        let of = |meta: &ObjectMeta| meta.uid.as_deref() == Some(uid);
        self.expectations.created(key, uid, Timestamp::now(), || {
            self.pods.list_in(&key.namespace).iter().any(|p| of(&p.metadata))
                || self.revisions.list_in(&key.namespace).iter().any(|r| of(&r.metadata))
        });
    }
}

/// What a plan is made from.
struct View {
    pods: Vec<Arc<Pod>>,
    nodes: Vec<Arc<Node>>,
    revisions: Vec<Arc<ControllerRevision>>,
    current: bool,
}

/// Whether a node should have the pod, and whether a pod that is there may stay.
fn eligible(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = spec.node_name.as_deref().unwrap_or_default();
    if !name.is_empty() && node.metadata.name.as_deref() != Some(name) {
        return (false, false);
    }
    if !fits_affinity(spec, node) {
        return (false, false);
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = tolerations(spec);
    let untolerated = |effects: &[&str]| {
        taints.iter().any(|t: &Taint| {
            effects.contains(&t.effect.as_str()) && !tolerations.iter().any(|x| tolerates(x, t))
        })
    };
    (!untolerated(&["NoSchedule", "NoExecute"]), !untolerated(&["NoExecute"]))
}

fn fits_affinity(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let get = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| get(k) == Some(v.as_str()));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref();
    selected && required.is_none_or(|s| any_term_matches(s, labels, name))
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let mut taints = TOLERATED.to_vec();
    if spec.host_network == Some(true) {
        taints.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    for (key, effect) in taints {
        let wanted = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !all.contains(&wanted) {
            all.push(wanted);
        }
    }
    all
}

/// A pod that is meant for one node, by its name.
fn pod_for(set: &DaemonSet, spec: &DaemonSetSpec, node: &str, hash: &str) -> core::Pod {
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    let mut pod = pods::from_template(&spec.template, &namespace, &name, controller_reference(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.into());
    if let Some(generation) = set.annotations().get("deprecated.daemonset.template.generation") {
        labels.insert(GENERATION.into(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let required = &mut affinity.required_during_scheduling_ignored_during_execution;
    let terms = &mut required.get_or_insert_with(NodeSelector::default).node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    // Each alternative is narrowed to the node; what it named before by field is replaced.
    for term in terms {
        term.match_fields = Some(vec![field.clone()]);
    }
    pod
}

/// The node that a daemon's pod is on or meant for.
fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(name);
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.filter(|f| f.key == "metadata.name");
    named.next()?.values.as_ref()?.first().map(String::as_str)
}

/// What is known when a set's pods are decided about.
struct Round<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    nodes: &'a [Arc<Node>],
    /// The set's pods by the name of the node that they are on or meant for.
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Of the present template.
    hash: &'a str,
    now: Timestamp,
}

impl Round<'_> {
    fn here(&self, node: &Node) -> &[Arc<Pod>] {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.by_node.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Those of a node that are not ending.
    fn live(&self, node: &Node) -> Vec<&Arc<Pod>> {
        self.here(node).iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect()
    }

    fn is_new(&self, pod: &Pod) -> bool {
        pod.labels().get(HASH).map(String::as_str) == Some(self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }
}

fn plan(set: &DaemonSet, view: View, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let (mine, claims) = claim(set, &spec.selector, view.pods, |p| !pods::is_finished(p));
    plan.actions.extend(claims);
    let hash = revisions(set, spec, &view.revisions, &mut plan);
    let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in &mine {
        if let Some(node) = node_of(pod) {
            by_node.entry(node.to_owned()).or_default().push(Arc::clone(pod));
        }
    }
    let round = Round { set, spec, nodes: &view.nodes, by_node, hash: &hash, now };
    if view.current && set.metadata.deletion_timestamp.is_none() {
        place(&round, &mut plan);
        roll(&round, &mut plan);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    if let Some(wait) = mine.iter().filter_map(|p| pods::until_available(p, min_ready, now)).min() {
        plan.again(wait);
    }
    let status = status(&round);
    if set.status.as_ref() != Some(&status) {
        plan.push(Action::update_status(&DaemonSet { status: Some(status), ..set.clone() }));
    }
    plan
}

/// Keeps a ControllerRevision for each template that was; returns the hash of the present one.
fn revisions(
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    all: &[Arc<ControllerRevision>],
    plan: &mut Plan,
) -> String {
    let data = json!({"spec": {"template": patch_of(spec)}});
    let uid = set.metadata.uid.as_deref();
    let mine: Vec<&Arc<ControllerRevision>> = all
        .iter()
        .filter(|r| crate::owners::controller_of(&r.metadata).map(|o| o.uid.as_str()) == uid)
        .collect();
    let latest = mine.iter().map(|r| r.revision).max().unwrap_or(0);
    let same = mine.iter().find(|r| r.data.as_ref().is_some_and(|d| d.0 == data));
    let hash = match same {
        Some(revision) => {
            if revision.revision < latest {
                let next = ControllerRevision {
                    revision: latest + 1,
                    ..ControllerRevision::clone(revision)
                };
                plan.push(Action::update(&next));
            }
            revision.labels().get(HASH).cloned().unwrap_or_default()
        }
        None => {
            let collisions = set.status.as_ref().and_then(|s| s.collision_count);
            let hash = template_hash(&spec.template, collisions);
            let mut labels =
                spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
            labels.insert(HASH.into(), hash.clone());
            plan.push(Action::create(&ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(dependent_name(&set.name_any(), &hash)),
                    namespace: set.metadata.namespace.clone(),
                    labels: Some(labels),
                    owner_references: Some(vec![controller_reference(set)]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data)),
                revision: latest + 1,
            }));
            hash
        }
    };
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(10);
    let mut old: Vec<&&Arc<ControllerRevision>> =
        mine.iter().filter(|r| r.labels().get(HASH) != Some(&hash)).collect();
    old.sort_by_key(|r| r.revision);
    let superfluous = old.len().saturating_sub(limit);
    for revision in old.into_iter().take(superfluous) {
        plan.push(Action::delete(&***revision));
    }
    hash
}

/// The template as `kubectl rollout undo` patches it in.
fn patch_of(spec: &DaemonSetSpec) -> serde_json::Value {
    let mut template = serde_json::to_value(&spec.template).unwrap_or_default();
    template["$patch"] = json!("replace");
    template
}

/// Makes pods where they are missing, and removes those that are too many or misplaced.
fn place(round: &Round<'_>, plan: &mut Plan) {
    let Round { set, spec, nodes, hash, .. } = *round;
    let Some(pod_spec) = &spec.template.spec else { return };
    for node in nodes {
        let name = node.name_any();
        let (run, stay) = eligible(pod_spec, node);
        let (here, live) = (round.here(node), round.live(node));
        if !stay || !run && live.iter().all(|p| pods::node_name(p).is_empty()) {
            for pod in live {
                plan.push(Action::delete(&**pod));
            }
            continue;
        }
        let failed: Vec<&&Arc<Pod>> = live.iter().filter(|p| pods::phase(p) == "Failed").collect();
        for pod in &failed {
            let message = format!(
                "Found failed daemon pod {} on node {name}, will try to kill it",
                Key::of(&****pod)
            );
            plan.push(Action::event(set, EventType::Warning, "FailedDaemonPod", message));
            plan.push(Action::delete(&****pod));
        }
        let good = live.len() - failed.len();
        if run && good == 0 && here.len() == failed.len() && failed.is_empty() {
            plan.push(Action::create(&pod_for(set, spec, &name, hash)));
        }
    }
    // Pods of nodes that are gone are the pod garbage collector's.
}

fn limit(value: Option<&IntOrString>, of: usize, default: i32, up: bool) -> usize {
    let n = match value {
        None => i64::from(default),
        Some(IntOrString::Int(n)) => i64::from(*n),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let exact = percent * i64::try_from(of).unwrap_or(i64::MAX);
            if up { (exact + 99) / 100 } else { exact / 100 }
        }
    };
    usize::try_from(n).unwrap_or(0)
}

/// Rolling update: old pods go as far as availability allows; with surge, new ones come first.
fn roll(round: &Round<'_>, plan: &mut Plan) {
    let Round { set, spec, nodes, hash, .. } = *round;
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let Some(pod_spec) = &spec.template.spec else { return };
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let wanted: Vec<&Arc<Node>> = nodes.iter().filter(|n| eligible(pod_spec, n).0).collect();
    let surge = limit(rolling.and_then(|r| r.max_surge.as_ref()), wanted.len(), 0, true);
    let unavailable =
        limit(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted.len(), 1, true);
    let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
    let (mut missing, mut surging) = (0, 0);
    let (mut broken, mut fine, mut ripe) = (Vec::new(), Vec::new(), Vec::new());
    for node in &wanted {
        let mut live = round.live(node);
        live.retain(|p| !pods::is_finished(p));
        let old = live.iter().find(|p| !round.is_new(p));
        let new = live.iter().find(|p| round.is_new(p));
        let ok = |p: &Arc<Pod>| round.is_available(p);
        match (old, new) {
            (Some(old), Some(new)) => {
                surging += 1;
                if ok(new) || !ok(old) {
                    ripe.push(Arc::clone(old));
                }
            }
            (Some(old), None) if ok(old) => fine.push((Arc::clone(old), node.name_any())),
            (Some(old), None) => {
                missing += 1;
                broken.push((Arc::clone(old), node.name_any()));
            }
            (None, Some(new)) if ok(new) => {}
            (None, _) => missing += 1,
        }
    }
    for pod in ripe {
        plan.push(Action::delete(&*pod));
    }
    if surge > 0 {
        let room = surge.saturating_sub(surging);
        for (_, node) in broken.iter().chain(&fine).take(room) {
            plan.push(Action::create(&pod_for(set, spec, node, hash)));
        }
        return;
    }
    let room = unavailable.saturating_sub(missing);
    for (pod, _) in broken.iter().chain(fine.iter().take(room)) {
        plan.push(Action::delete(&**pod));
    }
}

fn status(round: &Round<'_>) -> DaemonSetStatus {
    let Round { set, spec, nodes, .. } = *round;
    let (mut desired, mut current, mut misplaced) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    for node in nodes {
        let run = spec.template.spec.as_ref().is_some_and(|s| eligible(s, node).0);
        let live = round.live(node);
        desired += i32::from(run);
        if !run {
            misplaced += i32::from(!live.is_empty());
            continue;
        }
        if live.is_empty() {
            continue;
        }
        current += 1;
        ready += i32::from(live.iter().any(|p| is_ready(p)));
        available += i32::from(live.iter().any(|p| round.is_available(p)));
        updated += i32::from(live.iter().any(|p| round.is_new(p)));
    }
    let non_zero = |n: i32| Some(n).filter(|n| *n != 0);
    let old = set.status.clone().unwrap_or_default();
    DaemonSetStatus {
        current_number_scheduled: current,
        desired_number_scheduled: desired,
        number_misscheduled: misplaced,
        number_ready: ready,
        number_available: non_zero(available),
        number_unavailable: non_zero(desired - available),
        updated_number_scheduled: non_zero(updated),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "agent", "uid": "d", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "agent"}},
                "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": []}}},
        }))
        .expect("a set")
    }

    fn node(name: &str, taints: serde_json::Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}}))
                .expect("a node"),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name,
                "labels": {"app": "agent", HASH: hash},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d", "controller": true}]},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
        .expect("a pod"))
    }

    fn told(nodes: &[Arc<Node>], pods: Vec<Arc<Pod>>) -> Vec<String> {
        let view = View { pods, nodes: nodes.to_vec(), revisions: Vec::new(), current: true };
        let plan = plan(&set(), view, Timestamp::UNIX_EPOCH);
        plan.actions
            .iter()
            .filter_map(|a| match a {
                Action::Create(t, o) if t.resource.kind == "Pod" => {
                    let terms = &o["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
                    Some(format!("create on {}", terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]))
                }
                Action::Delete(t, ..) => Some(format!("delete {}", t.key.name)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn each_node_that_takes_it_has_one() {
        let custom = json!([{"key": "k", "effect": "NoSchedule"}]);
        let cordoned = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
        let evicting = json!([{"key": "k", "effect": "NoExecute"}]);
        let nodes =
            [node("a", json!([])), node("b", custom), node("c", cordoned), node("d", evicting)];
        assert_eq!(told(&nodes, vec![]), ["create on \"a\"", "create on \"c\""]);
        let stays = pod("on-b", "b", "x", true);
        let goes = pod("on-d", "d", "x", true);
        let told = told(&nodes, vec![stays, goes]);
        assert!(
            told.contains(&"delete on-d".to_owned()) && !told.contains(&"delete on-b".to_owned()),
            "{told:?}"
        );
    }

    #[test]
    fn an_update_goes_one_by_one() {
        let nodes = [node("a", json!([])), node("b", json!([]))];
        let old = |ready| vec![pod("pa", "a", "old", true), pod("pb", "b", "old", ready)];
        assert_eq!(told(&nodes, old(true)), ["delete pa"]);
        assert_eq!(told(&nodes, old(false)), ["delete pb"], "what is broken anyway goes first");
    }
}
