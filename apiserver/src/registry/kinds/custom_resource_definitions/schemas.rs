//! Rules of the schemas of versions.

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object::{bool_at, get, list_at, str_at};

use super::spec::Options;
use crate::apiextensions::rules::{self, field_path};
use crate::apiextensions::schema::{Rule, Schema, map, strings};
use crate::apiextensions::{formats, sizes, structural};

/// What one expression may be estimated to cost, and all of a schema together.
const COST_LIMIT: u64 = 10_000_000;
const TOTAL_LIMIT: u64 = 100_000_000;
/// So many expressions are named when all cost too much together: the dearest.
const NAMED: usize = 4;
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// What may stand at the root beside a status subresource, in upstream's names and in ours.
const AT_ROOT: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

/// The schemas directly within one, with their places.
fn within(props: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for name in ["properties", "definitions", "dependencies", "patternProperties"] {
        let entries = map(props, name).filter(|(_, v)| v.is_object());
        found.extend(entries.map(|(key, inner)| (format!("{name}[{key}]"), inner)));
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        let items = list_at(props, &[name]).iter().enumerate();
        found.extend(items.map(|(i, inner)| (format!("{name}[{i}]"), inner)));
    }
    for name in ["not", "additionalProperties", "additionalItems", "items"] {
        match get(props, &[name]) {
            Some(inner @ Value::Object(_)) => found.push((name.to_owned(), inner)),
            Some(Value::Array(list)) => found
                .extend(list.iter().enumerate().map(|(i, inner)| (format!("{name}[{i}]"), inner))),
            _ => {}
        }
    }
    found
}

/// Whether any schema within is of a kind.
pub fn any(props: &Value, is: fn(&Value) -> bool) -> bool {
    is(props) || within(props).iter().any(|(_, inner)| any(inner, is))
}

pub fn has_odd_type(props: &Value) -> bool {
    let ty = str_at(props, &["type"]);
    !ty.is_empty() && !TYPES.contains(&ty)
}

/// A set of what can be owned in part.
pub fn is_granular_set(props: &Value) -> bool {
    str_at(props, &["x-kubernetes-list-type"]) == "set"
        && match str_at(props, &["items", "type"]) {
            "array" => {
                !matches!(str_at(props, &["items", "x-kubernetes-list-type"]), "" | "atomic")
            }
            "object" => str_at(props, &["items", "x-kubernetes-map-type"]) != "atomic",
            _ => false,
        }
}

/// A list that is a set or map whose items or keys may be missing.
pub fn has_loose_keys(props: &Value) -> bool {
    let mut errors = ErrorList::new();
    loose_keys(props, &Path::new(""), &mut errors);
    !errors.is_empty()
}

pub fn is_structural(props: &Value) -> bool {
    Schema::read(props).is_ok_and(|s| structural::check(&Path::new(""), &s).is_empty())
}

/// Formats of texts that are not checked, in all versions.
pub fn unknown_formats(crd: &Value) -> Vec<String> {
    fn collect(props: &Value, found: &mut Vec<String>) {
        let format = str_at(props, &["format"]);
        let unknown = str_at(props, &["type"]) == "string"
            && !format.is_empty()
            && formats::known(format).is_empty();
        if unknown {
            found.push(format.to_owned());
        }
        within(props).iter().for_each(|(_, inner)| collect(inner, found));
    }
    let mut found = Vec::new();
    let versions = list_at(crd, &["spec", "versions"]);
    // What all versions say alike counts once.
    let schemas: Vec<Option<&Value>> =
        versions.iter().map(|v| get(v, &["schema", "openAPIV3Schema"])).collect();
    let same = schemas.windows(2).all(|pair| pair.first() == pair.last());
    let count = if same { 1 } else { schemas.len() };
    schemas.into_iter().take(count).flatten().for_each(|props| collect(props, &mut found));
    found
}

/// What expressions of a schema may cost together.
#[derive(Debug, Default)]
struct Total {
    sum: u64,
    /// Those that count, the dearest first.
    dearest: Vec<(Path, u64)>,
}

impl Total {
    fn add(&mut self, at: Path, cost: u64) {
        self.sum = self.sum.saturating_add(cost);
        // A hundredth of all is little.
        if cost >= TOTAL_LIMIT / 100 {
            self.dearest.push((at, cost));
            self.dearest.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.dearest.truncate(NAMED);
        }
    }

