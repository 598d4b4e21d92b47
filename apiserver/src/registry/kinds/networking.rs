//! IPAddresses and ServiceCIDRs: which service addresses there are, and whose.

use apimachinery::field::ErrorList;
use apimachinery::object;
use apimachinery::{Value, names};

use super::cells::{age_column, column, named};
use super::check::{At, immutable, invalid_each, legacy_cidr};
use super::row::Rows;
use super::{checked, keep};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    const GROUP: (&str, &str) = ("networking.k8s.io", "v1");
    rows.add(GROUP, ("IPAddress", "ipaddresses"), |row| {
        row.cluster().short(&["ip"]).strategy(IpAddresses).columns(named([
            column("ParentRef", "string", "What has the address.", |o, _| parent(o).into()),
            age_column(),
        ]))
    });
    rows.add(GROUP, ("ServiceCIDR", "servicecidrs"), |row| {
        // Upstream leaves nothing out of who manages these: it does so for a group `networking`.
        row.cluster().strategy(ServiceCidrs).part("status", ServiceCidrStatus, &[]).columns(named(
            [
                column("CIDRs", "string", "Ranges of service addresses.", |o, _| {
                    let cidrs = object::list_at(o, &["spec", "cidrs"]);
                    cidrs.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into()
                }),
                age_column(),
            ],
        ))
    });
}

fn parent(address: &Value) -> String {
    let of = |field| object::str_at(address, &["spec", "parentRef", field]);
    if of("name").is_empty() {
        return "<none>".to_owned();
    }
    let mut text = of("resource").to_lowercase();
    if !of("group").is_empty() {
        text = format!("{text}.{}", of("group").to_lowercase());
    }
    if !of("namespace").is_empty() {
        text = format!("{text}/{}", of("namespace"));
    }
    format!("{text}/{}", of("name"))
}

struct IpAddresses;

impl Strategy for IpAddresses {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let at = root.down(&["spec", "parentRef"]);
            if !at.is_set() {
                errors.push(at.required(""));
                return;
            }
            let group = at.at("group");
            if !group.is_empty() {
                invalid_each(errors, &group, names::dns1123_subdomain(group.str()));
            }
            for field in ["resource", "name"].map(|f| at.at(f)) {
                match field.str() {
                    "" => errors.push(field.required("")),
                    text => invalid_each(errors, &field, names::path_segment(text)),
                }
            }
            let namespace = at.at("namespace");
            if !namespace.is_empty() {
                invalid_each(errors, &namespace, names::path_segment(namespace.str()));
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            immutable(errors, &root.down(&["spec", "parentRef"]), &old["spec"]["parentRef"]);
        })
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        match name.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.to_string() == name => Vec::new(),
            Ok(ip) => vec![format!("must be in canonical form (\"{ip}\")")],
            Err(_) => names::ip(name),
        }
    }
}

struct ServiceCidrs;

impl Strategy for ServiceCidrs {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| cidrs(errors, root))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            const TEXT: &str = "field is immutable";
            let new = root.down(&["spec", "cidrs"]);
            let old = At::new(&old["spec"]["cidrs"], new.path().clone());
            let changed = new.items().zip(old.items()).filter(|(n, o)| n.str() != o.str());
            match (old.len(), new.len()) {
                (o, n) if o == n => errors.extend(changed.map(|(n, _)| n.invalid(TEXT))),
                (1, 2) => {
                    errors.extend(changed.map(|(n, _)| n.invalid(TEXT)));
                    cidrs(errors, root);
                }
                _ => errors.push(new.invalid(TEXT)),
            }
        })
    }
}

fn cidrs(errors: &mut ErrorList, root: &At<'_>) {
    let list = root.down(&["spec", "cidrs"]);
    match list.len() {
        0 => errors.push(list.required("at least one CIDR required")),
        1 | 2 => {}
        _ => {
            errors.push(root.at("spec").invalid("may only hold up to 2 values"));
            return;
        }
    }
    for cidr in list.items() {
        invalid_each(errors, &cidr, names::strict_cidr(cidr.str(), false));
    }
    let six: Vec<bool> =
        list.strings().filter_map(legacy_cidr).map(|c| matches!(c, ipnet::IpNet::V6(_))).collect();
    if six.len() == 2 && six[0] == six[1] {
        errors.push(list.invalid(
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and \
             2001:db8::/64",
        ));
    }
}

struct ServiceCidrStatus;

impl Strategy for ServiceCidrStatus {
    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, _: &Value, _: &Value) -> ErrorList {
        ErrorList::new()
    }
}
