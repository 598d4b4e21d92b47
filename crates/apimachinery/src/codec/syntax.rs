//! JSON's grammar over bytes: a cursor for decoders, and a checker that words errors as Go does.

use std::borrow::Cow;

/// How deep arrays and objects may nest. Upstream allows 10000 in JSON; 256 is far beyond any
/// real object and keeps recursion within a thread's stack of 2 MiB, in debug builds too.
pub(crate) const MAX_DEPTH: usize = 256;

/// The bytes are not JSON; [`check`] says why.
#[derive(Debug)]
pub(crate) struct Bad;

/// A position in JSON text.
pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) pos: usize,
}

/// A string as it stands in the text, without its quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted<'a> {
    raw: &'a [u8],
    /// Has no escapes and is UTF-8, maybe.
    plain: bool,
}

impl<'a> Quoted<'a> {
    /// The characters meant. Go puts U+FFFD for what is not Unicode.
    pub(crate) fn text(self) -> Cow<'a, str> {
        if self.plain
            && let Ok(text) = std::str::from_utf8(self.raw)
        {
            return Cow::Borrowed(text);
        }
        Cow::Owned(unescape(self.raw))
    }

    /// The bytes between the quotes.
    pub(crate) fn raw(self) -> &'a [u8] {
        self.raw
    }
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0 }
    }

    /// The next byte that is not white space, not consumed; 0 at the end.
    pub(crate) fn peek(&mut self) -> u8 {
        while let Some(&b) = self.bytes.get(self.pos) {
            if !matches!(b, b' ' | b'\n' | b'\t' | b'\r') {
                return b;
            }
            self.pos += 1;
        }
        0
    }

    /// Consumes one byte, which must be the next that is not white space.
    pub(crate) fn expect(&mut self, b: u8) -> Result<(), Bad> {
        if self.peek() != b {
            return Err(Bad);
        }
        self.pos += 1;
        Ok(())
    }

    /// After an element: true when another follows, false when `close` ended them.
    pub(crate) fn more(&mut self, close: u8) -> Result<bool, Bad> {
        match self.peek() {
            b',' => {
                self.pos += 1;
                Ok(true)
            }
            b if b == close => {
                self.pos += 1;
                Ok(false)
            }
            _ => Err(Bad),
        }
    }

    /// Consumes an opening bracket; true when something stands before `close`.
    pub(crate) fn open(&mut self, close: u8) -> bool {
        self.pos += 1;
        let more = self.peek() != close;
        if !more {
            self.pos += 1;
        }
        more
    }

    pub(crate) fn string(&mut self) -> Result<Quoted<'a>, Bad> {
        self.expect(b'"')?;
        let start = self.pos;
        let mut plain = true;
        loop {
            match self.bytes.get(self.pos).ok_or(Bad)? {
                b'"' => break,
                b'\\' => {
                    plain = false;
                    self.escape()?;
                }
                0..=0x1f => return Err(Bad),
                _ => self.pos += 1,
            }
        }
        let raw = &self.bytes[start..self.pos];
        self.pos += 1;
        Ok(Quoted { raw, plain })
    }

    fn escape(&mut self) -> Result<(), Bad> {
        match self.bytes.get(self.pos + 1).ok_or(Bad)? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.pos += 2,
            b'u' => {
                let digits = self.bytes.get(self.pos + 2..self.pos + 6).ok_or(Bad)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(Bad);
                }
                self.pos += 6;
            }
            _ => return Err(Bad),
        }
        Ok(())
    }

    /// A number's text.
    pub(crate) fn number(&mut self) -> Result<&'a str, Bad> {
        let start = self.pos;
        let digits = |c: &mut Self| {
            let from = c.pos;
            while c.bytes.get(c.pos).is_some_and(u8::is_ascii_digit) {
                c.pos += 1;
            }
            if c.pos == from { Err(Bad) } else { Ok(()) }
        };
        if self.bytes.get(self.pos) == Some(&b'-') {
            self.pos += 1;
        }
        match self.bytes.get(self.pos) {
            Some(b'0') => self.pos += 1,
            _ => digits(self)?,
        }
        if self.bytes.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            digits(self)?;
        }
        if matches!(self.bytes.get(self.pos), Some(b'e' | b'E')) {
            self.pos += 1;
            if matches!(self.bytes.get(self.pos), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            digits(self)?;
        }
        std::str::from_utf8(&self.bytes[start..self.pos]).map_err(|_| Bad)
    }

    /// `true`, `false` or `null`.
    pub(crate) fn word(&mut self, word: &[u8]) -> Result<(), Bad> {
        if self.bytes[self.pos..].starts_with(word) {
            self.pos += word.len();
            return Ok(());
        }
        Err(Bad)
    }

    /// Consumes a whole value and returns its text.
    pub(crate) fn skip(&mut self, depth: usize) -> Result<&'a [u8], Bad> {
        let first = self.peek();
        let start = self.pos;
        match first {
            b'"' => drop(self.string()?),
            b't' => self.word(b"true")?,
            b'f' => self.word(b"false")?,
            b'n' => self.word(b"null")?,
            b'-' | b'0'..=b'9' => drop(self.number()?),
            b'[' | b'{' if depth >= MAX_DEPTH => return Err(Bad),
            b'[' => {
                let mut more = self.open(b']');
                while more {
                    self.skip(depth + 1)?;
                    more = self.more(b']')?;
                }
            }
            b'{' => {
                let mut more = self.open(b'}');
                while more {
                    self.string()?;
                    self.expect(b':')?;
                    self.skip(depth + 1)?;
                    more = self.more(b'}')?;
                }
            }
            _ => return Err(Bad),
        }
        Ok(&self.bytes[start..self.pos])
    }
}

