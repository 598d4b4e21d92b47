//! Evaluation. It reads nothing but its activation; what must be asked of others (whether a user
//! may do something) ends it with the question, and it is begun anew with the answer.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::ast::{Call, Comprehension, Expr, Kind, Literal, Macro, Select};
use super::checker::{self, Env};
use super::error::{CompileErrors, EvalError};
use super::functions::{self, authz};
use super::parser;
use super::types::Type;
use super::value::{Key, Text, Val, to_key};

/// What may be spent on evaluation, in cel-go's units of cost.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    pub fn new(cost: u64) -> Self {
        Self { left: cost }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    pub(super) fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::OverBudget)
            }
        }
    }
}

/// Whether a user may do something, as an expression asks it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// `None`: the user of the request; else a service account's namespace and name.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    pub about: About,
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    Path(String),
    Resource(Box<authz::Resource>),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub allowed: bool,
    pub reason: String,
    /// The check itself failed.
    pub error: Option<String>,
}

/// The answers that there are already.
pub type Authorizations = HashMap<Question, Arc<Decided>>;

/// The variables of an evaluation.
#[derive(Clone, Debug, Default)]
pub struct Activation<'a> {
    variables: HashMap<&'static str, Val<'a>>,
    pub authorizations: Arc<Authorizations>,
}

impl<'a> Activation<'a> {
    pub fn set(&mut self, name: &'static str, value: Val<'a>) {
        self.variables.insert(name, value);
    }
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Program {
    expr: Expr,
    output: Type,
    source: Arc<str>,
}

impl Program {
    /// Parses and checks an expression.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn compile(source: &str, env: &Env) -> Result<Self, CompileErrors> {
        let mut expr = parser::parse(source).map_err(|e| CompileErrors::new(source, e))?;
        let output = checker::check(source, &mut expr, env)?;
        Ok(Self { expr, output, source: source.into() })
    }

    pub(super) fn expr(&self) -> &Expr {
        &self.expr
    }

    /// The type of what it gives.
    pub fn output(&self) -> &Type {
        &self.output
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// # Errors
    /// In cel-go's words; or the budget is spent; or a question must be answered first.
    pub fn eval<'a>(
        &self,
        activation: &Activation<'a>,
        budget: &mut Budget,
    ) -> Result<Val<'a>, EvalError> {
        let mut interpreter = Interpreter { activation, scope: Vec::new(), budget };
        interpreter.eval(&self.expr)
    }
}

