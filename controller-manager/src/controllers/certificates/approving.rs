//! Kubelets' requests for client certificates are approved, for those who may have them
//! (upstream: `certificates/approver`).

use std::time::Duration;

use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::request::Request;
use super::{KUBELET_CLIENT, certificate, condition, with_condition};
use crate::action::{Action, Plan, Unless};
use crate::runner::{Context, Controller};

/// Rights may come later than the request.
const AGAIN: Duration = Duration::from_secs(30);

/// Approves.
pub struct Approver {
    requests: Cache<CertificateSigningRequest>,
}

impl Approver {
    pub fn new(context: &Context) -> Self {
        Self { requests: context.caches.of() }
    }
}

/// Approves a request, unless who asks may not.
pub(super) fn plan(request: &CertificateSigningRequest, now: Timestamp) -> Plan {
    let spec = &request.spec;
    let settled = condition(request, "Approved").or_else(|| condition(request, "Denied"));
    if spec.signer_name != KUBELET_CLIENT || settled.is_some() || !certificate(request).is_empty() {
        return Plan::default();
    }
    let usages = spec.usages.as_deref().unwrap_or_default();
    let Ok(read) = Request::parse(&spec.request.0) else { return Plan::default() };
    if read.is_of_kubelet_client(usages).is_err() {
        return Plan::default();
    }
    let (subresource, of) = match spec.username.as_ref() == Some(&read.common_name) {
        true => ("selfnodeclient", "self kubelet"),
        false => ("nodeclient", "kubelet"),
    };
    let asked = SubjectAccessReviewSpec {
        user: spec.username.clone(),
        uid: spec.uid.clone(),
        groups: spec.groups.clone(),
        extra: spec.extra.clone(),
        resource_attributes: Some(ResourceAttributes {
            group: Some("certificates.k8s.io".to_owned()),
            resource: Some("certificatesigningrequests".to_owned()),
            verb: Some("create".to_owned()),
            version: Some("*".to_owned()),
            subresource: Some(subresource.to_owned()),
            ..ResourceAttributes::default()
        }),
        non_resource_attributes: None,
    };
    let message = format!("Auto approving {of} client certificate after SubjectAccessReview.");
    let approved = with_condition(request, ("Approved", "AutoApproved", message), now);
    Plan {
        actions: vec![Action::update_part(&approved, "approval")],
        unless: Some(Unless::Forbidden(Box::new(asked))),
        again: Some(AGAIN),
    }
}

impl Controller for Approver {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-approving"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.requests.feed(queue);
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        self.requests.get(key).map_or_else(Plan::default, |request| plan(&request, now))
    }
}
