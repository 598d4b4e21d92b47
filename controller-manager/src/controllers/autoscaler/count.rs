//! How many replicas a metric calls for (`pkg/controller/podautoscaler/replica_calculator.go`, and the
//! page "Horizontal Pod Autoscaling", Algorithm details). Amounts are in thousandths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use client::lean::{Container, Pod};
use jiff::{SignedDuration, Timestamp};

use super::Settings;
use crate::pods::{is_ready, phase};

/// What a pod was measured to use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub value: i64,
    pub at: Timestamp,
    /// How long it was measured.
    pub window: Duration,
}

/// By name of the pod.
pub type Samples = BTreeMap<String, Sample>;

/// How far from 1 the ratio of usage to target may be without anything being done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub down: f64,
    pub up: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What counts are made from.
pub struct Counter<'a> {
    /// Those that the target selects.
    pub pods: &'a [Arc<Pod>],
    /// Replicas that the target is to have.
    pub current: i32,
    pub tolerance: Tolerance,
    pub settings: &'a Settings,
    pub now: Timestamp,
}

/// A proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub replicas: i32,
    /// Usage, of a pod on average or as a whole.
    pub usage: i64,
    /// Share of what pods request, in percent, where that is what counts.
    pub utilization: i32,
}

/// Pods by what their samples are good for.
#[derive(Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

/// Ratio to the target, utilization and usage of an average pod.
type Ratio = Result<(f64, i32, i64), String>;

