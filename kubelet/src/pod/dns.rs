//! The resolver settings of a pod: pure, from the pod, the config and the host's resolv.conf.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::objects::{host_network, namespace, spec};

/// glibc's limit on servers, upstream's on search paths.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// What is in a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().map(str::to_owned)),
                // The last search line counts.
                Some("search") => {
                    conf.searches = words
                        .map(|w| {
                            w.strip_suffix('.').filter(|w| !w.is_empty()).unwrap_or(w).to_owned()
                        })
                        .collect();
                }
                Some("options") => conf.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        conf
    }
}

/// The cluster's part of the settings.
pub struct Cluster<'a> {
    pub servers: &'a [String],
    pub domain: &'a str,
}

/// The pod's settings, and whether it wanted the cluster's DNS though there is none.
pub fn dns(pod: &Pod, cluster: &Cluster<'_>, host: &ResolvConf) -> (DnsConfig, bool) {
    let policy = spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster =
        policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && !host_network(pod);
    let missing = wants_cluster && cluster.servers.is_empty();
    let mut result = if policy == "None" {
        DnsConfig::default()
    } else if wants_cluster && !missing {
        let mut searches = Vec::new();
        if !cluster.domain.is_empty() {
            let (ns, domain) = (namespace(pod), cluster.domain);
            searches =
                vec![format!("{ns}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        }
        for search in &host.searches {
            if !searches.contains(search) {
                searches.push(search.clone());
            }
        }
        DnsConfig { servers: cluster.servers.to_vec(), searches, options: vec!["ndots:5".into()] }
    } else {
        DnsConfig {
            servers: host.servers.clone(),
            searches: host.searches.clone(),
            options: host.options.clone(),
        }
    };
    if let Some(own) = &spec(pod).dns_config {
        for server in own.nameservers.iter().flatten() {
            if !result.servers.contains(server) {
                result.servers.push(server.clone());
            }
        }
        for search in own.searches.iter().flatten() {
            if !result.searches.contains(search) {
                result.searches.push(search.clone());
            }
        }
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            result.options.retain(|o| o.split(':').next() != Some(&name));
            result.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name,
            });
        }
    }
    limit(&mut result);
    (result, missing)
}

fn limit(config: &mut DnsConfig) {
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.join(" ").len() > MAX_SEARCH_CHARS {
        config.searches.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies() {
        let host = ResolvConf::parse(
            "nameserver 1.1.1.1 # x\nsearch old\nsearch corp. lab\noptions ndots:1\n",
        );
        assert_eq!(host.searches, ["corp", "lab"]);
        let servers = ["10.0.0.10".to_owned()];
        let cluster = Cluster { servers: &servers, domain: "cluster.local" };
        for (spec, servers, searches, options) in [
            (
                json!({}),
                "10.0.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local corp lab",
                "ndots:5",
            ),
            (json!({"hostNetwork": true}), "1.1.1.1", "corp lab", "ndots:1"),
            (json!({"dnsPolicy": "Default"}), "1.1.1.1", "corp lab", "ndots:1"),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "options": [{"name": "edns0"}]}}),
                "9.9.9.9",
                "",
                "edns0",
            ),
            (
                json!({"dnsConfig": {"searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}),
                "10.0.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local corp lab x",
                "ndots:2",
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod = serde_json::from_value(json!({"metadata": {"namespace": "n"}, "spec": spec}))
                .unwrap();
            let (found, _) = dns(&pod, &cluster, &host);
            assert_eq!(found.servers.join(" "), servers);
            assert_eq!(found.searches.join(" "), searches);
            assert_eq!(found.options.join(" "), options);
        }
    }
}
