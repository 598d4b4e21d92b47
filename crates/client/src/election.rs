//! Leader election: of several candidates one at a time works (client-go `leaderelection`).
//!
//! [`Elector`] is what a candidate knows and decides, without I/O; [`acquire`] waits for the office,
//! and [`Leadership`] keeps it. A candidate measures how long a lease has stood unchanged by its own
//! clock: the times in the lease are for people, clocks need not agree.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::error::brief;
use crate::events::{EventType, Recorder};
use crate::lease::LeaseLock;

/// Pauses of candidates are up to this share longer, at random.
const JITTER: f64 = 1.2;
/// A leader that could not renew for so much longer than its lease, and is still here, is stuck.
const STUCK: Duration = Duration::from_secs(20);

/// The lock's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Empty when released.
    pub holder: String,
    pub lease_seconds: i32,
    pub acquired: Option<Timestamp>,
    pub renewed: Option<Timestamp>,
    /// How often the holder has changed.
    pub transitions: i32,
}

/// Where the record is kept. An update fails when somebody else wrote since the last call.
pub trait Lock: Send + 'static {
    /// Its name, for logs.
    fn describe(&self) -> String;

    /// What events are about.
    fn about(&self) -> ObjectReference;

    /// `None` when there is none yet.
    fn get(&mut self) -> impl Future<Output = anyhow::Result<Option<Record>>> + Send;

    fn create(&mut self, record: &Record) -> impl Future<Output = anyhow::Result<()>> + Send;

    fn update(&mut self, record: &Record) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A lease that has not changed for so long is free.
    pub lease: Duration,
    /// A leader that could not renew for so long stops.
    pub deadline: Duration,
    /// Between attempts.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(15), deadline: seconds(10), retry: seconds(2) }
    }
}

impl Timing {
    /// # Errors
    /// Two leaders at once would be possible, or none for long.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.lease < Duration::from_secs(1) || self.deadline.is_zero() || self.retry.is_zero() {
            bail!("leader election: durations must be greater than zero");
        }
        if self.lease <= self.deadline {
            bail!("leader election: leaseDuration must be greater than renewDeadline");
        }
        if self.deadline <= self.retry.mul_f64(JITTER) {
            bail!("leader election: renewDeadline must be greater than retryPeriod*JitterFactor");
        }
        Ok(())
    }

    /// One request may take so long: a single one that hangs must not lose the office.
    fn patience(&self) -> Duration {
        (self.deadline / 2).max(Duration::from_secs(1))
    }
}

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Measures; never goes back.
    pub instant: Instant,
    /// Is written into the lock.
    pub wall: Timestamp,
}

impl Now {
    fn read() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::now() }
    }
}

/// What one candidate knows.
#[derive(Clone, Debug)]
pub struct Elector {
    identity: String,
    timing: Timing,
    /// The record last read or written, and when it became so.
    observed: Option<(Record, Instant)>,
}

impl Elector {
    pub fn new(identity: &str, timing: Timing) -> Self {
        Self { identity: identity.to_owned(), timing, observed: None }
    }

    /// Who leads, as far as is known; empty for nobody.
    pub fn leader(&self) -> &str {
        self.observed.as_ref().map_or("", |(record, _)| record.holder.as_str())
    }

    pub fn leads(&self) -> bool {
        !self.identity.is_empty() && self.leader() == self.identity
    }

    /// Whether the observed lease stands.
    fn stands(&self, now: Now) -> bool {
        self.observed.as_ref().is_some_and(|(record, at)| {
            let life = u64::try_from(record.lease_seconds).unwrap_or(0);
            *at + Duration::from_secs(life) > now.instant
        })
    }

    fn fresh(&self, now: Now, old: Option<&Record>) -> Record {
        let keeps = self.leads();
        let transitions = old.map_or(0, |r| r.transitions);
        Record {
            holder: self.identity.clone(),
            lease_seconds: i32::try_from(self.timing.lease.as_secs()).unwrap_or(i32::MAX),
            acquired: old.filter(|_| keeps).map_or(Some(now.wall), |r| r.acquired),
            renewed: Some(now.wall),
            transitions: match (old, keeps) {
                (Some(_), false) => transitions.saturating_add(1),
                _ => transitions,
            },
        }
    }

    /// A leader's renewal, to be written without reading first: nobody else should have written.
    pub fn renewal(&self, now: Now) -> Option<Record> {
        (self.leads() && self.stands(now))
            .then(|| self.fresh(now, self.observed.as_ref().map(|(record, _)| record)))
    }

