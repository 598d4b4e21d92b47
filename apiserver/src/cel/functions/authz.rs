//! `authorizer`: what users may do. Questions are put together by functions; `check` asks.

use std::sync::Arc;

use super::Result;
use crate::cel::error::EvalError;
use crate::cel::eval::{About, Activation, Question};
use crate::cel::value::{Opaque, Val};

/// Who is asked about: the request's user, or a service account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Namespace and name.
    pub service_account: Option<(String, String)>,
}

#[derive(Clone, Debug)]
pub(in crate::cel) struct PathCheck {
    asker: Asker,
    path: String,
}

#[derive(Clone, Debug)]
pub(in crate::cel) struct GroupCheck {
    asker: Asker,
    group: String,
}

#[derive(Clone, Debug)]
pub(in crate::cel) struct ResourceCheck {
    asker: Asker,
    resource: Resource,
}

/// A resource that a question is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resource {
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

impl Val<'_> {
    /// `authorizer`
    pub fn authorizer() -> Self {
        Self::Opaque(Opaque::Authorizer(Arc::new(Asker::default())))
    }

    /// `authorizer.requestResource`
    pub fn resource_check(resource: Resource) -> Self {
        let check = ResourceCheck { asker: Asker::default(), resource };
        Self::Opaque(Opaque::ResourceCheck(Arc::new(check)))
    }
}

pub(super) fn call<'a>(
    name: &str,
    of: &Opaque,
    rest: &[Val<'a>],
    activation: &Activation<'a>,
) -> Option<Result<Val<'a>>> {
    let text = |i: usize| rest.get(i).and_then(Val::as_str).map(str::to_owned);
    let made = match (of, name, rest.len()) {
        (Opaque::Authorizer(asker), "path", 1) => {
            let check = PathCheck { asker: (**asker).clone(), path: text(0)? };
            Opaque::PathCheck(Arc::new(check))
        }
        (Opaque::Authorizer(asker), "group", 1) => {
            let check = GroupCheck { asker: (**asker).clone(), group: text(0)? };
            Opaque::GroupCheck(Arc::new(check))
        }
        (Opaque::Authorizer(_), "serviceAccount", 2) => {
            let account = (text(0)?, text(1)?);
            let bad = apimachinery::names::name_is_subdomain(&account.1, false);
            let bad_namespace = apimachinery::names::name_is_label(&account.0, false);
            if let Some(why) = bad_namespace.first() {
                return Some(Err(EvalError::new(format!(
                    "Invalid service account namespace: {why}"
                ))));
            }
            if let Some(why) = bad.first() {
                return Some(Err(EvalError::new(format!("Invalid service account name: {why}"))));
            }
            Opaque::Authorizer(Arc::new(Asker { service_account: Some(account) }))
        }
        (Opaque::GroupCheck(check), "resource", 1) => {
            let resource =
                Resource { group: check.group.clone(), resource: text(0)?, ..Resource::default() };
            let check = ResourceCheck { asker: check.asker.clone(), resource };
            Opaque::ResourceCheck(Arc::new(check))
        }
        (Opaque::ResourceCheck(check), name, 1) if name != "check" => {
            let mut check = (**check).clone();
            let resource = &mut check.resource;
            let field = match name {
                "subresource" => &mut resource.subresource,
                "namespace" => &mut resource.namespace,
                "name" => &mut resource.name,
                "fieldSelector" => &mut resource.field_selector,
                "labelSelector" => &mut resource.label_selector,
                _ => return None,
            };
            *field = text(0)?;
            Opaque::ResourceCheck(Arc::new(check))
        }
        (Opaque::PathCheck(check), "check", 1) => {
            let about = About::Path(check.path.clone());
            return Some(ask(&check.asker, text(0)?, about, activation));
        }
        (Opaque::ResourceCheck(check), "check", 1) => {
            let about = About::Resource(Box::new(check.resource.clone()));
            return Some(ask(&check.asker, text(0)?, about, activation));
        }
        (Opaque::Decision(decided), name, 0) => {
            return Some(Ok(match name {
                "allowed" => Val::Bool(decided.allowed),
                "reason" => Val::str(decided.reason.as_str()),
                "errored" => Val::Bool(decided.error.is_some()),
                "error" => Val::str(decided.error.as_deref().unwrap_or("")),
                _ => return None,
            }));
        }
        _ => return None,
    };
    Some(Ok(Val::Opaque(made)))
}

fn ask<'a>(
    asker: &Asker,
    verb: String,
    about: About,
    activation: &Activation<'a>,
) -> Result<Val<'a>> {
    let question = Question { service_account: asker.service_account.clone(), verb, about };
    match activation.authorizations.get(&question) {
        Some(decided) => Ok(Val::Opaque(Opaque::Decision(decided.clone()))),
        None => Err(EvalError::Unasked(Box::new(question))),
    }
}
