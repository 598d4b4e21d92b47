//! Objects as servers give them: with `null` where a type wants a value (`lastTransitionTime: null`
//! is valid, and means none), or not decodable at all. One such object must not end the watch of
//! all the others.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// An object, or its metadata alone when the rest of it does not fit its type.
#[derive(Clone)]
pub struct Lenient<K>(pub Result<K, Unfit>);

/// An object that does not fit its type.
#[derive(Clone, Debug)]
pub struct Unfit {
    pub metadata: ObjectMeta,
    pub why: String,
}

impl<K> fmt::Debug for Lenient<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(_) => f.write_str("Lenient(..)"),
            Err(unfit) => write!(f, "Lenient({unfit:?})"),
        }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        decode(raw.get()).map_err(D::Error::custom)
    }
}

fn decode<K: DeserializeOwned>(text: &str) -> Result<Lenient<K>, serde_json::Error> {
    if let Ok(object) = serde_json::from_str(text) {
        return Ok(Lenient(Ok(object)));
    }
    let mut value: Value = serde_json::from_str(text)?;
    fill_conditions(&mut value);
    match K::deserialize(&value) {
        Ok(object) => Ok(Lenient(Ok(object))),
        Err(error) => {
            #[derive(Deserialize)]
            struct Object {
                metadata: ObjectMeta,
            }
            let Object { metadata } = Object::deserialize(&value)?;
            Ok(Lenient(Err(Unfit { metadata, why: error.to_string() })))
        }
    }
}

/// The one time that types demand is that of a condition's last change, which Go writes as `null`
/// when it is zero.
fn fill_conditions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
                for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                    let at = condition.entry("lastTransitionTime").or_insert(Value::Null);
                    if at.is_null() {
                        *at = ZERO_TIME.into();
                    }
                }
            }
            fields.values_mut().for_each(fill_conditions);
        }
        Value::Array(items) => items.iter_mut().for_each(fill_conditions),
        _ => {}
    }
}

impl<K: Resource> Resource for Lenient<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unfit) => &unfit.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unfit) => &mut unfit.metadata,
        }
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
        let list: Vec<Lenient<Service>> = serde_json::from_str(list).expect("a list");
        let names: Vec<_> = list.iter().map(|l| l.meta().name.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("b"), Some("c")]);
        let good: Vec<bool> = list.iter().map(|l| l.0.is_ok()).collect();
        assert_eq!(good, [true, false, true]);
    }
}
