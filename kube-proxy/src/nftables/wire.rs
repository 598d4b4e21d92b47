//! Changes as the kernel takes them: nf_tables' messages (linux/netfilter/nf_tables.h).

use std::net::IpAddr;

use super::{
    Change, Data, Declaration, Field, Hook, Kind, Part, Step, TABLE, Test, Value, Verdict,
};
use crate::netlink::{
    ACK, APPEND, CREATE, Head, REQUEST, attribute, bytes, close, family, nested, open, text, word,
};
use crate::table::Protocol;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Messages of nf_tables.
pub mod message {
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const DELETE_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const DELETE_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const DELETE_SET: u16 = 11;
    pub const NEW_ELEMENT: u16 = 12;
    pub const DELETE_ELEMENT: u16 = 14;
}

/// Elements that go into one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 256;

/// The first of the registers of four bytes each; there are sixteen.
const REGISTER: u32 = 8;

/// A transaction being written.
pub struct Batch {
    pub bytes: Vec<u8>,
    ipv6: bool,
    /// Where each message begins, and which change it is of.
    messages: Vec<(usize, usize)>,
}

/// A protocol's number in an IP header.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

impl Batch {
    /// A transaction of these changes.
    pub fn new(ipv6: bool, changes: &[Change]) -> Self {
        let mut batch = Self { bytes: Vec::new(), ipv6, messages: Vec::new() };
        batch.edge(BATCH_BEGIN);
        for (i, change) in changes.iter().enumerate() {
            batch.change(i, change);
        }
        // The kernel answers to this one when all are done.
        if let Some((at, _)) = batch.messages.last() {
            let flags = u16::from_ne_bytes([batch.bytes[at + 6], batch.bytes[at + 7]]) | ACK;
            batch.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        batch.edge(BATCH_END);
        batch
    }

    /// The change that a message with this sequence number is of.
    pub fn change_of(&self, sequence: u32) -> Option<usize> {
        let message = usize::try_from(sequence).ok()?.checked_sub(1)?;
        self.messages.get(message).map(|(_, change)| *change)
    }

    /// The sequence number of the message that the kernel answers to.
    pub fn last(&self) -> u32 {
        u32::try_from(self.messages.len()).unwrap_or(u32::MAX)
    }

    fn edge(&mut self, kind: u16) {
        let head = Head { kind, flags: REQUEST, sequence: 0, family: 0, resource: SUBSYSTEM };
        let at = open(&mut self.bytes, head);
        close(&mut self.bytes, at);
    }

    fn message(&mut self, of: usize, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
        self.messages.push((self.bytes.len(), of));
        let head = Head { flags: REQUEST | flags, ..head(self.ipv6, kind, self.last()) };
        let at = open(&mut self.bytes, head);
        // In all of them the first attribute names the table.
        text(&mut self.bytes, 1, TABLE);
        body(&mut self.bytes);
        close(&mut self.bytes, at);
    }

    fn change(&mut self, of: usize, change: &Change) {
        use message::*;
        let ipv6 = self.ipv6;
        match change {
            Change::AddTable => self.message(of, NEW_TABLE, CREATE, |_| {}),
            Change::DeleteTable => self.message(of, DELETE_TABLE, 0, |_| {}),
            Change::AddSet(name, declaration) => {
                let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
                self.message(of, NEW_SET, CREATE, |out| set(out, name, declaration, ipv6, id));
            }
            Change::DeleteSet(name) => self.message(of, DELETE_SET, 0, |out| text(out, 2, name)),
            Change::AddChain(name, hook) => {
                self.message(of, NEW_CHAIN, CREATE, |out| chain(out, name, hook.as_ref()));
            }
            Change::DeleteChain(name) => {
                self.message(of, DELETE_CHAIN, 0, |out| text(out, 3, name));
            }
            Change::FlushChain(name) => self.message(of, DELETE_RULE, 0, |out| text(out, 2, name)),
            Change::AddRule(chain, rule) => self.message(of, NEW_RULE, CREATE | APPEND, |out| {
                text(out, 2, chain);
                nested(out, 4, |out| {
                    rule.iter().for_each(|step| Expressions { out, ipv6 }.step(step))
                });
            }),
            Change::AddElements(set, elements) => {
                for some in elements.chunks(ELEMENTS) {
                    self.message(of, NEW_ELEMENT, CREATE, |out| {
                        text(out, 2, set);
                        nested(out, 3, |out| {
                            some.iter().for_each(|(key, value)| element(out, key, value));
                        });
                    });
                }
            }
            Change::DeleteElements(set, keys) => {
                for some in keys.chunks(ELEMENTS) {
                    self.message(of, DELETE_ELEMENT, 0, |out| {
                        text(out, 2, set);
                        nested(out, 3, |out| {
                            some.iter().for_each(|key| element(out, key, &Value::Present));
                        });
                    });
                }
            }
        }
    }
}

fn head(ipv6: bool, kind: u16, sequence: u32) -> Head {
    let kind = SUBSYSTEM << 8 | kind;
    Head { kind, flags: REQUEST, sequence, family: family(ipv6), resource: 0 }
}

/// A message that asks about our table, to be answered with [`message::NEW_TABLE`].
pub fn ask_table(ipv6: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let at = open(&mut out, head(ipv6, message::GET_TABLE, 1));
    text(&mut out, 1, TABLE);
    close(&mut out, at);
    out
}

fn chain(out: &mut Vec<u8>, name: &str, hook: Option<&Hook>) {
    text(out, 3, name);
    if let Some(hook) = hook {
        nested(out, 4, |out| {
            word(out, 1, hook.point as u32);
            bytes(out, 2, &hook.priority.to_be_bytes());
        });
        text(out, 7, hook.kind);
    }
}

/// A kind's number in nft, which shows sets by it, and its length in bytes.
fn kind(kind: Kind, ipv6: bool) -> (u32, u32) {
    match kind {
        Kind::Address if ipv6 => (8, 16),
        Kind::Address => (7, 4),
        Kind::Protocol => (12, 1),
        Kind::Port => (13, 2),
        // nft's "mark": a number of 32 bits in the host's order, as random ones are.
        Kind::Index => (19, 4),
    }
}

/// Number and length of a concatenation: each part takes whole registers.
fn concatenation(kinds: &[Kind], ipv6: bool) -> (u32, u32) {
    match kinds {
        [one] => kind(*one, ipv6),
        many => many.iter().fold((0, 0), |(number, length), part| {
            let (n, l) = kind(*part, ipv6);
            (number << 6 | n, length + l.next_multiple_of(4))
        }),
    }
}

fn set(out: &mut Vec<u8>, name: &str, declaration: &Declaration, ipv6: bool, id: u32) {
    const MAP: u32 = 8;
    const TIMEOUT: u32 = 0x10;
    const EVALUATED: u32 = 0x20;
    const VERDICT: u32 = 0xffff_ff00;
    let mut flags = 0;
    if declaration.data != Data::Nothing {
        flags |= MAP;
    }
    if declaration.timeout > 0 {
        flags |= TIMEOUT | EVALUATED;
    }
    let (number, length) = concatenation(declaration.key, ipv6);
    text(out, 2, name);
    word(out, 3, flags);
    word(out, 4, number);
    word(out, 5, length);
    match declaration.data {
        Data::Nothing => {}
        Data::Verdict => word(out, 6, VERDICT),
        Data::Backend => {
            let (number, length) = concatenation(&[Kind::Address, Kind::Port], ipv6);
            word(out, 6, number);
            word(out, 7, length);
        }
    }
    word(out, 10, id);
    if declaration.timeout > 0 {
        bytes(out, 11, &(u64::from(declaration.timeout) * 1000).to_be_bytes());
    }
}

/// A part of a key, as it is in registers.
fn part(out: &mut Vec<u8>, part: &Part) {
    match part {
        Part::Address(ip) => address(out, *ip),
        Part::Protocol(protocol) => out.extend([number(*protocol), 0, 0, 0]),
        Part::Port(port) => self::port(out, *port),
        Part::Index(index) => out.extend(index.to_ne_bytes()),
    }
}

fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
}

