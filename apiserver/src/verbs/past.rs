//! Lists of a past revision that no cache has: read from the store, as far as a page needs.

use std::ops::Bound;
use std::sync::Arc;

use apimachinery::status::ApiError;
use store::{ListRequest, StoreError};

use super::list::Page;
use super::list_options::{ListOptions, continue_token};
use super::select::Select;
use super::{Call, write};
use crate::cache::Cached;
use crate::registry::catalog::Served;

/// Objects that are read at once, at most.
const READ: usize = 5000;

/// Upstream's words of a page that comes too late.
const INCONSISTENT: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// The page that begins at `options.start`.
///
/// # Errors
/// 410 when the store has forgotten the revision, 504 when it has not reached it.
pub(super) async fn page(
    call: &Call,
    served: &Served,
    select: &Select,
    options: &ListOptions,
    revision: u64,
) -> Result<Page, ApiError> {
    let error = |error: StoreError| match (error, &options.start) {
        (StoreError::Compacted { .. }, Some(start)) => expired(start),
        (error, _) => write::store_error(error),
    };
    let cache = served.cache()?;
    let store = &call.api.store;
    let mut page = Page::empty(revision);
    if let Some(key) = select.only(served) {
        let found = store.get(&cache.store_key(&key), Some(revision)).await.map_err(error)?.1;
        let found = found.and_then(|kv| cache.adopt(kv)).into_iter().collect();
        page.objects = served.bring(found).await?;
        page.objects.retain(|cached| select.matches(cached, &cache.codec));
        return Ok(page);
    }
    let prefix = select.prefix();
    let mut start = match &options.start {
        Some(start) => Bound::Included(cache.store_key(&format!("{prefix}{start}"))),
        None => Bound::Unbounded,
    };
    let mut read = match options.limit {
        0 => READ,
        limit => limit.min(READ),
    };
    loop {
        let request = ListRequest {
            prefix: cache.store_key(&prefix),
            start,
            limit: read,
            revision: Some(revision),
        };
        let listed = store.list(request).await.map_err(error)?;
        let after = listed.kvs.last().filter(|_| listed.more).map(|kv| kv.key.clone());
        // Of those that the store counts.
        let (count, mut passed) = (usize::try_from(listed.count).unwrap_or(usize::MAX), 0);
        let some = listed.kvs.into_iter().filter_map(|kv| cache.adopt(kv)).collect();
        let some: Vec<Arc<Cached>> = served.bring(some).await?;
        let n_some = some.len();
        for cached in some {
            passed += 1;
            if !select.matches(&cached, &cache.codec) {
                continue;
            }
            let last = cached.key.clone();
            page.objects.push(cached);
            if options.limit > 0 && page.objects.len() == options.limit {
                if passed < n_some || after.is_some() {
                    page.go_on_after(&last, select, || count.saturating_sub(passed));
                }
                return Ok(page);
            }
        }
        match after {
            Some(after) => start = Bound::Excluded(after),
            None => return Ok(page),
        }
        // Where few are selected, more is read at a time, as upstream does.
        read = (read * 2).min(READ);
    }
}

/// 410 with a token that goes on, inconsistently.
fn expired(start: &str) -> ApiError {
    let last = start.strip_suffix('\0').unwrap_or(start);
    ApiError::Expired { message: INCONSISTENT.to_owned(), token: Some(continue_token(-1, last)) }
}
