//! How pods end that have to go, on a runtime that these tests play: its socket and its messages are
//! the real ones.

use std::convert::Infallible;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use clap::Parser;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_cri::v1 as cri;
use prost::Message;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::KubeletConfiguration;
use crate::eviction::Cause;
use crate::runtime::labels;
use crate::{options, run};

/// A runtime with one pod of one container.
#[derive(Default)]
struct Runtime {
    ended: bool,
    /// The container minds being asked to end only if it has this many seconds or fewer.
    minds: i64,
    /// The seconds of each time that it was asked.
    asked: Vec<i64>,
}

type Shared = Arc<Mutex<Runtime>>;

fn sandbox(runtime: &Runtime) -> cri::PodSandboxStatus {
    let state = match runtime.ended {
        false => cri::PodSandboxState::SandboxReady,
        true => cri::PodSandboxState::SandboxNotready,
    };
    cri::PodSandboxStatus { id: "s".into(), state: state.into(), ..Default::default() }
}

fn container(runtime: &Runtime) -> cri::ContainerStatus {
    let state = match runtime.ended {
        false => cri::ContainerState::ContainerRunning,
        true => cri::ContainerState::ContainerExited,
    };
    cri::ContainerStatus {
        id: "c".into(),
        state: state.into(),
        created_at: 1,
        started_at: 1,
        exit_code: if runtime.ended { 137 } else { 0 },
        labels: [(labels::CONTAINER_NAME.to_owned(), "main".to_owned())].into(),
        ..Default::default()
    }
}

/// The answer to a call, `None` if it is not one that a pod's end needs.
async fn answer(runtime: &Shared, method: &str, request: Bytes) -> Option<Vec<u8>> {
    let listed =
        || cri::Container { id: "c".into(), pod_sandbox_id: "s".into(), ..Default::default() };
    let item = || cri::PodSandbox { id: "s".into(), ..Default::default() };
    Some(match method {
        "ListPodSandbox" => cri::ListPodSandboxResponse { items: vec![item()] }.encode_to_vec(),
        "ListContainers" => {
            cri::ListContainersResponse { containers: vec![listed()] }.encode_to_vec()
        }
        "PodSandboxStatus" => {
            let status = Some(sandbox(&runtime.lock()));
            cri::PodSandboxStatusResponse { status, ..Default::default() }.encode_to_vec()
        }
        "ContainerStatus" => {
            let status = Some(container(&runtime.lock()));
            cri::ContainerStatusResponse { status, ..Default::default() }.encode_to_vec()
        }
        "StopContainer" => {
            let seconds = cri::StopContainerRequest::decode(request).ok()?.timeout;
            let minds = {
                let mut runtime = runtime.lock();
                runtime.asked.push(seconds);
                seconds <= runtime.minds
            };
            if !minds {
                std::future::pending::<()>().await;
            }
            runtime.lock().ended = true;
            Vec::new()
        }
        "StopPodSandbox" => Vec::new(),
        _ => return None,
    })
}

async fn respond(
    runtime: Shared,
    request: Request<Incoming>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let mut message = request.into_body().collect().await.expect("a request").to_bytes();
    // Before each message are a byte and its length.
    let message = message.split_off(5);
    let mut trailers = HeaderMap::new();
    let mut frames = Vec::new();
    let status = match answer(&runtime, &method, message).await {
        Some(bytes) => {
            let mut data = BytesMut::new();
            data.put_u8(0);
            data.put_u32(bytes.len().try_into().expect("a short answer"));
            data.extend_from_slice(&bytes);
            frames.push(Ok(Frame::data(data.freeze())));
            "0"
        }
        None => "12",
    };
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    frames.push(Ok(Frame::trailers(trailers)));
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(StreamBody::new(stream::iter(frames))).expect("a response")
}