fn hex4(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits.get(..4)?).ok()?;
    u32::from_str_radix(text, 16).ok()
}

fn unescape(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut i = 0;
    while i < raw.len() {
        if raw[i] != b'\\' {
            i += push_plain(&raw[i..], &mut out);
            continue;
        }
        let Some(&code) = raw.get(i + 1) else { break };
        i += 2;
        match code {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                let unit = hex4(&raw[i..]).unwrap_or(0xfffd);
                i += 4;
                let low = match raw.get(i..i + 2) {
                    Some(b"\\u") => hex4(&raw[i + 2..]),
                    _ => None,
                };
                match (unit, low) {
                    (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                        let c = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                        out.push(char::from_u32(c).unwrap_or('\u{fffd}'));
                        i += 6;
                    }
                    // Half a surrogate pair is no character.
                    _ => out.push(char::from_u32(unit).unwrap_or('\u{fffd}')),
                }
            }
            other => out.push(other as char),
        }
    }
    out
}

/// Bytes as text, with U+FFFD for each byte that is not part of a character, as in Go.
pub(crate) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 8);
    push_lossy(bytes, &mut out);
    Cow::Owned(out)
}

fn push_lossy(bytes: &[u8], out: &mut String) {
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
}

/// Appends what precedes the next escape, and returns its length.
fn push_plain(raw: &[u8], out: &mut String) -> usize {
    let end = raw.iter().position(|&b| b == b'\\').unwrap_or(raw.len());
    push_lossy(&raw[..end], out);
    end
}

/// Checks that bytes are one JSON value, wording what is wrong as Go's decoder does.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut checker = Checker { bytes, pos: 0, open: Vec::new() };
    checker.run()
}

struct Checker<'a> {
    bytes: &'a [u8],
    pos: usize,
    /// Brackets that are open.
    open: Vec<u8>,
}

