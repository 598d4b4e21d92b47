//! Discovery documents, made from the rows: both the legacy form, a document for each group
//! version, and the aggregated one (KEP-3352).

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::api_version;
use serde_json::{Map, json};

use crate::registry::{Action, Connect, Resource, Subresource, Verbs};

/// What a stored resource can do, in upstream's order.
const ALL: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CREATE: [&str; 1] = ["create"];
const GET: [&str; 1] = ["get"];
const PART: [&str; 3] = ["get", "patch", "update"];
const STREAM: [&str; 2] = ["create", "get"];
const PROXY: [&str; 5] = ["create", "delete", "get", "patch", "update"];

/// `GET /api`: versions of the core group. `server` is the address that clients should use.
pub fn legacy_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// Named groups with their versions, in the order of the rows.
fn by_group(rows: &[Arc<Resource>]) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows {
        let at = match groups.iter().position(|(group, _)| *group == row.group) {
            Some(at) => at,
            None => {
                groups.push((&row.group, Vec::new()));
                groups.len() - 1
            }
        };
        let versions = &mut groups[at].1;
        if !versions.contains(&&*row.version) {
            versions.push(&row.version);
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|v| version_order(v));
    }
    groups
}

/// Stable versions before beta before alpha, higher numbers first: what clients should prefer.
pub fn version_order(version: &str) -> (u8, i64, i64, String) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let (major, stage) = match rest.find(|c: char| !c.is_ascii_digit()) {
            None => (rest, ""),
            Some(at) => rest.split_at(at),
        };
        let number = |text: &str| text.parse::<i64>().ok().map(|n| -n);
        let (rank, minor) = match stage {
            "" => (0, 0),
            _ if stage.starts_with("beta") => (1, number(&stage[4..])?),
            _ if stage.starts_with("alpha") => (2, number(&stage[5..])?),
            _ => return None,
        };
        Some((rank, number(major)?, minor))
    });
    match parsed {
        Some((rank, major, minor)) => (rank, major, minor, String::new()),
        None => (3, 0, 0, version.to_owned()),
    }
}

fn group_entry(group: &str, versions: &[&str]) -> Value {
    let entry = |v: &str| json!({"groupVersion": api_version(group, v), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(|v| entry(v)).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(|v| entry(v)),
    })
}

/// `GET /apis`
pub fn groups(rows: &[Arc<Resource>]) -> Value {
    let named = by_group(rows).into_iter().filter(|(group, _)| !group.is_empty());
    json!({
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": named.map(|(group, versions)| group_entry(group, &versions)).collect::<Vec<_>>(),
    })
}

/// `GET /apis/<group>`
pub fn group(rows: &[Arc<Resource>], name: &str) -> Option<Value> {
    let groups = by_group(rows);
    let (group, versions) = groups.iter().find(|(group, _)| *group == name && !name.is_empty())?;
    let mut entry = group_entry(group, versions);
    entry["kind"] = json!("APIGroup");
    entry["apiVersion"] = json!("v1");
    Some(entry)
}

/// `GET /api/v1` or `/apis/<group>/<version>`
pub fn resources(rows: &[Arc<Resource>], group: &str, version: &str) -> Option<Value> {
    let mut entries = Vec::new();
    for row in of_version(rows, group, version) {
        entries.push(resource_entry(row));
        entries.extend(row.subresources.iter().map(|sub| subresource_entry(row, sub)));
    }
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|a, b| name(a).cmp(name(b)));
    let mut list = json!({
        "kind": "APIResourceList",
        "groupVersion": api_version(group, version),
        "resources": entries,
    });
    // Upstream leaves it out of the core group's document.
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Some(list)
}

fn name(entry: &Value) -> &str {
    entry["name"].as_str().unwrap_or_default()
}

fn of_version<'a>(
    rows: &'a [Arc<Resource>],
    group: &str,
    version: &str,
) -> impl Iterator<Item = &'a Arc<Resource>> {
    rows.iter().filter(move |row| row.group == group && row.version == version)
}

fn verbs(row: &Resource) -> &'static [&'static str] {
    match row.verbs {
        Verbs::All => &ALL,
        Verbs::CreateOnly => &CREATE,
    }
}

fn resource_entry(row: &Resource) -> Value {
    let mut entry = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": verbs(row),
    });
    for (field, names) in [("shortNames", &row.short_names), ("categories", &row.categories)] {
        if !names.is_empty() {
            entry[field] = json!(names);
        }
    }
    if row.verbs == Verbs::All {
        entry["storageVersionHash"] = json!(storage_hash(row));
    }
    entry
}

