//! Amounts of resources by name (`ResourceList`), and what the containers of a pod need together.

use std::collections::BTreeMap;

use crate::quantity::Quantity;
use crate::{Value, object};

/// Amounts by the name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// What [`of_containers`] can sum up: amounts of several resources.
pub trait Combine: Clone + Default {
    /// Adds the amount of each resource.
    fn add(&mut self, more: &Self);

    /// Takes the larger amount of each resource.
    fn raise(&mut self, other: &Self);
}

impl Combine for Amounts {
    fn add(&mut self, more: &Self) {
        for (name, amount) in more {
            match self.get_mut(name) {
                Some(have) => *have += *amount,
                None => drop(self.insert(name.clone(), *amount)),
            }
        }
    }

    fn raise(&mut self, other: &Self) {
        for (name, amount) in other {
            match self.get_mut(name) {
                Some(have) => *have = (*have).max(*amount),
                None => drop(self.insert(name.clone(), *amount)),
            }
        }
    }
}

/// A ResourceList. What is no quantity counts as nothing: the API has validated it.
pub fn read(list: Option<&Value>) -> Amounts {
    let entries = list.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?))).collect()
}

/// A quantity as JSON has it.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Whether the resource is memory in pages of one size above the usual.
pub fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether the name of a resource is one of Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a container of `initContainers` runs beside the main ones.
pub fn is_sidecar(container: &Value) -> bool {
    object::str_at(container, &["restartPolicy"]) == "Always"
}

/// What the containers of a pod need: those that run together, or the largest of the moments while
/// the pod starts, if that is more (KEP-753). `init` are the containers of `initContainers` in
/// their order, and whether each runs beside those that come after it (`restartPolicy: Always`).
pub fn of_containers<A: Combine>(
    containers: impl IntoIterator<Item = A>,
    init: impl IntoIterator<Item = (A, bool)>,
) -> A {
    let mut total = A::default();
    for needs in containers {
        total.add(&needs);
    }
    let (mut sidecars, mut peak) = (A::default(), A::default());
    for (mut needs, is_sidecar) in init {
        needs.add(&sidecars);
        peak.raise(&needs);
        if is_sidecar {
            sidecars = needs;
        }
    }
    total.add(&sidecars);
    total.raise(&peak);
    total
}

/// The same by the `spec` of a pod; `of` tells what one container needs.
pub fn of_spec(spec: &Value, of: impl Fn(&Value) -> Amounts) -> Amounts {
    let init = object::list_at(spec, &["initContainers"]).iter().map(|c| (of(c), is_sidecar(c)));
    of_containers(object::list_at(spec, &["containers"]).iter().map(&of), init)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(text: &str) -> Amounts {
        Amounts::from([("cpu".to_owned(), text.parse().unwrap())])
    }

    #[test]
    fn the_largest_moment_counts() {
        // containers; init containers, s: sidecars; what they need
        for (containers, init, want) in [
            (&["1", "500m"][..], &[][..], "1500m"),
            (&["1"], &["2"], "2"),
            (&["1"], &["2", "3"], "3"),
            (&["2"], &["s1", "3"], "4"),
            (&["2"], &["3", "s1"], "3"),
            (&["1"], &["s1", "s1", "1"], "3"),
            (&["9E", "9E"], &[], "18E"),
        ] {
            let init = init.iter().map(|text: &&str| match text.strip_prefix('s') {
                Some(text) => (cpu(text), true),
                None => (cpu(text), false),
            });
            let total = of_containers(containers.iter().map(|text| cpu(text)), init);
            assert_eq!(total, cpu(want), "{containers:?}");
        }
    }

    #[test]
    fn resources_are_counted_each_by_itself() {
        let list = |json| read(Some(&json));
        let main = list(serde_json::json!({"cpu": "1", "memory": "1Gi"}));
        let init = list(serde_json::json!({"cpu": "2", "example.org/x": 1, "bad": "?"}));
        let total = of_containers([main], [(init, false)]);
        let want = serde_json::json!({"cpu": "2", "memory": "1Gi", "example.org/x": "1"});
        assert_eq!(total, list(want));
    }
}
