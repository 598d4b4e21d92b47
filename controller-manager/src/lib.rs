//! kube-controller-manager: loops that bring the cluster to what its objects ask for.
//!
//! A controller is inputs, a `plan` and its tests ([`controllers`]); [`runner`] runs them all the same
//! way, and [`action`] carries plans out.

pub mod action;
pub mod controllers;
pub mod expectations;
mod known;
pub mod options;
pub mod owners;
pub mod pods;
mod run;
pub mod runner;
mod unsupported;

pub use options::Options;
pub use run::run;
