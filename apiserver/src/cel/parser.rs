//! From tokens to a tree, by recursive descent. Messages are those of cel-go's parser where a
//! single thing is wrong, and alike where more is.

use std::sync::Arc;

use super::ast::{Call, Comprehension, Element, Entry, Expr, Kind, Literal, Macro, Select};
use super::lexer::{KEYWORDS, RESERVED, Spanned, Token, tokens};

/// Deeper nesting is refused.
const MAX_DEPTH: u32 = 100;
/// Higher trees are refused.
const MAX_HEIGHT: u16 = 250;
/// Longer sources are refused, in characters.
const MAX_SOURCE: usize = 100_000;
/// What may begin an expression, as ANTLR lists it.
const BEGINNINGS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

type Errors = Vec<(u32, String)>;

/// Parses a source.
pub(super) fn parse(source: &str) -> Result<Expr, Errors> {
    let length = source.chars().count();
    if length > MAX_SOURCE {
        let text =
            format!("expression code point size exceeds limit: size: {length}, limit {MAX_SOURCE}");
        return Err(vec![(0, text)]);
    }
    let (tokens, errors) = tokens(source);
    let mut parser = Parser { tokens, at: 0, errors, depth: 0 };
    let parsed = parser.expression();
    if let Some(expr) = parsed {
        if !matches!(parser.peek(), Token::End) {
            let text = parser.shown();
            parser.error(format!("Syntax error: mismatched input '{text}' expecting <EOF>"));
        } else if parser.errors.is_empty() {
            return Ok(expr);
        }
    }
    Err(parser.errors)
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    errors: Errors,
    depth: u32,
}

fn call(function: &str, args: Vec<Expr>, at: u32) -> Expr {
    let call = Call { function: function.into(), target: None, args };
    Expr::new(Kind::Call(Box::new(call)), at)
}

/// Long chains of `&&` and `||` grow to the lower side, so that they do not grow high.
fn balanced(name: &str, left: Expr, right: Expr, at: u32) -> Expr {
    let lower = match &left.kind {
        Kind::Call(inner) if &*inner.function == name => match inner.args.as_slice() {
            [a, b] => a.height > b.height,
            _ => false,
        },
        _ => false,
    };
    if lower && let Kind::Call(inner) = left.kind {
        let mut args = inner.args;
        let (Some(b), Some(a)) = (args.pop(), args.pop()) else { return right };
        return call(name, vec![a, balanced(name, b, right, at)], left.at);
    }
    call(name, vec![left, right], at)
}

impl Parser {
    fn current(&self) -> Option<&Spanned> {
        self.tokens.get(self.at).or(self.tokens.last())
    }

    fn peek(&self) -> &Token {
        self.current().map_or(&Token::End, |s| &s.token)
    }

    fn place(&self) -> u32 {
        self.current().map_or(0, |s| s.at)
    }

    fn shown(&self) -> String {
        self.current().map_or_else(String::new, |s| s.text.clone())
    }

    fn error(&mut self, message: String) {
        let at = self.place();
        self.errors.push((at, message));
    }

    fn is(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    fn take(&mut self, op: &str) -> bool {
        let is = self.is(op);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, op: &str, expecting: &str) -> Option<()> {
        if self.take(op) {
            return Some(());
        }
        let text = self.shown();
        self.error(format!("Syntax error: mismatched input '{text}' expecting {expecting}"));
        None
    }

    fn limit(&mut self, expr: &Expr) -> Option<()> {
        if expr.height > MAX_HEIGHT {
            self.error(format!("expression recursion limit exceeded: {MAX_HEIGHT}"));
            return None;
        }
        Some(())
    }

    /// `a ? b : c`
    fn expression(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.error(format!("expression recursion limit exceeded: {MAX_DEPTH}"));
            return None;
        }
        let condition = self.binary(0)?;
        let at = self.place();
        let parsed = if self.take("?") {
            let yes = self.binary(0)?;
            self.expect(":", "':'")?;
            let no = self.expression()?;
            call("_?_:_", vec![condition, yes, no], at)
        } else {
            condition
        };
        self.depth -= 1;
        Some(parsed)
    }

    /// Operators by how loosely they bind.
    fn binary(&mut self, level: usize) -> Option<Expr> {
        const LEVELS: [&[&str]; 5] = [
            &["||"],
            &["&&"],
            &["<", "<=", ">=", ">", "==", "!=", "in"],
            &["+", "-"],
            &["*", "/", "%"],
        ];
        let Some(ops) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        loop {
            let op = match self.peek() {
                Token::Op(op) => ops.iter().find(|o| *o == op),
                Token::Word(word) if &**word == "in" => ops.iter().find(|o| **o == "in"),
                _ => None,
            };
            let Some(op) = op else { return Some(left) };
            let at = self.place();
            self.at += 1;
            let right = self.binary(level + 1)?;
            let name = if *op == "in" { "@in".to_owned() } else { format!("_{op}_") };
            left = if level < 2 {
                balanced(&name, left, right, at)
            } else {
                call(&name, vec![left, right], at)
            };
            self.limit(&left)?;
        }
    }

