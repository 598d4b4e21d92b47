//! A small HTTP server for tests of services and rollouts.
//!
//! `testserver [PORT]` answers every request: `/hostname` with the host's name, `/slow` likewise
//! after a second, `/peer` with the client's address, `/healthz` with `ok` until SIGTERM and with
//! 503 from then on, anything else with the request line. Each datagram is answered with the host's
//! name. After SIGTERM it serves on for `DRAIN_SECONDS` (5), so that clients that have not yet heard
//! of its end lose nothing.
//!
//! `testserver ask ADDRESS PORT` sends datagrams from one socket, and prints the answers.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

static DRAINING: AtomicBool = AtomicBool::new(false);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let port: u16 = match arguments.as_slice() {
        [] => 8080,
        ["ask", address, port] => match (address.parse(), port.parse()) {
            (Ok(address), Ok(port)) => ask(address, port),
            _ => fail(&format!("no address and port: {address} {port}")),
        },
        [port] => match port.parse() {
            Ok(port) => port,
            Err(error) => fail(&format!("no port: {port}: {error}")),
        },
        _ => fail("usage: testserver [PORT] | testserver ask ADDRESS PORT"),
    };
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if let Err(error) = signals.thread_block() {
        fail(&format!("cannot block signals: {error}"));
    }
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => fail(&format!("cannot listen on port {port}: {error}")),
    };
    let datagrams = match UdpSocket::bind(("0.0.0.0", port)) {
        Ok(socket) => socket,
        Err(error) => fail(&format!("cannot listen on port {port} for datagrams: {error}")),
    };
    println!("listening on port {port}");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((_, peer)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(hostname().as_bytes(), peer);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // A client that goes away is no concern of ours.
                let _ = serve(stream);
            });
        }
    });
    let _ = signals.wait();
    DRAINING.store(true, Ordering::Relaxed);
    let drain = std::env::var("DRAIN_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    println!("draining for {drain} s");
    std::thread::sleep(Duration::from_secs(drain));
}

/// Until it is killed: from one socket, so that what a kernel remembers of it stays in use.
fn ask(address: IpAddr, port: u16) -> ! {
    let asking = || -> std::io::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut buffer = [0; 1500];
        loop {
            // What is refused or lost is asked again.
            let _ = socket.send_to(b"who", (address, port));
            let told = socket.recv(&mut buffer);
            if let Ok(length) = told {
                print!("{}", String::from_utf8_lossy(&buffer[..length]));
                std::io::stdout().flush()?;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    match asking() {
        Ok(()) => fail("stopped"),
        Err(error) => fail(&format!("cannot ask: {error}")),
    }
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned() + "\n"
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let peer = stream.peer_addr()?.ip();
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0usize;
        let mut close = false;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let header = header.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            close |= header.starts_with("connection:") && header.contains("close");
        }
        std::io::copy(&mut std::io::Read::take(&mut reader, length as u64), &mut std::io::sink())?;
        let path = request.split(' ').nth(1).unwrap_or("/");
        let (code, body) = answer(path, &request, peer);
        let draining = DRAINING.load(Ordering::Relaxed);
        let connection = if close || draining { "close" } else { "keep-alive" };
        write!(
            writer,
            "HTTP/1.1 {code}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        )?;
        if close || draining {
            return Ok(());
        }
    }
}

fn answer(path: &str, request: &str, peer: IpAddr) -> (&'static str, String) {
    match path {
        "/hostname" => ("200 OK", hostname()),
        "/peer" => ("200 OK", format!("{peer}\n")),
        "/slow" => {
            std::thread::sleep(Duration::from_secs(1));
            ("200 OK", hostname())
        }
        "/healthz" if DRAINING.load(Ordering::Relaxed) => {
            ("503 Service Unavailable", "draining\n".to_owned())
        }
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        _ => ("200 OK", request.to_owned()),
    }
}