pub(super) struct Interpreter<'e, 'a> {
    pub activation: &'e Activation<'a>,
    scope: Vec<(Arc<str>, Val<'a>)>,
    pub budget: &'e mut Budget,
}

type Result<T, E = EvalError> = std::result::Result<T, E>;

impl<'a> Interpreter<'_, 'a> {
    fn eval(&mut self, expr: &Expr) -> Result<Val<'a>> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal_value(literal)),
            Kind::Ident(name) => self.ident(name),
            Kind::Select(select) => self.select(select),
            Kind::Call(call) => self.call(call),
            Kind::List(elements) => {
                self.budget.spend(10)?;
                let mut list = Vec::with_capacity(elements.len());
                for element in elements {
                    let value = self.eval(&element.value)?;
                    match (element.optional, value) {
                        (true, Val::Optional(value)) => list.extend(value.map(|v| *v)),
                        (_, value) => list.push(value),
                    }
                }
                Ok(Val::list(list))
            }
            Kind::Map(entries) => {
                self.budget.spend(30)?;
                let mut map: IndexMap<Key, Val<'a>> = IndexMap::with_capacity(entries.len());
                for entry in entries {
                    let key = self.key(&entry.key)?;
                    match (entry.optional, self.eval(&entry.value)?) {
                        (true, Val::Optional(None)) => {}
                        (true, Val::Optional(Some(value))) => insert(&mut map, key, *value)?,
                        (_, value) => insert(&mut map, key, value)?,
                    }
                }
                Ok(Val::Map(Arc::new(map)))
            }
            Kind::Struct(name, _) => Err(EvalError::new(format!("unknown type: {name}"))),
            Kind::Macro(made) => self.comprehension(made),
        }
    }

    fn key(&mut self, expr: &Expr) -> Result<Key> {
        let key = self.eval(expr)?;
        to_key(&key)
            .ok_or_else(|| EvalError::new(format!("unsupported key type: {}", key.type_name())))
    }

    fn ident(&mut self, name: &str) -> Result<Val<'a>> {
        self.budget.spend(1)?;
        let global = name.strip_prefix('.');
        if global.is_none()
            && let Some((_, value)) = self.scope.iter().rev().find(|(n, _)| &**n == name)
        {
            return Ok(value.clone());
        }
        let name = global.unwrap_or(name);
        if let Some(value) = self.activation.variables.get(name) {
            return Ok(value.clone());
        }
        match checker::type_named(name) {
            Some(_) => Ok(Val::Type(name.into())),
            None => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn select(&mut self, select: &Select) -> Result<Val<'a>> {
        let operand = self.eval(&select.operand)?;
        if !select.test {
            self.budget.spend(1)?;
        }
        let (operand, was_optional) = match operand {
            Val::Optional(None) if select.test => return Ok(Val::Bool(false)),
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => (*inner, true),
            other => (other, false),
        };
        let fits = operand.is_map() || matches!(operand, Val::Fields(_));
        if !fits {
            return Err(EvalError::no_overload());
        }
        let found = match &operand {
            Val::Fields(_) => self.lazy(&operand, &select.field)?,
            operand => operand.field(&select.field),
        };
        if select.test {
            return Ok(Val::Bool(found.is_some()));
        }
        match (found, was_optional || select.optional) {
            (Some(value), true) => Ok(Val::some(value)),
            (None, true) => Ok(Val::Optional(None)),
            (Some(value), false) => Ok(value),
            (None, false) => Err(EvalError::new(format!("no such key: {}", select.field))),
        }
    }

    /// A variable of a policy, which is evaluated when it is first asked for.
    fn lazy(&mut self, fields: &Val<'a>, name: &str) -> Result<Option<Val<'a>>> {
        let Val::Fields(fields) = fields else { return Ok(None) };
        fields.get(name, self.activation, self.budget).transpose()
    }

    fn call(&mut self, call: &Call) -> Result<Val<'a>> {
        match (&*call.function, call.args.as_slice()) {
            ("_&&_", [a, b]) => return self.logic(a, b, false),
            ("_||_", [a, b]) => return self.logic(a, b, true),
            ("_?_:_", [condition, yes, no]) => {
                let chosen = match self.eval(condition)?.as_bool() {
                    Some(true) => yes,
                    Some(false) => no,
                    None => return Err(EvalError::no_overload()),
                };
                return self.eval(chosen);
            }
            ("or", [other]) => {
                if let Some(target) = &call.target {
                    return match self.eval(target)? {
                        Val::Optional(None) => self.eval(other),
                        found @ Val::Optional(_) => Ok(found),
                        _ => Err(EvalError::no_overload()),
                    };
                }
            }
            ("orValue", [other]) => {
                if let Some(target) = &call.target {
                    return match self.eval(target)? {
                        Val::Optional(Some(value)) => Ok(*value),
                        Val::Optional(None) => self.eval(other),
                        _ => Err(EvalError::no_overload()),
                    };
                }
            }
            _ => {}
        }
        let mut args = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            args.push(self.eval(target)?);
        }
        for arg in &call.args {
            args.push(self.eval(arg)?);
        }
        let name = call.function.trim_start_matches('.');
        self.budget.spend(functions::cost(name, &args))?;
        let made = functions::call(name, call.target.is_some(), &args, self.activation)?;
        functions::cost_after(name, &made).map_or(Ok(()), |cost| self.budget.spend(cost))?;
        Ok(made)
    }

    /// `&&` and `||`: one side that decides is enough, though the other fails.
    fn logic(&mut self, a: &Expr, b: &Expr, decides: bool) -> Result<Val<'a>> {
        let left = self.boolean(a);
        match &left {
            Ok(found) if *found == decides => return Ok(Val::Bool(decides)),
            Err(error) if is_final(error) => return Err(error.clone()),
            _ => {}
        }
        let right = self.boolean(b);
        match (left, right) {
            (_, Ok(found)) if found == decides => Ok(Val::Bool(found)),
            (_, Err(error)) if is_final(&error) => Err(error),
            (Err(error), _) => Err(error),
            (_, right) => right.map(Val::Bool),
        }
    }

    fn boolean(&mut self, expr: &Expr) -> Result<bool> {
        self.eval(expr)?.as_bool().ok_or_else(EvalError::no_overload)
    }

    fn comprehension(&mut self, made: &Macro) -> Result<Val<'a>> {
        use Comprehension as C;
        let range = self.eval(&made.range)?;
        if matches!(made.kind, C::OptMap | C::OptFlatMap) {
            let Val::Optional(inner) = range else { return Err(EvalError::no_overload()) };
            let Some(inner) = inner else { return Ok(Val::Optional(None)) };
            let value = self.with(made, [*inner, Val::Null], |this| this.eval(&made.body))?;
            return Ok(if made.kind == C::OptMap { Val::some(value) } else { value });
        }
        let two = made.vars.len() == 2;
        let pairs: Vec<[Val<'a>; 2]> = if range.is_list() {
            let at = |i: usize| Val::Int(i as i64);
            let all = range.elements().enumerate();
            all.map(|(i, v)| if two { [at(i), v] } else { [v, Val::Null] }).collect()
        } else if range.is_map() {
            range.entries().into_iter().map(|(k, v)| [k, v]).collect()
        } else {
            return Err(EvalError::no_overload());
        };
        let mut gathered = Gathered::default();
        for pair in pairs {
            // Of the loop itself.
            self.budget.spend(1)?;
            if let Some(value) = self.with(made, pair, |this| this.round(made, &mut gathered))? {
                return Ok(value);
            }
        }
        gathered.result(made.kind)
    }

    fn with<T>(
        &mut self,
        made: &Macro,
        pair: [Val<'a>; 2],
        run: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let depth = self.scope.len();
        self.scope.extend(made.vars.iter().cloned().zip(pair));
        let done = run(self);
        self.scope.truncate(depth);
        done
    }

    /// One element; a value ends the loop.
    fn round(&mut self, made: &Macro, gathered: &mut Gathered<'a>) -> Result<Option<Val<'a>>> {
        use Comprehension as C;
        let first = |this: &Self| match this.scope.len().checked_sub(made.vars.len()) {
            Some(at) => this.scope.get(at).map_or(Val::Null, |(_, v)| v.clone()),
            None => Val::Null,
        };
        if let Some(filter) = &made.filter
            && !self.boolean(filter)?
        {
            return Ok(None);
        }
        match made.kind {
            C::All | C::Exists => {
                let decides = made.kind == C::Exists;
                match self.boolean(&made.body) {
                    Ok(found) if found == decides => return Ok(Some(Val::Bool(decides))),
                    Ok(_) => {}
                    // Another element may still decide.
                    Err(error) if is_final(&error) => return Err(error),
                    Err(error) => gathered.error = gathered.error.take().or(Some(error)),
                }
            }
            C::ExistsOne => gathered.count += usize::from(self.boolean(&made.body)?),
            C::Filter => {
                if self.boolean(&made.body)? {
                    gathered.list.push(first(self));
                }
            }
            C::Map | C::TransformList => {
                let value = self.eval(&made.body)?;
                gathered.list.push(value);
            }
            C::TransformMap => {
                let value = self.eval(&made.body)?;
                let key = to_key(&first(self)).ok_or_else(EvalError::no_overload)?;
                gathered.map.insert(key, value);
            }
            C::TransformMapEntry => {
                for (key, value) in self.eval(&made.body)?.entries() {
                    let key = to_key(&key).ok_or_else(EvalError::no_overload)?;
                    insert(&mut gathered.map, key, value)?;
                }
            }
            C::OptMap | C::OptFlatMap => {}
        }
        Ok(None)
    }
}

fn insert<'a>(map: &mut IndexMap<Key, Val<'a>>, key: Key, value: Val<'a>) -> Result<()> {
    match map.contains_key(&key) {
        true => Err(EvalError::new("Failed with repeated key")),
        false => {
            map.insert(key, value);
            Ok(())
        }
    }
}

