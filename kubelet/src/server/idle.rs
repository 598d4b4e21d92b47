//! Ends streams on which nothing has been said for a while (`streamingConnectionIdleTimeout`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A connection that remembers when it was last used.
pub struct Watched<T> {
    inner: T,
    used: Arc<Mutex<Instant>>,
}

/// Tells how long a [`Watched`] connection has been quiet.
pub struct Quiet(Arc<Mutex<Instant>>);

/// Watches a connection.
pub fn watch<T>(inner: T) -> (Watched<T>, Quiet) {
    let used = Arc::new(Mutex::new(Instant::now()));
    (Watched { inner, used: Arc::clone(&used) }, Quiet(used))
}

impl Quiet {
    /// Returns once nothing has passed for `limit`; never if that is zero.
    pub async fn for_long(self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let until = *self.0.lock() + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if result.is_ready() {
            *self.used.lock() = Instant::now();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buffer);
        if result.is_ready() {
            *self.used.lock() = Instant::now();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test(start_paused = true)]
    async fn use_puts_the_end_off() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let (mut watched, quiet) = watch(ours);
        let begun = Instant::now();
        let waiting = tokio::spawn(quiet.for_long(Duration::from_secs(10)));
        tokio::time::sleep(Duration::from_secs(6)).await;
        watched.write_all(b"x").await.unwrap();
        waiting.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 16);
    }
}
