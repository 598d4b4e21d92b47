//! Webhooks and policies of admission (`pkg/apis/admissionregistration`).

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError};
use apimachinery::{names, object};

use super::admission_policies;
use super::cells::{age_column, column, count, named};
use super::check::{At, Seen, label_selector, same, service_reference, supported};
use super::row::Rows;
use super::{checked, default_absent, each};
use crate::admission::policy::environment::{Declared, compile, environment};
use crate::cel::Type;
use crate::registry::{Context, Strategy};

const GROUP: (&str, &str) = ("admissionregistration.k8s.io", "v1");

pub fn rows(rows: &mut Rows<'_>) {
    for (kind, plural, mutating) in [
        ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", true),
        ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", false),
    ] {
        rows.add(GROUP, (kind, plural), |row| {
            row.cluster().category("api-extensions").strategy(Webhooks { mutating }).columns(named(
                [
                    column("Webhooks", "integer", "How many webhooks there are.", |o, _| {
                        count(o.get("webhooks")).into()
                    }),
                    age_column(),
                ],
            ))
        });
    }
    admission_policies::rows(rows, GROUP);
}

/// Match policies, and failure policies.
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
pub(super) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const MAX_CONDITIONS: usize = 64;

struct Webhooks {
    mutating: bool,
}

/// Rules that held already when the object was stored, and those that did not.
struct Leniency {
    conditions: bool,
    side_effects: bool,
    versions: bool,
    names: bool,
    selectors: bool,
}

