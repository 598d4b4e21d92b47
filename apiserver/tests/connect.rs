//! Streams that kubelets answer: a kubelet's endpoint stands at the other end, over real TLS.

mod common;

use common::Fixture;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

/// Says what it was asked for, and echoes after an upgrade.
async fn kubelet(mut request: http::Request<Incoming>) -> http::Response<component::serving::Body> {
    let asked = format!("{} {}", request.method(), request.uri());
    if !request.headers().contains_key("upgrade") {
        return component::serving::text(200, asked);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.expect("an upgrade"));
        stream.write_all(asked.as_bytes()).await.expect("to write");
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.expect("to read");
        stream.write_all(&word).await.expect("to write");
        stream.shutdown().await.expect("to close");
    });
    let mut response = component::serving::text(101, "");
    let headers = response.headers_mut();
    headers.insert("connection", http::HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", http::HeaderValue::from_static("SPDY/3.1"));
    response
}

async fn with_kubelet() -> (Fixture, CancellationToken) {
    let f = Fixture::new().await;
    let cert = f.dir.path().join("tls.crt");
    let tls = component::serving::tls(&cert, &f.dir.path().join("tls.key"), None).expect("TLS");
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = component::serving::bind(any).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let stop = CancellationToken::new();
    tokio::spawn(component::serving::serve(listener, Some(tls), kubelet, stop.clone()));

    f.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.expect(201);
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    f.patch("/api/v1/nodes/n/status", "merge-patch+json", &status).await.expect(200);
    let pod = json!({"metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    f.post("/api/v1/namespaces/default/pods", &pod).await.expect(201);
    // The node is read from the cache.
    f.get("/api/v1/nodes").await.expect(200);
    (f, stop)
}

#[tokio::test]
async fn logs_and_proxied_paths_come_from_the_kubelet() {
    let (f, stop) = with_kubelet().await;
    let pod = "/api/v1/namespaces/default/pods/p";
    let log = f.get(&format!("{pod}/log?tailLines=3&follow=true")).await;
    assert_eq!(log.body, "GET /containerLogs/default/p/c?follow=true&tailLines=3");
    let proxied = f.get("/api/v1/nodes/n/proxy/stats/summary?x=1").await;
    assert_eq!(proxied.body, "GET /stats/summary?x=1");
    let wrong = f.get(&format!("{pod}/log?container=x")).await.expect(400);
    assert_eq!(wrong["message"], "container x is not valid for pod p");
    stop.cancel();
}

#[tokio::test]
async fn upgraded_streams_pass_both_ways() {
    let (f, stop) = with_kubelet().await;
    let path = "/api/v1/namespaces/default/pods/p/exec?command=sh&stdin=true&stdout=true";
    let headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let mut response = f.open_http1("POST", path, &headers).await;
    assert_eq!(response.status().as_u16(), 101);
    let upgraded = hyper::upgrade::on(&mut response).await.expect("an upgrade");
    let mut stream = TokioIo::new(upgraded);
    let want = b"POST /exec/default/p/c?input=1&output=1&command=sh";
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).await.expect("to read");
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(want));
    stream.write_all(b"ping").await.expect("to write");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("to read");
    assert_eq!(rest, b"ping");
    let _ = response.into_body().collect().await;
    stop.cancel();
}
