//! Resource amounts of pods and nodes, in the units that the machine counts in.

use std::collections::BTreeMap;

use apimachinery::amounts::Amounts;
use apimachinery::quantity::{Format, Quantity as Amount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A list of resources by name.
pub type List = BTreeMap<String, Quantity>;

/// Reads a quantity; what the API server has accepted parses, anything else counts as zero.
pub fn amount(quantity: &Quantity) -> Amount {
    quantity.0.parse().unwrap_or(Amount::ZERO)
}

/// The amounts of a list.
pub fn amounts(list: Option<&List>) -> Amounts {
    list.into_iter().flatten().map(|(name, q)| (name.clone(), amount(q))).collect()
}

/// Whole units of a resource, if the list has it.
pub fn value(list: Option<&List>, name: &str) -> Option<i64> {
    list?.get(name).map(|q| amount(q).value())
}

/// Thousandths of a resource, if the list has it.
pub fn millis(list: Option<&List>, name: &str) -> Option<i64> {
    list?.get(name).map(|q| amount(q).milli_value())
}

/// A plain number.
pub fn decimal(units: i64) -> Quantity {
    Quantity(Amount::from_units(units, Format::DecimalSI).to_string())
}

/// Bytes, with binary suffixes where they are exact.
pub fn binary(units: i64) -> Quantity {
    Quantity(Amount::from_units(units, Format::BinarySI).to_string())
}

/// Thousandths of a unit (CPU).
pub fn milli(millis: i64) -> Quantity {
    Quantity(Amount::from_millis(millis, Format::DecimalSI).to_string())
}
