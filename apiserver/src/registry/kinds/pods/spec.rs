//! Validation of PodSpecs, in pods and in the templates of workloads.

use apimachinery::amounts::{self, is_hugepages};
use apimachinery::field::{ErrorList, FieldError};
use apimachinery::names;

use super::super::check::{
    At, annotations, check_legacy_ip, invalid_each, labels, one_of, range_message,
};
use super::super::resources::{Of, aggregate_limits, aggregate_requests, requirements};
use super::super::{label_name, subdomain_name};
use super::containers::{self, Surroundings};
use super::defaults::CONTAINERS;
use super::{MIRROR, placement, security, volumes};

/// What the rules depend on beside the spec.
#[derive(Clone, Debug)]
pub struct Options {
    /// A pod, not a template.
    pub is_pod: bool,
    /// `--allow-privileged`
    pub allow_privileged: bool,
}

/// The metadata that PodSpecs have rules about, and the spec.
pub fn pod_with_metadata(errors: &mut ErrorList, pod: &At<'_>, options: &Options) {
    let spec = pod.at("spec");
    pod_annotations(errors, &pod.down(&["metadata", "annotations"]), &spec);
    pod_spec(errors, &spec, pod.down(&["metadata", "name"]).str(), options);
    if spec.at("serviceAccountName").is_empty() {
        for volume in spec.at("volumes").items() {
            for source in volume.down(&["projected", "sources"]).items() {
                let token = source.at("serviceAccountToken");
                if token.is_set() {
                    errors.push(
                        token.forbidden("must not be specified when serviceAccountName is not set"),
                    );
                }
            }
        }
    }
    for field in ["containers", "initContainers"] {
        spec.at(field).items().for_each(|c| containers::trimmed_image(errors, &c));
    }
}

/// The template of a workload.
pub fn template(errors: &mut ErrorList, at: &At<'_>, options: &Options) {
    let options = Options { is_pod: false, ..options.clone() };
    let spec = at.at("spec");
    // Upstream leaves `metadata` out of these paths.
    let here = |field: &str| At::new(at.down(&["metadata", field]).value(), at.path().child(field));
    labels(errors, &here("labels"));
    annotations(errors, &here("annotations"));
    pod_annotations(errors, &here("annotations"), &spec);
    pod_spec(errors, &spec, "", &options);
    if !spec.at("ephemeralContainers").is_empty() {
        errors.push(
            spec.at("ephemeralContainers")
                .forbidden("ephemeral containers not allowed in pod template"),
        );
    }
}

fn pod_annotations(errors: &mut ErrorList, at: &At<'_>, spec: &At<'_>) {
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
    for (key, value) in at.entries() {
        if key == MIRROR && spec.at("nodeName").is_empty() {
            errors.push(value.invalid("must set spec.nodeName if mirror pod annotation is set"));
        }
        if key == COST && !is_deletion_cost(value.str()) {
            errors.push(value.invalid("must be a 32bit integer"));
        }
        if let Some(name) = key.strip_prefix(APP_ARMOR) {
            let all = CONTAINERS.iter().flat_map(|f| spec.at(f).items());
            if !all.into_iter().any(|c| c.at("name").str() == name) {
                errors.push(value.invalid_as(name, "container not found"));
            }
            let profile = value.str();
            let known = matches!(profile, "" | "runtime/default" | "unconfined")
                || profile.starts_with("localhost/");
            if !known {
                let text = format!("invalid AppArmor profile name: \"{profile}\"");
                errors.push(value.invalid(text));
            }
        }
    }
}

/// A 32-bit integer without a leading zero or plus sign.
fn is_deletion_cost(text: &str) -> bool {
    let padded = text.starts_with('+') || (text.starts_with('0') && text.len() > 1);
    !padded && text.parse::<i32>().is_ok()
}

