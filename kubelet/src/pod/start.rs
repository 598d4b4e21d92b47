//! Carries out the part of a plan that starts things.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;

use super::dns::{self, ResolvConf};
use super::env::{self, Referred};
use super::status::Waiting;
use super::stop::{self, Manner, Running};
use super::{container, resize, resources, sandbox, security};
use crate::hooks::{self, Hooked};
use crate::images;
use crate::kubelet::Kubelet;
use crate::objects::{container_reference, describe, is_static, namespace, reference, spec, uid};
use crate::quantity::value;
use crate::runtime::{ContainerView, PodView, RuntimeError, State};
use crate::volumes::mounts;
use crate::volumes::setup::Places;

/// How long a container waits for the services to be read, at the kubelet's start.
const SERVICES: Duration = Duration::from_secs(2);

fn waiting(reason: &str, message: impl Into<String>) -> Waiting {
    Waiting { reason: reason.to_owned(), message: message.into() }
}

/// The configuration of the pod's sandbox.
///
/// # Errors
/// The pod's host name is too long.
pub fn sandbox_config(
    k: &Kubelet,
    pod: &Pod,
    attempt: u32,
) -> Result<cri::PodSandboxConfig, String> {
    let host = match k.config.resolv_conf.as_str() {
        "" => ResolvConf::default(),
        path => ResolvConf::parse(&std::fs::read_to_string(path).unwrap_or_default()),
    };
    let cluster = dns::Cluster { servers: &k.config.cluster_dns, domain: &k.config.cluster_domain };
    let (dns, missing) = dns::dns(pod, &cluster, &host);
    if missing {
        k.event(
            reference(pod),
            true,
            "MissingClusterDNS",
            format!(
                "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                describe(pod)
            ),
        );
    }
    let limits = resources::pod_limits(pod, k.limiting());
    let class = resources::qos_class(pod);
    let facts = sandbox::Facts {
        attempt,
        dns,
        cluster_domain: &k.config.cluster_domain,
        logs: &k.logs,
        root: &k.root,
        cgroup_parent: k.cgroups.runtime_parent(class, uid(pod)),
        overhead: spec(pod).overhead.as_ref().map(|overhead| cri::LinuxContainerResources {
            cpu_shares: crate::quantity::millis(Some(overhead), "cpu").map_or(0, resources::shares),
            memory_limit_in_bytes: value(Some(overhead), "memory").unwrap_or(0),
            ..cri::LinuxContainerResources::default()
        }),
        resources: Some(cri::LinuxContainerResources {
            cpu_shares: limits.shares,
            cpu_period: limits.period,
            cpu_quota: limits.quota.unwrap_or(0),
            memory_limit_in_bytes: limits.memory.unwrap_or(0),
            ..cri::LinuxContainerResources::default()
        }),
    };
    sandbox::config(pod, facts)
}

/// Held while the runtime makes or starts something of a pod.
pub type Busy = Arc<tokio::sync::Mutex<()>>;

/// Makes a call to the runtime that goes on to its end even if the turn that made it is cut off:
/// a start that is broken off halfway leaves a container that failed for no reason of its own.
/// Until then `busy` is held.
async fn whole<T: Send + 'static>(
    busy: &Busy,
    call: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> Result<T, RuntimeError> {
    let guard = Arc::clone(busy).lock_owned().await;
    let task = tokio::spawn(async move {
        let result = call.await;
        drop(guard);
        result
    });
    task.await.unwrap_or_else(|error| {
        Err(RuntimeError { code: tonic::Code::Unknown, message: error.to_string() })
    })
}

/// What the starts of one round have in common.
pub struct Round<'a> {
    pub pod: &'a Arc<Pod>,
    pub view: &'a PodView,
    pub sandbox: &'a str,
    pub config: &'a cri::PodSandboxConfig,
    pub places: &'a Places,
    pub pod_ips: &'a [String],
    pub busy: &'a Busy,
}

/// The name that a container's back-off goes by; what resets the back-off when it changes is
/// part of it.
fn backoff_key(pod: &Pod, container: &Container) -> String {
    let resources = serde_json::to_string(&container.resources).unwrap_or_default();
    let image = container.image.as_deref().unwrap_or_default();
    format!("{}/{}/{image}/{resources}", uid(pod), container.name)
}

