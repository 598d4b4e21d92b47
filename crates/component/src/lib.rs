//! What every binary shares: the command line, config files, TLS serving, health, logs, keys
//! of tokens and shutdown. A component is Config → build (binds) → run → drain.

pub mod callers;
pub mod cli;
pub mod config;
pub mod files;
pub mod healthz;
pub mod keys;
pub mod leader;
pub mod logs;
pub mod metrics;
pub mod serving;
pub mod shutdown;
#[cfg(test)]
mod testing;
pub mod trust;
