//! Labels of nodes that have another name now, and where objects select nodes by them.

use apimachinery::names;

use super::check::At;

/// What to say of a label of nodes, if it is not to be used any longer.
pub fn deprecated(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

/// Warns where a field that holds a label's key holds one of those.
pub fn key(warnings: &mut Vec<String>, at: &At<'_>) {
    if let Some(text) = deprecated(at.str()) {
        warnings.push(format!("{}: {} is {text}", at.path(), at.str()));
    }
}

/// A term of a node selector. Only where a term is a mere preference may its values be wrong.
pub fn term(warnings: &mut Vec<String>, term: &At<'_>, preferred: bool) {
    for expression in term.at("matchExpressions").items() {
        key(warnings, &expression.at("key"));
        for value in expression.at("values").items().filter(|_| preferred) {
            for problem in names::label_value(value.str()) {
                warnings.push(format!("{}: {} is invalid, {problem}", value.path(), value.str()));
            }
        }
    }
}

/// A label selector that nodes are chosen by.
pub fn selector(warnings: &mut Vec<String>, selector: &At<'_>) {
    for expression in selector.at("matchExpressions").items() {
        key(warnings, &expression.at("key"));
    }
    let labels = selector.at("matchLabels");
    for (label, _) in labels.entries() {
        if let Some(text) = deprecated(label) {
            warnings.push(format!("{}: {text}", labels.path().child(label)));
        }
    }
}