/// How long a container that has ended still has to wait, counting this attempt if it need not.
fn back_off(k: &Kubelet, pod: &Pod, container: &Container, view: &PodView) -> Result<(), Duration> {
    let ended =
        view.containers.iter().find(|c| c.name == container.name && c.state == State::Exited);
    let Some(ended) = ended else { return Ok(()) };
    let key = backoff_key(pod, container);
    let now = Instant::now();
    let age = jiff::Timestamp::now().as_nanosecond() - i128::from(ended.finished_at);
    let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
    let since = now.checked_sub(age).unwrap_or(now);
    if let Some(left) = k.crash_backoff.remaining(&key, since, now) {
        return Err(left);
    }
    k.crash_backoff.next(&key, since, now);
    Ok(())
}

/// How a start ended that brought no running container.
pub struct NotStarted {
    pub why: Waiting,
    /// Try again after this time.
    pub after: Option<Duration>,
}

/// Starts one container.
///
/// # Errors
/// Why it waits.
pub async fn start(
    k: &Arc<Kubelet>,
    round: &Round<'_>,
    wanted: &Container,
) -> Result<(), NotStarted> {
    let pod = round.pod;
    let about = || container_reference(pod, &wanted.name);
    if let Err(left) = back_off(k, pod, wanted, round.view) {
        let whole = k.crash_backoff.get(&backoff_key(pod, wanted));
        let (name, at) = (&wanted.name, describe(pod));
        let event = format!("Back-off restarting failed container {name} in pod {at}");
        k.event(about(), true, "BackOff", event);
        let message = format!(
            "back-off {} restarting failed container={name} pod={at}",
            crate::duration::format(whole)
        );
        return Err(NotStarted { why: waiting("CrashLoopBackOff", message), after: Some(left) });
    }
    let result = create_and_start(k, round, wanted).await;
    result.map_err(|(why, event)| {
        if let Some(event) = event {
            k.event(about(), true, "Failed", format!("Error: {event}"));
        }
        NotStarted { why, after: None }
    })
}

/// The error with the text of the event that goes with it.
type Failure = (Waiting, Option<String>);

async fn create_and_start(
    k: &Arc<Kubelet>,
    round: &Round<'_>,
    wanted: &Container,
) -> Result<(), Failure> {
    let pod = round.pod;
    let about = || container_reference(pod, &wanted.name);
    let image = images::ensure(k, pod, wanted, round.config).await.map_err(|why| {
        let event = why.reason.clone();
        (why, Some(event))
    })?;
    let config_error =
        |message: String| (waiting("CreateContainerConfigError", message.clone()), Some(message));
    let before = round.view.container(&wanted.name);
    let attempt =
        before.map_or(0, |c| c.restart_count + 1).max(restarts_on_disk(k, pod, wanted, before));
    security::check_non_root(pod, wanted, &image.user).map_err(config_error)?;
    let config = container_config(k, round, wanted, &image, attempt).await.map_err(config_error)?;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: round.sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(round.config.clone()),
    };
    let runtime = k.cri.clone();
    let created = whole(round.busy, async move { runtime.create_container(request).await }).await;
    let id = match created {
        Ok(answer) => answer.container_id,
        Err(error) => {
            let text = error.message.clone();
            return Err((waiting("CreateContainerError", text.clone()), Some(text)));
        }
    };
    k.event(about(), false, "Created", "Container created");
    let given = wanted.resources.clone().unwrap_or_default();
    k.allocations.told(&k.root, pod, &wanted.name, &id, &given);
    let request = cri::StartContainerRequest { container_id: id.clone() };
    let runtime = k.cri.clone();
    let started = whole(round.busy, async move { runtime.start_container(request).await }).await;
    if let Err(error) = started {
        let text = error.message.clone();
        return Err((waiting("RunContainerError", text.clone()), Some(text)));
    }
    k.event(about(), false, "Started", "Container started");
    link_log(k, pod, &wanted.name, &id, attempt);
    post_start(k, round, wanted, &id).await
}

