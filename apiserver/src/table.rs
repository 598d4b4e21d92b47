//! Tables: what `kubectl get` prints (meta.k8s.io/v1 Table).

use std::borrow::Borrow;

use apimachinery::Value;
use jiff::Timestamp;
use serde_json::json;

use crate::registry::Resource;

/// What of each object goes into its row (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Include {
    #[default]
    Metadata,
    Object,
    None,
}

impl Include {
    /// From the query parameter.
    ///
    /// # Errors
    /// Upstream's words for a value it does not know.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => Err(format!("unrecognized includeObject value: {other:?}")),
        }
    }
}

/// The definitions of the columns.
pub fn columns(row: &Resource) -> Value {
    let column = |c: &crate::registry::Column| {
        json!({
            "name": c.name, "type": c.ty, "format": c.format,
            "description": c.description, "priority": c.priority,
        })
    };
    row.columns.iter().map(column).collect()
}

/// One row of a table.
pub fn row(row: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells: Vec<Value> = row.columns.iter().map(|c| (c.cell)(object, now)).collect();
    match include {
        Include::None => json!({"cells": cells}),
        Include::Object => json!({"cells": cells, "object": object}),
        Include::Metadata => json!({"cells": cells, "object": partial(object)}),
    }
}

/// An object's metadata and nothing else (meta.k8s.io/v1 PartialObjectMetadata).
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata"),
    })
}

/// A table of objects. `metadata` is the list's. Without `headers` (as on all but the first
/// event of a watch) the columns are not told again.
pub fn of<O: Borrow<Value>>(
    resource: &Resource,
    objects: impl IntoIterator<Item = O>,
    metadata: Value,
    include: Include,
    headers: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> =
        objects.into_iter().map(|o| row(resource, o.borrow(), include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if headers { columns(resource) } else { Value::Null },
        "rows": rows,
    })
}

/// The metadata of a table of one object: as much as a list has of it.
pub fn metadata_of(object: &Value) -> Value {
    json!({"resourceVersion": apimachinery::object::resource_version(object)})
}
