//! Profiles as config files have them: who is asked at which point, merged with upstream's default
//! set by upstream's rules (kubescheduler.config.k8s.io/v1, `Plugins` and `PluginSet`).

use anyhow::{Context, bail};
use apimachinery::field::{ErrorList, FieldError, Path, aggregate};
use serde::Deserialize;
use serde_json::Value;

use crate::args::Args;
use crate::plugins::{self, DEFAULTS};
use crate::profile::{Asked, Point, Profile};

/// The scheduler that pods name when they name none.
const DEFAULT_SCHEDULER: &str = "default-scheduler";
const VERSION: &str = super::VERSION;
/// Plugins that upstream's v1 has no longer.
const REMOVED: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];
/// Upstream's plugins that are not done here.
const MISSING: [&str; 3] = ["DynamicResources", "GangScheduling", "NodeDeclaredFeatures"];

/// A profile of a config file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: Option<Plugins>,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Plugins {
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
    multi_point: PluginSet,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PluginSet {
    enabled: Vec<Named>,
    /// By name; `*` is all of the default set.
    disabled: Vec<Named>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Named {
    name: String,
    /// 0 is 1.
    weight: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PluginConfig {
    name: String,
    args: Value,
}

impl Plugins {
    fn at(&self, point: Point) -> (&'static str, &PluginSet) {
        match point {
            Point::PreEnqueue => ("preEnqueue", &self.pre_enqueue),
            Point::QueueSort => ("queueSort", &self.queue_sort),
            Point::PreFilter => ("preFilter", &self.pre_filter),
            Point::Filter => ("filter", &self.filter),
            Point::PostFilter => ("postFilter", &self.post_filter),
            Point::PreScore => ("preScore", &self.pre_score),
            Point::Score => ("score", &self.score),
            Point::Reserve => ("reserve", &self.reserve),
            Point::Permit => ("permit", &self.permit),
            Point::PreBind => ("preBind", &self.pre_bind),
            Point::Bind => ("bind", &self.bind),
            Point::PostBind => ("postBind", &self.post_bind),
        }
    }
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|d| d.name == name || d.name == "*")
    }

    /// The default set with what this one changes: disabled ones left out, those that it names
    /// again as it has them but where they were, its others at the end.
    fn over_defaults(&self) -> Vec<Named> {
        let mut mine: Vec<Option<&Named>> = self.enabled.iter().map(Some).collect();
        let mut all = Vec::new();
        for (name, weight) in DEFAULTS.iter().filter(|(name, _)| !self.disables(name)) {
            // Of several the last counts; the others are found to be there twice.
            let again = mine.iter_mut().rev().find(|n| n.is_some_and(|n| n.name == *name));
            all.push(match again.and_then(Option::take) {
                Some(named) => named.clone(),
                None => Named { name: (*name).to_owned(), weight: *weight },
            });
        }
        all.extend(mine.into_iter().flatten().cloned());
        all
    }
}

/// Finds the plugin of a name.
fn known(name: &str, point: Point) -> anyhow::Result<&'static str> {
    if MISSING.contains(&name) {
        bail!("plugin {name:?} is not supported");
    }
    match plugins::NAMES.iter().find(|(n, _)| *n == name) {
        Some((name, _)) => Ok(name),
        None => bail!("{} {name:?} does not exist", point.interface()),
    }
}

/// Who is asked at one point: first those that the point's own list names again though multiPoint
/// has them, then the others of multiPoint, then the others of the point's list.
fn ask(point: Point, own: &PluginSet, multi: &[Named]) -> anyhow::Result<Asked> {
    let mut own_list: Asked = Vec::new();
    let twice = |name: &str| {
        anyhow::anyhow!("plugin {name:?} already registered as {:?}", point.interface())
    };
    for named in &own.enabled {
        let name = known(&named.name, point)?;
        if !plugins::points(name).contains(&point) {
            bail!("plugin {name:?} does not extend {} plugin", point.interface());
        }
        if own_list.iter().any(|(n, _)| *n == name) {
            return Err(twice(name));
        }
        own_list.push((name, named.weight));
    }
    if own.disables("*") {
        return Ok(own_list);
    }
    let mut from_multi: Asked = Vec::new();
    let mut again: Vec<&str> = Vec::new();
    for named in multi {
        let name = known(&named.name, point)?;
        if !plugins::points(name).contains(&point) || own.disables(name) {
            continue;
        }
        if own_list.iter().any(|(n, _)| *n == name) {
            again.push(name);
        } else if from_multi.iter().any(|(n, _)| *n == name) {
            return Err(twice(name));
        } else {
            from_multi.push((name, named.weight));
        }
    }
    let (mut asked, rest): (Asked, Asked) =
        own_list.into_iter().partition(|(name, _)| again.contains(name));
    asked.extend(from_multi);
    asked.extend(rest);
    Ok(asked)
}

