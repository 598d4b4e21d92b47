//! `x-kubernetes-validations`: rules in CEL that values of a schema must hold to (upstream:
//! `pkg/apiserver/schema/cel`).

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{ErrorKind, ErrorList, FieldError, Path};

use super::correlate;
use super::schema::{Rule, Schema};
use crate::cel::{
    Activation, Budget, Env, EvalError, PER_CALL_LIMIT, Program, Structure, Type, Val,
};

/// Cost of all rules of one object.
const BUDGET: u64 = 10_000_000;
/// Bytes of a message that an expression gives.
const MAX_MESSAGE: usize = 5 << 10;

/// The rules of a schema, compiled.
pub struct Rules(Node);

/// The rules of one schema, and those of the schemas within.
#[derive(Default)]
struct Node {
    /// The schema's type, for errors.
    ty: String,
    rules: Vec<Compiled>,
    value: Option<Type>,
    items: Option<Box<Node>>,
    additional: Option<Box<Node>>,
    properties: BTreeMap<String, Node>,
    all_of: Vec<Node>,
    /// How items of a list go with those of the old list.
    schema: Schema,
}

struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Program>,
    uses_old: bool,
    /// `fieldPath` as paths are written.
    path: Option<Path>,
}

/// A map with named fields.
struct Record {
    name: String,
    fields: BTreeMap<String, Type>,
}

impl Structure for Record {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, property: &str) -> Option<Type> {
        self.fields.get(property).cloned()
    }
}

/// The type of a schema's values; `None`: nothing is known of them.
fn type_of(schema: &Schema, resource: bool, name: &str) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    let nested = schema.additional.as_ref().and_then(|a| a.schema.as_deref());
    Some(match (schema.ty.as_str(), schema.format.as_str()) {
        ("boolean", _) => Type::Bool,
        ("integer", _) => Type::Int,
        ("number", _) => Type::Double,
        ("string", "date" | "date-time") => Type::Timestamp,
        ("string", "duration") => Type::Duration,
        ("string", "byte") => Type::Bytes,
        ("string", _) => Type::String,
        ("array", _) => {
            let items = schema.items.as_deref()?;
            Type::list(type_of(items, items.embedded, &format!("{name}.@idx"))?)
        }
        ("object", _) if nested.is_some() => {
            let values = nested?;
            let inner = format!("{name}.@elem");
            Type::map(Type::String, type_of(values, values.embedded, &inner)?)
        }
        ("object", _) => {
            let mut fields = BTreeMap::new();
            for (property, inner) in &schema.properties {
                let inner_name = format!("{name}.{property}");
                if let Some(ty) = type_of(inner, inner.embedded, &inner_name) {
                    fields.insert(property.clone(), ty);
                }
            }
            if resource {
                fields.insert("apiVersion".to_owned(), Type::String);
                fields.insert("kind".to_owned(), Type::String);
                let metadata = ["name", "generateName"].map(|n| (n.to_owned(), Type::String));
                let metadata = Record { name: format!("{name}.metadata"), fields: metadata.into() };
                fields.insert("metadata".to_owned(), Type::Object(Arc::new(metadata)));
            }
            Type::Object(Arc::new(Record { name: name.to_owned(), fields }))
        }
        _ => return None,
    })
}

/// The type of a whole resource.
pub fn resource_type(schema: &Schema) -> Option<Type> {
    type_of(schema, true, "object")
}

/// A rule that does not compile.
pub struct Wrong {
    /// Index among the schema's rules.
    pub index: usize,
    /// `rule` or `messageExpression`
    pub field: &'static str,
    pub detail: String,
}

impl Rules {
    /// The rules of a whole resource's schema, if there are any.
    pub fn new(schema: &Schema) -> Option<Self> {
        schema.has_rules().then(|| Self(Node::new(schema, schema, true)))
    }

