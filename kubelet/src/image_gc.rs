//! Removes images that nobody uses: when their file system is too full, and when they have not
//! been used for too long.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use tokio::time::Instant;

use crate::kubelet::Kubelet;

/// How full the file system is looked at this often (upstream's period).
const PERIOD: Duration = Duration::from_secs(300);

/// What is remembered of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    first: Instant,
    used: Instant,
}

/// An image as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    id: String,
    size: u64,
    seen: Seen,
}

/// When images are removed.
#[derive(Clone, Copy, Debug)]
struct Policy {
    /// Percent of the file system: above this images go until it is down to `low`.
    high: u64,
    low: u64,
    /// Not before an image is this old.
    min_age: Duration,
    /// At all events when it has not been used for so long.
    max_age: Option<Duration>,
}

/// A file system, in bytes.
#[derive(Clone, Copy, Debug)]
struct Room {
    capacity: u64,
    available: u64,
}

/// How much has to be freed.
fn need(room: Room, policy: Policy) -> u64 {
    if room.capacity == 0 || policy.high >= 100 {
        return 0;
    }
    let used = 100 - room.available.min(room.capacity) * 100 / room.capacity;
    if used < policy.high {
        return 0;
    }
    (room.capacity * (100 - policy.low) / 100).saturating_sub(room.available)
}

/// The images to remove, in order: those that were not used for longest first.
fn choose(mut unused: Vec<Candidate>, room: Room, policy: Policy, now: Instant) -> Vec<String> {
    unused.sort_by_key(|c| (c.seen.used, c.seen.first));
    let mut left = need(room, policy);
    let mut chosen = Vec::new();
    for image in unused {
        let idle = now.duration_since(image.seen.used);
        let stale = policy.max_age.is_some_and(|age| idle > age);
        let old = now.duration_since(image.seen.first) >= policy.min_age;
        if stale || (left > 0 && old) {
            left = left.saturating_sub(image.size);
            chosen.push(image.id);
        }
    }
    chosen
}

/// Collects until shutdown.
pub async fn run(k: Arc<Kubelet>) {
    let config = &k.config;
    let percent = |p: i32| u64::try_from(p).unwrap_or(100).min(100);
    let policy = Policy {
        high: percent(config.image_gc_high_threshold_percent),
        low: percent(config.image_gc_low_threshold_percent),
        min_age: config.image_minimum_gc_age.0,
        max_age: Some(config.image_maximum_gc_age.0).filter(|age| !age.is_zero()),
    };
    if policy.high >= 100 && policy.max_age.is_none() {
        return;
    }
    let mut seen: HashMap<String, Seen> = HashMap::new();
    loop {
        if let Err(error) = collect(&k, policy, &mut seen).await {
            tracing::warn!(%error, "images not collected");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = k.shutdown.cancelled() => return,
        }
    }
}

/// Where the runtime keeps images, when it tells.
pub async fn place(k: &Kubelet) -> Option<PathBuf> {
    let info = k.cri.image_fs_info(cri::ImageFsInfoRequest::default()).await.ok()?;
    let mount = info.image_filesystems.first()?.fs_id.as_ref()?;
    Some(PathBuf::from(&mount.mountpoint))
}

/// Removes all images that nobody uses, since the disk runs short.
///
/// # Errors
/// The runtime's.
pub async fn reclaim(k: &Kubelet) -> Result<(), crate::runtime::RuntimeError> {
    let all = Policy { high: 0, low: 0, min_age: Duration::ZERO, max_age: Some(Duration::ZERO) };
    collect(k, all, &mut HashMap::new()).await
}

async fn collect(
    k: &Kubelet,
    policy: Policy,
    seen: &mut HashMap<String, Seen>,
) -> Result<(), crate::runtime::RuntimeError> {
    let images = k.cri.list_images(cri::ListImagesRequest::default()).await?.images;
    let containers = k.cri.list_containers(cri::ListContainersRequest::default()).await?.containers;
    // A container names its image by id or by reference; the sandboxes' image is pinned, or named
    // by none of them: the runtime's own is left to it.
    let mut used: BTreeSet<&str> = containers.iter().map(|c| c.image_ref.as_str()).collect();
    used.extend(containers.iter().filter_map(|c| c.image.as_ref()).map(|i| i.image.as_str()));
    let now = Instant::now();
    seen.retain(|id, _| images.iter().any(|i| i.id == *id));
    let mut unused = Vec::new();
    for image in &images {
        let entry = seen.entry(image.id.clone()).or_insert(Seen { first: now, used: now });
        let names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
        if names.into_iter().any(|name| used.contains(name.as_str())) {
            entry.used = now;
        } else if !image.pinned && !is_pause(image) {
            unused.push(Candidate { id: image.id.clone(), size: image.size, seen: *entry });
        }
    }
    let path = place(k).await.unwrap_or_default();
    let room =
        nix::sys::statvfs::statvfs(&path).map_or(Room { capacity: 0, available: 0 }, |s| Room {
            capacity: s.blocks() * s.fragment_size(),
            available: s.blocks_available() * s.fragment_size(),
        });
    for id in choose(unused, room, policy, now) {
        tracing::info!(image = id, "unused image removed");
        let image = Some(cri::ImageSpec { image: id, ..cri::ImageSpec::default() });
        k.cri.remove_image(cri::RemoveImageRequest { image }).await?;
    }
    Ok(())
}

/// The sandboxes' image, where the runtime does not pin it (containerd before 1.7).
fn is_pause(image: &cri::Image) -> bool {
    image.repo_tags.iter().any(|tag| {
        let name = tag.rsplit('/').next().unwrap_or(tag);
        name.split(':').next() == Some("pause")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        high: 85,
        low: 80,
        min_age: Duration::from_secs(120),
        max_age: Some(Duration::from_secs(10_000)),
    };

    #[test]
    fn what_has_to_be_freed() {
        for (available, high, want) in [(20, 85, 0), (15, 85, 5), (1, 85, 19), (1, 100, 0)] {
            let room = Room { capacity: 100, available };
            assert_eq!(need(room, Policy { high, ..POLICY }), want, "{available} {high}");
        }
    }

    #[test]
    fn the_longest_unused_go_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let image = |id: &str, size, first, used| Candidate {
            id: id.into(),
            size,
            seen: Seen { first: at(first), used: at(used) },
        };
        let images =
            || vec![image("new", 9, 950, 950), image("b", 3, 0, 500), image("a", 3, 0, 400)];
        for (available, now, want) in
            [(50, 1000, &[][..]), (15, 1000, &["a", "b"]), (17, 1000, &[]), (50, 10_450, &["a"])]
        {
            let room = Room { capacity: 100, available };
            let chosen = choose(images(), room, POLICY, at(now));
            assert_eq!(chosen, want, "{available} {now}");
        }
    }
}
