//! Images: whether to pull, with which credentials, and how long to wait after a failure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::kubelet::Kubelet;
use crate::objects::{self, container_reference, spec, uid};
use crate::pod::security::ImageUser;
use crate::pod::status::Waiting;
use crate::rate::Bucket;

/// State of pulls.
pub struct Images {
    backoff: Backoff,
    /// What went wrong last, by back-off key.
    errors: Mutex<HashMap<String, String>>,
    parallel: Semaphore,
    rate: Bucket,
}

/// An image that a container can be made from.
pub struct Found {
    /// What the runtime knows it by.
    pub reference: String,
    pub user: ImageUser,
}

impl Images {
    /// `parallel`: pulls at a time, `None` for any number; `rate`: how often one may begin.
    pub fn new(parallel: Option<usize>, rate: Bucket) -> Self {
        let parallel = parallel.unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(300)),
            errors: Mutex::default(),
            parallel: Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS)),
            rate,
        }
    }

    /// Forgets what is long past.
    pub fn collect(&self) {
        self.backoff.collect(Instant::now());
        self.errors.lock().retain(|key, _| !self.backoff.get(key).is_zero());
    }
}

/// The name with `:latest` where it has neither tag nor digest.
///
/// # Errors
/// Upstream's text for a name that is none.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let invalid = |why: &str| Err(format!("couldn't parse image name {image:?}: {why}"));
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    let repository = match tag {
        Some(tag) => &name[..name.len() - tag.len() - 1],
        None => name,
    };
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let tag_ok = tag.is_none_or(|t| !t.is_empty() && t.len() <= 128 && t.chars().all(good));
    let digest_ok = digest.is_none_or(|d| {
        d.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
        })
    });
    let mut parts: Vec<&str> = repository.split('/').collect();
    let has_host = parts.len() > 1
        && (parts[0].contains(['.', ':']) || parts[0] == "localhost" || parts[0].starts_with('['));
    if has_host {
        parts.remove(0);
    }
    let part_ok = |p: &&str| {
        !p.is_empty()
            && p.chars().all(good)
            && p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !tag_ok || !digest_ok || !parts.iter().all(part_ok) {
        return invalid("invalid reference format");
    }
    if parts.iter().any(|p| p.chars().any(|c| c.is_ascii_uppercase())) {
        let path = parts.join("/");
        let path = if has_host || parts.len() > 1 { path } else { format!("library/{path}") };
        return invalid(&format!(
            "invalid reference format: repository name ({path}) must be lowercase"
        ));
    }
    match (tag, digest) {
        (None, None) => Ok(format!("{image}:latest")),
        _ => Ok(image.to_owned()),
    }
}

/// The registry that an image comes from.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The credentials in a pull secret for an image.
fn credentials(secret: &Secret, image: &str) -> Option<cri::AuthConfig> {
    let data = secret.data.as_ref()?;
    let auths = if let Some(json) = data.get(".dockerconfigjson") {
        serde_json::from_slice::<serde_json::Value>(&json.0).ok()?.get("auths")?.clone()
    } else {
        serde_json::from_slice(&data.get(".dockercfg")?.0).ok()?
    };
    let wanted = registry(image);
    let entry = auths.as_object()?.iter().find(|(key, _)| {
        let host = key.trim_start_matches("https://").trim_start_matches("http://");
        let (host, path) = host.split_once('/').unwrap_or((host, ""));
        let same = host == wanted || wanted == "docker.io" && host == "index.docker.io";
        let path = path.trim_matches('/');
        let prefix = format!("{wanted}/{path}");
        same && (path.is_empty() || path == "v1" || path == "v2" || image.starts_with(&prefix))
    })?;
    let text =
        |name: &str| entry.1.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty()
        && let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(text("auth"))
        && let Some((user, pass)) = String::from_utf8_lossy(&decoded).split_once(':')
    {
        username = user.to_owned();
        password = pass.trim_end_matches('\0').to_owned();
    }
    Some(cri::AuthConfig {
        username,
        password,
        server_address: wanted.to_owned(),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..cri::AuthConfig::default()
    })
}

fn waiting(reason: &str, message: impl Into<String>) -> Waiting {
    Waiting { reason: reason.to_owned(), message: message.into() }
}

fn found(image: &cri::Image) -> Found {
    Found {
        reference: image.id.clone(),
        user: match (&image.uid, image.username.as_str()) {
            (Some(uid), _) => ImageUser { uid: Some(uid.value), name: String::new() },
            (None, "") => ImageUser { uid: Some(0), name: String::new() },
            (None, name) => ImageUser { uid: None, name: name.to_owned() },
        },
    }
}

/// Makes sure that a container's image is here, pulling it by its policy.
///
/// # Errors
/// Why the container waits.
pub async fn ensure(
    k: &Kubelet,
    pod: &Pod,
    container: &Container,
    sandbox: &cri::PodSandboxConfig,
) -> Result<Found, Waiting> {
    let asked = container.image.as_deref().unwrap_or_default();
    let about = || container_reference(pod, &container.name);
    let image = match with_default_tag(asked) {
        Ok(image) => image,
        Err(error) => {
            let message = format!("Failed to apply default image tag {asked:?}: {error}");
            k.event(about(), true, "InspectFailed", message.clone());
            return Err(waiting("InvalidImageName", message));
        }
    };
    let policy = match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    };
    if policy != "Always" {
        match k.cri.image(&image).await {
            Ok(Some(present)) => {
                let message = format!(
                    "Container image {asked:?} already present on machine and can be accessed by the pod"
                );
                k.event(about(), false, "Pulled", message);
                return Ok(found(&present));
            }
            Ok(None) if policy == "Never" => {
                let message =
                    format!("Container image {asked:?} is not present with pull policy of Never");
                k.event(about(), true, "ErrImageNeverPull", message.clone());
                return Err(waiting("ErrImageNeverPull", message));
            }
            Ok(None) => {}
            Err(error) => {
                let message = format!("Failed to inspect image {image:?}: {error}");
                k.event(about(), true, "InspectFailed", message.clone());
                return Err(waiting("ImageInspectError", message));
            }
        }
    }
    pull(k, pod, container, sandbox, &image).await
}

