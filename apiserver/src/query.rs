//! Query parameters.

use std::borrow::Cow;

use apimachinery::status::ApiError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Parameters in the order of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl Query {
    /// Reads `a=b&c=d`. What cannot be decoded is taken as it stands.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value of a parameter, or the empty text.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or("")
    }

    /// A number; one that is not given is none.
    ///
    /// # Errors
    /// 400 in Go's words.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|error: std::num::ParseIntError| {
            use std::num::IntErrorKind::{NegOverflow, PosOverflow};
            let why = match error.kind() {
                PosOverflow | NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            ApiError::BadRequest(format!("strconv.ParseInt: parsing {text:?}: {why}"))
        })
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All pairs.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A bool; absent is false.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(crate::request::truthy)
    }

    /// Adds a pair.
    pub fn push(&mut self, key: &str, value: &str) {
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// The text of the query, encoded.
    pub fn encode(&self) -> String {
        let pairs: Vec<String> = self
            .pairs()
            .map(|(k, v)| {
                format!("{}={}", utf8_percent_encode(k, KEPT), utf8_percent_encode(v, KEPT))
            })
            .collect();
        pairs.join("&")
    }
}

fn decode(text: &str) -> String {
    let spaced: Cow<'_, str> =
        if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_and_encoded() {
        let query = Query::parse("a=b%3Dc&&d&a=x+y");
        assert_eq!(query.get("a"), Some("b=c"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["b=c", "x y"]);
        assert_eq!(query.get("d"), Some(""));
        assert!(query.flag("d") && !query.flag("e"));
        assert_eq!(query.encode(), "a=b%3Dc&d=&a=x%20y");
    }
}
