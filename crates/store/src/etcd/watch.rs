//! A watch on etcd: one task that reads its stream at once, whatever its reader does, and opens a
//! new stream where the old one broke off.
//!
//! The task must keep reading because streams share a connection: what one leaves unread takes
//! from the window of all. It waits for a slow reader for a while, then closes the watch.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Client, Event, EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::errors::read_error;
use super::{MESSAGE_LIMIT, Options, key_value, range_end, signed, unsigned};
use crate::{Change, Revision, StoreError, WatchEvent, WatchStream};

/// Between attempts to open a stream again, and between requests for progress.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Opens watches.
pub(super) struct Opener {
    client: Client,
    /// Whether progress on request is exact.
    pub(super) exact: bool,
    /// The watches that run.
    askers: Mutex<Vec<Asker>>,
    buffer: usize,
    slow_after: Duration,
    open_timeout: Duration,
}

type Item = Result<WatchEvent, StoreError>;

/// Tells a watch up to which revision its progress is asked for.
struct Asker {
    prefix: Bytes,
    target: watch::Sender<Revision>,
}

impl Opener {
    pub(super) fn new(client: Client, exact: bool, options: &Options) -> Self {
        Opener {
            client,
            exact,
            askers: Mutex::default(),
            buffer: options.watch_buffer.max(1),
            slow_after: options.slow_after,
            open_timeout: options.request_timeout,
        }
    }

    /// Asks the watches of these prefixes to report that they have reached `target`.
    pub(super) fn request_progress(&self, prefixes: &BTreeSet<Bytes>, target: Revision) {
        let mut askers = self.askers.lock();
        askers.retain(|asker| !asker.target.is_closed());
        let wanted = |asker: &&Asker| prefixes.iter().any(|p| asker.prefix.starts_with(p));
        for asker in askers.iter().filter(wanted) {
            // Also when it was asked for before: every request is to be answered.
            asker.target.send_modify(|revision| *revision = target.max(*revision));
        }
    }

    fn asked(&self, prefix: Bytes) -> watch::Receiver<Revision> {
        let (target, asked) = watch::channel(0);
        let mut askers = self.askers.lock();
        askers.retain(|asker| !asker.target.is_closed());
        askers.push(Asker { prefix, target });
        asked
    }

    pub(super) async fn open(
        &self,
        prefix: Bytes,
        from: Revision,
    ) -> Result<WatchStream, StoreError> {
        let (events, reader) = mpsc::channel(self.buffer);
        let mut task = Task {
            client: self.client.clone(),
            asked: self.asked(prefix.clone()),
            prefix,
            next: from,
            delivered: 0,
            target: None,
            events,
            slow_after: self.slow_after,
            open_timeout: self.open_timeout,
        };
        let opened = task.open_until_answered().await?;
        tokio::spawn(task.run(opened));
        Ok(Box::pin(ReceiverStream::new(reader)))
    }
}

struct Task {
    client: Client,
    prefix: Bytes,
    /// Where the next stream is to begin.
    next: Revision,
    /// The last revision that was delivered or reported as progress.
    delivered: Revision,
    asked: watch::Receiver<Revision>,
    /// Progress is owed up to this revision.
    target: Option<Revision>,
    events: mpsc::Sender<Item>,
    slow_after: Duration,
    open_timeout: Duration,
}

struct Opened {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
}

/// Why the reading of one stream ended.
enum End {
    /// The reader has left, or has been told why there is no more.
    Finished,
    /// The stream broke; another one can go on.
    Broken(String),
}

/// What etcd's answer to the opening of a watch says.
enum Opening {
    Done(Box<Opened>),
    /// Nothing will come of trying again.
    Refused(StoreError),
    /// Trying again may help.
    Failed(String),
}

