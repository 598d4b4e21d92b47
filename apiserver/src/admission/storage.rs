//! DefaultStorageClass, StorageObjectInUseProtection, PersistentVolumeClaimResize, and
//! DefaultIngressClass, which is like the first.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::quantity::Quantity;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::{Attributes, Operation, Plugin, forbidden};
use crate::reader::{Object, Reader};

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn concerns(a: &Attributes<'_>, group: &str, resource: &str) -> bool {
    a.resource.group == group && a.resource.resource == resource && a.subresource.is_empty()
}

/// The newest of the classes that an annotation makes the default; of several of a time, the
/// first by name.
fn default_class(reader: &dyn Reader, of: &GroupResource, annotations: &[&str]) -> Option<Object> {
    reader
        .list(of, "")
        .into_iter()
        .filter(|c| annotations.iter().any(|a| object::annotation(c, a) == Some("true")))
        .min_by(|a, b| {
            let newest = object::creation_timestamp(b).cmp(object::creation_timestamp(a));
            newest.then_with(|| object::name(a).cmp(object::name(b)))
        })
}

/// Gives claims without a class the default one.
pub struct DefaultStorageClass(pub Arc<dyn Reader>);

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(claim) = object.filter(|_| concerns(a, "", "persistentvolumeclaims")) else {
            return Ok(());
        };
        let chosen = object::annotation(claim, CLASS_ANNOTATION).is_some()
            || object::get(claim, &["spec", "storageClassName"]).is_some();
        let classes = GroupResource::new("storage.k8s.io", "storageclasses");
        let annotations = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if !chosen && let Some(class) = default_class(&*self.0, &classes, &annotations) {
            object::set(claim, &["spec", "storageClassName"], object::name(&class));
        }
        Ok(())
    }
}

/// Gives ingresses without a class the default one.
pub struct DefaultIngressClass(pub Arc<dyn Reader>);

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(ingress) = object.filter(|_| concerns(a, "networking.k8s.io", "ingresses")) else {
            return Ok(());
        };
        let chosen = object::annotation(ingress, "kubernetes.io/ingress.class").is_some()
            || object::get(ingress, &["spec", "ingressClassName"]).is_some();
        let classes = GroupResource::new("networking.k8s.io", "ingressclasses");
        let annotations = ["ingressclass.kubernetes.io/is-default-class"];
        if !chosen && let Some(class) = default_class(&*self.0, &classes, &annotations) {
            object::set(ingress, &["spec", "ingressClassName"], object::name(&class));
        }
        Ok(())
    }
}

/// Puts finalizers on what must not go while it is used.
pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| a.subresource.is_empty()) else { return Ok(()) };
        let finalizer = match (a.resource.group.as_str(), a.resource.resource.as_str()) {
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        let mut finalizers: Vec<String> = object::finalizers(object).map(str::to_owned).collect();
        if !finalizers.iter().any(|f| f == finalizer) {
            finalizers.push(finalizer.to_owned());
            object::set(object, &["metadata", "finalizers"], finalizers);
        }
        Ok(())
    }
}

/// Lets claims grow only where their class allows it.
pub struct PersistentVolumeClaimResize(pub Arc<dyn Reader>);

