//! Warnings for clients about pods that are valid and yet hardly meant.

use std::net::IpAddr;

use apimachinery::{Value, names};

use super::super::check::{At, Seen, legacy_cidr, legacy_ip};
use super::super::{node_labels, volumes};
use super::{app_armor, overlaps};

/// In the order in which upstream speaks of them.
pub(super) const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Warnings about a pod.
pub fn pod(pod: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let root = At::root(pod);
    let name = root.down(&["metadata", "name"]).str();
    let messages = names::dns1123_label(name);
    if !messages.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising \
             behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        ));
    }
    of_both(&mut warnings, &root, false);
    warnings
}

/// Warns if a workload's name is not fit for the names of its pods.
pub fn pod_names(warnings: &mut Vec<String>, name: &str) {
    let messages = names::dns1123_label(name);
    if !messages.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in \
             surprising behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        ));
    }
}

/// Warnings about the template of a workload, at its path in the object.
pub fn template(warnings: &mut Vec<String>, at: &At<'_>) {
    if at.is_set() {
        of_both(warnings, at, true);
    }
}

fn of_both(warnings: &mut Vec<String>, at: &At<'_>, is_template: bool) {
    let spec = at.at("spec");
    node_choice(warnings, &spec);
    annotations(warnings, at);
    sources(warnings, &spec);
    overlaps::warn(warnings, &spec.at("volumes"));
    duplicates(warnings, &spec.at("hostAliases"), "ip");
    duplicates(warnings, &spec.at("imagePullSecrets"), "name");
    for secret in spec.at("imagePullSecrets").items().filter(|s| s.at("name").is_empty()) {
        warnings.push(format!("{}: invalid empty name \"\"", secret.at("name").path()));
    }
    for resource in ["memory", "ephemeral-storage"] {
        fractional(warnings, &spec.at("overhead"), resource);
    }
    seccomp(warnings, at, &spec, SECCOMP_POD);
    let containers: Vec<At<'_>> = CONTAINERS.iter().flat_map(|f| spec.at(f).items()).collect();
    for container in &containers {
        let key = format!("{SECCOMP_CONTAINER}{}", container.at("name").str());
        seccomp(warnings, at, container, &key);
        if is_template {
            app_armor::warn_template(warnings, at, container);
        }
        for resource in ["memory", "ephemeral-storage"] {
            fractional(warnings, &container.down(&["resources", "limits"]), resource);
            fractional(warnings, &container.down(&["resources", "requests"]), resource);
        }
        hidden_variables(warnings, &container.at("env"));
    }
    ports(warnings, &containers);
    let grace = spec.at("terminationGracePeriodSeconds");
    if grace.int() < 0 {
        warnings.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            grace.path()
        ));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = spec.at("affinity").at(kind);
        for term in pods.at("requiredDuringSchedulingIgnoredDuringExecution").items() {
            null_selector(warnings, &term.at("labelSelector"));
        }
        for term in pods.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
            null_selector(warnings, &term.down(&["podAffinityTerm", "labelSelector"]));
        }
    }
    for server in spec.down(&["dnsConfig", "nameservers"]).items() {
        ip(warnings, &server);
    }
    for alias in spec.at("hostAliases").items() {
        ip(warnings, &alias.at("ip"));
    }
}

/// By which labels nodes are chosen.
fn node_choice(warnings: &mut Vec<String>, spec: &At<'_>) {
    for (label, at) in spec.at("nodeSelector").entries() {
        if let Some(text) = node_labels::deprecated(label) {
            warnings.push(format!("{}: {text}", at.path()));
        }
    }
    let nodes = spec.down(&["affinity", "nodeAffinity"]);
    let required = nodes.at("requiredDuringSchedulingIgnoredDuringExecution");
    for term in required.at("nodeSelectorTerms").items() {
        node_labels::term(warnings, &term, false);
    }
    for term in nodes.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
        node_labels::term(warnings, &term.at("preference"), true);
    }
    for constraint in spec.at("topologySpreadConstraints").items() {
        node_labels::key(warnings, &constraint.at("topologyKey"));
        null_selector(warnings, &constraint.at("labelSelector"));
    }
}

/// Annotations that became fields, which `of` (a pod or container) does not have.
fn seccomp(warnings: &mut Vec<String>, pod: &At<'_>, of: &At<'_>, key: &str) {
    let all = pod.down(&["metadata", "annotations"]);
    let has_field = of.down(&["securityContext", "seccompProfile"]).is_set();
    if !has_field && all.value().get(key).is_some() {
        warnings.push(format!(
            "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
            all.path().key(key)
        ));
    }
}

/// Addresses in a form that newer fields refuse.
pub fn ip(warnings: &mut Vec<String>, at: &At<'_>) {
    let text = at.str();
    let Some(ip) = legacy_ip(text) else { return };
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => {}
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => {
            if v6.to_string() != text {
                warnings.push(format!(
                    "{}: IPv6 address \"{text}\" should be in RFC 5952 canonical format (\"{v6}\")",
                    at.path()
                ));
            }
        }
        // Leading zeros, or an IPv4 address as one of IPv6.
        _ => warnings.push(format!(
            "{}: non-standard IP address \"{text}\" will be considered invalid in a future \
             Kubernetes release: use \"{}\"",
            at.path(),
            ip.to_canonical()
        )),
    }
}

