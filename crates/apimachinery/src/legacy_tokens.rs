//! Tokens of service accounts that Secrets hold: what API servers and those that clean up tell each
//! other of their use (KEP-2799). Days are those of UTC, as `2026-01-31`.

use jiff::Timestamp;
use jiff::civil::Date;

/// Label of a Secret: the day on which its token was last used.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label of a Secret: since which day its token is refused, as nobody had used it.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Namespace and name of the ConfigMap that says since when use is tracked.
pub const TRACKING: (&str, &str) =
    ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
/// The day, in that ConfigMap.
pub const SINCE: &str = "since";

/// The day of a time.
pub fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

/// A day that is written just so; `None` for any other text.
pub fn read_day(text: &str) -> Option<Date> {
    let shaped = text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    shaped.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_in_one_way() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(day(at("2026-02-28T23:59:59.9Z")), "2026-02-28");
        assert_eq!(day(at("0999-01-01T00:00:00Z")), "0999-01-01");
        for good in ["2026-01-31", "2024-02-29"] {
            assert_eq!(read_day(good).map(|day| day.to_string()).as_deref(), Some(good));
        }
        for bad in ["", "2026-1-31", "20260131", "2026-02-29", "2026-13-01", "2026-01-31T00:00:00Z"]
        {
            assert_eq!(read_day(bad), None, "{bad}");
        }
    }
}
