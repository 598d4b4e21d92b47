//! Which volume a claim gets.

use std::sync::Arc;

use client::Key;
use client::events::EventType;
use client::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, asked, claim_ref, class_of_claim,
    class_of_volume, has_modes, held, is_delayed, is_for, is_free, modes, same_attributes,
    same_volume_mode, suits, volume_name,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{change, change_status, has, spec, volume};
use crate::action::{Action, Plan};

const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// What a claim's plan looks at.
pub(super) struct Look<'l> {
    pub volumes: &'l [Arc<PersistentVolume>],
    pub classes: &'l [Arc<StorageClass>],
    /// Names of pods without a node that use a claim.
    pub waiting: &'l dyn Fn(&Key) -> Vec<String>,
}

impl Look<'_> {
    fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volumes.iter().map(|v| &**v).find(|v| v.metadata.name.as_deref() == Some(name))
    }

    fn class(&self, name: &str) -> Option<&StorageClass> {
        self.classes.iter().map(|c| &**c).find(|c| c.metadata.name.as_deref() == Some(name))
    }

    /// Of several the newest, of several as new the first by name.
    fn default_class(&self) -> Option<&StorageClass> {
        let is_default = |c: &&Arc<StorageClass>| {
            let annotations = c.metadata.annotations.as_ref();
            [DEFAULT_CLASS, DEFAULT_CLASS_BETA]
                .iter()
                .any(|name| annotations.and_then(|a| a.get(*name)).is_some_and(|v| v == "true"))
        };
        let newest = |c: &&Arc<StorageClass>| {
            let made = c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(made), c.name_any())
        };
        self.classes.iter().filter(is_default).min_by_key(newest).map(|c| &**c)
    }
}

pub(super) fn plan(claim: &PersistentVolumeClaim, look: &Look<'_>) -> Plan {
    let mut plan = Plan::default();
    if has(&claim.metadata, BIND_COMPLETED) {
        bound_before(claim, look, &mut plan);
        return plan;
    }
    match volume_name(claim) {
        "" => any(claim, look, &mut plan),
        name => match look.volume(name) {
            None => pending(claim, &mut plan),
            Some(volume) => this(claim, volume, &mut plan),
        },
    }
    plan
}

fn bound_before(claim: &PersistentVolumeClaim, look: &Look<'_>, plan: &mut Plan) {
    const MISBOUND: &str = "Two claims are bound to the same volume, this one is bound incorrectly";
    let name = volume_name(claim);
    let (reason, message) = match (name, look.volume(name)) {
        ("", _) => (
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        ),
        (_, None) => {
            ("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
        }
        (_, Some(volume)) => match claim_ref(volume) {
            Some(r) if r.uid != claim.metadata.uid => ("ClaimMisbound", MISBOUND),
            _ => return bind(claim, volume, plan),
        },
    };
    if phase(claim) != "Lost" {
        plan.push(change_status(claim, nothing("Lost")));
        plan.push(Action::event(claim, EventType::Warning, reason, message));
    }
}

/// It asks for one volume.
fn this(claim: &PersistentVolumeClaim, volume: &PersistentVolume, plan: &mut Plan) {
    let name = volume.name_any();
    let refused = match claim_ref(volume) {
        _ if is_for(volume, claim) => None,
        None => unfit(claim, volume).map(|why| {
            ("VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}"))
        }),
        Some(_) => {
            Some(("FailedBinding", format!("volume {name:?} already bound to a different claim.")))
        }
    };
    match refused {
        None => bind(claim, volume, plan),
        Some((reason, message)) => {
            plan.push(Action::event(claim, EventType::Warning, reason, message));
            pending(claim, plan);
        }
    }
}

