//! Update, and what all changes of an object have in common.

use std::sync::Arc;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::patch::apply::{Manager, track_update_typed};
use apimachinery::patch::managers::keep_times_if_unchanged;
use apimachinery::status::ApiError;
use apimachinery::{Value, meta, object};
use http::Response;

use super::create::New;
use super::input::{self, Input};
use super::write::{self, Stored};
use super::{Call, RequestBody};
use crate::admission::Operation;
use crate::api::rfc3339;
use crate::cache::Cached;
use crate::gate::{Admission, Admitted};
use crate::negotiate::Offer;
use crate::registry::catalog::Served;
use crate::registry::{Action, Context, Strategy};
use crate::respond::Body;

/// Attempts of a change that others overtake.
const ATTEMPTS: usize = 10;

pub(super) async fn update(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Object)?;
    let input = Input::read(&call, "UpdateOptions", false)?;
    let read = input::read_object(&call, &served, body, input.validation).await?;
    let mut warnings = call.warnings.collect();
    warnings.extend(read.warnings);
    check_name(&call, &read.object)?;
    let sent = read.object;
    let update = Update::of(&call, &served, &input, false);
    let (stored, created) = update.run(ATTEMPTS, &mut warnings, |_, _| Ok(sent.clone())).await?;
    let shown = super::read::show(&call, &served, &wanted, &stored)?;
    let code = if created { 201 } else { 200 };
    Ok(call.send(code, &shown.0, shown.1).await)
}

/// The names in an object must be those of the path.
pub(super) fn check_name(call: &Call, object: &Value) -> Result<(), ApiError> {
    let (namespace, name) = (call.namespace(), call.name());
    let (found_namespace, found) = (object::namespace(object), object::name(object));
    if found != name {
        return Err(ApiError::BadRequest(if found.is_empty() {
            format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )
        } else {
            format!("the name of the object ({found}) does not match the name on the URL ({name})")
        }));
    }
    if !namespace.is_empty() && !found_namespace.is_empty() && found_namespace != namespace {
        return Err(ApiError::BadRequest(format!(
            "the namespace of the object ({found_namespace}) does not match the namespace on the request ({namespace})"
        )));
    }
    Ok(())
}

/// A change of one object that is under way.
pub(super) struct Update<'a> {
    pub call: &'a Call,
    pub served: &'a Arc<Served>,
    pub input: &'a Input,
    /// Rules for this change: the resource's, or the subresource's.
    pub strategy: &'a dyn Strategy,
    pub subresource: &'a str,
    pub reset: &'a [&'a [&'a str]],
    /// The change is an apply: it keeps account of managers itself, and may create.
    pub apply: bool,
    /// What admission sees instead of the object, for subresources of another kind.
    pub admitted_as: Option<&'a GroupVersionKind>,
}

impl<'a> Update<'a> {
    /// As the request's path says.
    pub(super) fn of(
        call: &'a Call,
        served: &'a Arc<Served>,
        input: &'a Input,
        apply: bool,
    ) -> Self {
        let subresource = call.authorized.info().subresource.as_str();
        let (strategy, reset) = match served.subresource(subresource).map(|s| &s.action) {
            Some(Action::Part { strategy, reset_fields, .. }) => (&**strategy, *reset_fields),
            _ => (&*served.row.strategy, served.row.strategy.reset_fields()),
        };
        Self { call, served, input, strategy, subresource, reset, apply, admitted_as: None }
    }

    /// Stores what `change` makes of the present object (`None`: there is none), as often as
    /// others overtake it. Gives the stored object, and whether it is new.
    ///
    /// # Errors
    /// As upstream: 404, 409, 422 and whatever admission says.
    pub(super) async fn run(
        &self,
        attempts: usize,
        warnings: &mut Vec<String>,
        change: impl Fn(Option<&Value>, &mut Vec<String>) -> Result<Value, ApiError>,
    ) -> Result<(Arc<Cached>, bool), ApiError> {
        let Self { call, served, .. } = *self;
        let key = served.key(call.namespace(), call.name());
        for _ in 0..attempts.max(1) {
            let mut said = Vec::new();
            let Some(old) = write::load(&call.api, served, &key).await? else {
                let made = self.create(&mut said, &change).await;
                if matches!(made, Err(ApiError::AlreadyExists { .. })) {
                    continue;
                }
                warnings.append(&mut said);
                return Ok((made?, true));
            };
            let changed = match change(Some(&old.object), &mut said) {
                Ok(new) => self.change(&key, &old, new, &mut said).await,
                Err(error) => Err(error),
            };
            if !matches!(changed, Ok(None)) {
                warnings.append(&mut said);
            }
            if let Some(stored) = changed? {
                return Ok((stored, false));
            }
        }
        Err(served.conflict(call.name(), write::MODIFIED))
    }

