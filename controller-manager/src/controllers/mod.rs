//! The controllers: each has its inputs, its `plan` and its tests.

pub mod aggregation;
pub mod autoscaler;
pub mod bootstrap;
pub mod certificates;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod garbage;
pub mod ipam;
pub mod job;
pub mod mirroring;
pub mod namespace;
pub mod nodelifecycle;
pub mod podgc;
pub mod replicaset;
pub mod resourcequota;
pub mod rootca;
pub mod serviceaccount;
pub mod servicecidrs;
pub mod statefulset;
pub mod taints;
pub mod ttl;
pub mod ttlafterfinished;
pub mod volumes;
