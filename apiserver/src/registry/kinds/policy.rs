//! PodDisruptionBudgets: how many pods of a set may be taken away at a time.

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::object;

use super::apps::{at_most_all, int_or_percent};
use super::cells::{age_column, column, named};
use super::check::{label_selector, nonnegative, supported_if_set};
use super::row::Rows;
use super::{STATUS, begin, carry_on, checked, keep};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("policy", "v1"), ("PodDisruptionBudget", "poddisruptionbudgets"), |row| {
        row.short(&["pdb"]).strategy(Budgets).status(Status).columns(named([
            column("Min Available", "string", "Pods that must stay.", |o, _| {
                share(o, "minAvailable")
            }),
            column("Max Unavailable", "string", "Pods that may be away.", |o, _| {
                share(o, "maxUnavailable")
            }),
            column("Allowed Disruptions", "integer", "Pods that may go now.", |o, _| {
                object::int_at(o, &["status", "disruptionsAllowed"]).unwrap_or(0).into()
            }),
            age_column(),
        ]))
    });
}

fn share(budget: &Value, field: &str) -> Value {
    match object::get(budget, &["spec", field]) {
        Some(Value::String(text)) => text.as_str().into(),
        Some(number) => number.to_string().into(),
        None => "N/A".into(),
    }
}

struct Budgets;

impl Strategy for Budgets {
    /// Upstream has no rule for these names but that of paths.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        apimachinery::names::name_is_path_segment(name, prefix)
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let shares = ["minAvailable", "maxUnavailable"].map(|f| spec.at(f));
            if shares.iter().all(|s| s.is_set()) {
                errors.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
            }
            for share in shares.iter().filter(|s| s.is_set()) {
                int_or_percent(errors, share);
                at_most_all(errors, share);
            }
            label_selector(errors, &spec.at("selector"));
            let policy = spec.at("unhealthyPodEvictionPolicy");
            supported_if_set(errors, &policy, &["AlwaysAllow", "IfHealthyBudget"]);
        })
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

struct Status;

impl Strategy for Status {
    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep(object, old, &["metadata", "generation"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]
            {
                nonnegative(errors, &root.at("status").at(field));
            }
        })
    }
}
