//! kube-apiserver. The folders show a request's path in order; `registry` is the data that the
//! verbs work from.

pub mod admission;
pub mod authentication;
pub mod authorization;
pub mod connect;
pub mod discovery;
pub mod openapi;
pub mod reader;
pub mod registry;
pub mod request;
pub mod table;
