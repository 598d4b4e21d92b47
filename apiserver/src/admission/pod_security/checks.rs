//! The rules of the standards, with the minor version that each came with.

use std::collections::BTreeSet;

use apimachinery::{Value, object};

use super::{Level, Standard, Version, pods};

/// One rule that a pod breaks.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

type Outcome = Option<Violation>;

/// A form of a check since `1.<minor>`.
struct Since(u32, fn(&Value) -> Outcome);

struct Check {
    id: &'static str,
    /// Forms by rising version; the last that is not newer than the policy applies.
    forms: &'static [Since],
    /// Of a restricted check: the baseline check that it stands in for.
    overrides: &'static str,
}

const fn check(id: &'static str, forms: &'static [Since]) -> Check {
    Check { id, forms, overrides: "" }
}

/// In the order of their ids, which is the order of messages.
static BASELINE: [Check; 12] = [
    check("appArmorProfile", &[Since(0, app_armor)]),
    check("capabilities_baseline", &[Since(0, capabilities_baseline)]),
    check("hostNamespaces", &[Since(0, host_namespaces)]),
    check("hostPathVolumes", &[Since(0, host_path_volumes)]),
    check("hostPorts", &[Since(0, host_ports)]),
    check("hostProbesAndHostLifecycle", &[Since(34, host_probes)]),
    check("privileged", &[Since(0, privileged)]),
    check("procMount", &[Since(0, proc_mount), Since(35, |p| unless_own_users(p, proc_mount))]),
    check(
        "seLinuxOptions",
        &[
            Since(0, |p| se_linux(p, &SE_LINUX_TYPES[..4])),
            Since(31, |p| se_linux(p, &SE_LINUX_TYPES)),
        ],
    ),
    check("seccompProfile_baseline", &[Since(0, seccomp_annotations), Since(19, seccomp_baseline)]),
    check(
        "sysctls",
        &[
            Since(0, |p| sysctls(p, &SYSCTLS[..5])),
            Since(27, |p| sysctls(p, &SYSCTLS[..6])),
            Since(29, |p| sysctls(p, &SYSCTLS[..10])),
            Since(32, |p| sysctls(p, &SYSCTLS)),
        ],
    ),
    check("windowsHostProcess", &[Since(0, windows_host_process)]),
];

static RESTRICTED: [Check; 7] = [
    check(
        "allowPrivilegeEscalation",
        &[Since(8, privilege_escalation), Since(25, |p| unless_windows(p, privilege_escalation))],
    ),
    Check {
        id: "capabilities_restricted",
        forms: &[
            Since(22, capabilities_restricted),
            Since(25, |p| unless_windows(p, capabilities_restricted)),
        ],
        overrides: "capabilities_baseline",
    },
    Check { id: "procMount_restricted", forms: &[Since(35, proc_mount)], overrides: "procMount" },
    Check {
        id: "restrictedVolumes",
        forms: &[Since(0, restricted_volumes)],
        overrides: "hostPathVolumes",
    },
    check("runAsNonRoot", &[Since(0, non_root), Since(35, |p| unless_own_users(p, non_root))]),
    check("runAsUser", &[Since(23, root_user), Since(35, |p| unless_own_users(p, root_user))]),
    Check {
        id: "seccompProfile_restricted",
        forms: &[
            Since(19, seccomp_restricted),
            Since(25, |p| unless_windows(p, seccomp_restricted)),
        ],
        overrides: "seccompProfile_baseline",
    },
];

/// All that a pod, or a template, does against a standard.
pub fn evaluate(standard: Standard, pod: &Value) -> Vec<Violation> {
    let minor = match standard.version {
        Version::Minor(minor) => minor,
        Version::Latest => u32::MAX,
    };
    let form = |check: &Check| check.forms.iter().rev().find(|f| f.0 <= minor).map(|f| f.1);
    let restricted: &[Check] = match standard.level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => &[],
        Level::Restricted => &RESTRICTED,
    };
    let overridden: Vec<&str> =
        restricted.iter().filter(|c| form(c).is_some()).map(|c| c.overrides).collect();
    BASELINE
        .iter()
        .filter(|c| !overridden.contains(&c.id))
        .chain(restricted)
        .filter_map(|c| form(c)?(pod))
        .collect()
}

fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Outcome {
    Some(Violation { reason: reason.into(), detail: detail.into() })
}

