//! Tables of statuses: phases and states from what the runtime has.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use serde_json::{Value, json};

use super::status::{Facts, Health, Waiting, status};
use crate::objects;
use crate::runtime::model::SandboxView;
use crate::runtime::{ContainerView, PodView, State};

/// Everything is well once it runs.
struct Well;

impl Health for Well {
    fn started(&self, _: &Container, _: &str) -> bool {
        true
    }

    fn ready(&self, _: &Container, _: &str) -> bool {
        true
    }
}

fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "generation": 2},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]},
    }))
    .unwrap()
}

fn view(states: &[(State, i32)]) -> PodView {
    let container = |(index, (state, exit_code)): (usize, &(State, i32))| ContainerView {
        id: format!("id{index}"),
        name: "a".into(),
        state: *state,
        exit_code: *exit_code,
        restart_count: (states.len() - 1 - index) as u32,
        ..ContainerView::default()
    };
    PodView {
        sandboxes: vec![SandboxView {
            ready: true,
            ips: vec!["10.0.0.1".into()],
            ..SandboxView::default()
        }],
        containers: states.iter().enumerate().map(container).collect(),
        ..PodView::default()
    }
}

fn made(pod: &Pod, view: &PodView, waiting: &[(&str, &str)], terminal: bool) -> PodStatus {
    let old = objects::status(pod).clone();
    let waiting: HashMap<String, Waiting> = waiting
        .iter()
        .map(|(name, reason)| {
            ((*name).to_owned(), Waiting { reason: (*reason).to_owned(), message: String::new() })
        })
        .collect();
    status(&Facts {
        pod,
        view,
        old: &old,
        health: &Well,
        waiting: &waiting,
        terminal,
        failed: None,
        host_ips: &["192.0.2.1".to_owned()],
        resize: &crate::allocation::Standing::default(),
        recursive: false,
        now: objects::now(),
    })
}

/// `phase state ready restarts`.
fn short(status: &PodStatus) -> String {
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let state = serde_json::to_value(container.state.clone().unwrap()).unwrap();
    let words: Vec<String> = state
        .as_object()
        .unwrap()
        .iter()
        .map(|(kind, detail)| match detail.get("reason").and_then(Value::as_str) {
            Some(reason) => format!("{kind}:{reason}"),
            None => kind.clone(),
        })
        .collect();
    format!(
        "{} {} {} {}",
        status.phase.as_deref().unwrap(),
        words.join(""),
        container.ready,
        container.restart_count
    )
}

use State::{Created, Exited, Running};

type Case = (
    &'static str,
    &'static [(State, i32)],
    &'static [(&'static str, &'static str)],
    bool,
    &'static str,
);

#[test]
fn phases_and_states() {
    let cases: &[Case] = &[
        ("Always", &[], &[], false, "Pending waiting:ContainerCreating false 0"),
        ("Always", &[], &[("a", "ErrImagePull")], false, "Pending waiting:ErrImagePull false 0"),
        ("Always", &[(Created, 0)], &[], false, "Pending waiting false 0"),
        ("Always", &[(Running, 0)], &[], false, "Running running true 0"),
        (
            "Always",
            &[(Exited, 1)],
            &[("a", "CrashLoopBackOff")],
            false,
            "Running waiting:CrashLoopBackOff false 0",
        ),
        ("Always", &[(Exited, 1)], &[], false, "Running terminated false 0"),
        ("Always", &[(Running, 0), (Exited, 1)], &[], false, "Running running true 1"),
        ("Never", &[(Exited, 0)], &[], false, "Succeeded terminated false 0"),
        ("Never", &[(Exited, 2)], &[], false, "Failed terminated false 0"),
        ("OnFailure", &[(Exited, 2)], &[], false, "Running terminated false 0"),
        ("Always", &[(Exited, 0)], &[], true, "Succeeded terminated false 0"),
        ("Always", &[(Exited, 137)], &[], true, "Failed terminated false 0"),
    ];
    for (policy, states, waiting, terminal, want) in cases {
        let pod = pod(policy);
        let status = made(&pod, &view(states), waiting, *terminal);
        assert_eq!(short(&status), *want, "{policy} {states:?} {waiting:?} {terminal}");
    }
}

#[test]
fn conditions_and_addresses() {
    let pod = pod("Always");
    let status = made(&pod, &view(&[(Running, 0)]), &[], false);
    let conditions = status.conditions.unwrap();
    let names: Vec<&str> = conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        names,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    );
    assert!(conditions.iter().all(|c| c.status == "True" && c.observed_generation == Some(2)));
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));

    let waiting = made(&pod, &PodView::default(), &[], false);
    let ready = waiting.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [a]"));
}

#[test]
fn a_container_that_vanished_while_it_ran_has_ended() {
    let mut pod = pod("Never");
    pod.status = Some(made(&pod.clone(), &view(&[(Running, 0)]), &[], false));
    let gone = made(&pod, &PodView::default(), &[], true);
    assert_eq!(short(&gone), "Failed terminated:ContainerStatusUnknown false 1");
}

#[test]
fn terminal_phases_stay() {
    let mut pod = pod("Never");
    pod.status = Some(PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() });
    assert_eq!(made(&pod, &view(&[(Running, 0)]), &[], false).phase.as_deref(), Some("Succeeded"));
}
