//! What types say of a policy's expressions: warnings in its status, which change nothing of what
//! it does (upstream: `validating/typechecking.go`, and the controller-manager's
//! `validatingadmissionpolicystatus`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::{GroupResource, GroupVersionKind, split_api_version};
use apimachinery::schema::{MessageId, Registry, Type as FieldType};
use apimachinery::{Value, object};
use http::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::environment::{Composition, Declared, compile, typed_environment};
use crate::admission::matching::GROUP;
use crate::api::Api;
use crate::apiextensions::rules;
use crate::cel::{Structure, Type};
use crate::pipeline::local;
use crate::reader::Reader as _;
use crate::registry::catalog::{Catalog, Served};

/// After a write that failed, all is looked at again.
const RETRY: Duration = Duration::from_millis(500);
/// So many types of one rule are checked (upstream: `maxTypesToCheck`).
const MAX_TYPES: usize = 10;

/// A message of the schema registry as a record.
struct Message {
    registry: &'static Registry,
    id: MessageId,
}

impl Structure for Message {
    fn name(&self) -> &str {
        &self.registry.message(self.id).name
    }

    fn field(&self, property: &str) -> Option<Type> {
        let field = self.registry.json_field(self.id, property)?;
        Some(type_of(self.registry, &field.ty))
    }
}

/// The type of the objects of a message.
pub fn message_type(registry: &'static Registry, id: MessageId) -> Type {
    Type::Object(Arc::new(Message { registry, id }))
}

fn type_of(registry: &'static Registry, ty: &FieldType) -> Type {
    match ty {
        FieldType::Bool => Type::Bool,
        FieldType::Int32 | FieldType::Int64 => Type::Int,
        FieldType::Double => Type::Double,
        FieldType::String | FieldType::Duration => Type::String,
        FieldType::Bytes => Type::Bytes,
        FieldType::Message(id) => message_type(registry, *id),
        FieldType::List(of) => Type::list(type_of(registry, of)),
        FieldType::Map(of) => Type::map(Type::String, type_of(registry, of)),
        FieldType::Time | FieldType::MicroTime => Type::Timestamp,
        _ => Type::Dyn,
    }
}

/// The types that a policy's rules name, by kind, as far as they name any.
fn types(policy: &Value, catalog: &Catalog) -> BTreeMap<GroupVersionKind, Type> {
    let mut found = BTreeMap::new();
    for rule in object::list_at(policy, &["spec", "matchConstraints", "resourceRules"]) {
        let texts = |field| {
            let list = object::list_at(rule, &[field]).iter().filter_map(Value::as_str);
            let mut list: Vec<&str> = list.collect();
            list.sort_unstable();
            list
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        let resources = texts("resources");
        let named = groups.iter().flat_map(|g| versions.iter().map(move |v| (*g, *v)));
        let served = named.flat_map(|(g, v)| {
            let plain = resources.iter().filter(|r| !r.contains(['*', '/']));
            plain.filter_map(move |r| catalog.find(g, v, r))
        });
        for served in served.take(MAX_TYPES) {
            if let Some(ty) = served_type(served) {
                found.insert(served.gvk.clone(), ty);
            }
        }
    }
    found
}

fn params_type(policy: &Value, catalog: &Catalog) -> Option<Type> {
    let kind = object::get(policy, &["spec", "paramKind"]).filter(|k| k.is_object())?;
    let (group, version) = split_api_version(object::str_at(kind, &["apiVersion"]));
    let gvk = GroupVersionKind::new(group, version, object::str_at(kind, &["kind"]));
    let served = catalog.rows().iter().find(|s| s.gvk == gvk)?;
    served_type(served)
}

/// The type of the objects of a resource, when it is known.
fn served_type(served: &Served) -> Option<Type> {
    match (&served.row.custom, served.schema()) {
        (Some(custom), _) => custom.version()?.schema.as_ref().and_then(rules::resource_type),
        (None, Some(schema)) => Some(message_type(schema.registry, schema.message)),
        (None, None) => None,
    }
}

/// What types say against a policy's expressions.
pub fn warnings(policy: &Value, catalog: &Catalog) -> Vec<Value> {
    let types = types(policy, catalog);
    let params = params_type(policy, catalog);
    let variables = object::list_at(policy, &["spec", "variables"]);
    let mut found = Vec::new();
    let check = |expression: &str| {
        let mut messages = Vec::new();
        for (kind, object) in &types {
            let declared = Declared { params: params.is_some(), authorizer: true };
            let params = params.as_ref().unwrap_or(&Type::Dyn);
            let mut composition = Composition::new(typed_environment(declared, object, params));
            for variable in variables {
                let text = |field| object::str_at(variable, &[field]);
                // What is wrong with a variable is told where it is.
                let _ = composition.add(text("name"), text("expression"));
            }
            if let Err(why) = compile(expression, &composition.env(None), &[]) {
                let GroupVersionKind { group, version, kind } = kind;
                messages.push(format!("{group}/{version}, Kind={kind}: {why}\n"));
            }
        }
        messages.join("\n")
    };
    for (i, validation) in object::list_at(policy, &["spec", "validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = object::str_at(validation, &[field]);
            if expression.is_empty() {
                continue;
            }
            let warning = check(expression);
            if !warning.is_empty() {
                let at = format!("spec.validations[{i}].{field}");
                found.push(json!({"fieldRef": at, "warning": warning}));
            }
        }
    }
    found
}

/// A policy with the status that it should have; `None`: it has it.
fn checked(policy: &Value, catalog: &Catalog) -> Option<Value> {
    let generation = object::generation(policy);
    let observed = object::int_at(policy, &["status", "observedGeneration"]).unwrap_or(0);
    let done = object::get(policy, &["status", "typeChecking"]).is_some_and(Value::is_object);
    if done && observed >= generation {
        return None;
    }
    let warnings = warnings(policy, catalog);
    let result =
        if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
    let mut checked = policy.clone();
    object::set(&mut checked, &["apiVersion"], format!("{GROUP}/v1"));
    object::set(&mut checked, &["kind"], "ValidatingAdmissionPolicy");
    object::set(&mut checked, &["status", "typeChecking"], result);
    object::set(&mut checked, &["status", "observedGeneration"], generation);
    Some(checked)
}

/// Writes the statuses that are missing; false: one could not be written.
async fn write_all(api: &Arc<Api>, resource: &GroupResource) -> bool {
    let mut written = true;
    for policy in api.caches.list(resource, "") {
        let Some(status) = checked(&policy, &api.catalog()) else { continue };
        let name = object::name(&policy);
        let path = format!("/apis/{GROUP}/v1/{}/{name}/status", resource.resource);
        if let Err(error) = local(api, Method::PUT, &path, Some(status)).await {
            tracing::debug!(%error, policy = name, "status of a policy");
            written = false;
        }
    }
    written
}

/// Keeps the status of all policies, until it is cancelled.
pub(crate) async fn run(api: Arc<Api>, stop: CancellationToken) {
    let resource = GroupResource::new(GROUP, "validatingadmissionpolicies");
    let mut changes = api.caches.changes(std::slice::from_ref(&resource));
    let following = async {
        let mut written = true;
        loop {
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep(RETRY), if !written => {}
            }
            written = write_all(&api, &resource).await;
        }
    };
    stop.run_until_cancelled(following).await;
}
