//! A value together with where it stands, so that a validation reads as the rule does:
//! `errors.push(port.at("hostPort").invalid("must be ..."))`.

use std::collections::HashSet;

use apimachinery::amounts::quantity;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::quantity::Quantity;
use apimachinery::{Map, Value, names};

static NULL: Value = Value::Null;

/// A field of the object that is being validated. Absent fields are null.
#[derive(Clone, Debug)]
pub struct At<'a> {
    value: &'a Value,
    path: Path,
}

impl<'a> At<'a> {
    pub fn root(object: &'a Value) -> Self {
        Self::new(object, Path::new(""))
    }

    pub fn new(value: &'a Value, path: Path) -> Self {
        Self { value, path }
    }

    /// A field of this one.
    pub fn at(&self, name: &str) -> At<'a> {
        At::new(self.value.get(name).unwrap_or(&NULL), self.path.child(name))
    }

    /// A field at a path of names, shown as `a.b.c`.
    pub fn down(&self, path: &[&str]) -> At<'a> {
        path.iter().fold(self.clone(), |here, name| here.at(name))
    }

    /// Another value in the place of this one (the same field of the old object).
    pub fn of(&self, value: &'a Value) -> At<'a> {
        At::new(value, self.path.clone())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Elements of a list.
    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let list = self.value.as_array().map(Vec::as_slice).unwrap_or(&[]);
        list.iter().enumerate().map(move |(i, v)| At::new(v, path.index(i)))
    }

    /// Entries of a map, in the order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let mut entries: Vec<(&str, &Value)> = match self.value {
            Value::Object(map) => map.iter().map(|(k, v)| (k.as_str(), v)).collect(),
            _ => Vec::new(),
        };
        entries.sort_unstable_by_key(|(k, _)| *k);
        entries.into_iter().map(move |(k, v)| (k, At::new(v, path.key(k))))
    }

    pub fn str(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    pub fn int(&self) -> i64 {
        self.value.as_i64().unwrap_or(0)
    }

    pub fn opt_int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn bool(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    pub fn opt_bool(&self) -> Option<bool> {
        self.value.as_bool()
    }

    pub fn map(&self) -> Option<&'a Map> {
        self.value.as_object()
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Absent, or the zero of its type.
    pub fn is_zero(&self) -> bool {
        is_zero(self.value)
    }

    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            Value::String(s) => s.len(),
            _ => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The quantity here; `None` where there is none that parses.
    pub fn quantity(&self) -> Option<Quantity> {
        quantity(self.value)
    }

    pub fn strings(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let list = self.value.as_array().map(Vec::as_slice).unwrap_or(&[]);
        list.iter().filter_map(Value::as_str)
    }

    pub fn invalid(&self, detail: impl Into<String>) -> FieldError {
        FieldError::invalid(&self.path, self.value.clone(), detail)
    }

    /// Invalid, and the error shows another value than the field's own.
    pub fn invalid_as(&self, shown: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError::invalid(&self.path, shown, detail)
    }

    /// Invalid, and the error shows no value.
    pub fn invalid_bare(&self, detail: impl Into<String>) -> FieldError {
        FieldError { value: None, ..self.invalid(detail) }
    }

    pub fn required(&self, detail: &str) -> FieldError {
        FieldError::required(&self.path, detail)
    }

    pub fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        FieldError::forbidden(&self.path, detail)
    }

    pub fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&self.path, self.value.clone())
    }

    pub fn not_found(&self) -> FieldError {
        FieldError::not_found(&self.path, self.value.clone())
    }

    pub fn not_supported(&self, valid: &[&str]) -> FieldError {
        FieldError::not_supported(&self.path, self.value.clone(), valid)
    }

    pub fn too_long(&self, max: usize) -> FieldError {
        FieldError::too_long(&self.path, max)
    }
}

/// Whether a value is the zero of its type, which Go does not tell from an absent one.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Equality as Go's semantic `DeepEqual` has it: absent, null, and empty lists and maps are
/// alike, and quantities compare by amount only where their texts are equal anyway (the canonical
/// form of an object holds canonical quantities).
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(k, v)| same(v, b.get(k).unwrap_or(&NULL)))
                && b.iter().all(|(k, v)| a.contains_key(k) || same(&NULL, v))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Null, other) | (other, Value::Null) => match other {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            other => other.is_null(),
        },
        (a, b) => a == b,
    }
}

/// A service that the API server is to call: `required` fields in the order of their errors, and
/// the port.
pub fn service_reference(errors: &mut ErrorList, service: &At<'_>, required: [&str; 2]) {
    for field in required {
        let at = service.at(field);
        if at.is_empty() {
            errors.push(at.required(""));
        }
    }
    let port = service.at("port");
    let wrong = names::port_number(port.int());
    if !wrong.is_empty() {
        let text = format!("port is not valid: {}", wrong.join(", "));
        errors.push(port.invalid_as(port.int(), text));
    }
}

/// Pushes an `Invalid` for each message.
pub fn invalid_each(errors: &mut ErrorList, at: &At<'_>, messages: Vec<String>) {
    errors.extend(messages.into_iter().map(|m| at.invalid(m)));
}

/// The field must be one of these values (in the order to show); empty is `Required`.
pub fn one_of(errors: &mut ErrorList, at: &At<'_>, valid: &[&str]) {
    if at.str().is_empty() {
        errors.push(at.required(""));
    } else {
        supported(errors, at, valid);
    }
}

/// The field must be one of these values; empty is not.
pub fn supported(errors: &mut ErrorList, at: &At<'_>, valid: &[&str]) {
    if !valid.contains(&at.str()) {
        errors.push(FieldError::not_supported(at.path(), at.str(), valid));
    }
}

