//! A policy with its expressions compiled, and its variables.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::{Value, object};
use parking_lot::Mutex;

use super::environment::{Composition, Declared, compile, environment};
use crate::admission::matching::Criteria;
use crate::cel::{Activation, Budget, EvalError, Fields, Program, Type, Val};
use crate::reader::Object;

/// An expression; or why it does not compile, which fails what needs it.
pub(super) type Compiled = Result<Program, String>;

/// A rule.
pub(super) struct Validation {
    pub expression: String,
    pub program: Compiled,
    pub message: String,
    pub message_program: Option<Compiled>,
    pub reason: String,
}

/// A policy.
pub(super) struct Policy {
    pub value: Object,
    pub criteria: Criteria,
    pub ignores_failures: bool,
    pub conditions: Vec<Compiled>,
    variables: Vec<(String, Compiled)>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Compiled>,
}

impl Policy {
    pub fn compile(value: Object) -> Self {
        let spec = value.get("spec").unwrap_or(&Value::Null);
        let params = spec.get("paramKind").is_some_and(Value::is_object);
        let declared = Declared { params, authorizer: true };
        let env = environment(declared);
        let without = environment(Declared { authorizer: false, ..declared });
        let list = |field| object::list_at(spec, &[field]);
        let text = |v: &Value, field| object::str_at(v, &[field]).to_owned();
        let conditions = list("matchConditions")
            .iter()
            .map(|c| compile(text(c, "expression").trim(), &env, &[Type::Bool]))
            .collect();
        let mut composition = Composition::new(env);
        let variables = list("variables")
            .iter()
            .map(|v| {
                let name = text(v, "name");
                let program = composition.add(&name, &text(v, "expression"));
                (name, program)
            })
            .collect();
        let (env, without) = (composition.env(None), composition.env(Some(&without)));
        let validations = list("validations")
            .iter()
            .map(|v| {
                let expression = text(v, "expression");
                let said = text(v, "messageExpression");
                Validation {
                    program: compile(&expression, &env, &[Type::Bool]),
                    expression,
                    message: text(v, "message").trim().to_owned(),
                    message_program: (!said.trim().is_empty())
                        .then(|| compile(&said, &without, &[Type::String])),
                    reason: text(v, "reason"),
                }
            })
            .collect();
        let annotations = list("auditAnnotations")
            .iter()
            .map(|a| {
                let wanted = [Type::String, Type::Null];
                compile(text(a, "valueExpression").trim(), &env, &wanted)
            })
            .collect();
        let constraints = spec.get("matchConstraints").unwrap_or(&Value::Null);
        Self {
            criteria: Criteria::of_policy(constraints),
            ignores_failures: object::str_at(spec, &["failurePolicy"]) == "Ignore",
            conditions,
            variables,
            validations,
            annotations,
            value,
        }
    }
}

/// `variables`: each is evaluated when an expression first names it.
pub(super) struct Variables<'a> {
    policy: Arc<Policy>,
    made: Mutex<HashMap<String, Result<Val<'a>, EvalError>>>,
}

impl<'a> Variables<'a> {
    pub fn new(policy: Arc<Policy>) -> Self {
        Self { policy, made: Mutex::default() }
    }
}

impl std::fmt::Debug for Variables<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variables").finish_non_exhaustive()
    }
}

impl<'a> Fields<'a> for Variables<'a> {
    fn get(
        &self,
        name: &str,
        activation: &Activation<'a>,
        budget: &mut Budget,
    ) -> Option<Result<Val<'a>, EvalError>> {
        let (_, program) = self.policy.variables.iter().find(|(n, _)| n == name)?;
        if let Some(made) = self.made.lock().get(name) {
            return Some(made.clone());
        }
        let made = match program {
            Ok(program) => program.eval(activation, budget).map_err(|error| match error {
                EvalError::Failed(why) => EvalError::Failed(format!(
                    "composited variable {name:?} fails to evaluate: {why}"
                )),
                other => other,
            }),
            Err(why) => Err(EvalError::Failed(format!(
                "composited variable {name:?} fails to compile: {why}"
            ))),
        };
        // A question is asked anew once it has an answer.
        if !matches!(made, Err(EvalError::Unasked(_))) {
            self.made.lock().insert(name.to_owned(), made.clone());
        }
        Some(made)
    }
}
