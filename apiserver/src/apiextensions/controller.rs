//! Puts definitions into service and takes them out: a loop over all definitions that settles
//! their names and conditions, swaps the catalog, runs the caches of custom resources, and deletes
//! the objects of definitions that go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::object::{self, list_at, str_at};
use apimachinery::status::ApiError;
use apimachinery::{Value, gvk};
use http::Method;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Custom;
use super::conditions::{self, CLEANUP, Condition};
use super::convert::{Converter, Webhooks};
use super::definition::{Definition, same_resources};
use crate::api::{Api, rfc3339};
use crate::cache::{Cache, Codec, Scope};
use crate::pipeline;
use crate::registry::catalog::Served;

/// After a write that failed, all is looked at again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the objects of a definition may take to go before it is said that they do not.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const READY: Duration = Duration::from_secs(30);

/// What the rest of the server asks of the loop.
#[derive(Default)]
pub struct State {
    settled: AtomicBool,
}

impl State {
    /// Whether the definitions that were there at the start are in service.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }
}

/// A definition in service.
struct Running {
    definition: Arc<Definition>,
    rows: Vec<Arc<Served>>,
    /// The version that is stored, which need not be served.
    stored: Arc<Served>,
    /// Ends its cache.
    stop: CancellationToken,
}

fn resource() -> GroupResource {
    GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions")
}

/// Runs until `shutdown`; caches end with `stop_caches`.
pub async fn run(api: Arc<Api>, shutdown: CancellationToken, stop_caches: CancellationToken) {
    let catalog = api.catalog();
    let Some(cache) = catalog.cache(&resource()).cloned() else {
        api.extensions.settled.store(true, Ordering::Release);
        return;
    };
    let mut controller = Controller {
        converter: Arc::new(Webhooks(api.webhooks.clone())),
        api,
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
        cleaning: BTreeSet::new(),
        cleaned: Arc::new(Notify::new()),
        done: Arc::default(),
        stop_caches,
        shutdown: shutdown.clone(),
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = controller.follow(&cache) => {}
    }
    // The caches end when they are told to; until then requests read from them.
    while controller.tasks.join_next().await.is_some() {}
}

struct Controller {
    api: Arc<Api>,
    converter: Arc<dyn Converter>,
    /// By the definition's name.
    running: BTreeMap<String, Running>,
    tasks: JoinSet<()>,
    /// Definitions, by uid, whose objects are being deleted.
    cleaning: BTreeSet<String>,
    /// A deletion has ended.
    cleaned: Arc<Notify>,
    done: Arc<parking_lot::Mutex<Vec<String>>>,
    stop_caches: CancellationToken,
    shutdown: CancellationToken,
}

