//! Events about objects (core/v1), as components report them: repeated ones are counted, and
//! a burst about one object is bounded (client-go `tools/record`).

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that wait to be sent; more are dropped, and logged.
const QUEUE: usize = 1000;
/// Events remembered, to count repetitions.
const REMEMBERED: usize = 4096;
/// Events that one source may send about one object at once, and how fast it earns more
/// (client-go's spam filter: 25, one in 5 minutes).
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// A reference to an object, for [`Recorder::event`].
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: object.meta().name.clone(),
        namespace: object.meta().namespace.clone(),
        uid: object.uid(),
        resource_version: object.resource_version(),
        field_path: None,
    }
}

struct Note {
    about: ObjectReference,
    type_: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Reports events in the background; never blocks, never fails. Clones share one sender.
#[derive(Clone)]
pub struct Recorder {
    sender: Option<mpsc::Sender<Note>>,
}

impl Recorder {
    /// `component` and `host` go into the events' source; `host` may be empty.
    pub fn start(
        client: kube::Client,
        component: &str,
        host: &str,
        shutdown: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|h| !h.is_empty()),
        };
        let writer = Writer { client, source, seen: HashMap::new(), budgets: HashMap::new() };
        tokio::spawn(async move {
            tokio::select! {
                () = writer.run(receiver) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self { sender: Some(sender) }
    }

    /// A recorder that drops everything: for tests.
    pub fn none() -> Self {
        Self { sender: None }
    }

    pub fn event(
        &self,
        about: ObjectReference,
        type_: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let Some(sender) = &self.sender else { return };
        let note = Note {
            about,
            type_,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        match sender.try_send(note) {
            // At shutdown nobody writes any more.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(error) => tracing::warn!(%error, reason, "event dropped"),
        }
    }
}

/// What makes two events the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sameness {
    about: Arc<str>,
    type_: EventType,
    reason: String,
    message: String,
}

struct Sent {
    name: String,
    count: i32,
}

struct Budget {
    tokens: f64,
    at: Timestamp,
}

struct Writer {
    client: kube::Client,
    source: EventSource,
    seen: HashMap<Sameness, Sent>,
    budgets: HashMap<Arc<str>, Budget>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if let Err(error) = self.write(note).await {
                tracing::debug!(error = crate::error::line(&error), "event not written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let r = &note.about;
        let about: Arc<str> =
            format!("{:?}/{:?}/{:?}/{:?}/{:?}", r.kind, r.namespace, r.name, r.uid, r.field_path)
                .into();
        if !self.spend(&about, note.at) {
            return Ok(());
        }
        let namespace = match note.about.namespace.as_deref() {
            None | Some("") => "default",
            Some(namespace) => namespace,
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let sameness = Sameness {
            about,
            type_: note.type_,
            reason: note.reason.clone(),
            message: note.message.clone(),
        };
        if let Some(sent) = self.seen.get_mut(&sameness) {
            sent.count += 1;
            let patch = json!({"count": sent.count, "lastTimestamp": Time(note.at)});
            let patched =
                events.patch(&sent.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            match patched {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let event = self.build(namespace, &note);
        let name = event.name_any();
        events.create(&PostParams::default(), &event).await?;
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(sameness, Sent { name, count: 1 });
        Ok(())
    }

    fn spend(&mut self, about: &Arc<str>, now: Timestamp) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let budget =
            self.budgets.entry(Arc::clone(about)).or_insert(Budget { tokens: BURST, at: now });
        let earned = now.duration_since(budget.at).as_secs_f64() * REFILL_PER_SECOND;
        budget.tokens = (budget.tokens + earned.max(0.0)).min(BURST);
        budget.at = now;
        let enough = budget.tokens >= 1.0;
        if enough {
            budget.tokens -= 1.0;
        }
        enough
    }

    fn build(&self, namespace: &str, note: &Note) -> Event {
        let object = note.about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", note.at.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: note.about.clone(),
            type_: Some(note.type_.as_str().to_owned()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            first_timestamp: Some(Time(note.at)),
            last_timestamp: Some(Time(note.at)),
            count: Some(1),
            ..Event::default()
        }
    }
}
