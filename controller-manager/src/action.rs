//! What a plan asks for, and how it is carried out: written once, for all controllers.

use std::time::Duration;

use anyhow::Context as _;
use apimachinery::pods;
use client::Key;
use client::events::{EventType, Recorder};
use client::lean::Pod;
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{self as core, ObjectReference, PersistentVolumeClaim};
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::response::StatusSummary;
use kube::discovery::ApiResource;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde_json::Value;

use crate::pods::uses_claim;

/// How many pods are read at a time.
const PAGE: u32 = 500;

/// An object named for an action.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub resource: ApiResource,
    pub key: Key,
}

impl Target {
    pub fn of<K: Resource<DynamicType = ()>>(key: &Key) -> Self {
        Self { resource: ApiResource::erase::<K>(&()), key: key.clone() }
    }
}

/// How the dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Default,
    Background,
    Foreground,
}

/// One thing to do. Carrying it out leaves nothing to choose.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Makes an object; that it exists is no error.
    Create(Target, Value),
    /// Replaces an object; its resourceVersion is in it.
    Update(Target, Value),
    /// Replaces an object's part that is a subresource: its status, say.
    UpdatePart(Target, &'static str, Value),
    /// Strategic merge patch; `subresource` may be empty.
    Patch(Target, &'static str, Value),
    /// Deletes the object if it still has this uid. That it is gone is no error.
    Delete(Target, String, Propagation),
    /// Deletes the object if it still has this resourceVersion. That it is gone is no error.
    DeleteAsSeen(Target, String),
    Event(Box<ObjectReference>, EventType, &'static str, String),
}

impl Action {
    pub fn create<K>(object: &K) -> Self
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        Self::Create(Target::of::<K>(&Key::of(object)), value(object))
    }

    pub fn update<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Update(Target::of::<K>(&Key::of(object)), value(object))
    }

    pub fn update_status<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::update_part(object, "status")
    }

    pub fn update_part<K>(object: &K, subresource: &'static str) -> Self
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        Self::UpdatePart(Target::of::<K>(&Key::of(object)), subresource, value(object))
    }

    pub fn delete<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let uid = object.meta().uid.clone().unwrap_or_default();
        Self::Delete(Target::of::<K>(&Key::of(object)), uid, Propagation::Default)
    }

    pub fn event<K: Resource<DynamicType = ()>>(
        about: &K,
        ty: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::Event(Box::new(client::events::reference(about)), ty, reason, message.into())
    }
}

/// Typed objects are always JSON.
fn value<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// What a plan takes for not so, where a cache that is behind would do harm: the API is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Unless {
    /// The object is there, with this uid if one is given.
    Exists(Target, Option<String>),
    /// A pod on a node uses the claim.
    Used(Box<PersistentVolumeClaim>),
    /// A pod uses the Secret.
    Mounted(Key),
    /// The user may not.
    Forbidden(Box<SubjectAccessReviewSpec>),
}

/// What a controller decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// If so, nothing of the plan is done: what changes that will be seen, or is looked for again.
    pub unless: Option<Unless>,
    /// Look again after so long, if nothing happens sooner.
    pub again: Option<Duration>,
}

impl Plan {
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |have| have.min(after)));
    }
}

/// Carries actions out.
#[derive(Clone)]
pub struct Executor {
    pub client: Client,
    /// For what a plan has looked up that its controller itself may not read: with the rights that
    /// caches have.
    pub reader: Client,
    pub recorder: Recorder,
}

