//! Rules for nf_tables: what they say ([`render`]), what of them changes ([`state`]), and how the
//! kernel is told ([`wire`], [`socket`]).
//!
//! Services are elements of maps, not chains: `service-ips` leads from address, protocol and port to
//! a chain for services with that many backends, and `backends` from these and a random number to
//! one of them. So the cost of a packet does not grow with the number of services, and a change of a
//! service is a change of some elements. Only services that are reached from outside, that keep
//! clients at their backends or that have a great many backends have chains of their own.
//!
//! No set is anonymous: the kernel takes time for each that grows with the number of all.

pub mod render;
pub mod socket;
pub mod state;
#[cfg(test)]
pub mod tests;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::table::Protocol;

/// Our table, in each family.
pub const TABLE: &str = "kube-proxy";

/// How packets of this node's pods are told from others (upstream's `detectLocalMode`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Local {
    /// Not at all: nothing is masqueraded because of where it comes from.
    #[default]
    Unknown,
    /// By their addresses.
    Addresses(IpNet),
    /// By the bridge that they come through.
    Bridge(String),
    /// By how the name of the interface begins that they come through.
    Prefix(String),
}

/// What of a node goes into the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Addresses that node ports answer on.
    pub addresses: Vec<IpAddr>,
    /// They answer on all addresses but loopback (iptables only).
    pub any_address: bool,
    /// Whose packets reach services unmasqueraded.
    pub local: Local,
    pub masquerade_all: bool,
    /// Marks packets to be masqueraded: one bit.
    pub mark: u32,
}

/// Upstream's default of `masqueradeBit`.
pub const MASQUERADE_BIT: u32 = 14;

/// A chain of the kernel's own that ours are called from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    pub point: Point,
    pub priority: i32,
}

/// Where on a packet's way, as the kernel numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Goto(String),
    Jump(String),
}

/// A part of an element's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    Index(u32),
}

pub type Key = SmallVec<[Part; 4]>;

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is of a set.
    Present,
    Verdict(Verdict),
    Backend(IpAddr, u16),
}

/// Part of a key that a rule looks up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Source,
    Destination,
    Protocol,
    DestinationPort,
    /// A random one of `count` numbers from `first` on.
    Random {
        count: u32,
        first: u32,
    },
    Value(Part),
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    In(Vec<Field>, String),
    Source {
        net: IpNet,
        inside: bool,
    },
    /// The interface that it came through; all names that begin so, with `prefix`.
    Interface {
        name: String,
        prefix: bool,
        same: bool,
    },
    /// Sent from this node.
    FromHere,
    NewFlow,
    Translated,
    Marked(u32),
}

/// A step of a rule: the next is taken unless this one ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    If(Test),
    Verdict(Verdict),
    /// The verdict that a map has for the key, if it has one.
    Map(Vec<Field>, String),
    /// To the backend that a map has for the key.
    Translate(Vec<Field>, String),
    TranslateTo(IpAddr, u16),
    /// Puts the source into a set, anew if it is there.
    Remember(String),
    Mark(u32),
    Unmark(u32),
    Masquerade,
    /// With an ICMP error: port unreachable.
    Refuse,
}

pub type Rule = Vec<Step>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// What a set holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    pub key: &'static [Kind],
    pub data: Data,
    /// Seconds after which an element that packets have added goes; 0: it has elements of ours.
    pub timeout: u32,
}

/// Kinds of [`Part`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Address,
    Protocol,
    Port,
    Index,
}

/// Kinds of [`Value`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Nothing,
    Verdict,
    Backend,
}

/// The sets that are always there, by name.
pub const SETS: [(&str, Declaration); 8] = {
    use Kind::{Address, Index, Port, Protocol};
    const fn set(key: &'static [Kind], data: Data) -> Declaration {
        Declaration { key, data, timeout: 0 }
    }
    [
        ("backends", set(&[Address, Protocol, Port, Index], Data::Backend)),
        ("hairpin", set(&[Address, Address], Data::Nothing)),
        ("no-endpoint-nodeports", set(&[Protocol, Port], Data::Verdict)),
        ("no-endpoint-services", set(&[Address, Protocol, Port], Data::Verdict)),
        ("nodeport-ips", set(&[Address], Data::Nothing)),
        ("service-ips", set(&[Address, Protocol, Port], Data::Verdict)),
        ("service-nodeports", set(&[Protocol, Port], Data::Verdict)),
        ("sticky-backends", set(&[Address, Protocol, Port, Index], Data::Verdict)),
    ]
};

