//! The way into the kernel: one netlink socket for each transaction.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};

use super::Change;
use super::wire::{self, Batch, HEAD};

/// What tells one table of ours from another that somebody put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    handle: u64,
    /// Chains and sets in it.
    uses: u32,
}

fn open() -> anyhow::Result<OwnedFd> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkNetFilter)
        .context("a netlink socket")
}

/// The number at `at`, in the host's order.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The messages in a datagram: kind, sequence number, body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let body = bytes.get(HEAD..length)?;
        let found = (half(bytes, 4)?, word(bytes, 8)?, body);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

const ERROR: u16 = 2;

/// Carries out all changes, or none.
///
/// # Errors
/// The kernel's error, with the first change that it refused.
pub fn commit(ipv6: bool, changes: &[Change]) -> anyhow::Result<usize> {
    if changes.is_empty() {
        return Ok(0);
    }
    let batch = Batch::new(ipv6, changes);
    let fd = open()?;
    let size = batch.bytes.len();
    // A transaction is one datagram, whatever its size.
    if size > 100_000 {
        setsockopt(&fd, sockopt::SndBufForce, &size).context("the netlink socket's size")?;
    }
    let what = |errno: Errno| format!("nf_tables: {size} bytes: {errno}");
    send(fd.as_raw_fd(), &batch.bytes, MsgFlags::empty()).map_err(|e| anyhow::anyhow!(what(e)))?;
    let mut answer = vec![0; 65_536];
    // The kernel has done it when the sending returns, and its answers are here.
    loop {
        let length = match recv(fd.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(errno) => bail!("nf_tables has not answered: {errno}"),
        };
        for (kind, sequence, body) in messages(&answer[..length]) {
            let code = word(body, 0).map(u32::cast_signed).unwrap_or_default();
            if kind == ERROR && code != 0 {
                let change = batch.change_of(sequence).and_then(|i| changes.get(i));
                let change = change.map(ToString::to_string).unwrap_or_default();
                bail!("nf_tables: {}: {change}", Errno::from_raw(-code).desc());
            }
            if kind == ERROR && sequence == batch.last() {
                return Ok(size);
            }
        }
    }
}

/// Which table of ours the kernel has, if any.
///
/// # Errors
/// The kernel does not answer.
pub fn identity(ipv6: bool) -> anyhow::Result<Option<Identity>> {
    const USE: u16 = 3;
    const HANDLE: u16 = 4;
    let fd = open()?;
    send(fd.as_raw_fd(), &wire::ask_table(ipv6), MsgFlags::empty()).context("nf_tables")?;
    let mut answer = vec![0; 8192];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).context("nf_tables")?;
    let Some((kind, _, body)) = messages(&answer[..length]).next() else {
        bail!("nf_tables has not answered about a table");
    };
    if kind == ERROR {
        let code = word(body, 0).map(u32::cast_signed).unwrap_or_default();
        match Errno::from_raw(-code) {
            Errno::ENOENT => return Ok(None),
            errno => bail!("nf_tables: {}", errno.desc()),
        }
    }
    let mut found = Identity { handle: 0, uses: 0 };
    // Behind the family come the attributes.
    let mut rest = body.get(4..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        match (kind & 0x3fff, value) {
            (USE, &[a, b, c, d]) => found.uses = u32::from_be_bytes([a, b, c, d]),
            (HANDLE, value) => {
                found.handle = value.try_into().map(u64::from_be_bytes).unwrap_or_default();
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Some(found))
}

/// Removes our table.
///
/// # Errors
/// The kernel's.
pub fn remove(ipv6: bool) -> anyhow::Result<()> {
    commit(ipv6, &[Change::AddTable, Change::DeleteTable]).map(drop)
}
