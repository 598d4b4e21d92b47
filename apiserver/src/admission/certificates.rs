//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction: who may have which
//! signer sign what.

use std::sync::Arc;

use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Attributes, Operation, Plugin, forbidden};
use crate::authentication::{MASTERS, User};
use crate::authorization::{self, Authorizer, Decision};
use crate::request::RequestInfo;

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// What a certificate request says of its subject.
#[derive(Debug, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

/// Reads the subject of a CertificateSigningRequest's `spec.request`.
///
/// # Errors
/// A text, when it is no PEM of a certificate request.
pub fn subject(request: &Value) -> Result<Subject, String> {
    let encoded = object::str_at(request, &["spec", "request"]);
    let pem = STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let not_pem = "PEM block type must be CERTIFICATE REQUEST";
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| not_pem)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(not_pem.to_owned());
    }
    let (_, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    let name = &parsed.certification_request_info.subject;
    let common_name = name.iter_common_name().last().and_then(|cn| cn.as_str().ok());
    Ok(Subject {
        common_name: common_name.unwrap_or_default().to_owned(),
        organizations: name
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect(),
    })
}

fn concerns(a: &Attributes<'_>, subresource: &str) -> bool {
    a.resource.group == GROUP
        && a.resource.resource == "certificatesigningrequests"
        && a.subresource == subresource
}

/// Whether a user may use a verb on a signer, by its name or by `<domain>/*`.
async fn may(authorizer: &dyn Authorizer, user: &User, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let request = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..RequestInfo::default()
        };
        let asked = authorization::Attributes { user, request: &request };
        if let Decision::Allow { .. } = authorizer.authorize(&asked).await {
            return true;
        }
    }
    false
}

/// Approving needs the verb `approve` on the signer.
pub struct CertificateApproval(pub Arc<dyn Authorizer>);

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(old) = a.old.filter(|_| concerns(a, "approval")) else { return Ok(()) };
        // The signer may not change here, so the old one counts.
        let signer = object::str_at(old, &["spec", "signerName"]);
        if may(&*self.0, a.user, "approve", signer).await {
            return Ok(());
        }
        let reason = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(forbidden(a, object, reason))
    }
}

/// Signing needs the verb `sign` on the signer.
pub struct CertificateSigning(pub Arc<dyn Authorizer>);

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let (Some(old), Some(new)) = (a.old, object) else { return Ok(()) };
        let signed = |o: &Value| {
            let certificate = object::str_at(o, &["status", "certificate"]).to_owned();
            (certificate, object::list_at(o, &["status", "conditions"]).to_vec())
        };
        if !concerns(a, "status") || signed(old) == signed(new) {
            return Ok(());
        }
        let signer = object::str_at(old, &["spec", "signerName"]);
        if may(&*self.0, a.user, "sign", signer).await {
            return Ok(());
        }
        let reason = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(forbidden(a, object, reason))
    }
}

/// No client certificate makes a superuser.
pub struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(request) = object.filter(|_| concerns(a, "")) else { return Ok(()) };
        if object::str_at(request, &["spec", "signerName"]) != CLIENT_SIGNER {
            return Ok(());
        }
        let subject = subject(request)
            .map_err(|e| forbidden(a, object, format!("failed to parse CSR: {e}")))?;
        if subject.organizations.iter().any(|o| o == MASTERS) {
            let reason =
                format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            return Err(forbidden(a, object, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::user;
    use serde_json::json;

    /// Allows `approve` and `sign` on the signers of a domain.
    struct Domain;

    #[async_trait]
    impl Authorizer for Domain {
        async fn authorize(&self, a: &authorization::Attributes<'_>) -> Decision {
            let reason = String::new();
            match a.request.name.as_str() {
                "ours.io/*" => Decision::Allow { reason },
                _ => Decision::NoOpinion { reason },
            }
        }
    }

    #[tokio::test]
    async fn signers_need_permission() {
        let csr = |signer: &str, certificate: &str| {
            json!({
                "metadata": {"name": "c"}, "spec": {"signerName": signer},
                "status": {"certificate": certificate},
            })
        };
        let run = async |plugin: &dyn Plugin, sub: &str, signer: &str, certificate: &str| {
            let write = Write {
                operation: Operation::Update,
                group: GROUP,
                resource: &format!("certificatesigningrequests/{sub}"),
                namespace: "",
                user: user("bob", &[]),
                object: csr(signer, certificate),
                old: Some(csr(signer, "")),
                ..Write::default()
            };
            write.run(plugin).await.err().unwrap_or_default()
        };
        let says = |verb: &str| {
            format!(
                r#"certificatesigningrequests.certificates.k8s.io "c" is forbidden: user not permitted to {verb} requests with signerName "x.io/s""#
            )
        };
        let (approval, signing) =
            (CertificateApproval(Arc::new(Domain)), CertificateSigning(Arc::new(Domain)));
        assert_eq!(run(&approval, "approval", "ours.io/s", "").await, "");
        assert_eq!(run(&approval, "approval", "x.io/s", "").await, says("approve"));
        assert_eq!(run(&approval, "status", "x.io/s", "").await, "");
        assert_eq!(run(&signing, "status", "ours.io/s", "PEM").await, "");
        assert_eq!(run(&signing, "status", "x.io/s", "PEM").await, says("sign"));
        assert_eq!(run(&signing, "status", "x.io/s", "").await, "");
    }

    #[tokio::test]
    async fn no_certificate_makes_a_superuser() {
        let csr = |signer: &str, group: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
            let key = rcgen::KeyPair::generate().expect("a key");
            let pem = params.serialize_request(&key).and_then(|r| r.pem()).expect("a request");
            json!({"metadata": {"name": "c"}, "spec": {
                "signerName": signer, "request": STANDARD.encode(pem),
            }})
        };
        for (signer, group, allowed) in [
            (CLIENT_SIGNER, "devs", true),
            (CLIENT_SIGNER, MASTERS, false),
            ("x.io/s", MASTERS, true),
        ] {
            let write = Write {
                group: GROUP,
                resource: "certificatesigningrequests",
                namespace: "",
                object: csr(signer, group),
                ..Write::default()
            };
            assert_eq!(write.run(&CertificateSubjectRestriction).await.is_ok(), allowed);
        }
    }
}
