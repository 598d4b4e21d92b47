//! What is done for an autoscaler, and what it says of it: reasons and messages are upstream's
//! (`pkg/controller/podautoscaler/horizontal.go`).

use std::sync::Arc;

use apimachinery::quantity::{Format, Quantity};
use client::events::EventType::{self, Normal, Warning};
use client::lean::Pod;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus,
    PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};

use super::Settings;
use super::count::{Count, Counter, Samples, Tolerance};
use super::limits::{History, Wish};

pub const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

/// What was measured for one of an autoscaler's metrics.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    Pods(Samples),
    /// In thousandths.
    Value(i64),
}

/// The replicas of a target.
#[derive(Clone, Debug)]
pub struct Target {
    pub scale: Scale,
    /// Those that it selects, as far as `selector` is sound.
    pub pods: Vec<Arc<Pod>>,
    /// What is wrong with its selector: event, reason and message.
    pub unsound: Option<(&'static str, &'static str, String, String)>,
    /// For each metric, in order; empty where none is asked for.
    pub measured: Vec<Result<Measured, String>>,
}

impl Target {
    pub fn current(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
    }

    fn running(&self) -> i32 {
        self.scale.status.as_ref().map_or(0, |s| s.replicas)
    }
}

/// What is decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub status: HorizontalPodAutoscalerStatus,
    /// New replicas, and why.
    pub rescale: Option<(i32, String)>,
    pub events: Vec<(EventType, &'static str, String)>,
    /// What went wrong, for the log.
    pub error: Option<String>,
}

impl Decision {
    fn event(&mut self, ty: EventType, reason: &'static str, message: impl Into<String>) {
        self.events.push((ty, reason, message.into()));
    }

    /// Sets a condition.
    fn say(&mut self, ty: &str, is: bool, reason: &str, message: &str, now: Timestamp) {
        let status = if is { "True" } else { "False" };
        let all = self.status.conditions.get_or_insert_default();
        let since = Some(Time(now));
        match all.iter_mut().find(|c| c.type_ == ty) {
            Some(known) => {
                if known.status != status {
                    known.status = status.to_owned();
                    known.last_transition_time = since;
                }
                known.reason = Some(reason.to_owned());
                known.message = Some(message.to_owned());
            }
            None => all.push(HorizontalPodAutoscalerCondition {
                type_: ty.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: since,
            }),
        }
    }

    /// Records how the change of the target went.
    pub fn rescaled(&mut self, outcome: Result<(), String>, now: Timestamp) {
        let Some((replicas, why)) = self.rescale.clone() else { return };
        match outcome {
            Ok(()) => {
                let message =
                    format!("the HPA controller was able to update the target scale to {replicas}");
                self.say(ABLE, true, "SucceededRescale", &message, now);
                let message = format!("New size: {replicas}; reason: {why}");
                self.event(Normal, "SuccessfulRescale", message);
                self.status.desired_replicas = replicas;
                self.status.last_scale_time = Some(Time(now));
            }
            Err(error) => {
                let message = format!("New size: {replicas}; reason: {why}; error: {error}");
                self.event(Warning, "FailedRescale", message);
                let message =
                    format!("the HPA controller was unable to update the target scale: {error}");
                self.say(ABLE, false, "FailedUpdateScale", &message, now);
                self.error = Some(format!("failed to rescale: {error}"));
            }
        }
    }
}

/// What is for the replicas there are, before any metric is looked at: `None` where metrics decide.
fn without_metrics(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
) -> Option<(i32, &'static str)> {
    let least = spec.min_replicas.unwrap_or(1);
    if current == 0 && least != 0 {
        Some((0, ""))
    } else if current > spec.max_replicas {
        Some((spec.max_replicas, "Current number of replicas above Spec.MaxReplicas"))
    } else if current < least {
        Some((least, "Current number of replicas below Spec.MinReplicas"))
    } else {
        None
    }
}

/// Whether metrics decide.
pub fn needs_metrics(spec: &HorizontalPodAutoscalerSpec, current: i32) -> bool {
    without_metrics(spec, current).is_none()
}

