//! Semantic versions (semver.org 2.0.0).

use std::cmp::Ordering;
use std::fmt;

use super::Result;
use crate::cel::value::{Opaque, Val};

/// A version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cel) struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: Vec<String>,
}

impl Semver {
    /// Leniently: `v1.2` is `1.2.0`, and numbers may begin with zeros.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str, lenient: bool) -> std::result::Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let text = if lenient { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(t, p)| (t, Some(p)));
        let mut parts: Vec<&str> = core.split('.').collect();
        while lenient && parts.len() < 3 {
            parts.push("0");
        }
        let [major, minor, patch] = parts.as_slice() else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let number = |text: &str| -> std::result::Result<u64, String> {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            if !digits {
                return Err(format!("Invalid character(s) found in number {text:?}"));
            }
            if !lenient && text.len() > 1 && text.starts_with('0') {
                return Err(format!("Number must not contain leading zeroes {text:?}"));
            }
            text.parse().map_err(|_| format!("number {text:?} is out of range"))
        };
        let numbers = [number(major)?, number(minor)?, number(patch)?];
        let identifiers = |text: Option<&str>, what: &str| match text {
            None => Ok(Vec::new()),
            Some(text) => text
                .split('.')
                .map(|part| {
                    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
                    match !part.is_empty() && part.bytes().all(fits) {
                        true => Ok(part.to_owned()),
                        false => Err(format!("Invalid {what} {part:?}")),
                    }
                })
                .collect(),
        };
        let pre = identifiers(pre, "prerelease")?;
        for part in &pre {
            if part.len() > 1 && part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!(
                    "Numeric PreRelease version must not contain leading zeroes {part:?}"
                ));
            }
        }
        Ok(Self { numbers, pre, build: identifiers(build, "build meta data")? })
    }

    /// Order of precedence; builds do not count.
    pub fn compare(&self, other: &Self) -> Ordering {
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let parts = self.pre.iter().zip(&other.pre);
                let first = parts.map(|(a, b)| identifier(a, b)).find(|o| o.is_ne());
                first.unwrap_or(self.pre.len().cmp(&other.pre.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(pre)
    }
}

fn identifier(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        _ => a.cmp(b),
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build.join("."))?;
        }
        Ok(())
    }
}

pub(super) fn call<'a>(name: &str, version: &Semver, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let [major, minor, patch] = version.numbers.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    Some(Ok(match (name, rest) {
        ("major", []) => Val::Int(major),
        ("minor", []) => Val::Int(minor),
        ("patch", []) => Val::Int(patch),
        ("isGreaterThan", [Val::Opaque(Opaque::Semver(other))]) => {
            Val::Bool(version.compare(other).is_gt())
        }
        ("isLessThan", [Val::Opaque(Opaque::Semver(other))]) => {
            Val::Bool(version.compare(other).is_lt())
        }
        ("compareTo", [Val::Opaque(Opaque::Semver(other))]) => {
            Val::Int(version.compare(other) as i64)
        }
        _ => return None,
    }))
}
