//! The configuration of a container.

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::expand::expand;
use crate::runtime::labels;

/// What a container's configuration is made from, beside the pod.
pub struct Facts {
    pub attempt: u32,
    pub image: String,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub resources: cri::LinuxContainerResources,
    pub security: cri::LinuxContainerSecurityContext,
}

/// Makes the configuration.
pub fn config(pod: &Pod, container: &Container, facts: Facts) -> cri::ContainerConfig {
    let lookup =
        |name: &str| facts.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, lookup)).collect()
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: facts.attempt,
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        image: Some(cri::ImageSpec {
            image: facts.image,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..cri::ImageSpec::default()
        }),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: labels::container_labels(pod, &container.name),
        annotations: labels::container_annotations(pod, container, facts.attempt),
        envs: facts
            .env
            .iter()
            .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: facts.mounts,
        log_path: format!("{}/{}.log", container.name, facts.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(facts.resources),
            security_context: Some(facts.security),
        }),
        ..cri::ContainerConfig::default()
    }
}
