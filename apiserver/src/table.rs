//! `Table`: objects as `kubectl get` prints them.

use std::sync::Arc;

use apimachinery::codec::list::ListMeta;
use apimachinery::field::{FieldError, Path};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use serde_json::json;

use crate::apiextensions::Custom;
use crate::cache::Cached;
use crate::registry::catalog::Served;

/// How much of each object its row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// Reads `includeObject`.
    ///
    /// # Errors
    /// 422 for another value.
    pub fn read(text: &str) -> Result<Self, ApiError> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => {
                let path = Path::new("includeObject");
                let valid = ["Metadata", "None", "Object"];
                Err(ApiError::Invalid {
                    group: "meta.k8s.io".to_owned(),
                    kind: "TableOptions".to_owned(),
                    name: String::new(),
                    errors: vec![FieldError::not_supported(&path, other, &valid)],
                })
            }
        }
    }
}

/// The columns' definitions.
pub fn columns(served: &Served) -> Value {
    if let Some(version) = served.row.custom.as_ref().and_then(Custom::version) {
        return version.columns();
    }
    let columns = served.row.columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.ty, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    columns.collect()
}

/// One row.
pub fn row(
    served: &Served,
    object: &Value,
    version: &str,
    include: Include,
    now: jiff::Timestamp,
) -> Value {
    let cells: Value = match served.row.custom.as_ref().and_then(Custom::version) {
        Some(version) => version.cells(object, now),
        None => served.row.columns.iter().map(|c| (c.cell)(object, now)).collect(),
    };
    let shown = match include {
        Include::None => Value::Null,
        Include::Object => object.clone(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": object::get(object, &["metadata"]).cloned().unwrap_or(json!({})),
        }),
    };
    let mut row = json!({"cells": cells});
    if include != Include::None {
        row["object"] = shown;
    }
    row
}

fn table(columns: Value, rows: Vec<Value>, metadata: Value, version: &str) -> Value {
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata, "columnDefinitions": columns, "rows": rows,
    })
}

/// A table of one object.
pub fn of_object(
    served: &Served,
    object: &Value,
    version: &str,
    include: Include,
    now: jiff::Timestamp,
) -> Value {
    let metadata = json!({"resourceVersion": object::resource_version(object)});
    table(columns(served), vec![row(served, object, version, include, now)], metadata, version)
}

/// A table of an event: only the first of a watch defines the columns.
pub fn of_event(
    served: &Served,
    object: &Value,
    version: &str,
    include: Include,
    now: jiff::Timestamp,
    first: bool,
) -> Value {
    let mut made = of_object(served, object, version, include, now);
    if !first {
        made["columnDefinitions"] = Value::Null;
    }
    made
}

/// A table of a list.
///
/// # Errors
/// An object cannot be read.
pub fn of_list(
    served: &Served,
    objects: &[Arc<Cached>],
    meta: &ListMeta<'_>,
    version: &str,
    include: Include,
    now: jiff::Timestamp,
) -> Result<Value, ApiError> {
    let mut rows = Vec::with_capacity(objects.len());
    for cached in objects {
        let object = served
            .decode(cached)
            .map_err(|e| ApiError::Internal(format!("unable to decode an object: {e}")))?;
        rows.push(row(served, &object, version, include, now));
    }
    let mut metadata = json!({"resourceVersion": meta.resource_version});
    if !meta.continue_token.is_empty() {
        metadata["continue"] = meta.continue_token.into();
    }
    if let Some(n) = meta.remaining_item_count {
        metadata["remainingItemCount"] = n.into();
    }
    Ok(table(columns(served), rows, metadata, version))
}
