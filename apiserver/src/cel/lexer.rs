//! Tokens.

use std::sync::Arc;

use super::ast::Literal;

/// Words that are no identifiers at all.
pub(super) const KEYWORDS: [&str; 4] = ["true", "false", "null", "in"];
/// Words that may be fields, and nothing else.
pub(super) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

#[derive(Debug, Clone)]
pub(super) enum Token {
    Literal(Literal),
    /// Names, and `in`.
    Word(Arc<str>),
    /// A name in backticks, for fields.
    Quoted(Arc<str>),
    Op(&'static str),
    End,
}

#[derive(Debug, Clone)]
pub(super) struct Spanned {
    pub token: Token,
    pub at: u32,
    /// As it stands in the source.
    pub text: String,
}

const OPERATORS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",",
    "(", ")", "[", "]", "{", "}", "=", "&", "|",
];

/// Splits a source into tokens; the last is the end. Errors are places and messages.
pub(super) fn tokens(source: &str) -> (Vec<Spanned>, Vec<(u32, String)>) {
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, errors: Vec::new() };
    let mut tokens = Vec::new();
    loop {
        lexer.skip();
        let start = lexer.at;
        let token = match lexer.peek(0) {
            None => Some(Token::End),
            Some(_) => lexer.token(),
        };
        if let Some(token) = token {
            let end = matches!(token, Token::End);
            let text: String = chars.get(start..lexer.at).unwrap_or_default().iter().collect();
            let text = if end { "<EOF>".to_owned() } else { text };
            tokens.push(Spanned { token, at: start as u32, text });
            if end {
                return (tokens, lexer.errors);
            }
        }
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    errors: Vec<(u32, String)>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn error(&mut self, at: usize, message: String) {
        self.errors.push((at as u32, message));
    }

    fn text(&self, from: usize) -> String {
        self.chars.get(from..self.at).unwrap_or_default().iter().collect()
    }

    /// White space and comments.
    fn skip(&mut self) {
        while let Some(c) = self.peek(0) {
            if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    /// One token; `None` when there is none here, which is told.
    fn token(&mut self) -> Option<Token> {
        let c = self.peek(0)?;
        if let Some((raw, bytes, prefix)) = self.string_prefix() {
            return self.string(raw, bytes, prefix);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit())) {
            return self.number();
        }
        if c == '_' || c.is_ascii_alphabetic() {
            let start = self.at;
            while self.peek(0).is_some_and(|c| c == '_' || c.is_ascii_alphanumeric()) {
                self.at += 1;
            }
            let word = self.text(start);
            return Some(match word.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                word => Token::Word(word.into()),
            });
        }
        if c == '`' {
            let start = self.at + 1;
            self.at = start;
            let fits =
                |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' ');
            while self.peek(0).is_some_and(fits) {
                self.at += 1;
            }
            if self.peek(0) == Some('`') && self.at > start {
                let word = self.text(start);
                self.at += 1;
                return Some(Token::Quoted(word.into()));
            }
            self.at = start;
            self.error(start - 1, "Syntax error: token recognition error at: '`'".to_owned());
            return None;
        }
        for op in OPERATORS {
            if op.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c)) {
                // Alone these are no tokens.
                if matches!(op, "=" | "&" | "|") {
                    break;
                }
                self.at += op.len();
                return Some(Token::Op(op));
            }
        }
        let start = self.at;
        self.at += 1;
        let follows = self.peek(0).map(|c| c.to_string()).unwrap_or_default();
        // What may begin a longer token is shown with what follows.
        let shown =
            if matches!(c, '=' | '&' | '|') { format!("{c}{follows}") } else { c.to_string() };
        self.error(start, format!("Syntax error: token recognition error at: '{shown}'"));
        None
    }

    fn number(&mut self) -> Option<Token> {
        let start = self.at;
        let digits = |lexer: &mut Self, fits: fn(char) -> bool| {
            let from = lexer.at;
            while lexer.peek(0).is_some_and(fits) {
                lexer.at += 1;
            }
            lexer.at > from
        };
        let decimal = |c: char| c.is_ascii_digit();
        let hex = self.peek(0) == Some('0')
            && self.peek(1) == Some('x')
            && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit());
        let mut float = false;
        if hex {
            self.at += 2;
            digits(self, |c| c.is_ascii_hexdigit());
        } else {
            digits(self, decimal);
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(decimal) {
                float = true;
                self.at += 1;
                digits(self, decimal);
            }
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if matches!(self.peek(0), Some('e' | 'E')) && self.peek(1 + sign).is_some_and(decimal) {
                float = true;
                self.at += 1 + sign;
                digits(self, decimal);
            }
        }
        let text = self.text(start);
        if float {
            return match text.parse() {
                Ok(number) => Some(Token::Literal(Literal::Double(number))),
                Err(_) => self.bad(start, "invalid double literal"),
            };
        }
        let unsigned = matches!(self.peek(0), Some('u' | 'U'));
        self.at += usize::from(unsigned);
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse::<u64>(),
        };
        match parsed {
            Ok(number) if unsigned => Some(Token::Literal(Literal::Uint(number))),
            // The smallest integer has no positive twin: its sign comes later.
            Ok(number) if number <= i64::MAX as u64 + 1 => {
                Some(Token::Literal(Literal::Int(number as i64)))
            }
            _ if unsigned => self.bad(start, "invalid uint literal"),
            _ => self.bad(start, "invalid int literal"),
        }
    }

    fn bad(&mut self, at: usize, message: &str) -> Option<Token> {
        self.error(at, message.to_owned());
        Some(Token::Literal(Literal::Int(0)))
    }

    /// Whether a string begins here: raw, of bytes, and the length of what says so.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut length) = (false, false, 0);
        loop {
            match self.peek(length)? {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes && !raw => bytes = true,
                '\'' | '"' => return Some((raw, bytes, length)),
                _ => return None,
            }
            length += 1;
        }
    }

    fn string(&mut self, raw: bool, bytes: bool, prefix: usize) -> Option<Token> {
        let start = self.at;
        self.at += prefix;
        let quote = self.peek(0)?;
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if triple { 3 } else { 1 };
        self.at += width;
        let mut out: Vec<u8> = Vec::new();
        loop {
            let Some(c) = self.peek(0) else { return self.unclosed(start) };
            if c == quote && (0..width).all(|i| self.peek(i) == Some(quote)) {
                self.at += width;
                break;
            }
            if c == '\n' && !triple {
                return self.unclosed(start);
            }
            self.at += 1;
            if c == '\\' && !raw {
                let at = self.at - 1;
                if self.escape(bytes, &mut out).is_none() {
                    let message = "Syntax error: invalid escape sequence in a string".to_owned();
                    self.error(at, message);
                }
                continue;
            }
            let mut buffer = [0; 4];
            out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
        }
        Some(Token::Literal(if bytes {
            Literal::Bytes(out.into())
        } else {
            Literal::Str(String::from_utf8_lossy(&out).as_ref().into())
        }))
    }

    fn unclosed(&mut self, start: usize) -> Option<Token> {
        let shown = self.text(start);
        self.error(start, format!("Syntax error: token recognition error at: '{shown}'"));
        None
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Option<()> {
        let c = self.peek(0)?;
        self.at += 1;
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => c as u8,
            'x' | 'X' => return self.code(2, 16, bytes, out),
            'u' if !bytes => return self.code(4, 16, false, out),
            'U' if !bytes => return self.code(8, 16, false, out),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, bytes, out);
            }
            _ => return None,
        };
        out.push(plain);
        Some(())
    }

    fn code(&mut self, count: usize, radix: u32, bytes: bool, out: &mut Vec<u8>) -> Option<()> {
        let text: String = self.chars.get(self.at..self.at + count)?.iter().collect();
        let code = u32::from_str_radix(&text, radix).ok()?;
        self.at += count;
        if bytes {
            out.push(u8::try_from(code).ok()?);
        } else {
            let mut buffer = [0; 4];
            out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut buffer).as_bytes());
        }
        Some(())
    }
}
