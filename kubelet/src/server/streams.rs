//! Exec, attach and port-forward: streams between a client and the runtime's streaming server.
//!
//! A client that speaks SPDY is connected through, byte by byte. One that speaks WebSocket is
//! translated: its channels become SPDY streams.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use component::serving::{Body, body, text};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::channels::Protocol;
use super::spdy::{self, Frame, Opener, Reader};

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// Channels of the WebSocket protocols, in the order of their numbers.
const CHANNELS: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];
/// In v5, a message that closes the channel that it names.
const CLOSE: u8 = 255;
/// The protocol of port-forward.
const PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Which streams an exec or attach has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wanted {
    /// From the query: `input`, `output`, `error`, `tty`, or the API's names for them.
    ///
    /// # Errors
    /// None is asked for.
    pub fn of(query: &[(String, String)]) -> anyhow::Result<Self> {
        let on = |names: [&str; 2]| {
            query.iter().any(|(k, v)| names.contains(&k.as_str()) && (v == "1" || v == "true"))
        };
        let tty = on(["tty", "tty"]);
        let wanted = Self {
            stdin: on(["input", "stdin"]),
            stdout: on(["output", "stdout"]),
            // A terminal has one output.
            stderr: on(["error", "stderr"]) && !tty,
            tty,
        };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            bail!("you must specify at least 1 of stdin, stdout, stderr");
        }
        Ok(wanted)
    }

    fn streams(self) -> Vec<&'static str> {
        let all = [
            ("error", true),
            ("stdin", self.stdin),
            ("stdout", self.stdout),
            ("stderr", self.stderr),
            ("resize", self.tty),
        ];
        all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok());
    upgrade.is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
}

/// The subprotocols that a client offers.
fn offered(headers: &HeaderMap) -> Vec<String> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    lists
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_owned())
        .collect()
}

/// Connects a client's upgrade request to `url`. `wanted` is absent for port-forward.
pub async fn proxy(
    request: Request<Incoming>,
    url: &str,
    wanted: Option<Wanted>,
    idle: Duration,
) -> Response<Body> {
    let result = match is_websocket(request.headers()) {
        true => websocket(request, url, wanted, idle).await,
        false => through(request, url, idle).await,
    };
    result.unwrap_or_else(|error| {
        tracing::debug!(error = format!("{error:#}"), "stream not connected");
        text(502, format!("{error:#}"))
    })
}

/// Opens a SPDY connection to the runtime's server. The response says what it agreed to.
async fn dial(url: &str, headers: &HeaderMap) -> anyhow::Result<Response<Incoming>> {
    let uri: Uri = url.parse().context("streaming URL of the runtime")?;
    let host = uri.host().context("streaming URL of the runtime has no host")?;
    let port = uri.port_u16().unwrap_or(80);
    let connect = TcpStream::connect((host.trim_matches(['[', ']']), port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await??;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::post(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .body(Empty::<Bytes>::new())?;
    for value in headers.get_all(STREAM_PROTOCOL) {
        request.headers_mut().append(STREAM_PROTOCOL, value.clone());
    }
    Ok(sender.send_request(request).await?)
}

async fn through(
    request: Request<Incoming>,
    url: &str,
    idle: Duration,
) -> anyhow::Result<Response<Body>> {
    if request.headers().get(header::UPGRADE).is_none() {
        return Ok(text(400, "unable to upgrade: missing upgrade headers in request"));
    }
    let upstream = dial(url, request.headers()).await?;
    if upstream.status() != StatusCode::SWITCHING_PROTOCOLS {
        bail!("the runtime's streaming server answered {}", upstream.status());
    }
    let mut response = Response::new(body(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = upstream.headers().clone();
    tokio::spawn(async move {
        let both = tokio::try_join!(hyper::upgrade::on(request), hyper::upgrade::on(upstream));
        let Ok((client, runtime)) = both else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        let (mut watched, quiet) = super::idle::watch(&mut runtime);
        tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut client, &mut watched) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "stream ended");
                }
            }
            () = quiet.for_long(idle) => tracing::debug!("stream ended: it was idle"),
        }
    });
    Ok(response)
}

async fn websocket(
    request: Request<Incoming>,
    url: &str,
    wanted: Option<Wanted>,
    idle: Duration,
) -> anyhow::Result<Response<Body>> {
    let offers = offered(request.headers());
    let chosen = match wanted {
        Some(_) => Protocol::choose(&offers),
        None => Protocol::choose(&[]).filter(|_| offers.iter().any(|o| o == PORT_FORWARD)),
    };
    let Some(protocol) = chosen else {
        return Ok(text(
            400,
            format!("unable to upgrade: none of the protocols {offers:?} is supported"),
        ));
    };
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return Ok(text(400, "unable to upgrade: Sec-WebSocket-Key is missing"));
    };
    let accept = derive_accept_key(key.as_bytes());
    let mut headers = HeaderMap::new();
    let inner = if wanted.is_some() { "v4.channel.k8s.io" } else { "portforward.k8s.io" };
    headers.insert(STREAM_PROTOCOL, http::HeaderValue::from_static(inner));
    let upstream = dial(url, &headers).await?;
    if upstream.status() != StatusCode::SWITCHING_PROTOCOLS {
        bail!("the runtime's streaming server answered {}", upstream.status());
    }
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("Sec-WebSocket-Accept", accept);
    if let Some(name) = protocol.name.or(wanted.is_none().then_some(PORT_FORWARD)) {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    let response = response.body(body(Bytes::new()))?;
    tokio::spawn(async move {
        let both = tokio::try_join!(hyper::upgrade::on(request), hyper::upgrade::on(upstream));
        let Ok((client, runtime)) = both else { return };
        let client =
            WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
        let (runtime, quiet) = super::idle::watch(TokioIo::new(runtime));
        let talk = async {
            match wanted {
                Some(wanted) => translate(client, runtime, wanted, protocol).await,
                None => tunnel(client, runtime).await,
            }
        };
        let ended = tokio::select! {
            ended = talk => ended,
            () = quiet.for_long(idle) => Err(anyhow::anyhow!("it was idle")),
        };
        if let Err(error) = ended {
            tracing::debug!(error = format!("{error:#}"), "stream ended");
        }
    });
    Ok(response)
}

