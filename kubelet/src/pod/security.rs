//! Security settings of sandboxes and containers in the runtime's terms.

use std::path::Path;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};

use crate::objects::{describe, host_network, spec};

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Who an image runs as.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

fn id(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

fn seccomp(profile: Option<&SeccompProfile>, root: &Path, default: bool) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost) = match profile.map(|p| (p.type_.as_str(), &p.localhost_profile)) {
        Some(("RuntimeDefault", _)) => (ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", file)) => {
            let file = root.join("seccomp").join(file.as_deref().unwrap_or_default());
            (ProfileType::Localhost, file.display().to_string())
        }
        None if default => (ProfileType::RuntimeDefault, String::new()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: localhost }
}

fn apparmor(profile: Option<&AppArmorProfile>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    let options = options?.clone();
    Some(cri::SeLinuxOption {
        user: options.user.unwrap_or_default(),
        role: options.role.unwrap_or_default(),
        r#type: options.type_.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
    })
}

fn groups_policy(pod: &Pod) -> i32 {
    let policy =
        spec(pod).security_context.as_ref().and_then(|s| s.supplemental_groups_policy.as_deref());
    match policy {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict as i32,
        _ => cri::SupplementalGroupsPolicy::Merge as i32,
    }
}

/// The namespaces that a pod's containers share with the node or each other.
pub fn namespaces(pod: &Pod, container: Option<&str>) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container as Own, Node, Pod as Shared, Target};
    let spec = spec(pod);
    let target = container.and_then(|name| {
        let found = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        found.target_container_name.clone().filter(|t| !t.is_empty())
    });
    let pid = if spec.host_pid == Some(true) {
        Node
    } else if spec.share_process_namespace == Some(true) {
        Shared
    } else if target.is_some() {
        Target
    } else {
        Own
    };
    cri::NamespaceOption {
        network: if host_network(pod) { Node } else { Shared } as i32,
        ipc: if spec.host_ipc == Some(true) { Node } else { Shared } as i32,
        pid: pid as i32,
        // The runtime's id of it is filled in by the caller.
        target_id: target.unwrap_or_default(),
        userns_options: None,
    }
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().is_some_and(|s| s.privileged == Some(true))
}

/// The sandbox's settings.
pub fn sandbox(pod: &Pod, root: &Path) -> cri::LinuxSandboxSecurityContext {
    let spec = spec(pod);
    let own = spec.security_context.as_ref();
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut groups: Vec<i64> = own.and_then(|s| s.fs_group).into_iter().collect();
    groups.extend(own.and_then(|s| s.supplemental_groups.clone()).unwrap_or_default());
    let run_as_user = own.and_then(|s| s.run_as_user);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: selinux(own.and_then(|s| s.se_linux_options.as_ref())),
        run_as_user: run_as_user.and_then(id),
        // The runtime takes a group only with a user.
        run_as_group: own
            .and_then(|s| s.run_as_group)
            .filter(|_| run_as_user.is_some())
            .and_then(id),
        supplemental_groups: groups,
        supplemental_groups_policy: groups_policy(pod),
        privileged: all.into_iter().any(is_privileged),
        seccomp: Some(seccomp(own.and_then(|s| s.seccomp_profile.as_ref()), root, true)),
        ..cri::LinuxSandboxSecurityContext::default()
    }
}

/// A container's settings; its own go before the pod's.
pub fn container(
    pod: &Pod,
    container: &Container,
    user: &ImageUser,
    root: &Path,
    seccomp_default: bool,
) -> cri::LinuxContainerSecurityContext {
    let pod_own = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let mut groups: Vec<i64> =
        pod_own.and_then(|s| s.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(pod_own.and_then(|s| s.fs_group));
    let run_as = own
        .and_then(|s| s.run_as_user)
        .or_else(|| pod_own.and_then(|s| s.run_as_user))
        .or(user.uid);
    let by_name = if run_as.is_none() { user.name.clone() } else { String::new() };
    let group = own.and_then(|s| s.run_as_group).or_else(|| pod_own.and_then(|s| s.run_as_group));
    let privileged = is_privileged(container);
    let profile = own
        .and_then(|s| s.seccomp_profile.as_ref())
        .or_else(|| pod_own.and_then(|s| s.seccomp_profile.as_ref()));
    let armor = own
        .and_then(|s| s.app_armor_profile.as_ref())
        .or_else(|| pod_own.and_then(|s| s.app_armor_profile.as_ref()));
    let caps = own.and_then(|s| s.capabilities.clone());
    let unmasked = own.is_some_and(|s| s.proc_mount.as_deref() == Some("Unmasked"));
    let paths = |list: &[&str]| match unmasked {
        true => Vec::new(),
        false => list.iter().map(|p| (*p).to_owned()).collect(),
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: caps.as_ref().and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: caps.and_then(|c| c.drop).unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        })
        .filter(|c| !c.add_capabilities.is_empty() || !c.drop_capabilities.is_empty()),
        privileged,
        namespace_options: Some(namespaces(pod, Some(&container.name))),
        selinux_options: selinux(
            own.and_then(|s| s.se_linux_options.as_ref())
                .or_else(|| pod_own.and_then(|s| s.se_linux_options.as_ref())),
        ),
        run_as_user: run_as.and_then(id).filter(|_| by_name.is_empty()),
        run_as_username: by_name,
        run_as_group: group.and_then(id),
        readonly_rootfs: own.is_some_and(|s| s.read_only_root_filesystem == Some(true)),
        supplemental_groups: groups,
        supplemental_groups_policy: groups_policy(pod),
        no_new_privs: own.is_some_and(|s| s.allow_privilege_escalation == Some(false)),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: Some(match privileged && profile.is_none() {
            true => seccomp(None, root, false),
            false => seccomp(profile, root, seccomp_default),
        }),
        apparmor: apparmor(armor),
        ..cri::LinuxContainerSecurityContext::default()
    }
}

/// Holds a container to `runAsNonRoot`.
///
/// # Errors
/// The message that the container waits with, reason `CreateContainerConfigError`.
pub fn check_non_root(pod: &Pod, container: &Container, user: &ImageUser) -> Result<(), String> {
    let pod_own = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let demanded =
        own.and_then(|s| s.run_as_non_root).or_else(|| pod_own.and_then(|s| s.run_as_non_root));
    if demanded != Some(true) {
        return Ok(());
    }
    let at = format!("(pod: {:?}, container: {})", describe(pod), container.name);
    let asked = own.and_then(|s| s.run_as_user).or_else(|| pod_own.and_then(|s| s.run_as_user));
    match (asked, user.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {at}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => {
            Err(format!("container has runAsNonRoot and image will run as root {at}"))
        }
        (None, None) if !user.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {at}",
            user.name
        )),
        _ => Ok(()),
    }
}
