//! Nobody grants what they do not hold: checks of writes to roles and bindings
//! (upstream: `registry/rbac/*/policybased`). Shaped as an admission plugin that comes last of
//! the mutating ones, which is where upstream's checks stand.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::rbac::{Rbac, Unresolved};
use super::rule::{self, Rule, quoted};
use super::{Attributes, Authorizer, Decision, RBAC_GROUP};
use crate::admission::{self, Operation};
use crate::authentication::{MASTERS, User};
use crate::request::RequestInfo;

/// Whether a user's rules cover `wanted` in a namespace. `written`: the resource that is written;
/// roles that are missing are reported as if they were of it, as upstream does.
///
/// # Errors
/// Upstream's text, with the permissions that are missing.
pub fn confirm(
    rbac: &Rbac,
    user: &User,
    (written, namespace): (&GroupResource, &str),
    wanted: &[Rule],
) -> Result<(), String> {
    let (owned, unresolved) = rbac.rules_for(user, namespace);
    let missing = rule::uncovered(&owned, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        rule::describe_missing(&missing).join("\n")
    );
    if !unresolved.is_empty() {
        let texts: Vec<String> =
            unresolved.iter().map(|u| not_found(u, written).message()).collect();
        text.push_str(&format!("; resolution errors: [{}]", super::aggregate(&texts)));
    }
    Err(text)
}

fn not_found(unresolved: &Unresolved, written: &GroupResource) -> ApiError {
    match unresolved {
        Unresolved::ClusterRole(name) | Unresolved::Role(name) => {
            ApiError::NotFound { resource: written.clone(), name: name.clone() }
        }
        Unresolved::Nowhere => ApiError::BadRequest(unresolved.to_string()),
        // Upstream makes no Status of this error.
        Unresolved::Kind(_) => {
            ApiError::Other { code: 500, reason: String::new(), message: unresolved.to_string() }
        }
    }
}

/// Checks writes to Roles, ClusterRoles, RoleBindings and ClusterRoleBindings. Only wanted when
/// mode `RBAC` is on.
pub struct Plugin {
    rbac: Arc<Rbac>,
    authorizer: Arc<dyn Authorizer>,
}

impl Plugin {
    /// `authorizer`: the whole chain, asked for the verbs `escalate` and `bind`.
    pub fn new(rbac: Arc<Rbac>, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { rbac, authorizer }
    }

    async fn may(&self, user: &User, verb: &str, on: (&str, &str, &str), namespace: &str) -> bool {
        let (group, resource, name) = on;
        let request = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            group: group.to_owned(),
            version: "*".to_owned(),
            namespace: namespace.to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        let decision = self.authorizer.authorize(&Attributes { user, request: &request }).await;
        matches!(decision, Decision::Allow { .. })
    }

    async fn check_role(&self, a: &admission::Attributes<'_>, role: &Value) -> Result<(), String> {
        // The name of a create is not known to authorization, as it is not in the path.
        let name = if a.operation == Operation::Create { "" } else { a.name };
        let on = (a.resource.group.as_str(), a.resource.resource.as_str(), name);
        if self.may(a.user, "escalate", on, a.namespace).await {
            return Ok(());
        }
        confirm(&self.rbac, a.user, (a.resource, a.namespace), &Rule::list(role))?;
        let aggregates = |role: &Value| {
            !object::list_at(role, &["aggregationRule", "clusterRoleSelectors"]).is_empty()
        };
        if aggregates(role) || a.old.is_some_and(aggregates) {
            confirm(&self.rbac, a.user, (a.resource, a.namespace), &rule::full_authority())
                .map_err(|_| {
                    "must have cluster-admin privileges to use the aggregationRule".to_owned()
                })?;
        }
        Ok(())
    }

    async fn check_binding(
        &self,
        a: &admission::Attributes<'_>,
        binding: &Value,
    ) -> Result<(), ApiError> {
        let role_ref = binding.get("roleRef").unwrap_or(&Value::Null);
        let resource = match object::str_at(role_ref, &["kind"]) {
            "ClusterRole" => Some("clusterroles"),
            "Role" => Some("roles"),
            _ => None,
        };
        if let Some(resource) = resource {
            let group = object::str_at(role_ref, &["apiGroup"]);
            let on = (group, resource, object::str_at(role_ref, &["name"]));
            if self.may(a.user, "bind", on, a.namespace).await {
                return Ok(());
            }
        }
        let rules =
            self.rbac.referenced(role_ref, a.namespace).map_err(|u| not_found(&u, a.resource))?;
        confirm(&self.rbac, a.user, (a.resource, a.namespace), &rules)
            .map_err(|reason| refusal(a, binding, reason))
    }
}

fn refusal(a: &admission::Attributes<'_>, object: &Value, reason: String) -> ApiError {
    ApiError::Forbidden {
        resource: a.resource.clone(),
        name: object::name(object).to_owned(),
        reason,
    }
}

/// Whether an update changes nothing but what the garbage collector may.
fn only_for_gc(object: &Value, old: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "selfLink"] {
            object::remove(&mut v, &["metadata", field]);
        }
        v
    };
    strip(object) == strip(old)
}

