//! Workloads of the group `apps`: Deployments, ReplicaSets, DaemonSets, StatefulSets, and the
//! revisions that the latter two remember.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::{self, set};
use apimachinery::selector::LabelSelector;
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{self, Cell, age_column, column, named, wide};
use super::check::{
    At, immutable, label_selector, nonnegative, same, selector_is_empty, supported,
};
use super::pods::spec::{self, Options};
use super::pods::{self, defaults};
use super::row::Rows;
use super::volumes::claim_warnings;
use super::{
    Deps, SPEC, STATUS, begin, carry_on, checked, child, default_absent, default_to, keep,
    label_name,
};
use crate::registry::{Column, Context, SelectableField, Strategy};

const GROUP: (&str, &str) = ("apps", "v1");

pub fn rows(rows: &mut Rows<'_>, deps: &Deps) {
    let options = Options { is_pod: false, allow_privileged: deps.allow_privileged };
    let of = |kind| Workload { kind, options: options.clone() };
    for (kind, names, short, scale, columns) in [
        (Kind::Deployment, ("Deployment", "deployments"), "deploy", "spec.selector", deployments()),
        (Kind::ReplicaSet, ("ReplicaSet", "replicasets"), "rs", "spec.selector", replica_sets()),
        (
            Kind::StatefulSet,
            ("StatefulSet", "statefulsets"),
            "sts",
            "spec.selector",
            stateful_sets(),
        ),
        (Kind::DaemonSet, ("DaemonSet", "daemonsets"), "ds", "", daemon_sets()),
    ] {
        // Labels of the object too go their own way from a Deployment's status.
        let reset: &'static [&'static [&'static str]] = match kind {
            Kind::Deployment => &[&["spec"], &["metadata", "labels"]],
            _ => SPEC,
        };
        rows.add(GROUP, names, |row| {
            let row = row
                .in_all()
                .short(&[short])
                .strategy(of(kind))
                .part("status", WorkloadStatus(of(kind)), reset)
                .columns(columns);
            if scale.is_empty() { row } else { row.scale(scale) }
        });
    }
    rows.add(GROUP, ("ControllerRevision", "controllerrevisions"), |row| {
        row.strategy(Revisions).columns(named([
            column("Controller", "string", "Whose revision it is.", |o, _| controller(o).into()),
            column("Revision", "string", "Its number.", |o, _| {
                object::int_at(o, &["revision"]).unwrap_or(0).into()
            }),
            age_column(),
        ]))
    });
}

/// `status.replicas`, by which sets of replicas can be selected.
pub(super) fn replicas_field() -> Vec<SelectableField> {
    let get =
        |o: &Value| object::int_at(o, &["status", "replicas"]).unwrap_or(0).to_string().into();
    vec![SelectableField { label: "status.replicas", get }]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
}

/// DaemonSets had a generation of their template alone once; it lives on in an annotation.
const TEMPLATE_GENERATION: [&str; 3] =
    ["metadata", "annotations", "deprecated.daemonset.template.generation"];

fn template_generation(object: &Value) -> i64 {
    object::str_at(object, &TEMPLATE_GENERATION).parse().unwrap_or(0)
}

/// A kind that makes pods from a template.
struct Workload {
    kind: Kind,
    options: Options,
}

