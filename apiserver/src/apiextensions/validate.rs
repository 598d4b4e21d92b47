//! Values held against a schema, with the messages of upstream's validator (kube-openapi
//! `pkg/validation/validate`) and its choice among the failures of `anyOf` and `oneOf`.

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};

use super::formats;
use super::schema::Schema;

/// Errors of a value, and how many checks it passed: that decides which alternative of several
/// failed ones is told of.
#[derive(Default)]
struct Outcome {
    errors: ErrorList,
    matches: usize,
}

impl Outcome {
    fn error(error: FieldError) -> Self {
        Self { errors: vec![error], matches: 0 }
    }

    fn add(&mut self, error: FieldError) {
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    fn merge(&mut self, other: Self) {
        other.errors.into_iter().for_each(|e| self.add(e));
        self.matches += other.matches;
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Where the validator is: upstream has its own notion of paths.
struct At<'a> {
    path: &'a str,
    /// What errors that are of no field stand at.
    base: &'a Path,
}

impl At<'_> {
    /// The path of an error's field.
    fn field(&self) -> Path {
        match self.path.strip_prefix('.').unwrap_or(self.path) {
            "" => self.base.clone(),
            path => self.base.child(path),
        }
    }

    fn invalid(&self, value: impl Into<Value>, text: &str) -> FieldError {
        FieldError::invalid(&self.field(), value, format!("{} in body {text}", self.path))
    }

    fn wrong_type(&self, wanted: &str, value: impl Into<Value>, shown: &str) -> FieldError {
        let text = format!(
            "{} in body must be of type {wanted}: {}",
            self.path,
            apimachinery::field::quote(shown)
        );
        FieldError::type_invalid(&self.field(), value, text)
    }

    fn schemas(&self, text: &str) -> FieldError {
        FieldError::invalid(self.base, "", format!("\"{}\" must {text}", self.path))
    }
}

/// All rules of a schema that a value breaks, below `base`. With the `old` value of an update,
/// what was wrong before and has not changed is let pass.
pub fn validate(base: &Path, schema: &Schema, new: &Value, old: Option<&Value>) -> ErrorList {
    ratcheted(schema, new, old, "", base).errors
}

/// A value, whose errors do not count when it was so before.
fn ratcheted(
    schema: &Schema,
    new: &Value,
    old: Option<&Value>,
    path: &str,
    base: &Path,
) -> Outcome {
    let outcome = check(schema, new, old, path, base);
    if !outcome.is_valid() && old == Some(new) {
        return Outcome::default();
    }
    outcome
}

fn check(schema: &Schema, new: &Value, old: Option<&Value>, path: &str, base: &Path) -> Outcome {
    let at = At { path, base };
    let mut all = Outcome::default();
    if new.is_null() {
        all.merge(type_of(schema, new, &at));
        all.merge(values(schema, new, &at));
        return all;
    }
    let mut took = |outcome: Outcome| {
        all.merge(outcome);
        all.matches += 1;
    };
    if !schema.types().is_empty() || !formats::known(&schema.format).is_empty() {
        took(type_of(schema, new, &at));
    }
    took(alternatives(schema, new, old, &at));
    match new {
        Value::String(text) => {
            took(string(schema, text, &at));
            let format = formats::known(&schema.format);
            if !format.is_empty() {
                took(match formats::holds(format, text) {
                    true => Outcome::default(),
                    false => Outcome::error(at.wrong_type(&schema.format, text.as_str(), text)),
                });
            }
        }
        Value::Number(_) => took(number(schema, new, &at)),
        Value::Array(items) => took(list(schema, items, old, &at)),
        _ => {}
    }
    took(values(schema, new, &at));
    if let Value::Object(_) = new {
        took(object(schema, new, old, &at));
    }
    all.matches += 1;
    all
}

/// What JSON calls a value, and whether it is a number that counts as an integer.
fn kind(value: &Value) -> (&'static str, bool) {
    /// No float beyond it counts as an integer.
    const EXACT: f64 = 9_007_199_254_740_991.0;
    match value {
        Value::Null => ("null", false),
        Value::Bool(_) => ("boolean", false),
        Value::String(_) => ("string", false),
        Value::Array(_) => ("array", false),
        Value::Object(_) => ("object", false),
        Value::Number(n) if n.is_i64() => ("integer", true),
        Value::Number(n) => {
            let whole = |f: f64| f.fract() == 0.0 && f.abs() <= EXACT;
            ("number", n.as_f64().is_some_and(whole))
        }
    }
}

fn type_of(schema: &Schema, value: &Value, at: &At<'_>) -> Outcome {
    let types = schema.types();
    let passed = || Outcome { matches: 1, ..Outcome::default() };
    let (found, whole) = kind(value);
    let wrong = || Outcome::error(at.wrong_type(&types.join(","), found, found));
    if value.is_null() {
        return if types.is_empty() || schema.nullable { passed() } else { wrong() };
    }
    let numeric = types.contains(&"number") || types.contains(&"integer");
    let format = formats::known(&schema.format);
    if !numeric && !format.is_empty() && matches!(value, Value::String(_) | Value::Array(_)) {
        return passed();
    }
    let fits = types.is_empty()
        || types.contains(&found)
        || whole && (types.contains(&"integer") || types.contains(&"number"));
    if fits { passed() } else { wrong() }
}

fn string(schema: &Schema, text: &str, at: &At<'_>) -> Outcome {
    let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = schema.max_length.filter(|max| length() > *max) {
        let max = usize::try_from(max).unwrap_or(0);
        return Outcome::error(FieldError::too_long(&at.field(), max));
    }
    if let Some(min) = schema.min_length.filter(|min| length() < *min) {
        return Outcome::error(at.invalid(text, &format!("should be at least {min} chars long")));
    }
    if let Some(pattern) = &schema.pattern {
        let matches = pattern.regex.as_ref().is_ok_and(|regex| regex.is_match(text));
        if !matches {
            return Outcome::error(at.invalid(text, &format!("should match '{}'", pattern.text)));
        }
    }
    Outcome::default()
}

/// A bound as Go prints it.
fn shown(bound: f64) -> String {
    if bound.fract() == 0.0 && bound.abs() < 1e21 {
        format!("{bound:.0}")
    } else {
        bound.to_string()
    }
}

fn number(schema: &Schema, value: &Value, at: &At<'_>) -> Outcome {
    let mut all = Outcome { matches: 1, ..Outcome::default() };
    let Some(number) = value.as_f64() else { return all };
    if let Some(factor) = schema.multiple_of {
        let quotient = number / factor;
        if factor <= 0.0 || quotient != quotient.trunc() {
            let text = format!("should be a multiple of {}", shown(factor));
            all.add(at.invalid(value.clone(), &text));
        }
    }
    let beyond = |bound: f64, exclusive: bool, sign: f64| {
        let distance = match (value.as_i64(), bound.fract() == 0.0 && bound.abs() < 9e15) {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
            (Some(n), true) => n.saturating_sub(bound as i64) as f64,
            _ => number - bound,
        } * sign;
        distance > 0.0 || exclusive && distance == 0.0
    };
    if let Some(min) = schema.minimum
        && beyond(min, schema.exclusive_minimum, -1.0)
    {
        let than =
            if schema.exclusive_minimum { "greater than" } else { "greater than or equal to" };
        all.add(at.invalid(value.clone(), &format!("should be {than} {}", shown(min))));
    }
    if let Some(max) = schema.maximum
        && beyond(max, schema.exclusive_maximum, 1.0)
    {
        let than = if schema.exclusive_maximum { "less than" } else { "less than or equal to" };
        all.add(at.invalid(value.clone(), &format!("should be {than} {}", shown(max))));
    }
    all
}

fn values(schema: &Schema, value: &Value, at: &At<'_>) -> Outcome {
    let Some(allowed) = schema.one_of_values.as_ref().filter(|v| !v.is_empty()) else {
        return Outcome::default();
    };
    let same = |a: &Value| match (a.as_f64(), value.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == value,
    };
    if allowed.iter().any(same) {
        return Outcome::default();
    }
    let texts: Vec<String> =
        allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Outcome::error(FieldError::not_supported(&at.field(), value.clone(), &texts))
}

fn list(schema: &Schema, items: &[Value], old: Option<&Value>, at: &At<'_>) -> Outcome {
    let mut all = Outcome::default();
    if let Some(inner) = schema.items.as_deref() {
        for (i, item) in items.iter().enumerate() {
            let before = super::correlate::item(schema, item, old);
            let path = format!("{}[{i}]", at.path);
            all.merge(ratcheted(inner, item, before, &path, at.base));
        }
    }
    let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    if let Some(min) = schema.min_items.filter(|min| count < *min) {
        all.add(at.invalid(count, &format!("should have at least {min} items")));
    }
    if let Some(max) = schema.max_items.filter(|max| count > *max) {
        let max = usize::try_from(max).unwrap_or(0);
        all.add(FieldError::too_many(&at.field(), items.len(), max));
    }
    if schema.unique_items && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
        all.add(at.invalid("", "shouldn't contain duplicates"));
    }
    all.matches += 1;
    all
}

