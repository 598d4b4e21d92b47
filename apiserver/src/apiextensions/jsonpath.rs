//! The paths of printer columns and selectable fields (upstream: client-go `util/jsonpath`, as
//! much of it as stands in one pair of braces).

use apimachinery::Value;

/// A path into an object.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// All values of a map or list.
    Every,
    /// The field wherever it is below.
    Below(String),
    Range {
        start: Option<i64>,
        end: Option<i64>,
        step: i64,
    },
    Index(i64),
    Filter(Filter),
    /// Several fields at once.
    Fields(Vec<String>),
}

/// `@.type=="Ready"`
#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    operator: String,
    right: Option<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

impl JsonPath {
    /// Reads `.spec.list[0].name`.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text };
        let path = parser.path("")?;
        if parser.rest.is_empty() {
            Ok(path)
        } else {
            Err(format!("unrecognized character in action: {:?}", parser.rest))
        }
    }

    /// The values at the path.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![object];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.apply(value)).collect();
        }
        found
    }

    /// The first value at the path that is not null.
    pub fn first<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.find(object).into_iter().next().filter(|v| !v.is_null())
    }
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Fields(names) => names.iter().filter_map(|name| value.get(name)).collect(),
            Self::Every => match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Self::Below(name) => {
                let mut found = Vec::new();
                below(value, name, &mut found);
                found
            }
            Self::Index(at) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                place(*at, items.len()).and_then(|i| items.get(i)).into_iter().collect()
            }
            Self::Range { start, end, step } => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let bound = |at: Option<i64>, or: usize| match at {
                    Some(at) => {
                        place(at, items.len()).unwrap_or(if at < 0 { 0 } else { items.len() })
                    }
                    None => or,
                };
                let (from, to) = (bound(*start, 0), bound(*end, items.len()));
                let by = usize::try_from(*step).unwrap_or(1).max(1);
                items.get(from..to.max(from)).unwrap_or_default().iter().step_by(by).collect()
            }
            Self::Filter(filter) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                items.iter().filter(|item| filter.holds(item)).collect()
            }
        }
    }
}

/// A place counted from the end, when it is negative.
fn place(at: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let at = if at < 0 { at + length } else { at };
    usize::try_from(at).ok().filter(|_| at <= length)
}

