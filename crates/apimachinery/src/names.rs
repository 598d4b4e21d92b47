//! Rules for names, labels and the like (k8s.io/apimachinery `util/validation`). Each function
//! returns upstream's messages for the rules that are broken; none means valid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

/// A broken pattern, worded with examples of what fits it.
pub fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

/// A text of more than `max` bytes, as the older rules word it.
pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// A text of more than `max` bytes, as the rules for labels word it.
fn max_bytes_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// An empty text where something must stand.
pub fn empty_error() -> String {
    "must be non-empty".to_owned()
}

/// A number outside of a range.
pub fn range_error(min: i64, max: i64) -> String {
    format!("must be between {min} and {max}, inclusive")
}

fn is_lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Characters of `inner` with alphanumeric ends of `ends`.
fn framed(s: &str, ends: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    match s.as_bytes() {
        [] => false,
        [only] => ends(*only),
        [first, middle @ .., last] => {
            ends(*first) && ends(*last) && middle.iter().all(|b| ends(*b) || inner(*b))
        }
    }
}

fn matches_label(s: &str) -> bool {
    framed(s, is_lower_alnum, |b| b == b'-')
}

fn matches_subdomain(s: &str) -> bool {
    s.split('.').all(matches_label)
}

fn matches_qualified(s: &str) -> bool {
    framed(s, |b| b.is_ascii_alphanumeric(), |b| b"-_.".contains(&b))
}

/// RFC 1123 label: at most 63 of `[a-z0-9-]`, alphanumeric at both ends.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > LABEL_MAX {
        errors.push(max_len_error(LABEL_MAX));
    }
    if !matches_label(s) {
        errors.push(if matches_subdomain(s) {
            "must not contain dots".to_owned()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
                 or '-', and must start and end with an alphanumeric character",
                LABEL_FMT,
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

fn subdomain(s: &str, too_long: fn(usize) -> String) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if !matches_subdomain(s) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
             '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN_FMT,
            &["example.com"],
        ));
    }
    errors
}

/// RFC 1123 subdomain: at most 253, labels joined by dots.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    subdomain(s, max_len_error)
}

/// [`dns1123_subdomain`] whose labels may hold, and begin with, underscores.
pub fn dns1123_subdomain_with_underscore(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    let label =
        |l: &str| framed(l.strip_prefix('_').unwrap_or(l), is_lower_alnum, |b| b"-_".contains(&b));
    if !s.split('.').all(label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
             '_', '-' or '.', and must start and end with an alphanumeric character",
            "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    errors
}

/// `*.` and a subdomain.
pub fn wildcard_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    if !s.strip_prefix("*.").is_some_and(matches_subdomain) {
        errors.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS \
             subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and \
             end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN_FMT}"),
            &["*.example.com"],
        ));
    }
    errors
}

/// RFC 1035 label: as RFC 1123's, beginning with a letter.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > LABEL_MAX {
        errors.push(max_len_error(LABEL_MAX));
    }
    if !(matches_label(s) && s.starts_with(|c: char| c.is_ascii_lowercase())) {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
             with an alphabetic character, and end with an alphanumeric character",
            LABEL_1035_FMT,
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// A name for [`generate`] to complete: what follows replaces a trailing dash, so that is no
/// mistake. Upstream drops the character before it too, which its messages do not show.
fn with_suffix(base: &str) -> String {
    match base.strip_suffix('-') {
        Some(head) if !head.is_empty() => {
            let mut name = head.to_owned();
            name.pop();
            name.push('a');
            name
        }
        _ => base.to_owned(),
    }
}

/// Messages for a name, or for the prefix of one (`generateName`).
pub type NameRule = fn(name: &str, prefix: bool) -> Vec<String>;

/// Names that are RFC 1123 subdomains; most kinds use this rule.
pub fn name_is_subdomain(name: &str, prefix: bool) -> Vec<String> {
    if prefix { dns1123_subdomain(&with_suffix(name)) } else { dns1123_subdomain(name) }
}

/// Names that are RFC 1123 labels; namespaces, for instance.
pub fn name_is_label(name: &str, prefix: bool) -> Vec<String> {
    if prefix { dns1123_label(&with_suffix(name)) } else { dns1123_label(name) }
}

/// Names that are RFC 1035 labels.
pub fn name_is_dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    if prefix { dns1035_label(&with_suffix(name)) } else { dns1035_label(name) }
}

/// Names that need only fit into a URL path; RBAC's, for instance.
pub fn name_is_path_segment(name: &str, prefix: bool) -> Vec<String> {
    if prefix { path_segment_prefix(name) } else { path_segment(name) }
}

