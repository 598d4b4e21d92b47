//! Protobuf's wire format: tags, varints and lengths.

use super::super::DecodeError;

/// A field's value as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl Wire<'_> {
    /// The number of its wire type.
    fn number(self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32(_) => 5,
        }
    }
}

pub(crate) fn malformed<T>(text: impl Into<String>) -> Result<T, DecodeError> {
    Err(DecodeError::Malformed(text.into()))
}

fn truncated<T>() -> Result<T, DecodeError> {
    malformed("unexpected EOF")
}

/// The error for a field whose wire type is not its own.
pub(crate) fn wrong_type<T>(wire: Wire<'_>, field: &str) -> Result<T, DecodeError> {
    malformed(format!("proto: wrong wireType = {} for field {field}", wire.number()))
}

/// Reads the fields of one message.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(raw: &'a [u8]) -> Self {
        Self { rest: raw }
    }

    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for (i, &b) in self.rest.iter().enumerate() {
            if i == 10 {
                return malformed("proto: integer overflow");
            }
            value |= u64::from(b & 0x7f) << (7 * i);
            if b < 0x80 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        if self.rest.len() >= 10 { malformed("proto: integer overflow") } else { truncated() }
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], DecodeError> {
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        match self.rest.split_at_checked(n) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => truncated(),
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.take(N as u64)?.try_into() {
            Ok(bytes) => Ok(bytes),
            Err(_) => truncated(),
        }
    }

    /// The next number of a packed list; `None` at the end.
    pub(crate) fn packed(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    /// The next field's number and value; `None` at the end. Groups, which no type has, are
    /// passed over.
    pub(crate) fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, DecodeError> {
        let mut groups = 0_usize;
        loop {
            if self.rest.is_empty() {
                return if groups == 0 { Ok(None) } else { truncated() };
            }
            let tag = self.varint()?;
            let number = (tag >> 3) as u32;
            if number == 0 || tag >> 3 > i32::MAX as u64 {
                return malformed(format!(
                    "proto: illegal tag {} (wire type {tag})",
                    (tag >> 3) as i32
                ));
            }
            let wire = match tag & 7 {
                0 => Wire::Varint(self.varint()?),
                1 => Wire::Fixed64(u64::from_le_bytes(self.fixed()?)),
                2 => {
                    let length = self.varint()?;
                    Wire::Bytes(self.take(length)?)
                }
                5 => Wire::Fixed32(u32::from_le_bytes(self.fixed()?)),
                3 => {
                    groups += 1;
                    continue;
                }
                4 if groups > 0 => {
                    groups -= 1;
                    continue;
                }
                4 => return malformed("proto: unexpected end of group"),
                other => return malformed(format!("proto: illegal wireType {other}")),
            };
            if groups == 0 {
                return Ok(Some((number, wire)));
            }
        }
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that a varint takes.
pub(crate) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub(crate) fn put_int(out: &mut Vec<u8>, number: u32, value: i64) {
    put_tag(out, number, 0);
    // Negative numbers of 32 bits are written as those of 64 bits.
    put_varint(out, value as u64);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Writes a message whose length is known only afterwards: a byte is left for it, and the message
/// moves when it needs more.
pub(crate) fn put_message<E>(
    out: &mut Vec<u8>,
    number: u32,
    content: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_tag(out, number, 2);
    let at = out.len();
    out.push(0);
    content(out)?;
    let length = out.len() - at - 1;
    let width = varint_len(length as u64);
    if width > 1 {
        out.resize(out.len() + width - 1, 0);
        out.copy_within(at + 1..at + 1 + length, at + width);
    }
    let mut prefix = Vec::with_capacity(width);
    put_varint(&mut prefix, length as u64);
    out[at..at + width].copy_from_slice(&prefix);
    Ok(())
}