impl Strategy for Workload {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        defaults::template(child(spec, "template"));
        match self.kind {
            Kind::Deployment => default_deployment(spec),
            Kind::ReplicaSet => default_absent(spec, "replicas", 1),
            Kind::StatefulSet => default_stateful_set(spec),
            Kind::DaemonSet => {
                default_daemon_set(spec);
                // Upstream's conversion shows it always, so that who writes the rest has it too.
                let number = template_generation(object);
                set(object, &TEMPLATE_GENERATION, number.to_string());
            }
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
        pods::drop_disabled_at(object, pods::TEMPLATE, None);
        if self.kind == Kind::DaemonSet {
            let asked = template_generation(object).max(1);
            set(object, &TEMPLATE_GENERATION, asked.to_string());
        }
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        pods::drop_disabled_at(object, pods::TEMPLATE, Some(old));
        carry_on(object, old);
        if self.kind == Kind::DaemonSet {
            let path = ["spec", "template"];
            let of = |o: &Value| object::get(o, &path).cloned().unwrap_or_default();
            let changed = i64::from(!same(&of(object), &of(old)));
            let number = template_generation(old).max(1) + changed;
            set(object, &TEMPLATE_GENERATION, number.to_string());
        }
        // Upstream counts changed annotations of deployments, too.
        let path = ["metadata", "annotations"];
        let annotations = |o: &Value| object::get(o, &path).cloned().unwrap_or_default();
        let generation = object::generation(old);
        if self.kind == Kind::Deployment
            && object::generation(object) == generation
            && !same(&annotations(object), &annotations(old))
        {
            set(object, &["metadata", "generation"], generation + 1);
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| self.spec(errors, &root.at("spec"), None))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let old_spec = &old["spec"];
            if self.kind == Kind::DaemonSet {
                immutable(errors, &spec.at("selector"), &old_spec["selector"]);
            }
            self.spec(errors, &spec, Some(old_spec));
            match self.kind {
                Kind::Deployment | Kind::ReplicaSet => {
                    immutable(errors, &spec.at("selector"), &old_spec["selector"]);
                }
                Kind::StatefulSet => stateful_set_update(errors, &spec, old_spec),
                Kind::DaemonSet => {}
            }
        })
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        match self.kind {
            Kind::StatefulSet => label_name(name, prefix),
            _ => super::subdomain_name(name, prefix),
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut list = Vec::new();
        if old.is_none() && matches!(self.kind, Kind::ReplicaSet | Kind::Deployment) {
            pods::pod_names_warning(&mut list, object::name(object));
        }
        let changes = |old: &Value| match self.kind {
            Kind::DaemonSet => template_generation(object) != template_generation(old),
            _ => object::generation(object) != object::generation(old),
        };
        let spec = At::root(object).at("spec");
        // A template that was there before has been warned of.
        if old.is_none_or(changes) {
            list.extend(pods::template_warnings(&spec.at("template")));
        }
        if self.kind == Kind::StatefulSet {
            for claim in spec.at("volumeClaimTemplates").items() {
                // Upstream's paths: in the claim's place at first, then in a field of another name.
                let path = match old {
                    None => claim.path().clone(),
                    Some(_) => claim.path().child("Spec"),
                };
                let claim = At::new(claim.at("spec").value(), path);
                claim_warnings(&mut list, &claim);
            }
            if spec.at("revisionHistoryLimit").int() < 0 {
                list.push(
                    "spec.revisionHistoryLimit: a negative value retains all historical \
                     revisions; a value >= 0 is recommended"
                        .to_owned(),
                );
            }
        }
        list
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn default_deployment(spec: &mut Value) {
    default_absent(spec, "replicas", 1);
    let strategy = child(spec, "strategy");
    default_to(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        default_absent(rolling, "maxUnavailable", "25%");
        default_absent(rolling, "maxSurge", "25%");
    }
    default_absent(spec, "revisionHistoryLimit", 10);
    default_absent(spec, "progressDeadlineSeconds", 600);
}

fn default_daemon_set(spec: &mut Value) {
    let strategy = child(spec, "updateStrategy");
    default_to(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        default_absent(rolling, "maxUnavailable", 1);
        default_absent(rolling, "maxSurge", 0);
    }
    default_absent(spec, "revisionHistoryLimit", 10);
}

fn default_stateful_set(spec: &mut Value) {
    default_to(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    if object::str_at(strategy, &["type"]).is_empty() {
        default_to(strategy, "type", "RollingUpdate");
        default_absent(strategy, "rollingUpdate", json!({}));
    }
    if strategy["type"] == "RollingUpdate" && strategy.get("rollingUpdate").is_some() {
        let rolling = child(strategy, "rollingUpdate");
        default_absent(rolling, "partition", 0);
        default_absent(rolling, "maxUnavailable", 1);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    default_to(retention, "whenDeleted", "Retain");
    default_to(retention, "whenScaled", "Retain");
    default_absent(spec, "replicas", 1);
    default_absent(spec, "revisionHistoryLimit", 10);
    for claim in super::each(spec, "volumeClaimTemplates") {
        set(claim, &["apiVersion"], "v1");
        set(claim, &["kind"], "PersistentVolumeClaim");
        default_absent(child(claim, "spec"), "volumeMode", "Filesystem");
        default_to(child(claim, "status"), "phase", "Pending");
    }
}

impl Workload {
    fn spec(&self, errors: &mut ErrorList, spec: &At<'_>, old: Option<&Value>) {
        match self.kind {
            Kind::Deployment => {
                nonnegative(errors, &spec.at("replicas"));
                self.selected_template(errors, spec, "deployment", "ReplicaSet");
                deployment_strategy(errors, &spec.at("strategy"));
                nonnegative(errors, &spec.at("minReadySeconds"));
                nonnegative(errors, &spec.at("revisionHistoryLimit"));
                let deadline = spec.at("progressDeadlineSeconds");
                nonnegative(errors, &deadline);
                if deadline.is_set() && deadline.int() <= spec.at("minReadySeconds").int() {
                    errors.push(deadline.invalid("must be greater than minReadySeconds"));
                }
            }
            Kind::ReplicaSet => {
                nonnegative(errors, &spec.at("replicas"));
                nonnegative(errors, &spec.at("minReadySeconds"));
                self.selected_template(errors, spec, "deployment", "ReplicaSet");
            }
            Kind::StatefulSet => self.stateful_set(errors, spec, old),
            Kind::DaemonSet => self.daemon_set(errors, spec),
        }
    }

    /// A selector that is there and fits the template.
    fn selected_template(&self, errors: &mut ErrorList, spec: &At<'_>, kind: &str, pods_of: &str) {
        selector(errors, &spec.at("selector"), kind);
        let Ok(parsed) = LabelSelector::from_json(Some(spec.at("selector").value())) else {
            let error = spec.at("selector").invalid("invalid label selector");
            errors.push(error.of_type("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"));
            return;
        };
        let template = spec.at("template");
        // A missing selector selects nothing, which no labels match.
        let matches = parsed.as_ref().is_some_and(|s| s.is_everything() || selects(s, &template));
        if !matches {
            let labels = template.down(&["metadata", "labels"]);
            errors.push(labels.invalid("`selector` does not match template `labels`"));
        }
        spec::template(errors, &template, &self.options);
        always_restarts(errors, &template, pods_of);
    }

    fn daemon_set(&self, errors: &mut ErrorList, spec: &At<'_>) {
        let (at, template) = (spec.at("selector"), spec.at("template"));
        label_selector(errors, &at);
        if let Ok(parsed) = LabelSelector::from_json(Some(at.value()))
            && !parsed.is_some_and(|s| selects(&s, &template))
        {
            let labels = template.down(&["metadata", "labels"]);
            errors.push(labels.invalid("`selector` does not match template `labels`"));
        }
        if at.is_set() && selector_is_empty(at.value()) {
            errors.push(at.invalid("empty selector is invalid for daemonset"));
        }
        spec::template(errors, &template, &self.options);
        always_restarts(errors, &template, "DaemonSet");
        nonnegative(errors, &spec.at("minReadySeconds"));
        daemon_set_strategy(errors, &spec.at("updateStrategy"));
        nonnegative(errors, &spec.at("revisionHistoryLimit"));
    }

    fn stateful_set(&self, errors: &mut ErrorList, spec: &At<'_>, old: Option<&Value>) {
        let policy = spec.at("podManagementPolicy");
        match policy.str() {
            "" => errors.push(policy.required("")),
            "OrderedReady" | "Parallel" => {}
            _ => errors.push(policy.invalid("must be 'OrderedReady' or 'Parallel'")),
        }
        stateful_set_strategy(errors, &spec.at("updateStrategy"));
        let retention = spec.at("persistentVolumeClaimRetentionPolicy");
        if retention.is_set() {
            for field in ["whenDeleted", "whenScaled"] {
                supported(errors, &retention.at(field), &["Retain", "Delete"]);
            }
        }
        let claims = spec.at("volumeClaimTemplates");
        if old.is_none() {
            claims.items().for_each(|c| pods::volumes::claim_spec(errors, &c.at("spec")));
        }
        nonnegative(errors, &spec.at("replicas"));
        nonnegative(errors, &spec.at("minReadySeconds"));
        let start = spec.down(&["ordinals", "start"]);
        nonnegative(errors, &At::new(start.value(), spec.at("ordinals.start").path().clone()));
        let service = spec.at("serviceName");
        if old.is_none() && !service.is_empty() {
            super::check::invalid_each(errors, &service, names::dns1123_label(service.str()));
        }
        selector(errors, &spec.at("selector"), "statefulset");
        let template = spec.at("template");
        if let Ok(parsed) = LabelSelector::from_json(Some(spec.at("selector").value())) {
            if !parsed.is_some_and(|s| s.is_everything() || selects(&s, &template)) {
                let labels = template.down(&["metadata", "labels"]);
                errors.push(labels.invalid("`selector` does not match template `labels`"));
            }
            let filled = with_claims(&template, &claims);
            spec::template(errors, &At::new(&filled, template.path().clone()), &self.options);
        } else {
            errors.push(spec.at("selector").invalid(""));
        }
        always_restarts(errors, &template, "StatefulSet");
    }
}

fn selects(selector: &LabelSelector, template: &At<'_>) -> bool {
    let labels = template.down(&["metadata", "labels"]);
    selector.matches(|key| labels.value().get(key).and_then(Value::as_str))
}

/// The template with the volumes that the set's claims will be, and without the host name that
/// the set will give.
fn with_claims(template: &At<'_>, claims: &At<'_>) -> Value {
    let mut filled = template.value().clone();
    if !filled.is_object() {
        return filled;
    }
    for field in ["subdomain", "hostname"] {
        object::remove(&mut filled, &["spec", field]);
    }
    let names: Vec<&str> = claims
        .items()
        .map(|c| c.down(&["metadata", "name"]).value().as_str().unwrap_or(""))
        .collect();
    if !names.is_empty() {
        let mut volumes: Vec<Value> = names
            .iter()
            .map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}}))
            .collect();
        let own = object::list_at(&filled, &["spec", "volumes"]);
        volumes
            .extend(own.iter().filter(|v| !names.contains(&object::str_at(v, &["name"]))).cloned());
        set(&mut filled, &["spec", "volumes"], volumes);
    }
    filled
}

