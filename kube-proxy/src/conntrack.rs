//! Stale flows: UDP has no end, so the kernel goes on leading a flow where it led its first packet,
//! though that backend is no more, or past a service that has got its first one. The flows of all
//! services are held to their endpoints when some of these have changed, as upstream does it.

mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use nix::errno::Errno;

use crate::netlink::{DONE, ERROR, Socket, messages};
use crate::table::{Changes, Protocol, Table};
use wire::Flow;

/// Where flows of UDP may lead, by where they were sent.
#[derive(Debug, Default)]
pub struct Serving<'a> {
    services: HashMap<SocketAddr, &'a [SocketAddr]>,
    /// On whatever address.
    node_ports: HashMap<u16, &'a [SocketAddr]>,
}

impl<'a> Serving<'a> {
    /// Services without an endpoint are not in it: where their flows lead does not matter.
    pub fn of(table: &'a Table) -> Self {
        let mut out = Self::default();
        // Others' rows have no such endpoints.
        for row in table.values().filter(|row| !row.serving.is_empty()) {
            let outside = row.load_balancer_ips.iter().chain(&row.external_ips);
            for address in outside.chain([&row.cluster_ip]) {
                out.services.insert((*address, row.port).into(), &row.serving);
            }
            if let Some(port) = row.node_port {
                out.node_ports.insert(port, &row.serving);
            }
        }
        out
    }

    fn is_stale(&self, flow: &Flow<'_>) -> bool {
        let elsewhere = |serving: &&[SocketAddr]| serving.binary_search(&flow.led_to).is_err();
        self.services.get(&flow.to).is_some_and(elsewhere)
            || self.node_ports.get(&flow.to.port()).is_some_and(elsewhere)
    }
}

/// Whether flows may be stale after these changes.
pub fn may_be_stale(changes: &Changes) -> bool {
    let rows = changes.values().flat_map(|change| change.old.iter().chain(&change.new));
    rows.into_iter().any(|row| row.protocol == Protocol::Udp)
}

/// What follows from a part of what the kernel tells.
#[derive(Debug, Default)]
struct Found {
    /// Messages that have the kernel forget these flows.
    requests: Vec<u8>,
    stale: usize,
    /// That was all.
    last: bool,
}

/// Finds the stale flows in a datagram.
fn judge(datagram: &[u8], ipv6: bool, serving: &Serving<'_>) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for message in messages(datagram) {
        if let ERROR | DONE = message.kind {
            if let Some(errno) = message.error() {
                bail!("conntrack: flows are not told: {}", errno.desc());
            }
            found.last = true;
        }
        if let Some(flow) = wire::flow(&message)
            && serving.is_stale(&flow)
        {
            wire::forget(&mut found.requests, ipv6, &flow);
            found.stale += 1;
        }
    }
    Ok(found)
}

/// Has the kernel forget stale flows, while it tells of them. Returns how many.
///
/// # Errors
/// What the kernel said; some may be forgotten.
pub fn forget_stale(ipv6: bool, serving: &Serving<'_>) -> anyhow::Result<usize> {
    let (mut all, mut stale) = (Socket::new()?, Socket::new()?);
    all.send(&wire::ask(ipv6)).context("conntrack")?;
    let mut forgotten = 0;
    loop {
        let datagram = all.receive().context("conntrack: flows are not told")?;
        let found = judge(datagram, ipv6, serving)?;
        if found.stale > 0 {
            stale.send(&found.requests).context("conntrack")?;
            forgotten += found.stale - gone_before(&mut stale)?;
        }
        if found.last {
            return Ok(forgotten);
        }
    }
}

