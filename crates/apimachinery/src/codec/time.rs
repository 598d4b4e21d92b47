//! Times and durations as Go reads and writes them.

use std::fmt::Write;

/// `time.RFC3339`, which names itself in errors.
const SECONDS_LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
/// `metav1.RFC3339Micro`
const MICROS_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";
/// The Unix time of Go's zero `time.Time`, the start of year 1.
pub(crate) const ZERO: i64 = -62_135_596_800;

/// An instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instant {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

impl Instant {
    /// Go's `IsZero`.
    pub(crate) fn is_zero(self) -> bool {
        self.seconds == ZERO && self.nanos == 0
    }
}

/// Parses as `time.Parse` does with RFC 3339, or with six digits of seconds' fraction required.
pub(crate) fn parse(text: &str, micros: bool) -> Result<Instant, String> {
    let layout = if micros { MICROS_LAYOUT } else { SECONDS_LAYOUT };
    let mut p = Parser { text, rest: text, layout };
    let year = p.digits(4, 4, "2006")?;
    p.literal("-", "-")?;
    let month = p.digits(2, 2, "01")?;
    if !(1..=12).contains(&month) {
        return p.out_of_range("month");
    }
    p.literal("-", "-")?;
    let day = p.digits(2, 2, "02")?;
    p.literal("T", "T")?;
    let hour = p.digits(1, 2, "15")?;
    if hour > 23 {
        return p.out_of_range("hour");
    }
    p.literal(":", ":")?;
    let minute = p.digits(2, 2, "04")?;
    if minute > 59 {
        return p.out_of_range("minute");
    }
    p.literal(":", ":")?;
    let second = p.digits(2, 2, "05")?;
    if second > 59 {
        return p.out_of_range("second");
    }
    let nanos = p.fraction(micros)?;
    let offset = p.zone()?;
    if !p.rest.is_empty() {
        return Err(format!("parsing time {}: extra text: {}", quote(text), quote(p.rest)));
    }
    if day < 1 || day > days_in(year, month) {
        return p.out_of_range("day");
    }
    let days = days_from_civil(year, month, day);
    let seconds = days * 86400 + hour * 3600 + minute * 60 + second - offset;
    Ok(Instant { seconds, nanos })
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'a str,
}

impl Parser<'_> {
    fn fail<T>(&self, element: &str) -> Result<T, String> {
        Err(format!(
            "parsing time {} as {}: cannot parse {} as {}",
            quote(self.text),
            quote(self.layout),
            quote(self.rest),
            quote(element)
        ))
    }

    fn out_of_range<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("parsing time {}: {what} out of range", quote(self.text)))
    }

    fn digits(&mut self, min: usize, max: usize, element: &str) -> Result<i64, String> {
        let n = self.rest.bytes().take(max).take_while(u8::is_ascii_digit).count();
        if n < min {
            return self.fail(element);
        }
        let (digits, rest) = self.rest.split_at(n);
        let Ok(value) = digits.parse() else { return self.fail(element) };
        self.rest = rest;
        Ok(value)
    }

    fn literal(&mut self, literal: &str, element: &str) -> Result<(), String> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.fail(element),
        }
    }

    /// Nanoseconds. Go takes any fraction after the seconds, though the layout has none.
    fn fraction(&mut self, micros: bool) -> Result<u32, String> {
        let mut rest = self.rest.strip_prefix(['.', ',']).unwrap_or("");
        let mut n = rest.bytes().take_while(u8::is_ascii_digit).count();
        if micros {
            if n < 6 {
                return self.fail(".000000");
            }
            n = 6;
        }
        if n == 0 {
            return Ok(0);
        }
        let digits;
        (digits, rest) = rest.split_at(n);
        let padded = digits.bytes().chain(std::iter::repeat(b'0')).take(9);
        self.rest = rest;
        Ok(padded.fold(0, |nanos, d| nanos * 10 + u32::from(d - b'0')))
    }

    /// Seconds east of UTC.
    fn zone(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let b = self.rest.as_bytes();
        let two = |at: usize| match b.get(at..at + 2) {
            Some([h, l]) if h.is_ascii_digit() && l.is_ascii_digit() => {
                Some(i64::from(h - b'0') * 10 + i64::from(l - b'0'))
            }
            _ => None,
        };
        let (sign, hour, minute) = match (b.first(), two(1), b.get(3), two(4)) {
            (Some(b'+'), Some(hour), Some(b':'), Some(minute)) => (1, hour, minute),
            (Some(b'-'), Some(hour), Some(b':'), Some(minute)) => (-1, hour, minute),
            _ => return self.fail("Z07:00"),
        };
        if hour > 24 {
            return self.out_of_range("time zone offset hour");
        }
        if minute > 60 {
            return self.out_of_range("time zone offset minute");
        }
        self.rest = &self.rest[6..];
        Ok(sign * (hour * 3600 + minute * 60))
    }
}