fn selector(errors: &mut ErrorList, at: &At<'_>, kind: &str) {
    if !at.is_set() {
        errors.push(at.required(""));
        return;
    }
    label_selector(errors, at);
    if selector_is_empty(at.value()) {
        errors.push(at.invalid(format!("empty selector is invalid for {kind}")));
    }
}

/// Pods of these workloads run until they are deleted.
pub(super) fn always_restarts(errors: &mut ErrorList, template: &At<'_>, kind: &str) {
    let policy = template.down(&["spec", "restartPolicy"]);
    if policy.str() != "Always" {
        errors.push(FieldError::not_supported(policy.path(), policy.str(), &["Always"]));
    }
    let deadline = template.down(&["spec", "activeDeadlineSeconds"]);
    if deadline.is_set() {
        errors
            .push(deadline.forbidden(format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
}

/// A count, or a share of all pods.
pub fn int_or_percent(errors: &mut ErrorList, at: &At<'_>) {
    match at.value() {
        Value::String(text) if percent(text).is_none() => errors.push(at.invalid(
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
             '1%',  or '93%', regex used for validation is '[0-9]+%')",
        )),
        Value::Number(_) => nonnegative(errors, at),
        _ => {}
    }
}

fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().unwrap_or(i64::MAX))
}

/// Shares above everything make no sense.
pub fn at_most_all(errors: &mut ErrorList, at: &At<'_>) {
    if percent(at.str()).is_some_and(|p| p > 100) {
        errors.push(at.invalid("must not be greater than 100%"));
    }
}

