//! Validation of security contexts, of pods and containers, and of what an operating system
//! does not have.

use apimachinery::field::ErrorList;
use apimachinery::names;

use super::super::check::{At, Seen, invalid_each, supported, supported_if_set, user_id};
use super::containers::Surroundings;
use super::defaults::CONTAINERS;
use super::volumes::descending_path;

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

/// `securityContext` of a container.
pub fn container(errors: &mut ErrorList, at: &At<'_>, pod: &Surroundings<'_>) {
    if !at.is_set() {
        return;
    }
    let privileged = at.at("privileged");
    if privileged.bool() && !pod.options.allow_privileged {
        errors.push(privileged.forbidden("disallowed by cluster policy"));
    }
    user_id(errors, &at.at("runAsUser"));
    user_id(errors, &at.at("runAsGroup"));
    let mount = at.at("procMount");
    if mount.is_set() {
        supported(errors, &mount, &["Default", "Unmasked"]);
        if pod.host_users && mount.str() == "Unmasked" {
            errors.push(mount.invalid("`hostUsers` must be false to use `Unmasked`"));
        }
    }
    seccomp(errors, &at.at("seccompProfile"));
    if at.at("allowPrivilegeEscalation").opt_bool() == Some(false) {
        if privileged.bool() {
            errors.push(at.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        let added = at.down(&["capabilities", "add"]);
        for _ in added.strings().filter(|c| *c == "CAP_SYS_ADMIN") {
            errors.push(at.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` \
                 CAP_SYS_ADMIN",
            ));
        }
    }
    windows_options(errors, &at.at("windowsOptions"));
    app_armor(errors, &at.at("appArmorProfile"));
}

/// `spec.securityContext`; `spec` is the PodSpec around it.
pub fn pod(errors: &mut ErrorList, at: &At<'_>, spec: &At<'_>) {
    if !at.is_set() {
        return;
    }
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        user_id(errors, &at.at(field));
    }
    for group in at.at("supplementalGroups").items() {
        user_id(errors, &group);
    }
    let share = spec.at("shareProcessNamespace");
    if share.bool() && spec.at("hostPID").bool() {
        let here = At::new(share.value(), at.path().child("shareProcessNamespace"));
        errors.push(here.invalid("ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    sysctls(errors, &at.at("sysctls"), spec);
    supported_if_set(errors, &at.at("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    seccomp(errors, &at.at("seccompProfile"));
    windows_options(errors, &at.at("windowsOptions"));
    app_armor(errors, &at.at("appArmorProfile"));
    supported_if_set(errors, &at.at("supplementalGroupsPolicy"), &["Merge", "Strict"]);
    supported_if_set(errors, &at.at("seLinuxChangePolicy"), &["MountOption", "Recursive"]);
}

const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn is_sysctl(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let segment = |s: &str| {
        let bytes = s.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| edge(*b) || *b == b'-' || *b == b'_')
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1])
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(errors: &mut ErrorList, at: &At<'_>, spec: &At<'_>) {
    let mut seen = Seen::default();
    for sysctl in at.items() {
        let name = sysctl.at("name");
        if name.is_empty() {
            errors.push(name.required(""));
        } else if !is_sysctl(name.str()) {
            let text = format!("must have at most 253 characters and match regex {SYSCTL}");
            errors.push(name.invalid(text));
        } else if seen.has(name.str()) {
            errors.push(name.duplicate());
        }
        let dotted = name.str().replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if spec.at("hostNetwork").bool() && dotted.starts_with("net.") {
            errors.push(name.invalid("may not be specified when 'hostNetwork' is true"));
        } else if spec.at("hostIPC").bool() && ipc {
            errors.push(name.invalid("may not be specified when 'hostIPC' is true"));
        }
        seen.insert(name.str());
    }
}

fn seccomp(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        return;
    }
    let (kind, profile) = (at.at("type"), at.at("localhostProfile"));
    match kind.str() {
        "" => errors.push(kind.required("type is required when seccompProfile is set")),
        _ => supported(errors, &kind, &PROFILES),
    }
    if kind.str() == "Localhost" {
        if profile.is_set() {
            descending_path(errors, &profile);
        } else {
            errors.push(profile.required("must be set when seccomp type is Localhost"));
        }
    } else if profile.is_set() {
        let shown = At::new(at.value(), profile.path().clone());
        errors.push(shown.invalid("can only be set when seccomp type is Localhost"));
    }
}

/// A profile of AppArmor, of a pod or a container.
pub fn app_armor(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        return;
    }
    const MAX: usize = 4095;
    let (kind, profile) = (at.at("type"), at.at("localhostProfile"));
    match kind.str() {
        "Localhost" if !profile.is_set() || profile.is_empty() => {
            errors.push(profile.required("must be set when AppArmor type is Localhost"));
        }
        "Localhost" => {
            if profile.str().trim() != profile.str() {
                errors.push(profile.invalid("must not be padded with whitespace"));
            }
            if profile.len() > MAX {
                errors.push(profile.too_long(MAX));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if profile.is_set() {
                errors.push(profile.invalid("can only be set when AppArmor type is Localhost"));
            }
        }
        "" => errors.push(kind.required("type is required when appArmorProfile is set")),
        _ => errors.push(kind.not_supported(&PROFILES)),
    }
}

fn windows_options(errors: &mut ErrorList, at: &At<'_>) {
    let name = at.at("gmsaCredentialSpecName");
    if name.is_set() {
        invalid_each(errors, &name, names::dns1123_subdomain(name.str()));
    }
    let spec = at.at("gmsaCredentialSpec");
    if spec.is_set() {
        match spec.len() {
            0 => errors.push(spec.invalid("gmsaCredentialSpec cannot be an empty string")),
            n if n > 64 << 10 => {
                errors.push(spec.invalid("gmsaCredentialSpec size must be under 64 KiB"));
            }
            _ => {}
        }
    }
    let user = at.at("runAsUserName");
    if user.is_set() {
        windows_user(errors, &user);
    }
}

fn windows_user(errors: &mut ErrorList, at: &At<'_>) {
    let name = at.str();
    let mut say = |message: &str| errors.push(at.invalid(message));
    if name.is_empty() {
        return say("runAsUserName cannot be an empty string");
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return say("runAsUserName cannot contain control characters");
    }
    if name.matches('\\').count() > 1 {
        return say("runAsUserName cannot contain more than one backslash");
    }
    let (domain, user) = match name.split_once('\\') {
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            say("runAsUserName's Domain length must be under 256 characters");
        }
        let net_bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let dns = names::dns1123_subdomain(&domain.to_lowercase()).is_empty();
        if !net_bios && !dns {
            say("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    match user.len() {
        0 => say("runAsUserName's User cannot be empty"),
        n if n > 104 => say("runAsUserName's User length must not be longer than 104 characters"),
        _ => {}
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        say("runAsUserName's User cannot contain only periods or spaces");
    }
    if user
        .contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']'])
    {
        say("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

/// Host process containers: all of a pod's, or none.
pub fn host_process(errors: &mut ErrorList, spec: &At<'_>, allow_privileged: bool) {
    let path = ["securityContext", "windowsOptions", "hostProcess"];
    let of_pod = spec.down(&path).opt_bool();
    let (mut all, mut host) = (0, 0);
    for container in CONTAINERS.iter().flat_map(|f| spec.at(f).items()) {
        all += 1;
        let own = container.down(&path);
        if let (Some(pod), Some(container)) = (of_pod, own.opt_bool())
            && pod != container
        {
            errors.push(own.invalid(format!(
                "pod hostProcess value must be identical if both are specified, was {pod}"
            )));
        }
        host += i32::from(own.opt_bool().or(of_pod) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != all {
        errors.push(spec.invalid_as(
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess \
             containers",
        ));
    }
    if !spec.at("hostNetwork").bool() {
        errors.push(spec.at("hostNetwork").invalid_as(
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        ));
    }
    if !allow_privileged {
        errors.push(spec.forbidden("hostProcess containers are disallowed by cluster policy"));
    }
}

/// `spec.os`, and what pods of that system may not have.
pub fn os(errors: &mut ErrorList, spec: &At<'_>) {
    let os = spec.at("os");
    if !os.is_set() {
        return;
    }
    match os.at("name").str() {
        "" => errors.push(os.at("name").required("")),
        "linux" => linux(errors, spec),
        "windows" => windows(errors, spec),
        other => errors.push(apimachinery::field::FieldError::not_supported(
            os.path(),
            other,
            &["linux", "windows"],
        )),
    }
}

fn linux(errors: &mut ErrorList, spec: &At<'_>) {
    let containers = CONTAINERS.iter().flat_map(|f| spec.at(f).items());
    for holder in std::iter::once(spec.clone()).chain(containers) {
        let options = holder.down(&["securityContext", "windowsOptions"]);
        if options.is_set() {
            errors.push(options.forbidden("windows options cannot be set for a linux pod"));
        }
    }
}

fn windows(errors: &mut ErrorList, spec: &At<'_>) {
    const TEXT: &str = "cannot be set for a windows pod";
    let mut forbid = |at: At<'_>, set: bool| {
        if set {
            errors.push(at.forbidden(TEXT));
        }
    };
    let context = spec.at("securityContext");
    if context.is_set() {
        for field in ["appArmorProfile", "seLinuxOptions"] {
            forbid(context.at(field), context.at(field).is_set());
        }
        forbid(spec.at("hostUsers"), spec.at("hostUsers").is_set());
        for field in ["hostPID", "hostIPC"] {
            forbid(spec.at(field), spec.at(field).bool());
        }
        for field in ["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls"] {
            forbid(context.at(field), context.at(field).is_set());
        }
        forbid(spec.at("shareProcessNamespace"), spec.at("shareProcessNamespace").is_set());
        for field in [
            "runAsUser",
            "runAsGroup",
            "supplementalGroups",
            "supplementalGroupsPolicy",
            "seLinuxChangePolicy",
        ] {
            forbid(context.at(field), context.at(field).is_set());
        }
    }
    for container in CONTAINERS.iter().flat_map(|f| spec.at(f).items()) {
        let context = container.at("securityContext");
        for field in [
            "appArmorProfile",
            "seLinuxOptions",
            "seccompProfile",
            "capabilities",
            "readOnlyRootFilesystem",
            "privileged",
            "allowPrivilegeEscalation",
            "procMount",
            "runAsUser",
            "runAsGroup",
        ] {
            forbid(context.at(field), context.at(field).is_set());
        }
    }
}
