//! PriorityClasses and RuntimeClasses.

use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::{At, Seen, immutable, labels, one_of};
use super::resources::{Of, requirements};
use super::row::Rows;
use super::{checked, default_absent, node_labels, pods};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("scheduling.k8s.io", "v1"), ("PriorityClass", "priorityclasses"), |row| {
        row.cluster().short(&["pc"]).strategy(PriorityClasses).columns(named([
            column("Value", "integer", "Higher goes first.", |o, _| {
                object::int_at(o, &["value"]).unwrap_or(0).into()
            }),
            column(
                "Global-Default",
                "boolean",
                "Pods that name no class have this one.",
                |o, _| object::bool_at(o, &["globalDefault"]).into(),
            ),
            age_column(),
            column("PreemptionPolicy", "string", "Whether others make room.", |o, _| {
                object::str_at(o, &["preemptionPolicy"]).into()
            }),
        ]))
    });
    rows.add(("node.k8s.io", "v1"), ("RuntimeClass", "runtimeclasses"), |row| {
        row.cluster().strategy(RuntimeClasses).columns(named([
            column("Handler", "string", "The runtime's name for it.", |o, _| {
                object::str_at(o, &["handler"]).into()
            }),
            age_column(),
        ]))
    });
}

/// The highest priority that users may define.
const HIGHEST: i64 = 1_000_000_000;
/// Classes of the system, with their values.
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

struct PriorityClasses;

impl Strategy for PriorityClasses {
    fn default(&self, object: &mut Value) {
        default_absent(object, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        super::keep(object, old, &["metadata", "generation"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let (name, value) = (root.down(&["metadata", "name"]), root.at("value"));
            if name.str().starts_with("system-") {
                if let Some(problem) = system_class(root, name.str(), value.int()) {
                    errors.push(name.forbidden(format!(
                        "priority class names with 'system-' prefix are reserved for system use \
                         only. error: {problem}"
                    )));
                }
            } else if value.int() > HIGHEST {
                errors.push(value.forbidden(format!(
                    "maximum allowed value of a user defined priority is {HIGHEST}"
                )));
            }
            let policy = root.at("preemptionPolicy");
            if policy.is_set() {
                one_of(errors, &policy, &["PreemptLowerPriority", "Never"]);
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let value = root.at("value");
            if value.int() != object::int_at(old, &["value"]).unwrap_or(0) {
                errors.push(value.forbidden("may not be changed in an update."));
            }
            let was = old.get("preemptionPolicy").unwrap_or(&Value::Null);
            immutable(errors, &root.at("preemptionPolicy"), was);
        })
    }
}

/// What keeps a class from being one of the system's.
fn system_class(root: &At<'_>, name: &str, value: i64) -> Option<String> {
    let Some((_, expected)) = SYSTEM.iter().find(|(n, _)| *n == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if value != *expected {
        return Some(format!("value of {name} PriorityClass must be {expected}"));
    }
    let default = root.at("globalDefault").bool();
    default.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let handler = root.at("handler");
            let messages = names::dns1123_label(handler.str());
            errors.extend(messages.into_iter().map(|m| handler.invalid_as(handler.str(), m)));
            let overhead = root.at("overhead");
            if overhead.is_set() {
                let wrapped = json!({"limits": overhead.at("podFixed").value()});
                let at = At::new(&wrapped, overhead.path().clone());
                requirements(errors, &at, Of::Container, &[]);
            }
            let scheduling = root.at("scheduling");
            labels(errors, &scheduling.at("nodeSelector"));
            let tolerations = scheduling.at("tolerations");
            pods::tolerations(errors, &tolerations);
            let mut seen = Seen::default();
            for toleration in tolerations.items() {
                let key = ["key", "operator", "value", "effect"].map(|f| toleration.at(f).str());
                if !seen.insert(key.join("\0")) {
                    let error = toleration.duplicate();
                    errors.push(error.of_type("io.k8s.api.core.v1.Toleration"));
                }
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            immutable(errors, &root.at("handler"), old.get("handler").unwrap_or(&Value::Null));
        })
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let selector = At::root(object).down(&["scheduling", "nodeSelector"]);
        let texts = selector.entries().filter_map(|(label, _)| node_labels::deprecated(label));
        texts.map(|text| format!("{}: {text}", selector.path())).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
