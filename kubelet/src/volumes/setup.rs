//! Brings a pod's volumes into being and keeps their content current. Safe to repeat.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use client::Cache;
use client::volumes::reachable;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource, Volume,
};
use kube::Api;

use super::atomic::{self, File, Payload};
use super::{files, ownership, payload, volume_directory};
use crate::kubelet::Kubelet;
use crate::objects::{self, ephemeral_containers, init_containers, spec, uid};
use crate::quantity::{amount, value};

/// Where each volume is on the host.
pub type Places = HashMap<String, PathBuf>;

/// Why a volume could not be set up.
enum Fault {
    SetUp(String),
    /// The persistent volume of this name is not for this node.
    Unreachable(String),
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::SetUp(message)
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Self {
        Self::SetUp(message.to_owned())
    }
}

impl Fault {
    /// What the pod's event says, as upstream words it.
    fn message(&self, volume: &str) -> String {
        match self {
            Self::SetUp(why) => format!("MountVolume.SetUp failed for volume {volume:?} : {why}"),
            Self::Unreachable(name) => format!(
                "MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms"
            ),
        }
    }
}

/// The names of the volumes that containers use.
fn used(pod: &Pod) -> BTreeSet<String> {
    let ephemeral = ephemeral_containers(pod);
    let all = spec(pod).containers.iter().chain(init_containers(pod)).chain(&ephemeral);
    all.flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| m.name.clone()).collect()
}

/// Whether a pod has volumes whose content may change.
pub fn refreshes(pod: &Pod) -> bool {
    spec(pod).volumes.iter().flatten().any(|v| {
        v.config_map.is_some()
            || v.secret.is_some()
            || v.projected.is_some()
            || v.downward_api.is_some()
    })
}

/// Sets up all of a pod's volumes. `fresh`: objects read earlier will not do.
///
/// # Errors
/// What is to be said of the first volume that failed; the others are tried all the same.
pub async fn prepare(k: &Kubelet, pod: &Pod, fresh: bool) -> Result<Places, String> {
    let used = used(pod);
    let (mut places, mut failed) = (Places::new(), None);
    for volume in spec(pod).volumes.iter().flatten().filter(|v| used.contains(&v.name)) {
        match one(k, pod, volume, fresh).await {
            Ok(place) => {
                places.insert(volume.name.clone(), place);
            }
            Err(fault) => {
                failed.get_or_insert_with(|| fault.message(&volume.name));
            }
        }
    }
    match failed {
        Some(failed) => Err(failed),
        None => Ok(places),
    }
}

fn text(error: &io::Error) -> String {
    error.to_string()
}

async fn one(k: &Kubelet, pod: &Pod, volume: &Volume, fresh: bool) -> Result<PathBuf, Fault> {
    let place = |plugin: &str| volume_directory(&k.root, uid(pod), plugin, &volume.name);
    if let Some(source) = &volume.empty_dir {
        let path = place("empty-dir");
        let memory = source.medium.as_deref() == Some("Memory");
        let size = source.size_limit.as_ref().map(|q| amount(q).value()).filter(|s| *s > 0);
        return Ok(empty_dir(k, pod, path, memory, size)?);
    }
    if let Some(source) = &volume.host_path {
        let path = PathBuf::from(&source.path);
        files::host_path(&path, source.type_.as_deref().unwrap_or_default())?;
        return Ok(path);
    }
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.map_or(0o644, |m| m as u32);
        let optional = source.optional == Some(true);
        let namespace = objects::namespace(pod);
        let data = match k.config_map(namespace, &source.name, fresh).await {
            Ok(map) => payload::config_map_data(&map),
            Err(missing) if missing.not_found && optional => payload::Data::new(),
            Err(missing) => return Err(missing.message.into()),
        };
        let content = payload::keyed(&data, source.items.as_deref(), mode, optional, "configmap")?;
        return Ok(publish(pod, place("configmap"), content, false)?);
    }
    if let Some(source) = &volume.secret {
        let mode = source.default_mode.map_or(0o644, |m| m as u32);
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = match k.secret(objects::namespace(pod), name, fresh).await {
            Ok(secret) => payload::secret_data(&secret),
            Err(missing) if missing.not_found && optional => payload::Data::new(),
            Err(missing) => return Err(missing.message.into()),
        };
        let content = payload::keyed(&data, source.items.as_deref(), mode, optional, "secret")?;
        return Ok(publish(pod, place("secret"), content, true)?);
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.map_or(0o644, |m| m as u32);
        let items = source.items.as_deref().unwrap_or_default();
        let content = payload::downward(pod, items, mode, &k.allocatable(), &k.host_ips())?;
        return Ok(publish(pod, place("downward-api"), content, true)?);
    }
    if let Some(source) = &volume.projected {
        let content = projected(k, pod, source, fresh).await?;
        return Ok(publish(pod, place("projected"), content, true)?);
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        return claimed(k, pod, &claim.claim_name).await;
    }
    if volume.ephemeral.is_some() {
        return claimed(k, pod, &format!("{}-{}", objects::name(pod), volume.name)).await;
    }
    let name = &volume.name;
    Err(format!(
        "failed to get Plugin from volumeSpec for volume {name:?} err=no volume plugin matched"
    )
    .into())
}

