//! Approved requests are signed, for Kubernetes' own signers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use client::{Cache, Key, Queue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::issue::Authority;
use super::request::Request;
use super::{
    CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN, certificate, condition, with_condition,
};
use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

/// Certificates hold from a little earlier, for clocks that are behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Those that hold shorter than this end so much later in turn.
const SHORT: SignedDuration = SignedDuration::from_hours(8);
/// No certificate is asked for for less (API documentation: `expirationSeconds`).
const SHORTEST: i64 = 600;

/// Certificate and key of a CA.
pub type Files<'a> = (&'a Option<PathBuf>, &'a Option<PathBuf>);

/// The CAs of the signers, and how long their certificates hold at most.
pub struct Signers {
    authorities: BTreeMap<&'static str, Arc<Authority>>,
    duration: SignedDuration,
}

impl Signers {
    /// `all` is for all signers, or there is one for each: of the API server's clients, kubelets'
    /// client and serving certificates, and legacy-unknown. `None`: none is given.
    ///
    /// # Errors
    /// Both are given, half of one is, or a file cannot be read.
    pub fn read(
        all: Files<'_>,
        each: [(&str, Files<'_>); 4],
        duration: Duration,
    ) -> anyhow::Result<Option<Self>> {
        const NAMES: [&str; 4] = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN];
        let read = |flag: &str, files: Files<'_>| match files {
            (Some(cert), Some(key)) => Authority::read(cert, key).map(|a| Some(Arc::new(a))),
            (None, None) => Ok(None),
            _ => bail!("--{flag}-cert-file and --{flag}-key-file go together"),
        };
        let mut authorities = BTreeMap::new();
        let shared = read("cluster-signing", all)?;
        for (name, (flag, files)) in NAMES.into_iter().zip(each) {
            let own = read(flag, files)?;
            if shared.is_some() && own.is_some() {
                bail!("--cluster-signing-cert-file and --{flag}-cert-file exclude each other");
            }
            if let Some(authority) = own.or_else(|| shared.clone()) {
                authorities.insert(name, authority);
            }
        }
        let duration = SignedDuration::try_from(duration)?;
        Ok((!authorities.is_empty()).then_some(Self { authorities, duration }))
    }

    /// From when until when a certificate holds that is signed now.
    fn validity(&self, asked: Option<i32>, now: Timestamp) -> (Timestamp, Timestamp) {
        let asked = asked.map(|s| SignedDuration::from_secs(i64::from(s).max(SHORTEST)));
        let whole = asked.map_or(self.duration, |asked| asked.min(self.duration));
        let after = if whole < SHORT { whole } else { whole - BACKDATE };
        let until = now.checked_add(after).unwrap_or(Timestamp::MAX);
        (now.checked_sub(BACKDATE).unwrap_or(now), until)
    }

    /// The request with its certificate, or with why it gets none; `None`: there is nothing to do.
    pub(super) fn sign(
        &self,
        request: &CertificateSigningRequest,
        now: Timestamp,
        serial: [u8; 16],
    ) -> Option<CertificateSigningRequest> {
        let approved = condition(request, "Approved").is_some()
            && condition(request, "Denied").is_none()
            && condition(request, "Failed").is_none();
        let authority = self.authorities.get(request.spec.signer_name.as_str())?;
        if !approved || !certificate(request).is_empty() {
            return None;
        }
        let usages = request.spec.usages.as_deref().unwrap_or_default();
        let signed = Request::parse(&request.spec.request.0).and_then(|read| {
            read.suits(&request.spec.signer_name, usages)?;
            let validity = self.validity(request.spec.expiration_seconds, now);
            authority.sign(&read, usages, serial, validity)
        });
        Some(match signed {
            Ok(pem) => {
                let mut changed = request.clone();
                changed.status.get_or_insert_default().certificate =
                    Some(ByteString(pem.into_bytes()));
                changed
            }
            Err(why) => {
                let failed = ("Failed", "SignerValidationFailure", client::brief(&why));
                with_condition(request, failed, now)
            }
        })
    }
}

/// Signs.
pub struct Signer {
    requests: Cache<CertificateSigningRequest>,
    signers: Signers,
}

impl Signer {
    pub fn new(context: &Context, signers: Signers) -> Self {
        Self { requests: context.caches.of(), signers }
    }
}

impl Controller for Signer {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-signing"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.requests.feed(queue);
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(request) = self.requests.get(key) else { return plan };
        if let Some(changed) = self.signers.sign(&request, now, rand::random()) {
            plan.push(Action::update_status(&changed));
        }
        plan
    }
}
