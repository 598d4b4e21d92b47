//! The engines under test, each on a store of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use store::embedded::{self, Embedded};
use store::etcd::{self, Etcd};
use store::{Store, StoreError};

/// An engine with what it needs to live. Fields are dropped in this order.
pub struct Engine {
    pub store: Arc<dyn Store>,
    _server: Option<EtcdServer>,
    _folder: tempfile::TempDir,
}

pub fn embedded() -> Engine {
    let folder = tempfile::tempdir().expect("temporary folder");
    let options = embedded::Options {
        // Small, so that the tests see what happens at the limits.
        watch_backlog: 200,
        recent_bytes: 16 << 10,
        sweep_interval: Duration::from_millis(50),
        ..embedded::Options::default()
    };
    let store = Embedded::open(folder.path().join("db"), options).expect("open");
    Engine { store, _server: None, _folder: folder }
}

pub async fn etcd() -> Engine {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = EtcdServer::start(folder.path(), &[]);
    let mut options = etcd::Options::new(vec![server.url("http")]);
    options.watch_buffer = 100;
    options.slow_after = Duration::from_millis(300);
    let store = connect(options).await;
    Engine { store, _server: Some(server), _folder: folder }
}

/// Connects as soon as the server answers.
pub async fn connect(options: etcd::Options) -> Arc<Etcd> {
    let patient = async {
        loop {
            match Etcd::connect(options.clone()).await {
                Ok(store) => return store,
                Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("connect: {error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), patient).await.expect("etcd does not answer")
}

/// A running etcd; dropping it kills it.
pub struct EtcdServer {
    child: Child,
    client_port: u16,
    peer_port: u16,
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("address").port()
}

impl EtcdServer {
    pub fn start(folder: &Path, more: &[String]) -> Self {
        Self::start_on(folder, free_port(), free_port(), more)
    }

    fn start_on(folder: &Path, client_port: u16, peer_port: u16, more: &[String]) -> Self {
        let scheme = if more.is_empty() { "http" } else { "https" };
        let client = format!("{scheme}://127.0.0.1:{client_port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run `etcd` ({error}): install etcd-server or put etcd in PATH")
            });
        EtcdServer { child, client_port, peer_port }
    }

    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// Kills it and starts it again on the same data and ports.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn restart(&mut self, folder: &Path) {
        *self = Self::start_on(folder, self.client_port, self.peer_port, &[]);
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
