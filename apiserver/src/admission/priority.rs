//! Priority: pods get the number that their PriorityClass stands for.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::{Attributes, Operation, Plugin, forbidden};
use crate::reader::{Object, Reader};

pub struct Priority {
    reader: Arc<dyn Reader>,
    classes: GroupResource,
}

impl Priority {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self { reader, classes: GroupResource::new("scheduling.k8s.io", "priorityclasses") }
    }

    /// The default class; of several, which a race can make, the one of the least value.
    fn default_class(&self) -> Option<Object> {
        self.reader
            .list(&self.classes, "")
            .into_iter()
            .filter(|class| object::bool_at(class, &["globalDefault"]))
            .min_by_key(|class| object::int_at(class, &["value"]).unwrap_or(0))
    }

    fn admit_new(&self, a: &Attributes<'_>, pod: &mut Value) -> Result<(), ApiError> {
        let name = object::str_at(pod, &["spec", "priorityClassName"]).to_owned();
        let class = if name.is_empty() {
            self.default_class()
        } else {
            let found = self.reader.get(&self.classes, "", &name);
            if found.is_none() {
                let reason = format!("no PriorityClass with name {name} was found");
                return Err(forbidden(a, Some(pod), reason));
            }
            found
        };
        let (priority, policy) = match &class {
            Some(class) => {
                if name.is_empty() {
                    object::set(pod, &["spec", "priorityClassName"], object::name(class));
                }
                (
                    object::int_at(class, &["value"]).unwrap_or(0),
                    object::str_at(class, &["preemptionPolicy"]).to_owned(),
                )
            }
            None => (0, "PreemptLowerPriority".to_owned()),
        };
        if let Some(own) = object::int_at(pod, &["spec", "priority"])
            && own != priority
        {
            let reason = format!(
                "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            );
            return Err(forbidden(a, Some(pod), reason));
        }
        object::set(pod, &["spec", "priority"], priority);
        if policy.is_empty() {
            return Ok(());
        }
        let own = object::str_at(pod, &["spec", "preemptionPolicy"]);
        if !own.is_empty() && own != policy {
            let reason = format!(
                "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(forbidden(a, Some(pod), reason));
        }
        object::set(pod, &["spec", "preemptionPolicy"], policy);
        Ok(())
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object else { return Ok(()) };
        if !a.subresource.is_empty()
            || !a.resource.group.is_empty()
            || a.resource.resource != "pods"
        {
            return Ok(());
        }
        match (a.operation, a.old) {
            (Operation::Create, _) => self.admit_new(a, pod),
            (Operation::Update, Some(old)) => {
                // An old client may leave out what was computed.
                for field in ["priority", "preemptionPolicy"] {
                    if object::get(pod, &["spec", field]).is_none()
                        && let Some(was) = object::get(old, &["spec", field])
                    {
                        object::set(pod, &["spec", field], was.clone());
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(class) = object else { return Ok(()) };
        let checked = matches!(a.operation, Operation::Create | Operation::Update);
        if *a.resource != self.classes
            || !a.subresource.is_empty()
            || !checked
            || !object::bool_at(class, &["globalDefault"])
        {
            return Ok(());
        }
        match self.default_class() {
            Some(default)
                if a.operation == Operation::Create
                    || object::name(&default) != object::name(class) =>
            {
                let reason = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    object::name(&default)
                );
                Err(forbidden(a, object, reason))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;
    use serde_json::json;

    fn class(name: &str, value: i64, policy: &str, default: bool) -> Value {
        let mut class =
            json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
        if !policy.is_empty() {
            class["preemptionPolicy"] = policy.into();
        }
        class
    }

    fn plugin(classes: &[Value]) -> Priority {
        let group = "scheduling.k8s.io";
        let all: Vec<_> = classes.iter().map(|c| (group, "priorityclasses", c.clone())).collect();
        Priority::new(Memory::with(&all))
    }

    #[tokio::test]
    async fn pods_get_priorities() {
        let high = class("high", 1000, "Never", false);
        let low = class("low", 5, "", true);
        let lower = class("lower", 3, "PreemptLowerPriority", true);
        // classes, spec, spec afterwards or reason
        let cases = [
            (
                vec![high.clone()],
                json!({}),
                Ok(json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})),
            ),
            (
                vec![low.clone(), lower.clone()],
                json!({}),
                Ok(
                    json!({"priorityClassName": "lower", "priority": 3, "preemptionPolicy": "PreemptLowerPriority"}),
                ),
            ),
            (vec![low.clone()], json!({}), Ok(json!({"priorityClassName": "low", "priority": 5}))),
            (
                vec![high.clone(), low.clone()],
                json!({"priorityClassName": "high"}),
                Ok(
                    json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"}),
                ),
            ),
            (
                vec![high.clone()],
                json!({"priorityClassName": "none"}),
                Err("no PriorityClass with name none was found"),
            ),
            (
                vec![high.clone()],
                json!({"priorityClassName": "high", "priority": 7}),
                Err(
                    "the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name",
                ),
            ),
            (
                vec![high.clone()],
                json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
                Err(
                    "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided in pod spec; priority admission controller computed Never from the given PriorityClass name",
                ),
            ),
        ];
        for (classes, spec, want) in cases {
            let write = Write {
                object: json!({"metadata": {"name": "p"}, "spec": spec}),
                ..Write::default()
            };
            let got = write.run(&plugin(&classes)).await.map(|(pod, _)| pod["spec"].clone());
            let want = want.map_err(|reason| format!("pods \"p\" is forbidden: {reason}"));
            assert_eq!(got, want);
        }
        let kept = Write {
            operation: Operation::Update,
            object: json!({"metadata": {"name": "p"}, "spec": {}}),
            old: Some(json!({"metadata": {"name": "p"}, "spec": {"priority": 9}})),
            ..Write::default()
        };
        let got = kept.run(&plugin(&[])).await.map(|(pod, _)| pod["spec"].clone());
        assert_eq!(got, Ok(json!({"priority": 9})));
    }

    #[tokio::test]
    async fn there_is_one_default() {
        let existing = [class("one", 1, "", true)];
        let attempt = async |operation, name: &str, default| {
            let write = Write {
                operation,
                group: "scheduling.k8s.io",
                resource: "priorityclasses",
                kind: "PriorityClass",
                namespace: "",
                object: class(name, 1, "", default),
                ..Write::default()
            };
            write.run(&plugin(&existing)).await.err().unwrap_or_default()
        };
        let refusal = r#"priorityclasses.scheduling.k8s.io "two" is forbidden: PriorityClass one is already marked as default. Only one default can exist"#;
        assert_eq!(attempt(Operation::Create, "two", true).await, refusal);
        assert_eq!(attempt(Operation::Update, "two", true).await, refusal);
        assert_eq!(attempt(Operation::Update, "one", true).await, "");
        assert_eq!(attempt(Operation::Create, "two", false).await, "");
    }
}
