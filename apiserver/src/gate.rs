//! The gates of a request: who may do it, and whether it may be written. What comes after a gate
//! takes a value that only the gate can make.

use apimachinery::gvk::GroupVersionKind;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::HeaderMap;

use crate::admission::{Attributes, Operation, Reinvocation};
use crate::api::Api;
use crate::authentication::{AUTHENTICATED, UNAUTHENTICATED, User, service_account};
use crate::authorization::{self, Authorizer, Decision};
use crate::pipeline;
use crate::registry::catalog::Served;
use crate::request::RequestInfo;

/// A request that its user may make. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Authorized {
    user: User,
    info: RequestInfo,
}

impl Authorized {
    pub fn user(&self) -> &User {
        &self.user
    }

    pub fn info(&self) -> &RequestInfo {
        &self.info
    }
}

/// Asks whether a user may make a request.
///
/// # Errors
/// 403 in upstream's words.
pub async fn authorize(
    authorizer: &dyn Authorizer,
    user: User,
    info: RequestInfo,
) -> Result<Authorized, ApiError> {
    let attributes = authorization::Attributes { user: &user, request: &info };
    match authorizer.authorize(&attributes).await {
        Decision::Allow { .. } => Ok(Authorized { user, info }),
        Decision::Deny { reason } | Decision::NoOpinion { reason } => {
            Err(authorization::forbidden(&attributes, &reason))
        }
    }
}

/// The user that a request is made as: the one who was authenticated, or the one that
/// `Impersonate-*` headers name, if that is allowed.
///
/// # Errors
/// 403, when a part of the other user may not be taken on; 400 for headers that name groups or
/// extras without a user.
pub async fn impersonate(
    authorizer: &dyn Authorizer,
    user: User,
    headers: &HeaderMap,
) -> Result<User, ApiError> {
    let Some(wanted) = Impersonation::read(headers)? else { return Ok(user) };
    for request in wanted.requests() {
        authorize(authorizer, user.clone(), request).await?;
    }
    Ok(wanted.user())
}

/// What `Impersonate-*` headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Impersonation {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: Vec<(String, String)>,
}

const EXTRA: &str = "impersonate-extra-";

impl Impersonation {
    fn read(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
        let mut found = Self {
            name: first("impersonate-user"),
            uid: first("impersonate-uid"),
            groups: headers.get_all("impersonate-group").iter().map(text).collect(),
            extra: Vec::new(),
        };
        for (name, value) in headers {
            if let Some(key) = name.as_str().strip_prefix(EXTRA) {
                let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
                found.extra.push((key.to_lowercase(), text(value)));
            }
        }
        if found.name.is_empty() {
            if found == Self::default() {
                return Ok(None);
            }
            return Err(ApiError::BadRequest(format!(
                "requested [{}] without impersonating a user",
                found.references().join(" ")
            )));
        }
        Ok(Some(found))
    }

    /// What is asked for, as Go prints references to objects: kind, namespace, name, uid,
    /// apiVersion, resourceVersion and fieldPath.
    fn references(&self) -> Vec<String> {
        const VERSION: &str = "authentication.k8s.io/v1";
        let groups = self.groups.iter().map(|group| format!("{{Group  {group}    }}"));
        let extra = self
            .extra
            .iter()
            .map(|(key, value)| format!("{{UserExtra  {value}  {VERSION}  {key}}}"));
        let uid = Some(&self.uid).filter(|uid| !uid.is_empty());
        groups.chain(extra).chain(uid.map(|uid| format!("{{UID  {uid}  {VERSION}  }}"))).collect()
    }

    /// The checks to pass.
    fn requests(&self) -> Vec<RequestInfo> {
        let base = |resource: &str, name: &str| RequestInfo {
            is_resource: true,
            verb: "impersonate".to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        let mut requests = Vec::new();
        match service_account::split_user_name(&self.name) {
            Some((namespace, name)) => requests.push(RequestInfo {
                namespace: namespace.to_owned(),
                ..base("serviceaccounts", name)
            }),
            None => requests.push(base("users", &self.name)),
        }
        requests.extend(self.groups.iter().map(|g| base("groups", g)));
        let authentication = |request: RequestInfo| RequestInfo {
            group: "authentication.k8s.io".to_owned(),
            ..request
        };
        for (key, value) in &self.extra {
            let request = authentication(base("userextras", value));
            requests.push(RequestInfo { subresource: key.clone(), ..request });
        }
        if !self.uid.is_empty() {
            requests.push(authentication(base("uids", &self.uid)));
        }
        requests
    }

    fn user(self) -> User {
        let mut groups = self.groups;
        if let Some((namespace, _)) = service_account::split_user_name(&self.name)
            && groups.is_empty()
        {
            groups = service_account::groups(namespace);
        }
        if self.name == crate::authentication::ANONYMOUS {
            if !groups.iter().any(|g| g == UNAUTHENTICATED) {
                groups.push(UNAUTHENTICATED.to_owned());
            }
        } else if !groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        let mut user = User { name: self.name, uid: self.uid, groups, ..User::default() };
        for (key, value) in self.extra {
            user.extra.entry(key).or_default().push(value);
        }
        user
    }
}

/// A write on its way through admission.
pub struct Admission<'a> {
    pub api: &'a Api,
    pub authorized: &'a Authorized,
    pub served: &'a Served,
    pub operation: Operation,
    /// Kind of the object that is admitted: the resource's, or a subresource's own (Scale).
    pub kind: &'a GroupVersionKind,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// CreateOptions and so on.
    pub options: &'a Value,
    pub dry_run: bool,
}

