//! Label and field selectors.

use std::borrow::Cow;
use std::fmt;

use crate::field::{ErrorList, FieldError, Path, aggregate, quote};
use crate::{Value, names};

/// A parsed label selector: all requirements must hold. They are sorted by key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub op: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    /// `=`; means the same as [`Operator::In`] one value, and is written another way.
    Equals(String),
    /// `==`; as [`Operator::Equals`].
    DoubleEquals(String),
    /// `!=`; means the same as [`Operator::NotIn`] one value.
    NotEquals(String),
    Exists,
    DoesNotExist,
    /// Label value, as an integer, greater than.
    Gt(i64),
    Lt(i64),
}

/// Text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

fn error<T>(text: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError(text.into()))
}

impl Requirement {
    /// From a `LabelSelectorRequirement` or `NodeSelectorRequirement`, whose operators are
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` and `Lt`. An unknown operator is `None`.
    pub fn new(
        key: &str,
        operator: &str,
        values: &[String],
        path: &Path,
    ) -> Option<Result<Self, ErrorList>> {
        let kind = match operator {
            "In" => Kind::In,
            "NotIn" => Kind::NotIn,
            "Exists" => Kind::Exists,
            "DoesNotExist" => Kind::DoesNotExist,
            "Gt" => Kind::Gt,
            "Lt" => Kind::Lt,
            _ => return None,
        };
        Some(requirement(key, kind, values, path))
    }

    /// Whether a label's value (`None`: no such label) meets the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.op {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Operator::NotIn(values) => !value.is_some_and(|v| values.iter().any(|w| w == v)),
            Operator::Equals(want) | Operator::DoubleEquals(want) => value == Some(want),
            Operator::NotEquals(unwanted) => value != Some(unwanted),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => number().is_some_and(|n| n > *bound),
            Operator::Lt(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

/// Checks and builds a requirement (`labels.NewRequirement`).
fn requirement(
    key: &str,
    kind: Kind,
    values: &[String],
    path: &Path,
) -> Result<Requirement, ErrorList> {
    let mut errors = ErrorList::new();
    check_key(key, &path.child("key"), &mut errors);
    let at = path.child("values");
    let shown = || if values.is_empty() { Value::Null } else { Value::from(values) };
    match kind {
        Kind::In | Kind::NotIn if values.is_empty() => errors.push(FieldError::invalid(
            &at,
            shown(),
            "for 'in', 'notin' operators, values set can't be empty",
        )),
        Kind::Equals | Kind::DoubleEquals | Kind::NotEquals if values.len() != 1 => {
            errors.push(FieldError::invalid(
                &at,
                shown(),
                "exact-match compatibility requires one single value",
            ))
        }
        Kind::Exists | Kind::DoesNotExist if !values.is_empty() => {
            let detail = "values set must be empty for exists and does not exist";
            errors.push(FieldError::invalid(&at, shown(), detail));
        }
        Kind::Gt | Kind::Lt => {
            if values.len() != 1 {
                let detail = "for 'Gt', 'Lt' operators, exactly one value is required";
                errors.push(FieldError::invalid(&at, shown(), detail));
            }
            for (i, v) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(&at.index(i), v.as_str(), detail));
            }
        }
        _ => {}
    }
    for (i, v) in values.iter().enumerate() {
        let broken = names::label_value(v);
        if !broken.is_empty() {
            let at = at.index(i).key(key);
            errors.push(FieldError::invalid(&at, v.as_str(), broken.join("; ")));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let first = || values.first().cloned().unwrap_or_default();
    let number = || first().parse().unwrap_or(0);
    let op = match kind {
        Kind::In => Operator::In(values.to_vec()),
        Kind::NotIn => Operator::NotIn(values.to_vec()),
        Kind::Equals => Operator::Equals(first()),
        Kind::DoubleEquals => Operator::DoubleEquals(first()),
        Kind::NotEquals => Operator::NotEquals(first()),
        Kind::Exists => Operator::Exists,
        Kind::DoesNotExist => Operator::DoesNotExist,
        Kind::Gt => Operator::Gt(number()),
        Kind::Lt => Operator::Lt(number()),
    };
    Ok(Requirement { key: key.to_owned(), op })
}

fn check_key(key: &str, path: &Path, errors: &mut ErrorList) {
    let broken = names::qualified_name(key);
    if !broken.is_empty() {
        errors.push(FieldError::invalid(path, key, broken.join("; ")));
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let sorted = |values: &[String]| {
            let mut values = values.to_vec();
            values.sort();
            values.join(",")
        };
        match &self.op {
            Operator::In(values) => write!(f, "{key} in ({})", sorted(values)),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", sorted(values)),
            Operator::Equals(value) => write!(f, "{key}={value}"),
            Operator::DoubleEquals(value) => write!(f, "{key}=={value}"),
            Operator::NotEquals(value) => write!(f, "{key}!={value}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Gt(bound) => write!(f, "{key}>{bound}"),
            Operator::Lt(bound) => write!(f, "{key}<{bound}"),
        }
    }
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),!h`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Parser { tokens: scan(text), at: 0 }.parse().map(Self::new)
    }

    /// Requirements, in the order that upstream keeps them in.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements }
    }

    /// From the JSON of a `metav1.LabelSelector`. `None` (null) selects nothing, as upstream's
    /// `LabelSelectorAsSelector` has it; `{}` selects everything.
    pub fn from_json(selector: Option<&Value>) -> Result<Option<Self>, ParseError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(None) };
        let root = Path::new("");
        let failed = |errors: ErrorList| ParseError(aggregate(&errors));
        let mut requirements = Vec::new();
        let labels = selector.get("matchLabels").and_then(Value::as_object);
        for (key, value) in labels.into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(requirement(key, Kind::Equals, &[value], &root).map_err(failed)?);
        }
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or("");
            let values = expression.get("values").and_then(Value::as_array);
            let values: Vec<String> =
                values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
            let operator = text("operator");
            let known = ["In", "NotIn", "Exists", "DoesNotExist"].contains(&operator);
            match Requirement::new(text("key"), operator, &values, &root).filter(|_| known) {
                Some(r) => requirements.push(r.map_err(failed)?),
                None => {
                    let operator = quote(operator);
                    return error(format!("{operator} is not a valid label selector operator"));
                }
            }
        }
        Ok(Some(Self::new(requirements)))
    }

    /// Matches by looking labels up.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Matches the labels of an object.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| crate::object::label(object, key))
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that a label must have, if the first requirement on it says so.
    pub fn exact(&self, key: &str) -> Option<&str> {
        match &self.requirements.iter().find(|r| r.key == key)?.op {
            Operator::Equals(value) | Operator::DoubleEquals(value) => Some(value),
            Operator::In(values) if values.len() == 1 => values.first().map(String::as_str),
            _ => None,
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Token {
    Error,
    End,
    CloseParen,
    OpenParen,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    NotEquals,
    Greater,
    Less,
    In,
    NotIn,
    Word,
}

fn keyword(s: &[u8]) -> Option<Token> {
    Some(match s {
        b")" => Token::CloseParen,
        b"(" => Token::OpenParen,
        b"," => Token::Comma,
        b"!" => Token::Not,
        b"==" => Token::DoubleEquals,
        b"=" => Token::Equals,
        b"!=" => Token::NotEquals,
        b">" => Token::Greater,
        b"<" => Token::Less,
        b"in" => Token::In,
        b"notin" => Token::NotIn,
        _ => return None,
    })
}

/// Cuts a text into tokens; the last one is [`Token::End`].
fn scan(text: &str) -> Vec<(Token, String)> {
    let special = |b: u8| b"=!(),><".contains(&b);
    let blank = |b: u8| b" \t\r\n".contains(&b);
    let mut rest = text.as_bytes();
    let mut tokens = Vec::new();
    loop {
        while let [b, tail @ ..] = rest
            && blank(*b)
        {
            rest = tail;
        }
        let Some(first) = rest.first().copied().filter(|b| *b != 0) else {
            tokens.push((Token::End, String::new()));
            return tokens;
        };
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if special(first) {
            let run = rest.iter().take_while(|b| special(**b)).count();
            // The longest operator at the front, found byte by byte as upstream's lexer does.
            let mut found = None;
            for end in 1..=run {
                match keyword(&rest[..end]) {
                    Some(token) => found = Some((token, end)),
                    None if found.is_some() => break,
                    None => {}
                }
            }
            let (token, literal, end) = match found {
                Some((token, end)) => (token, text(&rest[..end]), end),
                None => {
                    let run_text = text(&rest[..run]);
                    (Token::Error, format!("error expected: keyword found '{run_text}'"), run)
                }
            };
            tokens.push((token, literal));
            rest = &rest[end..];
        } else {
            let end = rest.iter().take_while(|b| **b != 0 && !special(**b) && !blank(**b)).count();
            let word = &rest[..end];
            tokens.push((keyword(word).unwrap_or(Token::Word), text(word)));
            rest = &rest[end..];
        }
    }
}

/// A recursive descent over the tokens. Its cases and texts follow what clients of upstream see.
struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    fn raw(&self) -> (Token, &str) {
        // Past the end there is only more end.
        let at = self.at.min(self.tokens.len() - 1);
        (self.tokens[at].0, self.tokens[at].1.as_str())
    }

    /// The next token where a value may stand: keywords are words there.
    fn peek(&self) -> (Token, &str) {
        match self.raw() {
            (Token::In | Token::NotIn, text) => (Token::Word, text),
            other => other,
        }
    }

    fn next(&mut self) -> (Token, String) {
        let (token, text) = self.peek();
        let taken = (token, text.to_owned());
        self.at += 1;
        taken
    }

    fn parse(mut self) -> Result<Vec<Requirement>, ParseError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Word | Token::Not, _) => {
                    let r = self
                        .requirement()
                        .map_err(|e| ParseError(format!("unable to parse requirement: {e}")))?;
                    requirements.push(r);
                    match self.next() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (token, text) = self.peek();
                            if token != Token::Word && token != Token::Not {
                                return error(format!(
                                    "found '{text}', expected: identifier after ','"
                                ));
                            }
                        }
                        (_, text) => {
                            return error(format!(
                                "found '{text}', expected: ',' or 'end of string'"
                            ));
                        }
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, text) => {
                    return error(format!(
                        "found '{text}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let failed = |errors: ErrorList| ParseError(aggregate(&errors));
        let root = Path::new("");
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Word {
            return error(format!("found '{key}', expected: identifier"));
        }
        let mut errors = ErrorList::new();
        check_key(&key, &root, &mut errors);
        if !errors.is_empty() {
            return Err(failed(errors));
        }
        let ends = matches!(self.peek().0, Token::End | Token::Comma);
        if negated || ends {
            let kind = if negated { Kind::DoesNotExist } else { Kind::Exists };
            return requirement(&key, kind, &[], &root).map_err(failed);
        }
        let kind = match self.raw() {
            (Token::In, _) => Kind::In,
            (Token::NotIn, _) => Kind::NotIn,
            (Token::Equals, _) => Kind::Equals,
            (Token::DoubleEquals, _) => Kind::DoubleEquals,
            (Token::NotEquals, _) => Kind::NotEquals,
            (Token::Greater, _) => Kind::Gt,
            (Token::Less, _) => Kind::Lt,
            (_, text) => {
                return error(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt"));
            }
        };
        self.at += 1;
        let mut values = match kind {
            Kind::In | Kind::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort();
        values.dedup();
        requirement(&key, kind, &values, &root).map_err(failed)
    }

    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        let (token, text) = self.next();
        if token != Token::OpenParen {
            return error(format!("found '{text}' expected: '('"));
        }
        let (token, first) = (self.peek().0, self.peek().1.to_owned());
        match token {
            Token::Word | Token::Comma => {
                let values = self.list()?;
                if self.next().0 != Token::CloseParen {
                    return error(format!("found '{first}', expected: ')'"));
                }
                Ok(values)
            }
            Token::CloseParen => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            _ => error(format!("found '{first}', expected: ',', ')' or identifier")),
        }
    }

    /// Words between commas; where a word is missing, the empty one is meant.
    fn list(&mut self) -> Result<Vec<String>, ParseError> {
        let mut values = Vec::new();
        loop {
            match self.next() {
                (Token::Word, word) => {
                    values.push(word);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::CloseParen, _) => return Ok(values),
                        (_, text) => {
                            return error(format!("found '{text}', expected: ',' or ')'"));
                        }
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek().0 {
                        Token::CloseParen => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => values.push(String::new()),
                        _ => {}
                    }
                }
                (_, text) => {
                    return error(format!("found '{text}', expected: ',', or identifier"));
                }
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, ParseError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Word, word) => Ok(word),
            (_, text) => error(format!("found '{text}', expected: identifier")),
        }
    }
}

/// A parsed field selector: `metadata.name=x,status.phase!=Running`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    pub negated: bool,
}

