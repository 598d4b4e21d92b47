//! How every controller runs: inputs put keys into a queue, workers look at the key's present state,
//! plan, and carry the plan out.

use std::sync::Arc;

use client::{Caches, Key, Queue};
use jiff::Timestamp;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::action::{Executor, Plan, is_conflict};

/// What controllers are made from.
#[derive(Clone)]
pub struct Context {
    pub caches: Caches,
    pub executor: Executor,
    pub shutdown: CancellationToken,
}

impl Context {
    pub fn client(&self) -> &Client {
        &self.executor.client
    }
}

/// A controller: what wakes it, and what it decides.
pub trait Controller: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Puts keys into the queue whenever something that matters to them changes.
    fn wire(&self, queue: &Queue<Key>);

    /// Waits until all inputs have been listed.
    fn synced(&self) -> impl Future<Output = ()> + Send;

    /// Decides about a key from the present state of the inputs. The key's object may be gone.
    fn plan(&self, key: &Key, now: Timestamp) -> Plan;

    /// Told of each object that a plan's [`crate::action::Action::Create`] made.
    fn created(&self, _key: &Key, _uid: &str) {}

    /// How many keys are worked on at once.
    fn workers(&self) -> usize {
        5
    }
}

/// Runs a controller until shutdown.
pub async fn run<C: Controller>(controller: C, context: Context) {
    let queue = Queue::new(context.shutdown.clone());
    let controller = Arc::new(controller);
    controller.wire(&queue);
    tokio::select! {
        () = controller.synced() => {}
        () = context.shutdown.cancelled() => return,
    }
    let (name, workers) = (controller.name(), controller.workers());
    let again = queue.clone();
    let work = move |key: Key| {
        let (controller, executor) = (Arc::clone(&controller), context.executor.clone());
        let again = again.clone();
        async move {
            let plan = controller.plan(&key, Timestamp::now());
            for action in plan.actions {
                let made = match executor.carry_out(action).await {
                    Err(error) if is_conflict(&error) => {
                        tracing::debug!(controller = name, %key, error = client::brief(&error), "again");
                        again.add_rate_limited(key);
                        return Ok(());
                    }
                    made => made?,
                };
                if let Some(uid) = made.and_then(|m| m.metadata.uid) {
                    controller.created(&key, &uid);
                }
            }
            if let Some(after) = plan.again {
                again.add_after(key, after);
            }
            Ok(())
        }
    };
    queue.run(name, workers, work).await;
}
