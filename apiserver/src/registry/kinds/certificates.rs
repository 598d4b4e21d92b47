//! CertificateSigningRequests: asked for, approved or denied, and signed, each by another.

use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::cells::{self, age_column, column, named};
use super::check::{At, Seen, same, supported};
use super::row::Rows;
use super::{child, keep, selectable};
use crate::api::rfc3339;
use crate::authentication::User;
use crate::registry::{Context, Strategy};

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// Conditions that only say yes.
const DECISIONS: [&str; 3] = ["Approved", "Denied", "Failed"];
const MIN_SECONDS: i64 = 600;
const MAX_DOMAIN: usize = 253;
const MAX_SIGNER: usize = 571;

pub fn rows(rows: &mut Rows<'_>) {
    const GROUP: (&str, &str) = ("certificates.k8s.io", "v1");
    rows.add(GROUP, ("CertificateSigningRequest", "certificatesigningrequests"), |row| {
        row.cluster()
            .short(&["csr"])
            .strategy(Requests(Part::Main))
            .part("approval", Requests(Part::Approval), RESET_BY_APPROVAL)
            .part("status", Requests(Part::Status), RESET_BY_STATUS)
            .fields(selectable! { "spec.signerName" => ["spec", "signerName"] })
            .columns(named([
                age_column(),
                column("SignerName", "string", "Who is to sign.", |o, _| {
                    cells::or_none(object::str_at(o, &["spec", "signerName"]))
                }),
                column("Requestor", "string", "Who asked.", |o, _| {
                    object::str_at(o, &["spec", "username"]).into()
                }),
                column(
                    "RequestedDuration",
                    "string",
                    "For how long.",
                    |o, _| match object::int_at(o, &["spec", "expirationSeconds"]) {
                        Some(seconds) => cells::human_duration(seconds).into(),
                        None => "<none>".into(),
                    },
                ),
                column("Condition", "string", "What became of it.", |o, _| state(o).into()),
            ]))
    });
}

const RESET: &[&[&str]] = &[&["spec"], &["status"]];
const RESET_BY_STATUS: &[&[&str]] = &[&["spec"], &["status", "conditions"]];
const RESET_BY_APPROVAL: &[&[&str]] = &[&["spec"], &["status", "certificate"]];