    /// The rules of a part of a resource, such as a default's schema.
    pub fn of_part(schema: &Schema) -> Option<Self> {
        schema.has_rules().then(|| Self(Node::new(schema, schema, schema.embedded)))
    }

    /// What an object breaks. `old` is what an update changes.
    pub fn check(&self, base: &Path, new: &Value, old: Option<&Value>) -> ErrorList {
        let mut checker = Checker { left: BUDGET, spent: false, errors: ErrorList::new() };
        let unchanged = old == Some(new);
        checker.node(&self.0, base, new, old, unchanged, true);
        checker.errors
    }
}

/// Whether the rules of one schema compile, and which use `oldSelf`.
pub fn compile(schema: &Schema, resource: bool) -> (Vec<Wrong>, Vec<bool>) {
    let node = Node::of_rules(schema, schema, resource);
    let mut wrong = Vec::new();
    for (index, compiled) in node.rules.iter().enumerate() {
        if let Err(detail) = &compiled.program {
            wrong.push(Wrong { index, field: "rule", detail: detail.clone() });
        }
        if !compiled.rule.message_expression.trim().is_empty()
            && let Some(value) = &node.value
            && let Err(detail) = message(&compiled.rule, value)
        {
            wrong.push(Wrong { index, field: "messageExpression", detail });
        }
    }
    (wrong, node.rules.iter().map(|r| r.uses_old).collect())
}

fn environment(value: &Type, old: Option<Type>) -> Env {
    let env = Env::new().variable("self", value.clone());
    match old {
        Some(old) => env.variable("oldSelf", old),
        None => env,
    }
}

fn old_type(rule: &Rule, value: &Type) -> Type {
    match rule.optional_old_self {
        Some(true) => Type::optional(value.clone()),
        _ => value.clone(),
    }
}

fn program(rule: &Rule, value: &Type) -> (Result<Program, String>, bool) {
    let source = rule.rule.trim();
    let failed = |e: crate::cel::CompileErrors| format!("compilation failed: {e}");
    let (compiled, uses_old) = match Program::compile(source, &environment(value, None)) {
        Ok(program) => (Ok(program), false),
        Err(_) => {
            let env = environment(value, Some(old_type(rule, value)));
            let compiled = Program::compile(source, &env);
            let uses_old = compiled.is_ok();
            (compiled.map_err(failed), uses_old)
        }
    };
    let compiled = compiled.and_then(|program| match program.output() {
        Type::Bool => Ok(program),
        _ => Err("cel expression must evaluate to a bool".to_owned()),
    });
    (compiled, uses_old)
}

fn message(rule: &Rule, value: &Type) -> Result<Program, String> {
    let env = environment(value, Some(old_type(rule, value)));
    let program = Program::compile(rule.message_expression.trim(), &env)
        .map_err(|e| format!("messageExpression compilation failed: {e}"))?;
    match program.output() {
        Type::String => Ok(program),
        _ => Err("messageExpression must evaluate to a string".to_owned()),
    }
}

impl Node {
    /// `of` holds the rules, `schema` the types that they see: the two differ below `allOf`.
    fn of_rules(of: &Schema, schema: &Schema, resource: bool) -> Self {
        let value = type_of(schema, resource, if resource { "object" } else { "self" });
        let rules = of.rules.iter().map(|rule| {
            let Some(value) = &value else {
                let text = "the type of the value is not known".to_owned();
                return Compiled::without(rule, text);
            };
            let (program, uses_old) = program(rule, value);
            let expression = rule.message_expression.trim();
            let message = if expression.is_empty() { None } else { message(rule, value).ok() };
            let path = (!rule.field_path.is_empty())
                .then(|| field_path(&rule.field_path, schema, true).ok().map(|(path, _)| path))
                .flatten();
            Compiled { rule: rule.clone(), program, message, uses_old, path }
        });
        let rules = rules.collect();
        let kept = Schema {
            list_type: schema.list_type.clone(),
            list_keys: schema.list_keys.clone(),
            ..Schema::default()
        };
        Self { ty: schema.ty.clone(), rules, value, schema: kept, ..Self::default() }
    }

