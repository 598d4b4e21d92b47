//! ValidatingAdmissionPolicies and their bindings.

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::gvk::split_api_version;
use apimachinery::{names, object};

use super::admissionregistration::{
    FAILURE_POLICIES, default_match, match_conditions, match_resources,
};
use super::cells::{age_column, column, count, named, selector};
use super::check::{At, Seen, label_selector, same, supported};
use super::row::Rows;
use super::{META_AND_SPEC, STATUS, begin, carry_on, checked, child, default_absent, each, keep};
use crate::admission::policy::environment::{Composition, Declared, compile, environment};
use crate::cel::Type;
use crate::registry::{Context, Strategy};

const MAX_AUDIT_ANNOTATIONS: usize = 20;
const MAX_AUDIT_EXPRESSION: usize = 5 * 1024;
const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

pub(super) fn rows(rows: &mut Rows<'_>, group: (&'static str, &'static str)) {
    rows.add(group, ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"), |row| {
        row.cluster()
            .category("api-extensions")
            .strategy(Policies)
            .part("status", Status, META_AND_SPEC)
            .columns(named([
                column("Validations", "integer", "How many rules there are.", |o, _| {
                    count(object::get(o, &["spec", "validations"])).into()
                }),
                column("ParamKind", "string", "The kind of its parameters.", |o, _| {
                    match object::get(o, &["spec", "paramKind"]).filter(|k| k.is_object()) {
                        Some(kind) => {
                            let text = |field| object::str_at(kind, &[field]);
                            format!("{}/{}", text("apiVersion"), text("kind")).into()
                        }
                        None => "<unset>".into(),
                    }
                }),
                age_column(),
            ]))
    });
    let binding = ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings");
    rows.add(group, binding, |row| {
        row.cluster().category("api-extensions").strategy(Bindings).columns(named([
            column("PolicyName", "string", "The policy that is bound.", |o, _| {
                object::str_at(o, &["spec", "policyName"]).into()
            }),
            column("ParamRef", "string", "The parameters.", |o, _| param_ref(o)),
            age_column(),
        ]))
    });
}