fn state(request: &Value) -> String {
    let conditions = object::list_at(request, &["status", "conditions"]);
    let has = |kind: &str| conditions.iter().any(|c| c["type"] == kind);
    let mut text = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !object::str_at(request, &["status", "certificate"]).is_empty() {
        text.push_str(",Issued");
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Main,
    Approval,
    Status,
}

struct Requests(Part);

impl Strategy for Requests {
    /// Whoever asks is written down by the server.
    fn created_by(&self, object: &mut Value, user: &User) {
        let spec = child(object, "spec");
        set(spec, &["username"], user.name.as_str());
        set(spec, &["uid"], user.uid.as_str());
        set(spec, &["groups"], json!(user.groups));
        object::remove(spec, &["extra"]);
        if !user.extra.is_empty() {
            set(spec, &["extra"], json!(user.extra));
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({}));
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        match self.0 {
            Part::Main => keep(object, old, &["status"]),
            Part::Approval => {
                fill_times(object, old, &rfc3339(context.now));
                let conditions = object::get(object, &["status", "conditions"]).cloned();
                keep(object, old, &["status"]);
                match conditions {
                    Some(conditions) => set(object, &["status", "conditions"], conditions),
                    None => drop(object::remove(object, &["status", "conditions"])),
                }
            }
            Part::Status => {
                for kind in ["Approved", "Denied"] {
                    keep_conditions(object, old, kind);
                }
                fill_times(object, old, &rfc3339(context.now));
            }
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        super::checked(object, |root, errors| request(errors, root, None))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        super::checked(object, |root, errors| {
            request(errors, root, Some(old));
            decisions_stay(errors, root, old, self.0 == Part::Approval);
            certificate_stays(errors, root, old, self.0 == Part::Status);
        })
    }

    /// Any name will do.
    fn validate_name(&self, _: &str, _: bool) -> Vec<String> {
        Vec::new()
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        RESET
    }
}

fn conditions<'a>(request: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = object::list_at(request, &["status", "conditions"]);
    all.iter().filter(move |c| c["type"] == kind)
}

/// Puts decisions back as they were, unless one came or went.
fn keep_conditions(object: &mut Value, old: &Value, kind: &str) {
    let before: Vec<Value> = conditions(old, kind).cloned().collect();
    if conditions(object, kind).count() != before.len() {
        return;
    }
    let all = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    let now = all.into_iter().flatten().filter(|c| c["type"] == kind);
    now.zip(before).for_each(|(now, before)| *now = before);
}

fn fill_times(object: &mut Value, old: &Value, now: &str) {
    let all = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in all.into_iter().flatten().filter(|c| c.is_object()) {
        if object::str_at(condition, &["lastUpdateTime"]).is_empty() {
            set(condition, &["lastUpdateTime"], now);
        }
        if object::str_at(condition, &["lastTransitionTime"]).is_empty() {
            let kind = object::str_at(condition, &["type"]);
            let before = conditions(old, kind).find(|c| c["status"] == condition["status"]);
            let time = before.map_or("", |c| object::str_at(c, &["lastTransitionTime"]));
            let time = if time.is_empty() { now } else { time }.to_owned();
            set(condition, &["lastTransitionTime"], time);
        }
    }
}

/// A whole request. What was wrong with the old one already may stay wrong.
fn request(errors: &mut ErrorList, root: &At<'_>, old: Option<&Value>) {
    let spec = root.at("spec");
    let asked = spec.at("request");
    if let Err(problem) = check_request(asked.str()) {
        errors.push(asked.invalid(problem));
    }
    usages(errors, &spec.at("usages"), old);
    signer(errors, &spec.at("signerName"), old);
    let seconds = spec.at("expirationSeconds");
    if seconds.opt_int().is_some_and(|s| s < MIN_SECONDS) {
        let text = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(seconds.invalid(text));
    }
    check_conditions(errors, &root.down(&["status", "conditions"]), old);
    let certificate = root.down(&["status", "certificate"]);
    let before = old.map(|o| object::str_at(o, &["status", "certificate"]));
    let lax = before.is_some_and(|b| b == certificate.str() || check_certificate(b).is_err());
    if !lax && let Err(problem) = check_certificate(certificate.str()) {
        errors.push(certificate.invalid_as("<certificate data>", problem));
    }
}

fn usages(errors: &mut ErrorList, at: &At<'_>, old: Option<&Value>) {
    let before = old.map(|o| object::list_at(o, &["spec", "usages"])).unwrap_or_default();
    let known = |u: &Value| u.as_str().is_some_and(|u| USAGES.contains(&u));
    let repeats = |list: &[Value]| list.iter().enumerate().any(|(i, u)| list[..i].contains(u));
    if at.is_empty() {
        errors.push(at.required(""));
    }
    if before.iter().all(known) {
        at.items().for_each(|usage| supported(errors, &usage, &USAGES));
    }
    if !repeats(before) {
        let mut seen = Seen::default();
        for usage in at.items() {
            if !seen.insert(usage.str()) {
                errors.push(usage.duplicate());
            }
        }
    }
}

fn signer(errors: &mut ErrorList, at: &At<'_>, old: Option<&Value>) {
    let was = old.map_or("", |o| object::str_at(o, &["spec", "signerName"]));
    if at.str() == LEGACY && was != LEGACY {
        errors.push(at.invalid("the legacy signerName is not allowed via this API version"));
    } else {
        signer_name(errors, at);
    }
}

/// `example.com/signer-name`
pub fn signer_name(errors: &mut ErrorList, at: &At<'_>) {
    let name = at.str();
    if name.is_empty() {
        errors.push(at.required(""));
        return;
    }
    let (domain, path) = match name.split('/').collect::<Vec<_>>().as_slice() {
        [domain, path] => (*domain, *path),
        _ => {
            errors.push(at.invalid(
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ));
            return;
        }
    };
    if domain.len() > MAX_DOMAIN {
        errors.push(at.too_long(MAX_DOMAIN));
    }
    first_bad(errors, at, domain, names::dns1123_label);
    if !domain.contains('.') {
        let text = "should be a domain with at least two segments separated by dots";
        errors.push(at.invalid_as(domain, text));
    }
    first_bad(errors, at, path, names::dns1123_subdomain);
    if name.len() > MAX_SIGNER {
        errors.push(at.too_long(MAX_SIGNER));
    }
}

/// The first part between dots that is no good.
fn first_bad(errors: &mut ErrorList, at: &At<'_>, text: &str, check: fn(&str) -> Vec<String>) {
    let bad = text.split('.').map(|label| (label, check(label))).find(|(_, m)| !m.is_empty());
    let (label, messages) = bad.unwrap_or_default();
    for message in messages {
        errors.push(at.invalid_as(text, format!("validating label {label:?}: {message}")));
    }
}

fn check_conditions(errors: &mut ErrorList, at: &At<'_>, old: Option<&Value>) {
    let before = old.map(|o| object::list_at(o, &["status", "conditions"])).unwrap_or_default();
    let kinds: Vec<&str> = before.iter().map(|c| object::str_at(c, &["type"])).collect();
    let both = kinds.contains(&"Approved") && kinds.contains(&"Denied");
    let repeats = kinds.iter().enumerate().any(|(i, k)| kinds[..i].contains(k));
    let mut seen = Seen::default();
    for condition in at.items() {
        let (kind, status) = (condition.at("type"), condition.at("status"));
        if kind.is_empty() && !kinds.contains(&"") {
            errors.push(kind.required(""));
        }
        let valid: &[&str] = match DECISIONS.contains(&kind.str()) {
            true => &["True"],
            false => &["False", "True", "Unknown"],
        };
        match status.str() {
            "" => errors.push(status.required("")),
            _ => supported(errors, &status, valid),
        }
        let other = match kind.str() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !both && !other.is_empty() && seen.has(other) {
            let text = "Approved and Denied conditions are mutually exclusive";
            errors.push(at.invalid_as(kind.str(), text));
        }
        if !seen.insert(kind.str()) && !repeats {
            errors.push(kind.duplicate());
        }
    }
}

fn decisions_stay(errors: &mut ErrorList, root: &At<'_>, old: &Value, may_decide: bool) {
    let at = root.down(&["status", "conditions"]);
    let of = |request: &Value, kind: &str| -> Vec<Value> {
        conditions(request, kind).cloned().collect()
    };
    for kind in DECISIONS {
        if of(root.value(), kind).len() < of(old, kind).len() {
            errors.push(
                at.forbidden(format!("updates may not remove a condition of type \"{kind}\"")),
            );
        }
    }
    for kind in ["Approved", "Denied"].iter().filter(|_| !may_decide) {
        let (new, before) = (of(root.value(), kind), of(old, kind));
        if new.len() > before.len() {
            errors
                .push(at.forbidden(format!("updates may not add a condition of type \"{kind}\"")));
        } else if new.len() == before.len() && !same(&json!(new), &json!(before)) {
            let difference = super::difference::difference(&json!(before), &json!(new));
            errors.push(at.forbidden(format!(
                "updates may not modify a condition of type \"{kind}\"\n{difference}"
            )));
        }
    }
}

fn certificate_stays(errors: &mut ErrorList, root: &At<'_>, old: &Value, may_sign: bool) {
    let at = root.down(&["status", "certificate"]);
    let before = object::str_at(old, &["status", "certificate"]);
    if at.str() == before {
        return;
    }
    if !may_sign {
        errors.push(at.forbidden("updates may not set certificate content"));
    } else if !before.is_empty() {
        errors.push(at.forbidden("updates may not modify existing certificate content"));
    }
}

/// Whether base64 of a PEM block is a certificate request that its own key has signed.
///
/// # Errors
/// What it is instead.
pub fn check_request(encoded: &str) -> Result<(), String> {
    const NOT_PEM: &str = "PEM block type must be CERTIFICATE REQUEST";
    let pem = STANDARD.decode(encoded).map_err(|_| NOT_PEM)?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| NOT_PEM)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(NOT_PEM.to_owned());
    }
    let (rest, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| format!("asn1: {e}"))?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".to_owned());
    }
    let info = &parsed.certification_request_info;
    let oid = parsed.signature_algorithm.algorithm.to_id_string();
    let key = &info.subject_pki.subject_public_key.data;
    let curve = info.subject_pki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let curve = curve.map(|c| c.to_id_string()).unwrap_or_default();
    let algorithms = algorithms(&oid, &curve);
    if algorithms.is_empty() {
        return Err("x509: cannot verify signature: algorithm unimplemented".to_owned());
    }
    let signed = algorithms.iter().any(|algorithm| {
        UnparsedPublicKey::new(*algorithm, key)
            .verify(info.raw, &parsed.signature_value.data)
            .is_ok()
    });
    if signed { Ok(()) } else { Err("crypto: verification error".to_owned()) }
}

