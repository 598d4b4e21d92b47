//! The roles and bindings that every cluster starts with, and how they are kept
//! (upstream: `rbac/bootstrappolicy`, component-helpers `auth/rbac/reconciliation`).

use std::sync::LazyLock;

use apimachinery::gvk::GroupResource;
use apimachinery::selector::LabelSelector;
use apimachinery::{Value, object};
use serde_json::{Map, json};

use super::{RBAC_GROUP, Rule, rule};

/// An object that says `"false"` here is left alone.
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const POLICY: &str = include_str!("policy.txt");

/// All default objects, roles before bindings, with the resource each belongs to.
pub fn expected() -> Vec<(GroupResource, Value)> {
    EXPECTED.clone()
}

/// The rules of a default ClusterRole.
pub fn cluster_role_rules(name: &str) -> Vec<Rule> {
    let found =
        EXPECTED.iter().find(|(r, o)| r.resource == "clusterroles" && object::name(o) == name);
    found.map(|(_, role)| Rule::list(role)).unwrap_or_default()
}

static EXPECTED: LazyLock<Vec<(GroupResource, Value)>> = LazyLock::new(|| {
    let mut objects: Vec<(GroupResource, Value)> = Vec::new();
    for line in POLICY.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix("role ") {
            objects.push(role(rest));
        } else if let Some(rest) = line.strip_prefix("bind ") {
            objects.push(binding(rest));
        } else if let (Some(rule), Some((_, role))) = (parse_rule(line), objects.last_mut())
            && let Some(rules) = role.get_mut("rules").and_then(Value::as_array_mut)
        {
            rules.push(rule.to_value());
        }
    }
    objects
});

/// Reads a row of a rule. `None`: it is no rule.
pub(crate) fn parse_rule(row: &str) -> Option<Rule> {
    let list = |text: &str| -> Vec<String> {
        let unquote = |s: &str| if s == "core" { String::new() } else { s.to_owned() };
        text.trim().split(',').map(unquote).collect()
    };
    let cells: Vec<&str> = row.split('|').collect();
    match cells.as_slice() {
        [verbs, urls] => Some(Rule { verbs: list(verbs), urls: list(urls), ..Rule::default() }),
        [verbs, groups, resources, names @ ..] if names.len() < 2 => Some(Rule {
            verbs: list(verbs),
            groups: list(groups),
            resources: list(resources),
            names: names.first().map(|n| list(n)).unwrap_or_default(),
            urls: Vec::new(),
        }),
        _ => None,
    }
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"},
    });
    if namespace != "-" {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn kinds<'a>(namespace: &str, cluster: [&'a str; 2], local: [&'a str; 2]) -> [&'a str; 2] {
    if namespace == "-" { cluster } else { local }
}

fn role(row: &str) -> (GroupResource, Value) {
    let (row, aggregates) = match row.split_once("<-") {
        Some((row, labels)) => (row, Some(labels)),
        None => (row, None),
    };
    let mut words = row.split_whitespace();
    let (namespace, name) = (words.next().unwrap_or("-"), words.next().unwrap_or_default());
    let [kind, resource] = kinds(namespace, ["ClusterRole", "clusterroles"], ["Role", "roles"]);
    let mut metadata = metadata(namespace, name);
    for (label, value) in words.filter_map(|w| w.split_once('=')) {
        metadata["labels"][label] = value.into();
    }
    let mut role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": metadata, "rules": [],
    });
    if let Some(labels) = aggregates {
        let selectors: Vec<Value> =
            labels.split_whitespace().map(|l| json!({"matchLabels": {l: "true"}})).collect();
        role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
    }
    (GroupResource::new(RBAC_GROUP, resource), role)
}

fn binding(row: &str) -> (GroupResource, Value) {
    let (row, subjects) = row.split_once(" :").unwrap_or((row, ""));
    let mut words = row.split_whitespace();
    let (namespace, name) = (words.next().unwrap_or("-"), words.next().unwrap_or_default());
    let (role_kind, role) = (words.nth(1).unwrap_or_default(), words.next().unwrap_or_default());
    let [kind, resource] = kinds(
        namespace,
        ["ClusterRoleBinding", "clusterrolebindings"],
        ["RoleBinding", "rolebindings"],
    );
    let subject = |word: &str| -> Option<Value> {
        Some(match word.split_once('=')? {
            ("user", name) => json!({"kind": "User", "apiGroup": RBAC_GROUP, "name": name}),
            ("group", name) => json!({"kind": "Group", "apiGroup": RBAC_GROUP, "name": name}),
            (_, account) => {
                let (namespace, name) = account.split_once('/')?;
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
        })
    };
    let mut binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": role_kind, "name": role},
    });
    let subjects: Vec<Value> = subjects.split_whitespace().filter_map(subject).collect();
    if !subjects.is_empty() {
        binding["subjects"] = subjects.into();
    }
    (GroupResource::new(RBAC_GROUP, resource), binding)
}

