//! What a deployment's status and conditions say of its rollout.

use std::sync::Arc;
use std::time::Duration;

use client::lean::Pod;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{Rollout, available, size};
use crate::action::{Action, Plan};
use crate::pods;

impl Rollout<'_> {
    pub(super) fn report(&self, pods: &[Arc<Pod>], plan: &mut Plan) {
        let mut status = self.status(pods);
        if self.collision {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
        let old = self.deployment.status.clone().unwrap_or_default();
        self.conditions(&old, &mut status, plan);
        if Some(&status) != self.deployment.status.as_ref() {
            let changed = Deployment { status: Some(status), ..self.deployment.clone() };
            plan.push(Action::update_status(&changed));
        }
    }

    fn status(&self, pods: &[Arc<Pod>]) -> DeploymentStatus {
        let sum = |f: &dyn Fn(&ReplicaSet) -> i32| self.all().map(|s| f(s)).sum::<i32>();
        let of = |s: &ReplicaSet| s.status.clone().unwrap_or_default();
        let replicas = sum(&|s| of(s).replicas);
        let available = sum(&|s| available(s));
        let uids: Vec<&str> = self.all().filter_map(|s| s.metadata.uid.as_deref()).collect();
        let ending = pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::is_finished(p))
            .filter(|p| {
                crate::owners::controller_of(&p.metadata)
                    .is_some_and(|r| uids.contains(&r.uid.as_str()))
            })
            .count();
        let non_zero = |n: i32| Some(n).filter(|n| *n != 0);
        let old = self.deployment.status.clone().unwrap_or_default();
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: non_zero(replicas),
            updated_replicas: non_zero(self.new.as_ref().map_or(0, |s| of(s).replicas)),
            ready_replicas: non_zero(sum(&|s| of(s).ready_replicas.unwrap_or(0))),
            available_replicas: non_zero(available),
            unavailable_replicas: non_zero((sum(&|s| size(s)) - available).max(0)),
            terminating_replicas: Some(i32::try_from(ending).unwrap_or(i32::MAX)),
            collision_count: old.collision_count,
            conditions: old.conditions,
        }
    }

    fn conditions(&self, old: &DeploymentStatus, status: &mut DeploymentStatus, plan: &mut Plan) {
        let conditions = status.conditions.get_or_insert_default();
        let have = status.available_replicas.unwrap_or(0);
        let (good, reason, message) = match have >= self.wanted() - self.unavailable() {
            true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
            false => (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            ),
        };
        set_condition(conditions, "Available", good, reason, message, self.now);
        let Some(deadline) = self.spec.progress_deadline_seconds.filter(|d| *d != i32::MAX) else {
            conditions.retain(|c| c.type_ != "Progressing");
            return;
        };
        let name = self.new.as_ref().map(|s| s.name_any());
        let set = match &name {
            Some(name) => format!("ReplicaSet \"{name}\""),
            None => format!("Deployment \"{}\"", self.deployment.name_any()),
        };
        if self.spec.paused == Some(true) {
            let have = conditions.iter().find(|c| c.type_ == "Progressing");
            if have.is_none_or(|c| c.reason.as_deref() != Some("DeploymentPaused")) {
                let message = "Deployment is paused";
                set_condition(
                    conditions,
                    "Progressing",
                    "Unknown",
                    "DeploymentPaused",
                    message,
                    self.now,
                );
            }
            return;
        }
        if self.complete() && !self.resized() {
            let message = format!("{set} has successfully progressed.");
            set_condition(
                conditions,
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                &message,
                self.now,
            );
            return;
        }
        let updated = |s: &DeploymentStatus| s.updated_replicas.unwrap_or(0);
        let old_ones = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - updated(s);
        let moved = updated(status) > updated(old)
            || old_ones(&DeploymentStatus { conditions: None, ..old.clone() })
                > status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
            || status.ready_replicas > old.ready_replicas
            || status.available_replicas > old.available_replicas;
        let conditions = status.conditions.get_or_insert_default();
        let current = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
        let finished =
            current.as_ref().and_then(|c| c.reason.as_deref()) == Some("NewReplicaSetAvailable");
        let resumed =
            current.as_ref().and_then(|c| c.reason.as_deref()) == Some("DeploymentPaused");
        match current {
            Some(c) if !moved && !finished && !resumed => {
                self.deadline(&c, deadline, &set, conditions, plan);
            }
            _ => {
                let (reason, message) = match self.new {
                    None => (
                        "NewReplicaSetCreated",
                        format!("Created new replica set \"{}\"", self.deployment.name_any()),
                    ),
                    Some(_) => ("ReplicaSetUpdated", format!("{set} is progressing.")),
                };
                // The clock of the deadline starts again with each step.
                conditions.retain(|c| c.type_ != "Progressing" || c.status == "True");
                set_condition(conditions, "Progressing", "True", reason, &message, self.now);
                if let Some(c) = conditions.iter_mut().find(|c| c.type_ == "Progressing") {
                    c.last_update_time = Some(Time(self.now));
                }
                plan.again(Duration::from_secs(u64::try_from(deadline).unwrap_or(600) + 1));
            }
        }
    }

    fn deadline(
        &self,
        current: &DeploymentCondition,
        deadline: i32,
        set: &str,
        conditions: &mut Vec<DeploymentCondition>,
        plan: &mut Plan,
    ) {
        let since = current.last_update_time.as_ref().map_or(self.now, |t| t.0);
        let limit = Duration::from_secs(u64::try_from(deadline).unwrap_or(600));
        let age = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        match limit.checked_sub(age) {
            Some(left) if !left.is_zero() => plan.again(left + Duration::from_secs(1)),
            _ => {
                let message = format!("{set} has timed out progressing.");
                set_condition(
                    conditions,
                    "Progressing",
                    "False",
                    "ProgressDeadlineExceeded",
                    &message,
                    self.now,
                );
            }
        }
    }
}

/// Sets a condition; its times change only with what they are about.
fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    ty: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let fresh = DeploymentCondition {
        type_: ty.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match conditions.iter_mut().find(|c| c.type_ == ty) {
        Some(have)
            if have.status == status
                && have.reason.as_deref() == Some(reason)
                && have.message.as_deref() == Some(message) => {}
        Some(have) => {
            let since = have.last_transition_time.clone().filter(|_| have.status == status);
            *have = fresh;
            if since.is_some() {
                have.last_transition_time = since;
            }
        }
        None => conditions.push(fresh),
    }
}
