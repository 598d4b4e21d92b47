//! What etcd's errors mean for the request that got them.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, Status};

use crate::StoreError;

// etcd marks these only by their text; its own client tells them apart in the same way.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
const TOO_LARGE: &str = "etcdserver: request is too large";
/// The same from the layer below, which measures the message before etcd sees it.
const MESSAGE_TOO_LARGE: &str = "grpc: received message larger than max";
const NO_LEASE: &str = "etcdserver: requested lease not found";

/// What sending a request twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// It may find its own first effect in the way.
    Once,
}

fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::GRpcStatus(status) => Some(status),
        _ => None,
    }
}

/// Whether the request did not leave this process, because there was no connection.
fn not_sent(error: &Error) -> bool {
    if matches!(error, Error::InvalidArgs(_) | Error::InvalidUri(_)) {
        return true;
    }
    let mut cause = status(error).and_then(|status| status.source());
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether to try again.
pub(super) fn may_repeat(error: &Error, effect: Effect) -> bool {
    let Some(status) = status(error) else {
        return false;
    };
    match effect {
        Effect::Once => not_sent(error),
        Effect::None => {
            matches!(status.code(), Code::Unavailable | Code::Cancelled) || is_transport(status)
        }
    }
}

/// A connection that breaks under a request ends it with `Unknown` and the cause inside.
fn is_transport(status: &Status) -> bool {
    status.code() == Code::Unknown && status.source().is_some()
}

/// Whether the key was not written because its lease does not exist.
pub(super) fn lease_is_gone(error: &Error) -> bool {
    status(error).is_some_and(|status| status.message() == NO_LEASE)
}

/// The error of a request without effect.
pub(super) fn read_error(error: Error) -> StoreError {
    definite(&error).unwrap_or_else(|| StoreError::Unavailable(text(&error)))
}

/// The error of a request that may have had its effect.
pub(super) fn write_error(error: Error) -> StoreError {
    if let Some(known) = definite(&error) {
        return known;
    }
    let refused = status(&error).is_some_and(|status| {
        matches!(
            status.code(),
            // etcd answers so before it proposes the write to the cluster, or instead of doing it.
            Code::ResourceExhausted
                | Code::InvalidArgument
                | Code::NotFound
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
                | Code::OutOfRange
        )
    });
    if refused || not_sent(&error) {
        StoreError::Unavailable(text(&error))
    } else {
        StoreError::Unknown(text(&error))
    }
}

fn definite(error: &Error) -> Option<StoreError> {
    match status(error)?.message() {
        // Which revision is the oldest etcd does not say here; 0 stands for that.
        COMPACTED => Some(StoreError::Compacted { oldest: 0 }),
        FUTURE => Some(StoreError::Future { asked: 0, current: 0 }),
        TOO_LARGE => Some(StoreError::TooLarge("etcd's limit for one request".into())),
        text if text.starts_with(MESSAGE_TOO_LARGE) => Some(StoreError::TooLarge(text.to_owned())),
        _ => None,
    }
}

/// etcd's own words, without the client's wrapping.
fn text(error: &Error) -> String {
    match status(error) {
        Some(status) if !status.message().is_empty() => status.message().to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_happened_is_in_doubt() {
        for (code, message, in_doubt) in [
            (Code::OutOfRange, COMPACTED, false),
            (Code::InvalidArgument, TOO_LARGE, false),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", false),
            (Code::ResourceExhausted, "etcdserver: too many requests", false),
            (Code::NotFound, NO_LEASE, false),
            (Code::Unavailable, "etcdserver: request timed out", true),
            (Code::Unavailable, "etcdserver: leader changed", true),
            (Code::Unavailable, "error trying to connect", true),
            (Code::Unknown, "transport error", true),
            (Code::DeadlineExceeded, "no answer from etcd in time", true),
            (Code::Cancelled, "operation was canceled", true),
        ] {
            let error = write_error(Error::GRpcStatus(Status::new(code, message)));
            assert_eq!(matches!(error, StoreError::Unknown(_)), in_doubt, "{message}: {error:?}");
        }
        let refused = tonic::ConnectError("connection refused".into());
        let error = Error::GRpcStatus(Status::from_error(Box::new(refused)));
        assert!(may_repeat(&error, Effect::Once));
        assert!(matches!(write_error(error), StoreError::Unavailable(_)));
    }
}
