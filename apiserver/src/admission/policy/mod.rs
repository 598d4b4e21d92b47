//! The plugin ValidatingAdmissionPolicy: rules in the form of expressions
//! (k8s.io/apiserver `admission/plugin/policy/validating`).

mod compiled;
pub mod environment;
#[cfg(test)]
mod tests;
pub mod typecheck;

use std::sync::Arc;

use apimachinery::gvk::{GroupResource, split_api_version};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use parking_lot::Mutex;

use super::expressions::{self, Conditions, Evaluator, Subject};
use super::matching::{self, Criteria, GROUP, Matched};
use super::webhook::Shared;
use super::{Attributes, Operation, Plugin, forbidden};
use crate::cel::{Budget, POLICY_BUDGET, Val, authz};
use crate::reader::Object;
use compiled::{Policy, Variables};

/// Longer messages than this are not shown, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// A binding of a policy.
struct Binding {
    value: Object,
    /// `matchResources`, if it has them.
    criteria: Option<Criteria>,
}

/// Policies with their bindings, as of some versions of both.
struct Known {
    versions: (u64, u64),
    policies: Arc<Vec<(Arc<Policy>, Vec<Binding>)>>,
}

/// Evaluates policies.
pub struct ValidatingPolicies {
    shared: Arc<Shared>,
    known: Mutex<Option<Known>>,
}

/// Why a request is refused.
struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: String,
}

