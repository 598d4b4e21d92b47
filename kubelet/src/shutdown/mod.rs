//! Graceful node shutdown (KEP-2000): when logind tells that the machine is about to go, pods are ended
//! in the order of their priorities, and the machine waits for them as long as the configuration says.
//!
//! `plan` decides who ends when, `logind` is told and asked through `dbus` (whose messages are in
//! `wire`), `record` keeps the times for the metrics. Without the fields nothing of this runs.

mod dbus;
mod logind;
pub mod plan;
pub mod record;
mod wire;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use component::files;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::duration;
use crate::eviction::{Cause, Eviction};
use crate::kubelet::Kubelet;
use crate::node::register;
use crate::objects::{describe, is_terminal_phase, status, uid};
use crate::pod::status::Waiting;
use logind::{Lock, Logind};
use plan::Stage;
use record::Times;

/// For the node's condition.
pub const MESSAGE: &str = "node is shutting down";
/// Upstream's pause before logind is connected to again; it grows while that does not go well.
const RECONNECT: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// After logind was asked to read its configuration, it is looked at so often whether it has, the
/// first pause being this long and each the double of the one before.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(100);
const SYSTEM_BUS: &str = "unix:path=/var/run/dbus/system_bus_socket";
const LOGIND_CONF: &str = "/etc/systemd/logind.conf.d";
/// Our own file there (upstream's name).
const CONF: &str = "99-kubelet.conf";

/// Whether the node shuts down, for all that go by it.
#[derive(Default)]
pub struct NodeShutdown {
    pub now: watch::Sender<bool>,
    pub times: Mutex<Times>,
}

impl NodeShutdown {
    /// Whether pods may begin.
    ///
    /// # Errors
    /// Reason and message that the pod fails with.
    pub fn admits(&self) -> Result<(), Waiting> {
        match *self.now.borrow() {
            false => Ok(()),
            true => Err(Waiting {
                reason: "NodeShutdown".to_owned(),
                message: "Pod was rejected as the node is shutting down.".to_owned(),
            }),
        }
    }
}

/// The node, as far as its shutdown goes.
trait House: Sync {
    /// It shuts down, or not any more.
    fn shuts_down(&self, now: bool);
    /// Its pods that have not run their course.
    fn active(&self) -> Vec<Arc<Pod>>;
    /// Has a pod end in so many seconds; cancelled once it has.
    fn end(&self, pod: &Pod, grace: i64) -> CancellationToken;
    /// Notes when pods began to be ended, and when all had.
    fn note(&self, times: Times);
}

impl House for Kubelet {
    fn shuts_down(&self, now: bool) {
        let news = self.node_shutdown.now.send_if_modified(|known| {
            let news = *known != now;
            *known = now;
            news
        });
        if !news {
            return;
        }
        let what = if now { "event" } else { "cancellation" };
        let message = format!("Shutdown manager detected shutdown {what}");
        tracing::info!(message);
        self.event(register::about(self), false, "Shutdown", message);
    }

    fn active(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.read();
        let active = |pod: &&Arc<Pod>| !is_terminal_phase(status(pod).phase.as_deref());
        pods.values().filter(active).cloned().collect()
    }

    fn end(&self, pod: &Pod, grace: i64) -> CancellationToken {
        let ended = CancellationToken::new();
        let message = "Pod was terminated in response to imminent node shutdown.".to_owned();
        let guard = Some(ended.clone().drop_guard());
        let order = Eviction { cause: Cause::NodeShutdown, message, grace, ended: guard };
        tracing::info!(pod = describe(pod), grace, "Shutdown manager killing pod with gracePeriod");
        self.evictions.add(uid(pod), order);
        self.wake(uid(pod));
        ended
    }

    fn note(&self, times: Times) {
        *self.node_shutdown.times.lock() = times;
        if let Err(error) = times.store(&self.root) {
            let error = format!("{error:#}");
            tracing::error!(error, "Failed to store graceful shutdown state");
        }
    }
}

/// Waits for shutdowns until the kubelet ends, `stages` being what the configuration asks for.
pub async fn run(k: Arc<Kubelet>, stages: Vec<Stage>) {
    match Times::load(&k.root) {
        Ok(times) => *k.node_shutdown.times.lock() = times,
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(error, "Failed to load graceful shutdown state");
        }
    }
    // Where D-Bus's own clients look.
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS");
    let keeper = Keeper {
        address: address.unwrap_or_else(|_| SYSTEM_BUS.to_owned()),
        drop_ins: PathBuf::from(LOGIND_CONF),
        stages,
    };
    k.shutdown.run_until_cancelled(keeper.keep(&*k)).await;
}

