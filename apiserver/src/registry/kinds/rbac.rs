//! Roles and their bindings.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object;
use apimachinery::selector::LabelSelector;
use apimachinery::{Value, names};

use super::cells::{Cell, age_column, column, named, wide};
use super::check::{At, invalid_each, label_selector, same};
use super::row::Rows;
use super::{checked, child, default_to, each};
use crate::registry::{Column, Context, Strategy};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn rows(rows: &mut Rows<'_>) {
    let created = || named([super::cells::created_at_column()]);
    rows.add((GROUP, "v1"), ("Role", "roles"), |row| {
        row.strategy(Roles { namespaced: true }).columns(created())
    });
    rows.add((GROUP, "v1"), ("ClusterRole", "clusterroles"), |row| {
        row.cluster().strategy(Roles { namespaced: false }).columns(created())
    });
    rows.add((GROUP, "v1"), ("RoleBinding", "rolebindings"), |row| {
        row.strategy(Bindings { namespaced: true }).columns(binding_columns())
    });
    rows.add((GROUP, "v1"), ("ClusterRoleBinding", "clusterrolebindings"), |row| {
        row.cluster().strategy(Bindings { namespaced: false }).columns(binding_columns())
    });
}

struct Roles {
    namespaced: bool,
}

impl Strategy for Roles {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            for rule in root.at("rules").items() {
                policy_rule(errors, &rule, self.namespaced);
            }
            let aggregation = root.at("aggregationRule");
            if self.namespaced || !aggregation.is_set() {
                return;
            }
            let selectors = aggregation.at("clusterRoleSelectors");
            if selectors.is_empty() {
                errors.push(selectors.required(
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                ));
            }
            for selector in selectors.items() {
                label_selector(errors, &selector);
                if LabelSelector::from_json(Some(selector.value())).is_err() {
                    errors.push(selector.invalid_as(Value::Null, "invalid label selector."));
                }
            }
        })
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn policy_rule(errors: &mut ErrorList, rule: &At<'_>, namespaced: bool) {
    if rule.at("verbs").is_empty() {
        errors.push(rule.at("verbs").required("verbs must contain at least one value"));
    }
    let urls = rule.at("nonResourceURLs");
    let [groups, resources] = ["apiGroups", "resources"].map(|f| rule.at(f));
    if !urls.is_empty() {
        if namespaced {
            errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
        }
        if !groups.is_empty() || !resources.is_empty() || !rule.at("resourceNames").is_empty() {
            errors.push(
                urls.invalid("rules cannot apply to both regular resources and non-resource URLs"),
            );
        }
        return;
    }
    if groups.is_empty() {
        errors.push(groups.required("resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        errors.push(resources.required("resource rules must supply at least one resource"));
    }
}

struct Bindings {
    namespaced: bool,
}

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        default_to(child(object, "roleRef"), "apiGroup", GROUP);
        for subject in each(object, "subjects") {
            if matches!(object::str_at(subject, &["kind"]), "User" | "Group") {
                default_to(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let role = root.at("roleRef");
            let (group, kind, name) = (role.at("apiGroup"), role.at("kind"), role.at("name"));
            if group.str() != GROUP {
                errors.push(FieldError::not_supported(group.path(), group.str(), &[GROUP]));
            }
            let kinds: &[&str] =
                if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
            if !kinds.contains(&kind.str()) {
                errors.push(FieldError::not_supported(kind.path(), kind.str(), kinds));
            }
            match name.str() {
                "" => errors.push(name.required("")),
                text => invalid_each(errors, &name, names::path_segment(text)),
            }
            for subject in root.at("subjects").items() {
                self::subject(errors, &subject, self.namespaced);
            }
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(context, object);
        let role = At::root(object).at("roleRef");
        if !same(role.value(), &old["roleRef"]) {
            let error = role.invalid("cannot change roleRef");
            errors.push(error.of_type("io.k8s.api.rbac.v1.RoleRef"));
        }
        errors
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn subject(errors: &mut ErrorList, at: &At<'_>, namespaced: bool) {
    let [name, kind, group, namespace] =
        ["name", "kind", "apiGroup", "namespace"].map(|f| at.at(f));
    if name.is_empty() {
        errors.push(name.required(""));
    }
    match kind.str() {
        "ServiceAccount" => {
            if !name.is_empty() {
                invalid_each(errors, &name, names::dns1123_subdomain(name.str()));
            }
            if !group.is_empty() {
                errors.push(group.not_supported(&[""]));
            }
            if !namespaced && namespace.is_empty() {
                errors.push(namespace.required(""));
            }
        }
        "User" | "Group" => {
            if group.str() != GROUP {
                errors.push(FieldError::not_supported(group.path(), group.str(), &[GROUP]));
            }
        }
        other => errors.push(FieldError::not_supported(
            kind.path(),
            other,
            &["ServiceAccount", "User", "Group"],
        )),
    }
}

fn binding_columns() -> Vec<Column> {
    fn subjects(binding: &Value, kind: &str) -> Value {
        let names: Vec<String> = object::list_at(binding, &["subjects"])
            .iter()
            .filter(|s| object::str_at(s, &["kind"]) == kind)
            .map(|s| {
                let (name, namespace) =
                    (object::str_at(s, &["name"]), object::str_at(s, &["namespace"]));
                match (kind, namespace) {
                    ("ServiceAccount", namespace) if !namespace.is_empty() => {
                        format!("{namespace}/{name}")
                    }
                    _ => name.to_owned(),
                }
            })
            .collect();
        names.join(", ").into()
    }
    let role: Cell = |b, _| {
        let of = |field| object::str_at(b, &["roleRef", field]);
        format!("{}/{}", of("kind"), of("name")).into()
    };
    named([
        column("Role", "string", "The role that is given.", role),
        age_column(),
        wide("Users", "string", "Users who have it.", |b, _| subjects(b, "User")),
        wide("Groups", "string", "Groups that have it.", |b, _| subjects(b, "Group")),
        wide("ServiceAccounts", "string", "Service accounts that have it.", |b, _| {
            subjects(b, "ServiceAccount")
        }),
    ])
}