fn below<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(name));
            map.values().for_each(|v| below(v, name, found));
        }
        Value::Array(items) => items.iter().for_each(|v| below(v, name, found)),
        _ => {}
    }
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let of = |operand: &Operand| match operand {
            Operand::Literal(value) => Some(value.clone()),
            Operand::Path(path) => path.find(item).first().map(|v| (*v).clone()),
        };
        let Some(left) = of(&self.left) else { return false };
        let Some(right) = &self.right else { return true };
        let Some(right) = of(right) else { return false };
        let order = match (left.as_f64(), right.as_f64()) {
            (Some(a), Some(b)) => a.partial_cmp(&b),
            _ => left.as_str().zip(right.as_str()).map(|(a, b)| a.cmp(b)),
        };
        match self.operator.as_str() {
            "==" => left == right || order.is_some_and(std::cmp::Ordering::is_eq),
            "!=" => left != right && !order.is_some_and(std::cmp::Ordering::is_eq),
            "<" => order.is_some_and(std::cmp::Ordering::is_lt),
            "<=" => order.is_some_and(std::cmp::Ordering::is_le),
            ">" => order.is_some_and(std::cmp::Ordering::is_gt),
            _ => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A path up to the end, or to one of the characters in `until`.
    fn path(&mut self, until: &str) -> Result<JsonPath, String> {
        let mut steps = Vec::new();
        loop {
            if self.rest.is_empty() || self.rest.starts_with(|c| until.contains(c)) {
                return Ok(JsonPath(steps));
            }
            if self.take("..") {
                steps.push(Step::Below(self.name(until)));
            } else if self.take(".") || self.take("@") || self.take("$") {
                if self.rest.starts_with('[') || self.rest.starts_with('.') {
                    continue;
                }
                match self.name(until).as_str() {
                    "" => {}
                    "*" => steps.push(Step::Every),
                    name => steps.push(Step::Field(name.to_owned())),
                }
            } else if self.take("[") {
                steps.push(self.bracket()?);
            } else if steps.is_empty() {
                let name = self.name(until);
                if name.is_empty() {
                    return Err(format!("unrecognized character in action: {:?}", self.rest));
                }
                steps.push(Step::Field(name));
            } else {
                return Err(format!("unrecognized character in action: {:?}", self.rest));
            }
        }
    }

    /// A field's name; a backslash lets the next character be part of it.
    fn name(&mut self, until: &str) -> String {
        let (mut name, mut escaped, mut end) = (String::new(), false, self.rest.len());
        for (i, c) in self.rest.char_indices() {
            if escaped {
                name.push(c);
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if ".[]".contains(c) || until.contains(c) {
                end = i;
                break;
            } else {
                name.push(c);
            }
        }
        self.rest = self.rest.get(end..).unwrap_or("");
        name
    }

    fn bracket(&mut self) -> Result<Step, String> {
        let unterminated = || "unterminated array".to_owned();
        if self.take("?(") {
            let filter = self.filter()?;
            return if self.take(")]") { Ok(Step::Filter(filter)) } else { Err(unterminated()) };
        }
        if self.rest.starts_with(['\'', '"']) {
            let mut names = Vec::new();
            loop {
                names.push(self.quoted()?);
                self.rest = self.rest.trim_start();
                if self.take("]") {
                    break;
                }
                if !self.take(",") {
                    return Err(unterminated());
                }
                self.rest = self.rest.trim_start();
            }
            return Ok(match names.as_slice() {
                [one] => Step::Field(one.clone()),
                _ => Step::Fields(names),
            });
        }
        let (inside, rest) = self.rest.split_once(']').ok_or_else(unterminated)?;
        self.rest = rest;
        let number = |text: &str| -> Result<Option<i64>, String> {
            match text.trim() {
                "" => Ok(None),
                text => text.parse().map(Some).map_err(|_| format!("invalid array index {inside}")),
            }
        };
        if inside.trim() == "*" {
            return Ok(Step::Every);
        }
        let parts: Vec<&str> = inside.split(':').collect();
        match parts.as_slice() {
            [index] => match number(index)? {
                Some(index) => Ok(Step::Index(index)),
                None => Ok(Step::Every),
            },
            [start, end] => Ok(Step::Range { start: number(start)?, end: number(end)?, step: 1 }),
            [start, end, step] => {
                let step = number(step)?.unwrap_or(1);
                Ok(Step::Range { start: number(start)?, end: number(end)?, step })
            }
            _ => Err(format!("invalid array index {inside}")),
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map_or('"', |(_, c)| c);
        let (mut text, mut escaped) = (String::new(), false);
        for (i, c) in chars {
            match c {
                c if escaped => {
                    text.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                c if c == quote => {
                    self.rest = self.rest.get(i + 1..).unwrap_or("");
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".to_owned())
    }

    fn filter(&mut self) -> Result<Filter, String> {
        self.rest = self.rest.trim_start();
        let left = self.operand()?;
        self.rest = self.rest.trim_start();
        let operators = ["==", "!=", "<=", ">=", "<", ">"];
        let Some(operator) = operators.into_iter().find(|op| self.rest.starts_with(op)) else {
            return Ok(Filter { left, operator: "exists".to_owned(), right: None });
        };
        self.take(operator);
        self.rest = self.rest.trim_start();
        let right = self.operand()?;
        self.rest = self.rest.trim_start();
        Ok(Filter { left, operator: operator.to_owned(), right: Some(right) })
    }

    fn operand(&mut self) -> Result<Operand, String> {
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Literal(self.quoted()?.into()));
        }
        if self.rest.starts_with(['@', '.', '$']) {
            return Ok(Operand::Path(self.path(")=!<> ")?));
        }
        let end = self.rest.find(|c: char| ")=!<> ".contains(c)).unwrap_or(self.rest.len());
        let text = self.rest.get(..end).unwrap_or("");
        let value = serde_json::from_str(text).map_err(|_| format!("invalid filter: {text}"))?;
        self.rest = self.rest.get(end..).unwrap_or("");
        Ok(Operand::Literal(value))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_what_they_name() {
        let object = json!({"spec": {"a": 1, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]},
            "metadata": {"annotations": {"a.b/c": "d"}}});
        for (path, want) in [
            (".spec.a", vec![json!(1)]),
            ("spec.a", vec![json!(1)]),
            (".spec.none", vec![]),
            (".spec.l[1].n", vec![json!("y")]),
            (".spec.l[-1].n", vec![json!("y")]),
            (".spec.l[*].n", vec![json!("x"), json!("y")]),
            (".spec.l[0:1].n", vec![json!("x")]),
            (".spec.l[?(@.n==\"y\")].v", vec![json!(2)]),
            (".spec.l[?(@.v > 1)].n", vec![json!("y")]),
            (".metadata.annotations.a\\.b/c", vec![json!("d")]),
            (".metadata.annotations['a.b/c']", vec![json!("d")]),
            ("..v", vec![json!(1), json!(2)]),
            (".spec.l[7].n", vec![]),
        ] {
            let parsed = JsonPath::parse(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let found: Vec<Value> = parsed.find(&object).into_iter().cloned().collect();
            assert_eq!(found, want, "{path}");
        }
        for wrong in [".spec[", ".spec['a", ".spec.l[x]", ".spec.l[?(@.a]"] {
            assert!(JsonPath::parse(wrong).is_err(), "{wrong}");
        }
    }
}
