//! Asking for a certificate by a CertificateSigningRequest (certificates.k8s.io/v1; upstream:
//! `client-go/util/certificate/csr`).

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SanType};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha512_256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::NODES;
use super::decide::Wanted;
use super::pair::ends;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    pub fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// Usages, of which keys that are not RSA's do without one (v1.27 and later).
    fn usages(self, key: &KeyPair) -> Vec<String> {
        let signature = Some("digital signature");
        let encipherment = Some("key encipherment").filter(|_| is_rsa(key));
        let own = match self {
            Self::Client => "client auth",
            Self::Serving => "server auth",
        };
        [signature, encipherment, Some(own)].into_iter().flatten().map(str::to_owned).collect()
    }
}

fn is_rsa(key: &KeyPair) -> bool {
    [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_RSA_SHA384, &rcgen::PKCS_RSA_SHA512]
        .contains(&key.algorithm())
}

/// The request in PKCS #10, PEM.
fn pkcs10(wanted: &Wanted, key: &KeyPair) -> anyhow::Result<String> {
    let mut params = CertificateParams::new(wanted.names.clone()).context("names")?;
    params.subject_alt_names.extend(wanted.addresses.iter().map(|a| SanType::IpAddress(*a)));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, wanted.common_name());
    let request = params.serialize_request(key).and_then(|request| request.pem());
    request.context("unable to generate certificate request")
}

/// The object that asks. Without a name the server makes one.
pub fn object(
    purpose: Purpose,
    wanted: &Wanted,
    key: &KeyPair,
    name: Option<String>,
) -> anyhow::Result<CertificateSigningRequest> {
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: name.is_none().then(|| "csr-".to_owned()),
            name,
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pkcs10(wanted, key)?.into_bytes()),
            signer_name: purpose.signer().to_owned(),
            usages: Some(purpose.usages(key)),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// The name of the request for a node's first certificate: the same for the same key, so that a
/// kubelet that was killed finds what it asked for. Made as upstream makes it
/// (`kubelet/certificate/bootstrap`), whose requests are found too.
pub fn name(wanted: &Wanted, key: &KeyPair) -> String {
    let mut hash = Sha512_256::new();
    let mut add = |piece: &[u8]| {
        hash.update(URL_SAFE_NO_PAD.encode(piece));
        hash.update(b"|");
    };
    add(&key.subject_public_key_info());
    add(wanted.common_name().as_bytes());
    add(NODES.as_bytes());
    for usage in Purpose::Client.usages(key) {
        add(usage.as_bytes());
    }
    format!("node-csr-{}", URL_SAFE_NO_PAD.encode(hash.finalize()))
}

/// Whether a request that is there already asks for the same, with this key.
///
/// # Errors
/// Why not.
fn is_same(
    there: &CertificateSigningRequest,
    ours: &CertificateSigningRequest,
    key: &KeyPair,
    now: Timestamp,
) -> anyhow::Result<()> {
    let der = |request: &CertificateSigningRequest| {
        CertificateSigningRequestDer::from_pem_slice(&request.spec.request.0)
            .context("PEM block type must be CERTIFICATE REQUEST")
    };
    let (there_der, ours_der) = (der(there)?, der(ours)?);
    let (_, read) = X509CertificationRequest::from_der(&there_der)?;
    let (_, own) = X509CertificationRequest::from_der(&ours_der)?;
    let subject = |request: &X509CertificationRequest<'_>| {
        request.certification_request_info.subject.to_string()
    };
    ensure!(
        subject(&read) == subject(&own),
        "csr subjects differ: new: {}, orig: {}",
        subject(&read),
        subject(&own)
    );
    let (signer, wanted) = (&there.spec.signer_name, &ours.spec.signer_name);
    ensure!(signer == wanted, "csr signerNames differ: new {signer:?}, orig: {wanted:?}");
    let public = read.certification_request_info.subject_pki.raw;
    ensure!(public == key.subject_public_key_info(), "it was made with another key");
    read.verify_signature().context("error validating signature new CSR against old key")?;
    let issued = there.status.as_ref().and_then(|status| status.certificate.as_ref());
    if let Some(issued) = issued.filter(|issued| !issued.0.is_empty()) {
        let until = ends(std::str::from_utf8(&issued.0)?)
            .context("error parsing signed certificate for CSR")?;
        ensure!(now <= until, "one of the certificates for the CSR has expired: {until}");
    }
    Ok(())
}

