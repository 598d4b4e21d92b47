//! The embedded engine: history and state in one redb file; concurrent writers share an fsync.
