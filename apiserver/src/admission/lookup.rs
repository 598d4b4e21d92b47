//! Finding objects that may have been written a moment ago.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use async_trait::async_trait;

use crate::reader::{Object, Reader};

/// Reads past the caches, from the store.
#[async_trait]
pub trait Live: Send + Sync + 'static {
    async fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object>;
}

/// Looks objects up: in the caches first, and, where the store can be asked, there.
#[derive(Clone)]
pub struct Lookup {
    pub reader: Arc<dyn Reader>,
    pub live: Option<Arc<dyn Live>>,
}

impl Lookup {
    /// From the caches.
    pub fn cached(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object> {
        self.reader.get(resource, namespace, name)
    }

    /// From the store; from the caches when it cannot be asked.
    pub async fn live(&self, resource: &GroupResource, ns: &str, name: &str) -> Option<Object> {
        match &self.live {
            Some(live) => live.get(resource, ns, name).await,
            None => self.cached(resource, ns, name),
        }
    }

    /// From the caches, else from the store, asked `attempts` times with pauses between.
    pub async fn patient(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
        (attempts, pause): (u32, Duration),
    ) -> Option<Object> {
        if let Some(found) = self.cached(resource, namespace, name) {
            return Some(found);
        }
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(pause).await;
            }
            if let Some(found) = self.live(resource, namespace, name).await {
                return Some(found);
            }
        }
        None
    }
}