impl Controller {
    async fn follow(&mut self, cache: &Arc<Cache>) {
        while cache.wait_ready(READY).await.is_err() {}
        loop {
            let (cut, mut watcher) = cache.watch_from_now(Scope::All);
            let read = cut.objects.range("", std::ops::Bound::Unbounded);
            let crds: Vec<Arc<Value>> = read
                .filter_map(|cached| match cached.value(&cache.codec) {
                    Ok(value) => Some(value),
                    Err(error) => {
                        tracing::error!(key = &*cached.key, %error, "cannot read a definition");
                        None
                    }
                })
                .collect();
            let complete = self.sync(crds).await;
            self.api.extensions.settled.store(true, Ordering::Release);
            let again = async {
                match complete {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY).await,
                }
            };
            tokio::select! {
                _ = watcher.next() => {}
                () = self.cleaned.notified() => {}
                () = again => {}
            }
        }
    }

    /// Brings everything to where the definitions say it should be; false: not all could be
    /// written.
    async fn sync(&mut self, crds: Vec<Arc<Value>>) -> bool {
        for uid in self.done.lock().drain(..) {
            self.cleaning.remove(&uid);
        }
        let mut present = crds;
        let mut written = Vec::new();
        // Names that one gets are taken for the next.
        for i in 0..present.len() {
            let all: Vec<&Value> = present.iter().map(|crd| &**crd).collect();
            let Some(crd) = all.get(i) else { continue };
            let now = rfc3339(self.api.now());
            if let Some(next) = conditions::plan(crd, &all, &now) {
                let next = Arc::new(next);
                written.push(next.clone());
                if let Some(place) = present.get_mut(i) {
                    *place = next;
                }
            }
        }
        // What is established is in service before anybody can know.
        self.serve(&present);
        let mut complete = true;
        for crd in written {
            complete &= write_status(&self.api, &crd).await.is_some();
        }
        for crd in &present {
            let deleted = !object::deletion_timestamp(crd).is_empty();
            let held = object::finalizers(crd).any(|f| f == CLEANUP);
            let uid = object::uid(crd).to_owned();
            if deleted && held && self.cleaning.insert(uid.clone()) {
                let served = self.running.get(object::name(crd)).map(|r| r.stored.clone());
                let cleanup =
                    Cleanup { api: self.api.clone(), name: object::name(crd).to_owned(), served };
                let (cleaned, done) = (self.cleaned.clone(), self.done.clone());
                let shutdown = self.shutdown.clone();
                self.tasks.spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = cleanup.run() => {}
                    }
                    done.lock().push(uid);
                    cleaned.notify_one();
                });
            }
        }
        complete
    }

    /// Makes the catalog that of these definitions.
    fn serve(&mut self, crds: &[Arc<Value>]) {
        let (mut changed, mut ending) = (false, Vec::new());
        let established: BTreeMap<&str, &Arc<Value>> = crds
            .iter()
            .filter(|crd| conditions::is_true(crd, "Established"))
            .map(|crd| (object::name(crd), crd))
            .collect();
        self.running.retain(|name, running| {
            let stays = established
                .get(name.as_str())
                .is_some_and(|crd| same_resources(&running.definition.source, crd));
            if !stays {
                ending.push(running.stop.clone());
                changed = true;
            }
            stays
        });
        for (name, crd) in established {
            let terminating = conditions::is_true(crd, "Terminating");
            if let Some(running) = self.running.get(name) {
                changed |= running.definition.is_terminating() != terminating;
                running.definition.set_terminating(terminating);
                continue;
            }
            let running = self.start(crd);
            self.running.insert(name.to_owned(), running);
            changed = true;
        }
        if changed {
            let rows = self.running.values().flat_map(|running| running.rows.clone());
            let catalog = self.api.catalog().with_custom(rows);
            self.api.caches.set_catalog(Arc::new(catalog));
        }
        // Who comes now finds the new rows; who watches the old ones is to come again.
        ending.iter().for_each(CancellationToken::cancel);
        while self.tasks.try_join_next().is_some() {}
    }

    fn start(&mut self, crd: &Arc<Value>) -> Running {
        let definition = Arc::new(Definition::read(crd.clone(), &self.converter));
        let codec = Codec {
            schema: None,
            api_version: gvk::api_version(&definition.group, definition.storage_version()),
            kind: definition.names.kind.clone(),
            fields: Vec::new(),
            custom: Some(definition.clone()),
        };
        let prefix = format!("{}/{}/{}/", self.api.root, definition.group, definition.names.plural);
        let cache = Cache::new(self.api.store.clone(), prefix, codec);
        let stop = self.stop_caches.child_token();
        self.tasks.spawn(cache.clone().run(stop.clone()));
        let row = |i| Arc::new(Served::custom(definition.clone(), i, cache.clone()));
        let served = definition.versions.iter().enumerate().filter(|(_, v)| v.served);
        let rows: Vec<Arc<Served>> = served.map(|(i, _)| row(i)).collect();
        let is_stored = |s: &&Arc<Served>| s.row.custom.as_ref().is_some_and(Custom::is_stored);
        let stored = rows.iter().find(is_stored).cloned();
        let stored = stored.unwrap_or_else(|| row(definition.storage()));
        Running { definition, rows, stored, stop }
    }
}

/// Writes a definition's status; `None`: it could not be, and is to be tried again.
async fn write_status(api: &Arc<Api>, crd: &Value) -> Option<Value> {
    let url = format!(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}/status",
        object::name(crd)
    );
    match pipeline::local(api, Method::PUT, &url, Some(crd.clone())).await {
        Ok(written) => Some(written),
        Err(ApiError::NotFound { .. }) => Some(Value::Null),
        // The newer state comes as an event.
        Err(ApiError::Conflict { .. }) => None,
        Err(error) => {
            tracing::warn!(
                crd = object::name(crd),
                error = error.message(),
                "cannot write a status"
            );
            None
        }
    }
}

