//! What becomes of a volume.

use client::events::EventType;
use client::volumes::{BOUND_BY_CONTROLLER, reserve, same_volume_mode, volume_name};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use serde_json::json;

use super::{change, change_status, has, phase_of, spec};
use crate::action::{Action, Plan};

const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";

fn phase(volume: &PersistentVolume, phase: &str, message: &str, plan: &mut Plan) {
    if phase_of(volume) != phase {
        let message = Some(message).filter(|m| !m.is_empty());
        plan.push(change_status(volume, json!({"phase": phase, "message": message})));
    }
}

/// Nobody has it.
pub(super) fn available(volume: &PersistentVolume) -> Plan {
    let mut plan = Plan::default();
    phase(volume, "Available", "", &mut plan);
    plan
}

/// The claim that it names is there.
pub(super) fn claimed(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Plan {
    let mut plan = Plan::default();
    let named = volume_name(claim);
    if named.is_empty() {
        if !same_volume_mode(volume, claim) {
            let (claim_name, name) = (claim.name_any(), volume.name_any());
            let said = format!(
                "Cannot bind PersistentVolume to requested PersistentVolumeClaim {claim_name:?} due \
                 to incompatible volumeMode."
            );
            plan.push(Action::event(volume, EventType::Warning, "VolumeMismatch", said));
            let said = format!(
                "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to \
                 incompatible volumeMode."
            );
            plan.push(Action::event(claim, EventType::Warning, "VolumeMismatch", said));
        }
        // The claim's own plan finishes what was begun.
        return plan;
    }
    if named == volume.name_any() {
        phase(volume, "Bound", "", &mut plan);
        return plan;
    }
    // Its claim has another.
    let policy = reclaim_policy(volume);
    if has(&volume.metadata, PROVISIONED_BY) && policy == "Delete" {
        return released(volume);
    }
    plan.push(match has(&volume.metadata, BOUND_BY_CONTROLLER) {
        true => change(
            volume,
            json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}},
                "spec": {"claimRef": null}}),
        ),
        // Who made it wants it bound to that claim: it stays reserved.
        false => change(volume, json!({"spec": {"claimRef": {"uid": null}}})),
    });
    plan
}

fn reclaim_policy(volume: &PersistentVolume) -> &str {
    let policy = spec(volume).and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    policy.unwrap_or("Retain")
}

/// Its claim is gone for good.
pub(super) fn released(volume: &PersistentVolume) -> Plan {
    let mut plan = Plan::default();
    if !matches!(phase_of(volume), "Released" | "Failed") {
        phase(volume, "Released", "", &mut plan);
        return plan;
    }
    let failed = match reclaim_policy(volume) {
        "Retain" => None,
        "Delete" if external(volume) => None,
        "Delete" => Some((
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin \
                 matched",
                volume.name_any()
            ),
        )),
        "Recycle" => {
            Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()))
        }
        _ => Some((
            "VolumeUnknownReclaimPolicy",
            "Volume has unrecognized PersistentVolumeReclaimPolicy".to_owned(),
        )),
    };
    if let Some((reason, message)) = failed
        && phase_of(volume) != "Failed"
    {
        plan.push(change_status(volume, json!({"phase": "Failed", "message": message})));
        plan.push(Action::event(volume, EventType::Warning, reason, message));
    }
    plan
}

/// Whether somebody else deletes what is behind it.
fn external(volume: &PersistentVolume) -> bool {
    let csi = spec(volume).is_some_and(|s| s.csi.is_some());
    let by = volume.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY));
    csi || has(&volume.metadata, MIGRATED_TO)
        || by.is_some_and(|name| !name.starts_with("kubernetes.io/"))
}

/// The reference that binds a volume to a claim, and the note that it was bound here.
pub(super) fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Action> {
    reserve(volume, claim).map(|patch| change(volume, patch))
}

pub(super) fn bound(volume: &PersistentVolume, plan: &mut Plan) {
    phase(volume, "Bound", "", plan);
}