/// As [`supported`], for optional fields.
pub fn supported_if_set(errors: &mut ErrorList, at: &At<'_>, valid: &[&str]) {
    if at.is_set() {
        supported(errors, at, valid);
    }
}

pub fn nonnegative(errors: &mut ErrorList, at: &At<'_>) {
    if at.int() < 0 {
        errors.push(at.invalid("must be greater than or equal to 0"));
    }
}

pub fn positive(errors: &mut ErrorList, at: &At<'_>) {
    if at.int() <= 0 {
        errors.push(at.invalid_as(at.int(), "must be greater than zero"));
    }
}

/// Upstream's text for a number out of range.
pub fn range_message(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub fn in_range(errors: &mut ErrorList, at: &At<'_>, low: i64, high: i64) {
    if !(low..=high).contains(&at.int()) {
        errors.push(at.invalid_as(at.int(), range_message(low, high)));
    }
}

/// UIDs and GIDs.
pub fn user_id(errors: &mut ErrorList, at: &At<'_>) {
    if at.is_set() {
        in_range(errors, at, 0, i64::from(i32::MAX));
    }
}

pub fn immutable(errors: &mut ErrorList, new: &At<'_>, old: &Value) {
    if !same(new.value(), old) {
        errors.push(new.invalid("field is immutable"));
    }
}

/// A port's number, or its name, in an IntOrString.
pub fn port_or_name(errors: &mut ErrorList, at: &At<'_>) {
    match at.value() {
        Value::String(name) => invalid_each(errors, at, names::port_name(name)),
        _ => {
            let port = at.int();
            errors.extend(names::port_number(port).into_iter().map(|m| at.invalid_as(port, m)));
        }
    }
}

/// Labels (`metadata.labels` of templates, node selectors): all errors stand at the map itself.
pub fn labels(errors: &mut ErrorList, at: &At<'_>) {
    for (key, value) in at.entries() {
        let value = value.str();
        errors.extend(names::qualified_name(key).into_iter().map(|m| at.invalid_as(key, m)));
        errors.extend(names::label_value(value).into_iter().map(|m| at.invalid_as(value, m)));
    }
}

/// Annotations of templates.
pub fn annotations(errors: &mut ErrorList, at: &At<'_>) {
    const LIMIT: usize = 256 << 10;
    let mut total = 0;
    for (key, value) in at.entries() {
        let lower = key.to_lowercase();
        errors.extend(names::qualified_name(&lower).into_iter().map(|m| at.invalid_as(key, m)));
        total += key.len() + value.str().len();
    }
    if total > LIMIT {
        errors.push(at.too_long(LIMIT));
    }
}

/// A `metav1.LabelSelector`.
pub fn label_selector(errors: &mut ErrorList, at: &At<'_>) {
    labels(errors, &at.at("matchLabels"));
    for expression in at.at("matchExpressions").items() {
        let values = expression.at("values");
        match expression.at("operator").str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"))
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(values.forbidden(
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ))
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors
                .push(expression.at("operator").invalid_as(other, "not a valid selector operator")),
        }
        label_key(errors, &expression.at("key"));
        for value in values.items() {
            invalid_each(errors, &value, names::label_value(value.str()));
        }
    }
}

/// The key of a label; an absent one is shown as an empty string.
pub fn label_key(errors: &mut ErrorList, at: &At<'_>) {
    let key = at.str();
    errors.extend(names::qualified_name(key).into_iter().map(|m| at.invalid_as(key, m)));
}

/// Whether a `metav1.LabelSelector` has no requirement.
pub fn selector_is_empty(selector: &Value) -> bool {
    ["matchLabels", "matchExpressions"].iter().all(|f| selector.get(*f).is_none_or(is_zero))
}

/// `acme.io/foo`
pub fn domain_prefixed_path(errors: &mut ErrorList, at: &At<'_>) {
    if at.is_empty() {
        errors.push(at.required(""));
        return;
    }
    let (host, path) = at.str().split_once('/').unwrap_or((at.str(), ""));
    if host.is_empty() || path.is_empty() {
        errors.push(at.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
        return;
    }
    errors.extend(names::dns1123_subdomain(host).into_iter().map(|m| at.invalid_as(host, m)));
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(fits) {
        let pattern = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";
        errors.push(at.invalid_as(path, names::regex_error("Invalid path", pattern, &[])));
    }
}

/// IP addresses as old fields take them: octets may have leading zeros.
pub fn legacy_ip(text: &str) -> Option<std::net::IpAddr> {
    names::parse_ip(text)
}

/// Whether the address is one that old fields take; the error is pushed when it is not.
pub fn check_legacy_ip(errors: &mut ErrorList, at: &At<'_>) -> bool {
    let ok = legacy_ip(at.str()).is_some();
    if !ok {
        errors.push(
            at.invalid_as(
                at.str(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        );
    }
    ok
}

/// CIDRs as old fields take them: host bits may be set.
pub fn legacy_cidr(text: &str) -> Option<ipnet::IpNet> {
    let (address, prefix) = text.split_once('/')?;
    ipnet::IpNet::new(legacy_ip(address)?, prefix.parse().ok()?).ok()
}

pub fn check_legacy_cidr(errors: &mut ErrorList, at: &At<'_>, text: &str) {
    if legacy_cidr(text).is_none() {
        errors.push(
            at.invalid_as(text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        );
    }
}

/// At most one address (or CIDR) of each family, and two at all.
pub fn is_dual_stack(ips: &[bool]) -> bool {
    ips.len() == 2 && ips[0] != ips[1]
}

/// Reports list elements that were seen before.
#[derive(Default)]
pub struct Seen(HashSet<String>);

impl Seen {
    /// Remembers the key; false if it was there.
    pub fn insert(&mut self, key: impl Into<String>) -> bool {
        self.0.insert(key.into())
    }

    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}
