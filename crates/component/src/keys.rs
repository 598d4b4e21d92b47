//! Keys that sign and verify service account tokens (upstream: `serviceaccount/jwt.go`, client-go
//! `util/keyutil`).

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, PublicKey as RsaPublicKey};
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("data does not contain any valid RSA or ECDSA public keys")]
    NoPublicKey,
    #[error("data does not contain a valid RSA or ECDSA private key")]
    NoPrivateKey,
    #[error("the file is no PEM")]
    Pem,
    #[error("unknown key type, must be RSA or ECDSA with curve P-256 or P-384")]
    Kind,
    #[error("signing failed")]
    Signing,
}

/// A key that verifies tokens.
#[derive(Clone)]
pub struct VerifyingKey {
    /// What `kid` in a token's header says: a hash of the key's SubjectPublicKeyInfo.
    pub id: String,
    pub algorithm: Algorithm,
    pub decoding: DecodingKey,
    /// As a set of keys shows it.
    pub jwk: Value,
}

enum Private {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

/// A key that signs tokens.
pub struct SigningKey {
    private: Private,
    public: VerifyingKey,
}

fn unsigned(bytes: &[u8]) -> String {
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    URL_SAFE_NO_PAD.encode(bytes.get(start..).unwrap_or_default())
}

impl VerifyingKey {
    /// From a DER SubjectPublicKeyInfo.
    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let (_, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyError::Kind)?;
        let raw = spki.subject_public_key.data.as_ref();
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(der));
        let (algorithm, decoding, mut jwk) = match spki.parsed().map_err(|_| KeyError::Kind)? {
            ParsedKey::RSA(key) => (
                Algorithm::RS256,
                DecodingKey::from_rsa_der(raw),
                json!({"kty": "RSA", "alg": "RS256",
                    "n": unsigned(key.modulus), "e": unsigned(key.exponent)}),
            ),
            ParsedKey::EC(point) => {
                let (algorithm, name, curve, size) = match point.key_size() {
                    256 => (Algorithm::ES256, "ES256", "P-256", 32),
                    384 => (Algorithm::ES384, "ES384", "P-384", 48),
                    _ => return Err(KeyError::Kind),
                };
                // An uncompressed point: 4, x, y.
                let (x, y) = match raw.split_first() {
                    Some((4, rest)) if rest.len() == 2 * size => rest.split_at(size),
                    _ => return Err(KeyError::Kind),
                };
                (
                    algorithm,
                    DecodingKey::from_ec_der(raw),
                    json!({"kty": "EC", "alg": name, "crv": curve,
                        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}),
                )
            }
            _ => return Err(KeyError::Kind),
        };
        jwk["use"] = "sig".into();
        jwk["kid"] = id.as_str().into();
        Ok(Self { id, algorithm, decoding, jwk })
    }

    /// All keys of a PEM file: public keys, certificates, and the public halves of private keys.
    ///
    /// # Errors
    /// There is none, or one of an unknown kind.
    pub fn parse(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(|_| KeyError::Pem)?;
            let der = block.contents.as_slice();
            match block.label.as_str() {
                "PUBLIC KEY" => keys.push(Self::from_spki(der)?),
                "RSA PUBLIC KEY" => {
                    let key = RsaPublicKey::from_der(der).map_err(|_| KeyError::Kind)?;
                    keys.push(Self::from_public(&key)?);
                }
                "CERTIFICATE" => {
                    let (_, certificate) = x509_parser::parse_x509_certificate(der)
                        .map_err(|_| KeyError::NoPublicKey)?;
                    keys.push(Self::from_spki(certificate.public_key().raw)?);
                }
                label => {
                    if let Some(key) = SigningKey::from_block(label, der)? {
                        keys.push(key.public);
                    }
                }
            }
        }
        if keys.is_empty() { Err(KeyError::NoPublicKey) } else { Ok(keys) }
    }

    fn from_public(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Result<Self, KeyError> {
        let der = key.as_der().map_err(|_| KeyError::Kind)?;
        Self::from_spki(der.as_ref())
    }
}

