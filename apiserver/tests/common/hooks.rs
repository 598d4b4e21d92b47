//! A server that answers reviews.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::Value;

use super::https::Https;

/// A server of webhooks. What it is asked is kept, with the path.
pub struct Hooks {
    pub address: SocketAddr,
    /// As `caBundle` wants it.
    pub bundle: String,
    pub asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Hooks {
    pub async fn start(answer: fn(&str, &Value) -> Value) -> Self {
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let kept = asked.clone();
        let https = Https::start("127.0.0.1", move |request: Request<Bytes>| {
            let kept = kept.clone();
            async move {
                let path = request.uri().path().to_owned();
                let review: Value = serde_json::from_slice(request.body()).expect("JSON");
                if path == "/slow" {
                    std::future::pending::<()>().await;
                }
                let text = answer(&path, &review).to_string();
                kept.lock().push((path, review));
                Response::new(Full::new(text.into()))
            }
        });
        let Https { address, bundle } = https.await;
        Self { address, bundle, asked }
    }
}
