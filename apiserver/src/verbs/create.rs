//! Create.

use std::sync::Arc;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::patch::apply::{Manager, track_update_typed};
use apimachinery::status::ApiError;
use apimachinery::{Value, meta, object};
use http::Response;

use super::input::{self, Input};
use super::{Call, RequestBody, reviews, write};
use crate::admission::Operation;
use crate::api::rfc3339;
use crate::cache::Cached;
use crate::gate::Admission;
use crate::negotiate::Offer;
use crate::registry::catalog::Served;
use crate::registry::{Context, Verbs};
use crate::respond::Body;

/// Names that are made up are tried so often.
const NAME_ATTEMPTS: usize = 8;
/// Characters of made-up names: no vowels, and none that look alike.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const RANDOM_LENGTH: usize = 5;
const MAX_GENERATED_NAME: usize = 63;

pub(super) async fn create(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let question = served.row.verbs == Verbs::CreateOnly;
    // Questions have no metadata to show, and no columns.
    let wanted = call.wanted(if question { Offer::Plain } else { Offer::Object })?;
    let input = Input::read(&call, "CreateOptions", false)?;
    let read = input::read_object(&call, &served, body, input.validation).await?;
    let mut warnings = call.warnings.collect();
    warnings.extend(read.warnings);
    let mut object = read.object;
    input::check_namespace(&served, call.namespace(), &mut object)?;
    if question {
        let answer = reviews::answer(&call, &served, object).await?;
        return call.send_object(201, &wanted, &answer).await;
    }
    let made = New { call: &call, served: &served, input: &input, applied: false }
        .make(object, &mut warnings)
        .await?;
    let shown = super::read::show(&call, &served, &wanted, &made)?;
    Ok(call.send(201, &shown.0, shown.1).await)
}

/// An object in the making.
pub(super) struct New<'a> {
    pub call: &'a Call,
    pub served: &'a Arc<Served>,
    pub input: &'a Input,
    /// It comes of an apply, which has said who manages it.
    pub applied: bool,
}

