//! Waiting for an API server that is slow or not there yet: what a component cannot start without
//! is tried until it works or the component is told to end.

use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::error::brief;

/// First pause after a failure; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(10);
/// An attempt that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tries until it works, with pauses that grow; `None` at shutdown. `what` is named in the log.
pub async fn until<T, F>(
    shutdown: &CancellationToken,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let mut pause = FIRST;
    loop {
        let tried = tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            tried = tokio::time::timeout(PATIENCE, attempt()) => tried,
        };
        let why = match tried {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => brief(&error),
            Err(_) => format!("no answer in {} s", PATIENCE.as_secs()),
        };
        tracing::warn!(error = why, "{what}: will retry");
        // Not all of a cluster's components at the same moment.
        let jitter = pause.mul_f64(rand::rng().random_range(0.0..0.2));
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(pause + jitter) => {}
        }
        pause = (pause * 2).min(LONGEST);
    }
}

/// Waits until the API server says that it is healthy; `None` at shutdown.
pub async fn healthy(client: &kube::Client, shutdown: &CancellationToken) -> Option<()> {
    until(shutdown, "waiting for the API server", || async {
        let request = http::Request::get("/healthz").body(Vec::new())?;
        client.request_text(request).await?;
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_ever_later() {
        let (tries, start) = (AtomicU32::new(0), Instant::now());
        let attempt = || async {
            match tries.fetch_add(1, Ordering::Relaxed) {
                9 => Ok(9),
                // One that is never answered counts as failed too.
                8 => std::future::pending().await,
                _ => Err(anyhow::anyhow!("not yet")),
            }
        };
        assert_eq!(until(&CancellationToken::new(), "test", attempt).await, Some(9));
        // 0.1, 0.2 ... 6.4, 10, 10 seconds, up to a fifth more, and the unanswered one.
        let took = start.elapsed().as_secs_f64();
        assert!((62.7..=70.0).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_ends_it() {
        let shutdown = CancellationToken::new();
        let (stop, soon) = (shutdown.clone(), Duration::from_secs(60));
        tokio::spawn(async move {
            tokio::time::sleep(soon).await;
            stop.cancel();
        });
        let start = Instant::now();
        let never = || async { anyhow::Result::<()>::Err(anyhow::anyhow!("never")) };
        assert_eq!(until(&shutdown, "test", never).await, None);
        assert_eq!(start.elapsed(), soon);
    }
}
