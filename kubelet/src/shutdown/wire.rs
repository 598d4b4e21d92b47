//! Messages of D-Bus, as far as a client of logind has to do with them (freedesktop.org's
//! specification, "Message Protocol"): pure.

use thiserror::Error;

/// The longest list of header fields that is read, in bytes.
const MOST_FIELDS: usize = 16 << 10;
/// How deep variants may lie in each other; what is read lies in one.
const DEEPEST: u8 = 4;

/// Not a message, or one of types that are not read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("D-Bus: {0}")]
pub struct Malformed(&'static str);

const SHORT: Malformed = Malformed("a message is too short");

/// What a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Of a later version: passed over.
    #[default]
    Other = 0,
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// A value of one of the types that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    Int32(i32),
    Uint32(u32),
    Uint64(u64),
    Text(String),
    Path(String),
    Signature(String),
    /// Which of the file descriptors that came with the message.
    Descriptor(u32),
    Variant(Box<Value>),
}

impl Value {
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn code(&self) -> char {
        match self {
            Self::Byte(_) => 'y',
            Self::Bool(_) => 'b',
            Self::Int32(_) => 'i',
            Self::Uint32(_) => 'u',
            Self::Uint64(_) => 't',
            Self::Text(_) => 's',
            Self::Path(_) => 'o',
            Self::Signature(_) => 'g',
            Self::Descriptor(_) => 'h',
            Self::Variant(_) => 'v',
        }
    }
}

/// The head of a message: what it is, and who it is from and to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    pub serial: u32,
    pub path: Option<String>,
    pub destination: Option<String>,
    pub interface: Option<String>,
    pub member: Option<String>,
    /// The error's name.
    pub error: Option<String>,
    /// The serial of the call that this answers.
    pub reply_to: Option<u32>,
    /// Set by the bus.
    pub sender: Option<String>,
    /// The types of the body's values.
    pub signature: String,
    /// How many file descriptors come with it.
    pub descriptors: u32,
    /// Of what was read; what is written never is.
    pub big_endian: bool,
}

/// Reads the head of the message that these bytes begin with. With it come the lengths in bytes of
/// the head and of the body after it. `None`: there are not enough bytes yet.
///
/// # Errors
/// This is no message.
pub fn head(bytes: &[u8]) -> Result<Option<(Head, usize, usize)>, Malformed> {
    let Some(&[endian, kind, _, version, ..]) = bytes.get(..16) else { return Ok(None) };
    let big_endian = match endian {
        b'l' => false,
        b'B' => true,
        _ => return Err(Malformed("a message of unknown byte order")),
    };
    if version != 1 {
        return Err(Malformed("a message of another version"));
    }
    let mut fixed = Reader { bytes: bytes.get(..16).ok_or(SHORT)?, at: 4, big_endian };
    let (body, serial, fields) = (fixed.length()?, fixed.uint32()?, fixed.length()?);
    if fields > MOST_FIELDS {
        return Err(Malformed("a message with too long a header"));
    }
    let end = 16 + fields;
    let Some(all) = bytes.get(..end.next_multiple_of(8)) else { return Ok(None) };
    let kind = match kind {
        1 => Kind::Call,
        2 => Kind::Return,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => Kind::Other,
    };
    let mut head = Head { kind, serial, big_endian, ..Head::default() };
    let mut reader = Reader { bytes: all.get(..end).ok_or(SHORT)?, at: 16, big_endian };
    while reader.at < end {
        reader.align(8)?;
        let field = reader.byte()?;
        match (field, reader.variant(0)?) {
            (1, Value::Path(path)) => head.path = Some(path),
            (2, Value::Text(name)) => head.interface = Some(name),
            (3, Value::Text(name)) => head.member = Some(name),
            (4, Value::Text(name)) => head.error = Some(name),
            (5, Value::Uint32(serial)) => head.reply_to = Some(serial),
            (6, Value::Text(name)) => head.destination = Some(name),
            (7, Value::Text(name)) => head.sender = Some(name),
            (8, Value::Signature(types)) => head.signature = types,
            (9, Value::Uint32(count)) => head.descriptors = count,
            (1..=9, _) => return Err(Malformed("a header field of another type")),
            // Of a later version.
            _ => {}
        }
    }
    Ok(Some((head, all.len(), body)))
}

