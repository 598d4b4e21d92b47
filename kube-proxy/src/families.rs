//! Which address families this machine can have rules of. One that the kernel or iptables lacks is
//! left out, as upstream does it, and holds up nobody.

use std::path::Path;

use anyhow::Context;

use crate::config::Mode;
use crate::kernel;

/// What a kernel with IPv6 shows, also where it is switched off for all interfaces.
const IPV6: &str = "/proc/net/if_inet6";

/// Families whose rules are kept: one of them, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    ipv4: bool,
    ipv6: bool,
}

impl Families {
    pub const BOTH: Self = Self { ipv4: true, ipv6: true };
    #[cfg(test)]
    pub const IPV4: Self = Self { ipv4: true, ipv6: false };
    #[cfg(test)]
    pub const IPV6: Self = Self { ipv4: false, ipv6: true };

    pub fn has(self, ipv6: bool) -> bool {
        if ipv6 { self.ipv6 } else { self.ipv4 }
    }

    /// IPv6 or not, for each that is kept.
    pub fn each(self) -> impl Iterator<Item = bool> {
        [false, true].into_iter().filter(move |ipv6| self.has(*ipv6))
    }

    /// What this machine can have, with a line in the log about it.
    ///
    /// # Errors
    /// Neither.
    pub fn find(mode: Mode) -> anyhow::Result<Self> {
        let found = match mode {
            // The kernel is spoken to directly, and knows both.
            Mode::Nftables => settle(kernel_has_ipv6(), [Ok(()), Ok(())]),
            Mode::Iptables => settle(kernel_has_ipv6(), [false, true].map(kernel::has_iptables)),
        }?;
        match found {
            Self::BOTH => tracing::info!("kube-proxy running in dual-stack mode"),
            one => {
                let family = crate::table::family(one.ipv6);
                tracing::info!(ipFamily = family, "kube-proxy running in single-stack mode");
            }
        }
        Ok(found)
    }
}

/// Whether the kernel has IPv6.
pub fn kernel_has_ipv6() -> bool {
    Path::new(IPV6).exists()
}

/// What is left of the families by the kernel and by the tool that writes rules, IPv4's word first.
fn settle(kernel: bool, [four, six]: [anyhow::Result<()>; 2]) -> anyhow::Result<Families> {
    let (ipv4, tool_ipv6) = (four.is_ok(), six.is_ok());
    match (four, six) {
        (Err(error), Err(_)) => {
            return Err(error).context("iptables is not available on this host");
        }
        (Err(error), Ok(())) | (Ok(()), Err(error)) => {
            let (family, error) = (crate::table::family(ipv4), format!("{error:#}"));
            tracing::info!(ipFamily = family, error, "No iptables support for family");
        }
        (Ok(()), Ok(())) => {}
    }
    if !kernel {
        tracing::info!(ipFamily = "IPv6", "No kernel support for family");
    }
    let found = Families { ipv4, ipv6: tool_ipv6 && kernel };
    // Only IPv6 has a tool, and no kernel.
    anyhow::ensure!(found.ipv4 || found.ipv6, "no support for primary IP family \"IPv4\"");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_left_out() {
        for (kernel, tools, want) in [
            (true, [true, true], Some(Families::BOTH)),
            (false, [true, true], Some(Families::IPV4)),
            (true, [true, false], Some(Families::IPV4)),
            (false, [true, false], Some(Families::IPV4)),
            (true, [false, true], Some(Families::IPV6)),
            (false, [false, true], None),
            (true, [false, false], None),
            (false, [false, false], None),
        ] {
            let tool = |there| if there { Ok(()) } else { Err(anyhow::anyhow!("no such program")) };
            let found = settle(kernel, tools.map(tool));
            assert_eq!(found.as_ref().ok(), want.as_ref(), "{kernel} {tools:?} {found:?}");
            if tools == [false, false] {
                let error = format!("{:#}", found.expect_err("neither"));
                assert_eq!(error, "iptables is not available on this host: no such program");
            }
        }
        assert_eq!(Families::BOTH.each().collect::<Vec<_>>(), [false, true]);
        assert_eq!(Families::IPV4.each().collect::<Vec<_>>(), [false]);
        assert_eq!(Families::IPV6.each().collect::<Vec<_>>(), [true]);
    }
}
