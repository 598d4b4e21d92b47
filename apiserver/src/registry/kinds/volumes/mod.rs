//! PersistentVolumes and PersistentVolumeClaims.

mod claims;
mod persistent;

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::{Value, names, object};

use super::check::{At, invalid_each};
use super::row::Rows;
pub(super) use claims::claim_warnings;
use claims::{ClaimStatus, Claims, claim_columns};
use persistent::{VolumeStatus, Volumes, volume_columns};
pub(super) use persistent::{default_sources, inline_volume};

/// The class of a volume or claim, before there was a field for it.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Options for mounting, before there was a field for them.
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("", "v1"), ("PersistentVolume", "persistentvolumes"), |row| {
        row.cluster()
            .short(&["pv"])
            .strategy(Volumes)
            .status(VolumeStatus)
            .columns(volume_columns())
    });
    rows.add(("", "v1"), ("PersistentVolumeClaim", "persistentvolumeclaims"), |row| {
        row.short(&["pvc"]).strategy(Claims).status(ClaimStatus).columns(claim_columns())
    });
}

fn access_modes(errors: &mut ErrorList, modes: &At<'_>) {
    for mode in modes.strings().filter(|m| !MODES.contains(m)) {
        errors.push(FieldError::not_supported(modes.path(), mode, &MODES));
    }
    let single = modes.strings().any(|m| m == "ReadWriteOncePod");
    if single && modes.strings().any(|m| m != "ReadWriteOncePod" && MODES.contains(&m)) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
}

fn class_name(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_empty() {
        invalid_each(errors, at, names::dns1123_subdomain(at.str()));
    }
}

/// `RWO,ROX`, in a fixed order.
fn short_modes(modes: &[Value]) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let all: Vec<&str> =
        SHORT.iter().filter(|(m, _)| modes.iter().any(|x| x == m)).map(|(_, s)| *s).collect();
    all.join(",")
}

fn class_of(object: &Value) -> &str {
    object::annotation(object, CLASS)
        .unwrap_or_else(|| object::str_at(object, &["spec", "storageClassName"]))
}

fn or_unset(object: &Value, field: &str) -> Value {
    object::get(object, &["spec", field]).cloned().unwrap_or_else(|| "<unset>".into())
}

fn phase(object: &Value) -> &str {
    match object::deletion_timestamp(object) {
        "" => object::str_at(object, &["status", "phase"]),
        _ => "Terminating",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_are_short_and_in_order() {
        let modes = json!(["ReadWriteMany", "ReadWriteOnce", "ReadWriteOnce"]);
        assert_eq!(short_modes(modes.as_array().unwrap()), "RWO,RWX");
    }
}