impl Checker<'_> {
    fn run(&mut self) -> Result<(), String> {
        loop {
            // A value begins here, unless the bracket before it closes at once.
            match self.next()? {
                b'{' => {
                    self.push(b'{')?;
                    if self.peek()? == b'}' {
                        self.pos += 1;
                        self.open.pop();
                    } else {
                        self.key("looking for beginning of object key string")?;
                        continue;
                    }
                }
                b'[' => {
                    self.push(b'[')?;
                    if self.peek()? == b']' {
                        self.pos += 1;
                        self.open.pop();
                    } else {
                        continue;
                    }
                }
                b'"' => self.string()?,
                b't' => self.word("true")?,
                b'f' => self.word("false")?,
                b'n' => self.word("null")?,
                b @ (b'-' | b'0'..=b'9') => self.number(b)?,
                _ => return self.bad("looking for beginning of value"),
            }
            if self.after_value()? {
                return Ok(());
            }
        }
    }

    /// Goes on to the next value; true at the end of all.
    fn after_value(&mut self) -> Result<bool, String> {
        loop {
            let Some(&open) = self.open.last() else {
                return match self.peek() {
                    Err(_) => Ok(true),
                    Ok(_) => {
                        self.pos += 1;
                        self.bad("after top-level value").map(|()| false)
                    }
                };
            };
            match (self.next()?, open) {
                (b',', b'{') => {
                    self.key("looking for beginning of object key string")?;
                    return Ok(false);
                }
                (b',', _) => return Ok(false),
                (b'}', b'{') | (b']', b'[') => {
                    self.open.pop();
                }
                (_, b'{') => return self.bad("after object key:value pair").map(|()| false),
                _ => return self.bad("after array element").map(|()| false),
            }
        }
    }

    fn key(&mut self, context: &str) -> Result<(), String> {
        if self.next()? != b'"' {
            return self.bad(context);
        }
        self.string()?;
        if self.next()? != b':' {
            return self.bad("after object key");
        }
        Ok(())
    }

    fn push(&mut self, bracket: u8) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err("exceeded max depth".into());
        }
        self.open.push(bracket);
        Ok(())
    }

    fn peek(&mut self) -> Result<u8, String> {
        while let Some(&b) = self.bytes.get(self.pos) {
            if !matches!(b, b' ' | b'\n' | b'\t' | b'\r') {
                return Ok(b);
            }
            self.pos += 1;
        }
        Err("unexpected end of JSON input".into())
    }

    fn next(&mut self) -> Result<u8, String> {
        let b = self.peek()?;
        self.pos += 1;
        Ok(b)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let b = *self.bytes.get(self.pos).ok_or("unexpected end of JSON input")?;
        self.pos += 1;
        Ok(b)
    }

    /// The byte just read does not belong here.
    fn bad(&self, context: &str) -> Result<(), String> {
        let c = self.bytes[self.pos - 1] as char;
        let shown = match c {
            '\'' => "\\'".to_owned(),
            '"' => "\"".to_owned(),
            c => {
                let quoted = super::quote(&c.to_string());
                quoted[1..quoted.len() - 1].to_owned()
            }
        };
        Err(format!("invalid character '{shown}' {context}"))
    }

    fn string(&mut self) -> Result<(), String> {
        loop {
            match self.byte()? {
                b'"' => return Ok(()),
                b'\\' => match self.byte()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => {
                        for _ in 0..4 {
                            if !self.byte()?.is_ascii_hexdigit() {
                                return self.bad("in \\u hexadecimal character escape");
                            }
                        }
                    }
                    _ => return self.bad("in string escape code"),
                },
                0..=0x1f => return self.bad("in string literal"),
                _ => {}
            }
        }
    }

    fn word(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes().skip(1) {
            if self.byte()? != expected {
                return self.bad(&format!("in literal {word} (expecting '{}')", expected as char));
            }
        }
        Ok(())
    }

    fn digits(&mut self, context: &str) -> Result<(), String> {
        if !self.byte()?.is_ascii_digit() {
            return self.bad(context);
        }
        while self.bytes.get(self.pos).is_some_and(u8::is_ascii_digit) {
            self.pos += 1;
        }
        Ok(())
    }

    fn number(&mut self, mut first: u8) -> Result<(), String> {
        if first == b'-' {
            first = self.byte()?;
            if !first.is_ascii_digit() {
                return self.bad("in numeric literal");
            }
        }
        if first != b'0' {
            while self.bytes.get(self.pos).is_some_and(u8::is_ascii_digit) {
                self.pos += 1;
            }
        }
        if self.bytes.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.bytes.get(self.pos), Some(b'e' | b'E')) {
            self.pos += 1;
            if matches!(self.bytes.get(self.pos), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }
}
