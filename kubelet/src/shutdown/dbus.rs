//! A client's connection to a D-Bus bus: calls, and signals as they come.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::wire::{self, Head, Kind, Value};

/// How long an answer may take (libdbus's default).
const ANSWER: Duration = Duration::from_secs(25);
/// Bodies of more bytes are passed over: nothing that is waited for is so long.
const MOST: usize = 64 << 10;
/// Signals that are kept while an answer is waited for.
const WAITING: usize = 64;
/// File descriptors in one part of a message; a bus takes 16.
const DESCRIPTORS: usize = 64;

/// The bus itself, as the partner of calls.
pub const BUS: Object<'static> = Object {
    name: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// An object of another client's, and one of its interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    pub name: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
}

/// A message that was received.
#[derive(Debug)]
pub struct Message {
    pub head: Head,
    body: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The values in it.
    ///
    /// # Errors
    /// They are of types that are not read here.
    pub fn values(&self) -> Result<Vec<Value>, wire::Malformed> {
        wire::body(&self.head, &self.body)
    }

    pub fn is(&self, interface: &str, member: &str) -> bool {
        self.head.interface.as_deref() == Some(interface)
            && self.head.member.as_deref() == Some(member)
    }
}

/// A connection.
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// In the order of the messages that they are of.
    descriptors: VecDeque<OwnedFd>,
    /// So many bytes to come are of a body that is passed over.
    skip: usize,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects as this process's user. The address is one of D-Bus's, `unix:path=`.
    ///
    /// # Errors
    /// It is another address, nobody is there, or it does not let us in.
    pub async fn open(address: &str) -> anyhow::Result<Self> {
        let path = path(address).with_context(|| format!("D-Bus: no address here: {address:?}"))?;
        let stream = UnixStream::connect(path).await.with_context(|| format!("D-Bus at {path}"))?;
        let mut connection = Self::over(stream);
        let begun = async {
            connection.authenticate().await?;
            connection.call(BUS, "Hello", &[]).await
        };
        tokio::time::timeout(ANSWER, begun).await.context("D-Bus does not answer")??;
        Ok(connection)
    }

    fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            descriptors: VecDeque::new(),
            skip: 0,
            serial: 0,
            signals: VecDeque::new(),
        }
    }

    /// The socket tells the bus who this is.
    async fn authenticate(&mut self) -> anyhow::Result<()> {
        let digits = nix::unistd::geteuid().to_string();
        let uid: String = digits.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes()).await?;
        self.expect("OK").await?;
        self.stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
        self.expect("AGREE_UNIX_FD").await?;
        Ok(self.stream.write_all(b"BEGIN\r\n").await?)
    }

    /// Reads a line that has to begin with this word.
    async fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.received.drain(..end + 2).take(end).collect::<Vec<u8>>();
                let line = String::from_utf8_lossy(&line);
                if line.split(' ').next() != Some(word) {
                    bail!("D-Bus does not let us in: {line:?}");
                }
                return Ok(());
            }
            if self.received.len() > MOST {
                bail!("D-Bus: a line without end");
            }
            self.fill().await?;
        }
    }

    /// Calls a method. Signals that come meanwhile are kept.
    ///
    /// # Errors
    /// The other's, or it does not answer.
    pub async fn call(
        &mut self,
        to: Object<'_>,
        method: &str,
        arguments: &[Value],
    ) -> anyhow::Result<Message> {
        let whence = || format!("{}.{method}", to.interface);
        self.serial = self.serial.wrapping_add(1).max(1);
        let head = Head {
            kind: Kind::Call,
            serial: self.serial,
            path: Some(to.path.to_owned()),
            destination: Some(to.name.to_owned()),
            interface: Some(to.interface.to_owned()),
            member: Some(method.to_owned()),
            ..Head::default()
        };
        self.stream.write_all(&wire::encode(&head, arguments)).await.with_context(whence)?;
        let answer = tokio::time::timeout(ANSWER, self.answer(head.serial)).await;
        let answer = answer.with_context(whence)?.with_context(whence)?;
        if let Some(error) = &answer.head.error {
            let text = match answer.values().unwrap_or_default().first() {
                Some(Value::Text(text)) => text.clone(),
                _ => String::new(),
            };
            bail!("{}: {error}: {text}", whence());
        }
        Ok(answer)
    }

    async fn answer(&mut self, serial: u32) -> io::Result<Message> {
        loop {
            let message = self.receive().await?;
            match message.head.kind {
                Kind::Return | Kind::Error if message.head.reply_to == Some(serial) => {
                    return Ok(message);
                }
                Kind::Signal if self.signals.len() < WAITING => self.signals.push_back(message),
                Kind::Signal => tracing::warn!("D-Bus: more signals than are kept"),
                _ => {}
            }
        }
    }

    /// The next signal. Nothing is lost if it is not waited for to the end.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn signal(&mut self) -> io::Result<Message> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.receive().await?;
            if message.head.kind == Kind::Signal {
                return Ok(message);
            }
        }
    }

    async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The first message of what was received, if it is whole.
    fn take(&mut self) -> io::Result<Option<Message>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        loop {
            let skipped = self.skip.min(self.received.len());
            self.received.drain(..skipped);
            self.skip -= skipped;
            let found = wire::head(&self.received).map_err(invalid)?;
            let Some((head, start, length)) = found else { return Ok(None) };
            let long = length > MOST;
            if !long && self.received.len() < start + length {
                return Ok(None);
            }
            let count = usize::try_from(head.descriptors).unwrap_or(usize::MAX);
            let count = count.min(self.descriptors.len());
            let descriptors = self.descriptors.drain(..count).collect();
            self.received.drain(..start);
            if long {
                self.skip = length;
                continue;
            }
            let body = self.received.drain(..length).collect();
            return Ok(Some(Message { head, body, descriptors }));
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            self.stream.readable().await?;
            let read = || receive(&self.stream, &mut buffer);
            let (length, descriptors) = match self.stream.try_io(Interest::READABLE, read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                other => other?,
            };
            self.descriptors.extend(descriptors);
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend(buffer.iter().take(length));
            return Ok(());
        }
    }
}

