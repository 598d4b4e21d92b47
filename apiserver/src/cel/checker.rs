//! Types of expressions, found before there are values (cel-spec, "Gradual type checking").

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Call, Comprehension, Element, Entry, Expr, Kind, Literal, Macro, Select};
use super::declarations::{FUNCTIONS, Overload};
use super::error::CompileErrors;
use super::parser::qualified;
use super::types::{Type, Unifier};
use super::unescape;

/// What expressions may name.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, Type>,
}

impl Env {
    /// Only functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// And a variable; a name may have dots.
    #[must_use]
    pub fn variable(mut self, name: &str, ty: Type) -> Self {
        self.variables.insert(name.to_owned(), ty);
        self
    }
}

/// Names that stand for types.
pub(super) fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "type" => Type::Type,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "optional_type" => Type::optional(Type::Dyn),
        _ => return None,
    })
}

struct Checker<'a> {
    env: &'a Env,
    types: Unifier,
    /// Variables of comprehensions, the innermost last.
    scope: Vec<(Arc<str>, Type)>,
    errors: Vec<(u32, String)>,
}

/// Finds an expression's type, and settles which names are variables and functions.
pub(super) fn check(source: &str, expr: &mut Expr, env: &Env) -> Result<Type, CompileErrors> {
    let mut checker =
        Checker { env, types: Unifier::default(), scope: Vec::new(), errors: Vec::new() };
    let ty = checker.check(expr);
    if !checker.errors.is_empty() {
        return Err(CompileErrors::new(source, checker.errors));
    }
    let ty = checker.types.resolve(&ty, true);
    match literals(expr) {
        errors if errors.is_empty() => Ok(ty),
        errors => Err(CompileErrors::new(source, errors)),
    }
}

