//! The task behind one probe.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio::time::MissedTickBehavior;

use super::counter::Counter;
use super::{Kind, Target};
use crate::kubelet::Kubelet;
use crate::net::{self, HttpCheck};
use crate::objects::container_reference;
use crate::pod::plan::Verdicts;
use crate::pod::status::Health;

/// A probe that fails for reasons of its own is tried so often before that counts.
const TRIES: usize = 3;

/// What one execution came to, with the output for the event.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    Warning(String),
    Failure(String),
    /// The probe itself did not work.
    Error(String),
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value.filter(|v| *v > 0).and_then(|v| u64::try_from(v).ok());
    Duration::from_secs(value.unwrap_or(default))
}

/// Runs a probe for as long as its pod is there.
pub async fn run(k: Arc<Kubelet>, key: (String, String), kind: Kind) {
    let Some(Target { container, started, .. }) = wait_for_target(&k, &key).await else { return };
    let Some(probe) = kind.of(&container) else { return };
    let period = seconds(probe.period_seconds, 10);
    // After a restart of the kubelet all probes would run at once.
    if k.started.elapsed() < period {
        tokio::select! {
            () = tokio::time::sleep(period.mul_f64(rand::random())) => {}
            () = started.notified(), if kind == Kind::Readiness => {}
        }
    }
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = Round::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // What has just started may be ready at once.
            () = started.notified(), if kind == Kind::Readiness => ticks.reset(),
        }
        let Some(target) = k.prober.target(&key) else { continue };
        let Some(probe) = kind.of(&target.container).cloned() else { return };
        if let Some(verdict) = state.step(&k, kind, &target, &probe).await
            && k.prober.set(&target.id, kind, verdict)
        {
            if kind == Kind::Startup && verdict {
                started.notify_one();
            }
            k.wake(&key.0);
        }
    }
}

async fn wait_for_target(k: &Kubelet, key: &(String, String)) -> Option<Target> {
    loop {
        if let Some(target) = k.prober.target(key) {
            return Some(target);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = k.shutdown.cancelled() => return None,
        }
    }
}

/// Whether nothing follows from a probe any more: a pod that ends is not restarted, but it may stop
/// being ready.
fn is_needless(kind: Kind, pod: &Pod) -> bool {
    kind != Kind::Readiness && pod.metadata.deletion_timestamp.is_some()
}

#[derive(Default)]
struct Round {
    id: String,
    counter: Counter,
    /// The verdict stands until there is a new container.
    on_hold: bool,
}

impl Round {
    async fn step(
        &mut self,
        k: &Kubelet,
        kind: Kind,
        target: &Target,
        probe: &Probe,
    ) -> Option<bool> {
        if self.id != target.id {
            *self = Self { id: target.id.clone(), ..Self::default() };
        }
        if self.on_hold || is_needless(kind, &target.pod) {
            return None;
        }
        if !target.running {
            return (kind == Kind::Readiness).then_some(false);
        }
        let age = Timestamp::now().as_nanosecond() - i128::from(target.started_at);
        let delay = seconds(probe.initial_delay_seconds, 0);
        if age < i128::try_from(delay.as_nanos()).unwrap_or(0) {
            return None;
        }
        let started = k.prober.started(&target.container, &target.id);
        match kind {
            // Once is enough.
            Kind::Startup if k.prober.startup(&target.id) == Some(true) => return None,
            Kind::Liveness | Kind::Readiness if !started => return None,
            _ => {}
        }
        let outcome = execute(k, target, probe).await;
        let about = || container_reference(&target.pod, &target.container.name);
        let name = kind.as_str();
        let result = match outcome {
            Outcome::Success => true,
            Outcome::Warning(output) => {
                k.event(about(), true, "ProbeWarning", format!("{name} probe warning: {output}"));
                true
            }
            Outcome::Failure(output) => {
                k.event(about(), true, "Unhealthy", format!("{name} probe failed: {output}"));
                false
            }
            Outcome::Error(error) => {
                let message =
                    format!("{name} probe errored and resulted in unknown state: {error}");
                k.event(about(), true, "Unhealthy", message);
                return None;
            }
        };
        let verdict = self.counter.count(result, probe)?;
        if !verdict && kind != Kind::Readiness {
            self.on_hold = true;
        }
        Some(verdict)
    }
}

async fn execute(k: &Kubelet, target: &Target, probe: &Probe) -> Outcome {
    let mut outcome = Outcome::Error("no handler".to_owned());
    for _ in 0..TRIES {
        outcome = once(k, target, probe).await;
        if !matches!(outcome, Outcome::Error(_)) {
            break;
        }
    }
    outcome
}

async fn once(k: &Kubelet, target: &Target, probe: &Probe) -> Outcome {
    let timeout = seconds(probe.timeout_seconds, 1);
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match k.cri.exec_sync(&target.id, command.clone(), timeout).await {
            Ok(ran) if ran.exit_code == 0 => Outcome::Success,
            Ok(ran) => {
                let output = [ran.stdout, ran.stderr].concat();
                let end = output.len().min(10 << 10);
                Outcome::Failure(String::from_utf8_lossy(&output[..end]).into_owned())
            }
            Err(error) if error.code == tonic::Code::DeadlineExceeded => Outcome::Failure(format!(
                "command timed out: {command:?} timed out after {}",
                crate::duration::format(timeout)
            )),
            Err(error) => Outcome::Error(error.to_string()),
        };
    }
    if let Some(get) = &probe.http_get {
        let check = match HttpCheck::of(get, &target.container, &target.ip) {
            Ok(check) => check,
            Err(error) => return Outcome::Error(error),
        };
        return match net::http(&check, "kube-probe", timeout).await {
            Ok(answer) if answer.redirected_away => Outcome::Warning(format!(
                "Probe terminated redirects, Response body: {}",
                answer.body
            )),
            Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success,
            Ok(answer) => {
                Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status))
            }
            Err(unanswered) => Outcome::Failure(unanswered.why),
        };
    }
    let result = if let Some(socket) = &probe.tcp_socket {
        let host = socket.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.ip);
        match net::port(&socket.port, &target.container) {
            Ok(port) => net::tcp(host, port, timeout).await,
            Err(error) => return Outcome::Error(error),
        }
    } else if let Some(grpc) = &probe.grpc {
        let service = grpc.service.as_deref().unwrap_or_default();
        match u16::try_from(grpc.port) {
            Ok(port) => net::grpc(&target.ip, port, service, timeout).await,
            Err(_) => return Outcome::Error(format!("invalid port number: {}", grpc.port)),
        }
    } else {
        return Outcome::Error(format!("missing probe handler for {}", target.container.name));
    };
    match result {
        Ok(()) => Outcome::Success,
        Err(error) => Outcome::Failure(error),
    }
}
