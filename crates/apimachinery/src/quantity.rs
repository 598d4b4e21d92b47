//! `resource.Quantity`: exact decimal numbers with SI suffixes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

/// Nano units of one.
const NANO: i128 = 1_000_000_000;
/// The largest magnitude that a binary quantity may have, in units.
const MAX_BINARY: i128 = i64::MAX as i128;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12M`: powers of ten.
    DecimalSI,
    /// `12Mi`: powers of two.
    BinarySI,
    /// `12e6`.
    DecimalExponent,
}

/// An exact amount: `value * 10^-9` (nano units suffice: upstream rounds up below that).
///
/// Equality and order are those of the amount; the format takes no part in them. Arithmetic
/// saturates at the range of the representation, some 1.7 * 10^29 units.
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

impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSI };

    /// Whole units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    /// Thousandths.
    pub fn from_millis(millis: i64, format: Format) -> Self {
        Self { nanos: i128::from(millis) * (NANO / 1000), format }
    }

    /// Whole units, rounded away from zero (Go's `Value`); saturates.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero (Go's `MilliValue`); saturates.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let away = if self.nanos % unit == 0 { 0 } else { self.nanos.signum() };
        let rounded = self.nanos / unit + away;
        rounded.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// The amount as a whole number, if it is one and fits.
    pub fn as_units(&self) -> Option<i64> {
        (self.nanos % NANO == 0).then(|| i64::try_from(self.nanos / NANO).ok()).flatten()
    }

    /// The amount in units, not exact.
    pub fn approximate(&self) -> f64 {
        self.nanos as f64 / NANO as f64
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

    /// The same amount, written in another way.
    pub fn with_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// `factor` times the amount, in the same format.
    pub fn times(self, factor: i64) -> Self {
        Self { nanos: self.nanos.saturating_mul(i128::from(factor)), ..self }
    }

    /// What zero takes the other's format for: upstream's sums keep the format of the first
    /// operand that is not zero.
    fn format_with(self, other: Self) -> Format {
        if self.is_zero() { other.format } else { self.format }
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = self.format_with(other);
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = self.format_with(other);
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), ..self }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Hash for Quantity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}

/// The parts of a quantity's text.
struct Parts<'a> {
    negative: bool,
    /// Digits before the point, without leading zeros; may be empty.
    whole: &'a str,
    /// Digits after the point.
    fraction: &'a str,
    base: Base,
    exponent: i32,
    format: Format,
}

#[derive(PartialEq)]
enum Base {
    Two,
    Ten,
}

fn leading_digits(s: &str) -> (&str, &str) {
    s.split_at(s.bytes().take_while(u8::is_ascii_digit).count())
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, mut rest) = leading_digits(rest.trim_start_matches('0'));
    let mut fraction = "";
    if let Some(after) = rest.strip_prefix('.') {
        (fraction, rest) = leading_digits(after);
    }
    let letters = rest.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let tail = &rest[letters..];
    let (_, garbage) = leading_digits(tail.strip_prefix(['-', '+']).unwrap_or(tail));
    if !garbage.is_empty() {
        return Err(QuantityError::Format);
    }
    let (base, exponent, format) = suffix(rest)?;
    Ok(Parts { negative, whole, fraction, base, exponent, format })
}

fn suffix(s: &str) -> Result<(Base, i32, Format), QuantityError> {
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(i) = decimal.iter().position(|d| *d == s) {
        return Ok((Base::Ten, (i as i32 - 3) * 3, Format::DecimalSI));
    }
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(i) = binary.iter().position(|b| *b == s) {
        return Ok((Base::Two, (i as i32 + 1) * 10, Format::BinarySI));
    }
    match s.strip_prefix(['e', 'E']) {
        Some(digits) if !digits.is_empty() => {
            let exponent: i64 = digits.parse().map_err(|_| QuantityError::Suffix)?;
            // Far beyond what can be represented either way; the sum below must not overflow.
            let exponent = exponent.clamp(-1_000_000, 1_000_000) as i32;
            Ok((Base::Ten, exponent, Format::DecimalExponent))
        }
        _ => Err(QuantityError::Suffix),
    }
}

/// `digits * 10^shift`, rounded up, saturating.
fn shifted(digits: &[u8], shift: i64) -> i128 {
    let digits = match digits.iter().position(|d| *d != 0) {
        Some(first) => &digits[first..],
        None => return 0,
    };
    let (kept, dropped): (&[u8], &[u8]) = match usize::try_from(-shift) {
        Ok(n) if n > 0 => digits.split_at(digits.len().saturating_sub(n)),
        _ => (digits, &[]),
    };
    let mut value: i128 = 0;
    let zeros = std::iter::repeat_n(0, shift.clamp(0, 64) as usize);
    for digit in kept.iter().copied().chain(zeros) {
        value = match value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit))) {
            Some(v) => v,
            None => return i128::MAX,
        };
    }
    value.saturating_add(i128::from(dropped.iter().any(|d| *d != 0)))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts = split(s)?;
        let mut digits: Vec<u8> =
            parts.whole.bytes().chain(parts.fraction.bytes()).map(|b| b - b'0').collect();
        let mut shift = 9 - parts.fraction.len() as i64;
        let mut format = parts.format;
        match parts.base {
            Base::Ten => shift += i64::from(parts.exponent),
            Base::Two => {
                for _ in 0..parts.exponent / 10 {
                    multiply(&mut digits, 1024);
                }
            }
        }
        let mut nanos = shifted(&digits, shift);
        if format == Format::BinarySI {
            nanos = nanos.min(MAX_BINARY * NANO);
            if nanos > 0 && nanos < NANO {
                format = Format::DecimalSI;
            }
        }
        Ok(Self { nanos: if parts.negative { -nanos } else { nanos }, format })
    }
}

/// Multiplies a number of decimal digits, most significant first.
fn multiply(digits: &mut Vec<u8>, factor: u32) {
    let mut carry = 0;
    for d in digits.iter_mut().rev() {
        carry += u32::from(*d) * factor;
        *d = (carry % 10) as u8;
        carry /= 10;
    }
    let mut head = Vec::new();
    while carry > 0 {
        head.push((carry % 10) as u8);
        carry /= 10;
    }
    head.reverse();
    digits.splice(0..0, head);
}

/// The canonical text, as Go's `String` computes it.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let mut format = self.format;
        if format == Format::BinarySI && (self.nanos.abs() < 1024 * NANO || self.nanos % NANO != 0)
        {
            // Written in powers of two it would be confusing or lose precision.
            format = Format::DecimalSI;
        }
        if format == Format::BinarySI {
            let mut amount = self.nanos / NANO;
            let mut suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].into_iter();
            let mut suffix = suffixes.next().unwrap_or_default();
            while amount % 1024 == 0 {
                let Some(next) = suffixes.next() else { break };
                suffix = next;
                amount /= 1024;
            }
            return write!(f, "{amount}{suffix}");
        }
        let (mut amount, mut exponent) = (self.nanos, -9);
        // Upstream has no suffix above exa and prints none there; exa with more digits is right.
        while amount % 1000 == 0 && (format == Format::DecimalExponent || exponent < 18) {
            amount /= 1000;
            exponent += 3;
        }
        match (format, exponent) {
            (_, 0) => write!(f, "{amount}"),
            (Format::DecimalExponent, e) => write!(f, "{amount}e{e}"),
            (_, e) => {
                let names = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(f, "{amount}{}", names[(e / 3 + 3) as usize])
            }
        }
    }
}

/// The text that upstream keeps for a quantity it has read: the canonical text, or the text
/// itself where its parser takes that for canonical without a closer look (`1.500`, `+5`).
/// What upstream decodes and encodes again, it writes like this.
pub fn canonical_text(text: &str) -> Result<Cow<'_, str>, QuantityError> {
    let quantity: Quantity = text.parse()?;
    let parts = split(text)?;
    let kept = text == "0" || {
        let whole = if parts.whole.is_empty() { "0" } else { parts.whole };
        let digits = whole.len() + parts.fraction.len();
        // Upstream's scanner stops where a text is all zeros, before it sees a suffix.
        let ends_early = text.trim_start_matches(['-', '+']).bytes().all(|b| b == b'0');
        match parts.base {
            _ if ends_early => false,
            Base::Two => {
                let room = 15 - digits as i32 - (parts.exponent as f32 * 3.0 / 10.0) as i32 - 1;
                let number: i64 = whole.parse().unwrap_or(0);
                parts.fraction.is_empty() && room >= 0 && number & 7 != 0
            }
            Base::Ten => {
                let scale = parts.exponent - parts.fraction.len() as i32;
                digits <= 18
                    && scale >= -9
                    && scale % 3 == 0
                    && !format!("{whole}{}", parts.fraction).ends_with("000")
                    && !whole.starts_with('0')
            }
        }
    };
    Ok(if kept { Cow::Borrowed(text) } else { Cow::Owned(quantity.to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Format::{BinarySI, DecimalExponent, DecimalSI};
    use proptest::prelude::*;

    const BAD: &str = "quantities must match the regular expression \
                       '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    const BAD_SUFFIX: &str = "unable to parse quantity's suffix";

    /// (text, what upstream keeps, canonical, format, value, milli value)
    type Case = (&'static str, &'static str, &'static str, Format, i64, i64);

    #[test]
    fn reads_and_writes_as_upstream() {
        let cases: &[Case] = &[
            ("0", "0", "0", DecimalSI, 0, 0),
            ("0.5", "500m", "500m", DecimalSI, 1, 500),
            ("1024Mi", "1Gi", "1Gi", BinarySI, 1073741824, 1073741824000),
            ("1.5Gi", "1536Mi", "1536Mi", BinarySI, 1610612736, 1610612736000),
            ("1500m", "1500m", "1500m", DecimalSI, 2, 1500),
            ("1.500", "1.500", "1500m", DecimalSI, 2, 1500),
            ("+5", "+5", "5", DecimalSI, 5, 5000),
            ("05", "05", "5", DecimalSI, 5, 5000),
            ("1e3", "1e3", "1e3", DecimalExponent, 1000, 1000000),
            ("1E3", "1E3", "1e3", DecimalExponent, 1000, 1000000),
            ("1.5e3", "1500", "1500", DecimalExponent, 1500, 1500000),
            ("100Ki", "100Ki", "100Ki", BinarySI, 102400, 102400000),
            ("1Ki", "1Ki", "1Ki", BinarySI, 1024, 1024000),
            ("1024", "1024", "1024", DecimalSI, 1024, 1024000),
            ("0.1Ki", "102400m", "102400m", BinarySI, 103, 102400),
            ("0.5Ki", "512", "512", BinarySI, 512, 512000),
            ("1.1Ki", "1126400m", "1126400m", BinarySI, 1127, 1126400),
            ("1n", "1n", "1n", DecimalSI, 1, 1),
            ("0.1n", "1n", "1n", DecimalSI, 1, 1),
            ("0.0000000001", "1n", "1n", DecimalSI, 1, 1),
            ("-0.1n", "-1n", "-1n", DecimalSI, -1, -1),
            ("-1.5", "-1500m", "-1500m", DecimalSI, -2, -1500),
            ("5.k", "5.k", "5k", DecimalSI, 5000, 5000000),
            ("k", "0", "0", DecimalSI, 0, 0),
            ("Mi", "0", "0", BinarySI, 0, 0),
            (".", "0", "0", DecimalSI, 0, 0),
            ("9Ei", "9223372036854775807", "9223372036854775807", BinarySI, i64::MAX, i64::MAX),
            ("7Ei", "7Ei", "7Ei", BinarySI, 8070450532247928832, i64::MAX),
            ("12.34e-5", "123400e-9", "123400e-9", DecimalExponent, 1, 1),
            ("1e-10", "1e-9", "1e-9", DecimalExponent, 1, 1),
            ("100m", "100m", "100m", DecimalSI, 1, 100),
            ("0.001", "1m", "1m", DecimalSI, 1, 1),
            ("1e+3", "1e+3", "1e3", DecimalExponent, 1000, 1000000),
            ("1E", "1E", "1E", DecimalSI, 1000000000000000000, i64::MAX),
            ("1e-3", "1e-3", "1e-3", DecimalExponent, 1, 1),
            (
                "123456789.123456789",
                "123456789.123456789",
                "123456789123456789n",
                DecimalSI,
                123456790,
                123456789124,
            ),
            ("-1024Ki", "-1Mi", "-1Mi", BinarySI, -1048576, -1048576000),
            ("-1536Mi", "-1536Mi", "-1536Mi", BinarySI, -1610612736, -1610612736000),
            ("0Gi", "0", "0", BinarySI, 0, 0),
            ("00", "0", "0", DecimalSI, 0, 0),
            ("1.0Gi", "1Gi", "1Gi", BinarySI, 1073741824, 1073741824000),
            ("1000k", "1M", "1M", DecimalSI, 1000000, 1000000000),
            ("1000000", "1M", "1M", DecimalSI, 1000000, 1000000000),
            ("1000Ki", "1000Ki", "1000Ki", BinarySI, 1024000, 1024000000),
            ("1048576Ki", "1Gi", "1Gi", BinarySI, 1073741824, 1073741824000),
            ("1000u", "1m", "1m", DecimalSI, 1, 1),
            ("1000000n", "1m", "1m", DecimalSI, 1, 1),
            ("1e18", "1e18", "1e18", DecimalExponent, 1000000000000000000, i64::MAX),
            ("1e19", "10e18", "10e18", DecimalExponent, i64::MAX, i64::MAX),
            ("100E", "100E", "100E", DecimalSI, i64::MAX, i64::MAX),
            (
                "0.000001Ei",
                "1152921504606846976u",
                "1152921504606846976u",
                BinarySI,
                1152921504607,
                1152921504606847,
            ),
            ("1.0000000001", "1000000001n", "1000000001n", DecimalSI, 2, 1001),
        ];
        for (text, kept, canonical, format, value, milli) in cases {
            let q: Quantity = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(q.to_string(), *canonical, "canonical form of {text}");
            assert_eq!(canonical_text(text).as_deref(), Ok(*kept), "kept text of {text}");
            assert_eq!(q.format(), *format, "format of {text}");
            assert_eq!(q.value(), *value, "value of {text}");
            assert_eq!(q.milli_value(), *milli, "milli value of {text}");
        }
    }

    #[test]
    fn refuses_as_upstream() {
        for (text, want) in [
            ("", BAD),
            ("abc", BAD),
            ("1.2.3", BAD),
            ("1 ", BAD),
            ("0x10", BAD),
            ("1Ki1", BAD_SUFFIX),
            ("1e", BAD_SUFFIX),
            ("1mm", BAD_SUFFIX),
            ("--1", BAD_SUFFIX),
            ("1e999999999999999999999", BAD_SUFFIX),
        ] {
            assert_eq!(text.parse::<Quantity>().map_err(|e| e.to_string()), Err(want.to_owned()));
        }
    }

    #[test]
    fn computes() {
        let q = |s: &str| s.parse::<Quantity>().unwrap_or_else(|e| panic!("{s}: {e}"));
        for (got, want) in [
            (q("1Gi") + q("512Mi"), "1536Mi"),
            (Quantity::ZERO + q("1Gi"), "1Gi"),
            (q("1") + q("500m"), "1500m"),
            (q("1Gi") - q("1Gi"), "0"),
            (q("100m") - q("1"), "-900m"),
            (q("250m").times(4), "1"),
            (-q("2Gi"), "-2Gi"),
            (Quantity::from_units(2048, BinarySI), "2Ki"),
            (Quantity::from_millis(1500, DecimalSI), "1500m"),
        ] {
            assert_eq!(got.to_string(), want);
        }
        assert_eq!(q("1Gi"), q("1073741824"));
        assert!(q("1G") < q("1Gi"));
        assert_eq!(q("3").as_units(), Some(3));
        assert_eq!(q("3m").as_units(), None);
    }

    proptest! {
        #[test]
        fn canonical_text_means_the_same(
            text in "[+-]?[0-9]{0,12}(\\.[0-9]{0,12})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|e-?[0-9])?",
        ) {
            if let Ok(q) = text.parse::<Quantity>() {
                let again: Quantity = q.to_string().parse().expect("canonical text parses");
                prop_assert_eq!(q, again);
                prop_assert_eq!(q.to_string(), again.to_string());
                let kept: Quantity =
                    canonical_text(&text).expect("parsed").parse().expect("kept text parses");
                prop_assert_eq!(q, kept);
            }
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = canonical_text(&text);
        }
    }
}