impl Checker<'_> {
    fn error(&mut self, at: u32, message: String) -> Type {
        self.errors.push((at, message));
        Type::Error
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let global = name.strip_prefix('.');
        if global.is_none()
            && let Some((_, ty)) = self.scope.iter().rev().find(|(n, _)| &**n == name)
        {
            return Some(ty.clone());
        }
        self.env.variables.get(global.unwrap_or(name)).cloned()
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        match &mut expr.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::Str(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => match self.variable(name) {
                Some(ty) => ty,
                None if type_named(name).is_some() => Type::Type,
                None => {
                    let message = format!("undeclared reference to '{name}' (in container '')");
                    self.error(at, message)
                }
            },
            Kind::Select(_) => self.select(expr),
            Kind::Call(_) => self.call(expr),
            Kind::List(elements) => self.list(elements),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct(name, fields) => {
                fields.iter_mut().for_each(|f| {
                    self.check(f);
                });
                let message = match type_named(name) {
                    Some(_) => format!("'{name}' is not a message type"),
                    None => format!("undeclared reference to '{name}' (in container '')"),
                };
                self.error(at, message)
            }
            Kind::Macro(made) => self.comprehension(made, at),
        }
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        let name = qualified(expr);
        // A variable of a comprehension hides a qualified name that begins alike.
        let hidden = |name: &str| {
            let first = name.split('.').next().unwrap_or(name);
            self.scope.iter().any(|(n, _)| &**n == first)
        };
        if let Some(name) = name.filter(|name| !hidden(name)) {
            if let Some(ty) = self.env.variables.get(&*name).cloned() {
                expr.kind = Kind::Ident(name);
                return ty;
            }
            if type_named(&name).is_some() {
                expr.kind = Kind::Ident(name);
                return Type::Type;
            }
        }
        let at = expr.at;
        let Kind::Select(select) = &mut expr.kind else { return Type::Error };
        let ty = self.field(select, at);
        let ty = if select.test { Type::Bool } else { ty };
        self.types.resolve(&ty, false)
    }

    fn field(&mut self, select: &mut Select, at: u32) -> Type {
        let operand = self.check(&mut select.operand);
        let operand = self.types.resolve(&operand, false);
        let (target, was_optional) = operand.unwrapped();
        let found = match target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(structure) => {
                let property = unescape(&select.field).unwrap_or_else(|| select.field.to_string());
                match structure.field(&property) {
                    Some(ty) => {
                        select.field = property.into();
                        ty
                    }
                    None => self.error(at, format!("undefined field '{}'", select.field)),
                }
            }
            Type::Var(_) => {
                self.types.assignable(&[(Type::Dyn, target.clone())]);
                Type::Dyn
            }
            other if other.is_dyn_or_error() => Type::Dyn,
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.error(at, message);
                Type::Dyn
            }
        };
        if was_optional || select.optional { Type::optional(found) } else { found }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let Kind::Call(call) = &mut expr.kind else { return Type::Error };
        let Call { function, target, args } = &mut **call;
        let mut types: Vec<Type> = args.iter_mut().map(|arg| self.check(arg)).collect();
        if matches!(&**function, "_&&_" | "_||_") {
            for (arg, ty) in args.iter().zip(&types) {
                if !self.types.assignable(&[(ty.clone(), Type::Bool)]) {
                    let ty = self.types.resolve(ty, true);
                    let message = format!("expected type 'bool' but found '{ty}'");
                    self.error(arg.at, message);
                }
            }
            return Type::Bool;
        }
        // `a.b.c()` may be a function `a.b.c`.
        if let Some(before) = target.as_ref().and_then(qualified) {
            let name = format!("{before}.{function}");
            if FUNCTIONS.contains_key(&*name) {
                (*function, *target) = (name.into(), None);
            }
        }
        let member = target.is_some();
        if let Some(target) = target {
            types.insert(0, self.check(target));
        }
        let name = function.trim_start_matches('.').to_owned();
        let Some(overloads) = FUNCTIONS.get(&*name) else {
            return self.error(at, format!("undeclared reference to '{name}' (in container '')"));
        };
        match self.resolve(overloads, member, &types) {
            Some(ty) => ty,
            None => {
                let shown: Vec<String> =
                    types.iter().map(|ty| self.types.resolve(ty, true).to_string()).collect();
                let signature = match shown.split_first() {
                    Some((first, rest)) if member => format!("{first}.({})", rest.join(", ")),
                    _ => format!("({})", shown.join(", ")),
                };
                let message =
                    format!("found no matching overload for '{name}' applied to '{signature}'");
                self.error(at, message)
            }
        }
    }

    fn resolve(&mut self, overloads: &[Overload], member: bool, args: &[Type]) -> Option<Type> {
        let mut found: Option<Type> = None;
        for overload in overloads {
            if overload.member != member || overload.args.len() != args.len() {
                continue;
            }
            let mut params = Vec::new();
            let pairs: Vec<(Type, Type)> = args
                .iter()
                .zip(&overload.args)
                .map(|(arg, wanted)| (arg.clone(), self.types.instantiate(wanted, &mut params)))
                .collect();
            let result = self.types.instantiate(&overload.result, &mut params);
            if self.types.assignable(&pairs) {
                let result = self.types.resolve(&result, false);
                found = Some(match found {
                    None => result,
                    Some(before) if before == result => before,
                    Some(_) => Type::Dyn,
                });
            }
        }
        found
    }

    fn list(&mut self, elements: &mut [Element]) -> Type {
        let mut joined: Option<Type> = None;
        for element in elements {
            let mut ty = self.check(&mut element.value);
            if element.optional {
                ty = self.unwrap(ty, element.value.at);
            }
            joined = Some(self.join(joined, ty, element.value.at));
        }
        Type::list(joined.unwrap_or_else(|| self.types.fresh()))
    }

    fn map(&mut self, entries: &mut [Entry]) -> Type {
        let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
        for entry in entries {
            let key = self.check(&mut entry.key);
            keys = Some(self.join(keys, key, entry.key.at));
            let mut value = self.check(&mut entry.value);
            if entry.optional {
                value = self.unwrap(value, entry.value.at);
            }
            values = Some(self.join(values, value, entry.value.at));
        }
        let key = keys.unwrap_or_else(|| self.types.fresh());
        Type::map(key, values.unwrap_or_else(|| self.types.fresh()))
    }

    fn unwrap(&mut self, ty: Type, at: u32) -> Type {
        let ty = self.types.resolve(&ty, false);
        let (inner, is_optional) = ty.unwrapped();
        if !is_optional && !ty.is_dyn_or_error() {
            let message = format!("expected type 'optional_type({ty})' but found '{ty}'");
            self.error(at, message);
        }
        inner.clone()
    }

    /// Literals hold elements of one type (upstream: `HomogeneousAggregateLiterals`).
    fn join(&mut self, before: Option<Type>, ty: Type, at: u32) -> Type {
        let Some(before) = before else { return ty };
        if self.types.assignable(&[(before.clone(), ty.clone())]) {
            return if matches!(ty, Type::Dyn) || matches!(before, Type::Null) {
                ty
            } else {
                before
            };
        }
        let (before, ty) = (self.types.resolve(&before, true), self.types.resolve(&ty, true));
        self.error(at, format!("expected type '{before}' but found '{ty}'"))
    }

    fn comprehension(&mut self, made: &mut Macro, at: u32) -> Type {
        use Comprehension as C;
        let range = self.check(&mut made.range);
        let range = self.types.resolve(&range, false);
        if matches!(made.kind, C::OptMap | C::OptFlatMap) {
            return self.optional_macro(made, &range, at);
        }
        let two = made.vars.len() == 2;
        let (first, second) = match &range {
            Type::List(of) if two => (Type::Int, (**of).clone()),
            Type::List(of) => ((**of).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Var(_) => {
                self.types.assignable(&[(Type::Dyn, range.clone())]);
                (Type::Dyn, Type::Dyn)
            }
            other if other.is_dyn_or_error() => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.error(made.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let depth = self.scope.len();
        let types = [first.clone(), second];
        self.scope.extend(made.vars.iter().cloned().zip(types));
        if let Some(filter) = &mut made.filter {
            let ty = self.check(filter);
            self.expect_bool(&ty, filter.at);
        }
        let body = self.check(&mut made.body);
        self.scope.truncate(depth);
        match made.kind {
            C::All | C::Exists | C::ExistsOne => {
                self.expect_bool(&body, made.body.at);
                Type::Bool
            }
            C::Filter => {
                self.expect_bool(&body, made.body.at);
                Type::list(first)
            }
            C::Map | C::TransformList => Type::list(self.types.resolve(&body, false)),
            C::TransformMap => Type::map(first, self.types.resolve(&body, false)),
            C::TransformMapEntry => self.types.resolve(&body, false),
            C::OptMap | C::OptFlatMap => body,
        }
    }

    fn optional_macro(&mut self, made: &mut Macro, range: &Type, at: u32) -> Type {
        let (inner, is_optional) = range.unwrapped();
        let inner = inner.clone();
        if !is_optional && !range.is_dyn_or_error() {
            let message =
                format!("found no matching overload for 'hasValue' applied to '{range}.()'");
            self.error(at, message);
        }
        let depth = self.scope.len();
        self.scope.extend(made.vars.iter().cloned().map(|v| (v, inner.clone())));
        let body = self.check(&mut made.body);
        self.scope.truncate(depth);
        let body = self.types.resolve(&body, false);
        if made.kind == Comprehension::OptMap { Type::optional(body) } else { body }
    }

    fn expect_bool(&mut self, ty: &Type, at: u32) {
        if !self.types.assignable(&[(Type::Bool, ty.clone())]) {
            let ty = self.types.resolve(ty, true);
            let message = format!("expected type 'bool' but found '{ty}'");
            self.error(at, message);
        }
    }
}

/// Literals that functions would refuse when they are called (upstream: AST validators).
fn literals(expr: &Expr) -> Vec<(u32, String)> {
    let mut errors = Vec::new();
    let mut todo = vec![expr];
    while let Some(expr) = todo.pop() {
        match &expr.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select(select) => todo.push(&select.operand),
            Kind::Call(call) => {
                errors.extend(literal_argument(call));
                todo.extend(call.target.iter().chain(&call.args));
            }
            Kind::List(elements) => todo.extend(elements.iter().map(|e| &e.value)),
            Kind::Map(entries) => todo.extend(entries.iter().flat_map(|e| [&e.key, &e.value])),
            Kind::Struct(_, fields) => todo.extend(fields),
            Kind::Macro(made) => {
                todo.extend([&made.range, &made.body].into_iter().chain(&made.filter));
            }
        }
    }
    errors
}

fn literal_argument(call: &Call) -> Option<(u32, String)> {
    let arg = match &*call.function {
        "matches" if call.target.is_none() => call.args.get(1)?,
        "matches" | "duration" | "timestamp" => call.args.first()?,
        _ => return None,
    };
    let Kind::Literal(Literal::Str(text)) = &arg.kind else { return None };
    let what = match &*call.function {
        "matches" => {
            super::functions::regex(text).err()?;
            "matches"
        }
        "duration" => match super::value::go_duration(text) {
            Some(_) => return None,
            None => "duration",
        },
        _ => match super::value::timestamp(text) {
            Some(_) => return None,
            None => "timestamp",
        },
    };
    Some((arg.at, format!("invalid {what} argument")))
}