impl ProfileFile {
    fn check(&self, args: &mut Args, path: &Path, errors: &mut ErrorList) -> anyhow::Result<()> {
        let was_invalid = |name: &str| -> Option<String> {
            let says = "KubeSchedulerConfiguration is version";
            REMOVED
                .contains(&name)
                .then(|| format!("was invalid in version {VERSION:?} ({says} {VERSION:?})"))
        };
        if self.scheduler_name.as_deref().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(&path.child("schedulerName"), ""));
        }
        percentage(self.percentage_of_nodes_to_score, path, errors);
        for point in Point::ALL {
            let Some(plugins) = &self.plugins else { break };
            let (name, set) = plugins.at(point);
            let path = path.child("plugins").child(name).child("enabled");
            for (i, named) in set.enabled.iter().enumerate() {
                if let Some(detail) = was_invalid(&named.name) {
                    errors.push(FieldError::invalid(&path.index(i), named.name.as_str(), detail));
                }
            }
        }
        for (i, config) in self.plugin_config.iter().enumerate() {
            let (path, name) = (path.child("pluginConfig").index(i), config.name.as_str());
            if self.plugin_config[..i].iter().any(|other| other.name == name) {
                errors.push(FieldError::duplicate(&path, name));
            }
            match was_invalid(name) {
                Some(detail) => errors.push(FieldError::invalid(&path, name, detail)),
                None => {
                    let at = path.child("args");
                    args.take(name, config.args.clone(), &at, errors)
                        .with_context(|| format!("decoding .{path}"))?;
                }
            }
        }
        Ok(())
    }

    fn profile(&self, percentage: usize, args: &Args) -> anyhow::Result<Profile> {
        let scheduler = self.scheduler_name.as_deref().unwrap_or_default();
        let plugins = self.plugins.clone().unwrap_or_default();
        let multi = plugins.multi_point.over_defaults();
        let mut asked = Vec::new();
        for point in Point::ALL {
            let mut list = ask(point, plugins.at(point).1, &multi)?;
            list.iter_mut().filter(|(_, weight)| *weight == 0).for_each(|(_, w)| *w = 1);
            asked.push((point, list));
        }
        let at = |point: Point| -> Asked {
            asked.iter().find(|(p, _)| *p == point).map(|(_, l)| l.clone()).unwrap_or_default()
        };
        let sorts = at(Point::QueueSort).len();
        if sorts != 1 {
            bail!(
                "only one queue sort plugin required for profile with scheduler name \
                 {scheduler:?}, but got {sorts}"
            );
        }
        if at(Point::Bind).is_empty() {
            bail!(
                "at least one bind plugin is needed for profile with scheduler name {scheduler:?}"
            );
        }
        let percentage = match self.percentage_of_nodes_to_score {
            Some(own) => usize::try_from(own).unwrap_or(0),
            None => percentage,
        };
        Ok(Profile::new(scheduler, percentage, args, at))
    }
}

/// Notes a share that is none.
pub fn percentage(share: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(share) = share.filter(|p| !(0..=100).contains(p)) {
        let path = path.child("percentageOfNodesToScore");
        errors.push(FieldError::invalid(&path, share, "not in valid range [0-100]"));
    }
}

