//! A thin client for CRI v1 over a Unix socket. Calls are bounded in time.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Answers larger than this are refused: a node's whole container list fits.
const MAX_MESSAGE: usize = 16 << 20;

/// A call that the runtime answered with an error, or did not answer. Its text is the one that
/// upstream's gRPC library gives, since it reaches events and statuses.
#[derive(Clone, Debug, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", go_code(*code))]
pub struct RuntimeError {
    pub code: tonic::Code,
    pub message: String,
}

impl RuntimeError {
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }

    fn internal(message: &str) -> Self {
        Self { code: tonic::Code::Internal, message: message.to_owned() }
    }
}

impl From<tonic::Status> for RuntimeError {
    fn from(status: tonic::Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

fn go_code(code: tonic::Code) -> String {
    match code {
        tonic::Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

type Result<T> = std::result::Result<T, RuntimeError>;

/// A connection to a runtime. It connects when first used and again after the runtime restarts.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    timeout: Duration,
}

fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let path = match endpoint.strip_prefix("unix://") {
        Some(path) => PathBuf::from(path),
        None if endpoint.starts_with('/') => PathBuf::from(endpoint),
        None => bail!("container runtime endpoint {endpoint:?}: only unix:// is supported"),
    };
    let endpoint = Endpoint::try_from("http://localhost")?;
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    })))
}

fn timed<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

/// One method per call: forwards a request, with a deadline.
macro_rules! calls {
    ($($(#[$doc:meta])* $client:ident.$name:ident($request:ident) -> $response:ident;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: cri::$request) -> Result<cri::$response> {
            let answer = self.$client.clone().$name(timed(request, self.timeout)).await?;
            Ok(answer.into_inner())
        })*
    };
}

impl Cri {
    /// A client for a runtime's socket, and for the image service's where it differs. `timeout`
    /// bounds each call that has not a reason to take longer.
    ///
    /// # Errors
    /// The endpoint is no Unix socket.
    pub fn new(runtime: &str, images: &str, timeout: Duration) -> anyhow::Result<Self> {
        let runtime_channel = channel(runtime)?;
        let image_channel = match images {
            "" => runtime_channel.clone(),
            images => channel(images)?,
        };
        Ok(Self {
            runtime: RuntimeServiceClient::new(runtime_channel)
                .max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(image_channel).max_decoding_message_size(MAX_MESSAGE),
            timeout,
        })
    }

    calls! {
        runtime.version(VersionRequest) -> VersionResponse;
        runtime.status(StatusRequest) -> StatusResponse;
        runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
        runtime.start_container(StartContainerRequest) -> StartContainerResponse;
        runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        runtime.exec(ExecRequest) -> ExecResponse;
        runtime.attach(AttachRequest) -> AttachResponse;
        runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
        runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        images.list_images(ListImagesRequest) -> ListImagesResponse;
        images.image_status(ImageStatusRequest) -> ImageStatusResponse;
        images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
        images.remove_image(RemoveImageRequest) -> RemoveImageResponse;
    }

    /// Makes a sandbox and its network. Twice the usual time: a network plugin may be slow.
    pub async fn run_pod_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        handler: &str,
    ) -> Result<String> {
        let request =
            cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let request = timed(request, self.timeout * 2);
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Stops a container: asks it, and kills it after `grace` seconds.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let patience = Duration::from_secs(grace.max(0).unsigned_abs()) + self.timeout;
        match self.runtime.clone().stop_container(timed(request, patience)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(status.into()),
        }
    }

    /// Runs a command in a container and waits for it.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let seconds = timeout.as_secs().try_into().unwrap_or(i64::MAX);
        let request =
            cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds };
        let patience = match seconds {
            0 => Duration::from_secs(3600),
            _ => timeout + self.timeout,
        };
        Ok(self.runtime.clone().exec_sync(timed(request, patience)).await?.into_inner())
    }

    /// Pulls an image, for as long as it takes.
    pub async fn pull_image(&self, request: cri::PullImageRequest) -> Result<String> {
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// The image that a name stands for, if the runtime has it.
    pub async fn image(&self, name: &str) -> Result<Option<cri::Image>> {
        let image = Some(cri::ImageSpec { image: name.to_owned(), ..cri::ImageSpec::default() });
        let request = cri::ImageStatusRequest { image, verbose: false };
        Ok(self.image_status(request).await?.image)
    }

    /// A container's status.
    pub async fn container(&self, id: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.container_status(request).await?;
        answer.status.ok_or_else(|| RuntimeError::internal("container status is nil"))
    }

    /// A sandbox's status.
    pub async fn sandbox(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.pod_sandbox_status(request).await?;
        answer.status.ok_or_else(|| RuntimeError::internal("pod sandbox status is nil"))
    }
}
