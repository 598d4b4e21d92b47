//! Reviews: objects that are created to ask a question, and never stored
//! (upstream: `registry/authorization`, `registry/authentication`).

use std::collections::BTreeMap;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use serde_json::{Map, json};

use super::{Attributes, Authorizer, Decision, Rule, aggregate};
use crate::authentication::{TokenAuthenticator, User};
use crate::request::RequestInfo;

const AUTHORIZATION: &str = "authorization.k8s.io";

/// Answers a SubjectAccessReview.
///
/// # Errors
/// 422 when the question is not well-formed.
pub async fn subject_access_review(
    authorizer: &dyn Authorizer,
    mut review: Value,
) -> Result<Value, ApiError> {
    let mut errors = subject_errors(&review);
    errors.extend(metadata_errors(&review, false));
    checked(errors)?;
    answer(authorizer, &subject(&review), &mut review).await;
    Ok(review)
}

/// Answers a LocalSubjectAccessReview of a namespace.
///
/// # Errors
/// 422 when the question is not well-formed, 400 for another namespace.
pub async fn local_subject_access_review(
    authorizer: &dyn Authorizer,
    namespace: &str,
    mut review: Value,
) -> Result<Value, ApiError> {
    let mut errors = subject_errors(&review);
    errors.extend(metadata_errors(&review, true));
    let own = object::namespace(&review);
    if let Some(asked) = object::get(&review, &["spec", "resourceAttributes"]) {
        let asked = object::str_at(asked, &["namespace"]);
        if asked != own {
            let path = Path::new("spec.resourceAttributes.namespace");
            errors.push(FieldError::invalid(&path, asked, "must match metadata.namespace"));
        }
    }
    if let Some(path) = object::get(&review, &["spec", "nonResourceAttributes"]) {
        let field = Path::new("spec.nonResourceAttributes");
        let says = "disallowed on this kind of request";
        errors.push(FieldError::invalid(&field, go_attributes(path), says));
    }
    checked(errors)?;
    if namespace != own {
        return Err(ApiError::BadRequest(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    answer(authorizer, &subject(&review), &mut review).await;
    Ok(review)
}

/// Answers a SelfSubjectAccessReview.
///
/// # Errors
/// 422 when the question is not well-formed.
pub async fn self_subject_access_review(
    user: &User,
    authorizer: &dyn Authorizer,
    mut review: Value,
) -> Result<Value, ApiError> {
    let mut errors = attribute_errors(&review);
    errors.extend(selector_errors(&review));
    errors.extend(metadata_errors(&review, false));
    checked(errors)?;
    answer(authorizer, user, &mut review).await;
    Ok(review)
}

/// Answers a SelfSubjectRulesReview.
///
/// # Errors
/// 400 without a namespace.
pub async fn self_subject_rules_review(
    user: &User,
    authorizer: &dyn Authorizer,
    review: Value,
) -> Result<Value, ApiError> {
    let namespace = object::str_at(&review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(ApiError::BadRequest("no namespace on request".to_owned()));
    }
    let grants = authorizer.grants(user, namespace);
    let resource = |r: &&Rule| !r.resources.is_empty();
    let part = |rule: &Rule, fields: &[&str]| -> Value {
        let all = rule.to_value();
        let kept = fields.iter().filter_map(|f| Some(((*f).to_owned(), all.get(*f)?.clone())));
        Value::Object(kept.collect())
    };
    let resources: Vec<Value> = grants
        .rules
        .iter()
        .filter(resource)
        .map(|r| part(r, &["verbs", "apiGroups", "resources", "resourceNames"]))
        .collect();
    let paths: Vec<Value> = grants
        .rules
        .iter()
        .filter(|r| !r.urls.is_empty())
        .map(|r| part(r, &["verbs", "nonResourceURLs"]))
        .collect();
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": grants.incomplete,
    });
    if !grants.errors.is_empty() {
        status["evaluationError"] = aggregate(&grants.errors).into();
    }
    Ok(json!({
        "kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1",
        "metadata": {}, "spec": {}, "status": status,
    }))
}

/// Answers a SelfSubjectReview, of the version that was asked in.
pub fn self_subject_review(user: &User, review: &Value, now: jiff::Timestamp) -> Value {
    let created = jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let version = match object::str_at(review, &["apiVersion"]) {
        "" => "authentication.k8s.io/v1",
        version => version,
    };
    json!({
        "kind": "SelfSubjectReview", "apiVersion": version,
        "metadata": {"creationTimestamp": created},
        "status": {"userInfo": user_info(user)},
    })
}

/// Answers a TokenReview. `audiences`: `--api-audiences`, for a review that names none.
///
/// # Errors
/// 400 without a token.
pub async fn token_review(
    authenticator: &dyn TokenAuthenticator,
    audiences: &[String],
    mut review: Value,
) -> Result<Value, ApiError> {
    let token = object::str_at(&review, &["spec", "token"]);
    if token.is_empty() {
        return Err(ApiError::BadRequest(
            "token is required for TokenReview in authentication".to_owned(),
        ));
    }
    let named: Vec<String> = object::list_at(&review, &["spec", "audiences"])
        .iter()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let wanted = if named.is_empty() { audiences } else { &named };
    let mut status = Map::new();
    match authenticator.authenticate_token(token, wanted).await {
        Ok(Some(found)) => {
            status.insert("authenticated".to_owned(), true.into());
            status.insert("user".to_owned(), user_info(&found.user));
            if !found.audiences.is_empty() {
                status.insert("audiences".to_owned(), json!(found.audiences));
            }
        }
        Ok(None) => {
            status.insert("user".to_owned(), json!({}));
        }
        Err(e) => {
            status.insert("user".to_owned(), json!({}));
            status.insert("error".to_owned(), e.0.into());
        }
    }
    object::set(&mut review, &["status"], status);
    Ok(review)
}

/// A user as `authentication.k8s.io` UserInfo; admission reviews show it too.
pub fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    for (key, value) in [("username", &user.name), ("uid", &user.uid)] {
        if !value.is_empty() {
            info.insert(key.to_owned(), value.as_str().into());
        }
    }
    if !user.groups.is_empty() {
        info.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".to_owned(), json!(user.extra));
    }
    info.into()
}