impl Strategy for Webhooks {
    fn default(&self, object: &mut Value) {
        for hook in each(object, "webhooks") {
            default_absent(hook, "failurePolicy", "Fail");
            default_match(hook);
            default_absent(hook, "timeoutSeconds", 10);
            if self.mutating {
                default_absent(hook, "reinvocationPolicy", "Never");
            }
            each(hook, "rules").for_each(|rule| default_absent(rule, "scope", "*"));
            if let Some(service) = hook.pointer_mut("/clientConfig/service")
                && service.is_object()
            {
                default_absent(service, "port", 443);
            }
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        object::set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        super::count_up(object, old, &["webhooks"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        let strict = Leniency {
            conditions: false,
            side_effects: false,
            versions: false,
            names: false,
            selectors: false,
        };
        self.errors(object, &strict)
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let hooks = |o: &Value| object::list_at(o, &["webhooks"]).to_vec();
        let (new, old) = (hooks(object), hooks(old));
        let conditions = |hook: &Value| hook["matchConditions"].clone();
        let mut seen = Seen::default();
        let lenient = Leniency {
            conditions: new.len() == old.len()
                && new.iter().zip(&old).all(|(a, b)| same(&conditions(a), &conditions(b))),
            side_effects: old.iter().any(|hook| {
                !matches!(object::str_at(hook, &["sideEffects"]), "None" | "NoneOnDryRun")
            }),
            versions: old.iter().any(|hook| {
                let versions = object::list_at(hook, &["admissionReviewVersions"]);
                !versions.is_empty() && !versions.iter().any(is_known_version)
            }),
            names: !old.iter().all(|hook| seen.insert(object::str_at(hook, &["name"]))),
            selectors: old.iter().any(|hook| {
                let at = At::root(hook);
                let mut errors = ErrorList::new();
                label_selector(&mut errors, &at.at("namespaceSelector"));
                label_selector(&mut errors, &at.at("objectSelector"));
                !errors.is_empty()
            }),
        };
        self.errors(object, &lenient)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Defaults that webhooks and policies share.
pub(super) fn default_match(hook: &mut Value) {
    default_absent(hook, "matchPolicy", "Equivalent");
    for field in ["namespaceSelector", "objectSelector"] {
        default_absent(hook, field, Value::Object(serde_json::Map::new()));
    }
}

fn is_known_version(version: &Value) -> bool {
    version.as_str().is_some_and(|v| REVIEW_VERSIONS.contains(&v))
}

impl Webhooks {
    fn errors(&self, object: &Value, lenient: &Leniency) -> ErrorList {
        checked(object, |root, errors| {
            let mut seen = Seen::default();
            for hook in root.at("webhooks").items() {
                self.hook(errors, &hook, lenient);
                review_versions(errors, &hook.at("admissionReviewVersions"), lenient.versions);
                let name = hook.at("name");
                if !lenient.names && !name.is_empty() && !seen.insert(name.str()) {
                    errors.push(name.duplicate());
                }
            }
        })
    }

    fn hook(&self, errors: &mut ErrorList, hook: &At<'_>, lenient: &Leniency) {
        full_name(errors, &hook.at("name"));
        hook.at("rules").items().for_each(|rule| rule_with_operations(errors, &rule));
        if hook.at("failurePolicy").is_set() {
            supported(errors, &hook.at("failurePolicy"), &FAILURE_POLICIES);
        }
        if hook.at("matchPolicy").is_set() {
            supported(errors, &hook.at("matchPolicy"), &MATCH_POLICIES);
        }
        let allowed: &[&str] = match lenient.side_effects {
            true => &["None", "NoneOnDryRun", "Some", "Unknown"],
            false => &["None", "NoneOnDryRun"],
        };
        let effects = hook.at("sideEffects");
        match effects.is_set() {
            true => supported(errors, &effects, allowed),
            false => {
                let text = format!("must specify one of {}", allowed.join(", "));
                errors.push(effects.required(&text));
            }
        }
        let timeout = hook.at("timeoutSeconds");
        if timeout.is_set() && !(1..=30).contains(&timeout.int()) {
            errors.push(timeout.invalid("the timeout value must be between 1 and 30 seconds"));
        }
        if !lenient.selectors {
            label_selector(errors, &hook.at("namespaceSelector"));
            label_selector(errors, &hook.at("objectSelector"));
        }
        let reinvocation = hook.at("reinvocationPolicy");
        if self.mutating && reinvocation.is_set() {
            supported(errors, &reinvocation, &["IfNeeded", "Never"]);
        }
        client_config(errors, &hook.at("clientConfig"));
        if !lenient.conditions {
            let declared = Declared { params: false, authorizer: true };
            match_conditions(errors, &hook.at("matchConditions"), declared);
        }
    }
}

fn full_name(errors: &mut ErrorList, name: &At<'_>) {
    if name.is_empty() {
        errors.push(name.required(""));
        return;
    }
    let wrong = names::dns1123_subdomain(name.str());
    if !wrong.is_empty() {
        errors.push(name.invalid(wrong.join(",")));
    } else if name.str().split('.').count() < 3 {
        let text = "should be a domain with at least three segments separated by dots";
        errors.push(name.invalid(text));
    }
}

fn review_versions(errors: &mut ErrorList, versions: &At<'_>, lenient: bool) {
    if versions.is_empty() {
        let text = format!("must specify one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(versions.required(&text));
        return;
    }
    let mut seen = Seen::default();
    let mut known = false;
    for version in versions.items() {
        if !seen.insert(version.str()) {
            errors.push(version.invalid("duplicate version"));
            continue;
        }
        let wrong = names::dns1035_label(version.str());
        errors.extend(wrong.into_iter().map(|text| version.invalid(text)));
        known |= is_known_version(version.value());
    }
    if !lenient && !known {
        let text = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(versions.invalid(text));
    }
}

/// `clientConfig` of webhooks, of custom resources' conversion too.
pub(super) fn client_config(errors: &mut ErrorList, config: &At<'_>) {
    let (url, service) = (config.at("url"), config.at("service"));
    match (url.is_set(), service.is_set()) {
        (true, false) => webhook_url(errors, &url),
        (false, true) => webhook_service(errors, &service),
        _ => errors.push(config.required("exactly one of url or service is required")),
    }
}

fn webhook_url(errors: &mut ErrorList, at: &At<'_>) {
    const FORM: &str = "; desired format: https://host[/path]";
    let url = at.str();
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None if scheme.is_empty() => (None, ""),
        None => (None, authority),
    };
    if scheme != "https" {
        let text = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(at.invalid_as(scheme, text));
    }
    if host.is_empty() {
        errors.push(at.invalid_as(host, format!("host must be specified{FORM}")));
    }
    if let Some(user) = user {
        errors.push(at.invalid_as(user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(at.invalid_as(fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(at.invalid_as(query, "query parameters are not permitted in the URL"));
    }
}

fn webhook_service(errors: &mut ErrorList, service: &At<'_>) {
    service_reference(errors, service, ["name", "namespace"]);
    let path = service.at("path");
    let text = path.str();
    if matches!(text, "" | "/") {
        return;
    }
    if text == "//" {
        errors.push(path.invalid("segment[0] may not be empty"));
        return;
    }
    if !text.starts_with('/') {
        errors.push(path.invalid("must start with a '/'"));
    }
    let mut chars = text.chars();
    chars.next();
    let inner = chars.as_str();
    for (i, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if step.is_empty() {
            errors.push(path.invalid(format!("segment[{i}] may not be empty")));
            continue;
        }
        let wrong = names::dns1123_subdomain(step);
        errors.extend(wrong.into_iter().map(|w| path.invalid(format!("segment[{i}]: {w}"))));
    }
}

/// A rule: operations, groups, versions, resources, scope.
pub(super) fn rule_with_operations(errors: &mut ErrorList, rule: &At<'_>) {
    let wildcard = |at: &At<'_>| at.len() > 1 && at.strings().any(|s| s == "*");
    let operations = rule.at("operations");
    if operations.is_empty() {
        errors.push(operations.required(""));
    }
    if wildcard(&operations) {
        errors.push(operations.invalid("if '*' is present, must not specify other operations"));
    }
    for operation in operations.items() {
        supported(errors, &operation, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let at = rule.at(field);
        if at.is_empty() {
            errors.push(at.required(""));
        }
        if wildcard(&at) {
            errors.push(at.invalid(format!("if '*' is present, must not specify other {what}")));
        }
    }
    for version in rule.at("apiVersions").items().filter(At::is_empty) {
        errors.push(version.required(""));
    }
    resources(errors, &rule.at("resources"));
    if rule.at("scope").is_set() {
        supported(errors, &rule.at("scope"), &["*", "Cluster", "Namespaced"]);
    }
}

fn resources(errors: &mut ErrorList, at: &At<'_>) {
    if at.is_empty() {
        errors.push(at.required(""));
    }
    let (mut all_subs, mut all_resources) = (Seen::default(), Seen::default());
    let mut plain = false;
    for item in at.items() {
        let text = item.str();
        if text.is_empty() {
            errors.push(item.required(""));
            continue;
        }
        let Some((resource, sub)) = text.split_once('/') else {
            plain = text != "*";
            continue;
        };
        let conflict =
            |with: String| item.invalid(format!("if '{with}' is present, must not specify {text}"));
        if all_subs.has(resource) {
            errors.push(conflict(format!("{resource}/*")));
        }
        if all_resources.has(sub) {
            errors.push(conflict(format!("*/{sub}")));
        }
        if sub == "*" {
            all_subs.insert(resource);
        }
        if resource == "*" {
            all_resources.insert(sub);
        }
    }
    let has = |text: &str| at.strings().any(|s| s == text);
    if at.len() > 1 && has("*/*") {
        errors.push(at.invalid("if '*/*' is present, must not specify other resources"));
    }
    if has("*") && plain {
        let text = "if '*' is present, must not specify other resources without subresources";
        errors.push(at.invalid(text));
    }
}

/// `matchConditions`
pub(super) fn match_conditions(errors: &mut ErrorList, at: &At<'_>, declared: Declared) {
    if at.len() > MAX_CONDITIONS {
        errors.push(FieldError::too_many(at.path(), at.len(), MAX_CONDITIONS));
    }
    if at.is_empty() {
        return;
    }
    let env = environment(declared);
    let mut seen = Seen::default();
    for condition in at.items() {
        let expression = condition.at("expression");
        let trimmed = expression.str().trim();
        if trimmed.is_empty() {
            errors.push(expression.required(""));
        } else if let Err(text) = compile(trimmed, &env, &[Type::Bool]) {
            errors.push(expression.invalid_as(trimmed, text));
        }
        let name = condition.at("name");
        if name.is_empty() {
            errors.push(name.required(""));
            continue;
        }
        let wrong = names::qualified_name(name.str());
        errors.extend(wrong.into_iter().map(|text| name.invalid(text)));
        if !seen.insert(name.str()) {
            errors.push(name.duplicate());
        }
    }
}

/// `matchConstraints` and `matchResources`
pub(super) fn match_resources(errors: &mut ErrorList, at: &At<'_>) {
    let policy = at.at("matchPolicy");
    match policy.is_set() {
        true => supported(errors, &policy, &MATCH_POLICIES),
        false => errors.push(policy.required("")),
    }
    for field in ["namespaceSelector", "objectSelector"] {
        let selector = at.at(field);
        match selector.is_set() {
            true => label_selector(errors, &selector),
            false => errors.push(selector.required("")),
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in at.at(field).items() {
            let mut seen = Seen::default();
            for name in rule.at("resourceNames").items() {
                let wrong = names::path_segment(name.str());
                errors.extend(wrong.into_iter().map(|text| name.invalid(text)));
                if !seen.insert(name.str()) {
                    errors.push(name.duplicate());
                }
            }
            rule_with_operations(errors, &rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::kinds::corpus_context;

    fn config(change: Value) -> Value {
        let mut hook = json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://a.example.com/x"},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods"]}],
        });
        if let (Some(hook), Some(change)) = (hook.as_object_mut(), change.as_object()) {
            hook.extend(change.clone());
        }
        let mut object = json!({"metadata": {"name": "a"}, "webhooks": [hook]});
        Webhooks { mutating: true }.default(&mut object);
        object
    }

    #[test]
    fn webhooks_are_validated() {
        let context = corpus_context();
        for (change, want) in [
            (json!({}), &[][..]),
            (
                json!({"name": "a"}),
                &[
                    "webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots",
                ],
            ),
            (
                json!({"sideEffects": "Some"}),
                &[
                    "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
                ],
            ),
            (
                json!({"clientConfig": {"url": "http://u@h/?a=b"}}),
                &[
                    "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                    "webhooks[0].clientConfig.url: Invalid value: \"u\": user information is not permitted in the URL",
                    "webhooks[0].clientConfig.url: Invalid value: \"a=b\": query parameters are not permitted in the URL",
                ],
            ),
            (
                json!({"clientConfig": {}}),
                &[
                    "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
                ],
            ),
            (
                json!({"clientConfig": {"service": {"name": "a", "namespace": "b", "path": "/x//"}}}),
                &[
                    "webhooks[0].clientConfig.service.path: Invalid value: \"/x//\": segment[1] may not be empty",
                ],
            ),
            (
                json!({"matchConditions": [{"name": "a", "expression": "object.x == y"}]}),
                &[
                    "webhooks[0].matchConditions[0].expression: Invalid value: \"object.x == y\": compilation failed: ERROR: <input>:1:13: undeclared reference to 'y' (in container '')\n | object.x == y\n | ............^",
                ],
            ),
            (
                json!({"matchConditions": [{"name": "a", "expression": "'a'"}]}),
                &[
                    "webhooks[0].matchConditions[0].expression: Invalid value: \"'a'\": must evaluate to bool but got string",
                ],
            ),
            (
                json!({"rules": [{"operations": ["*", "CREATE"], "apiGroups": ["*"],
                    "apiVersions": [""], "resources": ["pods/*", "pods/log"], "scope": "x"}]}),
                &[
                    "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
                    "webhooks[0].rules[0].apiVersions[0]: Required value",
                    "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
                    "webhooks[0].rules[0].scope: Unsupported value: \"x\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
                ],
            ),
        ] {
            let errors = Webhooks { mutating: true }.validate(&context, &config(change));
            let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(shown, want);
        }
    }

    #[test]
    fn defaults_are_upstreams() {
        let object = config(json!({"clientConfig": {"service": {"name": "a", "namespace": "b"}}}));
        let hook = &object["webhooks"][0];
        assert_eq!(hook["failurePolicy"], "Fail");
        assert_eq!(hook["matchPolicy"], "Equivalent");
        assert_eq!(hook["timeoutSeconds"], 10);
        assert_eq!(hook["reinvocationPolicy"], "Never");
        assert_eq!(hook["rules"][0]["scope"], "*");
        assert_eq!(hook["clientConfig"]["service"]["port"], 443);
        assert_eq!(hook["namespaceSelector"], json!({}));
    }
}
