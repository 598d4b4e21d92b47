//! The files of config map, secret, downward API and projected volumes: pure, from the objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{File, Payload};
use crate::objects;
use crate::pod::env::{field_value, resource_value};
use crate::quantity::List;

/// Keys and their content.
pub type Data = BTreeMap<String, Vec<u8>>;

pub fn config_map_data(map: &ConfigMap) -> Data {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

pub fn secret_data(secret: &Arc<Secret>) -> Data {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

/// All keys, or the items that are asked for.
///
/// # Errors
/// A key that is asked for is not there, and not optional.
pub fn keyed(
    data: &Data,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
    kind: &str,
) -> Result<Payload, String> {
    let file = |data: &[u8], mode: u32| File { data: data.to_vec(), mode, uid: None };
    let items = items.unwrap_or_default();
    if items.is_empty() {
        return Ok(data.iter().map(|(k, v)| (k.clone(), file(v, default_mode))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(content) => {
                let mode = item.mode.map_or(default_mode, |m| m as u32);
                payload.insert(item.path.clone(), file(content, mode));
            }
            None if optional => {}
            None => {
                return Err(format!(
                    "{kind} references non-existent {} key: {}",
                    kind_word(kind),
                    item.key
                ));
            }
        }
    }
    Ok(payload)
}

fn kind_word(kind: &str) -> &'static str {
    match kind {
        "configmap" => "config",
        _ => "secret",
    }
}

/// The files of a downward API volume.
///
/// # Errors
/// A field or resource cannot be read this way.
pub fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
    allocatable: &List,
    host_ips: &[String],
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            field_value(pod, field, &[], host_ips)?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.as_deref().unwrap_or_default();
            let container = objects::find_container(pod, name)
                .ok_or_else(|| format!("container {name} not found"))?;
            resource_value(pod, &container, resource, allocatable)?
        } else {
            String::new()
        };
        let mode = item.mode.map_or(default_mode, |m| m as u32);
        payload.insert(item.path.clone(), File { data: text.into_bytes(), mode, uid: None });
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_and_rename() {
        let data = Data::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let item =
            |key: &str, path: &str, mode| KeyToPath { key: key.into(), path: path.into(), mode };
        let all = keyed(&data, None, 0o644, false, "configmap").unwrap();
        assert_eq!(all.len(), 2);
        let items = [item("b", "x/y", Some(0o400))];
        let some = keyed(&data, Some(&items), 0o644, false, "configmap").unwrap();
        assert_eq!((some["x/y"].mode, &some["x/y"].data[..]), (0o400, &b"2"[..]));
        let items = [item("c", "c", None)];
        let missing = keyed(&data, Some(&items), 0o644, false, "configmap").unwrap_err();
        assert_eq!(missing, "configmap references non-existent config key: c");
        assert!(keyed(&data, Some(&items), 0o644, true, "secret").unwrap().is_empty());
    }
}
