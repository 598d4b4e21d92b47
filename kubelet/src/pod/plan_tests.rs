//! Tables of plans: a pod, what the runtime has, and what is to be done.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::plan::{KillReason, Plan, Verdicts, plan};
use crate::objects::find_container;
use crate::runtime::labels::container_hash;
use crate::runtime::model::SandboxView;
use crate::runtime::{ContainerView, PodView, State};

#[derive(Default)]
struct Found(HashMap<(&'static str, &'static str), bool>);

impl Verdicts for Found {
    fn liveness(&self, id: &str) -> Option<bool> {
        self.0.iter().find(|((kind, i), _)| *kind == "liveness" && *i == id).map(|(_, v)| *v)
    }

    fn startup(&self, id: &str) -> Option<bool> {
        self.0.iter().find(|((kind, i), _)| *kind == "startup" && *i == id).map(|(_, v)| *v)
    }
}

fn pod(policy: &str, init: Value, containers: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"uid": "u"},
        "spec": {"restartPolicy": policy, "initContainers": init, "containers": containers},
    }))
    .unwrap()
}

fn two(policy: &str) -> Pod {
    pod(policy, json!([]), json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]))
}

/// `name state [exit code]`, newest first; ids are `name-index`.
fn view(pod: &Pod, ready: bool, containers: &[(&str, State, i32)]) -> PodView {
    let container = |(index, (name, state, code)): (usize, &(&str, State, i32))| ContainerView {
        id: format!("{name}-{index}"),
        name: (*name).to_owned(),
        state: *state,
        exit_code: *code,
        hash: find_container(pod, name).map_or(0, |c| container_hash(&c)),
        ..ContainerView::default()
    };
    PodView {
        uid: "u".into(),
        sandboxes: vec![SandboxView {
            id: "s".into(),
            attempt: 3,
            ready,
            ips: vec!["10.0.0.1".into()],
            ..SandboxView::default()
        }],
        containers: containers.iter().enumerate().map(container).collect(),
        ..PodView::default()
    }
}

fn short(plan: &Plan) -> String {
    let mut words = Vec::new();
    if plan.kill_pod {
        words.push("kill-pod".to_owned());
    }
    if plan.create_sandbox {
        words.push(format!("sandbox-{}", plan.attempt));
    }
    words.extend(plan.kill.iter().map(|k| format!("kill:{}", k.id)));
    words.extend(plan.init.iter().map(|i| format!("init:{i}")));
    words.extend(plan.start.iter().map(|i| format!("start:{i}")));
    words.join(" ")
}

use State::{Created, Exited, Running, Unknown};