impl SigningKey {
    /// The first private key of a PEM file: PKCS#1, PKCS#8 or SEC 1.
    ///
    /// # Errors
    /// There is none, or it is of an unknown kind.
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(|_| KeyError::Pem)?;
            if let Some(key) = Self::from_block(&block.label, &block.contents)? {
                return Ok(key);
            }
        }
        Err(KeyError::NoPrivateKey)
    }

    /// `None`: the block is no private key.
    fn from_block(label: &str, der: &[u8]) -> Result<Option<Self>, KeyError> {
        let curves = [&ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P384_SHA384_FIXED_SIGNING];
        let private = match label {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(der).ok().map(Private::Rsa),
            "EC PRIVATE KEY" => curves
                .iter()
                .find_map(|c| EcdsaKeyPair::from_private_key_der(c, der).ok())
                .map(Private::Ec),
            "PRIVATE KEY" => RsaKeyPair::from_pkcs8(der).ok().map(Private::Rsa).or_else(|| {
                curves.iter().find_map(|c| EcdsaKeyPair::from_pkcs8(c, der).ok()).map(Private::Ec)
            }),
            _ => return Ok(None),
        };
        let private = private.ok_or(KeyError::Kind)?;
        let public = match &private {
            Private::Rsa(pair) => VerifyingKey::from_public(pair.public_key()),
            Private::Ec(pair) => VerifyingKey::from_public(pair.public_key()),
        }?;
        Ok(Some(Self { private, public }))
    }

    pub fn verifying(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs claims as a compact JWT.
    ///
    /// # Errors
    /// The key refused, which a key that was loaded does not.
    pub fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let algorithm = format!("{:?}", self.public.algorithm);
        let header = json!({"alg": algorithm, "kid": self.public.id});
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let random = SystemRandom::new();
        let signed = match &self.private {
            Private::Rsa(pair) => {
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut out)
                    .map_err(|_| KeyError::Signing)?;
                out
            }
            Private::Ec(pair) => pair
                .sign(&random, message.as_bytes())
                .map_err(|_| KeyError::Signing)?
                .as_ref()
                .to_vec(),
        };
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{EcPrivateKeyRfc5915Der, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use base64::engine::general_purpose::STANDARD;

    fn pem(label: &str, der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|c| std::str::from_utf8(c).ok()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    fn ec_pem() -> String {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        pem("PRIVATE KEY", pair.to_pkcs8v1().expect("DER").as_ref())
    }

    #[test]
    fn files_of_every_form_are_read() {
        let ec = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key");
        let sec1: EcPrivateKeyRfc5915Der<'_> = ec.private_key().as_der().expect("DER");
        let spki: PublicKeyX509Der<'_> = ec.public_key().as_der().expect("DER");
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        let pkcs8: Pkcs8V1Der<'_> = rsa.as_der().expect("DER");
        let rsa_spki: PublicKeyX509Der<'_> = rsa.public_key().as_der().expect("DER");
        let forms = [
            ("EC PRIVATE KEY", sec1.as_ref(), Algorithm::ES384, spki.as_ref()),
            ("PUBLIC KEY", spki.as_ref(), Algorithm::ES384, spki.as_ref()),
            ("PRIVATE KEY", pkcs8.as_ref(), Algorithm::RS256, rsa_spki.as_ref()),
            ("PUBLIC KEY", rsa_spki.as_ref(), Algorithm::RS256, rsa_spki.as_ref()),
            ("RSA PUBLIC KEY", rsa.public_key().as_ref(), Algorithm::RS256, rsa_spki.as_ref()),
        ];
        for (label, der, algorithm, spki) in forms {
            let text = pem(label, der);
            let keys = VerifyingKey::parse(text.as_bytes()).expect(label);
            let [key] = keys.as_slice() else { panic!("{label}: {}", keys.len()) };
            assert_eq!(key.algorithm, algorithm, "{label}");
            assert_eq!(key.id, URL_SAFE_NO_PAD.encode(Sha256::digest(spki)), "{label}");
            assert_eq!(SigningKey::parse(text.as_bytes()).is_ok(), label.contains("PRIVATE"));
        }
        let two = format!("{}{}", ec_pem(), ec_pem());
        assert_eq!(VerifyingKey::parse(two.as_bytes()).map(|k| k.len()).ok(), Some(2));
        assert!(VerifyingKey::parse(b"nothing").is_err());
    }
}