fn amount(at: &At<'_>) -> i64 {
    percent(at.str()).unwrap_or_else(|| at.int())
}

fn deployment_strategy(errors: &mut ErrorList, at: &At<'_>) {
    let rolling = at.at("rollingUpdate");
    match at.at("type").str() {
        "Recreate" => {
            if rolling.is_set() {
                errors.push(
                    rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"),
                );
            }
        }
        "RollingUpdate" if !rolling.is_set() => {
            errors.push(rolling.required("this should be defaulted and never be nil"));
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            int_or_percent(errors, &unavailable);
            int_or_percent(errors, &surge);
            if amount(&unavailable) == 0 && amount(&surge) == 0 {
                errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            at_most_all(errors, &unavailable);
        }
        _ => errors.push(
            at.not_supported(&["Recreate", "RollingUpdate"])
                .of_type("io.k8s.api.apps.v1.DeploymentStrategy"),
        ),
    }
}

fn daemon_set_strategy(errors: &mut ErrorList, at: &At<'_>) {
    let rolling = at.at("rollingUpdate");
    match at.at("type").str() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => errors.push(rolling.required("")),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            int_or_percent(errors, &unavailable);
            int_or_percent(errors, &surge);
            at_most_all(errors, &unavailable);
            at_most_all(errors, &surge);
            match (amount(&unavailable) != 0, amount(&surge) != 0) {
                (true, true) => {
                    errors.push(surge.invalid("may not be set when maxUnavailable is non-zero"));
                }
                (false, false) => {
                    errors.push(unavailable.required("cannot be 0 when maxSurge is 0"));
                }
                _ => {}
            }
        }
        _ => errors.push(
            at.not_supported(&["RollingUpdate", "OnDelete"])
                .of_type("io.k8s.api.apps.v1.DaemonSetUpdateStrategy"),
        ),
    }
}

