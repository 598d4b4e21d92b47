//! `resource.Quantity`: exact decimal numbers with SI suffixes.

use std::fmt;
use std::str::FromStr;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    DecimalSI,
    BinarySI,
    DecimalExponent,
}

/// An exact amount: `value * 10^-9` (nano units suffice: upstream rounds up below that).
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Upstream's text for this case.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSI };

    pub fn from_units(_units: i64, _format: Format) -> Self {
        todo!()
    }

    pub fn from_millis(_millis: i64, _format: Format) -> Self {
        todo!()
    }

    /// Whole units, rounded up (Go's `Value`).
    pub fn value(&self) -> i64 {
        todo!()
    }

    /// Thousandths, rounded up (Go's `MilliValue`).
    pub fn milli_value(&self) -> i64 {
        todo!()
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    pub fn format(&self) -> Format {
        self.format
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(_s: &str) -> Result<Self, Self::Err> {
        todo!()
    }
}

/// The canonical text, as Go's `String`.
impl fmt::Display for Quantity {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}
