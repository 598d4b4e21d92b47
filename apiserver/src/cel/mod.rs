//! The Common Expression Language, as Kubernetes uses it: parsed, checked against declared types,
//! and evaluated on JSON without copying it, within a budget.
//!
//! ```
//! use apiserver::cel::{Activation, Budget, Env, Program, Type, Val};
//! let env = Env::new().variable("object", Type::Dyn);
//! let program = Program::compile("object.spec.replicas > 1", &env).expect("compiles");
//! let object = serde_json::json!({"spec": {"replicas": 3}});
//! let mut activation = Activation::default();
//! activation.set("object", Val::json(&object));
//! let answer = program.eval(&activation, &mut Budget::new(1_000_000));
//! assert_eq!(answer.ok().and_then(|v| v.as_bool()), Some(true));
//! ```
//!
//! The language is that of cel-spec; functions are cel-go's standard library, its extensions for
//! strings, lists, sets and two-variable comprehensions, optional values, and those of
//! k8s.io/apiserver `cel/library`. Rules about costs are k8s.io/apiserver's `apis/cel`. No crate
//! that there is checks types or counts costs, without which policies and rules cannot be judged
//! when they are written.

mod ast;
mod checker;
mod declarations;
mod error;
mod estimate;
mod eval;
mod functions;
mod lexer;
mod parser;
mod types;
mod value;

#[cfg(test)]
mod tests;

pub use checker::Env;
pub use error::{CompileErrors, EvalError};
pub use estimate::Extent;
pub use eval::{About, Activation, Authorizations, Budget, Decided, Program, Question};
pub use functions::authz;
pub use types::{Structure, Type};
pub use value::{Fields, Text, Val};

/// Cost of one expression at most (upstream: `PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// Cost of all expressions of one policy, for one request.
pub const POLICY_BUDGET: u64 = 10_000_000;
/// Cost of all match conditions of one webhook, for one request.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;

/// Whether a name can be a variable's.
pub fn is_identifier(name: &str) -> bool {
    let fits = |c: char| c == '_' || c.is_ascii_alphanumeric();
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(fits)
        && !lexer::RESERVED.iter().chain(&lexer::KEYWORDS).any(|r| *r == name)
}

/// The property name that an identifier of an expression stands for: names that CEL does not take
/// as identifiers are written escaped (upstream: `cel/escaping.go`).
pub fn unescape(name: &str) -> Option<String> {
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && lexer::RESERVED.iter().chain(&lexer::KEYWORDS).any(|r| *r == word)
    {
        return Some(word.to_owned());
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("__") {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let (text, length) =
            [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")]
                .iter()
                .find(|(code, _)| after.starts_with(code))
                .map(|(code, text)| (*text, code.len()))?;
        out.push_str(text);
        rest = after.get(length..)?;
    }
    out.push_str(rest);
    Some(out)
}
