//! kube-apiserver. The folders show a request's path in order; `registry` is the data that the
//! verbs work from.

pub mod admission;
pub mod aggregation;
pub mod api;
pub mod apiextensions;
pub mod authentication;
pub mod authorization;
mod bootstrap;
pub mod cache;
pub mod cel;

mod compaction;
mod discovery;
mod drain;
pub mod gate;
mod health;
mod identity;
mod masterleases;
mod metrics;
pub mod negotiate;
mod openapi;
pub mod options;
mod pipeline;
pub mod query;
pub mod reader;
pub mod registry;
pub mod request;
pub mod respond;
pub mod server;
pub mod services;
mod special;
mod table;
mod tls;
pub mod verbs;
pub mod warnings;
pub mod webhook;

pub use options::Config;
pub use server::{Overrides, Server};

use tokio_util::sync::CancellationToken;

/// Runs until shutdown.
///
/// # Errors
/// As [`Server::build`] and [`Server::run`].
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    Server::build(config).await?.run(shutdown).await
}