/// What verifies a signature of an algorithm, with keys on a curve.
fn algorithms(oid: &str, curve: &str) -> Vec<&'static dyn VerificationAlgorithm> {
    const P256: &str = "1.2.840.10045.3.1.7";
    const P384: &str = "1.3.132.0.34";
    match (oid, curve) {
        ("1.2.840.113549.1.1.11", _) => vec![&signature::RSA_PKCS1_2048_8192_SHA256],
        ("1.2.840.113549.1.1.12", _) => vec![&signature::RSA_PKCS1_2048_8192_SHA384],
        ("1.2.840.113549.1.1.13", _) => vec![&signature::RSA_PKCS1_2048_8192_SHA512],
        ("1.2.840.113549.1.1.10", _) => vec![
            &signature::RSA_PSS_2048_8192_SHA256,
            &signature::RSA_PSS_2048_8192_SHA384,
            &signature::RSA_PSS_2048_8192_SHA512,
        ],
        ("1.2.840.10045.4.3.2", P256) => vec![&signature::ECDSA_P256_SHA256_ASN1],
        ("1.2.840.10045.4.3.2", P384) => vec![&signature::ECDSA_P384_SHA256_ASN1],
        ("1.2.840.10045.4.3.3", P256) => vec![&signature::ECDSA_P256_SHA384_ASN1],
        ("1.2.840.10045.4.3.3", P384) => vec![&signature::ECDSA_P384_SHA384_ASN1],
        ("1.2.840.10045.4.3.4", _) => vec![&signature::ECDSA_P521_SHA512_ASN1],
        ("1.3.101.112", _) => vec![&signature::ED25519],
        _ => Vec::new(),
    }
}

