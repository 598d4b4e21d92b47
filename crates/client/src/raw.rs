//! Objects as servers write them, which is all that following them needs: their types are made of
//! them at the end, by whoever keeps them. So there is one watch in the program and not one for
//! each kind, and an object that does not fit its type does not end the watch of all the others.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// An object as it was written.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Name, namespace and version alone.
    metadata: ObjectMeta,
    text: Box<RawValue>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            name: Option<String>,
            namespace: Option<String>,
            resource_version: Option<String>,
        }
        #[derive(Deserialize)]
        struct Object {
            metadata: Meta,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Object { metadata: Meta { name, namespace, resource_version } } =
            serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let metadata = ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() };
        Ok(Self { metadata, text })
    }
}

impl Raw {
    /// The object, with `null` where its type wants a time (`lastTransitionTime: null` is valid,
    /// and means none).
    ///
    /// # Errors
    /// It does not fit its type.
    pub fn decode<K: DeserializeOwned>(&self) -> Result<K, serde_json::Error> {
        let text = self.text.get();
        serde_json::from_str(text).or_else(|error| {
            let mut value: Value = serde_json::from_str(text)?;
            match fill_conditions(&mut value) {
                true => serde_json::from_str(&value.to_string()),
                false => Err(error),
            }
        })
    }
}

/// The one time that types demand is that of a condition's last change, which Go writes as `null`
/// when it is zero. Returns whether there was such a one.
fn fill_conditions(value: &mut Value) -> bool {
    let mut filled = false;
    match value {
        Value::Object(fields) => {
            if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
                for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                    let at = condition.entry("lastTransitionTime").or_insert(Value::Null);
                    if at.is_null() {
                        *at = ZERO_TIME.into();
                        filled = true;
                    }
                }
            }
            fields.values_mut().for_each(|value| filled |= fill_conditions(value));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| filled |= fill_conditions(value)),
        _ => {}
    }
    filled
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(dt: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&dt.kind)
    }

    fn group(dt: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&dt.group)
    }

    fn version(dt: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&dt.version)
    }

    fn plural(dt: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&dt.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    #[test]
    fn zero_times_are_understood_and_the_unfit_keep_their_names() {
        let list = r#"[
            {"metadata": {"name": "a"}, "status": {"conditions": [
                {"type": "t", "status": "True", "reason": "", "message": "", "lastTransitionTime": null}]}},
            {"metadata": {"name": "b"}, "spec": {"ports": "none"}},
            {"metadata": {"name": "c", "labels": null}}
        ]"#;
        let list: Vec<Raw> = serde_json::from_str(list).expect("a list");
        let names: Vec<_> = list.iter().map(|raw| raw.meta().name.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("b"), Some("c")]);
        let good: Vec<bool> = list.iter().map(|raw| raw.decode::<Service>().is_ok()).collect();
        assert_eq!(good, [true, false, true]);
    }
}
