//! The parameters of lists and watches, and the tokens that continue lists.

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::status::ApiError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::input::invalid_options;
use super::read::parse_version;
use crate::query::Query;

/// Which state a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// At least as new as the last acknowledged write.
    Newest,
    /// Whatever the cache has.
    Any,
    /// At least this revision.
    NotOlderThan(u64),
    /// Just this revision.
    Exact(u64),
}

/// Parameters of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListOptions {
    pub freshness: Freshness,
    /// 0: all.
    pub limit: usize,
    /// Where a list goes on: the key below the prefix of what is listed.
    pub start: Option<String>,
}

/// Upstream's token (`storage.continueToken`).
#[derive(Debug, Deserialize, Serialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

/// A token that continues after a key, at a revision (-1: at whichever is newest then).
pub(super) fn continue_token(revision: i64, last: &str) -> String {
    let token = Token { v: "meta.k8s.io/v1".to_owned(), rv: revision, start: format!("{last}\0") };
    // A struct of texts and a number is always JSON.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn read_token(text: &str) -> Result<(i64, String), ApiError> {
    let bad = |why: &str| ApiError::BadRequest(format!("invalid continue token: {why}"));
    let data = URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|e| bad(&format!("continue key is not valid: {e}")))?;
    let token: Token = serde_json::from_slice(&data)
        .map_err(|e| bad(&format!("continue key is not valid: {e}")))?;
    if token.v != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {}", token.v)));
    }
    if token.rv == 0 {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    if token.start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    let start = token.start.trim_start_matches('/');
    let clean = start.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !clean {
        return Err(bad(&format!("continue key is not valid: {}", token.start)));
    }
    Ok((token.rv, start.to_owned()))
}

