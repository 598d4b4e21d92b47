//! Namespaces that end: all that is in them is deleted, pods first, then the namespace may go
//! (ordered namespace deletion, KEP-5080).

use std::time::Duration;

use anyhow::Context as _;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResourceList, Time};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::{Api, Client};

use crate::action::is_gone;
use crate::runner::Context;

/// What is left is looked at again so soon.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_LATER: Duration = Duration::from_secs(5);
const FINALIZER: &str = "kubernetes";

/// Runs until shutdown. What is in a namespace is known by discovery alone, so this one is no
/// plan over caches.
pub async fn run(context: Context) {
    let namespaces: Cache<Namespace> = context.caches.of();
    let queue: Queue<Key> = context.queue("namespace");
    let q = queue.clone();
    namespaces.on_change(move |change| {
        if change.new.is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
            q.add(change.key.clone());
        }
    });
    let again = queue.clone();
    let work = move |key: Key| {
        let (namespaces, client) = (namespaces.clone(), context.client().clone());
        let again = again.clone();
        async move {
            let Some(namespace) = namespaces.get(&key) else { return Ok(()) };
            if namespace.metadata.deletion_timestamp.is_none() {
                return Ok(());
            }
            if let Some(after) = empty(&client, &namespace).await? {
                again.add_after(key, after);
            }
            Ok(())
        }
    };
    queue.run("namespace", 10, work).await;
}

/// One kind of object that can be in a namespace.
#[derive(Clone, Debug)]
struct Kind {
    resource: ApiResource,
    collection: bool,
    list: bool,
}

/// What came of a pass.
#[derive(Debug, Default)]
struct Left {
    objects: usize,
    /// `pods. has 2 resource instances`
    content: Vec<String>,
    /// Finalizer to the number of objects that wait for it.
    finalizers: std::collections::BTreeMap<String, usize>,
    failures: Vec<String>,
    discovery: Option<String>,
}

/// Deletes what is in the namespace. Returns when to look again; `None` when all is done.
async fn empty(client: &Client, namespace: &Namespace) -> anyhow::Result<Option<Duration>> {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref());
    if !finalizers.is_some_and(|f| f.iter().any(|f| f == FINALIZER)) {
        return Ok(None);
    }
    let mut left = Left::default();
    let kinds = match discover(client).await {
        Ok(kinds) => kinds,
        Err(error) => {
            left.discovery = Some(format!("{error:#}"));
            Vec::new()
        }
    };
    let (pods, others): (Vec<Kind>, Vec<Kind>) =
        kinds.into_iter().partition(|k| k.resource.group.is_empty() && k.resource.plural == "pods");
    for kind in &pods {
        clear(client, name, kind, &mut left).await;
    }
    // Other objects may be needed by pods until they have ended.
    if left.objects == 0 {
        for kind in &others {
            clear(client, name, kind, &mut left).await;
        }
    }
    report(client, namespace, &left).await?;
    if left.objects > 0 || !left.failures.is_empty() || left.discovery.is_some() {
        let long = left.finalizers.is_empty() && left.failures.is_empty();
        return Ok(Some(if long { AGAIN } else { AGAIN_LATER }));
    }
    finalize(client, name).await?;
    Ok(None)
}

/// Every namespaced kind that can be deleted, in the version that its group prefers, or else in the
/// next that has it.
async fn discover(client: &Client) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    let core = client.list_core_api_resources("v1").await.context("discovery of v1")?;
    collect("", "v1", core, &mut kinds);
    for group in client.list_api_groups().await.context("discovery of groups")?.groups {
        let preferred = group.preferred_version.as_ref().map(|v| v.version.as_str());
        let mut versions: Vec<_> = group.versions.iter().collect();
        versions.sort_by_key(|v| Some(v.version.as_str()) != preferred);
        for version in versions {
            let gv = &version.group_version;
            match client.list_api_group_resources(gv).await {
                Ok(list) => collect(&group.name, &version.version, list, &mut kinds),
                // A definition that went meanwhile took its objects with it.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error).with_context(|| format!("discovery of {gv}")),
            }
        }
    }
    Ok(kinds)
}