/// The values of a body.
///
/// # Errors
/// They are not what the head says, or of types that are not read here.
pub fn body(head: &Head, bytes: &[u8]) -> Result<Vec<Value>, Malformed> {
    let mut reader = Reader { bytes, at: 0, big_endian: head.big_endian };
    head.signature.bytes().map(|code| reader.value(code, 0)).collect()
}

/// The bytes of a message, in this machine's usual byte order.
pub fn encode(head: &Head, body: &[Value]) -> Vec<u8> {
    let mut content = Writer::default();
    body.iter().for_each(|value| content.value(value));
    let mut out = Writer::default();
    out.bytes.extend([b'l', head.kind as u8, 0, 1]);
    out.uint32(count(&content.bytes));
    out.uint32(head.serial);
    // The length of the fields, when it is known.
    out.uint32(0);
    let text = |text: &Option<String>| text.clone().map(Value::Text);
    let signature: String = body.iter().map(Value::code).collect();
    let fields = [
        (1, head.path.clone().map(Value::Path)),
        (6, text(&head.destination)),
        (2, text(&head.interface)),
        (3, text(&head.member)),
        (4, text(&head.error)),
        (5, head.reply_to.map(Value::Uint32)),
        (7, text(&head.sender)),
        (8, Some(signature).filter(|s| !s.is_empty()).map(Value::Signature)),
        (9, Some(head.descriptors).filter(|n| *n > 0).map(Value::Uint32)),
    ];
    for (field, value) in fields {
        let Some(value) = value else { continue };
        out.align(8);
        out.bytes.push(field);
        out.value(&Value::Variant(Box::new(value)));
    }
    let length = count(&out.bytes).saturating_sub(16).to_le_bytes();
    if let Some(place) = out.bytes.get_mut(12..16) {
        place.copy_from_slice(&length);
    }
    out.align(8);
    out.bytes.extend(content.bytes);
    out.bytes
}

