//! Which requests webhooks and policies are for: rules, selectors, and equivalent resources
//! (k8s.io/apiserver `plugin/webhook/predicates`).

use std::sync::Arc;

use apimachinery::gvk::{GroupResource, GroupVersionKind, api_version};
use apimachinery::selector::LabelSelector;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};

use super::lookup::Lookup;
use super::{Attributes, Operation};
use crate::registry::Action;
use crate::registry::catalog::{Catalog, Served};

pub(super) const GROUP: &str = "admissionregistration.k8s.io";

/// The resource, in a version, that a rule fits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matched {
    pub group: String,
    pub version: String,
    pub resource: String,
    /// The kind to convert to.
    pub kind: GroupVersionKind,
}

impl Matched {
    /// The resource that a request names.
    fn own(attributes: &Attributes<'_>) -> Self {
        Self {
            group: attributes.resource.group.clone(),
            version: attributes.version.to_owned(),
            resource: attributes.resource.resource.clone(),
            kind: attributes.kind.clone(),
        }
    }
}

/// What requests a webhook, a policy or a binding of one is for.
pub struct Criteria {
    namespaces: LabelSelector,
    objects: LabelSelector,
    /// `None`: for all resources.
    rules: Option<Vec<Value>>,
    excluded: Vec<Value>,
    equivalent: bool,
}

impl Criteria {
    /// Those of an item of `webhooks`.
    pub fn of_webhook(value: &Value) -> Self {
        Self::read(value, Some(object::list_at(value, &["rules"]).to_vec()))
    }

    /// Those of `matchConstraints` and `matchResources`.
    pub fn of_policy(value: &Value) -> Self {
        let rules = object::list_at(value, &["resourceRules"]).to_vec();
        Self::read(value, Some(rules).filter(|rules| !rules.is_empty()))
    }

    fn read(value: &Value, rules: Option<Vec<Value>>) -> Self {
        Self {
            namespaces: selector(value, "namespaceSelector"),
            objects: selector(value, "objectSelector"),
            rules,
            excluded: object::list_at(value, &["excludeResourceRules"]).to_vec(),
            equivalent: object::str_at(value, &["matchPolicy"]) != "Exact",
        }
    }