    fn new(of: &Schema, schema: &Schema, resource: bool) -> Self {
        let mut node = Self::of_rules(of, schema, resource);
        let inner = |of: &Schema, schema: &Schema| Self::new(of, schema, schema.embedded);
        if let (Some(of), Some(schema)) = (of.items.as_deref(), schema.items.as_deref()) {
            node.items = of.has_rules().then(|| Box::new(inner(of, schema)));
        }
        let additional = |s: &'_ Schema| s.additional.as_ref().and_then(|a| a.schema.clone());
        if let (Some(of), Some(schema)) = (additional(of), additional(schema)) {
            node.additional = of.has_rules().then(|| Box::new(inner(&of, &schema)));
        }
        for (name, of) in of.properties.iter().filter(|(_, p)| p.has_rules()) {
            if let Some(schema) = schema.properties.get(name) {
                node.properties.insert(name.clone(), inner(of, schema));
            }
        }
        let all = of.all_of.iter().filter(|s| s.has_rules());
        node.all_of = all.map(|of| Self::new(of, schema, resource)).collect();
        node
    }
}

impl Compiled {
    fn without(rule: &Rule, why: String) -> Self {
        let rule = rule.clone();
        Self { rule, program: Err(why), message: None, uses_old: false, path: None }
    }

    /// The message, or else the rule.
    fn shown(&self) -> &str {
        let message = self.rule.message.trim();
        if message.is_empty() { self.rule.rule.trim() } else { message }
    }
}

struct Checker {
    left: u64,
    /// Nothing further is checked.
    spent: bool,
    errors: ErrorList,
}

impl Checker {
    /// `unchanged`: the value, or the nearest around it that can be told, is what it was.
    fn node(
        &mut self,
        node: &Node,
        path: &Path,
        new: &Value,
        old: Option<&Value>,
        unchanged: bool,
        root: bool,
    ) {
        if new.is_null() || self.spent {
            return;
        }
        for compiled in &node.rules {
            self.rule(node, compiled, path, new, old, unchanged);
            if self.spent {
                return;
            }
        }
        for all in &node.all_of {
            self.node(all, path, new, old, false, root);
        }
        match new {
            Value::Array(items) => {
                let Some(inner) = &node.items else { return };
                for (i, item) in items.iter().enumerate() {
                    let before = correlate::item(&node.schema, item, old);
                    let same = if before.is_some() { before == Some(item) } else { unchanged };
                    self.node(inner, &path.index(i), item, before, same, false);
                }
            }
            Value::Object(map) => {
                for (name, child) in map {
                    let (inner, at) = match (node.properties.get(name), &node.additional) {
                        (Some(inner), _) => (inner, path.child(name)),
                        (None, Some(inner)) => (&**inner, path.key(name)),
                        (None, None) => continue,
                    };
                    let before = correlate::entry(name, old);
                    let same = match before {
                        _ if root && matches!(name.as_str(), "apiVersion" | "kind") => false,
                        Some(before) => before == child,
                        None => unchanged,
                    };
                    self.node(inner, &at, child, before, same, false);
                }
            }
            _ => {}
        }
    }

