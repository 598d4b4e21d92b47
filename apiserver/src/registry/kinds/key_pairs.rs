//! Certificates and keys that do not belong together, in the words of Go's `tls.X509KeyPair`.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

const UNPARSED_KEY: &str = "tls: failed to parse private key";

/// Why the first certificate and the first key in these PEM texts are no pair. A key of a kind
/// that we cannot read is not judged.
pub fn problem(certificates: &[u8], keys: &[u8]) -> Option<String> {
    let certificate = match certificate(certificates) {
        Ok(certificate) => certificate,
        Err(problem) => return Some(problem),
    };
    let key = match key(keys) {
        Ok(key) => key,
        Err(problem) => return Some(problem),
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&certificate) else {
        return Some("x509: malformed certificate".to_owned());
    };
    let Ok(der) = PrivateKeyDer::try_from(key) else { return Some(UNPARSED_KEY.to_owned()) };
    let key = any_supported_type(&der).ok()?;
    let key = key.public_key()?;
    let (_, own) = SubjectPublicKeyInfo::from_der(&key).ok()?;
    let public = certificate.public_key();
    let text = if own.algorithm.algorithm != public.algorithm.algorithm {
        "tls: private key type does not match public key type"
    } else if own.subject_public_key.data != public.subject_public_key.data {
        "tls: private key does not match public key"
    } else {
        return None;
    };
    Some(text.to_owned())
}

fn blocks(text: &[u8]) -> impl Iterator<Item = Pem> {
    Pem::iter_from_buffer(text).map_while(Result::ok)
}

/// The first certificate, or why there is none.
fn certificate(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut skipped = Vec::new();
    for block in blocks(text) {
        if block.label == "CERTIFICATE" {
            return Ok(block.contents);
        }
        skipped.push(block.label);
    }
    Err(match skipped.as_slice() {
        [] => "tls: failed to find any PEM data in certificate input".to_owned(),
        [one] if one.ends_with("PRIVATE KEY") => {
            "tls: failed to find certificate PEM data in certificate input, but did find a \
             private key; PEM inputs may have been switched"
                .to_owned()
        }
        others => format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping \
             PEM blocks of the following types: [{}]",
            others.join(" ")
        ),
    })
}

/// The first key, or why there is none.
fn key(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut skipped = Vec::new();
    for block in blocks(text) {
        if block.label == "PRIVATE KEY" || block.label.ends_with(" PRIVATE KEY") {
            return Ok(block.contents);
        }
        skipped.push(block.label);
    }
    Err(match skipped.as_slice() {
        [] => "tls: failed to find any PEM data in key input".to_owned(),
        [one] if one == "CERTIFICATE" => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
        }
        others => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after \
             skipping PEM blocks of the following types: [{}]",
            others.join(" ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_told_from_strangers() {
        let made = |algorithm| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, other) = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, of_other_type) = made(&rcgen::PKCS_ED25519);
        let cases = [
            (certificate.as_str(), key.as_str(), None),
            (&certificate, &other, Some("tls: private key does not match public key")),
            (
                &certificate,
                &of_other_type,
                Some("tls: private key type does not match public key type"),
            ),
            ("", "", Some("tls: failed to find any PEM data in certificate input")),
            (&certificate, "x", Some("tls: failed to find any PEM data in key input")),
            (
                &key,
                &certificate,
                Some(
                    "tls: failed to find certificate PEM data in certificate input, but did find a \
                     private key; PEM inputs may have been switched",
                ),
            ),
            (
                &certificate,
                &certificate,
                Some("tls: found a certificate rather than a key in the PEM for the private key"),
            ),
        ];
        for (certificate, key, want) in cases {
            assert_eq!(problem(certificate.as_bytes(), key.as_bytes()).as_deref(), want);
        }
    }
}
