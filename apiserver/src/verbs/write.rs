//! Reads and conditional writes of single objects in the store.

use std::sync::Arc;

use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use store::{Expect, Outcome, StoreError};

use super::unreadable;
use crate::api::Api;
use crate::cache::Cached;
use crate::gate::{Admitted, AdmittedDeletion};
use crate::registry::catalog::Served;

/// Upstream's words of an update that came too late.
pub(super) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// An object as it stands in the store.
pub(super) struct Stored {
    /// In the served version.
    pub object: Value,
    pub revision: u64,
    pub created: u64,
    pub bytes: Bytes,
}

/// What the client hears of a store that failed.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { .. } => ApiError::Expired {
            message: "The resourceVersion for the provided list is too old.".to_owned(),
            token: None,
        },
        StoreError::Future { asked, current } => {
            ApiError::TooLargeResourceVersion { asked, current }
        }
        StoreError::TooLarge(_) => {
            ApiError::Other { code: 500, reason: String::new(), message: error.to_string() }
        }
        StoreError::Unavailable(_) | StoreError::Slow => {
            ApiError::ServiceUnavailable(error.to_string())
        }
        StoreError::Unknown(_) => {
            ApiError::Timeout { message: error.to_string(), retry_after_seconds: 1 }
        }
        StoreError::Damaged(_) => ApiError::Internal(error.to_string()),
    }
}

/// The newest state of an object, linearizable. What the cache has made of it is used again.
pub(super) async fn fetch(
    api: &Api,
    served: &Served,
    key: &str,
) -> Result<Option<Arc<Cached>>, ApiError> {
    match fetch_stored(api, served, key).await? {
        Some(cached) => served.bring_one(cached).await.map(Some),
        None => Ok(None),
    }
}

/// The same, in the version that it is stored in.
async fn fetch_stored(
    api: &Api,
    served: &Served,
    key: &str,
) -> Result<Option<Arc<Cached>>, ApiError> {
    let cache = served.cache()?;
    let (_, kv) = api.store.get(&cache.store_key(key), None).await.map_err(store_error)?;
    Ok(kv.and_then(|kv| cache.adopt(kv)))
}

/// The newest state of an object, decoded.
pub(super) async fn load(
    api: &Api,
    served: &Served,
    key: &str,
) -> Result<Option<Stored>, ApiError> {
    let Some(cached) = fetch_stored(api, served, key).await? else { return Ok(None) };
    let bytes = cached.stored().clone();
    let cached = served.bring_one(cached).await?;
    let object = served.decode(&cached).map_err(|e| unreadable(&e))?;
    Ok(Some(Stored { object, revision: cached.revision, created: cached.created, bytes }))
}

/// Bytes to store.
pub(super) async fn encode(served: &Served, object: &Value) -> Result<Bytes, ApiError> {
    let bad = |e: apimachinery::codec::DecodeError| ApiError::BadRequest(e.to_string());
    if !served.may_convert() && served.row.custom.is_none() {
        return served.to_stored(object).map_err(bad);
    }
    let object = served.before_storing(object.clone()).await?;
    served.to_stored(&object).map_err(bad)
}

/// An object as it was stored, at a revision (0: a dry run stored nothing).
pub(super) fn written(key: &str, revision: u64, created: u64, bytes: Bytes) -> Arc<Cached> {
    Arc::new(Cached::new(key, revision, created, bytes))
}

/// Stores a new object. `None`: its key is taken.
pub(super) async fn insert(
    api: &Api,
    served: &Served,
    admitted: Admitted,
    dry_run: bool,
) -> Result<Option<Arc<Cached>>, ApiError> {
    let object = admitted.into_object();
    let key = served.key(object::namespace(&object), object::name(&object));
    let store_key = served.cache()?.store_key(&key);
    let bytes = encode(served, &object).await?;
    if dry_run {
        let (_, found) = api.store.get(&store_key, None).await.map_err(store_error)?;
        if found.is_some() {
            return Ok(None);
        }
        return served.bring_one(written(&key, 0, 0, bytes)).await.map(Some);
    }
    let ttl = served.row.storage.ttl;
    let put = api.store.put(store_key, bytes.clone(), Expect::Absent, ttl);
    match put.await.map_err(store_error)? {
        Outcome::Done(revision) => {
            served.bring_one(written(&key, revision, revision, bytes)).await.map(Some)
        }
        Outcome::Mismatch(_) => Ok(None),
    }
}

/// Replaces an object that is at a revision. `None`: it is no longer.
pub(super) async fn replace(
    api: &Api,
    served: &Served,
    key: &str,
    old: &Stored,
    admitted: Admitted,
    dry_run: bool,
) -> Result<Option<Arc<Cached>>, ApiError> {
    let bytes = encode(served, admitted.object()).await?;
    // A write that changes nothing is none.
    if dry_run || bytes == old.bytes {
        let same = written(key, old.revision, old.created, bytes);
        return served.bring_one(same).await.map(Some);
    }
    let store_key = served.cache()?.store_key(key);
    let ttl = served.row.storage.ttl;
    let expect = Expect::At(old.revision);
    let put = api.store.put(store_key, bytes.clone(), expect, ttl);
    match put.await.map_err(store_error)? {
        Outcome::Done(revision) => {
            served.bring_one(written(key, revision, old.created, bytes)).await.map(Some)
        }
        Outcome::Mismatch(_) => Ok(None),
    }
}

/// Removes an object that is at a revision; gives the revision of its end. `None`: it is no
/// longer there.
pub(super) async fn remove(
    api: &Api,
    served: &Served,
    key: &str,
    revision: u64,
    _admitted: &AdmittedDeletion,
    dry_run: bool,
) -> Result<Option<u64>, ApiError> {
    if dry_run {
        return Ok(Some(revision));
    }
    let store_key = served.cache()?.store_key(key);
    match api.store.delete(store_key, revision).await.map_err(store_error)? {
        Outcome::Done(revision) => Ok(Some(revision)),
        Outcome::Mismatch(_) => Ok(None),
    }
}