    /// What to write, given what was read; `None` to leave the lease to another.
    pub fn judge(&mut self, found: Option<&Record>, now: Now) -> Option<Record> {
        let Some(found) = found else {
            return Some(Record {
                transitions: 0,
                acquired: Some(now.wall),
                ..self.fresh(now, None)
            });
        };
        if self.observed.as_ref().is_none_or(|(record, _)| record != found) {
            self.observed = Some((found.clone(), now.instant));
        }
        if !found.holder.is_empty() && self.stands(now) && !self.leads() {
            return None;
        }
        Some(self.fresh(now, Some(found)))
    }

    /// What was judged right has been written.
    pub fn wrote(&mut self, record: Record, now: Now) {
        self.observed = Some((record, now.instant));
    }

    /// What gives the office up, given what was read.
    pub fn release(&self, found: &Record, now: Now) -> Option<Record> {
        self.leads().then(|| Record {
            holder: String::new(),
            lease_seconds: 1,
            acquired: Some(now.wall),
            renewed: Some(now.wall),
            transitions: found.transitions,
        })
    }
}

/// Tells whether a leader is stuck: for /healthz, under the name `leaderElection`.
#[derive(Clone, Default)]
pub struct Watchdog {
    renewed: Arc<Mutex<Option<(Instant, Duration, String)>>>,
}

impl Watchdog {
    /// # Errors
    /// The lease ran out long ago, and yet this process has not ended.
    pub fn check(&self) -> Result<(), String> {
        match &*self.renewed.lock() {
            Some((at, lease, name)) if at.elapsed() > *lease + STUCK => {
                Err(format!("failed election to renew leadership on lease {name}"))
            }
            _ => Ok(()),
        }
    }
}

/// One candidate in one election.
pub struct Candidate<L> {
    pub lock: L,
    /// Unique among candidates.
    pub identity: String,
    pub timing: Timing,
    pub recorder: Recorder,
    pub watchdog: Watchdog,
}

/// The host's name and something unique: two on one host are two.
fn identity(host: &str) -> String {
    format!("{host}_{}", uuid::Uuid::new_v4())
}

impl Candidate<LeaseLock> {
    /// A candidate for the Lease of this namespace and name.
    ///
    /// # Errors
    /// The times do not fit each other, or the host has no name.
    pub fn new(
        client: &kube::Client,
        (namespace, name): (&str, &str),
        timing: Timing,
        recorder: Recorder,
    ) -> anyhow::Result<Self> {
        timing.check()?;
        let host = nix::unistd::gethostname().context("the host's name")?;
        Ok(Self {
            lock: LeaseLock::new(client.clone(), namespace, name),
            identity: identity(&host.to_string_lossy()),
            timing,
            recorder,
            watchdog: Watchdog::default(),
        })
    }
}

struct Campaign<L> {
    candidate: Candidate<L>,
    elector: Elector,
    reported: String,
}

