//! The one thread that writes.
//!
//! It takes all requests that are waiting, runs them in order in one transaction, commits, tells
//! the watchers, and only then answers. While it waits for the disk the next requests gather.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redb::Database;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::file::Opener;
use super::layout::{self, Applied, Snapshot, Tables};
use super::{Options, Shared};
use crate::{Change, Expect, Outcome, Revision, StoreError};

/// Requests in one commit, at most.
const BATCH_OPS: usize = 512;
/// Bytes of values in one commit, at most.
const BATCH_BYTES: usize = 4 << 20;
/// Keys that expire in one commit, and forgotten rows removed in one, at most.
const CHORE_ROWS: usize = 1000;
/// How long closing waits for reads that are under way.
const READERS_LEAVE: Duration = Duration::from_secs(5);

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
        reply: Reply<Outcome>,
    },
    Delete {
        key: Bytes,
        revision: Revision,
        reply: Reply<Outcome>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    /// Deletes what has expired and forgets what is due, as the timer does.
    Sweep {
        reply: Reply<()>,
    },
    Progress {
        prefix: Bytes,
        reply: Reply<()>,
    },
    Close {
        reply: Reply<()>,
    },
}

/// A request with its share of the queue's budget.
pub(super) struct Job {
    pub(super) op: Op,
    pub(super) _share: Option<OwnedSemaphorePermit>,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Receiver<Job>,
    pub(super) opener: Opener,
    pub(super) options: Options,
    /// Forgotten rows are waiting to be removed.
    pub(super) cleaning: bool,
    /// Earliest deadline of a key, in milliseconds since the epoch.
    pub(super) next_deadline: Option<u64>,
    /// Revisions by the time they were the newest, oldest first, for retention by age.
    pub(super) ages: VecDeque<(SystemTime, Revision)>,
    pub(super) last_progress: SystemTime,
}

/// Why a batch did not end well.
enum Failure {
    /// It was not applied.
    NoEffect(StoreError),
    /// It may have been.
    Unknown(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::NoEffect(error)
    }
}

/// An answer that waits for the commit.
enum Answer {
    Write(Reply<Outcome>, Outcome),
    Plain(Reply<()>, Result<(), StoreError>),
}

impl Answer {
    fn send(self) {
        // Whoever has left does not need the answer; the write stands.
        match self {
            Answer::Write(reply, outcome) => drop(reply.send(Ok(outcome))),
            Answer::Plain(reply, result) => drop(reply.send(result)),
        }
    }

    fn fail(self, failure: &Failure) {
        let error = match failure {
            Failure::NoEffect(StoreError::Damaged(what)) => StoreError::Damaged(what.clone()),
            Failure::NoEffect(error) => StoreError::Unavailable(error.to_string()),
            Failure::Unknown(why) => StoreError::Unknown(why.clone()),
        };
        match self {
            Answer::Write(reply, _) => drop(reply.send(Err(error))),
            Answer::Plain(reply, _) => drop(reply.send(Err(error))),
        }
    }
}

/// What a batch has come to before it is committed.
#[derive(Default)]
struct Batch {
    answers: Vec<Answer>,
    changes: Vec<Change>,
    /// Something other than a change is to be committed.
    dirty: bool,
    /// Prefixes whose watches are to report how far they are.
    progress: BTreeSet<Bytes>,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut tick_at = Instant::now() + self.options.sweep_interval;
        loop {
            let wait = if self.cleaning {
                Duration::ZERO
            } else {
                tick_at.saturating_duration_since(Instant::now())
            };
            match self.queue.recv_timeout(wait) {
                Ok(job) => {
                    let (jobs, close) = self.gather(job);
                    self.batch(jobs);
                    if let Some(reply) = close {
                        self.shut("the store has been closed");
                        drop(reply.send(Ok(())));
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.shut("the store has been closed");
                    return;
                }
            }
            if Instant::now() >= tick_at {
                self.tick();
                tick_at = Instant::now() + self.options.sweep_interval;
            }
            if self.cleaning {
                self.clean();
            }
        }
    }