/// How many of the flows that the kernel was to forget had gone.
fn gone_before(socket: &mut Socket) -> anyhow::Result<usize> {
    let mut gone = 0;
    loop {
        let datagram = match socket.receive() {
            Err(Errno::EAGAIN) => return Ok(gone),
            datagram => datagram.context("conntrack")?,
        };
        for message in messages(datagram).filter(|message| message.kind == ERROR) {
            match message.error() {
                None => {}
                Some(Errno::ENOENT) => gone += 1,
                Some(errno) => bail!("conntrack: a flow is not forgotten: {}", errno.desc()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::alone;
    use crate::nftables::state::Rules;
    use crate::nftables::tests::node;
    use crate::nftables::{render, socket};
    use crate::table::tests::{here, service, slice};
    use crate::table::{Changed, build};
    use proptest::prelude::*;
    use serde_json::json;
    use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
    use std::process::Command;

    fn table(protocol: &str, endpoints: &[&str]) -> Table {
        let mut service = service(json!({"clusterIP": "10.96.0.10",
            "externalIPs": ["198.51.100.1"], "internalTrafficPolicy": "Local",
            "ports": [{"port": 53, "protocol": protocol, "nodePort": 30053}]}));
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        service.status = serde_json::from_value(status).ok();
        build(&here(), false, [&service], [&slice(endpoints)])
    }

    fn told(protocol: u8, to: &str, led_to: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let ends = ["192.0.2.9:5000", to, led_to].map(|text| text.parse().expect("an address"));
        wire::tests::told(&mut out, protocol, ends);
        out
    }

    #[test]
    fn flows_of_udp_that_lead_to_no_endpoint_are_stale() {
        let some = &["10.0.0.1", "10.0.0.2@n2", "10.0.0.3@n1~", "10.0.0.4@n1!"][..];
        let (service, node_port) = ("10.96.0.10:53", "192.0.2.1:30053");
        for (why, protocol, endpoints, to, led_to, wanted) in [
            ("an endpoint", "UDP", some, service, "10.0.0.1:8080", false),
            ("of another node, whatever the policy", "UDP", some, service, "10.0.0.2:8080", false),
            ("that ends and serves", "UDP", some, service, "10.0.0.3:8080", false),
            ("that does not serve", "UDP", some, service, "10.0.0.4:8080", true),
            ("that is no more", "UDP", some, service, "10.0.0.9:8080", true),
            ("at a port that it had once", "UDP", some, service, "10.0.0.1:8081", true),
            ("was not translated", "UDP", some, service, service, true),
            ("there is none", "UDP", &[], service, "10.0.0.1:8080", false),
            ("another port", "UDP", some, "10.96.0.10:54", "10.0.0.9:8080", false),
            ("another address", "UDP", some, "10.96.0.11:53", "10.0.0.9:8080", false),
            ("by external address", "UDP", some, "198.51.100.1:53", "10.0.0.9:8080", true),
            ("by load balancer", "UDP", some, "203.0.113.1:53", "10.0.0.9:8080", true),
            ("by node port", "UDP", some, node_port, "10.0.0.9:8080", true),
            ("by node port, to an endpoint", "UDP", some, node_port, "10.0.0.1:8080", false),
            (
                "by node port, of another address",
                "UDP",
                some,
                "8.8.8.8:30053",
                "8.8.8.8:30053",
                true,
            ),
            ("a service of TCP", "TCP", some, service, "10.0.0.9:8080", false),
        ] {
            let table = table(protocol, endpoints);
            let found = judge(&told(17, to, led_to), false, &Serving::of(&table)).expect("flows");
            assert_eq!((found.stale, found.last), (usize::from(wanted), false), "{why}");
            assert_eq!(messages(&found.requests).count(), found.stale, "{why}");
            let tcp = judge(&told(6, to, led_to), false, &Serving::of(&table)).expect("flows");
            assert_eq!(tcp.stale, 0, "{why}, but of TCP");
        }
    }

    #[test]
    fn flows_are_looked_at_when_a_service_of_udp_changes() {
        let changes = |old: &Table, new: &Table| -> Changes {
            let names = old.keys().chain(new.keys()).cloned();
            let changed = |name| {
                let (old, new) = (old.get(&name).cloned(), new.get(&name).cloned());
                (name, Changed { old, new })
            };
            names.map(changed).filter(|(_, change)| change.old != change.new).collect()
        };
        let one = table("UDP", &["10.0.0.1"]);
        for (old, new, wanted) in [
            (&one, &one, false),
            (&one, &table("UDP", &["10.0.0.2"]), true),
            // The rules are the same, but the flows may not be.
            (&table("UDP", &["10.0.0.1", "10.0.0.2@n1~"]), &one, true),
            (&one, &table("TCP", &["10.0.0.1"]), true),
            (&one, &Table::new(), true),
            (&Table::new(), &one, true),
            (&table("TCP", &["10.0.0.1"]), &table("TCP", &[]), false),
        ] {
            assert_eq!(may_be_stale(&changes(old, new)), wanted, "{old:?} {new:?}");
        }
    }

    #[test]
    fn the_kernels_errors_and_its_end_are_heard() {
        let message = |kind: u16, code: i32| {
            let mut out = vec![20, 0, 0, 0];
            out.extend(kind.to_ne_bytes());
            out.extend([0; 10]);
            out.extend(code.to_ne_bytes());
            out
        };
        let table = table("UDP", &["10.0.0.1"]);
        let judge = |bytes: &[u8]| judge(bytes, false, &Serving::of(&table));
        assert!(judge(&message(DONE, 0)).expect("the end").last);
        for kind in [DONE, ERROR] {
            let error = format!("{:#}", judge(&message(kind, -1)).expect_err("an error"));
            assert!(error.contains("Operation not permitted"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_says_is_judged(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let table = table("UDP", &["10.0.0.1"]);
            if let Ok(found) = judge(&bytes, false, &Serving::of(&table)) {
                prop_assert_eq!(messages(&found.requests).count(), found.stale);
            }
        }
    }

    /// Flows that the kernel tracks, in a namespace of its own, of more than one datagram.
    #[test]
    fn the_kernel_forgets_stale_flows_alone() {
        const MANY: usize = 400;
        for ipv6 in [false, true] {
            let (stale, other) = match ipv6 {
                true => ("fd00:96::10", "fd00:96::11"),
                false => ("10.96.0.10", "10.96.0.11"),
            };
            let spec = json!({"clusterIP": stale, "ports": [{"port": 53, "protocol": "UDP"}]});
            let mut slice = slice(&[if ipv6 { "fd00::1" } else { "10.0.0.1" }]);
            slice.address_type = if ipv6 { "IPv6" } else { "IPv4" }.into();
            let table = build(&here(), ipv6, [&service(spec)], [&slice]);
            alone(move || {
                // The rules are those of no service: flows are tracked and go where they are sent.
                let (_, rules) = Rules::whole(render::all(&Table::new(), &node(), ipv6));
                socket::commit(ipv6, &rules).expect("rules");
                ip("link set lo up");
                for address in [stale, other] {
                    let more = if ipv6 { " nodad" } else { "" };
                    ip(&format!("addr add {address} dev lo{more}"));
                }
                let at = |address: &str, port| {
                    SocketAddr::new(address.parse::<IpAddr>().expect("an address"), port)
                };
                let any = if ipv6 { "::" } else { "0.0.0.0" };
                for from in 20_000..20_000 + MANY as u16 {
                    let socket = UdpSocket::bind(at(any, from)).expect("a port");
                    for to in [at(stale, 53), at(other, 53)] {
                        socket.send_to(b"x", to).expect("sent");
                    }
                }
                let socket = UdpSocket::bind(at(any, 0)).expect("a port");
                socket.send_to(b"x", at(stale, 54)).expect("sent");
                let listener = TcpListener::bind(at(stale, 53)).expect("a port");
                let _stream = TcpStream::connect(at(stale, 53)).expect("a connection");
                assert_eq!(flows(ipv6), 2 * MANY + 1, "of UDP alone");
                let serving = Serving::of(&table);
                assert_eq!(forget_stale(ipv6, &serving).expect("forgotten"), MANY);
                assert_eq!(flows(ipv6), MANY + 1);
                assert_eq!(forget_stale(ipv6, &serving).expect("none"), 0);
                drop(listener);
            });
        }
    }

    fn ip(arguments: &str) {
        let output = Command::new("ip").args(arguments.split(' ')).output();
        let output = output.expect("ip is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// How many flows the kernel tells of when it is asked as here.
    fn flows(ipv6: bool) -> usize {
        let mut socket = Socket::new().expect("a socket");
        socket.send(&wire::ask(ipv6)).expect("asked");
        let mut count = 0;
        loop {
            for message in messages(socket.receive().expect("an answer")) {
                match message.kind {
                    DONE => return count,
                    _ => count += 1,
                }
            }
        }
    }
}
