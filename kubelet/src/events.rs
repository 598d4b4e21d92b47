//! Events on their way to the recorder, not faster than `eventRecordQPS` and `eventBurst` allow.

use client::events::{EventType, Recorder};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::rate::Bucket;

/// Events that wait; more are dropped, and logged.
const QUEUE: usize = 1000;

struct Note {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

/// Takes events; never blocks, never fails.
pub struct Events {
    sender: mpsc::Sender<Note>,
}

impl Events {
    /// Passes events on to `recorder` until shutdown.
    pub fn start(recorder: Recorder, bucket: Bucket, shutdown: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            tokio::select! {
                () = pass_on(recorder, bucket, receiver) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self { sender }
    }

    pub fn event(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let note = Note { about, kind, reason: reason.to_owned(), message: message.into() };
        if let Err(error) = self.sender.try_send(note) {
            tracing::warn!(%error, reason, "event dropped");
        }
    }
}

async fn pass_on(recorder: Recorder, bucket: Bucket, mut receiver: mpsc::Receiver<Note>) {
    while let Some(note) = receiver.recv().await {
        while let Err(wait) = bucket.take(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
        recorder.event(note.about, note.kind, &note.reason, note.message);
    }
}
