//! Connections to elsewhere: one HTTP exchange passed on, or bytes both ways after an upgrade.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::ApiError;
use base64::Engine as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Call, RequestBody};
use crate::respond::{Body, body};

/// Making a connection may take so long.
const CONNECT: Duration = Duration::from_secs(30);
/// Headers of one hop.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Where a connection goes.
pub(crate) struct Target {
    pub host: String,
    pub port: u16,
    /// `None`: plain.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Path and query.
    pub path: String,
}

/// How a request is made to someone who trusts us to speak for users.
#[derive(Default)]
pub(crate) struct Identity {
    /// Whom the other's certificate must name; else the host.
    pub server_name: Option<String>,
    /// Headers in the place of all that begin as they do: `X-Remote-*`.
    pub headers: HeaderMap,
}

pub(crate) trait Stream2: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream2 for T {}

fn unreachable(target: &Target, why: &dyn std::fmt::Display) -> ApiError {
    ApiError::ServiceUnavailable(format!(
        "error trying to reach service: dial tcp {}:{}: {why}",
        target.host, target.port
    ))
}

/// A connection to a target, whose certificate names it by its host, or as said.
///
/// # Errors
/// 503
pub(crate) async fn dial(
    target: &Target,
    server_name: Option<&str>,
) -> Result<Box<dyn Stream2>, ApiError> {
    let host = target.host.trim_matches(['[', ']']);
    let connecting = TcpStream::connect((host, target.port));
    let tcp = match tokio::time::timeout(CONNECT, connecting).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(unreachable(target, &error)),
        Err(_) => return Err(unreachable(target, &"i/o timeout")),
    };
    let _ = tcp.set_nodelay(true);
    let Some(config) = &target.tls else { return Ok(Box::new(tcp)) };
    let name = server_name.unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|e| unreachable(target, &e))?;
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    match tokio::time::timeout(CONNECT, connector.connect(name, tcp)).await {
        Ok(Ok(tls)) => Ok(Box::new(tls)),
        Ok(Err(error)) => Err(unreachable(target, &error)),
        Err(_) => Err(unreachable(target, &"TLS handshake timeout")),
    }
}

/// Whether a request asks for another protocol on its connection.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|text| text.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
        && headers.contains_key(header::UPGRADE)
}

pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers)
        && headers
            .get(header::UPGRADE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|text| text.eq_ignore_ascii_case("websocket"))
}

/// Passes a request on and its answer back; after an upgrade, bytes both ways.
///
/// # Errors
/// 503 when the target cannot be reached.
pub(super) async fn forward(
    call: &mut Call,
    target: &Target,
    request_body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    forward_as(call, target, &Identity::default(), request_body).await
}

