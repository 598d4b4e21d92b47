//! The kubelet's own certificates: a first one for a node that joins by a bootstrap token, and new
//! ones in time (KEP-266; upstream: `kubelet/certificate`, `client-go/util/certificate`).
//!
//! [`decide`] says what is to be done, [`keeper`] does it: it asks by CertificateSigningRequests
//! ([`request`]) and keeps what it gets in `--cert-dir` ([`store`]). Whoever uses a certificate
//! follows the keeper's current one: the API client ([`client`]) and the kubelet's server
//! ([`serving`]).

mod bootstrap;
pub mod client;
mod decide;
mod keeper;
mod pair;
mod request;
pub mod serving;
mod store;

/// The organization of nodes, which is their group.
const NODES: &str = "system:nodes";

#[cfg(test)]
mod tests;