async fn post_start(
    k: &Arc<Kubelet>,
    round: &Round<'_>,
    wanted: &Container,
    id: &str,
) -> Result<(), Failure> {
    let Some(hook) = wanted.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
        return Ok(());
    };
    let (pod, name) = (round.pod, wanted.name.as_str());
    let ip = round.pod_ips.first().map(String::as_str).unwrap_or_default();
    let hooked = Hooked {
        container: wanted.clone(),
        pod: describe(pod),
        about: reference(pod),
        id: id.to_owned(),
        ip: ip.to_owned(),
    };
    let Err(error) = hooks::run(k, hook, &hooked).await else { return Ok(()) };
    tracing::debug!(pod = hooked.pod, container = name, error, "postStart failed");
    // What it said may be secret: it is told to those who may read the pod.
    let about = container_reference(pod, name);
    k.event(about, true, "FailedPostStartHook", "PostStartHook failed");
    let manner = Manner {
        message: "FailedPostStartHook".to_owned(),
        grace: stop::grace(pod, Some(wanted), None),
        before: Vec::new(),
    };
    if let Err(error) = stop::container(k, Some(pod), &Running { id, name, ip }, manner).await {
        tracing::warn!(%error, container = name, "cannot stop after failed postStart");
    }
    Err((waiting("PostStartHookError", error), None))
}

/// The attempt after those whose logs are still there, when the runtime has forgotten them.
fn restarts_on_disk(
    k: &Kubelet,
    pod: &Pod,
    wanted: &Container,
    before: Option<&ContainerView>,
) -> u32 {
    if before.is_some() {
        return 0;
    }
    let directory = sandbox::log_directory(&k.logs, pod).join(&wanted.name);
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let attempts = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.split('.').next()?.parse::<u32>().ok()
    });
    attempts.max().map_or(0, |highest| highest + 1)
}

/// The link that log collectors look for beside the pods' logs.
fn link_log(k: &Kubelet, pod: &Pod, container: &str, id: &str, attempt: u32) {
    let Some(parent) = k.logs.parent() else { return };
    let directory = parent.join("containers");
    let name = format!("{}_{}_{container}-{id}.log", crate::objects::name(pod), namespace(pod));
    let target =
        sandbox::log_directory(&k.logs, pod).join(container).join(format!("{attempt}.log"));
    let linked = std::fs::create_dir_all(&directory)
        .and_then(|()| std::os::unix::fs::symlink(target, directory.join(name)));
    if let Err(error) = linked {
        tracing::debug!(%error, "no link to the container's log");
    }
}

async fn container_config(
    k: &Kubelet,
    round: &Round<'_>,
    wanted: &Container,
    image: &images::Found,
    attempt: u32,
) -> Result<cri::ContainerConfig, String> {
    let pod = round.pod;
    let referred = read_references(k, pod, wanted).await;
    // Who starts without them never learns of them: by these variables clients inside find the API
    // server. Static pods may be that server.
    if !is_static(pod)
        && let Some(services) = &k.services
        && tokio::time::timeout(SERVICES, services.synced()).await.is_err()
    {
        let why = "services have not yet been read at least once, cannot construct envvars";
        return Err(why.to_owned());
    }
    let services = k.services.as_ref().map(client::Cache::list).unwrap_or_default();
    let allocatable = k.allocatable();
    let host_ips = k.host_ips();
    let env = env::environment(&env::Facts {
        pod,
        container: wanted,
        pod_ips: round.pod_ips,
        host_ips: &host_ips,
        services: &services,
        allocatable: &allocatable,
        referred: &referred,
    })?;
    let recursive = k.runtime.lock().recursive_read_only(pod);
    let mounts = mounts::mounts(
        pod,
        wanted,
        &mounts::Facts {
            root: &k.root,
            places: round.places,
            env: &env,
            pod_ips: round.pod_ips,
            cluster_domain: &k.config.cluster_domain,
            recursive,
        },
    )?;
    let logs = sandbox::log_directory(&k.logs, pod).join(&wanted.name);
    std::fs::create_dir_all(&logs).map_err(|error| {
        format!("create container log directory for container {} failed: {error}", wanted.name)
    })?;
    let mut security =
        security::container(pod, wanted, &image.user, &k.root, k.config.seccomp_default);
    if let Some(options) = &mut security.namespace_options
        && !options.target_id.is_empty()
    {
        let target = round.view.container(&options.target_id).filter(|c| c.state == State::Running);
        let target = target
            .ok_or_else(|| format!("unable to find target container {}", options.target_id))?;
        options.target_id.clone_from(&target.id);
    }
    let resources = resources::container_resources(pod, wanted, k.limiting(), k.machine.memory);
    let reference = image.reference.clone();
    Ok(container::config(
        pod,
        wanted,
        container::Facts { attempt, image: reference, env, mounts, resources, security },
    ))
}