    fn unary(&mut self) -> Option<Expr> {
        let at = self.place();
        for (op, name) in [("!", "!_"), ("-", "-_")] {
            if !self.is(op) {
                continue;
            }
            let mut count = 0;
            while self.take(op) {
                count += 1;
            }
            // A sign of a number belongs to it.
            if op == "-"
                && count == 1
                && let Token::Literal(literal) = self.peek().clone()
            {
                let negative = match literal {
                    Literal::Int(n) => Some(Literal::Int(n.wrapping_neg())),
                    Literal::Double(n) => Some(Literal::Double(-n)),
                    _ => None,
                };
                if let Some(negative) = negative {
                    self.at += 1;
                    return self.members(Expr::new(Kind::Literal(negative), at));
                }
            }
            let operand = self.member()?;
            // Two of them cancel out.
            return Some(if count % 2 == 0 { operand } else { call(name, vec![operand], at) });
        }
        self.member()
    }

    fn member(&mut self) -> Option<Expr> {
        let primary = self.primary()?;
        if let Kind::Literal(Literal::Int(i64::MIN)) = primary.kind {
            self.errors.push((primary.at, "invalid int literal".to_owned()));
        }
        self.members(primary)
    }

    /// What follows: `.field`, `.call(...)`, `[index]`, `{...}`.
    fn members(&mut self, mut expr: Expr) -> Option<Expr> {
        loop {
            self.limit(&expr)?;
            let at = self.place();
            if self.take(".") {
                let optional = self.take("?");
                let name = self.field_name()?;
                let open = self.place();
                if !optional && self.take("(") {
                    let args = self.arguments()?;
                    expr = self.method(expr, &name, args, open)?;
                } else {
                    let select = Select { operand: expr, field: name, test: false, optional };
                    expr = Expr::new(Kind::Select(Box::new(select)), at);
                }
            } else if self.take("[") {
                let optional = self.take("?");
                let index = self.expression()?;
                self.expect("]", "']'")?;
                let name = if optional { "_[?_]" } else { "_[_]" };
                expr = call(name, vec![expr, index], at);
            } else if self.is("{")
                && let Some(name) = qualified(&expr)
            {
                self.at += 1;
                let fields = self.fields()?;
                expr = Expr::new(Kind::Struct(name, fields), at);
            } else {
                return Some(expr);
            }
        }
    }

    fn field_name(&mut self) -> Option<Arc<str>> {
        match self.peek().clone() {
            Token::Word(word) if !KEYWORDS.contains(&&*word) => {
                self.at += 1;
                Some(word)
            }
            Token::Quoted(word) => {
                self.at += 1;
                Some(word)
            }
            _ => {
                let text = self.shown();
                self.error(format!(
                    "Syntax error: no viable alternative at input '.{}'",
                    if text == "<EOF>" { "" } else { &text }
                ));
                None
            }
        }
    }

    fn primary(&mut self) -> Option<Expr> {
        let at = self.place();
        let token = self.peek().clone();
        match token {
            Token::Literal(literal) => {
                self.at += 1;
                Some(Expr::new(Kind::Literal(literal), at))
            }
            Token::Op("(") => {
                self.at += 1;
                let inner = self.expression()?;
                self.expect(")", "')'")?;
                Some(inner)
            }
            Token::Op("[") => {
                self.at += 1;
                let elements = self.elements()?;
                Some(Expr::new(Kind::List(elements), at))
            }
            Token::Op("{") => {
                self.at += 1;
                let entries = self.entries()?;
                Some(Expr::new(Kind::Map(entries), at))
            }
            Token::Op(".") => {
                self.at += 1;
                self.name(at)
            }
            Token::Word(_) => self.name(at),
            _ => {
                let text = self.shown();
                let kind = if matches!(token, Token::End) { "mismatched" } else { "extraneous" };
                self.error(format!("Syntax error: {kind} input '{text}' expecting {BEGINNINGS}"));
                None
            }
        }
    }

    fn name(&mut self, at: u32) -> Option<Expr> {
        let Token::Word(word) = self.peek().clone() else {
            let text = self.shown();
            self.error(format!("Syntax error: mismatched input '{text}' expecting IDENTIFIER"));
            return None;
        };
        if &*word == "in" {
            self.error(format!("Syntax error: mismatched input 'in' expecting {BEGINNINGS}"));
            return None;
        }
        self.at += 1;
        if RESERVED.contains(&&*word) {
            self.errors.push((at, format!("reserved identifier: {word}")));
        }
        let open = self.place();
        if self.take("(") {
            let args = self.arguments()?;
            return self.function(&word, args, open);
        }
        Some(Expr::new(Kind::Ident(word), at))
    }

