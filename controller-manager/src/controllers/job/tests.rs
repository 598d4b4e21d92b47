use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k).or_insert(Value::Null), v);
            }
        }
        (a, b) => *a = b,
    }
}

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({
        "metadata": {"namespace": "ns", "name": "j", "uid": "u"},
        "spec": {"parallelism": 2, "completions": 2, "backoffLimit": 6,
            "selector": {"matchLabels": {"job": "j"}},
            "template": {"metadata": {"labels": {"job": "j"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}},
        "status": {"startTime": "2026-01-01T00:50:00Z", "uncountedTerminatedPods": {}},
    });
    merge(&mut job["spec"], spec);
    merge(&mut job["status"], status);
    serde_json::from_value(job).expect("a job")
}

/// `a Running`, `b Failed 3 i1 n1`: exit code, index, failures of the index; `free`: no finalizer.
fn pod(text: &str) -> Arc<Pod> {
    let mut words = text.split(' ');
    let (name, phase) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut pod = json!({
        "metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"job": "j"},
            "annotations": {}, "finalizers": [FINALIZER],
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j",
                "uid": "u", "controller": true}]},
        "spec": {"containers": []},
        "status": {"phase": phase, "containerStatuses": []},
    });
    let prefix = "batch.kubernetes.io/job-";
    for word in words {
        match (word.split_at(1), word) {
            (_, "free") => pod["metadata"]["finalizers"] = json!([]),
            (_, "ending") => pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z"),
            (("i", index), _) => {
                pod["metadata"]["annotations"][format!("{prefix}completion-index")] = json!(index);
            }
            (("n", failures), _) => {
                pod["metadata"]["annotations"][format!("{prefix}index-failure-count")] =
                    json!(failures);
            }
            _ => {
                let code: i32 = word.parse().expect("an exit code");
                pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "",
                    "ready": false, "restartCount": 0, "state": {"terminated":
                        {"exitCode": code, "finishedAt": "2026-01-01T00:51:00Z"}}}]);
            }
        }
    }
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// The plan in short: `+`, `+1` (index), `-name`, `free name`, and what changes in the status.
fn told(plan: &Plan) -> String {
    let texts = plan.actions.iter().filter_map(|a| match a {
        Action::Create(_, o) => {
            let index = &o["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"];
            Some(format!("+{}", index.as_str().unwrap_or_default()))
        }
        Action::Delete(t, ..) => Some(format!("-{}", t.key.name)),
        Action::Patch(t, _, p) if p["metadata"].get("finalizers").is_some() => {
            Some(format!("hold {}", t.key.name))
        }
        Action::Patch(t, _, p) if p["metadata"].get("ownerReferences").is_none() => {
            Some(format!("free {}", t.key.name))
        }
        Action::UpdatePart(_, "status", o) => {
            let s = &o["status"];
            let mut texts = Vec::new();
            for key in ["succeeded", "failed", "completedIndexes", "failedIndexes"] {
                if s[key].as_str() != Some("") && !s[key].is_null() {
                    texts.push(format!("{key}={}", s[key].to_string().trim_matches('"')));
                }
            }
            for list in ["succeeded", "failed"] {
                for uid in s["uncountedTerminatedPods"][list].as_array().into_iter().flatten() {
                    texts.push(format!("{list}:{}", uid.as_str().unwrap_or_default()));
                }
            }
            for c in s["conditions"].as_array().into_iter().flatten() {
                let text = |k: &str| c[k].as_str().unwrap_or_default().to_owned();
                texts.push(match text("status").as_str() {
                    "True" => format!("{}/{}", text("type"), text("reason")),
                    _ => format!("!{}", text("type")),
                });
            }
            Some(format!("[{}]", texts.join(" ")))
        }
        _ => None,
    });
    texts.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(job: &Job, pods: &[&str], wanted: &str) {
    let all = pods.iter().map(|p| pod(p)).collect();
    assert_eq!(told(&plan(job, all, true, now())), wanted, "{pods:?}");
}

#[test]
fn pods_are_made_counted_and_let_go_in_steps() {
    check(&job(json!({}), json!({})), &[], "+ + []");
    let active = json!({"active": 1, "ready": 0, "terminating": 0});
    // A success is written down before its pod is let go, and counted when that is done.
    check(&job(json!({}), active.clone()), &["a Succeeded 0", "b Running"], "[succeeded:a] free a");
    let written = json!({"active": 1, "uncountedTerminatedPods": {"succeeded": ["a"]}});
    check(&job(json!({}), written.clone()), &["a Succeeded 0 free", "b Running"], "[succeeded=1]");
    check(&job(json!({}), written), &["b Running"], "[succeeded=1]");
    let last = json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["b"]}});
    check(
        &job(json!({}), last),
        &["b Succeeded 0 free"],
        "[succeeded=2 SuccessCriteriaMet/CompletionsReached Complete/CompletionsReached]",
    );
}

#[test]
fn a_finished_job_only_lets_its_pods_go() {
    let done = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    check(&job(json!({}), done), &["a Succeeded 0", "b Succeeded 0 free"], "free a");
}