fn checked(errors: ErrorList) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    // Upstream's message has an empty kind here, and clients see it.
    Err(ApiError::Invalid {
        group: AUTHORIZATION.to_owned(),
        kind: String::new(),
        name: String::new(),
        errors,
    })
}

/// NonResourceAttributes as Go prints them.
fn go_attributes(attributes: &Value) -> Value {
    json!({
        "Path": object::str_at(attributes, &["path"]),
        "Verb": object::str_at(attributes, &["verb"]),
    })
}

fn attribute_errors(review: &Value) -> ErrorList {
    let spec = Path::new("spec");
    let resource = object::get(review, &["spec", "resourceAttributes"]);
    let path = object::get(review, &["spec", "nonResourceAttributes"]);
    match (resource, path) {
        (Some(_), Some(path)) => vec![FieldError::invalid(
            &spec.child("nonResourceAttributes"),
            go_attributes(path),
            "cannot be specified in combination with resourceAttributes",
        )],
        (None, None) => vec![FieldError::invalid(
            &spec.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )],
        _ => Vec::new(),
    }
}

fn subject_errors(review: &Value) -> ErrorList {
    let mut errors = attribute_errors(review);
    let nobody = object::str_at(review, &["spec", "user"]).is_empty()
        && object::list_at(review, &["spec", "groups"]).is_empty();
    if nobody {
        errors.push(FieldError::invalid(
            &Path::new("spec").child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    errors.extend(selector_errors(review));
    errors
}

fn selector_errors(review: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["fieldSelector", "labelSelector"] {
        let Some(selector) = object::get(review, &["spec", "resourceAttributes", field]) else {
            continue;
        };
        let path = Path::new("spec.resourceAttributes").child(field);
        let raw = object::str_at(selector, &["rawSelector"]);
        let requirements = object::list_at(selector, &["requirements"]);
        if !raw.is_empty() && !requirements.is_empty() {
            let says = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(&path.child("rawSelector"), raw, says));
        }
        if raw.is_empty() && requirements.is_empty() {
            errors.push(FieldError::required(
                &path.child("requirements"),
                format!("when {path} is specified, requirements or rawSelector is required"),
            ));
        }
        for (i, requirement) in requirements.iter().enumerate() {
            errors.extend(requirement_errors(&path.child("requirements").index(i), requirement));
        }
    }
    errors
}

fn requirement_errors(path: &Path, requirement: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let values = object::list_at(requirement, &["values"]);
    match object::str_at(requirement, &["operator"]) {
        "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
            &path.child("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            &path.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        _ => {}
    }
    if object::str_at(requirement, &["key"]).is_empty() {
        errors.push(FieldError::required(&path.child("key"), "must be specified"));
    }
    errors
}

fn metadata_errors(review: &Value, namespaced: bool) -> ErrorList {
    let metadata = object::map_at(review, &["metadata"]).cloned().unwrap_or_default();
    let expected = |key: &str, value: &Value| {
        key == "managedFields"
            || (namespaced && key == "namespace")
            || value.is_null()
            || value.as_str() == Some("")
    };
    if metadata.iter().all(|(key, value)| expected(key, value)) {
        return ErrorList::new();
    }
    let says = if namespaced { "must be empty except for namespace" } else { "must be empty" };
    vec![FieldError::invalid(&Path::new("metadata"), Value::Object(metadata), says)]
}

fn subject(review: &Value) -> User {
    let spec = review.get("spec").unwrap_or(&Value::Null);
    let strings = |list: &Value| -> Vec<String> {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let extra: BTreeMap<String, Vec<String>> = object::map_at(spec, &["extra"])
        .map(|all| all.iter().map(|(k, v)| (k.clone(), strings(v))).collect())
        .unwrap_or_default();
    User {
        name: object::str_at(spec, &["user"]).to_owned(),
        uid: object::str_at(spec, &["uid"]).to_owned(),
        groups: strings(spec.get("groups").unwrap_or(&Value::Null)),
        extra,
    }
}

async fn answer(authorizer: &dyn Authorizer, user: &User, review: &mut Value) {
    let mut ignored = Vec::new();
    let request = request(review, &mut ignored);
    let decision = authorizer.authorize(&Attributes { user, request: &request }).await;
    let (allowed, denied, reason) = match decision {
        Decision::Allow { reason } => (true, false, reason),
        Decision::Deny { reason } => (false, true, reason),
        Decision::NoOpinion { reason } => (false, false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    if !ignored.is_empty() {
        status["evaluationError"] = ignored.join("; ").into();
    }
    object::set(review, &["status"], status);
}

/// What a review asks about; `ignored` takes a text for each selector that was not understood.
fn request(review: &Value, ignored: &mut Vec<String>) -> RequestInfo {
    let text = |o: &Value, field: &str| object::str_at(o, &[field]).to_owned();
    if let Some(path) = object::get(review, &["spec", "nonResourceAttributes"]) {
        return RequestInfo {
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..RequestInfo::default()
        };
    }
    let attributes = object::get(review, &["spec", "resourceAttributes"]).unwrap_or(&Value::Null);
    let version = match object::str_at(attributes, &["version"]) {
        "" => "*",
        version => version,
    };
    let mut selector = |field: &str, term: fn(&str, &str, &[&str]) -> Option<String>| -> String {
        let Some(selector) = object::get(attributes, &[field]) else { return String::new() };
        let raw = object::str_at(selector, &["rawSelector"]);
        if !raw.is_empty() {
            return raw.to_owned();
        }
        let (mut terms, mut skipped) = (Vec::new(), false);
        for requirement in object::list_at(selector, &["requirements"]) {
            let values: Vec<&str> = object::list_at(requirement, &["values"])
                .iter()
                .filter_map(Value::as_str)
                .collect();
            let key = object::str_at(requirement, &["key"]);
            match term(key, object::str_at(requirement, &["operator"]), &values) {
                Some(term) => terms.push(term),
                None => skipped = true,
            }
        }
        if skipped {
            let partially = if terms.is_empty() { "" } else { "partially " };
            ignored.push(format!(
                "spec.resourceAttributes.{field} {partially}ignored due to parse error"
            ));
        }
        terms.join(",")
    };
    RequestInfo {
        is_resource: true,
        verb: text(attributes, "verb"),
        path: String::new(),
        group: text(attributes, "group"),
        version: version.to_owned(),
        namespace: text(attributes, "namespace"),
        resource: text(attributes, "resource"),
        subresource: text(attributes, "subresource"),
        name: text(attributes, "name"),
        trailing: Vec::new(),
        field_selector: selector("fieldSelector", field_term),
        label_selector: selector("labelSelector", label_term),
    }
}

fn field_term(key: &str, operator: &str, values: &[&str]) -> Option<String> {
    let escape = |v: &str| v.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
    match (operator, values) {
        ("In", [value]) => Some(format!("{key}={}", escape(value))),
        ("NotIn", [value]) => Some(format!("{key}!={}", escape(value))),
        _ => None,
    }
}

fn label_term(key: &str, operator: &str, values: &[&str]) -> Option<String> {
    match operator {
        "In" => Some(format!("{key} in ({})", values.join(","))),
        "NotIn" => Some(format!("{key} notin ({})", values.join(","))),
        "Exists" => Some(key.to_owned()),
        "DoesNotExist" => Some(format!("!{key}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::{Authenticated, Rejected};
    use crate::authorization::{AlwaysAllow, AlwaysDeny, RBAC_GROUP, testing};
    use crate::reader::Reader;
    use async_trait::async_trait;
    use std::sync::Arc;

    fn review(spec: Value) -> Value {
        json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
            "metadata": {}, "spec": spec})
    }

    #[tokio::test]
    async fn questions_are_answered() {
        let spec =
            json!({"user": "bob", "resourceAttributes": {"verb": "get", "resource": "pods"}});
        let got = subject_access_review(&AlwaysAllow, review(spec.clone())).await;
        assert_eq!(got.map(|r| r["status"].clone()), Ok(json!({"allowed": true})));
        let got = subject_access_review(&AlwaysDeny, review(spec)).await;
        assert_eq!(
            got.map(|r| r["status"].clone()),
            Ok(json!({"allowed": false, "reason": "Everything is forbidden."}))
        );
        let mut local = review(json!({"groups": ["g"],
            "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "a"}}));
        local["metadata"]["namespace"] = "a".into();
        assert!(local_subject_access_review(&AlwaysAllow, "a", local.clone()).await.is_ok());
        let other = local_subject_access_review(&AlwaysAllow, "b", local).await;
        assert_eq!(other.map_err(|e| e.code()), Err(400));
    }

    #[tokio::test]
    async fn bad_questions_are_refused_as_upstream_does() {
        let both = json!({"user": "bob", "resourceAttributes": {"verb": "get"},
            "nonResourceAttributes": {"path": "/x", "verb": "get"}});
        let cases = [
            (
                json!({}),
                r#".authorization.k8s.io "" is invalid: [spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified, spec.user: Invalid value: "": at least one of user or group must be specified]"#,
            ),
            (
                both,
                r#".authorization.k8s.io "" is invalid: spec.nonResourceAttributes: Invalid value: {"Path":"/x","Verb":"get"}: cannot be specified in combination with resourceAttributes"#,
            ),
            (
                json!({"user": "b", "resourceAttributes": {"fieldSelector": {}}}),
                r#".authorization.k8s.io "" is invalid: spec.resourceAttributes.fieldSelector.requirements: Required value: when spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector is required"#,
            ),
        ];
        for (spec, want) in cases {
            let got = subject_access_review(&AlwaysAllow, review(spec)).await;
            assert_eq!(got.map_err(|e| e.message()).err().as_deref(), Some(want));
        }
        let named =
            json!({"metadata": {"name": "x"}, "spec": {"nonResourceAttributes": {"path": "/"}}});
        let user = User::default();
        let got = self_subject_access_review(&user, &AlwaysAllow, named).await;
        assert_eq!(
            got.map_err(|e| e.message()).err().as_deref(),
            Some(
                r#".authorization.k8s.io "" is invalid: metadata: Invalid value: {"name":"x"}: must be empty"#
            )
        );
    }

    #[test]
    fn selectors_are_written_out() {
        let ask = |requirements: Value| {
            let review = review(
                json!({"resourceAttributes": {"fieldSelector": {"requirements": requirements}}}),
            );
            let mut ignored = Vec::new();
            (request(&review, &mut ignored).field_selector, ignored.join("; "))
        };
        let term =
            |op: &str, values: &[&str]| json!({"key": "k", "operator": op, "values": values});
        assert_eq!(ask(json!([term("In", &["v"])])), ("k=v".into(), String::new()));
        assert_eq!(
            ask(json!([term("NotIn", &["a,b"]), term("Exists", &[])])),
            (
                "k!=a\\,b".into(),
                "spec.resourceAttributes.fieldSelector partially ignored due to parse error".into()
            )
        );
        assert_eq!(
            ask(json!([term("Foo", &[])])).1,
            "spec.resourceAttributes.fieldSelector ignored due to parse error"
        );
    }

    #[tokio::test]
    async fn rules_are_listed() {
        let user = testing::user("bob", &["g"]);
        let ask = json!({"spec": {"namespace": "a"}});
        let got = self_subject_rules_review(&user, &AlwaysAllow, ask).await.expect("an answer");
        assert_eq!(
            got["status"],
            json!({
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": false,
            })
        );
        let got = self_subject_rules_review(&user, &AlwaysAllow, json!({})).await;
        assert_eq!(got, Err(ApiError::BadRequest("no namespace on request".into())));
        let now = jiff::Timestamp::from_second(0).expect("a time");
        let got = self_subject_review(&user, &json!({}), now);
        assert_eq!(got["status"]["userInfo"], json!({"username": "bob", "groups": ["g"]}));
        assert_eq!(got["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
    }

    #[tokio::test]
    async fn what_cannot_be_told_of_rules_is_said_once() {
        let memory = Arc::new(testing::Memory::default());
        let subject = json!([{"kind": "Group", "name": "system:nodes"}]);
        let bind = |namespace: &str, name: &str, kind: &str, role: &str| {
            let resource =
                if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
            let binding = json!({"metadata": {"name": name, "namespace": namespace},
                "subjects": subject, "roleRef": {"kind": kind, "name": role}});
            memory.put(RBAC_GROUP, resource, binding);
        };
        let role = json!({"metadata": {"name": "mixed"}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"],
                "nonResourceURLs": ["/x"]}]});
        memory.put(RBAC_GROUP, "clusterroles", role);
        bind("", "a", "ClusterRole", "gone");
        bind("", "b", "ClusterRole", "mixed");
        bind("n", "c", "Role", "lost");
        bind("n", "d", "ClusterRole", "gone");
        bind("n", "e", "ClusterRole", "mixed");
        let reader: Arc<dyn Reader> = memory.clone();
        let (chain, _) = super::super::chain(&["Node", "RBAC"], &reader).expect("a chain");
        let node = testing::user("system:node:a", &["system:nodes"]);
        let ask = json!({"spec": {"namespace": "n"}});
        let got = self_subject_rules_review(&node, &chain, ask).await.expect("an answer");
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"],
            "resourceNames": ["p"]});
        let path = json!({"verbs": ["get"], "nonResourceURLs": ["/x"]});
        assert_eq!(
            got["status"],
            json!({
                "resourceRules": [rule, rule], "nonResourceRules": [path, path],
                "incomplete": true,
                "evaluationError": "[node authorizer does not support user rule resolution, \
                    clusterrole.rbac.authorization.k8s.io \"gone\" not found, \
                    role.rbac.authorization.k8s.io \"lost\" not found]",
            })
        );
    }

    struct Tokens;

    #[async_trait]
    impl TokenAuthenticator for Tokens {
        async fn authenticate_token(
            &self,
            token: &str,
            audiences: &[String],
        ) -> Result<Option<Authenticated>, Rejected> {
            if token != "good" {
                return Err(Rejected("invalid bearer token".into()));
            }
            let user = testing::user("bob", &[]);
            let audiences = audiences.to_vec();
            Ok(Some(Authenticated { user, audiences, ..Authenticated::default() }))
        }
    }

    #[tokio::test]
    async fn tokens_are_reviewed() {
        let own = ["a".to_owned()];
        let status = async |spec: Value| {
            let got = token_review(&Tokens, &own, json!({"spec": spec})).await;
            got.map(|r| r["status"].clone()).map_err(|e| e.message())
        };
        assert_eq!(
            status(json!({"token": "good"})).await,
            Ok(json!({"authenticated": true, "user": {"username": "bob"}, "audiences": ["a"]}))
        );
        assert_eq!(
            status(json!({"token": "bad"})).await,
            Ok(json!({"user": {}, "error": "invalid bearer token"}))
        );
        assert_eq!(
            status(json!({})).await,
            Err("token is required for TokenReview in authentication".into())
        );
    }
}