fn quote<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| format!("\"{}\"", i.as_ref())).collect();
    items.join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn name(container: &Value) -> &str {
    object::str_at(container, &["name"])
}

/// `container "a"` or `containers "a", "b"`.
fn containers(bad: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", bad.len()), quote(bad))
}

/// The names of containers that something holds of.
fn bad_containers(pod: &Value, mut bad: impl FnMut(&Value) -> bool) -> Vec<&str> {
    pods::containers(pod).filter(|c| bad(c)).map(name).collect()
}

/// Who set something: the pod, containers, or both.
fn setters(pod: bool, bad: &[&str]) -> Vec<String> {
    let mut setters = Vec::new();
    if pod {
        setters.push("pod".to_owned());
    }
    if !bad.is_empty() {
        setters.push(containers(bad));
    }
    setters
}

fn security<'a>(of: &'a Value, path: &[&str]) -> Option<&'a Value> {
    object::get(object::get(of, &["securityContext"])?, path)
}

fn spec(pod: &Value) -> &Value {
    pod.get("spec").unwrap_or(&Value::Null)
}

/// Pods with a user namespace of their own may do more.
fn unless_own_users(pod: &Value, check: fn(&Value) -> Outcome) -> Outcome {
    let own = object::get(pod, &["spec", "hostUsers"]).and_then(Value::as_bool) == Some(false);
    if own { None } else { check(pod) }
}

fn unless_windows(pod: &Value, check: fn(&Value) -> Outcome) -> Outcome {
    if object::str_at(pod, &["spec", "os", "name"]) == "windows" { None } else { check(pod) }
}

fn privilege_escalation(pod: &Value) -> Outcome {
    let bad = bad_containers(pod, |c| {
        security(c, &["allowPrivilegeEscalation"]).and_then(Value::as_bool) != Some(false)
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad)),
    )
}

fn app_armor(pod: &Value) -> Outcome {
    let mut values = BTreeSet::new();
    let mut bad = |of: &Value| {
        let Some(profile) = security(of, &["appArmorProfile"]) else { return false };
        let kind = object::str_at(profile, &["type"]);
        let wrong = !matches!(kind, "RuntimeDefault" | "Localhost");
        if wrong {
            values.insert(kind.to_owned());
        }
        wrong
    };
    let by_pod = bad(spec(pod));
    let by_containers = bad_containers(pod, &mut bad);
    let mut setters = setters(by_pod, &by_containers);
    let annotations = object::map_at(pod, &["metadata", "annotations"]);
    let mut wrong: Vec<String> = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .map(|(key, value)| (key, value.as_str().unwrap_or_default()))
        .filter(|(_, v)| !(v.is_empty() || *v == "runtime/default" || v.starts_with("localhost/")))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    wrong.sort();
    if !wrong.is_empty() {
        setters.push(plural("annotation", "annotations", wrong.len()).to_owned());
    }
    if setters.is_empty() {
        return None;
    }
    let all: Vec<String> = values.into_iter().chain(wrong).collect();
    violation(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", all.len()),
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quote(&all)),
    )
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    let list = object::list_at(container, &["securityContext", "capabilities", "add"]);
    list.iter().filter_map(Value::as_str)
}

fn capabilities_baseline(pod: &Value) -> Outcome {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let mut values = BTreeSet::new();
    let bad = bad_containers(pod, |c| {
        let wrong: Vec<&str> = added(c).filter(|cap| !ALLOWED.contains(cap)).collect();
        values.extend(wrong.iter().map(|w| (*w).to_owned()));
        !wrong.is_empty()
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&bad),
            quote(&values)
        ),
    )
}

fn capabilities_restricted(pod: &Value) -> Outcome {
    let keeping = bad_containers(pod, |c| {
        let dropped = object::list_at(c, &["securityContext", "capabilities", "drop"]);
        !dropped.iter().any(|d| d == "ALL")
    });
    let mut values = BTreeSet::new();
    let adding = bad_containers(pod, |c| {
        let wrong: Vec<&str> = added(c).filter(|cap| *cap != "NET_BIND_SERVICE").collect();
        values.extend(wrong.iter().map(|w| (*w).to_owned()));
        !wrong.is_empty()
    });
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&keeping)
        ));
    }
    if !adding.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quote(&values)
        ));
    }
    if details.is_empty() {
        None
    } else {
        violation("unrestricted capabilities", details.join("; "))
    }
}

