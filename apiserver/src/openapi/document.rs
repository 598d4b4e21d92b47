//! Documents, compressed as most clients want them, out of parts that were compressed before: what
//! custom resources add to the second edition's megabytes does not make these new.

use std::io::{Read, Write};

use apimachinery::status::ApiError;
use bytes::Bytes;
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use serde::Serialize;
use sha2::{Digest as _, Sha512};

use crate::discovery::hex;

/// Header of a gzip file without name and time, from no system in particular.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// A last block without content.
const END: [u8; 2] = [3, 0];

pub(super) fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::Internal(error.to_string())
}

/// A part of a document: blocks of a deflate stream that do not refer to others.
#[derive(Debug)]
pub(super) struct Segment {
    deflated: Vec<u8>,
    crc: Crc,
    hash: Vec<u8>,
}

/// Compresses and sums up what is written to it.
struct Writer {
    encoder: DeflateEncoder<Vec<u8>>,
    crc: Crc,
    hash: Sha512,
}

impl Write for Writer {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let count = self.encoder.write(data)?;
        let taken = data.get(..count).unwrap_or(data);
        self.crc.update(taken);
        self.hash.update(taken);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.encoder.flush()
    }
}

impl Segment {
    /// Takes what a function writes.
    ///
    /// # Errors
    /// As the function.
    pub(super) fn of(
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<Self, ApiError> {
        let encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        let writer = Writer { encoder, crc: Crc::new(), hash: Sha512::new() };
        // The serializer writes a few bytes at a time.
        let mut out = std::io::BufWriter::new(writer);
        write(&mut out).map_err(internal)?;
        // The stream comes to the end of a byte and goes on there.
        out.flush().map_err(internal)?;
        let mut writer = out.into_inner().map_err(internal)?;
        let mut deflated = std::mem::take(writer.encoder.get_mut());
        deflated.shrink_to_fit();
        Ok(Self { deflated, crc: writer.crc, hash: writer.hash.finalize().to_vec() })
    }

    pub(super) fn text(text: &str) -> Result<Self, ApiError> {
        Self::of(|out| out.write_all(text.as_bytes()))
    }
}

/// A document in JSON and its hash.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) gzip: Bytes,
    pub(super) hash: String,
}

impl Document {
    /// Of segments, in their order.
    pub(super) fn of(segments: &[&Segment]) -> Self {
        let mut gzip = HEADER.to_vec();
        let (mut crc, mut hash) = (Crc::new(), Sha512::new());
        for segment in segments {
            gzip.extend_from_slice(&segment.deflated);
            crc.combine(&segment.crc);
            hash.update(&segment.hash);
        }
        gzip.extend_from_slice(&END);
        gzip.extend_from_slice(&crc.sum().to_le_bytes());
        gzip.extend_from_slice(&crc.amount().to_le_bytes());
        Self { gzip: gzip.into(), hash: hex(&hash.finalize()).to_uppercase() }
    }

    /// Of one value.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn json(value: &impl Serialize) -> Result<Self, ApiError> {
        let segment = Segment::of(|out| Ok(serde_json::to_writer(out, value)?))?;
        Ok(Self::of(&[&segment]))
    }

    /// The text.
    pub(super) fn read(&self) -> impl Read + use<'_> {
        flate2::read::GzDecoder::new(&*self.gzip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_a_document() {
        let long = "abc, ".repeat(50_000);
        let parts = ["{\"a\": 1, ", "", &long, "\"b\": 2}"];
        let segments: Vec<Segment> =
            parts.iter().map(|text| Segment::text(text).expect("a segment")).collect();
        let document = Document::of(&segments.iter().collect::<Vec<_>>());
        let mut text = String::new();
        document.read().read_to_string(&mut text).expect("a whole gzip file");
        assert_eq!(text, parts.concat());
        assert!(document.gzip.len() < 5_000);
        let other = Document::json(&serde_json::json!({"a": 1})).expect("a document");
        assert_ne!(document.hash, other.hash);
    }
}
