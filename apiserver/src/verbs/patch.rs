//! Patch: four ways to change an object, and server-side apply.

use std::sync::Arc;

use apimachinery::codec::{DecodeError, Decoded, FieldValidation, Schema, json, yaml};
use apimachinery::patch::apply::{self, Manager};
use apimachinery::patch::{PatchError, json as json_patch, merge, strategic};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use http::Response;

use super::input::Input;
use super::update::Update;
use super::{Call, RequestBody};
use crate::api::rfc3339;
use crate::apiextensions::Custom;
use crate::negotiate::Offer;
use crate::registry::catalog::Served;
use crate::respond::Body;

/// Upstream gives a patch up after so many conflicts.
const ATTEMPTS: usize = 6;

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    /// The 415 of a type that is not taken. Compiled kinds have a route for the four types; a custom resource's handler names those
    /// that it has, without the one that needs a compiled schema.
    fn unknown(is_custom: bool) -> ApiError {
        if !is_custom {
            return ApiError::UnroutedMediaType;
        }
        let all = [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ];
        ApiError::UnsupportedMediaType { accepted: all.map(str::to_owned).to_vec() }
    }

    /// # Errors
    /// 415 for another Content-Type.
    pub(super) fn read(content_type: &str, is_custom: bool) -> Result<Self, ApiError> {
        let media_type = content_type.split(';').next().unwrap_or("").trim();
        Ok(match media_type {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" => Self::Strategic,
            "application/apply-patch+yaml" => Self::Apply,
            _ => return Err(Self::unknown(is_custom)),
        })
    }
}

pub(super) async fn patch(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Object)?;
    let is_custom = served.row.custom.is_some();
    let patch_type = PatchType::read(call.header("content-type"), is_custom)?;
    if patch_type == PatchType::Strategic && is_custom {
        return Err(PatchType::unknown(is_custom));
    }
    let is_apply = patch_type == PatchType::Apply;
    let input = Input::read(&call, "PatchOptions", is_apply)?;
    let data = super::input::read_body(body).await?;
    let patch = Patch::parse(patch_type, data, Form::of(&served), input.validation)?;
    let mut warnings = call.warnings.collect();
    warnings.extend(patch.warnings.iter().cloned());
    let update = Update::of(&call, &served, &input, is_apply);
    let now = rfc3339(call.api.now());
    let change = |old: Option<&Value>, said: &mut Vec<String>| {
        if is_apply {
            return apply_config(&update, &patch, old, &now);
        }
        let Some(old) = old else { return Err(served.not_found(call.name())) };
        patch.change(old, Form::of(&served), input.validation, said).and_then(|mut new| {
            served.apply_defaults(&mut new);
            check_identity(&call, &new)?;
            Ok(new)
        })
    };
    let (stored, created) = update.run(ATTEMPTS, &mut warnings, change).await?;
    let shown = super::read::show(&call, &served, &wanted, &stored)?;
    let code = if created { 201 } else { 200 };
    Ok(call.send(code, &shown.0, shown.1).await)
}

fn check_identity(call: &Call, new: &Value) -> Result<(), ApiError> {
    super::update::check_name(call, new)
}

/// What a patched object must be of.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    Compiled(Schema<'a>),
    Custom(&'a Custom),
    /// Anything.
    Any,
}

impl<'a> Form<'a> {
    fn of(served: &'a Served) -> Self {
        match (&served.row.custom, served.schema()) {
            (Some(custom), _) => Self::Custom(custom),
            (None, Some(schema)) => Self::Compiled(schema),
            (None, None) => Self::Any,
        }
    }

    fn decode(self, text: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
        match self {
            Self::Compiled(schema) => json::decode(schema, text, validation),
            Self::Any => json::decode_untyped(text, validation),
            Self::Custom(custom) => {
                let decoded = json::decode_untyped(text, validation)?;
                custom.definition.sent(decoded, validation)
            }
        }
    }
}

/// A patch, read once and applied as often as needed.
pub(super) struct Patch {
    patch_type: PatchType,
    data: Bytes,
    /// The patch as a value, where it is one.
    value: Value,
    pub(super) warnings: Vec<String>,
    /// What strict validation says of fields that the patch names twice.
    repeated: Vec<String>,
}