/// The profiles of a file; none is the default one. `share` is the file's percentageOfNodesToScore.
///
/// # Errors
/// What is wrong, in upstream's words.
pub fn settle(mut files: Vec<ProfileFile>, share: Option<i32>) -> anyhow::Result<Vec<Profile>> {
    if files.is_empty() {
        files.push(ProfileFile::default());
    }
    if let [only] = files.as_mut_slice() {
        only.scheduler_name.get_or_insert_with(|| DEFAULT_SCHEDULER.to_owned());
    }
    let (root, mut errors) = (Path::new("profiles"), ErrorList::new());
    let mut args: Vec<Args> = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let mut own = Args::default();
        file.check(&mut own, &root.index(i), &mut errors)?;
        args.push(own);
        let same = |other: &ProfileFile| other.scheduler_name == file.scheduler_name;
        if let Some(first) = files[..i].iter().position(same) {
            let first = root.index(first).child("schedulerName");
            let path = root.index(i).child("schedulerName");
            errors.push(FieldError::duplicate(&path, first.as_str()));
        }
        let sort = |f: &ProfileFile| f.plugins.clone().unwrap_or_default().queue_sort;
        if sort(file) != sort(&files[0]) {
            let path = root.index(i).child("plugins").child("queueSort");
            let names: Vec<Value> =
                sort(file).enabled.iter().map(|n| n.name.as_str().into()).collect();
            errors.push(FieldError::invalid(&path, names, "must be the same for all profiles"));
        }
    }
    let share_path = Path::new("");
    percentage(share, &share_path, &mut errors);
    if !errors.is_empty() {
        bail!("{}", aggregate(&errors));
    }
    let share = share.and_then(|p| usize::try_from(p).ok()).unwrap_or(0);
    let make = |(file, args): (&ProfileFile, &Args)| {
        file.profile(share, args).with_context(|| {
            let name = file.scheduler_name.as_deref().unwrap_or_default();
            format!("initializing profiles: creating profile for scheduler name {name}")
        })
    };
    files.iter().zip(&args).map(make).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settled(profiles: Value) -> Result<Vec<Profile>, String> {
        let files: Vec<ProfileFile> =
            serde_json::from_value(profiles).map_err(|e| format!("{e:#}"))?;
        settle(files, None).map_err(|e| format!("{e:#}"))
    }

    /// Filters and scores of one profile with these plugins.
    #[track_caller]
    fn check(plugins: Value, filters: &str, scores: &str) {
        let all = settled(json!([{"plugins": plugins}])).expect("a profile");
        let own = &all[0];
        let names: Vec<&str> =
            own.steps.iter().filter(|s| s.filter).map(|s| s.plugin.name()).collect();
        assert_eq!(names.join(" "), filters, "{plugins}");
        let names: Vec<String> =
            own.scores.iter().map(|(p, w)| format!("{}={w}", p.name())).collect();
        assert_eq!(names.join(" "), scores, "{plugins}");
    }

    const FILTERS: &str = "NodeUnschedulable NodeName TaintToleration NodeAffinity NodePorts \
                           NodeResourcesFit VolumeRestrictions NodeVolumeLimits VolumeBinding \
                           VolumeZone PodTopologySpread InterPodAffinity";
    const SCORES: &str = "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 \
                          VolumeBinding=1 PodTopologySpread=2 InterPodAffinity=2 \
                          NodeResourcesBalancedAllocation=1 ImageLocality=1";

    #[test]
    fn plugins_are_merged_with_the_default_set() {
        check(json!({}), FILTERS, SCORES);
        // Again, with another weight: at its place in multiPoint, first in a point's own list.
        check(
            json!({"multiPoint": {"enabled": [{"name": "ImageLocality", "weight": 9}]}}),
            FILTERS,
            &SCORES.replace("ImageLocality=1", "ImageLocality=9"),
        );
        check(
            json!({"score": {"enabled": [{"name": "ImageLocality", "weight": 9}]}}),
            FILTERS,
            &format!("ImageLocality=9 {}", SCORES.replace(" ImageLocality=1", "")),
        );
        check(
            json!({"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeAffinity"}]}}),
            FILTERS,
            "NodeAffinity=1",
        );
        check(
            json!({"multiPoint": {"disabled": [{"name": "NodeResourcesFit"}]}}),
            &FILTERS.replace(" NodeResourcesFit", ""),
            &SCORES.replace(" NodeResourcesFit=1", ""),
        );
        // Disabled everywhere, then enabled at one point: that comes last.
        check(
            json!({"multiPoint": {"disabled": [{"name": "TaintToleration"}]},
                "filter": {"enabled": [{"name": "TaintToleration"}]}}),
            &format!("{} TaintToleration", FILTERS.replace(" TaintToleration", "")),
            &SCORES.replace("TaintToleration=3 ", ""),
        );
        check(
            json!({"multiPoint": {"disabled": [{"name": "*"}], "enabled": [{"name": "PrioritySort"},
                {"name": "DefaultBinder"}, {"name": "NodeName"}]}}),
            "NodeName",
            "",
        );
    }

    #[test]
    fn what_is_wrong_is_told_as_upstream_does() {
        let plugins = |p: Value| json!([{"plugins": p}]);
        let args =
            |name: &str, args: Value| json!([{"pluginConfig": [{"name": name, "args": args}]}]);
        let fit = |strategy: Value| args("NodeResourcesFit", json!({"scoringStrategy": strategy}));
        let at = "profiles[0].pluginConfig[0].args";
        let cases = [
            (json!([{}, {"schedulerName": "a"}]), "profiles[0].schedulerName: Required value".to_owned()),
            (
                json!([{"schedulerName": "a"}, {"schedulerName": "a"}]),
                "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"".into(),
            ),
            (
                json!([{"percentageOfNodesToScore": 101}]),
                "profiles[0].percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]".into(),
            ),
            (
                json!([{"schedulerName": "a"}, {"schedulerName": "b",
                    "plugins": {"queueSort": {"enabled": [{"name": "PrioritySort"}]}}}]),
                "profiles[1].plugins.queueSort: Invalid value: [\"PrioritySort\"]: must be the same for all profiles".into(),
            ),
            (
                plugins(json!({"filter": {"enabled": [{"name": "Mine"}]}})),
                "creating profile for scheduler name default-scheduler: FilterPlugin \"Mine\" does not exist".into(),
            ),
            (
                plugins(json!({"filter": {"enabled": [{"name": "ImageLocality"}]}})),
                "plugin \"ImageLocality\" does not extend FilterPlugin plugin".into(),
            ),
            (
                plugins(json!({"filter": {"enabled": [{"name": "NodeName"}, {"name": "NodeName"}]}})),
                "plugin \"NodeName\" already registered as \"FilterPlugin\"".into(),
            ),
            (
                plugins(json!({"multiPoint": {"enabled": [{"name": "NodeName"}, {"name": "NodeName"}]}})),
                "plugin \"NodeName\" already registered as \"FilterPlugin\"".into(),
            ),
            (
                plugins(json!({"multiPoint": {"enabled": [{"name": "DynamicResources"}]}})),
                "plugin \"DynamicResources\" is not supported".into(),
            ),
            (
                plugins(json!({"queueSort": {"disabled": [{"name": "*"}]}})),
                "only one queue sort plugin required for profile with scheduler name \"default-scheduler\", but got 0".into(),
            ),
            (
                plugins(json!({"bind": {"disabled": [{"name": "DefaultBinder"}]}})),
                "at least one bind plugin is needed for profile with scheduler name \"default-scheduler\"".into(),
            ),
            (
                plugins(json!({"filter": {"enabled": [{"name": "EBSLimits"}]}})),
                "profiles[0].plugins.filter.enabled[0]: Invalid value: \"EBSLimits\": was invalid in version".into(),
            ),
            (plugins(json!({"filters": {}})), "unknown field `filters`".into()),
            (
                json!([{"pluginConfig": [{"name": "NodeAffinity"}, {"name": "NodeAffinity"}]}]),
                "profiles[0].pluginConfig[1]: Duplicate value: \"NodeAffinity\"".into(),
            ),
            (
                args("NodeAffinity", json!({"kind": "NodeResourcesFitArgs"})),
                "args for plugin NodeAffinity were not of type NodeAffinityArgs.kubescheduler.config.k8s.io, got NodeResourcesFitArgs".into(),
            ),
            (args("NodeName", json!({})), "takes no arguments".into()),
            (
                fit(json!({"type": "Some"})),
                format!("{at}.scoringStrategy.type: Unsupported value: \"Some\": supported values: \"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\""),
            ),
            (
                fit(json!({"resources": [{"name": "cpu", "weight": 101}]})),
                format!("{at}.scoringStrategy.resources[0].weight: Invalid value: 101: resource weight of cpu not in valid range (0, 100]"),
            ),
            (
                fit(json!({"type": "RequestedToCapacityRatio"})),
                format!("{at}.scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is RequestedToCapacityRatio"),
            ),
            (
                fit(json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio":
                    {"shape": [{"utilization": 9, "score": 11}, {"utilization": 9}]}})),
                format!("[{at}.scoringStrategy.requestedToCapacityRatio.shape[1].utilization: Invalid value: 9: values must be sorted in increasing order, {at}.scoringStrategy.requestedToCapacityRatio.shape[0].score: Invalid value: 11: not in valid range [0, 10]]"),
            ),
            (
                args("NodeResourcesFit", json!({"ignoredResourceGroups": ["a/b"]})),
                format!("{at}.ignoredResourceGroups[0]: Invalid value: \"a/b\": resource group name can't contain '/'"),
            ),
            (
                args("NodeResourcesBalancedAllocation", json!({"resources": [{"name": "cpu", "weight": 2}]})),
                format!("{at}.resources[0].weight: Invalid value: 2: must be 1"),
            ),
            (
                args("InterPodAffinity", json!({"hardPodAffinityWeight": 101})),
                format!("{at}.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]"),
            ),
            (
                args("PodTopologySpread", json!({"defaultConstraints": [
                    {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}]})),
                format!("{at}.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty"),
            ),
            (
                args("PodTopologySpread", json!({"defaultingType": "List", "defaultConstraints": [
                    {"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}]})),
                format!("{at}.defaultConstraints[0].maxSkew: Invalid value: 0: not in valid range (0, inf)"),
            ),
            (
                args("VolumeBinding", json!({"bindTimeoutSeconds": -1})),
                format!("{at}.bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value"),
            ),
            (
                args("DefaultPreemption", json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0})),
                format!("{at}.minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute"),
            ),
            (
                args("NodeAffinity", json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                    {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}}})),
                format!("{at}.addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"),
            ),
        ];
        for (profiles, wanted) in cases {
            let error = settled(profiles.clone()).err().unwrap_or_default();
            assert!(error.contains(&wanted), "{profiles}: {error}");
        }
    }
}
