//! Errors, in cel-go's form.

use std::fmt;

/// What is wrong with an expression: each error with its place and the line it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileErrors {
    source: String,
    /// Place (in characters) and message.
    errors: Vec<(u32, String)>,
}

impl std::error::Error for CompileErrors {}

impl CompileErrors {
    pub(super) fn new(source: &str, mut errors: Vec<(u32, String)>) -> Self {
        errors.sort_by_key(|(at, _)| *at);
        errors.dedup();
        Self { source: source.to_owned(), errors }
    }

    /// The messages without places.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.errors.iter().map(|(_, message)| message.as_str())
    }
}

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (at, message)) in self.errors.iter().enumerate() {
            let (line, column, text) = place(&self.source, *at as usize);
            if i > 0 {
                writeln!(f)?;
            }
            writeln!(f, "ERROR: <input>:{line}:{}: {message}", column + 1)?;
            writeln!(f, " | {}", text.replace('\t', " "))?;
            let mut rest = text.chars();
            write!(f, " | ")?;
            for _ in 0..column {
                match rest.next() {
                    // As wide as what it stands under.
                    Some(c) if c.len_utf8() > 1 => write!(f, "\u{ff0e}")?,
                    Some(_) => write!(f, ".")?,
                    None => break,
                }
            }
            match rest.next() {
                Some(c) if c.len_utf8() > 1 => write!(f, "\u{ff3e}")?,
                _ => write!(f, "^")?,
            }
        }
        Ok(())
    }
}

/// Line (from one), column (from zero) and the line's text of a place.
fn place(source: &str, at: usize) -> (usize, usize, &str) {
    let mut start = 0;
    let lines: Vec<&str> = source.split('\n').collect();
    for (i, line) in lines.iter().enumerate() {
        let length = line.chars().count() + 1;
        if at < start + length || i + 1 == lines.len() {
            return (i + 1, at - start, line);
        }
        start += length;
    }
    (1, 0, source)
}

/// Why an expression gave no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvalError {
    /// In cel-go's words: `no such key: a`, `no such overload`.
    #[error("{0}")]
    Failed(String),
    #[error("operation cancelled: actual cost limit exceeded")]
    OverBudget,
    /// Whether a user may do something must be asked for before the expression can be
    /// evaluated: answer it, and evaluate again.
    #[error("an authorization check has no answer yet")]
    Unasked(Box<super::Question>),
}

impl EvalError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    pub(super) fn no_overload() -> Self {
        Self::new("no such overload")
    }
}