impl ValidatingPolicies {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, known: Mutex::new(None) }
    }

    fn all(&self) -> Arc<Vec<(Arc<Policy>, Vec<Binding>)>> {
        let reader = &self.shared.lookup.reader;
        let policies = GroupResource::new(GROUP, "validatingadmissionpolicies");
        let bindings = GroupResource::new(GROUP, "validatingadmissionpolicybindings");
        let versions = (reader.version(&policies), reader.version(&bindings));
        let mut known = self.known.lock();
        if let Some(known) = known.as_ref().filter(|known| known.versions == versions) {
            return known.policies.clone();
        }
        let before = known.as_ref().map(|known| known.policies.clone()).unwrap_or_default();
        let bindings = reader.list(&bindings, "");
        let mut made = Vec::new();
        for value in reader.list(&policies, "") {
            let own: Vec<Binding> = bindings
                .iter()
                .filter(|b| object::str_at(b, &["spec", "policyName"]) == object::name(&value))
                .map(|b| Binding {
                    value: b.clone(),
                    criteria: object::get(b, &["spec", "matchResources"])
                        .filter(|m| m.is_object())
                        .map(Criteria::of_policy),
                })
                .collect();
            // What is bound to nothing decides nothing.
            if own.is_empty() {
                continue;
            }
            let same = |p: &Policy| {
                object::uid(&p.value) == object::uid(&value)
                    && object::generation(&p.value) == object::generation(&value)
            };
            let policy = match before.iter().find(|(p, _)| same(p)) {
                Some((policy, _)) => policy.clone(),
                None => Arc::new(Policy::compile(value)),
            };
            made.push((policy, own));
        }
        let policies = Arc::new(made);
        *known = Some(Known { versions, policies: policies.clone() });
        policies
    }

    async fn matches(
        &self,
        criteria: &Criteria,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<Option<Matched>, ApiError> {
        let catalog = self.shared.caches.catalog();
        criteria.matched(&self.shared.lookup, &catalog, attributes, object).await
    }

    /// The parameters of a binding for a request; one that is `None` for a policy without.
    fn params(
        &self,
        policy: &Value,
        binding: &Value,
        namespace: &str,
    ) -> Result<Vec<Option<Object>>, String> {
        let kind = object::get(policy, &["spec", "paramKind"]).filter(|k| k.is_object());
        let reference = object::get(binding, &["spec", "paramRef"]).filter(|r| r.is_object());
        let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
        let (group, version) = split_api_version(object::str_at(kind, &["apiVersion"]));
        let kind = object::str_at(kind, &["kind"]);
        let catalog = self.shared.caches.catalog();
        let served = catalog.rows().iter().find(|s| {
            s.gvk.group == group
                && s.gvk.version == version
                && s.gvk.kind == kind
                && s.cache.is_some()
        });
        let Some(served) = served else {
            return Err(format!("paramKind kind `{group}/{version}, Kind={kind}` not known"));
        };
        let text = |field| object::str_at(reference, &[field]);
        let of = match (served.row.namespaced, text("namespace")) {
            (false, "") => "",
            (false, _) => {
                return Err(
                    "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                        .to_owned(),
                );
            }
            (true, "") if namespace.is_empty() => {
                return Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                        .to_owned(),
                );
            }
            (true, "") => namespace,
            (true, named) => named,
        };
        let reader = &self.shared.lookup.reader;
        let found: Vec<Object> = match text("name") {
            "" => {
                let selector = matching::selector(reference, "selector");
                let all = reader.list(&served.gr, of);
                all.into_iter().filter(|o| selector.matches_object(o)).collect()
            }
            name => reader.get(&served.gr, of, name).into_iter().collect(),
        };
        if found.is_empty() && text("parameterNotFoundAction") == "Deny" {
            return Err(
                "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned()
            );
        }
        let api_version = served.api_version.as_str();
        Ok(found.into_iter().map(|o| Some(with_kind(o, api_version, kind))).collect())
    }

    /// Evaluates one policy for the parameters of one binding.
    async fn evaluate(
        &self,
        policy: &Arc<Policy>,
        subject: &Subject<'_>,
        resource: &authz::Resource,
        attributes: &Attributes<'_>,
    ) -> Vec<(String, String)> {
        let fails = |message: String| match policy.ignores_failures {
            true => Vec::new(),
            false => vec![(message, String::new())],
        };
        let evaluator = Evaluator { authorizer: &*self.shared.authorizer, user: attributes.user };
        let mut activation = subject.activation(Some(resource.clone()));
        match expressions::match_conditions(&policy.conditions, &evaluator, &mut activation).await {
            Conditions::Match => {}
            Conditions::NoMatch => return Vec::new(),
            Conditions::Failed(why) => return fails(why),
        }
        let variables = Arc::new(Variables::new(policy.clone()));
        activation.set("variables", Val::Fields(variables));
        let mut budget = Budget::new(POLICY_BUDGET);
        let mut denials = Vec::new();
        for validation in &policy.validations {
            let answer = match &validation.program {
                Ok(program) => evaluator.eval(program, &mut activation, &mut budget).await,
                Err(error) => Err(error.clone()),
            };
            match answer.map(|value| value.as_bool()) {
                Ok(Some(true)) => {}
                Ok(_) => {
                    let said = match &validation.message_program {
                        Some(Ok(program)) => {
                            let mut activation = subject.activation(None);
                            let variables = Arc::new(Variables::new(policy.clone()));
                            activation.set("variables", Val::Fields(variables));
                            let said = evaluator.eval(program, &mut activation, &mut budget).await;
                            said.ok().and_then(|v| v.as_str().map(|s| s.trim().to_owned()))
                        }
                        _ => None,
                    };
                    let said = said.filter(|s| s.len() <= MAX_MESSAGE && !s.contains('\n'));
                    let message = said
                        .filter(|s| !s.is_empty())
                        .or_else(|| Some(validation.message.clone()).filter(|m| !m.is_empty()))
                        .unwrap_or_else(|| {
                            format!("failed expression: {}", validation.expression.trim())
                        });
                    denials.push((message, validation.reason.clone()));
                }
                Err(why) => denials.extend(fails(why)),
            }
        }
        // What annotations say goes to the audit log, which there is not; that they can be
        // evaluated matters all the same.
        for annotation in &policy.annotations {
            let mut budget = Budget::new(POLICY_BUDGET);
            let answer = match annotation {
                Ok(program) => evaluator.eval(program, &mut activation, &mut budget).await,
                Err(error) => Err(error.clone()),
            };
            if let Err(why) = answer {
                denials.extend(fails(why));
            }
        }
        denials
    }

    /// What one policy says of a request by all its bindings.
    async fn policy(
        &self,
        (policy, bindings): (&Arc<Policy>, &[Binding]),
        attributes: &Attributes<'_>,
        object: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Denial>, ApiError> {
        let name = object::name(&policy.value).to_owned();
        let mut denials = Vec::new();
        let misconfigured = |binding: Option<&str>, why: String| {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let denial = Denial {
                policy: name.clone(),
                binding: binding.map(str::to_owned),
                message: format!("failed to configure {what}: {why}"),
                reason: String::new(),
            };
            Some(denial).filter(|_| !policy.ignores_failures)
        };
        let found = match self.matches(&policy.criteria, attributes, object).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(denials),
            Err(error) => {
                denials.extend(misconfigured(None, error.message()));
                return Ok(denials);
            }
        };
        let namespace = matching::namespace(attributes, object).to_owned();
        let catalog = self.shared.caches.catalog();
        for binding in bindings {
            let binding_name = object::name(&binding.value);
            if let Some(criteria) = &binding.criteria {
                match self.matches(criteria, attributes, object).await {
                    Ok(Some(_)) => {}
                    Ok(None) => continue,
                    Err(error) => {
                        denials.extend(misconfigured(Some(binding_name), error.message()));
                        continue;
                    }
                }
            }
            let params = match self.params(&policy.value, &binding.value, &namespace) {
                Ok(params) => params,
                Err(why) => {
                    denials.extend(misconfigured(Some(binding_name), why));
                    continue;
                }
            };
            let convert = |o| matching::converted_if_any(&catalog, attributes, &found, o);
            let shown = expressions::shown(convert(object).await?);
            let old = expressions::shown(convert(attributes.old).await?);
            let request = expressions::request(attributes, &namespace, &found);
            let resource = expressions::request_resource(attributes, &namespace);
            let namespace_object = self.namespace_object(attributes, &namespace).await?;
            for param in params {
                let param = param.as_deref().unwrap_or(&Value::Null);
                let subject = Subject {
                    object: &shown,
                    old: &old,
                    request: &request,
                    namespace: namespace_object.as_deref().unwrap_or(&Value::Null),
                    params: Some(param),
                };
                for (message, reason) in
                    self.evaluate(policy, &subject, &resource, attributes).await
                {
                    let actions = object::list_at(&binding.value, &["spec", "validationActions"]);
                    if actions.iter().any(|a| a == "Warn") {
                        warnings.push(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{binding_name}': {message}"
                        ));
                    }
                    if actions.iter().any(|a| a == "Audit") {
                        tracing::info!(policy = name, binding = binding_name, message, "audit");
                    }
                    if actions.iter().any(|a| a == "Deny") {
                        let binding = Some(binding_name.to_owned());
                        denials.push(Denial { policy: name.clone(), binding, message, reason });
                    }
                }
            }
        }
        Ok(denials)
    }

    async fn namespace_object(
        &self,
        attributes: &Attributes<'_>,
        namespace: &str,
    ) -> Result<Option<Object>, ApiError> {
        let kind = attributes.kind;
        let of_itself = (kind.group.as_str(), kind.version.as_str(), kind.kind.as_str())
            == ("", "v1", "Namespace");
        if namespace.is_empty() || of_itself {
            return Ok(None);
        }
        match matching::find_namespace(&self.shared.lookup, namespace).await {
            Some(found) => Ok(Some(found)),
            None => {
                let resource = GroupResource::new("", "namespaces");
                Err(ApiError::NotFound { resource, name: namespace.to_owned() })
            }
        }
    }
}

