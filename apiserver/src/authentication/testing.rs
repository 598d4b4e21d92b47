//! Certificates and times, for tests.

#[path = "../../../crates/component/src/testing.rs"]
mod certificates;

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::Clock;

pub(super) struct Authority(certificates::Authority);

impl Authority {
    pub fn new(name: &str) -> Self {
        Self(certificates::Authority::new(name))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client's, valid from 1971 to 1980.
    pub fn sign(&self, name: &str) -> CertificateDer<'static> {
        self.0.sign(&certificates::Leaf { name, ..Default::default() })
    }
}

pub(super) fn clock(seconds: i64) -> Clock {
    Arc::new(move || jiff::Timestamp::from_second(seconds).expect("a time"))
}