/// What has become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Pending,
    Issued(String),
    Refused(String),
}

fn outcome(request: &CertificateSigningRequest) -> Outcome {
    let status = request.status.clone().unwrap_or_default();
    let mut approved = false;
    for condition in status.conditions.unwrap_or_default() {
        let is = match condition.type_.as_str() {
            "Denied" => "is denied",
            "Failed" => "failed",
            kind => {
                approved |= kind == "Approved";
                continue;
            }
        };
        return Outcome::Refused(format!(
            "certificate signing request {is}, reason: {}, message: {}",
            condition.reason.unwrap_or_default(),
            condition.message.unwrap_or_default()
        ));
    }
    match status.certificate.filter(|bytes| approved && !bytes.0.is_empty()) {
        Some(bytes) => match String::from_utf8(bytes.0) {
            Ok(pem) => Outcome::Issued(pem),
            Err(_) => Outcome::Refused("the certificate is not PEM".to_owned()),
        },
        None => Outcome::Pending,
    }
}

/// Creates the request, or finds the one of its name that asks for the same.
///
/// # Errors
/// The API server's, or the one that is there asks for something else.
pub async fn create(
    client: &kube::Client,
    request: &CertificateSigningRequest,
    key: &KeyPair,
    now: Timestamp,
) -> anyhow::Result<CertificateSigningRequest> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    match (api.create(&PostParams::default(), request).await, &request.metadata.name) {
        (Err(kube::Error::Api(status)), Some(name)) if status.reason == "AlreadyExists" => {
            let there =
                api.get(name).await.context("cannot retrieve certificate signing request")?;
            is_same(&there, request, key, now).context("retrieved csr is not compatible")?;
            Ok(there)
        }
        (created, _) => created.context("cannot create certificate signing request"),
    }
}

