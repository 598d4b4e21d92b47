//! Schedules as cron writes them: five fields, names of months and days, `@hourly` and the like,
//! `@every 1h30m`.

use std::time::Duration;

use component::cli::duration;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that is met by no day in so many years is never met (leap days are).
const YEARS: i16 = 8;

/// Values of a field, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Not restricted.
    star: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|v| self.bits & (1 << v) != 0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    Fields(Box<Fields>),
    Every(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

fn field(text: &str, min: u32, max: u32, names: &[&str], base: u32) -> Result<Field, String> {
    let wrong = || format!("failed to parse {text:?}");
    let number = |piece: &str| -> Result<u32, String> {
        let low = piece.to_ascii_lowercase();
        let named = names.iter().position(|n| *n == low).and_then(|at| u32::try_from(at).ok());
        named.map(|at| at + base).or_else(|| piece.parse().ok()).ok_or_else(wrong)
    };
    let mut all = Field { bits: 0, star: false };
    for piece in text.split(',') {
        let (range, step) = match piece.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().map_err(|_| wrong())?)),
            None => (piece, None),
        };
        let (first, last) = match (range, range.split_once('-')) {
            ("*" | "?", _) => {
                all.star |= step.is_none_or(|s| s == 1);
                (min, max)
            }
            (_, Some((first, last))) => (number(first)?, number(last)?),
            (single, None) => {
                let first = number(single)?;
                (first, if step.is_some() { max } else { first })
            }
        };
        let step = step.unwrap_or(1);
        if first < min || last > max || first > last || step == 0 {
            return Err(format!("out of range: {piece:?}"));
        }
        let step = usize::try_from(step).map_err(|_| wrong())?;
        (first..=last).step_by(step).for_each(|v| all.bits |= 1 << v);
    }
    Ok(all)
}

impl Schedule {
    /// # Errors
    /// What cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(period) = text.strip_prefix("@every ") {
            let period = duration(period.trim())?.max(Duration::from_secs(1));
            return Ok(Self::Every(Duration::from_secs(period.as_secs())));
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            let found = fields.len();
            return Err(format!("expected exactly 5 fields, found {found}: {fields:?}"));
        };
        Ok(Self::Fields(Box::new(Fields {
            minute: field(minute, 0, 59, &[], 0)?,
            hour: field(hour, 0, 23, &[], 0)?,
            day: field(day, 1, 31, &[], 0)?,
            month: field(month, 1, 12, &MONTHS, 1)?,
            weekday: field(weekday, 0, 6, &DAYS, 0)?,
        })))
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(SignedDuration::try_from(*period).ok()?).ok()
            }
            Self::Fields(fields) => fields.next(after, zone),
        }
    }

    /// The last time after `since` that is not after `now`, and whether a hundred were missed.
    pub fn latest(
        &self,
        since: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
    ) -> (Option<Timestamp>, bool) {
        let mut many = false;
        let mut from = since;
        if self.walk(since, now, zone, 100).1 {
            many = true;
            // Too many to walk: near the present there are few, or none and then few farther off.
            for hours in [1, 24, 31 * 24, 366 * 24] {
                let near = now.checked_sub(SignedDuration::from_hours(hours)).unwrap_or(since);
                from = near.max(since);
                if self.next(from, zone).is_some_and(|t| t <= now) {
                    break;
                }
            }
        }
        (self.walk(from, now, zone, 100_000).0, many)
    }

    fn walk(
        &self,
        since: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
        most: usize,
    ) -> (Option<Timestamp>, bool) {
        let mut last = None;
        let mut at = since;
        for _ in 0..most {
            match self.next(at, zone) {
                Some(next) if next <= now => (last, at) = (Some(next), next),
                _ => return (last, false),
            }
        }
        (last, true)
    }
}

impl Fields {
    /// Whether a day is met: both fields, or either when both are restricted.
    fn day(&self, date: Date) -> bool {
        let month = self.month.has(date.month());
        let (day, weekday) =
            (self.day.has(date.day()), self.weekday.has(date.weekday().to_sunday_zero_offset()));
        month
            && match self.day.star || self.weekday.star {
                true => day && weekday,
                false => day || weekday,
            }
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut date = after.to_zoned(zone.clone()).date();
        let end = date.year().saturating_add(YEARS);
        while date.year() < end {
            if self.day(date) {
                for hour in (0..24).filter(|h| self.hour.has(*h)) {
                    for minute in (0..60).filter(|m| self.minute.has(*m)) {
                        let time = Time::new(hour, minute, 0, 0).ok()?;
                        let at = zone.to_timestamp(date.to_datetime(time)).ok()?;
                        if at > after {
                            return Some(at);
                        }
                    }
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_found() {
        let cases = [
            ("* * * * *", "2026-01-01T00:00:30Z", Some("2026-01-01T00:01:00Z")),
            ("*/15 * * * *", "2026-01-01T00:45:00Z", Some("2026-01-01T01:00:00Z")),
            ("5/20 8-9 * * *", "2026-01-01T08:46:00Z", Some("2026-01-01T09:05:00Z")),
            ("0 0 29 feb *", "2026-01-01T00:00:00Z", Some("2028-02-29T00:00:00Z")),
            ("0 12 13 * fri", "2026-01-01T00:00:00Z", Some("2026-01-02T12:00:00Z")),
            ("0 12 * * Mon", "2026-01-01T00:00:00Z", Some("2026-01-05T12:00:00Z")),
            ("@hourly", "2026-01-01T00:00:00Z", Some("2026-01-01T01:00:00Z")),
            ("@every 90s", "2026-01-01T00:00:00Z", Some("2026-01-01T00:01:30Z")),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", None),
        ];
        for (text, after, wanted) in cases {
            let schedule = Schedule::parse(text).expect(text);
            let next = schedule.next(after.parse().expect("a time"), &TimeZone::UTC);
            assert_eq!(next.map(|t| t.to_string()), wanted.map(str::to_owned), "{text}");
        }
        for text in
            ["", "* * * *", "60 * * * *", "* * * * 7", "a * * * *", "5-1 * * * *", "*/0 * * * *"]
        {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_time_missed_is_found_however_many_there_were() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let now = at("2026-01-01T00:10:30Z");
        let cases = [
            ("* * * * *", "2026-01-01T00:08:10Z", Some("2026-01-01T00:10:00Z"), false),
            ("* * * * *", "2020-01-01T00:00:00Z", Some("2026-01-01T00:10:00Z"), true),
            ("0 0 1 1 *", "2025-06-01T00:00:00Z", Some("2026-01-01T00:00:00Z"), false),
            ("30 * * * *", "2026-01-01T00:00:00Z", None, false),
        ];
        for (text, since, wanted, many) in cases {
            let schedule = Schedule::parse(text).expect(text);
            let (found, missed) = schedule.latest(at(since), now, &TimeZone::UTC);
            assert_eq!(found.map(|t| t.to_string()), wanted.map(str::to_owned), "{text} {since}");
            assert_eq!(missed, many, "{text} {since}");
        }
    }
}