type Client = WebSocketStream<TokioIo<Upgraded>>;
type Runtime = super::idle::Watched<TokioIo<Upgraded>>;

/// Channels to streams and back.
async fn translate(
    client: Client,
    runtime: Runtime,
    wanted: Wanted,
    protocol: Protocol,
) -> anyhow::Result<()> {
    let (read, mut write) = tokio::io::split(runtime);
    let (mut to_client, mut from_client) = client.split();
    let mut reader = Reader::new(read);
    let mut opener = Opener::default();
    let mut ids = [None::<u32>; CHANNELS.len()];
    for (index, name) in wanted.streams().into_iter().enumerate() {
        let id = index as u32 * 2 + 1;
        write.write_all(&opener.open(id, &[("streamtype", name)])).await?;
        if let Some(channel) = CHANNELS.iter().position(|c| *c == name) {
            ids[channel] = Some(id);
        }
    }
    write.flush().await?;
    // Pings are answered by whoever writes.
    let (pings, mut pinged) = tokio::sync::mpsc::channel::<Bytes>(8);
    let to_runtime = async {
        loop {
            tokio::select! {
                Some(ping) = pinged.recv() => write.write_all(&spdy::pong(&ping)).await?,
                message = from_client.next() => match message {
                    Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => {
                        let Some((channel, data)) = protocol.decode(&message) else { continue };
                        let closes = protocol.closes && channel == CLOSE;
                        let channel = if closes { data.first().copied().unwrap_or(CLOSE) } else { channel };
                        // Clients write to stdin and resize only.
                        let Some(Some(id)) = ids.get(usize::from(channel)) else { continue };
                        match closes {
                            true => write.write_all(&spdy::data(*id, &[], true)).await?,
                            false => spdy::write(&mut write, *id, &data).await?,
                        }
                    }
                    Some(Ok(Message::Close(_))) | None => return anyhow::Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                },
            }
        }
    };
    let to_browser = async {
        for channel in [1u8, 2, 3].into_iter().filter(|c| ids[usize::from(*c)].is_some()) {
            // An empty message opens a channel, as upstream does.
            if let Some(message) = protocol.encode(channel, &[]) {
                to_client.send(message).await?;
            }
        }
        let mut open: Vec<u32> = [1usize, 2, 3].iter().filter_map(|c| ids[*c]).collect();
        while !open.is_empty() {
            match reader.next().await? {
                Some(Frame::Data { stream, data, fin }) => {
                    if let Some(channel) = ids.iter().position(|id| *id == Some(stream))
                        && !data.is_empty()
                        && let Some(message) = protocol.encode(channel as u8, &data)
                    {
                        to_client.send(message).await?;
                    }
                    if fin {
                        open.retain(|id| *id != stream);
                    }
                }
                Some(Frame::Reset { stream }) => open.retain(|id| *id != stream),
                Some(Frame::Ping(id)) => {
                    let _ = pings.try_send(id);
                }
                Some(Frame::Other) => {}
                Some(Frame::Goaway) | None => break,
            }
        }
        to_client.send(normal_closure()).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = to_runtime => ended,
        ended = to_browser => ended,
    }
}

/// The end of a stream that ended well: clients take a close without a status for a failure.
fn normal_closure() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// SPDY in WebSocket messages: the bytes are passed on.
async fn tunnel(client: Client, runtime: Runtime) -> anyhow::Result<()> {
    use tokio::io::AsyncReadExt;
    let (mut read, mut write) = tokio::io::split(runtime);
    let (mut to_client, mut from_client) = client.split();
    let inward = async {
        while let Some(message) = from_client.next().await {
            match message? {
                Message::Binary(data) => {
                    write.write_all(&data).await?;
                    write.flush().await?;
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    let outward = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let count = read.read(&mut buffer).await?;
            if count == 0 {
                to_client.send(normal_closure()).await?;
                return anyhow::Ok(());
            }
            to_client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await?;
        }
    };
    tokio::select! {
        ended = inward => ended,
        ended = outward => ended,
    }
}

/// Asks the runtime where to exec.
pub async fn exec_url(
    k: &Arc<crate::kubelet::Kubelet>,
    id: &str,
    command: Vec<String>,
    wanted: Wanted,
) -> anyhow::Result<String> {
    let request = k8s_cri::v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: command,
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    Ok(k.cri.exec(request).await?.url)
}

/// Asks the runtime where to attach.
pub async fn attach_url(
    k: &Arc<crate::kubelet::Kubelet>,
    id: &str,
    wanted: Wanted,
) -> anyhow::Result<String> {
    let request = k8s_cri::v1::AttachRequest {
        container_id: id.to_owned(),
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    Ok(k.cri.attach(request).await?.url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_say_which_streams() {
        let query =
            |text: &str| -> Vec<(String, String)> { component::cli::key_values(text).unwrap() };
        let wanted = Wanted::of(&query("input=1,output=1,error=1,tty=1")).unwrap();
        assert_eq!(wanted.streams(), ["error", "stdin", "stdout", "resize"]);
        let wanted = Wanted::of(&query("stdout=true,stderr=true")).unwrap();
        assert_eq!(wanted.streams(), ["error", "stdout", "stderr"]);
        assert!(Wanted::of(&query("tty=1")).is_err());
    }
}
