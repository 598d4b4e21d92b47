use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::request::Request;
use super::signing::Signers;
use super::*;
use crate::action::{Action, Unless};

/// Of jane, with two organizations and a name of each kind.
const JANE: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBVDCB+wIBADA4MQ0wCwYDVQQDDARqYW5lMRMwEQYDVQQKDApkZXZlbG9wZXJz
MRIwEAYDVQQKDAlyZXZpZXdlcnMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR3
DOo4hK2tup8IsyMD7RHiErKGbpEGd734RT02KQg93gY34rB6nuMlCyWc9WHCt909
pDeYGIj0UKCyOBLhsekvoGEwXwYJKoZIhvcNAQkOMVIwUDBOBgNVHREERzBFghBq
YW5lLmV4YW1wbGUuY29thwTAAAIHgRBqYW5lQGV4YW1wbGUuY29thhlzcGlmZmU6
Ly9leGFtcGxlLmNvbS9qYW5lMAoGCCqGSM49BAMCA0gAMEUCIBBoKaDOdnhJnDze
tCXDK26U+u5vbTfGczrRyeSJucK1AiEAzq2V8KCYriVxS0pCC0QqDQ0jk/5u1yuk
ftAJovS8US8=
-----END CERTIFICATE REQUEST-----
";
/// Of a node's kubelet, without and with other names.
const NODE: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIHrMIGSAgEAMDAxFTATBgNVBAoMDHN5c3RlbTpub2RlczEXMBUGA1UEAwwOc3lz
dGVtOm5vZGU6bjEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR3DOo4hK2tup8I
syMD7RHiErKGbpEGd734RT02KQg93gY34rB6nuMlCyWc9WHCt909pDeYGIj0UKCy
OBLhsekvoAAwCgYIKoZIzj0EAwIDSAAwRQIgf+3yf9Q7L88DkCQMab906lhS21CS
FUakQx1l4rXm5XMCIQDoF3jzdV9fuiZbgDfRYru4nISUq9eTk5fgbMC1g37tTA==
-----END CERTIFICATE REQUEST-----
";
const SERVING: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBHTCBxAIBADAwMRUwEwYDVQQKDAxzeXN0ZW06bm9kZXMxFzAVBgNVBAMMDnN5
c3RlbTpub2RlOm4xMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEdwzqOIStrbqf
CLMjA+0R4hKyhm6RBne9+EU9NikIPd4GN+Kwep7jJQslnPVhwrfdPaQ3mBiI9FCg
sjgS4bHpL6AyMDAGCSqGSIb3DQEJDjEjMCEwHwYDVR0RBBgwFoICbjGHECABDbgA
AAAAAAAAAAAAAAEwCgYIKoZIzj0EAwIDSAAwRQIhAMX945/e3ULyJm1XOkz4lrKM
XaOlnXvE2dYcs/2rJXHlAiBJyZAXjKgzyIIMyiYVJ/RUUvp8jMumhZW8kBmJAxG9
Ww==
-----END CERTIFICATE REQUEST-----
";

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn request(pem: &str, signer: &str, usages: &[&str]) -> CertificateSigningRequest {
    let mut request = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.as_bytes().to_vec()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|u| (*u).to_owned()).collect()),
            username: Some("system:node:n1".to_owned()),
            ..<_>::default()
        },
        ..<_>::default()
    };
    request.metadata.name = Some("r".to_owned());
    request.metadata.creation_timestamp = Some(Time(now()));
    request
}

fn approved(request: &CertificateSigningRequest) -> CertificateSigningRequest {
    with_condition(request, ("Approved", "Test", String::new()), now())
}

struct Ca {
    _dir: tempfile::TempDir,
    signers: Signers,
    der: CertificateDer<'static>,
}

fn ca() -> Ca {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let (cert, file) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&file, key.serialize_pem()).unwrap();
    let none = (&None, &None);
    let each = ["a", "b", "c", "d"].map(|name| (name, none));
    let (cert, file) = (Some(cert), Some(file));
    let year = Duration::from_secs(365 * 24 * 3600);
    let signers = Signers::read((&cert, &file), each, year).unwrap().unwrap();
    let half = Signers::read((&cert, &None), each, year).map(|_| ()).unwrap_err().to_string();
    assert_eq!(half, "--cluster-signing-cert-file and --cluster-signing-key-file go together");
    Ca { _dir: dir, signers, der: certificate.der().clone() }
}