/// Policy, containers, what is planned.
type Case = (&'static str, &'static [(&'static str, State, i32)], &'static str);

#[test]
fn containers_are_started_and_restarted_by_policy() {
    let cases: &[Case] = &[
        ("Always", &[], "start:0 start:1"),
        ("Always", &[("a", Running, 0)], "start:1"),
        ("Always", &[("a", Running, 0), ("b", Running, 0)], ""),
        ("Always", &[("a", Exited, 0), ("b", Running, 0)], "start:0"),
        ("OnFailure", &[("a", Exited, 0), ("b", Exited, 1)], "start:1"),
        ("OnFailure", &[("a", Exited, 0), ("b", Exited, 0)], "kill-pod"),
        ("Never", &[("a", Exited, 1), ("b", Running, 0)], ""),
        ("Never", &[("a", Exited, 1), ("b", Exited, 0)], "kill-pod"),
        ("Never", &[("a", Created, 0), ("b", Running, 0)], "start:0"),
        ("Always", &[("a", Unknown, 0), ("b", Running, 0)], "kill:a-0 start:0"),
        ("Always", &[("a", Running, 0), ("a", Exited, 1), ("b", Running, 0)], ""),
    ];
    for (policy, containers, want) in cases {
        let pod = two(policy);
        let found = plan(&pod, &view(&pod, true, containers), &Found::default());
        assert_eq!(short(&found), *want, "{policy} {containers:?}");
    }
}

#[test]
fn a_lost_sandbox_is_made_again_unless_the_pod_is_over() {
    let cases: &[Case] = &[
        ("Always", &[("a", Exited, 0)], "kill-pod sandbox-4 start:0 start:1"),
        ("OnFailure", &[("a", Exited, 0), ("b", Exited, 1)], "kill-pod sandbox-4 start:1"),
        ("OnFailure", &[("a", Exited, 0), ("b", Exited, 0)], "kill-pod"),
        ("Never", &[("a", Exited, 0)], "kill-pod"),
        ("Never", &[], "kill-pod sandbox-4 start:0 start:1"),
    ];
    for (policy, containers, want) in cases {
        let pod = two(policy);
        let found = plan(&pod, &view(&pod, false, containers), &Found::default());
        assert_eq!(short(&found), *want, "{policy} {containers:?}");
    }
    let pod = two("Always");
    let nothing = plan(&pod, &PodView::default(), &Found::default());
    assert_eq!(short(&nothing), "kill-pod sandbox-0 start:0 start:1");
}

#[test]
fn init_containers_run_in_turn_and_sidecars_stay() {
    let init = json!([
        {"name": "i", "image": "i"},
        {"name": "s", "image": "i", "restartPolicy": "Always"},
        {"name": "j", "image": "i"},
    ]);
    let with = |policy: &str| pod(policy, init.clone(), json!([{"name": "a", "image": "i"}]));
    let cases: &[Case] = &[
        ("Always", &[], "init:0"),
        ("Always", &[("i", Running, 0)], ""),
        ("Always", &[("i", Exited, 0)], "init:1"),
        ("Always", &[("i", Exited, 1)], "init:0"),
        ("Never", &[("i", Exited, 1)], "kill-pod"),
        ("Always", &[("s", Running, 0), ("i", Exited, 0)], "init:2"),
        ("Always", &[("j", Exited, 0), ("s", Running, 0), ("i", Exited, 0)], "start:0"),
        ("Always", &[("j", Exited, 1), ("s", Running, 0)], "init:2"),
        ("Always", &[("a", Running, 0), ("s", Exited, 0)], "init:1"),
        ("Always", &[("a", Running, 0)], "init:1"),
        ("Never", &[("a", Exited, 0), ("s", Running, 0), ("j", Exited, 0)], "kill-pod"),
    ];
    for (policy, containers, want) in cases {
        let pod = with(policy);
        let found = plan(&pod, &view(&pod, true, containers), &Found::default());
        assert_eq!(short(&found), *want, "{policy} {containers:?}");
    }
    let pod = with("Always");
    let new = plan(&pod, &PodView::default(), &Found::default());
    assert_eq!(short(&new), "kill-pod sandbox-0 init:0");
}

#[test]
fn probes_and_changes_kill() {
    let pod = two("Always");
    let both = [("a", Running, 0), ("b", Running, 0)];
    let found = Found(HashMap::from([(("liveness", "a-0"), false), (("startup", "b-1"), false)]));
    let killed = plan(&pod, &view(&pod, true, &both), &found);
    assert_eq!(short(&killed), "kill:a-0 kill:b-1 start:0 start:1");
    assert_eq!(killed.kill[0].message, "Container a failed liveness probe, will be restarted");
    assert_eq!(killed.kill[1].reason, KillReason::StartupProbe);

    let never = two("Never");
    let killed = plan(&never, &view(&never, true, &both), &found);
    assert_eq!(short(&killed), "kill-pod kill:a-0 kill:b-1");

    let mut changed = view(&pod, true, &both);
    changed.containers[1].hash ^= 1;
    assert_eq!(short(&plan(&pod, &changed, &Found::default())), "kill:b-1 start:1");
}

#[test]
fn rules_go_before_the_policy() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = pod(
        "Never",
        json!([]),
        json!([
            {"name": "a", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules},
            {"name": "b", "image": "i"},
        ]),
    );
    for (code, want) in [(42, "start:0"), (1, "")] {
        let view = view(&pod, true, &[("a", Exited, code), ("b", Running, 0)]);
        assert_eq!(short(&plan(&pod, &view, &Found::default())), want, "{code}");
    }
}

#[test]
fn hashes_are_upstreams() {
    // Computed by upstream's own hashing (spew, FNV-1a) for this name and image.
    let container = serde_json::from_value(json!({"name": "a", "image": "i"})).unwrap();
    assert_eq!(container_hash(&container), 2_950_873_652);
}