impl<L: Lock> Campaign<L> {
    /// One attempt to get or keep the office.
    async fn attempt(&mut self) -> bool {
        let done = match timeout(self.candidate.timing.patience() * 3, self.try_once()).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                let lock = self.candidate.lock.describe();
                tracing::warn!(lock, error = brief(&error), "leader election");
                false
            }
            Err(_) => false,
        };
        let leader = self.elector.leader();
        if leader != self.reported {
            self.reported = leader.to_owned();
            tracing::info!(lock = self.candidate.lock.describe(), leader, "leader");
        }
        *self.candidate.watchdog.renewed.lock() = match &self.elector.observed {
            Some((_, at)) if self.elector.leads() => {
                Some((*at, self.candidate.timing.lease, self.candidate.lock.describe()))
            }
            _ => None,
        };
        done
    }

    async fn try_once(&mut self) -> anyhow::Result<bool> {
        let patience = self.candidate.timing.patience();
        let lock = &mut self.candidate.lock;
        // The lease stands from when its renewal was sent: the answer may take long.
        let sent = Now::read();
        if let Some(record) = self.elector.renewal(sent) {
            match timeout(patience, lock.update(&record)).await? {
                Ok(()) => {
                    self.elector.wrote(record, sent);
                    return Ok(true);
                }
                Err(error) => tracing::debug!(error = brief(&error), "reading the lease again"),
            }
        }
        let found = timeout(patience, lock.get()).await??;
        let sent = Now::read();
        let Some(record) = self.elector.judge(found.as_ref(), sent) else { return Ok(false) };
        match found {
            None => timeout(patience, lock.create(&record)).await??,
            Some(_) => timeout(patience, lock.update(&record)).await??,
        }
        self.elector.wrote(record, sent);
        Ok(true)
    }

    fn tell(&self, what: &str) {
        let message = format!("{} {what}", self.candidate.identity);
        let about = self.candidate.lock.about();
        self.candidate.recorder.event(about, EventType::Normal, "LeaderElection", message);
    }

    /// Renews until told to stop (true) or until it could not for too long (false).
    async fn keep(&mut self, stop: &CancellationToken) -> bool {
        let timing = self.candidate.timing;
        loop {
            tokio::select! {
                () = stop.cancelled() => return true,
                () = sleep(timing.retry) => {}
            }
            // Never beyond the lease: another may begin then.
            let ends = self.elector.observed.as_ref().map(|(_, at)| *at + timing.lease);
            let deadline = Instant::now() + timing.deadline;
            let deadline = ends.map_or(deadline, |ends| ends.min(deadline));
            let renewing = async {
                while !self.attempt().await {
                    sleep(timing.retry).await;
                }
            };
            let renewed = tokio::select! {
                () = stop.cancelled() => return true,
                renewed = timeout_at(deadline, renewing) => renewed,
            };
            if renewed.is_err() {
                return false;
            }
        }
    }

    async fn release(&mut self) -> anyhow::Result<()> {
        let lock = &mut self.candidate.lock;
        let Some(found) = lock.get().await? else { return Ok(()) };
        // Somebody else's by now: nothing to give up.
        if found.holder != self.candidate.identity {
            return Ok(());
        }
        if let Some(record) = self.elector.release(&found, Now::read()) {
            lock.update(&record).await?;
            self.elector.wrote(record, Now::read());
        }
        Ok(())
    }
}

/// The office, held and renewed in the background until it is dropped, released or lost.
pub struct Leadership<L> {
    stop: CancellationToken,
    lost: CancellationToken,
    keeper: Option<JoinHandle<Campaign<L>>>,
}

/// Waits until the office is lost; for ever without one.
pub async fn lost<L: Lock>(office: &Option<Leadership<L>>) {
    match office {
        Some(office) => office.lost().await,
        None => std::future::pending().await,
    }
}

/// Waits until this candidate leads; `None` at shutdown.
pub async fn acquire<L: Lock>(
    candidate: Candidate<L>,
    shutdown: &CancellationToken,
) -> Option<Leadership<L>> {
    let elector = Elector::new(&candidate.identity, candidate.timing);
    let mut campaign = Campaign { candidate, elector, reported: String::new() };
    let retry = campaign.candidate.timing.retry;
    tracing::info!(lock = campaign.candidate.lock.describe(), "attempting to acquire leader lease");
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            leads = campaign.attempt() => if leads { break },
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = sleep(retry.mul_f64(1.0 + rand::random::<f64>() * JITTER)) => {}
        }
    }
    campaign.tell("became leader");
    let (stop, lost) = (CancellationToken::new(), CancellationToken::new());
    let (stopping, losing) = (stop.clone(), lost.clone());
    let keeper = tokio::spawn(async move {
        if !campaign.keep(&stopping).await {
            tracing::error!(lock = campaign.candidate.lock.describe(), "failed to renew lease");
            losing.cancel();
        }
        *campaign.candidate.watchdog.renewed.lock() = None;
        campaign.tell("stopped leading");
        campaign
    });
    Some(Leadership { stop, lost, keeper: Some(keeper) })
}

impl<L: Lock> Leadership<L> {
    /// Waits until the office is lost. All that it allowed must stop at once.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Gives the office up, so that the next need not wait. All that it allowed must have ended.
    pub async fn release(mut self) {
        let Some(mut campaign) = self.stop().await else { return };
        if self.lost.is_cancelled() {
            return;
        }
        let deadline = campaign.candidate.timing.deadline;
        let released = match timeout(deadline, campaign.release()).await {
            Ok(released) => released,
            Err(late) => Err(late.into()),
        };
        if let Err(error) = released {
            tracing::warn!(error = brief(&error), "lease not released");
        }
    }

    /// Stops renewing; the next waits until the lease has run out.
    pub async fn leave(mut self) {
        self.stop().await;
    }

    async fn stop(&mut self) -> Option<Campaign<L>> {
        self.stop.cancel();
        self.keeper.take()?.await.ok()
    }
}

impl<L> Drop for Leadership<L> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
