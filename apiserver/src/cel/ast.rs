//! The syntax tree. Macros stay as they were written: what they mean is said once, in the checker
//! and in the evaluator.

use std::sync::Arc;

/// An expression. `at` is where errors about it point: characters from the beginning.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub kind: Kind,
    pub at: u32,
    /// Length of the longest way down: what works through a tree does so by recursion.
    pub height: u16,
}

impl Expr {
    pub fn new(kind: Kind, at: u32) -> Self {
        let of = |e: &Expr| e.height;
        let below = match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select(select) => select.operand.height,
            Kind::Call(call) => call.target.iter().chain(&call.args).map(of).max().unwrap_or(0),
            Kind::List(all) => all.iter().map(|e| e.value.height).max().unwrap_or(0),
            Kind::Map(all) => {
                all.iter().map(|e| e.key.height.max(e.value.height)).max().unwrap_or(0)
            }
            Kind::Struct(_, fields) => fields.iter().map(of).max().unwrap_or(0),
            Kind::Macro(made) => {
                [&made.range, &made.body].into_iter().chain(&made.filter).map(of).max().unwrap_or(0)
            }
        };
        Self { kind, at, height: below.saturating_add(1) }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Literal(Literal),
    /// A name; a leading dot says that it is global.
    Ident(Arc<str>),
    Select(Box<Select>),
    Call(Box<Call>),
    List(Vec<Element>),
    Map(Vec<Entry>),
    /// `name{field: value}`, of which only the values are looked at: no type is made so.
    Struct(Arc<str>, Vec<Expr>),
    Macro(Box<Macro>),
}

#[derive(Debug, Clone)]
pub(super) struct Select {
    pub operand: Expr,
    pub field: Arc<str>,
    /// `has(operand.field)`
    pub test: bool,
    /// `operand.?field`
    pub optional: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    /// Operators by cel-go's names: `_+_`, `_[_]`, `_?_:_`.
    pub function: Arc<str>,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
}

#[derive(Debug, Clone)]
pub(super) struct Element {
    pub value: Expr,
    pub optional: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comprehension {
    All,
    Exists,
    ExistsOne,
    /// Two arguments after the variables: a filter, and what elements become.
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
    /// `opt.optMap(v, e)`
    OptMap,
    /// `opt.optFlatMap(v, e)`
    OptFlatMap,
}

#[derive(Debug, Clone)]
pub(super) struct Macro {
    pub kind: Comprehension,
    pub range: Expr,
    /// One variable or two.
    pub vars: Vec<Arc<str>>,
    pub filter: Option<Expr>,
    pub body: Expr,
}
