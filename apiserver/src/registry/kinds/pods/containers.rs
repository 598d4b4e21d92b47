//! Validation of containers: names, images, ports, environment, mounts, and what init and
//! ephemeral containers may not have.

use std::collections::BTreeMap;

use apimachinery::amounts::is_sidecar;
use apimachinery::field::{ErrorList, FieldError};
use apimachinery::{Value, names};

use super::super::check::{At, Seen, invalid_each, one_of, supported};
use super::super::resources::{Of, requirements};
use super::probes;
use super::security;
use super::spec::Options;
use super::volumes::{descending_path, no_backsteps};

/// What the rules of containers need of the pod around them.
pub struct Surroundings<'a> {
    pub options: &'a Options,
    /// Volumes by name.
    pub volumes: BTreeMap<&'a str, &'a Value>,
    /// Names in `spec.resourceClaims`.
    pub claims: Vec<&'a str>,
    pub grace_period: Option<i64>,
    pub restart_policy: &'a str,
    pub host_users: bool,
    /// `spec.os.name`; `None` without `spec.os`.
    pub os: Option<&'a str>,
}

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// `spec.containers`
pub fn containers(errors: &mut ErrorList, at: &At<'_>, pod: &Surroundings<'_>) {
    if at.is_empty() {
        errors.push(at.required(""));
        return;
    }
    let mut seen = Seen::default();
    for container in at.items() {
        common(errors, &container, pod);
        if !seen.insert(container.at("name").str()) {
            errors.push(container.at("name").duplicate());
        }
        probes::all(errors, &container, pod);
        restart_policy(errors, &container);
    }
    host_port_conflicts(errors, at.items());
}

/// `spec.initContainers`
pub fn init_containers(errors: &mut ErrorList, at: &At<'_>, main: &At<'_>, pod: &Surroundings<'_>) {
    let mut seen = Seen::default();
    for container in main.items() {
        seen.insert(container.at("name").str());
    }
    for container in at.items() {
        common(errors, &container, pod);
        init_restart_policy(errors, &container);
        let name = container.at("name");
        if seen.has(name.str()) {
            errors.push(name.duplicate());
        } else if !name.is_empty() {
            seen.insert(name.str());
        }
        // Upstream reports these as of the first init container, whichever it is.
        host_port_conflicts(
            errors,
            std::iter::once(At::new(container.value(), at.path().index(0))),
        );
        if is_sidecar(container.value()) {
            probes::all(errors, &container, pod);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                let field = container.at(field);
                if field.is_set() {
                    errors.push(field.forbidden(
                        "may not be set for init containers without restartPolicy=Always",
                    ));
                }
            }
        }
    }
}

/// `spec.ephemeralContainers`
pub fn ephemeral_containers(
    errors: &mut ErrorList,
    at: &At<'_>,
    others: [&At<'_>; 2],
    pod: &Surroundings<'_>,
) {
    let mut targets = Seen::default();
    let mut seen = Seen::default();
    for container in others.iter().flat_map(|list| list.items()) {
        targets.insert(container.at("name").str());
        seen.insert(container.at("name").str());
    }
    const TEXT: &str = "cannot be set for an Ephemeral Container";
    for container in at.items() {
        common(errors, &container, pod);
        trimmed_image(errors, &container);
        if !seen.insert(container.at("name").str()) {
            errors.push(container.at("name").duplicate());
        }
        let target = container.at("targetContainerName");
        if !target.is_empty() && !targets.has(target.str()) {
            errors.push(target.not_found());
        }
        for field in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            let field = container.at(field);
            if !field.is_zero() {
                errors.push(field.forbidden(TEXT));
            }
        }
        for mount in container.at("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.at(field).is_empty() {
                    errors.push(mount.at(field).forbidden(TEXT));
                }
            }
        }
    }
}

/// In pods, not in templates: images are taken as they are, so blanks around them matter.
pub fn trimmed_image(errors: &mut ErrorList, container: &At<'_>) {
    let image = container.at("image");
    if image.str().trim() != image.str() {
        errors.push(image.invalid("must not have leading or trailing whitespace"));
    }
}

