//! Runs plugins on objects in tests.

use apimachinery::Value;
use apimachinery::gvk::{GroupResource, GroupVersionKind};
use apimachinery::object;
use apimachinery::status::ApiError;

use super::{Attributes, Operation, Plugin};
use crate::authentication::User;

/// A write to try a plugin on.
pub struct Write<'a> {
    pub operation: Operation,
    pub group: &'a str,
    /// `pods` or `pods/status`.
    pub resource: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
    /// By default the object's.
    pub name: &'a str,
    pub user: User,
    pub object: Value,
    pub old: Option<Value>,
}

impl Default for Write<'_> {
    fn default() -> Self {
        Self {
            operation: Operation::Create,
            group: "",
            resource: "pods",
            kind: "Pod",
            namespace: "a",
            name: "",
            user: User::default(),
            object: Value::Null,
            old: None,
        }
    }
}

/// The outcome of a plugin: the object and the warnings, or the error's message.
pub type Outcome = Result<(Value, Vec<String>), String>;

impl Write<'_> {
    /// Mutates, then validates.
    pub async fn run(&self, plugin: &dyn Plugin) -> Outcome {
        self.try_on(plugin).await.map_err(|e| e.message())
    }

    pub async fn try_on(&self, plugin: &dyn Plugin) -> Result<(Value, Vec<String>), ApiError> {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let kind = GroupVersionKind::new(self.group, "v1", self.kind);
        let of = GroupResource::new(self.group, resource);
        let shown = self.old.as_ref().unwrap_or(&self.object);
        let attributes = Attributes {
            operation: self.operation,
            kind: &kind,
            resource: &of,
            version: "v1",
            subresource,
            namespace: self.namespace,
            name: if self.name.is_empty() { object::name(shown) } else { self.name },
            user: &self.user,
            old: self.old.as_ref(),
            options: &Value::Null,
            dry_run: false,
            reinvocation: None,
        };
        let mut warnings = Vec::new();
        let mut object = self.object.clone();
        if plugin.handles(self.operation) {
            let some = (!object.is_null()).then_some(&mut object);
            plugin.mutate(&attributes, some, &mut warnings).await?;
            let some = (!object.is_null()).then_some(&object);
            plugin.validate(&attributes, some, &mut warnings).await?;
        }
        Ok((object, warnings))
    }
}
