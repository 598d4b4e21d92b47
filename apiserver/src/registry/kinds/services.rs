//! Services.

mod columns;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::json;

use super::check::{
    At, Seen, check_legacy_cidr, check_legacy_ip, invalid_each, labels, legacy_ip, one_of,
    port_or_name, same, supported_if_set,
};
use super::endpoints::endpoint_ip;
use super::row::Rows;
use super::{
    Deps, STATUS, checked, child, default_absent, default_to, each, keep, label_1035_name, pods,
    selectable,
};
use crate::registry::allocate::Allocator;
use crate::registry::{Connect, Context, Strategy};

pub fn rows(rows: &mut Rows<'_>, deps: &Deps) {
    rows.add(("", "v1"), ("Service", "services"), |row| {
        row.prefix("services/specs")
            .short(&["svc"])
            .in_all()
            .strategy(Services { allocator: deps.services.clone() })
            .status(Status)
            .connect("proxy", Connect::Proxy)
            .columns(columns::columns())
            .fields(selectable! {
                "spec.clusterIP" => ["spec", "clusterIP"],
                "spec.type" => ["spec", "type"],
            })
    });
}

fn kind(service: &Value) -> &str {
    object::str_at(service, &["spec", "type"])
}

/// Services that have an address of the cluster, or none on purpose.
fn needs_cluster_ip(service: &Value) -> bool {
    kind(service) != "ExternalName"
}

/// Types that have node ports.
pub fn needs_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

