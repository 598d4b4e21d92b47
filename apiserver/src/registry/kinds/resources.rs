//! Amounts of resources: which names there are, how requests and limits must fit, and sums over
//! the containers of a pod.

use apimachinery::amounts::{Amounts, is_hugepages, is_native, of_spec, quantity, read};
use apimachinery::field::{ErrorList, FieldError};
use apimachinery::quantity::Quantity;
use apimachinery::{Value, names, object};

use super::check::{At, Seen};

pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether containers may ask for less than their limit.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

const OBJECT_COUNTS: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const STANDARD: [&str; 11] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "storage",
    "requests.storage",
];

/// Names without a slash that stand for resources.
pub fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name)
        || OBJECT_COUNTS.contains(&name)
        || is_hugepages(name)
        || name.starts_with("requests.hugepages-")
}

fn is_standard_for_containers(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_hugepages(name)
}

/// The name of any resource; false when an error was found.
pub fn resource_name(errors: &mut ErrorList, at: &At<'_>, name: &str) -> bool {
    let before = errors.len();
    errors.extend(names::qualified_name(name).into_iter().map(|m| at.invalid_as(name, m)));
    if errors.len() == before && !name.contains('/') && !is_standard(name) {
        errors.push(at.invalid_as(name, "must be a standard resource type or fully qualified"));
    }
    errors.len() == before
}

/// The name of a resource that a container may ask for.
pub fn container_resource_name(errors: &mut ErrorList, at: &At<'_>, name: &str) {
    resource_name(errors, at, name);
    if !name.contains('/') {
        if !is_standard_for_containers(name) {
            errors.push(at.invalid_as(name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(at.invalid_as(name, "doesn't follow extended resource name standard"));
    }
}

fn pod_resource_name(errors: &mut ErrorList, at: &At<'_>, name: &str) {
    if resource_name(errors, at, name) && !matches!(name, "cpu" | "memory") && !is_hugepages(name) {
        errors.push(FieldError::not_supported(at.path(), name, &["cpu", "hugepages-", "memory"]));
    }
}

/// An amount must not be negative, and whole where the resource is counted.
pub fn resource_value(errors: &mut ErrorList, at: &At<'_>, name: &str) {
    let Some(amount) = at.quantity() else { return };
    if amount.sign() < 0 {
        errors.push(at.invalid_as(amount.to_string(), "must be greater than or equal to 0"));
    }
    let counted = OBJECT_COUNTS.contains(&name) || is_extended(name);
    if counted && amount.milli_value() % 1000 != 0 {
        errors.push(at.invalid_as(amount.to_string(), "must be an integer"));
    }
}

/// Whose resources are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Container,
    Pod,
}

/// `resources` of a container or a pod. `claims` are the names in `spec.resourceClaims`.
pub fn requirements(errors: &mut ErrorList, at: &At<'_>, of: Of, claims: &[&str]) {
    let check_name = match of {
        Of::Container => container_resource_name,
        Of::Pod => pod_resource_name,
    };
    let (limits, requests) = (at.at("limits"), at.at("requests"));
    let mut compute = false;
    let mut huge = false;
    for (name, amount) in limits.entries() {
        check_name(errors, &amount, name);
        resource_value(errors, &amount, name);
        huge_page_value(errors, &amount, name, &mut huge);
        compute |= matches!(name, "cpu" | "memory");
    }
    for (name, amount) in requests.entries() {
        check_name(errors, &amount, name);
        resource_value(errors, &amount, name);
        within_limit(errors, &limits, &requests, name, &amount);
        huge_page_value(errors, &amount, name, &mut huge);
        compute |= matches!(name, "cpu" | "memory");
    }
    if huge && !compute {
        errors.push(at.forbidden("HugePages require cpu or memory"));
    }
    claim_names(errors, &at.at("claims"), claims);
}

fn within_limit(
    errors: &mut ErrorList,
    limits: &At<'_>,
    requests: &At<'_>,
    name: &str,
    amount: &At<'_>,
) {
    let limit = limits.value().get(name).and_then(quantity);
    let (Some(request), limit) = (amount.quantity(), limit) else { return };
    match limit {
        Some(limit) => {
            let order = compare(request, limit);
            if order.is_ne() && !overcommits(name) {
                let message = format!("must be equal to {name} limit of {limit}");
                errors.push(requests.invalid_as(request.to_string(), message));
            } else if order.is_gt() {
                let message = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(requests.invalid_as(request.to_string(), message));
            }
        }
        None if !overcommits(name) => {
            errors.push(limits.required("Limit must be set for non overcommitable resources"));
        }
        None => {}
    }
}

/// Order of two amounts, exact to thousandths.
pub fn compare(a: Quantity, b: Quantity) -> std::cmp::Ordering {
    // Thousandths overflow for amounts beyond 9e15; whole units decide those.
    a.value().cmp(&b.value()).then(a.milli_value().cmp(&b.milli_value()))
}

fn huge_page_value(errors: &mut ErrorList, at: &At<'_>, name: &str, seen: &mut bool) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    *seen = true;
    let (Some(amount), Ok(size)) = (at.quantity(), size.parse::<Quantity>()) else { return };
    if size.value() <= 0 || amount.value() % size.value() != 0 {
        let message = format!("{amount} is not positive integer multiple of {name}");
        errors.push(at.invalid_as(amount.to_string(), message));
    }
}

fn claim_names(errors: &mut ErrorList, at: &At<'_>, pod_claims: &[&str]) {
    let mut seen = Seen::default();
    let mut whole: Vec<String> = Vec::new();
    for claim in at.items() {
        let (name, request) = (claim.at("name").str(), claim.at("request"));
        if name.is_empty() {
            errors.push(claim.required(""));
            continue;
        }
        if seen.has(name) {
            errors.push(FieldError::duplicate(claim.path(), name));
        } else {
            let mut key = name.to_owned();
            if !request.str().is_empty() {
                super::check::invalid_each(errors, &request, names::dns1123_label(request.str()));
                key = format!("{name}/{}", request.str());
            } else if whole.iter().any(|n| n == name) {
                errors.push(FieldError::duplicate(claim.path(), name));
            }
            if seen.has(&key) {
                errors.push(FieldError::duplicate(claim.path(), key.as_str()));
            }
            seen.insert(key);
            whole.push(name.to_owned());
        }
        if !pod_claims.contains(&name) {
            let mut error = FieldError::not_found(claim.path(), name);
            let mut known = pod_claims.to_vec();
            known.sort_unstable();
            error.detail = match known.is_empty() {
                true => {
                    "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
                }
                false => format!(
                    "must be one of the names in pod.spec.resourceClaims: {}",
                    known.join(", ")
                ),
            };
            errors.push(error);
        }
    }
}

/// What the containers of a pod ask for together: the sum of those that run at once, or the
/// largest of the moments while the pod starts.
pub fn aggregate_requests(spec: &Value) -> Amounts {
    aggregate(spec, "requests")
}

/// The limits of the containers of a pod together.
pub fn aggregate_limits(spec: &Value) -> Amounts {
    aggregate(spec, "limits")
}

fn aggregate(spec: &Value, field: &str) -> Amounts {
    of_spec(spec, |container| read(object::get(container, &["resources", field])))
}
