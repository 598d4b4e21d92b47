//! Which sysctls a pod may set: the safe ones, and those that `allowedUnsafeSysctls` names, as
//! long as the pod has a namespace of its own for them.

use k8s_openapi::api::core::v1::Pod;

use crate::objects::{host_network, spec};
use crate::pod::status::Waiting;

/// Safe sysctls, each with the kernel that isolates it first.
const SAFE: &[(&str, (u32, u32))] = &[
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// A namespace of the kernel that isolates sysctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ipc => "IPC",
            Self::Net => "Net",
        }
    }
}

/// The name with dots as separators; `/` may stand for them, and then `.` is part of a name.
pub fn normalize(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn namespace(name: &str) -> Option<Namespace> {
    if name == "kernel.sem" {
        return Some(Namespace::Ipc);
    }
    for (prefix, namespace) in [
        ("kernel.shm", Namespace::Ipc),
        ("kernel.msg", Namespace::Ipc),
        ("fs.mqueue.", Namespace::Ipc),
        ("net.", Namespace::Net),
    ] {
        if name.starts_with(prefix) {
            return Some(namespace);
        }
    }
    None
}

/// Checks the list of unsafe sysctls that are allowed: names, or beginnings that end in `*`.
///
/// # Errors
/// Names the one that the kernel does not isolate.
pub fn validate_patterns(patterns: &[String]) -> Result<(), String> {
    for pattern in patterns {
        let name = normalize(pattern.trim_end_matches('*'));
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
        if name.is_empty() || !plain || name.len() > 253 {
            return Err(format!(
                "invalid configuration: allowedUnsafeSysctls: sysctl {pattern:?} is no name"
            ));
        }
        if namespace(&name).is_none() {
            return Err(format!(
                "invalid configuration: allowedUnsafeSysctls: the sysctls {pattern:?} are not known to be namespaced"
            ));
        }
    }
    Ok(())
}

/// The first two numbers of a kernel's release.
fn release(kernel: &str) -> (u32, u32) {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Judges a pod's sysctls.
///
/// # Errors
/// `SysctlForbidden`, naming the sysctl.
pub fn check(pod: &Pod, allowed: &[String], kernel: &str) -> Result<(), Waiting> {
    let sysctls = spec(pod).security_context.as_ref().and_then(|s| s.sysctls.as_deref());
    for sysctl in sysctls.unwrap_or_default() {
        one(&sysctl.name, pod, allowed, release(kernel)).map_err(|why| Waiting {
            reason: "SysctlForbidden".to_owned(),
            message: format!("forbidden sysctl: {why}"),
        })?;
    }
    Ok(())
}

fn one(name: &str, pod: &Pod, allowed: &[String], kernel: (u32, u32)) -> Result<(), String> {
    let name = normalize(name);
    let safe = SAFE.iter().any(|(safe, since)| *safe == name && kernel >= *since);
    let named = |pattern: &String| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(&normalize(prefix)),
        None => normalize(pattern) == name,
    };
    if !safe && !allowed.iter().any(named) {
        return Err(format!("{name:?} not allowlisted"));
    }
    let shared = match namespace(&name) {
        Some(Namespace::Ipc) if spec(pod).host_ipc == Some(true) => Namespace::Ipc,
        Some(Namespace::Net) if host_network(pod) => Namespace::Net,
        _ => return Ok(()),
    };
    Err(format!("{name:?} not allowed with host {} enabled", shared.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_and_allowed_sysctls_pass() {
        let allowed = ["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()];
        for (name, host, kernel, refused) in [
            ("kernel.shm_rmid_forced", "", "6.1.0-9-amd64", None),
            ("kernel/shm_rmid_forced", "", "6.1.0", None),
            ("kernel.shmmax", "", "6.1.0", Some("\"kernel.shmmax\" not allowlisted")),
            ("kernel.msgmax", "", "6.1.0", None),
            ("kernel.msgmax", "hostIPC", "6.1.0", Some("not allowed with host IPC enabled")),
            ("net.core.somaxconn", "", "6.1.0", None),
            ("net.core.somaxconn", "hostNetwork", "6.1", Some("not allowed with host Net enabled")),
            ("net.ipv4.tcp_rmem", "", "4.14.0", Some("not allowlisted")),
            ("net.ipv4.tcp_rmem", "", "4.15.0", None),
            ("vm.swappiness", "", "6.1.0", Some("not allowlisted")),
        ] {
            let mut spec = serde_json::json!({
                "containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}
            });
            if !host.is_empty() {
                spec[host] = true.into();
            }
            let pod: Pod = serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap();
            match (check(&pod, &allowed, kernel), refused) {
                (Ok(()), None) => {}
                (Err(why), Some(part)) => {
                    assert_eq!(why.reason, "SysctlForbidden");
                    assert!(why.message.contains(part), "{name}: {}", why.message);
                }
                (result, _) => panic!("{name} {host}: {result:?}"),
            }
        }
    }

    #[test]
    fn patterns_must_be_isolated() {
        for (pattern, good) in
            [("kernel.sem", true), ("net.*", true), ("vm.*", false), ("*", false), ("a b", false)]
        {
            assert_eq!(validate_patterns(&[pattern.to_owned()]).is_ok(), good, "{pattern}");
        }
        assert_eq!(normalize("net/ipv4/conf/eth0.1/x"), "net.ipv4.conf.eth0/1.x");
    }
}
