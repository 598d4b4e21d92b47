//! kube-scheduler: gives pods their nodes.
//!
//! [`snapshot`] is the cluster, kept current from the caches; [`queue`] holds the pods that wait;
//! [`cycle`] decides, by the [`plugins`] of the [`framework`]; [`run`] carries the decision out.

pub mod config;
pub mod cycle;
pub mod framework;
pub mod plugins;
pub mod preemption;
pub mod queue;
pub mod resources;
mod run;
pub mod selectors;
pub mod snapshot;
mod unsupported;

pub use config::Options;
pub use run::run;
