//! Where quotas' statuses are written.

use apimachinery::amounts::Amounts;
use apimachinery::patch::apply::{Manager, track_update_typed};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use store::{Expect, Outcome};

use super::to_list;
use crate::api::rfc3339;
use crate::reader::Caches;
use crate::verbs::write::store_error;

/// Writes what is used of quotas.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Writes what is used of a quota, if it is still as given. False: it is not, or is gone.
    async fn spend(&self, quota: &Value, used: Amounts) -> Result<bool, ApiError>;
}

#[async_trait]
impl Ledger for Caches {
    async fn spend(&self, quota: &Value, used: Amounts) -> Result<bool, ApiError> {
        let catalog = self.catalog();
        let served = catalog.find("", "v1", "resourcequotas");
        let (Some(served), Some(store)) = (served, self.store()) else {
            return Err(ApiError::Internal("quotas are not stored".to_owned()));
        };
        let Ok(revision) = object::resource_version(quota).parse::<u64>() else {
            return Err(ApiError::Internal("a quota has no version".to_owned()));
        };
        let mut new = quota.clone();
        object::set(&mut new, &["status", "used"], to_list(&used));
        let now = rfc3339(jiff::Timestamp::now());
        let manager =
            Manager { name: "kube-apiserver", subresource: "status", api_version: "v1", now: &now };
        track_update_typed(served.typing(), Some(quota), &mut new, &manager, &[]);
        let bytes = served.to_stored(&new).map_err(|e| ApiError::Internal(e.to_string()))?;
        let key = served.key(object::namespace(quota), object::name(quota));
        let key = served.cache()?.store_key(&key);
        match store.put(key, bytes, Expect::At(revision), None).await.map_err(store_error)? {
            Outcome::Done(_) => Ok(true),
            Outcome::Mismatch(_) => Ok(false),
        }
    }
}
