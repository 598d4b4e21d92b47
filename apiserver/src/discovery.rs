//! What the server serves, for clients: groups, versions and resources, in the legacy documents
//! and in the aggregated one.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::api_version;
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest as _, Sha256, Sha512};

use crate::registry::catalog::{Catalog, Served, subresource_verbs};
use crate::registry::{Action, Subresource, Verbs};

/// Documents that are made once for each catalog.
#[derive(Default)]
pub(crate) struct Documents {
    aggregated: Mutex<Vec<(u64, bool, Aggregated)>>,
}

/// An aggregated document and its ETag.
#[derive(Clone)]
pub(crate) struct Aggregated {
    pub object: Arc<Value>,
    pub etag: String,
}

impl Documents {
    /// The aggregated document of `/api` (`core`) or `/apis`.
    pub(crate) fn aggregated(&self, catalog: &Arc<Catalog>, core: bool) -> Aggregated {
        let id = catalog.id();
        let mut known = self.aggregated.lock();
        if let Some((.., found)) = known.iter().find(|(i, c, _)| *i == id && *c == core) {
            return found.clone();
        }
        let object = aggregated(catalog, core);
        let made = Aggregated { etag: etag(&object), object: Arc::new(object) };
        // Of catalogs that are gone nothing is kept.
        known.retain(|(i, ..)| *i == id);
        known.push((id, core, made.clone()));
        made
    }
}

/// The hash that clients ask again with.
pub(crate) fn etag(object: &Value) -> String {
    hex(&Sha512::digest(object.to_string())).to_uppercase()
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `/api`
pub(crate) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`
pub(crate) fn group_list(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = catalog
        .groups()
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| api_group(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`
pub(crate) fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let groups = catalog.groups();
    let (group, versions) = groups.iter().find(|(g, _)| g == name && !g.is_empty())?;
    let mut document = api_group(group, versions);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

fn api_group(group: &str, versions: &[String]) -> Value {
    let entry =
        |version: &String| json!({"groupVersion": api_version(group, version), "version": version});
    let all: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": group, "preferredVersion": all.first(), "versions": all})
}

fn served_in<'a>(
    catalog: &'a Catalog,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Arc<Served>> {
    let fits = move |s: &&Arc<Served>| s.row.group == group && s.row.version == version;
    let mut rows: Vec<&Arc<Served>> = catalog.rows().iter().filter(fits).collect();
    rows.sort_by(|a, b| a.row.plural.cmp(&b.row.plural));
    rows.into_iter()
}

/// `/api/v1` and `/apis/<group>/<version>`
pub(crate) fn resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for served in served_in(catalog, group, version) {
        resources.push(resource(served));
        for sub in subresources(served) {
            let (kind, other) = kind_of(served, &sub.action);
            let mut entry = json!({
                "name": format!("{}/{}", served.row.plural, sub.name), "singularName": "",
                "namespaced": served.row.namespaced, "kind": kind,
                "verbs": subresource_verbs(&sub.action),
            });
            if let Some((group, version)) = other {
                if !group.is_empty() {
                    entry["group"] = group.into();
                }
                entry["version"] = version.into();
            }
            resources.push(entry);
        }
    }
    (!resources.is_empty()).then(|| {
        let mut list = json!({"kind": "APIResourceList", "groupVersion": api_version(group, version),
            "resources": resources});
        if !group.is_empty() {
            list["apiVersion"] = "v1".into();
        }
        list
    })
}

/// Subresources in upstream's order: by name, but for those of custom resources.
fn subresources(served: &Served) -> Vec<&Subresource> {
    let mut all: Vec<&Subresource> = served.row.subresources.iter().collect();
    if served.row.custom.is_none() {
        all.sort_by_key(|s| s.name);
    }
    all
}

/// The kind that a subresource speaks, and its group and version where they are others.
fn kind_of<'a>(
    served: &'a Served,
    action: &Action,
) -> (&'a str, Option<(&'static str, &'static str)>) {
    match action {
        Action::Part { .. } => (&served.row.kind, None),
        Action::Scale { .. } => ("Scale", Some(("autoscaling", "v1"))),
        Action::Post { group, version, kind, .. } => {
            let other = (*group != served.row.group).then_some((*group, *version));
            (kind, other)
        }
        Action::Connect(what) => {
            use crate::registry::Connect;
            let kind = match (what, &*served.row.kind) {
                (Connect::Log, _) => &served.row.kind,
                (Connect::Exec, _) => "PodExecOptions",
                (Connect::Attach, _) => "PodAttachOptions",
                (Connect::PortForward, _) => "PodPortForwardOptions",
                (Connect::Proxy, "Node") => "NodeProxyOptions",
                (Connect::Proxy, "Service") => "ServiceProxyOptions",
                (Connect::Proxy, _) => "PodProxyOptions",
            };
            (kind, None)
        }
    }
}

fn resource(served: &Served) -> Value {
    let row = &served.row;
    let mut entry = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
        "kind": row.kind, "verbs": served.verbs(),
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    if row.verbs == Verbs::All {
        entry["storageVersionHash"] = storage_version_hash(served).into();
    }
    entry
}

/// Upstream's hash of what a resource is stored as (`discovery.StorageVersionHash`).
fn storage_version_hash(served: &Served) -> String {
    use base64::Engine as _;
    let (group, version) = &served.row.storage.version;
    let text = format!("{group}/{version}/{}", served.row.kind);
    let hash = Sha256::digest(text);
    base64::engine::general_purpose::STANDARD.encode(hash.get(..8).unwrap_or_default())
}

fn aggregated(catalog: &Catalog, core: bool) -> Value {
    let groups = catalog.groups();
    let items: Vec<Value> = groups
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        served_in(catalog, group, version).map(|s| discovered(s)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let mut metadata = json!({});
            if !group.is_empty() {
                metadata["name"] = group.as_str().into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items,
    })
}

fn discovered(served: &Served) -> Value {
    let row = &served.row;
    let gvk = |kind: &str, other: Option<(&str, &str)>| {
        // Of a compiled resource's own version, only the kind is told.
        let own = if row.custom.is_some() { (&*row.group, &*row.version) } else { ("", "") };
        let (group, version) = other.unwrap_or(own);
        json!({"group": group, "version": version, "kind": kind})
    };
    let mut entry = json!({
        "resource": row.plural,
        "responseKind": gvk(&row.kind, None),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": served.verbs(),
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    let subs: Vec<Value> = subresources(served)
        .into_iter()
        .map(|sub| {
            let (kind, other) = kind_of(served, &sub.action);
            json!({"subresource": sub.name, "responseKind": gvk(kind, other),
                "verbs": subresource_verbs(&sub.action)})
        })
        .collect();
    if !subs.is_empty() {
        entry["subresources"] = subs.into();
    }
    entry
}
