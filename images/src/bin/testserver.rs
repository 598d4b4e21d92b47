//! A small HTTP server for tests of services and rollouts.
//!
//! `testserver [PORT]` answers every request: `/hostname` with the host's name, `/slow` likewise
//! after a second, `/healthz` with `ok` until SIGTERM and with 503 from then on, anything else with
//! the request line. After SIGTERM it serves on for `DRAIN_SECONDS` (5), so that clients that
//! have not yet heard of its end lose nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

static DRAINING: AtomicBool = AtomicBool::new(false);

fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|p| p.parse().ok()).unwrap_or(8080);
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
    println!("listening on port {port}");
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

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
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
        let (code, body) = answer(path, &request);
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

fn answer(path: &str, request: &str) -> (&'static str, String) {
    let hostname = || {
        let name = nix::unistd::gethostname().unwrap_or_default();
        name.to_string_lossy().into_owned() + "\n"
    };
    match path {
        "/hostname" => ("200 OK", hostname()),
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
