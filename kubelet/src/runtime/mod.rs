//! The container runtime: a client for CRI v1, the labels that tie containers to pods, and a view
//! of what the runtime has.

pub mod cri;
pub mod labels;
pub mod model;
pub mod views;

pub use cri::{Cri, RuntimeError};
pub use model::{ContainerView, PodView, State};
