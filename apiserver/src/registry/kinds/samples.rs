//! One small valid object for each row.
