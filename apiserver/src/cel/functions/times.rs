//! Parts of times.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::Result;
use crate::cel::error::EvalError;
use crate::cel::value::Val;

/// `None`: no such function.
pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    match args {
        [Val::Duration(duration)] => of_duration(name, duration).map(|n| Ok(Val::Int(n))),
        [Val::Timestamp(time)] => of_time(name, *time, TimeZone::UTC).map(|n| Ok(Val::Int(n))),
        [Val::Timestamp(time), Val::Str(zone)] => match named(zone.as_str()) {
            Some(zone) => of_time(name, *time, zone).map(|n| Ok(Val::Int(n))),
            None => Some(Err(EvalError::new(format!("unknown time zone {}", zone.as_str())))),
        },
        _ => None,
    }
}

/// `Europe/Berlin`, `+02:00`.
fn named(zone: &str) -> Option<TimeZone> {
    if let Some((hours, minutes)) = zone.split_once(':') {
        let hours: i32 = hours.parse().ok()?;
        let minutes: i32 = minutes.parse().ok()?;
        let sign = if zone.starts_with('-') { -1 } else { 1 };
        let seconds = hours * 3600 + sign * minutes * 60;
        return Offset::from_seconds(seconds).ok().map(TimeZone::fixed);
    }
    match zone {
        "" | "UTC" => Some(TimeZone::UTC),
        name => TimeZone::get(name).ok(),
    }
}

fn of_duration(name: &str, duration: &SignedDuration) -> Option<i64> {
    Some(match name {
        "getHours" => duration.as_secs() / 3600,
        "getMinutes" => duration.as_secs() / 60,
        "getSeconds" => duration.as_secs(),
        "getMilliseconds" => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
        _ => return None,
    })
}

fn of_time(name: &str, time: Timestamp, zone: TimeZone) -> Option<i64> {
    let at = time.to_zoned(zone);
    Some(match name {
        "getFullYear" => i64::from(at.year()),
        "getMonth" => i64::from(at.month()) - 1,
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDate" => i64::from(at.day()),
        "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(at.hour()),
        "getMinutes" => i64::from(at.minute()),
        "getSeconds" => i64::from(at.second()),
        "getMilliseconds" => i64::from(at.millisecond()),
        _ => return None,
    })
}