/// Reads what there is, with the file descriptors that came with it.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let read = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if read.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many file descriptors"));
    }
    Ok((read.bytes, descriptors))
}

/// The socket of the first address of a list that has one.
fn path(addresses: &str) -> Option<&str> {
    let unix = addresses.split(';').filter_map(|address| address.strip_prefix("unix:"));
    unix.flat_map(|keys| keys.split(',')).find_map(|pair| pair.strip_prefix("path="))
}

#[cfg(test)]
pub mod tests {
    use std::io::IoSlice;
    use std::os::fd::{AsFd, BorrowedFd};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    impl Connection {
        /// The bus's end of a connection, once the client has been let in.
        pub async fn accept(stream: UnixStream) -> anyhow::Result<Self> {
            let mut own = Self::over(stream);
            own.expect("\0AUTH").await?;
            own.stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").await?;
            own.expect("NEGOTIATE_UNIX_FD").await?;
            own.stream.write_all(b"AGREE_UNIX_FD\r\n").await?;
            own.expect("BEGIN").await?;
            Ok(own)
        }

        /// The next message that is a call.
        pub async fn called(&mut self) -> io::Result<Message> {
            loop {
                let message = self.receive().await?;
                if message.head.kind == Kind::Call {
                    return Ok(message);
                }
            }
        }

        /// Sends a message, with a file descriptor or without.
        pub async fn send(
            &mut self,
            head: Head,
            values: &[Value],
            descriptor: Option<BorrowedFd<'_>>,
        ) -> io::Result<()> {
            self.serial += 1;
            let descriptors = u32::from(descriptor.is_some());
            let head = Head { serial: self.serial, descriptors, ..head };
            let bytes = wire::encode(&head, values);
            let rights: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
            self.stream.writable().await?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !rights.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
            }
            let parts = [IoSlice::new(&bytes)];
            let sent = sendmsg(self.stream.as_fd(), &parts, &mut control, SendFlags::empty())?;
            assert_eq!(sent, bytes.len());
            Ok(())
        }
    }

    #[test]
    fn addresses_are_of_sockets() {
        for (address, want) in [
            ("unix:path=/run/dbus/system_bus_socket", Some("/run/dbus/system_bus_socket")),
            ("unix:guid=1,path=/a", Some("/a")),
            ("tcp:host=localhost,port=1;unix:path=/b", Some("/b")),
            ("tcp:host=localhost,port=1", None),
            ("", None),
        ] {
            assert_eq!(path(address), want, "{address}");
        }
    }

    fn signal(member: &str) -> Head {
        Head {
            kind: Kind::Signal,
            path: Some("/".to_owned()),
            interface: Some("i".to_owned()),
            member: Some(member.to_owned()),
            ..Head::default()
        }
    }

    #[tokio::test]
    async fn messages_come_whole_with_their_descriptors() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut client, mut bus) = (Connection::over(near), Connection::over(far));
        let (readers, writers): (Vec<_>, Vec<_>) =
            (0..2).map(|_| nix::unistd::pipe().unwrap()).unzip();
        // One that nobody wants, of several parts, and with a descriptor that is not kept.
        let long = [Value::Text("x".repeat(MOST + 9))];
        let sending = tokio::spawn(async move {
            let bytes = wire::encode(&Head { serial: 9, ..signal("long") }, &long);
            bus.send(signal("first"), &[Value::Uint32(1)], Some(writers[0].as_fd())).await.unwrap();
            bus.stream.write_all(&bytes).await.unwrap();
            for byte in wire::encode(&Head { serial: 9, ..signal("slow") }, &[Value::Bool(true)]) {
                bus.stream.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            bus.send(signal("last"), &[], Some(writers[1].as_fd())).await.unwrap();
            drop(writers);
            bus
        });
        for (member, values, descriptors) in [
            ("first", vec![Value::Uint32(1)], 1),
            ("slow", vec![Value::Bool(true)], 0),
            ("last", vec![], 1),
        ] {
            let message = client.signal().await.unwrap();
            assert!(message.is("i", member), "{member} {message:?}");
            assert_eq!(message.values().unwrap(), values);
            assert_eq!(message.descriptors.len(), descriptors, "{member}");
        }
        // All that was passed on is closed again.
        drop(sending.await.unwrap());
        for reader in readers {
            let read = tokio::task::spawn_blocking(move || nix::unistd::read(&reader, &mut [0; 1]));
            assert_eq!(read.await.unwrap(), Ok(0));
        }
        let lost = client.signal().await.unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn calls_are_answered_among_signals() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut client, mut bus) = (Connection::over(near), Connection::over(far));
        let answering = tokio::spawn(async move {
            for error in [None, Some("e.Denied".to_owned())] {
                let call = bus.called().await.unwrap();
                bus.send(signal("meanwhile"), &[], None).await.unwrap();
                let kind = if error.is_some() { Kind::Error } else { Kind::Return };
                let other = Head { kind, reply_to: Some(999), ..Head::default() };
                bus.send(other, &[], None).await.unwrap();
                let own = Head { kind, error, reply_to: Some(call.head.serial), ..Head::default() };
                bus.send(own, &[Value::text("told")], None).await.unwrap();
            }
            bus
        });
        let answer = client.call(BUS, "GetId", &[]).await.unwrap();
        assert_eq!(answer.values().unwrap(), [Value::text("told")]);
        let error = client.call(BUS, "GetId", &[]).await.unwrap_err().to_string();
        assert_eq!(error, "org.freedesktop.DBus.GetId: e.Denied: told");
        for _ in 0..2 {
            assert!(client.signal().await.unwrap().is("i", "meanwhile"));
        }
        drop(answering);
    }
}
