//! CustomResourceDefinitions: what they say is read into a [`Definition`], whose versions become
//! rows of the catalog like those that are compiled in; [`controller`] puts them into service and
//! takes them out.

mod coerce;
pub mod conditions;
pub mod controller;
mod convert;
mod correlate;
mod definition;
pub mod formats;
mod jsonpath;
mod lists;
pub mod rules;
pub mod schema;
pub mod sizes;
mod strategy;
pub mod structural;
mod typing;
mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::codec::DecodeError;
use apimachinery::schema::Registry;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::cache::{Cached, Codec};
use crate::registry::{Action, Resource, Storage, Subresource, Text, Verbs};

pub use convert::{Conversion, Converter, Webhooks};
pub use definition::{Definition, Names, Version};

/// Objects that are kept in the version that they were converted to, at most.
const MAX_CONVERTED: usize = 1000;

/// Objects by key and revision, as a webhook has converted them.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<(Arc<str>, u64), Arc<Cached>>>);

/// A version of a custom resource.
#[derive(Clone)]
pub struct Custom {
    pub definition: Arc<Definition>,
    /// Index among the definition's versions.
    pub version: usize,
}

/// What a webhook's failure is to clients: upstream has no better code for it.
fn failed(message: String) -> ApiError {
    ApiError::Other { code: 500, reason: String::new(), message }
}

fn unreadable(error: &DecodeError) -> ApiError {
    ApiError::Internal(format!("unable to decode an object of the store: {error}"))
}

impl Custom {
    pub fn version(&self) -> Option<&Version> {
        self.definition.versions.get(self.version)
    }

    /// Whether this is the version that is stored.
    pub fn is_stored(&self) -> bool {
        self.definition.is_storage(self.version)
    }

    /// Whether what is read may have to be converted by a webhook.
    pub fn may_convert(&self) -> bool {
        self.definition.may_convert(self.version)
    }

    /// Puts an object into the version that is stored.
    ///
    /// # Errors
    /// A webhook should have done it before.
    pub fn to_storage(&self, object: &mut Value) -> Result<(), DecodeError> {
        match self
            .definition
            .versions
            .iter()
            .position(|v| v.name == self.definition.storage_version())
        {
            Some(storage) => self.definition.to_version(object, storage),
            None => Ok(()),
        }
    }

    /// An object of any version of the definition in this one.
    ///
    /// # Errors
    /// As the webhook fails.
    pub async fn convert(&self, mut object: Value) -> Result<Value, ApiError> {
        let wanted = self.definition.api_version(self.version);
        match &self.definition.conversion {
            Conversion::Webhook(hook) if object::str_at(&object, &["apiVersion"]) != wanted => {
                let uid = uuid::Uuid::new_v4().to_string();
                let converted = hook.convert(&[object], &wanted, &uid).await.map_err(failed)?;
                object = converted.into_iter().next().unwrap_or_default();
                self.definition.settle(&mut object).map_err(|e| failed(e.to_string()))?;
            }
            _ => self
                .definition
                .to_version(&mut object, self.version)
                .map_err(|e| ApiError::Internal(e.to_string()))?,
        }
        Ok(object)
    }

    /// An object on its way to the store, in the version that is stored, where a webhook
    /// converts.
    ///
    /// # Errors
    /// As the webhook fails.
    pub async fn before_storing(&self, object: Value) -> Result<Value, ApiError> {
        let Conversion::Webhook(hook) = &self.definition.conversion else { return Ok(object) };
        if self.is_stored() {
            return Ok(object);
        }
        let group = &self.definition.group;
        let wanted = format!("{group}/{}", self.definition.storage_version());
        let uid = uuid::Uuid::new_v4().to_string();
        let converted = hook.convert(&[object], &wanted, &uid).await.map_err(failed)?;
        let mut converted = converted.into_iter().next().unwrap_or_default();
        self.definition.settle(&mut converted).map_err(|e| failed(e.to_string()))?;
        Ok(converted)
    }

