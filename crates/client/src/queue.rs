//! Work queues: keys to be looked at, each at most once at a time (client-go `workqueue`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::brief;
use crate::queues::{Counted, Counts, Queues};

/// First delay after a failure; it doubles with each further one.
const BASE_DELAY: Duration = Duration::from_millis(5);
/// Longest delay after a failure.
const MAX_DELAY: Duration = Duration::from_secs(1000);

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there when the worker that has it is done; since when.
    dirty: HashMap<T, Instant>,
    /// Since when.
    processing: HashMap<T, Instant>,
    delayed: BTreeMap<(Instant, u64), T>,
    /// Where in `delayed` a key stands: it stands there once, at its earliest time.
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
    counts: Counts,
}

/// A queue of keys. Adding a key that waits changes nothing; adding one that is being worked on
/// makes it wait until that work is done. Clones share it.
pub struct Queue<T> {
    state: Arc<Mutex<State<T>>>,
    wake: Arc<Notify>,
    shutdown: CancellationToken,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            wake: Arc::clone(&self.wake),
            shutdown: self.shutdown.clone(),
        }
    }
}

impl<T: Clone + Eq + Hash + Send + Sync + 'static> Queue<T> {
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                processing: HashMap::new(),
                delayed: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
                counts: Counts::default(),
            })),
            wake: Arc::new(Notify::new()),
            shutdown,
        }
    }

    /// A queue that metrics tell of, by a name.
    pub fn named(name: &str, queues: &Queues, shutdown: CancellationToken) -> Self {
        let queue = Self::new(shutdown);
        queues.tell_of(name, Arc::clone(&queue.state) as Arc<dyn Counted>);
        queue
    }

    /// Adds a key, to be worked on as soon as may be.
    pub fn add(&self, key: T) {
        self.state.lock().add(key, Instant::now());
        self.wake.notify_one();
    }

    /// Adds a key when `delay` has passed; sooner if it is added sooner otherwise.
    pub fn add_after(&self, key: T, delay: Duration) {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            state.counts.retries += 1;
            match delay.is_zero() {
                true => state.add(key, now),
                false => state.add_at(key, now + delay),
            }
        }
        self.wake.notify_one();
    }

    /// Adds a key after a delay that grows with each failure since [`Queue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let delay = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            BASE_DELAY.saturating_mul(1 << (*failures - 1).min(20)).min(MAX_DELAY)
        };
        self.add_after(key, delay);
    }

    /// Forgets a key's failures.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// How often a key has failed since [`Queue::forget`].
    pub fn failures(&self, key: &T) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, to be given back with [`Queue::done`]; `None` at shutdown.
    pub async fn next(&self) -> Option<T> {
        loop {
            if self.shutdown.is_cancelled() {
                return None;
            }
            let notified = self.wake.notified();
            let due = {
                let mut state = self.state.lock();
                let now = Instant::now();
                state.ripen(now);
                if let Some(key) = state.take(now) {
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            let ripe = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = notified => {}
                () = ripe => {}
                () = self.shutdown.cancelled() => return None,
            }
        }
    }

    /// Says that the work on a key has ended.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        if let Some(since) = state.processing.remove(key) {
            state.counts.worked.observe(since.elapsed().as_secs_f64());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            self.wake.notify_one();
        }
    }

    /// Runs `workers` loops that call `work` for each key until shutdown. A key whose work fails
    /// is tried again, later each time.
    pub async fn run<F, W>(self, name: &'static str, workers: usize, work: W)
    where
        F: Future<Output = anyhow::Result<()>> + Send,
        W: Fn(T) -> F + Send + Sync + 'static,
        T: std::fmt::Debug,
    {
        let worker = || async {
            while let Some(key) = self.next().await {
                match work(key.clone()).await {
                    Ok(()) => self.forget(&key),
                    Err(error) => {
                        tracing::warn!(
                            controller = name,
                            ?key,
                            error = brief(&error),
                            "will retry"
                        );
                        self.add_rate_limited(key.clone());
                    }
                }
                self.done(&key);
                // Work that never waits for anything must not keep the others from theirs.
                tokio::task::yield_now().await;
            }
        };
        futures::future::join_all((0..workers).map(|_| worker())).await;
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn add(&mut self, key: T, now: Instant) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&at);
        }
        if self.dirty.contains_key(&key) {
            return;
        }
        self.counts.adds += 1;
        self.dirty.insert(key.clone(), now);
        if !self.processing.contains_key(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: T, at: Instant) {
        if self.dirty.contains_key(&key) && !self.processing.contains_key(&key) {
            return;
        }
        match self.due.get(&key) {
            Some((already, _)) if *already <= at => return,
            Some(later) => {
                self.delayed.remove(later);
            }
            None => {}
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.delayed.insert((at, self.sequence), key);
    }

    fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key, now);
        }
    }

    fn take(&mut self, now: Instant) -> Option<T> {
        let key = self.ready.pop_front()?;
        if let Some(since) = self.dirty.remove(&key) {
            self.counts.waited.observe(now.duration_since(since).as_secs_f64());
        }
        self.processing.insert(key.clone(), now);
        Some(key)
    }
}

