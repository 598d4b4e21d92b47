//! The garbage collector: objects whose owners are gone go too; owners that wait for their
//! dependents (foreground) or let them go (orphan) are helped on.
//!
//! The graph of owners is kept from metadata watches on everything that can be deleted. Before an
//! object is deleted for want of an owner, the API is asked whether that owner is really gone.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Key, Queue};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{
    DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::action::is_gone;
use crate::runner::Context;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// New kinds are looked for this often.
const DISCOVERY: Duration = Duration::from_secs(30);

/// An object as the graph knows it.
#[derive(Clone, Debug)]
struct Object {
    kind: Arc<Kind>,
    key: Key,
    owners: Vec<OwnerReference>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Kind {
    resource: ApiResource,
    namespaced: bool,
}

impl Kind {
    fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        match (self.namespaced, namespace) {
            (true, namespace) if !namespace.is_empty() => {
                Api::namespaced_with(client.clone(), namespace, &self.resource)
            }
            _ => Api::all_with(client.clone(), &self.resource),
        }
    }
}

/// A kind that is watched.
struct Followed {
    kind: Arc<Kind>,
    end: CancellationToken,
}

/// Who owns whom, by uid.
#[derive(Default)]
struct Graph {
    objects: HashMap<String, Object>,
    dependents: HashMap<String, HashSet<String>>,
    kinds: HashMap<(String, String), Arc<Kind>>,
}

impl Graph {
    /// Brings an object in; returns the uids that this matters to.
    fn put(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let has = |f: &str| meta.finalizers.iter().flatten().any(|have| have == f);
        let object = Object {
            kind: Arc::clone(kind),
            key: Key::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        };
        self.unlink(&uid);
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let mut touched = vec![uid.clone()];
        if object.deleting {
            touched.extend(self.dependents_of(&uid));
        }
        // An owner that waits for this one may go on.
        touched.extend(object.owners.iter().map(|o| o.uid.clone()));
        self.objects.insert(uid, object);
        touched
    }

