//! CertificateSigningRequests: kubelets' are approved, approved ones signed, old ones deleted
//! (upstream: `pkg/controller/certificates`).

mod approving;
mod cleaning;
mod issue;
mod request;
mod signing;

pub use approving::Approver;
pub use cleaning::Cleaner;
pub use signing::{Files, Signer, Signers};

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

fn condition<'r>(
    request: &'r CertificateSigningRequest,
    ty: &str,
) -> Option<&'r CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == ty)
}

fn certificate(request: &CertificateSigningRequest) -> &[u8] {
    let certificate = request.status.as_ref().and_then(|s| s.certificate.as_ref());
    certificate.map(|bytes| bytes.0.as_slice()).unwrap_or_default()
}

/// The request with one more condition.
fn with_condition(
    request: &CertificateSigningRequest,
    (ty, reason, message): (&str, &str, String),
    now: Timestamp,
) -> CertificateSigningRequest {
    let mut changed = request.clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: ty.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
    changed
}

#[cfg(test)]
mod tests;