/// Why a volume that was asked for by name is not what the claim needs.
fn unfit(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {:?}", volume.name_any()));
    }
    let why = if held(volume) < asked(claim) {
        "requested PV is too small"
    } else if class_of_volume(volume) != class_of_claim(claim).unwrap_or_default() {
        "storageClassName does not match"
    } else if !same_attributes(volume, claim) {
        "volumeAttributesClassName does not match"
    } else if !same_volume_mode(volume, claim) {
        "incompatible volumeMode"
    } else if !has_modes(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// It takes any volume that fits.
fn any(claim: &PersistentVolumeClaim, look: &Look<'_>, plan: &mut Plan) {
    let class_name = class_of_claim(claim).unwrap_or_default();
    let found_class = look.class(class_name);
    let delayed = is_delayed(found_class);
    if let Some(volume) = best(claim, look.volumes, delayed) {
        return bind(claim, volume, plan);
    }
    if class_of_claim(claim).is_none()
        && let Some(default) = look.default_class()
    {
        plan.push(change(claim, json!({"spec": {"storageClassName": default.name_any()}})));
        return;
    }
    let say = |ty, reason, message: String| Action::event(claim, ty, reason, message);
    let normal = EventType::Normal;
    match (class_name, found_class) {
        (_, Some(_)) if delayed && !has(&claim.metadata, SELECTED_NODE) => {
            let pods = (look.waiting)(&Key::of(claim));
            plan.push(match pods.as_slice() {
                [] => say(
                    normal,
                    "WaitForFirstConsumer",
                    "waiting for first consumer to be created before binding".to_owned(),
                ),
                [one] => say(
                    normal,
                    "WaitForPodScheduled",
                    format!("waiting for pod {one} to be scheduled"),
                ),
                all => say(
                    normal,
                    "WaitForPodScheduled",
                    format!("waiting for pods {} to be scheduled", all.join(",")),
                ),
            });
        }
        ("", _) => plan.push(say(
            normal,
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set".to_owned(),
        )),
        (name, None) => plan.push(say(
            EventType::Warning,
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io {name:?} not found"),
        )),
        (_, Some(class)) => provision(claim, class, plan),
    }
    pending(claim, plan);
}

/// Asks the provisioner of a class for a volume.
fn provision(claim: &PersistentVolumeClaim, class: &StorageClass, plan: &mut Plan) {
    let name = &class.provisioner;
    if name.starts_with("kubernetes.io/") {
        let said = format!("no volume plugin matched name: {name}");
        plan.push(Action::event(claim, EventType::Warning, "ProvisioningFailed", said));
        return;
    }
    let told = claim.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONER));
    if told != Some(name) {
        let annotations = json!({PROVISIONER: name, PROVISIONER_BETA: name});
        plan.push(change(claim, json!({"metadata": {"annotations": annotations}})));
    }
    let said = format!(
        "Waiting for a volume to be created either by the external provisioner '{name}' or manually \
         by the system administrator. If volume creation is delayed, please verify that the \
         provisioner is running and correctly registered."
    );
    plan.push(Action::event(claim, EventType::Normal, "ExternalProvisioning", said));
}

/// A volume reserved for the claim, or else the smallest of those with the fewest modes.
fn best<'v>(
    claim: &PersistentVolumeClaim,
    volumes: &'v [Arc<PersistentVolume>],
    delayed: bool,
) -> Option<&'v PersistentVolume> {
    let fits = |v: &&PersistentVolume| {
        (claim_ref(v).is_none() || is_for(v, claim)) && has_modes(v, claim) && suits(v, claim)
    };
    let mut fitting = volumes.iter().map(|v| &**v).filter(fits);
    if let Some(reserved) = fitting.clone().find(|v| is_for(v, claim)) {
        return Some(reserved);
    }
    if delayed {
        // The scheduler chooses, when a pod needs it.
        return None;
    }
    let size = |v: &&PersistentVolume| (modes(v).len(), held(v), v.name_any());
    fitting.by_ref().filter(|v| is_free(v, claim)).min_by_key(size)
}

fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume, plan: &mut Plan) {
    plan.actions.extend(volume::bind(volume, claim));
    volume::bound(volume, plan);
    let name = volume.name_any();
    let mut patch = json!({});
    if volume_name(claim) != name {
        patch["spec"] = json!({"volumeName": name});
        patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    if !has(&claim.metadata, BIND_COMPLETED) {
        patch["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
    }
    if patch != json!({}) {
        plan.push(change(claim, patch));
    }
    let have = claim.status.as_ref();
    let given = spec(volume);
    let mut status = serde_json::Map::new();
    if have.and_then(|s| s.access_modes.as_deref()).unwrap_or_default() != modes(volume) {
        status.insert("accessModes".into(), json!(modes(volume)));
    }
    if phase(claim) != "Bound" {
        status.insert("phase".into(), "Bound".into());
        status.insert("capacity".into(), json!(given.and_then(|s| s.capacity.as_ref())));
    }
    let class = given.and_then(|s| s.volume_attributes_class_name.as_ref());
    if phase(claim) != "Bound"
        && have.and_then(|s| s.current_volume_attributes_class_name.as_ref()) != class
    {
        status.insert("currentVolumeAttributesClassName".into(), json!(class));
    }
    if !status.is_empty() {
        plan.push(change_status(claim, Value::Object(status)));
    }
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The status of a claim that has no volume.
fn nothing(phase: &str) -> Value {
    json!({"phase": phase, "accessModes": null, "capacity": null,
        "currentVolumeAttributesClassName": null})
}

fn pending(claim: &PersistentVolumeClaim, plan: &mut Plan) {
    let status = claim.status.as_ref();
    let clean = status.is_some_and(|s| {
        s.access_modes.is_none()
            && s.capacity.is_none()
            && s.current_volume_attributes_class_name.is_none()
    });
    if phase(claim) != "Pending" || !clean {
        plan.push(change_status(claim, nothing("Pending")));
    }
}
