//! Formats of texts that schemas may ask for (upstream: kube-openapi `pkg/validation/strfmt`).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

/// A format's name without dashes, when it is one that is checked; else nothing.
pub fn known(format: &str) -> &'static str {
    if format.is_empty() {
        return "";
    }
    let name = format.replace('-', "");
    FORMATS.iter().find(|known| **known == name).copied().unwrap_or("")
}

const FORMATS: [&str; 26] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

macro_rules! regexes {
    ($($name:ident $pattern:literal;)*) => {$(
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());
    )*};
}

regexes! {
    OBJECT_ID r"^[0-9a-fA-F]{24}$";
    UUID r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    MAC r"^([0-9a-fA-F]{2}([:-])([0-9a-fA-F]{2}[:-]){4,6}[0-9a-fA-F]{2}|([0-9a-fA-F]{4}\.){2,3}[0-9a-fA-F]{4})$";
    CARD r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$";
    SSN r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    HEX_COLOR r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    DURATION r"^((\d+)\s*([A-Za-zµ]+))+$";
    DATE_TIME r"^([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]+)?([zZ]|([+-])([0-9]{2}):([0-9]{2}))$";
    EMAIL r"^[^\s@<>]+@[^\s@<>]+$";
    LABEL r"^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$";
}

fn matches(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// Whether a text is of a format that [`known`] gave.
pub fn holds(format: &str, text: &str) -> bool {
    match format {
        "bsonobjectid" => matches(&OBJECT_ID, text),
        "uri" => is_uri(text),
        "email" => matches(&EMAIL, text),
        "hostname" => is_hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => apimachinery::names::parse_cidr(text).is_some(),
        "mac" => matches(&MAC, text),
        "uuid" => matches(&UUID, text),
        "uuid3" => matches(&UUID3, text),
        "uuid4" => matches(&UUID4, text),
        "uuid5" => matches(&UUID5, text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_card(text),
        "ssn" => matches(&SSN, text),
        "hexcolor" => matches(&HEX_COLOR, text),
        "rgbcolor" => matches(&RGB_COLOR, text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => {
            crate::pipeline::go_duration(text).is_some() || matches(&DURATION, text.trim())
        }
        "datetime" => is_date_time(text),
        "k8sshortname" => apimachinery::names::dns1123_label(text).is_empty(),
        "k8slongname" => apimachinery::names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

/// A URI with a scheme, or an absolute path (Go: `url.ParseRequestURI`).
fn is_uri(text: &str) -> bool {
    let plain = !text.is_empty() && !text.chars().any(|c| c.is_control() || c == ' ');
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let has_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    plain && (text.starts_with('/') || has_scheme)
}

fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    !text.is_empty()
        && text.len() <= 255
        && text.split('.').all(|part| part.len() <= 63 && matches(&LABEL, part))
}

fn is_date_time(text: &str) -> bool {
    if !matches(&DATE_TIME, text) {
        return false;
    }
    text.to_uppercase().parse::<jiff::Timestamp>().is_ok()
}

fn digits(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = digits(text);
    let values: Option<Vec<u32>> = text
        .chars()
        .enumerate()
        .map(|(i, c)| if i == 9 && c == 'X' { Some(10) } else { c.to_digit(10) })
        .collect();
    values.filter(|v| v.len() == 10).is_some_and(|v| {
        v.iter().zip(1..).map(|(digit, weight): (&u32, u32)| digit * weight).sum::<u32>() % 11 == 0
    })
}

fn is_isbn13(text: &str) -> bool {
    let text = digits(text);
    let values: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(10)).collect();
    values.filter(|v| v.len() == 13).is_some_and(|v| {
        v.iter().zip([1, 3].iter().cycle()).map(|(digit, weight)| digit * weight).sum::<u32>() % 10
            == 0
    })
}

/// A card's number whose last digit fits (Luhn).
fn is_card(text: &str) -> bool {
    let text: String = text.chars().filter(char::is_ascii_digit).collect();
    let sum: u32 = text
        .chars()
        .rev()
        .filter_map(|c| c.to_digit(10))
        .enumerate()
        .map(|(i, d)| match (i % 2, d * 2) {
            (0, _) => d,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    matches(&CARD, &text) && sum % 10 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_gos() {
        for (format, good, bad) in [
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15"),
            ("date", "2006-01-02", "2006-1-2"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "fe80::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
            ("email", "a@b.c", "a"),
            ("uri", "http://a/b", "a b"),
            ("hostname", "a.b-c", "-a"),
            ("byte", "aGk=", "!"),
            ("duration", "1h30m", "soon"),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("hexcolor", "#FFF", "#FF"),
            ("rgbcolor", "rgb(255,0,1)", "rgb(256,0,1)"),
            ("k8s-short-name", "a-b", "a.b"),
        ] {
            let known = known(format);
            assert!(!known.is_empty(), "{format}");
            assert!(holds(known, good) && !holds(known, bad), "{format}");
        }
        assert_eq!(known("int32"), "");
    }
}
