//! Certificates in DER (RFC 5280). The subject is copied byte for byte: a name may have several
//! organizations, which are a user's groups.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use x509_parser::extensions::ParsedExtension;
use yasna::models::{GeneralizedTime, ObjectIdentifier, UTCTime};
use yasna::{DERWriter, Tag, construct_der};

use super::request::{Alternatives, Request};

/// Signature algorithms by preference: the scheme, its identifier, and whether that has a NULL as
/// its parameters.
const ALGORITHMS: [(SignatureScheme, &[u64], bool); 4] = [
    (SignatureScheme::RSA_PKCS1_SHA256, &[1, 2, 840, 113_549, 1, 1, 11], true),
    (SignatureScheme::ECDSA_NISTP256_SHA256, &[1, 2, 840, 10_045, 4, 3, 2], false),
    (SignatureScheme::ECDSA_NISTP384_SHA384, &[1, 2, 840, 10_045, 4, 3, 3], false),
    (SignatureScheme::ED25519, &[1, 3, 101, 112], false),
];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALTERNATIVES: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    /// A bit of `keyUsage`.
    Key(usize),
    /// An entry of `extKeyUsage`.
    Extended(&'static [u64]),
}

/// A usage of the API (`certificates.k8s.io` `KeyUsage`).
fn usage(name: &str) -> Option<Usage> {
    Some(match name {
        "signing" | "digital signature" => Usage::Key(0),
        "content commitment" => Usage::Key(1),
        "key encipherment" => Usage::Key(2),
        "data encipherment" => Usage::Key(3),
        "key agreement" => Usage::Key(4),
        "cert sign" => Usage::Key(5),
        "crl sign" => Usage::Key(6),
        "encipher only" => Usage::Key(7),
        "decipher only" => Usage::Key(8),
        "any" => Usage::Extended(&[2, 5, 29, 37, 0]),
        "server auth" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 1]),
        "client auth" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 2]),
        "code signing" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 3]),
        "email protection" | "s/mime" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 4]),
        "ipsec end system" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 5]),
        "ipsec tunnel" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 6]),
        "ipsec user" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 7]),
        "timestamping" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 8]),
        "ocsp signing" => Usage::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 9]),
        "microsoft sgc" => Usage::Extended(&[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
        "netscape sgc" => Usage::Extended(&[2, 16, 840, 1, 113_730, 4, 1]),
        _ => return None,
    })
}

/// A CA that signs.
pub struct Authority {
    /// DER.
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    key: Arc<dyn SigningKey>,
    algorithm: (SignatureScheme, &'static [u64], bool),
}

impl Authority {
    /// From PEM files.
    ///
    /// # Errors
    /// Names the file that is not right.
    pub fn read(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let whence = || format!("CA certificate {}", certificate.display());
        let der = CertificateDer::from_pem_file(certificate).with_context(whence)?;
        let (_, read) = x509_parser::parse_x509_certificate(&der).with_context(whence)?;
        let key_id = read.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let not_after =
            Timestamp::from_second(read.validity().not_after.timestamp()).with_context(whence)?;
        let subject = read.subject().as_raw().to_vec();
        let whence = || format!("CA key {}", key.display());
        let der = PrivateKeyDer::from_pem_file(key).with_context(whence)?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).with_context(whence)?;
        let chosen = ALGORITHMS.into_iter().find(|(s, ..)| key.choose_scheme(&[*s]).is_some());
        let algorithm = chosen.with_context(whence).context("no algorithm for this key")?;
        Ok(Self { subject, key_id, not_after, key, algorithm })
    }