impl New<'_> {
    /// Admits and stores the object, and gives back what was stored.
    ///
    /// # Errors
    /// As upstream: 409 when the name is taken, 422 when the object is invalid, and whatever
    /// admission says.
    pub(super) async fn make(
        &self,
        object: Value,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<Cached>, ApiError> {
        let generate =
            object::name(&object).is_empty() && !object::generate_name(&object).is_empty();
        let attempts = if generate { NAME_ATTEMPTS } else { 1 };
        let mut name = object::name(&object).to_owned();
        for _ in 0..attempts {
            let mut said = Vec::new();
            let result = self.try_make(object.clone(), &mut said).await;
            if !matches!(result, Ok((None, _))) {
                warnings.append(&mut said);
            }
            let (made, tried) = result?;
            name = tried;
            if let Some(made) = made {
                return Ok(made);
            }
        }
        let resource = self.served.gr.clone();
        Err(if generate {
            ApiError::GenerateNameConflict { resource, name, retry_after_seconds: 1 }
        } else {
            ApiError::AlreadyExists { resource, name }
        })
    }

    /// One attempt; `None` when the name is taken, with the name.
    async fn try_make(
        &self,
        mut object: Value,
        warnings: &mut Vec<String>,
    ) -> Result<(Option<Arc<Cached>>, String), ApiError> {
        let Self { call, served, input, .. } = *self;
        let api = &*call.api;
        let now = api.now();
        if !object::resource_version(&object).is_empty() {
            return Err(ApiError::Other {
                code: 500,
                reason: String::new(),
                message: "resourceVersion should not be set on objects to be created".to_owned(),
            });
        }
        if let Some(reason) = served.row.strategy.refuses_new() {
            let name = object::name(&object).to_owned();
            let reason = reason.to_owned();
            return Err(ApiError::Forbidden { resource: served.gr.clone(), name, reason });
        }
        fill_system_fields(&mut object, now);
        if !self.applied {
            self.track(&mut object, now);
        }
        let asked_name = object::name(&object).to_owned();
        let admission = Admission {
            api,
            authorized: &call.authorized,
            served,
            operation: Operation::Create,
            kind: &served.gvk,
            subresource: "",
            namespace: call.namespace(),
            name: &asked_name,
            options: &input.object,
            dry_run: input.dry_run,
        };
        admission.mutate(&mut object, None, warnings).await?;
        served.canonicalize(&mut object).map_err(|e| ApiError::Internal(e.to_string()))?;
        served.apply_defaults(&mut object);
        if object::name(&object).is_empty() && !object::generate_name(&object).is_empty() {
            let name = generated_name(object::generate_name(&object), &mut rand::rng());
            object::set_name(&mut object, &name);
        }
        let name = object::name(&object).to_owned();
        let strategy = &*served.row.strategy;
        let context = Context { now, reader: &*api.caches };
        let reservation = match strategy.allocator() {
            Some(allocator) => Some(allocator.create(&context, &mut object, input.dry_run).await?),
            None => None,
        };
        let stored = async {
            strategy.created_by(&mut object, call.authorized.user());
            warnings.extend(strategy.early_warnings(&object));
            strategy.prepare_for_create(&context, &mut object);
            let errors = validate(served, &context, &object);
            if !errors.is_empty() {
                return Err(served.invalid(&name, errors));
            }
            warnings.extend(strategy.warnings(&object, None));
            let admission = Admission { name: &name, ..admission };
            let admitted = admission.admit(object, None, warnings).await?;
            write::insert(api, served, admitted, input.dry_run).await
        }
        .await;
        if let Some(reservation) = reservation {
            match &stored {
                Ok(Some(_)) if !input.dry_run => reservation.commit().await,
                _ => reservation.abandon().await,
            }
        }
        Ok((stored?, name))
    }

    fn track(&self, object: &mut Value, now: jiff::Timestamp) {
        let manager = Manager {
            name: &self.input.field_manager,
            subresource: "",
            api_version: &self.served.api_version,
            now: &rfc3339(now),
        };
        let reset = self.served.row.strategy.reset_fields();
        track_update_typed(self.served.typing(), None, object, &manager, reset);
    }
}

/// Metadata that only the server writes.
fn fill_system_fields(object: &mut Value, now: jiff::Timestamp) {
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        object::remove(object, &["metadata", field]);
    }
    object::set_creation_timestamp(object, &rfc3339(now));
    object::set_uid(object, &uuid::Uuid::new_v4().to_string());
}

/// A name that begins as asked and ends at random.
fn generated_name(base: &str, random: &mut impl rand::Rng) -> String {
    let mut end = base.len().min(MAX_GENERATED_NAME - RANDOM_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    for _ in 0..RANDOM_LENGTH {
        let at = random.random_range(0..ALPHABET.len());
        name.extend(ALPHABET.get(at).map(|b| char::from(*b)));
    }
    name
}

/// All rules for a new object, metadata first.
fn validate(served: &Served, context: &Context<'_>, object: &Value) -> ErrorList {
    let strategy = &*served.row.strategy;
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    let generate = object::generate_name(object);
    for (field, text, prefix) in
        [("generateName", generate, true), ("name", object::name(object), false)]
    {
        if !text.is_empty() {
            let messages = strategy.validate_name(text, prefix);
            errors.extend(
                messages.into_iter().map(|m| FieldError::invalid(&path.child(field), text, m)),
            );
        }
    }
    errors.extend(meta::validate_object_meta(
        object,
        served.row.namespaced,
        |_, _| Vec::new(),
        &path,
    ));
    errors.extend(strategy.validate(context, object));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_up_within_their_bounds() {
        let mut random = rand::rng();
        let name = generated_name("web-", &mut random);
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        let name = generated_name(&"x".repeat(100), &mut random);
        assert_eq!(name.len(), 63);
    }
}
