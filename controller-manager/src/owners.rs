//! Owner references: who controls what, adoption and release (upstream's controller ref manager).

use std::sync::Arc;

use client::Key;
use client::matching::selects;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::json;

use crate::action::{Action, Target};

/// The reference that marks the controller.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// A reference from a dependent to its controller.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The key of the controller, when it is of kind `K`.
pub fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<Key> {
    let reference = controller_of(meta)?;
    let same = reference.kind == K::kind(&()) && group(&reference.api_version) == K::group(&());
    same.then(|| Key::new(meta.namespace.as_deref().unwrap_or_default(), &reference.name))
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Sorts a namespace's objects into those that `owner` controls, and the adoptions and releases
/// that selector and references call for.
pub fn claim<O, D>(
    owner: &O,
    selector: &LabelSelector,
    all: Vec<Arc<D>>,
    active: impl Fn(&D) -> bool,
) -> (Vec<Arc<D>>, Vec<Action>)
where
    O: Resource<DynamicType = ()>,
    D: Resource<DynamicType = ()>,
{
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let ending = owner.meta().deletion_timestamp.is_some();
    let (mut claimed, mut actions) = (Vec::new(), Vec::new());
    for object in all {
        let meta = object.meta();
        let matches = selects(selector, meta.labels.as_ref());
        match controller_of(meta) {
            Some(reference) if reference.uid == uid => {
                if matches {
                    claimed.push(object);
                } else if !ending {
                    actions.push(release(&*object, uid));
                }
            }
            Some(_) => {}
            None => {
                let adopt =
                    matches && !ending && meta.deletion_timestamp.is_none() && active(&object);
                if adopt {
                    actions.push(adoption(&*object, controller_reference(owner)));
                    claimed.push(object);
                }
            }
        }
    }
    (claimed, actions)
}

fn release<D: Resource<DynamicType = ()>>(object: &D, owner: &str) -> Action {
    let patch = json!({"metadata": {
        "uid": object.meta().uid,
        "ownerReferences": [{"$patch": "delete", "uid": owner}],
    }});
    Action::Patch(Target::of::<D>(&Key::of(object)), "", patch)
}

fn adoption<D: Resource<DynamicType = ()>>(object: &D, reference: OwnerReference) -> Action {
    let patch = json!({"metadata": {"uid": object.meta().uid, "ownerReferences": [reference]}});
    Action::Patch(Target::of::<D>(&Key::of(object)), "", patch)
}

/// A name for a dependent: the owner's and a hash, or random characters.
pub fn dependent_name(owner: &str, suffix: &str) -> String {
    format!("{owner}-{suffix}")
}

/// Text from a hash, in upstream's alphabet without vowels and look-alikes.
pub fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

/// A short, stable hash of a value's JSON (whose keys are sorted), with a number of collisions
/// that were met before.
pub fn template_hash(template: &impl serde::Serialize, collisions: Option<i32>) -> String {
    let text = serde_json::to_value(template).unwrap_or_default().to_string();
    let mut hash: u32 = 0x811c_9dc5;
    let salt = collisions.map(i32::to_le_bytes);
    for byte in text.bytes().chain(salt.into_iter().flatten()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    safe_encode(&hash.to_string())
}
