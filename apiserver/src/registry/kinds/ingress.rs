//! Ingresses, IngressClasses and NetworkPolicies.

use std::collections::BTreeSet;

use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{self, age_column, column, named};
use super::check::{
    At, check_legacy_cidr, check_legacy_ip, domain_prefixed_path, immutable, invalid_each,
    label_selector, legacy_cidr, legacy_ip, supported,
};
use super::row::Rows;
use super::{STATUS, begin, carry_on, checked, child, count_up, default_absent, each, keep, pods};
use crate::registry::{Column, Context, Strategy};

const GROUP: (&str, &str) = ("networking.k8s.io", "v1");
/// Named the class before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";
const MAX_CONTROLLER: usize = 250;
/// Characters of addresses that a narrow table shows.
const ADDRESS_WIDTH: usize = 16;

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(GROUP, ("Ingress", "ingresses"), |row| {
        row.short(&["ing"])
            .prefix("ingress")
            .strategy(Ingresses)
            .status(IngressStatus)
            .columns(ingress_columns())
    });
    rows.add(GROUP, ("IngressClass", "ingressclasses"), |row| {
        row.cluster().strategy(Classes).columns(named([
            column("Controller", "string", "What serves the class.", |o, _| {
                object::str_at(o, &["spec", "controller"]).into()
            }),
            column("Parameters", "string", "An object that says more.", |o, _| {
                parameters(o).into()
            }),
            age_column(),
        ]))
    });
    rows.add(GROUP, ("NetworkPolicy", "networkpolicies"), |row| {
        row.short(&["netpol"]).strategy(Policies).columns(named([
            column("Pod-Selector", "string", "Pods that it is about.", |o, _| {
                let selector = object::get(o, &["spec", "podSelector"]).cloned();
                cells::selector(Some(&selector.unwrap_or_else(|| json!({})))).into()
            }),
            age_column(),
        ]))
    });
}

struct Ingresses;