    fn rule(
        &mut self,
        node: &Node,
        compiled: &Compiled,
        path: &Path,
        new: &Value,
        old: Option<&Value>,
        unchanged: bool,
    ) {
        let optional = compiled.rule.optional_old_self == Some(true);
        if compiled.uses_old && old.is_none() && !optional {
            return;
        }
        let ty = node.ty.as_str();
        let program = match &compiled.program {
            Ok(program) => program,
            Err(error) => {
                let text = format!("rule compile error: {error}");
                return self.errors.push(FieldError::invalid(path, ty, text));
            }
        };
        let any = Type::Dyn;
        let value = node.value.as_ref().unwrap_or(&any);
        let mut activation = Activation::default();
        activation.set("self", Val::typed(new, value));
        let before = old.filter(|o| !o.is_null()).map(|old| Val::typed(old, value));
        match (optional, before) {
            (true, before) => activation.set("oldSelf", Val::Optional(before.map(Box::new))),
            (false, Some(before)) => activation.set("oldSelf", before),
            (false, None) => {}
        }
        let shown = compiled.shown();
        match self.spend(|budget| program.eval(&activation, budget)) {
            None => {
                let text = "validation failed due to running out of cost budget, no further validation rules will be run";
                self.errors.push(FieldError::invalid(path, ty, text));
                self.spent = true;
            }
            Some(Ok(value)) if value.as_bool() == Some(true) => {}
            Some(Ok(_)) => {
                let detail = self.detail(compiled, &activation);
                if compiled.uses_old || !unchanged {
                    let error = failed(compiled, node, path, new, detail);
                    self.errors.push(error);
                }
            }
            Some(Err(EvalError::OverBudget)) => {
                let text = format!(
                    "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}",
                    EvalError::OverBudget
                );
                self.errors.push(FieldError::invalid(path, ty, text));
                self.spent = true;
            }
            Some(Err(error)) => {
                let error = error.to_string();
                let text = if error.starts_with("no such overload") {
                    format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                    )
                } else {
                    format!("{error} evaluating rule: {shown}")
                };
                self.errors.push(FieldError::invalid(path, ty, text));
            }
        }
    }

    /// Evaluates within what one call and what all may cost; `None`: all is spent.
    fn spend<T>(&mut self, run: impl FnOnce(&mut Budget) -> T) -> Option<T> {
        let mut budget = Budget::new(PER_CALL_LIMIT);
        let result = run(&mut budget);
        let cost = PER_CALL_LIMIT.saturating_sub(budget.left());
        if cost > self.left {
            return None;
        }
        self.left -= cost;
        Some(result)
    }

    /// What to say of a value that breaks a rule.
    fn detail(&mut self, compiled: &Compiled, activation: &Activation<'_>) -> String {
        let made = compiled.message.as_ref().and_then(|program| {
            let value = self.spend(|budget| program.eval(activation, budget))?.ok()?;
            let text = value.as_str()?.trim().to_owned();
            let fits = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
            fits.then_some(text)
        });
        made.unwrap_or_else(|| match compiled.rule.message.trim() {
            "" => format!("failed rule: {}", compiled.shown()),
            message => message.to_owned(),
        })
    }
}

fn failed(
    compiled: &Compiled,
    node: &Node,
    path: &Path,
    new: &Value,
    detail: String,
) -> FieldError {
    let path = match &compiled.path {
        Some(below) => path.child(below.as_str()),
        None => path.clone(),
    };
    let mut error = match compiled.rule.reason.as_str() {
        "FieldValueForbidden" => return FieldError::forbidden(&path, detail),
        "FieldValueRequired" => return FieldError::required(&path, detail),
        "FieldValueDuplicate" => FieldError::duplicate(&path, new.clone()),
        _ => FieldError::invalid(&path, new.clone(), detail),
    };
    // What holds others is not shown.
    if matches!(node.ty.as_str(), "object" | "array") {
        error.value = None;
    }
    error
}

