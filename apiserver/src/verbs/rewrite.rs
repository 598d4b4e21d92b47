//! Answers of proxied backends, changed so that a browser stays within the proxy: root-relative
//! links of HTML pages and redirections get the proxy's path before them (upstream:
//! `apimachinery/util/proxy/transport.go`).

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{self, HeaderValue};
use http::{Response, Uri};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use lol_html::send::{HtmlRewriter, Settings};
use lol_html::{MemorySettings, element};
use parking_lot::Mutex;

use crate::respond::Body;

/// What a page's rewriter may hold, in bytes: a tag and its attributes at a time.
const MEMORY: usize = 1 << 20;

/// Attributes that are addresses, by element (HTML, and what older versions of it had).
fn addresses(element: &str) -> &'static [&'static str] {
    match element {
        "a" | "area" | "base" | "link" => &["href"],
        "applet" => &["codebase"],
        "audio" | "embed" | "script" | "source" | "track" => &["src"],
        "blockquote" | "del" | "ins" | "q" => &["cite"],
        "body" => &["background"],
        "button" => &["formaction"],
        "command" => &["icon"],
        "form" => &["action"],
        "frame" | "iframe" => &["longdesc", "src"],
        "head" => &["profile"],
        "html" => &["manifest"],
        "img" => &["longdesc", "src", "usemap"],
        "input" => &["formaction", "src", "usemap"],
        "object" => &["classid", "codebase", "data", "usemap"],
        "video" => &["poster", "src"],
        _ => &[],
    }
}

/// Where a backend appears to its clients.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The backend's own host.
    pub host: String,
    /// The proxy's path, without a slash at its end.
    pub base: String,
}

impl Place {
    /// From the path that was asked for and the part of it that the backend is asked for.
    pub fn new(host: &str, asked: &str, proxied: &str) -> Self {
        let base = asked.trim_end_matches('/');
        let proxied = proxied.trim_end_matches('/');
        let base = base.strip_suffix(proxied).unwrap_or(base).trim_end_matches('/');
        Self { host: host.to_owned(), base: base.to_owned() }
    }

    /// The address within the proxy; `None`: it stays as it is, being relative, another host's, or
    /// within the proxy already.
    fn of(&self, address: &str) -> Option<String> {
        let uri: Uri = address.parse().ok()?;
        let elsewhere = uri.host().is_some_and(|host| host != self.host);
        let path = uri.path_and_query()?.as_str();
        let relative = uri.host().is_none() && !address.starts_with('/');
        if elsewhere || relative || path.starts_with(&self.base) {
            return None;
        }
        Some(format!("{}{path}", self.base))
    }

    /// Changes an answer.
    pub fn rewrite(self, response: &mut Response<Body>) {
        let headers = response.headers_mut();
        let location = headers.get(header::LOCATION).and_then(|v| v.to_str().ok());
        if let Some(location) = location.and_then(|l| self.of(l))
            && let Ok(value) = HeaderValue::from_str(&location)
        {
            headers.insert(header::LOCATION, value);
        }
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let html = kind.split(';').next().is_some_and(|k| k.trim() == "text/html");
        // What is compressed is passed on as it is.
        if !html || headers.contains_key(header::CONTENT_ENCODING) {
            return;
        }
        headers.remove(header::CONTENT_LENGTH);
        let body = std::mem::take(response.body_mut());
        *response.body_mut() = page(self, body);
    }
}

/// A page, changed as it passes.
fn page(place: Place, body: Body) -> Body {
    let out = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&out);
    let links = element!("*", move |element| {
        for name in addresses(&element.tag_name()) {
            if let Some(there) = element.get_attribute(name).and_then(|a| place.of(&a)) {
                element.set_attribute(name, &there)?;
            }
        }
        Ok(())
    });
    let memory = MemorySettings::new().with_max_allowed_memory_usage(MEMORY);
    let settings = Settings::new_send()
        .append_element_content_handler(links)
        .with_memory_settings(memory)
        .with_strict(false);
    let rewriter =
        HtmlRewriter::new(settings, move |chunk: &[u8]| sink.lock().extend_from_slice(chunk));
    let changed = futures::stream::unfold(
        (body.into_data_stream(), Some(rewriter)),
        move |(mut data, rewriter)| {
            let out = Arc::clone(&out);
            async move {
                let mut rewriter = rewriter?;
                let done = match data.next().await {
                    Some(Ok(bytes)) => rewriter.write(&bytes).map(|()| Some(rewriter)),
                    Some(Err(error)) => return Some((Err(error), (data, None))),
                    None => rewriter.end().map(|()| None),
                };
                let (result, next) = match done {
                    Ok(next) => (Ok(Bytes::from(std::mem::take(&mut *out.lock()))), next),
                    Err(error) => (Err(error.into()), None),
                };
                Some((result, (data, next)))
            }
        },
    );
    StreamBody::new(changed.map(|part| part.map(Frame::data))).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/api/v1/namespaces/n/pods/p/proxy";

    #[test]
    fn addresses_within_the_proxy() {
        for (asked, proxied) in [("/", "/"), ("/a/b", "/a/b"), ("/a/b/", "/a/b"), ("", "")] {
            let place = Place::new("10.0.0.1", &format!("{BASE}{asked}"), proxied);
            assert_eq!(place.base, BASE, "{asked}");
        }
        let place = Place::new("10.0.0.1", BASE, "");
        let within = |rest: &str| Some(format!("{BASE}{rest}"));
        for (address, wanted) in [
            ("/x/?q=1", within("/x/?q=1")),
            ("http://10.0.0.1:80/x", within("/x")),
            ("http://else/x", None),
            ("x/y", None),
            ("#here", None),
            (&format!("{BASE}/x"), None),
        ] {
            assert_eq!(place.of(address), wanted, "{address}");
        }
    }

    #[tokio::test]
    async fn pages_are_changed_as_they_pass() {
        let parts = ["<a hr", "ef=\"/x\">x</a><img src='y'>", "<p href=/z>&amp;"];
        let stream = futures::stream::iter(parts.map(|p| Ok(Frame::data(Bytes::from(p)))));
        let mut response: Response<Body> = Response::new(StreamBody::new(stream).boxed_unsync());
        let kind = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Place::new("h", BASE, "").rewrite(&mut response);
        let text = response.into_body().collect().await.expect("a page").to_bytes();
        let wanted = format!("<a href=\"{BASE}/x\">x</a><img src='y'><p href=/z>&amp;");
        assert_eq!(text, wanted);
    }
}
