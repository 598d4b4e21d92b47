//! The schema of a custom resource, read once from a CustomResourceDefinition
//! (`JSONSchemaProps`), as pruning, defaulting and validation walk it.

use std::collections::BTreeMap;

use apimachinery::object::{bool_at, get, list_at, str_at};
use apimachinery::{Map, Value};
use regex::{Regex, RegexBuilder};

/// Bytes that one compiled pattern may take.
const PATTERN_SIZE: usize = 1 << 20;

/// A schema, or a part of one.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// Empty: not said.
    pub ty: String,
    pub format: String,
    pub title: String,
    pub description: String,
    pub default: Option<Value>,
    pub nullable: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub required: Vec<String>,
    pub one_of_values: Option<Vec<Value>>,
    pub items: Option<Box<Schema>>,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Option<Additional>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    pub list_type: Option<String>,
    pub list_keys: Vec<String>,
    pub map_type: Option<String>,
    /// `x-kubernetes-validations`
    pub rules: Vec<Rule>,
}

/// `additionalProperties`
#[derive(Clone, Debug)]
pub struct Additional {
    pub allowed: bool,
    pub schema: Option<Box<Schema>>,
}

/// A regular expression that was compiled when the schema was read.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: String,
    /// Why it is none, when it is none.
    pub regex: Result<Regex, String>,
}

/// One rule of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    /// Empty: `FieldValueInvalid`.
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

/// Compiles a pattern within bounds.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).build();
    compiled.map_err(|e| e.to_string().lines().last().unwrap_or("").trim().to_owned())
}

impl Schema {
    /// Reads a `JSONSchemaProps`, which holds no more than its own type allows.
    ///
    /// # Errors
    /// It uses what no structural schema may use, in upstream's words.
    pub fn read(props: &Value) -> Result<Self, String> {
        refuse_unsupported(props)?;
        let text = |name: &str| str_at(props, &[name]).to_owned();
        let float = |name: &str| get(props, &[name]).and_then(Value::as_f64);
        let int = |name: &str| get(props, &[name]).and_then(Value::as_i64);
        let flag = |name: &str| bool_at(props, &[name]);
        let texts = |name: &str| strings(list_at(props, &[name]));
        let many = |name: &str| -> Result<Vec<Self>, String> {
            list_at(props, &[name]).iter().map(Self::read).collect()
        };
        let one = |name: &str| -> Result<Option<Box<Self>>, String> {
            get(props, &[name]).map(|s| Self::read(s).map(Box::new)).transpose()
        };
        if get(props, &["items"]).is_some_and(Value::is_array) {
            return Err("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
        }
        let preserve = get(props, &["x-kubernetes-preserve-unknown-fields"]);
        if preserve == Some(&Value::Bool(false)) {
            let text =
                "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
            return Err(text.to_owned());
        }
        let mut properties = BTreeMap::new();
        for (name, schema) in map(props, "properties") {
            properties.insert(name.clone(), Self::read(schema)?);
        }
        let additional = match get(props, &["additionalProperties"]) {
            None => None,
            Some(Value::Bool(allowed)) => Some(Additional { allowed: *allowed, schema: None }),
            Some(schema) => {
                Some(Additional { allowed: true, schema: Some(Box::new(Self::read(schema)?)) })
            }
        };
        let pattern = match str_at(props, &["pattern"]) {
            "" => None,
            text => Some(Pattern { text: text.to_owned(), regex: compile(text) }),
        };
        Ok(Self {
            ty: text("type"),
            format: text("format"),
            title: text("title"),
            description: text("description"),
            default: props.get("default").filter(|d| !d.is_null()).cloned(),
            nullable: flag("nullable"),
            maximum: float("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: float("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            multiple_of: float("multipleOf"),
            max_length: int("maxLength"),
            min_length: int("minLength"),
            pattern,
            max_items: int("maxItems"),
            min_items: int("minItems"),
            unique_items: flag("uniqueItems"),
            max_properties: int("maxProperties"),
            min_properties: int("minProperties"),
            required: texts("required"),
            one_of_values: get(props, &["enum"]).and_then(Value::as_array).cloned(),
            items: one("items")?,
            properties,
            additional,
            all_of: many("allOf")?,
            any_of: many("anyOf")?,
            one_of: many("oneOf")?,
            not: one("not")?,
            preserve: preserve.is_some(),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: get(props, &["x-kubernetes-list-type"])
                .and_then(Value::as_str)
                .map(str::to_owned),
            list_keys: texts("x-kubernetes-list-map-keys"),
            map_type: get(props, &["x-kubernetes-map-type"])
                .and_then(Value::as_str)
                .map(str::to_owned),
            rules: list_at(props, &["x-kubernetes-validations"]).iter().map(Rule::read).collect(),
        })
    }

    /// The schema of an entry of a map: its own, or that of all others.
    pub fn entry(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or_else(|| self.additional.as_ref()?.schema.as_deref())
    }

    /// The types that a value may have: two for what is int or string.
    pub fn types(&self) -> &[&str] {
        match self.ty.as_str() {
            _ if self.int_or_string => &["integer", "string"],
            "object" => &["object"],
            "array" => &["array"],
            "string" => &["string"],
            "integer" => &["integer"],
            "number" => &["number"],
            "boolean" => &["boolean"],
            _ => &[],
        }
    }

    /// Whether any schema within has a rule.
    pub fn has_rules(&self) -> bool {
        self.any(&mut |s| !s.rules.is_empty())
    }

    /// Whether any schema within is of a kind.
    pub fn any(&self, is: &mut dyn FnMut(&Self) -> bool) -> bool {
        is(self)
            || self.items.as_deref().is_some_and(|s| s.any(is))
            || self.all_of.iter().any(|s| s.any(is))
            || self.any_of.iter().any(|s| s.any(is))
            || self.one_of.iter().any(|s| s.any(is))
            || self.not.as_deref().is_some_and(|s| s.any(is))
            || self.properties.values().any(|s| s.any(is))
            || self.additional.as_ref().and_then(|a| a.schema.as_deref()).is_some_and(|s| s.any(is))
    }
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let text = |name: &str| str_at(rule, &[name]).to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: get(rule, &["optionalOldSelf"]).and_then(Value::as_bool),
        }
    }
}

/// The texts of a list.
pub fn strings(list: &[Value]) -> Vec<String> {
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The entries of a map at a field.
pub fn map<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    get(value, &[name]).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn refuse_unsupported(props: &Value) -> Result<(), String> {
    let set = |name: &str| match props.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(map)) => !map.is_empty() || name == "additionalItems",
        Some(_) => true,
    };
    let fields = [
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
        ("additionalItems", "additionalItems"),
        ("definitions", "definitions"),
    ];
    match fields.iter().find(|(name, _)| set(name)) {
        Some((_, shown)) => Err(format!("OpenAPIV3Schema '{shown}' is not supported")),
        None => Ok(()),
    }
}
