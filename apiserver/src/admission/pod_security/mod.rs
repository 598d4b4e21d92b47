//! PodSecurity: pods keep to the standard that their namespace's labels ask for
//! (upstream: k8s.io/pod-security-admission).

mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::lookup::Lookup;
use super::{Attributes, Plugin, pods};

const LABEL: &str = "pod-security.kubernetes.io/";
/// At most so many pods are looked at when a namespace's policy gets stricter.
const MAX_PODS: usize = 3000;

/// How strict; in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Whose rules: those of `v1.<minor>`, or the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Minor(u32),
    Latest,
}

/// One mode's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
            Version::Latest => write!(f, "{level}:latest"),
        }
    }
}

const PRIVILEGED: Standard = Standard { level: Level::Privileged, version: Version::Latest };

/// What a namespace asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: Standard,
    audit: Standard,
    warn: Standard,
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn parse_version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain =
        minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    if plain { minor.parse().ok().map(Version::Minor) } else { None }
}

/// The policy of a namespace, and what is wrong with its labels. A level that cannot be read is
/// `restricted` where it is enforced and `privileged` elsewhere.
fn policy(namespace: &Value) -> (Policy, ErrorList) {
    let mut errors = ErrorList::new();
    let labels = Path::new("metadata").child("labels");
    let mut read = |mode: &str, fallback: Level| -> (Option<Level>, Option<Version>, bool) {
        let key = format!("{LABEL}{mode}");
        let text = object::label(namespace, &key);
        let level = text.map(parse_level);
        if let (Some(text), Some(None)) = (text, level) {
            let says = "must be one of privileged, baseline, restricted";
            errors.push(FieldError::invalid(&labels.key(&key), text, says));
        }
        let key = format!("{LABEL}{mode}-version");
        let text = object::label(namespace, &key);
        let version = text.map(parse_version);
        if let (Some(text), Some(None)) = (text, version) {
            let says = "must be \"latest\" or \"v1.x\"";
            errors.push(FieldError::invalid(&labels.key(&key), text, says));
        }
        (
            level.map(|l| l.unwrap_or(fallback)),
            version.map(|v| v.unwrap_or(Version::Latest)),
            matches!(level, Some(Some(_))),
        )
    };
    let standard = |level: Option<Level>, version: Option<Version>| Standard {
        level: level.unwrap_or(PRIVILEGED.level),
        version: version.unwrap_or(PRIVILEGED.version),
    };
    let (level, version, explicit) = read("enforce", Level::Restricted);
    let enforce = standard(level, version);
    let (level, version, _) = read("audit", Level::Privileged);
    let audit = standard(level, version);
    let (level, version, _) = read("warn", Level::Privileged);
    let mut warn = standard(level, version);
    // Who is held to a standard is warned of it too, unless told otherwise.
    if level.is_none() && explicit && enforce.level > warn.level {
        warn.level = enforce.level;
        if version.is_none() {
            warn.version = enforce.version;
        }
    }
    (Policy { enforce, audit, warn }, errors)
}

/// What a pod does that a standard does not allow: reasons, and the same with details.
struct Violations {
    reasons: String,
    details: String,
}

fn evaluate(standard: Standard, pod: &Value) -> Option<Violations> {
    let found = checks::evaluate(standard, pod);
    if found.is_empty() {
        return None;
    }
    let reasons: Vec<&str> = found.iter().map(|v| v.reason.as_str()).collect();
    let details: Vec<String> = found
        .iter()
        .map(|v| match v.detail.as_str() {
            "" => v.reason.clone(),
            detail => format!("{} ({detail})", v.reason),
        })
        .collect();
    Some(Violations { reasons: reasons.join(", "), details: details.join(", ") })
}

/// The pod template of a controller's object. `None`: the resource has none.
fn template<'a>(resource: &GroupResource, object: &'a Value) -> Option<&'a Value> {
    let path: &[&str] = match (resource.group.as_str(), resource.resource.as_str()) {
        ("", "podtemplates") => &["template"],
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &["spec", "template"],
        ("batch", "cronjobs") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    };
    object::get(object, path)
}

/// Whether an update of a pod changes what is checked: containers come or go, or images change.
fn significant(new: &Value, old: &Value) -> bool {
    let image = |c: &Value| object::str_at(c, &["image"]).to_owned();
    let images = |pod: &Value, kind: &str| -> Vec<String> {
        object::list_at(pod, &["spec", kind]).iter().map(image).collect()
    };
    if ["containers", "initContainers"].iter().any(|kind| images(new, kind) != images(old, kind)) {
        return true;
    }
    const EPHEMERAL: &[&str] = &["spec", "ephemeralContainers"];
    object::list_at(new, EPHEMERAL).iter().any(|c| {
        let name = object::str_at(c, &["name"]);
        let was =
            object::list_at(old, EPHEMERAL).iter().find(|o| object::str_at(o, &["name"]) == name);
        was.is_none_or(|was| image(was) != image(c))
    })
}

