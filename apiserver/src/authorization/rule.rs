//! Policy rules: what they allow, and whether some rules cover others
//! (k8s.io/component-helpers `auth/rbac/validation`).

use std::collections::BTreeSet;

use apimachinery::Value;
use serde_json::json;

use super::Attributes;

/// A `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty: all names.
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn strings(rule: &Value, field: &str) -> Vec<String> {
    let list = rule.get(field).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(set: &[String], element: &str) -> bool {
    set.iter().any(|s| s == element)
}

fn has_all(set: &[String], elements: &[String]) -> bool {
    elements.iter().all(|e| has(set, e))
}

impl Rule {
    pub fn from_value(rule: &Value) -> Self {
        Self {
            verbs: strings(rule, "verbs"),
            groups: strings(rule, "apiGroups"),
            resources: strings(rule, "resources"),
            names: strings(rule, "resourceNames"),
            urls: strings(rule, "nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn list(role: &Value) -> Vec<Self> {
        apimachinery::object::list_at(role, &["rules"]).iter().map(Self::from_value).collect()
    }

    pub fn to_value(&self) -> Value {
        let mut rule = json!({"verbs": self.verbs});
        let fields = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        for (name, list) in fields {
            if !list.is_empty() {
                rule[name] = json!(list);
            }
        }
        rule
    }

    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        let request = attributes.request;
        if !has(&self.verbs, "*") && !has(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.urls.iter().any(|rule| url_matches(rule, &request.path));
        }
        (has(&self.groups, "*") || has(&self.groups, &request.group))
            && self
                .resources
                .iter()
                .any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.names.is_empty() || has(&self.names, &request.name))
    }

    /// Whether this rule covers one that was broken down (at most one of each in its lists).
    fn covers(&self, part: &Rule) -> bool {
        (has(&self.verbs, "*") || has_all(&self.verbs, &part.verbs))
            && (has(&self.groups, "*") || has_all(&self.groups, &part.groups))
            && self.covers_resources(&part.resources)
            && part.urls.iter().all(|url| self.urls.iter().any(|owned| url_covers(owned, url)))
            && (self.names.is_empty()
                || (!part.names.is_empty() && has_all(&self.names, &part.names)))
    }

    fn covers_resources(&self, resources: &[String]) -> bool {
        has(&self.resources, "*")
            || resources.iter().all(|wanted| {
                has(&self.resources, wanted)
                    || wanted
                        .split_once('/')
                        .is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
            })
    }

    fn break_down(&self) -> Vec<Rule> {
        let one = |s: &String| vec![s.clone()];
        let mut parts = Vec::new();
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let part = Rule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        parts.push(part);
                    } else {
                        let named = |n| Rule { names: one(n), ..part.clone() };
                        parts.extend(self.names.iter().map(named));
                    }
                }
            }
        }
        for url in &self.urls {
            for verb in &self.verbs {
                parts.push(Rule { verbs: one(verb), urls: one(url), ..Rule::default() });
            }
        }
        parts
    }

    /// The rule as upstream prints it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    pub fn describe(&self) -> String {
        let fields = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = fields
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// Go's `%q` of a list of strings.
pub(crate) fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|s| format!("{s:?}")).collect();
    format!("[{}]", items.join(" "))
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*"
        || rule == path
        || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

fn url_covers(owned: &str, wanted: &str) -> bool {
    owned == wanted || (owned.ends_with('*') && wanted.starts_with(owned.trim_end_matches('*')))
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some((of, sub)) => sub == subresource && (of == "*" || of == resource),
        None => false,
    }
}

/// `*` on everything.
pub fn full_authority() -> Vec<Rule> {
    let all = || vec!["*".to_owned()];
    vec![
        Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), urls: all(), ..Rule::default() },
    ]
}

/// The parts of `wanted` that no rule of `owned` covers. None: it is covered.
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::break_down)
        .filter(|part| !owned.iter().any(|rule| rule.covers(part)))
        .collect()
}