/// A PodSpec. `pod_name` is empty in templates.
pub fn pod_spec(errors: &mut ErrorList, spec: &At<'_>, pod_name: &str, options: &Options) {
    let grace = spec.at("terminationGracePeriodSeconds");
    if !grace.is_set() {
        errors.push(grace.required(""));
    }
    let volumes = volumes::volumes(errors, &spec.at("volumes"), pod_name, options);
    let claims = resource_claims(errors, &spec.at("resourceClaims"));
    let around = Surroundings {
        options,
        volumes,
        claims,
        grace_period: grace.opt_int(),
        restart_policy: spec.at("restartPolicy").str(),
        host_users: spec.at("hostUsers").opt_bool() != Some(false),
        os: spec.at("os").is_set().then(|| spec.down(&["os", "name"]).str()),
    };
    let [main, init, ephemeral] = CONTAINERS.map(|f| spec.at(f));
    containers::containers(errors, &main, &around);
    containers::init_containers(errors, &init, &main, &around);
    containers::ephemeral_containers(errors, &ephemeral, [&main, &init], &around);
    pod_resources(errors, spec, &around.claims);
    host_network(errors, spec, options);
    one_of(errors, &spec.at("restartPolicy"), &["Always", "OnFailure", "Never"]);
    one_of(
        errors,
        &spec.at("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    labels(errors, &spec.at("nodeSelector"));
    security::pod(errors, &spec.at("securityContext"), spec);
    placement::affinity(errors, &spec.at("affinity"));
    dns(errors, spec);
    for gate in spec.at("readinessGates").items() {
        let kind = gate.at("conditionType");
        let messages = names::qualified_name(kind.str());
        errors.extend(messages.into_iter().map(|m| kind.invalid_as(kind.str(), m)));
    }
    placement::gates(errors, &spec.at("schedulingGates"));
    placement::spread(errors, &spec.at("topologySpreadConstraints"));
    security::host_process(errors, spec, options.allow_privileged);
    host_users(errors, spec);
    host_name(errors, spec);
    references(errors, spec);
    placement::tolerations(errors, &spec.at("tolerations"));
    host_aliases(errors, &spec.at("hostAliases"));
    classes(errors, spec);
    security::os(errors, spec);
    file_key_volumes(errors, spec);
}

fn resource_claims<'a>(errors: &mut ErrorList, at: &At<'a>) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for claim in at.items() {
        let name = claim.at("name");
        if name.is_empty() {
            errors.push(name.required(""));
        } else if seen.contains(&name.str()) {
            errors.push(name.duplicate());
        } else {
            invalid_each(errors, &name, names::dns1123_label(name.str()));
            seen.push(name.str());
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"].map(|f| claim.at(f));
        match sources.iter().filter(|s| s.is_set()).count() {
            0 => errors.push(claim.invalid(
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            )),
            1 => {}
            _ => errors.push(claim.invalid(
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            )),
        }
        for source in sources.iter().filter(|s| s.is_set()) {
            invalid_each(errors, source, names::dns1123_subdomain(source.str()));
        }
    }
    seen
}

/// Pod-level resources hold at least what the containers ask for.
fn pod_resources(errors: &mut ErrorList, spec: &At<'_>, claims: &[&str]) {
    let at = spec.at("resources");
    if !at.is_set() {
        return;
    }
    if spec.down(&["os", "name"]).str() == "windows" {
        errors.push(at.forbidden("may not be set for a windows pod"));
        return;
    }
    if at.at("claims").is_set() {
        errors.push(at.at("claims").forbidden("claims may not be set for Resources at pod-level"));
    }
    requirements(errors, &at, Of::Pod, claims);
    let requests = amounts::read(Some(at.at("requests").value()));
    for (name, sum) in aggregate_requests(spec.value()) {
        if let Some(own) = requests.get(&name).filter(|own| sum > **own) {
            errors.push(FieldError::invalid(
                &at.path().child("requests").key(&name),
                own.to_string(),
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            ));
        }
    }
    let limits = amounts::read(Some(at.at("limits").value()));
    for (name, sum) in aggregate_limits(spec.value()) {
        let own = limits.get(&name).filter(|own| is_hugepages(&name) && sum > **own);
        if let Some(own) = own {
            errors.push(FieldError::invalid(
                &at.path().child("limits").key(&name),
                own.to_string(),
                format!("must be greater than or equal to aggregate container limits of {sum}"),
            ));
        }
    }
    for (i, container) in spec.at("containers").items().enumerate() {
        let own = amounts::read(Some(container.down(&["resources", "limits"]).value()));
        for (name, limit) in own {
            if let Some(pod) = limits.get(&name).filter(|pod| limit > **pod) {
                let path = at.path().child("containers").index(i).key(&name).child("limits");
                let text = format!("must be less than or equal to pod limits of {pod}");
                errors.push(FieldError::invalid(&path, limit.to_string(), text));
            }
        }
    }
}

/// Ports of containers in the host's network are the host's.
fn host_network(errors: &mut ErrorList, spec: &At<'_>, options: &Options) {
    if !spec.at("hostNetwork").bool() {
        return;
    }
    for port in spec.at("containers").items().flat_map(|c| c.at("ports").items()) {
        let (host, number) = (port.at("hostPort"), port.at("containerPort").int());
        if (options.is_pod || host.int() != 0) && host.int() != number {
            errors.push(
                host.invalid_as(
                    host.int(),
                    "must match `containerPort` when `hostNetwork` is true",
                ),
            );
        }
    }
}

fn dns(errors: &mut ErrorList, spec: &At<'_>) {
    let at = spec.at("dnsConfig");
    let (servers, searches) = (at.at("nameservers"), at.at("searches"));
    if spec.at("dnsPolicy").str() == "None" {
        if !at.is_set() {
            errors.push(at.required("must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            errors.push(
                servers
                    .required("must provide at least one DNS nameserver when `dnsPolicy` is None"),
            );
            return;
        }
    }
    if servers.len() > 3 {
        errors.push(servers.invalid("must not have more than 3 nameservers"));
    }
    for server in servers.items() {
        check_legacy_ip(errors, &server);
    }
    if searches.len() > 32 {
        errors.push(searches.invalid("must not have more than 32 search paths"));
    }
    let characters = searches.strings().map(|s| s.len() + 1).sum::<usize>().saturating_sub(1);
    if characters > 2048 {
        errors.push(searches.invalid(
            "must not have more than 2048 characters (including spaces) in the search list",
        ));
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        let name = search.str().strip_suffix('.').unwrap_or(search.str());
        let messages = names::dns1123_subdomain_with_underscore(name);
        errors.extend(messages.into_iter().map(|m| search.invalid_as(name, m)));
    }
    for option in at.at("options").items().filter(|o| o.at("name").is_empty()) {
        errors.push(option.required("must not be empty"));
    }
}

/// A pod with users of its own shares no namespace with the host.
fn host_users(errors: &mut ErrorList, spec: &At<'_>) {
    const TEXT: &str = "when `hostUsers` is false";
    if spec.at("hostUsers").opt_bool() != Some(false) {
        return;
    }
    // The capitals are upstream's.
    for (field, shown) in
        [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
    {
        if spec.at(field).bool() {
            errors.push(FieldError::forbidden(&spec.path().child(shown), TEXT));
        }
    }
    for container in CONTAINERS.iter().flat_map(|f| spec.at(f).items()) {
        let devices = container.at("volumeDevices");
        if !devices.is_empty() {
            errors.push(devices.forbidden(TEXT));
        }
    }
}

fn host_name(errors: &mut ErrorList, spec: &At<'_>) {
    let at = spec.at("hostnameOverride");
    if !at.is_set() {
        return;
    }
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec.at(field).bool() {
            errors.push(at.forbidden(format!("may not be specified when {field} is true")));
        }
    }
    if at.len() > 64 {
        errors.push(at.too_long(64));
    }
    invalid_each(errors, &at, names::dns1123_subdomain(at.str()));
}

fn references(errors: &mut ErrorList, spec: &At<'_>) {
    for field in ["serviceAccountName", "nodeName"] {
        let name = spec.at(field);
        if !name.is_empty() {
            invalid_each(errors, &name, subdomain_name(name.str(), false));
        }
    }
    let deadline = spec.at("activeDeadlineSeconds");
    if deadline.opt_int().is_some_and(|s| !(1..=i64::from(i32::MAX)).contains(&s)) {
        errors.push(deadline.invalid(range_message(1, i64::from(i32::MAX))));
    }
    for field in ["hostname", "subdomain"] {
        let name = spec.at(field);
        if !name.is_empty() {
            invalid_each(errors, &name, label_name(name.str(), false));
        }
    }
}

fn host_aliases(errors: &mut ErrorList, at: &At<'_>) {
    for alias in at.items() {
        check_legacy_ip(errors, &alias.at("ip"));
        for name in alias.at("hostnames").items() {
            invalid_each(errors, &name, names::dns1123_subdomain(name.str()));
        }
    }
}

fn classes(errors: &mut ErrorList, spec: &At<'_>) {
    let (priority, runtime) = (spec.at("priorityClassName"), spec.at("runtimeClassName"));
    if !priority.is_empty() {
        invalid_each(errors, &priority, names::dns1123_subdomain(priority.str()));
    }
    if runtime.is_set() {
        invalid_each(errors, &runtime, names::dns1123_subdomain(runtime.str()));
    }
    let preemption = spec.at("preemptionPolicy");
    if preemption.is_set() {
        one_of(errors, &preemption, &["PreemptLowerPriority", "Never"]);
    }
    let overhead = spec.at("overhead");
    if overhead.is_set() {
        let wrapped = serde_json::json!({"limits": overhead.value()});
        requirements(errors, &At::new(&wrapped, overhead.path().clone()), Of::Container, &[]);
    }
}

/// Environment variables from files: the files are in emptyDirs of the pod.
fn file_key_volumes(errors: &mut ErrorList, spec: &At<'_>) {
    let volumes = spec.at("volumes");
    for container in CONTAINERS.iter().flat_map(|f| spec.at(f).items()) {
        for env in container.at("env").items() {
            let name = env.down(&["valueFrom", "fileKeyRef", "volumeName"]);
            if !env.down(&["valueFrom", "fileKeyRef"]).is_set() {
                continue;
            }
            match volumes.items().find(|v| v.at("name").str() == name.str()) {
                None => errors.push(FieldError::not_found(name.path(), name.str())),
                Some(volume) if !volume.at("emptyDir").is_set() => {
                    errors.push(name.invalid("referenced volume must be of type emptyDir"));
                }
                Some(_) => {}
            }
        }
    }
}