impl Strategy for Ingresses {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
        set(object, &["status"], json!({"loadBalancer": {}}));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            ingress(errors, &spec, true);
            let class = spec.at("ingressClassName");
            if let Some(annotation) = object::annotation(object, CLASS)
                && class.is_set()
                && annotation != class.str()
            {
                errors.push(root.at("annotations").at(CLASS).invalid_as(
                    annotation,
                    "must match `ingressClassName` when both are specified",
                ));
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let secrets_good = object::list_at(old, &["spec", "tls"])
            .iter()
            .all(|tls| secret_name(object::str_at(tls, &["secretName"])).is_empty());
        checked(object, |root, errors| ingress(errors, &root.at("spec"), secrets_good))
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let class = object::get(object, &["spec", "ingressClassName"]);
        let annotated = object::annotation(object, CLASS).is_some();
        if old.is_none() && annotated && class.is_none_or(Value::is_null) {
            return vec![format!(
                "annotation \"{CLASS}\" is deprecated, please use 'spec.ingressClassName' instead"
            )];
        }
        Vec::new()
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn secret_name(name: &str) -> Vec<String> {
    if name.is_empty() { Vec::new() } else { names::dns1123_subdomain(name) }
}

/// `check_secrets`: an old ingress with bad names of secrets keeps them.
fn ingress(errors: &mut ErrorList, spec: &At<'_>, check_secrets: bool) {
    let (backend, rules) = (spec.at("defaultBackend"), spec.at("rules"));
    if rules.is_empty() && !backend.is_set() {
        let shown = rules.value().clone();
        let text = "either `defaultBackend` or `rules` must be specified";
        errors.push(spec.invalid_as(shown, text));
    }
    if backend.is_set() {
        ingress_backend(errors, &backend);
    }
    for rule in rules.items() {
        let host = rule.at("host");
        if !host.is_empty() {
            if legacy_ip(host.str()).is_some() {
                errors.push(host.invalid("must be a DNS name, not an IP address"));
            }
            invalid_each(errors, &host, host_name(host.str()));
        }
        let http = rule.at("http");
        if !http.is_set() {
            continue;
        }
        let paths = http.at("paths");
        if paths.is_empty() {
            errors.push(paths.required(""));
        }
        paths.items().for_each(|path| ingress_path(errors, &path));
    }
    for tls in spec.at("tls").items() {
        for host in tls.at("hosts").items() {
            invalid_each(errors, &host, host_name(host.str()));
        }
        let secret = tls.at("secretName");
        if check_secrets {
            invalid_each(errors, &secret, secret_name(secret.str()));
        }
    }
    let class = spec.at("ingressClassName");
    if class.is_set() {
        invalid_each(errors, &class, names::dns1123_subdomain(class.str()));
    }
}

fn host_name(host: &str) -> Vec<String> {
    match host.contains('*') {
        true => names::wildcard_dns1123_subdomain(host),
        false => names::dns1123_subdomain(host),
    }
}

fn ingress_path(errors: &mut ErrorList, at: &At<'_>) {
    let (kind, path) = (at.at("pathType"), at.at("path"));
    let absolute = path.str().starts_with('/');
    let relative = || path.invalid_as(path.str(), "must be an absolute path");
    match kind.value().as_str() {
        None => {
            errors.push(kind.required("pathType must be specified"));
            return;
        }
        Some("Exact" | "Prefix") => {
            if !absolute {
                errors.push(relative());
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.str().contains(part) {
                    errors.push(path.invalid(format!("must not contain '{part}'")));
                }
            }
            for end in ["/..", "/."].iter().filter(|end| path.str().ends_with(**end)) {
                errors.push(path.invalid(format!("cannot end with '{end}'")));
            }
        }
        Some("ImplementationSpecific") => {
            if !path.is_empty() && !absolute {
                errors.push(relative());
            }
        }
        Some(_) => {
            errors.push(kind.not_supported(&["Exact", "ImplementationSpecific", "Prefix"]));
        }
    }
    ingress_backend(errors, &at.at("backend"));
}

fn ingress_backend(errors: &mut ErrorList, at: &At<'_>) {
    let (resource, service) = (at.at("resource"), at.at("service"));
    match (resource.is_set(), service.is_set()) {
        (true, true) => {
            errors.push(at.invalid_as("", "cannot set both resource and service backends"));
        }
        (true, false) => typed_reference(errors, &resource),
        (false, true) => {
            let name = service.at("name");
            match name.str() {
                "" => errors.push(name.required("")),
                text => invalid_each(errors, &name, names::dns1035_label(text)),
            }
            let (name, number) =
                (service.down(&["port", "name"]), service.down(&["port", "number"]));
            match (name.is_empty(), number.int() == 0) {
                (false, false) => {
                    errors.push(at.invalid_as("", "cannot set both port name & port number"));
                }
                (false, true) => invalid_each(errors, &name, names::port_name(name.str())),
                (true, false) => invalid_each(errors, &number, names::port_number(number.int())),
                (true, true) => errors.push(at.required("port name or number is required")),
            }
        }
        (false, false) => {
            errors.push(at.invalid_as("", "resource or service backend is required"));
        }
    }
}

fn typed_reference(errors: &mut ErrorList, at: &At<'_>) {
    let group = at.at("apiGroup");
    if group.is_set() {
        invalid_each(errors, &group, names::dns1123_subdomain(group.str()));
    }
    for field in ["kind", "name"].map(|f| at.at(f)) {
        match field.str() {
            "" => errors.push(field.required("")),
            text => invalid_each(errors, &field, names::path_segment(text)),
        }
    }
}

struct IngressStatus;

impl Strategy for IngressStatus {
    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep(object, old, &["metadata", "generation"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let entries = ["status", "loadBalancer", "ingress"];
        let before: BTreeSet<&str> =
            object::list_at(old, &entries).iter().map(|e| object::str_at(e, &["ip"])).collect();
        checked(object, |root, errors| {
            for entry in root.down(&entries).items() {
                let (ip, host) = (entry.at("ip"), entry.at("hostname"));
                if !ip.is_empty() && !before.contains(ip.str()) {
                    check_legacy_ip(errors, &ip);
                }
                if !host.is_empty() {
                    invalid_each(errors, &host, names::dns1123_subdomain(host.str()));
                    if legacy_ip(host.str()).is_some() {
                        errors.push(host.invalid("must be a DNS name, not an IP address"));
                    }
                }
            }
        })
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        pods::load_balancer_warnings(object)
    }
}

fn ingress_columns() -> Vec<Column> {
    named([
        column("Class", "string", "Class of the ingress.", |o, _| {
            object::get(o, &["spec", "ingressClassName"]).cloned().unwrap_or("<none>".into())
        }),
        column("Hosts", "string", "Hosts that it is for.", |o, _| hosts(o).into()),
        column("Address", "string", "Where it is reached.", |o, _| address(o).into()),
        column("Ports", "string", "Ports that it listens on.", |o, _| {
            match object::list_at(o, &["spec", "tls"]).is_empty() {
                true => "80".into(),
                false => "80, 443".into(),
            }
        }),
        age_column(),
    ])
}

fn hosts(ingress: &Value) -> String {
    const MAX: usize = 3;
    let rules = object::list_at(ingress, &["spec", "rules"]);
    let mut shown: Vec<&str> = Vec::new();
    let mut more = false;
    for host in rules.iter().map(|r| object::str_at(r, &["host"])) {
        more |= shown.len() == MAX;
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - MAX),
        (false, false) => shown.join(","),
    }
}

fn address(ingress: &Value) -> String {
    let entries = object::list_at(ingress, &["status", "loadBalancer", "ingress"]);
    let one = |entry: &'_ Value| -> String {
        let of = |field| object::str_at(entry, &[field]);
        if of("ip").is_empty() { of("hostname").to_owned() } else { of("ip").to_owned() }
    };
    let all: BTreeSet<String> = entries.iter().map(one).filter(|a| !a.is_empty()).collect();
    let text = all.into_iter().collect::<Vec<_>>().join(",");
    match text.get(..ADDRESS_WIDTH - 3) {
        Some(start) if text.len() > ADDRESS_WIDTH => format!("{start}..."),
        _ => text,
    }
}

struct Classes;

impl Strategy for Classes {
    fn default(&self, object: &mut Value) {
        if let Some(parameters) = object.pointer_mut("/spec/parameters")
            && parameters.is_object()
        {
            default_absent(parameters, "scope", "Cluster");
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        count_up(object, old, &["spec"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let controller = spec.at("controller");
            if controller.len() > MAX_CONTROLLER {
                errors.push(controller.too_long(MAX_CONTROLLER));
            }
            domain_prefixed_path(errors, &controller);
            class_parameters(errors, &spec.at("parameters"));
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let at = At::root(object).down(&["spec", "controller"]);
        immutable(&mut errors, &at, &old["spec"]["controller"]);
        errors.extend(self.validate(context, object));
        errors
    }
}

fn class_parameters(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        return;
    }
    typed_reference(errors, at);
    let (scope, namespace) = (at.at("scope"), at.at("namespace"));
    match scope.value().as_str() {
        None => errors.push(scope.required("")),
        Some("Namespace") if !namespace.is_set() => {
            errors.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
        }
        Some("Namespace") => {
            invalid_each(errors, &namespace, names::dns1123_label(namespace.str()));
        }
        Some("Cluster") if namespace.is_set() => {
            errors.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'"));
        }
        Some("Cluster") => {}
        Some(_) => errors.push(scope.not_supported(&["Cluster", "Namespace"])),
    }
}

fn parameters(class: &Value) -> String {
    let Some(parameters) = object::get(class, &["spec", "parameters"]) else {
        return "<none>".to_owned();
    };
    let of = |field| object::str_at(parameters, &[field]);
    match object::get(parameters, &["apiGroup"]) {
        Some(_) => format!("{}.{}/{}", of("kind"), of("apiGroup"), of("name")),
        None => format!("{}/{}", of("kind"), of("name")),
    }
}

struct Policies;

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        for direction in ["ingress", "egress"] {
            for rule in each(spec, direction) {
                each(rule, "ports").for_each(|port| default_absent(port, "protocol", "TCP"));
            }
        }
        if object::list_at(spec, &["policyTypes"]).is_empty() {
            let egress = !object::list_at(spec, &["egress"]).is_empty();
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            set(spec, &["policyTypes"], types);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        count_up(object, old, &["spec"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| policy(errors, &root.at("spec"), &BTreeSet::new()))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let before: BTreeSet<&str> = blocks(&At::root(old))
            .iter()
            .flat_map(|b| std::iter::once(b.at("cidr").str()).chain(b.at("except").strings()))
            .collect();
        checked(object, |root, errors| policy(errors, &root.at("spec"), &before))
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        for block in blocks(&At::root(object)) {
            pods::cidr_warning(&mut warnings, &block.at("cidr"));
            block.at("except").items().for_each(|at| pods::cidr_warning(&mut warnings, &at));
        }
        warnings
    }
}

/// Peers of all rules that are ranges of addresses.
fn blocks<'a>(root: &At<'a>) -> Vec<At<'a>> {
    let spec = root.at("spec");
    [("ingress", "from"), ("egress", "to")]
        .into_iter()
        .flat_map(|(direction, peers)| {
            let rules: Vec<At<'a>> = spec.at(direction).items().collect();
            rules.into_iter().flat_map(move |rule| rule.at(peers).items())
        })
        .map(|peer| peer.at("ipBlock"))
        .filter(At::is_set)
        .collect()
}

fn policy(errors: &mut ErrorList, spec: &At<'_>, known: &BTreeSet<&str>) {
    const TYPES: [&str; 2] = ["Ingress", "Egress"];
    label_selector(errors, &spec.at("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(direction).items() {
            rule.at("ports").items().for_each(|at| policy_port(errors, &at));
            rule.at(peers).items().for_each(|at| policy_peer(errors, &at, known));
        }
    }
    let types = spec.at("policyTypes");
    if types.len() > TYPES.len() {
        errors.push(types.invalid("may not specify more than two policyTypes"));
        return;
    }
    types.items().for_each(|at| supported(errors, &at, &TYPES));
}

fn policy_port(errors: &mut ErrorList, at: &At<'_>) {
    let (protocol, port, end) = (at.at("protocol"), at.at("port"), at.at("endPort"));
    if protocol.is_set() {
        supported(errors, &protocol, &["TCP", "UDP", "SCTP"]);
    }
    match port.value() {
        Value::Null => {
            if end.is_set() {
                errors.push(end.invalid("may not be specified when `port` is not specified"));
            }
        }
        Value::String(name) => {
            if end.is_set() {
                errors.push(end.invalid("may not be specified when `port` is non-numeric"));
            }
            invalid_each(errors, &port, names::port_name(name));
        }
        _ => {
            invalid_each(errors, &port, names::port_number(port.int()));
            if end.is_set() {
                if end.int() < port.int() {
                    // Upstream shows the port here.
                    let text = "must be greater than or equal to `port`";
                    errors.push(end.invalid_as(port.int(), text));
                }
                invalid_each(errors, &end, names::port_number(end.int()));
            }
        }
    }
}

fn policy_peer(errors: &mut ErrorList, at: &At<'_>, known: &BTreeSet<&str>) {
    let [pods, namespaces, block] =
        ["podSelector", "namespaceSelector", "ipBlock"].map(|f| at.at(f));
    label_selector(errors, &pods);
    label_selector(errors, &namespaces);
    if block.is_set() {
        ip_block(errors, &block, known);
    }
    let selectors = usize::from(pods.is_set()) + usize::from(namespaces.is_set());
    match (selectors, block.is_set()) {
        (0, false) => errors.push(at.required("must specify a peer")),
        (1.., true) => errors.push(at.forbidden("may not specify both ipBlock and another peer")),
        _ => {}
    }
}

/// Ranges that the policy had before are not looked at again.
fn ip_block(errors: &mut ErrorList, at: &At<'_>, known: &BTreeSet<&str>) {
    let cidr = at.at("cidr");
    if cidr.is_empty() {
        errors.push(cidr.required(""));
        return;
    }
    if !known.contains(cidr.str()) {
        check_legacy_cidr(errors, &cidr, cidr.str());
    }
    let Some(whole) = legacy_cidr(cidr.str()) else { return };
    for except in at.at("except").items() {
        if !known.contains(except.str()) {
            check_legacy_cidr(errors, &except, except.str());
        }
        let Some(part) = legacy_cidr(except.str()) else { continue };
        if !whole.contains(&part.network()) || whole.prefix_len() >= part.prefix_len() {
            errors.push(except.invalid("must be a strict subset of `cidr`"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_addresses_are_shortened() {
        let rule = |host: &str| json!({"host": host});
        let of = |hosts: &[&str]| {
            let rules: Vec<Value> = hosts.iter().map(|h| rule(h)).collect();
            super::hosts(&json!({"spec": {"rules": rules}}))
        };
        assert_eq!(of(&[]), "*");
        assert_eq!(of(&["a", "b"]), "a,b");
        assert_eq!(of(&["a", "b", "c", "d", "e"]), "a,b,c + 2 more...");
        let entries = json!([{"ip": "192.0.2.1"}, {"hostname": "a.example.com"}]);
        let ingress = json!({"status": {"loadBalancer": {"ingress": entries}}});
        assert_eq!(address(&ingress), "192.0.2.1,a.e...");
    }
}
