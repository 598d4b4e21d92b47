//! Rules for names, labels and the like (k8s.io/apimachinery `util/validation`). Each function
//! returns upstream's messages for the rules that are broken; none means valid.

/// RFC 1123 label: at most 63 of `[a-z0-9-]`, alphanumeric at both ends.
pub fn dns1123_label(_s: &str) -> Vec<String> {
    todo!()
}

/// RFC 1123 subdomain: at most 253, labels joined by dots.
pub fn dns1123_subdomain(_s: &str) -> Vec<String> {
    todo!()
}

/// RFC 1035 label: as RFC 1123's, beginning with a letter.
pub fn dns1035_label(_s: &str) -> Vec<String> {
    todo!()
}

/// Label, annotation and taint keys: an optional DNS prefix and a name.
pub fn qualified_name(_s: &str) -> Vec<String> {
    todo!()
}

/// Label values.
pub fn label_value(_s: &str) -> Vec<String> {
    todo!()
}

/// A path segment (RBAC names): not `.` or `..`, no `/` or `%`.
pub fn path_segment(_s: &str) -> Vec<String> {
    todo!()
}

/// C identifiers; environment variables use [`env_var_name`].
pub fn c_identifier(_s: &str) -> Vec<String> {
    todo!()
}

/// Printable ASCII but `=`.
pub fn env_var_name(_s: &str) -> Vec<String> {
    todo!()
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(_s: &str) -> Vec<String> {
    todo!()
}

/// 1 to 65535.
pub fn port_number(_port: i64) -> Vec<String> {
    todo!()
}

/// `http`-like names of ports: at most 15 of `[a-z0-9-]`, a letter among them.
pub fn port_name(_s: &str) -> Vec<String> {
    todo!()
}

/// An IPv4 or IPv6 address.
pub fn ip(_s: &str) -> Vec<String> {
    todo!()
}

/// Five random characters of upstream's alphabet without vowels, for `generateName`; the base
/// is cut so that the name has at most 63 characters. `random` gives numbers below its argument.
pub fn generate(_base: &str, _random: impl FnMut(usize) -> usize) -> String {
    todo!()
}