    /// Takes what else is waiting, up to a fair size.
    fn gather(&self, first: Job) -> (Vec<Job>, Option<Reply<()>>) {
        let mut jobs = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            match job.op {
                Op::Close { reply } => return (jobs, Some(reply)),
                Op::Put { ref value, .. } => bytes += value.len(),
                _ => {}
            }
            jobs.push(job);
            if jobs.len() >= BATCH_OPS || bytes >= BATCH_BYTES {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        (jobs, None)
    }

    fn batch(&mut self, jobs: Vec<Job>) {
        let mut batch = Batch::default();
        let mut shares = Vec::with_capacity(jobs.len());
        let mut ops = Vec::with_capacity(jobs.len());
        for job in jobs {
            shares.push(job._share);
            ops.push(job.op);
        }
        let result = match self.shared.database() {
            Ok(db) => self.transact(&db, ops, &mut batch),
            Err(error) => {
                refuse(ops, &error);
                return;
            }
        };
        match result {
            Ok(()) => {
                if !batch.changes.is_empty() {
                    self.shared.hub.publish(batch.changes);
                }
                for prefix in &batch.progress {
                    self.shared.hub.request_progress(prefix);
                }
                for answer in batch.answers {
                    answer.send();
                }
            }
            Err(failure) => {
                match &failure {
                    Failure::NoEffect(error) => tracing::error!(%error, "write failed"),
                    Failure::Unknown(error) => tracing::error!(%error, "commit failed"),
                }
                self.recover();
                for answer in batch.answers {
                    answer.fail(&failure);
                }
            }
        }
    }

    fn transact(&mut self, db: &Database, ops: Vec<Op>, batch: &mut Batch) -> Result<(), Failure> {
        let mut ops = ops.into_iter();
        let result = self.apply(db, &mut ops, batch);
        if let Err(Failure::NoEffect(error)) = &result {
            refuse(ops, error);
        }
        result
    }

    fn apply(
        &mut self,
        db: &Database,
        ops: &mut impl Iterator<Item = Op>,
        batch: &mut Batch,
    ) -> Result<(), Failure> {
        let now = (self.options.clock)();
        let txn = db.begin_write().map_err(layout::fault)?;
        let mut tables = Tables::open(&txn)?;
        for op in ops {
            // The answer is in place before anything can fail, so that none goes unanswered.
            match op {
                Op::Put { key, value, expect, ttl, reply } => {
                    let deadline = ttl.map(|ttl| millis(now + ttl));
                    batch.answers.push(Answer::Write(reply, Outcome::Mismatch(None)));
                    batch.settle(tables.put(&key, &value, expect, deadline)?);
                }
                Op::Delete { key, revision, reply } => {
                    batch.answers.push(Answer::Write(reply, Outcome::Mismatch(None)));
                    batch.settle(tables.delete(&key, revision)?);
                }
                Op::Compact { revision, reply } => {
                    let result = tables.compact(revision);
                    self.cleaning |= result.is_ok();
                    batch.dirty |= result.is_ok();
                    batch.answers.push(Answer::Plain(reply, result));
                }
                Op::Sweep { reply } => {
                    batch.answers.push(Answer::Plain(reply, Ok(())));
                    self.sweep(&mut tables, now, batch)?;
                }
                Op::Progress { prefix, reply } => {
                    batch.progress.insert(prefix);
                    batch.answers.push(Answer::Plain(reply, Ok(())));
                }
                Op::Close { reply } => batch.answers.push(Answer::Plain(reply, Ok(()))),
            }
        }
        if batch.changes.is_empty() && !batch.dirty {
            drop(tables);
            return txn.abort().map_err(|error| layout::fault(error).into());
        }
        self.next_deadline = tables.next_deadline()?;
        tables.finish()?;
        txn.commit().map_err(|error| Failure::Unknown(error.to_string()))
    }

    /// Expiry, and retention if it is asked for.
    fn sweep(
        &mut self,
        tables: &mut Tables<'_>,
        now: SystemTime,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let now_ms = millis(now);
        if self.next_deadline.is_some_and(|deadline| deadline <= now_ms) {
            batch.changes.append(&mut tables.expire(now_ms, CHORE_ROWS)?);
            batch.dirty = true;
        }
        if let Some(revision) = self.retain_from(tables.revision, now)
            && revision > tables.oldest()?
        {
            tables.compact(revision)?;
            self.cleaning = true;
            batch.dirty = true;
        }
        Ok(())
    }

    /// The revision below which the options let history go.
    fn retain_from(&mut self, newest: Revision, now: SystemTime) -> Option<Revision> {
        let by_number = self.options.keep_revisions.map(|keep| newest.saturating_sub(keep));
        let by_age = self.options.keep_age.and_then(|keep| {
            // Ten samples for each period are exact enough and few.
            let apart = keep / 10;
            let due = |(at, _): &(SystemTime, Revision)| {
                now.duration_since(*at).is_ok_and(|since| since >= apart)
            };
            // A clock that was set back would else keep everything until it has caught up.
            if self.ages.back().is_some_and(|(at, _)| *at > now) {
                self.ages.clear();
            }
            if self.ages.back().is_none_or(due) {
                self.ages.push_back((now, newest));
            }
            let mut from = None;
            while let Some((at, revision)) = self.ages.front().copied() {
                if now.duration_since(at).is_ok_and(|since| since >= keep) {
                    from = Some(revision);
                    self.ages.pop_front();
                } else {
                    break;
                }
            }
            from
        });
        by_number.max(by_age)
    }

    fn tick(&mut self) {
        let now = (self.options.clock)();
        if self.shared.database().is_err() {
            self.recover();
        }
        let due = self.next_deadline.is_some_and(|deadline| deadline <= millis(now));
        if due || self.options.keep_revisions.is_some() || self.options.keep_age.is_some() {
            let (reply, _) = oneshot::channel();
            self.batch(vec![Job { op: Op::Sweep { reply }, _share: None }]);
        }
        if let Some(interval) = self.options.progress_interval
            && now.duration_since(self.last_progress).map_or(true, |since| since >= interval)
        {
            self.last_progress = now;
            self.shared.hub.request_progress(b"");
        }
    }

    fn clean(&mut self) {
        let step = |db: &Database| -> Result<bool, StoreError> {
            let txn = db.begin_write().map_err(layout::fault)?;
            let mut tables = Tables::open(&txn)?;
            let done = tables.clean(CHORE_ROWS)?;
            drop(tables);
            txn.commit().map_err(layout::fault)?;
            Ok(done)
        };
        let Ok(db) = self.shared.database() else {
            self.cleaning = false;
            return;
        };
        match step(&db) {
            Ok(done) => self.cleaning = !done,
            Err(error) => {
                tracing::error!(%error, "cannot remove compacted history");
                drop(db);
                self.recover();
            }
        }
    }

    /// Opens the database anew after an error: the engine refuses work from then on, and what it
    /// holds in memory may be ahead of the file.
    fn recover(&mut self) {
        self.shared.withdraw("the storage failed");
        let reopened = self.reopen();
        match reopened {
            Ok(()) => tracing::info!(store = %self.opener.name, "opened again after a failure"),
            Err(error) => {
                tracing::error!(%error, "cannot open the store again");
                self.shared.withdraw(&error.to_string());
                if matches!(error, StoreError::Damaged(_)) {
                    self.shared.hub.close(&error.to_string());
                }
            }
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if !self.shared.released(READERS_LEAVE) {
            return Err(StoreError::Unavailable("reads are still under way".into()));
        }
        let db = self.opener.open()?;
        let published = self.shared.hub.published();
        let snapshot = layout::snapshot(&db)?;
        if snapshot.revision < published {
            return Err(StoreError::Damaged(format!(
                "{}: holds revision {} although {published} was written",
                self.opener.name, snapshot.revision
            )));
        }
        // What the failed commit did write is part of history now.
        self.publish_since(&snapshot, published)?;
        let (cleaning, next_deadline) = layout::chores(&db)?;
        self.cleaning = cleaning;
        self.next_deadline = next_deadline;
        drop(snapshot);
        self.shared.install(db);
        Ok(())
    }

    fn publish_since(&self, snapshot: &Snapshot, published: Revision) -> Result<(), StoreError> {
        let mut next = published + 1;
        while next <= snapshot.revision {
            let stretch = snapshot.replay(&[], next, snapshot.revision, CHORE_ROWS, CHORE_ROWS)?;
            next = stretch.next;
            let changes = stretch.changes.into_iter().map(|(_, change)| change).collect();
            self.shared.hub.publish(changes);
        }
        Ok(())
    }

    fn shut(&self, why: &str) {
        self.shared.hub.close(why);
        self.shared.withdraw(why);
        if !self.shared.released(READERS_LEAVE) {
            tracing::warn!(store = %self.opener.name, "closed while reads are under way");
        }
    }
}

impl Batch {
    /// Notes what the write that was answered last has come to.
    fn settle(&mut self, applied: Applied) {
        let outcome = match applied {
            Applied::Changed(change) => {
                let revision = change.revision();
                self.changes.push(change);
                Outcome::Done(revision)
            }
            Applied::Mismatch(current) => Outcome::Mismatch(current),
        };
        if let Some(Answer::Write(_, slot)) = self.answers.last_mut() {
            *slot = outcome;
        }
    }
}

fn refuse(ops: impl IntoIterator<Item = Op>, error: &StoreError) {
    for op in ops {
        let why = StoreError::Unavailable(error.to_string());
        match op {
            Op::Put { reply, .. } | Op::Delete { reply, .. } => drop(reply.send(Err(why))),
            Op::Compact { reply, .. }
            | Op::Sweep { reply }
            | Op::Progress { reply, .. }
            | Op::Close { reply } => drop(reply.send(Err(why))),
        }
    }
}

/// Milliseconds since the epoch; a clock before the epoch counts as the epoch.
fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