fn param_ref(binding: &Value) -> Value {
    let Some(reference) = object::get(binding, &["spec", "paramRef"]).filter(|r| r.is_object())
    else {
        return "<unset>".into();
    };
    let text = |field| object::str_at(reference, &[field]);
    match (text("namespace"), text("name")) {
        (_, "") => match reference.get("selector").filter(|s| s.is_object()) {
            Some(found) => selector(Some(found)).into(),
            None => "<unset>".into(),
        },
        // Whether parameters have namespaces cannot be told from here.
        ("", name) => format!("*/{name}").into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

struct Policies;

fn default_rules(constraints: &mut Value) {
    for field in ["resourceRules", "excludeResourceRules"] {
        each(constraints, field).for_each(|rule| default_absent(rule, "scope", "*"));
    }
}

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_absent(spec, "failurePolicy", "Fail");
        if let Some(constraints) = spec.get_mut("matchConstraints").filter(|c| c.is_object()) {
            default_match(constraints);
            default_rules(constraints);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        begin(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        carry_on(object, old);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        policy_errors(object, false)
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let at =
            |o: &Value, field| object::get(o, &["spec", field]).cloned().unwrap_or(Value::Null);
        let unchanged =
            ["paramKind", "matchConditions"].iter().all(|f| same(&at(object, f), &at(old, f)));
        policy_errors(object, unchanged)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn policy_errors(object: &Value, conditions_are_known: bool) -> ErrorList {
    checked(object, |root, errors| {
        let spec = root.at("spec");
        let failure = spec.at("failurePolicy");
        match failure.is_set() {
            true => supported(errors, &failure, &FAILURE_POLICIES),
            false => errors.push(failure.required("")),
        }
        let kind = spec.at("paramKind");
        if kind.is_set() {
            param_kind(errors, &kind);
        }
        let constraints = spec.at("matchConstraints");
        if constraints.is_set() {
            match_resources(errors, &constraints);
            let rules = constraints.at("resourceRules");
            if rules.is_empty() {
                errors.push(rules.required(""));
            }
        } else {
            errors.push(constraints.required(""));
        }
        let declared = Declared { params: kind.is_set(), authorizer: true };
        if !conditions_are_known {
            match_conditions(errors, &spec.at("matchConditions"), declared);
        }
        let mut expressions = Expressions::new(&spec, declared);
        for variable in spec.at("variables").items() {
            expressions.variable(errors, &variable);
        }
        let (validations, annotations) = (spec.at("validations"), spec.at("auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            let text = "validations or auditAnnotations must contain at least one item";
            errors.push(validations.required(text));
            errors.push(annotations.required(text));
            return;
        }
        for validation in validations.items() {
            expressions.validation(errors, &validation);
        }
        if annotations.len() > MAX_AUDIT_ANNOTATIONS {
            let text = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
            errors.push(annotations.invalid(text));
        }
        let mut seen = Seen::default();
        for annotation in annotations.items() {
            let name = root.down(&["metadata", "name"]);
            expressions.annotation(errors, name.str(), &annotation);
            let key = annotation.at("key");
            if !seen.insert(key.str()) {
                errors.push(key.duplicate());
            }
        }
    })
}

/// The expressions of a policy, which may name its variables.
struct Expressions {
    composition: Composition,
    /// Messages are not to depend on who asks.
    without_authorizer: crate::cel::Env,
    has_variables: bool,
    plain: crate::cel::Env,
}

impl Expressions {
    fn new(spec: &At<'_>, declared: Declared) -> Self {
        let plain = environment(declared);
        Self {
            composition: Composition::new(plain.clone()),
            without_authorizer: environment(Declared { authorizer: false, ..declared }),
            has_variables: !spec.at("variables").is_empty(),
            plain,
        }
    }

    fn env(&self) -> crate::cel::Env {
        if self.has_variables { self.composition.env(None) } else { self.plain.clone() }
    }

    fn variable(&mut self, errors: &mut ErrorList, variable: &At<'_>) {
        let name = variable.at("name");
        if name.str().trim().is_empty() {
            errors.push(name.required("name is not specified"));
        } else if !crate::cel::is_identifier(name.str()) {
            errors.push(name.invalid("must be a valid CEL identifier"));
        }
        let expression = variable.at("expression");
        if expression.str().trim().is_empty() {
            errors.push(expression.required("expression is not specified"));
        } else if let Err(text) = self.composition.add(name.str(), expression.str()) {
            errors.push(expression.invalid(text));
        }
    }

    fn validation(&self, errors: &mut ErrorList, validation: &At<'_>) {
        let expression = validation.at("expression");
        if expression.str().trim().is_empty() {
            errors.push(expression.required("expression is not specified"));
        } else if let Err(text) = compile(expression.str(), &self.env(), &[Type::Bool]) {
            errors.push(expression.invalid(text));
        }
        let message = validation.at("messageExpression");
        if !message.is_empty() {
            let env = match self.has_variables {
                true => self.composition.env(Some(&self.without_authorizer)),
                false => self.without_authorizer.clone(),
            };
            if message.str().trim().is_empty() {
                errors.push(message.invalid("must be non-empty if specified"));
            } else if let Err(text) = compile(message.str(), &env, &[Type::String]) {
                errors.push(message.invalid(text));
            }
        }
        let message = validation.at("message");
        let trimmed = message.str().trim();
        if !message.is_empty() && trimmed.is_empty() {
            errors.push(message.invalid("must be non-empty if specified"));
        } else if trimmed.contains(['\n', '\r']) {
            errors.push(message.invalid("must not contain line breaks"));
        }
        let reason = validation.at("reason");
        if reason.is_set() {
            supported(errors, &reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
        }
    }

    fn annotation(&self, errors: &mut ErrorList, policy: &str, annotation: &At<'_>) {
        let key = annotation.at("key");
        if policy.is_empty() {
            errors.push(key.invalid("requires metadata.name be non-empty"));
        } else {
            let whole = format!("{policy}/{}", key.str());
            let wrong = names::qualified_name(&whole);
            errors.extend(wrong.into_iter().map(|text| key.invalid_as(whole.as_str(), text)));
        }
        let expression = annotation.at("valueExpression");
        let trimmed = expression.str().trim();
        if trimmed.is_empty() {
            errors.push(expression.required("valueExpression is not specified"));
        } else if trimmed.len() > MAX_AUDIT_EXPRESSION {
            let text = format!("must not exceed {MAX_AUDIT_EXPRESSION} bytes in length");
            errors.push(expression.required(&text));
        } else if let Err(text) = compile(trimmed, &self.env(), &[Type::String, Type::Null]) {
            errors.push(expression.invalid(text));
        }
    }
}

fn param_kind(errors: &mut ErrorList, at: &At<'_>) {
    let api_version = at.at("apiVersion");
    if api_version.is_empty() {
        errors.push(api_version.required(""));
    } else if api_version.str().matches('/').count() > 1 {
        let text = format!("unexpected GroupVersion string: {}", api_version.str());
        errors.push(api_version.invalid(text));
    } else {
        let (group, version) = split_api_version(api_version.str());
        let wrong = names::dns1123_subdomain(group);
        if !group.is_empty() && !wrong.is_empty() {
            errors.push(api_version.invalid_as(group, wrong.join(",")));
        }
        let wrong = names::dns1035_label(version);
        if version.is_empty() {
            errors.push(api_version.invalid("version must be specified"));
        } else if !wrong.is_empty() {
            errors.push(api_version.invalid_as(version, wrong.join(",")));
        }
    }
    let kind = at.at("kind");
    if kind.is_empty() {
        errors.push(kind.required(""));
        return;
    }
    let wrong = names::dns1035_label(&kind.str().to_lowercase());
    if !wrong.is_empty() {
        let text = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.push(kind.invalid(text));
    }
}

struct Status;

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        Policies.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        for field in ["labels", "annotations", "finalizers", "ownerReferences", "generation"] {
            keep(object, old, &["metadata", field]);
        }
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let status = root.at("status");
            for warning in status.down(&["typeChecking", "expressionWarnings"]).items() {
                for field in ["warning", "fieldRef"] {
                    let at = warning.at(field);
                    if at.str().trim().is_empty() {
                        errors.push(at.required(""));
                    }
                }
            }
            conditions(errors, &status.at("conditions"));
        })
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// A list of `metav1.Condition`.
pub(super) fn conditions(errors: &mut ErrorList, at: &At<'_>) {
    let mut seen = Seen::default();
    for condition in at.items() {
        let ty = condition.at("type");
        if !seen.insert(ty.str()) {
            errors.push(ty.duplicate());
        }
        let wrong = names::qualified_name(ty.str());
        errors.extend(wrong.into_iter().map(|text| ty.invalid(text)));
        supported(errors, &condition.at("status"), &["False", "True", "Unknown"]);
        let generation = condition.at("observedGeneration");
        if generation.int() < 0 {
            errors.push(generation.invalid("must be greater than or equal to zero"));
        }
        if !condition.at("lastTransitionTime").is_set() {
            errors.push(condition.at("lastTransitionTime").required(""));
        }
        let reason = condition.at("reason");
        if reason.is_empty() {
            errors.push(reason.required(""));
        } else {
            let wrong = condition_reason(reason.str());
            errors.extend(wrong.into_iter().map(|text| reason.invalid(text)));
            if reason.len() > MAX_REASON {
                errors.push(reason.too_long(MAX_REASON));
            }
        }
        if condition.at("message").len() > MAX_MESSAGE {
            errors.push(condition.at("message").too_long(MAX_MESSAGE));
        }
    }
}

fn condition_reason(reason: &str) -> Option<String> {
    let middle = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':');
    let fits = reason.starts_with(|c: char| c.is_ascii_alphabetic())
        && reason.chars().all(middle)
        && reason.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    (!fits).then(|| {
        names::regex_error(
            "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
            "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
            &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
        )
    })
}

struct Bindings;

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        if let Some(matching) =
            child(object, "spec").get_mut("matchResources").filter(|m| m.is_object())
        {
            default_match(matching);
            default_rules(matching);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        object::set(object, &["metadata", "generation"], 1);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        super::count_up(object, old, &["spec"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            let policy = spec.at("policyName");
            if policy.is_empty() {
                errors.push(policy.required(""));
            } else {
                let wrong = names::name_is_subdomain(policy.str(), false);
                errors.extend(wrong.into_iter().map(|text| policy.invalid(text)));
            }
            if spec.at("paramRef").is_set() {
                param_reference(errors, &spec.at("paramRef"));
            }
            if spec.at("matchResources").is_set() {
                match_resources(errors, &spec.at("matchResources"));
            }
            actions(errors, &spec.at("validationActions"));
        })
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn param_reference(errors: &mut ErrorList, at: &At<'_>) {
    let (name, selector) = (at.at("name"), at.at("selector"));
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    if !name.is_empty() {
        let wrong = names::path_segment(name.str());
        errors.extend(wrong.into_iter().map(|text| name.invalid(text)));
        if selector.is_set() {
            errors.push(name.forbidden(EXCLUSIVE));
        }
    }
    if selector.is_set() {
        label_selector(errors, &selector);
        if !name.is_empty() {
            errors.push(selector.forbidden(EXCLUSIVE));
        }
    }
    if name.is_empty() && !selector.is_set() {
        errors.push(at.required("one of name or selector must be specified"));
    }
    let action = at.at("parameterNotFoundAction");
    match action.is_empty() {
        true => errors.push(action.required("")),
        false => supported(errors, &action, &["Deny", "Allow"]),
    }
}

fn actions(errors: &mut ErrorList, at: &At<'_>) {
    let mut seen = Seen::default();
    for action in at.items() {
        supported(errors, &action, &["Audit", "Deny", "Warn"]);
        if !seen.insert(action.str()) {
            errors.push(action.duplicate());
        }
    }
    if seen.has("Deny") && seen.has("Warn") {
        errors.push(at.invalid("must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"));
    }
    if at.is_empty() {
        errors.push(at.required("at least one validation action is required"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(change: Value) -> Vec<String> {
        let mut spec = json!({
            "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"],
                "apiVersions": ["v1"], "resources": ["deployments"]}]},
            "validations": [{"expression": "object.spec.replicas > 1"}],
        });
        if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
            spec.extend(change.clone());
        }
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec});
        Policies.default(&mut object);
        policy_errors(&object, false).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies_are_validated() {
        for (change, want) in [
            (json!({}), &[][..]),
            (
                json!({"variables": [{"name": "a", "expression": "1"}, {"name": "b", "expression": "variables.a + 1"}],
                    "validations": [{"expression": "variables.b > 1"}]}),
                &[],
            ),
            (
                json!({"validations": [{"expression": "variables.b > 1"}]}),
                &[
                    "spec.validations[0].expression: Invalid value: \"variables.b > 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'variables' (in container '')\n | variables.b > 1\n | ^",
                ],
            ),
            (
                json!({"variables": [{"name": "for", "expression": "1"}]}),
                &["spec.variables[0].name: Invalid value: \"for\": must be a valid CEL identifier"],
            ),
            (
                json!({"validations": [{"expression": "params.x", "reason": "Nope", "message": " "}]}),
                &[
                    "spec.validations[0].expression: Invalid value: \"params.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x\n | ^",
                    "spec.validations[0].message: Invalid value: \" \": must be non-empty if specified",
                    "spec.validations[0].reason: Unsupported value: \"Nope\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\"",
                ],
            ),
            (
                json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
                &[
                    "spec.validations[0].messageExpression: Invalid value: \"1\": must evaluate to string but got int",
                ],
            ),
            (
                json!({"validations": []}),
                &[
                    "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                    "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
                ],
            ),
            (
                json!({"validations": [{"expression": "request.userInfo.username == 'a' && namespaceObject.metadata.labels.all(k, k != '') && authorizer.requestResource.check('get').allowed()"}]}),
                &[],
            ),
            (
                json!({"validations": [{"expression": "request.nope == 'a'"}]}),
                &[
                    "spec.validations[0].expression: Invalid value: \"request.nope == 'a'\": compilation failed: ERROR: <input>:1:8: undefined field 'nope'\n | request.nope == 'a'\n | .......^",
                ],
            ),
        ] {
            assert_eq!(policy(change), want);
        }
    }
}