/// Cached objects say their kind only when they come alone.
fn with_kind(object: Object, api_version: &str, kind: &str) -> Object {
    if object::str_at(&object, &["kind"]) == kind {
        return object;
    }
    let mut object = (*object).clone();
    object::set(&mut object, &["apiVersion"], api_version);
    object::set(&mut object, &["kind"], kind);
    Arc::new(object)
}

#[async_trait]
impl Plugin for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        if matching::is_exempt(attributes) {
            return Ok(());
        }
        let mut first = None;
        for (policy, bindings) in self.all().iter() {
            let of = (policy, bindings.as_slice());
            let denials = self.policy(of, attributes, object, warnings).await?;
            first = first.or(denials.into_iter().next());
        }
        let Some(Denial { policy, binding, message, reason }) = first else { return Ok(()) };
        let with = binding.map(|b| format!(" with binding '{b}'")).unwrap_or_default();
        let text = format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {message}");
        let shown = forbidden(attributes, object, text).message();
        let (reason, code) = match reason.as_str() {
            "Forbidden" => ("Forbidden", 403),
            "Unauthorized" => ("Unauthorized", 401),
            "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
            _ => ("Invalid", 422),
        };
        Err(ApiError::Other { code, reason: reason.to_owned(), message: shown })
    }
}
