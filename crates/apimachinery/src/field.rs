//! Errors of fields: where, which rule, which value. Worded as upstream's `field.Error`
//! (k8s.io/apimachinery `util/validation/field`), since clients and tests read the text.

use std::fmt;

use crate::Value;

/// The path of a field: `spec.containers[0].image`, `metadata.labels[app]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// A field of this one.
    pub fn child(&self, name: &str) -> Self {
        match self.0.as_str() {
            "" => Self::new(name),
            here => Self(format!("{here}.{name}")),
        }
    }

    /// An element of this list.
    pub fn index(&self, i: usize) -> Self {
        Self(format!("{}[{i}]", self.0))
    }

    /// An entry of this map.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which rule was broken; also the `reason` of a status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl ErrorKind {
    /// The machine-readable cause (`FieldValueInvalid`).
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::TypeInvalid => "Invalid value",
            Self::Internal => "Internal error",
        }
    }
}

/// One field that breaks one rule.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub path: String,
    /// The offending value; shown for the kinds that show one.
    pub value: Option<Value>,
    /// The value's text, where it is not that of JSON with its fields in alphabetical order.
    pub shown: Option<String>,
    pub detail: String,
}

impl FieldError {
    fn new(kind: ErrorKind, path: &Path, value: Option<Value>, detail: impl Into<String>) -> Self {
        // A rule that stands outside of any field has upstream's nil path.
        let path = if path.0.is_empty() { "<nil>" } else { &path.0 };
        Self { kind, path: path.to_owned(), value, shown: None, detail: detail.into() }
    }

    /// Shows the value as upstream shows one of a type (see [`crate::schema::shown`]).
    pub fn of_type(mut self, message: &str) -> Self {
        self.shown = self.value.as_ref().map(|value| crate::schema::shown(message, value));
        self
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, Some(value.into()), detail)
    }

    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::TypeInvalid, path, Some(value.into()), detail)
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, None, detail)
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, None, detail)
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, Some(value.into()), "")
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, Some(value.into()), "")
    }

    /// `valid` are the values that would do, in the order to show.
    pub fn not_supported(path: &Path, value: impl Into<Value>, valid: &[&str]) -> Self {
        let valid: Vec<String> = valid.iter().map(|v| quote(v)).collect();
        let detail = if valid.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", valid.join(", "))
        };
        Self::new(ErrorKind::NotSupported, path, Some(value.into()), detail)
    }

    /// Longer than `max` bytes. The value itself is not shown.
    pub fn too_long(path: &Path, max: usize) -> Self {
        let bytes = if max == 1 { "byte" } else { "bytes" };
        Self::new(ErrorKind::TooLong, path, None, format!("may not be more than {max} {bytes}"))
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {items}");
        Self::new(ErrorKind::TooMany, path, Some(actual.into()), detail)
    }

    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, path, None, detail)
    }

    /// The message without its path, as a status cause carries it.
    pub fn body(&self) -> String {
        let shown = match (self.kind, &self.value) {
            (
                ErrorKind::Required
                | ErrorKind::Forbidden
                | ErrorKind::TooLong
                | ErrorKind::Internal,
                _,
            )
            | (_, None) => String::new(),
            (_, Some(Value::String(s))) => format!(": {}", quote(s)),
            (_, Some(v)) => {
                let text = self.shown.clone().unwrap_or_else(|| v.to_string());
                format!(": {}", json_as_go(text))
            }
        };
        match self.detail.as_str() {
            "" => format!("{}{shown}", self.kind.text()),
            detail => format!("{}{shown}: {detail}", self.kind.text()),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A string as Go's `%q` writes it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_print(c) => out.push(c),
            c if (c as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

/// Go's `unicode.IsPrint`, nearly: no controls, and of the blanks only the ASCII space.
pub fn is_print(c: char) -> bool {
    let invisible = matches!(c as u32,
        0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xe000..=0xf8ff
            | 0xfff0..=0xfffb | 0xf_0000..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || invisible)
}

/// JSON as Go's encoder writes it: safe to stand in HTML.
fn json_as_go(text: String) -> String {
    let special = ['<', '>', '&', '\u{2028}', '\u{2029}'];
    if !text.contains(special) {
        return text;
    }
    text.chars().fold(String::new(), |mut out, c| {
        if special.contains(&c) {
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
        out
    })
}

/// All the rules that an object breaks, in the order they were found.
pub type ErrorList = Vec<FieldError>;

/// One error as itself, several as `[a, b]`, each text once: upstream's aggregate.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for e in errors {
        let text = e.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_read_as_upstream() {
        let p = Path::new("spec").child("list").index(2).key("a/b");
        for (error, want) in [
            (
                FieldError::invalid(&p, "a\"\n\u{1}\u{e9}", "is wrong"),
                "spec.list[2][a/b]: Invalid value: \"a\\\"\\n\\x01\u{e9}\": is wrong",
            ),
            (FieldError::invalid(&p, 3, ""), "spec.list[2][a/b]: Invalid value: 3"),
            (
                FieldError::invalid(&p, json!({"a": ["<x>"]}), "no"),
                "spec.list[2][a/b]: Invalid value: {\"a\":[\"\\u003cx\\u003e\"]}: no",
            ),
            (
                FieldError::invalid(&p, Value::Null, "no"),
                "spec.list[2][a/b]: Invalid value: null: no",
            ),
            (FieldError::required(&p, ""), "spec.list[2][a/b]: Required value"),
            (FieldError::required(&p, "say so"), "spec.list[2][a/b]: Required value: say so"),
            (FieldError::forbidden(&p, "no"), "spec.list[2][a/b]: Forbidden: no"),
            (FieldError::duplicate(&p, "x"), "spec.list[2][a/b]: Duplicate value: \"x\""),
            (FieldError::not_found(&p, "x"), "spec.list[2][a/b]: Not found: \"x\""),
            (
                FieldError::not_supported(&p, "x", &["a", "b"]),
                "spec.list[2][a/b]: Unsupported value: \"x\": supported values: \"a\", \"b\"",
            ),
            (
                FieldError::not_supported(&p, "x", &[]),
                "spec.list[2][a/b]: Unsupported value: \"x\"",
            ),
            (
                FieldError::too_long(&p, 1),
                "spec.list[2][a/b]: Too long: may not be more than 1 byte",
            ),
            (
                FieldError::too_long(&p, 9),
                "spec.list[2][a/b]: Too long: may not be more than 9 bytes",
            ),
            (
                FieldError::too_many(&p, 3, 1),
                "spec.list[2][a/b]: Too many: 3: must have at most 1 item",
            ),
            (
                FieldError::too_many(&p, 3, 2),
                "spec.list[2][a/b]: Too many: 3: must have at most 2 items",
            ),
            (FieldError::internal(&p, "oops"), "spec.list[2][a/b]: Internal error: oops"),
            (FieldError::required(&Path::new(""), ""), "<nil>: Required value"),
        ] {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn errors_aggregate() {
        let p = Path::new("a");
        let a = FieldError::required(&p, "");
        let b = FieldError::forbidden(&p, "no");
        assert_eq!(aggregate(&[a.clone(), a.clone()]), "a: Required value");
        assert_eq!(aggregate(&[a, b]), "[a: Required value, a: Forbidden: no]");
    }
}
