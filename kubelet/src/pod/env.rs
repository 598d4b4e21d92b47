//! A container's environment: its own variables, those from config maps, secrets, fields and
//! resources, and those that describe services.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Service,
};

use super::expand::expand;
use crate::objects::{self, host_network, spec};
use crate::quantity::{List, amount};

/// What the environment refers to, read beforehand. An absent object is `Err` with the text to
/// report.
#[derive(Default)]
pub struct Referred {
    pub config_maps: HashMap<String, Result<Arc<ConfigMap>, Missing>>,
    pub secrets: HashMap<String, Result<Arc<Secret>, Missing>>,
}

/// An object that could not be read.
#[derive(Clone, Debug)]
pub struct Missing {
    pub not_found: bool,
    pub message: String,
}

/// What an environment is made from.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    pub services: &'a [Arc<Service>],
    pub allocatable: &'a List,
    pub referred: &'a Referred,
}

/// The names of the config maps and secrets that a container's environment refers to.
pub fn references(container: &Container) -> (Vec<&str>, Vec<&str>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.as_str()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.as_str()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.as_str()));
    }
    (maps, secrets)
}

/// Makes the environment, in the order in which variables were set.
///
/// # Errors
/// The message that the container waits with, reason `CreateContainerConfigError`.
pub fn environment(facts: &Facts<'_>) -> Result<Vec<(String, String)>, String> {
    let mut env = Ordered::default();
    let services = service_variables(facts);
    from_sources(facts, &mut env)?;
    for variable in facts.container.env.iter().flatten() {
        let value = match (&variable.value_from, &variable.value) {
            (Some(_), _) => match from_reference(facts, variable)? {
                Some(value) => value,
                None => continue,
            },
            (None, value) => {
                let lookup = |name: &str| env.get(name).or_else(|| services.get(name)).cloned();
                expand(value.as_deref().unwrap_or_default(), lookup)
            }
        };
        env.set(variable.name.clone(), value);
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.list)
}

#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<&String> {
        self.index.get(name).map(|at| &self.list[*at].1)
    }

    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(at) => self.list[*at].1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

fn from_sources(facts: &Facts<'_>, env: &mut Ordered) -> Result<(), String> {
    for from in facts.container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            match facts.referred.config_maps.get(&source.name) {
                Some(Ok(map)) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                Some(Err(missing)) if !(missing.not_found && source.optional == Some(true)) => {
                    return Err(missing.message.clone());
                }
                _ => {}
            }
        }
        if let Some(source) = &from.secret_ref {
            match facts.referred.secrets.get(&source.name) {
                Some(Ok(secret)) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let value = String::from_utf8_lossy(&value.0).into_owned();
                        env.set(format!("{prefix}{key}"), value);
                    }
                }
                Some(Err(missing)) if !(missing.not_found && source.optional == Some(true)) => {
                    return Err(missing.message.clone());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The value of a variable with `valueFrom`; `None` when it is optional and not there.
fn from_reference(facts: &Facts<'_>, variable: &EnvVar) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else { return Ok(None) };
    let namespace = objects::namespace(facts.pod);
    if let Some(field) = &source.field_ref {
        return field_value(facts.pod, field, facts.pod_ips, facts.host_ips).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(facts.pod, facts.container, resource, facts.allocatable).map(Some);
    }
    if let Some(key_ref) = &source.config_map_key_ref {
        let optional = key_ref.optional == Some(true);
        let value = match facts.referred.config_maps.get(&key_ref.name) {
            Some(Ok(map)) => map.data.as_ref().and_then(|d| d.get(&key_ref.key)).cloned(),
            Some(Err(missing)) if !(missing.not_found && optional) => {
                return Err(missing.message.clone());
            }
            _ => None,
        };
        if value.is_none() && !optional {
            let (key, name) = (&key_ref.key, &key_ref.name);
            return Err(format!("couldn't find key {key} in ConfigMap {namespace}/{name}"));
        }
        return Ok(value);
    }
    if let Some(key_ref) = &source.secret_key_ref {
        let optional = key_ref.optional == Some(true);
        let value = match facts.referred.secrets.get(&key_ref.name) {
            Some(Ok(secret)) => secret
                .data
                .as_ref()
                .and_then(|d| d.get(&key_ref.key))
                .map(|v| String::from_utf8_lossy(&v.0).into_owned()),
            Some(Err(missing)) if !(missing.not_found && optional) => {
                return Err(missing.message.clone());
            }
            _ => None,
        };
        if value.is_none() && !optional {
            let (key, name) = (&key_ref.key, &key_ref.name);
            return Err(format!("couldn't find key {key} in Secret {namespace}/{name}"));
        }
        return Ok(value);
    }
    Ok(None)
}

/// The text of a pod's field, as the downward API gives it.
///
/// # Errors
/// The field cannot be read this way.
pub fn field_value(
    pod: &Pod,
    field: &ObjectFieldSelector,
    pod_ips: &[String],
    host_ips: &[String],
) -> Result<String, String> {
    let meta = &pod.metadata;
    let path = field.field_path.as_str();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let ips = if host_network(pod) { host_ips } else { pod_ips };
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => pairs(meta.labels.as_ref()),
        "metadata.annotations" => pairs(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec(pod).node_name),
        "spec.serviceAccountName" => text(&spec(pod).service_account_name),
        "spec.restartPolicy" => text(&spec(pod).restart_policy),
        "status.hostIP" => first(host_ips),
        "status.hostIPs" => host_ips.join(","),
        "status.podIP" => first(ips),
        "status.podIPs" => ips.join(","),
        "status.phase" => objects::status(pod).phase.clone().unwrap_or_default(),
        _ => {
            let subscript =
                |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
                map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
            };
            if let Some(key) = subscript("metadata.labels") {
                of(&meta.labels, key)
            } else if let Some(key) = subscript("metadata.annotations") {
                of(&meta.annotations, key)
            } else {
                return Err(format!("unsupported fieldPath: {path}"));
            }
        }
    })
}