#[test]
fn what_is_approved_is_signed_as_it_was_asked_for() {
    let ca = ca();
    let usages = ["client auth", "digital signature"];
    let asked = request(JANE, CLIENT, &usages);
    assert_eq!(ca.signers.sign(&asked, now(), [7; 16]), None, "it is not approved");
    let signed = ca.signers.sign(&approved(&asked), now(), [0xf7; 16]).unwrap();
    assert_eq!(ca.signers.sign(&signed, now(), [7; 16]), None, "it is signed");
    let der = CertificateDer::from_pem_slice(certificate(&signed)).unwrap();
    let (rest, read) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(rest.is_empty());
    let (_, authority) = x509_parser::parse_x509_certificate(&ca.der).unwrap();
    read.verify_signature(Some(authority.public_key())).unwrap();
    assert_eq!(read.issuer(), authority.subject());
    assert_eq!(read.version.0, 2);
    assert_eq!(read.raw_serial()[0], 0, "serial numbers are positive");
    let subject = read.subject();
    let organizations: Vec<&str> =
        subject.iter_organization().map(|o| o.as_str().unwrap()).collect();
    assert_eq!(organizations, ["developers", "reviewers"]);
    assert_eq!(subject.iter_common_name().next().unwrap().as_str(), Ok("jane"));
    let usage = read.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_encipherment());
    let extended = read.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth);
    let constraints = read.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let names = read.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [
            GeneralName::DNSName("jane.example.com"),
            GeneralName::RFC822Name("jane@example.com"),
            GeneralName::IPAddress(&[192, 0, 2, 7]),
            GeneralName::URI("spiffe://example.com/jane"),
        ]
    );
    let key_id = |certificate: &x509_parser::certificate::X509Certificate<'_>| {
        certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|k| k.0.to_vec())
            }
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    assert_eq!(key_id(&read), key_id(&authority));

    // Who verifies takes it.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der.clone()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.into());
    let at = |seconds: i64| {
        let second = u64::try_from(now().as_second() + seconds).unwrap();
        UnixTime::since_unix_epoch(Duration::from_secs(second))
    };
    let verifier = verifier.build().unwrap();
    let year = 365 * 24 * 3600;
    for (seconds, valid) in [(-299, true), (-301, false), (year - 301, true), (year - 299, false)] {
        let verdict = verifier.verify_client_cert(&der, &[], at(seconds));
        assert_eq!(verdict.is_ok(), valid, "{seconds}: {verdict:?}");
    }
}

#[test]
fn certificates_hold_as_long_as_is_asked_for() {
    let ca = ca();
    let holds = |seconds: Option<i32>| {
        let mut asked = approved(&request(JANE, CLIENT, &["client auth"]));
        asked.spec.expiration_seconds = seconds;
        let signed = ca.signers.sign(&asked, now(), [7; 16]).unwrap();
        let der = CertificateDer::from_pem_slice(certificate(&signed)).unwrap();
        let (_, read) = x509_parser::parse_x509_certificate(&der).unwrap();
        read.validity().not_after.timestamp() - now().as_second()
    };
    let hour = 3600;
    assert_eq!(holds(Some(600)), 600);
    assert_eq!(holds(Some(hour)), i64::from(hour));
    assert_eq!(holds(Some(24 * hour)), i64::from(24 * hour) - 300);
    assert_eq!(holds(Some(i32::MAX)), holds(None), "no longer than the signer lets");
}

