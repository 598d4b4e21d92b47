//! What writes may change of a pod that exists: the main resource, `ephemeralcontainers`,
//! `resize` and `status`.

use apimachinery::amounts::is_sidecar;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::qos::qos_class;
use apimachinery::{Value, names, object};

use serde_json::json;

use super::super::check::{self, At, invalid_each, legacy_ip, range_message, same};
use super::super::difference::difference;
use super::spec::{self, Options};
use super::{MIRROR, placement};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,\
    `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn forbidden(path: &str, detail: impl Into<String>) -> FieldError {
    FieldError::forbidden(&Path::new(path), detail)
}

/// An update of the main resource.
pub fn main(errors: &mut ErrorList, pod: &At<'_>, old: &Value, options: &Options) {
    spec::pod_with_metadata(errors, pod, options);
    annotations(errors, pod, old);
    let spec = pod.at("spec");
    let old_spec = At::new(&old["spec"], spec.path().clone());
    for field in ["containers", "initContainers"] {
        if !same_count(errors, &spec.at(field), &old_spec.at(field)) {
            return;
        }
    }
    if !deadline(errors, &spec, &old_spec) {
        return;
    }
    only_added_tolerations(errors, &spec.at("tolerations"), &old_spec.at("tolerations"));
    only_removed_gates(errors, &spec.at("schedulingGates"), &old_spec.at("schedulingGates"));
    if same(spec.value(), old_spec.value()) {
        return;
    }
    let mut munged = spec.value().clone();
    take_updatable(&mut munged, old_spec.value());
    if !old_spec.at("schedulingGates").is_empty() {
        gated_changes(errors, &mut munged, &spec, &old_spec);
    }
    if !same(&munged, old_spec.value()) {
        let diff = difference(old_spec.value(), &munged);
        errors.push(spec.forbidden(format!(
            "pod updates may not change fields other than {UPDATABLE}\n{diff}"
        )));
    }
}

/// Mirror pods stay mirror pods.
fn annotations(errors: &mut ErrorList, pod: &At<'_>, old: &Value) {
    const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
    let new = pod.down(&["metadata", "annotations"]);
    let old = At::new(&old["metadata"]["annotations"], new.path().clone());
    for (key, value) in old.entries() {
        if new.value().get(key) == Some(value.value()) {
            continue;
        }
        if key.starts_with(APP_ARMOR) {
            errors.push(value.forbidden("may not remove or update AppArmor annotations"));
        }
        if key == MIRROR {
            errors.push(value.forbidden("may not remove or update mirror pod annotation"));
        }
    }
    for (key, value) in new.entries().filter(|(k, _)| old.value().get(*k).is_none()) {
        if key.starts_with(APP_ARMOR) {
            errors.push(value.forbidden("may not add AppArmor annotations"));
        }
        if key == MIRROR {
            errors.push(value.forbidden("may not add mirror pod annotation"));
        }
    }
}

fn same_count(errors: &mut ErrorList, new: &At<'_>, old: &At<'_>) -> bool {
    if new.len() != old.len() {
        errors.push(new.forbidden("pod updates may not add or remove containers"));
        return false;
    }
    for container in new.items() {
        let image = container.at("image");
        if image.is_empty() {
            errors.push(image.required(""));
        }
    }
    true
}

fn deadline(errors: &mut ErrorList, spec: &At<'_>, old: &At<'_>) -> bool {
    let (new, old) = (spec.at("activeDeadlineSeconds"), old.at("activeDeadlineSeconds"));
    match (new.opt_int(), old.opt_int()) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(new.invalid(range_message(0, i64::from(i32::MAX))));
            false
        }
        (Some(n), Some(o)) if o < n => {
            errors.push(new.invalid("must be less than or equal to previous value"));
            false
        }
        (None, Some(_)) => {
            errors.push(new.invalid("must not update from a positive integer to nil value"));
            true
        }
        _ => true,
    }
}

fn only_added_tolerations(errors: &mut ErrorList, new: &At<'_>, old: &At<'_>) {
    let but_seconds = |toleration: &Value| {
        let mut bare = toleration.clone();
        object::remove(&mut bare, &["tolerationSeconds"]);
        bare
    };
    for old in old.items() {
        let old = but_seconds(old.value());
        if !new.items().any(|n| same(&but_seconds(n.value()), &old)) {
            errors.push(
                new.forbidden(
                    "existing toleration can not be modified except its tolerationSeconds",
                ),
            );
            return;
        }
    }
    placement::tolerations(errors, new);
}

fn only_removed_gates(errors: &mut ErrorList, new: &At<'_>, old: &At<'_>) {
    for gate in new.items() {
        let name = gate.at("name");
        if !old.items().any(|o| o.at("name").str() == name.str()) {
            errors.push(name.forbidden(format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                name.str()
            )));
        }
    }
}

/// Puts the old values where a change is allowed, so that what still differs is not.
fn take_updatable(munged: &mut Value, old: &Value) {
    for field in ["containers", "initContainers"] {
        let olds = object::list_at(old, &[field]);
        for (container, old) in super::super::each(munged, field).zip(olds) {
            super::super::keep(container, old, &["image"]);
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        super::super::keep(munged, old, &[field]);
    }
    let grace = |spec: &Value| object::int_at(spec, &["terminationGracePeriodSeconds"]);
    if grace(old).is_some_and(|g| g < 0) && grace(munged) == Some(1) {
        super::super::keep(munged, old, &["terminationGracePeriodSeconds"]);
    }
}

/// Pods that wait at gates may be narrowed to fewer nodes.
fn gated_changes(errors: &mut ErrorList, munged: &mut Value, spec: &At<'_>, old: &At<'_>) {
    let (new, was) = (spec.at("nodeSelector"), old.at("nodeSelector"));
    if was.entries().any(|(k, v)| new.value().get(k) != Some(v.value())) {
        errors.push(new.invalid(
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ));
    }
    super::super::keep(munged, old.value(), &["nodeSelector"]);
    let path = ["affinity", "nodeAffinity"];
    if same(spec.down(&path).value(), old.down(&path).value()) {
        return;
    }
    node_affinity_change(errors, &spec.down(&path), &old.down(&path));
    super::super::keep(munged, old.value(), &path);
    if !old.at("affinity").is_set() && check::is_zero(&munged["affinity"]) {
        object::remove(munged, &["affinity"]);
    }
}

fn node_affinity_change(errors: &mut ErrorList, new: &At<'_>, old: &At<'_>) {
    let path = ["requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    if !old.at(path[0]).is_set() {
        return;
    }
    let (new, old) = (new.down(&path), old.down(&path));
    if !old.is_empty() && old.len() != new.len() {
        errors.push(
            new.invalid("no additions/deletions to non-empty NodeSelectorTerms list are allowed"),
        );
        return;
    }
    for (new, old) in new.items().zip(old.items()) {
        let fields = ["matchExpressions", "matchFields"];
        let begins_alike = fields.iter().all(|f| {
            let (new, old) = (new.at(f), old.at(f));
            new.len() >= old.len()
                && new.items().zip(old.items()).all(|(n, o)| same(n.value(), o.value()))
        });
        let was_empty = fields.iter().all(|f| old.at(f).is_empty());
        let is_empty = fields.iter().all(|f| new.at(f).is_empty());
        if !begins_alike || (was_empty && !is_empty) {
            errors.push(new.invalid("only additions are allowed (no mutations or deletions)"));
        }
    }
}

/// An update of `ephemeralcontainers`.
pub fn ephemeral(errors: &mut ErrorList, pod: &At<'_>, old: &Value, options: &Options) {
    spec::pod_with_metadata(errors, pod, options);
    annotations(errors, pod, old);
    if object::annotation(old, MIRROR).is_some() {
        *errors = vec![forbidden("", "static pods do not support ephemeral containers")];
        return;
    }
    let new = pod.down(&["spec", "ephemeralContainers"]);
    for old in object::list_at(old, &["spec", "ephemeralContainers"]) {
        let name = object::str_at(old, &["name"]);
        match new.items().find(|c| c.at("name").str() == name) {
            None => errors.push(new.forbidden(format!(
                "existing ephemeral containers \"{name}\" may not be removed\n"
            ))),
            Some(c) if !same(c.value(), old) => errors.push(new.forbidden(format!(
                "existing ephemeral containers \"{name}\" may not be changed\n{}",
                difference(old, c.value())
            ))),
            Some(_) => {}
        }
    }
}

/// An update of `resize`.
pub fn resize(errors: &mut ErrorList, pod: &At<'_>, old: &Value, options: &Options) {
    spec::pod_with_metadata(errors, pod, options);
    let refusal = if object::annotation(old, MIRROR).is_some() {
        Some("static pods cannot be resized")
    } else if object::str_at(old, &["spec", "os", "name"]) == "windows" {
        Some("windows pods cannot be resized")
    } else {
        None
    };
    if let Some(text) = refusal {
        *errors = vec![forbidden("", text)];
        return;
    }
    let spec = pod.at("spec");
    let old_spec = At::new(&old["spec"], spec.path().clone());
    let class = match object::str_at(old, &["status", "qosClass"]) {
        "" => qos_class(old),
        class => class,
    };
    if class != qos_class(pod.value()) {
        let shown = pod.down(&["status", "qosClass"]).str();
        let text = "Pod QOS Class may not change as a result of resizing";
        errors.push(spec.invalid_as(shown, text));
    }
    if !node_can_resize(old) {
        errors.push(spec.forbidden("Pod running on node without support for resize"));
    }
    let pod_level = |spec: &At<'_>| {
        ["requests", "limits"].iter().any(|f| !spec.at("resources").at(f).is_empty())
    };
    if pod_level(&spec) || pod_level(&old_spec) {
        errors.push(forbidden(
            "",
            "resize of pods with pod-level resources is forbidden when \
             InPlacePodLevelResourcesVerticalScalingEnabled feature gate is disabled",
        ));
        return;
    }
    if !same_order(errors, &spec, &old_spec) {
        return;
    }
    resources_kept(errors, &spec, &old_spec);
    let munged = without_resizes(errors, &spec, &old_spec);
    if errors.is_empty() && !same(&munged, old_spec.value()) {
        errors.push(spec.forbidden("only cpu and memory resources are mutable"));
    }
}

/// A kubelet that reports no resources of running containers cannot change them.
fn node_can_resize(pod: &Value) -> bool {
    object::list_at(pod, &["status", "containerStatuses"])
        .iter()
        .find(|s| object::get(s, &["state", "running"]).is_some())
        .is_none_or(|s| s.get("resources").is_some_and(|r| !r.is_null()))
}

fn same_order(errors: &mut ErrorList, spec: &At<'_>, old: &At<'_>) -> bool {
    let before = errors.len();
    for field in ["containers", "initContainers"] {
        let (new, old) = (spec.at(field), old.at(field));
        if new.len() != old.len() {
            errors.push(new.forbidden(format!("{field} may not be added or removed on resize")));
            continue;
        }
        for (new, old) in new.items().zip(old.items()) {
            if new.at("name").str() != old.at("name").str() {
                let text = format!("{field} may not be renamed or reordered on resize");
                errors.push(new.at("name").forbidden(text));
            }
        }
    }
    errors.len() == before
}

fn resources_kept(errors: &mut ErrorList, spec: &At<'_>, old: &At<'_>) {
    let sidecars = spec.at("initContainers").items().zip(old.at("initContainers").items());
    let main = spec.at("containers").items().zip(old.at("containers").items());
    for (new, old) in sidecars.filter(|(_, old)| is_sidecar(old.value())).chain(main) {
        for (field, text) in [
            ("requests", "resource requests cannot be removed"),
            ("limits", "resource limits cannot be removed"),
        ] {
            let new = new.down(&["resources", field]);
            let old = old.down(&["resources", field]);
            if old.entries().any(|(name, _)| new.value().get(name).is_none()) {
                errors.push(new.forbidden(text));
            }
        }
    }
}

/// The new spec with the old cpu and memory, and complaints about containers that differ still.
fn without_resizes(errors: &mut ErrorList, spec: &At<'_>, old: &At<'_>) -> Value {
    let mut munged = spec.value().clone();
    for (field, text) in [
        ("containers", "only cpu and memory resources are mutable"),
        ("initContainers", "only cpu and memory resources for sidecar containers are mutable"),
    ] {
        let olds = object::list_at(old.value(), &[field]);
        for (container, old) in super::super::each(&mut munged, field).zip(olds) {
            let mut text = text;
            if field == "initContainers" && !is_sidecar(container) {
                text = "resources for non-sidecar init containers are immutable";
            } else {
                for list in ["requests", "limits"] {
                    for name in ["cpu", "memory"] {
                        let path = ["resources", list, name];
                        if object::get(container, &path).or(object::get(old, &path)).is_some() {
                            super::super::keep(container, old, &path);
                        }
                    }
                }
            }
            if !same(container, old) {
                errors.push(spec.forbidden(text));
            }
        }
    }
    munged
}

/// An update of `status`.
pub fn status(errors: &mut ErrorList, pod: &At<'_>, old: &Value) {
    annotations(errors, pod, old);
    let status = pod.at("status");
    let old_status = At::new(&old["status"], status.path().clone());
    for condition in status.at("conditions").items() {
        observed(errors, &condition.at("observedGeneration"));
        let kind = condition.at("type").str();
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            let shown = condition.at("Type");
            let messages = names::qualified_name(kind);
            errors.extend(messages.into_iter().map(|m| shown.invalid_as(kind, m)));
        }
    }
    let node = pod.down(&["spec", "nodeName"]).str();
    let old_node = object::str_at(old, &["spec", "nodeName"]);
    if node != old_node {
        errors.push(status.at("nodeName").forbidden("may not be changed directly"));
    }
    let nominated = status.at("nominatedNodeName");
    if !nominated.is_empty() && nominated.str() != old_status.at("nominatedNodeName").str() {
        invalid_each(errors, &nominated, names::dns1123_subdomain(nominated.str()));
        if !old_node.is_empty() {
            errors.push(
                nominated.forbidden("may not be set on pods that are already bound to a node"),
            );
        }
    }
    observed(errors, &status.at("observedGeneration"));
    let class = status.at("qosClass");
    if class.str() != old_status.at("qosClass").str() {
        errors.push(class.invalid_as(class.str(), "field is immutable"));
    }
    for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        terminated_stay(errors, field, &status, &old_status, &old["spec"]);
    }
    ips(errors, &status.at("podIPs"));
    let host = status.at("hostIPs");
    if let Some(first) = host.items().next()
        && first.at("ip").str() != status.at("hostIP").str()
    {
        errors.push(first.at("ip").invalid("must be equal to `hostIP`"));
    }
    ips(errors, &host);
}

fn observed(errors: &mut ErrorList, at: &At<'_>) {
    if at.int() < 0 {
        errors.push(at.invalid("must be a non-negative integer"));
    }
}

/// A container that ended, and will not be started again, stays ended.
fn terminated_stay(
    errors: &mut ErrorList,
    field: &str,
    status: &At<'_>,
    old: &At<'_>,
    spec: &Value,
) {
    let containers = match field {
        "containerStatuses" => "containers",
        "initContainerStatuses" => "initContainers",
        _ => "",
    };
    for (i, old) in old.at(field).items().enumerate() {
        let terminated = old.down(&["state", "terminated"]);
        let name = old.at("name").str();
        let new = status.at(field).items().find(|s| s.at("name").str() == name);
        let revived = new.is_some_and(|n| !n.down(&["state", "terminated"]).is_set());
        if !terminated.is_set() || !revived {
            continue;
        }
        let own = object::list_at(spec, &[containers])
            .iter()
            .find(|c| object::str_at(c, &["name"]) == name);
        if !own.is_some_and(|c| restarts(c, spec, terminated.at("exitCode").int())) {
            let path = status.at(field).path().index(i).child("state");
            let text = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(&path, text));
        }
    }
}

/// Whether a container that ended with this code is started again.
fn restarts(container: &Value, spec: &Value, exit_code: i64) -> bool {
    for rule in object::list_at(container, &["restartPolicyRules"]) {
        let codes = object::list_at(rule, &["exitCodes", "values"]);
        let listed = codes.iter().any(|c| c.as_i64() == Some(exit_code));
        let hit = match object::str_at(rule, &["exitCodes", "operator"]) {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if hit {
            return object::str_at(rule, &["action"]) == "Restart";
        }
    }
    let policy = match object::str_at(container, &["restartPolicy"]) {
        "" => object::str_at(spec, &["restartPolicy"]),
        own => own,
    };
    match policy {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

fn ips(errors: &mut ErrorList, at: &At<'_>) {
    let mut six = Vec::new();
    for entry in at.items() {
        let ip = At::new(entry.at("ip").value(), entry.path().clone());
        check::check_legacy_ip(errors, &ip);
        six.push(legacy_ip(ip.str()).is_some_and(|ip| ip.is_ipv6()));
    }
    if six.len() > 1 && !check::is_dual_stack(&six) {
        // The capitals are upstream's.
        let shown: Vec<Value> = at.items().map(|e| json!({"IP": e.at("ip").str()})).collect();
        errors.push(at.invalid_as(shown, "may specify no more than one IP for each IP family"));
    }
}