/// CIDRs in a form that newer fields refuse.
pub fn cidr(warnings: &mut Vec<String>, at: &At<'_>) {
    let text = at.str();
    let Some(net) = legacy_cidr(text) else { return };
    let mapped = matches!(net.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let (whole, length) = (net.trunc(), net.prefix_len());
    // Go shows what is of IPv4 as such.
    let length = if mapped { length.saturating_sub(96) } else { length };
    let shown = format!("{}/{length}", whole.addr().to_canonical());
    let ambiguous = whole.addr() != net.addr();
    if ambiguous {
        let single = format!("{}/{}", net.addr().to_canonical(), net.max_prefix_len());
        warnings.push(format!(
            "{}: CIDR value \"{text}\" is ambiguous in this context (should be \"{shown}\" or \
             \"{single}\"?)",
            at.path()
        ));
    }
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let padded = prefix.len() > 1 && prefix.starts_with('0');
    if mapped || padded || address.parse::<IpAddr>().is_err() {
        warnings.push(format!(
            "{}: non-standard CIDR value \"{text}\" will be considered invalid in a future \
             Kubernetes release: use \"{shown}\"",
            at.path()
        ));
    } else if !ambiguous && net.addr().is_ipv6() && net.to_string() != text {
        warnings.push(format!(
            "{}: IPv6 CIDR value \"{text}\" should be in RFC 5952 canonical format (\"{shown}\")",
            at.path()
        ));
    }
}

fn null_selector(warnings: &mut Vec<String>, at: &At<'_>) {
    if !at.is_set() {
        warnings.push(format!("{}: a null labelSelector results in matching no pod", at.path()));
    }
}

fn annotations(warnings: &mut Vec<String>, at: &At<'_>) {
    for (key, message) in [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/unsafe-sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
    ] {
        let all = at.down(&["metadata", "annotations"]);
        if all.value().get(key).is_some() {
            warnings.push(format!("{}: {message}", all.path().key(key)));
        }
    }
}

fn sources(warnings: &mut Vec<String>, spec: &At<'_>) {
    for volume in spec.at("volumes").items() {
        let claim = volume.down(&["ephemeral", "volumeClaimTemplate", "spec"]);
        volumes::claim_warnings(warnings, &claim);
        for (source, message) in [
            ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
            ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
            ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
            ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
            ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
            ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
            ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
            ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
            ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
        ] {
            let shown = if source == "storageos" { "storageOS" } else { source };
            if volume.at(source).is_set() {
                warnings.push(format!("{}: {message}", volume.path().child(shown)));
            }
        }
    }
}

fn duplicates(warnings: &mut Vec<String>, list: &At<'_>, field: &str) {
    let mut seen = Seen::default();
    for item in list.items().map(|i| i.at(field)) {
        if !seen.insert(item.str()) {
            warnings.push(format!("{}: duplicate {field} \"{}\"", item.path(), item.str()));
        }
    }
}

/// Warns of a part of a byte; `amounts` maps resources to quantities.
pub fn fractional(warnings: &mut Vec<String>, amounts: &At<'_>, resource: &str) {
    let amount = At::new(amounts.at(resource).value(), amounts.path().key(resource));
    if let Some(quantity) = amount.quantity().filter(|q| q.milli_value() % 1000 != 0) {
        warnings.push(format!(
            "{}: fractional byte value \"{quantity}\" is invalid, must be an integer",
            amount.path()
        ));
    }
}

fn hidden_variables(warnings: &mut Vec<String>, env: &At<'_>) {
    let mut seen = Seen::default();
    for var in env.items() {
        let (name, value) = (var.at("name").str(), var.at("value").str());
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let extends = !var.at("valueFrom").is_set()
            && value != reference
            && value.contains(reference.as_str());
        if !extends {
            warnings.push(format!(
                "{}: hides previous definition of \"{name}\", which may be dropped when using apply",
                var.path()
            ));
        }
    }
}

fn ports(warnings: &mut Vec<String>, containers: &[At<'_>]) {
    let mut seen: Vec<At<'_>> = Vec::new();
    for port in containers.iter().flat_map(|c| c.at("ports").items()) {
        let key = |p: &At<'_>| (p.at("containerPort").int(), p.at("protocol").str().to_owned());
        let host = |p: &At<'_>| (p.at("hostIP").str().to_owned(), p.at("hostPort").int());
        if !port.at("hostIP").is_empty() && port.at("hostPort").int() == 0 {
            let of = |field: &str| port.at(field).str();
            warnings.push(format!(
                "{}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} \
                 Protocol:{} HostIP:{}}}",
                port.path(),
                of("name"),
                port.at("containerPort").int(),
                of("protocol"),
                of("hostIP")
            ));
        }
        for other in seen.iter().filter(|other| key(other) == key(&port)) {
            let ((ip, number), (other_ip, other_number)) = (host(&port), host(other));
            let problem = if ip == other_ip && number == other_number {
                "duplicate"
            } else if number == 0 || other_number == 0 {
                "overlapping"
            } else if number == other_number && ip.is_empty() != other_ip.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            warnings.push(format!(
                "{}: {problem} port definition with {}",
                port.path(),
                other.path()
            ));
        }
        seen.push(port);
    }
    let mut named: Vec<(&str, String)> = Vec::new();
    for port in &seen {
        let name = port.at("name").str();
        if name.is_empty() {
            continue;
        }
        match named.iter().find(|(n, _)| *n == name) {
            Some((_, other)) => warnings.push(format!(
                "{}: duplicate port name \"{name}\" with {other}, services and probes that select \
                 ports by name will use {other}",
                port.path()
            )),
            None => named.push((name, port.path().to_string())),
        }
    }
}
