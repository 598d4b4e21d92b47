//! The kubelet: it registers its machine as a node, runs the pods bound to it through a CRI
//! runtime, and reports how they are.
//!
//! One [`pod::worker`] drives each pod. It works from the pod as desired and from the runtime's
//! present state ([`runtime::model`]), decides in pure code ([`pod::plan`]) and acts at the edge,
//! so it may be killed at any point and finds its way from what the runtime has.
//!
//! Nothing is global: several kubelets may run in one process or on one machine, each with its own
//! root directory, ports, runtime socket and cgroup root.

mod admission;
mod allocation;
mod backoff;
mod certificates;
mod cgroups;
mod config;
mod duration;
mod events;
mod eviction;
mod flags;
mod gc;
mod hooks;
mod image_gc;
mod images;
mod kubelet;
mod logs;
mod manager;
mod net;
mod node;
mod objects;
mod options;
mod pleg;
mod pod;
mod pressure;
mod probe;
mod quantity;
mod rate;
mod references;
mod run;
mod runtime;
mod server;
mod shutdown;
mod static_pods;
mod stats;
mod sysctl;
mod tokens;
mod volumes;

pub use config::KubeletConfiguration;
pub use options::Options;
pub use run::run;

/// The version that nodes report.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
