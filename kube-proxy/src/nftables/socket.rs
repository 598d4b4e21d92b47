//! The way into the kernel: one netlink socket for each transaction.

use anyhow::{Context, bail};
use nix::errno::Errno;

use super::Change;
use super::wire::{self, Batch};
use crate::netlink::{ERROR, Socket, messages};

/// What tells one table of ours from another that somebody put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    handle: u64,
    /// Chains and sets in it.
    uses: u32,
}

/// Carries out all changes, or none.
///
/// # Errors
/// The kernel's error, with the first change that it refused.
pub fn commit(ipv6: bool, changes: &[Change]) -> anyhow::Result<usize> {
    if changes.is_empty() {
        return Ok(0);
    }
    let batch = Batch::new(ipv6, changes);
    let (size, mut socket) = (batch.bytes.len(), Socket::new()?);
    // A transaction is one datagram, whatever its size.
    socket.send(&batch.bytes).map_err(|e| anyhow::anyhow!("nf_tables: {size} bytes: {e}"))?;
    loop {
        for message in messages(socket.receive().context("nf_tables has not answered")?) {
            if message.kind != ERROR {
                continue;
            }
            if let Some(errno) = message.error() {
                let change = batch.change_of(message.sequence).and_then(|i| changes.get(i));
                let change = change.map(ToString::to_string).unwrap_or_default();
                bail!("nf_tables: {}: {change}", errno.desc());
            }
            if message.sequence == batch.last() {
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
    let mut socket = Socket::new()?;
    socket.send(&wire::ask_table(ipv6)).context("nf_tables")?;
    let datagram = socket.receive().context("nf_tables")?;
    let Some(message) = messages(datagram).next() else {
        bail!("nf_tables has not answered about a table");
    };
    if message.kind == ERROR {
        match message.error() {
            Some(Errno::ENOENT) => return Ok(None),
            errno => bail!("nf_tables: {}", errno.map_or("no table", Errno::desc)),
        }
    }
    let mut found = Identity { handle: 0, uses: 0 };
    for (kind, value) in message.attributes() {
        match (kind, value) {
            (USE, &[a, b, c, d]) => found.uses = u32::from_be_bytes([a, b, c, d]),
            (HANDLE, value) => {
                found.handle = value.try_into().map(u64::from_be_bytes).unwrap_or_default();
            }
            _ => {}
        }
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