impl PersistentVolumeClaimResize {
    fn allowed(&self, new: &Value, old: &Value) -> bool {
        let class = |claim: &Value| {
            let spec = object::str_at(claim, &["spec", "storageClassName"]);
            object::annotation(claim, CLASS_ANNOTATION).unwrap_or(spec).to_owned()
        };
        if class(new).is_empty() || class(new) != class(old) {
            return false;
        }
        let classes = GroupResource::new("storage.k8s.io", "storageclasses");
        let found = self.0.get(&classes, "", &class(new));
        found.is_some_and(|c| object::bool_at(&c, &["allowVolumeExpansion"]))
    }
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let (Some(new), Some(old)) = (object, a.old) else { return Ok(()) };
        if !concerns(a, "", "persistentvolumeclaims") {
            return Ok(());
        }
        let size = |claim: &Value| -> Quantity {
            let text = object::str_at(claim, &["spec", "resources", "requests", "storage"]);
            text.parse().unwrap_or(Quantity::ZERO)
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        if object::str_at(old, &["status", "phase"]) != "Bound" {
            let reason = "Only bound persistent volume claims can be expanded";
            return Err(forbidden(a, object, reason));
        }
        if !self.allowed(new, old) {
            let reason = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
            return Err(forbidden(a, object, reason));
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

    fn classes() -> Arc<Memory> {
        let class = |name: &str, created: &str, default: bool, grows: bool| {
            (
                "storage.k8s.io",
                "storageclasses",
                json!({
                    "metadata": {"name": name, "creationTimestamp": created, "annotations":
                        {"storageclass.kubernetes.io/is-default-class": default.to_string()}},
                    "allowVolumeExpansion": grows,
                }),
            )
        };
        Memory::with(&[
            class("old", "2020-01-01T00:00:00Z", true, false),
            class("b", "2021-01-01T00:00:00Z", true, true),
            class("a", "2021-01-01T00:00:00Z", true, false),
            class("newest", "2022-01-01T00:00:00Z", false, false),
        ])
    }

    #[tokio::test]
    async fn claims_get_the_newest_default_class_and_are_protected() {
        for (spec, want) in [
            (json!({}), "a"),
            (json!({"storageClassName": "x"}), "x"),
            (json!({"storageClassName": ""}), ""),
        ] {
            let object = json!({"metadata": {"name": "c"}, "spec": spec});
            let write = Write { resource: "persistentvolumeclaims", object, ..Write::default() };
            let got = write.run(&DefaultStorageClass(classes())).await.expect("admitted").0;
            assert_eq!(got["spec"]["storageClassName"], want);
            let got = write.run(&StorageObjectInUseProtection).await.expect("admitted").0;
            assert_eq!(got["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
            let again = Write {
                resource: "persistentvolumeclaims",
                object: got.clone(),
                ..Write::default()
            };
            let again = again.run(&StorageObjectInUseProtection).await.expect("admitted").0;
            assert_eq!(again, got);
        }
    }

    #[tokio::test]
    async fn claims_grow_where_their_class_allows() {
        let claim = |class: &str, size: &str, phase: &str| {
            json!({
                "metadata": {"name": "c"}, "status": {"phase": phase},
                "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}},
            })
        };
        let cases = [
            ("b", "1Gi", "2Gi", "Bound", ""),
            ("a", "1Gi", "1024Mi", "Bound", ""),
            ("a", "2Gi", "1Gi", "Pending", ""),
            ("b", "1Gi", "2Gi", "Pending", "Only bound persistent volume claims can be expanded"),
            (
                "a",
                "1Gi",
                "2Gi",
                "Bound",
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ),
        ];
        for (class, from, to, phase, want) in cases {
            let write = Write {
                operation: Operation::Update,
                resource: "persistentvolumeclaims",
                object: claim(class, to, phase),
                old: Some(claim(class, from, phase)),
                ..Write::default()
            };
            let got = write.run(&PersistentVolumeClaimResize(classes())).await.err();
            let want = (!want.is_empty())
                .then(|| format!("persistentvolumeclaims \"c\" is forbidden: {want}"));
            assert_eq!(got, want);
        }
    }

    #[tokio::test]
    async fn ingresses_get_the_default_class() {
        let reader = Memory::with(&[(
            "networking.k8s.io",
            "ingressclasses",
            json!({
                "metadata": {"name": "i", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            }),
        )]);
        for (metadata, want) in [
            (json!({"name": "x"}), json!("i")),
            (
                json!({"name": "x", "annotations": {"kubernetes.io/ingress.class": "y"}}),
                Value::Null,
            ),
        ] {
            let write = Write {
                group: "networking.k8s.io",
                resource: "ingresses",
                object: json!({"metadata": metadata, "spec": {}}),
                ..Write::default()
            };
            let got = write.run(&DefaultIngressClass(reader.clone())).await.expect("admitted").0;
            assert_eq!(got["spec"]["ingressClassName"], want);
        }
    }
}
