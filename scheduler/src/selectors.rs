//! Selectors on labels and nodes, over typed objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// Whether labels match; no selector matches nothing, an empty one everything.
pub fn matches(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return false };
    let get = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| get(k) == Some(v.as_str()));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let values = e.values.as_deref().unwrap_or_default();
            requirement(&e.operator, values, get(&e.key))
        })
}

/// One requirement on the value of a label or field.
fn requirement(operator: &str, values: &[String], value: Option<&str>) -> bool {
    let among = || value.is_some_and(|v| values.iter().any(|x| x == v));
    let compare = |f: fn(&i64, &i64) -> bool| {
        let wanted = values.first().and_then(|v| v.parse::<i64>().ok());
        let have = value.and_then(|v| v.parse::<i64>().ok());
        have.zip(wanted).is_some_and(|(have, wanted)| f(&have, &wanted))
    };
    match operator {
        "In" => among(),
        "NotIn" => !among(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// Whether a node matches a term. A term without requirements matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let name = node.metadata.name.as_deref();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let check = |r: &NodeSelectorRequirement, value: Option<&str>| {
        requirement(&r.operator, r.values.as_deref().unwrap_or_default(), value)
    };
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let field = |key: &str| name.filter(|_| key == "metadata.name");
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| check(r, label(&r.key)))
        && fields.iter().all(|r| check(r, field(&r.key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_match_as_the_api_documents() {
        let labels: Labels = serde_json::from_value(json!({"a": "1", "b": "x"})).expect("labels");
        for (selector, wanted) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (
                json!({"matchExpressions": [{"key": "b", "operator": "In", "values": ["x", "y"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["x"]}]}),
                true,
            ),
            (json!({"matchExpressions": [{"key": "c", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]}), true),
        ] {
            let typed: Option<LabelSelector> =
                serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(matches(typed.as_ref(), Some(&labels)), wanted, "{selector}");
        }
    }

    #[test]
    fn terms_match_labels_and_the_name() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"cores": "8"}}}))
                .expect("a node");
        for (term, wanted) in [
            (json!({}), false),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]}),
                false,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}),
                true,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}),
                false,
            ),
        ] {
            let typed: NodeSelectorTerm = serde_json::from_value(term.clone()).expect("a term");
            assert_eq!(term_matches(&typed, &node), wanted, "{term}");
        }
    }
}