/// An object that may be stored. Only admission makes one.
#[derive(Debug)]
pub struct Admitted(Value);

impl Admitted {
    pub fn object(&self) -> &Value {
        &self.0
    }

    pub fn into_object(self) -> Value {
        self.0
    }

    /// Another object as the admitted one changes it: the pod that an admitted Binding binds.
    pub fn leads_to(&self, object: Value) -> Admitted {
        Admitted(object)
    }
}

/// A deletion that may be done. Only admission makes one.
#[derive(Debug)]
pub struct AdmittedDeletion(());

impl AdmittedDeletion {
    /// The object as the deletion leaves it for now, when something keeps it from going at once.
    pub fn marked(&self, object: Value) -> Admitted {
        Admitted(object)
    }
}

impl Admission<'_> {
    fn attributes<'b>(&'b self, old: Option<&'b Value>) -> Attributes<'b> {
        Attributes {
            operation: self.operation,
            kind: self.kind,
            resource: &self.served.gr,
            version: &self.served.row.version,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            user: self.authorized.user(),
            old,
            options: self.options,
            dry_run: self.dry_run,
            reinvocation: None,
        }
    }

    /// Lets the plugins change the object.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn mutate(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let reinvocation = Reinvocation::default();
        let attributes = Attributes { reinvocation: Some(&reinvocation), ..self.attributes(old) };
        loop {
            for plugin in self.api.plugins.iter().filter(|p| p.handles(self.operation)) {
                plugin.mutate(&attributes, Some(object), warnings).await?;
            }
            if !reinvocation.is_wanted() {
                return Ok(());
            }
        }
    }

    /// The last gate before the store.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn admit(
        &self,
        object: Value,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<Admitted, ApiError> {
        self.validate(Some(&object), old, warnings).await?;
        Ok(Admitted(object))
    }

    /// Both phases for a deletion.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn admit_deletion(
        &self,
        old: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<AdmittedDeletion, ApiError> {
        if self.is_own_cleanup() {
            return Ok(AdmittedDeletion(()));
        }
        let attributes = self.attributes(Some(old));
        for plugin in self.api.plugins.iter().filter(|p| p.handles(self.operation)) {
            plugin.mutate(&attributes, None, warnings).await?;
        }
        self.validate(None, Some(old), warnings).await?;
        Ok(AdmittedDeletion(()))
    }

    /// The server removes what is left of a definition that goes: nobody is asked, as upstream
    /// asks nobody.
    fn is_own_cleanup(&self) -> bool {
        let custom = self.served.row.custom.as_ref();
        custom.is_some_and(|custom| custom.definition.is_terminating())
            && self.authorized.user().name == pipeline::OWN_USER
    }

    /// Both phases for a connection. `options` is the object, as upstream has it.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn admit_connection(
        &self,
        options: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        self.mutate(options, None, warnings).await?;
        self.validate(Some(options), None, warnings).await
    }

    async fn validate(
        &self,
        object: Option<&Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let attributes = self.attributes(old);
        for plugin in &self.api.plugins {
            if plugin.handles(self.operation) {
                plugin.validate(&attributes, object, warnings).await?;
            }
        }
        Ok(())
    }
}

/// The name that an object has or is to get.
pub fn shown_name(object: &Value) -> &str {
    match object::name(object) {
        "" => object::generate_name(object),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Option<Impersonation>, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Impersonation::read(&headers)
    }

    #[test]
    fn impersonation_is_read_and_checked_part_by_part() {
        assert_eq!(read(&[]), Ok(None));
        let alone = read(&[
            ("impersonate-uid", "u"),
            ("impersonate-extra-x", "y"),
            ("impersonate-group", "g"),
            ("impersonate-group", "h"),
        ]);
        let text = "requested [{Group  g    } {Group  h    } {UserExtra  y  authentication.k8s.io/v1  x} {UID  u  authentication.k8s.io/v1  }] without impersonating a user";
        assert_eq!(alone, Err(ApiError::BadRequest(text.to_owned())));
        let wanted = read(&[
            ("impersonate-user", "system:serviceaccount:ns:sa"),
            ("impersonate-uid", "u"),
            ("impersonate-extra-Scopes%2fa", "view"),
        ]);
        let wanted = wanted.expect("headers").expect("an impersonation");
        let checks: Vec<String> = wanted
            .requests()
            .iter()
            .map(|r| {
                format!("{}/{}/{}/{}/{}", r.group, r.namespace, r.resource, r.subresource, r.name)
            })
            .collect();
        assert_eq!(
            checks,
            [
                "/ns/serviceaccounts//sa",
                "authentication.k8s.io//userextras/scopes/a/view",
                "authentication.k8s.io//uids//u",
            ]
        );
        let user = wanted.user();
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(user.extra.get("scopes/a"), Some(&vec!["view".to_owned()]));
    }
}
