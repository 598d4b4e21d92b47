//! Warnings for clients about pods that are valid and yet hardly meant.

use apimachinery::{Value, names};

use super::super::check::{At, Seen, legacy_cidr, legacy_ip};
use super::defaults::CONTAINERS;

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
    template(&mut warnings, &root);
    warnings
}

/// Warnings about the template of a workload, at its path in the object.
pub fn template(warnings: &mut Vec<String>, at: &At<'_>) {
    let spec = at.at("spec");
    for constraint in spec.at("topologySpreadConstraints").items() {
        null_selector(warnings, &constraint.at("labelSelector"));
    }
    annotations(warnings, at);
    volumes(warnings, &spec);
    duplicates(warnings, &spec.at("hostAliases"), "ip");
    duplicates(warnings, &spec.at("imagePullSecrets"), "name");
    for secret in spec.at("imagePullSecrets").items().filter(|s| s.at("name").is_empty()) {
        warnings.push(format!("{}: invalid empty name \"\"", secret.at("name").path()));
    }
    fractional(warnings, &spec.at("overhead"));
    let containers: Vec<At<'_>> = CONTAINERS.iter().flat_map(|f| spec.at(f).items()).collect();
    for container in &containers {
        fractional(warnings, &container.down(&["resources", "limits"]));
        fractional(warnings, &container.down(&["resources", "requests"]));
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

/// Addresses in a form that newer fields refuse.
pub fn ip(warnings: &mut Vec<String>, at: &At<'_>) {
    let text = at.str();
    match (legacy_ip(text), text.parse::<std::net::IpAddr>()) {
        (Some(ip), Err(_)) => warnings.push(format!(
            "{}: non-standard IP address \"{text}\" will be considered invalid in a future \
             Kubernetes release: use \"{ip}\"",
            at.path()
        )),
        (Some(ip), Ok(_)) if ip.is_ipv6() && ip.to_string() != text => warnings.push(format!(
            "{}: IPv6 address \"{text}\" should be in RFC 5952 canonical format (\"{ip}\")",
            at.path()
        )),
        _ => {}
    }
}

/// CIDRs in a form that newer fields refuse.
pub fn cidr(warnings: &mut Vec<String>, at: &At<'_>) {
    let text = at.str();
    let Some(net) = legacy_cidr(text) else { return };
    let whole = net.trunc();
    let ambiguous = whole.addr() != net.addr();
    if ambiguous {
        let single = format!("{}/{}", net.addr(), net.max_prefix_len());
        warnings.push(format!(
            "{}: CIDR value \"{text}\" is ambiguous in this context (should be \"{whole}\" or \
             \"{single}\"?)",
            at.path()
        ));
    }
    let address = text.split('/').next().unwrap_or("");
    match address.parse::<std::net::IpAddr>() {
        Err(_) => warnings.push(format!(
            "{}: non-standard CIDR value \"{text}\" will be considered invalid in a future \
             Kubernetes release: use \"{whole}\"",
            at.path()
        )),
        Ok(ip) if !ambiguous && ip.is_ipv6() && net.to_string() != text => warnings.push(format!(
            "{}: IPv6 CIDR value \"{text}\" should be in RFC 5952 canonical format (\"{whole}\")",
            at.path()
        )),
        Ok(_) => {}
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

fn volumes(warnings: &mut Vec<String>, spec: &At<'_>) {
    for volume in spec.at("volumes").items() {
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

fn fractional(warnings: &mut Vec<String>, list: &At<'_>) {
    for (_, at) in list.entries().filter(|(n, _)| matches!(*n, "memory" | "ephemeral-storage")) {
        if let Some(amount) = at.quantity().filter(|q| q.milli_value() % 1000 != 0) {
            warnings.push(format!(
                "{}: fractional byte value \"{amount}\" is invalid, must be an integer",
                at.path()
            ));
        }
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
