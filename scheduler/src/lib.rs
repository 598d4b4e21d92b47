//! kube-scheduler: gives pods their nodes.
//!
//! [`snapshot`] is the cluster, kept current from the caches; [`queue`] holds the pods that wait;
//! [`cycle`] decides, by the [`plugins`] of the [`framework`] that a [`profile`] asks; [`run`]
//! carries the decision out.

pub mod args;
pub mod config;
pub mod cycle;
pub mod framework;
pub mod owners;
pub mod plugins;
pub mod preemption;
pub mod profile;
pub mod queue;
pub mod resources;
mod run;
pub mod snapshot;
pub mod topology;
mod unsupported;
pub mod volumes;

pub use config::Options;
pub use run::run;
