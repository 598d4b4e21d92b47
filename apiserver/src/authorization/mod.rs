//! Who may do what.

pub mod bootstrap;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod rule;

#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use async_trait::async_trait;

use crate::authentication::{MASTERS, User};
use crate::request::RequestInfo;
pub use rule::Rule;

/// The API group of roles and their bindings.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// What is to be decided on.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a User,
    pub request: &'a RequestInfo,
}

/// What an authorizer says. `reason` goes to the client of a refusal, after upstream's sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { reason: String },
    Deny { reason: String },
    NoOpinion { reason: String },
}

impl Decision {
    fn allow() -> Self {
        Self::Allow { reason: String::new() }
    }

    fn no_opinion(reason: impl Into<String>) -> Self {
        Self::NoOpinion { reason: reason.into() }
    }
}

/// What an authorizer knows to grant a user: the answer to a SelfSubjectRulesReview.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Grants {
    pub rules: Vec<Rule>,
    /// There may be more that cannot be told as rules.
    pub incomplete: bool,
    /// What went wrong while looking.
    pub errors: Vec<String>,
}

/// Node, RBAC, webhook; asked in order until one allows or denies.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// The rules that apply to a user in a namespace.
    fn grants(&self, _user: &User, _namespace: &str) -> Grants {
        Grants::default()
    }
}

/// Asks each in turn; the first to allow or deny decides. Reasons of those without an opinion are
/// joined for the refusal.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

#[async_trait]
impl Authorizer for Union {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(attributes).await {
                Decision::NoOpinion { reason } => {
                    if !reason.is_empty() {
                        reasons.push(reason);
                    }
                }
                decided => return decided,
            }
        }
        Decision::NoOpinion { reason: reasons.join("\n") }
    }

    fn grants(&self, user: &User, namespace: &str) -> Grants {
        let mut all = Grants::default();
        for authorizer in &self.0 {
            let one = authorizer.grants(user, namespace);
            all.rules.extend(one.rules);
            all.incomplete |= one.incomplete;
            all.errors.extend(one.errors);
        }
        all
    }
}

/// Allows whatever the members of `system:masters` ask; always the first of the chain.
pub struct Superusers;

#[async_trait]
impl Authorizer for Superusers {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.groups.iter().any(|g| g == MASTERS) {
            Decision::allow()
        } else {
            Decision::no_opinion("")
        }
    }
}

/// `--authorization-mode=AlwaysAllow`.
pub struct AlwaysAllow;

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _attributes: &Attributes<'_>) -> Decision {
        Decision::allow()
    }

    fn grants(&self, _user: &User, _namespace: &str) -> Grants {
        Grants { rules: rule::full_authority(), ..Grants::default() }
    }
}

/// `--authorization-mode=AlwaysDeny`.
pub struct AlwaysDeny;

#[async_trait]
impl Authorizer for AlwaysDeny {
    async fn authorize(&self, _attributes: &Attributes<'_>) -> Decision {
        Decision::no_opinion("Everything is forbidden.")
    }
}

/// The chain for `--authorization-mode`, superusers first. `Webhook` is not among the modes here.
///
/// # Errors
/// A text for the operator, when a mode is unknown or named twice.
pub fn chain(
    modes: &[&str],
    reader: &Arc<dyn crate::reader::Reader>,
) -> Result<(Union, Option<Arc<rbac::Rbac>>), String> {
    if modes.is_empty() {
        return Err("at least one authorization-mode must be passed".to_owned());
    }
    let mut chain: Vec<Arc<dyn Authorizer>> = vec![Arc::new(Superusers)];
    let mut rbac = None;
    for (i, mode) in modes.iter().enumerate() {
        if modes.get(..i).is_some_and(|before| before.contains(mode)) {
            return Err(format!("authorization-mode {modes:?} has mode specified more than once"));
        }
        match *mode {
            "Node" => chain.push(Arc::new(node::NodeAuthorizer::new(reader.clone()))),
            "RBAC" => {
                let authorizer = Arc::new(rbac::Rbac::new(reader.clone()));
                rbac = Some(authorizer.clone());
                chain.push(authorizer);
            }
            "AlwaysAllow" => chain.push(Arc::new(AlwaysAllow)),
            "AlwaysDeny" => chain.push(Arc::new(AlwaysDeny)),
            other => {
                return Err(format!("authorization-mode {other:?} is not a valid mode"));
            }
        }
    }
    Ok((Union(chain), rbac))
}