/// As [`forward`], with the user in headers.
///
/// # Errors
/// As [`forward`].
pub(crate) async fn forward_as(
    call: &mut Call,
    target: &Target,
    identity: &Identity,
    request_body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let stream = dial(target, identity.server_name.as_deref()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| unreachable(target, &e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    let upgrade = is_upgrade(&call.parts.headers);
    let mut request = outgoing(call, target, upgrade, request_body)?;
    if !identity.headers.is_empty() {
        let headers = request.headers_mut();
        // Nobody says for himself who he is.
        let claimed: Vec<HeaderName> =
            headers.keys().filter(|n| n.as_str().starts_with("x-remote-")).cloned().collect();
        claimed.into_iter().for_each(|name| {
            headers.remove(name);
        });
        for (name, value) in &identity.headers {
            headers.append(name, value.clone());
        }
    }
    let mut answer = sender.send_request(request).await.map_err(|e| unreachable(target, &e))?;
    if upgrade && answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let theirs = hyper::upgrade::on(&mut answer);
        let Some(ours) = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
            return Err(ApiError::BadRequest("the connection cannot be upgraded".to_owned()));
        };
        let draining = call.api.draining.clone();
        tokio::spawn(async move {
            let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else {
                tracing::debug!("an upgrade was not completed");
                return;
            };
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            tokio::select! {
                () = draining.cancelled() => {}
                // Either end may go at any time.
                _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
            }
        });
        let mut response = Response::new(body(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        return Ok(response);
    }
    let (parts, incoming) = answer.into_parts();
    let mut response = Response::new(incoming.map_err(Into::into).boxed_unsync());
    *response.status_mut() = parts.status;
    for (name, value) in parts.headers.iter().filter(|(name, _)| !HOP.contains(name)) {
        response.headers_mut().append(name, value.clone());
    }
    Ok(response)
}

fn outgoing(
    call: &Call,
    target: &Target,
    upgrade: bool,
    request_body: RequestBody,
) -> Result<Request<RequestBody>, ApiError> {
    let uri: Uri = target
        .path
        .parse()
        .map_err(|e| ApiError::BadRequest(format!("invalid path {:?}: {e}", target.path)))?;
    let mut request = Request::new(request_body);
    *request.method_mut() = call.parts.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in &call.parts.headers {
        let own = HOP.contains(name)
            || *name == header::HOST
            || *name == header::AUTHORIZATION
            || name.as_str().starts_with("impersonate-");
        if !own {
            headers.append(name, value.clone());
        }
    }
    if let Ok(host) = HeaderValue::from_str(&format!("{}:{}", target.host, target.port)) {
        headers.insert(header::HOST, host);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = call.parts.headers.get(header::UPGRADE) {
            headers.insert(header::UPGRADE, protocol.clone());
        }
    }
    Ok(request)
}

/// What RFC 6455 has servers hash.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Frames that a client of a watch sends are read and dropped; one larger ends the watch.
const MAX_CLIENT_FRAME: u64 = 64 * 1024;

/// One message to a client.
pub(super) enum Message {
    Text(Bytes),
    Binary(Bytes),
}

/// Messages to a client, one after another.
pub(super) type Messages = Pin<Box<dyn Stream<Item = Message> + Send>>;

/// Sends a watch's events as WebSocket messages, one event in each.
pub(super) fn watch_over_websocket(
    mut call: Call,
    events: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
) -> Result<Response<Body>, ApiError> {
    // Of several protocols the first that is not a token is taken.
    let chosen = protocols(&call.parts.headers).next();
    // A chunk holds whole lines; each is a message.
    let messages = events.flat_map(|chunk| {
        let lines: Vec<Message> = chunk
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| Message::Text(chunk.slice_ref(line)))
            .collect();
        futures::stream::iter(lines)
    });
    over_websocket(&mut call, chosen, Box::pin(messages))
}

/// The subprotocols that a client offers, those that carry its token left out.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let offered = super::header(headers, "sec-websocket-protocol").to_owned();
    let offered: Vec<String> = offered
        .split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty() && !p.starts_with("base64url.bearer.authorization.k8s.io."))
        .map(str::to_owned)
        .collect();
    offered.into_iter()
}

/// How a log goes through a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogProtocol {
    name: Option<String>,
    base64: bool,
}

impl LogProtocol {
    /// What a client that asked for a WebSocket gets.
    ///
    /// # Errors
    /// 403: it offers only what logs are not sent in.
    pub(super) fn choose(headers: &HeaderMap) -> Result<Self, ApiError> {
        const KNOWN: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];
        let offered: Vec<String> = protocols(headers).collect();
        let known = offered.iter().find(|p| KNOWN.contains(&p.as_str())).cloned();
        if known.is_none() && !offered.is_empty() {
            return Err(ApiError::Other {
                code: 403,
                reason: "Forbidden".to_owned(),
                message: format!(
                    "requested protocol(s) are not supported: [{}]; supports [ {}]",
                    offered.join(" "),
                    KNOWN.join(" ")
                ),
            });
        }
        let base64 = known.as_deref() == Some("base64.binary.k8s.io");
        Ok(Self { name: known, base64 })
    }

    fn message(&self, data: Bytes) -> Message {
        match self.base64 {
            true => {
                let text = base64::engine::general_purpose::STANDARD.encode(&data);
                Message::Text(text.into())
            }
            false => Message::Binary(data),
        }
    }
}

/// Sends the body of an answer as WebSocket messages, after an empty one that says that it begins.
pub(super) fn log_over_websocket(
    call: &mut Call,
    protocol: LogProtocol,
    log: Body,
) -> Result<Response<Body>, ApiError> {
    let name = protocol.name.clone();
    let begin = futures::stream::iter([Bytes::new()]);
    let data = log.into_data_stream().take_while(|read| {
        let good = read.is_ok();
        async move { good }
    });
    let data = begin.chain(data.filter_map(|read| async move { read.ok() }));
    let messages = data.map(move |data| protocol.message(data));
    over_websocket(call, name, Box::pin(messages))
}