#[test]
fn too_many_failures_end_it_when_the_last_pod_is_gone() {
    let spec = json!({"backoffLimit": 0});
    check(
        &job(spec.clone(), json!({})),
        &["a Failed 1", "b Running"],
        "-b [failed:a FailureTarget/BackoffLimitExceeded] free a",
    );
    let target = json!({"failed": 1, "conditions": [{"type": "FailureTarget", "status": "True",
        "reason": "BackoffLimitExceeded", "message": "m"}]});
    check(
        &job(spec.clone(), target.clone()),
        &["b Running ending"],
        "[failed=1 failed:b FailureTarget/BackoffLimitExceeded] free b",
    );
    check(
        &job(spec, target),
        &[],
        "[failed=1 FailureTarget/BackoffLimitExceeded Failed/BackoffLimitExceeded]",
    );
}

#[test]
fn failures_are_followed_by_a_pause() {
    let mut late = Pod::clone(&pod("a Failed 1"));
    let status = late.status.as_mut().expect("a status");
    let state = &mut status.container_statuses.as_mut().expect("one")[0].state;
    let ended = state.as_mut().expect("a state").terminated.as_mut().expect("ended");
    ended.finished_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let job = job(json!({"parallelism": 1}), json!({}));
    let plan = plan(&job, vec![Arc::new(late)], true, now());
    assert_eq!(told(&plan), "[failed:a] free a");
    assert_eq!(plan.again, Some(std::time::Duration::from_secs(10)));
}

#[test]
fn indexes_are_each_done_once() {
    let indexed = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2});
    check(&job(indexed.clone(), json!({})), &[], "+0 +1 []");
    check(
        &job(indexed.clone(), json!({"completedIndexes": "0", "succeeded": 1})),
        &["a Running i1", "b Running i1"],
        "-b +2 [succeeded=1 completedIndexes=0]",
    );
    let met = json!({"successPolicy": {"rules": [{"succeededIndexes": "0,2"}]}});
    let mut with_policy = indexed.clone();
    merge(&mut with_policy, met);
    check(
        &job(with_policy, json!({"completedIndexes": "0"})),
        &["a Succeeded 0 i2", "b Running i1"],
        "-b [succeeded=2 completedIndexes=0,2 SuccessCriteriaMet/SuccessPolicy] free a",
    );
    let mut each = indexed;
    merge(&mut each, json!({"backoffLimitPerIndex": 1, "completions": 2, "backoffLimit": 100}));
    check(
        &job(each.clone(), json!({})),
        &["a Failed 1 i0 n0", "b Running i1"],
        "+0 [failed:a] free a",
    );
    check(
        &job(each.clone(), json!({})),
        &["a Failed 1 i0 n1", "b Running i1"],
        "[failedIndexes=0 failed:a] free a",
    );
    check(
        &job(each, json!({"failed": 2, "failedIndexes": "0", "completedIndexes": "1"})),
        &[],
        "[succeeded=1 failed=2 completedIndexes=1 failedIndexes=0 FailureTarget/FailedIndexes Failed/FailedIndexes]",
    );
}

#[test]
fn failures_are_judged_by_policy() {
    let rules = |rules: Value| json!({"podFailurePolicy": {"rules": rules}, "podReplacementPolicy": "Failed"});
    let codes = |action: &str| json!([{"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]);
    check(
        &job(rules(codes("FailJob")), json!({})),
        &["a Failed 42", "b Running"],
        "-b [failed:a FailureTarget/PodFailurePolicy] free a",
    );
    check(&job(rules(codes("Ignore")), json!({})), &["a Failed 42", "b Running"], "+ [] free a");
    check(
        &job(rules(codes("FailJob")), json!({})),
        &["a Failed 1", "b Running"],
        "+ [failed:a] free a",
    );
    // Not replaced while it is ending.
    check(&job(rules(codes("FailJob")), json!({})), &["a Running ending", "b Running"], "[]");
}

#[test]
fn a_suspended_job_has_no_pods() {
    let suspended = json!({"suspend": true});
    check(&job(suspended.clone(), json!({})), &["a Running"], "-a [Suspended/JobSuspended]");
    let status = json!({"conditions": [{"type": "Suspended", "status": "True"}]});
    check(&job(json!({}), status), &[], "+ + [!Suspended]");
}

#[test]
fn orphans_are_held_and_strays_let_go() {
    let mut orphan = Pod::clone(&pod("a Running free"));
    orphan.metadata.owner_references = None;
    let mut stray = Pod::clone(&pod("b Running"));
    stray.metadata.labels = None;
    let all = vec![Arc::new(orphan), Arc::new(stray)];
    let told = told(&plan(&job(json!({"parallelism": 1}), json!({})), all, true, now()));
    assert_eq!(told, "hold a free b []");
}

#[test]
fn a_deadline_is_kept() {
    let spec = json!({"activeDeadlineSeconds": 300});
    check(&job(spec, json!({})), &["a Running"], "-a [FailureTarget/DeadlineExceeded]");
    let spec = json!({"activeDeadlineSeconds": 660});
    let plan = plan(&job(spec, json!({})), vec![pod("a Running")], true, now());
    assert_eq!(plan.again, Some(std::time::Duration::from_secs(60)));
}
