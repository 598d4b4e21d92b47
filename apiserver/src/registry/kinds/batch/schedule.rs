//! Whether a schedule is one, in the words of the parser that upstream uses
//! (`github.com/robfig/cron`, its standard form).

use jiff::tz::TimeZone;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Lowest and highest value of a field, and names of its values from `first` on.
struct Bounds {
    min: i64,
    max: i64,
    names: &'static [&'static str],
    first: i64,
}

const FIELDS: [Bounds; 5] = [
    Bounds { min: 0, max: 59, names: &[], first: 0 },
    Bounds { min: 0, max: 23, names: &[], first: 0 },
    Bounds { min: 1, max: 31, names: &[], first: 0 },
    Bounds { min: 1, max: 12, names: &MONTHS, first: 1 },
    Bounds { min: 0, max: 6, names: &DAYS, first: 0 },
];

/// Whether there is a time zone of this name.
pub fn zone_exists(name: &str) -> bool {
    TimeZone::get(name).is_ok_and(|zone| zone.iana_name().is_none_or(|found| found == name))
}

/// # Errors
/// What is wrong with the schedule.
pub fn check(text: &str) -> Result<(), String> {
    let mut rest = text;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let (zone, after) = text
            .split_once(' ')
            .ok_or("invalid schedule format: runtime error: slice bounds out of range [:-1]")?;
        let zone = zone.split_once('=').map_or("", |(_, zone)| zone);
        if !zone.is_empty() && !matches!(zone, "UTC" | "Local") && !zone_exists(zone) {
            return Err(format!("provided bad location {zone}: unknown time zone {zone}"));
        }
        rest = after.trim();
    }
    if rest.starts_with('@') {
        return descriptor(rest);
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let (found, shown) = (fields.len(), fields.join(" "));
        return Err(format!("expected exactly 5 fields, found {found}: [{shown}]"));
    }
    for (field, bounds) in fields.iter().zip(&FIELDS) {
        for piece in field.split(',').filter(|p| !p.is_empty()) {
            range(piece, bounds)?;
        }
    }
    Ok(())
}

fn descriptor(text: &str) -> Result<(), String> {
    const KNOWN: [&str; 7] =
        ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(period) => match crate::pipeline::go_duration(period.trim_start_matches(['+', '-'])) {
            Some(_) => Ok(()),
            None => {
                Err(format!("failed to parse duration {text}: time: invalid duration {period:?}"))
            }
        },
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

fn range(text: &str, bounds: &Bounds) -> Result<(), String> {
    let steps: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = steps.first().copied().unwrap_or("").split('-').collect();
    let (start, mut end) = match ends.as_slice() {
        ["*" | "?", ..] => (bounds.min, bounds.max),
        [one] => {
            let value = named(one, bounds)?;
            (value, value)
        }
        [first, last] => (named(first, bounds)?, named(last, bounds)?),
        _ => {
            if let Some(first) = ends.first() {
                named(first, bounds)?;
            }
            return Err(format!("too many hyphens: {text}"));
        }
    };
    let step = match steps.as_slice() {
        [_] => 1,
        [_, step] => {
            if ends.len() == 1 {
                end = bounds.max;
            }
            integer(step)?
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let Bounds { min, max, .. } = bounds;
    if start < *min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
    }
    if end > *max {
        return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

fn named(text: &str, bounds: &Bounds) -> Result<i64, String> {
    let at = bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text));
    match at.and_then(|at| i64::try_from(at).ok()) {
        Some(at) => Ok(at + bounds.first),
        None => integer(text),
    }
}

fn integer(text: &str) -> Result<i64, String> {
    let value: i64 = text.parse().map_err(|error: std::num::ParseIntError| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let why = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}")
    })?;
    if value < 0 {
        return Err(format!("negative number ({value}) not allowed: {text}"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_taken_or_refused() {
        for good in [
            "* * * * *",
            "*/5 1-3,7 ? JAN-mar Mon",
            "@hourly",
            "@every 1h30m",
            "TZ=UTC 0 0 * * *",
            "0/15 * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "expected exactly 5 fields, found 0: []"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