/// Upstream's sentence of a refusal, without the authorizers' reasons.
pub fn forbidden_message(attributes: &Attributes<'_>) -> String {
    let user = &attributes.user.name;
    let request = attributes.request;
    let text = if !request.is_resource {
        format!("User {user:?} cannot {} path {:?}", request.verb, request.path)
    } else {
        let resource = match request.subresource.as_str() {
            "" => request.resource.clone(),
            sub => format!("{}/{sub}", request.resource),
        };
        let place = match request.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {place}",
            request.verb, request.group
        )
    };
    // A browser must not take the text for HTML.
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The refusal as the client gets it.
pub fn forbidden(attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let mut text = forbidden_message(attributes);
    if !reason.is_empty() {
        text = format!("{text}: {reason}");
    }
    let (resource, name) = if attributes.request.is_resource {
        let request = attributes.request;
        (GroupResource::new(&request.group, &request.resource), request.name.clone())
    } else {
        (GroupResource::new("", ""), String::new())
    };
    ApiError::Forbidden { resource, name, reason: text }
}

/// Joins errors as upstream's aggregates do: one as itself, several as `[a, b]`, each text once.
pub(crate) fn aggregate(errors: &[String]) -> String {
    let mut unique: Vec<&str> = Vec::with_capacity(errors.len());
    for e in errors {
        if !unique.contains(&e.as_str()) {
            unique.push(e);
        }
    }
    match unique.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(resource: &str, subresource: &str, namespace: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: "list".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn refusals_are_worded_as_upstream() {
        let user = User { name: "x".into(), ..User::default() };
        let path =
            RequestInfo { verb: "get".into(), path: "/<metrics>".into(), ..Default::default() };
        let cases = [
            (
                request("pods", "", "default"),
                r#"User "x" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                request("nodes", "proxy", ""),
                r#"User "x" cannot list resource "nodes/proxy" in API group "" at the cluster scope"#,
            ),
            (path, r#"User "x" cannot get path "/&lt;metrics&gt;""#),
        ];
        for (request, want) in cases {
            assert_eq!(forbidden_message(&Attributes { user: &user, request: &request }), want);
        }
        let request = request("pods", "", "default");
        let error = forbidden(&Attributes { user: &user, request: &request }, "no");
        assert_eq!(
            error.message(),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default": no"#
        );
        let path =
            RequestInfo { verb: "get".into(), path: "/healthz".into(), ..Default::default() };
        let error = forbidden(&Attributes { user: &user, request: &path }, "");
        assert_eq!(error.message(), r#"forbidden: User "x" cannot get path "/healthz""#);
    }

    #[tokio::test]
    async fn the_first_opinion_decides_and_reasons_add_up() {
        struct Says(Decision);
        #[async_trait]
        impl Authorizer for Says {
            async fn authorize(&self, _: &Attributes<'_>) -> Decision {
                self.0.clone()
            }
        }
        let none = |r: &str| Arc::new(Says(Decision::no_opinion(r))) as Arc<dyn Authorizer>;
        let deny = Arc::new(Says(Decision::Deny { reason: "d".into() })) as Arc<dyn Authorizer>;
        let user = User::default();
        let info = RequestInfo::default();
        let attributes = Attributes { user: &user, request: &info };
        let union = Union(vec![none("a"), none(""), none("b")]);
        assert_eq!(union.authorize(&attributes).await, Decision::no_opinion("a\nb"));
        let union = Union(vec![none("a"), deny, Arc::new(AlwaysAllow)]);
        assert_eq!(union.authorize(&attributes).await, Decision::Deny { reason: "d".into() });
    }

    #[test]
    fn modes_are_checked() {
        let reader: Arc<dyn crate::reader::Reader> = Arc::new(testing::Memory::default());
        assert!(
            chain(&["Node", "RBAC"], &reader).is_ok_and(|(u, r)| u.0.len() == 3 && r.is_some())
        );
        for bad in [vec![], vec!["RBAC", "RBAC"], vec!["ABBA"]] {
            assert!(chain(&bad, &reader).is_err(), "{bad:?}");
        }
    }
}
