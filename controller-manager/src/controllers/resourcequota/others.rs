//! Objects of kinds that are not compiled in, counted by namespace: custom resources.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::Key;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiResource, Discovery};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// A kind that is not there is looked for this often.
const DISCOVERY: Duration = Duration::from_secs(10);

/// The objects of one kind.
#[derive(Default)]
struct Known {
    /// A whole list has been seen.
    synced: bool,
    keys: HashSet<Key>,
}

/// Told of the namespace of an object that came or went; empty: of all.
pub type Changed = Arc<dyn Fn(&str) + Send + Sync>;

/// The kinds that some quota counts.
pub struct Others {
    client: Client,
    shutdown: CancellationToken,
    kinds: Mutex<HashMap<String, Arc<Mutex<Known>>>>,
}

impl Others {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self { client, shutdown, kinds: Mutex::default() }
    }

    /// How many objects of a resource (`orders.shop.example.com`) a namespace has; `None`: that is
    /// not known. The first question makes it be watched.
    pub fn count(&self, resource: &str, namespace: &str, changed: &Changed) -> Option<usize> {
        let (plural, group) = resource.split_once('.')?;
        let known = self.kinds.lock().get(resource).cloned();
        let known = known.unwrap_or_else(|| {
            let known: Arc<Mutex<Known>> = Arc::default();
            self.kinds.lock().insert(resource.to_owned(), known.clone());
            let following = follow(
                self.client.clone(),
                (plural.to_owned(), group.to_owned()),
                known.clone(),
                changed.clone(),
            );
            let shutdown = self.shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = following => {}
                    () = shutdown.cancelled() => {}
                }
            });
            known
        });
        let known = known.lock();
        known.synced.then(|| known.keys.iter().filter(|key| key.namespace == namespace).count())
    }
}

/// Finds the kind and follows its objects, and looks for it again when it went.
async fn follow(
    client: Client,
    (plural, group): (String, String),
    known: Arc<Mutex<Known>>,
    changed: Changed,
) {
    loop {
        match find(&client, &plural, &group).await {
            Ok(Some(resource)) => watch(&client, &resource, &known, &changed).await,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(
                    error = client::brief(&error),
                    group,
                    "discovery of a counted kind"
                );
            }
        }
        tokio::time::sleep(DISCOVERY).await;
    }
}

async fn find(client: &Client, plural: &str, group: &str) -> anyhow::Result<Option<ApiResource>> {
    let discovery = Discovery::new(client.clone()).filter(&[group]).run_aggregated().await?;
    let found = discovery.get(group).into_iter().flat_map(|g| g.recommended_resources());
    Ok(found.map(|(resource, _)| resource).find(|resource| resource.plural == plural))
}

/// Follows until the kind is not served any longer.
async fn watch(client: &Client, resource: &ApiResource, known: &Mutex<Known>, changed: &Changed) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), resource);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut listed = HashSet::new();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                let error = client::error::line(&error);
                tracing::debug!(error, kind = resource.kind, "metadata watch");
                if !matches!(find(client, &resource.plural, &resource.group).await, Ok(Some(_))) {
                    *known.lock() = Known { synced: true, ..Known::default() };
                    changed("");
                    return;
                }
                continue;
            }
        };
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => {
                listed.insert(key(&object));
            }
            watcher::Event::InitDone => {
                *known.lock() = Known { synced: true, keys: std::mem::take(&mut listed) };
                changed("");
            }
            watcher::Event::Apply(object) => {
                let key = key(&object);
                if known.lock().keys.insert(key.clone()) {
                    changed(&key.namespace);
                }
            }
            watcher::Event::Delete(object) => {
                let key = key(&object);
                known.lock().keys.remove(&key);
                changed(&key.namespace);
            }
        }
    }
}

fn key(object: &PartialObjectMeta<DynamicObject>) -> Key {
    let meta = &object.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Key::new(&text(&meta.namespace), &text(&meta.name))
}
