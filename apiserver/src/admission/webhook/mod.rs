//! The plugins MutatingAdmissionWebhook and ValidatingAdmissionWebhook
//! (k8s.io/apiserver `admission/plugin/webhook`).

mod review;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::codec::{Schema, canonicalize};
use apimachinery::gvk::GroupResource;
use apimachinery::patch::json as json_patch;
use apimachinery::schema::Registry;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use parking_lot::Mutex;

use super::expressions::{self, Conditions, Evaluator, Subject};
use super::lookup::Lookup;
use super::matching::{self, Criteria, GROUP, Matched};
use super::policy::environment::{Declared, compile, environment};
use super::{Attributes, Operation, Plugin};
use crate::authorization::Authorizer;
use crate::cel::{Program, Type};
use crate::reader::Caches;
use crate::webhook::{Client, WebhookError};
use review::Verdict;

/// One webhook of a configuration.
struct Hook {
    /// Unique among all: configuration, name, and which of that name.
    id: String,
    name: String,
    value: Value,
    criteria: Criteria,
    conditions: Vec<Result<Program, String>>,
    timeout: Duration,
    ignores_failures: bool,
}

impl Hook {
    fn read(configuration: &str, at: usize, value: &Value) -> Self {
        let text = |field| object::str_at(value, &[field]);
        let name = text("name").to_owned();
        let env = environment(Declared { params: false, authorizer: true });
        let conditions = object::list_at(value, &["matchConditions"]).iter();
        let conditions = conditions
            .map(|c| compile(object::str_at(c, &["expression"]).trim(), &env, &[Type::Bool]))
            .collect();
        let seconds = object::int_at(value, &["timeoutSeconds"]).unwrap_or(10);
        Self {
            id: format!("{configuration}/{name}/{at}"),
            criteria: Criteria::of_webhook(value),
            conditions,
            timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(10)),
            ignores_failures: text("failurePolicy") == "Ignore",
            name,
            value: value.clone(),
        }
    }
}

/// What both plugins work with.
pub struct Shared {
    pub caches: Arc<Caches>,
    pub lookup: Lookup,
    pub client: Arc<Client>,
    pub authorizer: Arc<dyn Authorizer>,
}

/// Why a webhook let nothing pass.
enum Refusal {
    /// It could not be called, or its answer made no sense.
    Calling(String),
    /// It said no, or the request cannot be put to it.
    Denied(ApiError),
}

/// The webhooks of one kind of configuration.
struct Hooks {
    shared: Arc<Shared>,
    resource: GroupResource,
    /// As of a version of the configurations.
    known: Mutex<Option<(u64, Arc<Vec<Hook>>)>>,
}

impl Hooks {
    fn new(shared: Arc<Shared>, resource: &str) -> Self {
        let resource = GroupResource::new(GROUP, resource);
        Self { shared, resource, known: Mutex::new(None) }
    }

    /// All webhooks, by the names of their configurations.
    fn all(&self) -> Arc<Vec<Hook>> {
        let reader = &self.shared.lookup.reader;
        // Taken before the objects, so that it is never newer than they are.
        let version = reader.version(&self.resource);
        if let Some((known, hooks)) = &*self.known.lock()
            && *known == version
        {
            return hooks.clone();
        }
        let mut configurations = reader.list(&self.resource, "");
        configurations.sort_by(|a, b| object::name(a).cmp(object::name(b)));
        let mut hooks = Vec::new();
        for configuration in &configurations {
            let name = object::name(configuration);
            let list = object::list_at(configuration, &["webhooks"]);
            hooks.extend(list.iter().enumerate().map(|(i, hook)| Hook::read(name, i, hook)));
        }
        let hooks = Arc::new(hooks);
        *self.known.lock() = Some((version, hooks.clone()));
        hooks
    }