/// The end of a definition.
struct Cleanup {
    api: Arc<Api>,
    name: String,
    /// `None`: it never was in service.
    served: Option<Arc<Served>>,
}

impl Cleanup {
    async fn run(self) {
        let started = tokio::time::Instant::now();
        let mut said = None;
        loop {
            let Some(crd) = self.read().await else { return };
            if object::deletion_timestamp(&crd).is_empty()
                || !object::finalizers(&crd).any(|f| f == CLEANUP)
            {
                return;
            }
            let step = self.step(&crd, started.elapsed() > PATIENCE).await;
            if said.as_ref() != Some(&step.said) || step.finished {
                let mut next = crd;
                conditions::set(&mut next, &step.said, &rfc3339(self.api.now()));
                if step.finished {
                    let left: Vec<Value> = list_at(&next, &["metadata", "finalizers"])
                        .iter()
                        .filter(|f| *f != CLEANUP)
                        .cloned()
                        .collect();
                    object::set(&mut next, &["metadata", "finalizers"], left);
                }
                match write_status(&self.api, &next).await {
                    Some(_) if step.finished => return,
                    Some(_) => said = Some(step.said),
                    None => {}
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn read(&self) -> Option<Value> {
        let url = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", self.name);
        match pipeline::local(&self.api, Method::GET, &url, None).await {
            Ok(crd) => Some(crd),
            Err(ApiError::NotFound { .. }) => None,
            Err(error) => {
                tracing::warn!(
                    crd = self.name,
                    error = error.message(),
                    "cannot read a definition"
                );
                None
            }
        }
    }

    async fn step(&self, crd: &Value, late: bool) -> Step {
        let Some(served) = &self.served else {
            let text = "resource was never established".to_owned();
            return Step::last("NeverEstablished", text);
        };
        match self.delete_all(served).await {
            Err(reason) => Step::ongoing("InstanceDeletionFailed", reason),
            Ok(0) => Step::last("InstanceDeletionCompleted", "removed all instances".to_owned()),
            Ok(_) if late => {
                let text =
                    "could not confirm zero CustomResources remaining: context deadline exceeded";
                Step::ongoing("InstanceDeletionCheck", text.to_owned())
            }
            Ok(left) => {
                let name = str_at(crd, &["metadata", "name"]);
                tracing::debug!(crd = name, left, "objects of a definition remain");
                let text = "CustomResource deletion is in progress".to_owned();
                Step::ongoing("InstanceDeletionInProgress", text)
            }
        }
    }

    /// Deletes the objects, namespace by namespace, and says how many remain.
    async fn delete_all(&self, served: &Arc<Served>) -> Result<usize, String> {
        let root = format!("/apis/{}", served.api_version);
        let plural = &served.row.plural;
        let listed = async || -> Result<Vec<Value>, String> {
            let url = format!("{root}/{plural}");
            let served = Some(served.clone());
            match pipeline::local_on(&self.api, served, Method::GET, &url, None).await {
                Ok(list) => Ok(list_at(&list, &["items"]).to_vec()),
                Err(error) => Err(format!("could not list instances: {}", error.message())),
            }
        };
        let mut namespaces: BTreeSet<String> = BTreeSet::new();
        for object in listed().await? {
            if object::deletion_timestamp(&object).is_empty() {
                namespaces.insert(object::namespace(&object).to_owned());
            }
        }
        for namespace in namespaces {
            let url = match namespace.as_str() {
                "" => format!("{root}/{plural}"),
                namespace => format!("{root}/namespaces/{namespace}/{plural}"),
            };
            let deleting =
                pipeline::local_on(&self.api, Some(served.clone()), Method::DELETE, &url, None);
            if let Err(error) = deleting.await {
                return Err(format!("could not issue all deletes: {}", error.message()));
            }
        }
        Ok(listed().await?.len())
    }
}

/// What a look at the objects of a definition came to.
struct Step {
    said: Condition,
    /// Nothing is left.
    finished: bool,
}

impl Step {
    fn ongoing(reason: &'static str, message: String) -> Self {
        Self { said: conditions::terminating("True", reason, message), finished: false }
    }

    fn last(reason: &'static str, message: String) -> Self {
        Self { said: conditions::terminating("False", reason, message), finished: true }
    }
}