/// What has to be written so that a default object is as expected; `None`: nothing.
///
/// Labels, annotations, rules and subjects are added, never taken away, except that a role that
/// should not aggregate stops to. A binding to another role must be deleted and made anew: see
/// [`must_recreate`]; the value is then the new binding, without uid and resourceVersion.
pub fn reconcile(existing: Option<&Value>, expected: &Value) -> Option<Value> {
    let Some(existing) = existing else { return Some(expected.clone()) };
    if object::annotation(existing, AUTO_UPDATE) == Some("false") {
        return None;
    }
    let mut result = existing.clone();
    if must_recreate(existing, expected) {
        if let Some(metadata) = result.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("uid");
            metadata.remove("resourceVersion");
            metadata.remove("creationTimestamp");
        }
        result["roleRef"] = expected["roleRef"].clone();
    }
    for field in ["labels", "annotations"] {
        let wanted = object::map_at(expected, &["metadata", field]).cloned().unwrap_or_default();
        for (key, value) in wanted {
            if !object::map_at(existing, &["metadata", field]).is_some_and(|m| m.contains_key(&key))
            {
                object::map_mut(&mut result, &["metadata", field]).insert(key, value);
            }
        }
    }
    if expected.get("roleRef").is_some() {
        add_subjects(&mut result, expected);
    } else {
        add_rules(&mut result, existing, expected);
    }
    (result != *existing).then_some(result)
}

/// Whether a binding refers to another role than it should: that cannot be updated.
pub fn must_recreate(existing: &Value, expected: &Value) -> bool {
    expected.get("roleRef").is_some() && existing.get("roleRef") != expected.get("roleRef")
}

fn append(object: &mut Value, field: &str, items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    match object.get_mut(field).and_then(Value::as_array_mut) {
        Some(list) => list.extend(items),
        None => object[field] = items.into(),
    }
}

fn add_subjects(result: &mut Value, expected: &Value) {
    let have = object::list_at(result, &["subjects"]);
    let wanted = object::list_at(expected, &["subjects"]).iter();
    let missing: Vec<Value> = wanted.filter(|s| !have.contains(s)).cloned().collect();
    append(result, "subjects", missing);
}

fn add_rules(result: &mut Value, existing: &Value, expected: &Value) {
    let missing = rule::uncovered(&Rule::list(existing), &Rule::list(expected));
    append(result, "rules", missing.iter().map(Rule::to_value).collect());

    const SELECTORS: &[&str] = &["aggregationRule", "clusterRoleSelectors"];
    if object::get(expected, &["aggregationRule"]).is_none() {
        object::remove(result, &["aggregationRule"]);
        return;
    }
    let have = object::list_at(existing, SELECTORS);
    let wanted = object::list_at(expected, SELECTORS).iter();
    let missing: Vec<Value> = wanted.filter(|s| !have.contains(s)).cloned().collect();
    if !missing.is_empty() {
        let mut all = have.to_vec();
        all.extend(missing);
        object::set(result, SELECTORS, all);
    }
}