pub struct PodSecurity {
    lookup: Lookup,
    namespaces: GroupResource,
    pods: GroupResource,
}

impl PodSecurity {
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            namespaces: GroupResource::new("", "namespaces"),
            pods: GroupResource::new("", "pods"),
        }
    }

    fn namespace(
        &self,
        a: &Attributes<'_>,
        new: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        if !a.subresource.is_empty() {
            return Ok(());
        }
        let (policy_now, errors) = policy(new);
        let invalid = |errors: ErrorList| {
            Err(ApiError::Invalid {
                group: a.kind.group.clone(),
                kind: a.kind.kind.clone(),
                name: if a.name.is_empty() { object::name(new) } else { a.name }.to_owned(),
                errors,
            })
        };
        let Some(old) = a.old else {
            return if errors.is_empty() { Ok(()) } else { invalid(errors) };
        };
        let (policy_before, errors_before) = policy(old);
        if !errors.is_empty() && errors != errors_before {
            return invalid(errors);
        }
        let (now, before) = (policy_now.enforce, policy_before.enforce);
        let relaxed = now.version == before.version && now.level <= before.level;
        if now.level != Level::Privileged && !relaxed {
            warnings.extend(self.existing(object::name(new), now));
        }
        Ok(())
    }

    /// Warnings of the pods that a stricter policy would not have let in.
    fn existing(&self, namespace: &str, enforce: Standard) -> Vec<String> {
        let all = self.lookup.reader.list(&self.pods, namespace);
        // One pod of each controller first: the others are likely to be the same.
        let mut controllers = BTreeSet::new();
        let (first, rest): (Vec<_>, Vec<_>) = all.iter().partition(|pod| {
            let owners = object::list_at(pod, &["metadata", "ownerReferences"]);
            let owner = owners.iter().find(|o| object::bool_at(o, &["controller"]));
            owner.is_none_or(|o| controllers.insert(object::str_at(o, &["uid"]).to_owned()))
        });
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in first.into_iter().chain(rest).take(MAX_PODS) {
            let Some(violations) = evaluate(enforce, pod) else { continue };
            let name = object::name(pod);
            let entry = found.entry(violations.reasons).or_insert_with(|| (name.to_owned(), 0));
            if name < entry.0.as_str() {
                name.clone_into(&mut entry.0);
            }
            entry.1 += 1;
        }
        let mut warnings = Vec::new();
        if all.len() > MAX_PODS {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
                all.len()
            ));
        }
        if !found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
            ));
        }
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(reasons, (name, count))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                _ => format!("{name} (and {} other pods): {reasons}", count - 1),
            })
            .collect();
        lines.sort();
        warnings.extend(lines);
        warnings
    }

    async fn policy_of(&self, namespace: &str) -> Option<Policy> {
        let pause = std::time::Duration::ZERO;
        let found = self.lookup.patient(&self.namespaces, "", namespace, (1, pause)).await?;
        Some(policy(&found).0)
    }
}