fn stateful_set_strategy(errors: &mut ErrorList, at: &At<'_>) {
    let rolling = at.at("rollingUpdate");
    match at.at("type").str() {
        "" => errors.push(at.required("")),
        "OnDelete" => {
            if rolling.is_set() {
                errors.push(rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"));
            }
        }
        "RollingUpdate" => {
            nonnegative(errors, &rolling.at("partition"));
            let unavailable = rolling.at("maxUnavailable");
            if unavailable.is_set() {
                int_or_percent(errors, &unavailable);
                if amount(&unavailable) == 0 {
                    errors.push(unavailable.invalid("cannot be 0"));
                }
                at_most_all(errors, &unavailable);
            }
        }
        _ => errors.push(
            at.invalid("must be 'RollingUpdate' or 'OnDelete'")
                .of_type("io.k8s.api.apps.v1.StatefulSetUpdateStrategy"),
        ),
    }
}

fn stateful_set_update(errors: &mut ErrorList, spec: &At<'_>, old: &Value) {
    let mut munged = spec.value().clone();
    for field in [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ] {
        keep(&mut munged, old, &[field]);
    }
    if !same(&munged, old) {
        errors.push(spec.forbidden(
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
             'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
             'minReadySeconds' are forbidden",
        ));
    }
}

struct WorkloadStatus(Workload);

impl Strategy for WorkloadStatus {
    fn default(&self, object: &mut Value) {
        self.0.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep(object, old, &["metadata", "generation"]);
        match self.0.kind {
            Kind::Deployment => keep(object, old, &["metadata", "labels"]),
            Kind::DaemonSet => keep(object, old, &TEMPLATE_GENERATION),
            _ => {}
        }
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let status = root.at("status");
            counts(errors, &status, self.0.kind);
            let collisions = status.at("collisionCount");
            let was = object::int_at(old, &["status", "collisionCount"]);
            let kept = self.0.kind != Kind::ReplicaSet;
            if kept && was.is_some_and(|was| collisions.int() < was) {
                errors.push(collisions.invalid_as(collisions.int(), "cannot be decremented"));
            }
        })
    }
}

/// The numbers in the status of a set of replicas, and those that are parts of `replicas`.
const REPLICAS: &[&str] = &[
    "replicas",
    "fullyLabeledReplicas",
    "readyReplicas",
    "availableReplicas",
    "observedGeneration",
    "terminatingReplicas",
];
const PARTS: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

/// The numbers in the status of a set of replicas.
pub(super) fn replica_counts(errors: &mut ErrorList, status: &At<'_>) {
    counts(errors, status, Kind::ReplicaSet);
}

/// Numbers of pods: none is negative, and a part is not more than the whole.
fn counts(errors: &mut ErrorList, status: &At<'_>, kind: Kind) {
    let (all, parts): (&[&str], &[&str]) = match kind {
        Kind::Deployment => (
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
        ),
        Kind::ReplicaSet => (REPLICAS, PARTS),
        Kind::StatefulSet => (
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        ),
        Kind::DaemonSet => (
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
            &[],
        ),
    };
    all.iter().for_each(|field| nonnegative(errors, &status.at(field)));
    let total = status.at("replicas").int();
    for part in parts.iter().map(|p| status.at(p)).filter(|p| p.int() > total) {
        errors.push(part.invalid("cannot be greater than status.replicas"));
    }
    let (ready, available) = (status.at("readyReplicas"), status.at("availableReplicas"));
    if !parts.is_empty() && available.int() > ready.int() {
        let whole = match kind {
            Kind::StatefulSet => "status.readyReplicas",
            _ => "readyReplicas",
        };
        errors.push(available.invalid(format!("cannot be greater than {whole}")));
    }
}

/// Revisions of DaemonSets and StatefulSets: their data never changes.
struct Revisions;

