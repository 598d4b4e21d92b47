//! Lifecycle hooks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_cri::v1::ExecSyncResponse;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, ObjectReference};

use crate::kubelet::Kubelet;
use crate::net::{self, HttpCheck, Unanswered};

/// A hook's HTTP request may take this long.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// Of what a command says, this much is told.
const OUTPUT: usize = 10 << 10;

/// Whose hook it is.
pub struct Hooked {
    pub container: Container,
    /// The pod, as messages name it.
    pub pod: String,
    /// The pod, for events.
    pub about: ObjectReference,
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
        let path = get.path.as_deref().unwrap_or_default();
        let asked = match HttpCheck::of(get, &hooked.container, &hooked.ip) {
            Ok(check) => ask(&check).await.map(|by| (by, check.authority())),
            Err(error) => Err(error),
        };
        return match asked {
            Ok((Way::AsAsked, _)) => Ok(()),
            Ok((Way::WithoutTls, host)) => {
                k.http_fallbacks.fetch_add(1, Ordering::Relaxed);
                let message = format!(
                    "request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded"
                );
                k.event(hooked.about.clone(), true, "LifecycleHTTPFallback", message);
                Ok(())
            }
            Err(error) => failed(format!("HTTP lifecycle hook ({path})"), error),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    // TCP is deprecated, and upstream does not run it either.
    Err("Cannot run handler: invalid handler: it has no action".to_owned())
}

/// How a hook was asked over HTTP.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    AsAsked,
    /// Over TLS there was an answer in HTTP, so it was asked again without.
    WithoutTls,
}

/// Asks. It is enough that there is an answer, whatever its status. Before v1.26 hooks were asked
/// without TLS whatever their scheme: servers that rely on that are still asked so.
///
/// # Errors
/// There is none, in upstream's words.
async fn ask(check: &HttpCheck) -> Result<Way, String> {
    let http = |check| net::http(check, "kube-lifecycle", HTTP_TIMEOUT);
    let Err(Unanswered { why, without_tls }) = http(check).await else { return Ok(Way::AsAsked) };
    if !without_tls {
        return Err(why);
    }
    tracing::debug!(error = why, "HTTPS request to lifecycle hook got HTTP response, retrying");
    // Not for everybody on the way to read.
    let open = |(name, _): &&(String, String)| !name.eq_ignore_ascii_case("authorization");
    let headers = check.headers.iter().filter(open).cloned().collect();
    let plain = HttpCheck { https: false, headers, ..check.clone() };
    http(&plain).await.map_or(Err(why), |_| Ok(Way::WithoutTls))
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
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives the same answer to whatever it is asked, and keeps what that was.
    async fn server(answer: &'static [u8]) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::default());
        let heard: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let length = stream.read(&mut buffer).await.unwrap();
                heard.lock().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        (port, asked)
    }

    #[tokio::test]
    async fn a_server_without_tls_is_asked_without() {
        let answered = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        // An alert of TLS, and what is nothing at all.
        let (refused, nothing) = (b"\x15\x03\x03\x00\x02\x02\x28", b"");
        for (answer, https, want, requests) in [
            (&answered[..], true, Some(Way::WithoutTls), 2),
            (answered, false, Some(Way::AsAsked), 1),
            (refused, true, None, 1),
            (nothing, true, None, 1),
            // It begins as HTTP does, and is none: the error is the first one.
            (b"HTTP/x", true, None, 2),
        ] {
            let (port, asked) = server(answer).await;
            let header = |name: &str| (name.to_owned(), "kept".to_owned());
            let check = HttpCheck {
                https,
                host: "127.0.0.1".to_owned(),
                port,
                path: "/stop".to_owned(),
                headers: vec![header("authorization"), header("X-Other")],
            };
            let way = ask(&check).await;
            let told = String::from_utf8_lossy(answer);
            assert_eq!(way.as_ref().ok(), want.as_ref(), "{told} {https} {way:?}");
            if let Err(why) = &way {
                let http = "http: server gave HTTP response to HTTPS client";
                assert_eq!(why.ends_with(http), requests == 2, "{told} {why}");
            }
            let asked = asked.lock();
            assert_eq!(asked.len(), requests, "{told} {https}");
            if want == Some(Way::WithoutTls) {
                assert!(asked[1].starts_with("GET /stop HTTP/1.1\r\n"), "{}", asked[1]);
                let has = |name| asked[1].to_lowercase().contains(name);
                assert!(has("x-other: kept") && !has("authorization"), "{}", asked[1]);
            }
        }
    }

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
