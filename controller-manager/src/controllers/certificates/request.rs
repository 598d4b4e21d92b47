//! What a PKCS #10 request asks for, and which requests Kubernetes' own signers take (API
//! documentation of certificates.k8s.io: "Kubernetes signers").

use std::net::IpAddr;

use anyhow::{Context, bail, ensure};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING};

const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
/// What kubelets want their certificates for; with keys that are not RSA's, the second is left out.
const OF_KUBELETS: [&str; 2] = ["digital signature", "key encipherment"];

/// A request, read and found to be signed by its key.
#[derive(Debug, Default)]
pub struct Request {
    /// DER, as in the request: what is not understood is kept.
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub alternatives: Alternatives,
}

/// Other names of the subject (`subjectAltName`).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    pub dns: Vec<String>,
    pub emails: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub uris: Vec<String>,
}

impl Alternatives {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn read(names: &[GeneralName<'_>]) -> anyhow::Result<Self> {
        let mut read = Self::default();
        for name in names {
            match name {
                GeneralName::DNSName(name) => read.dns.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => read.emails.push((*name).to_owned()),
                GeneralName::URI(uri) => read.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let address = match *bytes {
                        [a, b, c, d] => IpAddr::from([*a, *b, *c, *d]),
                        bytes => {
                            IpAddr::from(<[u8; 16]>::try_from(bytes).context("an IP address")?)
                        }
                    };
                    read.addresses.push(address);
                }
                // As upstream: left out.
                _ => {}
            }
        }
        Ok(read)
    }
}

impl Request {
    /// From PEM.
    ///
    /// # Errors
    /// What of it cannot be read.
    pub fn parse(pem: &[u8]) -> anyhow::Result<Self> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .context("PEM block type must be CERTIFICATE REQUEST")?;
        let (rest, read) = X509CertificationRequest::from_der(&der)?;
        ensure!(rest.is_empty(), "trailing data");
        read.verify_signature().context("the request is not signed by its key")?;
        let info = &read.certification_request_info;
        let text =
            |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
        let mut request = Self {
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            // The last one counts, as in Go.
            common_name: info.subject.iter_common_name().last().and_then(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            alternatives: Alternatives::default(),
        };
        for extension in read.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                request.alternatives = Alternatives::read(&names.general_names)?;
            }
        }
        Ok(request)
    }

    /// Whether it is one for a kubelet's client certificate.
    ///
    /// # Errors
    /// Why not.
    pub fn is_of_kubelet_client(&self, usages: &[String]) -> anyhow::Result<()> {
        self.is_of_node()?;
        let names = &self.alternatives;
        ensure!(names.dns.is_empty(), "DNS subjectAltNames are not allowed");
        ensure!(names.emails.is_empty(), "Email subjectAltNames are not allowed");
        ensure!(names.addresses.is_empty(), "IP subjectAltNames are not allowed");
        ensure!(names.uris.is_empty(), "URI subjectAltNames are not allowed");
        are_of_kubelets(usages, "client auth")
    }

    /// Whether a signer takes it.
    ///
    /// # Errors
    /// Why not, in upstream's words.
    pub fn suits(&self, signer: &str, usages: &[String]) -> anyhow::Result<()> {
        match signer {
            KUBELET_CLIENT => self.is_of_kubelet_client(usages),
            KUBELET_SERVING => {
                self.is_of_node()?;
                let names = &self.alternatives;
                ensure!(
                    !names.dns.is_empty() || !names.addresses.is_empty(),
                    "DNS or IP subjectAltName is required"
                );
                ensure!(names.emails.is_empty(), "Email subjectAltNames are not allowed");
                ensure!(names.uris.is_empty(), "URI subjectAltNames are not allowed");
                are_of_kubelets(usages, "server auth")
            }
            CLIENT => {
                const WANTED: &str = "client auth";
                let other = |usage: &&String| *usage != WANTED && !is_of_keys(usage);
                if let Some(usage) = usages.iter().find(other) {
                    bail!("invalid usage for client certificate: {usage}");
                }
                ensure!(
                    usages.iter().any(|usage| usage == WANTED),
                    "missing required usage for client certificate: {WANTED}"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn is_of_node(&self) -> anyhow::Result<()> {
        ensure!(self.organizations == [NODES], "subject organization is not {NODES}");
        ensure!(
            self.common_name.starts_with(NODE),
            "subject common name does not begin with {NODE}"
        );
        Ok(())
    }
}

fn is_of_keys(usage: &str) -> bool {
    OF_KUBELETS.contains(&usage)
}

fn are_of_kubelets(usages: &[String], wanted: &str) -> anyhow::Result<()> {
    let [signature, encipherment] = OF_KUBELETS;
    let has = |usage: &str| usages.iter().any(|u| u == usage);
    let others = usages.iter().any(|u| !is_of_keys(u) && u != wanted);
    if !has(signature) || !has(wanted) || others {
        bail!("usages did not match [{signature} {encipherment} {wanted}]");
    }
    Ok(())
}
