//! Arguments of plugins (`pluginConfig`), with upstream's defaults and what upstream says of wrong
//! ones (kubescheduler.config.k8s.io/v1).

use anyhow::{Context, bail};
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::names::qualified_name;
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Scores in shapes go up to this (upstream's `MaxCustomPriorityScore`).
pub const MAX_SHAPE_SCORE: i32 = 10;

/// The arguments of all plugins of a profile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Args {
    pub fit: FitArgs,
    pub balanced: BalancedArgs,
    pub interpod: InterPodArgs,
    pub spread: SpreadArgs,
    pub node_affinity: NodeAffinityArgs,
    pub preemption: PreemptionArgs,
    pub volume_binding: VolumeBindingArgs,
}

/// NodeResourcesFitArgs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FitArgs {
    /// Extended resources that are not looked at.
    pub ignored_resources: Vec<String>,
    /// The same, by what stands before the slash.
    pub ignored_resource_groups: Vec<String>,
    pub scoring_strategy: ScoringStrategy,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ScoringStrategy {
    /// LeastAllocated, MostAllocated or RequestedToCapacityRatio.
    pub r#type: String,
    pub resources: Vec<ResourceSpec>,
    pub requested_to_capacity_ratio: Option<RequestedToCapacityRatio>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RequestedToCapacityRatio {
    pub shape: Vec<ShapePoint>,
}

/// A point of the line from utilization in percent to score, 0 to [`MAX_SHAPE_SCORE`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ShapePoint {
    pub utilization: i32,
    pub score: i32,
}

/// A resource and what it weighs; 0 is 1.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ResourceSpec {
    pub name: String,
    pub weight: i64,
}

/// NodeResourcesBalancedAllocationArgs.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BalancedArgs {
    pub resources: Vec<ResourceSpec>,
}

/// InterPodAffinityArgs.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct InterPodArgs {
    /// What required affinity of pods that are there already weighs in scores.
    pub hard_pod_affinity_weight: i32,
    /// Pods without preferences do not look at those of others.
    pub ignore_preferred_terms_of_existing_pods: bool,
}

/// PodTopologySpreadArgs.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SpreadArgs {
    /// For pods that have none of their own.
    pub default_constraints: Vec<TopologySpreadConstraint>,
    /// System: upstream's default constraints; List: those above.
    pub defaulting_type: String,
}

/// NodeAffinityArgs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NodeAffinityArgs {
    /// What all pods of the profile want beside what they say.
    pub added_affinity: Option<NodeAffinity>,
}

/// DefaultPreemptionArgs: how many nodes are tried.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PreemptionArgs {
    pub min_candidate_nodes_percentage: i32,
    pub min_candidate_nodes_absolute: i32,
}

/// VolumeBindingArgs.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct VolumeBindingArgs {
    /// Seconds for which a pod waits for its volumes to be bound.
    pub bind_timeout_seconds: i64,
    shape: Option<Value>,
}

fn cpu_and_memory() -> Vec<ResourceSpec> {
    ["cpu", "memory"].map(|name| ResourceSpec { name: name.to_owned(), weight: 1 }).into()
}

impl Default for ScoringStrategy {
    fn default() -> Self {
        Self {
            r#type: "LeastAllocated".to_owned(),
            resources: cpu_and_memory(),
            requested_to_capacity_ratio: None,
        }
    }
}

impl Default for BalancedArgs {
    fn default() -> Self {
        Self { resources: cpu_and_memory() }
    }
}

