//! How upstream's errors show a value that has a type of its own: as JSON of a Go struct. Types of
//! `meta/v1` have JSON names; the others are internal types without any, so that fields have Go's
//! names and those that are not set are there too.

use super::{MessageId, Registry, Type};
use crate::Value;

/// Words that Go writes in capitals at the beginning of a name.
const INITIALISMS: [&str; 12] =
    ["api", "cidr", "csi", "dns", "fc", "http", "ip", "nfs", "tls", "tty", "uid", "url"];

/// A value of a type of the built-in schemas, as upstream's error shows it. What is no such type is
/// shown as it stands.
pub fn shown(message: &str, value: &Value) -> String {
    let registry = Registry::builtin();
    let Some(id) = registry.by_name(message) else { return value.to_string() };
    let mut out = String::new();
    match value {
        Value::Array(list) => joined(&mut out, ('[', ']'), list, |out, v| {
            write(registry, id, v, out);
        }),
        value => write(registry, id, value, &mut out),
    }
    out
}

fn write(registry: &Registry, id: MessageId, value: &Value, out: &mut String) {
    let tagged = registry.message(id).name.starts_with("io.k8s.apimachinery.pkg.apis.meta.v1.");
    let fields = registry.shape(id).slots.iter().map(|slot| slot.field(registry));
    let given = fields.filter(|f| !tagged || !f.omitempty || value.get(&f.json).is_some());
    joined(out, ('{', '}'), given, |out, field| {
        let name = if tagged { field.json.clone() } else { go_name(&field.json) };
        out.push_str(&format!("\"{name}\":"));
        match value.get(&field.json) {
            None | Some(Value::Null) if field.pointer => out.push_str("null"),
            None | Some(Value::Null) => zero(registry, &field.ty, out),
            Some(value) => any(registry, &field.ty, value, out),
        }
    });
}

fn any(registry: &Registry, ty: &Type, value: &Value, out: &mut String) {
    match (ty, value) {
        (Type::Message(id), Value::Object(_)) => write(registry, *id, value, out),
        (Type::List(element), Value::Array(list)) => {
            joined(out, ('[', ']'), list, |out, v| any(registry, element, v, out));
        }
        (_, value) => out.push_str(&value.to_string()),
    }
}

/// What Go has where nothing is set.
fn zero(registry: &Registry, ty: &Type, out: &mut String) {
    match ty {
        Type::Message(id) => write(registry, *id, &Value::Null, out),
        Type::String => out.push_str("\"\""),
        Type::Bool => out.push_str("false"),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => out.push('0'),
        Type::Quantity => out.push_str("\"0\""),
        _ => out.push_str("null"),
    }
}

fn joined<T>(
    out: &mut String,
    (open, close): (char, char),
    items: impl IntoIterator<Item = T>,
    mut each: impl FnMut(&mut String, T),
) {
    out.push(open);
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        each(out, item);
    }
    out.push(close);
}

/// `hostPID` is `HostPID`, `apiGroup` is `APIGroup`.
fn go_name(json: &str) -> String {
    let end = json.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(json.len());
    let (first, rest) = json.split_at(end);
    if INITIALISMS.contains(&first) {
        return format!("{}{rest}", first.to_uppercase());
    }
    let mut letters = first.chars();
    letters.next().map_or_else(String::new, |c| {
        format!("{}{}{rest}", c.to_ascii_uppercase(), letters.as_str())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_shown_as_gos_structs() {
        const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
        let cases = [
            (
                "io.k8s.api.rbac.v1.RoleRef".to_owned(),
                json!({"name": "a", "kind": "Role", "apiGroup": "g"}),
                r#"{"APIGroup":"g","Kind":"Role","Name":"a"}"#,
            ),
            (
                "io.k8s.api.core.v1.Toleration".to_owned(),
                json!({"operator": "Exists", "key": "k"}),
                r#"{"Key":"k","Operator":"Exists","Value":"","Effect":"","TolerationSeconds":null}"#,
            ),
            (
                "io.k8s.api.apps.v1.StatefulSetUpdateStrategy".to_owned(),
                json!({"type": "x", "rollingUpdate": {"partition": 2}}),
                r#"{"Type":"x","RollingUpdate":{"Partition":2,"MaxUnavailable":null}}"#,
            ),
            (
                format!("{META}.LabelSelector"),
                json!({"matchExpressions": [{"operator": "In", "key": "a"}], "matchLabels": {"b": "c"}}),
                r#"{"matchLabels":{"b":"c"},"matchExpressions":[{"key":"a","operator":"In"}]}"#,
            ),
            (
                format!("{META}.OwnerReference"),
                json!([{"uid": "1", "controller": true, "apiVersion": "v1", "kind": "K", "name": "n"}]),
                r#"[{"apiVersion":"v1","kind":"K","name":"n","uid":"1","controller":true}]"#,
            ),
            ("nothing".to_owned(), json!({"b": 1}), r#"{"b":1}"#),
        ];
        for (message, value, want) in cases {
            assert_eq!(shown(&message, &value), want, "{message}");
        }
        let names = ["apiGroup", "hostPID", "ipFamilies", "uid", "name"].map(go_name);
        assert_eq!(names, ["APIGroup", "HostPID", "IPFamilies", "UID", "Name"]);
    }
}
