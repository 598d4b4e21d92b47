//! The node in the API: registered, kept current, and its lease renewed.

pub mod addresses;
pub mod lease;
pub mod machine;
pub mod register;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;

use crate::kubelet::{Kubelet, RuntimeFeatures, RuntimeHealth};

const HEALTH_PERIOD: Duration = Duration::from_secs(5);
/// While something is wrong.
const ILL_PERIOD: Duration = Duration::from_secs(1);
/// A node that starts is looked at this often until it is ready for the first time, but not
/// longer than [`START`] (upstream's fast path of the first status update). A CRI runtime tells
/// nobody when its network configuration has come.
const START_PERIOD: Duration = Duration::from_millis(100);
const START: Duration = Duration::from_secs(120);
/// A relisting older than this makes the node not ready.
const RELIST_LIMIT: Duration = Duration::from_secs(180);

/// Asks the runtime how it is until shutdown.
pub async fn watch_runtime(k: Arc<Kubelet>) {
    let mut was_well = false;
    loop {
        let health = runtime_health(&k).await;
        let well = health == RuntimeHealth::default();
        was_well |= well;
        let pause = pause(well, was_well, k.started.elapsed());
        k.health.send_if_modified(|current| {
            let changed = *current != health;
            if changed {
                *current = health;
            }
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = k.look_at_runtime.notified() => {}
            () = k.shutdown.cancelled() => return,
        }
    }
}

/// How long until the next look at the runtime.
fn pause(well: bool, was_well: bool, since_start: Duration) -> Duration {
    match (well, was_well) {
        (true, _) => HEALTH_PERIOD,
        (false, false) if since_start < START => START_PERIOD,
        (false, _) => ILL_PERIOD,
    }
}

fn features(answer: &cri::StatusResponse) -> RuntimeFeatures {
    RuntimeFeatures {
        supplemental_groups: answer.features.as_ref().is_some_and(|f| f.supplemental_groups_policy),
        handlers: answer
            .runtime_handlers
            .iter()
            .map(|handler| {
                let recursive = handler.features.as_ref();
                (handler.name.clone(), recursive.is_some_and(|f| f.recursive_read_only_mounts))
            })
            .collect(),
    }
}

/// The runtime's own conditions.
pub async fn runtime_health(k: &Kubelet) -> RuntimeHealth {
    let status = match k.cri.status(cri::StatusRequest { verbose: false }).await {
        Ok(answer) => {
            *k.runtime.lock() = features(&answer);
            answer.status.unwrap_or_default()
        }
        Err(error) => {
            let why = Some(format!("container runtime is down: {error}"));
            return RuntimeHealth { runtime: why, network: None };
        }
    };
    let failing = |name: &str| match status.conditions.iter().find(|c| c.r#type == name) {
        Some(c) if c.status => None,
        Some(c) => Some(format!("{name}=false reason:{} message:{}", c.reason, c.message)),
        None => Some(format!("{name} is not known")),
    };
    let mut runtime =
        failing("RuntimeReady").map(|why| format!("container runtime not ready: {why}"));
    let stale = k.relisted.lock().is_none_or(|at| at.elapsed() > RELIST_LIMIT);
    if runtime.is_none() && stale {
        runtime = Some("PLEG is not healthy: pleg has yet to be successful".to_owned());
    }
    let network =
        failing("NetworkReady").map(|why| format!("container runtime network not ready: {why}"));
    RuntimeHealth { runtime, network }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_news_is_awaited_closely_only_at_the_start() {
        let at = Duration::from_secs;
        for (well, was_well, since, want) in [
            (false, false, at(0), START_PERIOD),
            (false, false, at(500), ILL_PERIOD),
            (true, true, at(1), HEALTH_PERIOD),
            (false, true, at(1), ILL_PERIOD),
        ] {
            assert_eq!(pause(well, was_well, since), want, "{well} {was_well} {since:?}");
        }
    }
}
