//! `metadata.managedFields`: who owns which fields.

use std::collections::BTreeMap;

use serde_json::json;

use super::fieldset::Set;
use crate::field::quote;
use crate::object::str_at;
use crate::{Map, Value, object};

/// Entries of updates that one object keeps; older ones are put together.
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// Owner of what the oldest updates owned.
const ANCIENT: &str = "ancient-changes";

/// What a write does to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What makes an entry; writes that agree in it share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    pub manager: String,
    pub operation: Operation,
    /// Empty for [`Operation::Apply`]: an applier has one entry, whatever version it uses.
    pub api_version: String,
    pub subresource: String,
}

impl ManagerId {
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let api_version = match operation {
            Operation::Apply => "",
            Operation::Update => api_version,
        };
        Self {
            manager: manager.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    /// As conflicts name it. Upstream never shows a time here: the identity it prints has none.
    pub fn describe(&self) -> String {
        let mut text = quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", quote(&self.subresource)));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// The fields of a manager.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned {
    pub set: Set,
    /// Version of the API that names the fields.
    pub api_version: String,
    /// RFC 3339 time of the manager's last change.
    pub time: Option<String>,
}

/// The entries of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managed(pub BTreeMap<ManagerId, Owned>);

impl Managed {
    /// Reads the entries of an object.
    pub fn decode(obj: &Value) -> Result<Self, String> {
        let mut managed = Self::default();
        for (i, entry) in object::list_at(obj, &["metadata", "managedFields"]).iter().enumerate() {
            let text = |name| str_at(entry, &[name]);
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".to_owned()),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".to_owned());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => {
                    let other = quote(other);
                    return Err(format!("invalid fieldsType {other} in managed fields entry {i}"));
                }
            }
            let set = Set::parse(entry.get("fieldsV1").unwrap_or(&Value::Null))
                .map_err(|e| format!("error decoding set: {e}"))?;
            let id = ManagerId::new(text("manager"), operation, api_version, text("subresource"));
            let time = Some(text("time").to_owned()).filter(|t| !t.is_empty());
            managed.0.insert(id, Owned { set, api_version: api_version.to_owned(), time });
        }
        Ok(managed)
    }

    /// Writes the entries into an object, in upstream's order.
    pub fn encode(&self, obj: &mut Value) {
        if self.0.is_empty() {
            object::remove(obj, &["metadata", "managedFields"]);
            return;
        }
        let mut entries: Vec<(&ManagerId, &Owned)> = self.0.iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            let key = |id: &ManagerId| (id.manager.clone(), id.subresource.clone());
            a.operation
                .cmp(&b.operation)
                .then_with(|| seconds(&x.time).cmp(&seconds(&y.time)))
                .then_with(|| key(a).0.cmp(&key(b).0))
                .then_with(|| x.api_version.cmp(&y.api_version))
                .then_with(|| key(a).1.cmp(&key(b).1))
        });
        let entries: Vec<Value> = entries.into_iter().map(|(id, owned)| entry(id, owned)).collect();
        object::set(obj, &["metadata", "managedFields"], entries);
    }

    /// Puts the oldest updates together while there are too many.
    pub fn cap(&mut self) {
        let mut updaters: Vec<(i64, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, owned)| (seconds(&owned.time), id.clone()))
            .collect();
        let mut count = updaters.len();
        updaters.sort();
        // The first of a version makes room only once a second one joins it.
        let mut first: BTreeMap<String, ManagerId> = BTreeMap::new();
        for (_, id) in updaters {
            if count <= MAX_UPDATE_MANAGERS {
                return;
            }
            let Some(owned) = self.0.get(&id).cloned() else { continue };
            let Some(earlier) = first.get(&owned.api_version) else {
                first.insert(owned.api_version, id);
                continue;
            };
            let bucket = ManagerId::new(ANCIENT, Operation::Update, &owned.api_version, "");
            let base = match self.0.remove(&bucket) {
                Some(base) => Some(base),
                None => self.0.remove(earlier),
            };
            if id != bucket {
                self.0.remove(&id);
            }
            let set = base.map_or_else(|| owned.set.clone(), |b| owned.set.union(&b.set));
            self.0.insert(bucket, Owned { set, ..owned });
            count -= 1;
        }
    }
}

fn entry(id: &ManagerId, owned: &Owned) -> Value {
    let mut entry = Map::new();
    let mut put = |name: &str, v: &str| {
        if !v.is_empty() {
            entry.insert(name.to_owned(), v.into());
        }
    };
    put("manager", &id.manager);
    put("operation", id.operation.name());
    put("apiVersion", &owned.api_version);
    put("time", owned.time.as_deref().unwrap_or(""));
    put("fieldsType", "FieldsV1");
    put("subresource", &id.subresource);
    entry.insert("fieldsV1".to_owned(), owned.set.serialize());
    entry.into()
}

/// Seconds since the epoch; 0 where there is no time.
fn seconds(time: &Option<String>) -> i64 {
    let parsed = time.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    parsed.map_or(0, |t| t.as_second())
}

/// Whether a client asks to forget all entries: by an empty list, or one empty entry.
pub fn is_reset(obj: &Value) -> bool {
    match object::get(obj, &["metadata", "managedFields"]) {
        Some(Value::Array(entries)) => match entries.as_slice() {
            [] => true,
            [only] => *only == json!({}),
            _ => false,
        },
        _ => false,
    }
}

/// Gives the entries of `new` the times that they have in `old`, if there is no other
/// difference between the two objects: such a write changes nothing and need not be stored.
pub fn keep_times_if_unchanged(new: &mut Value, old: &Value) {
    let without_times = |obj: &Value| {
        let mut obj = obj.clone();
        let entries = obj.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten() {
            if let Value::Object(entry) = entry {
                entry.remove("time");
            }
        }
        obj
    };
    let (ours, theirs) = (
        object::list_at(new, &["metadata", "managedFields"]),
        object::list_at(old, &["metadata", "managedFields"]),
    );
    if ours.is_empty() || ours.len() != theirs.len() || ours == theirs {
        return;
    }
    let theirs = theirs.to_vec();
    if without_times(new) == without_times(old) {
        object::set(new, &["metadata", "managedFields"], theirs);
    }
}
