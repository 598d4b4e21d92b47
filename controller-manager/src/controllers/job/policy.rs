//! What a failed pod means for its job (podFailurePolicy, KEP-3329), and which successes are enough
//! (successPolicy, KEP-3998).

use std::collections::BTreeSet;

use client::lean::Pod;
use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
};

use super::indexes;
use crate::pods::phase;

/// What a failure counts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Counts,
    Ignored,
    FailsIndex,
    /// With the message.
    FailsJob(String),
}

/// Judges a failed pod.
pub fn judge(spec: &JobSpec, pod: &Pod) -> Failure {
    let rules = spec.pod_failure_policy.iter().flat_map(|p| &p.rules);
    if phase(pod) != "Failed" {
        return Failure::Counts;
    }
    let meta = &pod.metadata;
    let name = format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    );
    for (at, rule) in rules.enumerate() {
        let action = rule.action.as_str();
        let text = |what: String| format!("{what} matching {action} rule at index {at}");
        let message = if let Some(codes) = &rule.on_exit_codes {
            exited(pod, codes).map(|(container, code)| {
                text(format!("Container {container} for pod {name} failed with exit code {code}"))
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            condition(pod, patterns).map(|found| text(format!("Pod {name} has condition {found}")))
        };
        let Some(message) = message else { continue };
        return match action {
            "Ignore" => Failure::Ignored,
            "FailIndex" => Failure::FailsIndex,
            "FailJob" => Failure::FailsJob(message),
            _ => Failure::Counts,
        };
    }
    Failure::Counts
}

fn exited(pod: &Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(String, i32)> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let ended = all.filter_map(|c| {
        let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
        Some((c.name.clone(), code))
    });
    let mut matching = ended.filter(|(name, code)| {
        let named = wanted.container_name.as_ref().is_none_or(|n| n == name);
        let listed = wanted.values.contains(code);
        // Zero is no failure, whatever the rule says.
        named && *code != 0 && listed == (wanted.operator == "In")
    });
    matching.next()
}

fn condition<'a>(
    pod: &Pod,
    patterns: &'a [PodFailurePolicyOnPodConditionsPattern],
) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    let has = |p: &&PodFailurePolicyOnPodConditionsPattern| {
        let status = p.status.as_deref().unwrap_or("True");
        conditions.iter().any(|c| c.type_ == p.type_ && c.status == status)
    };
    patterns.iter().find(has).map(|p| p.type_.as_str())
}

/// Whether the successes are enough; the message.
pub fn enough(spec: &JobSpec, succeeded: &BTreeSet<i32>) -> Option<String> {
    let rules = &spec.success_policy.as_ref()?.rules;
    let limit = spec.completions.unwrap_or(0);
    let met = rules.iter().position(|rule| {
        let among: Option<BTreeSet<i32>> =
            rule.succeeded_indexes.as_ref().map(|text| indexes::parse(text, limit));
        let have = match &among {
            Some(among) => among.intersection(succeeded).count(),
            None => succeeded.len(),
        };
        match (&among, rule.succeeded_count) {
            (_, Some(count)) => have >= usize::try_from(count).unwrap_or(0),
            (Some(among), None) => have == among.len(),
            (None, None) => false,
        }
    });
    met.map(|at| format!("Matched rules at index {at}"))
}