    /// What is said when it is too much. `path`: of the schema.
    fn errors(&self, path: &Path) -> ErrorList {
        if self.sum <= TOTAL_LIMIT {
            return ErrorList::new();
        }
        let part = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        let parts = self.dearest.iter().map(|(at, _)| FieldError::forbidden(at, part));
        let whole =
            "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let whole = FieldError::forbidden(path, over_budget(whole, self.sum, TOTAL_LIMIT));
        parts.chain([whole]).collect()
    }
}

/// What is found of the rules in CEL.
#[derive(Default)]
struct OfRules {
    errors: ErrorList,
    total: Total,
}

/// The rules of `schema` of a version, which stands at `at`. `version`: its name, and whether it
/// has a status.
pub fn check(
    validation: Option<&Value>,
    (version, status): (&str, bool),
    options: &Options,
    at: &Path,
    errors: &mut ErrorList,
) {
    let Some(props) = validation.and_then(|v| get(v, &["openAPIV3Schema"])) else { return };
    let path = at.child("openAPIV3Schema");
    let before = errors.len();
    if status {
        at_root(props, &path, errors);
    }
    if bool_at(props, &["nullable"]) {
        let text = "nullable cannot be true at the root";
        errors.push(FieldError::forbidden(&path.child("nullable"), text));
    }
    let mut unread = None;
    let mut rules = false;
    if options.structural {
        match Schema::read(props) {
            Err(error) => unread = Some(error),
            Ok(schema) => {
                let mut found = structural::check(&path, &schema);
                if found.is_empty() {
                    structural::defaults(&path, &schema, true, &mut found);
                }
                rules = found.is_empty();
                errors.extend(found);
            }
        }
    }
    let walk = Walk {
        options,
        root: true,
        in_meta: false,
        no_defaults: None,
        rules,
        costs: !options.unchanged.contains(version),
        fixed: None,
        times: Some(1),
    };
    let mut of_rules = OfRules::default();
    walk.check(props, &path, errors, &mut of_rules);
    errors.extend(of_rules.errors);
    if errors.len() == before
        && let Some(error) = unread
    {
        errors.push(FieldError::invalid(&path, "", error));
    }
    errors.extend(of_rules.total.errors(&path));
}

fn at_root(props: &Value, path: &Path, errors: &mut ErrorList) {
    let ty = str_at(props, &["type"]);
    if !ty.is_empty() && ty != "object" {
        let text = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return errors.push(FieldError::invalid(&path.child("type"), ty, text));
    }
    let known = |name: &String| AT_ROOT.iter().any(|(_, own)| own == name);
    let set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        _ => true,
    };
    let fields = props.as_object().into_iter().flatten();
    if fields.filter(|(_, value)| set(value)).any(|(name, _)| !known(name)) {
        let names: Vec<&str> = AT_ROOT.iter().map(|(name, _)| *name).collect();
        let text = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        errors.push(FieldError::invalid(path, props.clone(), text));
    }
}

/// A walk through a schema.
#[derive(Clone)]
struct Walk<'a> {
    options: &'a Options,
    root: bool,
    /// Within the metadata of a resource.
    in_meta: bool,
    /// Why there may be no defaults here.
    no_defaults: Option<String>,
    /// Rules in CEL are to be compiled.
    rules: bool,
    /// What one of them may cost is limited.
    costs: bool,
    /// Where it is that values cannot be told from their older selves.
    fixed: Option<Path>,
    /// How often the values here may be there; `None`: as often as a request holds them.
    times: Option<u64>,
}

