//! What may be written: plugins that change or refuse objects on their way to the store.

pub mod certificates;
pub mod expressions;
pub mod limit_ranger;
pub mod lookup;
pub mod matching;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod node_taint;
pub mod plugins;
pub mod pod_security;
pub mod policy;
pub mod priority;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage;
pub mod tolerations;
pub mod topology_labels;
pub mod webhook;

#[cfg(test)]
mod testing;

use apimachinery::Value;
use apimachinery::gvk::{GroupResource, GroupVersionKind};
pub use apimachinery::pods;
use apimachinery::status::ApiError;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::authentication::User;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write on its way. For updates `old` is the stored object; for deletes `object` is `None`.
#[derive(Debug)]
pub struct Attributes<'a> {
    pub operation: Operation,
    pub kind: &'a GroupVersionKind,
    pub resource: &'a GroupResource,
    /// Version of the request's path.
    pub version: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a User,
    pub old: Option<&'a Value>,
    /// The options object of the verb (CreateOptions and so on), for webhooks.
    pub options: &'a Value,
    pub dry_run: bool,
    /// What plugins that may be called again for one write remember of it.
    pub reinvocation: Option<&'a Reinvocation>,
}

/// What is remembered between the two rounds that mutating plugins may have: a webhook that wants
/// to see what others change after it is called again, once (k8s.io/apiserver
/// `admission/reinvocation.go`).
#[derive(Debug, Default)]
pub struct Reinvocation(Mutex<Rounds>);

#[derive(Debug, Default)]
struct Rounds {
    second: bool,
    wanted: bool,
    /// Those that want to be called again, and were called.
    called: Vec<String>,
    /// Those to call again.
    again: Vec<String>,
    /// The object as webhooks left it in the first round.
    output: Option<Value>,
}

impl Reinvocation {
    /// Whether there is to be a second round; it begins.
    pub fn is_wanted(&self) -> bool {
        let mut rounds = self.0.lock();
        let begins = rounds.wanted && !rounds.second;
        rounds.second |= begins;
        begins
    }

    /// Webhooks are about to be called for an object.
    pub fn begin(&self, object: &Value) {
        let mut rounds = self.0.lock();
        if rounds.second && rounds.output.as_ref() != Some(object) {
            // Other plugins changed it.
            rounds.again = rounds.called.clone();
        }
    }

    /// Whether a webhook is to be called in this round.
    pub fn calls(&self, id: &str) -> bool {
        let rounds = self.0.lock();
        !rounds.second || rounds.again.iter().any(|known| known == id)
    }

    /// A webhook was called, and changed the object or did not.
    pub fn called(&self, id: &str, changed: bool, if_needed: bool) {
        let mut rounds = self.0.lock();
        if changed {
            let called = rounds.called.clone();
            rounds.again.extend(called);
            rounds.wanted = true;
        }
        if if_needed && !rounds.called.iter().any(|known| known == id) {
            rounds.called.push(id.to_owned());
        }
    }

    /// All webhooks were called.
    pub fn end(&self, object: &Value) {
        let mut rounds = self.0.lock();
        if !rounds.second {
            rounds.output = Some(object.clone());
        }
    }
}

/// An admission plugin. Default methods admit.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name (`NamespaceLifecycle`).
    fn name(&self) -> &'static str;

    /// What it is asked about.
    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    /// May change the object. Runs before validation.
    async fn mutate(
        &self,
        _attributes: &Attributes<'_>,
        _object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        Ok(())
    }

    /// May only refuse. Runs after validation.
    async fn validate(
        &self,
        _attributes: &Attributes<'_>,
        _object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}

/// A refusal in upstream's words: 403, `pods "x" is forbidden: <reason>`.
pub fn forbidden(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    reason: impl Into<String>,
) -> ApiError {
    let name = match (attributes.name, object) {
        ("", Some(object)) => match apimachinery::object::name(object) {
            "" => match apimachinery::object::generate_name(object) {
                "" => "Unknown".to_owned(),
                base => base.to_owned(),
            },
            name => name.to_owned(),
        },
        (name, _) => name.to_owned(),
    };
    ApiError::Forbidden { resource: attributes.resource.clone(), name, reason: reason.into() }
}
