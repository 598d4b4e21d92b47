//! The node in the API: registered, kept current, and its lease renewed.

pub mod lease;
pub mod machine;
pub mod register;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;

use crate::kubelet::{Kubelet, RuntimeHealth};

const HEALTH_PERIOD: Duration = Duration::from_secs(5);
/// A relisting older than this makes the node not ready.
const RELIST_LIMIT: Duration = Duration::from_secs(180);

/// Asks the runtime how it is until shutdown.
pub async fn watch_runtime(k: Arc<Kubelet>) {
    loop {
        let health = runtime_health(&k).await;
        // At the start and after trouble nobody wants to wait long for good news.
        let well = health == RuntimeHealth::default();
        let pause = if well { HEALTH_PERIOD } else { Duration::from_secs(1) };
        k.health.send_if_modified(|current| {
            let changed = *current != health;
            if changed {
                *current = health;
            }
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = k.shutdown.cancelled() => return,
        }
    }
}

/// The runtime's own conditions.
pub async fn runtime_health(k: &Kubelet) -> RuntimeHealth {
    let status = match k.cri.status(cri::StatusRequest { verbose: false }).await {
        Ok(answer) => answer.status.unwrap_or_default(),
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