    /// The resource by which they fit a request, if they do.
    ///
    /// # Errors
    /// They would, but its namespace is not there.
    pub async fn matched(
        &self,
        lookup: &Lookup,
        catalog: &Catalog,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<Option<Matched>, ApiError> {
        let in_namespace = namespace_selected(&self.namespaces, lookup, attributes, object).await;
        if matches!(in_namespace, Ok(false))
            || !object_selected(&self.objects, object, attributes.old)
        {
            return Ok(None);
        }
        let fit = |rules| matched(rules, self.equivalent, catalog, attributes, object);
        if fit(&self.excluded).is_some() {
            return Ok(None);
        }
        let found = match &self.rules {
            Some(rules) => fit(rules),
            None => Some(Matched::own(attributes)),
        };
        // Only what is for the request may fail it.
        if found.is_some() {
            in_namespace?;
        }
        Ok(found)
    }
}

/// Objects that say how admission works are not subject to what they say.
pub fn is_exempt(attributes: &Attributes<'_>) -> bool {
    attributes.kind.group == GROUP
        && matches!(
            attributes.kind.kind.as_str(),
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// An operation as rules name it.
pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn is_namespace(attributes: &Attributes<'_>) -> bool {
    attributes.resource.group.is_empty() && attributes.resource.resource == "namespaces"
}

/// The namespace of a request. A Namespace is in itself.
pub fn namespace<'a>(attributes: &'a Attributes<'_>, object: Option<&'a Value>) -> &'a str {
    if !is_namespace(attributes) {
        return attributes.namespace;
    }
    match (attributes.name, object) {
        ("", Some(object)) => object::name(object),
        (name, _) => name,
    }
}

/// Whether a rule (`operations`, `apiGroups`, `apiVersions`, `resources`, `scope`) fits a request
/// of a resource.
fn rule_fits(
    rule: &Value,
    attributes: &Attributes<'_>,
    namespace: &str,
    (group, version, resource): (&str, &str, &str),
) -> bool {
    let any = |field: &str, wanted: &str| {
        let list = object::list_at(rule, &[field]);
        list.iter().filter_map(Value::as_str).any(|item| item == "*" || item == wanted)
    };
    let cluster = namespace.is_empty() || is_namespace(attributes);
    let scope = match object::str_at(rule, &["scope"]) {
        "Namespaced" => !cluster,
        "Cluster" => cluster,
        _ => true,
    };
    let fits_resource = |item: &str| {
        let (wanted, sub) = item.split_once('/').unwrap_or((item, ""));
        (wanted == "*" || wanted == resource) && (sub == "*" || sub == attributes.subresource)
    };
    scope
        && any("operations", operation_name(attributes.operation))
        && any("apiGroups", group)
        && any("apiVersions", version)
        && object::list_at(rule, &["resources"]).iter().filter_map(Value::as_str).any(fits_resource)
}

/// Other versions and groups of a request's resource, and the kinds they speak.
fn equivalents(catalog: &Catalog, attributes: &Attributes<'_>) -> Vec<Matched> {
    let GroupResource { group, resource } = attributes.resource;
    let Some(own) = catalog.find(group, attributes.version, resource) else { return Vec::new() };
    let speaks = |served: &Served| match attributes.subresource {
        "" => Some(served.gvk.clone()),
        name => match &served.subresource(name)?.action {
            Action::Part { .. } => Some(served.gvk.clone()),
            _ => Some(attributes.kind.clone()),
        },
    };
    let others = catalog.rows().iter().filter(|other| {
        other.row.storage.prefix == own.row.storage.prefix
            && other.cache.is_some()
            && !Arc::ptr_eq(other, own)
    });
    others
        .filter_map(|other| {
            Some(Matched {
                group: other.row.group.to_string(),
                version: other.row.version.to_string(),
                resource: other.row.plural.to_string(),
                kind: speaks(other)?,
            })
        })
        .collect()
}

/// The resource by which the first of some rules fits a request: its own, or, if `equivalent`,
/// one that is the same in another version.
fn matched(
    rules: &[Value],
    equivalent: bool,
    catalog: &Catalog,
    attributes: &Attributes<'_>,
    object: Option<&Value>,
) -> Option<Matched> {
    let namespace = namespace(attributes, object);
    let GroupResource { group, resource } = attributes.resource;
    let named = |rule: &Value| {
        let names = object::list_at(rule, &["resourceNames"]);
        names.is_empty() || names.iter().any(|n| n.as_str() == Some(attributes.name))
    };
    let own = (group.as_str(), attributes.version, resource.as_str());
    if rules.iter().any(|rule| rule_fits(rule, attributes, namespace, own) && named(rule)) {
        return Some(Matched::own(attributes));
    }
    if !equivalent {
        return None;
    }
    let others = equivalents(catalog, attributes);
    rules.iter().filter(|rule| named(rule)).find_map(|rule| {
        let fits = |m: &&Matched| {
            rule_fits(rule, attributes, namespace, (&m.group, &m.version, &m.resource))
        };
        others.iter().find(fits).cloned()
    })
}

/// Whether the labels of a request's namespace are those that a selector wants.
///
/// # Errors
/// There is no such namespace.
async fn namespace_selected(
    selector: &LabelSelector,
    lookup: &Lookup,
    attributes: &Attributes<'_>,
    object: Option<&Value>,
) -> Result<bool, ApiError> {
    let name = namespace(attributes, object);
    if (name.is_empty() && !is_namespace(attributes)) || selector.is_everything() {
        return Ok(true);
    }
    let own = matches!(attributes.operation, Operation::Create | Operation::Update);
    if let Some(object) = object
        && is_namespace(attributes)
        && attributes.subresource.is_empty()
        && own
    {
        return Ok(selector.matches_object(object));
    }
    match find_namespace(lookup, name).await {
        Some(found) => Ok(selector.matches_object(&found)),
        None => {
            let resource = GroupResource::new("", "namespaces");
            Err(ApiError::NotFound { resource, name: name.to_owned() })
        }
    }
}

/// A namespace, which may have been made a moment ago.
pub async fn find_namespace(lookup: &Lookup, name: &str) -> Option<crate::reader::Object> {
    let resource = GroupResource::new("", "namespaces");
    match lookup.cached(&resource, "", name) {
        Some(found) => Some(found),
        None => lookup.live(&resource, "", name).await,
    }
}

/// Whether one of a request's objects has the labels that a selector wants.
fn object_selected(selector: &LabelSelector, object: Option<&Value>, old: Option<&Value>) -> bool {
    let has_labels = |o: &Value| o.get("metadata").is_some_and(Value::is_object);
    let selected = |o: Option<&Value>| {
        o.is_some_and(|o| !o.is_null() && has_labels(o) && selector.matches_object(o))
    };
    selector.is_everything() || selected(object) || selected(old)
}

/// A selector of a webhook or policy. Absent is everything; so is one that cannot be read, which
/// validation does not let in: what guards is rather asked too often than not at all.
pub fn selector(of: &Value, field: &str) -> LabelSelector {
    let everything = || LabelSelector::new(Vec::new());
    match LabelSelector::from_json(of.get(field)) {
        Ok(found) => found.unwrap_or_else(everything),
        Err(error) => {
            tracing::warn!(field, %error, "a selector of admission cannot be read");
            everything()
        }
    }
}

/// An object in the version of a kind that is the same resource.
///
/// # Errors
/// The kind is not served, or the object does not fit it.
pub async fn converted(
    catalog: &Catalog,
    attributes: &Attributes<'_>,
    to: &Matched,
    object: &Value,
) -> Result<Value, ApiError> {
    let mut made = object.clone();
    let GroupResource { group, resource } = attributes.resource;
    let same = to.version == attributes.version && to.group == *group && to.resource == *resource;
    if !same && to.kind != *attributes.kind {
        let unknown = || ApiError::Internal(format!("unable to convert to {}", to.kind.kind));
        let from = catalog.find(group, attributes.version, resource).ok_or_else(unknown)?;
        let into = catalog.find(&to.group, &to.version, &to.resource).ok_or_else(unknown)?;
        convert(from, into, &mut made).await?;
    }
    set_kind(&mut made, &to.kind);
    Ok(made)
}

/// The same of what may not be there.
///
/// # Errors
/// As [`converted`].
pub async fn converted_if_any(
    catalog: &Catalog,
    attributes: &Attributes<'_>,
    to: &Matched,
    object: Option<&Value>,
) -> Result<Option<Value>, ApiError> {
    match object {
        Some(object) => converted(catalog, attributes, to, object).await.map(Some),
        None => Ok(None),
    }
}

/// The inverse of [`converted`].
///
/// # Errors
/// The same.
pub async fn converted_back(
    catalog: &Catalog,
    attributes: &Attributes<'_>,
    from: &Matched,
    mut object: Value,
) -> Result<Value, ApiError> {
    let GroupResource { group, resource } = attributes.resource;
    if from.kind != *attributes.kind {
        let unknown = || ApiError::Internal(format!("unable to convert from {}", from.kind.kind));
        let other = catalog.find(&from.group, &from.version, &from.resource);
        let own = catalog.find(group, attributes.version, resource);
        convert(other.ok_or_else(unknown)?, own.ok_or_else(unknown)?, &mut object).await?;
    }
    set_kind(&mut object, attributes.kind);
    Ok(object)
}

fn set_kind(object: &mut Value, kind: &GroupVersionKind) {
    if object.is_object() {
        object::set(object, &["apiVersion"], kind.api_version());
        object::set(object, &["kind"], kind.kind.as_str());
    }
}

async fn convert(from: &Served, to: &Served, object: &mut Value) -> Result<(), ApiError> {
    if let Some(custom) = &to.row.custom {
        *object = custom.convert(std::mem::take(object)).await?;
        return Ok(());
    }
    if !from.same_version {
        from.row.strategy.to_storage(object);
    }
    if !to.same_version {
        to.row.strategy.to_served(object);
    }
    object::set(object, &["apiVersion"], api_version(&to.row.group, &to.row.version));
    object::set(object, &["kind"], &*to.row.kind);
    to.canonicalize(object).map_err(|e| ApiError::Internal(e.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authentication::User;

    #[test]
    fn rules_fit_as_upstreams_do() {
        let user = User::default();
        let rule = |resources: &[&str], scope: &str| {
            json!({"operations": ["CREATE", "UPDATE"], "apiGroups": ["", "apps"],
                "apiVersions": ["v1"], "resources": resources, "scope": scope})
        };
        // resources, scope, then: group, resource, subresource, namespace; whether it fits
        for (resources, scope, asked, want) in [
            (&["pods"][..], "*", ("", "pods", "", "n"), true),
            (&["pods"], "*", ("", "pods", "status", "n"), false),
            (&["pods/*"], "*", ("", "pods", "status", "n"), true),
            (&["pods/*"], "*", ("", "pods", "", "n"), true),
            (&["*"], "*", ("", "pods", "", "n"), true),
            (&["*"], "*", ("", "pods", "log", "n"), false),
            (&["*/*"], "*", ("", "pods", "log", "n"), true),
            (&["*/scale"], "*", ("apps", "deployments", "scale", "n"), true),
            (&["*"], "Namespaced", ("", "nodes", "", ""), false),
            (&["*"], "Cluster", ("", "nodes", "", ""), true),
            (&["*"], "Cluster", ("", "pods", "", "n"), false),
            (&["*"], "Cluster", ("", "namespaces", "", "n"), true),
            (&["*"], "Namespaced", ("", "namespaces", "", "n"), false),
            (&["pods"], "*", ("batch", "pods", "", "n"), false),
        ] {
            let (group, resource, subresource, ns) = asked;
            let of = GroupResource::new(group, resource);
            let kind = GroupVersionKind::new(group, "v1", "X");
            let mut attributes = Attributes {
                operation: Operation::Create,
                kind: &kind,
                resource: &of,
                version: "v1",
                subresource,
                namespace: ns,
                name: "x",
                user: &user,
                old: None,
                options: &Value::Null,
                dry_run: false,
                reinvocation: None,
            };
            let fits = |a: &Attributes<'_>, version: &str| {
                rule_fits(&rule(resources, scope), a, ns, (group, version, resource))
            };
            assert_eq!(fits(&attributes, "v1"), want, "{resources:?} {scope} {asked:?}");
            assert!(!fits(&attributes, "v2"));
            attributes.operation = Operation::Delete;
            assert!(!fits(&attributes, "v1"));
        }
    }
}