/// Keeps a lock of logind's, and gives it back when a shutdown may go on.
struct Keeper {
    /// The bus's.
    address: String,
    /// Where logind's configuration is amended.
    drop_ins: PathBuf,
    stages: Vec<Stage>,
}

impl Keeper {
    /// Connects again whenever logind, or the bus, has gone.
    async fn keep(&self, house: &impl House) -> Infallible {
        // A lock outlives the connection that it was taken by.
        let mut lock = None;
        let mut pause = RECONNECT;
        loop {
            let begun = Instant::now();
            let Err(error) = self.session(house, &mut lock).await;
            let error = format!("{error:#}");
            tracing::error!(error, "Unable to watch the node for shutdown events");
            if begun.elapsed() > RECONNECT_MAX {
                pause = RECONNECT;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection's time.
    async fn session(
        &self,
        house: &impl House,
        lock: &mut Option<Lock>,
    ) -> anyhow::Result<Infallible> {
        let mut logind = Logind::connect(&self.address).await?;
        self.lengthen(&mut logind).await?;
        // What has happened without us counts as if we had been told.
        let mut now = logind.is_preparing().await?;
        loop {
            house.shuts_down(now);
            now = match now {
                true => self.wind_down(house, &mut logind, lock).await?,
                false => {
                    // The one before goes when there is another, so shutdown always waits.
                    *lock = Some(logind.inhibit().await?);
                    logind.told().await?
                }
            };
        }
    }

    /// Has logind's longest delay be as long as all stages together.
    async fn lengthen(&self, logind: &mut Logind) -> anyhow::Result<()> {
        let wanted = plan::whole(&self.stages);
        if logind.longest_delay().await? >= wanted {
            return Ok(());
        }
        let failed = "unable to override inhibit delay by shutdown manager";
        amend(&self.drop_ins, wanted).context(failed)?;
        logind.reload().await?;
        let mut pause = LOOK;
        for look in 1..=LOOKS {
            let delay = logind.longest_delay().await?;
            if delay >= wanted {
                return Ok(());
            }
            if look == LOOKS {
                let [wanted, delay] = [wanted, delay].map(duration::format);
                bail!(
                    "node shutdown manager was timed out after {LOOKS} attempts waiting for logind InhibitDelayMaxSec to update to {wanted} (ShutdownGracePeriod), current value is {delay}"
                );
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    /// Ends the pods and lets the machine go. Returns when there is another state: the shutdown was
    /// called off. Pods that have not been told by then go on.
    async fn wind_down(
        &self,
        house: &impl House,
        logind: &mut Logind,
        lock: &mut Option<Lock>,
    ) -> anyhow::Result<bool> {
        let mut times = Times { start: Some(Timestamp::now()), end: None };
        house.note(times);
        let ending = end_all(house, &self.stages);
        tokio::pin!(ending);
        let mut lost = None;
        while lost.is_none() {
            tokio::select! {
                () = &mut ending => break,
                told = logind.told() => match told {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    // The machine goes nevertheless.
                    Err(error) => lost = Some(error),
                },
            }
        }
        if lost.is_some() {
            ending.await;
        }
        times.end = Some(Timestamp::now());
        house.note(times);
        tracing::info!(
            "Shutdown manager completed processing shutdown event, node will shutdown shortly"
        );
        *lock = None;
        match lost {
            Some(error) => Err(error),
            None => {
                while logind.told().await? {}
                Ok(false)
            }
        }
    }
}

/// Ends all pods, stage by stage; each has its time, and no more.
async fn end_all(house: &impl House, stages: &[Stage]) {
    for (stage, pods) in plan::groups(stages, house.active()) {
        let ended: Vec<CancellationToken> =
            pods.iter().map(|pod| house.end(pod, plan::grace(pod, stage))).collect();
        let all = join_all(ended.iter().map(CancellationToken::cancelled));
        if tokio::time::timeout(stage.patience(), all).await.is_err() {
            let (priority, seconds) = (stage.priority, stage.seconds);
            tracing::info!(priority, seconds, "Shutdown manager pod killing time out");
        }
    }
}

/// Writes logind's setting.
fn amend(drop_ins: &Path, delay: Duration) -> anyhow::Result<()> {
    let seconds = delay.as_secs_f64().ceil();
    let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds}\n");
    std::fs::create_dir_all(drop_ins)
        .with_context(|| format!("failed creating {} directory", drop_ins.display()))?;
    let file = drop_ins.join(CONF);
    files::write(&file, text.as_bytes(), 0o644).with_context(|| {
        format!("failed writing logind shutdown inhibit override file {}", file.display())
    })
}