fn host_namespaces(pod: &Value) -> Outcome {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| object::bool_at(pod, &["spec", field]))
        .map(|field| format!("{field}=true"))
        .collect();
    if used.is_empty() { None } else { violation("host namespaces", used.join(", ")) }
}

fn host_path_volumes(pod: &Value) -> Outcome {
    let bad: Vec<&str> = pods::volumes(pod)
        .iter()
        .filter(|v| object::get(v, &["hostPath"]).is_some())
        .map(name)
        .collect();
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} {}", plural("volume", "volumes", bad.len()), quote(&bad));
    violation("hostPath volumes", detail)
}

fn host_ports(pod: &Value) -> Outcome {
    let mut ports = BTreeSet::new();
    let bad = bad_containers(pod, |c| {
        let used: Vec<i64> = object::list_at(c, &["ports"])
            .iter()
            .filter_map(|p| object::int_at(p, &["hostPort"]))
            .filter(|p| *p != 0)
            .collect();
        ports.extend(used.iter().map(ToString::to_string));
        !used.is_empty()
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "hostPort",
        format!(
            "{} {} {} {}",
            containers(&bad),
            plural("uses", "use", bad.len()),
            plural("hostPort", "hostPorts", ports.len()),
            ports.into_iter().collect::<Vec<_>>().join(", ")
        ),
    )
}

fn host_probes(pod: &Value) -> Outcome {
    const PROBES: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let mut hosts = BTreeSet::new();
    let bad: BTreeSet<&str> = bad_containers(pod, |c| {
        let used: Vec<&str> = PROBES
            .iter()
            .filter_map(|path| object::get(c, path))
            .flat_map(|p| ["httpGet", "tcpSocket"].map(|kind| object::str_at(p, &[kind, "host"])))
            .filter(|host| !host.is_empty())
            .collect();
        hosts.extend(used.iter().map(|h| (*h).to_owned()));
        !used.is_empty()
    })
    .into_iter()
    .collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<&str> = bad.into_iter().collect();
    violation(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            containers(&bad),
            plural("uses", "use", bad.len()),
            plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
            quote(&hosts)
        ),
    )
}

fn privileged(pod: &Value) -> Outcome {
    let bad = bad_containers(pod, |c| object::bool_at(c, &["securityContext", "privileged"]));
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.privileged=true", containers(&bad));
    violation("privileged", detail)
}

fn proc_mount(pod: &Value) -> Outcome {
    let mut values = BTreeSet::new();
    let bad = bad_containers(pod, |c| match security(c, &["procMount"]).and_then(Value::as_str) {
        None | Some("Default") => false,
        Some(other) => {
            values.insert(other.to_owned());
            true
        }
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&bad),
            quote(&values)
        ),
    )
}

fn restricted_volumes(pod: &Value) -> Outcome {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    const OTHERS: [&str; 21] = [
        "hostPath",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "gitRepo",
        "nfs",
        "iscsi",
        "glusterfs",
        "rbd",
        "flexVolume",
        "cinder",
        "cephfs",
        "flocker",
        "fc",
        "azureFile",
        "vsphereVolume",
        "quobyte",
        "azureDisk",
        "photonPersistentDisk",
        "portworxVolume",
        "scaleIO",
        "storageos",
    ];
    let has = |v: &Value, kind: &str| object::get(v, &[kind]).is_some();
    let bad: Vec<&Value> =
        pods::volumes(pod).iter().filter(|v| !ALLOWED.iter().any(|kind| has(v, kind))).collect();
    if bad.is_empty() {
        return None;
    }
    let kind = |v: &Value| OTHERS.iter().find(|kind| has(v, kind)).map_or("unknown", |k| k);
    let kinds: BTreeSet<&str> = bad.iter().map(|v| kind(v)).collect();
    violation(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", bad.len()),
            quote(bad.iter().map(|v| name(v))),
            plural("uses", "use", bad.len()),
            plural("restricted volume type", "restricted volume types", kinds.len()),
            quote(&kinds)
        ),
    )
}

