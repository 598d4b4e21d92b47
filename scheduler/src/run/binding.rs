//! What follows the choice of a node: what the pod's plugins write and wait for, then the binding.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, anyhow, bail};
use client::Key;
use client::events::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::Scheduler;
use crate::framework::{ClusterEvent, PreBind, Write};
use crate::snapshot::PodInfo;

impl Scheduler {
    /// Binds a pod to the node on which it is assumed.
    pub(super) async fn bind(
        &self,
        key: Key,
        info: Arc<PodInfo>,
        node: String,
        reserved: Result<(), String>,
    ) {
        let result = match reserved {
            Err(why) => Err(anyhow!(why)),
            Ok(()) => match self.pre_bind(&info).await {
                Ok(()) => self.post_binding(&key, &info, &node).await,
                Err(error) => Err(error),
            },
        };
        if let Some(text) = self.conclude(&key, &info, &node, result) {
            self.tell(&info.pod, "SchedulerError", text, None).await;
        }
    }

    /// Takes note of how a binding ended; what is to be told, if it failed.
    fn conclude(
        &self,
        key: &Key,
        info: &Arc<PodInfo>,
        node: &str,
        result: anyhow::Result<()>,
    ) -> Option<String> {
        let mut state = self.state.lock();
        let reserving = self.profile(&info.pod).into_iter().flat_map(|p| &p.reserve);
        let reserving = reserving.filter_map(|p| p.reserve());
        reserving.for_each(|p| p.ended(info, &mut state.snapshot));
        let Err(error) = result else {
            state.queue.remove(key);
            drop(state);
            self.metrics.scheduled.fetch_add(1, Ordering::Relaxed);
            let message = format!("Successfully assigned {key} to {node}");
            self.report(&info.pod, &info.pod, EventType::Normal, "Scheduled", message);
            return None;
        };
        // It may have gone meanwhile: then nobody is to be told.
        let there = state.snapshot.is_assumed(&info.uid);
        state.snapshot.forget(&info.uid);
        // Its node has that room again.
        self.event(&mut state, &ClusterEvent::PodGone(&info.pod));
        state.queue.failed(key, Timestamp::now());
        drop(state);
        self.metrics.errors.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
        let text = client::brief(&error);
        tracing::warn!(pod = %key, node, error = text, "binding");
        there.then_some(text)
    }

    /// Has done what the pod's plugins need before the binding, and waits for it.
    async fn pre_bind(&self, info: &PodInfo) -> anyhow::Result<()> {
        for plugin in self.profile(&info.pod).into_iter().flat_map(|p| &p.pre_bind) {
            let Some(asked) = plugin.pre_bind() else { continue };
            let done = async {
                let writes = asked.writes(info, &self.state.lock().snapshot);
                for write in writes {
                    self.write(write).await?;
                }
                self.wait(asked, info).await
            };
            let name = plugin.name();
            done.await.with_context(|| format!("running PreBind plugin {name:?}"))?;
        }
        Ok(())
    }

    /// Carries a write out; what comes of it is known at once.
    async fn write(&self, write: Write) -> anyhow::Result<()> {
        let params = PatchParams::default();
        match write {
            Write::Volume(name, patch) => {
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                let new = api.patch(&name, &params, &Patch::Merge(patch)).await?;
                self.state.lock().snapshot.volumes.set_volume(&name, Some(Arc::new(new)));
            }
            Write::Claim(key, patch) => {
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(self.client.clone(), &key.namespace);
                let new = api.patch(&key.name, &params, &Patch::Merge(patch)).await?;
                self.state.lock().snapshot.volumes.set_claim(&key, Some(Arc::new(new)));
            }
        }
        Ok(())
    }

    async fn wait(&self, asked: &dyn PreBind, info: &PodInfo) -> anyhow::Result<()> {
        let (patience, too_late) = asked.patience();
        let deadline = tokio::time::sleep(patience);
        tokio::pin!(deadline);
        loop {
            let changed = self.storage.notified();
            tokio::pin!(changed);
            // What changes from here on is not missed.
            changed.as_mut().enable();
            {
                let state = self.state.lock();
                if asked.is_done(info, &state.snapshot).map_err(|why| anyhow!(why))? {
                    return Ok(());
                }
                if !state.snapshot.is_assumed(&info.uid) {
                    bail!("pod {} does not exist any more", info.key);
                }
            }
            tokio::select! {
                () = changed => {}
                () = &mut deadline => bail!(too_late),
                () = self.stopping.cancelled() => bail!("the scheduler is stopping"),
            }
        }
    }

    async fn post_binding(&self, key: &Key, info: &PodInfo, node: &str) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let _: serde_json::Value = pods
            .create_subresource("binding", &key.name, &PostParams::default(), &binding)
            .await
            .context("binding rejected")?;
        Ok(())
    }
}