/// A part of the rules that has one owner: a service's port, or the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, Declaration>,
    /// By the set's name and the key. Fragments may have the same: the first owner's counts.
    pub elements: BTreeMap<(&'static str, Key), Value>,
}

/// One change of the kernel's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    AddTable,
    DeleteTable,
    AddSet(String, Declaration),
    DeleteSet(String),
    AddChain(String, Option<Hook>),
    FlushChain(String),
    DeleteChain(String),
    AddRule(String, Rule),
    AddElements(&'static str, Vec<(Key, Value)>),
    DeleteElements(&'static str, Vec<Key>),
}

fn list<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = T>,
) -> fmt::Result {
    for (i, item) in items.into_iter().enumerate() {
        let dot = if i == 0 { "" } else { " . " };
        write!(f, "{dot}{item}")?;
    }
    Ok(())
}

/// A key, or what is looked up, as nft shows it.
struct Dotted<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Dotted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Protocol(protocol) => f.write_str(protocol.name()),
            Self::Port(port) => port.fmt(f),
            Self::Index(index) => index.fmt(f),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Backend(ip, port) => write!(f, "{ip} . {port}"),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("saddr"),
            Self::Destination => f.write_str("daddr"),
            Self::Protocol => f.write_str("l4proto"),
            Self::DestinationPort => f.write_str("dport"),
            Self::Random { count, first: 0 } => write!(f, "random {count}"),
            Self::Random { count, first } => write!(f, "random {count} from {first:#x}"),
            Self::Value(part) => part.fmt(f),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |yes: &bool| if *yes { "" } else { "!= " };
        match self {
            Self::In(fields, set) => write!(f, "{} @{set}", Dotted(fields)),
            Self::Source { net, inside } => write!(f, "saddr {}{net}", not(inside)),
            Self::Interface { name, prefix, same } => {
                write!(f, "iifname {}{name}{}", not(same), if *prefix { "*" } else { "" })
            }
            Self::FromHere => f.write_str("fib saddr type local"),
            Self::NewFlow => f.write_str("ct state new"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::Marked(mark) => write!(f, "mark {mark:#x}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::If(test) => test.fmt(f),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Map(fields, map) => write!(f, "{} vmap @{map}", Dotted(fields)),
            Self::Translate(fields, map) => write!(f, "dnat to {} map @{map}", Dotted(fields)),
            Self::TranslateTo(ip, port) => write!(f, "dnat to {ip} . {port}"),
            Self::Remember(set) => write!(f, "update @{set} saddr"),
            Self::Mark(mark) => write!(f, "set mark {mark:#x}"),
            Self::Unmark(mark) => write!(f, "clear mark {mark:#x}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Refuse => f.write_str("reject"),
        }
    }
}

/// One line, shortened where it is long.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => write!(f, "add table {TABLE}"),
            Self::DeleteTable => write!(f, "delete table {TABLE}"),
            Self::AddSet(name, _) => write!(f, "add set {name}"),
            Self::DeleteSet(name) => write!(f, "delete set {name}"),
            Self::AddChain(name, _) => write!(f, "add chain {name}"),
            Self::FlushChain(name) => write!(f, "flush chain {name}"),
            Self::DeleteChain(name) => write!(f, "delete chain {name}"),
            Self::AddRule(chain, rule) => {
                write!(f, "add rule {chain}")?;
                rule.iter().try_for_each(|step| write!(f, " {step}"))
            }
            Self::AddElements(set, elements) => {
                write!(f, "add element {set}")?;
                for (key, value) in elements.iter().take(8) {
                    write!(f, " {{ {} : {value} }}", Dotted(key))?;
                }
                if elements.len() > 8 {
                    write!(f, " and {} more", elements.len() - 8)
                } else {
                    Ok(())
                }
            }
            Self::DeleteElements(set, keys) => {
                write!(f, "delete element {set}")?;
                for key in keys.iter().take(8) {
                    write!(f, " {{ {} }}", Dotted(key))?;
                }
                if keys.len() > 8 { write!(f, " and {} more", keys.len() - 8) } else { Ok(()) }
            }
        }
    }
}
