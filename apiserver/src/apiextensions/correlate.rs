//! Which part of an old object a part of the new one was before (upstream: apiserver
//! `pkg/cel/common`, CorrelatedObject).

use apimachinery::Value;

use super::schema::Schema;

/// What an entry of a map was.
pub fn entry<'a>(name: &str, old: Option<&'a Value>) -> Option<&'a Value> {
    old?.as_object()?.get(name)
}

/// What an item of a list was: known where lists are maps by keys.
pub fn item<'a>(schema: &Schema, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    if schema.list_type.as_deref() != Some("map") {
        return None;
    }
    let items = schema.items.as_deref();
    let key = |item: &'_ Value, name: &str| -> Option<Value> {
        let default = || items?.properties.get(name)?.default.clone();
        item.get(name).cloned().or_else(default)
    };
    old?.as_array()?
        .iter()
        .find(|before| schema.list_keys.iter().all(|name| key(before, name) == key(item, name)))
}
