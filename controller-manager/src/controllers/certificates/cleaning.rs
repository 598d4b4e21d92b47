//! Old requests are deleted (upstream: `certificates/cleaner`).

use client::{Cache, Key, Queue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{certificate, condition};
use crate::action::{Action, Plan};
use crate::runner::{Context, Controller};

/// What is settled is kept so long,
const SETTLED: SignedDuration = SignedDuration::from_hours(1);
/// and what is not, so long.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// Deletes old requests.
pub struct Cleaner {
    requests: Cache<CertificateSigningRequest>,
}

impl Cleaner {
    pub fn new(context: &Context) -> Self {
        Self { requests: context.caches.of() }
    }
}

/// When a request is old.
pub(super) fn deadline(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let settled = ["Denied", "Failed", "Approved"].iter().find_map(|ty| condition(request, ty));
    let Some(settled) = settled else {
        return request.metadata.creation_timestamp.as_ref()?.0.checked_add(PENDING).ok();
    };
    let after = settled.last_update_time.as_ref()?.0.checked_add(SETTLED).ok()?;
    let ends = CertificateDer::from_pem_slice(certificate(request)).ok().and_then(|der| {
        let (_, read) = x509_parser::parse_x509_certificate(&der).ok()?;
        Timestamp::from_second(read.validity().not_after.timestamp()).ok()
    });
    Some(ends.map_or(after, |ends| ends.min(after)))
}

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-cleaner"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.requests.feed(queue);
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(request) = self.requests.get(key) else { return plan };
        let Some(deadline) = deadline(&request) else { return plan };
        match std::time::Duration::try_from(deadline.duration_since(now)) {
            Ok(left) if !left.is_zero() => plan.again(left),
            _ => plan.push(Action::delete(&*request)),
        }
        plan
    }
}