fn port(out: &mut Vec<u8>, port: u16) {
    out.extend(port.to_be_bytes());
    out.extend([0; 2]);
}

fn element(out: &mut Vec<u8>, key: &[Part], value: &Value) {
    nested(out, 1, |out| {
        nested(out, 1, |out| {
            attribute(out, 1, |out| match key {
                // Alone it has no padding.
                [Part::Port(port)] => out.extend(port.to_be_bytes()),
                [Part::Protocol(protocol)] => out.push(number(*protocol)),
                parts => parts.iter().for_each(|p| part(out, p)),
            });
        });
        match value {
            Value::Present => {}
            Value::Verdict(verdict) => nested(out, 2, |out| self::verdict(out, verdict)),
            Value::Backend(ip, number) => nested(out, 2, |out| {
                attribute(out, 1, |out| {
                    address(out, *ip);
                    port(out, *number);
                });
            }),
        }
    });
}

fn verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0i32, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    nested(out, 2, |out| {
        bytes(out, 1, &code.to_be_bytes());
        if let Some(chain) = chain {
            text(out, 2, chain);
        }
    });
}

/// Writes a rule's steps as the expressions that the kernel runs.
struct Expressions<'a> {
    out: &'a mut Vec<u8>,
    ipv6: bool,
}

