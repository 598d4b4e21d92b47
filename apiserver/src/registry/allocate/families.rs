//! Which families of addresses a service has: its wishes, its old ones, and the cluster's.

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::names::parse_ip;
use apimachinery::object::{self, set};

use super::ranges::Family;
use super::strings;
use crate::registry::kinds::services::{cluster_ip_errors, is_headless};

/// Fills in `ipFamilies` and `ipFamilyPolicy`. `configured` are the cluster's families, its
/// default first.
pub(super) fn init(
    service: &mut Value,
    old: Option<&Value>,
    configured: &[Family],
) -> Result<(), ErrorList> {
    let external = object::str_at(service, &["spec", "type"]) == "ExternalName";
    if external || stays_preferring_both(service, old) {
        return Ok(());
    }
    let selectorless = is_headless(service)
        && object::map_at(service, &["spec", "selector"]).is_none_or(|s| s.is_empty());
    if policy(service).is_empty() {
        let of_old = old.map(policy).unwrap_or("");
        let policy = match of_old {
            "" if selectorless => "RequireDualStack",
            "" => "SingleStack",
            old => old,
        }
        .to_owned();
        set(service, &["spec", "ipFamilyPolicy"], policy);
    }
    let errors = cluster_ip_errors(service);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut errors = ErrorList::new();
    if let Some(old) = old {
        shrink(&mut errors, service, old);
    }
    match_policy(&mut errors, service);
    families_of_addresses(&mut errors, service, configured);
    if !errors.is_empty() {
        return Err(errors);
    }
    if selectorless {
        fill_selectorless(service, configured);
        return Ok(());
    }
    check_configured(&mut errors, service, configured);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut families = families(service);
    if families.is_empty() {
        families.extend(configured.first());
    }
    if policy(service) != "SingleStack" && families.len() == 1 && configured.len() == 2 {
        families.push(families[0].other());
    }
    set_families(service, &families);
    Ok(())
}

fn policy(service: &Value) -> &str {
    object::str_at(service, &["spec", "ipFamilyPolicy"])
}

fn families(service: &Value) -> Vec<Family> {
    strings(service, "ipFamilies").iter().map(|f| Family::of_name(f)).collect()
}

fn set_families(service: &mut Value, families: &[Family]) {
    let names: Vec<&str> = families.iter().map(|f| f.name()).collect();
    set(service, &["spec", "ipFamilies"], names);
}

/// An update that touches neither addresses nor families of a service that prefers both.
fn stays_preferring_both(service: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let kind = |s: &Value| object::str_at(s, &["spec", "type"]).to_owned();
    policy(service) == "PreferDualStack"
        && matches!(policy(old), "" | "PreferDualStack")
        && kind(service) == kind(old)
        && strings(service, "clusterIPs") == strings(old, "clusterIPs")
        && strings(service, "ipFamilies") == strings(old, "ipFamilies")
}

fn policy_error(service: &Value, text: &str) -> FieldError {
    FieldError::invalid(&Path::new("spec").child("ipFamilyPolicy"), policy(service), text)
}

/// Going back to one family gives the second up; doing so otherwise is an error.
fn shrink(errors: &mut ErrorList, service: &mut Value, old: &Value) {
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (mut new, was) = (strings(service, field), strings(old, field));
        if policy(service) == "SingleStack" {
            if new == was && new.len() > 1 {
                new.truncate(1);
                set(service, &["spec", field], new);
            }
        } else if !new.is_empty() && new.len() < was.len() {
            let text = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(policy_error(service, &text));
        }
    }
}

fn match_policy(errors: &mut ErrorList, service: &Value) {
    if policy(service) != "SingleStack" {
        return;
    }
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if strings(service, field).len() == 2 {
            errors.push(policy_error(service, &format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            )));
        }
    }
}

/// Addresses that are asked for say their families.
fn families_of_addresses(errors: &mut ErrorList, service: &mut Value, configured: &[Family]) {
    let ips = strings(service, "clusterIPs");
    if is_headless(service) {
        return;
    }
    let mut known = families(service);
    for (i, ip) in ips.iter().enumerate().skip(known.len()) {
        let Some(family) = parse_ip(ip).map(Family::of) else { continue };
        if configured.contains(&family) {
            known.push(family);
        } else {
            errors.push(FieldError::invalid(
                &Path::new("spec").child("clusterIPs").index(i),
                ips.clone(),
                format!("{} is not configured on this cluster", family.name()),
            ));
        }
    }
    if !known.is_empty() {
        set_families(service, &known);
    }
}

/// Headless services without a selector may have any addresses: their endpoints are the user's.
fn fill_selectorless(service: &mut Value, configured: &[Family]) {
    let mut families = families(service);
    if families.is_empty() {
        families.extend(configured.first());
    }
    if families.len() == 1 && policy(service) != "SingleStack" {
        families.push(families[0].other());
    }
    set_families(service, &families);
}

fn check_configured(errors: &mut ErrorList, service: &Value, configured: &[Family]) {
    if policy(service) == "RequireDualStack" && configured.len() < 2 {
        let text = "this cluster is not configured for dual-stack services";
        errors.push(policy_error(service, text));
    }
    for (i, family) in families(service).iter().enumerate() {
        if !configured.contains(family) {
            errors.push(FieldError::invalid(
                &Path::new("spec").child("ipFamilies").index(i),
                family.name(),
                "not configured on this cluster",
            ));
        }
    }
}
