//! The resources that pods have been given, which are not those that they ask for while a resize
//! has to wait. Kept in a file of each pod's directory, so that a kubelet that comes back neither
//! forgets what it has granted nor what it has still to do.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::kubelet::Kubelet;
use crate::objects::{is_terminal_phase, reference, status, uid};
use crate::pod::resize::{self, Actuated, Pending, Resources};
use crate::volumes::{files, pod_directory};

/// What is kept of one pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Kept {
    allocated: Resources,
    actuated: BTreeMap<String, Actuated>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    kept: Kept,
    pending: Option<Pending>,
    error: Option<String>,
    /// A grant that has not come to an end yet.
    begun: bool,
}

/// How a resize stands, for the pod's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    pub pending: Option<Pending>,
    /// It goes on, with the error of the last try if it failed.
    pub in_progress: Option<Option<String>>,
    /// What each container was told last.
    pub actuated: BTreeMap<String, Actuated>,
}

/// What has been given to the pods.
#[derive(Default)]
pub struct Allocations {
    entries: Mutex<HashMap<String, Entry>>,
}

fn file(root: &Path, uid: &str) -> PathBuf {
    pod_directory(root, uid).join("allocated.json")
}

fn load(root: &Path, uid: &str) -> Option<Kept> {
    let text = std::fs::read(file(root, uid)).ok()?;
    match serde_json::from_slice(&text) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::warn!(uid, %error, "record of allocated resources is not readable");
            None
        }
    }
}

fn save(root: &Path, uid: &str, kept: &Kept) {
    let path = file(root, uid);
    let temporary = path.with_extension("new");
    let saved = files::directory(&pod_directory(root, uid), 0o750)
        .and_then(|()| std::fs::write(&temporary, serde_json::to_vec(kept)?))
        .and_then(|()| std::fs::rename(&temporary, &path));
    if let Err(error) = saved {
        tracing::warn!(uid, %error, "allocated resources not recorded");
    }
}

impl Allocations {
    /// The pod with what it has been given. A pod that is new here has what it asks for.
    pub fn effective(&self, root: &Path, pod: &Arc<Pod>) -> Arc<Pod> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(uid(pod).to_owned()).or_insert_with(|| Entry {
            kept: load(root, uid(pod)).unwrap_or_else(|| Kept {
                allocated: resize::asked(pod),
                actuated: BTreeMap::new(),
            }),
            ..Entry::default()
        });
        resize::with(pod, &entry.kept.allocated)
    }

    /// Grants what a running pod asks for, if that can be had. Returns the pod with what it has.
    pub fn review(&self, k: &Kubelet, pod: &Arc<Pod>) -> Arc<Pod> {
        let effective = self.effective(&k.root, pod);
        if Arc::ptr_eq(&effective, pod) {
            self.change(pod, |entry| entry.pending = None);
            return effective;
        }
        let others: Vec<Arc<Pod>> = {
            let pods = k.pods.read();
            let live = pods
                .values()
                .filter(|p| uid(p) != uid(pod) && !is_terminal_phase(status(p).phase.as_deref()));
            live.cloned().collect()
        };
        let others: Vec<Arc<Pod>> = others.iter().map(|p| self.effective(&k.root, p)).collect();
        let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
        match resize::judge(pod, &others, &k.allocatable()) {
            Ok(()) => {
                self.change(pod, |entry| {
                    entry.kept.allocated = resize::asked(pod);
                    entry.pending = None;
                    entry.error = None;
                    entry.begun = true;
                    save(&k.root, uid(pod), &entry.kept);
                });
                k.event(reference(pod), false, "ResizeStarted", message("started", pod, None));
                Arc::clone(pod)
            }
            Err(pending) => {
                let mut news = false;
                self.change(pod, |entry| {
                    news = entry.pending.as_ref() != Some(&pending);
                    entry.pending = Some(pending.clone());
                });
                if news {
                    let event = format!("Resize{}", pending.reason);
                    let text = message(pending.reason, pod, Some(&pending.message));
                    k.event(reference(pod), true, &event, text);
                }
                effective
            }
        }
    }

    fn change(&self, pod: &Pod, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.lock().get_mut(uid(pod)) {
            change(entry);
        }
    }

    /// Notes what a container was started with, or told.
    pub fn told(
        &self,
        root: &Path,
        pod: &Pod,
        name: &str,
        id: &str,
        resources: &ResourceRequirements,
    ) {
        self.change(pod, |entry| {
            let told = Actuated { id: id.to_owned(), resources: resources.clone() };
            entry.kept.actuated.insert(name.to_owned(), told);
            save(root, uid(pod), &entry.kept);
        });
    }

    /// Notes how the last try to resize went; whether that is the end of it.
    pub fn tried(&self, pod: &Pod, error: Option<String>) -> bool {
        let mut ended = false;
        self.change(pod, |entry| {
            ended = error.is_none() && std::mem::take(&mut entry.begun);
            entry.error = error;
        });
        ended
    }

    /// How a resize of a pod stands. `pod` is the one with what it has been given.
    pub fn standing(&self, pod: &Pod, view: &crate::runtime::PodView) -> Standing {
        let entries = self.entries.lock();
        let Some(entry) = entries.get(uid(pod)) else { return Standing::default() };
        let goes_on = resize::in_progress(pod, view, &entry.kept.actuated);
        Standing {
            pending: entry.pending.clone(),
            in_progress: goes_on.then(|| entry.error.clone()),
            actuated: entry.kept.actuated.clone(),
        }
    }

    /// The pods whose resize waits for room.
    pub fn waiting(&self) -> Vec<String> {
        let entries = self.entries.lock();
        let deferred = |e: &Entry| e.pending.as_ref().is_some_and(|p| p.reason == "Deferred");
        entries.iter().filter(|(_, e)| deferred(e)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
    }
}

/// The text of an event about a resize: what it comes to, as upstream tells it.
pub fn message(what: &str, pod: &Pod, error: Option<&str>) -> String {
    let containers: Vec<serde_json::Value> = crate::objects::spec(pod)
        .containers
        .iter()
        .map(|c| serde_json::json!({"name": c.name, "resources": c.resources}))
        .collect();
    let mut summary =
        serde_json::json!({"containers": containers, "generation": pod.metadata.generation});
    if let Some(error) = error {
        summary["error"] = error.into();
    }
    format!("Pod resize {what}: {summary}")
}