fn collect(group: &str, version: &str, list: APIResourceList, kinds: &mut Vec<Kind>) {
    for resource in list.resources {
        let verb = |v: &str| resource.verbs.iter().any(|have| have == v);
        if !resource.namespaced || resource.name.contains('/') || !verb("delete") {
            continue;
        }
        let same = |k: &Kind| k.resource.group == group && k.resource.plural == resource.name;
        if kinds.iter().any(same) {
            continue;
        }
        // Events of both groups are the same objects.
        if group == "events.k8s.io" {
            continue;
        }
        kinds.push(Kind {
            collection: verb("deletecollection"),
            list: verb("list"),
            resource: ApiResource::from_gvk_with_plural(
                &GroupVersionKind::gvk(group, version, &resource.kind),
                &resource.name,
            ),
        });
    }
}

async fn clear(client: &Client, namespace: &str, kind: &Kind, left: &mut Left) {
    if !kind.list {
        return;
    }
    if let Err(error) = try_clear(client, namespace, kind, left).await {
        left.failures.push(format!("{}: {error:#}", kind.resource.plural));
    }
}

async fn try_clear(
    client: &Client,
    namespace: &str,
    kind: &Kind,
    left: &mut Left,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource);
    let some = ListParams::default().limit(1);
    if api.list_metadata(&some).await?.items.is_empty() {
        return Ok(());
    }
    if kind.collection {
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
    } else {
        for object in api.list_metadata(&ListParams::default()).await?.items {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            match api.delete(name, &DeleteParams::background()).await {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
    }
    let remaining: Vec<PartialObjectMeta<DynamicObject>> =
        api.list_metadata(&ListParams::default()).await?.items;
    if !remaining.is_empty() {
        left.objects += remaining.len();
        let resource = &kind.resource;
        left.content.push(format!(
            "{}.{} has {} resource instances",
            resource.plural,
            resource.group,
            remaining.len()
        ));
        for finalizer in remaining.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
            *left.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
    }
    Ok(())
}

/// The conditions that tell why a namespace is still there.
fn conditions(left: &Left, have: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let content = match left.content.is_empty() {
        true => (false, "ContentRemoved", "All content successfully removed".to_owned()),
        false => (
            true,
            "SomeResourcesRemain",
            format!("Some resources are remaining: {}", left.content.join(", ")),
        ),
    };
    let finalizers = match left.finalizers.is_empty() {
        true => (
            false,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished".to_owned(),
        ),
        false => {
            let texts: Vec<String> = left
                .finalizers
                .iter()
                .map(|(f, n)| format!("{f} in {n} resource instances"))
                .collect();
            (
                true,
                "SomeFinalizersRemain",
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    texts.join(", ")
                ),
            )
        }
    };
    let discovery = match &left.discovery {
        None => (false, "ResourcesDiscovered", "All resources successfully discovered".to_owned()),
        Some(error) => (
            true,
            "DiscoveryFailed",
            format!("Discovery failed for some groups, 1 failing: {error}"),
        ),
    };
    let deletion = match left.failures.is_empty() {
        true => (
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".to_owned(),
        ),
        false => (
            true,
            "ContentDeletionFailed",
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                left.failures.len(),
                left.failures.join(", ")
            ),
        ),
    };
    [
        ("NamespaceDeletionDiscoveryFailure", discovery),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            (false, "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned()),
        ),
        ("NamespaceDeletionContentFailure", deletion),
        ("NamespaceContentRemaining", content),
        ("NamespaceFinalizersRemaining", finalizers),
    ]
    .into_iter()
    .map(|(ty, (status, reason, message))| {
        let status = if status { "True" } else { "False" };
        let before = have.iter().find(|c| c.type_ == ty && c.status == status);
        NamespaceCondition {
            type_: ty.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: before
                .and_then(|c| c.last_transition_time.clone())
                .or(Some(Time(now))),
        }
    })
    .collect()
}

async fn report(client: &Client, namespace: &Namespace, left: &Left) -> anyhow::Result<()> {
    let have = namespace.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let wanted = conditions(left, have, Timestamp::now());
    if have == wanted {
        return Ok(());
    }
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Namespace> = Api::all(client.clone());
    let mut changed = namespace.clone();
    changed.metadata.resource_version = None;
    changed.status.get_or_insert_default().conditions = Some(wanted);
    match api.replace_status(name, &PostParams::default(), &changed).await {
        Err(error) if !is_gone(&error) => Err(error).context("namespace status"),
        _ => Ok(()),
    }
}

/// Takes our finalizer off the namespace: it goes when no other is left.
async fn finalize(client: &Client, name: &str) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let mut namespace = match api.get(name).await {
        Ok(namespace) => namespace,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error).context("namespace"),
    };
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let done: Result<Namespace, _> =
        api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await;
    match done {
        Err(error) if !is_gone(&error) => Err(error).context("finalize namespace"),
        _ => Ok(()),
    }
}