impl Expressions<'_> {
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Vec<u8>)) {
        nested(self.out, 1, |out| {
            text(out, 1, name);
            nested(out, 2, body);
        });
    }

    /// Registers that an address takes.
    fn wide(&self) -> u32 {
        if self.ipv6 { 4 } else { 1 }
    }

    /// `length` bytes of the packet: of the network header, or of the transport header.
    fn payload(&mut self, register: u32, transport: bool, offset: u32, length: u32) {
        self.expression("payload", |out| {
            word(out, 1, register);
            word(out, 2, if transport { 2 } else { 1 });
            word(out, 3, offset);
            word(out, 4, length);
        });
    }

    fn source(&mut self, register: u32) {
        match self.ipv6 {
            true => self.payload(register, false, 8, 16),
            false => self.payload(register, false, 12, 4),
        }
    }

    fn meta(&mut self, register: u32, key: u32) {
        self.expression("meta", |out| {
            word(out, 1, register);
            word(out, 2, key);
        });
    }

    fn compare(&mut self, register: u32, same: bool, value: &[u8]) {
        self.expression("cmp", |out| {
            word(out, 1, register);
            word(out, 2, u32::from(!same));
            nested(out, 3, |out| bytes(out, 1, value));
        });
    }

    /// `register & mask ^ xor`, in place.
    fn bits(&mut self, register: u32, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |out| {
            word(out, 1, register);
            word(out, 2, register);
            word(out, 3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            nested(out, 4, |out| bytes(out, 1, mask));
            nested(out, 5, |out| bytes(out, 1, xor));
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |out| {
            word(out, 1, register);
            nested(out, 2, |out| bytes(out, 1, value));
        });
    }

    fn connection(&mut self, key: u32, mask: u32) {
        self.expression("ct", |out| {
            word(out, 1, REGISTER);
            word(out, 2, key);
        });
        self.bits(REGISTER, &mask.to_ne_bytes(), &[0; 4]);
        self.compare(REGISTER, false, &[0; 4]);
    }

    /// Puts the fields into registers, one behind the other.
    fn load(&mut self, fields: &[Field]) {
        let mut register = REGISTER;
        for field in fields {
            register += match field {
                Field::Source => {
                    self.source(register);
                    self.wide()
                }
                Field::Destination => {
                    match self.ipv6 {
                        true => self.payload(register, false, 24, 16),
                        false => self.payload(register, false, 16, 4),
                    }
                    self.wide()
                }
                Field::Protocol => {
                    self.meta(register, 16);
                    1
                }
                Field::DestinationPort => {
                    self.payload(register, true, 2, 2);
                    1
                }
                Field::Random { count, first } => {
                    self.expression("numgen", |out| {
                        word(out, 1, register);
                        word(out, 2, *count);
                        word(out, 3, 1);
                        word(out, 4, *first);
                    });
                    1
                }
                Field::Value(value) => {
                    let mut held = Vec::with_capacity(16);
                    part(&mut held, value);
                    self.immediate(register, &held);
                    u32::try_from(held.len() / 4).unwrap_or_default()
                }
            };
        }
    }

    /// `into` is the register for what a map has: 0 for verdicts.
    fn lookup(&mut self, set: &str, into: Option<u32>) {
        self.expression("lookup", |out| {
            text(out, 1, set);
            word(out, 2, REGISTER);
            if let Some(into) = into {
                word(out, 3, into);
            }
        });
    }

    /// Destination from registers: the address, then the port.
    fn translate(&mut self) {
        let (family, port) = (u32::from(family(self.ipv6)), REGISTER + self.wide());
        self.expression("nat", |out| {
            word(out, 1, 1);
            word(out, 2, family);
            word(out, 3, REGISTER);
            word(out, 5, port);
        });
    }

    fn test(&mut self, test: &Test) {
        match test {
            Test::In(fields, set) => {
                self.load(fields);
                self.lookup(set, None);
            }
            Test::Source { net, inside } => {
                let (mut mask, mut wanted) = (Vec::new(), Vec::new());
                address(&mut mask, net.netmask());
                address(&mut wanted, net.network());
                self.source(REGISTER);
                let zero = vec![0; mask.len()];
                self.bits(REGISTER, &mask, &zero);
                self.compare(REGISTER, *inside, &wanted);
            }
            Test::Interface { name, prefix, same } => {
                // Names have sixteen bytes; a beginning is compared without the end of the text.
                let mut wanted = name.as_bytes().to_vec();
                if !prefix {
                    wanted.resize(16, 0);
                }
                self.meta(REGISTER, 6);
                self.compare(REGISTER, *same, &wanted);
            }
            Test::FromHere => {
                const LOCAL: u32 = 2;
                self.expression("fib", |out| {
                    word(out, 1, REGISTER);
                    word(out, 2, 3);
                    word(out, 3, 1);
                });
                self.compare(REGISTER, true, &LOCAL.to_ne_bytes());
            }
            Test::NewFlow => self.connection(0, 8),
            Test::Translated => self.connection(2, 0x20),
            Test::Marked(mark) => {
                self.meta(REGISTER, 3);
                self.bits(REGISTER, &mark.to_ne_bytes(), &[0; 4]);
                self.compare(REGISTER, true, &mark.to_ne_bytes());
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::If(test) => self.test(test),
            Step::Verdict(verdict) => self.expression("immediate", |out| {
                word(out, 1, 0);
                nested(out, 2, |out| self::verdict(out, verdict));
            }),
            Step::Map(fields, map) => {
                self.load(fields);
                self.lookup(map, Some(0));
            }
            Step::Translate(fields, map) => {
                self.load(fields);
                self.lookup(map, Some(REGISTER));
                self.translate();
            }
            Step::TranslateTo(ip, number) => {
                let (mut to, mut at) = (Vec::new(), Vec::new());
                address(&mut to, *ip);
                at.extend(number.to_be_bytes());
                self.immediate(REGISTER, &to);
                self.immediate(REGISTER + self.wide(), &at);
                self.translate();
            }
            Step::Remember(set) => {
                self.source(REGISTER);
                self.expression("dynset", |out| {
                    text(out, 1, set);
                    word(out, 3, 1);
                    word(out, 4, REGISTER);
                });
            }
            Step::Mark(mark) => self.mark(!mark, *mark),
            Step::Unmark(mark) => self.mark(!mark, 0),
            Step::Masquerade => self.expression("masq", |out| word(out, 1, 16)),
            Step::Refuse => {
                let port_unreachable = if self.ipv6 { 4 } else { 3 };
                self.expression("reject", |out| {
                    word(out, 1, 0);
                    bytes(out, 2, &[port_unreachable]);
                });
            }
        }
    }

    fn mark(&mut self, mask: u32, xor: u32) {
        self.meta(REGISTER, 3);
        self.bits(REGISTER, &mask.to_ne_bytes(), &xor.to_ne_bytes());
        self.expression("meta", |out| {
            word(out, 2, 3);
            word(out, 3, REGISTER);
        });
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::netlink::{ERROR, Socket, messages};

    /// Makes a table of our name that nobody else can change, until the socket is closed.
    pub fn own_table(ipv6: bool) -> Socket {
        const OWNER: u32 = 2;
        let mut batch = Batch { bytes: Vec::new(), ipv6, messages: Vec::new() };
        batch.edge(BATCH_BEGIN);
        batch.message(0, message::NEW_TABLE, CREATE | ACK, |out| word(out, 2, OWNER));
        batch.edge(BATCH_END);
        let mut socket = Socket::new().expect("a socket");
        socket.send(&batch.bytes).expect("sent");
        let answer = socket.receive().expect("an answer");
        let answer = messages(answer).find(|message| message.kind == ERROR);
        assert_eq!(answer.and_then(|message| message.error()), None);
        socket
    }
}
