//! Netlink, as parts of netfilter speak it (linux/netlink.h, linux/netfilter/nfnetlink.h): messages,
//! attributes, and the socket. Numbers of netlink itself are in the host's order, those of netfilter
//! in the network's.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};

pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
/// All that there are are asked for.
pub const DUMP: u16 = 0x300;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;

/// The kinds of messages that are netlink's own.
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

/// Length of a message's head, and of netfilter's own behind it.
pub const HEAD: usize = 16;
const OWN_HEAD: usize = 4;

/// Set in the kind of an attribute that consists of others.
pub const NESTED: u16 = 0x8000;
/// What is the kind, of an attribute's kind.
const KIND: u16 = 0x3fff;

/// The kernel's largest datagram is half of this.
const DATAGRAM: usize = 65_536;
/// The most that a socket sends at once unless it is told.
const SENT_AT_ONCE: usize = 100_000;

/// How netfilter numbers address families.
pub fn family(ipv6: bool) -> u8 {
    if ipv6 { 10 } else { 2 }
}

/// What a message begins with.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The part of netfilter in the upper byte, what it is to do in the lower.
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub family: u8,
    pub resource: u16,
}

/// Begins a message. Returns where, for [`close`].
pub fn open(out: &mut Vec<u8>, head: Head) -> usize {
    let at = out.len();
    out.extend([0; 4]);
    out.extend(head.kind.to_ne_bytes());
    out.extend(head.flags.to_ne_bytes());
    out.extend(head.sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([head.family, 0]);
    out.extend(head.resource.to_be_bytes());
    at
}

/// Ends a message: its length is known.
pub fn close(out: &mut [u8], at: usize) {
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_ne_bytes());
}

pub fn attribute(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    body(out);
    let length = u16::try_from(out.len() - at).unwrap_or(u16::MAX);
    out[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// An attribute that consists of others.
pub fn nested(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    attribute(out, kind | NESTED, body);
}

pub fn bytes(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    attribute(out, kind, |out| out.extend(value));
}

pub fn text(out: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(out, kind, |out| {
        out.extend(value.as_bytes());
        out.push(0);
    });
}

pub fn word(out: &mut Vec<u8>, kind: u16, value: u32) {
    bytes(out, kind, &value.to_be_bytes());
}

/// A message that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// What [`ERROR`] and [`DONE`] tell, if it is not that all is well.
    pub fn error(&self) -> Option<Errno> {
        let code = number(self.body, 0).map(u32::cast_signed).unwrap_or_default();
        (code != 0).then(|| Errno::from_raw(code.wrapping_neg()))
    }

    /// The attributes of a message of netfilter's.
    pub fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.body.get(OWN_HEAD..).unwrap_or_default())
    }
}

/// The number at `at`, in the host's order.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The messages in a datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(bytes, 0)?).ok()?;
        let body = bytes.get(HEAD..length)?;
        let found = Message { kind: half(bytes, 4)?, sequence: number(bytes, 8)?, body };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

/// Attributes, one behind the other: kind and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let found = (half(bytes, 2)? & KIND, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

/// A way into the kernel's netfilter.
pub struct Socket {
    fd: OwnedFd,
    datagram: Vec<u8>,
}

impl Socket {
    /// # Errors
    /// There is none to be had.
    pub fn new() -> anyhow::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let fd = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkNetFilter);
        Ok(Self { fd: fd.context("a netlink socket")?, datagram: vec![0; DATAGRAM] })
    }

    /// Sends messages, in one datagram. The kernel has done what they say when this returns.
    ///
    /// # Errors
    /// The kernel's, about the datagram: what it says of messages is received.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > SENT_AT_ONCE {
            setsockopt(&self.fd, sockopt::SndBufForce, &bytes.len())?;
        }
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map(drop)
    }

    /// The next datagram of what the kernel answers. It is there, since all was done when it was
    /// sent.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`]: there is no more.
    pub fn receive(&mut self) -> Result<&[u8], Errno> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.datagram, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(&self.datagram[..length]),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs in a network namespace of its own.
    pub fn alone<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            run()
        });
        thread.join().expect("no panic")
    }

    fn head(kind: u16, sequence: u32) -> Head {
        Head { kind, flags: REQUEST, sequence, family: family(false), resource: 0 }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        for sequence in 1..3 {
            let at = open(&mut out, head(0x0a01, sequence));
            text(&mut out, 1, "kube-proxy");
            nested(&mut out, 2, |out| word(out, 7, sequence));
            close(&mut out, at);
        }
        let found: Vec<_> = messages(&out).collect();
        assert_eq!(found.len(), 2);
        for (message, sequence) in found.iter().zip(1u32..) {
            assert_eq!((message.kind, message.sequence), (0x0a01, sequence));
            let all: Vec<_> = message.attributes().collect();
            let [(1, name), (2, inner)] = all.as_slice() else { panic!("{all:?}") };
            assert_eq!(*name, b"kube-proxy\0");
            let inner: Vec<_> = attributes(inner).collect();
            assert_eq!(inner, [(7, &sequence.to_be_bytes()[..])]);
        }
    }

    #[test]
    fn what_is_cut_off_or_too_short_ends_what_is_read() {
        for (bytes, wanted) in [
            (&[][..], vec![]),
            (&[8, 0, 1, 0, 1, 2, 3, 4], vec![(1, &[1u8, 2, 3, 4][..])]),
            // Without the padding of the last.
            (&[5, 0, 1, 0, 9], vec![(1, &[9][..])]),
            (&[5, 0, 1, 0, 9, 0, 0, 0, 4, 0, 2, 0], vec![(1, &[9][..]), (2, &[])]),
            // Longer than what is there; shorter than its own head; nothing at all.
            (&[9, 0, 1, 0, 1, 2, 3, 4], vec![]),
            (&[3, 0, 1, 0, 1, 2, 3, 4], vec![]),
            (&[0, 0, 0, 0, 0, 0, 0, 0], vec![]),
        ] {
            assert_eq!(attributes(bytes).collect::<Vec<_>>(), wanted, "{bytes:?}");
        }
        let mut out = Vec::new();
        let at = open(&mut out, head(1, 1));
        close(&mut out, at);
        assert_eq!(messages(&out).count(), 1);
        assert_eq!(messages(&out[..out.len() - 1]).count(), 0);
        out[0] = 15;
        assert_eq!(messages(&out).count(), 0, "shorter than its head");
    }

    proptest! {
        #[test]
        fn whatever_comes_has_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = message.error();
                prop_assert!(message.attributes().count() <= bytes.len() / 4);
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
