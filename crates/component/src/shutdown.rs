//! Shutdown: SIGTERM and SIGINT cancel one token that everything listens to; what a component
//! started ends with it.

use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(10);

/// A token that the first SIGTERM or SIGINT cancels. A second one ends the process at once.
///
/// # Errors
/// Signal handlers cannot be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancel = token.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if cancel.is_cancelled() {
                std::process::exit(1);
            }
            tracing::info!("shutting down");
            cancel.cancel();
        }
    });
    Ok(token)
}

/// The tasks of a component. They are told to end when the component is, and when it fails; after
/// [`Scope::end`] none runs, so that the component can be started again in the same process.
pub struct Scope {
    token: CancellationToken,
    tasks: JoinSet<()>,
    names: HashMap<Id, String>,
}

impl Scope {
    pub fn new(shutdown: &CancellationToken) -> Self {
        let token = shutdown.child_token();
        Self { token, tasks: JoinSet::new(), names: HashMap::new() }
    }

    /// Cancelled at shutdown, and when the scope ends.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a task that ends by itself only once [`Scope::token`] is cancelled.
    pub fn spawn(&mut self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name.to_owned());
    }

    /// Waits for shutdown.
    ///
    /// # Errors
    /// A task ended without being told to; which.
    pub async fn until_shutdown(&mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            biased;
            () = self.token.cancelled() => return Ok(()),
            Some(ended) = self.tasks.join_next_with_id() => ended,
            else => {
                self.token.cancelled().await;
                return Ok(());
            }
        };
        let (id, how) = match ended {
            Ok((id, ())) => (id, "ended by itself".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        if self.token.is_cancelled() {
            return Ok(());
        }
        let name = self.names.remove(&id).unwrap_or_default();
        Err(anyhow::anyhow!("{name}: {how}"))
    }

    /// Cuts all tasks off at once: what they do is no longer theirs to do.
    pub async fn abort(mut self) {
        self.token.cancel();
        self.tasks.shutdown().await;
    }

    /// Tells all tasks to end and waits for them; those that take too long are cut off.
    pub async fn end(mut self) {
        self.token.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::debug!(tasks = self.tasks.len(), "cut off");
            self.tasks.shutdown().await;
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_early_is_named_and_ends_the_others() {
        let shutdown = CancellationToken::new();
        let mut scope = Scope::new(&shutdown);
        let (token, (said, heard)) = (scope.token().clone(), oneshot::channel());
        scope.spawn("patient", async move {
            token.cancelled().await;
            let _ = said.send(());
        });
        scope.spawn("stubborn", std::future::pending());
        scope.spawn("short", async {});
        let error = scope.until_shutdown().await.expect_err("one has ended");
        assert_eq!(error.to_string(), "short: ended by itself");
        scope.end().await;
        heard.await.expect("the patient one has ended in order");
        assert!(!shutdown.is_cancelled(), "only what the scope started ends");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_is_no_failure() {
        let shutdown = CancellationToken::new();
        let mut scope = Scope::new(&shutdown);
        let token = scope.token().clone();
        scope.spawn("task", async move { token.cancelled().await });
        shutdown.cancel();
        assert!(scope.until_shutdown().await.is_ok());
        scope.end().await;
        let mut empty = Scope::new(&shutdown);
        assert!(empty.until_shutdown().await.is_ok());
    }
}
