//! Tables of what is decided.

use serde_json::{Value, json};

use super::count::{Counter, Sample, Samples, Tolerance};
use super::decide::{ABLE, Measured};
use super::*;
use limits::Wish;

const SETTINGS: Settings = Settings {
    period: Duration::from_secs(15),
    downscale_window: Duration::from_secs(300),
    tolerance: 0.1,
    initialization: Duration::from_secs(300),
    readiness_delay: Duration::from_secs(30),
};

fn at(text: &str) -> Timestamp {
    format!("2026-01-01T{text}Z").parse().expect("a time")
}

fn now() -> Timestamp {
    at("01:00:00")
}

/// A pod: `r` ready for long, `p` pending, `f` failed, `d` being deleted, `s` started just now and
/// not ready, `n` never ready, `l` ready once and not now. All request 1 CPU.
fn pod(name: &str, how: char) -> Arc<Pod> {
    let phase = match how {
        'p' => "Pending",
        'f' => "Failed",
        _ => "Running",
    };
    let (started, changed, ready) = match how {
        's' => ("00:59:00", "00:59:00", "False"),
        'n' => ("00:10:00", "00:10:10", "False"),
        'l' => ("00:10:00", "00:40:00", "False"),
        _ => ("00:10:00", "00:11:00", "True"),
    };
    let deleted = (how == 'd').then(now);
    let pod = json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"},
            "deletionTimestamp": deleted},
        "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "600m"}}},
            {"name": "d", "resources": {"requests": {"cpu": "400m"}}}]},
        "status": {"phase": phase, "startTime": at(started), "conditions": [{"type": "Ready",
            "status": ready, "lastTransitionTime": at(changed)}]},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// Pods by their letters, and samples of those that have a number of thousandths.
fn pods(all: &[(char, Option<i64>)]) -> (Vec<Arc<Pod>>, Samples) {
    let name = |i: usize| format!("p{i}");
    let pods = all.iter().enumerate().map(|(i, (how, _))| pod(&name(i), *how)).collect();
    let sample = |value| Sample { value, at: now(), window: Duration::from_secs(30) };
    let samples = all.iter().enumerate();
    let samples = samples.filter_map(|(i, (_, v))| Some((name(i), sample((*v)?)))).collect();
    (pods, samples)
}

fn counter(pods: &[Arc<Pod>], current: i32) -> Counter<'_> {
    let tolerance = Tolerance { down: 0.1, up: 0.1 };
    Counter { pods, current, tolerance, settings: &SETTINGS, now: now() }
}

#[test]
fn utilization_counts_those_that_can_be_measured() {
    let r = |value| ('r', Some(value));
    for (all, target, want) in [
        // As it is; within the tolerance; beyond it.
        (vec![r(500), r(500)], 50, Ok((2, 50, 500))),
        (vec![r(540), r(540)], 50, Ok((2, 54, 540))),
        (vec![r(560), r(560)], 50, Ok((3, 56, 560))),
        (vec![r(1000), r(1000)], 50, Ok((4, 100, 1000))),
        (vec![r(200), r(200)], 50, Ok((1, 20, 200))),
        // Up, with pods that are not ready: they use nothing.
        (vec![r(1000), r(1000), ('p', None)], 50, Ok((4, 100, 1000))),
        (vec![r(1000), ('p', None), ('p', None)], 50, Ok((3, 100, 1000))),
        (vec![r(1000), ('s', Some(1000))], 50, Ok((2, 100, 1000))),
        (vec![r(1000), ('n', Some(1000))], 50, Ok((2, 100, 1000))),
        // Who was ready once counts, though not ready now.
        (vec![r(1000), ('l', Some(1000))], 50, Ok((4, 100, 1000))),
        // Down, with pods that are not measured: they use all.
        (vec![r(200), r(200), ('r', None)], 50, Ok((3, 20, 200))),
        (vec![r(100), r(100), r(100), ('r', None)], 50, Ok((3, 10, 100))),
        // Up, with such ones: they use nothing.
        (vec![r(1000), r(1000), ('r', None)], 50, Ok((4, 100, 1000))),
        // Failed ones and those that go do not count.
        (vec![r(1000), ('f', Some(0)), ('d', Some(0))], 50, Ok((2, 100, 1000))),
        (
            vec![('p', None)],
            50,
            Err("did not receive metrics for targeted pods (pods might be unready)"),
        ),
        (vec![], 50, Err("No pods returned by selector while calculating replica count")),
    ] {
        let current = i32::try_from(all.len()).expect("few");
        let (pods, samples) = pods(&all);
        let got = counter(&pods, current).of_utilization(samples, "cpu", None, target);
        let got = got.map(|c| (c.replicas, c.utilization, c.usage));
        assert_eq!(got, want.map_err(str::to_owned), "{all:?}");
    }
}