/// Whether errors keep rules from being checked, as upstream says it.
pub fn blocked(errors: &[FieldError]) -> Option<FieldError> {
    let blocks = |e: &FieldError| {
        use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
        matches!(e.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
    };
    errors.iter().any(blocks).then(|| {
        let text = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        FieldError::invalid(&Path::new(""), "null", text)
    })
}

/// A path of fields through a schema, and the schema at its end (upstream: `ValidFieldPath`).
///
/// # Errors
/// What is wrong with the path.
pub fn field_path<'a>(
    text: &str,
    schema: &'a Schema,
    arrays: bool,
) -> Result<(Path, &'a Schema), String> {
    let ended = || "unexpected end of JSON path".to_owned();
    let unknown = || "does not refer to a valid field".to_owned();
    let (mut path, mut schema, mut rest) = (Path::new(""), schema, text);
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            let (token, after) = after.split_at(end);
            if token.is_empty() && after.is_empty() {
                return Err(ended());
            }
            name = token.to_owned();
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            if !arrays {
                return Err("array notation is not allowed".to_owned());
            }
            let (token, after) = after.split_once(']').ok_or_else(ended)?;
            let quoted = token.strip_prefix('\'').and_then(|t| t.strip_suffix('\''));
            let inside =
                quoted.ok_or_else(|| format!("expected single quoted string but got {token}"))?;
            name = inside.replace("\\'", "'").replace("\\\\", "\\");
            rest = after;
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
            return Err(format!("expected [ or . but got: {}", rest.get(..end).unwrap_or(rest)));
        }
        if schema.properties.is_empty() {
            let other = schema.additional.as_ref().and_then(|a| a.schema.as_deref());
            schema = other.ok_or_else(unknown)?;
            path = path.key(&name);
        } else {
            schema = schema.properties.get(&name).ok_or_else(unknown)?;
            path = path.child(&name);
        }
    }
    Ok((path, schema))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(props: Value, new: Value, old: Option<Value>) -> Vec<String> {
        let schema = Schema::read(&json!({"type": "object", "properties": {"spec": props}}));
        let rules = Rules::new(&schema.expect("a schema")).expect("rules");
        let errors = rules.check(
            &Path::new(""),
            &json!({"spec": new}),
            old.map(|old| json!({"spec": old})).as_ref(),
        );
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_held() {
        let none: [&str; 0] = [];
        let with = |rule: Value| {
            json!({"type": "object", "x-kubernetes-validations": [rule], "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "at": {"type": "string"}}})
        };
        let order = with(json!({"rule": "self.min <= self.max"}));
        assert_eq!(check(order.clone(), json!({"min": 1, "max": 2}), None), none);
        assert_eq!(
            check(order.clone(), json!({"min": 3, "max": 2}), None),
            ["spec: Invalid value: failed rule: self.min <= self.max"]
        );
        assert_eq!(
            check(order.clone(), json!({"min": 3}), None),
            [
                r#"spec: Invalid value: "object": no such key: max evaluating rule: self.min <= self.max"#
            ]
        );
        // What was so before may stay.
        let bad = json!({"min": 3, "max": 2});
        assert_eq!(check(order, bad.clone(), Some(bad)), none);
        let fixed = with(json!({"rule": "self.at == oldSelf.at", "message": "is fixed",
            "fieldPath": ".at", "reason": "FieldValueForbidden"}));
        assert_eq!(check(fixed.clone(), json!({"at": "a"}), None), none);
        assert_eq!(
            check(fixed, json!({"at": "a"}), Some(json!({"at": "b"}))),
            ["spec.at: Forbidden: is fixed"]
        );
        let told =
            with(json!({"rule": "self.min > 5", "messageExpression": "'not ' + string(self.min)"}));
        assert_eq!(check(told, json!({"min": 3}), None), ["spec: Invalid value: not 3"]);
    }

    #[test]
    fn rules_that_do_not_compile_are_found() {
        let schema = |rule: &str| {
            Schema::read(&json!({"type": "object",
            "x-kubernetes-validations": [{"rule": rule}],
            "properties": {"a": {"type": "string"}}}))
            .expect("a schema")
        };
        assert!(compile(&schema("self.a == 'x'"), false).0.is_empty());
        assert_eq!(compile(&schema("self.a == oldSelf.a"), false).1, [true]);
        for wrong in ["self.b == 'x'", "self.a", "self.a =="] {
            assert_eq!(compile(&schema(wrong), false).0.len(), 1, "{wrong}");
        }
    }
}