impl<T: Send + Sync> Counted for Mutex<State<T>> {
    fn counts(&self) -> Counts {
        let state = self.lock();
        let worked = state.processing.values().map(|since| since.elapsed().as_secs_f64());
        Counts {
            depth: state.ready.len(),
            unfinished: worked.clone().sum(),
            longest: worked.fold(0.0, f64::max),
            ..state.counts.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use component::metrics::Page;

    fn queue() -> Queue<&'static str> {
        Queue::new(CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_handed_out_once() {
        let q = queue();
        q.add("a");
        q.add("a");
        assert_eq!(q.next().await, Some("a"));
        q.done(&"a");
        assert!(q.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_during_its_work_comes_again_after_it() {
        let q = queue();
        q.add("a");
        assert_eq!(q.next().await, Some("a"));
        q.add("a");
        assert!(q.is_empty(), "not handed out while it is worked on");
        q.done(&"a");
        assert_eq!(q.next().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_two_delays_counts() {
        let q = queue();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(10));
        q.add_after("a", Duration::from_secs(2));
        q.add_after("a", Duration::from_secs(5));
        assert_eq!(q.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 2);
        q.done(&"a");
        assert!(q.state.lock().delayed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_until_forgotten() {
        let q = queue();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            q.add_rate_limited("a");
            q.next().await;
            q.done(&"a");
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits, [5, 10, 20, 40]);
        q.forget(&"a");
        assert_eq!(q.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_is_counted() {
        let queues = Queues::default();
        let q = Queue::named("jobs", &queues, CancellationToken::new());
        q.add("a");
        q.add("a");
        q.add("b");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(q.next().await, Some("a"));
        q.add_after("a", Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(3)).await;
        let mut page = Page::default();
        queues.tell(&mut page);
        let text = page.text();
        for line in [
            "workqueue_depth{name=\"jobs\"} 1",
            "workqueue_adds_total{name=\"jobs\"} 2",
            "workqueue_retries_total{name=\"jobs\"} 1",
            "workqueue_queue_duration_seconds_sum{name=\"jobs\"} 2",
            "workqueue_queue_duration_seconds_bucket{name=\"jobs\",le=\"1\"} 0",
            "workqueue_queue_duration_seconds_bucket{name=\"jobs\",le=\"10\"} 1",
            "workqueue_work_duration_seconds_count{name=\"jobs\"} 0",
            "workqueue_unfinished_work_seconds{name=\"jobs\"} 3",
            "workqueue_longest_running_processor_seconds{name=\"jobs\"} 3",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        q.done(&"a");
        assert_eq!(q.state.counts().worked.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_ends_waiting() {
        let q = queue();
        q.add("a");
        q.shutdown.cancel();
        assert_eq!(q.next().await, None);
    }
}