#[test]
fn one_container_counts_alone_and_each_has_to_request() {
    let (pods, samples) = pods(&[('r', Some(600)), ('r', Some(600))]);
    let counter = counter(&pods, 2);
    let of = |container| counter.of_utilization(samples.clone(), "cpu", container, 50);
    assert_eq!(of(Some("c")).map(|c| (c.replicas, c.utilization)), Ok((4, 100)));
    assert_eq!(of(None).map(|c| (c.replicas, c.utilization)), Ok((3, 60)));
    let missing = counter.of_utilization(samples.clone(), "memory", None, 50);
    assert_eq!(missing, Err("missing request for memory in container c of Pod p0".to_owned()));
}

#[test]
fn usage_and_values_are_shared_out() {
    let (few, samples) = pods(&[('r', Some(2000)), ('r', Some(4000))]);
    let counter = counter(&few, 2);
    for (target, replicas) in [(3000, 2), (1000, 6), (6000, 1)] {
        let got = counter.of_usage(samples.clone(), "", target).map(|c| (c.replicas, c.usage));
        assert_eq!(got, Ok((replicas, 3000)), "{target}");
    }
    for (usage, target, replicas) in [(100, 100, 2), (105, 100, 2), (250, 100, 5), (10, 100, 1)] {
        let got = counter.of_value(usage, target).map(|c| c.replicas);
        assert_eq!(got, Ok(replicas), "{usage} of {target}");
    }
    for (usage, replicas, each) in [(200, 2, 100), (210, 2, 105), (500, 5, 250), (90, 1, 45)] {
        let got = counter.of_value_per_pod(usage, 100, 2);
        assert_eq!((got.replicas, got.usage), (replicas, each), "{usage}");
    }
}

fn behavior(
    value: Value,
) -> Option<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior> {
    Some(value).filter(|v| !v.is_null()).map(|v| serde_json::from_value(v).expect("a behavior"))
}

#[test]
fn what_is_wished_is_limited() {
    // Behavior; current, desired; recommended five seconds ago; replicas, able, limit.
    let cases = [
        (Value::Null, 3, 5, None, 5, "ReadyForNewScale", "DesiredWithinRange"),
        (Value::Null, 3, 30, None, 6, "ReadyForNewScale", "ScaleUpLimit"),
        (Value::Null, 1, 30, None, 4, "ReadyForNewScale", "ScaleUpLimit"),
        (Value::Null, 19, 30, None, 20, "ReadyForNewScale", "TooManyReplicas"),
        (Value::Null, 5, 1, None, 2, "ReadyForNewScale", "TooFewReplicas"),
        (Value::Null, 5, 3, Some(5), 5, "ScaleDownStabilized", "DesiredWithinRange"),
        (json!({}), 5, 3, Some(4), 4, "ScaleDownStabilized", "DesiredWithinRange"),
        (json!({}), 5, 8, Some(6), 8, "ReadyForNewScale", "DesiredWithinRange"),
        (
            json!({"scaleUp": {"stabilizationWindowSeconds": 60}}),
            5,
            8,
            Some(6),
            6,
            "ScaleUpStabilized",
            "DesiredWithinRange",
        ),
        // The larger of 4 pods and 100 %.
        (json!({}), 3, 20, None, 7, "ReadyForNewScale", "ScaleUpLimit"),
        (json!({}), 6, 20, None, 12, "ReadyForNewScale", "ScaleUpLimit"),
        (
            json!({"scaleUp": {"selectPolicy": "Min"}}),
            6,
            20,
            None,
            10,
            "ReadyForNewScale",
            "ScaleUpLimit",
        ),
        (
            json!({"scaleUp": {"selectPolicy": "Disabled"}}),
            6,
            20,
            None,
            6,
            "ReadyForNewScale",
            "ScaleUpLimit",
        ),
        (
            json!({"scaleDown": {"stabilizationWindowSeconds": 0,
                "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60},
                             {"type": "Pods", "value": 1, "periodSeconds": 60}]}}),
            15,
            3,
            None,
            13,
            "ReadyForNewScale",
            "ScaleDownLimit",
        ),
        (
            json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min",
                "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60},
                             {"type": "Pods", "value": 1, "periodSeconds": 60}]}}),
            15,
            3,
            None,
            14,
            "ReadyForNewScale",
            "ScaleDownLimit",
        ),
        (
            json!({"scaleDown": {"stabilizationWindowSeconds": 0}}),
            15,
            1,
            None,
            2,
            "ReadyForNewScale",
            "TooFewReplicas",
        ),
    ];
    for (rules, current, desired, before, replicas, able, limit) in cases {
        let mut history = History::default();
        if let Some(before) = before {
            history.begin(before, at("00:59:55"));
        }
        let wish = Wish { current, desired, least: 2, most: 20 };
        let window = SETTINGS.downscale_window;
        let got = history.limit(behavior(rules.clone()).as_ref(), wish, window, now());
        let got = (got.replicas, got.able.0, got.limit.0);
        assert_eq!(got, (replicas, able, limit), "{rules} {current} {desired}");
    }
}