/// Waits until a request is signed: the certificate, PEM.
///
/// # Errors
/// It is refused or deleted, or took longer than `patience`.
pub async fn issued(
    client: &kube::Client,
    request: &CertificateSigningRequest,
    patience: Duration,
) -> anyhow::Result<String> {
    let name = request.metadata.name.as_deref().context("a request without a name")?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let watching = async {
        let mut seen = pin!(watcher::watch_object(api, name).default_backoff());
        while let Some(next) = seen.next().await {
            let there = match next {
                Ok(there) => there.with_context(|| format!("csr {name:?} was deleted"))?,
                Err(error) => {
                    tracing::warn!(error = client::error::line(&error), name, "csr not watched");
                    continue;
                }
            };
            ensure!(there.metadata.uid == request.metadata.uid, "csr {name:?} changed UIDs");
            match outcome(&there) {
                Outcome::Issued(pem) => return Ok(pem),
                Outcome::Refused(why) => bail!(why),
                Outcome::Pending => {}
            }
        }
        bail!("csr {name:?} is not watched any more")
    };
    let waited = tokio::time::timeout(patience, watching).await;
    waited.with_context(|| format!("csr {name:?} is not signed after {} s", patience.as_secs()))?
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };

    use super::*;

    fn key() -> KeyPair {
        KeyPair::generate().unwrap()
    }

    /// SEC 1, as upstream keeps it.
    const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\n\
        MHcCAQEEIIf8wffwEHtlg48KrUXnXqe/Ao6Eeelt9ea31wD2ZnC4oAoGCCqGSM49\n\
        AwEHoUQDQgAEzfq+HDf/SjemWCDP/uUF/NKwZqIeypWmKOW0p64+g7OuBUQy8mHG\n\
        HMiCNyUMTL4e2eMNHTXzA0L7QtX/lk0XxQ==\n\
        -----END EC PRIVATE KEY-----\n";
    /// The SHA-512/256 of its public key and the rest, reckoned by another program.
    const NAME: &str = "node-csr-lOY3XGVVzzwr_xMoUfB0wpLEnvNNe6rKZIYcCZxK7Qg";

    #[test]
    fn requests_are_named_by_what_they_ask_for() {
        let key = KeyPair::from_pem(KEY).unwrap();
        assert_eq!(name(&Wanted::client("a"), &key), NAME);
        assert_ne!(name(&Wanted::client("b"), &key), NAME);
        assert_ne!(name(&Wanted::client("a"), &self::key()), NAME);
    }

    #[test]
    fn requests_ask_for_a_nodes_certificate() {
        let (key, addresses) = (key(), ["192.0.2.1".to_owned(), "a".to_owned()]);
        let wanted = Wanted::serving("a", &addresses).unwrap();
        let request = object(Purpose::Serving, &wanted, &key, None).unwrap();
        assert_eq!(request.metadata.generate_name.as_deref(), Some("csr-"));
        assert_eq!(request.spec.usages.unwrap(), ["digital signature", "server auth"]);
        let der = CertificateSigningRequestDer::from_pem_slice(&request.spec.request.0).unwrap();
        let (_, read) = X509CertificationRequest::from_der(&der).unwrap();
        read.verify_signature().unwrap();
        let subject = read.certification_request_info.subject.to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:a");
        assert!(read.requested_extensions().unwrap().next().is_some());
        // A client has no other names: the approver would refuse it.
        let client = pkcs10(&Wanted::client("a"), &key).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(client.as_bytes()).unwrap();
        let (_, read) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(read.requested_extensions().is_none());
    }

    #[test]
    fn only_the_same_request_is_taken_up() {
        let (ours, other) = (key(), key());
        let ask = |node: &str, key: &KeyPair| {
            object(Purpose::Client, &Wanted::client(node), key, Some("x".to_owned())).unwrap()
        };
        let request = ask("a", &ours);
        let (hour, second) = (SignedDuration::from_hours(1), SignedDuration::from_secs(1));
        let now = Timestamp::UNIX_EPOCH + hour;
        let check = |there: &CertificateSigningRequest| {
            is_same(there, &request, &ours, now).map_err(|e| e.to_string())
        };
        // Signatures differ each time.
        assert_eq!(check(&ask("a", &ours)), Ok(()));
        assert!(check(&ask("b", &ours)).unwrap_err().contains("subjects differ"));
        assert!(check(&ask("a", &other)).unwrap_err().contains("another key"));
        let mut there = ask("a", &ours);
        there.spec.signer_name = "x.io/y".to_owned();
        assert!(check(&there).unwrap_err().contains("signerNames differ"));
        let ca = super::super::tests::Authority::new();
        for (until, good) in [(now, true), (now - second, false)] {
            let (pem, _) = ca.pair("a", now - hour, until);
            let mut there = ask("a", &ours);
            there.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            assert_eq!(check(&there).is_ok(), good, "{until}");
        }
    }

    #[test]
    fn outcomes() {
        let request = |conditions: &[&str], certificate: &str| CertificateSigningRequest {
            status: Some(CertificateSigningRequestStatus {
                conditions: Some(
                    conditions
                        .iter()
                        .map(|type_| CertificateSigningRequestCondition {
                            type_: (*type_).to_owned(),
                            reason: Some("r".to_owned()),
                            message: Some("m".to_owned()),
                            ..CertificateSigningRequestCondition::default()
                        })
                        .collect(),
                ),
                certificate: Some(ByteString(certificate.as_bytes().to_vec())),
            }),
            ..CertificateSigningRequest::default()
        };
        let refused = |is: &str| {
            Outcome::Refused(format!("certificate signing request {is}, reason: r, message: m"))
        };
        for (conditions, certificate, want) in [
            (&[][..], "", Outcome::Pending),
            (&["Approved"], "", Outcome::Pending),
            (&[], "pem", Outcome::Pending),
            (&["Approved"], "pem", Outcome::Issued("pem".to_owned())),
            (&["Approved", "Denied"], "pem", refused("is denied")),
            (&["Approved", "Failed"], "", refused("failed")),
        ] {
            assert_eq!(outcome(&request(conditions, certificate)), want, "{conditions:?}");
        }
    }
}
