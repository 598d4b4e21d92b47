//! Quotas kept in memory, and writes against them.

use std::sync::Arc;

use apimachinery::{Value, object};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;

use super::super::testing::Write;
use super::*;
use crate::authorization::testing::Memory;

/// Remembers what was spent; refuses the first charges.
#[derive(Default)]
struct Spent {
    all: Mutex<Vec<String>>,
    refuse: Mutex<usize>,
}

#[async_trait]
impl Ledger for Spent {
    async fn spend(&self, quota: &Value, used: Amounts) -> Result<bool, ApiError> {
        let mut refuse = self.refuse.lock();
        if *refuse > 0 {
            *refuse -= 1;
            return Ok(false);
        }
        self.all.lock().push(format!("{} {}", object::name(quota), to_list(&used)));
        Ok(true)
    }
}

fn quota(hard: Value, used: Value, spec: Value) -> Value {
    json!({"metadata": {"name": "q", "namespace": "a"}, "spec": spec,
        "status": {"hard": hard, "used": used}})
}

fn plugin(quota: Value, refuse: usize) -> (ResourceQuota, Arc<Spent>) {
    let lookup = Lookup { reader: Memory::with(&[("", "resourcequotas", quota)]), live: None };
    let spent = Arc::new(Spent { refuse: Mutex::new(refuse), ..Spent::default() });
    let clock: Clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    (ResourceQuota::new(lookup, spent.clone(), clock), spent)
}

fn pod(resources: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
}

#[tokio::test]
async fn what_fits_is_charged_and_what_does_not_is_refused() {
    let asks = |cpu: &str| pod(json!({"requests": {"cpu": cpu}}));
    let cases = [
        (
            quota(json!({"pods": "2", "cpu": "2"}), json!({"pods": "1", "cpu": "500m"}), json!({})),
            asks("1"),
            Ok(r#"q {"cpu":"1500m","pods":"2"}"#),
        ),
        (
            quota(json!({"pods": "1", "cpu": "1"}), json!({"pods": "1", "cpu": "500m"}), json!({})),
            asks("1"),
            Err("exceeded quota: q, requested: cpu=1,pods=1, used: cpu=500m,pods=1, limited: \
                 cpu=1,pods=1"),
        ),
        (
            quota(json!({"cpu": "1", "limits.memory": "1"}), json!({}), json!({})),
            pod(json!({})),
            Err("failed quota: q: must specify cpu for: c; limits.memory for: c"),
        ),
        (
            quota(json!({"pods": "1", "count/pods": "1"}), json!({"pods": "0"}), json!({})),
            pod(json!({})),
            Err("status unknown for quota: q, resources: count/pods,pods"),
        ),
        // Not about this pod.
        (
            quota(json!({"pods": "0"}), json!({"pods": "0"}), json!({"scopes": ["Terminating"]})),
            pod(json!({})),
            Ok(""),
        ),
        (quota(json!({"secrets": "0"}), json!({"secrets": "0"}), json!({})), asks("1"), Ok("")),
    ];
    for (quota, object, want) in cases {
        let (plugin, spent) = plugin(quota, 0);
        let write = Write { object, ..Write::default() };
        let got = write.run(&plugin).await.map(|_| spent.all.lock().join(";"));
        let want = want.map(str::to_owned).map_err(|e| format!("pods \"p\" is forbidden: {e}"));
        assert_eq!(got, want);
    }
}

#[tokio::test]
async fn updates_are_charged_for_what_grows() {
    let service = |kind: &str, ports: usize| {
        let ports = vec![json!({"port": 1}); ports];
        json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": ports}})
    };
    let hard = json!({"services": "1", "services.nodeports": "2"});
    let used = json!({"services": "1", "services.nodeports": "1"});
    for (old, new, want) in [
        (service("NodePort", 1), service("ClusterIP", 1), Ok("")),
        (
            service("NodePort", 1),
            service("NodePort", 2),
            Ok(r#"q {"services":"1","services.nodeports":"2"}"#),
        ),
        (
            service("ClusterIP", 1),
            service("NodePort", 2),
            Err(
                "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=2, \
                 used: services.nodeports=1, limited: services.nodeports=2",
            ),
        ),
    ] {
        let (plugin, spent) = plugin(quota(hard.clone(), used.clone(), json!({})), 0);
        let write = Write {
            operation: Operation::Update,
            resource: "services",
            object: new,
            old: Some(old),
            ..Write::default()
        };
        let got = write.run(&plugin).await.map(|_| spent.all.lock().join(";"));
        assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
    }
}

#[tokio::test]
async fn charges_that_are_overtaken_are_tried_again() {
    let hard = json!({"count/jobs.batch": "3"});
    for (refuse, charged) in [(2, true), (99, false)] {
        let (plugin, spent) =
            plugin(quota(hard.clone(), json!({"count/jobs.batch": "1"}), json!({})), refuse);
        let object = json!({"metadata": {"name": "j"}});
        let write = Write { group: "batch", resource: "jobs", object, ..Write::default() };
        assert_eq!(write.run(&plugin).await.is_ok(), charged);
        let want: &[&str] = if charged { &[r#"q {"count/jobs.batch":"2"}"#] } else { &[] };
        assert_eq!(*spent.all.lock(), want);
    }
}
