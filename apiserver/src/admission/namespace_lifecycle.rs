//! NamespaceLifecycle: objects live in namespaces that exist and are not going away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::lookup::Lookup;
use super::{Attributes, Operation, Plugin};
use crate::authentication::Clock;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
/// For so long after a delete the caches are not trusted to know of it.
const DISTRUST: SignedDuration = SignedDuration::from_secs(30);
const DELETED_MAX: usize = 100;
/// How long a namespace may take to show after it was made.
const APPEARS: (u32, Duration) = (6, Duration::from_millis(50));

pub struct NamespaceLifecycle {
    lookup: Lookup,
    clock: Clock,
    namespaces: GroupResource,
    /// Namespaces deleted lately, with when.
    deleted: Mutex<HashMap<String, Timestamp>>,
}

impl NamespaceLifecycle {
    pub fn new(lookup: Lookup, clock: Clock) -> Self {
        Self {
            lookup,
            clock,
            namespaces: GroupResource::new("", "namespaces"),
            deleted: Mutex::default(),
        }
    }

    fn note_deletion(&self, name: &str) {
        let now = (self.clock)();
        let mut deleted = self.deleted.lock();
        deleted.retain(|_, at| now < *at + DISTRUST);
        if deleted.len() >= DELETED_MAX
            && let Some(oldest) = deleted.iter().min_by_key(|(_, at)| **at).map(|(n, _)| n.clone())
        {
            deleted.remove(&oldest);
        }
        deleted.insert(name.to_owned(), now);
    }

    fn deleted_lately(&self, name: &str) -> bool {
        let now = (self.clock)();
        self.deleted.lock().get(name).is_some_and(|at| now < *at + DISTRUST)
    }

    async fn namespace(&self, a: &Attributes<'_>) -> Option<Arc<Value>> {
        let phase = |n: &Value| object::str_at(n, &["status", "phase"]).to_owned();
        let cached = self.lookup.cached(&self.namespaces, "", a.namespace);
        match cached {
            Some(found) if phase(&found) == "Active" && self.deleted_lately(a.namespace) => {
                self.lookup.live(&self.namespaces, "", a.namespace).await
            }
            Some(found) => Some(found),
            None if a.operation == Operation::Create => {
                self.lookup.patient(&self.namespaces, "", a.namespace, APPEARS).await
            }
            None => self.lookup.live(&self.namespaces, "", a.namespace).await,
        }
    }
}

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        if a.kind.group.is_empty() && a.kind.kind == "Namespace" {
            if a.operation == Operation::Delete {
                if IMMORTAL.contains(&a.name) {
                    return Err(ApiError::Forbidden {
                        resource: a.resource.clone(),
                        name: a.name.to_owned(),
                        reason: "this namespace may not be deleted".to_owned(),
                    });
                }
                self.note_deletion(a.name);
            }
            return Ok(());
        }
        let review = a.resource.group == "authorization.k8s.io"
            && a.resource.resource == "localsubjectaccessreviews";
        if a.namespace.is_empty() || a.operation == Operation::Delete || review {
            return Ok(());
        }
        let Some(namespace) = self.namespace(a).await else {
            return Err(ApiError::NotFound {
                resource: self.namespaces.clone(),
                name: a.namespace.to_owned(),
            });
        };
        let terminating = object::str_at(&namespace, &["status", "phase"]) == "Terminating";
        if a.operation == Operation::Create && terminating {
            let refusal = super::forbidden(a, object.as_deref(), "");
            let name = match refusal {
                ApiError::Forbidden { name, .. } => name,
                _ => a.name.to_owned(),
            };
            return Err(ApiError::NamespaceTerminating {
                resource: a.resource.clone(),
                name,
                namespace: a.namespace.to_owned(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;
    use serde_json::json;

    fn plugin() -> NamespaceLifecycle {
        let namespace = |name: &str, phase: &str| {
            ("", "namespaces", json!({"metadata": {"name": name}, "status": {"phase": phase}}))
        };
        let reader = Memory::with(&[namespace("a", "Active"), namespace("gone", "Terminating")]);
        NamespaceLifecycle::new(Lookup { reader, live: None }, Arc::new(|| Timestamp::UNIX_EPOCH))
    }

    #[tokio::test(start_paused = true)]
    async fn namespaces_must_be_there() {
        use Operation::{Create, Delete, Update};
        let pod = json!({"metadata": {"name": "p"}});
        // operation, kind, resource, namespace, name, message
        let cases = [
            (Create, "Pod", "pods", "a", "", ""),
            (
                Create,
                "Pod",
                "pods",
                "gone",
                "",
                r#"pods "p" is forbidden: unable to create new content in namespace gone because it is being terminated"#,
            ),
            (Update, "Pod", "pods", "gone", "p", ""),
            (Create, "Pod", "pods", "none", "", r#"namespaces "none" not found"#),
            (Update, "Pod", "pods", "none", "p", r#"namespaces "none" not found"#),
            (Delete, "Pod", "pods", "none", "p", ""),
            (Create, "Node", "nodes", "", "", ""),
            (Create, "Namespace", "namespaces", "none", "none", ""),
            (Delete, "Namespace", "namespaces", "a", "a", ""),
            (
                Delete,
                "Namespace",
                "namespaces",
                "default",
                "default",
                r#"namespaces "default" is forbidden: this namespace may not be deleted"#,
            ),
            (Delete, "Namespace", "namespaces", "kube-node-lease", "kube-node-lease", ""),
        ];
        for (operation, kind, resource, namespace, name, want) in cases {
            let object = if operation == Delete { Value::Null } else { pod.clone() };
            let write =
                Write { operation, kind, resource, namespace, name, object, ..Write::default() };
            let got = write.run(&plugin()).await.err().unwrap_or_default();
            assert_eq!(got, want, "{operation:?} {kind} in {namespace}");
        }
        let write = Write { namespace: "gone", object: pod, ..Write::default() };
        let error = write.try_on(&plugin()).await.expect_err("refused");
        assert_eq!(error.code(), 403);
        assert_eq!(
            error.status()["details"]["causes"],
            json!([{
                "reason": "NamespaceTerminating", "message": "namespace gone is being terminated",
                "field": "metadata.namespace",
            }])
        );
    }

    struct Store(Value);

    #[async_trait]
    impl super::super::lookup::Live for Store {
        async fn get(&self, _: &GroupResource, _: &str, _: &str) -> Option<Arc<Value>> {
            Some(Arc::new(self.0.clone()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_deleted_a_moment_ago_is_asked_of_the_store() {
        let mut plugin = plugin();
        plugin.lookup.live = Some(Arc::new(Store(json!({"status": {"phase": "Terminating"}}))));
        let create = Write { object: json!({"metadata": {"name": "p"}}), ..Write::default() };
        assert!(create.run(&plugin).await.is_ok());
        let delete = Write {
            operation: Operation::Delete,
            kind: "Namespace",
            resource: "namespaces",
            name: "a",
            ..Write::default()
        };
        assert!(delete.run(&plugin).await.is_ok());
        assert!(create.run(&plugin).await.is_err());
        for i in 0..200 {
            plugin.note_deletion(&i.to_string());
        }
        assert_eq!(plugin.deleted.lock().len(), DELETED_MAX);
    }
}