fn common(errors: &mut ErrorList, container: &At<'_>, pod: &Surroundings<'_>) {
    let name = container.at("name");
    match name.str() {
        "" => errors.push(name.required("")),
        text => invalid_each(errors, &name, names::dns1123_label(text)),
    }
    if container.at("image").is_empty() {
        errors.push(container.at("image").required(""));
    }
    one_of(errors, &container.at("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]);
    ports(errors, &container.at("ports"));
    env(errors, &container.at("env"));
    env_from(errors, &container.at("envFrom"));
    volume_mounts(errors, container, pod);
    volume_devices(errors, container, pod);
    one_of(errors, &container.at("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    requirements(errors, &container.at("resources"), Of::Container, &pod.claims);
    resize_policy(errors, &container.at("resizePolicy"), pod.restart_policy);
    security::container(errors, &container.at("securityContext"), pod);
}

fn ports(errors: &mut ErrorList, at: &At<'_>) {
    let mut seen = Seen::default();
    for port in at.items() {
        let name = port.at("name");
        if !name.is_empty() {
            let messages = names::port_name(name.str());
            if messages.is_empty() && !seen.insert(name.str()) {
                errors.push(name.duplicate());
            }
            invalid_each(errors, &name, messages);
        }
        let number = port.at("containerPort");
        match number.int() {
            0 => errors.push(number.required("")),
            n => invalid_each(errors, &number, names::port_number(n)),
        }
        let host = port.at("hostPort");
        if host.int() != 0 {
            invalid_each(errors, &host, names::port_number(host.int()));
        }
        one_of(errors, &port.at("protocol"), &PROTOCOLS);
    }
}

/// Two containers of a pod cannot have the same port of the host.
fn host_port_conflicts<'a>(errors: &mut ErrorList, containers: impl Iterator<Item = At<'a>>) {
    let mut seen = Seen::default();
    for port in containers.flat_map(|c| c.at("ports").items()) {
        let host = port.at("hostPort");
        if host.int() != 0 {
            let key =
                format!("{}/{}/{}", port.at("protocol").str(), port.at("hostIP").str(), host.int());
            if !seen.insert(key.as_str()) {
                errors.push(FieldError::duplicate(host.path(), key));
            }
        }
    }
}

fn env(errors: &mut ErrorList, at: &At<'_>) {
    for var in at.items() {
        let name = var.at("name");
        match name.str() {
            "" => errors.push(name.required("")),
            text => invalid_each(errors, &name, names::env_var_name(text)),
        }
        if var.at("valueFrom").is_set() {
            value_from(errors, &var.at("valueFrom"), !var.at("value").is_empty());
        }
    }
}

fn value_from(errors: &mut ErrorList, at: &At<'_>, has_value: bool) {
    const FIELDS: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let mut sources = 0;
    let mut each = |name: &str, check: &mut dyn FnMut(&At<'_>)| {
        let source = at.at(name);
        if source.is_set() {
            sources += 1;
            check(&source);
        }
    };
    each("fieldRef", &mut |s| field_ref(errors, s, &FIELDS));
    each("resourceFieldRef", &mut |s| resource_field_ref(errors, s, false));
    each("configMapKeyRef", &mut |s| key_ref(errors, s));
    each("secretKeyRef", &mut |s| key_ref(errors, s));
    each("fileKeyRef", &mut |s| file_key_ref(errors, s));
    if sources == 0 {
        errors.push(at.invalid_as(
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
             `secretKeyRef` or `fileKeyRef`",
        ));
    } else if has_value {
        errors.push(at.invalid_as("", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(at.invalid_as("", "may not have more than one field specified at a time"));
    }
}

/// Field labels of pods that downward API references may name, beside those with subscripts.
const FIELD_LABELS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A reference to a field of the pod itself.
pub fn field_ref(errors: &mut ErrorList, at: &At<'_>, allowed: &[&str]) {
    let (version, path) = (at.at("apiVersion"), at.at("fieldPath"));
    if version.is_empty() {
        errors.push(version.required(""));
        return;
    }
    if path.is_empty() {
        errors.push(path.required(""));
        return;
    }
    let subscript = split_subscript(path.str());
    let name = if path.str() == "spec.host" { "spec.nodeName" } else { path.str() };
    let known = match subscript {
        Some((base, _)) => matches!(base, "metadata.annotations" | "metadata.labels"),
        None => FIELD_LABELS.contains(&name),
    };
    if version.str() != "v1" {
        let text = format!("unsupported pod version: {}", version.str());
        errors.push(path.invalid(format!("error converting fieldPath: {text}")));
    } else if !known && subscript.is_some() {
        let text = format!("field label does not support subscript: {}", path.str());
        errors.push(path.invalid(format!("error converting fieldPath: {text}")));
    } else if !known {
        let text = format!("field label not supported: {}", path.str());
        errors.push(path.invalid(format!("error converting fieldPath: {text}")));
    } else if let Some((base, key)) = subscript {
        let key = if base == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
        let messages = names::qualified_name(&key);
        errors.extend(messages.into_iter().map(|m| at.invalid_as(key.as_str(), m)));
    } else if !allowed.contains(&name) {
        let mut allowed = allowed.to_vec();
        allowed.sort_unstable();
        errors.push(path.not_supported(&allowed));
    }
}

/// `metadata.labels['key']` into its two parts.
fn split_subscript(path: &str) -> Option<(&str, &str)> {
    let (base, key) = path.strip_suffix("']")?.split_once("['")?;
    (!base.is_empty()).then_some((base, key))
}

/// A reference to a request or limit of a container.
pub fn resource_field_ref(errors: &mut ErrorList, at: &At<'_>, in_volume: bool) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = at.at("resource");
    let name = resource.str();
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_volume && at.at("containerName").is_empty() {
        errors.push(at.at("containerName").required(""));
    } else if name.is_empty() {
        errors.push(resource.required(""));
    } else if !RESOURCES.contains(&name) && !huge {
        errors.push(resource.not_supported(&RESOURCES));
    }
    let divisor = at.at("divisor");
    let Some(amount) = divisor.quantity().filter(|q| !q.is_zero()) else { return };
    let text = amount.to_string();
    let (of, valid): (&str, &[&str]) = match name.split_once('.').map_or("", |(_, n)| n) {
        "cpu" => ("cpu", &["1m", "1"]),
        "memory" => ("memory", &BYTES),
        "ephemeral-storage" => ("local ephemeral storage", &BYTES),
        _ if huge => ("hugepages", &BYTES),
        _ => return,
    };
    if !valid.contains(&text.as_str()) {
        let list = if of == "cpu" { "1m and 1".to_owned() } else { BYTES.join(", ") };
        let message = format!("only divisor's values {list} are supported with the {of} resource");
        errors.push(divisor.invalid_as(name, message));
    }
}

const BYTES: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

fn key_ref(errors: &mut ErrorList, at: &At<'_>) {
    let (name, key) = (at.at("name"), at.at("key"));
    let messages = names::dns1123_subdomain(name.str());
    errors.extend(messages.into_iter().map(|m| name.invalid_as(name.str(), m)));
    match key.str() {
        "" => errors.push(key.required("")),
        text => invalid_each(errors, &key, names::config_map_key(text)),
    }
}

fn file_key_ref(errors: &mut ErrorList, at: &At<'_>) {
    let (key, volume, path) = (at.at("key"), at.at("volumeName"), at.at("path"));
    match key.str() {
        "" => errors.push(key.required("")),
        text => invalid_each(errors, &key, names::env_var_name(text)),
    }
    match volume.str() {
        "" => errors.push(volume.required("")),
        text => invalid_each(errors, &volume, names::dns1123_label(text)),
    }
    match path.str() {
        "" => errors.push(path.required("")),
        _ => no_backsteps(errors, &path),
    }
}

fn env_from(errors: &mut ErrorList, at: &At<'_>) {
    for source in at.items() {
        let prefix = source.at("prefix");
        if !prefix.is_empty() {
            invalid_each(errors, &prefix, names::env_var_name(prefix.str()));
        }
        let refs = ["configMapRef", "secretRef"].map(|f| source.at(f));
        for name in refs.iter().filter(|r| r.is_set()).map(|r| r.at("name")) {
            match name.str() {
                "" => errors.push(name.required("")),
                text => invalid_each(errors, &name, super::super::subdomain_name(text, true)),
            }
        }
        match refs.iter().filter(|r| r.is_set()).count() {
            0 => {
                errors.push(at.invalid_as("", "must specify one of: `configMapRef` or `secretRef`"))
            }
            1 => {}
            _ => errors
                .push(at.invalid_as("", "may not have more than one field specified at a time")),
        }
    }
}

fn volume_mounts(errors: &mut ErrorList, container: &At<'_>, pod: &Surroundings<'_>) {
    let list = container.at("volumeMounts");
    let devices: Vec<(&str, &str)> = pairs(&container.at("volumeDevices"), "devicePath");
    let mut seen = Seen::default();
    for mount in list.items() {
        let (name, path) = (mount.at("name"), mount.at("mountPath"));
        if name.is_empty() {
            errors.push(name.required(""));
        }
        if !pod.volumes.contains_key(name.str()) {
            errors.push(FieldError::not_found(name.path(), name.str()));
        }
        if path.is_empty() {
            errors.push(path.required(""));
        }
        if !seen.insert(path.str()) {
            errors.push(path.invalid("must be unique"));
        }
        if devices.iter().any(|(n, _)| *n == name.str()) {
            errors.push(name.invalid("must not already exist in volumeDevices"));
        }
        if devices.iter().any(|(_, p)| *p == path.str()) {
            errors.push(path.invalid("must not already exist as a path in volumeDevices"));
        }
        sub_path(errors, &list, &mount);
        propagation(errors, &list, &mount, container);
        recursive_read_only(errors, &list, &mount);
    }
}

/// Upstream reports these fields as of the list, not of the element.
fn of_list<'a>(list: &At<'a>, mount: &At<'a>, field: &str) -> At<'a> {
    At::new(mount.at(field).value(), list.path().child(field))
}

fn sub_path<'a>(errors: &mut ErrorList, list: &At<'a>, mount: &At<'a>) {
    let (path, expression) = (mount.at("subPath"), mount.at("subPathExpr"));
    if !path.is_empty() {
        descending_path(errors, &of_list(list, mount, "subPath"));
    }
    if !expression.is_empty() {
        if !path.is_empty() {
            errors.push(expression.invalid("subPathExpr and subPath are mutually exclusive"));
        }
        descending_path(errors, &of_list(list, mount, "subPathExpr"));
    }
}

fn propagation<'a>(errors: &mut ErrorList, list: &At<'a>, mount: &At<'a>, container: &At<'a>) {
    let field = of_list(list, mount, "mountPropagation");
    if !field.is_set() {
        return;
    }
    supported(errors, &field, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = container.down(&["securityContext", "privileged"]).bool();
    if field.str() == "Bidirectional" && !privileged {
        errors.push(field.forbidden(
            "Bidirectional mount propagation is available only to privileged containers",
        ));
    }
}

fn recursive_read_only<'a>(errors: &mut ErrorList, list: &At<'a>, mount: &At<'a>) {
    let field = of_list(list, mount, "recursiveReadOnly");
    if !field.is_set() || field.str() == "Disabled" {
        return;
    }
    if !matches!(field.str(), "Enabled" | "IfPossible") {
        errors.push(field.not_supported(&["Disabled", "Enabled", "IfPossible"]));
        return;
    }
    if !mount.at("readOnly").bool() {
        errors.push(field.forbidden("may only be specified when readOnly is true"));
    }
    if !matches!(mount.at("mountPropagation").str(), "" | "None") {
        errors.push(
            field.forbidden("may only be specified when mountPropagation is None or not specified"),
        );
    }
}

fn pairs<'a>(list: &At<'a>, path: &str) -> Vec<(&'a str, &'a str)> {
    list.items().map(|i| (i.at("name").str(), i.at(path).str())).collect()
}

fn volume_devices(errors: &mut ErrorList, container: &At<'_>, pod: &Surroundings<'_>) {
    let mounts = pairs(&container.at("volumeMounts"), "mountPath");
    let (mut names, mut paths) = (Seen::default(), Seen::default());
    for device in container.at("volumeDevices").items() {
        let (name, path) = (device.at("name"), device.at("devicePath"));
        if name.is_empty() {
            errors.push(name.required(""));
        }
        if names.has(name.str()) {
            errors.push(name.invalid("must be unique"));
        }
        match pod.volumes.get(name.str()) {
            Some(v) if v.get("persistentVolumeClaim").or(v.get("ephemeral")).is_none() => {
                errors.push(name.invalid(
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for \
                     block mode",
                ));
            }
            Some(_) => {}
            None => errors.push(FieldError::not_found(name.path(), name.str())),
        }
        if path.is_empty() {
            errors.push(path.required(""));
        }
        if paths.has(path.str()) {
            errors.push(path.invalid("must be unique"));
        }
        if path.str().split('/').any(|part| part == "..") {
            errors.push(path.invalid("can not contain backsteps ('..')"));
        } else {
            paths.insert(path.str());
        }
        if mounts.iter().any(|(n, _)| *n == name.str()) {
            errors.push(name.invalid("must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|(_, p)| *p == path.str()) {
            errors.push(path.invalid("must not already exist as a path in volumeMounts"));
        }
        if !name.is_empty() {
            names.insert(name.str());
        }
    }
}

fn resize_policy(errors: &mut ErrorList, at: &At<'_>, pod_restart_policy: &str) {
    let mut seen = Seen::default();
    for policy in at.items() {
        let (resource, restart) =
            (policy.at("resourceName").str(), policy.at("restartPolicy").str());
        if !seen.insert(resource) {
            errors.push(FieldError::duplicate(policy.path(), resource));
        }
        // Upstream reports the whole list.
        match resource {
            "cpu" | "memory" => {}
            "" => errors.push(at.required("")),
            other => {
                errors.push(FieldError::not_supported(at.path(), other, &["cpu", "memory"]));
            }
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.push(at.required("")),
            other => errors.push(FieldError::not_supported(
                at.path(),
                other,
                &["NotRequired", "RestartContainer"],
            )),
        }
        if pod_restart_policy == "Never" && restart != "NotRequired" {
            errors.push(
                at.invalid_as(restart, "must be 'NotRequired' when `restartPolicy` is 'Never'"),
            );
        }
    }
}

fn restart_policy(errors: &mut ErrorList, container: &At<'_>) {
    let (policy, rules) = (container.at("restartPolicy"), container.at("restartPolicyRules"));
    if policy.is_set() {
        supported(errors, &policy, &["Always", "Never", "OnFailure"]);
    } else if rules.is_empty() {
        return;
    } else {
        errors.push(policy.required("must specify restartPolicy when restart rules are used"));
    }
    if rules.len() > 20 {
        errors.push(rules.too_long(20));
    }
    for rule in rules.items() {
        supported(errors, &rule.at("action"), &["Restart"]);
        let codes = rule.at("exitCodes");
        if !codes.is_set() {
            errors.push(codes.required("must be specified"));
            continue;
        }
        supported(errors, &codes.at("operator"), &["In", "NotIn"]);
        if codes.at("values").len() > 255 {
            errors.push(codes.at("values").too_long(255));
        }
    }
}

fn init_restart_policy(errors: &mut ErrorList, container: &At<'_>) {
    let rules = container.at("restartPolicyRules");
    if is_sidecar(container.value()) && !rules.is_empty() {
        errors.push(rules.forbidden(
            "restartPolicyRules are not allowed for init containers with restart policy Always",
        ));
    } else if !is_sidecar(container.value()) {
        restart_policy(errors, container);
    }
}