    async fn create(
        &self,
        warnings: &mut Vec<String>,
        change: &impl Fn(Option<&Value>, &mut Vec<String>) -> Result<Value, ApiError>,
    ) -> Result<Arc<Cached>, ApiError> {
        let Self { call, served, input, .. } = *self;
        let may = self.apply || self.strategy.allow_create_on_update();
        if !may || !self.subresource.is_empty() {
            return Err(served.not_found(call.name()));
        }
        let mut object = change(None, warnings)?;
        if !object::uid(&object).is_empty() {
            let text = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                object::uid(&object)
            );
            return Err(served.conflict(call.name(), text));
        }
        if self.apply {
            served.apply_defaults(&mut object);
        }
        input::check_namespace(served, call.namespace(), &mut object)?;
        // It may be allowed to change the object, and not to create it.
        let mut info = call.authorized.info().clone();
        info.verb = "create".to_owned();
        let user = call.authorized.user().clone();
        crate::gate::authorize(&*call.api.authorizer, user, info).await?;
        object::remove(&mut object, &["metadata", "resourceVersion"]);
        New { call, served, input, applied: self.apply }.make(object, warnings).await
    }

    /// One attempt; `None` when the object changed meanwhile.
    async fn change(
        &self,
        key: &str,
        old: &Stored,
        mut new: Value,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Arc<Cached>>, ApiError> {
        let Self { call, served, input, strategy, .. } = *self;
        let api = &*call.api;
        let now = api.now();
        self.check_preconditions(old, &mut new)?;
        // With a resourceVersion of the client's, being overtaken is for the client to know.
        let conditional = !object::resource_version(&new).is_empty() && !self.is_relative();
        if self.apply {
            served.apply_defaults(&mut new);
        } else {
            self.track(&old.object, &mut new, now);
        }
        let admission = self.admission();
        admission.mutate(&mut new, Some(&old.object), warnings).await?;
        served.canonicalize(&mut new).map_err(|e| ApiError::Internal(e.to_string()))?;
        served.apply_defaults(&mut new);
        let context = Context { now, reader: &*api.caches };
        let allocator = if self.subresource.is_empty() { strategy.allocator() } else { None };
        let reservation = match allocator {
            Some(allocator) => {
                let taken = allocator.update(&context, &mut new, &old.object, input.dry_run);
                Some(taken.await?)
            }
            None => None,
        };
        let stored = async {
            self.prepare(&context, &mut new, &old.object)?;
            warnings.extend(strategy.warnings(&new, Some(&old.object)));
            keep_times_if_unchanged(&mut new, &old.object);
            let admitted = admission.admit(new, Some(&old.object), warnings).await?;
            self.store(key, old, admitted, warnings).await
        }
        .await;
        if let Some(reservation) = reservation {
            match &stored {
                Ok(Some(_)) if !input.dry_run => reservation.commit().await,
                _ => reservation.abandon().await,
            }
        }
        match stored? {
            None if conditional => Err(served.conflict(call.name(), write::MODIFIED)),
            stored => Ok(stored),
        }
    }

    /// The change is made of the present object, not sent whole.
    fn is_relative(&self) -> bool {
        self.apply || self.call.authorized.info().verb == "patch"
    }

    fn admission(&self) -> Admission<'_> {
        Admission {
            api: &self.call.api,
            authorized: &self.call.authorized,
            served: self.served,
            operation: Operation::Update,
            kind: self.admitted_as.unwrap_or(&self.served.gvk),
            subresource: self.subresource,
            namespace: self.call.namespace(),
            name: self.call.name(),
            options: &self.input.object,
            dry_run: self.input.dry_run,
        }
    }

    /// Namespace, uid and resourceVersion.
    fn check_preconditions(&self, old: &Stored, new: &mut Value) -> Result<(), ApiError> {
        let Self { call, served, .. } = *self;
        let name = call.name();
        input::check_namespace(served, call.namespace(), new)?;
        let (uid, old_uid) = (object::uid(new), object::uid(&old.object));
        if !uid.is_empty() && uid != old_uid {
            let key = served.key(call.namespace(), name);
            let text = format!(
                "StorageError: invalid object, Code: 4, Key: /{}/{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}",
                served.row.storage.prefix
            );
            return Err(served.conflict(name, text));
        }
        let version = object::resource_version(new);
        if version.is_empty() || version == "0" {
            if !self.strategy.allow_unconditional_update() {
                let path = Path::new("metadata").child("resourceVersion");
                let shown = Value::from(0);
                let error = FieldError::invalid(&path, shown, "must be specified for an update");
                return Err(ApiError::Invalid {
                    group: served.gr.group.clone(),
                    kind: served.gr.resource.clone(),
                    name: name.to_owned(),
                    errors: vec![error],
                });
            }
            object::remove(new, &["metadata", "resourceVersion"]);
            return Ok(());
        }
        match version.parse::<u64>() {
            Ok(version) if version == old.revision => Ok(()),
            Ok(_) => Err(served.conflict(name, write::MODIFIED)),
            // Upstream makes no Status of this error.
            Err(_) => Err(ApiError::Other {
                code: 500,
                reason: String::new(),
                message: format!("strconv.ParseUint: parsing {version:?}: invalid syntax"),
            }),
        }
    }

    fn track(&self, old: &Value, new: &mut Value, now: jiff::Timestamp) {
        let manager = Manager {
            name: &self.input.field_manager,
            subresource: self.subresource,
            api_version: &self.served.api_version,
            now: &rfc3339(now),
        };
        track_update_typed(self.served.typing(), Some(old), new, &manager, self.reset);
    }

    /// What an update may not change is put back, and the rest validated.
    fn prepare(&self, context: &Context<'_>, new: &mut Value, old: &Value) -> Result<(), ApiError> {
        match object::generation(old) {
            0 => {
                object::remove(new, &["metadata", "generation"]);
            }
            generation => object::set(new, &["metadata", "generation"], generation),
        }
        self.strategy.prepare_for_update(context, new, old);
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
        {
            let path = ["metadata", field];
            let kept = object::get(old, &path).cloned();
            match kept {
                Some(value) => {
                    let own =
                        field == "deletionGracePeriodSeconds" && object::get(new, &path).is_some();
                    if !own {
                        object::set(new, &path, value);
                    }
                }
                // An update cannot begin a deletion.
                None if field.starts_with("deletion") => {
                    object::remove(new, &path);
                }
                None => {}
            }
        }
        let path = Path::new("metadata");
        object::set_resource_version(new, object::resource_version(old));
        let mut errors = ErrorList::new();
        errors.extend(meta::validate_object_meta_update(new, old, &path));
        errors.extend(self.strategy.validate_update(context, new, old));
        if errors.is_empty() {
            return Ok(());
        }
        Err(self.served.invalid(self.call.name(), errors))
    }

    /// Stores the object, or removes it, if it only waited for this change to go.
    async fn store(
        &self,
        key: &str,
        old: &Stored,
        admitted: Admitted,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Arc<Cached>>, ApiError> {
        let Self { call, served, input, .. } = *self;
        if !goes_with(&*served.row.strategy, admitted.object(), &old.object) {
            return write::replace(&call.api, served, key, old, admitted, input.dry_run).await;
        }
        let bytes = write::encode(served, admitted.object()).await?;
        let admission = Admission { operation: Operation::Delete, ..self.admission() };
        let deletion = admission.admit_deletion(&old.object, warnings).await?;
        let removed =
            write::remove(&call.api, served, key, old.revision, &deletion, input.dry_run).await?;
        let Some(revision) = removed else { return Ok(None) };
        super::delete::after(served, &old.object, input.dry_run).await;
        let last = write::written(key, revision, old.created, bytes);
        served.bring_one(last).await.map(Some)
    }
}

/// Whether a change lets a deleted object go: nothing holds it any longer.
fn goes_with(strategy: &dyn Strategy, new: &Value, old: &Value) -> bool {
    let held = object::finalizers(new).next().is_some() || strategy.is_held(new);
    let grace = object::int_at(old, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
    !object::deletion_timestamp(old).is_empty() && !held && grace == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Plain;
    impl Strategy for Plain {}

    #[test]
    fn objects_go_when_their_last_finalizer_does() {
        let object = |finalizers: &[&str], deleted: bool, grace: i64| {
            let mut o = json!({"metadata": {"finalizers": finalizers}});
            if deleted {
                o["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                o["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            }
            o
        };
        let cases = [
            (object(&["a"], true, 0), object(&[], true, 0), true),
            (object(&["a"], true, 30), object(&[], true, 30), false),
            (object(&["a"], false, 0), object(&[], false, 0), false),
            (object(&["a", "b"], true, 0), object(&["a"], true, 0), false),
        ];
        for (old, new, want) in cases {
            assert_eq!(goes_with(&Plain, &new, &old), want, "{new}");
        }
    }
}
