//! Clusters that are killed and come back, and what cannot be started. One test at a time: each
//! starts from nothing.

mod alone;
mod input;
mod iptables;
mod joins;
mod kills;
mod pressure;
