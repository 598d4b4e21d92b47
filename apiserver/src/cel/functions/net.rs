//! IP addresses and CIDRs, as Go's `netip` reads them.

use std::net::IpAddr;

use super::Result;
use crate::cel::error::EvalError;
use crate::cel::value::{Opaque, Val};

/// Functions of a text; `None`: no such function.
pub(super) fn of_text<'a>(name: &str, text: &str) -> Option<Result<Val<'a>>> {
    Some(match name {
        "ip" => ip(text).map(|ip| Val::Opaque(Opaque::Ip(ip))),
        "isIP" => Ok(Val::Bool(ip(text).is_ok())),
        "ip.isCanonical" => ip(text).map(|ip| Val::Bool(ip.to_string() == text)),
        "cidr" => cidr(text).map(|(ip, bits)| Val::Opaque(Opaque::Cidr(ip, bits))),
        "isCIDR" => Ok(Val::Bool(cidr(text).is_ok())),
        _ => return None,
    })
}

fn ip(text: &str) -> Result<IpAddr> {
    let quoted = apimachinery::field::quote(text);
    if text.contains('%') {
        let what = "IP address with zone value is not allowed";
        return Err(EvalError::new(format!("{what}: {quoted}")));
    }
    let parsed: IpAddr = text
        .parse()
        .map_err(|_| EvalError::new(format!("ParseAddr({quoted}): unable to parse IP")))?;
    match parsed {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(EvalError::new(format!("IPv4-mapped IPv6 address is not allowed: {quoted}")))
        }
        ip => Ok(ip),
    }
}

fn cidr(text: &str) -> Result<(IpAddr, u8)> {
    let quoted = apimachinery::field::quote(text);
    let bad = |why: &str| {
        EvalError::new(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({quoted}): {why}"
        ))
    };
    let (address, bits) = text.split_once('/').ok_or_else(|| bad("no '/'"))?;
    let address = ip(address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    let bits = Some(bits).filter(|b| plain && (b.len() == 1 || !b.starts_with('0')));
    let bits: u8 = bits.and_then(|b| b.parse().ok()).ok_or_else(|| bad("bad bits after slash"))?;
    if bits > most { Err(bad("prefix length out of range")) } else { Ok((address, bits)) }
}

pub(super) fn of_ip<'a>(name: &str, ip: &IpAddr) -> Option<Result<Val<'a>>> {
    let v4 = |f: fn(&std::net::Ipv4Addr) -> bool, g: fn(&std::net::Ipv6Addr) -> bool| match ip {
        IpAddr::V4(v4) => f(v4),
        IpAddr::V6(v6) => g(v6),
    };
    let multicast =
        v4(|a| a.octets().starts_with(&[224, 0, 0]), |a| a.segments()[0] & 0xff0f == 0xff02);
    let link_local = v4(|a| a.is_link_local(), |a| a.is_unicast_link_local());
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let global = !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !link_local
        && !broadcast;
    Some(Ok(match name {
        "family" => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(ip.is_unspecified()),
        "isLoopback" => Val::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Val::Bool(multicast),
        "isLinkLocalUnicast" => Val::Bool(link_local),
        "isGlobalUnicast" => Val::Bool(global),
        _ => return None,
    }))
}

pub(super) fn of_cidr<'a>(
    name: &str,
    (ip_of, bits): (IpAddr, u8),
    rest: &[Val<'a>],
) -> Option<Result<Val<'a>>> {
    use apimachinery::names::masked;
    let holds = |other: IpAddr| {
        other.is_ipv4() == ip_of.is_ipv4() && masked(other, bits) == masked(ip_of, bits)
    };
    let holds_range = |(other, length): (IpAddr, u8)| length >= bits && holds(other);
    Some(match (name, rest) {
        ("containsIP", [Val::Str(text)]) => ip(text.as_str()).map(|ip| Val::Bool(holds(ip))),
        ("containsIP", [Val::Opaque(Opaque::Ip(ip))]) => Ok(Val::Bool(holds(*ip))),
        ("containsCIDR", [Val::Str(text)]) => {
            cidr(text.as_str()).map(|other| Val::Bool(holds_range(other)))
        }
        ("containsCIDR", [Val::Opaque(Opaque::Cidr(other, length))]) => {
            Ok(Val::Bool(holds_range((*other, *length))))
        }
        ("ip", []) => Ok(Val::Opaque(Opaque::Ip(ip_of))),
        ("prefixLength", []) => Ok(Val::Int(i64::from(bits))),
        ("masked", []) => Ok(Val::Opaque(Opaque::Cidr(masked(ip_of, bits), bits))),
        _ => return None,
    })
}