impl FieldSelector {
    /// Parses terms joined by commas; a backslash stands before `,`, `=` and `\` in values.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let Some((field, negated, value)) = split_term(part) else {
                return error(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            terms.push(FieldTerm { field: field.to_owned(), value: unescape(value)?, negated });
        }
        Ok(Self { terms })
    }

    pub fn matches<'a>(&self, get: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field) == t.value) != t.negated)
    }

    /// The value that a field must equal, if the selector says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.field == field && !t.negated).map(|t| t.value.as_str())
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Field, whether the operator negates, and value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.bytes().enumerate().find_map(|(i, b)| {
        let equals_next = term.as_bytes().get(i + 1) == Some(&b'=');
        (b == b'=' || (b == b'!' && equals_next)).then_some(i)
    })?;
    let (field, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, true, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((field, false, value))
}

fn unescape(value: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    let bad = |sequence: String| {
        error(format!("invalid field selector: invalid escape sequence: {sequence}"))
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return bad(format!("\\{c}")),
                None => return bad("\\".to_owned()),
            },
            // Upstream prints the character as a number.
            ',' | '=' => {
                let c = c as u32;
                return error(format!("invalid field selector: unescaped character in value: {c}"));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let op = if term.negated { "!=" } else { "=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{op}{value}", term.field)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "selector_tests.rs"]
mod tests;