    fn unlink(&mut self, uid: &str) {
        for owner in self.objects.get(uid).map(|o| o.owners.clone()).unwrap_or_default() {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// Takes an object out; returns the uids that this matters to.
    fn remove(&mut self, uid: &str) -> Vec<String> {
        self.unlink(uid);
        let mut touched = self.dependents_of(uid);
        if let Some(object) = self.objects.remove(uid) {
            touched.extend(object.owners.into_iter().map(|o| o.uid));
        }
        touched
    }

    fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn dependents_by_state(&self, uid: &str) -> Vec<Dependent> {
        let dependents = self.dependents.get(uid).into_iter().flatten();
        let state = |dependent: &String| {
            let object = self.objects.get(dependent)?;
            let blocks = |r: &OwnerReference| r.uid == uid && r.block_owner_deletion == Some(true);
            Some(Dependent {
                uid: dependent.clone(),
                blocks: object.owners.iter().any(blocks),
                waiting: object.deleting && object.foreground,
            })
        };
        dependents.filter_map(state).collect()
    }

    fn kind_of(&self, owner: &OwnerReference) -> Option<Arc<Kind>> {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        self.kinds.get(&(group.to_owned(), owner.kind.clone())).cloned()
    }
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Solid,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
    Gone,
}

/// What to do about an object.
#[derive(Clone, Debug, PartialEq)]
enum Decision {
    Nothing,
    /// The references to these owners are taken off.
    Disown(Vec<String>),
    Delete(PropagationPolicy),
    /// Delete it in the foreground, first ending that it blocks its owners: one of its dependents
    /// is being deleted in the foreground too, so that each could wait for the other in a circle.
    DeleteInCircle,
    /// Delete the dependents that block it.
    DeleteDependents(Vec<String>),
    /// Take the owner's reference off its dependents.
    OrphanDependents(Vec<String>),
    RemoveFinalizer(&'static str),
}

/// A dependent of an object.
#[derive(Clone, Debug)]
struct Dependent {
    uid: String,
    /// Its owner waits for it (`blockOwnerDeletion`).
    blocks: bool,
    /// Being deleted in the foreground: it waits for dependents of its own.
    waiting: bool,
}

/// Decides about an object by the states of its owners and its dependents.
fn decide(object: &Object, owners: &[(String, Owner)], dependents: &[Dependent]) -> Decision {
    let uids = |found: Vec<&Dependent>| found.into_iter().map(|d| d.uid.clone()).collect();
    if object.deleting {
        let blocking: Vec<&Dependent> = dependents.iter().filter(|d| d.blocks).collect();
        return match (object.orphan, object.foreground) {
            (true, _) if !dependents.is_empty() => {
                Decision::OrphanDependents(uids(dependents.iter().collect()))
            }
            (true, _) => Decision::RemoveFinalizer(ORPHAN),
            (false, true) if blocking.is_empty() => Decision::RemoveFinalizer(FOREGROUND),
            (false, true) => {
                // Those that wait themselves come back when they have changed.
                let idle: Vec<_> = blocking.into_iter().filter(|d| !d.waiting).collect();
                if idle.is_empty() {
                    Decision::Nothing
                } else {
                    Decision::DeleteDependents(uids(idle))
                }
            }
            (false, false) => Decision::Nothing,
        };
    }
    if owners.is_empty() {
        return Decision::Nothing;
    }
    let of = |state: Owner| -> Vec<String> {
        owners.iter().filter(|(_, s)| *s == state).map(|(uid, _)| uid.clone()).collect()
    };
    let (waiting, gone) = (of(Owner::Waiting), of(Owner::Gone));
    if !of(Owner::Solid).is_empty() {
        let lost = [gone, waiting].concat();
        return if lost.is_empty() { Decision::Nothing } else { Decision::Disown(lost) };
    }
    if !waiting.is_empty() && dependents.iter().any(|d| d.waiting) {
        return Decision::DeleteInCircle;
    }
    let policy = match () {
        () if !waiting.is_empty() && !dependents.is_empty() => PropagationPolicy::Foreground,
        () if object.orphan => PropagationPolicy::Orphan,
        () if object.foreground => PropagationPolicy::Foreground,
        () => PropagationPolicy::Background,
    };
    Decision::Delete(policy)
}

struct Collector {
    graph: Arc<Mutex<Graph>>,
    client: Client,
    queue: Queue<String>,
}

/// Runs until shutdown.
pub async fn run(context: Context) {
    let queue: Queue<String> = context.queue("garbage-collector");
    let graph: Arc<Mutex<Graph>> = Arc::default();
    let collector = Arc::new(Collector {
        graph: Arc::clone(&graph),
        client: context.client().clone(),
        queue: queue.clone(),
    });
    let follow = Arc::clone(&collector);
    let watches = async {
        let mut known: HashMap<(String, String), Followed> = HashMap::new();
        loop {
            match follow.discover(&mut known, &context.shutdown).await {
                Ok(kinds) => {
                    for (kind, end) in kinds {
                        let me = Arc::clone(&follow);
                        tokio::spawn(async move { me.follow(kind, end).await });
                    }
                }
                Err(error) => {
                    tracing::warn!(error = client::brief(&error), "garbage collector: discovery");
                }
            }
            tokio::time::sleep(DISCOVERY).await;
        }
    };
    let work = move |uid: String| {
        let collector = Arc::clone(&collector);
        async move { collector.process(&uid).await }
    };
    tokio::select! {
        () = watches => {}
        () = queue.clone().run("garbage-collector", 20, work) => {}
        () = context.shutdown.cancelled() => {}
    }
}

impl Collector {
    /// Kinds that can be listed, watched and deleted, and are not followed yet. Those that are
    /// served no longer, or in another version, are let go.
    async fn discover(
        &self,
        known: &mut HashMap<(String, String), Followed>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Vec<(Arc<Kind>, CancellationToken)>> {
        let discovery = Discovery::new(self.client.clone()).run_aggregated().await?;
        let mut found = HashMap::new();
        let wanted = |c: &ApiCapabilities| {
            [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|v| c.supports_operation(v))
        };
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                // Events come and go by themselves.
                if resource.plural == "events" || !wanted(&capabilities) {
                    continue;
                }
                let id = (resource.group.clone(), resource.kind.clone());
                let namespaced = capabilities.scope == Scope::Namespaced;
                found.entry(id).or_insert(Kind { resource, namespaced });
            }
        }
        known.retain(|id, followed| {
            let stays = found.get(id).is_some_and(|kind| *kind == *followed.kind);
            if !stays {
                followed.end.cancel();
                self.graph.lock().kinds.remove(id);
            }
            stays
        });
        let mut fresh = Vec::new();
        for (id, kind) in found {
            if let Entry::Vacant(place) = known.entry(id) {
                let (kind, end) = (Arc::new(kind), shutdown.child_token());
                self.graph.lock().kinds.insert(place.key().clone(), Arc::clone(&kind));
                place.insert(Followed { kind: Arc::clone(&kind), end: end.clone() });
                fresh.push((kind, end));
            }
        }
        Ok(fresh)
    }

    /// Follows a kind until it is let go; what it had is forgotten then.
    async fn follow(&self, kind: Arc<Kind>, end: CancellationToken) {
        let mine = Mutex::new(HashSet::new());
        tokio::select! {
            () = self.watch(&kind, &mine) => {}
            () = end.cancelled() => {}
        }
        let mine = std::mem::take(&mut *mine.lock());
        mine.iter().for_each(|uid| self.remove(uid));
    }

    async fn watch(&self, kind: &Arc<Kind>, mine: &Mutex<HashSet<String>>) {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(self.client.clone(), &kind.resource);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut listed: HashSet<String> = HashSet::new();
        loop {
            let event = match events.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    let error = client::error::line(&error);
                    tracing::debug!(error, kind = kind.resource.kind, "metadata watch");
                    continue;
                }
            };
            match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) => {
                    listed.extend(self.put(kind, &object));
                }
                watcher::Event::InitDone => {
                    let before = std::mem::replace(&mut *mine.lock(), listed.clone());
                    before.difference(&listed).for_each(|uid| self.remove(uid));
                    listed.clear();
                }
                watcher::Event::Apply(object) => mine.lock().extend(self.put(kind, &object)),
                watcher::Event::Delete(object) => {
                    if let Some(uid) = &object.metadata.uid {
                        mine.lock().remove(uid);
                        self.remove(uid);
                    }
                }
            }
        }
    }

    fn put(&self, kind: &Arc<Kind>, object: &PartialObjectMeta<DynamicObject>) -> Option<String> {
        for uid in self.graph.lock().put(kind, &object.metadata) {
            self.queue.add(uid);
        }
        object.metadata.uid.clone()
    }

    fn remove(&self, uid: &str) {
        for touched in self.graph.lock().remove(uid) {
            self.queue.add(touched);
        }
    }

    async fn process(&self, uid: &str) -> anyhow::Result<()> {
        let (object, dependents) = {
            let graph = self.graph.lock();
            let Some(object) = graph.objects.get(uid).cloned() else { return Ok(()) };
            (object, graph.dependents_by_state(uid))
        };
        let owners = match object.deleting {
            true => Vec::new(),
            false => self.owners(uid, &object).await?,
        };
        let decision = decide(&object, &owners, &dependents);
        self.carry_out(uid, &object, decision).await
    }

    /// The states of an object's owners. What the graph does not have, the API is asked for.
    async fn owners(&self, uid: &str, object: &Object) -> anyhow::Result<Vec<(String, Owner)>> {
        let mut states = Vec::with_capacity(object.owners.len());
        for owner in &object.owners {
            let (known, kind) = {
                let graph = self.graph.lock();
                (graph.objects.get(&owner.uid).cloned(), graph.kind_of(owner))
            };
            let state = match (known, kind) {
                (Some(o), _) if o.deleting && o.foreground => Owner::Waiting,
                // A namespaced owner of another namespace is none (kubernetes.io docs, garbage
                // collection).
                (Some(o), _) if o.kind.namespaced && o.key.namespace != object.key.namespace => {
                    Owner::Gone
                }
                (Some(_), _) => Owner::Solid,
                // A kind that is not served, or not known yet: nobody can tell, so nothing is
                // deleted for now.
                (None, None) => {
                    self.queue.add_after(uid.to_owned(), DISCOVERY);
                    Owner::Solid
                }
                (None, Some(kind)) => self.ask(&kind, &object.key.namespace, owner).await?,
            };
            states.push((owner.uid.clone(), state));
        }
        Ok(states)
    }

    async fn ask(
        &self,
        kind: &Kind,
        namespace: &str,
        owner: &OwnerReference,
    ) -> anyhow::Result<Owner> {
        match kind.api(&self.client, namespace).get_metadata(&owner.name).await {
            Ok(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => {
                let finalizers = found.metadata.finalizers.iter().flatten();
                let waits = found.metadata.deletion_timestamp.is_some()
                    && finalizers.into_iter().any(|f| f == FOREGROUND);
                Ok(if waits { Owner::Waiting } else { Owner::Solid })
            }
            Ok(_) => Ok(Owner::Gone),
            Err(error) if is_gone(&error) => Ok(Owner::Gone),
            Err(error) => {
                Err(error).with_context(|| format!("owner {} {}", owner.kind, owner.name))
            }
        }
    }

    async fn carry_out(
        &self,
        uid: &str,
        object: &Object,
        decision: Decision,
    ) -> anyhow::Result<()> {
        match decision {
            Decision::Nothing => Ok(()),
            Decision::Delete(policy) => self.delete(uid, object, policy).await,
            Decision::DeleteInCircle => {
                self.unblock(uid, object).await?;
                self.delete(uid, object, PropagationPolicy::Foreground).await
            }
            Decision::Disown(owners) => self.disown(uid, object, &owners).await,
            Decision::RemoveFinalizer(finalizer) => self.release(object, finalizer).await,
            Decision::DeleteDependents(dependents) => {
                for dependent in dependents {
                    self.queue.add(dependent);
                }
                Ok(())
            }
            Decision::OrphanDependents(dependents) => {
                for dependent in dependents {
                    let found = self.graph.lock().objects.get(&dependent).cloned();
                    if let Some(found) = found {
                        self.disown(&dependent, &found, &[uid.to_owned()]).await?;
                    }
                }
                // When the graph has seen it, the finalizer is taken off.
                Ok(())
            }
        }
    }

    async fn delete(
        &self,
        uid: &str,
        object: &Object,
        policy: PropagationPolicy,
    ) -> anyhow::Result<()> {
        tracing::debug!(key = %object.key, kind = object.kind.resource.kind, ?policy, "garbage");
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = object.kind.api(&self.client, &object.key.namespace);
        match api.delete(&object.key.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error)
                .with_context(|| format!("{} {}", object.kind.resource.plural, object.key)),
        }
    }

    async fn disown(&self, uid: &str, object: &Object, owners: &[String]) -> anyhow::Result<()> {
        let api = object.kind.api(&self.client, &object.key.namespace);
        let references: Vec<_> =
            owners.iter().map(|o| json!({"$patch": "delete", "uid": o})).collect();
        let patch = json!({"metadata": {"uid": uid, "ownerReferences": references}});
        let params = PatchParams::default();
        match api.patch_metadata(&object.key.name, &params, &Patch::Strategic(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            // Custom resources take no strategic patches.
            Err(kube::Error::Api(status)) if status.code == 415 => {
                let left: Vec<_> =
                    object.owners.iter().filter(|o| !owners.contains(&o.uid)).collect();
                let patch = json!({"metadata": {"uid": uid, "ownerReferences": left}});
                api.patch_metadata(&object.key.name, &params, &Patch::Merge(patch)).await?;
                Ok(())
            }
            Err(error) => Err(error).context("owner references"),
        }
    }

    /// Lets an object's owners go without waiting for it.
    async fn unblock(&self, uid: &str, object: &Object) -> anyhow::Result<()> {
        let api = object.kind.api(&self.client, &object.key.namespace);
        let references: Vec<OwnerReference> = object
            .owners
            .iter()
            .map(|o| OwnerReference {
                block_owner_deletion: o.block_owner_deletion.map(|_| false),
                ..o.clone()
            })
            .collect();
        let patch = json!({"metadata": {"uid": uid, "ownerReferences": references}});
        let params = PatchParams::default();
        match api.patch_metadata(&object.key.name, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error).context("owner references"),
        }
    }

    async fn release(&self, object: &Object, finalizer: &str) -> anyhow::Result<()> {
        let api = object.kind.api(&self.client, &object.key.namespace);
        let found = match api.get_metadata(&object.key.name).await {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error).context("finalizer"),
        };
        let left: Vec<&String> =
            found.metadata.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
        let patch = json!({"metadata": {
            "resourceVersion": found.metadata.resource_version,
            "finalizers": left,
        }});
        let params = PatchParams::default();
        match api.patch_metadata(&object.key.name, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error).context("finalizer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(deleting: bool, finalizer: &str) -> Object {
        Object {
            kind: Arc::new(Kind {
                resource: ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()),
                namespaced: true,
            }),
            key: Key::new("ns", "x"),
            owners: Vec::new(),
            deleting,
            foreground: finalizer == FOREGROUND,
            orphan: finalizer == ORPHAN,
        }
    }

    #[test]
    fn owners_decide_and_finalizers_wait() {
        use Decision::{
            Delete, DeleteDependents, Disown, Nothing, OrphanDependents, RemoveFinalizer,
        };
        use PropagationPolicy::{Background, Foreground};
        let owners = |states: &[Owner]| -> Vec<(String, Owner)> {
            states.iter().enumerate().map(|(i, s)| (i.to_string(), *s)).collect()
        };
        let dependent =
            |blocks: bool, waiting: bool| vec![Dependent { uid: "d".to_owned(), blocks, waiting }];
        let (d, none) = (vec!["d".to_owned()], Vec::new());
        let (loose, blocking) = (dependent(false, false), dependent(true, false));
        let waiting = dependent(true, true);
        for (object, states, dependents, wanted) in [
            (object(false, ""), &[][..], &none, Nothing),
            (object(false, ""), &[Owner::Solid], &none, Nothing),
            (object(false, ""), &[Owner::Solid, Owner::Gone], &none, Disown(vec!["1".into()])),
            (object(false, ""), &[Owner::Gone], &none, Delete(Background)),
            (object(false, ""), &[Owner::Waiting], &none, Delete(Background)),
            (object(false, ""), &[Owner::Waiting], &loose, Delete(Foreground)),
            (object(false, ""), &[Owner::Waiting], &waiting, Decision::DeleteInCircle),
            (object(true, ""), &[], &loose, Nothing),
            (object(true, FOREGROUND), &[], &blocking, DeleteDependents(d.clone())),
            (object(true, FOREGROUND), &[], &waiting, Nothing),
            (object(true, FOREGROUND), &[], &loose, RemoveFinalizer(FOREGROUND)),
            (object(true, ORPHAN), &[], &blocking, OrphanDependents(d.clone())),
            (object(true, ORPHAN), &[], &none, RemoveFinalizer(ORPHAN)),
        ] {
            let decided = decide(&object, &owners(states), dependents);
            assert_eq!(decided, wanted, "{object:?} {states:?}");
        }
    }
}