/// Load balancers that spare nodes without endpoints ask each node on a port of its own.
pub fn needs_health_check(service: &Value) -> bool {
    kind(service) == "LoadBalancer"
        && object::str_at(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn externally_accessible(service: &Value) -> bool {
    needs_node_ports(service)
        || (kind(service) == "ClusterIP"
            && !object::list_at(service, &["spec", "externalIPs"]).is_empty())
}

/// A service without a cluster address of its own: `clusterIP: None`.
pub fn is_headless(service: &Value) -> bool {
    let ips = object::list_at(service, &["spec", "clusterIPs"]);
    match ips.first() {
        Some(first) => ips.len() == 1 && first == "None",
        None => object::str_at(service, &["spec", "clusterIP"]) == "None",
    }
}

/// `clusterIP` is the first of `clusterIPs`, whichever of them the client knows of.
pub fn normalize_cluster_ips(service: &mut Value, old: Option<&Value>) {
    let one = |s: &Value| object::str_at(s, &["spec", "clusterIP"]).to_owned();
    let all = |s: &Value| object::get(s, &["spec", "clusterIPs"]).cloned();
    let count = |s: &Value| object::list_at(s, &["spec", "clusterIPs"]).len();
    let new = one(service);
    let Some(old) = old else {
        if !new.is_empty() && count(service) == 0 {
            set(service, &["spec", "clusterIPs"], vec![new]);
        }
        return;
    };
    if count(old) > 0 && count(service) == 0 && one(old) == new {
        keep(service, old, &["spec", "clusterIPs"]);
    }
    let same_list = same(&all(old).unwrap_or_default(), &all(service).unwrap_or_default());
    if one(old) != new && same_list {
        if new.is_empty() {
            object::remove(service, &["spec", "clusterIPs"]);
        } else {
            set(service, &["spec", "clusterIPs"], vec![new]);
        }
    }
}

/// What an update leaves out of what was granted stays granted.
pub fn fill_from_old(service: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(service) {
        for field in ["clusterIP", "clusterIPs"] {
            if object::get(service, &["spec", field]).is_none_or(super::check::is_zero) {
                keep(service, old, &["spec", field]);
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(service) {
        let ports = |s: &Value| object::list_at(s, &["spec", "ports"]).to_vec();
        let node_port = |p: &Value| object::int_at(p, &["nodePort"]).unwrap_or(0);
        let olds = ports(old);
        let used: Vec<i64> = ports(service)
            .iter()
            .map(node_port)
            .filter(|n| *n != 0 && olds.iter().any(|o| node_port(o) == *n))
            .collect();
        for port in each(child(service, "spec"), "ports") {
            let name = object::str_at(port, &["name"]);
            let was = olds.iter().rfind(|o| object::str_at(o, &["name"]) == name);
            let was = was.map(node_port).filter(|n| *n != 0 && !used.contains(n));
            if node_port(port) == 0
                && let Some(was) = was
            {
                set(port, &["nodePort"], was);
            }
        }
    }
    if needs_health_check(old) && needs_health_check(service) {
        let path = ["spec", "healthCheckNodePort"];
        if object::int_at(service, &path).unwrap_or(0) == 0 {
            keep(service, old, &path);
        }
    }
}

struct Services {
    allocator: Option<std::sync::Arc<dyn Allocator>>,
}

fn default(object: &mut Value) {
    let accessible = externally_accessible(object)
        || (kind(object).is_empty()
            && !object::list_at(object, &["spec", "externalIPs"]).is_empty());
    let spec = child(object, "spec");
    default_to(spec, "sessionAffinity", "None");
    match object::str_at(spec, &["sessionAffinity"]) {
        "None" => {
            object::remove(spec, &["sessionAffinityConfig"]);
        }
        "ClientIP" => {
            let path = ["sessionAffinityConfig", "clientIP", "timeoutSeconds"];
            if object::int_at(spec, &path).is_none() {
                set(
                    spec,
                    &["sessionAffinityConfig"],
                    json!({"clientIP": {"timeoutSeconds": 10800}}),
                );
            }
        }
        _ => {}
    }
    default_to(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        default_to(port, "protocol", "TCP");
        let number = port["port"].clone();
        if port.get("targetPort").is_none_or(super::check::is_zero) && !number.is_null() {
            set(port, &["targetPort"], number);
        }
    }
    let kind = object::str_at(spec, &["type"]).to_owned();
    if accessible {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        default_absent(spec, "internalTrafficPolicy", "Cluster");
    } else if kind == "ExternalName" {
        object::remove(spec, &["internalTrafficPolicy"]);
    }
    if kind == "LoadBalancer" {
        default_absent(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = object.get_mut("status").and_then(|s| s.get_mut("loadBalancer")) {
            for ingress in each(balancer, "ingress") {
                if !object::str_at(ingress, &["ip"]).is_empty() {
                    default_absent(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}

impl Strategy for Services {
    fn returns_deleted(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({"loadBalancer": {}}));
        normalize_cluster_ips(object, None);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
        fill_from_old(object, old);
        normalize_cluster_ips(object, Some(old));
        drop_with_type(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, validate)
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            addresses_stay(errors, root, old);
            families_stay(errors, root, old);
            class_stays(errors, root, old);
            if needs_health_check(old) && needs_health_check(object) {
                let port = root.down(&["spec", "healthCheckNodePort"]);
                if port.int() != object::int_at(old, &["spec", "healthCheckNodePort"]).unwrap_or(0)
                {
                    errors.push(port.forbidden("field is immutable"));
                }
            }
            validate(root, errors);
        })
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        label_1035_name(name, prefix)
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        warnings(object)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }

    fn allocator(&self) -> Option<&dyn Allocator> {
        self.allocator.as_deref()
    }
}

/// A change of type drops what the new type has no use for, where the client left it as it was.
fn drop_with_type(service: &mut Value, old: &Value) {
    let of = |s: &Value, field: &str| object::get(s, &["spec", field]).cloned().unwrap_or_default();
    let unchanged = |s: &Value, field: &str| same(&of(s, field), &of(old, field));
    if needs_cluster_ip(old) && !needs_cluster_ip(service) {
        if unchanged(service, "clusterIP") && unchanged(service, "clusterIPs") {
            object::remove(service, &["spec", "clusterIP"]);
            object::remove(service, &["spec", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if unchanged(service, field) {
                object::remove(service, &["spec", field]);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(service) {
        let node_port = |p: &Value| object::int_at(p, &["nodePort"]).unwrap_or(0);
        let olds: Vec<i64> =
            object::list_at(old, &["spec", "ports"]).iter().map(node_port).collect();
        let news: Vec<i64> =
            object::list_at(service, &["spec", "ports"]).iter().map(node_port).collect();
        if news.iter().all(|n| *n == 0 || olds.contains(n)) {
            for port in each(child(service, "spec"), "ports") {
                object::remove(port, &["nodePort"]);
            }
        }
    }
    let drop = |service: &mut Value, had: bool, has: bool, field: &str| {
        if had && !has && unchanged(service, field) {
            object::remove(service, &["spec", field]);
        }
    };
    let balancer = |s: &Value| kind(s) == "LoadBalancer";
    let (had, has) = (needs_health_check(old), needs_health_check(service));
    drop(service, had, has, "healthCheckNodePort");
    let (had, has) = (balancer(old), balancer(service));
    drop(service, had, has, "allocateLoadBalancerNodePorts");
    drop(service, had, has, "loadBalancerClass");
    let (had, has) = (externally_accessible(old), externally_accessible(service));
    drop(service, had, has, "externalTrafficPolicy");
    if !balancer(service) {
        set(service, &["status", "loadBalancer"], json!({}));
    }
}

struct Status;

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let ingress = root.down(&["status", "loadBalancer", "ingress"]);
            if !ingress.is_empty() && kind(object) != "LoadBalancer" {
                errors
                    .push(ingress.forbidden("may only be used when `spec.type` is 'LoadBalancer'"));
                return;
            }
            ingress.items().for_each(|i| load_balancer_ingress(errors, &i));
        })
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        pods::load_balancer_warnings(object)
    }
}

fn load_balancer_ingress(errors: &mut ErrorList, at: &At<'_>) {
    let (ip, mode, host) = (at.at("ip"), at.at("ipMode"), at.at("hostname"));
    if !ip.is_empty() {
        check_legacy_ip(errors, &ip);
        if !mode.is_set() {
            errors.push(mode.required("must be specified when `ip` is set"));
        }
    } else if mode.is_set() {
        errors.push(mode.forbidden("may not be specified when `ip` is not set"));
    }
    supported_if_set(errors, &mode, &["Proxy", "VIP"]);
    if !host.is_empty() {
        invalid_each(errors, &host, names::dns1123_subdomain(host.str()));
        if legacy_ip(host.str()).is_some() {
            errors.push(host.invalid("must be a DNS name, not an IP address"));
        }
    }
}

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

fn validate(root: &At<'_>, errors: &mut ErrorList) {
    let service = root.value();
    let spec = root.at("spec");
    topology_annotations(errors, root);
    let ports = spec.at("ports");
    let headless = is_headless(service);
    if ports.is_empty() && !headless && kind(service) != "ExternalName" {
        errors.push(ports.required(""));
    }
    by_type(errors, &spec, service);
    let mut port_names = Seen::default();
    for port in ports.items() {
        service_port(errors, &port, ports.len() > 1, &mut port_names);
    }
    labels(errors, &spec.at("selector"));
    session_affinity(errors, &spec);
    errors.extend(cluster_ip_errors(service));
    for ip in spec.at("externalIPs").items() {
        if check_legacy_ip(errors, &ip) {
            endpoint_ip(errors, &ip);
        }
    }
    one_of(errors, &spec.at("type"), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    unique_ports(errors, &spec);
    source_ranges(errors, root);
    let allocate = spec.at("allocateLoadBalancerNodePorts");
    if allocate.is_set() && kind(service) != "LoadBalancer" {
        errors.push(allocate.forbidden(ONLY_BALANCER));
    }
    if !allocate.is_set() && kind(service) == "LoadBalancer" {
        errors.push(root.at("allocateLoadBalancerNodePorts").required(""));
    }
    balancer_class(errors, &spec);
    traffic_policies(errors, &spec, service);
}

const ONLY_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

fn topology_annotations(errors: &mut ErrorList, root: &At<'_>) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    let of = |key| object::annotation(root.value(), key);
    if let (Some(hints), Some(mode)) = (of(HINTS), of(MODE))
        && hints != mode
    {
        let path = Path::new("metadata").child("annotations").key(MODE);
        let text = format!("must match annotations[{HINTS}] when both are specified");
        errors.push(FieldError::invalid(&path, mode, text));
    }
}

fn by_type(errors: &mut ErrorList, spec: &At<'_>, service: &Value) {
    match kind(service) {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(service) => {
            let path = spec.path().child("clusterIPs").index(0);
            let text = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(&path, "None", text));
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !spec.at(field).is_zero() {
                    errors
                        .push(spec.at(field).forbidden("may not be set for ExternalName services"));
                }
            }
            let name = spec.at("externalName");
            match name.str().strip_suffix('.').unwrap_or(name.str()) {
                "" => errors.push(name.required("")),
                bare => errors.extend(
                    names::dns1123_subdomain(bare).into_iter().map(|m| name.invalid_as(bare, m)),
                ),
            }
        }
        _ => {}
    }
}

fn service_port(errors: &mut ErrorList, port: &At<'_>, named: bool, seen: &mut Seen) {
    let (name, number) = (port.at("name"), port.at("port"));
    if !name.is_empty() {
        invalid_each(errors, &name, names::dns1123_label(name.str()));
        if !seen.insert(name.str()) {
            errors.push(name.duplicate());
        }
    } else if named {
        errors.push(name.required(""));
    }
    let messages = names::port_number(number.int());
    errors.extend(messages.into_iter().map(|m| number.invalid_as(number.int(), m)));
    one_of(errors, &port.at("protocol"), &PROTOCOLS);
    port_or_name(errors, &port.at("targetPort"));
    let protocol = port.at("appProtocol");
    if protocol.is_set() {
        invalid_each(errors, &protocol, names::qualified_name(protocol.str()));
    }
}

fn session_affinity(errors: &mut ErrorList, spec: &At<'_>) {
    let (affinity, config) = (spec.at("sessionAffinity"), spec.at("sessionAffinityConfig"));
    one_of(errors, &affinity, &["ClientIP", "None"]);
    match affinity.str() {
        "ClientIP" => {
            const TEXT: &str = "when session affinity type is ClientIP";
            let client = config.at("clientIP");
            let timeout = client.at("timeoutSeconds");
            for level in [&config, &client, &timeout] {
                if !level.is_set() {
                    errors.push(level.required(TEXT));
                    return;
                }
            }
            if !(1..=86400).contains(&timeout.int()) {
                errors.push(timeout.invalid("must be greater than 0 and less than 86400"));
            }
        }
        "None" if config.is_set() => {
            errors.push(config.forbidden("must not be set when session affinity is None"));
        }
        _ => {}
    }
}

/// Rules of `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` together.
pub fn cluster_ip_errors(service: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if kind(service) == "ExternalName" {
        return errors;
    }
    let spec = At::root(service).at("spec");
    let [ips, families] = ["clusterIPs", "ipFamilies"].map(|f| spec.at(f));
    match (spec.at("clusterIP").str(), ips.strings().next()) {
        ("", None) => {}
        ("", Some(_)) => {
            errors.push(ips.invalid("must be empty when `clusterIP` is not specified"));
        }
        (_, None) => errors.push(ips.required("")),
        (one, Some(first)) if one != first => {
            errors.push(ips.invalid("first value must match `clusterIP`"));
        }
        _ => {}
    }
    let mut seen = Seen::default();
    for family in families.items() {
        supported_if_set(&mut errors, &family, &["IPv4", "IPv6"]);
        if !seen.insert(family.str()) {
            errors.push(family.duplicate());
        }
    }
    supported_if_set(
        &mut errors,
        &spec.at("ipFamilyPolicy"),
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    let mut valid = true;
    for (i, ip) in ips.items().enumerate() {
        if i == 0 && ip.str() == "None" {
            if ips.len() > 1 {
                valid = false;
                errors.push(ips.invalid("'None' must be the first and only value"));
            }
            continue;
        }
        valid &= check_legacy_ip(&mut errors, &ip);
    }
    if ips.len() > 2 {
        errors.push(ips.invalid("may only hold up to 2 values"));
    }
    if valid {
        families_match(&mut errors, &ips, &families);
    }
    errors
}

fn families_match(errors: &mut ErrorList, ips: &At<'_>, families: &At<'_>) {
    let six: Vec<bool> =
        ips.strings().map(|ip| legacy_ip(ip).is_some_and(|ip| ip.is_ipv6())).collect();
    if six.len() > 1 && !super::check::is_dual_stack(&six) {
        errors.push(ips.invalid("may specify no more than one IP for each IP family"));
    }
    if ips.strings().next() == Some("None") {
        return;
    }
    for (i, (ip, family)) in ips.items().zip(families.strings()).enumerate() {
        if matches!(family, "IPv4" | "IPv6") && six[i] != (family == "IPv6") {
            let text = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.push(ip.invalid(text));
        }
    }
}

fn unique_ports(errors: &mut ErrorList, spec: &At<'_>) {
    let ports = spec.at("ports");
    if spec.at("type").str() == "ClusterIP" {
        for port in ports.items().map(|p| p.at("nodePort")).filter(|p| p.int() != 0) {
            errors.push(port.forbidden("may not be used when `type` is 'ClusterIP'"));
        }
    }
    let mut seen = Seen::default();
    for port in ports.items().filter(|p| p.at("nodePort").int() != 0) {
        let key = format!("{}/{}", port.at("protocol").str(), port.at("nodePort").int());
        if !seen.insert(key) {
            errors.push(port.at("nodePort").duplicate());
        }
    }
    let mut seen = Seen::default();
    for port in ports.items() {
        let (protocol, number) = (port.at("protocol").str(), port.at("port").int());
        if !seen.insert(format!("{protocol}/{number}")) {
            let key = json!({"protocol": protocol, "port": number});
            let error = FieldError::duplicate(port.path(), key);
            errors.push(error.of_type("io.k8s.api.core.v1.ServicePort"));
        }
    }
}

fn source_ranges(errors: &mut ErrorList, root: &At<'_>) {
    const KEY: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let spec = root.at("spec");
    let balancer = spec.at("type").str() == "LoadBalancer";
    let ranges = spec.at("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let at = At::new(ranges.value(), spec.path().child("LoadBalancerSourceRanges"));
        if !balancer {
            errors.push(at.forbidden(ONLY_BALANCER));
        }
        for range in at.items() {
            check_legacy_cidr(errors, &range, range.str().trim());
        }
    } else if let Some(text) = object::annotation(root.value(), KEY) {
        let at = At::new(&Value::Null, root.down(&["metadata", "annotations"]).path().key(KEY));
        if !balancer {
            errors.push(at.forbidden(ONLY_BALANCER));
        }
        for range in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
            check_legacy_cidr(errors, &at, range);
        }
    }
}

fn balancer_class(errors: &mut ErrorList, spec: &At<'_>) {
    let class = spec.at("loadBalancerClass");
    if !class.is_set() {
        return;
    }
    if spec.at("type").str() == "LoadBalancer" {
        invalid_each(errors, &class, names::qualified_name(class.str()));
    } else {
        errors.push(class.forbidden(ONLY_BALANCER));
    }
}

fn traffic_policies(errors: &mut ErrorList, spec: &At<'_>, service: &Value) {
    let external = spec.at("externalTrafficPolicy");
    if externally_accessible(service) {
        one_of(errors, &external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errors.push(external.invalid("may only be set for externally-accessible services"));
    }
    let port = spec.at("healthCheckNodePort");
    if !needs_health_check(service) {
        if port.int() != 0 {
            errors.push(port.invalid(
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is \
                 'Local'",
            ));
        }
    } else if port.int() == 0 {
        errors.push(port.required(""));
    } else {
        invalid_each(errors, &port, names::port_number(port.int()));
    }
    let internal = spec.at("internalTrafficPolicy");
    if !internal.is_set() && matches!(kind(service), "NodePort" | "LoadBalancer" | "ClusterIP") {
        errors.push(internal.required(""));
    }
    supported_if_set(errors, &internal, &["Cluster", "Local"]);
    supported_if_set(
        errors,
        &spec.at("trafficDistribution"),
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
    );
}

fn addresses_stay(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let service = root.value();
    if !needs_cluster_ip(service) || !needs_cluster_ip(old) {
        return;
    }
    if is_headless(service) && is_headless(old) {
        return;
    }
    const TEXT: &str = "may not change once set";
    let new = root.down(&["spec", "clusterIPs"]);
    let was = At::new(&old["spec"]["clusterIPs"], new.path().clone());
    let changed = |i: usize| At::new(new.value(), new.path().index(i)).invalid(TEXT);
    if new.len() == was.len() {
        let pairs = new.strings().zip(was.strings()).enumerate();
        errors.extend(pairs.filter(|(_, (n, o))| n != o).map(|(i, _)| changed(i)));
        return;
    }
    if new.is_empty() {
        let first = At::new(new.value(), new.path().index(0));
        errors.push(first.invalid_as(json!([]), "primary clusterIP can not be unset"));
    } else if !was.is_empty() && new.strings().next() != was.strings().next() {
        errors.push(changed(0));
    }
    let policy = root.down(&["spec", "ipFamilyPolicy"]);
    if was.len() > new.len() && new.len() == 1 && policy.str() != "SingleStack" {
        errors.push(
            policy.invalid("must be set to 'SingleStack' when releasing the secondary clusterIP"),
        );
    }
}

fn families_stay(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let service = root.value();
    if !needs_cluster_ip(service) || !needs_cluster_ip(old) {
        return;
    }
    if is_headless(service) || is_headless(old) {
        return;
    }
    const TEXT: &str = "may not change once set";
    let new = root.down(&["spec", "ipFamilies"]);
    let was = At::new(&old["spec"]["ipFamilies"], new.path().clone());
    let at = At::new(new.value(), new.path().index(0));
    if new.len() == was.len() {
        let changed = new.strings().zip(was.strings()).filter(|(n, o)| n != o);
        errors.extend(changed.map(|_| at.invalid(TEXT)));
        return;
    }
    let policy = root.down(&["spec", "ipFamilyPolicy"]);
    if was.len() > new.len() {
        if root.down(&["spec", "clusterIPs"]).is_empty() {
            errors.push(at.invalid("primary ipFamily can not be unset"));
        }
        if new.len() == 1 && policy.str() != "SingleStack" {
            errors.push(
                policy
                    .invalid("must be set to 'SingleStack' when releasing the secondary ipFamily"),
            );
        }
    }
    if !new.is_empty() && !was.is_empty() && new.strings().next() != was.strings().next() {
        let ips = root.down(&["spec", "clusterIPs"]);
        errors.push(at.invalid_as(ips.value().clone(), TEXT));
    }
}

fn class_stays(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let class = root.down(&["spec", "loadBalancerClass"]);
    let both = kind(root.value()) == "LoadBalancer" && kind(old) == "LoadBalancer";
    if both && !same(class.value(), &old["spec"]["loadBalancerClass"]) {
        errors.push(class.invalid("may not change once set"));
    }
    balancer_class(errors, &root.at("spec"));
}

fn warnings(service: &Value) -> Vec<String> {
    let spec = At::root(service).at("spec");
    let mut list = Vec::new();
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    if object::annotation(service, HINTS).is_some() {
        list.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode \
             instead"
        ));
    }
    if !matches!(spec.at("clusterIP").str(), "" | "None") {
        spec.at("clusterIPs").items().for_each(|at| pods::ip_warning(&mut list, &at));
    }
    if kind(service) == "ClusterIP" && spec.at("clusterIP").str() == "None" {
        if !spec.at("loadBalancerIP").is_empty() {
            list.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if !spec.at("externalIPs").is_empty() {
            list.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec.at("sessionAffinity").str() != "None" {
            list.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    spec.at("externalIPs").items().for_each(|at| pods::ip_warning(&mut list, &at));
    pods::ip_warning(&mut list, &spec.at("loadBalancerIP"));
    let ranges = spec.at("loadBalancerSourceRanges");
    ranges.items().for_each(|at| pods::cidr_warning(&mut list, &at));
    if kind(service) == "ExternalName" && !spec.at("externalIPs").is_empty() {
        list.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind(service) != "ExternalName" && !spec.at("externalName").is_empty() {
        list.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.at("trafficDistribution").str() == "PreferClose" {
        list.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .to_owned(),
        );
    }
    list
}