/// Answers an upgrade, and sends messages on the connection until there are no more, or the
/// client goes.
fn over_websocket(
    call: &mut Call,
    chosen: Option<String>,
    messages: Messages,
) -> Result<Response<Body>, ApiError> {
    let key = call.header("sec-websocket-key").to_owned();
    let Some(upgraded) = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
        return Err(ApiError::BadRequest("the connection cannot be upgraded".to_owned()));
    };
    let draining = call.api.draining.clone();
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => tokio::select! {
                () = draining.cancelled() => {}
                () = send_messages(TokioIo::new(upgraded), messages) => {}
            },
            Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
        }
    });
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(WEBSOCKET_GUID.as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(digest.finish());
    let mut response = Response::new(body(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(Ok(chosen)) = chosen.map(|name| HeaderValue::from_str(&name)) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
    }
    Ok(response)
}

async fn send_messages(stream: impl AsyncRead + AsyncWrite, mut messages: Messages) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        while let Some(message) = messages.next().await {
            let mut out = BytesMut::new();
            match message {
                Message::Text(data) => put_frame(1, &data, &mut out),
                Message::Binary(data) => put_frame(2, &data, &mut out),
            }
            if writer.write_all(&out).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        let mut close = BytesMut::new();
        put_frame(8, &1000u16.to_be_bytes(), &mut close);
        let _ = writer.write_all(&close).await;
        let _ = writer.flush().await;
    };
    let reading = async { while skip_frame(&mut reader).await {} };
    tokio::select! {
        () = sending => {}
        () = reading => {}
    }
}

fn put_frame(opcode: u8, payload: &[u8], out: &mut BytesMut) {
    out.put_u8(0x80 | opcode);
    match payload.len() {
        short @ 0..=125 => out.put_u8(short as u8),
        medium @ 126..=0xffff => {
            out.put_u8(126);
            out.put_u16(medium as u16);
        }
        long => {
            out.put_u8(127);
            out.put_u64(long as u64);
        }
    }
    out.put_slice(payload);
}

/// Reads one frame; false: the client has closed, or does what it should not.
async fn skip_frame(reader: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut head = [0; 2];
    if reader.read_exact(&mut head).await.is_err() || head[0] & 0x0f == 8 {
        return false;
    }
    let length = match head[1] & 0x7f {
        126 => reader.read_u16().await.map(u64::from),
        127 => reader.read_u64().await,
        short => Ok(u64::from(short)),
    };
    let mask = if head[1] & 0x80 != 0 { 4 } else { 0 };
    let Ok(length) = length else { return false };
    if length > MAX_CLIENT_FRAME {
        return false;
    }
    let wanted = length + mask;
    let copied = tokio::io::copy(&mut reader.take(wanted), &mut tokio::io::sink()).await;
    copied.is_ok_and(|copied| copied == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_have_their_protocols() {
        let offered = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(text));
            LogProtocol::choose(&headers).map_err(|e| e.message())
        };
        let chosen = |name: &str, base64| Ok(LogProtocol { name: Some(name.to_owned()), base64 });
        assert_eq!(LogProtocol::choose(&HeaderMap::new()).map(|p| p.name), Ok(None));
        assert_eq!(offered("x, binary.k8s.io"), chosen("binary.k8s.io", false));
        assert_eq!(offered("base64.binary.k8s.io"), chosen("base64.binary.k8s.io", true));
        assert!(offered("v4.channel.k8s.io").is_err());
        let Ok(protocol) = offered("base64.binary.k8s.io") else { panic!("a protocol") };
        let Message::Text(text) = protocol.message(Bytes::from_static(b"abc")) else {
            panic!("text")
        };
        assert_eq!(&text[..], b"YWJj");
    }

    #[tokio::test]
    async fn messages_are_sent_and_the_end_is_told() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let messages = [Message::Binary(Bytes::new()), Message::Binary(Bytes::from_static(b"x"))];
        send_messages(ours, Box::pin(futures::stream::iter(messages))).await;
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("read");
        assert_eq!(read, [0x82, 0, 0x82, 1, b'x', 0x88, 2, 0x03, 0xe8]);
    }

    #[tokio::test]
    async fn frames_are_written_and_skipped() {
        for length in [0usize, 125, 126, 70_000] {
            let mut out = BytesMut::new();
            put_frame(1, &vec![7; length], &mut out);
            put_frame(8, b"", &mut out);
            let mut reader = &out[..];
            let small = length as u64 <= MAX_CLIENT_FRAME;
            assert_eq!(skip_frame(&mut reader).await, small, "{length}");
            if small {
                assert!(!skip_frame(&mut reader).await);
            }
        }
    }
}