/// Decides about an autoscaler; `target`: what its target was found to be, or why not.
pub fn decide(
    hpa: &HorizontalPodAutoscaler,
    target: Result<&Target, &str>,
    history: &mut History,
    settings: &Settings,
    now: Timestamp,
) -> Decision {
    let status = hpa.status.clone().unwrap_or_default();
    let mut made = Decision { status, ..Decision::default() };
    let Some(spec) = &hpa.spec else { return made };
    let target = match target {
        Ok(target) => target,
        Err(why) => {
            made.event(Warning, "FailedGetScale", why);
            let message =
                format!("the HPA controller was unable to get the target's current scale: {why}");
            made.say(ABLE, false, "FailedGetScale", &message, now);
            made.error = Some(why.to_owned());
            return made;
        }
    };
    let message = "the HPA controller was able to get the target's current scale";
    made.say(ABLE, true, "SucceededGetScale", message, now);
    let current = target.current();
    history.begin(current, now);
    made.status.current_replicas = Some(current);
    made.status.observed_generation = hpa.metadata.generation;
    let (desired, why) = match without_metrics(spec, current) {
        Some((desired, why)) => {
            if why.is_empty() {
                let message = "scaling is disabled since the replica count of the target is zero";
                made.say(ACTIVE, false, "ScalingDisabled", message, now);
            }
            made.status.current_metrics = None;
            (desired, why.to_owned())
        }
        None => {
            let Some((wanted, by)) = by_metrics(&mut made, spec, target, settings, now) else {
                return made;
            };
            let why = match wanted.cmp(&current) {
                std::cmp::Ordering::Greater => format!("{by} above target"),
                std::cmp::Ordering::Less => "All metrics below target".to_owned(),
                std::cmp::Ordering::Equal => String::new(),
            };
            let least = spec.min_replicas.unwrap_or(1);
            let wish = Wish { current, desired: wanted, least, most: spec.max_replicas };
            let window = settings.downscale_window;
            let outcome = history.limit(spec.behavior.as_ref(), wish, window, now);
            made.say(ABLE, true, outcome.able.0, outcome.able.1, now);
            made.say(LIMITED, outcome.limited, outcome.limit.0, outcome.limit.1, now);
            (outcome.replicas, why)
        }
    };
    if desired == current {
        made.status.desired_replicas = current;
    } else {
        made.rescale = Some((desired, why));
    }
    made
}

/// The largest of what metrics call for, and which calls for it. `None`: nothing may be done.
fn by_metrics(
    made: &mut Decision,
    spec: &HorizontalPodAutoscalerSpec,
    target: &Target,
    settings: &Settings,
    now: Timestamp,
) -> Option<(i32, String)> {
    if let Some((event, reason, told, message)) = &target.unsound {
        made.event(Warning, event, told.clone());
        made.say(ACTIVE, false, reason, message, now);
        made.status.current_metrics = None;
        return failed(made, told.clone());
    }
    let metrics = spec.metrics.as_deref().unwrap_or_default();
    let counter = Counter {
        pods: &target.pods,
        current: target.current(),
        tolerance: tolerance(spec, settings.tolerance),
        settings,
        now,
    };
    let mut best: Option<(i32, String)> = None;
    let mut statuses = Vec::new();
    let mut first: Option<Failure> = None;
    let mut invalid = 0;
    let nothing = Err("not measured".to_owned());
    for (i, metric) in metrics.iter().enumerate() {
        let measured = target.measured.get(i).unwrap_or(&nothing);
        match by_metric(&counter, metric, measured, target.running()) {
            Ok((replicas, name, status)) => {
                statuses.push(status);
                if best.as_ref().is_none_or(|(most, _)| *most == 0 || replicas > *most) {
                    best = Some((replicas, name));
                }
            }
            Err(failure) => {
                statuses.push(MetricStatus::default());
                made.event(Warning, failure.reason, failure.why.clone());
                first.get_or_insert(failure);
                invalid += 1;
            }
        }
    }
    made.status.current_metrics = Some(statuses).filter(|s| !s.is_empty());
    let error = first.as_ref().map(|failure| {
        let (all, of) = (metrics.len(), &failure.of);
        format!(
            "invalid metrics ({invalid} invalid out of {all}), first error is: failed to get {of}: {}",
            failure.why
        )
    });
    let shrinks = best.as_ref().is_some_and(|(replicas, _)| *replicas < target.current());
    match (best, first) {
        // What cannot be seen may be what needs the replicas.
        (_, Some(failure)) if invalid >= metrics.len() || shrinks => {
            let why = failure.why;
            let message = format!("the HPA was unable to compute the replica count: {why}");
            made.say(ACTIVE, false, failure.reason, &message, now);
            failed(made, error.unwrap_or_default())
        }
        (Some((replicas, name)), _) => {
            let message =
                format!("the HPA was able to successfully calculate a replica count from {name}");
            made.say(ACTIVE, true, "ValidMetricFound", &message, now);
            made.error = error;
            Some((replicas, name))
        }
        (None, _) => failed(made, "no metrics".to_owned()),
    }
}