fn check_pod(
    a: &Attributes<'_>,
    pod: &Value,
    policy: Policy,
    enforce: bool,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    if enforce && let Some(violations) = evaluate(policy.enforce, pod) {
        return Err(ApiError::Forbidden {
            resource: a.resource.clone(),
            name: if a.name.is_empty() { object::name(pod) } else { a.name }.to_owned(),
            reason: format!("violates PodSecurity \"{}\": {}", policy.enforce, violations.details),
        });
    }
    if let Some(violations) = evaluate(policy.warn, pod) {
        warnings
            .push(format!("would violate PodSecurity \"{}\": {}", policy.warn, violations.details));
    }
    Ok(())
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(object) = object else { return Ok(()) };
        if *a.resource == self.namespaces {
            return self.namespace(a, object, warnings);
        }
        if *a.resource == self.pods {
            const IGNORED: [&str; 8] =
                ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
            if IGNORED.contains(&a.subresource) {
                return Ok(());
            }
            let Some(policy) = self.policy_of(a.namespace).await else {
                return Err(ApiError::Internal(format!(
                    "failed to lookup namespace {:?}",
                    a.namespace
                )));
            };
            if a.old.is_some_and(|old| !significant(object, old)) {
                return Ok(());
            }
            return check_pod(a, object, policy, true, warnings);
        }
        if !a.subresource.is_empty() {
            return Ok(());
        }
        let Some(template) = template(a.resource, object) else { return Ok(()) };
        match self.policy_of(a.namespace).await {
            Some(policy) => check_pod(a, template, policy, false, warnings),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;
    use serde_json::json;

    fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
        let mut namespace = json!({"metadata": {"name": name}});
        for (key, value) in labels {
            namespace["metadata"]["labels"][format!("{LABEL}{key}")] = (*value).into();
        }
        namespace
    }

    #[test]
    fn labels_make_policies() {
        // labels, enforce, audit, warn, number of errors
        type Labels = &'static [(&'static str, &'static str)];
        let cases: [(Labels, &str, &str, &str, usize); 6] = [
            (&[], "privileged:latest", "privileged:latest", "privileged:latest", 0),
            (
                &[("enforce", "baseline")],
                "baseline:latest",
                "privileged:latest",
                "baseline:latest",
                0,
            ),
            (
                &[("enforce", "restricted"), ("enforce-version", "v1.25")],
                "restricted:v1.25",
                "privileged:latest",
                "restricted:v1.25",
                0,
            ),
            (
                &[("enforce", "restricted"), ("warn", "privileged")],
                "restricted:latest",
                "privileged:latest",
                "privileged:latest",
                0,
            ),
            (
                &[("enforce", "x"), ("audit", "x"), ("warn", "x")],
                "restricted:latest",
                "privileged:latest",
                "privileged:latest",
                3,
            ),
            (
                &[("enforce", "baseline"), ("enforce-version", "v1.01"), ("warn-version", "1.2")],
                "baseline:latest",
                "privileged:latest",
                "baseline:latest",
                2,
            ),
        ];
        for (labels, enforce, audit, warn, errors) in cases {
            let (policy, found) = policy(&namespace("a", labels));
            assert_eq!(policy.enforce.to_string(), enforce, "{labels:?}");
            assert_eq!(policy.audit.to_string(), audit, "{labels:?}");
            assert_eq!(policy.warn.to_string(), warn, "{labels:?}");
            assert_eq!(found.len(), errors, "{labels:?}");
        }
    }

    fn plugin() -> PodSecurity {
        let pod =
            json!({"metadata": {"name": "p", "namespace": "open"}, "spec": {"hostPID": true}});
        let mut twin = pod.clone();
        twin["metadata"]["name"] = "b".into();
        let reader = Memory::with(&[
            ("", "namespaces", namespace("open", &[])),
            ("", "namespaces", namespace("base", &[("enforce", "baseline")])),
            ("", "namespaces", namespace("warned", &[("warn", "restricted")])),
            ("", "pods", pod),
            ("", "pods", twin),
        ]);
        PodSecurity::new(Lookup { reader, live: None })
    }

    #[tokio::test]
    async fn pods_are_held_to_their_namespaces_standard() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"hostPID": true, "containers": [
            {"name": "c", "securityContext": {"privileged": true}}
        ]}});
        let create = async |namespace: &str, object: &Value| {
            let write = Write { namespace, object: object.clone(), ..Write::default() };
            write.run(&plugin()).await.map(|(_, warnings)| warnings)
        };
        assert_eq!(create("open", &pod).await, Ok(vec![]));
        assert_eq!(
            create("base", &pod).await,
            Err(r#"pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostPID=true), privileged (container "c" must not set securityContext.privileged=true)"#.into())
        );
        let plain = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(create("base", &plain).await, Ok(vec![]));
        assert_eq!(
            create("warned", &plain).await,
            Ok(vec![r#"would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#.into()])
        );
        assert!(create("none", &plain).await.is_err());

        // A controller's template is only warned of; labels alone may change.
        let deployment = Write {
            group: "apps",
            resource: "deployments",
            kind: "Deployment",
            namespace: "base",
            object: json!({"metadata": {"name": "d"}, "spec": {"template": pod}}),
            ..Write::default()
        };
        let warnings = deployment.run(&plugin()).await.map(|(_, w)| w.len());
        assert_eq!(warnings, Ok(1));
        let mut labelled = pod.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        let update = Write {
            operation: Operation::Update,
            namespace: "base",
            object: labelled,
            old: Some(pod),
            ..Write::default()
        };
        assert!(update.run(&plugin()).await.is_ok());
    }

    #[tokio::test]
    async fn namespaces_need_valid_labels_and_tell_of_their_pods() {
        let write = |old: Option<Value>, object: Value| Write {
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            resource: "namespaces",
            kind: "Namespace",
            namespace: "open",
            object,
            old,
            ..Write::default()
        };
        let bad = namespace("open", &[("enforce", "x")]);
        let refusal = r#"Namespace "open" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "x": must be one of privileged, baseline, restricted"#;
        let got = write(None, bad.clone()).run(&plugin()).await;
        assert_eq!(got.err().as_deref(), Some(refusal));
        assert!(write(Some(bad.clone()), bad).run(&plugin()).await.is_ok());
        let got =
            write(Some(namespace("open", &[])), namespace("open", &[("enforce", "baseline")]));
        assert_eq!(
            got.run(&plugin()).await.map(|(_, w)| w),
            Ok(vec![
                r#"existing pods in namespace "open" violate the new PodSecurity enforce level "baseline:latest""#.into(),
                "b (and 1 other pod): host namespaces".into(),
            ])
        );
    }
}
