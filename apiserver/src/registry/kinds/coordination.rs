//! Leases.

use apimachinery::field::ErrorList;
use apimachinery::object;
use apimachinery::{Value, names};

use super::cells::{age_column, column, named};
use super::check::{At, invalid_each, nonnegative};
use super::checked;
use super::row::Rows;
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("coordination.k8s.io", "v1"), ("Lease", "leases"), |row| {
        row.strategy(Leases).columns(named([
            column("Holder", "string", "Who holds the lease.", |o, _| {
                object::str_at(o, &["spec", "holderIdentity"]).into()
            }),
            age_column(),
        ]))
    });
}

struct Leases;

/// Leases whose holder the cluster chooses are a feature that is off by default.
const COORDINATED: [&str; 2] = ["strategy", "preferredHolder"];

impl Strategy for Leases {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        for field in COORDINATED {
            object::remove(object, &["spec", field]);
        }
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let in_use = |field: &&str| object::get(old, &["spec", field]).is_some();
        if !COORDINATED.iter().any(in_use) {
            for field in COORDINATED {
                object::remove(object, &["spec", field]);
            }
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let duration = spec.at("leaseDurationSeconds");
            if duration.opt_int().is_some_and(|s| s <= 0) {
                errors.push(duration.invalid("must be greater than 0"));
            }
            nonnegative(errors, &spec.at("leaseTransitions"));
            let strategy = spec.at("strategy");
            if strategy.is_set() {
                coordinated_strategy(errors, &strategy);
            }
            if !spec.at("preferredHolder").is_empty() && strategy.is_empty() {
                errors.push(
                    spec.at("preferredHolder")
                        .forbidden("may only be specified if `strategy` is defined"),
                );
            }
        })
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// How the holder is chosen. Upstream reports the field as one of itself.
fn coordinated_strategy(errors: &mut ErrorList, at: &At<'_>) {
    let shown = At::new(at.value(), at.path().child("strategy"));
    if at.str().contains('/') {
        invalid_each(errors, &shown, names::qualified_name(at.str()));
    } else if at.str() != "OldestEmulationVersion" {
        errors.push(shown.not_supported(&["OldestEmulationVersion"]));
    }
}
