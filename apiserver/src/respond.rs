//! Answers.

use std::io::Write as _;

use apimachinery::codec::{Schema, proto, yaml};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::Registry;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};

use crate::negotiate::{Encoding, Wanted};

/// What can go wrong while a body is sent: the connection is closed then.
pub type BodyError = anyhow::Error;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Answers of this size and above are compressed for clients that accept it.
const COMPRESS_FROM: usize = 128 * 1024;

/// A whole body in memory.
pub fn body(data: impl Into<Bytes>) -> Body {
    Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with a body of some type.
pub fn answer(code: u16, content_type: &str, data: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body(data));
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

/// The client has what it asks for already. Nothing is said of a content that is not there.
pub fn not_modified() -> Response<Body> {
    let mut response = Response::new(body(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// Plain text. That of an error must not be taken for anything else, as Go's `http.Error` says too.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = answer(code, "text/plain; charset=utf-8", text.into());
    if code >= 400 {
        no_sniffing(&mut response);
    }
    response
}

/// Says that the body is nothing but what its Content-Type says.
pub fn no_sniffing(response: &mut Response<Body>) {
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// Bytes of JSON, indented when they are for a person. The order of fields stays.
pub fn json_bytes(data: Bytes, pretty: bool) -> Bytes {
    if pretty { indent(&data).into() } else { data }
}

/// Indents JSON by two spaces, as Go does.
fn indent(json: &[u8]) -> Vec<u8> {
    fn line(out: &mut Vec<u8>, depth: usize) {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    }
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut in_text, mut escaped, mut opened) = (0usize, false, false, false);
    for &byte in json {
        if in_text {
            out.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(byte, b'}' | b']');
        if opened && !closes {
            depth += 1;
            line(&mut out, depth);
        }
        match byte {
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            _ if closes => {
                if !opened {
                    depth = depth.saturating_sub(1);
                    line(&mut out, depth);
                }
                out.push(byte);
            }
            _ => out.push(byte),
        }
        in_text = byte == b'"';
        opened = matches!(byte, b'{' | b'[');
    }
    out
}

/// An object that was made in memory, in what the client wants. Kinds without protobuf come as
/// JSON.
pub fn object(code: u16, wanted: &Wanted, object: &Value) -> Response<Body> {
    match encode(wanted, object) {
        Ok((media_type, data)) => answer(code, media_type, data),
        Err(error) => failure(&error, wanted),
    }
}

/// Encodes an object that was made in memory.
///
/// # Errors
/// The object does not fit its schema.
pub fn encode(wanted: &Wanted, object: &Value) -> Result<(&'static str, Bytes), ApiError> {
    if wanted.encoding == Encoding::Protobuf
        && let Some(schema) = builtin_schema(object)
    {
        let data = proto::encode_enveloped(schema, object)
            .map_err(|e| ApiError::Internal(e.to_string()))?;
        return Ok((Encoding::Protobuf.media_type(), data.into()));
    }
    if wanted.encoding == Encoding::Yaml {
        return Ok((Encoding::Yaml.media_type(), yaml::encode(object).into()));
    }
    let data = serde_json::to_vec(object).map_err(|e| ApiError::Internal(e.to_string()))?;
    let mut data = if wanted.pretty { indent(&data) } else { data };
    if !wanted.pretty {
        data.push(b'\n');
    }
    Ok((Encoding::Json.media_type(), data.into()))
}

/// The schema of a built-in object by its own apiVersion and kind.
pub fn builtin_schema(value: &Value) -> Option<Schema<'static>> {
    let registry = Registry::builtin();
    let (version, kind) =
        (object::str_at(value, &["apiVersion"]), object::str_at(value, &["kind"]));
    let gvk = GroupVersionKind::from_api_version(version, kind);
    let meta = || registry.by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    let message = registry.kind(&gvk).or_else(meta)?;
    Some(Schema { registry, message })
}

/// The answer to a request that failed.
pub fn failure(error: &ApiError, wanted: &Wanted) -> Response<Body> {
    let status = error.status();
    let mut response = match encode(wanted, &status) {
        Ok((media_type, data)) => answer(error.code(), media_type, data),
        Err(_) => text(error.code(), error.message()),
    };
    let retry = object::int_at(&status, &["details", "retryAfterSeconds"]).unwrap_or(0);
    let headers = response.headers_mut();
    if retry > 0 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Adds a `Warning` header for each text.
pub fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    let mut seen: Vec<&str> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning.as_str()) {
            continue;
        }
        seen.push(warning);
        let mut quoted = String::from("299 - \"");
        for c in warning.chars() {
            match c {
                '"' | '\\' => {
                    quoted.push('\\');
                    quoted.push(c);
                }
                c if c.is_control() => quoted.push(' '),
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            headers.append(header::WARNING, value);
        }
    }
}

/// Whether a client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).any(|text| {
        text.split(',').any(|part| {
            let mut pieces = part.split(';').map(str::trim);
            pieces.next() == Some("gzip") && !pieces.any(|p| p == "q=0" || p == "q=0.0")
        })
    })
}

/// Compresses a large body for a client that takes gzip.
pub async fn compressed(gzip: bool, mut response: Response<Body>, data: Bytes) -> Response<Body> {
    if !gzip || data.len() < COMPRESS_FROM {
        *response.body_mut() = body(data);
        return response;
    }
    let packed = tokio::task::spawn_blocking({
        let data = data.clone();
        move || {
            let level = flate2::Compression::fast();
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::with_capacity(data.len() / 6), level);
            encoder.write_all(&data)?;
            encoder.finish()
        }
    });
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    match packed.await {
        Ok(Ok(packed)) => {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            *response.body_mut() = body(packed);
        }
        _ => *response.body_mut() = body(data),
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_as_go_does() {
        let json = br#"{"a":{},"b":[],"c":[1,{"d":"x:{,\"}"}],"e":{"f":null}}"#;
        let want = "{\n  \"a\": {},\n  \"b\": [],\n  \"c\": [\n    1,\n    {\n      \"d\": \"x:{,\\\"}\"\n    }\n  ],\n  \"e\": {\n    \"f\": null\n  }\n}";
        assert_eq!(String::from_utf8_lossy(&indent(json)), want);
    }

    #[test]
    fn warnings_are_quoted_and_said_once() {
        let mut headers = HeaderMap::new();
        warn(&mut headers, &["unknown field \"a\"".into(), "b".into(), "b".into()]);
        let got: Vec<_> =
            headers.get_all("warning").iter().map(|v| v.to_str().expect("text")).collect();
        assert_eq!(got, [r#"299 - "unknown field \"a\"""#, r#"299 - "b""#]);
    }

    #[test]
    fn gzip_is_a_matter_of_taste() {
        for (text, want) in
            [("gzip", true), ("deflate, gzip;q=1.0", true), ("gzip;q=0", false), ("br", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert("accept-encoding", HeaderValue::from_static(text));
            assert_eq!(accepts_gzip(&headers), want, "{text}");
        }
    }
}