impl Patch {
    /// # Errors
    /// 400 for what is no patch.
    pub(super) fn parse(
        patch_type: PatchType,
        data: Bytes,
        form: Form<'_>,
        validation: FieldValidation,
    ) -> Result<Self, ApiError> {
        let (mut warnings, mut repeated) = (Vec::new(), Vec::new());
        let value = match patch_type {
            PatchType::Json => Value::Null,
            PatchType::Merge | PatchType::Strategic => {
                let value = merge::parse(&data)?;
                let found = json::decode_untyped(&data, FieldValidation::Warn);
                let found = found.map(|decoded| decoded.warnings).unwrap_or_default();
                match validation {
                    FieldValidation::Ignore => {}
                    FieldValidation::Warn => warnings = found,
                    FieldValidation::Strict => repeated = found,
                }
                value
            }
            PatchType::Apply => {
                // Fields that do not exist are reported; the value is taken as it was sent.
                let decoded = match form {
                    Form::Compiled(schema) => yaml::decode(schema, &data, validation),
                    // Of the rest, the merge tells.
                    Form::Custom(_) | Form::Any => yaml::decode_untyped(&data, validation),
                };
                match decoded {
                    Ok(decoded) => warnings = decoded.warnings,
                    Err(error) => {
                        return Err(ApiError::BadRequest(format!("error decoding YAML: {error}")));
                    }
                }
                let untyped = yaml::decode_untyped(&data, FieldValidation::Ignore);
                untyped
                    .map_err(|e| ApiError::BadRequest(format!("error decoding YAML: {e}")))?
                    .object
            }
        };
        Ok(Self { patch_type, data, value, warnings, repeated })
    }

    /// The patched object, canonical.
    ///
    /// # Errors
    /// The patch does not fit.
    pub(super) fn change(
        &self,
        old: &Value,
        form: Form<'_>,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let mut new = old.clone();
        match self.patch_type {
            PatchType::Json => json_patch::apply(&mut new, &self.data)?,
            PatchType::Merge => merge::apply(&mut new, &self.value),
            PatchType::Strategic => match form {
                Form::Compiled(schema) => strategic::apply(schema, &mut new, &self.value)?,
                Form::Custom(_) | Form::Any => {
                    let text = "there is no schema to merge by";
                    return Err(PatchError::Internal(text.to_owned()).into());
                }
            },
            PatchType::Apply => {
                return Err(PatchError::Internal("apply is no merge".to_owned()).into());
            }
        }
        let text = serde_json::to_vec(&new).map_err(|e| ApiError::Internal(e.to_string()))?;
        let decoded = match form.decode(&text, validation) {
            Err(DecodeError::Strict(found)) => {
                Err(DecodeError::Strict([self.repeated.clone(), found].concat()))
            }
            Ok(_) if !self.repeated.is_empty() => Err(DecodeError::Strict(self.repeated.clone())),
            decoded => decoded,
        };
        let decoded = decoded.map_err(|error| {
            let kind = object::str_at(old, &["kind"]);
            ApiError::Invalid {
                group: apimachinery::gvk::split_api_version(object::str_at(old, &["apiVersion"]))
                    .0
                    .to_owned(),
                kind: kind.to_owned(),
                name: object::name(old).to_owned(),
                errors: vec![apimachinery::field::FieldError::invalid(
                    &apimachinery::field::Path::new("patch"),
                    shown(&self.value, &self.data),
                    error.to_string(),
                )],
            }
        })?;
        warnings.extend(decoded.warnings);
        Ok(decoded.object)
    }
}

fn shown(value: &Value, data: &[u8]) -> String {
    match value {
        Value::Null => String::from_utf8_lossy(data).into_owned(),
        value => value.to_string(),
    }
}

/// The merge of an applied configuration into the live object.
fn apply_config(
    update: &Update<'_>,
    patch: &Patch,
    live: Option<&Value>,
    now: &str,
) -> Result<Value, ApiError> {
    let (call, served, input) = (update.call, update.served, update.input);
    let mut config = patch.value.clone();
    if object::str_at(&config, &["kind"]).is_empty() {
        let (group, version) = (&served.gvk.group, &served.gvk.version);
        return Err(ApiError::BadRequest(format!("invalid object type: {group}/{version}, Kind=")));
    }
    // Where there is an object, it has a name.
    if live.is_none() {
        super::update::check_name(call, &config)?;
    }
    let name = object::name(&config);
    if !name.is_empty() && name != call.name() {
        return super::update::check_name(call, &config).map(|()| config);
    }
    if name.is_empty() {
        object::set_name(&mut config, call.name());
    }
    let manager = Manager {
        name: &input.field_manager,
        subresource: update.subresource,
        api_version: &served.api_version,
        now,
    };
    let force = input.force.unwrap_or(false);
    let typing = served.typing();
    let mut merged = apply::apply_typed(typing, live, &config, &manager, force, update.reset)?;
    served.canonicalize(&mut merged).map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_types_go_by_content_type() {
        assert_eq!(
            PatchType::read("application/merge-patch+json; charset=utf-8", false),
            Ok(PatchType::Merge)
        );
        assert_eq!(PatchType::read("application/json", false).map_err(|e| e.code()), Err(415));
    }
}
