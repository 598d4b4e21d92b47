//! Role-based access control over the caches.
//!
//! Bindings are kept by subject, compiled with the rules of their roles, and compiled again when
//! one of the four resources has changed: a decision looks up the user's name and groups and
//! never walks all bindings.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::{Value, object};
use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use super::{Attributes, Authorizer, Decision, Grants, RBAC_GROUP, Rule, aggregate};
use crate::authentication::User;
use crate::reader::Reader;

const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Why the rules of a binding cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("clusterrole.{RBAC_GROUP} {0:?} not found")]
    ClusterRole(String),
    #[error("role.{RBAC_GROUP} {0:?} not found")]
    Role(String),
    /// A Role that is looked for outside of any namespace.
    #[error("Namespace parameter required.")]
    Nowhere,
    #[error("unsupported role reference kind: {0:?}")]
    Kind(String),
}

type Rules = Result<Arc<[Rule]>, Unresolved>;

/// Whom a subject of a binding names. Service accounts are their user names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

struct Binding {
    rules: Rules,
    /// `ClusterRoleBinding "a" of ClusterRole "b" to `; the subject follows.
    description: String,
    subjects: Vec<String>,
}

/// A binding and which of its subjects it is.
type Entry = (u32, u32);

#[derive(Default)]
struct Compiled {
    versions: [u64; 4],
    bindings: Vec<Binding>,
    cluster: HashMap<Subject, Vec<Entry>>,
    namespaced: HashMap<String, HashMap<Subject, Vec<Entry>>>,
}

/// The authorizer of mode `RBAC`.
pub struct Rbac {
    reader: Arc<dyn Reader>,
    resources: [GroupResource; 4],
    compiled: RwLock<Arc<Compiled>>,
    /// Held while compiling, so that only one does.
    compiling: Mutex<()>,
}

impl Rbac {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self {
            reader,
            resources: RESOURCES.map(|r| GroupResource::new(RBAC_GROUP, r)),
            compiled: RwLock::new(Arc::new(Compiled {
                versions: [u64::MAX; 4],
                ..Compiled::default()
            })),
            compiling: Mutex::new(()),
        }
    }

    fn versions(&self) -> [u64; 4] {
        std::array::from_fn(|i| self.resources.get(i).map_or(0, |r| self.reader.version(r)))
    }

    fn current(&self) -> Arc<Compiled> {
        let compiled = self.compiled.read().clone();
        if compiled.versions == self.versions() {
            return compiled;
        }
        let _one = self.compiling.lock();
        // Read before the objects: what changes meanwhile shows as another version next time.
        let versions = self.versions();
        let compiled = self.compiled.read().clone();
        if compiled.versions == versions {
            return compiled;
        }
        let compiled = Arc::new(self.compile(versions));
        *self.compiled.write() = compiled.clone();
        compiled
    }

    fn compile(&self, versions: [u64; 4]) -> Compiled {
        let [cluster_roles, roles, cluster_bindings, bindings] = &self.resources;
        let rules = |r: &GroupResource| -> HashMap<(String, String), Arc<[Rule]>> {
            let roles = self.reader.list(r, "");
            let key = |o: &Value| (object::namespace(o).to_owned(), object::name(o).to_owned());
            roles.iter().map(|o| (key(o), Rule::list(o).into())).collect()
        };
        let (cluster_roles, roles) = (rules(cluster_roles), rules(roles));
        let resolve = |binding: &Value| -> Rules {
            let name = object::str_at(binding, &["roleRef", "name"]).to_owned();
            match object::str_at(binding, &["roleRef", "kind"]) {
                "ClusterRole" => cluster_roles
                    .get(&(String::new(), name.clone()))
                    .cloned()
                    .ok_or(Unresolved::ClusterRole(name)),
                "Role" => roles
                    .get(&(object::namespace(binding).to_owned(), name.clone()))
                    .cloned()
                    .ok_or(Unresolved::Role(name)),
                kind => Err(Unresolved::Kind(kind.to_owned())),
            }
        };
        let mut compiled = Compiled { versions, ..Compiled::default() };
        for binding in self.reader.list(cluster_bindings, "") {
            compiled.add(&binding, resolve(&binding));
        }
        for binding in self.reader.list(bindings, "") {
            compiled.add(&binding, resolve(&binding));
        }
        compiled
    }

    /// Visits the bindings of a user that apply in a namespace (empty: cluster-wide ones alone)
    /// until `visit` returns false. The text says which binding and subject.
    fn visit(
        &self,
        user: &User,
        namespace: &str,
        mut visit: impl FnMut(&Rules, &dyn Fn() -> String) -> bool,
    ) {
        let compiled = self.current();
        let mut subjects = Vec::with_capacity(user.groups.len() + 1);
        subjects.push(Subject::User(user.name.clone()));
        subjects.extend(user.groups.iter().cloned().map(Subject::Group));
        let local = compiled.namespaced.get(namespace).filter(|_| !namespace.is_empty());
        for scope in [Some(&compiled.cluster), local].into_iter().flatten() {
            let mut entries: Vec<Entry> =
                subjects.iter().filter_map(|s| scope.get(s)).flatten().copied().collect();
            entries.sort_unstable();
            entries.dedup_by_key(|(binding, _)| *binding);
            for (binding, subject) in entries {
                let Some(binding) = compiled.bindings.get(binding as usize) else { continue };
                let describe = || {
                    let subject = binding.subjects.get(subject as usize);
                    format!("{}{}", binding.description, subject.map_or("", |s| s))
                };
                if !visit(&binding.rules, &describe) {
                    return;
                }
            }
        }
    }

    /// All rules of a user in a namespace, and what could not be resolved.
    pub fn rules_for(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<Unresolved>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        self.visit(user, namespace, |found, _| {
            match found {
                Ok(found) => rules.extend(found.iter().cloned()),
                Err(e) => errors.push(e.clone()),
            }
            true
        });
        (rules, errors)
    }

    /// The rules of the role that a binding in a namespace refers to.
    ///
    /// # Errors
    /// The role does not exist or is of no known kind.
    pub fn referenced(&self, role_ref: &Value, namespace: &str) -> Result<Vec<Rule>, Unresolved> {
        let name = object::str_at(role_ref, &["name"]);
        let [cluster_roles, roles, ..] = &self.resources;
        let (resource, namespace, missing) = match object::str_at(role_ref, &["kind"]) {
            "ClusterRole" => (cluster_roles, "", Unresolved::ClusterRole(name.to_owned())),
            "Role" if namespace.is_empty() => return Err(Unresolved::Nowhere),
            "Role" => (roles, namespace, Unresolved::Role(name.to_owned())),
            kind => return Err(Unresolved::Kind(kind.to_owned())),
        };
        self.reader.get(resource, namespace, name).map(|r| Rule::list(&r)).ok_or(missing)
    }
}

