//! Deployments: rollouts of ReplicaSets.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use client::events::EventType;
use client::lean::Pod;
use client::matching::selects;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::action::{Action, Plan};
use crate::owners::{claim, controller_key, controller_reference, dependent_name, template_hash};
use crate::pods;
use crate::runner::{Context, Controller};

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations of a deployment that its ReplicaSets do not get.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub struct Deployments {
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
}

impl Deployments {
    pub fn new(context: &Context) -> Self {
        let caches = &context.caches;
        Self { deployments: caches.of(), sets: caches.of(), pods: caches.of() }
    }
}

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.deployments.feed(queue);
        let (q, deployments) = (queue.clone(), self.deployments.clone());
        self.sets.on_change(move |change| {
            for set in change.old.into_iter().chain(change.new) {
                match controller_key::<Deployment>(&set.metadata) {
                    Some(owner) => q.add(owner),
                    None => {
                        for d in deployments.list_in(&change.key.namespace) {
                            let selector = d.spec.as_ref().map(|s| &s.selector);
                            let labels = set.metadata.labels.as_ref();
                            if selector.is_some_and(|s| selects(s, labels)) {
                                q.add(Key::of(&*d));
                            }
                        }
                    }
                }
            }
        });
        // The end of a pod lets a Recreate rollout go on.
        let (q, sets) = (queue.clone(), self.sets.clone());
        self.pods.on_change(move |change| {
            let Some(pod) = change.old.filter(|_| change.new.is_none_or(|p| pods::is_finished(p)))
            else {
                return;
            };
            let set = controller_key::<ReplicaSet>(&pod.metadata).and_then(|key| sets.get(&key));
            if let Some(owner) = set.and_then(|s| controller_key::<Deployment>(&s.metadata)) {
                q.add(owner);
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(deployment) = self.deployments.get(key) else { return Plan::default() };
        let sets = self.sets.list_in(&key.namespace);
        let pods = self.pods.list_in(&key.namespace);
        plan(&deployment, sets, &pods, now)
    }
}

/// Decides about a deployment, given the ReplicaSets and pods of its namespace.
pub fn plan(
    deployment: &Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &deployment.spec else { return plan };
    let (sets, claims) = claim(deployment, &spec.selector, sets, |_| true);
    plan.actions.extend(claims);
    let mut rollout = Rollout::new(deployment, spec, sets, now);
    if deployment.metadata.deletion_timestamp.is_none() {
        rollout.advance(pods, &mut plan);
    }
    rollout.report(pods, &mut plan);
    plan
}

/// A deployment with its ReplicaSets as they stand; changes of their sizes are noted here and
/// turned into actions.
struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    now: Timestamp,
    /// A hash of the template that is another set's already.
    collision: bool,
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn annotation<'m>(meta: &'m ObjectMeta, name: &str) -> Option<&'m str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

fn revision(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The template without the label that tells sets apart.
fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

/// A number or a share of the replicas.
fn resolve(value: Option<&IntOrString>, of: i32, up: bool) -> i32 {
    match value {
        None => of_percent(25, of, up),
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent = text.trim_end_matches('%').parse().unwrap_or(0);
            of_percent(percent, of, up)
        }
    }
}

