//! Host names and the hosts file of pods.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::objects::{name, namespace, spec};

/// Linux's limit on host names.
const MAX_HOSTNAME: usize = 63;

/// A pod's host name and domain (empty without a subdomain).
///
/// # Errors
/// The full name that `setHostnameAsFQDN` asks for is too long.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> Result<(String, String), String> {
    let spec = spec(pod);
    if let Some(host) = spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return Ok((host.to_owned(), String::new()));
    }
    let host = match spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => {
            let cut: String = name(pod).chars().take(MAX_HOSTNAME).collect();
            cut.trim_end_matches(['-', '.']).to_owned()
        }
    };
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", namespace(pod)),
        None => String::new(),
    };
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        let full = format!("{host}.{domain}");
        if full.len() > 64 {
            return Err(format!(
                "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
                full.len()
            ));
        }
        return Ok((full, domain));
    }
    Ok((host, domain))
}

/// The hosts file of a pod with its own network.
pub fn managed(ips: &[String], host: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        match domain {
            "" => text.push_str(&format!("{ip}\t{host}\n")),
            domain => text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n")),
        }
    }
    text + &alias_lines(aliases)
}

/// The hosts file of a pod on the node's network.
pub fn of_host(content: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{content}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}