/// As upstream computes it: the first eight bytes of a hash over group, version and kind.
fn storage_hash(row: &Resource) -> String {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let (group, version) = &row.storage.version;
    let digest = Sha256::digest(format!("{group}/{version}/{}", row.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// What a subresource answers with, and its verbs.
struct Answers<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    verbs: &'static [&'static str],
}

fn answers<'a>(row: &'a Resource, sub: &'a Subresource) -> Answers<'a> {
    let own = |verbs| Answers { group: &row.group, version: &row.version, kind: &row.kind, verbs };
    let core = |kind, verbs| Answers { group: "", version: "v1", kind, verbs };
    match &sub.action {
        Action::Part { .. } => own(&PART),
        Action::Scale { .. } => {
            Answers { group: "autoscaling", version: "v1", kind: "Scale", verbs: &PART }
        }
        Action::Post { group, version, kind, .. } => {
            Answers { group, version, kind, verbs: &CREATE }
        }
        Action::Connect(connect) => match connect {
            Connect::Log => own(&GET),
            Connect::Exec => core("PodExecOptions", &STREAM),
            Connect::Attach => core("PodAttachOptions", &STREAM),
            Connect::PortForward => core("PodPortForwardOptions", &STREAM),
            Connect::Proxy => core(proxy_options(row), &PROXY),
        },
    }
}

/// The options of `proxy` are named after the kind.
fn proxy_options(row: &Resource) -> &'static str {
    match &*row.plural {
        "nodes" => "NodeProxyOptions",
        "services" => "ServiceProxyOptions",
        _ => "PodProxyOptions",
    }
}

fn subresource_entry(row: &Resource, sub: &Subresource) -> Value {
    let answers = answers(row, sub);
    let mut entry = json!({
        "name": format!("{}/{}", row.plural, sub.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": answers.kind,
        "verbs": answers.verbs,
    });
    if (answers.group, answers.version) != (&*row.group, &*row.version) {
        if !answers.group.is_empty() {
            entry["group"] = json!(answers.group);
        }
        entry["version"] = json!(answers.version);
    }
    entry
}

/// `GET /api` or `/apis` as `APIGroupDiscoveryList`, v2.
pub fn aggregated(rows: &[Arc<Resource>], core: bool) -> Value {
    let groups = by_group(rows).into_iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> =
                versions.iter().map(|v| aggregated_version(rows, group, v)).collect();
            let mut metadata = json!({"creationTimestamp": null});
            if !group.is_empty() {
                metadata["name"] = json!(group);
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_version(rows: &[Arc<Resource>], group: &str, version: &str) -> Value {
    let mut resources: Vec<Value> = of_version(rows, group, version)
        .map(|row| {
            let mut entry = json!({
                "resource": row.plural,
                "responseKind": kind(&row.group, &row.version, &row.kind),
                "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": row.singular,
                "verbs": verbs(row),
            });
            for (field, names) in
                [("shortNames", &row.short_names), ("categories", &row.categories)]
            {
                if !names.is_empty() {
                    entry[field] = json!(names);
                }
            }
            let mut subresources: Vec<Value> = row
                .subresources
                .iter()
                .map(|sub| {
                    let a = answers(row, sub);
                    json!({
                        "subresource": sub.name,
                        "responseKind": kind(a.group, a.version, a.kind),
                        "verbs": a.verbs,
                    })
                })
                .collect();
            subresources.sort_by_key(|s| s["subresource"].to_string());
            if !subresources.is_empty() {
                entry["subresources"] = json!(subresources);
            }
            entry
        })
        .collect();
    resources.sort_by_key(|r| r["resource"].to_string());
    json!({"version": version, "freshness": "Current", "resources": resources})
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    let mut out = Map::new();
    for (field, text) in [("group", group), ("version", version), ("kind", kind)] {
        out.insert(field.to_owned(), json!(text));
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::kinds::{self, Deps};
    use apimachinery::schema::Registry;

    fn rows() -> Vec<Arc<Resource>> {
        kinds::all(Registry::builtin(), &Deps::default()).into_iter().map(Arc::new).collect()
    }

    #[test]
    fn stable_versions_come_first() {
        let mut versions = vec!["v1beta2", "v2", "v1alpha1", "v10", "v1", "v1beta10", "other"];
        versions.sort_by_key(|v| version_order(v));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "other"]);
    }

    #[test]
    fn every_row_is_in_both_forms() {
        let rows = rows();
        for row in &rows {
            let legacy = resources(&rows, &row.group, &row.version).expect("a document");
            let legacy = legacy["resources"].as_array().expect("a list").clone();
            assert!(legacy.iter().any(|r| name(r) == row.plural), "{}", row.plural);
            let list = aggregated(&rows, row.group.is_empty());
            let text = list.to_string();
            assert!(text.contains(&format!("\"resource\":\"{}\"", row.plural)), "{}", row.plural);
        }
        assert!(resources(&rows, "nowhere", "v1").is_none());
        assert!(group(&rows, "").is_none());
        assert_eq!(
            group(&rows, "apps").map(|g| g["preferredVersion"]["version"].clone()),
            Some(json!("v1"))
        );
    }
}
