//! What tables show of services.

use apimachinery::{Value, object};

use super::kind;
use crate::registry::Column;
use crate::registry::kinds::cells::{self, age_column, column, named, wide};

/// The columns of services.
pub fn columns() -> Vec<Column> {
    named([
        column("Type", "string", "How the service is reached.", |s, _| kind(s).into()),
        column(
            "Cluster-IP",
            "string",
            "Its address in the cluster.",
            |s, _| match object::list_at(s, &["spec", "clusterIPs"]).first() {
                Some(ip) => ip.clone(),
                None => "<none>".into(),
            },
        ),
        column("External-IP", "string", "Its addresses outside.", |s, _| external_ip(s).into()),
        column("Port(s)", "string", "Its ports, and those on nodes.", |s, _| {
            cells::or_none(&ports_cell(s))
        }),
        age_column(),
        wide("Selector", "string", "Labels of its pods.", |s, _| {
            cells::labels(object::get(s, &["spec", "selector"])).into()
        }),
    ])
}

fn external_ip(service: &Value) -> String {
    let list = |path: &[&str]| -> Vec<String> {
        let list = object::list_at(service, path);
        list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let own = list(&["spec", "externalIPs"]);
    match kind(service) {
        "ClusterIP" | "NodePort" if own.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let mut ips: Vec<&str> =
                object::list_at(service, &["status", "loadBalancer", "ingress"])
                    .iter()
                    .map(|i| match object::str_at(i, &["ip"]) {
                        "" => object::str_at(i, &["hostname"]),
                        ip => ip,
                    })
                    .filter(|text| !text.is_empty())
                    .collect();
            ips.sort_unstable();
            ips.dedup();
            match (ips.is_empty(), own.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                _ => ips
                    .into_iter()
                    .chain(own.iter().map(String::as_str))
                    .collect::<Vec<_>>()
                    .join(","),
            }
        }
        "ExternalName" => object::str_at(service, &["spec", "externalName"]).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports_cell(service: &Value) -> String {
    let ports = object::list_at(service, &["spec", "ports"]).iter().map(|p| {
        let of = |field: &str| object::int_at(p, &[field]).unwrap_or(0);
        let protocol = object::str_at(p, &["protocol"]);
        match (of("port"), of("nodePort")) {
            (port, 0) => format!("{port}/{protocol}"),
            (port, node) => format!("{port}:{node}/{protocol}"),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}