/// No other part of an expression can make up for these.
fn is_final(error: &EvalError) -> bool {
    matches!(error, EvalError::OverBudget | EvalError::Unasked(_))
}

/// What a loop has come to.
#[derive(Default)]
struct Gathered<'a> {
    error: Option<EvalError>,
    count: usize,
    list: Vec<Val<'a>>,
    map: IndexMap<Key, Val<'a>>,
}

impl<'a> Gathered<'a> {
    fn result(self, kind: Comprehension) -> Result<Val<'a>> {
        use Comprehension as C;
        match kind {
            C::All | C::Exists => match self.error {
                Some(error) => Err(error),
                None => Ok(Val::Bool(kind == C::All)),
            },
            C::ExistsOne => Ok(Val::Bool(self.count == 1)),
            C::TransformMap | C::TransformMapEntry => Ok(Val::Map(Arc::new(self.map))),
            _ => Ok(Val::list(self.list)),
        }
    }
}

fn literal_value<'a>(literal: &Literal) -> Val<'a> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(b) => Val::Bool(*b),
        Literal::Int(n) => Val::Int(*n),
        Literal::Uint(n) => Val::Uint(*n),
        Literal::Double(n) => Val::Double(*n),
        Literal::Str(text) => Val::Str(Text::Shared(text.clone())),
        Literal::Bytes(bytes) => Val::Bytes(bytes.clone()),
    }
}
