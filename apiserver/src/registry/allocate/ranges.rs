//! Ranges that are granted from. The first part of each is left to those who ask for a certain
//! address or port, and is granted to others only when the rest is used up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// `IPv4`, `IPv6`
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub fn of_name(name: &str) -> Self {
        if name == "IPv6" { Self::V6 } else { Self::V4 }
    }

    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv6() { Self::V6 } else { Self::V4 }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// A range of service addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRange {
    net: IpNet,
}

impl AddressRange {
    pub fn new(net: IpNet) -> Self {
        Self { net: net.trunc() }
    }

    pub fn family(&self) -> Family {
        Family::of(self.net.addr())
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip)
    }

    pub fn network(&self) -> IpAddr {
        self.net.network()
    }

    /// The first address for services: of the apiserver's own.
    pub fn first(&self) -> IpAddr {
        offset(self.net.network(), 1)
    }

    /// All addresses but the network's and, of IPv4, the broadcast.
    pub fn grants(&self, ip: IpAddr) -> bool {
        self.contains(ip)
            && ip != self.net.network()
            && (self.family() == Family::V6 || ip != self.net.broadcast())
    }

    /// How many addresses are granted; very large ranges count as `u64::MAX`.
    pub fn size(&self) -> u64 {
        let bits = u32::from(self.net.max_prefix_len() - self.net.prefix_len());
        let last = if self.family() == Family::V4 { 2 } else { 1 };
        match bits {
            64.. => u64::MAX,
            bits => (1_u64 << bits).saturating_sub(last),
        }
    }

    /// Addresses that are left to those who ask for one: a sixteenth, from 16 to 256.
    fn reserved(&self) -> u64 {
        match self.size().saturating_add(2) {
            ..=16 => 0,
            size => (size / 16).clamp(16, 256),
        }
    }

    /// Every address once: from a random one on, the reserved part last.
    pub fn candidates(&self, random: &dyn Fn(u64) -> u64) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, size, reserved) = (self.first(), self.size(), self.reserved().min(self.size()));
        rotated(reserved, size - reserved, random)
            .chain(rotated(0, reserved, random))
            .map(move |n| offset(first, n))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.net.fmt(f)
    }
}

fn offset(ip: IpAddr, by: u64) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            Ipv4Addr::from(u32::from(ip).wrapping_add(u32::try_from(by).unwrap_or(0))).into()
        }
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).wrapping_add(u128::from(by))).into(),
    }
}

/// The numbers `base..base + count`, from a random one on and around.
fn rotated(
    base: u64,
    count: u64,
    random: &dyn Fn(u64) -> u64,
) -> impl Iterator<Item = u64> + use<> {
    let start = if count == 0 { 0 } else { random(count).min(count - 1) };
    (start..count).chain(0..start).map(move |n| base + n)
}

/// `--service-node-port-range`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    base: u16,
    size: u16,
}

impl PortRange {
    /// Both ends belong to the range.
    pub fn new(first: u16, last: u16) -> Self {
        Self { base: first, size: last.saturating_sub(first).saturating_add(1) }
    }

    pub fn first(&self) -> u16 {
        self.base
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    /// The number as a port of this range.
    pub fn port(&self, number: i64) -> Option<u16> {
        let port = u16::try_from(number).ok()?;
        (port >= self.base && port - self.base < self.size).then_some(port)
    }

    /// Ports that are left to those who ask for one: a thirty-second, from 16 to 128.
    fn reserved(&self) -> u64 {
        match self.size {
            ..=16 => 0,
            size => u64::from(size / 32).clamp(16, 128),
        }
    }

    /// Every port once: from a random one on, the reserved part last.
    pub fn candidates(&self, random: &dyn Fn(u64) -> u64) -> impl Iterator<Item = u16> + use<> {
        let (base, size, reserved) = (self.base, u64::from(self.size), self.reserved());
        rotated(reserved, size - reserved, random)
            .chain(rotated(0, reserved, random))
            .map(move |n| base + u16::try_from(n).unwrap_or(0))
    }
}

/// As upstream writes it in RangeAllocations: `30000-32767`.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.base, u32::from(self.base) + u32::from(self.size) - 1)
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self::new(30000, 32767)
    }
}