/// Whether base64 of PEM blocks are certificates, or nothing.
fn check_certificate(encoded: &str) -> Result<(), String> {
    const NONE: &str = "must contain at least one CERTIFICATE PEM block";
    if encoded.is_empty() {
        return Ok(());
    }
    let pem = STANDARD.decode(encoded).map_err(|_| NONE)?;
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(&pem) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        X509Certificate::from_der(&block.contents)
            .map_err(|e| format!("x509: malformed certificate: {e}"))?;
        blocks += 1;
    }
    if blocks == 0 { Err(NONE.to_owned()) } else { Ok(()) }
}

/// A request to try things on, signed by a key made for it.
#[cfg(test)]
pub(crate) fn signed_request(common_name: &str) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    let request = params.serialize_request(&key).expect("a request");
    STANDARD.encode(request.pem().expect("PEM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_must_be_signed_by_their_key() {
        let good = signed_request("someone");
        assert_eq!(check_request(&good), Ok(()));
        assert!(check_request("").is_err());
        let mut pem = x509_parser::pem::parse_x509_pem(&STANDARD.decode(&good).unwrap()).unwrap().1;
        // Another name, under the same signature.
        let at = pem.contents.windows(7).position(|w| w == b"someone").unwrap();
        pem.contents[at] = b'S';
        let body = STANDARD.encode(&pem.contents);
        let text = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"
        );
        let problem = check_request(&STANDARD.encode(text));
        assert_eq!(problem, Err("crypto: verification error".to_owned()));
    }

    #[test]
    fn states_are_upstreams() {
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        for (conditions, certificate, want) in [
            (json!([]), "", "Pending"),
            (json!([condition("Approved")]), "eA==", "Approved,Issued"),
            (json!([condition("Denied"), condition("Failed")]), "", "Denied,Failed"),
        ] {
            let status = json!({"conditions": conditions, "certificate": certificate});
            assert_eq!(state(&json!({"status": status})), want);
        }
    }
}
