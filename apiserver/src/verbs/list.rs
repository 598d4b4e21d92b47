//! List: the items' bytes are copied from the cache.

use std::ops::Bound;
use std::sync::Arc;

use apimachinery::codec::list::{JsonList, ListMeta, ProtoList};
use apimachinery::status::ApiError;
use apimachinery::{Map, Value};
use bytes::Bytes;
use http::Response;
use store::ListRequest;

use super::list_options::{Freshness, ListOptions, continue_token};
use super::past;
use super::read::{self, partial_json, reach, to_yaml};
use super::select::Select;
use super::{Call, unreadable, write};
use crate::cache::{Cached, Cut, Tree};
use crate::negotiate::{Encoding, Offer, Shape, Wanted};
use crate::registry::catalog::Served;
use crate::respond::{self, Body};
use crate::table;

/// One page of a list.
pub(super) struct Page {
    pub revision: u64,
    pub objects: Vec<Arc<Cached>>,
    continue_token: String,
    remaining: Option<i64>,
}

impl Page {
    pub(super) fn empty(revision: u64) -> Self {
        Self { revision, objects: Vec::new(), continue_token: String::new(), remaining: None }
    }

    /// More pages follow; how many objects they have is told where nothing is left out.
    pub(super) fn go_on_after(
        &mut self,
        last: &str,
        select: &Select,
        rest: impl FnOnce() -> usize,
    ) {
        let below = last.get(select.prefix().len()..).unwrap_or_default();
        let revision = i64::try_from(self.revision).unwrap_or(i64::MAX);
        self.continue_token = continue_token(revision, below);
        if select.is_everything() {
            self.remaining = i64::try_from(rest()).ok();
        }
    }

    /// The list's metadata.
    pub(super) fn metadata(&self) -> Value {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".to_owned(), self.revision.to_string().into());
        if !self.continue_token.is_empty() {
            metadata.insert("continue".to_owned(), self.continue_token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".to_owned(), remaining.into());
        }
        metadata.into()
    }
}

pub(super) async fn list(call: Call, served: Arc<Served>) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::List)?;
    let page = matching(&call, &served).await?;
    let now = call.api.now();
    let include = table::Include::read(call.query.text("includeObject"))?;
    // A long list is written by a thread that may block.
    let data = if page.objects.len() > 500 {
        let (served, wanted) = (served.clone(), wanted.clone());
        let written =
            tokio::task::spawn_blocking(move || encode(&served, &wanted, &page, include, now));
        written.await.map_err(|e| ApiError::Internal(e.to_string()))??
    } else {
        encode(&served, &wanted, &page, include, now)?
    };
    Ok(call.send(200, &read::content_type(&wanted), data).await)
}

/// The page that a request asks for.
pub(super) async fn matching(call: &Call, served: &Arc<Served>) -> Result<Page, ApiError> {
    let options = ListOptions::read(&call.query)?;
    let select = Select::read(served, call.namespace(), &call.query)?;
    let cache = served.cache()?;
    read::ready(cache).await?;
    let prefix = select.prefix();
    let (cut, goes_on) = match options.freshness {
        Freshness::Exact(revision) => match cache.cut_at(revision, &prefix) {
            Some(cut) => (cut, options.start.is_some()),
            None => return past::page(call, served, &select, &options, revision).await,
        },
        freshness => (fresh(call, served, freshness).await?, false),
    };
    let start = options.start.map(|start| format!("{prefix}{start}"));
    let bound = start.as_deref().map_or(Bound::Unbounded, Bound::Included);
    let mut page = Page::empty(cut.revision);
    let selected = |cached: &&Arc<Cached>| select.matches(cached, &cache.codec);
    if let Some(key) = select.only(served) {
        let found: Vec<Arc<Cached>> = cut.objects.get(&key).cloned().into_iter().collect();
        let found = served.bring(found).await?;
        page.objects.extend(found.iter().filter(selected).cloned());
        return Ok(page);
    }
    // What is selected shows only once it is in the version asked for.
    let brought = match served.may_convert() {
        true => {
            let stored: Vec<_> = cut.objects.range(&prefix, bound).cloned().collect();
            let brought = bring_enough(served, &stored, &select, options.limit).await?;
            Some(Tree::from_sorted(brought))
        }
        false => None,
    };
    let objects = brought.as_ref().unwrap_or(&cut.objects);
    let mut range = objects.range(&prefix, bound);
    let mut last = None;
    for cached in range.by_ref() {
        if selected(&cached) {
            page.objects.push(cached.clone());
            if options.limit > 0 && page.objects.len() == options.limit {
                last = Some(cached.key.clone());
                break;
            }
        }
    }
    if let Some(last) = last
        && range.next().is_some()
    {
        let rest = || cut.objects.count(&prefix, Bound::Excluded(&last));
        page.go_on_after(&last, &select, rest);
        cache.remember(&cut, goes_on);
    }
    Ok(page)
}

/// Brings as many objects to the served version as make a page, and one more.
async fn bring_enough(
    served: &Served,
    stored: &[Arc<Cached>],
    select: &Select,
    limit: usize,
) -> Result<Vec<Arc<Cached>>, ApiError> {
    let codec = &served.cache()?.codec;
    let (mut brought, mut selected) = (Vec::new(), 0);
    let batch = if limit == 0 { stored.len() } else { limit + 1 };
    for some in stored.chunks(batch.max(1)) {
        let some = served.bring(some.to_vec()).await?;
        selected += some.iter().filter(|cached| select.matches(cached, codec)).count();
        brought.extend(some);
        if limit > 0 && selected > limit {
            break;
        }
    }
    Ok(brought)
}

