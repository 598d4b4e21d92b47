//! Which pods end when as the node shuts down, and in how much time: pure (KEP-2712).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::objects::spec;

/// Pods whose priority is at least this end together, after those of lower stages
/// (`shutdownGracePeriodByPodPriority`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Stage {
    pub priority: i32,
    /// How long the next stage waits for them at most.
    #[serde(rename = "shutdownGracePeriodSeconds")]
    pub seconds: i64,
}

impl Stage {
    pub fn patience(self) -> Duration {
        Duration::from_secs(self.seconds.max(0).unsigned_abs())
    }
}

/// From this priority on pods are critical (upstream's `SystemCriticalPriority`).
const CRITICAL: i32 = 2_000_000_000;

/// The stages that a configuration asks for, the first to end first; none: shutdown is not waited
/// for. `whole` is `shutdownGracePeriod`, of which the last `critical` are for critical pods.
pub fn stages(whole: Duration, critical: Duration, by_priority: &[Stage]) -> Vec<Stage> {
    let mut stages = by_priority.to_vec();
    if stages.is_empty() && !whole.is_zero() {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let others = whole.saturating_sub(critical);
        stages.push(Stage { priority: 0, seconds: seconds(others) });
        stages.push(Stage { priority: CRITICAL, seconds: seconds(critical.min(whole)) });
    }
    stages.sort_by_key(|stage| stage.priority);
    stages
}

/// How long all stages take at most.
pub fn whole(stages: &[Stage]) -> Duration {
    stages.iter().fold(Duration::ZERO, |sum, stage| sum.saturating_add(stage.patience()))
}

/// The stages that have pods, with these. A priority between those of two stages is of the lower
/// one, one below all of the lowest.
pub fn groups(stages: &[Stage], pods: Vec<Arc<Pod>>) -> Vec<(Stage, Vec<Arc<Pod>>)> {
    let mut groups: Vec<(Stage, Vec<Arc<Pod>>)> =
        stages.iter().map(|stage| (*stage, Vec::new())).collect();
    for pod in pods {
        let priority = spec(&pod).priority.unwrap_or(0);
        let lower = stages.partition_point(|stage| stage.priority < priority);
        let own = match stages.get(lower) {
            Some(stage) if stage.priority == priority => lower,
            _ => lower.saturating_sub(1),
        };
        if let Some((_, group)) = groups.get_mut(own) {
            group.push(pod);
        }
    }
    groups.retain(|(_, pods)| !pods.is_empty());
    groups
}

/// The seconds that a pod has to end in a stage: its own, if these are fewer.
pub fn grace(pod: &Pod, stage: Stage) -> i64 {
    let own = spec(pod).termination_grace_period_seconds;
    own.map_or(stage.seconds, |own| own.min(stage.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::name;
    use serde_json::json;

    fn stage(priority: i32, seconds: i64) -> Stage {
        Stage { priority, seconds }
    }

    fn pod(name: &str, priority: Option<i32>, grace: Option<i64>) -> Arc<Pod> {
        let spec = json!({"priority": priority, "terminationGracePeriodSeconds": grace,
            "containers": []});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    #[test]
    fn stages_are_of_either_form() {
        let secs = Duration::from_secs;
        let millis = Duration::from_millis;
        let by_priority = [stage(10, 5), stage(0, 7)];
        for (whole_time, critical, by_priority, want, sum) in [
            (secs(0), secs(0), &[][..], vec![], 0),
            (secs(30), secs(10), &[], vec![stage(0, 20), stage(CRITICAL, 10)], 30),
            (secs(30), secs(0), &[], vec![stage(0, 30), stage(CRITICAL, 0)], 30),
            (secs(30), secs(30), &[], vec![stage(0, 0), stage(CRITICAL, 30)], 30),
            // Each has whole seconds.
            (millis(5500), secs(2), &[], vec![stage(0, 3), stage(CRITICAL, 2)], 5),
            (secs(0), secs(0), &by_priority, vec![stage(0, 7), stage(10, 5)], 12),
        ] {
            let got = stages(whole_time, critical, by_priority);
            assert_eq!(got, want, "{whole_time:?} {critical:?}");
            assert_eq!(whole(&got), secs(sum));
        }
    }

    #[test]
    fn pods_end_with_the_stage_at_or_below_their_priority() {
        let stages = [stage(-5, 1), stage(100, 2), stage(100, 3), stage(1000, 4)];
        for (priority, want) in [
            (Some(-9), stage(-5, 1)),
            (Some(-5), stage(-5, 1)),
            (None, stage(-5, 1)),
            (Some(99), stage(-5, 1)),
            // Of two that are alike, the first.
            (Some(100), stage(100, 2)),
            (Some(999), stage(100, 3)),
            (Some(1000), stage(1000, 4)),
            (Some(i32::MAX), stage(1000, 4)),
        ] {
            let groups = groups(&stages, vec![pod("p", priority, None)]);
            let got: Vec<Stage> = groups.iter().map(|(stage, _)| *stage).collect();
            assert_eq!(got, [want], "{priority:?}");
        }
    }

    #[test]
    fn groups_are_in_order_and_none_is_empty() {
        let stages = [stage(0, 20), stage(50, 20), stage(CRITICAL, 10)];
        let pods = vec![pod("dns", Some(CRITICAL), None), pod("a", None, None)];
        let more = [pod("proxy", Some(CRITICAL + 1000), None), pod("b", Some(7), None)];
        let groups = groups(&stages, pods.into_iter().chain(more).collect());
        let names: Vec<(i32, Vec<&str>)> = groups
            .iter()
            .map(|(stage, pods)| (stage.priority, pods.iter().map(|p| name(p)).collect()))
            .collect();
        assert_eq!(names, [(0, vec!["a", "b"]), (CRITICAL, vec!["dns", "proxy"])]);
    }

    #[test]
    fn a_pod_has_its_own_time_or_less() {
        for (own, seconds, want) in [
            (None, 20, 20),
            (Some(5), 20, 5),
            (Some(60), 20, 20),
            (Some(0), 20, 0),
            (Some(5), 0, 0),
        ] {
            assert_eq!(grace(&pod("p", None, own), stage(0, seconds)), want, "{own:?} {seconds}");
        }
    }
}
