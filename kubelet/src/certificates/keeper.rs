//! Keeps one certificate current.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::decide::{Step, Wanted, Why, pause, step};
use super::pair::Pair;
use super::store::Store;

/// The clock is looked at this often, however far away the next renewal is: it may be set.
const LOOK: SignedDuration = SignedDuration::from_mins(1);
/// Between a certificate and the request for the next.
const BREATH: Duration = Duration::from_secs(1);

/// The certificate in use, for those who follow it.
pub type Current = watch::Receiver<Option<Arc<Pair>>>;

/// Asks, keeps and publishes.
pub struct Keeper {
    /// For the log.
    what: &'static str,
    store: Store,
    wanted: watch::Receiver<Option<Wanted>>,
    current: watch::Sender<Option<Arc<Pair>>>,
    provisional: bool,
    /// From 0 to 1, another one for each certificate.
    random: fn() -> f64,
}

/// Certificates and key, PEM.
pub struct Issued {
    pub certificates: String,
    pub key: String,
}

impl Keeper {
    /// Begins with what the store has. A `provisional` certificate is replaced at once.
    pub fn new(
        what: &'static str,
        store: Store,
        first: Option<Pair>,
        provisional: bool,
        wanted: watch::Receiver<Option<Wanted>>,
    ) -> Self {
        let current = watch::Sender::new(first.map(Arc::new));
        Self { what, store, wanted, current, provisional, random: rand::random }
    }

    pub fn current(&self) -> Current {
        self.current.subscribe()
    }

    /// Runs until it is dropped. `ask` gets a certificate with a new key.
    pub async fn run<A, F>(mut self, now: impl Fn() -> Timestamp, ask: A)
    where
        A: Fn(Wanted) -> F,
        F: Future<Output = anyhow::Result<Issued>>,
    {
        let (mut failures, mut share) = (0, (self.random)());
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let pair = self.current.borrow().clone();
            let leaf = pair.as_ref().map(|pair| &pair.leaf);
            let why = match step(leaf, self.provisional, wanted.as_ref(), share, now()) {
                Step::Rest => {
                    self.changed().await;
                    continue;
                }
                Step::Until(at) => {
                    let left = at.duration_since(now()).clamp(SignedDuration::ZERO, LOOK);
                    tokio::select! {
                        () = tokio::time::sleep(left.unsigned_abs()) => {}
                        () = self.changed() => {}
                    }
                    continue;
                }
                Step::Ask(why) => why,
            };
            let Some(wanted) = wanted else { continue };
            tracing::info!(certificate = self.what, ?why, "asking for a certificate");
            let issued = tokio::select! {
                issued = ask(wanted.clone()) => issued,
                // What is asked for is not what is wanted any more.
                () = self.changed() => continue,
            };
            let kept = issued.and_then(|i| self.store.update(&i.certificates, &i.key, now()));
            let refused = match kept {
                Ok(pair) => {
                    tracing::info!(certificate = self.what, until = %pair.leaf.until, "renewed");
                    (self.provisional, share) = (false, (self.random)());
                    let next = step(Some(&pair.leaf), false, Some(&wanted), share, now());
                    self.current.send_replace(Some(Arc::new(pair)));
                    // It is used all the same, but to ask again at once would not help.
                    matches!(next, Step::Ask(Why::Lacks(_)))
                }
                Err(error) => {
                    let error = client::brief(&error);
                    tracing::warn!(certificate = self.what, error, "no certificate");
                    true
                }
            };
            failures = if refused { failures + 1 } else { 0 };
            let rest = if refused { pause(failures, (self.random)()) } else { BREATH };
            tokio::time::sleep(rest).await;
        }
    }

    /// Returns when something else may be wanted; never, if nobody can say so any more.
    async fn changed(&mut self) {
        if self.wanted.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