impl Task {
    /// One try to open a stream at `next`.
    async fn open(&mut self) -> Opening {
        let options = WatchOptions::new()
            .with_range(range_end(&self.prefix))
            .with_start_revision(signed(self.next))
            .with_progress_notify()
            .with_prev_key();
        let key = if self.prefix.is_empty() { vec![0] } else { self.prefix.to_vec() };
        let mut client = self.client.watch_client().max_decoding_message_size(MESSAGE_LIMIT);
        let open = async {
            let (requests, mut responses) = client.watch(key, Some(options)).await?.split();
            let first = responses.message().await?;
            Ok::<_, etcd_client::Error>((Opened { requests, responses }, first))
        };
        let (opened, first) = match tokio::time::timeout(self.open_timeout, open).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                return match read_error(error) {
                    StoreError::Unavailable(why) => Opening::Failed(why),
                    error => Opening::Refused(error),
                };
            }
            Err(_) => return Opening::Failed("etcd did not open the watch in time".into()),
        };
        match first {
            None => Opening::Failed("etcd closed the watch at once".into()),
            Some(response) if response.canceled() => match cancelled(&response) {
                Cancelled::Refused(error) => Opening::Refused(error),
                Cancelled::Broken(why) => Opening::Failed(why),
            },
            Some(response) => {
                if self.next == 0 {
                    // "From now on" is from where etcd stands now, also after a break.
                    self.next = response.header().map_or(0, |h| unsigned(h.revision())) + 1;
                }
                Opening::Done(Box::new(opened))
            }
        }
    }

    /// Opens the first stream, within the time for a request.
    async fn open_until_answered(&mut self) -> Result<Box<Opened>, StoreError> {
        let until = tokio::time::Instant::now() + self.open_timeout;
        loop {
            match self.open().await {
                Opening::Done(opened) => return Ok(opened),
                Opening::Refused(error) => return Err(error),
                Opening::Failed(why) => {
                    let again = tokio::time::Instant::now() + RETRY;
                    if again >= until {
                        return Err(StoreError::Unavailable(why));
                    }
                    tokio::time::sleep_until(again).await;
                }
            }
        }
    }

    async fn run(mut self, mut opened: Box<Opened>) {
        loop {
            let why = match self.pump(opened).await {
                End::Finished => return,
                End::Broken(why) => why,
            };
            tracing::debug!(prefix = ?self.prefix, next = self.next, why, "watch broke off");
            let mut pause = RETRY;
            opened = loop {
                // Dropping the reader ends the watch also while etcd is away.
                tokio::select! {
                    () = self.events.closed() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match self.open().await {
                    Opening::Done(opened) => break opened,
                    Opening::Refused(error) => return self.finish(error).await,
                    Opening::Failed(why) => {
                        tracing::debug!(prefix = ?self.prefix, why, "cannot open the watch again");
                        pause = (pause * 2).min(RETRY_MAX);
                    }
                }
            };
        }
    }

    /// Reads one stream until it ends.
    async fn pump(&mut self, mut opened: Box<Opened>) -> End {
        let mut remind = tokio::time::interval(RETRY);
        remind.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.events.closed() => return End::Finished,
                changed = self.asked.changed() => {
                    if changed.is_err() {
                        // The store is gone; so are its watches.
                        self.finish(StoreError::Unavailable("the store has been closed".into()))
                            .await;
                        return End::Finished;
                    }
                    let target = *self.asked.borrow_and_update();
                    self.target = Some(target);
                    // What it owes it may have delivered already; then etcd need not be asked.
                    if let Some(end) = self.report_reached().await {
                        return end;
                    }
                    remind.reset_immediately();
                }
                _ = remind.tick(), if self.target.is_some() => {
                    if let Err(error) = opened.requests.request_progress().await {
                        return End::Broken(error.to_string());
                    }
                }
                message = opened.responses.message() => match message {
                    Ok(Some(response)) => {
                        if let Some(end) = self.deliver(response).await {
                            return end;
                        }
                    }
                    Ok(None) => return End::Broken("etcd closed the stream".into()),
                    Err(error) => return End::Broken(error.to_string()),
                },
            }
        }
    }

    /// Passes on what one response brought.
    async fn deliver(&mut self, response: WatchResponse) -> Option<End> {
        if response.canceled() {
            return Some(match cancelled(&response) {
                Cancelled::Broken(why) => End::Broken(why),
                Cancelled::Refused(error) => {
                    self.finish(error).await;
                    End::Finished
                }
            });
        }
        if response.events().is_empty() {
            let revision = response.header().map_or(0, |h| unsigned(h.revision()));
            // A member that lags behind says less than has been delivered already.
            if response.created() || revision < self.delivered {
                return None;
            }
            if self.target.is_some_and(|target| revision >= target) {
                self.target = None;
            }
            self.delivered = revision;
            self.next = self.next.max(revision + 1);
            return self.send(WatchEvent::Progress(revision)).await;
        }
        for (revision, changes) in transactions(response.events()) {
            if revision < self.next {
                continue;
            }
            self.next = revision + 1;
            self.delivered = revision;
            if let Some(end) = self.send(WatchEvent::Changes { revision, changes }).await {
                return Some(end);
            }
        }
        self.report_reached().await
    }

    /// Reports progress that is owed, where what has been delivered says as much.
    async fn report_reached(&mut self) -> Option<End> {
        self.target.take_if(|target| *target <= self.delivered)?;
        self.send(WatchEvent::Progress(self.delivered)).await
    }

    async fn send(&self, event: WatchEvent) -> Option<End> {
        match self.events.send_timeout(Ok(event), self.slow_after).await {
            Ok(()) => None,
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Some(End::Finished),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                // Not here: the stream must end now, and the reader may never read on.
                let events = self.events.clone();
                tokio::spawn(async move { events.send(Err(StoreError::Slow)).await });
                Some(End::Finished)
            }
        }
    }

    async fn finish(&self, error: StoreError) {
        // A reader that has left does not need the reason.
        let _gone = self.events.send(Err(error)).await;
    }
}

/// What a cancellation by etcd means.
enum Cancelled {
    Refused(StoreError),
    Broken(String),
}

/// Why etcd cancelled a watch.
fn cancelled(response: &WatchResponse) -> Cancelled {
    let compacted = unsigned(response.compact_revision());
    if compacted > 0 {
        Cancelled::Refused(StoreError::Compacted { oldest: compacted })
    } else {
        Cancelled::Broken(response.cancel_reason().to_owned())
    }
}

/// Groups the events of a response by the transaction that made them. A response holds whole
/// transactions, since fragments are not asked for.
fn transactions(events: &[Event]) -> Vec<(Revision, Vec<Change>)> {
    let mut grouped: Vec<(Revision, Vec<Change>)> = Vec::new();
    for event in events {
        let Some(kv) = event.kv() else { continue };
        let previous = event.prev_kv().cloned().map(key_value);
        let kv = key_value(kv.clone());
        let revision = kv.mod_revision;
        let change = match event.event_type() {
            EventType::Put => Change::Put { kv, previous },
            EventType::Delete => Change::Delete { key: kv.key, revision, previous },
        };
        match grouped.last_mut() {
            Some((last, changes)) if *last == revision => changes.push(change),
            _ => grouped.push((revision, vec![change])),
        }
    }
    grouped
}
