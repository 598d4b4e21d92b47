//! Flows as the kernel tells of them, and what it is told about them
//! (linux/netfilter/nfnetlink_conntrack.h).

use std::net::{IpAddr, SocketAddr};

use crate::netlink::{
    DUMP, Head, Message, NESTED, REQUEST, attribute, attributes, bytes, close, family, nested, open,
};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// Attributes of a flow.
mod of_flow {
    /// Its packets, as they were sent; those that answer.
    pub const ORIGINAL: u16 = 1;
    pub const REPLY: u16 = 2;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const FILTER: u16 = 25;
}

/// Attributes of one of a flow's directions.
mod of_direction {
    pub const ADDRESSES: u16 = 1;
    pub const PROTOCOL: u16 = 2;
}

const UDP: u8 = 17;
/// In attributes of a protocol.
const NUMBER: u16 = 1;

/// A flow of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// Where its packets were sent.
    pub to: SocketAddr,
    /// Where answers come from: where its packets were led.
    pub led_to: SocketAddr,
    identity: Identity<'a>,
}

/// What the kernel finds a flow by, in its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity<'a> {
    original: &'a [u8],
    zone: Option<&'a [u8]>,
    /// Another flow of the same addresses has another.
    id: Option<&'a [u8]>,
}

/// Asks for all flows of UDP. Kernels before 5.8 tell of other protocols too.
pub fn ask(ipv6: bool) -> Vec<u8> {
    const ORIGINAL_FLAGS: u16 = 1;
    const BY_PROTOCOL: u32 = 1 << 3;
    let mut out = Vec::new();
    let at = open(&mut out, head(GET, REQUEST | DUMP, ipv6));
    nested(&mut out, of_flow::ORIGINAL, |out| {
        nested(out, of_direction::PROTOCOL, |out| bytes(out, NUMBER, &[UDP]));
    });
    nested(&mut out, of_flow::FILTER, |out| {
        bytes(out, ORIGINAL_FLAGS, &BY_PROTOCOL.to_ne_bytes());
    });
    close(&mut out, at);
    out
}

/// Appends a message that has the kernel forget a flow. It answers only if it cannot.
pub fn forget(out: &mut Vec<u8>, ipv6: bool, flow: &Flow<'_>) {
    let at = open(out, head(DELETE, REQUEST, ipv6));
    // Never without this: the kernel would forget all flows.
    attribute(out, of_flow::ORIGINAL | NESTED, |out| out.extend(flow.identity.original));
    if let Some(zone) = flow.identity.zone {
        bytes(out, of_flow::ZONE, zone);
    }
    if let Some(id) = flow.identity.id {
        bytes(out, of_flow::ID, id);
    }
    close(out, at);
}

fn head(kind: u16, flags: u16, ipv6: bool) -> Head {
    Head { kind, flags, sequence: 1, family: family(ipv6), resource: 0 }
}

/// The flow that a message tells of, if it is of UDP.
pub fn flow<'a>(message: &Message<'a>) -> Option<Flow<'a>> {
    if message.kind != NEW {
        return None;
    }
    let (mut original, mut reply, mut zone, mut id) = (None, None, None, None);
    for (kind, value) in message.attributes() {
        match kind {
            of_flow::ORIGINAL => original = Some(value),
            of_flow::REPLY => reply = Some(value),
            of_flow::ZONE => zone = Some(value),
            of_flow::ID => id = Some(value),
            _ => {}
        }
    }
    let original = original?;
    Some(Flow {
        to: direction(original)?.destination?,
        led_to: direction(reply?)?.source?,
        identity: Identity { original, zone, id },
    })
}

struct Direction {
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
}

