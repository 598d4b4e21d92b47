//! A pod's life: what to do next ([`plan`]), what containers and sandboxes are made of, what is
//! reported, and the actor that drives it all ([`worker`]).

pub mod conditions;
pub mod container;
pub mod dns;
pub mod env;
pub mod expand;
pub mod hosts;
pub mod phase;
pub mod plan;
pub mod report;
pub mod resize;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod start;
pub mod status;
pub mod stop;
pub mod worker;

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod status_tests;