/// Quotes as Go's time package does.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => {
                let mut buf = [0; 4];
                for b in c.encode_utf8(&mut buf).bytes() {
                    let _ = write!(out, "\\x{b:02x}");
                }
            }
        }
    }
    out.push('"');
    out
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years are counted from March, so that the leap day comes last.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse: year, month and day.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let day = of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Writes in UTC: `2006-01-02T15:04:05Z`, with microseconds if asked.
pub(crate) fn format(t: Instant, micros: bool) -> String {
    let (days, of_day) = (t.seconds.div_euclid(86400), t.seconds.rem_euclid(86400));
    // Protobuf can carry any 64-bit second; a clamp keeps the calendar's arithmetic in range.
    let (year, month, day) = civil_from_days(days.clamp(-4_000_000_000_000, 4_000_000_000_000));
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let sign = if year < 0 { "-" } else { "" };
    let year = year.unsigned_abs();
    let mut out = format!("{sign}{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if micros {
        let _ = write!(out, ".{:06}", t.nanos / 1000);
    }
    out.push('Z');
    out
}

/// Parses as `time.ParseDuration`, to nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, mut after) = rest.split_at(whole_len);
        let mut fraction = "";
        if let Some(tail) = after.strip_prefix('.') {
            let n = tail.bytes().take_while(u8::is_ascii_digit).count();
            (fraction, after) = tail.split_at(n);
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_len);
        let scale: u64 = match unit {
            "" => return Err(format!("time: missing unit in duration {}", quote(text))),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                let (unit, text) = (quote(unit), quote(text));
                return Err(format!("time: unknown unit {unit} in duration {text}"));
            }
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let mut part = whole.checked_mul(scale).ok_or_else(invalid)?;
        if !fraction.is_empty() {
            // Go drops digits that no longer fit, and so do we beyond the 15th.
            let digits = &fraction[..fraction.len().min(15)];
            let value: u64 = digits.parse().map_err(|_| invalid())?;
            let divisor = 10f64.powi(digits.len() as i32);
            part = part
                .checked_add((value as f64 * (scale as f64 / divisor)) as u64)
                .ok_or_else(invalid)?;
        }
        total = total.checked_add(part).filter(|&t| t <= 1 << 63).ok_or_else(invalid)?;
        rest = tail;
    }
    match (negative, i64::try_from(total)) {
        (false, Ok(n)) => Ok(n),
        (true, Ok(n)) => Ok(-n),
        (true, Err(_)) => Ok(i64::MIN),
        (false, Err(_)) => Err(invalid()),
    }
}

/// Writes as Go's `Duration.String`: `1h30m0s`, `1.5s`, `0s`.
pub(crate) fn format_duration(nanos: i64) -> String {
    let n = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = |value: u64, unit: u64| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match n {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(n, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(n, 1_000_000)),
        _ => {
            let minutes = n / 60_000_000_000;
            let seconds = fraction(n % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, canonical) in [
            ("2024-02-29T12:34:56Z", "2024-02-29T12:34:56Z"),
            ("2024-02-29T12:34:56.789Z", "2024-02-29T12:34:56Z"),
            ("2024-01-01T00:00:00+02:00", "2023-12-31T22:00:00Z"),
            ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            let t = parse(text, false).expect(text);
            assert_eq!(format(t, false), canonical);
        }
        assert!(parse("0001-01-01T00:00:00Z", false).expect("zero").is_zero());
        let t = parse("2024-02-29T12:34:56.789012Z", true).expect("micros");
        assert_eq!(format(t, true), "2024-02-29T12:34:56.789012Z");
        for (text, error) in [
            (
                "soon",
                r#"parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006""#,
            ),
            ("2024-13-01T00:00:00Z", r#"parsing time "2024-13-01T00:00:00Z": month out of range"#),
            ("2023-02-29T00:00:00Z", r#"parsing time "2023-02-29T00:00:00Z": day out of range"#),
            (
                "2024-01-01T00:00:00",
                r#"parsing time "2024-01-01T00:00:00" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "Z07:00""#,
            ),
        ] {
            assert_eq!(parse(text, false), Err(error.to_owned()));
        }
        assert!(parse("2024-02-29T12:34:56Z", true).is_err());
    }

    #[test]
    fn durations() {
        for (text, nanos, canonical) in [
            ("0", 0, "0s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("-90s", -90_000_000_000, "-1m30s"),
            ("100ms", 100_000_000, "100ms"),
            ("1500us", 1_500_000, "1.5ms"),
            ("12ns", 12, "12ns"),
        ] {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
            assert_eq!(format_duration(nanos), canonical);
        }
        assert_eq!(parse_duration("5"), Err("time: missing unit in duration \"5\"".into()));
        assert_eq!(parse_duration("x"), Err("time: invalid duration \"x\"".into()));
        assert_eq!(parse_duration("5d"), Err("time: unknown unit \"d\" in duration \"5d\"".into()));
    }
}
