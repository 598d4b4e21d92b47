//! etcd, v3.4 and later.