fn object(schema: &Schema, value: &Value, old: Option<&Value>, at: &At<'_>) -> Outcome {
    let mut all = Outcome::default();
    let Some(map) = value.as_object() else { return all };
    let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
    if let Some(min) = schema.min_properties.filter(|min| count < *min) {
        all.add(at.invalid(count, &format!("should have at least {min} properties")));
    }
    if let Some(max) = schema.max_properties.filter(|max| count > *max) {
        let max = usize::try_from(max).unwrap_or(0);
        all.add(FieldError::too_many(&at.field(), map.len(), max));
    }
    let before = |name: &str| {
        let type_meta = at.path.is_empty() && matches!(name, "apiVersion" | "kind");
        if type_meta { None } else { super::correlate::entry(name, old) }
    };
    let others = map.iter().filter(|(name, _)| !schema.properties.contains_key(*name));
    match &schema.additional {
        Some(additional) if !additional.allowed => {
            for (name, _) in others {
                let text = format!("{}.{name} in body is a forbidden property", at.path);
                all.add(FieldError::invalid(&at.field(), name.as_str(), text));
            }
        }
        Some(additional) => {
            if let Some(inner) = additional.schema.as_deref() {
                for (name, child) in others {
                    let path = format!("{}.{name}", at.path);
                    all.merge(ratcheted(inner, child, before(name), &path, at.base));
                }
            }
        }
        None => {}
    }
    for (name, property) in &schema.properties {
        if let Some(child) = map.get(name) {
            let path = match at.path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            all.merge(ratcheted(property, child, before(name), &path, at.base));
        }
    }
    for name in schema.required.iter().filter(|name| !map.contains_key(*name)) {
        let path = format!("{}.{name}", at.path);
        all.add(FieldError::required(&At { path: &path, base: at.base }.field(), ""));
    }
    all
}