fn of_percent(percent: i32, of: i32, up: bool) -> i32 {
    let exact = i64::from(percent) * i64::from(of);
    let rounded = if up { (exact + 99) / 100 } else { exact / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

impl<'a> Rollout<'a> {
    fn new(
        deployment: &'a Deployment,
        spec: &'a DeploymentSpec,
        mut sets: Vec<Arc<ReplicaSet>>,
        now: Timestamp,
    ) -> Self {
        sets.sort_by_key(|s| (s.metadata.creation_timestamp.clone(), s.name_any()));
        let wanted = without_hash(&spec.template);
        let is_new = |s: &Arc<ReplicaSet>| {
            let template = s.spec.as_ref().and_then(|s| s.template.as_ref());
            template.is_some_and(|t| without_hash(t) == wanted)
        };
        let new = sets.iter().find(|s| is_new(s)).cloned();
        let old = sets
            .into_iter()
            .filter(|s| Some(&s.metadata.uid) != new.as_ref().map(|n| &n.metadata.uid));
        Self { deployment, spec, old: old.collect(), new, now, collision: false }
    }

    fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn recreate(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
    }

    fn surge(&self) -> i32 {
        let rolling = self.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        match self.recreate() {
            true => 0,
            false => resolve(rolling.and_then(|r| r.max_surge.as_ref()), self.wanted(), true),
        }
    }

    fn unavailable(&self) -> i32 {
        let wanted = self.wanted();
        if self.recreate() || wanted == 0 {
            return 0;
        }
        let rolling = self.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let n = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false);
        // Both zero would never move.
        let n = if n == 0 && self.surge() == 0 { 1 } else { n };
        n.min(wanted)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    fn advance(&mut self, pods: &[Arc<Pod>], plan: &mut Plan) {
        if self.spec.paused == Some(true) {
            self.proportional(plan);
            self.clean_up(plan);
            return;
        }
        // A change of the deployment's size is shared out before the rollout goes on.
        if self.resized() {
            self.proportional(plan);
            return;
        }
        if self.recreate() {
            self.recreate_all(pods, plan);
        } else {
            self.roll(plan);
        }
        if self.complete() {
            self.clean_up(plan);
        }
    }

    fn resized(&self) -> bool {
        self.all().filter(|s| size(s) > 0).any(|s| {
            annotation(&s.metadata, DESIRED)
                .and_then(|d| d.parse::<i32>().ok())
                .is_some_and(|desired| desired != self.wanted())
        })
    }

    /// Makes the new set, or brings its annotations up to date. Returns whether it is there.
    fn ensure_new(&mut self, replicas: i32, plan: &mut Plan) -> bool {
        let latest = self.old.iter().map(|s| revision(s)).max().unwrap_or(0) + 1;
        match &self.new {
            Some(set) => {
                let mut changed = ReplicaSet::clone(set);
                self.annotate(&mut changed, latest.max(revision(set)));
                let min_ready = self.spec.min_ready_seconds;
                if let Some(spec) = &mut changed.spec
                    && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
                {
                    spec.min_ready_seconds = min_ready;
                }
                if changed != **set {
                    plan.push(Action::update(&changed));
                    // The rest at the next look, with the new resourceVersion.
                    return false;
                }
                self.tell_revision(latest.max(revision(set)), plan);
                true
            }
            None => {
                self.create_new(replicas, latest, plan);
                false
            }
        }
    }

    fn annotate(&self, set: &mut ReplicaSet, latest: i64) {
        let annotations = set.metadata.annotations.get_or_insert_default();
        for (key, value) in self.deployment.metadata.annotations.iter().flatten() {
            if !OWN_ANNOTATIONS.contains(&key.as_str()) {
                annotations.insert(key.clone(), value.clone());
            }
        }
        let before = annotations.get(REVISION).cloned();
        if before.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0) < latest {
            if let Some(before) = before {
                let history = annotations.entry(REVISION_HISTORY.into()).or_default();
                if !history.is_empty() {
                    history.push(',');
                }
                history.push_str(&before);
            }
            annotations.insert(REVISION.into(), latest.to_string());
        }
        annotations.insert(DESIRED.into(), self.wanted().to_string());
        annotations.insert(MAX.into(), (self.wanted() + self.surge()).to_string());
    }

    fn create_new(&mut self, replicas: i32, latest: i64, plan: &mut Plan) {
        let status = self.deployment.status.as_ref();
        let collisions = status.and_then(|s| s.collision_count);
        let template = without_hash(&self.spec.template);
        let hash = template_hash(&template, collisions);
        let name = dependent_name(&self.deployment.name_any(), &hash);
        if self.old.iter().any(|s| s.name_any() == name) {
            self.collision = true;
            return;
        }
        let mut template = self.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH.into(), hash.clone());
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH.into(), hash);
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: Some(labels.clone()),
                owner_references: Some(vec![controller_reference(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        self.annotate(&mut set, latest);
        plan.push(Action::create(&set));
        let message = format!("Scaled up replica set {name} from 0 to {replicas}");
        if replicas > 0 {
            plan.push(Action::event(
                self.deployment,
                EventType::Normal,
                "ScalingReplicaSet",
                message,
            ));
        }
    }

    fn tell_revision(&self, latest: i64, plan: &mut Plan) {
        let text = latest.to_string();
        if annotation(&self.deployment.metadata, REVISION) != Some(&text) {
            let mut changed = self.deployment.clone();
            changed.metadata.annotations.get_or_insert_default().insert(REVISION.into(), text);
            plan.push(Action::update(&changed));
        }
    }

    fn scale(&self, set: &ReplicaSet, to: i32, plan: &mut Plan) {
        let from = size(set);
        let mut changed = set.clone();
        if let Some(spec) = &mut changed.spec {
            spec.replicas = Some(to);
        }
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(DESIRED.into(), self.wanted().to_string());
        annotations.insert(MAX.into(), (self.wanted() + self.surge()).to_string());
        if changed == *set {
            return;
        }
        plan.push(Action::update(&changed));
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message =
                format!("Scaled {direction} replica set {} from {from} to {to}", set.name_any());
            plan.push(Action::event(
                self.deployment,
                EventType::Normal,
                "ScalingReplicaSet",
                message,
            ));
        }
    }

    /// Rolling update: up as far as surge allows, then down as far as availability allows.
    fn roll(&mut self, plan: &mut Plan) {
        let total: i32 = self.all().map(|s| size(s)).sum();
        let room = (self.wanted() + self.surge() - total).max(0);
        let have = self.new.as_ref().map_or(0, |s| size(s));
        let up = (have + room).min(self.wanted());
        if !self.ensure_new(if self.new.is_none() { up } else { have }, plan) {
            return;
        }
        let Some(new) = self.new.clone() else { return };
        if have > self.wanted() {
            return self.scale(&new, self.wanted(), plan);
        }
        if up > have {
            return self.scale(&new, up, plan);
        }
        self.roll_down(&new, plan);
    }

    fn roll_down(&self, new: &ReplicaSet, plan: &mut Plan) {
        let old_total: i32 = self.old.iter().map(|s| size(s)).sum();
        if old_total == 0 {
            return;
        }
        let min_available = self.wanted() - self.unavailable();
        let total = old_total + size(new);
        let new_unavailable = size(new) - available(new);
        let mut budget = total - min_available - new_unavailable;
        if budget <= 0 {
            return;
        }
        let mut sizes: BTreeMap<String, i32> =
            self.old.iter().map(|s| (s.name_any(), size(s))).collect();
        // What is not available anyway goes first.
        for set in &self.old {
            let broken = (size(set) - available(set)).max(0).min(budget);
            *sizes.entry(set.name_any()).or_default() -= broken;
            budget -= broken;
        }
        let available_now: i32 = self.all().map(|s| available(s)).sum();
        let mut healthy = (available_now - min_available).max(0);
        for set in &self.old {
            let left = sizes.entry(set.name_any()).or_default();
            let down = (*left).min(healthy);
            *left -= down;
            healthy -= down;
        }
        for set in &self.old {
            let to = sizes.get(&set.name_any()).copied().unwrap_or(0);
            if to != size(set) {
                self.scale(set, to, plan);
            }
        }
    }

    /// Recreate: all old pods end before a new one begins.
    fn recreate_all(&mut self, pods: &[Arc<Pod>], plan: &mut Plan) {
        let mut down = false;
        for set in self.old.iter().filter(|s| size(s) > 0) {
            self.scale(set, 0, plan);
            down = true;
        }
        let of_old = |p: &&Arc<Pod>| {
            let owner = crate::owners::controller_of(&p.metadata).map(|r| r.uid.as_str());
            self.old.iter().any(|s| s.metadata.uid.as_deref() == owner && owner.is_some())
        };
        if down || pods.iter().filter(of_old).any(|p| !pods::is_finished(p)) {
            return;
        }
        let wanted = self.wanted();
        if self.ensure_new(wanted, plan)
            && let Some(new) = self.new.clone()
        {
            self.scale(&new, wanted, plan);
        }
    }

    /// Shares a change of size out over all sets that have pods, by their sizes.
    fn proportional(&mut self, plan: &mut Plan) {
        let active: Vec<Arc<ReplicaSet>> = self.all().filter(|s| size(s) > 0).cloned().collect();
        let alone = match active.as_slice() {
            [] => self.new.clone().or_else(|| self.old.last().cloned()),
            [one] => Some(Arc::clone(one)),
            _ => None,
        };
        if let Some(set) = alone {
            return self.scale(&set, self.wanted(), plan);
        }
        let total: i32 = active.iter().map(|s| size(s)).sum();
        let allowed = match self.wanted() {
            0 => 0,
            wanted => wanted + self.surge(),
        };
        let mut left = allowed - total;
        let mut sets = active;
        sets.sort_by_key(|s| (-size(s), s.metadata.creation_timestamp.clone()));
        if left > 0 {
            // Of equal ones the newer grows first.
            sets.sort_by_key(|s| {
                (-size(s), std::cmp::Reverse(s.metadata.creation_timestamp.clone()))
            });
        }
        let shares: Vec<i32> = sets
            .iter()
            .map(|s| {
                let before = annotation(&s.metadata, MAX)
                    .and_then(|m| m.parse::<i32>().ok())
                    .unwrap_or(total)
                    .max(1);
                let scaled = f64::from(size(s)) * f64::from(allowed) / f64::from(before);
                #[expect(clippy::cast_possible_truncation, reason = "a number of replicas")]
                let fraction = scaled.round() as i32 - size(s);
                let share = match left {
                    n if n > 0 => fraction.clamp(0, n),
                    n => fraction.clamp(n, 0),
                };
                left -= share;
                share
            })
            .collect();
        for (i, (set, share)) in sets.iter().zip(shares).enumerate() {
            let rest = if i == 0 { left } else { 0 };
            self.scale(set, (size(set) + share + rest).max(0), plan);
        }
    }

    fn complete(&self) -> bool {
        let Some(new) = &self.new else { return false };
        let wanted = self.wanted();
        let status = new.status.as_ref();
        self.old.iter().all(|s| s.status.as_ref().is_none_or(|st| st.replicas == 0))
            && status.is_some_and(|s| s.replicas == wanted)
            && available(new) == wanted
    }

    /// Deletes what is beyond the history's limit.
    fn clean_up(&self, plan: &mut Plan) {
        let Some(limit) = self.spec.revision_history_limit else { return };
        let limit = usize::try_from(limit).unwrap_or(0);
        let mut empty: Vec<&Arc<ReplicaSet>> = self
            .old
            .iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .filter(|s| size(s) == 0 && s.status.as_ref().is_none_or(|st| st.replicas == 0))
            .filter(|s| {
                s.metadata.generation.unwrap_or(0)
                    <= s.status.as_ref().and_then(|st| st.observed_generation).unwrap_or(0)
            })
            .collect();
        empty.sort_by_key(|s| revision(s));
        let superfluous = empty.len().saturating_sub(limit);
        for set in empty.into_iter().take(superfluous) {
            plan.push(Action::delete(&**set));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A cluster of one deployment that carries plans out at once: pods of a set become available
    /// when the script says so.
    struct World {
        deployment: Deployment,
        sets: Vec<ReplicaSet>,
        trace: Vec<String>,
    }

    impl World {
        fn new(spec: Value) -> Self {
            let mut base = json!({
                "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "1"}]}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "progressDeadlineSeconds": 600, "revisionHistoryLimit": 1,
            });
            for (k, v) in spec.as_object().into_iter().flatten() {
                base[k] = v.clone();
            }
            let deployment = serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": "web", "uid": "d", "generation": 1}, "spec": base,
            }));
            Self { deployment: deployment.expect("a deployment"), sets: vec![], trace: vec![] }
        }

        /// Plans and carries out until nothing is left to do.
        fn settle(&mut self) {
            for _ in 0..50 {
                let sets = self.sets.iter().cloned().map(Arc::new).collect();
                let plan = plan(&self.deployment, sets, &[], Timestamp::UNIX_EPOCH);
                if plan.actions.is_empty() {
                    return;
                }
                for action in plan.actions {
                    self.carry_out(action);
                }
            }
            panic!("does not settle: {:?}", self.trace);
        }

        fn carry_out(&mut self, action: Action) {
            match action {
                Action::Create(_, object) => {
                    let mut set: ReplicaSet = serde_json::from_value(object).expect("a set");
                    set.metadata.uid = set.metadata.name.clone();
                    self.sets.push(set);
                    self.sync();
                }
                Action::Update(target, object) if target.resource.kind == "Deployment" => {
                    let status = self.deployment.status.take();
                    self.deployment = serde_json::from_value(object).expect("a deployment");
                    self.deployment.status = status;
                }
                Action::Update(target, object) => {
                    let set = self.sets.iter_mut().find(|s| s.name_any() == target.key.name);
                    *set.expect("it exists") = serde_json::from_value(object).expect("a set");
                    self.sync();
                }
                Action::UpdatePart(_, _, object) => {
                    self.deployment = serde_json::from_value(object).expect("a deployment");
                }
                Action::Delete(target, ..) | Action::DeleteAsSeen(target, _) => {
                    self.sets.retain(|s| s.name_any() != target.key.name);
                    self.trace.push("deleted".into());
                }
                Action::Patch(..) => {}
                Action::Event(_, _, _, message) => {
                    let words: Vec<&str> = message.split(' ').collect();
                    let set = self.sets.iter().position(|s| s.name_any() == words[4]);
                    let (from, to) = (words[6], words[8]);
                    self.trace.push(format!("{}:{from}->{to}", set.unwrap_or(self.sets.len())));
                }
            }
        }

        /// The sets' controller does its part; pods it makes are not available yet.
        fn sync(&mut self) {
            for set in &mut self.sets {
                let n = size(set);
                let status = set.status.get_or_insert_default();
                status.replicas = n;
                let ready = status.available_replicas.unwrap_or(0).min(n);
                status.available_replicas = Some(ready);
                status.ready_replicas = Some(ready);
            }
        }

        fn all_available(&mut self) {
            for set in &mut self.sets {
                let n = size(set);
                let status = set.status.get_or_insert_default();
                status.available_replicas = Some(n);
                status.ready_replicas = Some(n);
            }
        }

        fn run(&mut self) -> String {
            for _ in 0..10 {
                self.settle();
                self.all_available();
            }
            self.settle();
            std::mem::take(&mut self.trace).join(" ")
        }

        fn image(&mut self, image: &str) {
            let spec = self.deployment.spec.as_mut().and_then(|s| s.template.spec.as_mut());
            spec.expect("a spec").containers[0].image = Some(image.into());
        }

        fn condition(&self, ty: &str) -> String {
            let status = self.deployment.status.clone().unwrap_or_default();
            let c = status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == ty);
            c.map(|c| format!("{} {}", c.status, c.reason.unwrap_or_default())).unwrap_or_default()
        }
    }

    #[test]
    fn a_rolling_update_keeps_its_bounds() {
        let mut world = World::new(json!({}));
        assert_eq!(world.run(), "0:0->3");
        assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
        assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
        world.image("2");
        assert_eq!(world.run(), "1:0->1 0:3->2 1:1->2 0:2->1 1:2->3 0:1->0");
        world.image("1");
        let revision = |w: &World| annotation(&w.deployment.metadata, REVISION).map(str::to_owned);
        assert_eq!(world.run(), "0:0->1 1:3->2 0:1->2 1:2->1 0:2->3 1:1->0");
        assert_eq!(revision(&world).as_deref(), Some("3"), "the old set is the new one again");
        world.image("3");
        world.run();
        assert_eq!(world.sets.len(), 2, "one old set is kept");
    }

    #[test]
    fn nothing_available_goes_before_something_comes() {
        let mut world = World::new(json!({}));
        world.run();
        world.image("2");
        world.settle();
        assert_eq!(std::mem::take(&mut world.trace).join(" "), "1:0->1", "waits for the new pod");
    }

    #[test]
    fn recreate_ends_all_before_it_begins() {
        let mut world = World::new(json!({"strategy": {"type": "Recreate"}}));
        assert_eq!(world.run(), "0:0->3");
        world.image("2");
        assert_eq!(world.run(), "0:3->0 1:0->3");
    }

    #[test]
    fn a_paused_deployment_scales_but_does_not_roll() {
        let mut world = World::new(json!({}));
        world.run();
        let spec = world.deployment.spec.as_mut().expect("a spec");
        (spec.paused, spec.replicas) = (Some(true), Some(5));
        world.image("2");
        assert_eq!(world.run(), "0:3->5");
        assert_eq!(world.condition("Progressing"), "Unknown DeploymentPaused");
    }

    #[test]
    fn shares_of_replicas_round_as_documented() {
        let percent = |p: &str| IntOrString::String(p.into());
        assert_eq!(resolve(Some(&percent("25%")), 3, true), 1);
        assert_eq!(resolve(Some(&percent("25%")), 3, false), 0);
        assert_eq!(resolve(None, 10, true), 3);
        assert_eq!(resolve(Some(&IntOrString::Int(2)), 10, true), 2);
    }
}