async fn pull(
    k: &Kubelet,
    pod: &Pod,
    container: &Container,
    sandbox: &cri::PodSandboxConfig,
    image: &str,
) -> Result<Found, Waiting> {
    let asked = container.image.as_deref().unwrap_or_default();
    let about = || container_reference(pod, &container.name);
    let key = format!("{}_{asked}", uid(pod));
    let images = &k.images;
    if images.backoff.remaining_since_update(&key, Instant::now()).is_some() {
        let mut message = format!("Back-off pulling image {asked:?}");
        k.event(about(), false, "BackOff", message.clone());
        if let Some(error) = images.errors.lock().get(&key) {
            message = format!("{message}: {error}");
        }
        return Err(waiting("ImagePullBackOff", message));
    }
    images.errors.lock().remove(&key);
    let secrets = pull_secrets(k, pod).await;
    k.event(about(), false, "Pulling", format!("Pulling image {asked:?}"));
    let queued = Instant::now();
    let permit = images.parallel.acquire().await;
    let begun = Instant::now();
    let pulled = match images.rate.take(Instant::now()) {
        Ok(()) => pull_with_any(k, image, &secrets, sandbox).await.map_err(|e| e.to_string()),
        Err(_) => Err("pull QPS exceeded".to_owned()),
    };
    drop(permit);
    let present = match pulled {
        Ok(reference) => k.cri.image(&reference).await.map_err(|e| e.to_string()),
        Err(error) => Err(error),
    };
    match present {
        Ok(Some(present)) => {
            let time = |since: Instant| crate::duration::format(since.elapsed());
            k.event(
                about(),
                false,
                "Pulled",
                format!(
                    "Successfully pulled image {asked:?} in {} ({} including waiting). Image size: {} bytes.",
                    time(begun),
                    time(queued),
                    present.size
                ),
            );
            Ok(found(&present))
        }
        Ok(None) => Err(waiting("ErrImagePull", format!("image {asked:?} is gone after the pull"))),
        Err(error) => {
            k.event(about(), true, "Failed", format!("Failed to pull image {asked:?}: {error}"));
            let now = Instant::now();
            images.backoff.next(&key, now, now);
            let (reason, message) = classify(asked, &error);
            images.errors.lock().insert(key, format!("{reason}: {message}"));
            Err(waiting(reason, message))
        }
    }
}

/// The reason for a failed pull, and its message.
fn classify(image: &str, error: &str) -> (&'static str, String) {
    for (reason, words) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = error.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {words}{rest}"));
        }
    }
    ("ErrImagePull", error.to_owned())
}

async fn pull_secrets(k: &Kubelet, pod: &Pod) -> Vec<Arc<Secret>> {
    let (mut secrets, mut missing) = (Vec::new(), Vec::new());
    for reference in spec(pod).image_pull_secrets.iter().flatten().filter(|r| !r.name.is_empty()) {
        match k.secret(objects::namespace(pod), &reference.name, true).await {
            Ok(secret) => secrets.push(secret),
            Err(_) => missing.push(reference.name.clone()),
        }
    }
    if !missing.is_empty() {
        k.event(
            objects::reference(pod),
            true,
            "FailedToRetrieveImagePullSecret",
            format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            ),
        );
    }
    secrets
}

async fn pull_with_any(
    k: &Kubelet,
    image: &str,
    secrets: &[Arc<Secret>],
    sandbox: &cri::PodSandboxConfig,
) -> Result<String, crate::runtime::RuntimeError> {
    let mut choices: Vec<Option<cri::AuthConfig>> =
        secrets.iter().filter_map(|s| credentials(s, image)).map(Some).collect();
    if choices.is_empty() {
        choices.push(None);
    }
    let last = choices.len() - 1;
    let mut result = Ok(String::new());
    for (index, auth) in choices.into_iter().enumerate() {
        let request = cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: image.to_owned(), ..cri::ImageSpec::default() }),
            auth,
            sandbox_config: Some(sandbox.clone()),
        };
        result = k.cri.pull_image(request).await;
        if result.is_ok() || index == last {
            break;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag() {
        for (name, want) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            (
                "registry.example/a@sha256:0123456789abcdef0123456789abcdef",
                "registry.example/a@sha256:0123456789abcdef0123456789abcdef",
            ),
        ] {
            assert_eq!(with_default_tag(name).as_deref(), Ok(want));
        }
        for (name, why) in [
            ("INVALID", "(library/INVALID) must be lowercase"),
            ("", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("!", "invalid reference format"),
        ] {
            assert!(with_default_tag(name).unwrap_err().contains(why), "{name}");
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let json = r#"{"auths":{"https://registry.example/v1/":{"auth":"dTpwOnE="}}}"#;
        let secret: Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(json)}
        }))
        .unwrap();
        let auth = credentials(&secret, "registry.example/a:1").unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "p:q"));
        assert!(credentials(&secret, "other.example/a:1").is_none());
    }
}