/// One direction of a flow of UDP.
fn direction(bytes: &[u8]) -> Option<Direction> {
    let (mut addresses, mut ports) = ((None, None), (None, None));
    let mut protocol = None;
    for (kind, value) in attributes(bytes) {
        match kind {
            of_direction::ADDRESSES => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 | 3 => addresses.0 = address(value),
                        2 | 4 => addresses.1 = address(value),
                        _ => {}
                    }
                }
            }
            of_direction::PROTOCOL => {
                for (kind, value) in attributes(value) {
                    match kind {
                        NUMBER => protocol = value.first().copied(),
                        2 => ports.0 = port(value),
                        3 => ports.1 = port(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let both = |address: Option<IpAddr>, port: Option<u16>| Some((address?, port?).into());
    (protocol == Some(UDP)).then(|| Direction {
        source: both(addresses.0, ports.0),
        destination: both(addresses.1, ports.1),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().map(u16::from_be_bytes).ok()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::netlink::{messages, word};
    use proptest::prelude::*;

    /// What the kernel says of a flow.
    pub fn told(out: &mut Vec<u8>, protocol: u8, [from, to, led_to]: [SocketAddr; 3]) {
        let at = open(out, head(NEW, 0, to.is_ipv6()));
        let ends = [(of_flow::ORIGINAL, from, to), (of_flow::REPLY, led_to, from)];
        for (kind, source, destination) in ends {
            nested(out, kind, |out| {
                nested(out, of_direction::ADDRESSES, |out| {
                    let first = if to.is_ipv6() { 3 } else { 1 };
                    for (end, kind) in [source, destination].into_iter().zip(first..) {
                        match end.ip() {
                            IpAddr::V4(ip) => bytes(out, kind, &ip.octets()),
                            IpAddr::V6(ip) => bytes(out, kind, &ip.octets()),
                        }
                    }
                });
                nested(out, of_direction::PROTOCOL, |out| {
                    bytes(out, NUMBER, &[protocol]);
                    bytes(out, 2, &source.port().to_be_bytes());
                    bytes(out, 3, &destination.port().to_be_bytes());
                });
            });
        }
        // Others that are of no interest, and some that are.
        word(out, 3, 0x1b8);
        word(out, 7, 30);
        word(out, of_flow::ID, 0xdead_beef);
        bytes(out, of_flow::ZONE, &[0, 7]);
        close(out, at);
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn flows_of_udp_are_read() {
        for (protocol, all, wanted) in [
            (UDP, ["192.0.2.1:5000", "10.96.0.10:53", "10.0.0.1:8053"], true),
            (UDP, ["[2001:db8::1]:5000", "[fd00:96::10]:53", "[fd00::1]:8053"], true),
            (6, ["192.0.2.1:5000", "10.96.0.10:53", "10.0.0.1:8053"], false),
        ] {
            let mut out = Vec::new();
            let all = all.map(at);
            told(&mut out, protocol, all);
            let message = messages(&out).next().expect("a message");
            let found = flow(&message).map(|flow| (flow.to, flow.led_to));
            assert_eq!(found, wanted.then_some((all[1], all[2])), "{protocol}");
        }
    }

    /// Byte by byte, as the kernel lays it out.
    #[test]
    fn a_flow_is_told_to_be_forgotten_in_the_kernels_words() {
        let direction = |kind: u8, source: [u8; 4], destination: [u8; 4], ports: [u8; 4]| {
            let [a, b, c, d] = ports;
            let mut out = vec![0x34, 0, kind, 0x80, 0x14, 0, 1, 0x80];
            out.extend([8, 0, 1, 0].into_iter().chain(source));
            out.extend([8, 0, 2, 0].into_iter().chain(destination));
            out.extend([0x1c, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0]);
            out.extend([6, 0, 2, 0, a, b, 0, 0, 6, 0, 3, 0, c, d, 0, 0]);
            out
        };
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&0x100u16.to_ne_bytes());
        bytes.extend([2, 0, 0, 0]);
        bytes.extend(direction(1, [10, 244, 1, 2], [10, 96, 0, 10], [0x13, 0x88, 0, 53]));
        bytes.extend(direction(2, [10, 244, 2, 2], [10, 244, 1, 2], [0x1f, 0x75, 0x13, 0x88]));
        bytes.extend([8, 0, 12, 0, 1, 2, 3, 4]);
        close(&mut bytes, 0);
        let message = messages(&bytes).next().expect("a message");
        let flow = flow(&message).expect("a flow");
        assert_eq!((flow.to, flow.led_to), (at("10.96.0.10:53"), at("10.244.2.2:8053")));
        let mut out = Vec::new();
        forget(&mut out, false, &flow);
        let forget = messages(&out).next().expect("a message");
        assert_eq!(forget.kind, DELETE);
        let told: Vec<_> = forget.attributes().collect();
        let original = &bytes[24..20 + 0x34];
        assert_eq!(told, [(of_flow::ORIGINAL, original), (of_flow::ID, &[1, 2, 3, 4][..])]);
    }

    proptest! {
        /// Whatever is cut off or changed of what the kernel says, nothing is told to be forgotten
        /// that has not a direction whole.
        #[test]
        fn what_is_broken_is_no_flow_or_a_whole_one(
            six in any::<bool>(),
            changed in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            length in any::<proptest::sample::Index>(),
        ) {
            let all = match six {
                true => ["[2001:db8::1]:5000", "[fd00:96::10]:53", "[fd00::1]:8053"],
                false => ["192.0.2.1:5000", "10.96.0.10:53", "10.0.0.1:8053"],
            };
            let mut out = Vec::new();
            told(&mut out, UDP, all.map(at));
            for (index, byte) in changed {
                let at = index.index(out.len());
                out[at] = byte;
            }
            out.truncate(length.index(out.len()) + 1);
            for flow in messages(&out).filter_map(|message| flow(&message)) {
                let mut request = Vec::new();
                forget(&mut request, six, &flow);
                let request = messages(&request).next().expect("a message");
                let original = request.attributes().find(|(kind, _)| *kind == of_flow::ORIGINAL);
                let (_, original) = original.expect("never without one");
                let whole = direction(original).and_then(|d| d.destination);
                prop_assert_eq!(whole, Some(flow.to));
            }
        }
    }
}