#[test]
fn what_does_not_suit_a_signer_fails() {
    let ca = ca();
    const KUBELET: [&str; 2] = ["digital signature", "client auth"];
    const SERVER: [&str; 3] = ["digital signature", "key encipherment", "server auth"];
    for (pem, signer, usages, want) in [
        (JANE, CLIENT, &["server auth"][..], "invalid usage for client certificate: server auth"),
        (
            JANE,
            CLIENT,
            &["digital signature"],
            "missing required usage for client certificate: client auth",
        ),
        (JANE, KUBELET_CLIENT, &KUBELET, "subject organization is not system:nodes"),
        (SERVING, KUBELET_CLIENT, &KUBELET, "DNS subjectAltNames are not allowed"),
        (
            NODE,
            KUBELET_CLIENT,
            &SERVER,
            "usages did not match [digital signature key encipherment client auth]",
        ),
        (NODE, KUBELET_SERVING, &SERVER, "DNS or IP subjectAltName is required"),
        (JANE, LEGACY_UNKNOWN, &["fun"], "unrecognized usage values: [fun]"),
        ("none", LEGACY_UNKNOWN, &["any"], "PEM block type must be CERTIFICATE REQUEST"),
        (NODE, KUBELET_CLIENT, &KUBELET, ""),
        (SERVING, KUBELET_SERVING, &SERVER, ""),
        (JANE, LEGACY_UNKNOWN, &["any", "signing"], ""),
    ] {
        let signed = ca.signers.sign(&approved(&request(pem, signer, usages)), now(), [7; 16]);
        let signed = signed.unwrap();
        let failed = condition(&signed, "Failed");
        assert_eq!(failed.is_none(), want.is_empty(), "{signer} {usages:?}: {failed:?}");
        assert_eq!(certificate(&signed).is_empty(), failed.is_some());
        if let Some(failed) = failed {
            let message = failed.message.as_deref().unwrap_or_default();
            assert!(message.starts_with(want), "{message:?}");
            assert_eq!(failed.reason.as_deref(), Some("SignerValidationFailure"));
            assert_eq!(ca.signers.sign(&signed, now(), [7; 16]), None);
        }
    }
    let other = approved(&request(JANE, "example.com/other", &["client auth"]));
    assert_eq!(ca.signers.sign(&other, now(), [7; 16]), None, "others sign that");
}

#[test]
fn a_request_must_be_signed_by_its_key() {
    let read = Request::parse(SERVING.as_bytes()).unwrap();
    assert_eq!(read.common_name, "system:node:n1");
    assert_eq!(read.alternatives.dns, ["n1"]);
    let address: IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(read.alternatives.addresses, [address]);
    let mut lines: Vec<String> = SERVING.lines().map(str::to_owned).collect();
    lines[3] = lines[3].replace('B', "C");
    assert!(Request::parse(lines.join("\n").as_bytes()).is_err());
}

#[test]
fn kubelets_are_approved_if_they_may() {
    const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
    let approval = |request: &CertificateSigningRequest| {
        let plan = approving::plan(request, now());
        let [Action::UpdatePart(_, "approval", object)] = plan.actions.as_slice() else {
            assert_eq!(plan.actions, []);
            return None;
        };
        let Some(Unless::Forbidden(asked)) = plan.unless else { panic!("rights are asked for") };
        let asked = asked.resource_attributes.and_then(|a| a.subresource);
        let condition = object["status"]["conditions"][0].clone();
        assert_eq!(condition["reason"], "AutoApproved");
        Some((asked.unwrap(), condition["message"].as_str().unwrap().to_owned()))
    };
    let of = |subresource: &str, whose: &str| {
        let message =
            format!("Auto approving {whose} client certificate after SubjectAccessReview.");
        Some((subresource.to_owned(), message))
    };
    let own = request(NODE, KUBELET_CLIENT, &USAGES);
    assert_eq!(approval(&own), of("selfnodeclient", "self kubelet"));
    let mut first = own.clone();
    first.spec.username = Some("system:bootstrap:abcdef".to_owned());
    assert_eq!(approval(&first), of("nodeclient", "kubelet"));
    assert_eq!(approval(&approved(&own)), None);
    assert_eq!(approval(&request(JANE, KUBELET_CLIENT, &USAGES)), None);
    assert_eq!(approval(&request(NODE, CLIENT, &USAGES)), None);
}

#[test]
fn what_is_old_goes() {
    let pending = request(JANE, CLIENT, &["client auth"]);
    let after = |request: &CertificateSigningRequest| {
        let deadline = cleaning::deadline(request).unwrap();
        deadline.duration_since(now())
    };
    assert_eq!(after(&pending), SignedDuration::from_hours(24));
    let denied = with_condition(&pending, ("Denied", "Test", String::new()), now());
    assert_eq!(after(&denied), SignedDuration::from_hours(1));
    let mut short = approved(&pending);
    assert_eq!(after(&short), SignedDuration::from_hours(1));
    short.spec.expiration_seconds = Some(600);
    let signed = ca().signers.sign(&short, now(), [7; 16]).unwrap();
    assert_eq!(after(&signed), SignedDuration::from_mins(10));
}
