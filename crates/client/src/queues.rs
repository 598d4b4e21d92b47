//! What is counted of work queues, under upstream's names (component-base
//! `metrics/prometheus/workqueue`).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use component::metrics::{Histogram, Kind, Page};
use parking_lot::Mutex;

/// Upper bounds, in seconds.
const BOUNDS: [f64; 12] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// What there was to do, and how long it took. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Counts {
    pub depth: usize,
    pub adds: u64,
    pub retries: u64,
    pub waited: Histogram,
    pub worked: Histogram,
    /// How long what is being worked on has taken until now: all together, and at most.
    pub unfinished: f64,
    pub longest: f64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            depth: 0,
            adds: 0,
            retries: 0,
            waited: Histogram::new(&BOUNDS),
            worked: Histogram::new(&BOUNDS),
            unfinished: 0.0,
            longest: 0.0,
        }
    }
}

/// Something that counts.
pub trait Counted: Send + Sync {
    fn counts(&self) -> Counts;
}

/// The queues of a process, by name, as long as they are there. Clones share them.
#[derive(Clone, Default)]
pub struct Queues(Arc<Mutex<BTreeMap<String, Weak<dyn Counted>>>>);

impl Queues {
    pub(crate) fn tell_of(&self, name: &str, queue: Arc<dyn Counted>) {
        self.0.lock().insert(name.to_owned(), Arc::downgrade(&queue));
    }

    /// Puts all of them on a page.
    pub fn tell(&self, page: &mut Page) {
        let all: Vec<(String, Counts)> = {
            let queues = self.0.lock();
            let there = queues.iter().filter_map(|(name, queue)| Some((name, queue.upgrade()?)));
            there.map(|(name, queue)| (name.clone(), queue.counts())).collect()
        };
        let mut each = |name: &str, kind, help: &str, value: fn(&Counts) -> f64| {
            page.family(name, kind, help);
            for (queue, counts) in &all {
                page.sample(name, &[("name", queue)], value(counts));
            }
        };
        each(
            "workqueue_adds_total",
            Kind::Counter,
            "Total number of adds handled by workqueue",
            |c| c.adds as f64,
        );
        each("workqueue_depth", Kind::Gauge, "Current depth of workqueue", |c| c.depth as f64);
        each(
            "workqueue_longest_running_processor_seconds",
            Kind::Gauge,
            "How many seconds has the longest running processor for workqueue been running.",
            |c| c.longest,
        );
        each(
            "workqueue_retries_total",
            Kind::Counter,
            "Total number of retries handled by workqueue",
            |c| c.retries as f64,
        );
        each(
            "workqueue_unfinished_work_seconds",
            Kind::Gauge,
            "Seconds of work that is in progress and has not been counted by work_duration.",
            |c| c.unfinished,
        );
        let mut each = |name: &str, help: &str, value: fn(&Counts) -> &Histogram| {
            page.family(name, Kind::Histogram, help);
            for (queue, counts) in &all {
                page.histogram(name, &[("name", queue)], value(counts));
            }
        };
        each(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested.",
            |c| &c.waited,
        );
        each(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes.",
            |c| &c.worked,
        );
    }
}