impl Walk<'_> {
    fn check(&self, props: &Value, path: &Path, errors: &mut ErrorList, of_rules: &mut OfRules) {
        let before = errors.len();
        self.standard(props, path, errors);
        if bool_at(props, &["uniqueItems"]) {
            let text =
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.push(FieldError::forbidden(&path.child("uniqueItems"), text));
        }
        let has_properties = map(props, "properties").next().is_some();
        if let Some(additional) = get(props, &["additionalProperties"])
            && has_properties
            && *additional != Value::Bool(true)
        {
            let text = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(&path.child("additionalProperties"), text));
        }
        let embedded = self.root || bool_at(props, &["x-kubernetes-embedded-resource"]);
        for (place, inner) in within(props) {
            let mut walk = Walk { root: false, ..self.clone() };
            if matches!(place.as_str(), "items" | "additionalProperties") {
                let elements = Schema::read(props).ok().and_then(|s| sizes::elements(&s));
                walk.times = self.times.zip(elements).map(|(a, b)| a.saturating_mul(b));
            }
            let (name, key) = place.split_once('[').unwrap_or((&place, ""));
            let key = key.trim_end_matches(']');
            let at = match (name, key) {
                (_, "") => path.child(name),
                (name, key) => path.child(name).key(key),
            };
            match name {
                "properties" => {
                    let meta = matches!(key, "metadata" | "apiVersion" | "kind");
                    if embedded && meta {
                        walk.in_meta = true;
                        if self.root {
                            walk.no_defaults = Some(format!("in top-level {key}"));
                        }
                    }
                }
                "additionalProperties" => {
                    if self.in_meta {
                        let text = "inside additionalProperties applying to object metadata";
                        walk.no_defaults = Some(text.to_owned());
                    }
                }
                "items" => {
                    if str_at(props, &["x-kubernetes-list-type"]) != "map" {
                        walk.fixed = walk.fixed.or_else(|| Some(path.clone()));
                    }
                }
                _ => walk.rules = false,
            }
            walk.check(inner, &at, errors, of_rules);
        }
        lists_and_maps(props, self.options, path, errors);
        self.validations(props, path, errors.len() == before, errors, of_rules);
    }

    fn standard(&self, props: &Value, path: &Path, errors: &mut ErrorList) {
        let ty = str_at(props, &["type"]);
        if self.options.types && has_odd_type(props) {
            errors.push(FieldError::not_supported(&path.child("type"), ty, &TYPES));
        }
        if let Some(why) = &self.no_defaults
            && props.get("default").is_some_and(|d| !d.is_null())
        {
            let text = format!("must not be set {why}");
            errors.push(FieldError::forbidden(&path.child("default"), text));
        }
        let set = |name: &str| match props.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty() || name == "$ref",
            Some(Value::Object(map)) => !map.is_empty() || name != "patternProperties",
            Some(_) => true,
        };
        for name in
            ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"]
        {
            if set(name) {
                let text = format!("{name} is not supported");
                errors.push(FieldError::forbidden(&path.child(name), text));
            }
        }
        if ty == "null" {
            let text = "type cannot be set to null, use nullable as an alternative";
            errors.push(FieldError::forbidden(&path.child("type"), text));
        }
        if get(props, &["items"]).is_some_and(|i| i.as_array().is_some_and(|l| !l.is_empty())) {
            let text = "items must be a schema object and not an array";
            errors.push(FieldError::forbidden(&path.child("items"), text));
        }
        if self.in_meta && bool_at(props, &["x-kubernetes-embedded-resource"]) {
            let at = path.child("x-kubernetes-embedded-resource");
            errors.push(FieldError::forbidden(&at, "must not be used inside of resource meta"));
        }
        if get(props, &["x-kubernetes-preserve-unknown-fields"]) == Some(&Value::Bool(false)) {
            let at = path.child("x-kubernetes-preserve-unknown-fields");
            errors.push(FieldError::invalid(&at, false, "must be true or undefined"));
        }
    }

    /// `x-kubernetes-validations`; `sound`: nothing else is wrong here.
    fn validations(
        &self,
        props: &Value,
        path: &Path,
        sound: bool,
        errors: &mut ErrorList,
        of_rules: &mut OfRules,
    ) {
        let list = list_at(props, &["x-kubernetes-validations"]);
        if list.is_empty() {
            return;
        }
        let Ok(schema) = Schema::read(props) else { return };
        let at = path.child("x-kubernetes-validations");
        let before = errors.len();
        for (i, rule) in schema.rules.iter().enumerate() {
            one_rule(rule, &schema, &at.index(i), errors);
        }
        if !self.rules || !sound || errors.len() != before {
            return;
        }
        let (wrong, uses_old, costs) = rules::compile(&schema, self.root || schema.embedded);
        let times = self.times.unwrap_or_else(|| sizes::in_a_request(&schema));
        for (i, cost) in costs.iter().enumerate() {
            // A message is made once.
            let parts =
                [("rule", cost.rule.saturating_mul(times)), ("messageExpression", cost.message)];
            for (field, cost) in parts {
                let at = at.index(i).child(field);
                if self.costs && cost > COST_LIMIT {
                    let text = over_budget(&format!("estimated {field} cost"), cost, COST_LIMIT);
                    of_rules.errors.push(FieldError::forbidden(&at, text));
                }
                of_rules.total.add(at, cost);
            }
        }
        for wrong in wrong {
            let shown = list.get(wrong.index).map(internal_rule).unwrap_or_default();
            let at = at.index(wrong.index).child(wrong.field);
            of_rules.errors.push(FieldError::invalid(&at, shown, wrong.detail));
        }
        for (i, (rule, uses_old)) in schema.rules.iter().zip(uses_old).enumerate() {
            if uses_old && let Some(fixed) = &self.fixed {
                let text = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {fixed}"
                );
                let at = at.index(i).child("rule");
                of_rules.errors.push(FieldError::invalid(&at, rule.rule.as_str(), text));
            } else if !uses_old && let Some(optional) = rule.optional_old_self {
                let text = "may not be set if oldSelf is not used in rule";
                let at = at.index(i).child("optionalOldSelf");
                of_rules.errors.push(FieldError::invalid(&at, optional, text));
            }
        }
    }
}