    /// By which resource a webhook is to be called for a request, if it is.
    async fn invocation(
        &self,
        hook: &Hook,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<Option<Matched>, ApiError> {
        let catalog = self.shared.caches.catalog();
        let lookup = &self.shared.lookup;
        let found = hook.criteria.matched(lookup, &catalog, attributes, object).await?;
        let Some(found) = found else { return Ok(None) };
        if hook.conditions.is_empty() {
            return Ok(Some(found));
        }
        let convert = |o| matching::converted_if_any(&catalog, attributes, &found, o);
        let shown = expressions::shown(convert(object).await?);
        let old = expressions::shown(convert(attributes.old).await?);
        let namespace = matching::namespace(attributes, object);
        let request = expressions::request(attributes, namespace, &found);
        let subject = Subject {
            object: &shown,
            old: &old,
            request: &request,
            namespace: &Value::Null,
            params: None,
        };
        let resource = expressions::request_resource(attributes, namespace);
        let mut activation = subject.activation(Some(resource));
        let evaluator = Evaluator { authorizer: &*self.shared.authorizer, user: attributes.user };
        match expressions::match_conditions(&hook.conditions, &evaluator, &mut activation).await {
            Conditions::Match => Ok(Some(found)),
            Conditions::NoMatch => Ok(None),
            Conditions::Failed(_) if hook.ignores_failures => Ok(None),
            Conditions::Failed(reason) => Err(ApiError::Forbidden {
                resource: attributes.resource.clone(),
                name: attributes.name.to_owned(),
                reason,
            }),
        }
    }

    /// Calls a webhook.
    async fn call(
        &self,
        hook: &Hook,
        found: &Matched,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
        mutating: bool,
    ) -> Result<Verdict, Refusal> {
        let effects = object::str_at(&hook.value, &["sideEffects"]);
        if attributes.dry_run && !matches!(effects, "None" | "NoneOnDryRun") {
            let text = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(Refusal::Denied(ApiError::BadRequest(text)));
        }
        let catalog = self.shared.caches.catalog();
        let convert = |o| matching::converted_if_any(&catalog, attributes, found, o);
        let shown = expressions::shown(convert(object).await.map_err(Refusal::Denied)?);
        let old = expressions::shown(convert(attributes.old).await.map_err(Refusal::Denied)?);
        let namespace = matching::namespace(attributes, object);
        let mut request = expressions::request(attributes, namespace, found);
        request["object"] = shown;
        request["oldObject"] = old;
        let known = review::version(object::list_at(&hook.value, &["admissionReviewVersions"]));
        let Some(version) = known else {
            let text = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            return Err(Refusal::Calling(text.to_owned()));
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let body = review::review(version, &uid, request);
        let config = hook.value.get("clientConfig").unwrap_or(&Value::Null);
        let answer = self.shared.client.call(config, &body, hook.timeout).await;
        let answer = answer.map_err(|error| {
            Refusal::Calling(match &error {
                WebhookError::Config(_) => format!("could not get REST client: {error}"),
                _ => format!("failed to call webhook: {error}"),
            })
        })?;
        let verdict = review::verdict(version, &uid, mutating, &hook.name, &answer);
        verdict.map_err(|why| Refusal::Calling(format!("received invalid webhook response: {why}")))
    }
}

/// What a refusal means for the request: nothing, if the webhook's failures are to be ignored.
fn consequence(hook: &Hook, refusal: Refusal) -> Result<(), ApiError> {
    match refusal {
        Refusal::Denied(error) => Err(error),
        Refusal::Calling(why) => {
            let text = format!("failed calling webhook {:?}: {why}", hook.name);
            if hook.ignores_failures {
                tracing::warn!(webhook = hook.name, why, "a webhook failed, and is passed over");
                return Ok(());
            }
            Err(ApiError::Internal(text))
        }
    }
}

/// Calls webhooks that may change objects, one after the other.
pub struct Mutating(Hooks);

impl Mutating {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self(Hooks::new(shared, "mutatingwebhookconfigurations"))
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn mutate(
        &self,
        attributes: &Attributes<'_>,
        mut object: Option<&mut Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        if matching::is_exempt(attributes) {
            return Ok(());
        }
        let hooks = self.0.all();
        if hooks.is_empty() {
            return Ok(());
        }
        let again = attributes.reinvocation;
        if let (Some(again), Some(object)) = (again, object.as_deref()) {
            again.begin(object);
        }
        for hook in hooks.iter() {
            let found = self.0.invocation(hook, attributes, object.as_deref()).await?;
            let Some(found) = found else { continue };
            if again.is_some_and(|again| !again.calls(&hook.id)) {
                continue;
            }
            let called = self.0.call(hook, &found, attributes, object.as_deref(), true).await;
            let verdict = match called {
                Ok(verdict) => verdict,
                Err(refusal) => {
                    consequence(hook, refusal)?;
                    continue;
                }
            };
            warnings.extend(verdict.warnings);
            if let Some(denied) = verdict.denied {
                return Err(denied);
            }
            let changed = match (&verdict.patch, object.as_deref_mut()) {
                (None, _) => false,
                (Some(_), None) => {
                    return Err(ApiError::Internal(format!(
                        "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                        hook.name
                    )));
                }
                (Some(patch), Some(object)) => {
                    let catalog = self.0.shared.caches.catalog();
                    let converting = matching::converted(&catalog, attributes, &found, object);
                    let mut shown = converting.await?;
                    let before = shown.clone();
                    apply(patch, &mut shown, &found, &catalog, attributes)?;
                    let changed = shown != before;
                    if changed {
                        *object =
                            matching::converted_back(&catalog, attributes, &found, shown).await?;
                    }
                    changed
                }
            };
            if let Some(again) = again {
                let if_needed = object::str_at(&hook.value, &["reinvocationPolicy"]) == "IfNeeded";
                again.called(&hook.id, changed, if_needed);
            }
        }
        if let (Some(again), Some(object)) = (again, object.as_deref()) {
            again.end(object);
        }
        Ok(())
    }
}

/// Applies a patch, drops what the kind does not know, and puts defaults in.
fn apply(
    patch: &[u8],
    object: &mut Value,
    found: &Matched,
    catalog: &crate::registry::catalog::Catalog,
    attributes: &Attributes<'_>,
) -> Result<(), ApiError> {
    let internal = |e: &dyn std::fmt::Display| ApiError::Internal(e.to_string());
    json_patch::apply(object, patch).map_err(|e| internal(&e))?;
    let served = catalog.find(&found.group, &found.version, &found.resource);
    if let Some(served) = served.filter(|served| served.gvk == found.kind) {
        served.canonicalize(object).map_err(|e| internal(&e))?;
        served.apply_defaults(object);
        return Ok(());
    }
    // The kind of a subresource.
    let registry = Registry::builtin();
    if let Some(message) = registry.kind(attributes.kind) {
        canonicalize(Schema { registry, message }, object).map_err(|e| internal(&e))?;
    }
    Ok(())
}

/// Calls webhooks that may refuse, all at the same time.
pub struct Validating(Hooks);

impl Validating {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self(Hooks::new(shared, "validatingwebhookconfigurations"))
    }
}

#[async_trait]
impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
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
        let hooks = self.0.all();
        let mut relevant = Vec::new();
        for hook in hooks.iter() {
            if let Some(found) = self.0.invocation(hook, attributes, object).await? {
                relevant.push((hook, found));
            }
        }
        let calls = relevant.iter().map(|(hook, found)| async move {
            (hook, self.0.call(hook, found, attributes, object, false).await)
        });
        let mut refused = None;
        for (hook, called) in futures::future::join_all(calls).await {
            let denied = match called {
                Ok(verdict) => {
                    warnings.extend(verdict.warnings);
                    verdict.denied
                }
                Err(refusal) => consequence(hook, refusal).err(),
            };
            // One reason is enough.
            refused = refused.or(denied);
        }
        refused.map_or(Ok(()), Err)
    }
}