impl Counter<'_> {
    /// By the share of what pods request, of one container or of all, that they use.
    pub fn of_utilization(
        &self,
        samples: Samples,
        resource: &str,
        container: Option<&str>,
        target: i32,
    ) -> Result<Count, String> {
        let requests = || requests(self.pods, resource, container);
        let ratio = |samples: &Samples, requests: &BTreeMap<String, i64>| -> Ratio {
            let known = samples.iter().filter_map(|(pod, s)| Some((s.value, requests.get(pod)?)));
            let (mut used, mut requested, mut pods) = (0_i64, 0_i64, 0_i64);
            for (value, request) in known {
                used = used.saturating_add(value);
                requested = requested.saturating_add(*request);
                pods += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = used.saturating_mul(100) / requested;
            let utilization = i32::try_from(utilization).unwrap_or(i32::MAX);
            Ok((f64::from(utilization) / f64::from(target), utilization, used / pods))
        };
        // Those that are not measured are taken to use all that they request.
        let full = i64::from(target.max(100));
        let none = "No pods returned by selector while calculating replica count";
        self.weigh(samples, resource, none, requests, ratio, |requests, pod| {
            requests.get(pod).copied().unwrap_or(0).saturating_mul(full) / 100
        })
    }

    /// By what a pod uses on average. `resource`: whose it is, if it is of one.
    pub fn of_usage(&self, samples: Samples, resource: &str, target: i64) -> Result<Count, String> {
        let ratio = |samples: &Samples, (): &()| -> Ratio {
            let sum = samples.values().fold(0_i64, |sum, s| sum.saturating_add(s.value));
            let usage = sum / i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
            Ok((share(usage, target), 0, usage))
        };
        let none = "no pods returned by selector while calculating replica count";
        self.weigh(samples, resource, none, || Ok(()), ratio, |(), _| target)
    }

    /// The rule that both follow; `full` is what a pod without a sample is taken to use on the way
    /// down.
    fn weigh<R>(
        &self,
        mut samples: Samples,
        resource: &str,
        none: &str,
        requests: impl FnOnce() -> Result<R, String>,
        ratio: impl Fn(&Samples, &R) -> Ratio,
        full: impl Fn(&R, &str) -> i64,
    ) -> Result<Count, String> {
        if self.pods.is_empty() {
            return Err(none.to_owned());
        }
        let groups = self.groups(&samples, resource);
        samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
        if samples.is_empty() {
            return Err(
                "did not receive metrics for targeted pods (pods might be unready)".to_owned()
            );
        }
        let requests = requests()?;
        let (first, utilization, usage) = ratio(&samples, &requests)?;
        let count = |replicas| Count { replicas, usage, utilization };
        let up_with_unready = !groups.unready.is_empty() && first > 1.0;
        if !up_with_unready && groups.missing.is_empty() {
            let replicas = match self.tolerance.holds(first) {
                true => self.current,
                false => ceil(first * groups.ready as f64),
            };
            return Ok(count(replicas));
        }
        // Against the direction: who is not measured uses nothing on the way up, all on that down.
        let mut assume = |pod: &String, value| {
            let sample = Sample { value, at: self.now, window: Duration::ZERO };
            samples.insert(pod.clone(), sample);
        };
        for pod in &groups.missing {
            if first < 1.0 {
                assume(pod, full(&requests, pod));
            } else if first > 1.0 {
                assume(pod, 0);
            }
        }
        if up_with_unready {
            groups.unready.iter().for_each(|pod| assume(pod, 0));
        }
        let (second, ..) = ratio(&samples, &requests)?;
        let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
        if self.tolerance.holds(second) || turned {
            return Ok(count(self.current));
        }
        let replicas = ceil(second * samples.len() as f64);
        let turned =
            (second < 1.0 && replicas > self.current) || (second > 1.0 && replicas < self.current);
        Ok(count(if turned { self.current } else { replicas }))
    }

    /// By a value of something else that is to be `target`.
    pub fn of_value(&self, usage: i64, target: i64) -> Result<Count, String> {
        let ratio = share(usage, target);
        let replicas = if self.current == 0 {
            ceil(ratio)
        } else if self.tolerance.holds(ratio) {
            self.current
        } else {
            if self.pods.is_empty() {
                return Err("unable to calculate ready pods: no pods returned by selector while calculating replica count".to_owned());
            }
            let ready = self.pods.iter().filter(|p| phase(p) == "Running" && is_ready(p)).count();
            ceil(ratio * ready as f64)
        };
        Ok(Count { replicas, usage, utilization: 0 })
    }

    /// By a value of something else that each of the `running` replicas is to have a share of.
    pub fn of_value_per_pod(&self, usage: i64, target: i64, running: i32) -> Count {
        let ratio = usage as f64 / (target as f64 * f64::from(running));
        let replicas = match self.tolerance.holds(ratio) {
            true => running,
            false => ceil(share(usage, target)),
        };
        let each = (usage as f64 / f64::from(running)).ceil() as i64;
        Count { replicas, usage: each, utilization: 0 }
    }

    fn groups(&self, samples: &Samples, resource: &str) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
                groups.ignored.insert(name);
            } else if phase(pod) == "Pending" {
                groups.unready.insert(name);
            } else if let Some(sample) = samples.get(&name) {
                if resource == "cpu" && self.is_starting(pod, sample) {
                    groups.unready.insert(name);
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.insert(name);
            }
        }
        groups
    }

    /// Whether what a pod uses may still be what it needs to start.
    fn is_starting(&self, pod: &Pod, sample: &Sample) -> bool {
        let status = pod.status.as_ref();
        let condition =
            status.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready"));
        let started = status.and_then(|s| s.start_time.as_ref());
        let (Some(condition), Some(started)) = (condition, started) else { return true };
        let changed = condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0);
        let unready = condition.status == "False";
        let within = |span: Duration, of: Timestamp| {
            SignedDuration::try_from(span).is_ok_and(|span| of.duration_since(started.0) < span)
        };
        if within(self.settings.initialization, self.now) {
            let whole = SignedDuration::try_from(sample.window).unwrap_or_default();
            unready || sample.at.duration_since(changed) < whole
        } else {
            unready && within(self.settings.readiness_delay, changed)
        }
    }
}

fn share(usage: i64, target: i64) -> f64 {
    usage as f64 / target as f64
}

/// Casts are bounded: what is no number becomes 0.
fn ceil(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

/// What pods request of a resource; each container has to say.
fn requests(
    pods: &[Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let amount = |quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        quantity.0.parse::<Quantity>().map_or(0, |q| q.milli_value())
    };
    let mut all = BTreeMap::new();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(spec) = &pod.spec else { continue };
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
        if let (Some(whole), None) = (whole, container) {
            all.insert(name, amount(whole));
            continue;
        }
        let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
        let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
        let mut sum = 0_i64;
        for each in spec.containers.iter().chain(sidecars) {
            if container.is_some_and(|wanted| wanted != each.name) {
                continue;
            }
            let request = each.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
            let request = request.ok_or_else(|| {
                format!("missing request for {resource} in container {} of Pod {name}", each.name)
            })?;
            sum = sum.saturating_add(amount(request));
        }
        all.insert(name, sum);
    }
    Ok(all)
}