/// What is said of a cost that is too high.
fn over_budget(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let shown = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A rule as upstream's own type shows it.
fn internal_rule(rule: &Value) -> Value {
    let text = |name: &str| str_at(rule, &[name]);
    serde_json::json!({"Rule": text("rule"), "Message": text("message"),
        "MessageExpression": text("messageExpression"),
        "Reason": rule.get("reason").cloned().unwrap_or_default(),
        "FieldPath": text("fieldPath"),
        "OptionalOldSelf": rule.get("optionalOldSelf").cloned().unwrap_or_default()})
}

fn one_rule(rule: &Rule, schema: &Schema, at: &Path, errors: &mut ErrorList) {
    let breaks = |text: &str| text.contains(['\n', '\r']);
    let message = rule.message.trim();
    let at_message = at.child("message");
    if rule.rule.trim().is_empty() {
        errors.push(FieldError::required(&at.child("rule"), "rule is not specified"));
    } else if !rule.message.is_empty() && message.is_empty() {
        let text = "must be non-empty if specified";
        errors.push(FieldError::invalid(&at_message, rule.message.as_str(), text));
    } else if breaks(message) {
        let text = "must not contain line breaks";
        errors.push(FieldError::invalid(&at_message, rule.message.as_str(), text));
    } else if breaks(rule.rule.trim()) && message.is_empty() {
        let text = "message must be specified if rule contains line breaks";
        errors.push(FieldError::required(&at_message, text));
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        let text = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(&at.child("messageExpression"), text));
    }
    let reason = rule.reason.as_str();
    if !reason.is_empty() && !REASONS.contains(&reason) {
        errors.push(FieldError::not_supported(&at.child("reason"), reason, &REASONS));
    }
    let (path, at_path) = (rule.field_path.as_str(), at.child("fieldPath"));
    if path.is_empty() {
        return;
    }
    if path.trim().is_empty() {
        errors.push(FieldError::invalid(&at_path, path, "must be non-empty if specified"));
    }
    if breaks(path) {
        errors.push(FieldError::invalid(&at_path, path, "must not contain line breaks"));
    }
    if field_path(path, schema, true).is_err() {
        errors.push(FieldError::invalid(&at_path, path, "must be a valid path"));
    }
}

fn lists_and_maps(props: &Value, options: &Options, path: &Path, errors: &mut ErrorList) {
    let ty = str_at(props, &["type"]);
    let at_type = path.child("type");
    let mut wrong_type = |text: &str| {
        errors.push(match ty {
            "" => FieldError::required(&at_type, text),
            ty => FieldError::invalid(&at_type, ty, text),
        });
    };
    let map_type = get(props, &["x-kubernetes-map-type"]).and_then(Value::as_str);
    let list_type = get(props, &["x-kubernetes-list-type"]).and_then(Value::as_str);
    if map_type.is_some() && ty != "object" {
        wrong_type("must be object if x-kubernetes-map-type is specified");
    }
    if list_type.is_some() && ty != "array" {
        wrong_type("must be array if x-kubernetes-list-type is specified");
    } else if options.atomic_sets && is_granular_set(props) {
        let name = match str_at(props, &["items", "type"]) {
            "array" => "x-kubernetes-list-type",
            _ => "x-kubernetes-map-type",
        };
        let shown = get(props, &["items", "x-kubernetes-list-type"]).cloned().unwrap_or_default();
        let text = "must be atomic as item of a list with x-kubernetes-list-type=set";
        errors.push(FieldError::invalid(&path.child("items").child(name), shown, text));
    }
    if let Some(map_type) = map_type.filter(|t| !["atomic", "granular"].contains(t)) {
        let at = path.child("x-kubernetes-map-type");
        errors.push(FieldError::not_supported(&at, map_type, &["atomic", "granular"]));
    }
    let at_list = path.child("x-kubernetes-list-type");
    if let Some(list_type) = list_type.filter(|t| !["atomic", "set", "map"].contains(t)) {
        errors.push(FieldError::not_supported(&at_list, list_type, &["atomic", "set", "map"]));
    }
    let keys = strings(list_at(props, &["x-kubernetes-list-map-keys"]));
    if !keys.is_empty() {
        let text = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.push(FieldError::required(&at_list, text)),
            Some(ty) if ty != "map" => errors.push(FieldError::invalid(&at_list, ty, text)),
            Some(_) => {}
        }
    }
    if list_type == Some("map") {
        keyed(props, &keys, path, errors);
    }
    if options.map_keys {
        loose_keys(props, path, errors);
    }
}

