//! Clusters that are killed and come back, and what cannot be started. Each test starts from nothing,
//! with a cluster of its own.

mod alone;
mod input;
mod iptables;
mod joins;
mod kills;
mod pressure;