/// The rules that an aggregated ClusterRole should have: those of all roles that it selects,
/// each once, in the order of its selectors and of the roles' names. `None`: it is as it should
/// be, or aggregates nothing.
pub fn aggregate(role: &Value, roles: &[crate::reader::Object]) -> Option<Value> {
    let selectors = object::list_at(role, &["aggregationRule", "clusterRoleSelectors"]);
    if selectors.is_empty() {
        return None;
    }
    let mut sorted: Vec<&crate::reader::Object> = roles.iter().collect();
    sorted.sort_by_key(|r| object::name(r));
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let Ok(Some(selector)) = LabelSelector::from_json(Some(selector)) else { continue };
        for other in &sorted {
            let itself = object::name(other) == object::name(role);
            if itself || !selector.matches(|key| object::label(other, key)) {
                continue;
            }
            for rule in object::list_at(other, &["rules"]) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    if object::list_at(role, &["rules"]) == rules.as_slice() {
        return None;
    }
    let mut role = role.clone();
    role.as_object_mut().unwrap_or(&mut Map::new()).insert("rules".into(), rules.into());
    Some(role)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(resource: &str, name: &str) -> Value {
        let all = expected();
        let found = all.iter().find(|(r, o)| r.resource == resource && object::name(o) == name);
        found.map(|(_, o)| o.clone()).expect("a default object")
    }

    #[test]
    fn every_row_is_read() {
        let all = expected();
        let count = |resource: &str| all.iter().filter(|(r, _)| r.resource == resource).count();
        let rows = |start: &str| POLICY.lines().filter(|l| l.starts_with(start)).count();
        assert_eq!(count("clusterroles"), rows("role - "));
        assert_eq!(count("clusterroles") + count("roles"), rows("role "));
        assert_eq!(count("clusterrolebindings") + count("rolebindings"), rows("bind "));
        let rules: usize = all.iter().map(|(_, o)| Rule::list(o).len()).sum();
        assert_eq!(rules, rows("  "));
        for (_, binding) in all.iter().filter(|(r, _)| r.resource.ends_with("bindings")) {
            let kind = object::str_at(binding, &["roleRef", "kind"]);
            let name = object::str_at(binding, &["roleRef", "name"]);
            let namespace = object::namespace(binding);
            assert!(
                all.iter().any(|(_, o)| o["kind"] == kind
                    && object::name(o) == name
                    && (kind == "ClusterRole" || object::namespace(o) == namespace)),
                "{binding} refers to nothing"
            );
        }
    }

    #[test]
    fn rows_become_objects() {
        assert_eq!(
            find("clusterroles", "edit"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {
                    "name": "edit",
                    "labels": {
                        "kubernetes.io/bootstrapping": "rbac-defaults",
                        "rbac.authorization.k8s.io/aggregate-to-admin": "true",
                    },
                    "annotations": {AUTO_UPDATE: "true"},
                },
                "rules": [],
                "aggregationRule": {"clusterRoleSelectors": [
                    {"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}
                ]},
            })
        );
        assert_eq!(
            find("rolebindings", "system::leader-locking-kube-scheduler")["subjects"],
            json!([
                {"kind": "User", "apiGroup": RBAC_GROUP, "name": "system:kube-scheduler"},
                {"kind": "ServiceAccount", "name": "kube-scheduler", "namespace": "kube-system"},
            ])
        );
        assert!(find("clusterrolebindings", "system:node").get("subjects").is_none());
    }

    #[test]
    fn aggregated_roles_are_the_sum_of_those_selected() {
        let roles: Vec<crate::reader::Object> = expected()
            .into_iter()
            .filter(|(r, _)| r.resource == "clusterroles")
            .map(|(_, o)| o.into())
            .collect();
        let view = find("clusterroles", "view");
        let full = aggregate(&view, &roles).expect("rules");
        let parts = find("clusterroles", "system:aggregate-to-view");
        assert_eq!(full["rules"], parts["rules"]);
        assert_eq!(aggregate(&full, &roles), None);
        assert_eq!(aggregate(&parts, &roles), None);
    }

    #[test]
    fn what_is_missing_is_added() {
        let role = find("clusterroles", "system:basic-user");
        assert_eq!(reconcile(None, &role), Some(role.clone()));
        assert_eq!(reconcile(Some(&role), &role), None);

        let mut changed = role.clone();
        changed["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        changed["metadata"]["labels"] = json!({"mine": "1"});
        let result = reconcile(Some(&changed), &role).expect("an update");
        assert_eq!(result["metadata"]["labels"]["mine"], "1");
        assert_eq!(result["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
        let rules = Rule::list(&result);
        assert_eq!(rules.first().map(|r| r.resources.clone()), Some(vec!["pods".to_owned()]));
        assert!(rule::uncovered(&rules, &Rule::list(&role)).is_empty());

        changed["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(reconcile(Some(&changed), &role), None);

        let binding = find("clusterrolebindings", "cluster-admin");
        let mut changed = binding.clone();
        changed["subjects"] = json!([{"kind": "User", "apiGroup": RBAC_GROUP, "name": "a"}]);
        let result = reconcile(Some(&changed), &binding).expect("an update");
        assert_eq!(result["subjects"].as_array().map(Vec::len), Some(2));
        assert!(!must_recreate(&changed, &binding));
        changed["roleRef"]["name"] = "view".into();
        changed["metadata"]["uid"] = "1".into();
        assert!(must_recreate(&changed, &binding));
        let result = reconcile(Some(&changed), &binding).expect("a new binding");
        assert_eq!(result["roleRef"]["name"], "cluster-admin");
        assert!(object::uid(&result).is_empty());
    }
}