fn keyed(props: &Value, keys: &[String], path: &Path, errors: &mut ErrorList) {
    let at_keys = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        let text = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(&at_keys, text));
    }
    let at_items = path.child("items");
    let Some(items) = get(props, &["items"]) else {
        let text = "must have a schema if x-kubernetes-list-type is map";
        return errors.push(FieldError::required(&at_items, text));
    };
    if items.is_array() {
        let text = "must only have a single schema if x-kubernetes-list-type is map";
        return errors.push(FieldError::invalid(&at_items, items.clone(), text));
    }
    let ty = str_at(items, &["type"]);
    if ty != "object" {
        let text = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.push(FieldError::invalid(&at_items.child("type"), ty, text));
    }
    for (i, key) in keys.iter().enumerate() {
        match get(items, &["properties", key]) {
            Some(property) if matches!(str_at(property, &["type"]), "array" | "object") => {
                let at = at_items.child("properties").key(key).child("type");
                let text = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(&at, ty, text));
            }
            Some(_) => {}
            None => {
                let text = "entries must all be names of item properties";
                errors.push(FieldError::invalid(&at_keys, keys.to_vec(), text));
            }
        }
        if keys.get(..i).is_some_and(|before| before.contains(key)) {
            let text = "must not contain duplicate entries";
            errors.push(FieldError::invalid(&at_keys, keys.to_vec(), text));
        }
    }
}

fn loose_keys(props: &Value, path: &Path, errors: &mut ErrorList) {
    let list_type = str_at(props, &["x-kubernetes-list-type"]);
    let Some(items) = get(props, &["items"]).filter(|i| i.is_object()) else { return };
    if !matches!(list_type, "set" | "map") {
        return;
    }
    let at = path.child("items");
    if bool_at(items, &["nullable"]) {
        let text = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(&at.child("nullable"), text));
    }
    if list_type != "map" {
        return;
    }
    let required = strings(list_at(items, &["required"]));
    for key in strings(list_at(props, &["x-kubernetes-list-map-keys"])) {
        let Some(property) = get(items, &["properties", &key]) else { continue };
        let at = at.child("properties").key(&key);
        if !required.contains(&key) && property.get("default").is_none_or(Value::is_null) {
            let text = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(&at.child("default"), text));
        }
        if bool_at(property, &["nullable"]) {
            let text = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(&at.child("nullable"), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is said of a list of texts with so many rules and items.
    fn said(rules: usize, items: u64, options: &Options) -> Vec<String> {
        let rule = json!({"rule": "self.all(x, x == 'a')"});
        let validation = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {
            "type": "array", "maxItems": items, "items": {"type": "string"},
            "x-kubernetes-validations": vec![rule; rules]}}}});
        let mut errors = ErrorList::new();
        let at = Path::new("spec.validation");
        check(Some(&validation), ("v1", false), options, &at, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_may_cost_so_much_together() {
        let advice = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
        let at = |i: usize| {
            format!(
                "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[{i}].rule"
            )
        };
        let part = |i| {
            let text = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            format!("{}: Forbidden: {text}", at(i))
        };
        let whole = |factor: &str| {
            format!(
                "spec.validation.openAPIV3Schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of {factor} {advice}"
            )
        };
        let fresh = Options::default();
        assert_eq!(said(12, 4_000_000, &fresh), [""; 0]);
        let many = said(13, 4_000_000, &fresh);
        assert_eq!(many, [part(0), part(1), part(2), part(3), whole("1.040000x")]);
        // Of what was there, each may be as dear as it was, but not all together.
        let kept = Options { unchanged: ["v1".to_owned()].into(), ..Options::default() };
        assert_eq!(said(1, 6_000_000, &kept), [""; 0]);
        let alone = format!(
            "{}: Forbidden: estimated rule cost exceeds budget by factor of 1.200000x {advice}",
            at(0)
        );
        assert_eq!(said(1, 6_000_000, &fresh), [alone]);
        assert_eq!(said(2, 80_000_000, &kept), [part(0), part(1), whole("3.2x")]);
    }
}
