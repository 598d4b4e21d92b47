//! The controllers: each has its inputs, its `plan` and its tests.

pub mod aggregation;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod garbage;
pub mod ipam;
pub mod namespace;
pub mod nodelifecycle;
pub mod podgc;
pub mod replicaset;
pub mod rootca;
pub mod serviceaccount;
pub mod taints;