    /// Signs: the certificate in PEM. It ends with the CA's own at the latest.
    ///
    /// # Errors
    /// A usage is not known.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        serial: [u8; 16],
        (from, until): (Timestamp, Timestamp),
    ) -> anyhow::Result<String> {
        let known: Vec<Usage> = usages.iter().filter_map(|name| usage(name)).collect();
        if known.len() != usages.len() {
            let unknown: Vec<&str> =
                usages.iter().map(String::as_str).filter(|u| usage(u).is_none()).collect();
            bail!("unrecognized usage values: [{}]", unknown.join(" "));
        }
        let until = until.min(self.not_after);
        let (from, until) = (moment(from)?, moment(until)?);
        let signed = construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged(Tag::context(0), |w| w.write_u8(2));
                // A serial number is positive.
                writer.next().write_bigint_bytes(&serial, true);
                self.identifier(writer.next());
                writer.next().write_der(&self.subject);
                writer.next().write_sequence(|writer| {
                    time(writer.next(), from);
                    time(writer.next(), until);
                });
                writer.next().write_der(&request.subject);
                writer.next().write_der(&request.public_key);
                writer.next().write_tagged(Tag::context(3), |writer| {
                    writer.write_sequence(|writer| {
                        let mut add = |id: &[u64], critical: bool, value: Vec<u8>| {
                            extension(writer.next(), id, critical, &value);
                        };
                        extensions(&mut add, request, &known, self.key_id.as_deref());
                    });
                });
            });
        });
        let signer = self.key.choose_scheme(&[self.algorithm.0]).context("the CA's key")?;
        let signature = signer.sign(&signed)?;
        let der = construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&signed);
                self.identifier(writer.next());
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        let pem = pem::Pem::new("CERTIFICATE", der);
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        Ok(pem::encode_config(&pem, config))
    }

    fn identifier(&self, writer: DERWriter<'_>) {
        let (_, id, has_null) = self.algorithm;
        writer.write_sequence(|writer| {
            writer.next().write_oid(&ObjectIdentifier::from_slice(id));
            if has_null {
                writer.next().write_null();
            }
        });
    }
}

fn moment(at: Timestamp) -> anyhow::Result<time::OffsetDateTime> {
    Ok(time::OffsetDateTime::from_unix_timestamp(at.as_second())?)
}

/// Up to 2049 with two digits for the year.
fn time(writer: DERWriter<'_>, at: time::OffsetDateTime) {
    match (1950..2050).contains(&at.year()) {
        true => writer.write_utctime(&UTCTime::from_datetime(at)),
        false => writer.write_generalized_time(&GeneralizedTime::from_datetime(at)),
    }
}

fn extension(writer: DERWriter<'_>, id: &[u64], critical: bool, value: &[u8]) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(id));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(value);
    });
}

fn extensions(
    add: &mut impl FnMut(&[u64], bool, Vec<u8>),
    request: &Request,
    usages: &[Usage],
    authority_key: Option<&[u8]>,
) {
    let keys =
        || usages.iter().filter_map(|u| if let Usage::Key(bit) = u { Some(*bit) } else { None });
    if let Some(last) = keys().max() {
        let mut bits = [0u8; 2];
        for bit in keys() {
            if let Some(byte) = bits.get_mut(bit / 8) {
                *byte |= 0x80 >> (bit % 8);
            }
        }
        let bytes = &bits[..=last / 8];
        add(KEY_USAGE, true, construct_der(|w| w.write_bitvec_bytes(bytes, last + 1)));
    }
    let mut extended: Vec<&[u64]> = Vec::new();
    for usage in usages {
        if let Usage::Extended(id) = usage
            && !extended.contains(id)
        {
            extended.push(id);
        }
    }
    if !extended.is_empty() {
        let value = construct_der(|writer| {
            writer.write_sequence(|writer| {
                for id in extended {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(id));
                }
            });
        });
        add(EXTENDED_KEY_USAGE, false, value);
    }
    // Not a CA.
    add(BASIC_CONSTRAINTS, true, construct_der(|w| w.write_sequence(|_| {})));
    if let Some(id) = authority_key {
        let value = construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged_implicit(Tag::context(0), |w| w.write_bytes(id));
            });
        });
        add(AUTHORITY_KEY, false, value);
    }
    if !request.alternatives.is_empty() {
        // Who has no other name has this one for certain.
        let nameless = request.subject == construct_der(|w| w.write_sequence(|_| {}));
        add(SUBJECT_ALTERNATIVES, nameless, alternatives(&request.alternatives));
    }
}

/// `GeneralNames`, in Go's order.
fn alternatives(names: &Alternatives) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            for (tag, list) in [(2, &names.dns), (1, &names.emails)] {
                for name in list {
                    let tag = Tag::context(tag);
                    writer.next().write_tagged_implicit(tag, |w| w.write_ia5_string(name));
                }
            }
            for address in &names.addresses {
                let bytes = match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                writer.next().write_tagged_implicit(Tag::context(7), |w| w.write_bytes(&bytes));
            }
            for uri in &names.uris {
                writer.next().write_tagged_implicit(Tag::context(6), |w| w.write_ia5_string(uri));
            }
        });
    })
}