impl Compiled {
    fn add(&mut self, binding: &Value, rules: Rules) {
        let namespace = object::namespace(binding);
        let index = self.bindings.len() as u32;
        let scope = match namespace {
            "" => &mut self.cluster,
            namespace => self.namespaced.entry(namespace.to_owned()).or_default(),
        };
        let mut described = Vec::new();
        for (i, subject) in object::list_at(binding, &["subjects"]).iter().enumerate() {
            let kind = object::str_at(subject, &["kind"]);
            let name = object::str_at(subject, &["name"]);
            let (key, text) = match kind {
                "User" => (Some(Subject::User(name.to_owned())), name.to_owned()),
                "Group" => (Some(Subject::Group(name.to_owned())), name.to_owned()),
                "ServiceAccount" => {
                    let own = object::str_at(subject, &["namespace"]);
                    let of = if own.is_empty() { namespace } else { own };
                    let user = format!("system:serviceaccount:{of}:{name}");
                    let key = (!of.is_empty()).then_some(Subject::User(user));
                    (key, format!("{name}/{of}"))
                }
                _ => (None, name.to_owned()),
            };
            described.push(format!("{kind} {text:?}"));
            if let Some(key) = key {
                scope.entry(key).or_default().push((index, i as u32));
            }
        }
        let name = object::name(binding);
        let (kind, name) = match namespace {
            "" => ("ClusterRoleBinding", name.to_owned()),
            namespace => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let description = format!(
            "{kind} {name:?} of {} {:?} to ",
            object::str_at(binding, &["roleRef", "kind"]),
            object::str_at(binding, &["roleRef", "name"]),
        );
        self.bindings.push(Binding { rules, description, subjects: described });
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut allowed = None;
        let mut errors = Vec::new();
        self.visit(attributes.user, &attributes.request.namespace, |rules, describe| {
            match rules {
                Ok(rules) if rules.iter().any(|r| r.allows(attributes)) => {
                    allowed = Some(format!("RBAC: allowed by {}", describe()));
                }
                Ok(_) => {}
                Err(e) => errors.push(e.to_string()),
            }
            allowed.is_none()
        });
        match allowed {
            Some(reason) => Decision::Allow { reason },
            None if errors.is_empty() => Decision::no_opinion(""),
            None => Decision::no_opinion(format!("RBAC: {}", aggregate(&errors))),
        }
    }

    fn grants(&self, user: &User, namespace: &str) -> Grants {
        let (rules, errors) = self.rules_for(user, namespace);
        Grants {
            rules,
            incomplete: false,
            errors: errors.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::bootstrap;
    use crate::authorization::testing::{Memory, user};
    use crate::request::RequestInfo;
    use serde_json::json;

    fn defaults() -> Arc<Memory> {
        let memory = Arc::new(Memory::default());
        for (resource, object) in bootstrap::expected() {
            memory.put(&resource.group, &resource.resource, object);
        }
        memory
    }

    fn request(verb: &str, group: &str, resource: &str, namespace: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            ..RequestInfo::default()
        }
    }

    fn binding(namespace: &str, name: &str, role: (&str, &str), subject: Value) -> Value {
        let mut metadata = json!({"name": name});
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        json!({
            "metadata": metadata, "subjects": [{"kind": "User", "name": "nobody"}, subject],
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": role.0, "name": role.1},
        })
    }

    #[tokio::test]
    async fn decisions() {
        let memory = defaults();
        let put = |resource: &str, value| memory.put(RBAC_GROUP, resource, value);
        put(
            "roles",
            json!({
                "metadata": {"name": "reader", "namespace": "a"},
                "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
            }),
        );
        let account = json!({"kind": "ServiceAccount", "name": "sa"});
        put("rolebindings", binding("a", "b1", ("Role", "reader"), account.clone()));
        put("rolebindings", binding("a", "b2", ("Role", "gone"), account.clone()));
        put("rolebindings", binding("b", "b3", ("ClusterRole", "cluster-admin"), account));
        let group = json!({"kind": "Group", "name": "g"});
        put("clusterrolebindings", binding("", "cb", ("ClusterRole", "gone"), group));
        let rbac = Rbac::new(memory.clone());

        let sa = user("system:serviceaccount:a:sa", &[]);
        let cases = [
            (
                &sa,
                request("get", "", "pods", "a"),
                r#"+RBAC: allowed by RoleBinding "b1/a" of Role "reader" to ServiceAccount "sa/a""#,
            ),
            (&sa, request("get", "", "pods", "c"), ""),
            (
                &sa,
                request("list", "", "pods", "a"),
                r#"RBAC: role.rbac.authorization.k8s.io "gone" not found"#,
            ),
            (&sa, request("get", "", "pods", ""), ""),
            (
                &user("system:serviceaccount:b:sa", &[]),
                request("bind", "x", "y", "b"),
                r#"+RBAC: allowed by RoleBinding "b3/b" of ClusterRole "cluster-admin" to ServiceAccount "sa/b""#,
            ),
            (
                &user("x", &["g"]),
                request("get", "", "pods", "a"),
                r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#,
            ),
            (
                &user("x", &["system:masters"]),
                request("get", "", "pods", ""),
                r#"+RBAC: allowed by ClusterRoleBinding "cluster-admin" of ClusterRole "cluster-admin" to Group "system:masters""#,
            ),
        ];
        for (user, request, want) in cases {
            let got = match rbac.authorize(&Attributes { user, request: &request }).await {
                Decision::Allow { reason } => format!("+{reason}"),
                Decision::Deny { reason } | Decision::NoOpinion { reason } => reason,
            };
            assert_eq!(got, want, "{user:?} {request:?}");
        }
    }

    #[tokio::test]
    async fn changes_show_at_once() {
        let memory = defaults();
        let rbac = Rbac::new(memory.clone());
        let user = user("x", &[]);
        let request = request("get", "", "pods", "a");
        let attributes = Attributes { user: &user, request: &request };
        let allowed = async || matches!(rbac.authorize(&attributes).await, Decision::Allow { .. });
        assert!(!allowed().await);
        let subject = json!({"kind": "User", "name": "x"});
        let b = binding("a", "b", ("ClusterRole", "system:aggregate-to-view"), subject);
        memory.put(RBAC_GROUP, "rolebindings", b);
        assert!(allowed().await);
        memory.remove(RBAC_GROUP, "rolebindings", "a", "b");
        assert!(!allowed().await);
    }
}
