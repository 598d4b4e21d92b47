//! How every controller runs: inputs put keys into a queue, workers look at the key's present state,
//! plan, and carry the plan out.

use std::hash::Hash;
use std::sync::Arc;

use client::cache::{Cacheable, Synced};
use client::{Cache, Caches, Key, Queue, Queues};
use jiff::Timestamp;
use kube::Client;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::action::{Action, Executor, Plan, is_conflict};

/// What controllers are made from.
#[derive(Clone)]
pub struct Context {
    pub caches: Inputs,
    pub executor: Executor,
    /// Those that metrics tell of.
    pub queues: Queues,
    pub shutdown: CancellationToken,
}

/// The caches that a controller works from: those that it takes when it is made are waited for
/// before it decides anything.
#[derive(Clone)]
pub struct Inputs {
    caches: Caches,
    taken: Arc<Mutex<Vec<Synced>>>,
}

impl Inputs {
    pub fn new(caches: Caches) -> Self {
        Self { caches, taken: Arc::default() }
    }

    pub fn of<K: Cacheable>(&self) -> Cache<K>
    where
        K::DynamicType: Default,
    {
        let cache = self.caches.of::<K>();
        self.taken.lock().push(cache.first_list());
        cache
    }

    /// As [`Inputs::of`], of the objects that a field selector picks.
    pub fn selected<K: Cacheable>(&self, fields: &str) -> Cache<K>
    where
        K::DynamicType: Default,
    {
        let cache = self.caches.selected::<K>(fields);
        self.taken.lock().push(cache.first_list());
        cache
    }

    /// A cache of a kind that may not be served: nothing waits for its first list.
    pub fn later(&self) -> &Caches {
        &self.caches
    }

    /// Waits for the first lists of all that were taken.
    pub async fn synced(&self) {
        let taken = self.taken.lock().clone();
        for synced in taken {
            synced.wait().await;
        }
    }
}

impl Context {
    pub fn client(&self) -> &Client {
        &self.executor.client
    }

    /// A queue of a name.
    pub fn queue<T>(&self, name: &str) -> Queue<T>
    where
        T: Clone + Eq + Hash + Send + Sync + 'static,
    {
        Queue::named(name, &self.queues, self.shutdown.clone())
    }
}

/// A controller: what wakes it, and what it decides.
pub trait Controller: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Puts keys into the queue whenever something that matters to them changes.
    fn wire(&self, queue: &Queue<Key>);

    /// Decides about a key from the present state of the inputs. The key's object may be gone.
    fn plan(&self, key: &Key, now: Timestamp) -> Plan;

    /// Told of each object that a plan's [`crate::action::Action::Create`] made.
    fn created(&self, _key: &Key, _uid: &str) {}

    /// What to say of a pod that a plan made.
    fn announce(&self, _key: &Key, _pod: &str) -> Option<Action> {
        None
    }

    /// Told that the API refused a [`crate::action::Action::Create`] of the plan; what to do then.
    /// The plan's other creations are left out, what else is in it is carried out.
    fn not_created(&self, _key: &Key, _why: &str) -> Vec<Action> {
        Vec::new()
    }

    /// Told that a plan went through whole. Returns whether to look at the key again.
    fn went_through(&self, _key: &Key) -> bool {
        false
    }

    /// How many keys are worked on at once.
    fn workers(&self) -> usize {
        5
    }
}

/// Runs a controller until shutdown.
pub async fn run(controller: Arc<dyn Controller>, context: Context) {
    let queue = context.queue(controller.name());
    controller.wire(&queue);
    tokio::select! {
        () = context.caches.synced() => {}
        () = context.shutdown.cancelled() => return,
    }
    let (name, workers) = (controller.name(), controller.workers());
    let again = queue.clone();
    let work = move |key: Key| {
        let (controller, executor) = (Arc::clone(&controller), context.executor.clone());
        let again = again.clone();
        async move {
            let plan = controller.plan(&key, Timestamp::now());
            if let Some(unless) = &plan.unless
                && executor.holds(unless).await?
            {
                tracing::debug!(controller = name, %key, ?unless, "not now");
                if let Some(after) = plan.again {
                    again.add_after(key, after);
                }
                return Ok(());
            }
            let mut refused = None;
            for action in plan.actions {
                let creates = matches!(action, Action::Create(..));
                if creates && refused.is_some() {
                    continue;
                }
                let made = match executor.carry_out(action).await {
                    Err(error) if is_conflict(&error) => {
                        let error = client::brief(&error);
                        tracing::debug!(controller = name, %key, error, "again");
                        again.add_rate_limited(key);
                        return Ok(());
                    }
                    Err(error) if creates => {
                        for action in controller.not_created(&key, &said(&error)) {
                            executor.carry_out(action).await?;
                        }
                        refused = Some(error);
                        None
                    }
                    made => made?,
                };
                let Some(made) = made else { continue };
                controller.created(&key, made.metadata.uid.as_deref().unwrap_or_default());
                let name = made.metadata.name.as_deref().unwrap_or_default();
                if made.types.as_ref().is_some_and(|t| t.kind == "Pod")
                    && let Some(event) = controller.announce(&key, name)
                {
                    executor.carry_out(event).await?;
                }
            }
            if let Some(error) = refused {
                return Err(error);
            }
            if controller.went_through(&key) {
                again.add(key.clone());
            }
            if let Some(after) = plan.again {
                again.add_after(key, after);
            }
            Ok(())
        }
    };
    queue.run(name, workers, work).await;
}

/// What the API said, without what was tried.
fn said(error: &anyhow::Error) -> String {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) if !status.message.is_empty() => status.message.clone(),
        _ => client::brief(error),
    }
}