impl Executor {
    fn api(&self, target: &Target) -> Api<DynamicObject> {
        match target.key.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &target.resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &target.resource),
        }
    }

    /// Whether it is so, as of now.
    ///
    /// # Errors
    /// What the API said, and to what.
    pub async fn holds(&self, unless: &Unless) -> anyhow::Result<bool> {
        match unless {
            Unless::Exists(target, uid) => {
                let found = self.api(target).get_opt(&target.key.name).await;
                let found = found
                    .with_context(|| format!("get {} {}", target.resource.plural, target.key))?;
                Ok(found.is_some_and(|object| uid.is_none() || object.metadata.uid == *uid))
            }
            Unless::Used(claim) => {
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
                let pods = pods.list(&ListParams::default()).await;
                let pods = pods.with_context(|| format!("list pods of {namespace}"))?;
                Ok(pods.iter().any(|pod| uses_claim(pod, claim)))
            }
            Unless::Mounted(secret) => self.is_mounted(secret).await,
            Unless::Forbidden(asked) => {
                let review = SubjectAccessReview { spec: (**asked).clone(), ..<_>::default() };
                let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
                let answer = reviews.create(&PostParams::default(), &review).await;
                let answer = answer.context("create a subjectaccessreview")?;
                Ok(!answer.status.is_some_and(|status| status.allowed))
            }
        }
    }

    async fn is_mounted(&self, secret: &Key) -> anyhow::Result<bool> {
        let namespace = secret.namespace.as_str();
        let resource = ApiResource::erase::<core::Pod>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.reader.clone(), namespace, &resource);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = api.list(&params).await;
            let page = page.with_context(|| format!("list pods of {namespace}"))?;
            let uses =
                |pod: &DynamicObject| pods::secrets(&pod.data).any(|name| name == secret.name);
            if page.items.iter().any(uses) {
                return Ok(true);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(false),
            }
        }
    }

    /// Carries out one action. Returns the object that was made.
    ///
    /// # Errors
    /// What the API said, and to what.
    pub async fn carry_out(&self, action: Action) -> anyhow::Result<Option<DynamicObject>> {
        let post = PostParams::default();
        match action {
            Action::Create(target, object) => {
                let whence = format!("create {} {}", target.resource.plural, target.key);
                let object: DynamicObject = serde_json::from_value(object)?;
                match self.api(&target).create(&post, &object).await {
                    Ok(made) => Ok(Some(made)),
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(None),
                    // Creating in a namespace that is ending is nobody's fault.
                    Err(kube::Error::Api(status)) if is_terminating(&status) => Ok(None),
                    Err(error) => Err(error).context(whence),
                }
            }
            Action::Update(target, object) => {
                let whence = format!("update {} {}", target.resource.plural, target.key);
                let object: DynamicObject = serde_json::from_value(object)?;
                let done = self.api(&target).replace(&target.key.name, &post, &object).await;
                done.map(|_| None).context(whence)
            }
            Action::UpdatePart(target, part, object) => {
                let whence = format!("update {part} of {} {}", target.resource.plural, target.key);
                let (api, name) = (self.api(&target), &target.key.name);
                let done = api.replace_subresource(part, name, &post, &object).await;
                done.map(|_| None).context(whence)
            }
            Action::Patch(target, subresource, patch) => {
                let whence = format!("patch {} {}", target.resource.plural, target.key);
                let (api, name) = (self.api(&target), &target.key.name);
                let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
                let done = match subresource {
                    "" => api.patch(name, &params, &patch).await,
                    sub => api.patch_subresource(sub, name, &params, &patch).await,
                };
                match done {
                    Err(error) if is_gone(&error) => Ok(None),
                    done => done.map(|_| None).context(whence),
                }
            }
            Action::Delete(target, uid, propagation) => {
                let whence = format!("delete {} {}", target.resource.plural, target.key);
                let mut params = match propagation {
                    Propagation::Default => DeleteParams::default(),
                    Propagation::Background => DeleteParams::background(),
                    Propagation::Foreground => DeleteParams::foreground(),
                };
                let uid = Some(uid).filter(|u| !u.is_empty());
                params.preconditions = Some(Preconditions { uid, resource_version: None });
                match self.api(&target).delete(&target.key.name, &params).await {
                    Err(error) if is_gone(&error) => Ok(None),
                    done => done.map(|_| None).context(whence),
                }
            }
            Action::DeleteAsSeen(target, version) => {
                let whence = format!("delete {} {}", target.resource.plural, target.key);
                let seen = Preconditions { uid: None, resource_version: Some(version) };
                let params = DeleteParams::default().preconditions(seen);
                match self.api(&target).delete(&target.key.name, &params).await {
                    Err(error) if is_gone(&error) => Ok(None),
                    done => done.map(|_| None).context(whence),
                }
            }
            Action::Event(about, ty, reason, message) => {
                self.recorder.event(*about, ty, reason, message);
                Ok(None)
            }
        }
    }
}

/// Whether the object is not there (any more), or another has its name.
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
    status.status == Some(StatusSummary::Failure)
        && causes.iter().any(|c| c.reason == "NamespaceTerminating")
}

/// Whether the API refused because somebody else was faster: the next look settles it.
pub fn is_conflict(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<kube::Error>(),
        Some(kube::Error::Api(status)) if status.code == 409
    )
}
