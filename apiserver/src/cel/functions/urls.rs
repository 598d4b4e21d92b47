//! URLs, as Go's `url.ParseRequestURI` reads them.

use std::sync::Arc;

use indexmap::IndexMap;

use super::Result;
use crate::cel::value::{Key, Val};

/// A URL in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cel) struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

/// # Errors
/// Why it is none.
pub(in crate::cel) fn parse(text: &str) -> std::result::Result<Url, String> {
    let quoted = apimachinery::field::quote(text);
    let bad =
        |why: &str| format!("URL parse error during conversion from string: parse {quoted}: {why}");
    if text.is_empty() {
        return Err(bad("empty url"));
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return Err(bad("net/url: invalid control character in URL"));
    }
    let (before, query) = text.split_once('?').unwrap_or((text, ""));
    let scheme_end = before.find(':').filter(|end| {
        let scheme = before.get(..*end).unwrap_or("");
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    });
    let (scheme, rest) = match scheme_end {
        Some(end) => {
            let (scheme, rest) = before.split_at(end);
            (scheme.to_ascii_lowercase(), rest.trim_start_matches(':'))
        }
        None => (String::new(), before),
    };
    if !rest.starts_with('/') {
        return Err(bad("invalid URI for request"));
    }
    let (host, path) = match rest.strip_prefix("//") {
        Some(after) if !scheme.is_empty() => {
            let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            (host.to_owned(), path.to_owned())
        }
        _ => (String::new(), rest.to_owned()),
    };
    if host.contains(' ') {
        return Err(bad("invalid character \" \" in host name"));
    }
    let port = host.rsplit_once(':').filter(|(name, _)| !name.contains(':') || name.ends_with(']'));
    if port.is_some_and(|(_, port)| !port.chars().all(|c| c.is_ascii_digit())) {
        return Err(bad("invalid port after host"));
    }
    let mut escapes = path.split('%').skip(1);
    let hex = |part: &str| part.len() >= 2 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    if !escapes.all(hex) {
        return Err(bad("invalid URL escape"));
    }
    Ok(Url { scheme, host, path, query: query.to_owned() })
}

impl Url {
    /// Name and port.
    fn host_and_port(&self) -> (&str, &str) {
        if let Some(rest) = self.host.strip_prefix('[') {
            let (name, after) = rest.split_once(']').unwrap_or((rest, ""));
            return (name, after.trim_start_matches(':'));
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }
}

pub(super) fn call<'a>(name: &str, url: &Url) -> Option<Result<Val<'a>>> {
    const PATH: &percent_encoding::AsciiSet =
        &percent_encoding::CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');
    Some(Ok(match name {
        "getScheme" => Val::str(url.scheme.as_str()),
        "getHost" => Val::str(url.host.as_str()),
        "getHostname" => Val::str(url.host_and_port().0),
        "getPort" => Val::str(url.host_and_port().1),
        "getEscapedPath" => {
            let escaped = percent_encoding::utf8_percent_encode(&url.path, PATH);
            Val::str(escaped.to_string())
        }
        "getQuery" => {
            let mut map: IndexMap<Key, Vec<String>> = IndexMap::new();
            for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let plain = |text: &str| {
                    let text = text.replace('+', " ");
                    percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
                };
                map.entry(Key::Str(plain(key).into())).or_default().push(plain(value));
            }
            let lists = map.into_iter().map(|(k, v)| (k, Val::strings(v))).collect();
            Val::Map(Arc::new(lists))
        }
        _ => return None,
    }))
}
