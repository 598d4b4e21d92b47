//! The client's side of SPDY/3.1, as far as the runtime's streaming server needs it: streams with
//! headers, data, half-close, pings.
//!
//! Headers are sent in stored (uncompressed) deflate blocks, which every inflater reads. Headers
//! that come back are not looked at, so nothing has to be inflated.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// Adler-32 of SPDY/3's dictionary: the header compressor names it, though stored blocks do not
/// refer to it.
const DICTIONARY: [u8; 4] = 0xe3c6_a7c2_u32.to_be_bytes();
/// Zlib's two bytes: deflate with a 32 KiB window, and a preset dictionary.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x20];
/// An empty stored block, which makes the reader hand out what came before.
const SYNC: [u8; 5] = [0, 0, 0, 0xff, 0xff];

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// The largest payload of a data frame that is sent.
const MAX_DATA: usize = 32 << 10;

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Data {
        stream: u32,
        data: Bytes,
        fin: bool,
    },
    /// The stream was refused or broken off.
    Reset {
        stream: u32,
    },
    Ping(Bytes),
    /// The other side is going away.
    Goaway,
    Other,
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.push(flags);
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(payload);
    frame
}

/// The frame of a piece of data, at most 16 MiB.
pub fn data(stream: u32, data: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = stream.to_be_bytes().to_vec();
    frame.push(if fin { FIN } else { 0 });
    frame.extend_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(data);
    frame
}

/// Opens streams; headers of one connection share a compressor.
#[derive(Default)]
pub struct Opener {
    begun: bool,
}

impl Opener {
    /// The frame that opens a stream.
    pub fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut payload = stream.to_be_bytes().to_vec();
        // No associated stream, no priority, no slot.
        payload.extend_from_slice(&[0; 6]);
        if !std::mem::replace(&mut self.begun, true) {
            payload.extend_from_slice(&ZLIB_HEADER);
            payload.extend_from_slice(&DICTIONARY);
        }
        for chunk in block.chunks(usize::from(u16::MAX)) {
            let length = chunk.len() as u16;
            payload.push(0);
            payload.extend_from_slice(&length.to_le_bytes());
            payload.extend_from_slice(&(!length).to_le_bytes());
            payload.extend_from_slice(chunk);
        }
        payload.extend_from_slice(&SYNC);
        control(SYN_STREAM, 0, &payload)
    }
}

/// Takes the next frame off a buffer, if it is whole.
pub fn decode(buffer: &mut BytesMut) -> Option<Frame> {
    if buffer.len() < 8 {
        return None;
    }
    let length =
        usize::from(buffer[5]) << 16 | usize::from(buffer[6]) << 8 | usize::from(buffer[7]);
    if buffer.len() < 8 + length {
        return None;
    }
    let mut head = buffer.split_to(8);
    let payload = buffer.split_to(length).freeze();
    let number = |at: usize| -> u32 {
        payload.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    };
    if head[0] & 0x80 == 0 {
        let stream = head.get_u32();
        return Some(Frame::Data { stream, data: payload, fin: head[0] & FIN != 0 });
    }
    let kind = u16::from_be_bytes([head[2], head[3]]);
    Some(match kind {
        RST_STREAM => Frame::Reset { stream: number(0) },
        PING => Frame::Ping(payload),
        GOAWAY => Frame::Goaway,
        // A reply that also ends the stream.
        SYN_REPLY if head[4] & FIN != 0 => {
            Frame::Data { stream: number(0), data: Bytes::new(), fin: true }
        }
        _ => Frame::Other,
    })
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    control(PING, 0, payload)
}

/// Reads frames off a connection.
pub struct Reader<I> {
    io: ReadHalf<I>,
    buffer: BytesMut,
}

impl<I: tokio::io::AsyncRead> Reader<I> {
    pub fn new(io: ReadHalf<I>) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = decode(&mut self.buffer) {
                return Ok(Some(frame));
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Writes data in frames.
pub async fn write<I: tokio::io::AsyncWrite>(
    io: &mut WriteHalf<I>,
    stream: u32,
    bytes: &[u8],
) -> std::io::Result<()> {
    for chunk in bytes.chunks(MAX_DATA) {
        io.write_all(&data(stream, chunk, false)).await?;
    }
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_decoded_when_whole() {
        let mut wire = data(5, b"hello", false);
        wire.extend(control(PING, 0, &7u32.to_be_bytes()));
        wire.extend(data(5, b"", true));
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            frames.extend(decode(&mut buffer));
        }
        let data = |data: &'static [u8], fin| Frame::Data { stream: 5, data: data.into(), fin };
        let ping = Frame::Ping(Bytes::copy_from_slice(&7u32.to_be_bytes()));
        assert_eq!(frames, [data(b"hello", false), ping, data(b"", true)]);
    }

    #[test]
    fn headers_are_stored_blocks() {
        let mut opener = Opener::default();
        let first = opener.open(1, &[("streamtype", "error")]);
        assert_eq!(&first[..4], [0x80, 3, 0, 1]);
        assert_eq!(&first[18..24], [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2]);
        assert!(first.ends_with(&SYNC));
        let second = opener.open(3, &[("streamtype", "stdin")]);
        assert_eq!(second[18], 0, "the compressor's header comes once");
    }
}
