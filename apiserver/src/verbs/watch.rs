//! Watch.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::codec::{DecodeError, list as framing, proto};
use apimachinery::status::ApiError;
use bytes::Bytes;
use futures::Stream;
use http::header::{HeaderValue, TRANSFER_ENCODING};
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::list_options::{WatchOptions, WatchStart};
use super::select::Select;
use super::{Call, list, read, tunnel};
use crate::cache::{Cache, CacheError, Cached, Event, EventType, Taker, Tree, Watcher, event};
use crate::negotiate::{Encoding, Offer, Shape, Wanted};
use crate::registry::catalog::Served;
use crate::respond::{self, Body, BodyError};
use crate::table;

/// Upstream's period of bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// A last bookmark comes this long before the end.
const BEFORE_END: Duration = Duration::from_secs(2);
/// Bytes of events that are sent together.
const BATCH: usize = 64 * 1024;

pub(super) async fn watch(call: Call, served: Arc<Served>) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Watch)?;
    let options = WatchOptions::read(&call.query)?;
    // A path with a name watches that object alone.
    let info = call.authorized.info();
    let mut query = call.query.clone();
    if !info.name.is_empty() && query.get("fieldSelector").is_none() {
        query.push("fieldSelector", &format!("metadata.name={}", info.name));
    }
    let select = Select::read(&served, call.namespace(), &query)?;
    let include = table::Include::read(call.query.text("includeObject"))?;
    let cache = served.cache()?.clone();
    read::ready(&cache).await?;
    let begun = begin(&call, &served, &cache, &select, options.start).await;
    let min = call.api.limits.min_request_timeout.as_secs_f64();
    let timeout = options.timeout.map_or_else(
        || Duration::from_secs_f64(min * (1.0 + rand::rng().random::<f64>())),
        Duration::from_secs,
    );
    let encoder = Encoder { served, wanted, include, clock: call.api.clock.clone(), first: true };
    let until = Instant::now() + timeout;
    let (state, watcher, revision, failed) = match begun {
        Ok(Begun { state, watcher, revision }) => (state, Some(watcher), revision, None),
        // What a watch fails of after it was accepted comes as an event.
        Err(error @ (ApiError::Expired { .. } | ApiError::TooLargeResourceVersion { .. })) => {
            (VecDeque::new(), None, 0, Some(error))
        }
        Err(error) => return Err(error),
    };
    let watching = Watching {
        cache: cache.clone(),
        select,
        encoder,
        state,
        watcher,
        failed,
        delivered: revision,
        options,
        ended_initial: false,
        next_bookmark: next_bookmark(Instant::now(), until),
        until,
        draining: call.api.draining.clone(),
    };
    let encoding = watching.encoder.wanted.encoding;
    let events = cache.lend(watching.into_stream());
    if tunnel::is_websocket(&call.parts.headers) {
        return tunnel::watch_over_websocket(call, Box::pin(events));
    }
    let content_type = match encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    use futures::StreamExt as _;
    let frames = events.map(|data| Ok::<_, BodyError>(Frame::data(data)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.remove(TRANSFER_ENCODING);
    Ok(response)
}

struct Begun {
    state: VecDeque<Arc<Cached>>,
    watcher: Watcher,
    /// The revision of the state, or the one after which events come.
    revision: u64,
}

async fn begin(
    call: &Call,
    served: &Served,
    cache: &Cache,
    select: &Select,
    start: WatchStart,
) -> Result<Begun, ApiError> {
    let scope = select.scope(served, &cache.codec);
    match start {
        WatchStart::State(freshness) | WatchStart::Now(freshness) => {
            let cut = list::fresh(call, served, freshness).await?;
            // The cut may be from the store, ahead of a cache that cannot follow; or the cache
            // has begun anew since, and what it holds now is newer.
            let (cut, watcher) = match cache.watch_from(scope.clone(), cut.revision) {
                Ok(watcher) => (cut, watcher),
                Err(_) => cache.watch_from_now(scope),
            };
            let state = match start {
                WatchStart::State(_) => selected(&cut.objects, cache, select, served).await?,
                _ => VecDeque::new(),
            };
            Ok(Begun { state, watcher, revision: cut.revision })
        }
        WatchStart::After(revision) => match cache.watch_from(scope, revision) {
            Ok(watcher) => Ok(Begun { state: VecDeque::new(), watcher, revision }),
            Err(CacheError::TooOld { asked, oldest }) => Err(ApiError::Expired {
                message: format!("too old resource version: {asked} ({oldest})"),
                token: None,
            }),
            Err(other) => Err(ApiError::Internal(other.to_string())),
        },
    }
}

async fn selected(
    objects: &Tree,
    cache: &Cache,
    select: &Select,
    served: &Served,
) -> Result<VecDeque<Arc<Cached>>, ApiError> {
    let matches = |cached: &Arc<Cached>| select.matches(cached, &cache.codec);
    let converts = served.may_convert();
    let wanted = |cached: &&Arc<Cached>| converts || matches(cached);
    let found: Vec<Arc<Cached>> = match select.only(served) {
        Some(key) => objects.get(&key).filter(wanted).cloned().into_iter().collect(),
        None => objects.range(&select.prefix(), Bound::Unbounded).filter(wanted).cloned().collect(),
    };
    let found = served.bring(found).await?;
    Ok(found.into_iter().filter(|cached| !converts || matches(cached)).collect())
}

/// A watch that is under way.
struct Watching {
    cache: Arc<Cache>,
    select: Select,
    encoder: Encoder,
    /// What is left of the state that it began with.
    state: VecDeque<Arc<Cached>>,
    watcher: Option<Watcher>,
    failed: Option<ApiError>,
    /// Everything up to this revision has been delivered.
    delivered: u64,
    options: WatchOptions,
    ended_initial: bool,
    next_bookmark: Instant,
    until: Instant,
    draining: CancellationToken,
}

/// When the next bookmark is due: after the period, or shortly before the end.
fn next_bookmark(now: Instant, until: Instant) -> Instant {
    if now + BEFORE_END >= until {
        return until + BOOKMARKS;
    }
    (now + BOOKMARKS).min(until.checked_sub(BEFORE_END).unwrap_or(until))
}

/// What a watch waits for.
enum Wake {
    Event(Arc<Event>),
    Bookmark,
    End,
}

impl Watching {
    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        // `None` after the last chunk.
        futures::stream::unfold(Some(self), |watching| async move {
            let mut watching = watching?;
            let (chunk, goes_on) = watching.next().await;
            (goes_on || !chunk.is_empty()).then_some((chunk, goes_on.then_some(watching)))
        })
    }

    /// The next bytes, and whether more will come.
    async fn next(&mut self) -> (Bytes, bool) {
        let mut out = Vec::new();
        if let Some(error) = self.failed.take() {
            self.encoder.error(&error, &mut out);
            return (out.into(), false);
        }
        while let Some(cached) = self.state.pop_front() {
            if !self.put_state(&cached, &mut out) {
                return (out.into(), false);
            }
            if out.len() >= BATCH {
                return (out.into(), true);
            }
        }
        if self.options.initial_events_end && !self.ended_initial {
            self.ended_initial = true;
            self.encoder.bookmark(self.delivered, true, &mut out);
            return (out.into(), true);
        }
        if !out.is_empty() {
            return (out.into(), true);
        }
        loop {
            match self.wake().await {
                Wake::Event(event) => {
                    let mut goes_on = self.bring_event(&event, &mut out).await;
                    while goes_on && out.len() < BATCH {
                        let Some(event) = self.watcher.as_mut().and_then(Watcher::ready) else {
                            break;
                        };
                        goes_on = self.bring_event(&event, &mut out).await;
                    }
                    if !out.is_empty() || !goes_on {
                        return (out.into(), goes_on);
                    }
                }
                Wake::Bookmark => {
                    if self.catch_up(&mut out).await {
                        return (out.into(), true);
                    }
                }
                Wake::End => {
                    // Not between events of one revision, after which the client goes on.
                    self.put_ready(&mut out).await;
                    return (out.into(), false);
                }
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let Some(watcher) = self.watcher.as_mut() else { return Wake::End };
        let bookmark = async {
            if self.options.bookmarks {
                tokio::time::sleep_until(self.next_bookmark).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = self.draining.cancelled() => Wake::End,
            () = tokio::time::sleep_until(self.until) => Wake::End,
            event = watcher.next() => event.map_or(Wake::End, Wake::Event),
            () = bookmark => Wake::Bookmark,
        }
    }

    /// Writes what is there and a bookmark after it.
    async fn catch_up(&mut self, out: &mut Vec<u8>) -> bool {
        self.next_bookmark = next_bookmark(Instant::now(), self.until);
        // What is at or below this revision waits in the watcher already.
        let revision = self.cache.revision();
        if !self.put_ready(out).await {
            return true;
        }
        let lost = self.watcher.as_ref().is_none_or(Watcher::is_closed);
        if !lost {
            self.delivered = self.delivered.max(revision);
            self.encoder.bookmark(self.delivered, false, out);
        }
        !out.is_empty()
    }

    /// Writes all events that are there; whether more can follow.
    async fn put_ready(&mut self, out: &mut Vec<u8>) -> bool {
        while let Some(event) = self.watcher.as_mut().and_then(Watcher::ready) {
            if !self.bring_event(&event, out).await {
                return false;
            }
        }
        true
    }

    /// Writes an event, whose object a webhook may have to convert first.
    async fn bring_event(&mut self, event: &Arc<Event>, out: &mut Vec<u8>) -> bool {
        if !self.encoder.served.may_convert() {
            return self.put_event(event, out);
        }
        match converted(&self.encoder.served, event).await {
            Ok(event) => self.put_event(&event, out),
            Err(error) => {
                self.encoder.error(&error, out);
                false
            }
        }
    }

    fn put_state(&mut self, cached: &Arc<Cached>, out: &mut Vec<u8>) -> bool {
        self.put(EventType::Added, cached, Taker::Reader, out)
    }

    fn put_event(&mut self, event: &Arc<Event>, out: &mut Vec<u8>) -> bool {
        self.delivered = self.delivered.max(event.revision());
        let seen = event.seen(|cached| self.select.matches(cached, &self.cache.codec));
        let Some((kind, object)) = seen else { return true };
        self.put(kind, object, Taker::Watchers, out)
    }

    fn put(&mut self, kind: EventType, object: &Cached, taker: Taker, out: &mut Vec<u8>) -> bool {
        match self.encoder.put(kind, object, taker, &self.cache, out) {
            Ok(()) => true,
            Err(error) => {
                let error = ApiError::Internal(format!("unable to encode watch object: {error}"));
                self.encoder.error(&error, out);
                false
            }
        }
    }
}

/// An event in the served version.
async fn converted(served: &Served, event: &Event) -> Result<Arc<Event>, ApiError> {
    let previous = match event.previous() {
        Some(previous) => Some(served.bring_one(previous.clone()).await?),
        None => None,
    };
    let gone = matches!(event.seen(|_| true), Some((EventType::Deleted, _)));
    let made = match previous {
        Some(last) if gone => Event::delete(last, event.revision()),
        previous => Event::put(served.bring_one(event.object().clone()).await?, previous),
    };
    Ok(Arc::new(made))
}

/// Makes events what the client wants.
struct Encoder {
    served: Arc<Served>,
    wanted: Wanted,
    include: table::Include,
    clock: crate::authentication::Clock,
    /// Nothing has been sent: the first table defines the columns.
    first: bool,
}

impl Encoder {
    fn is_protobuf(&self) -> bool {
        self.wanted.encoding == Encoding::Protobuf
    }

    /// Whether its objects are those that all watchers of the cache share.
    fn is_shared(&self) -> bool {
        self.wanted.shape == Shape::Itself && self.served.same_version
    }

    /// Writes a frame; nothing when it fails.
    fn put(
        &mut self,
        kind: EventType,
        cached: &Cached,
        taker: Taker,
        cache: &Cache,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        if self.is_shared() {
            return event::put_frame(kind, cached, taker, self.is_protobuf(), &cache.codec, out);
        }
        self.put_own(kind, cached, out)
    }

    /// A frame for this client alone.
    fn put_own(
        &mut self,
        kind: EventType,
        cached: &Cached,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        let served = &self.served;
        let object: Vec<u8> = match (&self.wanted.shape, self.is_protobuf()) {
            (Shape::Itself, false) => served.json(cached)?.to_vec(),
            (Shape::Itself, true) => {
                proto::seal(&served.api_version, &served.row.kind, &served.raw(cached)?)
            }
            (Shape::Partial(version), false) => {
                let raw = served.partial_raw(cached)?;
                read::partial_json(version, &raw)
                    .map_err(|e| DecodeError::Malformed(e.message()))?
            }
            (Shape::Partial(version), true) => {
                let raw = served.partial_raw(cached)?;
                proto::seal(&format!("meta.k8s.io/{version}"), "PartialObjectMetadata", &raw)
            }
            (Shape::Table(version), _) => {
                let object = served.decode(cached)?;
                let first = std::mem::take(&mut self.first);
                let now = (self.clock)();
                let made = table::of_event(served, &object, version, self.include, now, first);
                serde_json::to_vec(&made).map_err(|e| DecodeError::Malformed(e.to_string()))?
            }
        };
        self.frame(kind.as_str(), &object, out);
        Ok(())
    }

    fn frame(&self, kind: &str, object: &[u8], out: &mut Vec<u8>) {
        if self.is_protobuf() {
            framing::watch_proto(kind, object, out);
        } else {
            framing::watch_json(kind, object, out);
        }
    }

    fn bookmark(&mut self, revision: u64, initial_events_end: bool, out: &mut Vec<u8>) {
        let served = self.served.clone();
        let own = |api_version: &str, kind: &str| {
            read::bookmark(api_version, kind, revision, initial_events_end)
        };
        let object = match &self.wanted.shape {
            Shape::Itself => own(&served.api_version, &served.row.kind),
            Shape::Partial(version) => {
                own(&format!("meta.k8s.io/{version}"), "PartialObjectMetadata")
            }
            Shape::Table(version) => {
                let object = own(&served.api_version, &served.row.kind);
                let first = std::mem::take(&mut self.first);
                let now = (self.clock)();
                table::of_event(&served, &object, version, self.include, now, first)
            }
        };
        let encoded = match &self.wanted.shape {
            Shape::Itself => match served.schema() {
                Some(schema) => self.encode(&object, schema),
                None => serde_json::to_vec(&object).ok(),
            },
            _ => self.encode_meta(&object),
        };
        if let Some(object) = encoded {
            self.frame("BOOKMARK", &object, out);
        }
    }

    fn encode(&self, object: &Value, schema: apimachinery::codec::Schema<'_>) -> Option<Vec<u8>> {
        let mut object = object.clone();
        // Fields that are always there are there in bookmarks, too.
        apimachinery::codec::canonicalize(schema, &mut object).ok()?;
        if self.is_protobuf() {
            proto::encode_enveloped(schema, &object).ok()
        } else {
            serde_json::to_vec(&object).ok()
        }
    }

    fn encode_meta(&self, object: &Value) -> Option<Vec<u8>> {
        if self.is_protobuf() {
            let schema = read::meta_schema("PartialObjectMetadata").ok()?;
            return proto::encode_enveloped(schema, object).ok();
        }
        serde_json::to_vec(object).ok()
    }

    fn error(&self, error: &ApiError, out: &mut Vec<u8>) {
        let wanted = Wanted { shape: Shape::Itself, pretty: false, ..self.wanted.clone() };
        if let Ok((_, status)) = respond::encode(&wanted, &error.status()) {
            let status = status.strip_suffix(b"\n").unwrap_or(&status);
            self.frame("ERROR", status, out);
        }
    }
}
