//! Lifecycle hooks.

use std::time::Duration;

use k8s_cri::v1::ExecSyncResponse;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::kubelet::Kubelet;
use crate::net::{self, HttpCheck};

/// A hook's HTTP request may take this long.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// Of what a command says, this much is told.
const OUTPUT: usize = 10 << 10;

/// Whose hook it is.
pub struct Hooked {
    pub container: Container,
    /// The pod, as messages name it.
    pub pod: String,
    /// The container's, in the runtime.
    pub id: String,
    /// The pod's address.
    pub ip: String,
}

/// Runs a hook to its end.
///
/// # Errors
/// What went wrong, in upstream's words.
pub async fn run(k: &Kubelet, hook: &LifecycleHandler, hooked: &Hooked) -> Result<(), String> {
    let failed = |which: String, error: String| {
        let (container, pod) = (&hooked.container.name, &hooked.pod);
        Err(format!("{which} for Container {container:?} in Pod {pod:?} failed - error: {error}"))
    };
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let which = format!("Exec lifecycle hook ([{}])", command.join(" "));
        return match k.cri.exec_sync(&hooked.id, command.clone(), Duration::ZERO).await {
            Ok(ran) => match failure(&command, &ran) {
                None => Ok(()),
                Some(error) => failed(which, error),
            },
            Err(error) => failed(which, format!("{error}, message: \"\"")),
        };
    }
    if let Some(get) = &hook.http_get {
        // It is enough that there is an answer, whatever its status.
        let asked = match HttpCheck::of(get, &hooked.container, &hooked.ip) {
            Ok(check) => net::http(&check, "kube-lifecycle", HTTP_TIMEOUT).await.map(drop),
            Err(error) => Err(error),
        };
        let path = get.path.as_deref().unwrap_or_default();
        return asked.or_else(|error| failed(format!("HTTP lifecycle hook ({path})"), error));
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    // TCP is deprecated, and upstream does not run it either.
    Err("Cannot run handler: invalid handler: it has no action".to_owned())
}

/// How a command has failed, if it has.
fn failure(command: &[String], ran: &ExecSyncResponse) -> Option<String> {
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(OUTPUT)]).into_owned();
    let (code, errors) = (ran.exit_code, text(&ran.stderr));
    let said = text(&[&ran.stdout[..], &ran.stderr].concat());
    (code != 0).then(|| {
        let command = command.join(" ");
        format!("command '{command}' exited with {code}: {errors}, message: {said:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_failure_is_told_with_what_it_said() {
        let command = ["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()];
        for (exit_code, stdout, stderr, want) in [
            (0, "out", "err", None),
            (3, "", "", Some("command 'sh -c exit 3' exited with 3: , message: \"\"")),
            (
                3,
                "out\n",
                "err",
                Some("command 'sh -c exit 3' exited with 3: err, message: \"out\\nerr\""),
            ),
        ] {
            let ran = ExecSyncResponse { exit_code, stdout: stdout.into(), stderr: stderr.into() };
            assert_eq!(failure(&command, &ran).as_deref(), want);
        }
        let long = vec![b'a'; 2 * OUTPUT];
        let ran = ExecSyncResponse { exit_code: 1, stdout: long, stderr: Vec::new() };
        assert!(failure(&command, &ran).is_some_and(|told| told.len() < OUTPUT + 200));
    }
}
