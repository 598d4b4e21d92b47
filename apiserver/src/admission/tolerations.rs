//! DefaultTolerationSeconds: pods stay for a while on nodes that are gone; and how tolerations
//! are merged.

use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use serde_json::json;

use super::{Attributes, Plugin};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

pub struct DefaultTolerationSeconds {
    /// `--default-not-ready-toleration-seconds`
    pub not_ready: i64,
    /// `--default-unreachable-toleration-seconds`
    pub unreachable: i64,
}

impl Default for DefaultTolerationSeconds {
    fn default() -> Self {
        Self { not_ready: 300, unreachable: 300 }
    }
}

fn field<'a>(toleration: &'a Value, name: &str) -> &'a str {
    object::str_at(toleration, &[name])
}

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object else { return Ok(()) };
        if !a.resource.group.is_empty()
            || a.resource.resource != "pods"
            || !a.subresource.is_empty()
        {
            return Ok(());
        }
        let mut tolerations = object::list_at(pod, &["spec", "tolerations"]).to_vec();
        let own = tolerations.len();
        for (key, seconds) in [(NOT_READY, self.not_ready), (UNREACHABLE, self.unreachable)] {
            let tolerated = tolerations.iter().take(own).any(|t| {
                (field(t, "key").is_empty() || field(t, "key") == key)
                    && matches!(field(t, "effect"), "" | "NoExecute")
            });
            if !tolerated {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": seconds,
                }));
            }
        }
        if tolerations.len() > own {
            object::set(pod, &["spec", "tolerations"], tolerations);
        }
        Ok(())
    }
}

/// Both lists in one, without those that another is a superset of.
pub fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let later = all.iter().skip(i + 1);
        let redundant = merged.iter().any(|m| is_superset(m, toleration))
            || later.filter(|t| *t != toleration).any(|t| is_superset(t, toleration));
        if !redundant {
            merged.push((*toleration).clone());
        }
    }
    merged
}

/// Whether `wide` tolerates all that `narrow` does.
fn is_superset(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let all_keys = field(wide, "key").is_empty() && field(wide, "operator") == "Exists";
    if field(wide, "key") != field(narrow, "key") && !all_keys {
        return false;
    }
    let effect = field(wide, "effect");
    if !effect.is_empty() && effect != field(narrow, "effect") {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = object::int_at(wide, &["tolerationSeconds"])
        && object::int_at(narrow, &["tolerationSeconds"]).is_none_or(|n| n > seconds)
    {
        return false;
    }
    match field(wide, "operator") {
        "" | "Equal" => {
            field(narrow, "operator") == "Equal" && field(wide, "value") == field(narrow, "value")
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;

    #[tokio::test]
    async fn pods_tolerate_lost_nodes_for_a_while() {
        let exists = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let mine =
            |key: &str, effect: &str| json!({"key": key, "operator": "Exists", "effect": effect});
        let cases = [
            (json!([]), json!([exists(NOT_READY), exists(UNREACHABLE)])),
            (
                json!([mine(NOT_READY, "NoExecute")]),
                json!([mine(NOT_READY, "NoExecute"), exists(UNREACHABLE)]),
            ),
            (
                json!([mine(NOT_READY, "NoSchedule")]),
                json!([mine(NOT_READY, "NoSchedule"), exists(NOT_READY), exists(UNREACHABLE)]),
            ),
            (json!([{"operator": "Exists"}]), json!([{"operator": "Exists"}])),
        ];
        for (has, want) in cases {
            let object = json!({"spec": {"tolerations": has}});
            let write = Write { object, ..Write::default() };
            let got = write.run(&DefaultTolerationSeconds::default()).await.expect("admitted").0;
            assert_eq!(got["spec"]["tolerations"], want);
        }
    }

    #[test]
    fn merging_keeps_the_wider() {
        let t = |key: &str, op: &str, value: &str, effect: &str| json!({"key": key, "operator": op, "value": value, "effect": effect});
        let all = json!({"operator": "Exists"});
        let a = t("a", "Equal", "1", "NoSchedule");
        let any_a = t("a", "Exists", "", "");
        let b = t("b", "Equal", "1", "NoSchedule");
        let secs = |n: i64| json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": n});
        let cases = [
            (vec![a.clone()], vec![a.clone()], vec![a.clone()]),
            (vec![a.clone()], vec![b.clone()], vec![a.clone(), b.clone()]),
            (vec![a.clone()], vec![any_a.clone()], vec![any_a.clone()]),
            (vec![any_a.clone()], vec![a.clone()], vec![any_a.clone()]),
            (vec![a, b], vec![all.clone()], vec![all]),
            (vec![secs(5)], vec![secs(9)], vec![secs(9)]),
        ];
        for (first, second, want) in cases {
            assert_eq!(merge(&first, &second), want);
        }
    }
}
