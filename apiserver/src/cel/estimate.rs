//! What an expression may cost, told from how large its values may become, before there are any
//! (upstream: cel-go `checker/cost.go`). Where little is known the estimate is too low rather than
//! too high: no expression is refused that upstream allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Call, Comprehension, Expr, Kind, Literal, Macro};
use super::eval::Program;

/// How large values may become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Characters of a text, items of a list, entries of a map; else 1.
    pub most: u64,
    /// Of the items of a list, or the values of a map.
    pub element: Option<Box<Extent>>,
    pub fields: BTreeMap<String, Extent>,
    /// Elements have keys.
    pub keyed: bool,
}

/// What is known of a value.
#[derive(Clone, Copy)]
struct Seen<'a> {
    most: u64,
    extent: Option<&'a Extent>,
}

const UNKNOWN: Seen<'static> = Seen { most: 1, extent: None };

impl<'a> Seen<'a> {
    fn of(extent: Option<&'a Extent>) -> Self {
        Self { most: extent.map_or(1, |e| e.most), extent }
    }

    fn element(self) -> Self {
        Self::of(self.extent.and_then(|e| e.element.as_deref()))
    }
}

impl Program {
    /// What the expression costs at most, as far as that is known, in cel-go's units.
    pub fn estimate(&self, variables: &[(&str, &Extent)]) -> u64 {
        let scope = variables.iter().map(|(name, e)| (Arc::from(*name), Seen::of(Some(*e))));
        Estimator { scope: scope.collect() }.cost(self.expr()).0
    }
}

struct Estimator<'a> {
    scope: Vec<(Arc<str>, Seen<'a>)>,
}

/// A tenth: what it costs to go through a text, for each character.
fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

impl<'a> Estimator<'a> {
    fn cost(&mut self, expr: &Expr) -> (u64, Seen<'a>) {
        match &expr.kind {
            Kind::Literal(Literal::Str(text)) => {
                let most = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
                (0, Seen { most, extent: None })
            }
            Kind::Literal(_) => (0, UNKNOWN),
            Kind::Ident(name) => {
                let found = self.scope.iter().rev().find(|(known, _)| known == name);
                (1, found.map_or(UNKNOWN, |(_, seen)| *seen))
            }
            Kind::Select(select) => {
                let (cost, operand) = self.cost(&select.operand);
                let field = |e: &'a Extent| e.fields.get(&*select.field).or(e.element.as_deref());
                (cost.saturating_add(1), Seen::of(operand.extent.and_then(field)))
            }
            Kind::Call(call) => self.call(call),
            Kind::List(all) => (self.sum(all.iter().map(|e| &e.value), 10), UNKNOWN),
            Kind::Map(all) => {
                let inner = all.iter().flat_map(|e| [&e.key, &e.value]);
                (self.sum(inner, 30), UNKNOWN)
            }
            Kind::Struct(_, fields) => (self.sum(fields.iter(), 40), UNKNOWN),
            Kind::Macro(made) => self.comprehension(made),
        }
    }

    fn sum<'e>(&mut self, all: impl Iterator<Item = &'e Expr>, own: u64) -> u64 {
        all.fold(own, |cost, expr| cost.saturating_add(self.cost(expr).0))
    }

    fn call(&mut self, call: &Call) -> (u64, Seen<'a>) {
        let parts: Vec<(u64, Seen<'a>)> =
            call.target.iter().chain(&call.args).map(|expr| self.cost(expr)).collect();
        let first = parts.first().map_or(UNKNOWN, |(_, seen)| *seen);
        let second = parts.get(1).map_or(UNKNOWN, |(_, seen)| *seen);
        let mut cost = parts.iter().fold(0_u64, |sum, (cost, _)| sum.saturating_add(*cost));
        let (own, made) = match &*call.function {
            "_?_:_" => {
                // Only one of both is evaluated.
                let less = parts.iter().skip(1).map(|(cost, _)| *cost).min().unwrap_or(0);
                cost = cost.saturating_sub(less);
                (0, UNKNOWN)
            }
            "_[_]" | "_[?_]" => (1, first.element()),
            "@in" => (second.most, UNKNOWN),
            "matches" => {
                (tenth(first.most).saturating_mul(second.most.div_ceil(4).max(1)), UNKNOWN)
            }
            "contains" => (tenth(first.most).saturating_mul(tenth(second.most).max(1)), UNKNOWN),
            "_==_" | "_!=_" => (tenth(first.most.min(second.most)), UNKNOWN),
            "_+_" => {
                let most = first.most.saturating_add(second.most);
                (tenth(most), Seen { most, extent: None })
            }
            _ => (1, UNKNOWN),
        };
        (cost.saturating_add(own), made)
    }

    fn comprehension(&mut self, made: &Macro) -> (u64, Seen<'a>) {
        let (cost, range) = self.cost(&made.range);
        let known = self.scope.len();
        let keyed = range.extent.is_some_and(|e| e.keyed);
        let only = made.vars.len() == 1;
        for (i, name) in made.vars.iter().enumerate() {
            let key = keyed && only || !only && i == 0;
            self.scope.push((name.clone(), if key { UNKNOWN } else { range.element() }));
        }
        let body = made.filter.iter().chain([&made.body]);
        let each = self.sum(body, 0);
        self.scope.truncate(known);
        let times = match made.kind {
            Comprehension::OptMap | Comprehension::OptFlatMap => 1,
            _ => range.most,
        };
        let result = match made.kind {
            Comprehension::Filter => range,
            Comprehension::Map | Comprehension::TransformList => {
                Seen { most: range.most, extent: None }
            }
            _ => UNKNOWN,
        };
        (cost.saturating_add(times.saturating_mul(each)), result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Env, Type};
    use super::*;

    #[test]
    fn nested_loops_multiply() {
        let text = Extent { most: 10, ..Extent::default() };
        let list = Extent { most: 100, element: Some(Box::new(text)), ..Extent::default() };
        let cost = |source: &str| {
            let env = Env::new().variable("self", Type::list(Type::String));
            let program = Program::compile(source, &env);
            program.map(|p| p.estimate(&[("self", &list)])).expect("an expression")
        };
        assert_eq!(cost("self == self"), 12);
        assert_eq!(cost("self.all(x, x == 'a')"), 1 + 100 * 2);
        assert_eq!(cost("self.all(x, self.all(y, x == y))"), 1 + 100 * (1 + 100 * 3));
        assert!(cost("self.exists(x, x.matches('^a*$'))") > 200);
        assert_eq!(cost("true ? self.size() > 1 : self.all(x, true)"), 3);
    }
}