impl Strategy for Revisions {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            nonnegative(errors, &root.at("revision"));
            let data = root.at("data");
            if !data.is_set() {
                errors.push(data.required("data is mandatory"));
            } else if !data.value().is_object() {
                errors.push(data.required("data must be a valid JSON object"));
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            nonnegative(errors, &root.at("revision"));
            // To the letter: in what upstream keeps as bytes, nothing is as good as absent.
            if root.at("data").value() != &old["data"] {
                errors.push(root.at("data").invalid("field is immutable"));
            }
        })
    }
}

fn controller(object: &Value) -> String {
    let owners = object::list_at(object, &["metadata", "ownerReferences"]);
    let Some(owner) = owners.iter().find(|o| object::bool_at(o, &["controller"])) else {
        return "<none>".to_owned();
    };
    let (group, _) = apimachinery::gvk::split_api_version(object::str_at(owner, &["apiVersion"]));
    let kind = object::str_at(owner, &["kind"]).to_lowercase();
    let name = object::str_at(owner, &["name"]);
    if group.is_empty() { format!("{kind}/{name}") } else { format!("{kind}.{group}/{name}") }
}

fn number(object: &Value, path: &[&str]) -> Value {
    object::int_at(object, path).unwrap_or(0).into()
}

/// The columns of `-o wide` that show the template, and the selector.
fn template_columns() -> [Column; 3] {
    let names: Cell = |o, _| cells::containers(&o["spec"]["template"]["spec"]).0.into();
    let images: Cell = |o, _| cells::containers(&o["spec"]["template"]["spec"]).1.into();
    [
        wide("Containers", "string", "Names of the template's containers.", names),
        wide("Images", "string", "Images of the template's containers.", images),
        wide("Selector", "string", "Labels of its pods.", |o, _| {
            cells::selector(object::get(o, &["spec", "selector"])).into()
        }),
    ]
}

fn ready(object: &Value, _: jiff::Timestamp) -> Value {
    let of = |path: &[&str]| object::int_at(object, path).unwrap_or(0);
    format!("{}/{}", of(&["status", "readyReplicas"]), of(&["spec", "replicas"])).into()
}

fn deployments() -> Vec<Column> {
    let columns = [
        column("Ready", "string", "Pods that are ready, of those wanted.", ready),
        column("Up-to-date", "string", "Pods of the newest template.", |o, _| {
            number(o, &["status", "updatedReplicas"])
        }),
        column("Available", "string", "Pods ready for long enough.", |o, _| {
            number(o, &["status", "availableReplicas"])
        }),
        age_column(),
    ];
    named(columns.into_iter().chain(template_columns()))
}

pub(super) fn replica_sets() -> Vec<Column> {
    let columns = [
        column("Desired", "integer", "Pods wanted.", |o, _| number(o, &["spec", "replicas"])),
        column("Current", "integer", "Pods there.", |o, _| number(o, &["status", "replicas"])),
        column("Ready", "integer", "Pods ready.", |o, _| number(o, &["status", "readyReplicas"])),
        age_column(),
    ];
    named(columns.into_iter().chain(template_columns()))
}

fn stateful_sets() -> Vec<Column> {
    let columns =
        [column("Ready", "string", "Pods that are ready, of those wanted.", ready), age_column()];
    named(columns.into_iter().chain(template_columns().into_iter().take(2)))
}

fn daemon_sets() -> Vec<Column> {
    let columns = [
        column("Desired", "integer", "Nodes that should have a pod.", |o, _| {
            number(o, &["status", "desiredNumberScheduled"])
        }),
        column("Current", "integer", "Nodes that have one.", |o, _| {
            number(o, &["status", "currentNumberScheduled"])
        }),
        column("Ready", "integer", "Nodes whose pod is ready.", |o, _| {
            number(o, &["status", "numberReady"])
        }),
        column("Up-to-date", "integer", "Nodes with a pod of the newest template.", |o, _| {
            number(o, &["status", "updatedNumberScheduled"])
        }),
        column("Available", "integer", "Nodes whose pod is ready for long enough.", |o, _| {
            number(o, &["status", "numberAvailable"])
        }),
        column("Node Selector", "string", "Labels of the nodes.", |o, _| {
            let path = ["spec", "template", "spec", "nodeSelector"];
            cells::labels(object::get(o, &path)).into()
        }),
        age_column(),
    ];
    named(columns.into_iter().chain(template_columns()))
}