fn non_root(pod: &Value) -> Outcome {
    let says = |of: &Value| security(of, &["runAsNonRoot"]).and_then(Value::as_bool);
    let by_pod = says(spec(pod));
    let explicit = bad_containers(pod, |c| says(c) == Some(false));
    let setters = setters(by_pod == Some(false), &explicit);
    if !setters.is_empty() {
        return violation(
            "runAsNonRoot != true",
            format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and ")),
        );
    }
    let implicit = bad_containers(pod, |c| says(c).is_none() && by_pod != Some(true));
    if implicit.is_empty() {
        return None;
    }
    violation(
        "runAsNonRoot != true",
        format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)),
    )
}

fn root_user(pod: &Value) -> Outcome {
    let root = |of: &Value| security(of, &["runAsUser"]).and_then(Value::as_i64) == Some(0);
    let setters = setters(root(spec(pod)), &bad_containers(pod, root));
    if setters.is_empty() {
        return None;
    }
    violation("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and ")))
}

/// Allowed since 1.0, and the last since 1.31.
const SE_LINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn se_linux(pod: &Value, allowed: &[&str]) -> Outcome {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |of: &Value| {
        let Some(options) = security(of, &["seLinuxOptions"]) else { return false };
        let field = |name: &str| object::str_at(options, &[name]);
        let wrong_type = !allowed.contains(&field("type"));
        if wrong_type {
            types.insert(field("type").to_owned());
        }
        user |= !field("user").is_empty();
        role |= !field("role").is_empty();
        wrong_type || !field("user").is_empty() || !field("role").is_empty()
    };
    let by_pod = bad(spec(pod));
    let by_containers = bad_containers(pod, &mut bad);
    let setters = setters(by_pod, &by_containers);
    if setters.is_empty() {
        return None;
    }
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quote(&types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    violation(
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters.join(" and "),
            data.join("; ")
        ),
    )
}

fn seccomp_annotations(pod: &Value) -> Outcome {
    let valid =
        |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let keys = pods::containers(pod)
        .map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", name(c)))
        .chain(["seccomp.security.alpha.kubernetes.io/pod".to_owned()]);
    let wrong: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = object::annotation(pod, &key).filter(|v| !valid(v))?;
            Some(format!("{key}={value:?}"))
        })
        .collect();
    if wrong.is_empty() {
        return None;
    }
    let noun = plural("annotation", "annotations", wrong.len());
    let list = wrong.iter().cloned().collect::<Vec<_>>().join(", ");
    violation("seccompProfile", format!("forbidden {noun} {list}"))
}

fn seccomp_type(of: &Value) -> Option<&str> {
    security(of, &["seccompProfile"]).map(|p| object::str_at(p, &["type"]))
}

fn seccomp_baseline(pod: &Value) -> Outcome {
    let mut values = BTreeSet::new();
    let mut bad = |of: &Value| match seccomp_type(of) {
        None | Some("RuntimeDefault" | "Localhost") => false,
        Some(other) => {
            values.insert(other.to_owned());
            true
        }
    };
    let by_pod = bad(spec(pod));
    let by_containers = bad_containers(pod, &mut bad);
    let setters = setters(by_pod, &by_containers);
    if setters.is_empty() {
        return None;
    }
    violation(
        "seccompProfile",
        format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters.join(" and "),
            quote(&values)
        ),
    )
}

fn seccomp_restricted(pod: &Value) -> Outcome {
    if let Some(explicit) = seccomp_baseline(pod) {
        return Some(explicit);
    }
    if seccomp_type(spec(pod)).is_some() {
        return None;
    }
    let implicit = bad_containers(pod, |c| seccomp_type(c).is_none());
    if implicit.is_empty() {
        return None;
    }
    violation(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&implicit)
        ),
    )
}

/// Allowed since 1.0 (five), 1.27 (six), 1.29 (ten) and 1.32.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: &Value, allowed: &[&str]) -> Outcome {
    let bad: Vec<&str> = object::list_at(pod, &["spec", "securityContext", "sysctls"])
        .iter()
        .map(name)
        .filter(|s| !allowed.contains(s))
        .collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Value) -> Outcome {
    let host = |of: &Value| {
        security(of, &["windowsOptions", "hostProcess"]).and_then(Value::as_bool) == Some(true)
    };
    let setters = setters(host(spec(pod)), &bad_containers(pod, host));
    if setters.is_empty() {
        return None;
    }
    violation(
        "hostProcess",
        format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            setters.join(" and ")
        ),
    )
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
