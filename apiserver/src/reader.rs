//! How the parts of the apiserver itself read objects: from the watch caches, never over HTTP.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupResource;

/// A decoded object, shared.
pub type Object = Arc<Value>;

/// Reads of objects in their storage version, from the caches.
pub trait Reader: Send + Sync + 'static {
    /// `namespace` is empty for cluster-scoped resources.
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object>;

    /// All objects of a resource; of one namespace, when it is not empty.
    fn list(&self, resource: &GroupResource, namespace: &str) -> Vec<Object>;

    /// A number that changes whenever the resource does: for whoever keeps something computed
    /// from its objects.
    fn version(&self, resource: &GroupResource) -> u64;
}