    /// Up to and with the closing parenthesis.
    fn arguments(&mut self) -> Option<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(")") {
            return Some(args);
        }
        loop {
            args.push(self.expression()?);
            if self.take(")") {
                return Some(args);
            }
            self.expect(",", "')'")?;
        }
    }

    fn elements(&mut self) -> Option<Vec<Element>> {
        let mut elements = Vec::new();
        while !self.take("]") {
            let optional = self.take("?");
            elements.push(Element { value: self.expression()?, optional });
            if !self.take(",") {
                self.expect("]", "']'")?;
                break;
            }
        }
        Some(elements)
    }

    fn entries(&mut self) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expression()?;
            self.expect(":", "':'")?;
            entries.push(Entry { key, value: self.expression()?, optional });
            if !self.take(",") {
                self.expect("}", "'}'")?;
                break;
            }
        }
        Some(entries)
    }

    fn fields(&mut self) -> Option<Vec<Expr>> {
        let mut fields = Vec::new();
        while !self.take("}") {
            self.take("?");
            self.field_name()?;
            self.expect(":", "':'")?;
            fields.push(self.expression()?);
            if !self.take(",") {
                self.expect("}", "'}'")?;
                break;
            }
        }
        Some(fields)
    }

    /// `f(...)`, of which `has` is a macro.
    fn function(&mut self, name: &Arc<str>, mut args: Vec<Expr>, at: u32) -> Option<Expr> {
        if &**name == "has" && args.len() == 1 {
            let arg = args.pop()?;
            return match arg.kind {
                Kind::Select(select) if !select.test && !select.optional => {
                    let kind = Kind::Select(Box::new(Select { test: true, ..*select }));
                    Some(Expr::new(kind, at))
                }
                _ => {
                    self.errors.push((at, "invalid argument to has() macro".to_owned()));
                    None
                }
            };
        }
        let call = Call { function: name.clone(), target: None, args };
        Some(Expr::new(Kind::Call(Box::new(call)), at))
    }

    /// `target.f(...)`, of which some are macros.
    fn method(
        &mut self,
        target: Expr,
        name: &Arc<str>,
        mut args: Vec<Expr>,
        at: u32,
    ) -> Option<Expr> {
        use Comprehension as C;
        let kind = match (&**name, args.len()) {
            ("all", 2 | 3) => Some((C::All, args.len() - 1, false)),
            ("exists", 2 | 3) => Some((C::Exists, args.len() - 1, false)),
            ("exists_one", 2) | ("existsOne", 2 | 3) => Some((C::ExistsOne, args.len() - 1, false)),
            ("map", 2) => Some((C::Map, 1, false)),
            ("map", 3) => Some((C::Map, 1, true)),
            ("filter", 2) => Some((C::Filter, 1, false)),
            ("transformList", 3) => Some((C::TransformList, 2, false)),
            ("transformList", 4) => Some((C::TransformList, 2, true)),
            ("transformMap", 3) => Some((C::TransformMap, 2, false)),
            ("transformMap", 4) => Some((C::TransformMap, 2, true)),
            ("transformMapEntry", 3) => Some((C::TransformMapEntry, 2, false)),
            ("transformMapEntry", 4) => Some((C::TransformMapEntry, 2, true)),
            ("optMap", 2) => Some((C::OptMap, 1, false)),
            ("optFlatMap", 2) => Some((C::OptFlatMap, 1, false)),
            _ => None,
        };
        let Some((kind, variables, filtered)) = kind else {
            let call = Call { function: name.clone(), target: Some(target), args };
            return Some(Expr::new(Kind::Call(Box::new(call)), at));
        };
        let body = args.pop()?;
        let filter = if filtered { args.pop() } else { None };
        let mut vars: Vec<Arc<str>> = Vec::new();
        for arg in args.into_iter().take(variables) {
            match arg.kind {
                Kind::Ident(name) if !vars.contains(&name) => vars.push(name),
                _ => {
                    self.errors.push((arg.at, "argument must be a simple name".to_owned()));
                    return None;
                }
            }
        }
        let made = Macro { kind, range: target, vars, filter, body };
        Some(Expr::new(Kind::Macro(Box::new(made)), at))
    }
}

/// `a.b.c`, when the expression is only names.
pub(super) fn qualified(expr: &Expr) -> Option<Arc<str>> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select(select) if !select.test && !select.optional => {
            let before = qualified(&select.operand)?;
            Some(format!("{before}.{}", select.field).into())
        }
        _ => None,
    }
}