impl Default for InterPodArgs {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

impl Default for SpreadArgs {
    fn default() -> Self {
        Self { default_constraints: Vec::new(), defaulting_type: "System".to_owned() }
    }
}

impl Default for VolumeBindingArgs {
    fn default() -> Self {
        Self { bind_timeout_seconds: 600, shape: None }
    }
}

impl Default for PreemptionArgs {
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

/// Nothing is cpu and memory, no weight is one.
fn default_resources(resources: &mut Vec<ResourceSpec>) {
    if resources.is_empty() {
        *resources = cpu_and_memory();
    }
    resources.iter_mut().filter(|r| r.weight == 0).for_each(|r| r.weight = 1);
}

impl Args {
    /// Takes one entry of `pluginConfig`; errors of values are added to the list.
    ///
    /// # Errors
    /// The plugin takes no arguments, or others.
    pub fn take(
        &mut self,
        plugin: &str,
        args: Value,
        path: &Path,
        errors: &mut ErrorList,
    ) -> anyhow::Result<()> {
        match plugin {
            "NodeResourcesFit" => {
                self.fit = decode(plugin, args)?;
                default_resources(&mut self.fit.scoring_strategy.resources);
                check_fit(&self.fit, path, errors);
            }
            "NodeResourcesBalancedAllocation" => {
                self.balanced = decode(plugin, args)?;
                default_resources(&mut self.balanced.resources);
                check_balanced(&self.balanced, path, errors);
            }
            "InterPodAffinity" => {
                self.interpod = decode(plugin, args)?;
                let weight = self.interpod.hard_pod_affinity_weight;
                if !(0..=100).contains(&weight) {
                    let path = path.child("hardPodAffinityWeight");
                    errors.push(FieldError::invalid(&path, weight, "not in valid range [0, 100]"));
                }
            }
            "PodTopologySpread" => {
                self.spread = decode(plugin, args)?;
                check_spread(&self.spread, path, errors);
            }
            "NodeAffinity" => {
                self.node_affinity = decode(plugin, args)?;
                check_affinity(&self.node_affinity, path, errors);
            }
            "DefaultPreemption" => {
                self.preemption = decode(plugin, args)?;
                check_preemption(&self.preemption, path, errors);
            }
            "VolumeBinding" => {
                self.volume_binding = decode(plugin, args)?;
                check_binding(&self.volume_binding, path, errors);
            }
            name => bail!("{path}: plugin {name:?} takes no arguments here"),
        }
        Ok(())
    }
}

fn decode<T: DeserializeOwned + Default>(plugin: &str, mut args: Value) -> anyhow::Result<T> {
    const GROUP: &str = "kubescheduler.config.k8s.io";
    let Some(map) = args.as_object_mut() else {
        if args.is_null() {
            return Ok(T::default());
        }
        bail!("args for plugin {plugin} are not a mapping");
    };
    let (version, kind) = (map.remove("apiVersion"), map.remove("kind"));
    let wanted = format!("{plugin}Args");
    if let Some(kind) = kind.as_ref().and_then(Value::as_str).filter(|k| *k != wanted) {
        bail!("args for plugin {plugin} were not of type {wanted}.{GROUP}, got {kind}.{GROUP}");
    }
    if version.is_some_and(|v| v.as_str() != Some("kubescheduler.config.k8s.io/v1")) {
        bail!("args for plugin {plugin} are not of version {GROUP}/v1");
    }
    serde_json::from_value(args).with_context(|| format!("args for plugin {plugin}"))
}

fn check_name(name: &str, path: &Path, errors: &mut ErrorList) {
    errors.extend(qualified_name(name).into_iter().map(|e| FieldError::invalid(path, name, e)));
}

fn check_fit(args: &FitArgs, path: &Path, errors: &mut ErrorList) {
    for (i, name) in args.ignored_resources.iter().enumerate() {
        check_name(name, &path.child("ignoredResources").index(i), errors);
    }
    for (i, group) in args.ignored_resource_groups.iter().enumerate() {
        let path = path.child("ignoredResourceGroups").index(i);
        if group.contains('/') {
            let detail = "resource group name can't contain '/'";
            errors.push(FieldError::invalid(&path, group.as_str(), detail));
        }
        check_name(group, &path, errors);
    }
    let (path, strategy) = (path.child("scoringStrategy"), &args.scoring_strategy);
    let types = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
    if !types.contains(&strategy.r#type.as_str()) {
        let path = path.child("type");
        errors.push(FieldError::not_supported(&path, strategy.r#type.as_str(), &types));
    }
    for (i, resource) in strategy.resources.iter().enumerate() {
        if !(1..=100).contains(&resource.weight) {
            let detail =
                format!("resource weight of {} not in valid range (0, 100]", resource.name);
            let path = path.child("resources").index(i).child("weight");
            errors.push(FieldError::invalid(&path, resource.weight, detail));
        }
    }
    let path = path.child("requestedToCapacityRatio");
    match (strategy.r#type.as_str(), &strategy.requested_to_capacity_ratio) {
        ("RequestedToCapacityRatio", Some(ratio)) => {
            check_shape(&ratio.shape, &path.child("shape"), errors);
        }
        ("RequestedToCapacityRatio", None) => errors.push(FieldError::required(
            &path,
            "must be specified when type is RequestedToCapacityRatio",
        )),
        (_, Some(_)) => errors.push(FieldError::forbidden(
            &path,
            "must be nil when type is not RequestedToCapacityRatio",
        )),
        (_, None) => {}
    }
}

fn check_shape(shape: &[ShapePoint], path: &Path, errors: &mut ErrorList) {
    if shape.is_empty() {
        errors.push(FieldError::required(path, "at least one point must be specified"));
    }
    let unsorted = shape.windows(2).position(|pair| pair[0].utilization >= pair[1].utilization);
    if let Some(i) = unsorted {
        let path = path.index(i + 1).child("utilization");
        let detail = "values must be sorted in increasing order";
        errors.push(FieldError::invalid(&path, shape[i + 1].utilization, detail));
    }
    for (i, point) in shape.iter().enumerate() {
        let values =
            [("utilization", point.utilization, 100), ("score", point.score, MAX_SHAPE_SCORE)];
        for (field, value, max) in values {
            if !(0..=max).contains(&value) {
                let path = path.index(i).child(field);
                let detail = format!("not in valid range [0, {max}]");
                errors.push(FieldError::invalid(&path, value, detail));
            }
        }
    }
}

fn check_balanced(args: &BalancedArgs, path: &Path, errors: &mut ErrorList) {
    for (i, resource) in args.resources.iter().enumerate() {
        let path = path.child("resources").index(i);
        if args.resources[..i].iter().any(|other| other.name == resource.name) {
            errors.push(FieldError::duplicate(&path.child("name"), resource.name.as_str()));
        }
        if resource.weight != 1 {
            errors.push(FieldError::invalid(&path.child("weight"), resource.weight, "must be 1"));
        }
    }
}

fn check_preemption(args: &PreemptionArgs, path: &Path, errors: &mut ErrorList) {
    let share = (path.child("minCandidateNodesPercentage"), args.min_candidate_nodes_percentage);
    let number = (path.child("minCandidateNodesAbsolute"), args.min_candidate_nodes_absolute);
    let mut invalid = |(path, value): &(Path, i32), detail: &str| {
        errors.push(FieldError::invalid(path, *value, detail));
    };
    if !(0..=100).contains(&share.1) {
        invalid(&share, "not in valid range [0, 100]");
    }
    if number.1 < 0 {
        invalid(&number, "not in valid range [0, inf)");
    }
    if (share.1, number.1) == (0, 0) {
        invalid(&share, "cannot be zero at the same time as minCandidateNodesAbsolute");
        invalid(&number, "cannot be zero at the same time as minCandidateNodesPercentage");
    }
}

fn check_binding(args: &VolumeBindingArgs, path: &Path, errors: &mut ErrorList) {
    let (seconds, field) = (args.bind_timeout_seconds, path.child("bindTimeoutSeconds"));
    if seconds < 0 {
        let detail = "invalid BindTimeoutSeconds, should not be a negative value";
        errors.push(FieldError::invalid(&field, seconds, detail));
    }
    if let Some(shape) = &args.shape {
        let detail = "unexpected field `shape`, remove it or turn on the feature gate \
                      StorageCapacityScoring";
        errors.push(FieldError::invalid(&path.child("shape"), shape.clone(), detail));
    }
}

fn check_spread(args: &SpreadArgs, path: &Path, errors: &mut ErrorList) {
    let kind = (path.child("defaultingType"), args.defaulting_type.as_str());
    match kind.1 {
        "List" => {}
        "System" if args.default_constraints.is_empty() => {}
        "System" => errors.push(FieldError::invalid(
            &kind.0,
            kind.1,
            "when .defaultConstraints are not empty",
        )),
        _ => errors.push(FieldError::not_supported(&kind.0, kind.1, &["System", "List"])),
    }
    let all = &args.default_constraints;
    for (i, c) in all.iter().enumerate() {
        let path = path.child("defaultConstraints").index(i);
        if c.max_skew <= 0 {
            let detail = "not in valid range (0, inf)";
            errors.push(FieldError::invalid(&path.child("maxSkew"), c.max_skew, detail));
        }
        let key = path.child("topologyKey");
        match c.topology_key.as_str() {
            "" => errors.push(FieldError::required(&key, "can not be empty")),
            name => check_name(name, &key, errors),
        }
        let (when, actions) =
            (path.child("whenUnsatisfiable"), ["DoNotSchedule", "ScheduleAnyway"]);
        match c.when_unsatisfiable.as_str() {
            "" => errors.push(FieldError::required(&when, "can not be empty")),
            action if actions.contains(&action) => {}
            action => errors.push(FieldError::not_supported(&when, action, &actions)),
        }
        if c.label_selector.is_some() {
            let detail = "constraint must not define a selector, as they deduced for each pod";
            errors.push(FieldError::forbidden(&path.child("labelSelector"), detail));
        }
        let same = |other: &TopologySpreadConstraint| {
            other.topology_key == c.topology_key && other.when_unsatisfiable == c.when_unsatisfiable
        };
        if all[..i].iter().any(same) {
            let value = format!("{{{}, {}}}", c.topology_key, c.when_unsatisfiable);
            errors.push(FieldError::duplicate(&path, value));
        }
    }
}

fn check_affinity(args: &NodeAffinityArgs, path: &Path, errors: &mut ErrorList) {
    let Some(added) = &args.added_affinity else { return };
    let path = path.child("addedAffinity");
    let mut check = |term: &k8s_openapi::api::core::v1::NodeSelectorTerm, path: &Path| {
        for (i, r) in term.match_expressions.iter().flatten().enumerate() {
            let path = path.child("matchExpressions").index(i);
            check_name(&r.key, &path.child("key"), errors);
            let (values, operator) = (r.values.as_deref().unwrap_or_default(), r.operator.as_str());
            let wrong = match operator {
                "In" | "NotIn" => values
                    .is_empty()
                    .then_some("for 'in', 'notin' operators, values set can't be empty"),
                "Exists" | "DoesNotExist" => (!values.is_empty())
                    .then_some("values set must be empty for exists and does not exist"),
                "Gt" | "Lt" => (values.len() != 1)
                    .then_some("for 'Gt', 'Lt' operators, exactly one value is required"),
                _ => {
                    let all = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
                    let path = path.child("operator");
                    errors.push(FieldError::not_supported(&path, operator, &all));
                    None
                }
            };
            if let Some(detail) = wrong {
                let values: Vec<Value> = values.iter().map(|v| v.as_str().into()).collect();
                errors.push(FieldError::invalid(&path.child("values"), values, detail));
            }
        }
    };
    let required = added.required_during_scheduling_ignored_during_execution.as_ref();
    let here = path.child("requiredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in required.into_iter().flat_map(|s| &s.node_selector_terms).enumerate() {
        check(term, &here.child("nodeSelectorTerms").index(i));
    }
    let preferred = added.preferred_during_scheduling_ignored_during_execution.as_deref();
    let here = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in preferred.unwrap_or_default().iter().enumerate() {
        check(&term.preference, &here.index(i).child("preference"));
    }
}