/// The cache's state, once it is as fresh as asked for.
pub(super) async fn fresh(
    call: &Call,
    served: &Served,
    freshness: Freshness,
) -> Result<Cut, ApiError> {
    let cache = served.cache()?;
    match freshness {
        Freshness::Any => {}
        Freshness::NotOlderThan(revision) | Freshness::Exact(revision) => {
            reach(cache, revision).await?;
        }
        Freshness::Newest => {
            let store = &call.api.store;
            let newest = store.current_revision().await.map_err(write::store_error)?;
            if !store.reports_progress() && cache.revision() < newest {
                return from_store(call, served).await;
            }
            // A cache that cannot follow must not stop reads.
            if cache.wait_for(newest, read::PATIENCE).await.is_err() {
                return from_store(call, served).await;
            }
        }
    }
    Ok(cache.cut())
}

/// The newest state, which the cache does not have yet.
async fn from_store(call: &Call, served: &Served) -> Result<Cut, ApiError> {
    let cache = served.cache()?;
    let request = ListRequest {
        prefix: cache.store_key(""),
        start: Bound::Unbounded,
        limit: 0,
        revision: None,
    };
    let listed = call.api.store.list(request).await.map_err(write::store_error)?;
    let objects = listed.kvs.into_iter().filter_map(|kv| cache.adopt(kv));
    let objects = Tree::from_sorted(objects.collect());
    Ok(Cut { revision: listed.revision, prefix: String::new(), objects })
}

fn encode(
    served: &Served,
    wanted: &Wanted,
    page: &Page,
    include: table::Include,
    now: jiff::Timestamp,
) -> Result<Bytes, ApiError> {
    let revision = page.revision.to_string();
    let meta = ListMeta {
        resource_version: &revision,
        continue_token: &page.continue_token,
        remaining_item_count: page.remaining,
    };
    match &wanted.shape {
        Shape::Table(version) => {
            let table = table::of_list(served, &page.objects, &meta, version, include, now)?;
            Ok(respond::encode(wanted, &table)?.1)
        }
        Shape::Partial(version) => partial(served, wanted, page, &meta, version),
        Shape::Itself => itself(served, wanted, page, &meta),
    }
}

/// Objects that cannot be read fail the list, as upstream's do.
fn itself(
    served: &Served,
    wanted: &Wanted,
    page: &Page,
    meta: &ListMeta<'_>,
) -> Result<Bytes, ApiError> {
    let (api_version, kind) = (&served.api_version, &served.list_kind);
    if wanted.encoding == Encoding::Protobuf {
        let raws: Result<Vec<Bytes>, _> = page.objects.iter().map(|o| served.raw(o)).collect();
        let raws = raws.map_err(|e| unreadable(&e))?;
        return Ok(proto_list(api_version, kind, meta, &raws));
    }
    let items: Result<Vec<Bytes>, _> = page.objects.iter().map(|o| served.json(o)).collect();
    let items = items.map_err(|e| unreadable(&e))?;
    let size: usize = items.iter().map(|i| i.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    // Custom resources repeat their kind in lists.
    let item_kind = served.row.custom.is_none().then_some(&*served.row.kind);
    let mut list = JsonList::begin(api_version, kind, item_kind, meta, &mut out);
    items.iter().for_each(|item| list.item(item, &mut out));
    list.end(&mut out);
    json_or_yaml(wanted, out)
}

fn partial(
    served: &Served,
    wanted: &Wanted,
    page: &Page,
    meta: &ListMeta<'_>,
    version: &str,
) -> Result<Bytes, ApiError> {
    let api_version = format!("meta.k8s.io/{version}");
    let raws: Result<Vec<Bytes>, _> = page.objects.iter().map(|o| served.partial_raw(o)).collect();
    let raws = raws.map_err(|e| unreadable(&e))?;
    if wanted.encoding == Encoding::Protobuf {
        return Ok(proto_list(&api_version, "PartialObjectMetadataList", meta, &raws));
    }
    let mut out = Vec::new();
    let mut list = JsonList::begin(&api_version, "PartialObjectMetadataList", None, meta, &mut out);
    for raw in &raws {
        list.item(&partial_json(version, raw)?, &mut out);
    }
    list.end(&mut out);
    json_or_yaml(wanted, out)
}

fn proto_list(api_version: &str, kind: &str, meta: &ListMeta<'_>, raws: &[Bytes]) -> Bytes {
    let size = raws.iter().map(|raw| ProtoList::item_size(raw.len())).sum();
    let mut out = Vec::with_capacity(size + 256);
    let mut list = ProtoList::begin(api_version, kind, meta, size, &mut out);
    raws.iter().for_each(|raw| list.item(raw, &mut out));
    list.end(&mut out);
    out.into()
}

fn json_or_yaml(wanted: &Wanted, mut json: Vec<u8>) -> Result<Bytes, ApiError> {
    match wanted.encoding {
        Encoding::Yaml => to_yaml(&json),
        _ if wanted.pretty => Ok(respond::json_bytes(json.into(), true)),
        _ => {
            json.push(b'\n');
            Ok(json.into())
        }
    }
}