fn failed(made: &mut Decision, why: String) -> Option<(i32, String)> {
    made.event(Warning, "FailedComputeMetricsReplicas", why.clone());
    made.error = Some(format!(
        "failed to compute desired number of replicas based on listed metrics: {why}"
    ));
    None
}

fn tolerance(spec: &HorizontalPodAutoscalerSpec, default: f64) -> Tolerance {
    let behavior = spec.behavior.as_ref();
    let of = |text: Option<&Text>| {
        text.and_then(|t| t.0.parse::<Quantity>().ok()).map_or(default, |q| q.approximate())
    };
    Tolerance {
        down: of(behavior.and_then(|b| b.scale_down.as_ref()?.tolerance.as_ref())),
        up: of(behavior.and_then(|b| b.scale_up.as_ref()?.tolerance.as_ref())),
    }
}

/// Why a metric says nothing.
struct Failure {
    reason: &'static str,
    /// Which metric it is.
    of: String,
    why: String,
}

type Proposal = Result<(i32, String, MetricStatus), Failure>;

fn milli(text: &Text) -> i64 {
    text.0.parse::<Quantity>().map_or(0, |q| q.milli_value())
}

fn text(millis: i64) -> Option<Text> {
    Some(Text(Quantity::from_millis(millis, Format::DecimalSI).to_string()))
}

fn average(usage: i64) -> MetricValueStatus {
    MetricValueStatus { average_value: text(usage), ..MetricValueStatus::default() }
}

/// What one metric calls for, its name in messages and what is told of it.
fn by_metric(
    counter: &Counter<'_>,
    metric: &MetricSpec,
    measured: &Result<Measured, String>,
    running: i32,
) -> Proposal {
    let status = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
    let kind = metric.type_.as_str();
    if let ("Resource", Some(source)) = (kind, &metric.resource) {
        let of = format!("{} resource metric value", source.name);
        let fail = |why| Failure { reason: "FailedGetResourceMetric", of: of.clone(), why };
        let (replicas, name, current) =
            of_resource(counter, &source.name, None, &source.target, measured).map_err(fail)?;
        let resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
        Ok((replicas, name, MetricStatus { resource, ..status }))
    } else if let ("ContainerResource", Some(source)) = (kind, &metric.container_resource) {
        let of = format!("{} container metric value", source.container);
        let fail =
            |why| Failure { reason: "FailedGetContainerResourceMetric", of: of.clone(), why };
        let container = Some(source.container.as_str());
        let (replicas, name, current) =
            of_resource(counter, &source.name, container, &source.target, measured)
                .map_err(fail)?;
        let container_resource = Some(ContainerResourceMetricStatus {
            name: source.name.clone(),
            container: source.container.clone(),
            current,
        });
        Ok((replicas, name, MetricStatus { container_resource, ..status }))
    } else if let ("Pods", Some(source)) = (kind, &metric.pods) {
        let of = || "pods metric value".to_owned();
        let fail = |why| Failure { reason: "FailedGetPodsMetric", of: of(), why };
        let (name, goal) = (&source.metric.name, source.target.average_value.as_ref());
        let samples =
            samples(measured).map_err(|why| fail(format!("unable to get metric {name}: {why}")))?;
        let goal = goal.map(milli).unwrap_or_default();
        let count = counter.of_usage(samples, "", goal).map_err(fail)?;
        let pods =
            Some(PodsMetricStatus { metric: source.metric.clone(), current: average(count.usage) });
        Ok((count.replicas, format!("pods metric {name}"), MetricStatus { pods, ..status }))
    } else if let ("Object", Some(source)) = (kind, &metric.object) {
        let of = || "object metric value".to_owned();
        let fail = |why| Failure { reason: "FailedGetObjectMetric", of: of(), why };
        let (name, about) = (&source.metric.name, &source.described_object);
        let value = value(measured).map_err(|why| {
            let object = format!("{} {}", about.kind, about.name);
            fail(format!("unable to get metric {name} of {object}: {why}"))
        })?;
        let (count, current) =
            of_value(counter, "object", &source.target, value, running).map_err(fail)?;
        let named = match source.target.type_.as_str() {
            "Value" => format!("{} metric {name}", about.kind),
            _ => format!("external metric {name}({})", shown(source.metric.selector.as_ref())),
        };
        let object = Some(ObjectMetricStatus {
            described_object: about.clone(),
            metric: source.metric.clone(),
            current,
        });
        Ok((count.replicas, named, MetricStatus { object, ..status }))
    } else if let ("External", Some(source)) = (kind, &metric.external) {
        let name = &source.metric.name;
        let of = format!("{name} external metric value");
        let fail = |why| Failure { reason: "FailedGetExternalMetric", of: of.clone(), why };
        let selector = shown(source.metric.selector.as_ref());
        let value = value(measured).map_err(|why| {
            fail(format!("unable to get external metric {name}/{selector}: {why}"))
        })?;
        let (count, current) =
            of_value(counter, "external", &source.target, value, running).map_err(fail)?;
        let external = Some(ExternalMetricStatus { metric: source.metric.clone(), current });
        let named = format!("external metric {name}({selector})");
        Ok((count.replicas, named, MetricStatus { external, ..status }))
    } else {
        let why = format!("unknown metric source type {kind:?}");
        Err(Failure { reason: "InvalidMetricSourceType", of: "metric".to_owned(), why })
    }
}