/// A map as lines of `key="value"`, by key.
fn pairs(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
    lines.join("\n")
}

/// Go's `%q`.
pub fn quoted(text: &str) -> String {
    let mut result = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => result.push_str("\\\""),
            '\\' => result.push_str("\\\\"),
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            c if c.is_control() => result.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => result.push(c),
        }
    }
    result.push('"');
    result
}

/// The amount of a resource that a container asks for or is limited to, by the divisor. A limit
/// that is not set is the pod's, or what the node can give.
///
/// # Errors
/// The resource cannot be read this way.
pub fn resource_value(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    allocatable: &List,
) -> Result<String, String> {
    let named =
        selector.container_name.as_deref().filter(|n| !n.is_empty() && *n != container.name);
    let container = match named {
        None => container.clone(),
        Some(name) => objects::find_container(pod, name)
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let Some((kind, name)) = selector.resource.split_once('.') else {
        return Err(format!("unsupported container resource : {}", selector.resource));
    };
    let resources = container.resources.unwrap_or_default();
    let (limits, requests) =
        (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
    let quantity = match kind {
        "limits" => {
            // What bounds a container without a limit: its pod, or the node.
            let whole = spec(pod).resources.as_ref().and_then(|r| r.limits.as_ref());
            let whole = whole.and_then(|limits| limits.get(name));
            limits.get(name).or(whole).or_else(|| allocatable.get(name))
        }
        "requests" => requests.get(name).or_else(|| limits.get(name)),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let divisor = selector.divisor.as_ref().map(amount).filter(|d| !d.is_zero());
    let (total, unit) = match name {
        "cpu" => (
            quantity.map_or(0, |q| amount(q).milli_value()),
            divisor.map_or(1000, |d| d.milli_value()),
        ),
        _ => (quantity.map_or(0, |q| amount(q).value()), divisor.map_or(1, |d| d.value())),
    };
    let unit = unit.max(1);
    Ok((total / unit + i64::from(total % unit > 0)).to_string())
}

/// Variables that describe the services which the pod can use, as Docker's links did.
fn service_variables(facts: &Facts<'_>) -> BTreeMap<String, String> {
    let links = spec(facts.pod).enable_service_links != Some(false);
    let namespace = objects::namespace(facts.pod);
    let mut result = BTreeMap::new();
    for service in facts.services {
        let meta = &service.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let place = meta.namespace.as_deref().unwrap_or_default();
        let master = place == "default" && name == "kubernetes";
        let shadowed = master
            && namespace != "default"
            && facts.services.iter().any(|s| {
                links
                    && s.metadata.namespace.as_deref() == Some(namespace)
                    && s.metadata.name.as_deref() == Some("kubernetes")
            });
        if (master && !shadowed) || (links && place == namespace) {
            variables_of(service, name, &mut result);
        }
    }
    result
}

fn variables_of(service: &Service, name: &str, result: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" || ports.is_empty() {
        return;
    }
    let upper = |text: &str| text.replace('-', "_").to_uppercase();
    let prefix = upper(name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut set = |key: String, value: String| {
        result.insert(key, value);
    };
    set(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    set(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
    for (index, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            set(format!("{prefix}_PORT"), url.clone());
        }
        let stem = format!("{prefix}_PORT_{}_{protocol}", port.port);
        set(format!("{stem}_PROTO"), protocol.to_lowercase());
        set(format!("{stem}_PORT"), port.port.to_string());
        set(format!("{stem}_ADDR"), ip.to_owned());
        set(stem, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_come_from_everywhere() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}},
            "spec": {"containers": [{
                "name": "c",
                "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "3Mi"}},
                "envFrom": [{"prefix": "M_", "configMapRef": {"name": "m"}}],
                "env": [
                    {"name": "A", "value": "x$(M_k)$(B)"},
                    {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                    {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "2Mi"}}},
                    {"name": "E", "value": "$(WEB_SERVICE_PORT)"},
                    {"name": "F", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "no", "optional": true}}},
                ],
            }]},
        }))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "name": "http"}]},
        }))
        .unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v"}})).unwrap();
        let referred = Referred {
            config_maps: HashMap::from([("m".to_owned(), Ok(Arc::new(map)))]),
            ..Referred::default()
        };
        let facts = Facts {
            pod: &pod,
            container: &spec(&pod).containers[0],
            pod_ips: &[],
            host_ips: &[],
            services: &[Arc::new(service)],
            allocatable: &List::new(),
            referred: &referred,
        };
        let env: HashMap<String, String> = environment(&facts).unwrap().into_iter().collect();
        for (name, value) in [
            ("M_k", "v"),
            ("A", "xv$(B)"),
            ("B", "b"),
            ("C", "2"),
            ("D", "2"),
            ("E", "80"),
            ("WEB_PORT", "tcp://10.0.0.1:80"),
            ("WEB_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("WEB_SERVICE_PORT_HTTP", "80"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.contains_key("F"));
    }
}