fn count(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Reads values one after the other; positions count from the start of the message or its body.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(SHORT)?;
        let taken = self.bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.align(N)?;
        let mut bytes: [u8; N] = self.take(N)?.try_into().map_err(|_| SHORT)?;
        if self.big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.number::<1>().map(|[byte]| byte)
    }

    fn uint32(&mut self) -> Result<u32, Malformed> {
        self.number().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.uint32()?).map_err(|_| SHORT)
    }

    fn text(&mut self, length: usize) -> Result<String, Malformed> {
        let text = self.take(length)?;
        self.take(1)?;
        let text = std::str::from_utf8(text).map_err(|_| Malformed("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn long_text(&mut self) -> Result<String, Malformed> {
        let length = self.length()?;
        self.text(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?;
        self.text(length.into())
    }

    fn variant(&mut self, depth: u8) -> Result<Value, Malformed> {
        let signature = self.signature()?;
        match signature.as_bytes() {
            &[code] if depth < DEEPEST => self.value(code, depth + 1),
            _ => Err(Malformed("a variant of a type that is not read")),
        }
    }

    fn value(&mut self, code: u8, depth: u8) -> Result<Value, Malformed> {
        Ok(match code {
            b'y' => Value::Byte(self.byte()?),
            b'b' => match self.uint32()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(Malformed("neither true nor false")),
            },
            b'i' => Value::Int32(i32::from_le_bytes(self.number()?)),
            b'u' => Value::Uint32(self.uint32()?),
            b't' => Value::Uint64(u64::from_le_bytes(self.number()?)),
            b's' => Value::Text(self.long_text()?),
            b'o' => Value::Path(self.long_text()?),
            b'g' => Value::Signature(self.signature()?),
            b'h' => Value::Descriptor(self.uint32()?),
            b'v' => Value::Variant(Box::new(self.variant(depth)?)),
            _ => return Err(Malformed("a type that is not read")),
        })
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn uint32(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(byte) => self.bytes.push(*byte),
            Value::Bool(yes) => self.uint32(u32::from(*yes)),
            Value::Int32(number) => self.uint32(number.cast_unsigned()),
            Value::Uint32(number) | Value::Descriptor(number) => self.uint32(*number),
            Value::Uint64(number) => {
                self.align(8);
                self.bytes.extend(number.to_le_bytes());
            }
            Value::Text(text) | Value::Path(text) => {
                self.uint32(count(text.as_bytes()));
                self.text(text);
            }
            Value::Signature(text) => {
                // Ours are of some letters.
                self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                self.text(text);
            }
            Value::Variant(inner) => {
                self.value(&Value::Signature(inner.code().into()));
                self.value(inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first message of every client, as libdbus writes it.
    const HELLO: &[u8] = b"l\x01\x00\x01\0\0\0\0\x01\0\0\0n\0\0\0\
        \x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
        \x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
        \x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
        \x03\x01s\0\x05\0\0\0Hello\0\0\0";

    fn hello() -> Head {
        let bus = Some("org.freedesktop.DBus".to_owned());
        Head {
            kind: Kind::Call,
            serial: 1,
            path: Some("/org/freedesktop/DBus".to_owned()),
            destination: bus.clone(),
            interface: bus,
            member: Some("Hello".to_owned()),
            ..Head::default()
        }
    }

    #[test]
    fn messages_are_as_others_write_them() {
        assert_eq!(encode(&hello(), &[]), HELLO);
        assert_eq!(head(HELLO), Ok(Some((hello(), HELLO.len(), 0))));
        for length in 0..HELLO.len() {
            assert_eq!(head(&HELLO[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn values_come_back() {
        let text = Value::text;
        let values = [
            Value::Byte(7),
            Value::Bool(true),
            text("né"),
            Value::Uint64(u64::MAX - 1),
            Value::Path("/a".to_owned()),
            Value::Int32(-2),
            Value::Signature("as".to_owned()),
            Value::Variant(Box::new(Value::Variant(Box::new(Value::Uint64(5))))),
            Value::Descriptor(1),
        ];
        let sent = Head { descriptors: 2, ..hello() };
        let bytes = encode(&sent, &values);
        let (read, start, length) = head(&bytes).unwrap().unwrap();
        assert_eq!((read.signature.as_str(), read.descriptors), ("ybstoigvh", 2));
        assert_eq!(bytes.len(), start + length);
        assert_eq!(body(&read, &bytes[start..]).unwrap(), values);
        for missing in 1..=length {
            assert!(body(&read, &bytes[start..bytes.len() - missing]).is_err(), "{missing}");
        }
    }

    #[test]
    fn the_other_byte_order_is_read() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 3, b'a', b'b', b'c', 0];
        let big = Head { big_endian: true, signature: "bs".to_owned(), ..Head::default() };
        assert_eq!(body(&big, &bytes).unwrap(), [Value::Bool(true), Value::text("abc")]);
        let small = Head { big_endian: false, ..big };
        assert!(body(&small, &bytes).is_err());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let with = |place: usize, byte: u8| {
            let mut bytes = HELLO.to_vec();
            bytes[place] = byte;
            bytes
        };
        for (place, byte) in
            [(0, b'x'), (3, 2), (14, 1), (15, 0xff), (17, 9), (18, b'a'), (25, 0xff)]
        {
            assert!(head(&with(place, byte)).is_err(), "{place}");
        }
        // A kind and a field of a later version are not minded.
        assert!(head(&with(1, 9)).is_ok_and(|m| m.is_some_and(|m| m.0.kind == Kind::Other)));
        assert!(head(&with(16, 99)).is_ok_and(|m| m.is_some_and(|m| m.0.path.is_none())));
        // Variants in variants, without end.
        let deep = [1, b'v', 0].repeat(64);
        let nested = Head { signature: "v".to_owned(), ..Head::default() };
        assert_eq!(body(&nested, &deep), Err(Malformed("a variant of a type that is not read")));
    }
}