/// Changes the limits of a pod's cgroup and of containers that run. `old` and `new` are the pod's
/// limits; those that its cgroup has afterwards are returned.
///
/// # Errors
/// What the kernel or the runtime refused.
pub async fn resize(
    k: &Kubelet,
    pod: &Pod,
    view: &PodView,
    updates: &[resize::Update],
    old: resources::PodLimits,
    new: resources::PodLimits,
) -> Result<resources::PodLimits, String> {
    let class = resources::qos_class(pod);
    if let (Some(limit), Some(used)) = (new.memory, k.cgroups.memory_used(class, uid(pod)))
        && old.memory.is_none_or(|before| limit < before)
        && used >= limit
    {
        return Err(format!(
            "attempting to set pod memory limit ({limit}) below current usage ({used})"
        ));
    }
    let set = |limits| {
        let changed = k.cgroups.change_pod(class, uid(pod), limits);
        changed.map_err(|error| format!("failed to resize the pod's cgroup: {error:#}"))
    };
    let widest = resize::widest(&old, &new);
    set(&widest)?;
    for update in updates {
        let Some(container) = crate::objects::find_container(pod, &update.name) else { continue };
        let linux = resources::container_resources(pod, &container, k.limiting(), k.machine.memory);
        let request = cri::UpdateContainerResourcesRequest {
            container_id: update.id.clone(),
            linux: Some(linux),
            ..cri::UpdateContainerResourcesRequest::default()
        };
        k.cri
            .update_container_resources(request)
            .await
            .map_err(|error| format!("failed to resize container {:?}: {error}", update.name))?;
        let given = container.resources.unwrap_or_default();
        k.allocations.told(&k.root, pod, &update.name, &update.id, &given);
    }
    // A container that waits for its restart may still have more than the pod will.
    let restarting = resize::in_progress(pod, view, &k.allocations.standing(pod, view).actuated);
    if restarting {
        return Ok(widest);
    }
    set(&new)?;
    Ok(new)
}

async fn read_references(k: &Kubelet, pod: &Pod, wanted: &Container) -> Referred {
    let (maps, secrets) = env::references(wanted);
    let mut referred = Referred { config_maps: HashMap::new(), secrets: HashMap::new() };
    for name in maps {
        if !referred.config_maps.contains_key(name) {
            let found = k.config_map(namespace(pod), name, true).await;
            referred.config_maps.insert(name.to_owned(), found);
        }
    }
    for name in secrets {
        if !referred.secrets.contains_key(name) {
            let found = k.secret(namespace(pod), name, true).await;
            referred.secrets.insert(name.to_owned(), found);
        }
    }
    referred
}

/// Makes the sandbox: its id and addresses.
///
/// # Errors
/// The runtime's.
pub async fn create_sandbox(
    k: &Kubelet,
    pod: &Pod,
    config: &cri::PodSandboxConfig,
    busy: &Busy,
) -> Result<(String, Vec<String>), RuntimeError> {
    let directory = &config.log_directory;
    std::fs::create_dir_all(directory).map_err(|error| RuntimeError {
        code: tonic::Code::Unknown,
        message: format!("create log directory {directory}: {error}"),
    })?;
    let handler = match spec(pod).runtime_class_name.as_deref() {
        None | Some("") => String::new(),
        Some(class) => runtime_handler(k, class).await?,
    };
    let (runtime, config) = (k.cri.clone(), config.clone());
    let id = whole(busy, async move { runtime.run_pod_sandbox(config, &handler).await }).await?;
    let status = k.cri.sandbox(&id).await?;
    let mut ips = Vec::new();
    if let Some(network) = status.network.filter(|n| !n.ip.is_empty()) {
        ips.push(network.ip);
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    }
    Ok((id, ips))
}

async fn runtime_handler(k: &Kubelet, class: &str) -> Result<String, RuntimeError> {
    use k8s_openapi::api::node::v1::RuntimeClass;
    let unknown = |message: String| RuntimeError { code: tonic::Code::Unknown, message };
    let client = k.client.clone().ok_or_else(|| unknown("the kubelet has no API server".into()))?;
    let found = kube::Api::<RuntimeClass>::all(client).get(class).await;
    found
        .map(|found| found.handler)
        .map_err(|error| unknown(format!("failed to get runtime class {class:?}: {error}")))
}
