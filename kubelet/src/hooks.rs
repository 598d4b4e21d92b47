//! Lifecycle hooks.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::kubelet::Kubelet;
use crate::net::{self, HttpCheck};

/// A hook's HTTP request may take this long.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a hook to its end.
///
/// # Errors
/// What went wrong, for the log.
pub async fn run(
    k: &Kubelet,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    ip: &str,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let ran = k.cri.exec_sync(id, command.clone(), Duration::ZERO).await;
        return match ran {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(format!(
                "command {command:?} exited with {code}: {}",
                String::from_utf8_lossy(&output)
            )),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(get) = &hook.http_get {
        let check = HttpCheck::of(get, container, ip)?;
        return match net::http(&check, "kube-lifecycle", HTTP_TIMEOUT).await {
            Ok(answer) if answer.status < 400 => Ok(()),
            Ok(answer) => Err(format!("HTTP status {}", answer.status)),
            Err(error) => Err(error),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if let Some(socket) = &hook.tcp_socket {
        // Deprecated, and upstream refuses it as well.
        return Err(format!("invalid handler: tcpSocket {:?}", socket.port));
    }
    Err("invalid handler: it has no action".to_owned())
}
