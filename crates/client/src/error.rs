//! Errors on one line, for logs: what was tried, then reason and message of what the API said.

use std::error::Error;

use kube::core::Status;
use kube::runtime::watcher;

/// One line about an error. kube's own text for a refusal is the whole Status, over several lines.
pub fn brief(error: &anyhow::Error) -> String {
    line(error.as_ref())
}

/// As [`brief`], of any error.
pub fn line(error: &(dyn Error + 'static)) -> String {
    let mut pieces: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(link) = next {
        let (text, end) = piece(link);
        // Some texts repeat their source's.
        if !text.is_empty() && pieces.last().is_none_or(|last| !last.contains(&text)) {
            pieces.push(text);
        }
        next = if end { None } else { link.source() };
    }
    pieces.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a list was refused because nothing is served there: the kind is one that this API server
/// does not have.
pub fn is_not_served(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// The text of one link of the chain, without its source's; whether it tells all that follows.
fn piece(link: &(dyn Error + 'static)) -> (String, bool) {
    if let Some(error) = link.downcast_ref::<kube::Error>() {
        return match error {
            kube::Error::Api(status) => (refusal(status), true),
            error if error.source().is_some() => (String::new(), false),
            error => (error.to_string(), true),
        };
    }
    match link.downcast_ref::<watcher::Error>() {
        Some(watcher::Error::InitialListFailed(_)) => ("list".to_owned(), false),
        Some(watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(_)) => {
            ("watch".to_owned(), false)
        }
        Some(watcher::Error::WatchError(status)) => (format!("watch: {}", refusal(status)), true),
        _ => (link.to_string(), false),
    }
}

fn refusal(status: &Status) -> String {
    let reason = match status.reason.as_str() {
        "" => status.code.to_string(),
        reason => reason.to_owned(),
    };
    match status.message.as_str() {
        "" => reason,
        message => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn errors_take_one_line() {
        let status = Status {
            code: 404,
            reason: "NotFound".into(),
            message: "namespaces \"kube-system\" not found".into(),
            ..Status::default()
        };
        let api = || kube::Error::Api(Box::new(status.clone()));
        let cases = [
            (
                Err::<(), _>(api()).context("service account a").unwrap_err(),
                "service account a: NotFound: namespaces \"kube-system\" not found",
            ),
            (
                anyhow::Error::new(watcher::Error::InitialListFailed(api())),
                "list: NotFound: namespaces \"kube-system\" not found",
            ),
            (
                anyhow::Error::new(kube::Error::Service(Box::new(std::io::Error::other(
                    "refused",
                )))),
                "refused",
            ),
            (anyhow::anyhow!("over\n two lines").context("x"), "x: over two lines"),
        ];
        for (error, wanted) in cases {
            assert_eq!(brief(&error), wanted);
        }
    }
}
