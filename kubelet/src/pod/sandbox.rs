//! The configuration of a pod's sandbox.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use super::{hosts, security};
use crate::objects::{host_network, init_containers, is_sidecar, name, namespace, spec, uid};
use crate::runtime::labels;

/// What a sandbox's configuration is made from, beside the pod.
pub struct Facts<'a> {
    pub attempt: u32,
    pub dns: cri::DnsConfig,
    pub cluster_domain: &'a str,
    pub logs: &'a Path,
    pub root: &'a Path,
    pub cgroup_parent: String,
    pub overhead: Option<cri::LinuxContainerResources>,
    pub resources: Option<cri::LinuxContainerResources>,
}

/// The directory of a pod's logs.
pub fn log_directory(logs: &Path, pod: &Pod) -> PathBuf {
    logs.join(format!("{}_{}_{}", namespace(pod), name(pod), uid(pod)))
}

/// Makes the configuration. It must be the same for every container of the sandbox.
///
/// # Errors
/// The pod's host name is too long.
pub fn config(pod: &Pod, facts: Facts<'_>) -> Result<cri::PodSandboxConfig, String> {
    let sysctls = spec(pod).security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    let sysctls: HashMap<String, String> = sysctls
        .into_iter()
        .flatten()
        .map(|s| (crate::sysctl::normalize(&s.name), s.value.clone()))
        .collect();
    // A pod on the node's network has the node's name, and may not change it.
    let hostname = match host_network(pod) {
        true => String::new(),
        false => hosts::hostname(pod, facts.cluster_domain)?.0,
    };
    let linux = cri::LinuxPodSandboxConfig {
        cgroup_parent: facts.cgroup_parent,
        security_context: Some(security::sandbox(pod, facts.root)),
        sysctls,
        overhead: facts.overhead,
        resources: facts.resources,
    };
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name(pod).to_owned(),
            uid: uid(pod).to_owned(),
            namespace: namespace(pod).to_owned(),
            attempt: facts.attempt,
        }),
        hostname,
        log_directory: log_directory(facts.logs, pod).display().to_string(),
        dns_config: Some(facts.dns),
        port_mappings: port_mappings(pod),
        labels: labels::sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(linux),
        windows: None,
    })
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if host_network(pod) {
        return Vec::new();
    }
    let sidecars = init_containers(pod).iter().filter(|c| is_sidecar(c));
    let ports = spec(pod).containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|p| p.host_port.is_some_and(|h| h > 0))
        .map(|p| cri::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            } as i32,
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or_default(),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
