//! Config files: versioned YAML, read strictly.

use std::path::Path;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

/// Reads a config file of one of `versions` (`kubelet.config.k8s.io/v1beta1`) and of `kind`.
/// `T` must deny unknown fields, apart from `apiVersion` and `kind`, which are removed first.
///
/// # Errors
/// Names the file and what is wrong in it: unreadable, not YAML, another kind or version, an
/// unknown field.
pub fn load<T: DeserializeOwned>(path: &Path, versions: &[&str], kind: &str) -> anyhow::Result<T> {
    let whence = || format!("config file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(whence)?;
    parse(&text, versions, kind).with_context(whence)
}

/// As [`load`], from text.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(text: &str, versions: &[&str], kind: &str) -> anyhow::Result<T> {
    let mut value: serde_json::Value = serde_saphyr::from_str(text)?;
    let Some(map) = value.as_object_mut() else { bail!("is not a YAML mapping") };
    let mut take = |name: &str| match map.remove(name) {
        Some(serde_json::Value::String(s)) => s,
        _ => String::new(),
    };
    let (found_version, found_kind) = (take("apiVersion"), take("kind"));
    if found_kind != kind || !versions.contains(&found_version.as_str()) {
        bail!(
            "no kind {found_kind:?} is registered for version {found_version:?}; expected {kind:?} of {}",
            versions.join(" or ")
        );
    }
    Ok(serde_json::from_value(value)?)
}
