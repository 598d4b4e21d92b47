//! Endpoints and EndpointSlices.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::{self, set};
use apimachinery::{Value, names};

use super::cells::{age_column, column, list_with_more, named};
use super::check::{
    self, At, check_legacy_ip, immutable, invalid_each, legacy_ip, one_of, same, supported,
};
use super::row::Rows;
use super::{checked, default_absent, default_to, each, pods};
use crate::registry::{Context, Strategy};

/// The controller of Endpoints, and those of slices, as objects name them.
const ENDPOINTS: &str = "endpoint-controller";
const SLICES: [&str; 2] =
    ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("", "v1"), ("Endpoints", "endpoints"), |row| {
        let row = row.deprecated(
            "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        );
        row.prefix("services/endpoints").short(&["ep"]).strategy(Endpoints).columns(named([
            column("Endpoints", "string", "Addresses and ports.", |o, _| subsets_cell(o).into()),
            age_column(),
        ]))
    });
    rows.add(("discovery.k8s.io", "v1"), ("EndpointSlice", "endpointslices"), |row| {
        row.strategy(Slices).columns(named([
            column("AddressType", "string", "Family of the addresses.", |o, _| {
                object::str_at(o, &["addressType"]).into()
            }),
            column("Ports", "string", "Ports of all endpoints.", |o, _| ports_cell(o).into()),
            column("Endpoints", "string", "Addresses.", |o, _| addresses_cell(o).into()),
            age_column(),
        ]))
    });
}

struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in each(object, "subsets") {
            for port in each(subset, "ports") {
                default_to(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            root.at("subsets").items().for_each(|s| subset(errors, &s));
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        match same(&object["subsets"], &old["subsets"]) {
            // What was stored before a rule came stays as it is.
            true => ErrorList::new(),
            false => self.validate(context, object),
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        // The controller writes addresses in their canonical form.
        if object::label(object, "endpoints.kubernetes.io/managed-by") == Some(ENDPOINTS) {
            return warnings;
        }
        for subset in At::root(object).at("subsets").items() {
            for address in
                ["addresses", "notReadyAddresses"].iter().flat_map(|f| subset.at(f).items())
            {
                pods::ip_warning(&mut warnings, &address.at("ip"));
            }
        }
        warnings
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn subset(errors: &mut ErrorList, at: &At<'_>) {
    let lists = ["addresses", "notReadyAddresses"].map(|f| at.at(f));
    if lists.iter().all(At::is_empty) {
        errors.push(at.required("must specify `addresses` or `notReadyAddresses`"));
    }
    for address in lists.iter().flat_map(At::items) {
        check_legacy_ip(errors, &address.at("ip"));
        let host = address.at("hostname");
        if !host.is_empty() {
            invalid_each(errors, &host, names::dns1123_label(host.str()));
        }
        let node = address.at("nodeName");
        if node.is_set() {
            invalid_each(errors, &node, names::dns1123_subdomain(node.str()));
        }
        endpoint_ip(errors, &address.at("ip"));
    }
    let ports = at.at("ports");
    for port in ports.items() {
        let (name, number) = (port.at("name"), port.at("port"));
        if !name.is_empty() {
            invalid_each(errors, &name, names::dns1123_label(name.str()));
        } else if ports.len() > 1 {
            errors.push(name.required(""));
        }
        let messages = names::port_number(number.int());
        errors.extend(messages.into_iter().map(|m| number.invalid_as(number.int(), m)));
        one_of(errors, &port.at("protocol"), &PROTOCOLS);
        app_protocol(errors, &port);
    }
}

fn app_protocol(errors: &mut ErrorList, port: &At<'_>) {
    let protocol = port.at("appProtocol");
    if protocol.is_set() {
        invalid_each(errors, &protocol, names::qualified_name(protocol.str()));
    }
}

/// An address that a service may send to: of one machine, reachable from others.
pub fn endpoint_ip(errors: &mut ErrorList, at: &At<'_>) {
    let text = at.str();
    let mut say = |message: &str| errors.push(at.invalid_as(text, message));
    let Some(ip) = legacy_ip(text) else {
        return say("must be a valid IP address");
    };
    if ip.is_unspecified() {
        say(&format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        say("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (unicast, multicast) = match ip {
        std::net::IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(ip) => {
            (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02)
        }
    };
    if unicast {
        say("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        say("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

struct Slices;

impl Strategy for Slices {
    fn default(&self, object: &mut Value) {
        for port in each(object, "ports") {
            default_absent(port, "name", "");
            default_absent(port, "protocol", "TCP");
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let bare = |o: &Value| {
            let mut o = o.clone();
            let labels = object::get(&o, &["metadata", "labels"]).cloned();
            o["metadata"] = labels.unwrap_or_default();
            o
        };
        let changed = !same(&bare(object), &bare(old));
        set(object, &["metadata", "generation"], object::generation(old) + i64::from(changed));
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| slice(errors, root, true))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let unchanged = same(&object["endpoints"], &old["endpoints"]);
        checked(object, |root, errors| {
            slice(errors, root, !unchanged);
            immutable(errors, &root.at("addressType"), &old["addressType"]);
        })
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none() && object::str_at(object, &["addressType"]) == "FQDN" {
            warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        // Controllers write addresses in their canonical form.
        let manager = object::label(object, "endpointslice.kubernetes.io/managed-by");
        if manager.is_some_and(|manager| SLICES.contains(&manager)) {
            return warnings;
        }
        for endpoint in At::root(object).at("endpoints").items() {
            endpoint.at("addresses").items().for_each(|at| pods::ip_warning(&mut warnings, &at));
        }
        warnings
    }
}

fn slice(errors: &mut ErrorList, root: &At<'_>, check_endpoints: bool) {
    let kind = root.at("addressType");
    one_of(errors, &kind, &["FQDN", "IPv4", "IPv6"]);
    slice_ports(errors, &root.at("ports"));
    let endpoints = root.at("endpoints");
    if !check_endpoints {
        return;
    }
    if endpoints.len() > 1000 {
        errors.push(FieldError::too_many(endpoints.path(), endpoints.len(), 1000));
        return;
    }
    for endpoint in endpoints.items() {
        addresses(errors, &endpoint.at("addresses"), kind.str());
        let (node, host) = (endpoint.at("nodeName"), endpoint.at("hostname"));
        if node.is_set() {
            invalid_each(errors, &node, names::dns1123_subdomain(node.str()));
        }
        check::labels(errors, &endpoint.at("deprecatedTopology"));
        if host.is_set() {
            invalid_each(errors, &host, names::dns1123_label(host.str()));
        }
        hints(errors, &endpoint.at("hints"));
    }
}

fn slice_ports(errors: &mut ErrorList, at: &At<'_>) {
    if at.len() > 20000 {
        errors.push(FieldError::too_many(at.path(), at.len(), 20000));
        return;
    }
    let mut seen = check::Seen::default();
    for port in at.items() {
        let name = port.at("name");
        if !name.is_empty() {
            invalid_each(errors, &name, names::dns1123_label(name.str()));
        }
        if !seen.insert(name.str()) {
            errors.push(FieldError::duplicate(name.path(), name.str()));
        }
        let protocol = port.at("protocol");
        if protocol.is_set() {
            supported(errors, &protocol, &PROTOCOLS);
        } else {
            errors.push(protocol.required(""));
        }
        app_protocol(errors, &port);
    }
}

fn addresses(errors: &mut ErrorList, at: &At<'_>, kind: &str) {
    if at.is_empty() {
        errors.push(at.required("must contain at least 1 address"));
    } else if at.len() > 100 {
        errors.push(FieldError::too_many(at.path(), at.len(), 100));
    }
    for address in at.items() {
        if kind == "FQDN" {
            let name = address.str().strip_suffix('.').unwrap_or(address.str());
            invalid_each(errors, &address, names::dns1123_subdomain(name));
            if !name.contains('.') {
                errors
                    .push(address.invalid(
                        "should be a domain with at least two segments separated by dots",
                    ));
            }
            continue;
        }
        if kind == "IPv6" {
            let messages = names::ip(address.str());
            if !messages.is_empty() {
                invalid_each(errors, &address, messages);
                continue;
            }
        } else if kind != "IPv4" || !check_legacy_ip(errors, &address) {
            continue;
        }
        let six = legacy_ip(address.str()).is_some_and(|ip| ip.is_ipv6());
        if six != (kind == "IPv6") {
            errors.push(at.invalid_as(address.str(), format!("must be an {kind} address")));
        }
        endpoint_ip(errors, &address);
    }
}

fn hints(errors: &mut ErrorList, at: &At<'_>) {
    for (field, valid) in [
        ("forZones", names::label_value as fn(&str) -> Vec<String>),
        ("forNodes", names::dns1123_subdomain),
    ] {
        let list = at.at(field);
        if list.len() > 8 {
            errors.push(FieldError::too_many(list.path(), list.len(), 8));
            return;
        }
        let mut seen = check::Seen::default();
        for name in list.items().map(|h| h.at("name")) {
            if !seen.insert(name.str()) {
                errors.push(name.duplicate());
            }
            invalid_each(errors, &name, valid(name.str()));
        }
    }
}

fn subsets_cell(endpoints: &Value) -> String {
    let subsets = object::list_at(endpoints, &["subsets"]);
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut shown = Vec::new();
    let mut count = 0;
    for subset in subsets {
        let ips: Vec<&str> = object::list_at(subset, &["addresses"])
            .iter()
            .map(|a| object::str_at(a, &["ip"]))
            .collect();
        let ports = object::list_at(subset, &["ports"]);
        let mut add = |port: Option<i64>| {
            count += ips.len();
            for ip in ips.iter().take(3_usize.saturating_sub(shown.len())) {
                shown.push(match port {
                    None => (*ip).to_owned(),
                    Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
                    Some(port) => format!("{ip}:{port}"),
                });
            }
        };
        if ports.is_empty() {
            add(None);
        }
        ports.iter().for_each(|p| add(Some(object::int_at(p, &["port"]).unwrap_or(0))));
    }
    list_with_more(&shown, count, 3)
}

fn unset_or(text: String) -> String {
    if text.is_empty() { "<unset>".to_owned() } else { text }
}

fn ports_cell(slice: &Value) -> String {
    let ports = object::list_at(slice, &["ports"]);
    let texts: Vec<String> = ports
        .iter()
        .take(3)
        .map(|p| match (object::int_at(p, &["port"]), p.get("name").and_then(Value::as_str)) {
            (Some(port), _) => port.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    unset_or(list_with_more(&texts, ports.len(), 3))
}

fn addresses_cell(slice: &Value) -> String {
    let all: Vec<String> = object::list_at(slice, &["endpoints"])
        .iter()
        .flat_map(|e| object::list_at(e, &["addresses"]))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    unset_or(list_with_more(&all[..all.len().min(3)], all.len(), 3))
}
