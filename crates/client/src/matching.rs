//! How selectors, terms of nodes and tolerations match, over typed objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// Whether a selector matches labels. An empty one matches everything.
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
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

/// Whether a node with these labels and this name matches a term. A term without requirements
/// matches nothing. Without a name, what the term demands of fields is passed over.
pub fn term_matches(term: &NodeSelectorTerm, labels: Option<&Labels>, name: Option<&str>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let check = |r: &NodeSelectorRequirement, value: Option<&str>| {
        requirement(&r.operator, r.values.as_deref().unwrap_or_default(), value)
    };
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let field = |key: &str| name.filter(|_| key == "metadata.name");
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| check(r, label(&r.key)))
        && (name.is_none() || fields.iter().all(|r| check(r, field(&r.key))))
}

/// Whether a node matches one of a selector's terms; as [`term_matches`].
pub fn any_term_matches(
    selector: &NodeSelector,
    labels: Option<&Labels>,
    name: Option<&str>,
) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
}

/// Whether a toleration covers a taint (core/v1 Toleration).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    fn text(field: &Option<String>) -> &str {
        field.as_deref().unwrap_or_default()
    }
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match text(&toleration.operator) {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_match_as_the_api_documents() {
        let labels: Labels = serde_json::from_value(json!({"a": "1", "b": "x"})).expect("labels");
        let one = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (selector, wanted, of_none) in [
            (json!({}), true, true),
            (json!({"matchLabels": {"a": "1"}}), true, false),
            (json!({"matchLabels": {"a": "2"}}), false, false),
            (one("b", "In", &["x", "y"]), true, false),
            (one("c", "NotIn", &["x"]), true, true),
            (one("c", "Exists", &[]), false, false),
            (one("c", "DoesNotExist", &[]), true, true),
            (one("c", "Unheard", &[]), false, false),
        ] {
            let typed: LabelSelector =
                serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(selects(&typed, Some(&labels)), wanted, "{selector}");
            assert_eq!(selects(&typed, None), of_none, "{selector} of no labels");
        }
    }

    #[test]
    fn terms_match_labels_and_the_name() {
        let labels: Labels = serde_json::from_value(json!({"cores": "8"})).expect("labels");
        let by = |part: &str, key: &str, operator: &str, values: &[&str]| json!({part: [{"key": key, "operator": operator, "values": values}]});
        let cores = |operator, value| by("matchExpressions", "cores", operator, &[value]);
        let name = |operator, value| by("matchFields", "metadata.name", operator, &[value]);
        let mut both = cores("Gt", "9");
        both["matchFields"] = name("In", "n")["matchFields"].clone();
        for (term, wanted, without_name) in [
            (json!({}), false, false),
            (cores("Gt", "4"), true, true),
            (cores("Lt", "4"), false, false),
            (cores("Gt", "many"), false, false),
            (name("In", "n"), true, true),
            (name("In", "m"), false, true),
            (name("NotIn", "n"), false, true),
            (by("matchFields", "spec.x", "In", &["n"]), false, true),
            (both, false, false),
        ] {
            let typed: NodeSelectorTerm = serde_json::from_value(term.clone()).expect("a term");
            assert_eq!(term_matches(&typed, Some(&labels), Some("n")), wanted, "{term}");
            assert_eq!(term_matches(&typed, Some(&labels), None), without_name, "{term}");
        }
    }

    #[test]
    fn tolerations_cover_taints_by_key_value_and_effect() {
        let taint: Taint =
            serde_json::from_value(json!({"key": "a", "value": "1", "effect": "NoSchedule"}))
                .expect("a taint");
        for (toleration, wanted) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "a", "operator": "Exists"}), true),
            (json!({"key": "b", "operator": "Exists"}), false),
            (json!({"key": "a", "value": "1"}), true),
            (json!({"key": "a", "value": "2"}), false),
            (json!({"key": "a", "operator": "Equal", "value": "1", "effect": "NoSchedule"}), true),
            (json!({"key": "a", "operator": "Exists", "effect": "NoExecute"}), false),
        ] {
            let typed: Toleration =
                serde_json::from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerates(&typed, &taint), wanted, "{toleration}");
        }
    }
}
