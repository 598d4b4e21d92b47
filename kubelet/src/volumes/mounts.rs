//! What a container sees of its pod's volumes, and the files that every container gets.

use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::setup::Places;
use super::{files, pod_directory};
use crate::objects::{host_network, spec, uid};
use crate::pod::expand::expand;
use crate::pod::hosts;

/// What mounts are made from, beside pod and container.
pub struct Facts<'a> {
    pub root: &'a Path,
    pub places: &'a Places,
    pub env: &'a [(String, String)],
    pub pod_ips: &'a [String],
    pub cluster_domain: &'a str,
    /// The runtime can make mounts read-only with all that is mounted below them.
    pub recursive: bool,
}

fn mount(container_path: &str, host_path: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        readonly,
        ..cri::Mount::default()
    }
}

/// Makes a container's mounts, and the files and bind mounts they need.
///
/// # Errors
/// The message that the container waits with, reason `CreateContainerConfigError`.
pub fn mounts(
    pod: &Pod,
    container: &Container,
    facts: &Facts<'_>,
) -> Result<Vec<cri::Mount>, String> {
    let mut list = Vec::new();
    let mut has_hosts = false;
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        has_hosts |= wanted.mount_path == "/etc/hosts";
        let Some(place) = facts.places.get(&wanted.name) else {
            return Err(format!(
                "cannot find volume {:?} to mount into container {:?}",
                wanted.name, container.name
            ));
        };
        let source = match subpath(wanted, facts.env)? {
            None => place.clone(),
            Some(path) => bound(pod, container, wanted, index, place, &path, facts.root)?,
        };
        let path = match wanted.mount_path.starts_with('/') {
            true => wanted.mount_path.clone(),
            false => format!("/{}", wanted.mount_path),
        };
        let mut made = mount(&path, &source, wanted.read_only == Some(true));
        made.propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        } as i32;
        made.recursive_read_only = recursive_read_only(wanted, facts.recursive)?;
        list.push(made);
    }
    let own = pod_directory(facts.root, uid(pod));
    if !has_hosts && (host_network(pod) || !facts.pod_ips.is_empty()) {
        let file = hosts_file(pod, &own, facts)?;
        list.push(mount("/etc/hosts", &file, false));
    }
    let message = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !message.is_empty() {
        let name = format!("{:08x}", rand::random::<u32>());
        let file = own.join("containers").join(&container.name).join(name);
        let made = file
            .parent()
            .map_or(Ok(()), |dir| files::directory(dir, 0o750))
            .and_then(|()| std::fs::write(&file, b""))
            .and_then(|()| {
                std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            });
        made.map_err(|error| format!("failed to create termination log: {error}"))?;
        list.push(mount(message, &file, false));
    }
    Ok(list)
}

/// Whether a mount is read-only with all that is mounted below it (KEP-3857); `can`: whether the
/// runtime knows how.
///
/// # Errors
/// It is to be, and cannot.
pub fn recursive_read_only(wanted: &VolumeMount, can: bool) -> Result<bool, String> {
    let asked = wanted.recursive_read_only.as_deref().unwrap_or("Disabled");
    if asked == "Disabled" {
        return Ok(false);
    }
    let refused = |why: &str| {
        Err(format!("volume {:?} requested recursive read-only mode, but it is {why}", wanted.name))
    };
    let propagation = wanted.mount_propagation.as_deref().unwrap_or("None");
    match asked {
        _ if wanted.read_only != Some(true) => refused("not read-only"),
        _ if propagation != "None" => {
            refused(&format!("not compatible with propagation {propagation:?}"))
        }
        "IfPossible" => Ok(can),
        "Enabled" if !can => refused("not supported by the runtime"),
        "Enabled" => Ok(true),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

fn subpath(wanted: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, String> {
    let path = match (&wanted.sub_path_expr, &wanted.sub_path) {
        (Some(expression), _) if !expression.is_empty() => {
            let lookup = |name: &str| {
                env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            };
            let path = expand(expression, lookup);
            if path.contains("$(") {
                return Err(format!("missing value for {expression:?}"));
            }
            path
        }
        (_, Some(path)) if !path.is_empty() => path.clone(),
        _ => return Ok(None),
    };
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(Some(path))
}

fn bound(
    pod: &Pod,
    container: &Container,
    wanted: &VolumeMount,
    index: usize,
    place: &Path,
    path: &str,
    root: &Path,
) -> Result<PathBuf, String> {
    let target = pod_directory(root, uid(pod))
        .join("volume-subpaths")
        .join(&wanted.name)
        .join(&container.name)
        .join(index.to_string());
    files::bind_subpath(place, path, &target).map_err(|error| {
        tracing::debug!(%error, path, "subPath");
        format!(
            "failed to prepare subPath for volumeMount {:?} of container {:?}",
            wanted.name, container.name
        )
    })?;
    Ok(target)
}

fn hosts_file(pod: &Pod, own: &Path, facts: &Facts<'_>) -> Result<PathBuf, String> {
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    let content = match host_network(pod) {
        true => hosts::of_host(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), aliases),
        false => {
            let (host, domain) = hosts::hostname(pod, facts.cluster_domain)?;
            hosts::managed(facts.pod_ips, &host, &domain, aliases)
        }
    };
    let path = own.join("etc-hosts");
    let made =
        files::directory(own, 0o750).and_then(|()| std::fs::write(&path, content)).and_then(|()| {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        });
    made.map_err(|error| format!("failed to write hosts file: {error}"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_recursively_read_only_where_that_can_be() {
        let lacks = "not supported by the runtime";
        // asked, read-only, propagation, the runtime can; the answer
        for (asked, read_only, propagation, can, want) in [
            (None, true, None, true, Ok(false)),
            (Some("Disabled"), true, None, true, Ok(false)),
            (Some("IfPossible"), true, None, true, Ok(true)),
            (Some("IfPossible"), true, Some("None"), false, Ok(false)),
            (Some("Enabled"), true, None, true, Ok(true)),
            (Some("Enabled"), true, None, false, Err(lacks)),
            (Some("Enabled"), false, None, true, Err("not read-only")),
            (
                Some("IfPossible"),
                true,
                Some("HostToContainer"),
                true,
                Err("not compatible with propagation \"HostToContainer\""),
            ),
        ] {
            let mount = VolumeMount {
                name: "v".into(),
                read_only: Some(read_only),
                recursive_read_only: asked.map(str::to_owned),
                mount_propagation: propagation.map(str::to_owned),
                ..VolumeMount::default()
            };
            let want = want.map_err(|why| {
                format!("volume \"v\" requested recursive read-only mode, but it is {why}")
            });
            assert_eq!(recursive_read_only(&mount, can), want, "{asked:?}");
        }
    }
}