    /// Objects of the store in the served version.
    ///
    /// # Errors
    /// As the webhook fails.
    pub async fn bring(
        &self,
        codec: &Codec,
        objects: Vec<Arc<Cached>>,
        memory: &Memory,
    ) -> Result<Vec<Arc<Cached>>, ApiError> {
        let Conversion::Webhook(hook) = &self.definition.conversion else { return Ok(objects) };
        let wanted = self.definition.api_version(self.version);
        let mut brought = objects;
        // Places of those that are to be converted.
        let (mut places, mut sent) = (Vec::new(), Vec::new());
        for (i, cached) in brought.iter_mut().enumerate() {
            let known = memory.0.lock().get(&(cached.key.clone(), cached.revision)).cloned();
            if let Some(known) = known.filter(|_| cached.revision != 0) {
                *cached = known;
                continue;
            }
            let value = cached.decode(codec).map_err(|e| unreadable(&e))?;
            if object::str_at(&value, &["apiVersion"]) != wanted {
                places.push(i);
                sent.push(value);
            }
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let converted = hook.convert(&sent, &wanted, &uid).await.map_err(failed)?;
        for (place, mut object) in places.into_iter().zip(converted) {
            self.definition.settle(&mut object).map_err(|e| failed(e.to_string()))?;
            let text = serde_json::to_vec(&object).map_err(|e| failed(e.to_string()))?;
            let Some(cached) = brought.get_mut(place) else { continue };
            let made = Cached::new(&cached.key, cached.revision, cached.created, Bytes::from(text));
            let made = Arc::new(made);
            if cached.revision != 0 {
                let mut memory = memory.0.lock();
                if memory.len() >= MAX_CONVERTED {
                    // What is in use comes back at once.
                    memory.clear();
                }
                memory.insert((cached.key.clone(), cached.revision), made.clone());
            }
            *cached = made;
        }
        Ok(brought)
    }
}

/// What a `status` subresource owns nothing of.
const SPEC: &[&[&str]] = &[&["spec"]];

/// The row of a version.
pub(crate) fn row(custom: Custom) -> Resource {
    let Custom { definition, version } = &custom;
    let text = |text: &str| Text::from(text.to_owned());
    let texts = |all: &[String]| all.iter().map(|t| text(t)).collect();
    let main = || strategy::Main { definition: definition.clone(), version: *version };
    let served = custom.version();
    let mut subresources = Vec::new();
    if served.is_some_and(|v| v.status) {
        let strategy = Arc::new(strategy::Status(main()));
        let action = Action::Part { strategy, reset_fields: SPEC, replaced_only: false };
        subresources.push(Subresource { name: "status", action });
    }
    if let Some(scale) = served.and_then(|v| v.scale.as_ref()) {
        let action = Action::Scale {
            spec_replicas: text(&scale.spec_replicas),
            status_replicas: text(&scale.status_replicas),
            selector: text(scale.selector.as_deref().unwrap_or("")),
        };
        subresources.push(Subresource { name: "scale", action });
    }
    let partial = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";
    Resource {
        group: text(&definition.group),
        version: text(served.map_or("", |v| v.name.as_str())),
        kind: text(&definition.names.kind),
        plural: text(&definition.names.plural),
        singular: text(&definition.names.singular),
        short_names: texts(&definition.names.short),
        categories: texts(&definition.names.categories),
        namespaced: definition.namespaced,
        message: Registry::builtin().by_name(partial).unwrap_or(apimachinery::schema::MessageId(0)),
        storage: Storage {
            prefix: text(&format!("{}/{}", definition.group, definition.names.plural)),
            version: (text(&definition.group), text(definition.storage_version())),
            ttl: None,
            json: true,
        },
        strategy: Arc::new(main()),
        columns: Vec::new(),
        fields: Vec::new(),
        subresources,
        verbs: Verbs::All,
        warning: served.and_then(|v| v.warning.as_deref()).map(text),
        delete_collection: true,
        custom: Some(custom),
    }
}
