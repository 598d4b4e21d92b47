//! The five components, by name: one binary is all of them.

use std::ffi::OsString;
use std::time::Duration;

use component::cli::{self, CliError};
use component::{logs, shutdown};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A component that ended is started again after this long.
const RESTART: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
    KubeProxy,
    Dns,
}

impl Component {
    pub const ALL: [Self; 6] = [
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Dns,
    ];

    /// The name of its binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Dns => "cluster-dns",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }

    /// Runs with these flags until shutdown.
    ///
    /// # Errors
    /// The flags are wrong, or the component cannot start or go on.
    pub async fn run(self, args: &[OsString], shutdown: CancellationToken) -> anyhow::Result<()> {
        let name = self.name();
        match self {
            Self::ApiServer => apiserver::run(apiserver::Config::from_args(args)?, shutdown).await,
            Self::ControllerManager => {
                controller_manager::run(cli::parse(name, args)?, shutdown).await
            }
            Self::Scheduler => scheduler::run(cli::parse(name, args)?, shutdown).await,
            Self::Kubelet => kubelet::run(cli::parse(name, args)?, shutdown).await,
            Self::KubeProxy => kube_proxy::run(cli::parse(name, args)?, shutdown).await,
            Self::Dns => dns::run(cli::parse(name, args)?, shutdown).await,
        }
    }
}

/// How long components run: until shutdown, and anew when their credentials were renewed.
#[derive(Clone)]
pub struct Term {
    pub shutdown: CancellationToken,
    renewed: watch::Receiver<()>,
}

impl Term {
    /// With what tells of renewals. Without it (dropped), there are none.
    pub fn new(shutdown: CancellationToken) -> (Self, watch::Sender<()>) {
        let (sender, renewed) = watch::channel(());
        (Self { shutdown, renewed }, sender)
    }

    /// Returns after the next renewal.
    pub async fn renewed(&mut self) {
        if self.renewed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Runs a component inside this process, and starts it again when it ends early.
pub async fn supervise(component: Component, args: Vec<String>, mut term: Term) {
    let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
    let shutdown = term.shutdown.clone();
    while !shutdown.is_cancelled() {
        // What it started ends with it, so that the next attempt finds its ports free.
        let own = shutdown.child_token();
        let (args, inner) = (args.clone(), own.clone());
        let mut run = tokio::spawn(async move { component.run(&args, inner).await });
        let (ended, renewed) = tokio::select! {
            ended = &mut run => (ended, false),
            () = term.renewed() => {
                tracing::info!(component = component.name(), "starts anew with new credentials");
                own.cancel();
                (run.await, true)
            }
        };
        own.cancel();
        match ended {
            Ok(Ok(())) if renewed || shutdown.is_cancelled() => continue,
            Ok(Ok(())) => tracing::error!(component = component.name(), "ended by itself"),
            Ok(Err(error)) => {
                tracing::error!(
                    component = component.name(),
                    error = format!("{error:#}"),
                    "failed"
                );
            }
            Err(error) => tracing::error!(component = component.name(), %error, "crashed"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(RESTART) => {}
        }
    }
}

/// Runs a component as the whole process.
pub fn main(component: Component, args: &[OsString]) -> std::process::ExitCode {
    logs::init(verbosity(args));
    let result = crate::runtime().and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = shutdown::on_signal()?;
            component.run(args, shutdown).await
        })
    });
    crate::finish(component.name(), result.map_err(print_help))
}

/// `--help` is no error: its text is what was asked for.
fn print_help(error: anyhow::Error) -> Option<anyhow::Error> {
    match error.downcast_ref::<CliError>() {
        Some(CliError::Print(text)) => {
            print!("{text}");
            None
        }
        _ => Some(error),
    }
}

/// klog's `-v`, wanted before the flags are parsed.
fn verbosity(args: &[OsString]) -> u8 {
    let texts = args.iter().filter_map(|a| a.to_str());
    let value =
        |text: &str| text.strip_prefix("--v=").or_else(|| text.strip_prefix("-v="))?.parse().ok();
    texts.filter_map(value).next_back().unwrap_or(0)
}