#[test]
fn what_was_done_in_the_period_counts() {
    let rules = behavior(json!({"scaleUp": {
        "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}}));
    let mut history = History::default();
    history.scaled(rules.as_ref(), (4, 5), at("00:59:30"));
    let wish = Wish { current: 5, desired: 20, least: 1, most: 20 };
    let window = SETTINGS.downscale_window;
    let mut limit = |now| history.limit(rules.as_ref(), wish, window, now).replicas;
    assert_eq!(limit(now()), 6);
    assert_eq!(limit(at("01:00:31")), 7);
}

fn hpa(metrics: Value) -> HorizontalPodAutoscaler {
    serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": "h", "generation": 3},
        "spec": {"minReplicas": 1, "maxReplicas": 10, "metrics": metrics,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
    }))
    .expect("an autoscaler")
}

fn cpu() -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 50}}})
}

fn external() -> Value {
    json!({"type": "External", "external": {"metric": {"name": "queue"},
        "target": {"type": "AverageValue", "averageValue": "10"}}})
}

fn target(replicas: i32, measured: Vec<Result<Measured, String>>) -> Target {
    let scale = json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "selector": "app=web"}});
    let scale = serde_json::from_value(scale).expect("a scale");
    let (pods, _) = pods(&vec![('r', None); usize::try_from(replicas).expect("some")]);
    Target { scale, pods, unsound: None, measured }
}

/// Replicas, the reasons of the three conditions that there are, and those of the events.
#[track_caller]
fn check(
    metrics: Value,
    found: Result<Target, &str>,
    want: (Option<i32>, &[&str], &[&str]),
) -> Decision {
    let hpa = hpa(metrics);
    let mut history = History::default();
    let made = decide(&hpa, found.as_ref().map_err(|e| *e), &mut history, &SETTINGS, now());
    let conditions = made.status.conditions.iter().flatten();
    let reasons: Vec<&str> = conditions.filter_map(|c| c.reason.as_deref()).collect();
    let events: Vec<&str> = made.events.iter().map(|(_, reason, _)| *reason).collect();
    let replicas = made.rescale.as_ref().map(|(n, _)| *n);
    assert_eq!((replicas, &reasons[..], &events[..]), want, "{made:?}");
    made
}