fn serve(socket: &Path, runtime: &Shared) {
    let (listener, runtime) = (UnixListener::bind(socket).expect("a socket"), Arc::clone(runtime));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let runtime = Arc::clone(&runtime);
            let service = hyper::service::service_fn(move |request| {
                let runtime = Arc::clone(&runtime);
                async move { Ok::<_, Infallible>(respond(runtime, request).await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// A worker of a kubelet without an API server, whose pod runs.
struct World {
    _folder: TempDir,
    runtime: Shared,
    k: Arc<Kubelet>,
    desired: watch::Sender<Desired>,
}

impl World {
    fn new(grace: i64, minds: i64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime: Shared = Arc::default();
        runtime.lock().minds = minds;
        let socket = folder.path().join("cri");
        serve(&socket, &runtime);
        let root = folder.path().join("kubelet").display().to_string();
        let options = options::Options::parse_from(["kubelet", "--root-dir", &root]);
        let config = KubeletConfiguration {
            container_runtime_endpoint: format!("unix://{}", socket.display()),
            cgroups_per_qos: false,
            fail_cgroup_v1: false,
            ..KubeletConfiguration::default()
        };
        let shutdown = CancellationToken::new();
        let k = run::build(&options, config, "node".into(), None, shutdown).unwrap();
        // Of a file: there is no API server to tell.
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u",
                "annotations": {"kubernetes.io/config.source": "file"}},
            "spec": {"terminationGracePeriodSeconds": grace, "containers": [{"name": "main"}]},
            "status": {"phase": "Running"},
        });
        let pod = Some(Arc::new(serde_json::from_value(pod).unwrap()));
        let desired = watch::channel(Desired { pod, mirror: None, gone: false }).0;
        Self { _folder: folder, runtime, k: Arc::new(k), desired }
    }

    fn worker(&self) -> Worker {
        let wake = Arc::new(Notify::new());
        self.k.wakers.lock().insert("u".into(), Arc::clone(&wake));
        Worker::new(Arc::clone(&self.k), "u".into(), self.desired.subscribe(), wake)
    }

    /// The pod has to go; the token is cancelled when it has.
    fn order(&self, cause: Cause, grace: i64) -> CancellationToken {
        let ended = CancellationToken::new();
        let guard = Some(ended.clone().drop_guard());
        let order = Eviction { cause, message: "why".into(), grace, ended: guard };
        self.k.evictions.add("u", order);
        self.k.wake("u");
        ended
    }

    fn asked(&self) -> Vec<i64> {
        self.runtime.lock().asked.clone()
    }
}

async fn in_time<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), awaited).await.expect("in time")
}

#[tokio::test]
async fn a_pod_that_has_to_go_fails_with_the_reason() {
    for (cause, own, grace, reason, seconds) in [
        (Cause::Shortage, 30, 5, "Evicted", 5),
        (Cause::NodeShutdown, 30, 20, "Terminated", 20),
        (Cause::NodeShutdown, 3, 20, "Terminated", 3),
    ] {
        let world = World::new(own, 60);
        let mut worker = world.worker();
        let desired = world.desired.borrow().clone();
        let ended = world.order(cause, grace);
        worker.heed(&desired);
        in_time(worker.turn(&desired)).await;
        assert_eq!(world.asked(), [seconds], "{cause:?}");
        let status = worker.reported.clone().expect("a status");
        let told = [status.phase, status.reason, status.message].map(Option::unwrap_or_default);
        assert_eq!(told, ["Failed", reason, "why"]);
        let conditions = status.conditions.unwrap_or_default();
        let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget").expect("one");
        let told = (target.status.as_str(), target.reason.as_deref(), target.message.as_deref());
        assert_eq!(told, ("True", Some("TerminationByKubelet"), Some("why")));
        // Its loop lets go of it after the turn.
        assert!(worker.ended && !ended.is_cancelled(), "{cause:?}");
    }
}

#[tokio::test]
async fn who_waits_for_a_pods_end_hears_of_it() {
    let world = World::new(30, 60);
    let ended = world.order(Cause::NodeShutdown, 20);
    let worker = tokio::spawn(world.worker().run());
    in_time(ended.cancelled()).await;
    assert!(world.runtime.lock().ended);
    // Whoever comes later too, though there is nothing to be done.
    in_time(world.order(Cause::NodeShutdown, 5).cancelled()).await;
    assert_eq!(world.asked(), [20]);
    // And if there is no pod any more.
    world.k.shutdown.cancel();
    in_time(worker).await.unwrap();
    let late = world.order(Cause::NodeShutdown, 5);
    drop(world.k.evictions.take("u"));
    assert!(late.is_cancelled());
}

#[tokio::test]
async fn a_pod_that_ends_slowly_is_told_to_hurry() {
    let world = World::new(120, 10);
    let worker = tokio::spawn(world.worker().run());
    let first = world.order(Cause::Shortage, 60);
    let asked_once = async {
        while world.asked().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(asked_once).await;
    // What gives it more time changes nothing.
    let second = world.order(Cause::NodeShutdown, 90);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!second.is_cancelled() && world.asked() == [60]);
    let third = world.order(Cause::NodeShutdown, 5);
    in_time(third.cancelled()).await;
    assert_eq!(world.asked(), [60, 5]);
    assert!(first.is_cancelled() && second.is_cancelled());
    world.k.shutdown.cancel();
    in_time(worker).await.unwrap();
}