#[async_trait]
impl admission::Plugin for Plugin {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn mutate(
        &self,
        a: &admission::Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        if a.resource.group != RBAC_GROUP || !a.subresource.is_empty() {
            return Ok(());
        }
        let Some(object) = object else { return Ok(()) };
        if a.user.groups.iter().any(|g| g == MASTERS)
            || a.old.is_some_and(|old| only_for_gc(object, old))
        {
            return Ok(());
        }
        match a.resource.resource.as_str() {
            "roles" | "clusterroles" => {
                self.check_role(a, object).await.map_err(|reason| refusal(a, object, reason))
            }
            "rolebindings" | "clusterrolebindings" => self.check_binding(a, object).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Plugin as _;
    use crate::authorization::Union;
    use crate::authorization::testing::{Memory, user};
    use apimachinery::gvk::GroupVersionKind;
    use serde_json::json;

    fn world() -> Arc<Memory> {
        let rules = |v: &[&str], r: &[&str]| json!([{"verbs": v, "apiGroups": ["", RBAC_GROUP], "resources": r}]);
        let role = |name: &str, rules: Value| {
            (RBAC_GROUP, "clusterroles", json!({"metadata": {"name": name}, "rules": rules}))
        };
        let bind = |name: &str, who: &str| {
            (
                RBAC_GROUP,
                "clusterrolebindings",
                json!({
                    "metadata": {"name": name}, "subjects": [{"kind": "User", "name": who}],
                    "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": name},
                }),
            )
        };
        Memory::with(&[
            role("pods", rules(&["get", "list"], &["pods"])),
            role("secrets", rules(&["get", "list"], &["secrets"])),
            role("escalate", rules(&["escalate", "bind"], &["roles", "clusterroles"])),
            bind("pods", "bob"),
            bind("escalate", "eve"),
        ])
    }

    async fn write(
        who: &User,
        resource: &str,
        namespace: &str,
        mut object: Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let rbac = Arc::new(Rbac::new(world()));
        let plugin = Plugin::new(rbac.clone(), Arc::new(Union(vec![rbac])));
        let attributes = admission::Attributes {
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            kind: &GroupVersionKind::new(RBAC_GROUP, "v1", ""),
            resource: &GroupResource::new(RBAC_GROUP, resource),
            version: "v1",
            subresource: "",
            namespace,
            name: "r",
            user: who,
            old,
            options: &Value::Null,
            dry_run: false,
            reinvocation: None,
        };
        plugin.mutate(&attributes, Some(&mut object), &mut Vec::new()).await
    }

    fn role(resource: &str) -> Value {
        json!({"metadata": {"name": "r"}, "rules": [
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": [resource]}
        ]})
    }

    fn bind(kind: &str, name: &str) -> Value {
        json!({"metadata": {"name": "r"},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": kind, "name": name}})
    }

    #[tokio::test]
    async fn only_what_is_held_is_granted() {
        let bob = user("bob", &["devs", "system:authenticated"]);
        let missing = r#" "r" is forbidden: user "bob" (groups=["devs" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#;
        let aggregating = json!({"metadata": {"name": "r"}, "aggregationRule":
            {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
        let refused = |resource: &str, text: &str| format!("{resource}.{RBAC_GROUP}{text}");
        let cases = [
            ("roles", "a", role("pods"), String::new()),
            ("clusterroles", "", role("pods"), String::new()),
            ("roles", "a", role("secrets"), refused("roles", missing)),
            ("rolebindings", "a", bind("ClusterRole", "pods"), String::new()),
            (
                "rolebindings",
                "a",
                bind("Role", "gone"),
                r#"rolebindings.rbac.authorization.k8s.io "gone" not found"#.into(),
            ),
            (
                "clusterrolebindings",
                "",
                bind("Role", "gone"),
                "Namespace parameter required.".into(),
            ),
            (
                "rolebindings",
                "a",
                bind("Foo", "x"),
                r#"unsupported role reference kind: "Foo""#.into(),
            ),
            (
                "clusterroles",
                "",
                aggregating.clone(),
                refused(
                    "clusterroles",
                    r#" "r" is forbidden: must have cluster-admin privileges to use the aggregationRule"#,
                ),
            ),
        ];
        for (resource, namespace, object, want) in cases {
            let got = write(&bob, resource, namespace, object.clone(), None).await;
            let got = got.err().map(|e| e.message()).unwrap_or_default();
            assert_eq!(got, want, "{resource} {object}");
            let root = user("root", &[MASTERS]);
            assert_eq!(write(&root, resource, namespace, object, None).await, Ok(()));
        }
        let eve = user("eve", &[]);
        for (resource, object) in [
            ("roles", role("secrets")),
            ("rolebindings", bind("ClusterRole", "secrets")),
            ("clusterroles", aggregating),
        ] {
            assert_eq!(write(&eve, resource, "", object, None).await, Ok(()));
        }
    }

    #[tokio::test]
    async fn the_garbage_collector_may_work() {
        let bob = user("bob", &[]);
        let old = role("secrets");
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["x"]);
        assert_eq!(write(&bob, "roles", "a", new.clone(), Some(&old)).await, Ok(()));
        new["metadata"]["labels"] = json!({"x": "y"});
        assert!(write(&bob, "roles", "a", new, Some(&old)).await.is_err());
    }
}