#[test]
fn metrics_decide_and_what_is_missing_holds_back() {
    let used = |replicas: usize, value| {
        let (_, samples) = pods(&vec![('r', Some(value)); replicas]);
        Ok(Measured::Pods(samples))
    };
    let failed = || Err("gone".to_owned());
    let fine = ["ReadyForNewScale", "ValidMetricFound", "DesiredWithinRange"];
    let made = check(json!([cpu()]), Ok(target(2, vec![used(2, 1000)])), (Some(4), &fine, &[]));
    let why = "cpu resource utilization (percentage of request) above target";
    assert_eq!(made.rescale, Some((4, why.to_owned())));
    let current = &made.status.current_metrics.as_ref().expect("metrics")[0];
    let want = json!({"type": "Resource", "resource": {"name": "cpu", "current":
        {"averageUtilization": 100, "averageValue": "1"}}});
    assert_eq!(serde_json::to_value(current).expect("JSON"), want);
    check(json!([cpu()]), Ok(target(2, vec![used(2, 500)])), (None, &fine, &[]));
    // The larger of two.
    let both = json!([cpu(), external()]);
    let measured = vec![used(2, 500), Ok(Measured::Value(50_000))];
    let made = check(
        both.clone(),
        Ok(target(2, measured)),
        (Some(4), &["ReadyForNewScale", "ValidMetricFound", "ScaleUpLimit"], &[]),
    );
    assert_eq!(
        made.rescale.map(|r| r.1).as_deref(),
        Some("external metric queue(nil) above target")
    );
    // One that is missing does not keep from growing, but from shrinking.
    let event = ["FailedGetExternalMetric"];
    let measured = vec![used(2, 1000), failed()];
    check(both.clone(), Ok(target(2, measured)), (Some(4), &fine, &event));
    let stuck = ["SucceededGetScale", "FailedGetExternalMetric"];
    let events = ["FailedGetExternalMetric", "FailedComputeMetricsReplicas"];
    let measured = vec![used(4, 100), failed()];
    check(both, Ok(target(4, measured)), (None, &stuck, &events));
    let stuck = ["SucceededGetScale", "FailedGetResourceMetric"];
    let events = ["FailedGetResourceMetric", "FailedComputeMetricsReplicas"];
    let made = check(json!([cpu()]), Ok(target(4, vec![failed()])), (None, &stuck, &events));
    let message = made.status.conditions.expect("conditions")[1].message.clone();
    let want = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: gone";
    assert_eq!(message.as_deref(), Some(want));
    let want = "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: gone";
    assert_eq!(made.events[1].2, want);
}

#[test]
fn targets_that_are_off_or_out_of_range_need_no_metrics() {
    let found = ["SucceededGetScale"];
    let off = ["SucceededGetScale", "ScalingDisabled"];
    check(json!([cpu()]), Ok(target(0, vec![])), (None, &off, &[]));
    let made = check(json!([cpu()]), Ok(target(12, vec![])), (Some(10), &found, &[]));
    assert_eq!(
        made.rescale,
        Some((10, "Current number of replicas above Spec.MaxReplicas".into()))
    );
    check(json!([cpu()]), Err("no such thing"), (None, &["FailedGetScale"], &["FailedGetScale"]));
    let mut unsound = target(2, vec![]);
    let told = || "selector is required".to_owned();
    unsound.unsound = Some(("SelectorRequired", "InvalidSelector", told(), told()));
    let reasons = ["SucceededGetScale", "InvalidSelector"];
    let events = ["SelectorRequired", "FailedComputeMetricsReplicas"];
    check(json!([cpu()]), Ok(unsound), (None, &reasons, &events));
}

#[test]
fn a_change_is_told_as_it_went() {
    let found = ["SucceededGetScale"];
    let made = check(json!([cpu()]), Ok(target(12, vec![])), (Some(10), &found, &[]));
    for (outcome, reason, event, desired) in [
        (Ok(()), "SucceededRescale", "SuccessfulRescale", 10),
        (Err("no".to_owned()), "FailedUpdateScale", "FailedRescale", 0),
    ] {
        let mut made = made.clone();
        made.rescaled(outcome, now());
        let able = made.status.conditions.iter().flatten().find(|c| c.type_ == ABLE);
        assert_eq!(able.and_then(|c| c.reason.as_deref()), Some(reason));
        assert_eq!(made.events.last().map(|e| e.1), Some(event));
        assert_eq!(made.status.desired_replicas, desired);
        assert_eq!(made.status.last_scale_time.is_some(), desired == 10);
    }
}

#[test]
fn each_direction_may_have_its_tolerance() {
    let (_, samples) = pods(&[('r', Some(600)), ('r', Some(600))]);
    let measured = vec![Ok(Measured::Pods(samples))];
    let mut hpa = hpa(json!([cpu()]));
    let found = target(2, measured);
    for (tolerance, want) in [(Value::Null, Some(3)), (json!("0.3"), None), (json!("0"), Some(3))] {
        let rules = json!({"scaleUp": {"tolerance": tolerance}});
        hpa.spec.as_mut().expect("a spec").behavior = behavior(rules);
        let mut history = History::default();
        let made = decide(&hpa, Ok(&found), &mut history, &SETTINGS, now());
        assert_eq!(made.rescale.map(|r| r.0), want, "{tolerance}");
    }
}