/// Missing parts for people to read: those that differ only by verb become one; sorted.
pub fn describe_missing(missing: &[Rule]) -> Vec<String> {
    let mut compact: Vec<Rule> = Vec::new();
    for part in missing {
        let same = |rule: &&mut Rule| {
            part.urls.is_empty()
                && rule.urls.is_empty()
                && (&rule.groups, &rule.resources, &rule.names)
                    == (&part.groups, &part.resources, &part.names)
        };
        match compact.iter_mut().find(same) {
            Some(rule) => rule.verbs.extend(part.verbs.iter().cloned()),
            None => compact.push(part.clone()),
        }
    }
    let texts: BTreeSet<String> = compact.iter().map(Rule::describe).collect();
    texts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::User;
    use crate::request::RequestInfo;

    pub(crate) fn rule(text: &str) -> Rule {
        super::super::bootstrap::parse_rule(text).expect("a rule")
    }

    #[test]
    fn rules_allow_what_they_say() {
        // rule, verb, group, resource/subresource or path, name, allowed
        let cases = [
            ("get | core | pods", "get", "", "pods", "", true),
            ("get | core | pods", "list", "", "pods", "", false),
            ("get | core | pods", "get", "apps", "pods", "", false),
            ("* | * | *", "get", "apps", "deployments/scale", "x", true),
            ("get | core | pods", "get", "", "pods/log", "x", false),
            ("get | core | pods/log", "get", "", "pods/log", "x", true),
            ("get | core | pods/log", "get", "", "pods", "x", false),
            ("get | core | */scale", "get", "", "replicationcontrollers/scale", "x", true),
            ("get | core | */scale", "get", "", "replicationcontrollers", "x", false),
            ("get | core | pods/*", "get", "", "pods/log", "x", false),
            ("get | core | secrets | a,b", "get", "", "secrets", "b", true),
            ("get | core | secrets | a,b", "get", "", "secrets", "c", false),
            ("list | core | secrets | a,b", "list", "", "secrets", "", false),
            ("get | /healthz,/livez*", "get", "", "/healthz", "", true),
            ("get | /healthz", "get", "", "/healthz/ping", "", false),
            ("get | /livez*", "get", "", "/livez/ping", "", true),
            ("get | /livez/*", "get", "", "/livez", "", false),
            ("* | *", "post", "", "/x", "", true),
            ("* | *", "get", "", "pods", "", false),
        ];
        let user = User::default();
        for (text, verb, group, what, name, want) in cases {
            let mut request = RequestInfo {
                is_resource: !what.starts_with('/'),
                verb: verb.into(),
                group: group.into(),
                name: name.into(),
                path: what.into(),
                ..RequestInfo::default()
            };
            let (resource, sub) = what.split_once('/').unwrap_or((what, ""));
            request.resource = resource.into();
            request.subresource = sub.into();
            let attributes = Attributes { user: &user, request: &request };
            assert_eq!(rule(text).allows(&attributes), want, "{text} on {verb} {what} {name}");
        }
    }

    #[test]
    fn covering() {
        // owned, wanted, missing
        let cases: [(&[&str], &str, &[&str]); 10] = [
            (&["get,list | core | pods,services"], "get,list | core | pods", &[]),
            (&["get | core | pods", "list | core | pods"], "get,list | core | pods", &[]),
            (
                &["get | core | pods"],
                "get,list,watch | core | pods",
                &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#],
            ),
            (&["* | * | *"], "get | apps | deployments/scale | a", &[]),
            (&["get | apps | */scale"], "get | apps | deployments/scale", &[]),
            (
                &["get | core | secrets | a"],
                "get | core | secrets",
                &[r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#],
            ),
            (&["get | core | secrets"], "get | core | secrets | a", &[]),
            (
                &["get | core | secrets | a"],
                "get | core | secrets | a,b",
                &[r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["b"], Verbs:["get"]}"#],
            ),
            (&["get | /livez*"], "get | /livez/a", &[]),
            (&["get | core | pods"], "get | *", &[r#"{NonResourceURLs:["*"], Verbs:["get"]}"#]),
        ];
        for (owned, wanted, want) in cases {
            let owned: Vec<Rule> = owned.iter().map(|t| rule(t)).collect();
            let missing = uncovered(&owned, &[rule(wanted)]);
            assert_eq!(describe_missing(&missing), want, "{owned:?} over {wanted}");
        }
    }
}