impl ListOptions {
    /// # Errors
    /// 400 and 422 as upstream.
    pub(super) fn read(query: &Query) -> Result<Self, ApiError> {
        let (limit, _) = read_numbers(query)?;
        let mut errors = ErrorList::new();
        let version_text = query.text("resourceVersion");
        let wanted = query.text("resourceVersionMatch");
        let path = Path::new("resourceVersionMatch");
        let forbidden = |text: &str| FieldError::forbidden(&path, text);
        if !wanted.is_empty() {
            if version_text.is_empty() {
                errors.push(forbidden(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !query.text("continue").is_empty() {
                errors
                    .push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(wanted, "Exact" | "NotOlderThan") {
                let valid = ["Exact", "NotOlderThan", ""];
                errors.push(FieldError::not_supported(&path, wanted, &valid));
            }
            if wanted == "Exact" && version_text == "0" {
                errors.push(forbidden(
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if query.get("sendInitialEvents").is_some() {
            let path = Path::new("sendInitialEvents");
            errors.push(FieldError::forbidden(&path, "sendInitialEvents is forbidden for list"));
        }
        if !errors.is_empty() {
            return Err(invalid_options("ListOptions", errors));
        }
        let version = parse_version(version_text)
            .map_err(|e| ApiError::BadRequest(format!("invalid resource version: {e}")))?;
        let token = query.text("continue");
        if !token.is_empty() {
            if version.is_some_and(|v| v != 0) {
                return Err(ApiError::BadRequest(
                    "specifying resource version is not allowed when using continue".to_owned(),
                ));
            }
            let (revision, start) = read_token(token)?;
            let freshness = match u64::try_from(revision) {
                Ok(revision) => Freshness::Exact(revision),
                Err(_) => Freshness::Newest,
            };
            return Ok(Self { freshness, limit, start: Some(start) });
        }
        let freshness = match (version, wanted) {
            (None, _) => Freshness::Newest,
            (Some(0), _) => Freshness::Any,
            (Some(v), "Exact") => Freshness::Exact(v),
            // Upstream's legacy: a limit makes the version exact.
            (Some(v), "") if limit > 0 => Freshness::Exact(v),
            (Some(v), _) => Freshness::NotOlderThan(v),
        };
        // From the cache as it stands, pages are of no use.
        let limit = if freshness == Freshness::Any { 0 } else { limit };
        Ok(Self { freshness, limit, start: None })
    }
}

/// The numbers among the options, of which lists and watches each use one.
fn read_numbers(query: &Query) -> Result<(usize, Option<i64>), ApiError> {
    let timeout = query.integer("timeoutSeconds")?;
    let limit = query.integer("limit")?.unwrap_or(0);
    Ok((usize::try_from(limit).unwrap_or(0), timeout))
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchStart {
    /// With the present state as events; it is at least as new as the freshness says.
    State(Freshness),
    /// With what happens after the state that the freshness says.
    Now(Freshness),
    /// With what happened after a revision.
    After(u64),
}

/// Parameters of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WatchOptions {
    pub start: WatchStart,
    pub bookmarks: bool,
    /// A bookmark ends the initial events.
    pub initial_events_end: bool,
    /// Seconds; `None`: the server chooses.
    pub timeout: Option<u64>,
}

impl WatchOptions {
    /// # Errors
    /// 400 and 422 as upstream.
    pub(super) fn read(query: &Query) -> Result<Self, ApiError> {
        let (_, timeout) = read_numbers(query)?;
        let wanted = query.text("resourceVersionMatch");
        let initial = query.get("sendInitialEvents").map(crate::request::truthy);
        let path = Path::new("resourceVersionMatch");
        let mut errors = ErrorList::new();
        if initial.is_some() && wanted != "NotOlderThan" {
            let text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(FieldError::forbidden(&path, text));
        }
        if !wanted.is_empty() {
            if initial.is_none() {
                let text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.push(FieldError::forbidden(&path, text));
            }
            if wanted != "NotOlderThan" {
                errors.push(FieldError::not_supported(&path, wanted, &["NotOlderThan"]));
            }
            if !query.text("continue").is_empty() {
                let text = "resourceVersionMatch is forbidden when continue is provided";
                errors.push(FieldError::forbidden(&path, text));
            }
        }
        if !errors.is_empty() {
            return Err(invalid_options("ListOptions", errors));
        }
        let version = parse_version(query.text("resourceVersion"))?;
        let freshness = match version {
            None => Freshness::Newest,
            Some(0) => Freshness::Any,
            Some(v) => Freshness::NotOlderThan(v),
        };
        let start = match (initial, version) {
            (Some(true), _) => WatchStart::State(freshness),
            (Some(false), None) => WatchStart::Now(Freshness::Newest),
            (Some(false), Some(0)) => WatchStart::Now(Freshness::Any),
            (_, Some(v)) if v > 0 => WatchStart::After(v),
            // Upstream's oldest clients get the cache's state.
            _ => WatchStart::State(Freshness::Any),
        };
        let bookmarks = query.flag("allowWatchBookmarks");
        let timeout = timeout.and_then(|seconds| u64::try_from(seconds).ok());
        let initial_events_end = initial == Some(true) && bookmarks;
        Ok(Self { start, bookmarks, initial_events_end, timeout: timeout.filter(|t| *t > 0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_fresh_as_asked_for() {
        use Freshness::*;
        let cases = [
            ("", Newest, 0),
            ("limit=5", Newest, 5),
            ("resourceVersion=0", Any, 0),
            ("resourceVersion=0&limit=5", Any, 0),
            ("resourceVersion=7", NotOlderThan(7), 0),
            ("resourceVersion=7&limit=5", Exact(7), 5),
            ("resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan", NotOlderThan(7), 5),
            ("resourceVersion=7&resourceVersionMatch=Exact", Exact(7), 0),
        ];
        for (query, freshness, limit) in cases {
            let got = ListOptions::read(&Query::parse(query));
            assert_eq!(got, Ok(ListOptions { freshness, limit, start: None }), "{query}");
        }
        for (query, code) in [
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersion=1&resourceVersionMatch=Foo", 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", 422),
            ("sendInitialEvents=true", 422),
            ("resourceVersion=x", 400),
            ("limit=x", 400),
            ("limit=", 400),
            ("timeoutSeconds=x", 400),
            ("continue=x", 400),
        ] {
            let got = ListOptions::read(&Query::parse(query));
            assert_eq!(got.map_err(|e| e.code()), Err(code), "{query}");
        }
    }

    #[test]
    fn tokens_are_upstreams() {
        let token = continue_token(12, "ns/a");
        let json = URL_SAFE_NO_PAD.decode(&token).expect("base64");
        assert_eq!(json, br#"{"v":"meta.k8s.io/v1","rv":12,"start":"ns/a\u0000"}"#);
        assert_eq!(read_token(&token), Ok((12, "ns/a\0".to_owned())));
        for start in ["../x", "a//b", "./a"] {
            let token = serde_json::json!({"v": "meta.k8s.io/v1", "rv": 1, "start": start});
            let token = URL_SAFE_NO_PAD.encode(token.to_string());
            assert!(read_token(&token).is_err(), "{start}");
        }
        let query = Query::parse(&format!("continue={}&limit=2", continue_token(-1, "a")));
        let got = ListOptions::read(&query).expect("options");
        assert_eq!((got.freshness, got.start.as_deref()), (Freshness::Newest, Some("a\0")));
    }

    #[test]
    fn watches_begin_as_asked_for() {
        use WatchStart::*;
        let cases = [
            ("", State(Freshness::Any)),
            ("resourceVersion=0", State(Freshness::Any)),
            ("resourceVersion=7", After(7)),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", State(Freshness::Newest)),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=9",
                State(Freshness::NotOlderThan(9)),
            ),
            (
                "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=9",
                After(9),
            ),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Now(Freshness::Newest)),
        ];
        for (query, start) in cases {
            let got = WatchOptions::read(&Query::parse(query)).map(|o| o.start);
            assert_eq!(got, Ok(start), "{query}");
        }
        for (query, code) in
            [("sendInitialEvents=true", 422), ("limit=x", 400), ("resourceVersion=x", 500)]
        {
            let wrong = WatchOptions::read(&Query::parse(query));
            assert_eq!(wrong.map_err(|e| e.code()), Err(code), "{query}");
        }
    }
}