/// Label, annotation and taint keys: an optional DNS prefix and a name.
pub fn qualified_name(s: &str) -> Vec<String> {
    let pattern = |what: &str| {
        regex_error(
            &format!(
                "{what}must consist of alphanumeric characters, '-', '_' or '.', and must start \
                 and end with an alphanumeric character"
            ),
            QUALIFIED_FMT,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut errors = Vec::new();
    let name = match s.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push(format!("prefix part {}", empty_error()));
            } else {
                let broken = subdomain(prefix, max_bytes_error);
                errors.extend(broken.into_iter().map(|e| format!("prefix part {e}")));
            }
            *name
        }
        _ => {
            return vec![format!(
                "{} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern("a valid label key ")
            )];
        }
    };
    if name.is_empty() {
        errors.push(format!("name part {}", empty_error()));
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", max_bytes_error(LABEL_MAX)));
    }
    if !matches_qualified(name) {
        errors.push(pattern("name part "));
    }
    errors
}

/// Label values.
pub fn label_value(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > LABEL_MAX {
        errors.push(max_bytes_error(LABEL_MAX));
    }
    if !s.is_empty() && !matches_qualified(s) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', \
             '_' or '.', and must start and end with an alphanumeric character",
            &format!("({QUALIFIED_FMT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A path segment (RBAC names): not `.` or `..`, no `/` or `%`.
pub fn path_segment(s: &str) -> Vec<String> {
    match s {
        "." | ".." => vec![format!("may not be '{s}'")],
        _ => path_segment_prefix(s),
    }
}

/// The beginning of a path segment.
pub fn path_segment_prefix(s: &str) -> Vec<String> {
    ["/", "%"]
        .into_iter()
        .filter(|c| s.contains(c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// C identifiers; environment variables use [`env_var_name`].
pub fn c_identifier(s: &str) -> Vec<String> {
    let head = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let fits = match s.as_bytes() {
        [] => false,
        [first, rest @ ..] => head(*first) && rest.iter().all(|b| head(*b) || b.is_ascii_digit()),
    };
    if fits {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string \
         of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// Printable ASCII but `=`.
pub fn env_var_name(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.is_empty() {
        errors.push(format!("environment variable name {}", empty_error()));
    }
    if !s.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters \
             other than '='"
                .to_owned(),
        );
    }
    errors
}

/// The older, stricter rule for names of environment variables.
pub fn strict_env_var_name(s: &str) -> Vec<String> {
    let inner = |b: u8| b"-._".contains(&b) || b.is_ascii_alphanumeric();
    let fits =
        !s.is_empty() && s.bytes().all(inner) && !s.starts_with(|c: char| c.is_ascii_digit());
    let mut errors = Vec::new();
    if !fits {
        errors.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, \
             '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errors.extend(parent_directory(s));
    errors
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(|b| b"-._".contains(&b) || b.is_ascii_alphanumeric()) {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(parent_directory(s));
    errors
}

fn parent_directory(s: &str) -> Option<String> {
    match s {
        "." | ".." => Some(format!("must not be '{s}'")),
        _ if s.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// 1 to 65535.
pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

/// A number of a range, both ends included.
pub fn in_range(value: i64, min: i64, max: i64) -> Vec<String> {
    if (min..=max).contains(&value) { Vec::new() } else { vec![range_error(min, max)] }
}

/// User and group ids.
pub fn unix_id(id: i64) -> Vec<String> {
    in_range(id, 0, i64::from(i32::MAX))
}

/// `http`-like names of ports: at most 15 of `[a-z0-9-]`, a letter among them.
pub fn port_name(s: &str) -> Vec<String> {
    let rules = [
        (s.len() > 15, "must be no more than 15 characters"),
        (
            s.is_empty() || !s.bytes().all(|b| is_lower_alnum(b) || b == b'-'),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (!s.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (s.contains("--"), "must not contain consecutive hyphens"),
        (s.starts_with('-') || s.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    rules.into_iter().filter(|(broken, _)| *broken).map(|(_, e)| e.to_owned()).collect()
}

/// `12%`.
pub fn percent(s: &str) -> Vec<String> {
    let digits = s.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Names of HTTP headers.
pub fn http_header_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|b| b == b'-' || b.is_ascii_alphanumeric()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// An address as upstream reads it in old fields: IPv4 parts may have leading zeros.
pub fn parse_ip(s: &str) -> Option<IpAddr> {
    if let Some((head, tail)) = s.rsplit_once(':') {
        // The tail may be an IPv4 address, with leading zeros as well.
        let plain = match tail.contains('.').then(|| parse_ip(tail)).flatten() {
            Some(v4) => format!("{head}:{v4}"),
            None => s.to_owned(),
        };
        return plain.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let parts: Vec<&str> = s.split('.').collect();
    let mut octets = [0_u8; 4];
    if parts.len() != 4 {
        return None;
    }
    for (octet, part) in octets.iter_mut().zip(parts) {
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// An address and the length of its prefix, read as [`parse_ip`] reads.
pub fn parse_cidr(s: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = s.split_once('/')?;
    let ip = parse_ip(address)?;
    if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits = bits.trim_start_matches('0');
    let bits: u8 = if bits.is_empty() { 0 } else { bits.parse().ok()? };
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

/// An IPv4 or IPv6 address, as fields take it that are older than the strict rule.
pub fn ip(s: &str) -> Vec<String> {
    match parse_ip(s) {
        Some(_) => Vec::new(),
        None => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// An address without leading zeros that is not an IPv4 address in IPv6 clothes, in any
/// spelling if `any_spelling`, else in its canonical one.
pub fn strict_ip(s: &str, any_spelling: bool) -> Vec<String> {
    let Some(address) = parse_ip(s) else { return ip(s) };
    if s.parse::<IpAddr>().is_err() {
        return vec!["must not have leading 0s".to_owned()];
    }
    if is_mapped(address) {
        return vec!["must not be an IPv4-mapped IPv6 address".to_owned()];
    }
    if !any_spelling && address.to_string() != s {
        return vec![format!("must be in canonical form (\"{address}\")")];
    }
    Vec::new()
}

/// An address range, as fields take it that are older than the strict rule.
pub fn cidr(s: &str) -> Vec<String> {
    match parse_cidr(s) {
        Some(_) => Vec::new(),
        None => {
            vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
        }
    }
}

/// An address range without leading zeros and without bits beyond its prefix, in any spelling
/// if `any_spelling`, else in its canonical one.
pub fn strict_cidr(s: &str, any_spelling: bool) -> Vec<String> {
    let Some((address, bits)) = parse_cidr(s) else { return cidr(s) };
    let (text, length) = s.split_once('/').unwrap_or((s, ""));
    if text.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0')) {
        return vec!["must not have leading 0s in IP or prefix length".to_owned()];
    }
    if is_mapped(address) {
        return vec!["must not have an IPv4-mapped IPv6 address".to_owned()];
    }
    if masked(address, bits) != address {
        return vec!["must not have bits set beyond the prefix length".to_owned()];
    }
    if !any_spelling && format!("{address}/{bits}") != s {
        return vec![format!("must be in canonical form (\"{address}/{bits}\")")];
    }
    Vec::new()
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The first address of a range.
pub fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// Upstream's alphabet for random names: no vowels, so no words.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Five random characters of upstream's alphabet without vowels, for `generateName`; the base
/// is cut so that the name has at most 63 characters. `random` gives numbers below its argument.
pub fn generate(base: &str, random: impl FnMut(usize) -> usize) -> String {
    let mut cut = base.len().min(LABEL_MAX - 5);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{}", &base[..cut], random_string(5, random))
}

/// Random characters of the alphabet of generated names.
pub fn random_string(length: usize, mut random: impl FnMut(usize) -> usize) -> String {
    (0..length).map(|_| char::from(ALPHABET[random(ALPHABET.len()) % ALPHABET.len()])).collect()
}

/// A text (a hash) in the alphabet of generated names.
pub fn safe_encode(s: &str) -> String {
    s.chars().map(|c| char::from(ALPHABET[c as usize % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line has a rule, a text, and upstream's messages.
    #[test]
    fn messages_as_upstream() {
        for line in include_str!("testdata/names.jsonl").lines() {
            let (rule, text, want): (String, String, Vec<String>) =
                serde_json::from_str(line).expect("valid case");
            let got = match rule.as_str() {
                "dns1123_label" => dns1123_label(&text),
                "dns1123_subdomain" => dns1123_subdomain(&text),
                "dns1123_subdomain_with_underscore" => dns1123_subdomain_with_underscore(&text),
                "wildcard_dns1123_subdomain" => wildcard_dns1123_subdomain(&text),
                "dns1035_label" => dns1035_label(&text),
                "qualified_name" => qualified_name(&text),
                "label_value" => label_value(&text),
                "path_segment" => path_segment(&text),
                "c_identifier" => c_identifier(&text),
                "env_var_name" => env_var_name(&text),
                "strict_env_var_name" => strict_env_var_name(&text),
                "config_map_key" => config_map_key(&text),
                "port_name" => port_name(&text),
                "percent" => percent(&text),
                "http_header_name" => http_header_name(&text),
                "ip" => ip(&text),
                "strict_ip_any" => strict_ip(&text, true),
                "strict_ip" => strict_ip(&text, false),
                "cidr" => cidr(&text),
                "strict_cidr_any" => strict_cidr(&text, true),
                "strict_cidr" => strict_cidr(&text, false),
                "prefix_label" => name_is_label(&text, true),
                other => panic!("no rule {other}"),
            };
            assert_eq!(got, want, "{line}");
        }
    }

    #[test]
    fn generated_names() {
        assert_eq!(generate("web-", |_| 0), "web-bbbbb");
        let long = generate(&"a".repeat(100), |n| n - 1);
        assert_eq!(long, format!("{}99999", "a".repeat(58)));
        assert_eq!(safe_encode("0156"), "459b");
    }
}