/// `anyOf`, `oneOf`, `allOf` and `not`.
fn alternatives(schema: &Schema, value: &Value, old: Option<&Value>, at: &At<'_>) -> Outcome {
    let mut all = Outcome::default();
    let tried = |schemas: &[Schema]| -> Vec<Outcome> {
        schemas.iter().map(|s| check(s, value, old, at.path, at.base)).collect()
    };
    // The first of those that passed most checks.
    let best = |outcomes: Vec<Outcome>| {
        outcomes.into_iter().reduce(|a, b| if b.matches > a.matches { b } else { a })
    };
    if !schema.any_of.is_empty() {
        let mut outcomes = tried(&schema.any_of);
        if let Some(passed) = outcomes.iter().position(Outcome::is_valid) {
            all.merge(outcomes.swap_remove(passed));
        } else {
            all.add(at.schemas("validate at least one schema (anyOf)"));
            best(outcomes).into_iter().for_each(|o| all.merge(o));
        }
    }
    if !schema.one_of.is_empty() {
        let outcomes = tried(&schema.one_of);
        let passed = outcomes.iter().filter(|o| o.is_valid()).count();
        let detail = match passed {
            0 => "Found none valid".to_owned(),
            n => format!("Found {n} valid alternatives"),
        };
        if passed == 1 {
            outcomes.into_iter().filter(Outcome::is_valid).for_each(|o| all.merge(o));
        } else {
            let text = format!("validate one and only one schema (oneOf). {detail}");
            all.add(at.schemas(&text));
            if passed == 0 {
                best(outcomes).into_iter().for_each(|o| all.merge(o));
            }
        }
    }
    if !schema.all_of.is_empty() {
        let outcomes = tried(&schema.all_of);
        let passed = outcomes.iter().filter(|o| o.is_valid()).count();
        let count = outcomes.len();
        outcomes.into_iter().for_each(|o| all.merge(o));
        if passed != count {
            let detail = if passed == 0 { ". None validated" } else { "" };
            all.add(at.schemas(&format!("validate all the schemas (allOf){detail}")));
        }
    }
    if let Some(not) = &schema.not
        && check(not, value, old, at.path, at.base).is_valid()
    {
        all.add(at.schemas("not validate the schema (not)"));
    }
    all.matches += 1;
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn errors(props: Value, value: Value) -> Vec<String> {
        let schema = Schema::read(&json!({"type": "object", "properties": {"f": props}}));
        let object = json!({"f": value});
        let schema = schema.expect("a schema");
        validate(&Path::new(""), &schema, &object, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_held_against_their_schema() {
        let none: [&str; 0] = [];
        let int = json!({"type": "integer", "minimum": 1, "maximum": 5, "multipleOf": 2});
        let text = json!({"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^a"});
        let list =
            json!({"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}});
        let map = json!({"type": "object", "minProperties": 1, "maxProperties": 2,
            "additionalProperties": {"type": "integer"}});
        let object = json!({"type": "object", "required": ["a", "b"],
            "properties": {"a": {"type": "string"}}});
        let cases: &[(&Value, Value, &[&str])] = &[
            (&int, json!(4), &none),
            (&int, json!(4.0), &none),
            (
                &int,
                json!("4"),
                &[r#"f: Invalid value: "string": f in body must be of type integer: "string""#],
            ),
            (
                &int,
                json!(9_223_372_036_854_775_808_f64),
                &[
                    r#"f: Invalid value: "number": f in body must be of type integer: "number""#,
                    "f: Invalid value: 9.223372036854776e+18: f in body should be less than or equal to 5",
                ],
            ),
            (
                &int,
                json!(null),
                &[r#"f: Invalid value: "null": f in body must be of type integer: "null""#],
            ),
            (
                &int,
                json!(0),
                &["f: Invalid value: 0: f in body should be greater than or equal to 1"],
            ),
            (&int, json!(6), &["f: Invalid value: 6: f in body should be less than or equal to 5"]),
            (&int, json!(3), &["f: Invalid value: 3: f in body should be a multiple of 2"]),
            (&text, json!("abc"), &none),
            (
                &text,
                json!("a"),
                &[r#"f: Invalid value: "a": f in body should be at least 2 chars long"#],
            ),
            (&text, json!("abcde"), &["f: Too long: may not be more than 4 bytes"]),
            (&text, json!("bc"), &[r#"f: Invalid value: "bc": f in body should match '^a'"#]),
            (&list, json!(["a"]), &none),
            (&list, json!([]), &["f: Invalid value: 0: f in body should have at least 1 items"]),
            (&list, json!(["a", "b", "c"]), &["f: Too many: 3: must have at most 2 items"]),
            (
                &list,
                json!([1]),
                &[
                    r#"f[0]: Invalid value: "integer": f[0] in body must be of type string: "integer""#,
                ],
            ),
            (&map, json!({"k": 1}), &none),
            (
                &map,
                json!({}),
                &["f: Invalid value: 0: f in body should have at least 1 properties"],
            ),
            (&map, json!({"a": 1, "b": 2, "c": 3}), &["f: Too many: 3: must have at most 2 items"]),
            (
                &map,
                json!({"k": "x"}),
                &[r#"f.k: Invalid value: "string": f.k in body must be of type integer: "string""#],
            ),
            (&object, json!({"a": "x", "b": 1}), &none),
            (&object, json!({}), &["f.a: Required value", "f.b: Required value"]),
        ];
        for (props, value, want) in cases {
            assert_eq!(errors((*props).clone(), value.clone()), *want, "{props} {value}");
        }
    }

    #[test]
    fn alternatives_tell_of_the_best_failure() {
        let none: [&str; 0] = [];
        let any = json!({"x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}]});
        let one = json!({"type": "string", "oneOf": [{"pattern": "^a"}, {"maxLength": 3}]});
        let not = json!({"type": "string", "not": {"enum": ["x"]}});
        let choice = json!({"type": "string", "enum": ["a", "b"]});
        assert_eq!(errors(any.clone(), json!(1)), none);
        assert_eq!(errors(any.clone(), json!("1")), none);
        assert_eq!(errors(any, json!(true)).len(), 3);
        assert_eq!(errors(one.clone(), json!("abcd")), none);
        assert_eq!(
            errors(one.clone(), json!("ab")),
            [
                r#"<nil>: Invalid value: "": "f" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
            ]
        );
        assert_eq!(errors(one, json!("bbbb")).len(), 2);
        assert_eq!(
            errors(not, json!("x")),
            [r#"<nil>: Invalid value: "": "f" must not validate the schema (not)"#]
        );
        assert_eq!(
            errors(choice, json!("c")),
            [r#"f: Unsupported value: "c": supported values: "a", "b""#]
        );
    }

    #[test]
    fn what_was_wrong_before_may_stay() {
        let schema = Schema::read(&json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"},
                    "v": {"type": "integer", "maximum": 1}}}}}}));
        let schema = schema.expect("a schema");
        let old = json!({"a": "long", "b": "x", "l": [{"k": "x", "v": 5}, {"k": "y", "v": 1}]});
        let new = json!({"a": "long", "b": "long", "l": [{"k": "y", "v": 2}, {"k": "x", "v": 5}]});
        let errors = validate(&Path::new(""), &schema, &new, Some(&old));
        let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["b", "l[0].v"]);
    }
}
