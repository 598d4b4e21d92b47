//! Logs: one line per event on standard error.

use tracing_subscriber::EnvFilter;

/// These log, as errors, what they also return to callers, who know whether it matters.
const QUIET: &str = "kube_client::client::builder=off,kube_runtime::watcher=off";

/// Starts logging. `verbosity` is klog's `-v`: 0 to 2 info, 3 to 5 debug, more trace. The
/// environment variable `COXSWAIN_LOG` (tracing's filter syntax) goes first.
pub fn init(verbosity: u8) {
    let level = match verbosity {
        0..=2 => "info",
        3..=5 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("COXSWAIN_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")));
    // A second call, as in tests, finds logging already started.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}
