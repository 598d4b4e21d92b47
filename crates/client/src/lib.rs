//! What every component needs to talk to the apiserver: a client from a kubeconfig, caches fed by
//! watches, work queues, events and leader election; its word on who may call them; and what several
//! of them have to judge alike: selectors, tolerations, claims. Each exists once, here.

pub mod accounts;
pub mod cache;
pub mod connect;
pub mod election;
pub mod error;
pub mod events;
pub mod lean;
pub mod lease;
pub mod matching;
pub mod proxy;
pub mod queue;
pub mod queues;
mod raw;
pub mod renewable;
pub mod retry;
pub mod reviews;
pub mod secure;
pub mod volumes;

pub use cache::{Cache, Caches, Change, Key};
pub use connect::{connect, connect_to};
pub use error::brief;
pub use queue::Queue;
pub use queues::Queues;
pub use renewable::Renewable;