fn empty_dir(
    k: &Kubelet,
    pod: &Pod,
    path: PathBuf,
    memory: bool,
    size: Option<i64>,
) -> Result<PathBuf, String> {
    let group = fs_group(pod);
    if memory {
        // The pod's memory limit bounds it as well, and the node's memory.
        let limit = crate::pod::resources::pod_limits(pod, k.limiting()).memory;
        let node = value(Some(&k.allocatable()), "memory");
        let size = [size, limit, node].into_iter().flatten().filter(|s| *s > 0).min();
        files::tmpfs(&path, size, 0o1777).map_err(|e| text(&e))?;
    } else {
        files::directory(&path, 0o777).map_err(|e| text(&e))?;
    }
    if let Some(group) = group {
        ownership::give(&path, group, false).map_err(|e| text(&e))?;
    }
    Ok(path)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = spec(pod).security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// The user that all containers run as, if it is one.
fn common_user(pod: &Pod) -> Option<u32> {
    let pod_user = spec(pod).security_context.as_ref().and_then(|s| s.run_as_user);
    let all = spec(pod).containers.iter().chain(init_containers(pod));
    let users: BTreeSet<Option<i64>> =
        all.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user)).collect();
    match users.into_iter().collect::<Vec<_>>()[..] {
        [Some(user)] => u32::try_from(user).ok(),
        _ => None,
    }
}

fn publish(pod: &Pod, path: PathBuf, content: Payload, in_memory: bool) -> Result<PathBuf, String> {
    let ready = match in_memory {
        // What is secret does not reach a disk.
        true => files::tmpfs(&path, None, 0o1777),
        false => files::directory(&path, 0o777),
    };
    ready.map_err(|e| text(&e))?;
    let group = fs_group(pod);
    let own = |fresh: &Path| match group {
        Some(group) => ownership::give(fresh, group, true),
        None => Ok(()),
    };
    let written = atomic::write(&path, &content, Timestamp::now(), own);
    written.map_err(|e| text(&e))?;
    Ok(path)
}

async fn projected(
    k: &Kubelet,
    pod: &Pod,
    source: &ProjectedVolumeSource,
    fresh: bool,
) -> Result<Payload, String> {
    let mode = source.default_mode.map_or(0o644, |m| m as u32);
    let namespace = objects::namespace(pod);
    let mut all = Payload::new();
    for part in source.sources.iter().flatten() {
        if let Some(map) = &part.config_map {
            let optional = map.optional == Some(true);
            let data = match k.config_map(namespace, &map.name, fresh).await {
                Ok(found) => payload::config_map_data(&found),
                Err(missing) if missing.not_found && optional => payload::Data::new(),
                Err(missing) => return Err(missing.message),
            };
            all.extend(payload::keyed(&data, map.items.as_deref(), mode, optional, "configmap")?);
        }
        if let Some(secret) = &part.secret {
            let optional = secret.optional == Some(true);
            let data = match k.secret(namespace, &secret.name, fresh).await {
                Ok(found) => payload::secret_data(&found),
                Err(missing) if missing.not_found && optional => payload::Data::new(),
                Err(missing) => return Err(missing.message),
            };
            all.extend(payload::keyed(&data, secret.items.as_deref(), mode, optional, "secret")?);
        }
        if let Some(downward) = &part.downward_api {
            let items = downward.items.as_deref().unwrap_or_default();
            all.extend(payload::downward(pod, items, mode, &k.allocatable(), &k.host_ips())?);
        }
        if let Some(token) = &part.service_account_token {
            let client = k.client.as_ref().ok_or("the kubelet has no API server")?;
            let seconds = token.expiration_seconds.unwrap_or(3600);
            let audience = token.audience.as_deref().unwrap_or_default();
            let data = k.tokens.get(client, pod, audience, seconds).await?.into_bytes();
            let user = common_user(pod);
            // Only who needs it may read it, where that is known.
            let mode = if user.is_some() || fs_group(pod).is_some() { 0o600 } else { mode };
            all.insert(token.path.clone(), File { data, mode, uid: user });
        }
        if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
            return Err("projected source is not supported by this kubelet".to_owned());
        }
    }
    Ok(all)
}

/// The directory behind a claim, for volumes that are directories of this machine.
async fn claimed(k: &Kubelet, pod: &Pod, claim: &str) -> Result<PathBuf, Fault> {
    let client = k.client.as_ref().ok_or("the kubelet has no API server")?;
    let namespace = objects::namespace(pod);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = claims.get(claim).await.map_err(|error| {
        format!(
            "error processing PVC {namespace}/{claim}: failed to fetch PVC from API server: {error}"
        )
    })?;
    let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = found.spec.and_then(|s| s.volume_name).filter(|n| bound && !n.is_empty());
    let name =
        name.ok_or_else(|| format!("error processing PVC {namespace}/{claim}: PVC is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = volumes.get(&name).await.map_err(|error| error.to_string())?;
    let nodes = k.node.as_ref().map(Cache::list).unwrap_or_default();
    if !reachable(&volume, nodes.first().ok_or("the node is not known yet")?) {
        return Err(Fault::Unreachable(name));
    }
    let source = volume.spec.unwrap_or_default();
    if let Some(path) = &source.host_path {
        files::host_path(Path::new(&path.path), path.type_.as_deref().unwrap_or_default())?;
        return Ok(PathBuf::from(&path.path));
    }
    if let Some(local) = &source.local {
        let path = PathBuf::from(&local.path);
        if !path.exists() {
            return Err(format!("path {:?} does not exist", local.path).into());
        }
        if let Some(group) = fs_group(pod) {
            ownership::give(&path, group, false).map_err(|e| text(&e))?;
        }
        return Ok(path);
    }
    Err(format!("PersistentVolume {name}: no volume plugin of this kubelet matches its source")
        .into())
}
