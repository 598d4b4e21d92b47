//! Under which addresses this machine is reached.

use std::net::{IpAddr, UdpSocket};

/// The addresses of the node, the primary first: those given, or the one that packets leave from.
pub fn find(given: &[IpAddr]) -> Vec<String> {
    if !given.is_empty() {
        let specified = given.iter().filter(|ip| !ip.is_unspecified());
        return specified.map(ToString::to_string).collect();
    }
    // Connecting a datagram socket sends nothing; it asks the routing table.
    let routed = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        })
        .map(|address| address.ip());
    match routed {
        Ok(ip) if !ip.is_loopback() && !ip.is_unspecified() => vec![ip.to_string()],
        _ => first_interface_address().into_iter().collect(),
    }
}

fn first_interface_address() -> Option<String> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses
        .filter_map(|interface| {
            let address = interface.address?;
            address.as_sockaddr_in().map(|a| a.ip())
        })
        .find(|ip| !ip.is_loopback())
        .map(|ip| ip.to_string())
}