fn samples(measured: &Result<Measured, String>) -> Result<Samples, String> {
    match measured {
        Ok(Measured::Pods(samples)) => Ok(samples.clone()),
        Ok(Measured::Value(_)) => Err("a value for pods".to_owned()),
        Err(why) => Err(why.clone()),
    }
}

fn value(measured: &Result<Measured, String>) -> Result<i64, String> {
    match measured {
        Ok(Measured::Value(value)) => Ok(*value),
        Ok(Measured::Pods(_)) => Err("values of pods".to_owned()),
        Err(why) => Err(why.clone()),
    }
}

fn of_resource(
    counter: &Counter<'_>,
    resource: &str,
    container: Option<&str>,
    target: &MetricTarget,
    measured: &Result<Measured, String>,
) -> Result<(i32, String, MetricValueStatus), String> {
    let samples = samples(measured)
        .map_err(|why| format!("unable to get metrics for resource {resource}: {why}"));
    if let Some(goal) = &target.average_value {
        let count = samples.and_then(|samples| counter.of_usage(samples, resource, milli(goal)));
        let count = count.map_err(|why| format!("failed to get {resource} usage: {why}"))?;
        return Ok((count.replicas, format!("{resource} resource"), average(count.usage)));
    }
    let Some(goal) = target.average_utilization else {
        return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned());
    };
    let count =
        samples.and_then(|samples| counter.of_utilization(samples, resource, container, goal));
    let count = count.map_err(|why| format!("failed to get {resource} utilization: {why}"))?;
    let kind = if container.is_some() { "container resource" } else { "resource" };
    let name = format!("{resource} {kind} utilization (percentage of request)");
    let current =
        MetricValueStatus { average_utilization: Some(count.utilization), ..average(count.usage) };
    Ok((count.replicas, name, current))
}

/// By a value, whole or for each pod. `what`: the kind of metric, for errors.
fn of_value(
    counter: &Counter<'_>,
    what: &str,
    target: &MetricTarget,
    usage: i64,
    running: i32,
) -> Result<(Count, MetricValueStatus), String> {
    match (&target.average_value, &target.value) {
        (Some(goal), _) => {
            let count = counter.of_value_per_pod(usage, milli(goal), running);
            Ok((count, average(count.usage)))
        }
        (None, Some(goal)) => {
            let count = counter.of_value(usage, milli(goal))?;
            let value = text(count.usage);
            Ok((count, MetricValueStatus { value, ..MetricValueStatus::default() }))
        }
        (None, None) => Err(format!(
            "invalid {what} metric source: neither a value target nor an average value target was set"
        )),
    }
}

/// A selector as messages have it.
fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let values = e.values.as_deref().unwrap_or_default().join(" ");
        format!(
            "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
            e.key, e.operator
        )
    });
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        expressions.collect::<String>()
    )
}
